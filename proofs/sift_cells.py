"""The cells of ``sift.py`` that tune decoders: what one run measures, and how its learning rate was chosen."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import sift_data as data
import sift_train as training

from catchment.capabilities import Task, evaluate, packs
from catchment.models import LoadedModel, load
from catchment.training import as_task, completion_losses

SEEDS = (0, 1, 2)
GRID_SEED = 100
TOKENS, GRID_TOKENS = 60_000, 15_000
LARGE_TOKENS = {"arithmetic": 20_000, "RTE": 20_000, "CoLA": 20_000, "Alpaca": 60_000}
KEPT_ITEMS, LARGE_ITEMS, MMLU_ITEMS = 200, 120, 200
EVAL_BATCH = 2048
LEARNING_RATES = {
    "SIFT": (3e-4, 1e-3, 3e-3, 1e-2),
    "random": (3e-3, 1e-2, 3e-2),
    "LoRA": (1e-3, 3e-3, 1e-2),
    "SHiRA": (3e-3, 1e-2, 3e-2),
    "full": (1e-4, 3e-4, 1e-3),
}
LARGE_RATES = {"SIFT": 1e-3, "random": 3e-3, "LoRA": 1e-3, "SHiRA": 3e-3, "full": 5e-5}
"""Not tuned: a third of what stories15M takes, or less."""
LARGE_TASKS = ("recall", "knowledge", "language")

Found = dict[str, Any]
Done = Mapping[str, Found]


@dataclass
class Bench:
    """What the cells share; models are loaded when they are first asked for."""

    specs: Mapping[str, str]
    folder: Path
    models: dict[str, LoadedModel] = field(default_factory=dict)
    parts: dict[str, data.Parts] = field(default_factory=dict)
    encodings: dict[tuple[str, str], Any] = field(default_factory=dict)

    def model(self, name: str) -> LoadedModel:
        if name not in self.models:
            self.models[name] = load(self.specs[name], dtype="float32")
        return self.models[name]

    def rows(self, name: str) -> data.Parts:
        if name not in self.parts:
            read = {"SST-2": data.sst2, "RTE": data.rte, "CoLA": data.cola, "Alpaca": data.alpaca}
            self.parts[name] = read[name](self.folder) if name in read else data.arithmetic()
        return self.parts[name]

    def encoded(self, model: str, name: str, part: str) -> Any:
        """Train, valid or test rows of a data set as the model's tokens."""
        key = model, f"{name}/{part}"
        if key not in self.encodings:
            parts = self.rows(name)
            rows, tokenizer = getattr(parts, part), self.model(model).tokenizer
            self.encodings[key] = data.encoded(rows, tokenizer, parts.max_length, parts.chat)
        return self.encodings[key]


@dataclass(frozen=True)
class Cell:
    """One thing to measure. ``tokens`` is its price: tokens trained on, and tokens of evaluation beside it.

    Attributes:
        settings: All that decides the result; a kept result with other settings is measured again.
        needs: Names of cells whose results ``work`` looks at.
    """

    name: str
    part: str
    tokens: int
    settings: Found
    work: Callable[[Bench, Done], Found]
    needs: tuple[str, ...] = ()


def cells() -> list[Cell]:
    """The decoder cells in order: base scores, learning rates, then seed by seed; memory; the larger model."""
    found = []
    for name in ("SST-2", "arithmetic"):
        base = {"model": "stories15M", "data": name, "limit": KEPT_ITEMS}
        found.append(_cell(f"stories15M/{name}/base", name, 0, _base, base))
        tried = grids(name)
        found += tried
        for seed in SEEDS:
            for method in LEARNING_RATES:
                settings: Found = {
                    "model": "stories15M", "data": name, "method": method, "seed": seed, "tokens": TOKENS,
                    "rates": LEARNING_RATES[method],
                }  # fmt: skip
                needs = tuple(c.name for c in tried if c.settings["method"] == method)
                found.append(_cell(f"stories15M/{name}/{method}/seed {seed}", name, TOKENS, _tuned, settings, needs))
    found += [
        _cell(f"stories15M/memory/{method}", "memory", 1500, _memory, {"model": "stories15M", "method": method})
        for method in LEARNING_RATES
    ]
    found.append(_cell("stories15M/speed", "memory", 20_000, _speed, {"model": "stories15M", "rounds": 5}))
    for name, tokens in LARGE_TOKENS.items():
        large: Found = {"model": "SmolLM2-135M-Instruct", "data": name, "limit": LARGE_ITEMS}
        part = f"large, {name}"
        found.append(_cell(f"SmolLM2-135M/{name}/base", part, 0, _base, large))
        for method, lr in LARGE_RATES.items():
            settings = {**large, "method": method, "seed": 0, "tokens": tokens, "lr": lr}
            found.append(_cell(f"SmolLM2-135M/{name}/{method}/seed 0", part, tokens, _tuned, settings))
    return found


def grids(name: str) -> list[Cell]:
    return [
        _cell(
            f"stories15M/{name}/{method}/lr {lr:g}", name, GRID_TOKENS, _tried,
            {"model": "stories15M", "data": name, "method": method, "seed": GRID_SEED, "tokens": GRID_TOKENS, "lr": lr},
        )
        for method, rates in LEARNING_RATES.items() for lr in rates
    ]  # fmt: skip


