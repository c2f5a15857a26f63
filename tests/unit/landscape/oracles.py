"""Models of which everything is known: a vector of weights, scores that are a function of it, and tiny real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from catchment.capabilities import Encoded, Engine, Format, Item, Prepared, Task, make_engine, prepare, run
from catchment.landscape import Evaluator, Ground, Mover, Subspace
from catchment.records import Row
from catchment.runs import Cell, Store, cell_key
from tests.tiny import tiny_llama, tiny_tokenizer

torch.set_num_threads(1)
Score = Callable[[Tensor, int], float]
"""Score of the i-th item, from the move (weights less the model's own), float64, shape (k,)."""


class Vector(nn.Module):
    """A model that is one vector of weights."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta)


def bare_ground(
    name: str, count: int, *, tau: float, chance: float = 0.0, base: Score | None = None, tokens: int = 3
) -> Ground:
    """A task of ``count`` items of ``tokens`` tokens each, on which the model scores 1 (or ``base``)."""
    items = tuple(Item(f"{name} {i}", ("a", "b"), 0, id=f"{name}{i:04d}") for i in range(count))
    task = Task(name, items, "choice", (Format("plain"),))
    encoded = tuple(Encoded(item, item.prompt, (1,) * tokens, ((2,), (3,)), (1, 1)) for item in items)
    prepared = Prepared(task, task.formats[0], encoded, 0, tokens, tokens * count)
    own = [1.0 if base is None else base(torch.zeros(1), i) for i in range(count)]
    rows = {item.id: Row(item.id, score, "a", (), score) for item, score in zip(items, own, strict=True)}
    return Ground(prepared, rows, tuple(rows), chance, tau)


class Oracle(Evaluator):
    """An evaluator whose scores are computed from the weights as they stand, not from any text.

    ``seen`` holds what was measured: task, items, and the move.
    """

    def __init__(self, size: int, grounds: Sequence[Ground], score: Score, **options: Any) -> None:
        theta = torch.randn(size, generator=torch.Generator().manual_seed(7))
        model = Vector(theta)
        mover = Mover(model, Subspace.all(model), memory="copy")
        super().__init__(Engine(model, None, packed=False), mover, grounds, **options)
        self.own = theta.double().clone()
        self.score = score
        self.seen: list[tuple[str, tuple[str, ...], Tensor]] = []

    def __enter__(self) -> Oracle:
        return self

    @property
    def move(self) -> Tensor:
        return self.engine.model.theta.detach().double() - self.own

    def fresh(self, task: str, items: Sequence[str]) -> dict[str, Row]:
        move = self.move
        self.seen.append((task, tuple(items), move))
        scores = {item: self.score(move, int(item.removeprefix(task))) for item in items}
        return {item: Row(item, score, "a", (), score) for item, score in scores.items()}


def half_spaces(size: int, margin: float, seed: int = 0) -> Score:
    """Item i is right where ``w_i . move >= -margin``, w_i of norm 1: drop(s) = Phi(-margin / s)."""
    w: dict[int, Tensor] = {}

    def score(move: Tensor, i: int) -> float:
        if i not in w:
            drawn = torch.randn(size, generator=torch.Generator().manual_seed(1000 * seed + i), dtype=torch.float64)
            w[i] = drawn / drawn.norm()
        return float(move.numel() == 1 or float(w[i] @ move) >= -margin)

    return score


SUMS = Task(
    "sums",
    tuple(Item(f"{a} and {b} make", (" red", " blue", " stone dog"), (a + b) % 3) for a, b in ((1, 2), (2, 2), (5, 3))),
    "choice",
    (Format("plain", "{prompt}"),),
)
NAMES = Task(
    "names",
    tuple(
        Item(f"The capital of the {word} is", (" Rome", " Paris"), k % 2)
        for k, word in enumerate(("old cat", "dog", "big garden", "stone"))
    ),
    "choice",
    (Format("plain", "{prompt}"),),
)


def real_ground(model: Any, task: Task, tau: float = 0.1) -> tuple[Engine, Ground]:
    """A tiny model's engine, and its own rows of a task."""
    tokenizer = tiny_tokenizer()
    engine, prepared = make_engine(model, tokenizer, batch_tokens=64), prepare(tokenizer, task, context=256)
    rows = {row.item: row for row in run(engine, prepared)}
    return engine, Ground(prepared, rows, tuple(e.item.id for e in prepared.encoded), task.chance_level, tau)


def real(*tasks: Task, model: Any = None, **options: Any) -> Evaluator:
    """An evaluator of a tiny Llama."""
    model = tiny_llama() if model is None else model
    grounds = [real_ground(model, task) for task in tasks or (SUMS,)]
    return Evaluator(
        grounds[0][0], Mover(model, Subspace.all(model), memory="copy"), [g for _, g in grounds], **options
    )


def peak_bytes(work: Callable[[], Any]) -> int:
    """Most memory that tensors made inside ``work`` took together, in bytes; what existed before does not count."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results: Any = profiler.profiler
    live = most = 0
    for event in results.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


def cells(store: Store) -> Callable[[Ground, Mapping[str, Any]], Cell]:
    """Where rows are kept, as a scan keeps them."""

    def cell(ground: Ground, family: Mapping[str, Any]) -> Cell:
        conditions = {"task": ground.name, "moved": dict(family)}
        return store.cell(cell_key(conditions), conditions)

    return cell
