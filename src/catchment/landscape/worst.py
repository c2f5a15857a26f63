"""Worst case: look for a small move that does harm. What is found bounds the worst-case radius from above.

An attack at radius r maximises the loss of right answers over ``||dtheta||_2 = r sqrt(k)`` by projected ascent, from
several starts, on items that are never scored (arXiv 2505.17646, worst-case directions; one fixed direction for all
radii, as there, finds less).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from catchment.errors import InputError, ModelError
from catchment.landscape.directions import Direction, Stored, dot, gaussian
from catchment.landscape.displace import Mover
from catchment.landscape.evaluator import Evaluator, Ground, NotStoredError, paired_node
from catchment.landscape.losses import Batch, accumulate_gradient, mean_loss
from catchment.landscape.subspace import Subspace
from catchment.records import Node, Row, Worst

Stop = Callable[[], bool]
GROWTH = 1.25
"""An ascent step moves this share of the radius along the gradient before it is projected back."""
STRIDE = 4.0
"""Ratio of radii until the outcome changes."""
SMALLEST, LARGEST = 2e-5, 2.0
"""Ends of the radii, in RMS of the matrices that move: 1e-6 and 1e-1 for weights of 0.05."""
SCHEME = 2
"""Part of every address: raised when the same address would give other numbers."""


def attack_memory(subspace: Subspace) -> int:
    """Most bytes that :func:`worst` holds beside the mover's own, activations left out: five fp32 copies of what moves.

    Three moves (the gradient at the model's own weights, the move that climbs, the best one), and the gradient twice
    (the sum over batches, and one batch's in the weights' type). Of a sparse subspace the moves are small and the
    gradients those of whole tensors.
    """
    entries = sum(math.prod(shape) for shape in subspace.shapes.values())
    moves = subspace.size if subspace.kind == "sparse" else entries
    return 4 * (3 * moves + 2 * entries)


@dataclass
class Attack:
    """A found move at one radius: its direction (RMS 1), the loss on the ascent items there, and at each start."""

    direction: Direction
    loss: float
    losses: list[float] = field(default_factory=list)


def ascend(
    evaluator: Evaluator,
    batches: Sequence[Batch],
    radius: float,
    starts: Iterable[Direction],
    steps: int,
    identity: Mapping[str, Any],
) -> Attack:
    """Projected gradient ascent of the mean loss over the sphere of RMS ``radius``, from each start.

    Every point is on the sphere; the best point of all is kept, the starts included, so the result is never below the
    loss at any start. Cost per start: ``steps`` gradients and one loss. Memory beside the mover's: the move, the best
    one and the gradient, fp32, and one batch's gradient in the weights' type; the starts one by one, where they come
    from a generator. What the mover holds of a direction is dropped before a gradient is taken.

    Raises:
        ModelError: The loss is not finite at every start.
    """
    best: Attack | None = None
    reached: list[float] = []
    remaining = iter(starts)  # enumerate, and a loop variable, would keep each start alive during its climb
    while (direction := next(remaining, None)) is not None:
        loss = -math.inf
        for step in range(steps + 1):
            value, gradient = _look(evaluator, batches, direction, radius, last=step == steps)
            if not math.isfinite(value):
                break
            loss = max(loss, value)
            if best is None or value > best.loss:
                best = Attack(direction, value)
            if gradient is None or not any(bool(g.any()) for g in gradient.values()):
                break
            direction = _step(direction, gradient, {**identity, "start": len(reached), "step": step + 1})
        del gradient
        reached.append(loss)
    if best is None:
        raise ModelError(
            f"the loss is not finite at RMS radius {radius:g} from any of {len(reached)} starts; expected a radius at "
            "which the model still computes. Begin with a smaller one."
        )
    best.losses = reached
    return best


def _look(
    evaluator: Evaluator, batches: Sequence[Batch], direction: Direction, radius: float, *, last: bool
) -> tuple[float, dict[str, Tensor] | None]:
    """Loss and, but at the last step, gradient at a point of the sphere; NaN where the loss is not finite: that is
    further than any score can tell, and the points before count."""
    evaluator.engine.check()
    with evaluator.mover.at((direction, radius)):
        evaluator.mover.drop()
        try:
            return (mean_loss(evaluator.engine.model, batches), None) if last else _gradient(evaluator, batches)
        except ModelError:
            return math.nan, None


def _gradient(evaluator: Evaluator, batches: Sequence[Batch]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient at the point where the model stands, in the coordinates of the subspace."""
    subspace = evaluator.mover.subspace
    weights = subspace.weights(evaluator.engine.model)
    value, gradient = accumulate_gradient(evaluator.engine.model, weights, batches)
    return value, {name: _coordinates(subspace, name, gradient.pop(name)) for name in list(gradient)}


def _coordinates(subspace: Subspace, name: str, gradient: Tensor) -> Tensor:
    flat = gradient.reshape(-1).float()
    if subspace.kind == "sparse":
        return flat[subspace.support[name].to(flat.device)]
    if subspace.kind == "frame":
        basis = subspace.basis(name).to(flat.device)
        return (basis @ (basis.T @ gradient.float())).reshape(-1)
    return flat


def _step(direction: Direction, gradient: Mapping[str, Tensor], identity: Mapping[str, Any]) -> Stored:
    """``project(delta + GROWTH * g / rms(g))`` on the sphere of RMS 1. Overwrites the gradient."""
    subspace = direction.subspace
    scale = GROWTH / _rms(gradient, subspace.size)
    for name, g in gradient.items():
        torch.add(direction.delta(name, device=str(g.device)), g, alpha=scale, out=g)
    return Stored(subspace, _scaled(gradient, _rms(gradient, subspace.size)), identity)


def _scaled(tensors: Mapping[str, Tensor], norm: float) -> dict[str, Tensor]:
    return {name: tensor.div_(norm) for name, tensor in tensors.items()}


def _rms(tensors: Mapping[str, Tensor], size: int) -> float:
    return math.sqrt(sum(dot(flat, flat) for flat in (t.reshape(-1) for t in tensors.values())) / size)


@dataclass(frozen=True)
class Effort:
    """How hard to look: ``restarts`` starts per radius, ``steps`` each, ``looks`` radii after the first rung."""

    restarts: int = 2
    steps: int = 6
    looks: int = 5
    smallest: float = 1e-6
    largest: float = 1e-1
    seed: int = 0


def within(effort: Effort, rms: float) -> Effort:
    """The same effort over radii from :data:`SMALLEST` to :data:`LARGEST` of the ruler of the weights that move; as it
    is where that is 0."""
    return dataclasses.replace(effort, smallest=SMALLEST * rms, largest=LARGEST * rms) if rms > 0 else effort


def worst(
    evaluator: Evaluator,
    ground: Ground,
    batches: Sequence[Batch],
    effort: Effort,
    *,
    level: float = 0.95,
    family: int = 1,
    stop: Stop = lambda: False,
) -> Worst | None:
    """Look for the smallest radius with a harmful move; at each radius an :func:`ascend`, judged by the paired drop on
    ``ground.items``, none of which the ascent may have seen.

    Radii: first where the gradient promises a rise of one nat per token, then down (or up) by :data:`STRIDE` until the
    outcome changes, then halved on the log scale; within ``[smallest, largest]``. A node is *outside* when its drop is
    shown to exceed tau (paired interval over items); the direction was chosen on other items, so the choice does not
    flatter it. The radii are chosen by earlier outcomes on the very items that judge, so the intervals are simultaneous
    over every radius that might have been looked at: two branches per outcome, ``2^looks - 1`` radii (31 for 5 looks),
    times ``family`` tasks. ``None`` when ``stop`` came before the first radius was looked at.

    Memory: :func:`attack_memory`.

    Args:
        family: How many tasks are attacked, over which the claims hold together.

    Raises:
        InputError: Ascent items are scored too.
    """
    if set(ground.items) & {item for batch in batches for item in batch.items}:
        raise InputError("items of the ascent are scored too; expected disjoint ones. Split the items first.")
    hunt = _Hunt(evaluator, ground, batches, effort, level, (2**effort.looks - 1) * family)
    looked: list[tuple[Node, float]] = []
    following: float | None
    note, broken, tried = "", math.inf, 0
    try:
        base_loss, following = hunt.begin()
        while following is not None and tried < effort.looks and not stop():
            tried += 1
            try:
                looked.append(hunt.look(following))
            except ModelError as error:
                note, broken = str(error), min(broken, following)
            following = _next_radius([node for node, _ in looked], broken, effort)
    except NotStoredError:
        pass
    if not looked and not note:
        return None
    looked.sort(key=lambda pair: pair[0].scale)
    nodes = tuple(node for node, _ in looked)
    radius = min((n.scale for n in nodes if n.outcome == "outside"), default=None)
    survived = max((n.scale for n in nodes if n.outcome != "outside" and n.scale < (radius or math.inf)), default=None)
    return Worst(
        ground.name, ground.tau, radius, survived, nodes, effort.restarts, effort.steps,
        len({i for b in batches for i in b.items}), len(ground.items), base_loss, tuple(loss for _, loss in looked),
        note,
    )  # fmt: skip


def _next_radius(nodes: Sequence[Node], broken: float, effort: Effort) -> float | None:
    """The radius to look at next; ``None`` at an end of the range. ``broken``: the smallest one that was not finite."""
    outside = min([broken, *(n.scale for n in nodes if n.outcome == "outside")])
    inside = max((n.scale for n in nodes if n.outcome != "outside" and n.scale < outside), default=None)
    if outside == math.inf:
        following = (inside or effort.smallest) * STRIDE
    elif inside is None:
        following = outside / STRIDE
    else:
        following = math.sqrt(outside * inside)
    return following if effort.smallest <= following <= effort.largest else None


@dataclass
class _Hunt:
    """One task's attack: what :func:`worst` repeats per radius."""

    evaluator: Evaluator
    ground: Ground
    batches: Sequence[Batch]
    effort: Effort
    level: float
    claims: int
    home: tuple[float, float, Stored | None] | None = None

    def family(self) -> dict[str, Any]:
        """The judged items are part of it: rows of others could not be added later, because the move is not kept."""
        e = self.effort
        ids = sorted({item for batch in self.batches for item in batch.items})
        return {
            "kind": "worst", "subspace": self.evaluator.mover.subspace.hash, "seed": e.seed, "restarts": e.restarts,
            "steps": e.steps, "ascent": ids, "judged": sorted(self.ground.items), "scheme": SCHEME,
        }  # fmt: skip

    def begin(self) -> tuple[float, float]:
        """Loss at the model's own weights, and the first radius: ``1 / (sqrt(k) ||g||_2)``, within the range."""
        kept = self.evaluator.kept(self.ground.name, self.family(), "begin")
        if kept is None:
            loss, norm, _ = self._home()
            slope = self.evaluator.mover.subspace.size * norm  # sqrt(k) ||g||
            kept = (loss, 1 / slope if slope > 0 else self.effort.largest)
            self.evaluator.keep(self.ground.name, self.family(), "begin", kept)
        return kept[0], min(max(kept[1], self.effort.smallest), self.effort.largest)

    def _home(self) -> tuple[float, float, Stored | None]:
        """Loss, RMS of the gradient and its direction, if any, at the model's own weights: taken once per hunt."""
        if self.home is None:
            self.evaluator.engine.check()
            mover = self.evaluator.mover
            mover.restore()
            mover.drop()
            loss, gradient = _gradient(self.evaluator, self.batches)
            norm = _rms(gradient, mover.subspace.size)
            start = None
            if 0 < norm < math.inf:
                start = Stored(mover.subspace, _scaled(gradient, norm), {"attack": "gradient"})
            self.home = loss, norm, start
        return self.home

    def look(self, radius: float) -> tuple[Node, float]:
        """Attack at one radius and judge; an attack that was judged before is not looked for again.

        Raises:
            ModelError: The loss is not finite there; this is kept too.
        """
        name, family, label = self.ground.name, self.family(), f"{radius!r}"
        kept = self.evaluator.kept(name, family, label)
        wanted = {name: self.ground.items}
        if kept is not None and kept[0] is None:
            raise ModelError(kept[1])
        if kept is not None:
            try:
                return self._judged(radius, self.evaluator.rows(family, label, wanted)[name]), kept[0]
            except NotStoredError:  # rows were damaged and left out: the attack is deterministic, and is made again
                if self.evaluator.frozen:
                    raise
        try:
            attack = ascend(self.evaluator, self.batches, radius, self._starts(), self.effort.steps, family)
        except ModelError as error:
            self.evaluator.keep(name, family, label, [None, str(error)])
            raise
        rows = self.evaluator.rows(family, label, wanted, (attack.direction, radius))[name]
        self.evaluator.mover.drop()
        self.evaluator.keep(name, family, label, [attack.loss])
        return self._judged(radius, rows), attack.loss

    def _starts(self) -> Iterator[Direction]:
        """The gradient at the model's own weights, where it is not zero, then random directions, one by one."""
        mover = self.evaluator.mover
        first = self._home()[2]
        missing = max(self.effort.restarts, 1) - (first is not None)
        if first is not None:
            yield first
        for i in range(missing):
            yield unit(gaussian(mover.subspace, self.effort.seed, i), mover)

    def _judged(self, radius: float, rows: Mapping[str, Row]) -> Node:
        value, base = self.ground.value, self.ground.base
        before = [value(base[i]) for i in self.ground.items]
        after = [value(rows[i]) for i in self.ground.items]
        return paired_node(self.ground, radius, before, after, self.level, self.claims)


def unit(direction: Direction, mover: Mover | None = None) -> Stored:
    """The same direction with RMS exactly 1, in memory.

    Args:
        mover: It is drawn where the mover draws it, with the weights; without one on the CPU. A GPU draws others.
    """
    subspace = direction.subspace
    kept = {n: direction.delta(n, device="cpu" if mover is None else mover.device(n)) for n in subspace.shapes}
    norm = _rms(kept, subspace.size)
    # not in place: a stored direction gives its own tensors
    return Stored(subspace, {n: kept.pop(n) / norm for n in list(kept)}, {**direction.address, "unit": True})
