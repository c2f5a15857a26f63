"""What a study says in plain words, the same in the terminal, on the page and in the record."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from catchment.commands.study.analysis.intervals import UNKNOWN
from catchment.commands.study.choice import choice_title
from catchment.commands.study.record import BASE, Change, Flag, Gap, Study
from catchment.pages import decimal, duration, interval_points, join, level, named, percent, points, typeset
from catchment.records import Interval

if TYPE_CHECKING:
    from catchment.commands.study.plan import Plan

STATES = ("done", "missing", "failed", "refused")
TOKENS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def states(counts: Mapping[str, int]) -> dict[str, int]:
    """The number of cells of each status."""
    return {state: counts.get(state, 0) for state in STATES}


def share_done(counts: Mapping[str, int]) -> str:
    """How much of the grid is measured, e.g. ``412 of 432 (95%)``; never 100% where a cell is missing.

    >>> share_done({"done": 412, "missing": 20}), share_done({"done": 9999, "failed": 1})
    ('412 of 432 (95%)', '9,999 of 10,000 (99%)')
    """
    total = sum(states(counts).values())
    if not total:
        return "none"
    done = counts.get("done", 0)
    return f"{done:,} of {total:,} ({math.floor(100 * done / total)}%)"


def latest(study: Study) -> list[Change]:
    """The changes at the last checkpoint of each model that has any, without those that a gate refused."""
    changes = [change for change in study.changes if not change.refused]
    order = {(point.model, point.revision): point.order for point in study.checkpoints}
    last: dict[str, str] = {}
    for change in sorted(changes, key=lambda c: order.get((c.model, c.revision), -1)):
        last[change.model] = change.revision
    return [change for change in changes if change.revision == last[change.model]]


def direction(change: Change) -> str:
    """gained or lost where shown: by the verdict, and without one by the side of zero on which the interval lies."""
    if change.refused:
        return ""
    if change.verdict:
        return change.verdict if change.verdict in ("gained", "lost") else ""
    return "gained" if change.interval.low > 0 else "lost" if change.interval.high < 0 else ""


def title(study: Study) -> str:
    """The study as a title of a few words: of one checkpoint with verdicts, which tuning to take."""
    if study.verdicts and len(study.checkpoints) <= 1:
        return choice_title(study.verdicts)
    changes = latest(study)
    if not changes:
        done = study.counts.get("done", 0)
        alone = "" if study.tunings else ", no tuning to compare"
        return f"{plural(done, 'cell')} measured{alone}" if done else "Nothing is measured yet"
    told = Counter(direction(change) for change in changes)
    return f"{told['gained']:,} gained, {told['lost']:,} lost of {plural(len(changes), 'pair')} of tuning and task"


def sentence(study: Study) -> str:
    """What was gained and lost at the last checkpoint, what was refused, and how much of the grid is there.

    Returns:
        Two to five sentences. Changes are named with their interval; nothing that is missing is counted as kept.
    """
    parts = [_changes(study), _refused(study.flags), _grid(study)]
    return " ".join(part for part in parts if part)


def _changes(study: Study) -> str:
    changes = latest(study)
    if not changes:
        said = "No change between a base and its tuning could be computed." if study.trajectories else ""
        return study.choice or said
    revisions = list(dict.fromkeys(change.revision for change in changes))
    models = len({change.model for change in changes})
    where = f"At the last checkpoint ({revisions[0]})" if len(revisions) == 1 else "At the last checkpoints"
    if models > 1:
        where += f" of {models} models"
    gained = [change for change in changes if direction(change) == "gained"]
    lost = [change for change in changes if direction(change) == "lost"]
    of = f"of {plural(len(changes), 'pair')} of tuning and task"
    text = f"{where}, {len(gained):,} {of} gained and {len(lost):,} lost{_rest(changes)}"
    largest = [
        f"the largest {word} is {pair(max(some, key=lambda c: abs(c.interval.estimate)), study)}"
        for word, some in (("gain", gained), ("loss", lost))
        if some
    ]
    return f"{text}{': ' if largest else ''}{join(largest)}.{_outside(changes)}"


def _rest(changes: Sequence[Change]) -> str:
    """Pairs that neither gained nor lost, by verdict; an undecided one is not a kept one."""
    told = Counter(change.verdict or "with no change shown" for change in changes if not direction(change))
    return f" ({join([f'{number:,} {what}' for what, number in told.items()])})" if told else ""


def _outside(changes: Sequence[Change]) -> str:
    """Losses outside the domain of their tuning, which is what forgetting means."""
    away = [change for change in changes if not change.in_domain]
    if not away or len(away) == len(changes):
        return ""
    lost = sum(direction(change) == "lost" for change in away)
    return f" Outside the domain of their tuning {lost:,} of {len(away):,} lost."


def pair(change: Change, study: Study) -> str:
    """``tulu on boolq (+7.0 points, 95% interval +4.1 to +9.9)``."""
    size = points(change.interval.estimate)
    return (
        f"{change.tuning} on {change.task} ({size} points, {level(study.alpha)} interval "
        f"{interval_points(change.interval)})"
    )


def _refused(flags: Sequence[Flag]) -> str:
    gates = list(dict.fromkeys(flag.gate for flag in flags if flag.refused))
    return f"Refused and left out of every conclusion: {named(gates)}." if gates else ""


def _grid(study: Study) -> str:
    counts = states(study.counts)
    total = sum(counts.values())
    if not total:
        return "The grid has no cell."
    if counts["done"] == total:
        return f"All {plural(total, 'cell')} of the grid are measured."
    absent = [f"{counts[state]:,} {state}" for state in STATES[1:] if counts[state]]
    return f"{share_done(study.counts)} cells of the grid are measured; {join(absent)}."


def gates(flags: Sequence[Flag]) -> str:
    """How many gates, and in how many places where these are more."""
    number = len({flag.gate for flag in flags})
    return plural(number, "gate") + (f" in {len(flags):,} places" if len(flags) > number else "")


def plural(number: int, noun: str) -> str:
    """A number with its noun.

    >>> plural(1, "cell"), plural(1200, "cell")
    ('1 cell', '1,200 cells')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def between(values: Sequence[int], noun: str) -> str:
    """``n`` of several points: one number, or from the least to the most.

    >>> between([500, 500], "item"), between([480, 1000], "item"), between([], "item")
    ('500 items', '480 to 1,000 items', '')
    """
    known = [value for value in values if value]
    if not known:
        return ""
    low, high = min(known), max(known)
    return plural(low, noun) if low == high else f"{low:,} to {plural(high, noun)}"


