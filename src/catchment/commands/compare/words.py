"""What a comparison says beside its verdict sentence."""

from __future__ import annotations

from collections.abc import Sequence

from catchment.measuring import room_state, too_few, with_verdict
from catchment.pages import interval_points, join, points, times
from catchment.records import Barrier, Room, TaskResult, Verdict

SYMBOLS: dict[Verdict, str] = {"gained": "+", "lost": "-", "kept": "=", "undecided": "?", "not measurable": "x"}


def headline_label(tasks: Sequence[TaskResult], unmeasured: Sequence[str] = ()) -> str:
    """The verdict as a title of a few words, e.g. ``Gained arithmetic, lost recall``."""
    gained, lost, kept, undecided = (
        [task.task for task in with_verdict(tasks, verdict)] for verdict in ("gained", "lost", "kept", "undecided")
    )
    parts = [f"{verb} {_few(names)}" for verb, names in (("gained", gained), ("lost", lost)) if names]
    if undecided:
        parts.append(f"{_few(undecided)} undecided" if parts or kept else "nothing decided yet")
    few = too_few(tasks)
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


def graded(task: TaskResult) -> bool:
    """Whether scores lie between 0 and 1, so that items move and do not flip."""
    return task.difference.method == "betting"


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


def _few(names: Sequence[str]) -> str:
    return join(names) if len(names) <= 2 else f"{len(names)} tasks"


def format_note(task: TaskResult) -> str:
    """What the formats say about a task: the range of differences, and whether any of them changes its sign."""
    estimates = [result.difference.estimate for result in task.formats]
    low, high = points(min(estimates)), points(max(estimates))
    signs = {1 if d.low > 0 else -1 for d in (result.difference for result in task.formats) if d.low > 0 or d.high < 0}
    contradiction = " The formats contradict each other." if len(signs) == 2 else ""
    return f"Difference from {low} to {high} points over {len(estimates)} formats.{contradiction}"
