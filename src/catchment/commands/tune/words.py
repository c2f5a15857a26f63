"""What came of a tune, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from catchment.measuring import TuneHeadline, diverged, harmful, tune_headline, verdict_sentence
from catchment.pages import join, points
from catchment.records import Against, Companion, TuneRun

OPENINGS: dict[TuneHeadline, str] = {
    "harmful": "This tune is harmful.",
    "trade": "This tune is a trade.",
    "unmeasured": "No task was compared.",
}


def tune_sentence(
    runs: Sequence[TuneRun],
    against: Sequence[Against] = (),
    protected: Sequence[str] = (),
    *,
    margin: float = 0.02,
    alpha: float = 0.05,
) -> tuple[TuneHeadline, str]:
    """The headline and what came of a tune: what a comparison says of its tasks, whether it is harmful, what the
    protection did.

    The headline is that of :func:`~catchment.measuring.tune_headline`.

    Args:
        runs: The delivered one first.
        against: The protected tune against the plain one.
        protected: Names of the protected tasks.
        margin, alpha: Of the comparison with the base.
    """
    run = runs[0]
    headline = tune_headline(run)
    lost = any(task.verdict == "lost" for task in run.tasks)
    parts = [OPENINGS[headline]] if headline in OPENINGS else []
    if harmful(run) and not lost and any(look.factor < 1 for look in run.looks):
        parts = ["This training is harmful; what is delivered was pulled back by the fence."]
    if run.tasks:
        parts.append(verdict_sentence(run.tasks, margin, alpha, "It" if parts else "This tune")[1])
    parts += [_held_out(change) for change in (run.held_out, run.accuracy) if change is not None]
    if diverged(run) and run.loss is not None:
        parts.append(
            f"The training loss rose from {run.loss[0]:.3f} to {run.loss[1]:.3f}: the learning rate is too high."
        )
    if run.stopped:
        parts.append(f"The training was stopped: {run.stopped.rstrip('.')}.")
    if against:
        parts.append(_protection(against, protected))
    return headline, " ".join(parts)


def _held_out(found: Companion) -> str:
    """The change on rows that were not trained on, with its interval."""
    way = "fell" if found.difference.high < 0 else "rose" if found.difference.low > 0 else "went"
    d = found.difference
    what, _, where = found.name.partition(" on ")
    return (
        f"On {where} {what} {way} from {found.base:.3f} to {found.tuned:.3f} "
        f"({d.estimate:+.3f}, {100 * d.level:.4g}% interval {d.low:+.3f} to {d.high:+.3f})."
    )


def _protection(against: Sequence[Against], protected: Sequence[str]) -> str:
    """The protected tune against the plain one."""
    saved = [a for a in against if a.task in protected and a.difference.low > 0]
    cost = [a for a in against if a.difference.high < 0]
    parts = []
    if saved:
        named = join([f"{a.task} by {points(a.difference.estimate, 0).lstrip('+')} points" for a in saved])
        parts.append(f"Against the plain tune of the same settings the protection saved {named}")
    else:
        parts.append("Against the plain tune of the same settings no saving of a protected task was shown")
    if cost:
        named = join([f"{a.task} ({points(a.difference.estimate, 0)} points)" for a in cost])
        parts.append(f"it cost {named}")
    else:
        parts.append("no cost on the other tasks was shown")
    return "; ".join(parts) + "."
