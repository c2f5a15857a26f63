"""The forward passes behind every score: prompts once, choices as branches, a shared prefix once.

A batch is one forward pass over rows laid out as

    [shared prefix, from its KV cache] [left padding] [rest of a prompt | answer 1 | answer 2 | ...] [another prompt ...

with an attention mask in which every answer sees the prefix, its prompt and itself, and no other answer or prompt.
Positions continue from the prompt in every answer. So the prompt is computed once for all choices of an item, and
shots or a system prompt that all items share are computed once for the whole task. Short items fill a row together,
and logits are made at the positions that predict an answer only. Architectures that cannot do
this (no 4-D mask, no positions, recurrent state, sliding window shorter than the text) take the plain path: one row
per answer. Which path was taken is recorded.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from catchment.errors import ModelError
from catchment.models import calls_of, expanded, picking

Ids = Sequence[int]
ROW_LENGTHS = (64, 96, 128)
"""Columns of a row that several prompts share."""


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


@dataclass(frozen=True)
class Decoding:
    """What decoding needs to go on after one packed forward pass, one row per prompt: the greedy next token of each
    with whether its logit is finite, the cache, which of its columns are the prompt's, and the next position."""

    next_ids: Tensor
    finite: Tensor
    cache: Any
    visible: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Packed:
    """What one packed forward pass leaves: log-probabilities of the answers [prompt][answer], and where the cache was
    kept, what decoding starts from."""

    logprobs: list[list[float]]
    decoding: Decoding | None = None


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
    ids: Tensor  # [rows, width], as are the next three
    prompt: Tensor  # which prompt a token belongs to; -1 padding
    branch: Tensor  # 0 prompt, c + 1 answer c
    positions: Tensor
    places: dict[tuple[int, int], int]  # (row, column) of every position that needs logits -> its number
    last: list[int]  # number of the position that ends each prompt
    targets: list[tuple[int, int, int, int]]  # (number of the position that predicts, target token, prompt, answer)


def _layout(
    engine: Engine, prefix: Prefix, prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]], rows: list[list[int]]
) -> _Layout:
    """``rows`` says which prompts share a row. Rows end together, so that padding comes first."""
    sizes = _sizes(prefix, prompts, answers)
    width = max(sum(sizes[i] for i in row) for row in rows)
    lines: list[list[tuple[int, int, int, int]]] = []
    places: dict[tuple[int, int], int] = {}
    last, targets = [0] * len(prompts), []
    for number, row in enumerate(rows):
        line = [(engine.pad, -1, 0, 0)] * (width - sum(sizes[i] for i in row))
        for i in row:
            line += [(int(t), i, 0, prefix.length + k) for k, t in enumerate(prompts[i][prefix.length :])]
            end = len(line) - 1
            last[i] = places.setdefault((number, end), len(places))
            for a, answer in enumerate(answers[i]):
                columns = [end, *range(len(line), len(line) + len(answer) - 1)]
                line += [(int(t), i, a + 1, len(prompts[i]) + k) for k, t in enumerate(answer[:-1])]
                for column, token in zip(columns, answer, strict=True):
                    targets.append((places.setdefault((number, column), len(places)), int(token), i, a))
        lines.append(line)
    ids, prompt, branch, positions = torch.tensor(lines).unbind(-1)
    return _Layout(ids, prompt, branch, positions, places, last, targets)


def _sizes(prefix: Prefix, prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]]) -> list[int]:
    """Columns of each prompt with its answers, whose last tokens are predicted and not read."""
    return [len(p) - prefix.length + sum(len(a) - 1 for a in group) for p, group in zip(prompts, answers, strict=True)]


