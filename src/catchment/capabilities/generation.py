"""Greedy answers, packed or one prompt at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catchment.capabilities.engine import (
    Engine,
    Ids,
    Prefix,
    float_mask,
    greedy,
    last_logits,
    packed_forward,
    plain_logprobs,
)


@dataclass(frozen=True)
class Answer:
    """A greedy answer.

    Attributes:
        text: Up to the stop string.
        ids: Its tokens, without an end token.
        cut: The token limit cut it.
        gold_logprob: Log-probability of the right answer, where one was given.
        ended: The model ended it with an end token.
        finite: All of its tokens were chosen by finite logits. Where not, the text is no answer.
    """

    text: str
    ids: tuple[int, ...]
    cut: bool
    gold_logprob: float | None = None
    ended: bool = False
    finite: bool = True


def _stopped(text: str, stops: Sequence[str]) -> str | None:
    """The text before the first stop string that follows a visible character; ``None`` when none did."""
    lead = len(text) - len(text.lstrip())
    ends = [at for s in stops if (at := text.find(s, lead)) >= 0 and text[:at].strip()]
    return text[: min(ends)] if ends else None


def generate(
    engine: Engine,
    prefix: Prefix,
    prompts: Sequence[Ids],
    *,
    golds: Sequence[Sequence[Ids]] | None = None,
    max_new_tokens: int = 32,
    stop: Sequence[str] = (),
) -> list[Answer]:
    """Greedy answers. Rows that are done leave the batch; the right answer is scored in the first pass.

    Args:
        golds: per row zero or one right answer as tokens; its log-probability comes back with the answer.
        stop: strings that end an answer, once it has a visible character.
    """
    golds = golds if golds is not None else [[] for _ in prompts]
    if not engine.packed:
        return _plain_generate(engine, prompts, golds, max_new_tokens, stop)
    packed = packed_forward(engine, prefix, prompts, golds, keep_cache=True)
    state = packed.decoding
    assert state is not None
    growing = _Growing(engine, len(prompts), stop)
    rows = list(range(len(prompts)))
    tokens, finite = state.next_ids, state.finite
    visible, positions, cache = state.visible, state.positions, state.cache
    for step in range(max_new_tokens):
        drawn = zip(rows, tokens.tolist(), finite.tolist(), strict=True)
        alive = [k for k, (row, token, sound) in enumerate(drawn) if growing.take(row, token, sound)]
        if not alive or step == max_new_tokens - 1:
            break
        if len(alive) <= 0.7 * len(rows):
            index = torch.tensor(alive, device=tokens.device)
            cache.batch_select_indices(index)
            tokens, visible, positions = tokens[index], visible[index], positions[index]
            rows = [rows[k] for k in alive]
        visible = torch.cat([visible, visible.new_ones(len(rows), 1)], dim=1)
        logits, cache = last_logits(
            engine,
            1,
            input_ids=tokens[:, None],
            attention_mask=float_mask(visible[:, None, None, :], engine.dtype),
            position_ids=positions[:, None],
            cache=cache,
            use_cache=True,
        )
        (tokens, finite), positions = greedy(logits[:, -1]), positions + 1
    return [growing.answer(row, packed.logprobs[row][0] if gold else None) for row, gold in enumerate(golds)]


class _Growing:
    """The answers of a batch while they grow, by row."""

    def __init__(self, engine: Engine, count: int, stop: Sequence[str]) -> None:
        self.decode, self.stop_ids, self.stop = engine.tokenizer.decode, engine.stop_ids, stop
        self.ids: list[list[int]] = [[] for _ in range(count)]
        self.texts: dict[int, str] = {}  # of those that are done
        self.closed: set[int] = set()
        self.broken: set[int] = set()

    def take(self, row: int, token: int, finite: bool) -> bool:
        """Add a row's next token where it is not done; whether it goes on after it."""
        if row in self.texts:
            return False
        if not finite:
            self.broken.add(row)
            self.texts[row] = ""
            return False
        if token in self.stop_ids:
            self.closed.add(row)
        else:
            self.ids[row].append(token)
        text = self.decode(self.ids[row], skip_special_tokens=True)
        done = text if row in self.closed else _stopped(text, self.stop)
        if done is not None:
            self.texts[row] = done
        return done is None

    def answer(self, row: int, gold_logprob: float | None) -> Answer:
        ids, cut = tuple(self.ids[row]), row not in self.texts
        text = self.decode(self.ids[row], skip_special_tokens=True) if cut else self.texts[row]
        return Answer(text, ids, cut, gold_logprob, row in self.closed, row not in self.broken)


def _plain_generate(
    engine: Engine, prompts: Sequence[Ids], golds: Sequence[Sequence[Ids]], max_new_tokens: int, stop: Sequence[str]
) -> list[Answer]:
    """Through the model's own ``generate``, one prompt at a time: any architecture, no padding to go wrong."""
    logprobs = plain_logprobs(engine, prompts, golds)
    answers = []
    for i, prompt in enumerate(prompts):
        new, finite = greedy_tokens(engine, prompt, max_new_tokens, stop)
        ended = bool(new) and new[-1] in engine.stop_ids
        new = new[:-1] if ended else new
        text = engine.tokenizer.decode(new, skip_special_tokens=True)
        stopped = _stopped(text, stop)
        gold = logprobs[i][0] if golds[i] else None
        cut = not ended and stopped is None
        answers.append(Answer(text if stopped is None else stopped, tuple(new), cut, gold, ended, finite))
    return answers


def greedy_tokens(engine: Engine, prompt: Ids, max_new_tokens: int, stop: Sequence[str] = ()) -> tuple[list[int], bool]:
    """New tokens of one prompt, the one that ends the answer included, and whether all of them were chosen by finite
    logits. The model's own generation config is set aside: it may hold a repetition penalty, which is not greedy
    decoding."""
    from transformers import GenerationConfig

    def finished(ids: Tensor, scores: Any, **_: Any) -> Tensor:
        engine.check()
        text = engine.tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)
        return torch.tensor([_stopped(text, stop) is not None], device=ids.device)

    finite = True

    def watch(ids: Tensor, scores: Tensor) -> Tensor:
        nonlocal finite
        finite = finite and bool(scores.max().isfinite())  # the largest of numbers with NaN among them is NaN
        return scores

    ids = torch.tensor([list(prompt)], device=engine.device)
    engine.check()
    owner, stops = engine.base, sorted(engine.stop_ids)
    saved, owner.generation_config = owner.generation_config, GenerationConfig()
    try:
        output = owner.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=stops or None,
            pad_token_id=engine.pad,
            logits_processor=[watch],
            stopping_criteria=[finished],
        )
    finally:
        owner.generation_config = saved
    return output[0, len(prompt) :].tolist(), finite
