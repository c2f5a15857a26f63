"""What a comparison or a tune comes to, in one word; decided here, printed by pages and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from catchment.records import Room, TaskResult, TuneRun
from catchment.statistics import FEW

Headline = Literal["clean", "loss", "gain", "trade", "open"]
TuneHeadline = Literal["harmful", "trade", "gain", "clean", "open", "unmeasured"]
LEAST_LOGGED = 20
"""Logged losses below which the first and the last tenth of them are a batch each, and say nothing."""
ROSE = 1.05
"""A training loss that ends so many times above where it began did not converge."""


def headline_of(tasks: Sequence[TaskResult], unmeasured: Sequence[str] = ()) -> Headline:
    """One word for a comparison: ``trade`` (gained and lost), ``loss``, ``gain``, ``clean`` (no gain, and each
    measurable task was *shown* to be kept) or ``open`` (neither gain nor loss shown, something undecided, of too few
    items, or left unmeasured)."""
    verdicts = {task.verdict for task in tasks}
    unmeasured = [*unmeasured, *too_few(tasks)]
    if "lost" in verdicts:
        return "trade" if "gained" in verdicts else "loss"
    if "gained" in verdicts:
        return "gain"
    return "clean" if "kept" in verdicts and "undecided" not in verdicts and not unmeasured else "open"


def too_few(tasks: Sequence[TaskResult]) -> list[str]:
    """Tasks without a verdict that more items could give one: not those that the base scores too low on."""
    return [task.task for task in tasks if task.verdict == "not measurable" and task.note == FEW]


def diverged(run: TuneRun) -> bool:
    """Whether the training loss rose, and held-out rows are not shown to be better."""
    better = run.held_out is not None and run.held_out.difference.high < 0
    return run.loss is not None and run.logged >= LEAST_LOGGED and run.loss[1] > ROSE * run.loss[0] and not better


def harmful(run: TuneRun) -> bool:
    """Whether something was lost and nothing gained, or more was lost than gained, or held-out rows became worse, or
    the training loss rose, or the fence stopped the training. Only losses and gains that were shown count."""
    lost, gained = ([t for t in run.tasks if t.verdict == verdict] for verdict in ("lost", "gained"))
    worse = run.held_out is not None and run.held_out.difference.low > 0
    fenced_off = bool(run.stopped) and bool(run.looks) and run.looks[-1].factor < 1
    more_lost = bool(lost) and sum(t.difference.estimate for t in [*lost, *gained]) < 0
    return diverged(run) or more_lost or (worse and not gained) or fenced_off


def tune_headline(run: TuneRun) -> TuneHeadline:
    """One word for a tune: ``harmful`` (see :func:`harmful`), ``unmeasured``, or that of :func:`headline_of`, whose
    "loss" alone is always harmful: a tune is "clean" only where nothing is undecided."""
    if harmful(run):
        return "harmful"
    headline = headline_of(run.tasks) if run.tasks else "unmeasured"
    return "harmful" if headline == "loss" else headline


def room_state(room: Room) -> Literal["inside", "used up", "undecided"]:
    """Where the tuned model stands on its own ray: at t = 1, against the bracket of the first crossing."""
    if room.high is not None and room.high <= 1:
        return "used up"
    return "inside" if room.low >= 1 else "undecided"
