"""Where on a ladder of scales a drop crosses tau: which node to decide next, and what the decided nodes say.

Nothing is remembered here: the outcomes so far say what comes next, so a search resumes from its record.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

from catchment.errors import InputError
from catchment.records import Outcome
from catchment.statistics import checks

FEWEST_RUNGS = 8
NEAR = 1.6  # of a guess: where the drop is far enough from tau to be decided soon
Bracket = tuple[float, float | None, Literal["no", "yes", "not looked"]]


def ladder(low: float, high: float, rungs: int) -> tuple[float, ...]:
    """``rungs`` scales at equal ratios from low to high, both included. To be fixed before anything is measured.

    Raises:
        InputError: Not 0 < low < high, or fewer than 8 rungs: a coarse ladder steps over an early crossing.

    >>> [round(s, 3) for s in ladder(0.01, 1.28, 8)]
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28]
    """
    _rungs(rungs)
    if not 0 < low < high < math.inf:
        raise InputError(f"the ladder runs from {low} to {high}; expected 0 < low < high, such as 0.0001 and 0.1.")
    ratio = math.log(high / low)
    return (low, *(low * math.exp(ratio * i / (rungs - 1)) for i in range(1, rungs - 1)), high)


def next_node(outcomes: Mapping[float, Outcome], ladder: Sequence[float], depth: int) -> float | None:
    """The scale to decide next, or ``None`` when the search is over.

    Let ``high`` be the smallest "outside" (above the ladder if there is none) and ``low`` the largest "inside" below
    it (0 if there is none). Nodes between the two are undecided, if there are any; they leave two gaps, from low up
    to the smallest of them and from the largest of them up to high. Without undecided nodes, low to high is the gap.

    1. *Rungs.* The middle one of the rungs in the lower gap (the lower middle of an even number); when none is left
       there, the same in the upper gap. So every undecided node widens the bracket by as little as the rungs allow.
    2. *Bisections.* The geometric middle of the wider gap (by ratio; the lower of equal ones), for gaps whose ends are
       both visited and whose ratio is above the largest ratio of adjacent rungs to the power ``2^-depth``. Hence
       exactly ``depth`` bisections when nothing is undecided.
    3. Never more than :func:`most_nodes` nodes: what undecided nodes cost is taken off the bisections. Rungs are left
       out only if a node above an undecided one turns out to be inside and a further one is undecided; the bracket
       then is wider, and as valid.

    Nothing below the lowest rung or above the highest one is visited.

    Args:
        outcomes: Outcome per scale visited so far; its keys are what this function returned before.
        ladder: Rising scales, from :func:`ladder`.
        depth: Geometric bisections after the rungs, 0 or more.

    >>> rungs = ladder(0.01, 1.28, 8)
    >>> round(next_node({}, rungs, 1), 4)
    0.08
    >>> round(next_node({rungs[3]: "outside", rungs[1]: "inside", rungs[2]: "outside"}, rungs, 1), 4)
    0.0283
    """
    rungs = _rising(ladder)
    if len(outcomes) >= most_nodes(len(rungs), depth):
        return None
    gaps = _gaps(outcomes)
    for start, end in gaps:
        between = [rung for rung in rungs if start < rung < end]
        if between:
            return between[(len(between) - 1) // 2]
    finest = max(math.log(b / a) for a, b in pairwise(rungs)) / 2**depth
    closed = [(math.log(end / start), start, end) for start, end in gaps if start > 0 and end < math.inf]
    wide = [gap for gap in closed if gap[0] > finest * (1 + 1e-6)]
    if not wide:
        return None
    widest = max(ratio for ratio, _, _ in wide)
    _, start, end = next(gap for gap in wide if gap[0] > widest * (1 - 1e-6))
    return math.sqrt(start * end)


def next_near(
    outcomes: Mapping[float, Outcome], ladder: Sequence[float], depth: int, guess: float | None
) -> float | None:
    """:func:`next_node` for when a pilot has guessed the crossing: it spends nothing on rungs far from it.

    First the smallest rung above ``1.6 guess``, and larger ones, every second, until one is outside; then the largest
    rung below ``guess / 1.6``, and smaller ones, every second, until one is inside; then :func:`next_node`. Near the
    crossing itself a decision takes the most units, so that comes last. A wrong guess costs nodes, never a wrong
    statement; it must not come from units that are used to decide. ``None``: :func:`next_node` from the start.

    >>> rungs = ladder(0.01, 1.28, 8)
    >>> first = next_near({}, rungs, 1, guess=0.09)
    >>> second = next_near({first: "outside"}, rungs, 1, guess=0.09)
    >>> round(first, 4), round(second, 4)
    (0.16, 0.04)
    """
    rungs = _rising(ladder)
    if guess is None or len(outcomes) >= most_nodes(len(rungs), depth):
        return next_node(outcomes, ladder, depth)
    low, high = _ends(outcomes)
    tried = [rung for rung in rungs if rung in outcomes]
    if high == math.inf:
        start = max([rung for rung in tried if rung > guess], default=0.0)
        above = [rung for rung in rungs if rung > max(start, NEAR * guess, low)]
        if above:
            return above[1] if start and len(above) > 1 else above[0]
    if low == 0.0:
        start = min([rung for rung in tried if rung < min(guess, high)], default=math.inf)
        below = [rung for rung in rungs if rung < min(start, guess / NEAR, high)]
        if below:
            return below[-2] if start < math.inf and len(below) > 1 else below[-1]
    return next_node(outcomes, ladder, depth)


def rungs_below(ladder: Sequence[float], end: float) -> tuple[float, ...]:
    """Rungs that continue a ladder downwards at its own lowest ratio, none of them below ``end``; rising.

    To be fixed before anything is measured, as the ladder. Not below the smallest normal number.

    >>> [round(s, 4) for s in rungs_below(ladder(0.01, 1.28, 8), 0.002)]
    [0.0025, 0.005]
    """
    first, ratio = ladder[0], ladder[1] / ladder[0]
    below: list[float] = []
    lowest = max(end, sys.float_info.min)
    while (scale := first / ratio ** (len(below) + 1)) >= lowest * (1 - 1e-9):
        below.append(scale)
    return tuple(reversed(below))


def next_down(
    outcomes: Mapping[float, Outcome], ladder: Sequence[float], below: Sequence[float], depth: int, guess: float | None
) -> float | None:
    """:func:`next_near` on a ladder that goes on downwards where none of its rungs is shown to be inside.

    First the search over ``ladder`` alone. If it ends without an "inside" below the smallest "outside", it goes on
    over ``below`` and ``ladder`` together: one look below the guess, if the guess lies below the ladder; the lowest
    rung of all, unless that look was inside; then the rules of :func:`next_node`. In all never more than
    ``most_nodes(len(below) + len(ladder), depth)`` nodes, so an error per node of :func:`node_error` for so many rungs
    holds for all statements: the rungs below are fixed before anything is measured, and that they are looked at at all
    depends on earlier outcomes only.

    Args:
        below: Rising scales below the ladder, from :func:`rungs_below`; may be empty.

    >>> rungs = ladder(0.01, 1.28, 8)
    >>> out = dict.fromkeys([0.01, 0.08], "outside") | {rungs[1]: "outside"}
    >>> next_down(out, rungs, (0.0025, 0.005), 1, None), next_down(out, rungs, (), 1, None)
    (0.0025, None)
    """
    whole = (*below, *ladder)
    if len(outcomes) >= most_nodes(len(whole), depth):
        return None
    if all(scale >= ladder[0] for scale in outcomes):
        node = next_near(outcomes, ladder, depth, guess)
        if node is not None or not below or _ends(outcomes)[0] > 0:
            return node
        if guess is not None and guess < ladder[0]:
            return max((rung for rung in below if rung <= guess / NEAR), default=below[0])
    if _ends(outcomes)[0] == 0 and below[0] not in outcomes:
        return below[0]
    return next_node(outcomes, whole, depth)


def most_nodes(rungs: int, depth: int) -> int:
    """The most nodes that :func:`next_node` visits: ``max(b + depth, 2 b - 1)`` with b = floor(log2 rungs) + 1.

    b is what a binary search over the rungs takes. Around an undecided node the gaps below and above it, of at most
    half the rungs each, are searched on their own, in b - 1 nodes each: 2 b - 1 sees all rungs wherever the undecided
    nodes lie side by side between the inside and the outside ones.

    >>> most_nodes(8, 3), most_nodes(15, 4)
    (7, 8)
    """
    if isinstance(depth, bool) or int(depth) != depth or depth < 0:
        raise InputError(f"depth is {depth}; expected the number of bisections after the rungs, 0 or more.")
    binary = _rungs(rungs).bit_length()
    return max(binary + int(depth), 2 * binary - 1)


def node_error(gamma: float, rungs: int, depth: int, family: int = 1) -> float:
    """Error for each node such that all statements at all nodes of all searches hold with probability 1 - gamma:
    ``gamma / (family * most_nodes(rungs, depth))``.

    Why the union bound runs over visited nodes only, and not over all that might have been visited: let A_k be "the
    k-th visited node is decided wrongly". Which scale that is follows from the outcomes at the k - 1 nodes before, and
    no more. Directions there are fresh and each unit redraws its items, so given the past its units are
    i.i.d. with mean drop(scale), and ``P(A_k | past) <= error`` whatever the past was. Taking the mean over the past,
    ``P(A_k) <= error``, and the sum over k <= most_nodes is at most ``gamma/family``. It is needed that no node's
    units are used at another node, and that the ladder and depth were fixed before. Errors of several tasks (measured
    on the same directions or not) add up in the same way: ``family`` is the number of tasks that are ranked together.

    Items redrawn from a fixed file make this exact for that file. For the population behind it, it is exact if no item
    is used twice, within a node or at two nodes; items that several nodes share make the past say something about
    the next node's units, and the bound then holds for each node by itself, but not strictly for all together.

    >>> round(node_error(0.05, 8, 4), 5)
    0.00625
    """
    return checks.error_rate(1 - checks.open_unit(gamma, "gamma"), family) / most_nodes(rungs, depth)


def bracket(outcomes: Mapping[float, Outcome], ladder: Sequence[float]) -> Bracket:
    """(low, high, earlier) with drop(low) <= tau < drop(high), as decided; undecided nodes widen it.

    ``high`` is the smallest "outside", ``None`` if there is none; ``low`` the largest "inside" below it, 0 if there is
    none (the drop at 0 is 0). ``earlier`` says what is known of crossings other than the one in the bracket: "yes"
    when an "outside" lies below an "inside", so that the curve crosses tau more than once; "no" when every rung below
    ``low`` was decided to be inside (on the rungs: what lies between them was not seen); else "not looked".

    >>> bracket({0.1: "inside", 0.2: "undecided", 0.4: "outside"}, [0.1 * 2**k for k in range(8)])
    (0.1, 0.4, 'no')
    """
    low, high = _ends(outcomes)
    if any(outcome == "inside" and scale > high for scale, outcome in outcomes.items()):
        earlier: Literal["no", "yes", "not looked"] = "yes"
    elif all(outcomes.get(rung) == "inside" for rung in _rising(ladder) if rung < low):
        earlier = "no"
    else:
        earlier = "not looked"
    return low, high if high < math.inf else None, earlier


def _ends(outcomes: Mapping[float, Outcome]) -> tuple[float, float]:
    high = min((s for s, outcome in outcomes.items() if outcome == "outside"), default=math.inf)
    return max((s for s, outcome in outcomes.items() if outcome == "inside" and s < high), default=0.0), high


def _gaps(outcomes: Mapping[float, Outcome]) -> list[tuple[float, float]]:
    """The lower gap and, where a node between the ends is undecided, the upper one."""
    low, high = _ends(outcomes)
    open_nodes = [scale for scale in outcomes if low < scale < high]
    if not open_nodes:
        return [(low, high)]
    return [(low, min(open_nodes)), (max(open_nodes), high)]


def _rungs(rungs: int) -> int:
    if isinstance(rungs, bool) or int(rungs) != rungs or rungs < FEWEST_RUNGS:
        raise InputError(f"{rungs} rungs; expected at least {FEWEST_RUNGS}, because a coarse ladder hides crossings.")
    return int(rungs)


def _rising(ladder: Sequence[float]) -> Sequence[float]:
    _rungs(len(ladder))
    if ladder[0] <= 0 or any(a >= b for a, b in pairwise(ladder)):
        raise InputError(f"the ladder is {tuple(ladder)}; expected rising scales above 0, as ladder() gives.")
    return ladder
