"""Replay: the divergence that holds a tuned model to its base, along texts that the base wrote or answered."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from catchment.capabilities import without_trace
from catchment.errors import InputError
from catchment.training.batches import Collator, groups, to_device
from catchment.training.encoding import IGNORE, Example

TOP = 64
"""Next tokens whose probabilities are kept at each place; the others count as one."""
LEAST = -1e4
"""Log-probability that stands for an impossible token's."""
TOGETHER = 2048
"""Padded tokens of texts whose probabilities under the base are computed at once."""


class Replay:
    """Holds next-token distributions to those of the base, along texts with labels.

    On a batch of rows, with y the labels of a row and t over their places,

        loss = weight * mean_rows mean_t KL(p_base(. | y_<t) || p_theta(. | y_<t))    in nats per token,

    so that a short answer counts like a long text. The ``TOP`` likeliest tokens of the base count singly and all others
    as one: that is at most the KL over the vocabulary (data processing inequality), and 0 with gradient 0 at the base.
    Unlike cross-entropy on the same texts it has no noise there: at the base no step is taken. The base's probabilities
    are computed once, here.

    Args:
        model: The base, as it stands now. Left without a trace.
        examples: Texts, as ``encode_rows`` makes them, or :func:`~catchment.training.answered`.
        collate: Pads them to batches.
        per_batch: Rows beside each batch of the training; a fraction comes as a whole row every few batches.
        weight: Of a nat of the mean KL against a nat of the training loss.
        seed: Of the order: all rows once, then all again in another order.

    Cost: one forward pass over all texts; in memory ``8 * (TOP + 1)`` bytes per place.

    Raises:
        InputError: No example has a label, or a setting is out of range.
    """

    def __init__(
        self, model: Any, examples: Sequence[Example], collate: Collator, *, per_batch: float, weight: float = 1.0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        if not (0 < per_batch < math.inf and 0 < weight < math.inf):
            raise InputError(f"per_batch {per_batch:g}, weight {weight:g}: expected numbers above 0.")
        self.examples = [e for e in examples if any(label != IGNORE for label in e["labels"][1:])]
        if not self.examples:
            raise InputError(f"none of {len(examples)} texts to replay has a token to learn; expected at least one.")
        self.collate, self.per_batch, self.weight, self.seed = collate, per_batch, weight, seed
        base: dict[int, tuple[Tensor, Tensor]] = {}
        with without_trace(model):
            for part in groups([len(example["input_ids"]) for example in self.examples], TOGETHER):
                likeliest = _likeliest(self._logits(model, [self.examples[k] for k in part]))
                counts = [sum(label != IGNORE for label in self.examples[k]["labels"][1:]) for k in part]
                tokens, logs = (tensor.split(counts) for tensor in likeliest)
                base |= dict(zip(part, zip(tokens, logs, strict=True), strict=True))
        self._base = [base[k] for k in range(len(self.examples))]

    def rows(self, batch: int, rank: int = 0, processes: int = 1) -> list[int]:
        """The rows beside the ``batch``-th batch, from 0, on one of the processes."""
        first, last = (math.floor(number * self.per_batch + 1e-9) for number in (batch, batch + 1))
        count = last - first
        start = first * processes + rank * count
        return [self._order(at // len(self.examples))[at % len(self.examples)] for at in range(start, start + count)]

    def loss(self, model: Any, rows: Sequence[int]) -> Tensor:
        """The weighted divergence of the model, as it stands, on these rows; 0 where there are none."""
        if not rows:
            return torch.zeros((), device=_device(model))
        logits = self._logits(model, [self.examples[row] for row in rows])
        tokens, wanted = (
            torch.cat(parts).to(logits.device) for parts in zip(*(self._base[r] for r in rows), strict=True)
        )
        tuned = _grouped(logits, tokens.long())
        divergences = (wanted.exp() * (wanted - tuned)).sum(dim=-1).split([len(self._base[row][0]) for row in rows])
        return self.weight * torch.stack([places.mean() for places in divergences]).mean()

    def _order(self, again: int) -> list[int]:
        return random.Random(f"{self.seed}:{again}").sample(range(len(self.examples)), len(self.examples))

    def _logits(self, model: Any, examples: Sequence[Example]) -> Tensor:
        """At the places that predict a label, row after row: (places, vocabulary)."""
        batch = to_device(self.collate(examples), _device(model))
        learned = batch.pop("labels")[:, 1:] != IGNORE
        return model(**batch).logits[:, :-1][learned]


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device


def _likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest tokens at each place, and the log-probabilities of each and of all others together."""
    tokens = logits.topk(min(TOP, logits.shape[-1] - 1), dim=-1).indices
    return tokens.int().cpu(), _grouped(logits, tokens).cpu()


def _grouped(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of the tokens (places, k) and, in a last column, of all others together."""
    every = logits.float().log_softmax(dim=-1)
    others = every.scatter(-1, tokens, -math.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([every.gather(-1, tokens), others], dim=-1).clamp(min=LEAST)  # some models rule tokens out