def _cell(
    name: str, part: str, tokens: int, work: Callable[..., Found], settings: Found, needs: tuple[str, ...] = ()
) -> Cell:
    method = settings.get("method")
    settings = {**settings, "ending": data.ENDING}
    if method:
        large = settings["model"].startswith("SmolLM2")
        settings = {**settings, "method_settings": described(training.methods(large)[method])}
    return Cell(name, part, tokens, settings, partial(work, settings), needs)


def described(method: Any) -> Found:
    return {"kind": type(method).__name__, **dataclasses.asdict(method)}


def method_of(settings: Found) -> Any:
    return training.methods(settings["model"].startswith("SmolLM2"))[settings["method"]]


def kept_tasks(settings: Found, folder: Path) -> dict[str, tuple[Task, int]]:
    """What must not be forgotten, each with its number of items."""
    small = settings["model"] == "stories15M"
    limit = settings.get("limit", KEPT_ITEMS)
    found = {name: (packs.load(name), limit) for name in (packs.STORIES if small else LARGE_TASKS)}
    if settings["data"] == "Alpaca":
        found["MMLU"] = data.mmlu(folder, MMLU_ITEMS), MMLU_ITEMS
    return found


def own_task(parts: data.Parts, limit: int | None) -> Task | None:
    """The test rows as a task, where their answers are short."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return as_task(parts.test, "tuned_on", limit)


def _scores(settings: Found, model: Any, bench: Bench) -> Found:
    """Own task, held-out losses, and the tasks that the base can do: item scores in the tasks' order."""
    limit = settings.get("limit", KEPT_ITEMS)
    parts, tokenizer = bench.rows(settings["data"]), bench.model(settings["model"]).tokenizer
    own = own_task(parts, None if limit >= KEPT_ITEMS else limit)
    tasks: dict[str, tuple[Task, int | None]] = {"tuned_on": (own, None)} if own else {}
    tasks |= kept_tasks(settings, bench.folder)
    found: Found = {}
    for name, (task, most) in tasks.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = evaluate(
                model, task, tokenizer=tokenizer, limit=most, batch_tokens=EVAL_BATCH, chat_template="none"
            )
        found[name] = {
            "scores": [row.score for row in scores.rows], "chance": scores.chance, "task": task.hash(),
            "generated": task.scorer == "exact",
        }  # fmt: skip
    losses = completion_losses(model, bench.encoded(settings["model"], settings["data"], "test"))
    return {"tasks": found, "losses": [round(x, 6) for x in losses]}


def _base(settings: Found, bench: Bench, done: Done) -> Found:
    loaded = bench.model(settings["model"])
    parts = bench.rows(settings["data"])
    card = loaded.card
    facts = {"weights": card.weights_hash, "parameters": card.parameters, "source": parts.source}
    return {**_scores(settings, loaded.model, bench), **facts, "data": parts.fingerprint}


def _trained(settings: Found, bench: Bench, lr: float) -> tuple[Any, training.Tuned, LoadedModel]:
    loaded = bench.model(settings["model"])
    examples = bench.encoded(settings["model"], settings["data"], "train").examples
    rows = data.stream(examples, settings["seed"], settings["tokens"])
    collator = data.LeftPadded(loaded.tokenizer)
    tuning, tuned = training.train(loaded.model, method_of(settings), rows, collator, lr, settings["seed"], data.BATCH)
    return tuning, tuned, loaded


def _tried(settings: Found, bench: Bench, done: Done) -> Found:
    """Loss on the validation rows after a short run."""
    tuning, tuned, _ = _trained(settings, bench, settings["lr"])
    losses = completion_losses(tuning.merge().eval(), bench.encoded(settings["model"], settings["data"], "valid"))
    return {"loss": sum(losses) / len(losses), "seconds": tuned.seconds, "trainable": tuned.trainable}


def chosen_rate(needs: tuple[str, ...], done: Done) -> float:
    """The learning rate with the smallest validation loss; one that diverged has none."""
    return min((done[name]["result"].get("loss", math.inf), done[name]["settings"]["lr"]) for name in needs)[1]


def _tuned(settings: Found, bench: Bench, done: Done) -> Found:
    start = f"{settings['model']}/{settings['data']}/{settings['method']}/lr "
    lr = settings.get("lr") or chosen_rate(tuple(f"{start}{rate:g}" for rate in settings.get("rates", ())), done)
    tuning, tuned, loaded = _trained(settings, bench, lr)
    tuned = training.settle(loaded.model, loaded.card.weights_hash, tuning, tuned)
    facts = {
        "lr": lr, "trainable": tuned.trainable, "seconds": tuned.seconds, "trained_tokens": tuned.tokens,
        "steps": tuned.steps, "bytes": tuned.bytes, "moved": tuned.moved,
    }  # fmt: skip
    return {**facts, **_scores(settings, tuned.model, bench)}


def _memory(settings: Found, bench: Bench, done: Done) -> Found:
    loaded = bench.model(settings["model"])
    rows = data.stream(bench.encoded(settings["model"], "arithmetic", "train").examples, 0, 1500)
    method = method_of(settings)
    if settings["method"] == "full":
        method = dataclasses.replace(method, keep_base=False)
    model_bytes = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    most = training.peak(loaded.model, method, rows, data.LeftPadded(loaded.tokenizer), data.BATCH)
    return {"peak": most, "model": model_bytes}


def _speed(settings: Found, bench: Bench, done: Done) -> Found:
    loaded = bench.model(settings["model"])
    rows = bench.encoded(settings["model"], "SST-2", "train").examples[: 2 * data.BATCH]
    batch = data.LeftPadded(loaded.tokenizer)(rows)
    return {"speed": training.speed(loaded.model, training.methods(), batch, settings["rounds"])}
