"""What is fixed before the first direction is drawn (scales, items per unit, errors), and what it can decide."""

from __future__ import annotations

import math
from collections.abc import Sequence

from catchment import landscape
from catchment.capabilities import Task
from catchment.commands.scan.settings import ScanSettings
from catchment.landscape import Design, Ground
from catchment.records import Ruler
from catchment.statistics import ladder, node_error, rungs_below, units_needed

CAP = 400
"""Units at a scale at most."""


def scan_ladder(
    settings: ScanSettings, ruler: Ruler, spread: float = 1.0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The rungs, and those below them down to the smallest step that the weights' number format holds: ``spread`` times
    larger per dimension than per weight. A ladder that was asked for has none below."""
    rungs = ladder(*settings.scales(ruler.rms))
    open_below = settings.ladder is None and ruler.step > 0
    return rungs, rungs_below(rungs, ruler.step * spread) if open_below else ()


def design_of(settings: ScanSettings, ruler: Ruler, spread: float, usable: Sequence[Ground]) -> Design:
    """The design for the tasks that the model is good enough at.

    Args:
        ruler: What scales are chosen by.
        spread: Of the subspace: how much larger a step is per dimension than per weight.
        usable: The admitted tasks.
    """
    rungs, below = scan_ladder(settings, ruler, spread)
    family = max(len(usable), 1)
    error = node_error(settings.alpha, len(below) + len(rungs), settings.depth, family)
    counted = [g for g in usable if g.prepared.task.scorer != "text" and _fits(g, error)]
    fixed = settings.items == "fixed"
    each = 8 if fixed else landscape.items_each(counted, error)
    return Design(
        rungs, settings.depth, settings.alpha, family, each, CAP, fixed, settings.seed, below,
        ruler.dtype if below else "",
    )  # fmt: skip


def unit_scales(design: Design) -> Sequence[float]:
    """Rungs of a profile: every second one, the ends included."""
    return design.ladder[::2] if len(design.ladder) % 2 else design.ladder


def _needed(tau: float, error: float) -> float:
    """Units for "inside" at least; infinite where no number of them would do."""
    return units_needed(tau, error) if tau > 1e-4 else math.inf  # far more than CAP below that


def _fits(ground: Ground, error: float) -> bool:
    """Whether "inside" can be shown of a task at all, with one item to a unit."""
    return _needed(ground.tau, error) <= min(CAP, len(ground.items))


def out_of_reach(settings: ScanSettings, tasks: Sequence[Task], ground: Ground, design: Design) -> list[str]:
    """A warning where the items of a task that were measured are too few for "inside": what would do."""
    have, needed = design.units(ground), _needed(ground.tau, design.error)
    if needed <= have:
        return []
    whole = next(len(t.items) for t in tasks if t.name == ground.name)
    advice = " or ".join(_ways(settings, whole, ground, design)) or "a task with more items, or fewer tasks"
    most = f"{needed:,.0f} units" if needed < math.inf else "more units than can be measured"
    return [
        f"{ground.name}: no scale can be shown to be inside a drop of {ground.tau:.3g}: that takes {most}, and its "
        f"{len(ground.items):,} items make {have:,}; expected {advice}"
    ]


def _ways(settings: ScanSettings, whole: int, ground: Ground, design: Design) -> list[str]:
    """Options that would let "inside" be shown; ``whole``: all items that the task has."""
    have, needed = design.units(ground), _needed(ground.tau, design.error)
    each = design.items_each if ground.prepared.task.scorer == "text" else 1  # a text has no say in the items of a unit
    wanted = math.ceil(1.25 * needed * each) if needed <= CAP else math.inf
    asked = min(settings.limit or whole, whole)
    ways = []
    if wanted <= whole and not design.fixed:
        more = ["a larger --budget"] if len(ground.items) < asked else []  # it ended before the items that were asked
        ways = [" with ".join([*([f"--limit {wanted}"] if wanted > asked else []), *more])]
    enough = next((tau for tau in (k / 100 for k in range(1, 100)) if _needed(tau, design.error) <= have), None)
    above = ground.score - ground.chance
    if enough is not None and settings.tau_absolute is not None:
        ways.append(f"--tau-absolute {enough:g}")
    elif enough is not None and above > 0 and math.ceil(100 * enough / above) < 100:
        ways.append(f"--tau {math.ceil(100 * enough / above) / 100:g}")
    return ways
