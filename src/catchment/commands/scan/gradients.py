"""``scan --gradients``: two claims of arXiv 2312.11875 on this model and on its architecture at random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from catchment import landscape, models
from catchment.commands.scan.bench import Allotment, Bench, Stage, half_of_budget
from catchment.commands.scan.opened import Opened
from catchment.errors import InputError
from catchment.landscape import Batch, Direction, Evaluator, Ground, Mover, Stored, gaussian
from catchment.records import Gradients, Oscillation, Share, from_json, to_json

ITEMS = 16
DIRECTIONS = 3
RELATIVE = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05)
"""Scales of the oscillation as shares of the ruler, each to both sides."""


Kind = Literal["pretrained", "random"]


def claims(bench: Bench, time: Allotment) -> Iterator[Gradients]:
    """Both, on the flagship."""
    yield gradients_of(bench.opened, bench.evaluator, bench.evaluator.grounds[bench.flagship])


def gradients_of(opened: Opened, evaluator: Evaluator, ground: Ground) -> Gradients:
    """Shares of the gradient in its largest entries, and the loss along random and gradient directions, both for the
    model and for random weights. Kept in the store, because it takes a second model.

    Raises:
        NotStoredError: It is not in the store, and nothing may be measured.
    """
    task = ground.name
    family = {
        "kind": "gradients", "subspace": opened.subspace.hash, "seed": opened.settings.seed,
        "relative": list(RELATIVE), "to": "RMS of the matrices", "task": ground.prepared.task.hash(),
        "items": sorted(ground.items[: 2 * ITEMS]),
    }  # fmt: skip
    stored = evaluator.kept(task, family, f"{ITEMS}")
    if stored is not None:
        return from_json(Gradients, stored)
    if opened.subspace.kind not in ("all", "glob"):
        raise InputError("--gradients looks at whole tensors; expected --subspace all or patterns of names.")
    gradients = _measured(opened, evaluator, ground)
    evaluator.keep(task, family, f"{ITEMS}", to_json(gradients))
    return gradients


def _measured(opened: Opened, evaluator: Evaluator, ground: Ground) -> Gradients:
    opened.clock.check()
    evaluator.home()
    chosen, other = (landscape.batches_of(evaluator, ground, ground.items[at : at + ITEMS]) for at in (0, ITEMS))
    model = evaluator.engine.model
    opened.progress.status("gradients · random weights")
    random = landscape.random_init(model, opened.settings.seed)
    family = models.family_of(model)
    shares: list[tuple[Share, ...]] = []
    waves: list[Oscillation] = []
    kinds: tuple[tuple[Kind, Any], ...] = (("pretrained", model), ("random", random))
    for kind, one in kinds:
        opened.progress.status(f"gradients · {kind} weights")
        opened.clock.check()
        shares.append(landscape.quasi_sparsity(one, opened.subspace.weights(one), chosen, other, family=family))
        waves += _waves(opened, kind, one, chosen, other)
    gaussian_shares = tuple((top, *landscape.gaussian_share(top)) for top in sorted({s.top for s in shares[0]}))
    return Gradients(
        shares[0], shares[1], gaussian_shares, tuple(waves), 2 * ITEMS, sum(b.tokens for b in (*chosen, *other)),
    )  # fmt: skip


def _waves(
    opened: Opened, kind: Kind, model: Any, chosen: Sequence[Batch], judged: Sequence[Batch]
) -> Iterator[Oscillation]:
    """Loss along random directions and along the gradient of other items, at equal shares of each model's ruler."""
    subspace = opened.subspace
    rms = subspace.ruler(model).rms
    scales = tuple(sorted(sign * r * rms for r in RELATIVE for sign in (-1, 1)))
    centre = landscape.mean_loss(model, judged)
    _, gradient = landscape.accumulate_gradient(model, subspace.weights(model), chosen)
    slope: Direction = landscape.unit(
        Stored(subspace, {n: g.reshape(-1).float() for n, g in gradient.items()}, {"gradient": kind})
    )
    random: list[Direction] = [gaussian(subspace, opened.settings.seed, 2**21 + i) for i in range(DIRECTIONS)]
    ways: tuple[tuple[Literal["gaussian", "gradient"], list[Direction]], ...] = (
        ("gaussian", random), ("gradient", [slope]),
    )  # fmt: skip
    with Mover(model, subspace, memory=opened.settings.memory) as mover:  # type: ignore[arg-type]

        def at(direction: Direction) -> Callable[[float], Any]:
            @contextmanager
            def there(scale: float) -> Iterator[None]:
                opened.clock.check()
                with mover.at((direction, scale)):
                    yield

            return there

        for name, directions in ways:
            losses = [landscape.oscillation(model, judged, at(d), scales) for d in directions]
            yield landscape.summarise(kind, name, scales, losses, centre)


GRADIENTS = Stage("gradients", "Gradients", 1.0, claims, half_of_budget, whole=True, forced=True)
