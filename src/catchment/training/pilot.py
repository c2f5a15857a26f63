"""Before training: which items serve what, and how much room there is along the first steps of the tune."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from catchment.capabilities import (
    Prepared,
    PromptOptions,
    Task,
    context_length,
    make_engine,
    prepare,
    run,
    seeded_order,
)
from catchment.errors import InputError, ModelError
from catchment.landscape import (
    Batch,
    Direction,
    Evaluator,
    Ground,
    Mover,
    Stored,
    Subspace,
    accumulate_gradient,
    gaussian,
)
from catchment.records import Interval, Row
from catchment.statistics import crossing, ladder, paired_interval

SHARES = (0.1, 0.4, 0.5)
LEAST = 16
RUNGS = 12
LOWEST, HIGHEST = 2.0**-10, 2.0
"""Ends of the default ladder, in RMS of the matrices that may move."""
BEYOND = 2
"""Rungs in a row above ``max_drop`` after which a direction is left: one may be there by chance."""


class Split(NamedTuple):
    """One task cut into three of disjoint items; see :func:`split_items`."""

    pilot: Task
    guard: Task
    judged: Task


def split_items(task: Task, seed: int = 0, shares: Sequence[float] = SHARES, least: int = LEAST) -> Split:
    """Disjoint seeded item sets: for the room before training, for the fence, and for the comparison at the end.

    The order depends on the seed and the items' own ids, so the same items in another order give the same sets.

    Args:
        shares: Of pilot, guard and judged items; above 0, together at most 1.
        least: Items that each part must have.

    Raises:
        InputError: Shares out of range, or too few items.

    >>> from catchment.capabilities import Item
    >>> task = Task("t", tuple(Item(str(i), gold="x") for i in range(200)), "exact")
    >>> [len(part.items) for part in split_items(task)]
    [20, 80, 100]
    """
    if len(shares) != 3 or min(shares) <= 0 or sum(shares) > 1 + 1e-9:
        raise InputError(f"shares {tuple(shares)}: expected three numbers above 0, together at most 1, e.g. {SHARES}.")
    if least < 1:
        raise InputError(f"least {least}: expected at least 1 item in each part.")
    needed = math.ceil(least / min(shares) - 1e-9)
    if len(task.items) < needed:
        raise InputError(
            f"task {task.name!r} has {len(task.items)} items; expected at least {needed}, so that each of its parts "
            f"(pilot, guard, judged: {', '.join(f'{s:.0%}' for s in shares)}) has {least}. Add items, or do not "
            f"protect it."
        )
    order = seeded_order(task.items, f"split:{seed}:")
    pilot, guard, judged = (math.floor(share * len(order) + 1e-9) for share in shares)
    judged = len(order) - pilot - guard if sum(shares) > 1 - 1e-9 else judged
    edges = (0, pilot, pilot + guard, pilot + guard + judged)
    parts = [{item.id for item in order[a:b]} for a, b in pairwise(edges)]
    return Split(*(task.with_items(tuple(i for i in task.items if i.id in part)) for part in parts))


class Scorer:
    """The one evaluation path, on prompts that are encoded once. Items whose outputs are not finite score 0.

    Args:
        asked: How the model is asked.
        batch_tokens: Padded tokens per forward pass; measured when ``None``.
        packed: The layout that was chosen before; ``None``: it is chosen at the first scores.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        asked: PromptOptions,
        batch_tokens: int | None = None,
        packed: bool | None = None,
    ) -> None:
        self.engine, self.asked = make_engine(model, tokenizer, batch_tokens), asked
        if packed is not None:
            self.engine.packed, self.engine.checked = packed, True
        self._prepared: dict[tuple[str, str], Prepared] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What makes another scorer round alike, once this one has scored."""
        return {"batch_tokens": self.engine.batch_tokens, "packed": self.engine.packed}

    def prepared(self, task: Task) -> Prepared:
        key = (task.name, task.items[0].id)
        if key not in self._prepared:
            context = context_length(self.engine.model)
            self._prepared[key] = prepare(self.engine.tokenizer, task, prompt_options=self.asked, context=context)
        return self._prepared[key]

    def __call__(self, task: Task) -> list[Row]:
        return run(self.engine, self.prepared(task), non_finite="isolate")


def first_direction(model: nn.Module, batches: Sequence[Batch], support: Mapping[str, Tensor] | None = None) -> Stored:
    """Where the first AdamW step goes: ``-sign(g)``, g the mean gradient over the batches, as a direction of RMS 1.

    AdamW's first step is ``-lr m/(sqrt(v) + eps)`` with m = g and v = g^2 after the correction of both moments: it
    moves every weight whose gradient is not 0 by lr. Weight decay and clipping are left out (a sign has no length).
    The share of weights that move is ``address["moving"]``; see :func:`steps_of_room`.

    Args:
        batches: A few training batches, e.g. of :func:`~catchment.landscape.answer_batches`.
        support: Flat indices per tensor, where only these are tuned; ``None``: all weights, or the adapter's.

    Cost: one forward and one backward pass per batch. Memory: the gradient of the tensors concerned, in float32.

    Raises:
        InputError: The support does not fit the model, or the batches score nothing.
        ModelError: The loss is not finite, or no weight has a gradient.
    """
    subspace = Subspace.all(model) if support is None else Subspace.sparse(model, support, "the tune's own entries")
    _, gradient = accumulate_gradient(model, subspace.weights(model), batches)
    signs: dict[str, Tensor] = {}
    moved, digest = 0, hashlib.sha256(subspace.hash.encode())
    for name in list(gradient):
        flat = gradient.pop(name).reshape(-1)
        if subspace.kind == "sparse":
            flat = flat[subspace.support[name].to(flat.device)]
        signs[name] = -torch.sign(flat).float()
        moved += int(flat.count_nonzero())
        digest.update(name.encode() + signs[name].to("cpu", torch.int8).numpy().tobytes())
    if moved == 0:
        raise ModelError("the gradient is 0 in every weight that is tuned; expected a loss that depends on them.")
    moving = moved / subspace.size
    for sign in signs.values():
        sign.div_(math.sqrt(moving))
    return Stored(subspace, signs, {"of": "first step", "moving": moving, "hash": digest.hexdigest()})


def steps_of_room(scale: float, lr: float, moving: float = 1.0) -> float:
    """Sign steps of ``lr``, all in one direction, that make a displacement of ``scale`` (RMS per weight):
    ``scale / (lr sqrt(moving))``, where ``moving`` is the share of the weights that a step moves.

    >>> round(steps_of_room(0.012, 1e-3), 6)
    12.0
    """
    if not lr > 0 or not 0 < moving <= 1:
        raise InputError(f"lr {lr}, moving {moving}: expected a rate above 0 and a share in (0, 1].")
    return scale / (lr * math.sqrt(moving))


@dataclass(frozen=True)
class Crossing:
    """Where the drop first passes ``max_drop`` on the rungs that were measured.

    Attributes:
        low: Largest scale up to which every rung is shown to be inside; 0: none is.
        high: Smallest scale that is shown to be outside, if any is.
        estimate: Where the mean drop crosses, on straight lines between rungs; ``None``: not up to ``reach``, or below
            the first rung already.
        reach: Largest scale measured.
        points: (scale, drop) with its interval over items, simultaneous over rungs, tasks and both kinds of way.
        below: The first rung, where the mean drop is above ``max_drop`` there: it crosses somewhere below.
    """

    low: float
    high: float | None
    estimate: float | None
    reach: float
    points: tuple[tuple[float, Interval], ...]
    below: float | None = None


@dataclass(frozen=True)
class PilotRoom:
    """The room of one task before training; scales are RMS displacements per weight of the subspace.

    Attributes:
        items: How many were scored at each point.
        way: Along the first steps of the tune.
        random: Along ``directions`` random ones of the same subspace, the mean score over them. The interval is over
            items, for these directions. ``None`` without any.
        moving: Share of the weights that the first step moves.
        level: With which all ends of all tasks hold together.
    """

    task: str
    max_drop: float
    items: int
    way: Crossing
    random: Crossing | None
    directions: int
    moving: float
    level: float

    def steps(self, lr: float) -> tuple[float | None, float]:
        """Steps of ``lr`` to where the mean drop crosses (``None``: not up to ``way.reach``, or below the first rung,
        ``way.below``), and those that are shown to be inside."""
        scale = self.way.estimate
        known = None if scale is None else steps_of_room(scale, lr, self.moving)
        return known, steps_of_room(self.way.low, lr, self.moving)

    def warning(self, lr: float, steps: int) -> str | None:
        """One sentence where a tune of ``steps`` steps, all along the first one, would leave the room; else ``None``.

        Steps of a tune turn and shrink, so this is the case of a tune that goes straight on.
        """
        scale = self.way.estimate if self.way.below is None else self.way.below
        count = math.inf if scale is None else steps_of_room(scale, lr, self.moving)
        if scale is None or (self.way.below is None and count >= steps):
            return None
        about, under = ("about", "") if self.way.below is None else ("less than", "below ")
        said = "less than 1 step" if count < 1 else f"{about} {count:.0f} of {steps} steps"
        return (
            f"{self.task}: a drop of {self.max_drop:g} comes after {said} at lr {lr:g}, if they go straight along the "
            f"first gradient (RMS displacement {under}{scale:.2g} per weight, {self.items} items)."
        )


@dataclass(frozen=True)
class LineSearch:
    """How far to go along a line, and beside it, to find where a score has dropped.

    Args:
        max_drop: The drop that is looked for, in (0, 1).
        scales: A rising ladder of at least 8 RMS displacements; ``None``: 12 from 1/1024 to 2 times the RMS of the
            weights that may move.
        directions: Random directions beside the line.
        seed: Of the random directions.
        level: With which all intervals of all tasks hold together.

    Raises:
        InputError: A setting out of range.
    """

    max_drop: float
    scales: Sequence[float] | None = None
    directions: int = 2
    seed: int = 0
    level: float = 0.95

    def rungs(self, model: nn.Module, subspace: Subspace) -> tuple[float, ...]:
        """The scales, refused before anything is measured where they do not rise.

        Raises:
            InputError: They do not, or none are given and the weights have RMS 0.
        """
        rungs = tuple(self.scales) if self.scales is not None else _default_ladder(subspace, model)
        crossing(rungs, [0.0] * len(rungs), self.max_drop)
        return rungs


def pilot_room(
    model: nn.Module,
    tokenizer: Any,
    tasks: Task | Sequence[Task],
    way: Direction,
    search: LineSearch,
    *,
    prompt_options: PromptOptions | None = None,
    batch_tokens: int | None = None,
    files: Sequence[Path] = (),
) -> dict[str, PilotRoom]:
    """How far the model can go along the tune's first direction, and along random ones, before a task drops by
    ``max_drop``. The weights are bit for bit what they were afterwards.

    Up the ladder until, for every task, a rung is shown to be outside or two in a row are by their means. With few
    items little is shown: 64 items without a flip do not exclude a drop of 0.05. Read the estimate as one.

    Args:
        tasks: With their pilot items only.
        way: Of :func:`first_direction`.
        prompt_options: How the model is asked.
        batch_tokens: Padded tokens per forward pass; measured when ``None``.
        files: Safetensors files that hold the weights, so that no copy of them is needed.

    Cost: the items, ``1 + (1 + directions) * rungs`` times at most.

    Raises:
        InputError: A setting out of range, or weights of RMS 0 without ``scales``.
        TaskError, GateError: The tasks cannot be scored.
    """
    tasks = (tasks,) if isinstance(tasks, Task) else tuple(tasks)
    if not 0 < search.max_drop < 1 or search.directions < 0 or not tasks:
        raise InputError(
            f"max_drop {search.max_drop}, directions {search.directions}, {len(tasks)} tasks: expected a drop between "
            f"0 and 1, 0 directions or more, and at least one task."
        )
    rungs = search.rungs(model, way.subspace)
    scorer = Scorer(model, tokenizer, prompt_options or PromptOptions(), batch_tokens)
    grounds = [_ground(scorer, task, search.max_drop) for task in tasks]
    randoms = [gaussian(way.subspace, search.seed, index) for index in range(search.directions)]
    family = len(tasks) * len(rungs) * (2 if randoms else 1)
    with Evaluator(scorer.engine, Mover(model, way.subspace, files=files), grounds) as evaluator:
        along = _climb(evaluator, [way], rungs, search, family)
        evaluator.mover.drop()  # a stored direction is held itself, and the next one would be drawn into its tensors
        beside = _climb(evaluator, randoms, rungs, search, family) if randoms else {}
    moving = float(way.address.get("moving", 1.0))
    shared = (search.directions, moving, search.level)
    return {
        g.name: PilotRoom(g.name, search.max_drop, len(g.items), along[g.name], beside.get(g.name), *shared)
        for g in grounds
    }


def _default_ladder(subspace: Subspace, model: nn.Module) -> tuple[float, ...]:
    measure = subspace.ruler(model)
    rms = measure.rms
    if not rms > 0:
        raise InputError(f"the {measure.of} that may move have RMS {rms}; expected scales=..., a ladder of steps.")
    return ladder(LOWEST * rms, HIGHEST * rms, RUNGS)


def _ground(scorer: Scorer, task: Task, max_drop: float) -> Ground:
    rows = {row.item: row for row in run(scorer.engine, scorer.prepared(task))}
    return Ground(scorer.prepared(task), rows, tuple(i.id for i in task.items), task.chance_level, max_drop)


def _climb(
    evaluator: Evaluator, ways: Sequence[Direction], rungs: Sequence[float], search: LineSearch, family: int
) -> dict[str, Crossing]:
    """Mean scores over the ways, rung by rung, until every task has been outside for long enough."""
    points: dict[str, list[tuple[float, Interval]]] = {name: [] for name in evaluator.grounds}
    for scale in rungs:
        left = [name for name, seen in points.items() if not _passed([drop for _, drop in seen], search.max_drop)]
        if not left:
            break
        wanted = {name: evaluator.grounds[name].items for name in left}
        rows = [evaluator.rows({"pilot": way.address}, f"{scale!r}", wanted, (way, scale)) for way in ways]
        for name in left:
            ground = evaluator.grounds[name]
            before = [ground.value(ground.base[item]) for item in ground.items]
            after = [_mean(ground.value(along[name][item]) for along in rows) for item in ground.items]
            points[name].append((scale, _drop(paired_interval(before, after, level=search.level, family=family))))
    return {name: _crossing(seen, search.max_drop) for name, seen in points.items()}


def _passed(drops: Sequence[Interval], max_drop: float) -> bool:
    return any(drop.low > max_drop for drop in drops) or (
        len(drops) >= BEYOND and all(drop.estimate > max_drop for drop in drops[-BEYOND:])
    )


def _drop(change: Interval) -> Interval:
    return Interval(-change.estimate, -change.high, -change.low, change.level, change.method, change.family)


def _crossing(points: Sequence[tuple[float, Interval]], max_drop: float) -> Crossing:
    low = 0.0
    for scale, drop in points:
        if drop.high > max_drop:
            break
        low = scale
    high = next((scale for scale, drop in points if drop.low > max_drop), None)
    scales, drops = [s for s, _ in points], [drop.estimate for _, drop in points]
    if drops[0] > max_drop:  # a straight line from 0 would say where, and nothing was measured there
        return Crossing(low, high, None, scales[-1], tuple(points), scales[0])
    return Crossing(low, high, crossing(scales, drops, max_drop), scales[-1], tuple(points))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)
