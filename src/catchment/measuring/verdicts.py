"""From rows to results: pure functions of two tables of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from catchment.capabilities import JUDGED_SCORERS, Format, Task, expected_answer, gates
from catchment.records import (
    AgreementResult,
    Companion,
    Flip,
    FormatResult,
    Interval,
    Row,
    TaskResult,
    TextResult,
)
from catchment.statistics import decide, mean_interval, paired_interval, unbounded_paired_interval

Rows = Mapping[str, Row]
MAX_FLIPS = 60
"""Flips that are kept in the record per task and direction, the most telling ones; all are counted."""


def paired(base: Rows, tuned: Rows) -> tuple[list[Row], list[Row]]:
    """The rows of the items that both have, in one order."""
    shared = [item for item in base if item in tuned]
    return [base[item] for item in shared], [tuned[item] for item in shared]


def task_result(
    task: Task, base: Rows, tuned: Rows, *, margin: float, alpha: float, family: int,
    formats: Sequence[FormatResult] = (), warnings: Sequence[str] = (),
) -> TaskResult:  # fmt: skip
    """The verdict on one task; see :func:`catchment.statistics.decide`."""
    before, after = paired(base, tuned)
    x, y = [r.score for r in before], [r.score for r in after]
    chance = chance_of(task, before)
    decision = decide(
        x, y, chance=chance, margin=margin, alpha=alpha, family=family,
        generated=task.scorer in JUDGED_SCORERS,
    )  # fmt: skip
    found = [f"base: {w}" for w in gates.check_rows(task, before)]
    found += [f"tuned: {w}" for w in gates.check_rows(task, after)]
    return TaskResult(
        task=task.name,
        scorer=task.scorer,
        n=len(x),
        chance=chance,
        base=sum(x) / len(x),
        tuned=sum(y) / len(y),
        difference=decision.interval,
        verdict=decision.verdict,
        reason=decision.reason,
        admitted=decision.admitted,
        flips_lost=decision.flips_lost,
        flips_gained=decision.flips_gained,
        decide_n=decision.decide_n,
        companion=companion(before, after, alpha),
        formats=tuple(formats),
        warnings=(*warnings, *found),
        can_lose=decision.can_lose,
        note=decision.note,
    )


def shown_drops(tasks: Sequence[TaskResult], bound: float, option: str) -> list[str]:
    """The drops that break a bound, one sentence each: the drop is shown (the whole simultaneous interval is below 0)
    and its estimate is larger than ``bound``, whatever the verdict is called and however good the base was.

    Args:
        option: Where the bound was given, for the sentence.
    """
    return [
        f"{r.task} dropped by {-r.difference.estimate:.3f} [{-r.difference.high:.3f}, {-r.difference.low:.3f}], "
        f"more than {option} {bound:g}"
        for r in tasks
        if r.difference.high < 0 and -r.difference.estimate > bound
    ]


def chance_of(task: Task, rows: Sequence[Row]) -> float:
    """The score of guessing; for a classifier one over its classes, which only its rows tell."""
    if task.scorer == "classify" and task.chance is None:
        return 1 / max(len(rows[0].logprobs), 1)
    return task.chance_level


def companion(base: Sequence[Row], tuned: Sequence[Row], alpha: float) -> Companion | None:
    """Mean probability of the right answer, where every row has one."""
    pairs = [
        (b.companion, t.companion)
        for b, t in zip(base, tuned, strict=True)
        if b.companion is not None and t.companion is not None
    ]
    if len(pairs) < len(base) or not pairs:
        return None
    x, y = [p[0] for p in pairs], [p[1] for p in pairs]
    interval = paired_interval(x, y, level=1 - alpha)
    return Companion("probability of the right answer", sum(x) / len(x), sum(y) / len(y), interval)


def format_result(form: Format, base: Rows, tuned: Rows, *, alpha: float) -> FormatResult:
    """Scores under one format; the interval is for this format alone (not simultaneous)."""
    before, after = paired(base, tuned)
    x, y = [r.score for r in before], [r.score for r in after]
    return FormatResult(form.name, len(x), sum(x) / len(x), sum(y) / len(y), paired_interval(x, y, level=1 - alpha))


def text_result(name: str, base: Rows, tuned: Rows, *, alpha: float) -> TextResult:
    """Bits per byte, paired over passages."""
    before, after = paired(base, tuned)
    x = [r.companion or 0.0 for r in before]
    y = [r.companion or 0.0 for r in after]
    interval = unbounded_paired_interval(x, y, level=1 - alpha)
    return TextResult(name, len(x), sum(x) / len(x), sum(y) / len(y), interval)


def agreement_result(name: str, rows: Rows, *, alpha: float) -> AgreementResult:
    """Agreement with the base over unlabelled prompts."""
    scores = [r.score for r in rows.values()]
    kl = [r.companion for r in rows.values() if r.companion is not None and math.isfinite(r.companion)]
    interval: Interval = mean_interval(scores, level=1 - alpha)
    return AgreementResult(name, len(scores), interval, sum(kl) / len(kl) if kl else None)


def flips(task: Task, form: Format, base: Rows, tuned: Rows) -> list[Flip]:
    """Items that crossed a score of 1/2, the most telling ones first, both ways.

    ``weight`` is the change of the companion where both rows have one; for generations without a known answer 0.5,
    and 0 for answers that are nearly the same text.
    """
    items = {item.id: item for item in task.items}
    found: dict[str, list[Flip]] = {"lost": [], "gained": []}
    for name, before in base.items():
        after = tuned.get(name)
        if after is None or (before.score >= 0.5) == (after.score >= 0.5) or name not in items:
            continue
        item = items[name]
        direction = "lost" if before.score > after.score else "gained"
        if before.companion is not None and after.companion is not None:
            weight = min(abs(after.companion - before.companion), 1.0)
        else:
            weight = 0.5
        found[direction].append(
            Flip(
                task=task.name,
                item=name,
                direction="lost" if direction == "lost" else "gained",
                prompt=form.fill(item),
                expected=expected_answer(item, task.scorer) or _wanted(item.gold),
                base_answer=before.prediction,
                tuned_answer=after.prediction,
                weight=weight,
            )
        )
    return [f for group in found.values() for f in sorted(group, key=lambda f: (-f.weight, f.item))[:MAX_FLIPS]]


def _wanted(gold: object) -> str:
    words = {"refuse": "a refusal", "comply": "an answer, not a refusal"}
    return words.get(str(gold), f"an answer of the form {gold}") if gold is not None else ""
