"""A differentiable loss on a task's right answers: what curvature, gradients and attacks look at.

    L(theta) = - (1/N) sum over items and answer tokens of log p_theta(token | prompt, earlier tokens)      [nats/token]

A probe leaves no trace: ``requires_grad``, ``.grad``, training mode and random states are what they were.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from catchment.capabilities import CHOICE_SCORERS, Encoded, Prepared, without_trace
from catchment.errors import InputError, ModelError
from catchment.models import calls_of

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Right-padded rows of prompt and answer.

    Attributes:
        input_ids, attention_mask: Shape (rows, width).
        labels: Shape (rows, width): the token itself where it is scored (by the position before it), else -100.
        tokens: How many tokens are scored.
        items: Id of the item of each row; a passage longer than the context has several rows.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    tokens: int
    items: tuple[str, ...]


def right_answer(encoded: Encoded, scorer: str) -> tuple[int, ...] | None:
    """Token ids of the right answer, where it is known as tokens: the gold choice, the first right answer, the
    passage. ``None`` for patterns, refusals and unlabelled prompts."""
    if scorer in CHOICE_SCORERS:
        gold = encoded.item.gold
        return encoded.answers[gold] if isinstance(gold, int) and 0 <= gold < len(encoded.answers) else None
    return encoded.answers[0] if encoded.answers else None


def answer_batches(
    prepared: Prepared, answers: Mapping[str, Sequence[int]] | None, batch_tokens: int, pad: int
) -> list[Batch]:
    """Rows of prompt and right answer, sorted by length, at most ``batch_tokens`` padded tokens per batch.

    Items without a known answer take the one in ``answers``; items that have neither are left out, and ``Batch.items``
    says which are in. Passages are cut into windows of the context length, as :func:`catchment.capabilities.run` does.

    Args:
        answers: Item id to token ids, e.g. what the model itself answers; looked at only where no answer is known.
        pad: Token id that fills rows; it is masked.

    Raises:
        InputError: no item has an answer to score.
    """
    rows: list[tuple[list[int], int, str]] = []  # tokens, where scoring begins, item
    for encoded in prepared.encoded:
        answer = right_answer(encoded, prepared.task.scorer) or tuple((answers or {}).get(encoded.item.id, ()))
        prompt = list(encoded.prompt)
        window = len(answer)
        if prepared.task.scorer == "text" and prepared.longest > len(prompt):
            window = prepared.longest - len(prompt)
        rows += [
            ([*prompt, *answer[at : at + window]], len(prompt), encoded.item.id)
            for at in range(0, len(answer), max(window, 1))
        ]
    if not rows:
        raise InputError(
            f"task {prepared.task.name!r} ({prepared.task.scorer}): none of its {len(prepared.encoded)} items has an "
            f"answer to score; expected right answers, or answers= with the model's own tokens by item id."
        )
    rows.sort(key=lambda row: (len(row[0]), row[2]))
    groups: list[list[tuple[list[int], int, str]]] = []
    for row in rows:
        if groups and (len(groups[-1]) + 1) * len(row[0]) <= batch_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [_padded(group, pad) for group in groups]


def _padded(rows: Sequence[tuple[list[int], int, str]], pad: int) -> Batch:
    width = max(len(ids) for ids, _, _ in rows)
    input_ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED)
    for number, (ids, begin, _) in enumerate(rows):
        input_ids[number, : len(ids)] = torch.tensor(ids)
        mask[number, : len(ids)] = 1
        labels[number, begin : len(ids)] = torch.tensor(ids[begin:])
    scored = sum(len(ids) - begin for ids, begin, _ in rows)
    return Batch(input_ids, mask, labels, scored, tuple(item for _, _, item in rows))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which values of ``dtype`` are summed: float32 for half types, else their own."""
    return torch.promote_types(dtype, torch.float32)


def batch_loss(model: Any, batch: Batch) -> Tensor:
    """Summed cross-entropy of the scored tokens, in nats: a scalar with a graph where gradients are enabled.

    Logits are made only at positions from which a scored token is predicted, where the model can do that, and the
    softmax is in float32 at least. Cost: one forward pass.
    """
    labels = batch.labels[:, 1:]
    scored = labels != IGNORED
    columns = scored.any(dim=0).nonzero()[:, 0]
    device = model.get_input_embeddings().weight.device
    calls = calls_of(model)
    options: dict[str, Any] = {"use_cache": False} if calls.use_cache else {}
    if calls.some_logits is not None and calls.columns:
        options[calls.some_logits] = columns.to(device)
    logits = model(
        input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), **options
    ).logits
    if logits.shape[1] != len(columns):  # this model made all of them
        logits = logits[:, columns.to(logits.device)]
    picked = logits[scored[:, columns].to(logits.device)]
    return cross_entropy(picked.to(wide(picked.dtype)), labels[scored].to(picked.device), reduction="sum")


