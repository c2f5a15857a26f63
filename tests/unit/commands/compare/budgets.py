"""Models on a simulated machine: every forward pass moves a clock on, so that budgets are tested without waiting."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from catchment.capabilities import Item, Task, evaluate
from catchment.measuring.progress import Progress
from tests import tiny

WORDS = ("red", "blue", "green", "tall", "small", "warm", "cold", "fast")


class Machine:
    """A clock that models and steps move on. ``passes`` holds the seconds of every forward pass."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.passes: list[float] = []
        self.factor: Callable[[], float] = lambda: 1.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        seconds *= self.factor()
        self.passes.append(seconds)
        self.now += seconds

    def run(self, model: Any, read: float, decode: float, call: float = 0.0, step: float = 0.0) -> Any:
        """Let a model take ``read`` seconds per token that is read, ``decode`` per token that is generated, ``call``
        per pass that reads and ``step`` per pass that generates."""

        def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            cache = next((value for value in kwargs.values() if hasattr(value, "get_seq_length")), None)
            decoding = ids.shape[1] == 1 and cache is not None and cache.get_seq_length() > 0
            self.spend(step + ids.numel() * decode if decoding else call + ids.numel() * read)

        model.register_forward_pre_hook(before, with_kwargs=True)
        return model


class Watched(Progress):
    """What a run said and when; ``costs``: simulated seconds that a step takes, by the beginning of its status."""

    def __init__(self, machine: Machine, costs: dict[str, float] | None = None) -> None:
        self.machine, self.costs = machine, dict(costs or {})
        self.plans: list[tuple[float, str]] = []
        self.rows: list[tuple[str, int]] = []
        self.statuses: list[tuple[float, str]] = []

    def status(self, text: str) -> None:
        self.statuses.append((self.machine.now, text))
        for start in [start for start in self.costs if text.startswith(start)]:
            self.machine.now += self.costs.pop(start)

    def plan(self, sentence: str) -> None:
        self.plans.append((self.machine.now, sentence))

    def row(self, result: Any, final: bool) -> None:
        self.rows.append((result.task, result.n))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    simulated = Machine()
    monkeypatch.setattr(time, "perf_counter", simulated)
    monkeypatch.setattr(time, "monotonic", simulated)
    return simulated


def choice(name: str = "choice", n: int = 400) -> Task:
    """Three words to choose from after a short text; every item is a text of its own."""
    texts = itertools.product(WORDS, WORDS, WORDS, WORDS)
    items = [Item(f"{a} {b} {c} {d} is", (WORDS[i % 8], WORDS[(i + 1) % 8], WORDS[(i + 3) % 8]), i % 3)
             for i, (a, b, c, d) in zip(range(n), texts, strict=False)]  # fmt: skip
    return Task(name, tuple(items), "choice", style="continue")


GOLDS = {"exact": WORDS, "refusal": ("refuse", "comply"), "regex": ("[0-9]+", "[a-z]+")}


def generated(name: str, n: int = 200, tokens: int = 32, scorer: str = "exact") -> Task:
    """Short prompts with answers that are generated; a random model hardly ever ends one before its last token."""
    golds = GOLDS[scorer]
    items = [Item(f"Say {a} {b} {c} now", gold=golds[i % len(golds)])
             for i, (a, b, c) in zip(range(n), itertools.product(WORDS, WORDS, WORDS), strict=False)]  # fmt: skip
    return Task(name, tuple(items), scorer, style="continue", max_new_tokens=tokens, stop=())  # type: ignore[arg-type]


def solved(model: Any, task: Task) -> Task:
    """The task with the model's own answers as the right ones, so that no plan leaves it for being too hard."""
    rows = evaluate(model, task, tokenizer=tiny.tiny_tokenizer(), batch_tokens=1024).rows
    items = []
    for item, row in zip(task.items, rows, strict=True):
        best = max(range(3), key=row.logprobs.__getitem__) if task.scorer == "choice" else row.prediction
        items.append(dataclasses.replace(item, gold=best if best != "" else "none"))
    return dataclasses.replace(task, items=tuple(items))


def pair(machine: Machine, slower: float = 1.0, **costs: float) -> Any:
    """A tiny base and a tuned copy that moved a little and is ``slower`` times as slow; ``costs`` as of
    :meth:`Machine.run`."""
    base, tuned = tiny.tiny_llama(num_hidden_layers=1), tiny.tiny_llama(num_hidden_layers=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    machine.run(base, **costs)
    machine.run(tuned, **{name: slower * seconds for name, seconds in costs.items()})
    return base, tuned
