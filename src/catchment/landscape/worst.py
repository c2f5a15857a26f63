"""Worst case: look for a small move that does harm. What is found bounds the worst-case radius from above.

An attack at radius r maximises the loss of right answers over ``||dtheta||_2 = r sqrt(k)`` by projected ascent, from
several starts, on items that are never scored (arXiv 2505.17646, worst-case directions; one fixed direction for all
radii, as there, finds less).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from catchment.errors import InputError, ModelError
from catchment.landscape.directions import Direction, Stored, gaussian
from catchment.landscape.evaluator import Evaluator, Ground, NotStoredError
from catchment.landscape.losses import Batch, accumulate_gradient, mean_loss
from catchment.landscape.subspace import Subspace
from catchment.records import Interval, Node, Outcome, Row, Worst
from catchment.statistics import paired_interval

Stop = Callable[[], bool]
GROWTH = 1.25
"""An ascent step moves this share of the radius along the gradient before it is projected back."""
STRIDE = 4.0
"""Ratio of radii until the outcome changes."""


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
    starts: Sequence[Direction],
    steps: int,
    identity: Mapping[str, Any],
) -> Attack:
    """Projected gradient ascent of the mean loss over the sphere of RMS ``radius``, from each start.

    Every point is on the sphere; the best point of all is kept, the starts included, so the result is never below the
    loss at any start. Cost per start: ``steps`` gradients and one loss. Memory beside the mover's: the move and the
    gradient, one copy of the subspace's weights each.

    Raises:
        ModelError: The loss is not finite at every start.
    """
    best: Attack | None = None
    reached: list[float] = []
    for number, start in enumerate(starts):
        direction, loss = start, -math.inf
        for step in range(steps + 1):
            with evaluator.mover.at((direction, radius)):
                try:
                    if step == steps:
                        value, gradient = mean_loss(evaluator.engine.model, batches), None
                    else:
                        value, gradient = _gradient(evaluator, batches)
                except ModelError:  # not finite: further than any score can tell; the points before count
                    break
            if not math.isfinite(value):
                break
            loss = max(loss, value)
            if best is None or value > best.loss:
                best = Attack(direction, value)
            if gradient is None or not any(bool(g.any()) for g in gradient.values()):
                break
            direction = _step(direction, gradient, {**identity, "start": number, "step": step + 1})
        reached.append(loss)
    if best is None:
        raise ModelError(
            f"the loss is not finite at RMS radius {radius:g} from any of {len(starts)} starts; expected a radius at "
            "which the model still computes. Begin with a smaller one."
        )
    best.losses = reached
    return best


def _gradient(evaluator: Evaluator, batches: Sequence[Batch]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient at the point where the model stands, in the coordinates of the subspace."""
    subspace = evaluator.mover.subspace
    weights = subspace.weights(evaluator.engine.model)
    value, gradient = accumulate_gradient(evaluator.engine.model, weights, batches)
    return value, {name: _coordinates(subspace, name, g) for name, g in gradient.items()}


def _coordinates(subspace: Subspace, name: str, gradient: Tensor) -> Tensor:
    flat = gradient.reshape(-1).float()
    if subspace.kind == "sparse":
        return flat[subspace.support[name].to(flat.device)]
    if subspace.kind == "frame":
        basis = subspace.basis(name).to(flat.device)
        return (basis @ (basis.T @ gradient.float())).reshape(-1)
    return flat


def _step(direction: Direction, gradient: Mapping[str, Tensor], identity: Mapping[str, Any]) -> Stored:
    """``project(delta + GROWTH * g / rms(g))`` on the sphere of RMS 1."""
    subspace = direction.subspace
    scale = GROWTH / _rms(gradient, subspace.size)
    moved = {n: torch.add(direction.delta(n, device=str(g.device)), g, alpha=scale) for n, g in gradient.items()}
    norm = _rms(moved, subspace.size)
    return Stored(subspace, {name: value.div_(norm) for name, value in moved.items()}, identity)


def _rms(tensors: Mapping[str, Tensor], size: int) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()) / size)


@dataclass(frozen=True)
class Effort:
    """How hard to look: ``restarts`` starts per radius, ``steps`` each, ``looks`` radii after the first rung."""

    restarts: int = 2
    steps: int = 6
    looks: int = 5
    smallest: float = 1e-6
    largest: float = 1e-1
    seed: int = 0