def scored_tokens(batches: Sequence[Batch]) -> int:
    """Tokens that all batches score together.

    Raises:
        InputError: there are none, so a mean over them has no value.
    """
    tokens = sum(batch.tokens for batch in batches)
    if tokens < 1:
        raise InputError(f"{len(batches)} batches score no token; expected at least one answer with a token.")
    return tokens


def mean_loss(model: Any, batches: Sequence[Batch]) -> float:
    """Mean cross-entropy per scored token, in nats. Cost: one forward pass per batch, no graph.

    Raises:
        InputError: nothing is scored.
    """
    tokens = scored_tokens(batches)
    with without_trace(model):
        return sum(float(batch_loss(model, batch)) for batch in batches) / tokens


def _key(tensor: Tensor) -> object:
    if tensor.device.type == "meta" or not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), str(tensor.device)


@contextmanager
def probing(model: Any, weights: Mapping[str, Tensor]) -> Iterator[dict[str, list[Tensor]]]:
    """Inside, exactly ``weights`` require gradients and the model is in evaluation mode; outside, all is as it was.

    Yields the parameters behind each weight: one, or several where parameters share its memory without being one
    object, whose derivatives add up.

    Raises:
        InputError: no weights, or one that is no parameter of this model or is packed (4/8-bit).
    """
    twins: dict[object, list[Tensor]] = {}
    parameters = list(model.parameters())
    for parameter in parameters:
        twins.setdefault(_key(parameter), []).append(parameter)
    if not weights:
        raise InputError("no weights to differentiate by; select at least one tensor.")
    for name, tensor in weights.items():
        if _key(tensor) not in twins:
            raise InputError(f"weight {name!r} is no parameter of this model; expected one of models.named_weights.")
        if not tensor.is_floating_point():
            raise InputError(f"weight {name!r} is packed as {tensor.dtype} and has no gradient; leave it out.")
    leaves = {name: twins[_key(tensor)] for name, tensor in weights.items()}
    chosen = {id(leaf) for group in leaves.values() for leaf in group}
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            if parameter.requires_grad != (id(parameter) in chosen):
                parameter.requires_grad_(id(parameter) in chosen)
        with without_trace(model), torch.enable_grad():
            yield leaves
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)


def accumulate_gradient(
    model: Any, weights: Mapping[str, Tensor], batches: Sequence[Batch]
) -> tuple[float, dict[str, Tensor]]:
    """Mean loss per token and its gradient by the weights, which may be frozen.

    Cost: one forward and one backward pass per batch. Memory: the gradient in float32 (float64 for float64 weights)
    and, while a batch is added, once more in the weights' type.

    Returns:
        Nats per token; by name a tensor of the weight's shape, zero where the loss does not depend on the weight.

    Raises:
        InputError: nothing is scored, or a weight is not the model's.
        ModelError: the loss is not finite.
    """
    tokens, total = scored_tokens(batches), 0.0
    gradient = {name: torch.zeros_like(w, dtype=wide(w.dtype)) for name, w in weights.items()}
    with probing(model, weights) as leaves:
        pairs = [(name, leaf) for name, group in leaves.items() for leaf in group]
        for batch in batches:
            loss = batch_loss(model, batch)
            total += float(loss.detach())
            if not loss.requires_grad:
                continue  # it depends on none of the weights
            gradients = torch.autograd.grad(loss, [leaf for _, leaf in pairs], allow_unused=True)
            for (name, _), part in zip(pairs, gradients, strict=True):
                if part is not None:
                    gradient[name].add_(part)
    if not math.isfinite(total):
        raise ModelError(
            f"the loss is {total}; expected a finite number. In float16 large activations overflow: use bfloat16 or "
            f"float32. Otherwise the weights are broken."
        )
    for part in gradient.values():
        part.div_(tokens)
    return total / tokens, gradient