def tokens(value: float | None) -> str:
    """Tokens that a model had seen, with three significant digits.

    >>> tokens(4.194e9), tokens(3e12), tokens(0.0), tokens(None)
    ('4.19B', '3T', '0', '')
    """
    if value is None or not math.isfinite(value):
        return ""
    for size, unit in TOKENS:
        if value >= size:
            return f"{float(f'{value / size:.3g}'):g}{unit}"
    return f"{value:.3g}"


def interval_percent(interval: Interval) -> str:
    """``62.4% (60.1% to 64.2%)``; an interval that nothing bounds is not printed."""
    if not bounded(interval):
        return f"{percent(interval.estimate)} (no interval)"
    return f"{percent(interval.estimate)} ({percent(interval.low)} to {percent(interval.high)})"


def bounded(interval: Interval) -> bool:
    """Whether anything bounds the interval: a table of means without errors says nothing."""
    return interval.method != UNKNOWN


def levels(intervals: Sequence[Interval], alpha: float | None = None) -> str:
    """What intervals claim: their level, and of how many together; ``alpha``: the error rate of these together."""
    known = [interval for interval in intervals if bounded(interval)]
    if not known:
        return "no intervals, because the table gives no errors" if intervals else ""
    least, size = min(interval.level for interval in known), max(interval.family for interval in known)
    part = "" if len(known) == len(intervals) else f" where errors are known ({len(known):,} of {len(intervals):,})"
    if size == 1:
        return f"{level(1 - least)} intervals{part}"
    each = level(1 - least) if alpha is None else level(alpha)
    return f"{each} intervals{' each, corrected' if alpha is None else ''} for {size:,} together{part}"


