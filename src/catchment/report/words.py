"""Numbers and verdicts in plain words, the same in the terminal, on the page and in the record."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from catchment.errors import InputError
from catchment.records import Barrier, Interval, Room, Ruler, TaskResult, Verdict
from catchment.statistics import FEW

Headline = Literal["clean", "loss", "gain", "trade", "open"]

SYMBOLS: dict[Verdict, str] = {"gained": "+", "lost": "-", "kept": "=", "undecided": "?", "not measurable": "x"}
NAMED_AT_MOST = 4
LONGEST_PARTIAL_WORD = 20
UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def percent(value: float) -> str:
    """A score in [0, 1] as percent.

    >>> percent(0.4375)
    '43.8%'
    """
    return f"{100 * value:.1f}%"


def times(value: float) -> str:
    """A ratio with three significant digits, without powers of ten up to a million.

    >>> times(0.02141), times(1.5), times(44.93), times(1234.0)
    ('0.0214', '1.5', '44.9', '1230')
    """
    return f"{float(f'{value:.3g}'):g}"


def points(value: float, digits: int = 1) -> str:
    """A difference of scores in percentage points, with its sign; zero has none.

    >>> points(0.31), points(-0.0004), points(-0.118, digits=0)
    ('+31.0', '0.0', '-12')
    """
    scaled = round(100 * value, digits)
    return f"{scaled:+.{digits}f}" if scaled else f"{0:.{digits}f}"


def interval_points(interval: Interval, digits: int = 1) -> str:
    """``low to high`` in percentage points.

    >>> interval_points(Interval(0.31, 0.27, 0.35, 0.95, "score"))
    '+27.0 to +35.0'
    """
    return f"{points(interval.low, digits)} to {points(interval.high, digits)}"


def level(alpha: float) -> str:
    """The confidence that belongs to an error rate.

    >>> level(0.05)
    '95%'
    """
    return f"{100 * (1 - alpha):.4g}%"


def family(tasks: Sequence[TaskResult]) -> int:
    """How many intervals hold together: the largest family that any task's interval was corrected for."""
    return max((task.difference.family for task in tasks), default=1)


def join(names: Sequence[str]) -> str:
    """Names as a person lists them.

    >>> join(["a"]), join(["a", "b"]), join(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def clean(text: str) -> str:
    """Text of a prompt or an answer, safe to print: control characters (terminal escapes among them),
    direction overrides and lone surrogates become ``U+FFFD``; line ends and tabs stay.

    >>> clean("a\\x1b[31mb")
    'a\\ufffd[31mb'
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return UNSAFE.sub("\ufffd", text)


def one_line(text: str, width: int, keep: Literal["start", "end"] = "start") -> str:
    """Text on one line of at most ``width`` characters, cut with an ellipsis.

    Prompts are kept from the end, where the question stands; there the cut falls between words.

    >>> one_line("one two three", 8), one_line("one two three", 8, keep="end")
    ('one two…', '…three')
    """
    line = " ".join(clean(text).split())
    if len(line) <= width:
        return line
    if keep == "start":
        return line[: width - 1].rstrip() + "…"
    tail = line[len(line) - width + 1 :]
    word = tail.find(" ") if line[len(line) - width] != " " else -1
    return "…" + (tail[word + 1 :] if 0 <= word < min(len(tail) - 1, LONGEST_PARTIAL_WORD) else tail.lstrip())


def ruler_name(ruler: Ruler) -> str:
    """What percentages of a scale are percentages of.

    >>> ruler_name(Ruler(0.04, "matrices", 1.0))
    'RMS of the matrices'
    """
    return "RMS of the matrices" if ruler.of == "matrices" else "RMS of these vectors; not comparable with matrices"