def shared_rows(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Which prompts share a row: the fewest padded tokens of best fits, longest first, into rows of a few lengths.

    Short rows are tried first, because a token is compared with every column of its row. ``limit`` is the longest row
    that holds more than one prompt. Cost: n log n.

    >>> shared_rows([30, 9, 20, 11, 28], limit=64)
    [[0, 4], [2, 3, 1]]
    """
    longest = max(sizes)
    lengths = [longest, *(length for length in ROW_LENGTHS if longest < length <= limit)]
    packings = [_best_fit(sizes, length) for length in lengths]
    return min(packings, key=lambda rows: len(rows) * max(sum(sizes[i] for i in row) for row in rows))


def _best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (columns left, row), sorted
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        at = bisect_left(room, (sizes[i], -1))
        if at == len(room):
            left, row = length, len(rows)
            rows.append([])
        else:
            left, row = room.pop(at)
        rows[row].append(i)
        insort(room, (left - sizes[i], row))
    return rows


def float_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


def _token_logprobs(logits: Tensor, rows: Tensor, targets: Tensor, block: int = 512) -> list[float]:
    """log softmax(logits[row])[target] in fp32, a block of rows at a time: logits [n, V], rows and targets [m]."""
    total = torch.cat([logits[at : at + block].float().logsumexp(dim=1) for at in range(0, len(logits), block)])
    return (logits[rows, targets].float() - total[rows]).tolist()


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The token of the largest logit in each row [rows, vocabulary], and whether that logit is finite: NaN counts as
    the largest, and tokens that a model rules out with minus infinity are not chosen."""
    ids = logits.argmax(-1)
    return ids, logits.gather(-1, ids[:, None])[:, 0].isfinite()


def last_logits(engine: Engine, keep: int, cache: Any = None, **inputs: Any) -> tuple[Tensor, Any]:
    """Logits of the last ``keep`` positions after what ``cache`` holds, and the cache if one was asked for."""
    calls = calls_of(engine.model)
    if calls.some_logits is not None:
        inputs[calls.some_logits] = keep
    output, cache = _ask(engine, cache, inputs)
    return output.logits[:, -keep:], cache


def _ask(engine: Engine, cache: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
    """The model's output after what ``cache`` holds, and the cache if one was asked for."""
    engine.check()
    calls = calls_of(engine.model)
    if cache is not None:
        if calls.cache is None:
            name = type(engine.base).__name__
            raise ModelError(f"{name}: {calls.no_cache}; expected a model that takes one. Set packed=False.")
        inputs[calls.cache] = cache
    output = engine.model(**inputs)
    return output, getattr(output, calls.returned, None) if calls.cache else None


def _logits_at(engine: Engine, layout: _Layout, picked: bool, cache: Any = None, **inputs: Any) -> tuple[Tensor, Any]:
    """Logits [n, V] at the places of a layout, and the cache. ``picked``: the head is given these places only, and not
    every row from the first of them on."""
    row, column = torch.tensor(list(layout.places), device=engine.device).T
    from_end = column - layout.ids.shape[1]
    if picked:
        with picking(engine.model, row, from_end):
            output, cache = _ask(engine, cache, inputs)
        return output.logits[0], cache
    logits, cache = last_logits(engine, -int(from_end.min()), cache, **inputs)
    return logits[row.to(logits.device), from_end.to(logits.device)], cache


def _visible(layout: _Layout, device: torch.device) -> Tensor:
    """[rows, width, width]: every token sees the tokens before it of its own prompt and of its own answer."""
    prompt, branch = layout.prompt.to(device), layout.branch.to(device)
    size = prompt.shape[1]
    causal = torch.ones((size, size), dtype=torch.bool, device=device).tril()
    same = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    allowed = same & (prompt[:, None, :] == prompt[:, :, None]) & (prompt >= 0)[:, None, :] & causal
    return allowed | torch.eye(size, dtype=torch.bool, device=device)  # padding sees itself: no row is empty


def _longest_row(engine: Engine, prefix: Prefix) -> int:
    """Columns that may follow the prefix where several prompts share a row: some models count columns, not positions,
    in their window or in the buffer of their mask."""
    limits = [n for n in (attention_window(engine.model), context_length(engine.model)) if n is not None]
    return min([max(ROW_LENGTHS), *(n - 1 - prefix.length for n in limits)])


def packed_forward(
    engine: Engine,
    prefix: Prefix,
    prompts: Sequence[Ids],
    answers: Sequence[Sequence[Ids]],
    *,
    keep_cache: bool = False,
) -> Packed:
    """One forward pass over a batch: log-probability of every answer after its prompt.

    Prompts share rows unless the cache is kept, which then has one row per prompt. Cost: the tokens of the prompts
    behind the prefix and of the answers, and some padding.
    """
    device = engine.device
    shared = not keep_cache and calls_of(engine.model).head  # without picking, every column would get logits
    sizes = _sizes(prefix, prompts, answers)
    rows = shared_rows(sizes, _longest_row(engine, prefix)) if shared else [[i] for i in range(len(prompts))]
    layout = _layout(engine, prefix, prompts, answers, rows)
    allowed = _visible(layout, device)
    if prefix.length:
        allowed = torch.cat([allowed.new_ones(*allowed.shape[:2], prefix.length), allowed], dim=2)
    logits, cache = _logits_at(
        engine,
        layout,
        shared,
        input_ids=layout.ids.to(device),
        attention_mask=float_mask(allowed[:, None], engine.dtype),
        position_ids=layout.positions.to(device),
        cache=expanded(prefix.cache, len(rows)) if prefix.length else None,
        use_cache=keep_cache or prefix.length > 0,
    )
    logprobs = _summed(layout, logits, answers)
    if not keep_cache:
        return Packed(logprobs)
    visible = ((layout.prompt >= 0) & (layout.branch == 0)).to(device)
    if prefix.length:
        visible = torch.cat([visible.new_ones(len(rows), prefix.length), visible], dim=1)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    return Packed(logprobs, Decoding(*greedy(logits[layout.last]), cache, visible, lengths))


def _summed(layout: _Layout, logits: Tensor, answers: Sequence[Sequence[Ids]]) -> list[list[float]]:
    """Log-probabilities of the answers [prompt][answer] from those of their tokens."""
    logprobs = [[0.0] * len(group) for group in answers]
    if layout.targets:
        place, target = torch.tensor([t[:2] for t in layout.targets], device=logits.device).T
        for value, (_, _, i, a) in zip(_token_logprobs(logits, place, target), layout.targets, strict=True):
            logprobs[i][a] += value
    return logprobs


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
            steps, target = logits[k, len(p) - 1 : len(p) - 1 + len(a)], torch.tensor(a, device=logits.device)
            result[i][j] = sum(_token_logprobs(steps, torch.arange(len(a), device=logits.device), target))
    return result


def answer_logprobs(
    engine: Engine, prefix: Prefix, prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]]
) -> list[list[float]]:
    """Summed log-probability of every answer after its prompt: [row][answer], natural logarithm."""
    if engine.packed:
        return packed_forward(engine, prefix, prompts, answers).logprobs
    return plain_logprobs(engine, prompts, answers)
