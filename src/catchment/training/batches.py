"""What a trainer eats: packed blocks, padded batches; and the losses on completions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from catchment.capabilities import without_trace
from catchment.errors import InputError
from catchment.models import calls_of
from catchment.training.encoding import IGNORE, Encoded, Example


def pack(examples: Sequence[Example], max_length: int, *, model: Any = None) -> list[Example]:
    """Whole examples in blocks of at most ``max_length`` tokens, by first-fit decreasing: at most 11/9 of the fewest
    possible blocks, and 6/9 of one more (Dósa 2007).

    Every block has ``input_ids``, ``labels`` (no loss on the first token of an example, which would be predicted across
    the border) and ``position_ids``, which begin at 0 with every example: from these transformers builds a mask in
    which the examples do not see each other. Deterministic; blocks and examples keep the order of the data as far as
    they can. Cost: O(n log n).

    Args:
        model: when given, :func:`check_packing` is asked first.

    Raises:
        InputError: an example longer than ``max_length``, classification, or a model that cannot keep examples apart.

    >>> examples = [{"input_ids": [k] * n, "labels": [k] * n} for k, n in ((1, 3), (2, 4), (3, 1))]
    >>> [block["position_ids"] for block in pack(examples, max_length=5)]
    [[0, 1, 2], [0, 1, 2, 3, 0]]
    """
    if any(not isinstance(example["labels"], list) for example in examples):
        raise InputError("packing: labels of a classification; expected token labels. Leave packing off.")
    longest = max((len(example["input_ids"]) for example in examples), default=0)
    if longest > max_length:
        raise InputError(
            f"packing: an example of {longest} tokens does not fit into blocks of max_length {max_length}; expected "
            f"the max_length of encode_rows or more."
        )
    if model is not None:
        check_packing(model)
    order = sorted(range(len(examples)), key=lambda k: -len(examples[k]["input_ids"]))
    bins = _FirstFit(len(examples), max_length)
    blocks: dict[int, list[int]] = {}
    for k in order:
        blocks.setdefault(bins.place(len(examples[k]["input_ids"])), []).append(k)
    return [_block([examples[k] for k in group]) for group in sorted(map(sorted, blocks.values()))]


def _block(examples: Sequence[Example]) -> Example:
    return {
        "input_ids": [i for e in examples for i in e["input_ids"]],
        "labels": [i for e in examples for i in [*[IGNORE] * bool(e["labels"]), *e["labels"][1:]]],
        "position_ids": [i for e in examples for i in range(len(e["input_ids"]))],
    }


class _FirstFit:
    """The first of n bins with enough room, in O(log n): a tree of the largest room below each node."""

    def __init__(self, bins: int, room: int) -> None:
        self.leaves = 1 << max(bins - 1, 0).bit_length()
        self.room = [room] * (2 * self.leaves)

    def place(self, size: int) -> int:
        node = 1
        while node < self.leaves:
            node = 2 * node if self.room[2 * node] >= size else 2 * node + 1
        leaf = node - self.leaves
        self.room[node] -= size
        while node > 1:
            node //= 2
            self.room[node] = max(self.room[2 * node], self.room[2 * node + 1])
        return leaf


def check_packing(model: Any) -> None:
    """Make sure that this model keeps packed examples apart, by trying it on random tokens.

    Two padded blocks of two examples each, against the four examples alone. Leaves no trace. Cost: 5 forward passes
    over at most 12 tokens, and once for each model those of :func:`~catchment.models.calls_of`.

    Raises:
        InputError: it takes no positions (state-space models, ALiBi), its attention needs another form of mask, or the
            logits differ.
    """
    base = getattr(model, "get_base_model", lambda: model)()
    name, fix = type(base).__name__, "Leave packing off for this model."
    attention = getattr(base.config, "_attn_implementation", None) or "eager"
    if attention not in ("eager", "sdpa"):
        raise InputError(
            f"packing: attention {attention!r} of {name}; expected 'sdpa' or 'eager'. Load it with one of these."
        )
    if not calls_of(model).position_ids:
        raise InputError(f"packing: {name} takes no position_ids; expected a model that keeps examples apart. {fix}")
    weight = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(weight.shape[0], (n,), generator=generator).tolist() for n in (5, 7, 4, 6)]
    examples = [{"input_ids": ids, "labels": ids} for ids in texts]
    batch = to_device(_pad_causal([_block(examples[:2]), _block(examples[2:])], 0), weight.device)
    with without_trace(model):
        together = model(**batch).logits.float()
        alone = [model(input_ids=torch.tensor([ids], device=weight.device)).logits[0].float() for ids in texts]
    packed = [together[0, :5], together[0, 5:12], together[1, :4], together[1, 4:10]]
    allowed = math.sqrt(torch.finfo(weight.dtype if weight.is_floating_point() else torch.bfloat16).eps)
    gap = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(packed, alone, strict=True))
    if not gap <= allowed:
        raise InputError(
            f"packing: logits of {name} differ by {gap:.2g} of the largest between packed examples and the same alone; "
            f"expected at most {allowed:.2g}: its examples see each other. {fix}"
        )


class Collator:
    """Batches for ``transformers.Trainer(data_collator=...)``: padded on the right to the longest in the batch.

    Blocks of :func:`pack` get no attention mask and no cache, because transformers reads the borders between examples
    from ``position_ids`` only then; a padding token is an example of its own. Without a padding token
    the end token pads, behind the mask.

    Args:
        tokenizer: for its padding token.
        pad_to_multiple_of: round the length of a batch up.
    """

    def __init__(self, tokenizer: Any, pad_to_multiple_of: int | None = None) -> None:
        self.tokenizer = tokenizer
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad = next(int(i) for i in ids if i is not None)
        self.multiple = pad_to_multiple_of or 1

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        if isinstance(examples[0]["labels"], list):
            return _pad_causal(examples, self.pad, self.multiple)
        labels = torch.tensor([example["labels"] for example in examples])
        fills = {"input_ids": self.pad}
        columns = [key for key in examples[0] if key != "labels"]
        batch = {k: _padded([e[k] for e in examples], fills.get(k, 0), self.multiple) for k in columns}
        if "attention_mask" not in batch:
            batch["attention_mask"] = _padded([[1] * len(e["input_ids"]) for e in examples], 0, self.multiple)
        return {**batch, "labels": labels}


def _padded(rows: Sequence[Sequence[int]], fill: int, multiple: int = 1) -> Tensor:
    width = -(-max(map(len, rows)) // multiple) * multiple
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def _pad_causal(examples: Sequence[Example], pad: int, multiple: int = 1) -> dict[str, Any]:
    packed = {"position_ids" in example for example in examples}
    if len(packed) > 1:
        raise InputError("a batch of packed blocks and single examples; expected one or the other. Pack all examples.")
    ids = [example["input_ids"] for example in examples]
    batch: dict[str, Any] = {
        "input_ids": _padded(ids, pad, multiple),
        "labels": _padded([example["labels"] for example in examples], IGNORE, multiple),
    }
    if packed == {True}:
        positions = _padded([example["position_ids"] for example in examples], 0, multiple)
        return {**batch, "position_ids": positions, "use_cache": False}
    return {**batch, "attention_mask": _padded([[1] * len(row) for row in ids], 0, multiple)}


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors there; what is no tensor stays."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def completion_losses(model: Any, encoded: Encoded, batch_tokens: int = 2048) -> list[float]:
    """Mean negative log-likelihood per learned token of each example, ``-mean_t log p(x_t | x_<t)``, in nats.

    Leaves no trace: training mode, gradients and random states stay. Cost: one forward pass over all tokens, in
    batches of at most ``batch_tokens`` padded tokens, sorted by length.

    Raises:
        InputError: classification, ``batch_tokens`` below 1.
    """
    if encoded.kind == "classification":
        raise InputError("completion_losses: rows of kind 'classification'; expected rows with completions to predict.")
    if batch_tokens < 1:
        raise InputError(f"batch_tokens {batch_tokens}: expected at least 1.")
    device = model.get_input_embeddings().weight.device
    losses = [math.nan] * len(encoded)
    with without_trace(model):
        for group in groups([len(e["input_ids"]) for e in encoded.examples], batch_tokens):
            batch = to_device(_pad_causal([encoded.examples[k] for k in group], 0), device)
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch).logits[:, :-1].float()
            nll = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none"
            )
            means = nll.double().sum(1) / (labels != IGNORE).sum(1)
            for k, value in zip(group, means.tolist(), strict=True):
                losses[k] = value
    return losses


def groups(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of the examples of each batch, the longest first.

    >>> list(groups([3, 8, 2, 4], batch_tokens=8))
    [[1], [3, 0], [2]]
    """
    group: list[int] = []
    for k in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        if group and lengths[group[0]] * (len(group) + 1) > batch_tokens:
            yield group
            group = []
        group.append(k)
    if group:
        yield group