def ruler_note(ruler: Ruler | None) -> str:
    """What a reader must know of the ruler: what it is taken over, and what was left out, by name.

    >>> ruler_note(Ruler(0.04, "matrices", 0.75, ("embedding",)))
    'Percentages are of the RMS of the matrices (0.04), over 75% of the weights; left out for its size: embedding.'
    """
    if ruler is None:
        return "This record was written without the RMS of the matrices, so scales have no percentages."
    over = f"{float(f'{100 * ruler.share:.3g}'):g}%"
    name, _, caution = ruler_name(ruler).partition("; ")
    names = list(ruler.left_out)
    if len(names) > NAMED_AT_MOST + 2:
        names = [*names[:NAMED_AT_MOST], f"{len(names) - NAMED_AT_MOST} more"]
    out = f"; left out for {'its' if len(names) == 1 else 'their'} size: {join(names)}"
    return (
        f"Percentages are of the {name} ({times(ruler.rms)}), over {over} of the weights"
        f"{f'; {caution}' if caution else ''}{out if names else ''}."
    )


def with_verdict(tasks: Sequence[TaskResult], verdict: Verdict) -> list[TaskResult]:
    """The tasks with this verdict, the largest difference first (undecided and the rest in the given order)."""
    chosen = [task for task in tasks if task.verdict == verdict]
    if verdict in ("gained", "lost"):
        chosen.sort(key=lambda task: -abs(task.difference.estimate))
    return chosen


def headline_of(tasks: Sequence[TaskResult], unmeasured: Sequence[str] = ()) -> Headline:
    """One word for a comparison: ``trade`` (gained and lost), ``loss``, ``gain``, ``clean`` (no gain, and each
    measurable task was *shown* to be kept) or ``open`` (neither gain nor loss shown, something undecided, of too few
    items, or left unmeasured)."""
    verdicts = {task.verdict for task in tasks}
    unmeasured = [*unmeasured, *_too_few(tasks)]
    if "lost" in verdicts:
        return "trade" if "gained" in verdicts else "loss"
    if "gained" in verdicts:
        return "gain"
    return "clean" if "kept" in verdicts and "undecided" not in verdicts and not unmeasured else "open"


def verdict_sentence(
    tasks: Sequence[TaskResult],
    margin: float,
    alpha: float,
    subject: str = "This fine-tune",
    unmeasured: Sequence[str] = (),
) -> tuple[Headline, str]:
    """The verdict over all tasks in plain words.

    What is undecided is never counted as kept, the intervals are named as simultaneous, and the statement is
    limited to the two models that were measured.

    Args:
        tasks: Results of one comparison, at least one.
        margin: The largest drop that still counts as kept, as a fraction of the score scale.
        alpha: Error rate over all intervals together.
        subject: What the sentence is about; begins it.
        unmeasured: Tasks that a budget left without an item.

    Returns:
        The headline (see :func:`headline_of`) and one to four sentences.

    Raises:
        InputError: ``tasks`` is empty.
    """
    if not tasks:
        raise InputError("a verdict needs results, got 0 tasks; expected at least 1. Was every task skipped?")
    changes = _changes(tasks, alpha)
    kept = [task.task for task in tasks if task.verdict == "kept"]
    lower = [task.task for task in tasks if task.verdict == "kept" and task.difference.high < 0]
    though = f"; {_named(lower)} measurably lower within that" if lower else ""
    within = f"(no drop of {_margin(margin)} or more{though})"
    clauses = [f"{subject} {changes}"] if changes else []
    if kept:
        clauses.append(f"{'it' if changes else subject} kept {_named(kept)} {within}")
    clauses += [clause for clause in (_undecided(tasks), _unmeasurable(tasks)) if clause]
    if not changes and not kept:
        clauses.insert(0, f"For {subject[:1].lower()}{subject[1:]} neither a gain nor a loss was shown")
    sentence = "; ".join(clauses)
    missing = f" Not measured within the budget: {_named(unmeasured)}." if unmeasured else ""
    text = f"{sentence[:1].upper()}{sentence[1:]}.{missing} {_caveat(tasks, alpha)}"
    return headline_of(tasks, unmeasured), text