def gap_cost(gaps: Sequence[Gap]) -> str:
    """What all gaps would cost; says where a price is not known. Refused cells are not filled by running again."""
    gaps = [gap for gap in gaps if gap.status != "refused"]
    cells = sum(gap.cells for gap in gaps)
    priced = [gap for gap in gaps if gap.seconds is not None]
    if not cells:
        return "Nothing is left to run: what is not there was refused."
    if not priced:
        return f"{plural(cells, 'cell')} not there; what they cost is not known."
    time = duration(sum(gap.seconds or 0.0 for gap in priced))
    unpriced = cells - sum(gap.cells for gap in priced)
    rest = f", without {plural(unpriced, 'cell')} of unknown price" if unpriced else ""
    return f"{plural(cells, 'cell')} not there: about {time} on this machine to fill them{rest}."


def fill_command(study: Study) -> str:
    """The command that fills the gaps: ``conditions["command"]`` where the study says it; none for scores of others."""
    if not study.conditions or "source" in study.conditions:
        return ""
    stated = study.conditions.get("command")
    if isinstance(stated, str):
        return stated
    seconds = sum(gap.seconds or 0.0 for gap in study.gaps if gap.status != "refused")
    hours = f" --hours {max(1, math.ceil(seconds / 3600))}" if seconds else ""
    return f"catchment study run {shlex.quote(f'{study.name}.yaml')}{hours}"


def tuning_name(label: str) -> str:
    """A tuning as the page names it."""
    return "base" if label == BASE else label


def finite(value: float | None) -> float | None:
    """The value, or ``None`` where it is no number."""
    return value if value is not None and math.isfinite(value) else None


def pct(value: float | None) -> str:
    """A score in percent; a dash where there is none.

    >>> pct(0.624), pct(None), pct(float("nan"))
    ('62.4%', '–', '–')
    """
    known = finite(value)
    return "–" if known is None else typeset(percent(known))


def pts(value: float | None) -> str:
    """A difference in points; a dash where there is none."""
    known = finite(value)
    return "–" if known is None else typeset(points(known))


def size(value: float | None) -> str:
    """A size in points, which has no sign; a dash where there is none."""
    return pts(value).lstrip("+")


def plain(value: float | None, digits: int = 2) -> str:
    """A number without unit; a dash where there is none."""
    known = finite(value)
    return "–" if known is None else decimal(known, digits)


def ratio_percent(value: float | None) -> str:
    """A ratio of change in percent, with its sign; a dash where there is none.

    >>> ratio_percent(-0.6146), ratio_percent(None)
    ('−61.5%', '–')
    """
    return "–" if finite(value) is None else f"{pts(value)}%"


def aliases(groups: Sequence[Sequence[str]]) -> list[str]:
    """Revisions that share their weights, one sentence per group."""
    return [f"The same weights under {len(group)} names: {join(list(group))}." for group in groups]


def plan_lines(plan: Plan) -> list[str]:
    """A plan as lines of text: what is there, what is open and at which price, what a gate refuses."""
    n, estimated = plan.counts, "" if plan.measured else ", estimated from this machine's speed and the models' sizes"
    lines = [
        f"{plan.name}: {n['cells']:,} cells: {n['done']:,} done, {n['missing']:,} missing, {n['failed']:,} failed, "
        f"{n['refused']:,} refused; {n['to train']:,} of {n['trainings']:,} trainings to come",
        f"about {duration(plan.seconds)} of one worker{estimated}; {bytes_of(plan.memory)} of memory for the largest "
        f"model at work; {bytes_of(plan.disk)} of disk for tuned models",
        "",
        "models",
        *(f"  {line}" for line in plan.models),
        *(f"  {line}" for line in aliases(plan.aliases)),
        "tasks",
        *(f"  {line}" for line in plan.questions),
    ]
    if plan.gaps:
        lines += ["open", *(f"  {_open(gap)}" for gap in plan.gaps)]
    return [*lines, *plan.notes]


def _open(gap: Gap) -> str:
    """One line of what is open."""
    price = "" if gap.seconds is None else f", about {duration(gap.seconds)}"
    return f"{gap.what}: {gap.cells:,} {gap.status}{price}{f': {gap.reason}' if gap.reason else ''}"


def bytes_of(size: float) -> str:
    """A size as a person says it.

    >>> bytes_of(2.4e9), bytes_of(5.1e6), bytes_of(300)
    ('2.4 GB', '5.1 MB', '0.0 MB')
    """
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
