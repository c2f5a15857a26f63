"""Is the point that is reached flatter when the start was pre-trained?

The paper explains that sparse is enough by pre-training: it shifts the prior and the landscape. Here the same data
(SST-2 completions) are trained by SIFT and by full fine-tuning from stories15M and from a random start of the same
architecture. Before and after: trace and largest eigenvalue of the Hessian over the weights of attention and FFN, on
fixed training rows, and how far random moves of these weights go before the loss on the same rows rises by ``RISE``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import data
import torch
import training

from catchment.commands.study.calls import Call
from catchment.landscape import Batch, Subspace, curvature, displaced, gaussian, mean_loss, random_init
from catchment.models import load
from catchment.statistics import crossing

ROWS = 32
RISE = 0.1
"""Nats per token."""
SCALES = tuple(2.0 ** (k / 2) * 1e-4 for k in range(21))
"""Standard deviations of the moves, 0.0001 to 0.1."""
DIRECTIONS = 8
STEPS, PRODUCTS = 10, 30
PATTERNS = ("*.self_attn.*", "*.mlp.*")
TOKENS = 60_000
RATES = {"SIFT": 3e-3, "full": 1e-4}
"""Those that stories15M took on these data."""


def fixed_batch(examples: list[data.Example], collator: Any) -> Batch:
    """The first rows of the training data, padded on the right."""
    rows = examples[:ROWS]
    width = max(len(e["input_ids"]) for e in rows)
    lefts = [width - len(e["input_ids"]) for e in rows]
    ids = torch.tensor([e["input_ids"] + [collator.pad] * n for n, e in zip(lefts, rows, strict=True)])
    mask = torch.tensor([[1] * len(e["input_ids"]) + [0] * n for n, e in zip(lefts, rows, strict=True)])
    labels = torch.tensor([e["labels"] + [-100] * n for n, e in zip(lefts, rows, strict=True)])
    return Batch(ids, mask, labels, int((labels != -100).sum()), tuple(map(str, range(ROWS))))


def flatness(call: Call, start: str, method: str) -> dict[str, Any]:
    """One start, as it is or after a training."""
    loaded = load(str(data.STORIES), dtype="float32")
    collator = data.LeftPadded(loaded.tokenizer)
    examples = data.encoded(data.sst2()[0], loaded.tokenizer)
    model = loaded.model if start == "pre-trained" else random_init(loaded.model, seed=0)
    facts: dict[str, Any] = {}
    if method != "none":
        rows = data.stream(examples, 0, TOKENS)
        way, lr = training.methods()[method], RATES[method]
        tuning, cost = training.train(model, way, rows, collator, lr, 0, data.BATCH, call.check)
        facts = {"lr": lr, "seconds": cost.seconds, "trained_tokens": cost.tokens}
        model = tuning.merge().eval()
    return {"n": ROWS, **facts, **measured(model, [fixed_batch(examples, collator)], call.check)}


def measured(model: Any, batches: list[Batch], check: Callable[[], None]) -> dict[str, Any]:
    """Curvature, and per direction the smallest scale at which the loss has risen by ``RISE``."""
    subspace = Subspace.glob(model, PATTERNS)
    card = subspace.card(model)
    curved = curvature(model, subspace.weights(model), batches, k=1, steps=STEPS, products=PRODUCTS, check=check)
    rises = []
    for index in range(DIRECTIONS):
        check()
        rises.append([_loss_at(model, subspace, index, scale, batches) - curved.loss for scale in SCALES])
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