def headline_label(tasks: Sequence[TaskResult], unmeasured: Sequence[str] = ()) -> str:
    """The verdict as a title of a few words, e.g. ``Gained arithmetic, lost recall``."""
    gained, lost, kept, undecided = (
        [task.task for task in with_verdict(tasks, verdict)] for verdict in ("gained", "lost", "kept", "undecided")
    )
    parts = [f"{verb} {_few(names)}" for verb, names in (("gained", gained), ("lost", lost)) if names]
    if undecided:
        parts.append(f"{_few(undecided)} undecided" if parts or kept else "nothing decided yet")
    few = _too_few(tasks)
    open_ones = [*undecided, *few, *unmeasured]
    if gained and not lost and kept and not open_ones:
        parts.append("kept the rest")
    if kept and not gained and not lost:
        whole = not open_ones
        parts.insert(0, "kept everything that could be measured" if whole else f"kept {_few(kept)}")
    if few and parts:
        parts.append(f"{_few(few)} with too few items")
    if unmeasured:
        parts.append(f"{_few(unmeasured)} not measured")
    title = ", ".join(parts) or "nothing could be measured"
    return title[:1].upper() + title[1:]


def _too_few(tasks: Sequence[TaskResult]) -> list[str]:
    """Tasks without a verdict that more items could give one: not those that the base scores too low on."""
    return [task.task for task in tasks if task.verdict == "not measurable" and task.note == FEW]


def decide_note(task: TaskResult) -> str:
    """How many items would decide an undecided task, or an empty string."""
    return f"about {task.decide_n:,} items would decide" if task.verdict == "undecided" and task.decide_n else ""


def short_note(task: TaskResult) -> str:
    """What a reader must know beside the verdict, in one clause; empty for a plain one."""
    return task.note or decide_note(task)


def graded(task: TaskResult) -> bool:
    """Whether scores lie between 0 and 1, so that items move and do not flip."""
    return task.difference.method == "betting"


def room_state(room: Room) -> Literal["inside", "used up", "undecided"]:
    """Where the tuned model stands on its own ray: at t = 1, against the bracket of the first crossing."""
    if room.high is not None and room.high <= 1:
        return "used up"
    return "inside" if room.low >= 1 else "undecided"


def room_span(room: Room) -> str:
    """The bracket of t in words, e.g. ``0.38 to 0.5``."""
    if room.high is None:
        return f"above {times(room.low)}" if room.low > 0 else "no bracket"
    return f"{times(room.low)} to {times(room.high)}" if room.low > 0 else f"below {times(room.high)}"


def room_words(room: Room) -> str:
    """What the room says, in one clause: how far along its way the tune used up the tolerance, or what it spared."""
    state, low, high = room_state(room), room.low, room.high
    if state == "used up":
        end = percent_of_way(high or 0.0)
        way = f"after {percent_of_way(low)} to {end}" if low > 0 else f"within the first {end}"
        return f"the tolerance was used up {way} of the way"
    if high is None:
        reached = f"no crossing was shown up to {times(room.reach)} times the move"
        held = f"the tolerance holds up to {times(low)} times the move" if low > 0 else "nothing was shown to hold"
        return reached if state == "inside" and low >= room.reach else f"{held}; {reached}"
    span = f"between {times(low)} and {times(high)}" if low > 0 else f"below {times(high)}"
    ends = f"ends {span} times the move"
    if state == "inside":
        return f"the tolerance {ends}"
    return f"the tolerance {ends}: before or after the tuned model is not decided"


def percent_of_way(t: float) -> str:
    """A place on the ray as percent of the way from the base to the tuned model.

    >>> percent_of_way(0.375)
    '38%'
    """
    return f"{100 * t:.2g}%" if t < 1 else f"{100 * t:.0f}%"


def typical_words(typical: tuple[float, float | None] | None) -> str:
    """Random moves of the same subspace, as multiples of the size of this move; a dash where not measured."""
    if typical is None:
        return "–"
    low, high = typical
    if high is None:
        return f"above {times(low)}" if low > 0 else "not known"
    return f"{times(low)} to {times(high)}" if low > 0 else f"below {times(high)}"


