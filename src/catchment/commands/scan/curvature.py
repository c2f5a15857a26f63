"""The stage that measures curvature: eigenvalues and trace of the Hessian of the answer loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor

from catchment import landscape
from catchment.commands.scan.bench import Allotment, Bench, Stage, half_of_budget
from catchment.errors import InputError
from catchment.landscape import Batch, NotStoredError, Subspace
from catchment.records import Curvature, from_json, to_json

CURVED_ITEMS = 4
PRODUCTS = range(4, 16)
"""With the Hessian, for its trace: as many as memory holds."""


def measure(bench: Bench, time: Allotment) -> Iterator[Curvature]:
    """From the store, whatever number of products it was measured with; else now."""
    tasks, batches = _asked(bench)
    family = _family(bench, tasks, batches)
    for number in reversed(PRODUCTS):  # more or less memory than now was free when it was measured
        with suppress(NotStoredError):
            if (stored := bench.evaluator.kept(tasks[0], family, f"{number}")) is not None:
                yield from_json(Curvature, stored)
                return
    if bench.evaluator.frozen:
        return
    products = _products(bench)
    curvature = _measured(bench, batches, products)
    bench.evaluator.keep(tasks[0], family, f"{products}", to_json(curvature))
    yield curvature


def _measured(bench: Bench, batches: list[Batch], products: int) -> Curvature:
    bench.evaluator.home()
    engine, subspace = bench.evaluator.engine, bench.opened.subspace
    if subspace.kind == "frame":
        raise InputError("curvature in a low-rank frame is not measured; expected all, globs or a sparse support.")
    k, steps = _lanczos(products)
    return landscape.curvature(
        engine.model, subspace.weights(engine.model), batches, k=k, steps=steps, products=products,
        seed=bench.opened.settings.seed, project=_projection(subspace), check=engine.check,
    )  # fmt: skip


def _family(bench: Bench, tasks: list[str], batches: list[Batch]) -> dict[str, Any]:
    """The address in the store, but for the number of products."""
    return {
        "kind": "curvature", "subspace": bench.opened.subspace.hash, "seed": bench.opened.settings.seed, "of": tasks,
        "tasks": {t: bench.evaluator.grounds[t].prepared.task.hash() for t in tasks},
        "items": sorted(item for batch in batches for item in batch.items),
    }  # fmt: skip


def _asked(bench: Bench) -> tuple[list[str], list[Batch]]:
    """Tasks and batches for the Hessian."""
    tasks = bench.choices or bench.admitted.tasks
    grounds = [bench.evaluator.grounds[t] for t in tasks]
    return tasks, [b for ground in grounds for b in bench.batches(ground, ground.items[:CURVED_ITEMS])]


def _products(bench: Bench) -> int:
    """As many as the vectors for them fit into a quarter of the free memory."""
    quarter = landscape.free_memory(bench.evaluator.engine.device) / 4
    for products in reversed(PRODUCTS):
        k, steps = _lanczos(products)
        if 4 * bench.opened.subspace.size * landscape.vectors(steps, k, products) <= quarter:
            return products
    return PRODUCTS[0]


def _lanczos(products: int) -> tuple[int, int]:
    """Eigenvalues and Lanczos steps that go with so many products for the trace."""
    return min(3, max(1, products // 6)), max(4, products // 2)


def _projection(subspace: Subspace) -> Callable[[str, Tensor], Tensor] | None:
    """Zeroes what lies outside a sparse support; ``None`` for whole tensors."""
    if subspace.kind != "sparse":
        return None

    def project(name: str, tensor: Tensor) -> Tensor:
        inside = tensor.new_zeros(tensor.shape)
        index = subspace.support[name].to(tensor.device)
        inside.view(-1)[index] = tensor.reshape(-1)[index]
        return inside

    return project


def _memory(bench: Bench) -> float:
    products = _products(bench)
    k, steps = _lanczos(products)
    return landscape.curvature_memory(bench.opened.subspace, steps, k, products)


def _price(bench: Bench) -> float:
    _, batches = _asked(bench)
    tokens = sum(batch.input_ids.numel() for batch in batches)
    return bench.seconds(10.0 * tokens * (1.5 * _products(bench) + 3))


CURVATURE = Stage("curvature", "Curvature", 0.8, measure, half_of_budget, price=_price, memory=_memory, whole=True)
