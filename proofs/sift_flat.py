"""The flatness cells of ``sift.py``: is the point that is reached flatter when the start was pre-trained?

The paper explains that sparse is enough by pre-training: it shifts the prior and the landscape. Here the same data
(SST-2 completions) are trained by SIFT and by full fine-tuning from stories15M and from a random start of the same
architecture. Before and after: trace and largest eigenvalue of the Hessian over the weights of attention and FFN, on
fixed training rows, and how far random moves of these weights go before the loss on the same rows rises by ``RISE``.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import sift_data as data
import sift_train as training
import torch
from sift_cells import TOKENS, Bench, Cell, Done, Found, chosen_rate

from catchment.landscape import Batch, Subspace, curvature, displaced, gaussian, mean_loss, random_init
from catchment.statistics import crossing

ROWS = 32
RISE = 0.1
"""Nats per token."""
SCALES = tuple(2.0 ** (k / 2) * 1e-4 for k in range(21))
"""Standard deviations of the moves, 0.0001 to 0.1."""
DIRECTIONS = 8
STEPS, PRODUCTS = 10, 30
PATTERNS = ("*.self_attn.*", "*.mlp.*")
STARTS = ("pre-trained", "random")


def cells() -> list[Cell]:
    """For both starts: the start itself, then SIFT and full."""
    found = []
    for start in STARTS:
        for method in ("none", "SIFT", "full"):
            tokens = TOKENS if method != "none" else 0
            settings = {
                "model": "stories15M", "data": "SST-2", "start": start, "method": method, "seed": 0, "tokens": tokens,
                "rows": ROWS, "rise": RISE, "scales": SCALES, "directions": DIRECTIONS, "steps": STEPS,
                "products": PRODUCTS,
            }  # fmt: skip
            needs = tuple(f"stories15M/SST-2/{method}/lr {lr:g}" for lr in _rates(method))
            name = f"flatness/{start}/{method}"
            found.append(Cell(name, "flatness", tokens, settings, partial(_work, settings, needs), needs))
    return found


def _rates(method: str) -> tuple[float, ...]:
    from sift_cells import LEARNING_RATES

    return LEARNING_RATES.get(method, ())


def fixed_batch(encoded: Any, collator: Any) -> Batch:
    """The first rows of the training data, padded on the right."""
    rows = encoded.examples[:ROWS]
    width = max(len(e["input_ids"]) for e in rows)
    lefts = [width - len(e["input_ids"]) for e in rows]
    ids = torch.tensor([e["input_ids"] + [collator.pad] * n for n, e in zip(lefts, rows, strict=True)])
    mask = torch.tensor([[1] * len(e["input_ids"]) + [0] * n for n, e in zip(lefts, rows, strict=True)])
    labels = torch.tensor([e["labels"] + [-100] * n for n, e in zip(lefts, rows, strict=True)])
    return Batch(ids, mask, labels, int((labels != -100).sum()), tuple(map(str, range(ROWS))))


def _work(settings: Found, needs: tuple[str, ...], bench: Bench, done: Done) -> Found:
    loaded = bench.model("stories15M")
    collator = data.LeftPadded(loaded.tokenizer)
    encoded = bench.encoded("stories15M", "SST-2", "train")
    model = copy.deepcopy(loaded.model) if settings["start"] == "pre-trained" else random_init(loaded.model, seed=0)
    facts: Found = {}
    if settings["method"] != "none":
        lr = chosen_rate(needs, done)
        rows = data.stream(encoded.examples, 0, settings["tokens"])
        method = training.methods()[settings["method"]]
        tuning, tuned = training.train(model, method, rows, collator, lr, 0, data.BATCH)
        facts = {"lr": lr, "seconds": tuned.seconds, "trained_tokens": tuned.tokens}
        model = tuning.merge().eval()
    return {**facts, **flatness(model, [fixed_batch(encoded, collator)])}


def flatness(model: Any, batches: list[Batch]) -> Found:
    """Curvature, and per direction the smallest scale at which the loss has risen by ``RISE``."""
    subspace = Subspace.glob(model, PATTERNS)
    card = subspace.card(model)
    curved = curvature(model, subspace.weights(model), batches, k=1, steps=STEPS, products=PRODUCTS)
    rises = [
        [_loss_at(model, subspace, index, scale, batches) - curved.loss for scale in SCALES]
        for index in range(DIRECTIONS)
    ]
    means = [sum(row[k] for row in rises) / DIRECTIONS for k in range(len(SCALES))]
    return {
        "loss": curved.loss, "gradient_norm": curved.gradient_norm, "trace": curved.trace.estimate,
        "trace_low": curved.trace.low, "trace_high": curved.trace.high, "top": curved.top[0],
        "residual": curved.residuals[0], "size": card.size, "rms": subspace.ruler(model).rms, "rises": rises,
        "width": crossing(SCALES, means, RISE),
        "widths": [crossing(SCALES, row, RISE) for row in rises],
    }  # fmt: skip


def _loss_at(model: Any, subspace: Subspace, index: int, scale: float, batches: list[Batch]) -> float:
    with displaced(model, gaussian(subspace, seed=0, index=index), scale):
        return mean_loss(model, batches)