def barrier_words(barrier: Barrier | None) -> str:
    """The barrier between base and tuned model, with its interval; shown only where the interval is above zero."""
    if barrier is None:
        return "–"
    height = barrier.height
    size = f"{points(height.estimate).lstrip('+')} points, {interval_points(height)}"
    found = f"at t = {times(barrier.at)}" if height.low > 0 else "none shown"
    return f"{found} ({size}; {barrier.points} inner points)"


def _changes(tasks: Sequence[TaskResult], alpha: float) -> str:
    """``gained a (+31 points, 95% interval +27 to +35) and lost b (-12 points, -16 to -8)``."""
    clauses, first = [], True
    for verdict in ("gained", "lost"):
        named = with_verdict(tasks, verdict)
        quoted = []
        for task in named[:NAMED_AT_MOST]:
            digits = _digits(task.difference)
            what = f"{level(alpha)} interval " if first else ""
            estimate = points(task.difference.estimate, digits)
            quoted.append(f"{task.task} ({estimate} points, {what}{interval_points(task.difference, digits)})")
            first = False
        if len(named) > NAMED_AT_MOST:
            quoted.append(f"{len(named) - NAMED_AT_MOST} more")
        if quoted:
            clauses.append(f"{verdict} {join(quoted)}")
    return " and ".join(clauses)


def _digits(interval: Interval) -> int:
    """Whole points where nothing is lost by rounding: a wide interval whose ends stay clear of zero."""
    wide = interval.high - interval.low >= 0.04
    clear = min(abs(interval.low), abs(interval.high)) >= 0.01
    return 0 if wide and clear else 1


def _undecided(tasks: Sequence[TaskResult]) -> str:
    undecided = with_verdict(tasks, "undecided")
    if len(undecided) == 1:
        task = undecided[0]
        used = f"{task.n:,} {'was' if task.n == 1 else 'were'} used"
        note = decide_note(task)
        return f"{task.task} is undecided" + (f": {note} ({used})" if note else f" with {task.n:,} items")
    quoted = [f"{task.task} ({decide_note(task) or 'open'}, {task.n:,} used)" for task in undecided[:NAMED_AT_MOST]]
    if len(undecided) > NAMED_AT_MOST:
        quoted.append(f"{len(undecided) - NAMED_AT_MOST} more")
    return f"{join(quoted)} are undecided" if quoted else ""


def _unmeasurable(tasks: Sequence[TaskResult]) -> str:
    """What has no verdict, by its reason."""
    by_note: dict[str, list[str]] = {}
    for task in with_verdict(tasks, "not measurable"):
        by_note.setdefault(task.note, []).append(task.task)
    clauses = [
        f"{_named(names)} {'is' if len(names) == 1 else 'are'} not measurable {f'({note})' if note else 'on this base'}"
        for note, names in by_note.items()
    ]
    return "; ".join(clauses)


def _caveat(tasks: Sequence[TaskResult], alpha: float) -> str:
    size = family(tasks)
    together = f"The {level(alpha)} intervals hold for all {size} tasks together; this" if size > 1 else "This"
    verdicts = {task.verdict for task in tasks}
    open_end = "Undecided does not mean kept. " if "undecided" in verdicts and "lost" not in verdicts else ""
    return f"{open_end}{together} is about these two models, not about the method."


def _margin(margin: float) -> str:
    size = f"{100 * margin:.3g}"
    return f"{size} point" if size == "1" else f"{size} points"


def _named(names: Sequence[str]) -> str:
    shown = list(names) if len(names) <= NAMED_AT_MOST + 2 else [*names[:NAMED_AT_MOST], f"{len(names) - 4} more"]
    return join(shown)


def _few(names: Sequence[str]) -> str:
    return join(names) if len(names) <= 2 else f"{len(names)} tasks"