def worst(
    evaluator: Evaluator,
    ground: Ground,
    batches: Sequence[Batch],
    effort: Effort,
    *,
    level: float = 0.95,
    stop: Stop = lambda: False,
) -> Worst | None:
    """Look for the smallest radius with a harmful move; at each radius an :func:`ascend`, judged by the paired drop on
    ``ground.items``, none of which the ascent may have seen.

    Radii: first where the gradient promises a rise of one nat per token, then down (or up) by :data:`STRIDE` until the
    outcome changes, then halved on the log scale; within ``[smallest, largest]``. A node is *outside* when its drop is
    shown to exceed tau (paired interval over items, simultaneous over the radii); the direction was chosen on other
    items, so the choice does not flatter it. ``None`` when ``stop`` came before the first radius was looked at.

    Raises:
        InputError: Ascent items are scored too.
    """
    if set(ground.items) & {item for batch in batches for item in batch.items}:
        raise InputError("items of the ascent are scored too; expected disjoint ones. Split the items first.")
    hunt = _Hunt(evaluator, ground, batches, effort, level)
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
    found = min((n.scale for n in nodes if n.outcome == "outside"), default=None)
    survived = max((n.scale for n in nodes if n.outcome != "outside" and n.scale < (found or math.inf)), default=None)
    return Worst(
        ground.name, ground.tau, found, survived, nodes, effort.restarts, effort.steps,
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

    def family(self) -> dict[str, Any]:
        e = self.effort
        ids = sorted({item for batch in self.batches for item in batch.items})
        return {
            "kind": "worst", "subspace": self.evaluator.mover.subspace.hash, "seed": e.seed, "restarts": e.restarts,
            "steps": e.steps, "ascent": ids,
        }  # fmt: skip

    def begin(self) -> tuple[float, float]:
        """Loss at the model's own weights, and the first radius: ``1 / (sqrt(k) ||g||_2)``, within the range."""
        kept = self.evaluator.kept(self.ground.name, self.family(), "begin")
        if kept is None:
            self.evaluator.mover.restore()
            loss, gradient = _gradient(self.evaluator, self.batches)
            size = self.evaluator.mover.subspace.size
            slope = size * _rms(gradient, size)  # sqrt(k) ||g||
            kept = (loss, 1 / slope if slope > 0 else self.effort.largest)
            self.evaluator.keep(self.ground.name, self.family(), "begin", kept)
        return kept[0], min(max(kept[1], self.effort.smallest), self.effort.largest)

    def look(self, radius: float) -> tuple[Node, float]:
        """Attack at one radius and judge; an attack that was judged before is not looked for again.

        Raises:
            ModelError: The loss is not finite there; this is kept too.
        """
        name, family, label = self.ground.name, self.family(), f"{radius!r}"
        kept = self.evaluator.kept(name, family, label)
        wanted = {name: self.ground.items}
        if kept is None:
            try:
                attack = ascend(self.evaluator, self.batches, radius, self._starts(), self.effort.steps, family)
            except ModelError as error:
                self.evaluator.keep(name, family, label, [None, str(error)])
                raise
            rows = self.evaluator.rows(family, label, wanted, (attack.direction, radius))[name]
            self.evaluator.keep(name, family, label, kept := [attack.loss])
        elif kept[0] is None:
            raise ModelError(kept[1])
        else:
            rows = self.evaluator.rows(family, label, wanted)[name]
        return self._judged(radius, rows), kept[0]

    def _starts(self) -> list[Direction]:
        """The gradient at the model's own weights, where it is not zero, then random directions."""
        self.evaluator.mover.restore()
        subspace = self.evaluator.mover.subspace
        _, gradient = _gradient(self.evaluator, self.batches)
        norm = _rms(gradient, subspace.size)
        starts: list[Direction] = []
        if 0 < norm < math.inf:
            starts.append(Stored(subspace, {n: g / norm for n, g in gradient.items()}, {"attack": "gradient"}))
        missing = max(self.effort.restarts, 1) - len(starts)
        return [*starts, *(unit(gaussian(subspace, self.effort.seed, i)) for i in range(missing))]

    def _judged(self, radius: float, rows: Mapping[str, Row]) -> Node:
        value, base = self.ground.value, self.ground.base
        before = [value(base[i]) for i in self.ground.items]
        after = [value(rows[i]) for i in self.ground.items]
        change = paired_interval(before, after, level=self.level, family=self.effort.looks)
        drop = Interval(-change.estimate, -change.high, -change.low, change.level, change.method, change.family)
        outcome: Outcome = "undecided"
        if drop.low > self.ground.tau:
            outcome = "outside"
        elif drop.high <= self.ground.tau:
            outcome = "inside"
        return Node(radius, outcome, drop, len(before), len(before))


def unit(direction: Direction) -> Stored:
    """The same direction with RMS exactly 1, in memory."""
    subspace = direction.subspace
    kept = {name: direction.delta(name) for name in subspace.shapes}
    norm = _rms(kept, subspace.size)
    return Stored(subspace, {n: v / norm for n, v in kept.items()}, {**direction.address, "unit": True})
