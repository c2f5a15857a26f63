"""The forward passes behind every score: prompts once, choices as branches, a shared prefix once.

A batch is one forward pass over rows laid out as

    [shared prefix, from its KV cache] [left padding | rest of the prompt] [answer 1 | answer 2 | ...]

with an attention mask in which every answer sees the prefix, its prompt and itself, and no other answer.
Positions continue from the prompt in every answer. So the prompt is computed once for all choices of an item, and
shots or a system prompt that all items share are computed once for the whole task. Architectures that cannot do
this (no 4-D mask, no positions, recurrent state, sliding window shorter than the text) take the plain path: one row
per answer. Which path was taken is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from catchment.errors import ModelError
from catchment.models import calls_of, expanded

Ids = Sequence[int]


@dataclass
class Engine:
    """A causal language model, ready to be asked.

    Attributes:
        packed: Use the layout above; otherwise the plain path.
        batch_tokens: Padded tokens per forward pass.
        notes: What a reader must know about how the numbers were made.
        checked: The packed layout was compared with the plain path on this model.
        check: Called before every forward pass; raises where no more may be measured.
    """

    model: Any
    tokenizer: Any
    packed: bool = True
    batch_tokens: int = 1024
    notes: list[str] = field(default_factory=list)
    checked: bool = False
    check: Callable[[], None] = lambda: None

    @property
    def base(self) -> Any:
        """The transformers model inside a PEFT wrapper (with the adapter's layers in place), or the model itself."""
        return getattr(self.model, "get_base_model", lambda: self.model)()

    @property
    def dtype(self) -> torch.dtype:
        dtype = self.model.get_input_embeddings().weight.dtype
        return dtype if dtype.is_floating_point else torch.float32

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def pad(self) -> int:
        """Any token that has an embedding, since padding is masked: a padding token that was added to the tokenizer
        only has none."""
        rows = self.model.get_input_embeddings().weight.shape[0]
        tokens = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((int(token) for token in tokens if token is not None and token < rows), 0)

    @property
    def stop_ids(self) -> set[int]:
        """Every token that ends an answer: of the generation config and of the tokenizer."""
        ids = getattr(getattr(self.base, "generation_config", None), "eos_token_id", None)
        ids = ids if isinstance(ids, list) else [ids]
        return {int(i) for i in [*ids, self.tokenizer.eos_token_id] if i is not None}


@dataclass(frozen=True)
class Prefix:
    """Tokens that all prompts begin with, and their KV cache (batch 1)."""

    length: int
    cache: Any = None


@dataclass
class Packed:
    """What one packed forward pass leaves: log-probabilities of the answers [row][answer], the greedy next token
    of each prompt with whether its logit is finite, and what decoding needs to go on."""

    logprobs: list[list[float]]
    next_ids: Tensor
    finite: Tensor
    cache: Any
    visible: Tensor
    positions: Tensor


def text_config(model: Any) -> Any:
    """The part of the config that describes the language model."""
    return model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config


def context_length(model: Any) -> int | None:
    """Longest text the model takes, in tokens; ``None`` where the config does not say."""
    config = text_config(model)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def supports_packing(model: Any, longest: int) -> str | None:
    """Why the packed layout cannot be used for texts of up to ``longest`` tokens; ``None`` when it can."""
    implementation = getattr(model.config, "_attn_implementation", "eager")
    if implementation not in ("eager", "sdpa"):
        return f"attention {implementation!r} takes no 4-D mask"
    calls = calls_of(model)
    if calls.cache is None:
        return calls.no_cache
    if not calls.position_ids:
        return "it takes no position_ids"
    window = attention_window(model)
    if window is not None and longest >= window:
        return f"texts of up to {longest} tokens reach the attention window of {window}"
    return None


def attention_window(model: Any) -> int | None:
    """Shortest span of tokens that some layer attends to; ``None`` when every layer sees the whole text."""
    config = text_config(model)
    spans = [getattr(config, name, None) for name in ("window_size", "attention_chunk_size")]
    if getattr(config, "use_sliding_window", True):
        spans.append(getattr(config, "sliding_window", None))
    return min((span for span in spans if isinstance(span, int) and span > 0), default=None)


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix, at least one token of each prompt left over.

    >>> common_prefix([[1, 2, 3], [1, 2, 4, 5]])
    2
    """
    first, last = min(map(list, prompts)), max(map(list, prompts))
    length = 0
    for a, b in zip(first, last, strict=False):
        if a != b:
            break
        length += 1
    return min(length, min(len(p) for p in prompts) - 1)


def make_prefix(engine: Engine, ids: Ids) -> Prefix:
    """Run the shared tokens once. Fewer than 4 are not worth a cache."""
    if len(ids) < 4 or not engine.packed:
        return Prefix(0)
    _, cache = last_logits(engine, 1, input_ids=torch.tensor([list(ids)], device=engine.device), use_cache=True)
    return Prefix(len(ids), cache)


@dataclass
class _Layout:
    ids: Tensor  # [rows, P + C]
    branch: Tensor  # [rows, P + C]: -1 padding, 0 prompt, c + 1 answer c
    positions: Tensor  # [rows, P + C]
    lengths: Tensor  # [rows]: prompt lengths, prefix included
    width: int  # P
    sources: list[tuple[int, int, int, int]]  # (row, column that predicts, target token, answer)


def _layout(engine: Engine, prefix: Prefix, prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]]) -> _Layout:
    rests = [list(p[prefix.length :]) for p in prompts]
    width = max(len(r) for r in rests)
    region = max((sum(len(a) - 1 for a in group) for group in answers), default=0)
    rows = len(rests)
    ids = torch.full((rows, width + region), engine.pad)
    branch = torch.full((rows, width + region), -1)
    positions = torch.zeros((rows, width + region), dtype=torch.long)
    sources = []
    for row, (rest, group) in enumerate(zip(rests, answers, strict=True)):
        start = width - len(rest)
        ids[row, start:width] = torch.tensor(rest)
        branch[row, start:width] = 0
        positions[row, start:width] = torch.arange(prefix.length, prefix.length + len(rest))
        at = width
        for number, answer in enumerate(group):
            n = len(answer) - 1
            if n:
                ids[row, at : at + n] = torch.tensor(answer[:-1])
                branch[row, at : at + n] = number + 1
                end = prefix.length + len(rest)
                positions[row, at : at + n] = torch.arange(end, end + n)
            columns = [width - 1, *range(at, at + n)]
            sources += [(row, column, int(token), number) for column, token in zip(columns, answer, strict=True)]
            at += n
    lengths = torch.tensor([len(p) for p in prompts])
    return _Layout(ids, branch, positions, lengths, width, sources)


def float_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


def _token_logprobs(logits: Tensor, targets: Tensor, block: int = 512) -> list[float]:
    """log softmax(logits)[target] in fp32, a block of rows at a time: logits [n, V], targets [n]."""
    values: list[float] = []
    for at in range(0, len(targets), block):
        part = logits[at : at + block].float()
        picked = part.gather(1, targets[at : at + block, None])[:, 0]
        values += (picked - part.logsumexp(dim=1)).tolist()
    return values


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The token of the largest logit in each row [rows, vocabulary], and whether that logit is finite: NaN counts as
    the largest, and tokens that a model rules out with minus infinity are not chosen."""
    ids = logits.argmax(-1)
    return ids, logits.gather(-1, ids[:, None])[:, 0].isfinite()


def last_logits(engine: Engine, keep: int, cache: Any = None, **inputs: Any) -> tuple[Tensor, Any]:
    """Logits of the last ``keep`` positions after what ``cache`` holds, and the cache if one was asked for."""
    engine.check()
    calls = calls_of(engine.model)
    if calls.some_logits is not None:
        inputs[calls.some_logits] = keep
    if cache is not None:
        if calls.cache is None:
            name = type(engine.base).__name__
            raise ModelError(f"{name}: {calls.no_cache}; expected a model that takes one. Set packed=False.")
        inputs[calls.cache] = cache
    output = engine.model(**inputs)
    return output.logits[:, -keep:], getattr(output, calls.returned, None) if calls.cache else None


def packed_forward(
    engine: Engine,
    prefix: Prefix,
    prompts: Sequence[Ids],
    answers: Sequence[Sequence[Ids]],
    *,
    keep_cache: bool = False,
) -> Packed:
    """One forward pass over a batch: log-probability of every answer after its prompt.

    Cost: sum over rows of (longest prompt rest + longest sum of answer lengths - 1) tokens.
    """
    device = engine.device
    layout = _layout(engine, prefix, prompts, answers)
    rows, size = layout.ids.shape
    branch = layout.branch.to(device)
    causal = torch.ones((size, size), dtype=torch.bool, device=device).tril()
    same = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    allowed = same & (branch >= 0)[:, None, :] & causal
    allowed |= torch.eye(size, dtype=torch.bool, device=device)  # padding sees itself, so that no row is empty
    if prefix.length:
        allowed = torch.cat([allowed.new_ones(rows, size, prefix.length), allowed], dim=2)
    logits, cache = last_logits(
        engine,
        size - layout.width + 1,
        input_ids=layout.ids.to(device),
        attention_mask=float_mask(allowed[:, None], engine.dtype),
        position_ids=layout.positions.to(device),
        cache=expanded(prefix.cache, rows) if prefix.length else None,
        use_cache=keep_cache or prefix.length > 0,
    )
    logprobs = [[0.0] * len(group) for group in answers]
    if layout.sources:
        row, column, target, _ = (torch.tensor(x, device=logits.device) for x in zip(*layout.sources, strict=True))
        values = _token_logprobs(logits[row, column - (layout.width - 1)], target)
        for value, (r, _, _, number) in zip(values, layout.sources, strict=True):
            logprobs[r][number] += value
    visible = branch == 0
    if prefix.length:
        visible = torch.cat([visible.new_ones(rows, prefix.length), visible], dim=1)
    kept = cache if keep_cache else None
    return Packed(logprobs, *greedy(logits[:, 0]), kept, visible, layout.lengths.to(device))


def plain_logprobs(engine: Engine, prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]]) -> list[list[float]]:
    """The same numbers with one right-padded row per answer and a 2-D mask: works for every causal model."""
    rows = [(i, j, list(p), list(a)) for i, p in enumerate(prompts) for j, a in enumerate(answers[i])]
    result = [[0.0] * len(group) for group in answers]
    if not rows:
        return result
    width = max(len(p) + len(a) - 1 for _, _, p, a in rows)
    per_pass = max(1, engine.batch_tokens // width)
    for at in range(0, len(rows), per_pass):
        part = rows[at : at + per_pass]
        ids = torch.full((len(part), width), engine.pad)
        mask = torch.zeros((len(part), width), dtype=torch.long)
        for k, (_, _, p, a) in enumerate(part):
            text = [*p, *a[:-1]]
            ids[k, : len(text)] = torch.tensor(text)
            mask[k, : len(text)] = 1
        engine.check()
        logits = engine.model(input_ids=ids.to(engine.device), attention_mask=mask.to(engine.device)).logits
        for k, (i, j, p, a) in enumerate(part):
            steps = logits[k, len(p) - 1 : len(p) - 1 + len(a)]
            result[i][j] = sum(_token_logprobs(steps, torch.tensor(a, device=logits.device)))
    return result


def answer_logprobs(
    engine: Engine, prefix: Prefix, prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]]
) -> list[list[float]]:
    """Summed log-probability of every answer after its prompt: [row][answer], natural logarithm."""
    if engine.packed:
        return packed_forward(engine, prefix, prompts, answers).logprobs
    return plain_logprobs(engine, prompts, answers)
