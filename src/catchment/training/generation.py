"""Texts that a model writes by itself, and its answers to a task's prompts: what is replayed."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catchment.capabilities import (
    CHOICE_SCORERS,
    PromptOptions,
    Task,
    apply_template,
    context_length,
    prepare,
    without_trace,
)
from catchment.errors import InputError
from catchment.models import calls_of
from catchment.training.data import Message
from catchment.training.encoding import IGNORE, Example

GREEDY = 1e-6
"""A temperature at which the likeliest token is drawn."""
MARK = "\u241fmessage\u241f"
"""Stands for the user's message while the template is asked what comes before and after it."""


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn, token by token, from the whole distribution (top_p 1).

    Args:
        max_new_tokens: Of each message, answer or text; less where the context ends before.
        max_answer_tokens: Of each answer (chat), if not ``max_new_tokens``.
        temperature: Above 0.
        seed: Each row has its own stream, of (seed, row).
        batch_size: Rows that are drawn together.
    """

    max_new_tokens: int = 256
    max_answer_tokens: int | None = None
    temperature: float = 1.0
    seed: int = 0
    batch_size: int = 16

    @property
    def answer_tokens(self) -> int:
        """At most as many in an answer."""
        return self.max_new_tokens if self.max_answer_tokens is None else self.max_answer_tokens


def self_generated(
    model: Any,
    tokenizer: Any,
    n: int,
    sampling: Sampling,
    *,
    chat_template: str = "auto",
    system: str | None = None,
    prompt_options: PromptOptions | None = None,
) -> list[dict[str, Any]]:
    """Texts that the model writes by itself; replayed in its fine-tune (:class:`~catchment.training.Replay`), they hold
    it to what it was.

    With a chat template: the model continues the template's empty user turn, which gives a user's message, and then
    answers it. Without one: it writes on from BOS, or, where the tokenizer has none, from a first token drawn uniformly
    from the vocabulary. No data of its training is needed.

    At temperature 1 the cross-entropy of the tuned model on these rows is an unbiased estimate of its divergence from
    the base, up to a constant:

        E_{y ~ p_base(.|x)} [-log p_theta(y|x)] = KL(p_base(.|x) || p_theta(.|x)) + H(p_base(.|x))

    per answer y to a message x (chat), or per text; H does not depend on theta, so the gradient is that of the KL,
    along the base's own text. Two limits: rows are text, and where a tokenizer would cut that text otherwise, the
    tokens are not those that were drawn. And a row with ``cut`` ended at ``max_new_tokens``, not where the model
    ended it; the estimate then holds for the tokens it has, if no end-of-text token is learned behind them.

    The global random state is untouched. Rows do not depend on ``batch_size`` except through rounding, and where the
    context ends before they do. The caller caches them.

    Args:
        model: The base, as a transformers causal language model.
        n: Rows to sample; empty ones are dropped, and one warning counts them.
        chat_template, system: How a conversation begins, see :class:`~catchment.capabilities.PromptOptions`; texts
            without a template have no system message. ``prompt_options``: the two in one object, instead of them.

    Returns:
        ``{"messages": [user, assistant], "cut": bool}``, before them the system message if there is one; or
        ``{"text": str, "cut": bool}``.

    Raises:
        InputError: A setting out of range, or a template that leaves no place for a user's message.

    Cost: n times up to ``2 * max_new_tokens`` (chat) or ``max_new_tokens`` decoding steps, in batches.
    """
    _check(n, sampling)
    asked = PromptOptions.of(prompt_options, chat_template, system)
    chat = _Opening(tokenizer, asked.template(tokenizer), asked.system)
    writer = _Writer(model, tokenizer, sampling)
    rows: list[dict[str, Any]] = []
    with without_trace(model):
        for at in range(0, n, sampling.batch_size):
            numbers = range(at, min(at + sampling.batch_size, n))
            rows += _texts(writer, numbers) if chat.template is None else _chats(writer, numbers, chat)
    if len(rows) < n:
        warnings.warn(f"{n - len(rows)} of {n} self-generated rows were empty and are left out", stacklevel=2)
    return rows


def _check(n: int, s: Sampling) -> None:
    least = min(n, s.max_new_tokens, s.answer_tokens, s.batch_size)
    if least < 1 or not 0 < s.temperature < math.inf:
        raise InputError(
            f"n {n}, max_new_tokens {s.max_new_tokens}, max_answer_tokens {s.max_answer_tokens}, batch_size "
            f"{s.batch_size}, temperature {s.temperature}: expected at least 1 each, and a temperature above 0."
        )


def answered(
    model: Any, tokenizer: Any, task: Task, *, max_new_tokens: int = 32, chat_template: str = "auto",
    system: str | None = None, prompt_options: PromptOptions | None = None, batch_size: int = 16,
) -> list[Example]:  # fmt: skip
    """The task's prompts, each with what the model says to it, greedily; labels on the answer.

    Where choices are scored, each prompt with each of its choices instead: the places at which the score is made. An
    answer that goes on beyond ``max_new_tokens`` is learned as far as it goes. Leaves no trace. Items that do not fit
    into the context are left out, with one warning. They are put as :class:`~catchment.capabilities.PromptOptions` say,
    or its two parts.

    Cost: one forward pass over the prompts and up to ``max_new_tokens`` decoding steps, in batches; for choices none.
    """
    context = context_length(model)
    asked = PromptOptions.of(prompt_options, chat_template, system)
    made = prepare(tokenizer, task, prompt_options=asked, context=context, drop_long=True)
    if made.dropped:
        warnings.warn(
            f"{len(made.dropped)} of {len(task.items)} items of {task.name!r} do not fit into the context of {context} "
            "tokens and are left out",
            stacklevel=2,
        )
    if task.scorer in CHOICE_SCORERS:
        pairs = [(list(e.prompt), list(choice)) for e in made.encoded for choice in _unlike(e.answers)]
        return [{"input_ids": prompt + choice, "labels": [IGNORE] * len(prompt) + choice} for prompt, choice in pairs]
    writer = _Writer(model, tokenizer, Sampling(max_new_tokens, temperature=GREEDY))
    prompts = sorted((list(e.prompt) for e in made.encoded), key=len)
    examples: list[Example] = []
    with without_trace(model):
        for at in range(0, len(prompts), batch_size):
            part = prompts[at : at + batch_size]
            said = writer.write(part, range(at, at + len(part)), "answer", writer.ends)
            for prompt, (ids, cut) in zip(part, said, strict=True):
                ended = ids if cut or tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]
                if ended:
                    examples.append({"input_ids": prompt + ended, "labels": [IGNORE] * len(prompt) + ended})
    return examples


def _unlike(answers: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    """Single tokens stand at one place, whose distribution one of them shows."""
    return answers[:1] if all(len(answer) == 1 for answer in answers) else answers


class _Writer:
    """Samples continuations by inverse transform of one uniform number per token."""

    def __init__(self, model: Any, tokenizer: Any, sampling: Sampling) -> None:
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        inner = getattr(model, "get_base_model", lambda: model)()
        self.calls = calls_of(model)
        ends = getattr(getattr(inner, "generation_config", None), "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        self.ends = {int(i) for i in (*ends, tokenizer.eos_token_id) if i is not None}
        self.context = context_length(model)

    def stream(self, number: int, part: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.sampling.seed}/{number}/{part}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))

    def write(
        self, prompts: Sequence[Sequence[int]], numbers: Sequence[int], part: str, ends: set[int],
        most: int | None = None,
    ) -> list[tuple[list[int], bool]]:  # fmt: skip
        """Per prompt the tokens drawn, without the one that ends them, and whether they were cut."""
        width, most = max(map(len, prompts)), most or self.sampling.max_new_tokens
        most = most if self.context is None else min(most, self.context - width)
        if most < 1:
            return [([], True) for _ in prompts]
        generators = (self.stream(number, part) for number in numbers)
        uniform = torch.stack([torch.rand(most, generator=g, dtype=torch.float64) for g in generators])
        written: list[list[int]] = [[] for _ in prompts]
        open_rows = set(range(len(prompts)))
        for step, logits in enumerate(self._logits(prompts, most, written)):
            drawn = self._draw(logits, uniform[:, step])
            for row, token in enumerate(drawn):
                written[row].append(token)  # closed rows go on, unread: the batch stays whole
                if token in ends and row in open_rows:
                    open_rows.remove(row)
            if not open_rows:
                break
        return [self._until(tokens, ends) for tokens in written]

    @staticmethod
    def _until(tokens: list[int], ends: set[int]) -> tuple[list[int], bool]:
        end = next((k for k, token in enumerate(tokens) if token in ends), None)
        return (tokens, True) if end is None else (tokens[:end], False)

    def _draw(self, logits: Tensor, uniform: Tensor) -> list[int]:
        total = torch.softmax(logits.double().cpu() / self.sampling.temperature, dim=-1).cumsum(dim=-1)
        drawn = torch.searchsorted(total, uniform[:, None] * total[:, -1:], right=True)
        return drawn.clamp_(max=logits.shape[-1] - 1)[:, 0].tolist()

    def _logits(self, prompts: Sequence[Sequence[int]], most: int, written: list[list[int]]) -> Iterator[Tensor]:
        """Next-token logits, step by step; the caller appends to ``written`` in between. Left padding; the keys and
        values of earlier tokens are kept where the model gives them, else the whole text runs again."""
        device = self.model.get_input_embeddings().weight.device
        width = max(map(len, prompts))
        pad = next(iter(prompts[0]))
        text = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        fresh, cache = text, None
        for _ in range(most):
            given: dict[str, Any] = {"input_ids": fresh, "attention_mask": mask}
            if self.calls.position_ids:
                positions = (mask.cumsum(dim=1) - 1).clamp_(min=0)
                given["position_ids"] = positions[:, -fresh.shape[1] :]
            if self.calls.cache is not None:
                given[self.calls.cache] = cache
            if self.calls.use_cache:
                given["use_cache"] = True
            out = self.model(**given)
            cache = None if self.calls.cache is None else getattr(out, self.calls.returned)
            yield out.logits[:, -1]
            new = torch.tensor([[tokens[-1]] for tokens in written], device=device)
            text = torch.cat([text, new], dim=1)
            mask = torch.cat([mask, torch.ones_like(new)], dim=1)
            fresh = text if cache is None else new


def _texts(writer: _Writer, numbers: Sequence[int]) -> list[dict[str, Any]]:
    bos = writer.tokenizer.bos_token_id
    first = [_random_token(writer, number) if bos is None else bos for number in numbers]
    written = writer.write([[token] for token in first], numbers, "text", writer.ends)
    rows = []
    for token, (ids, cut) in zip(first, written, strict=True):
        text = writer.tokenizer.decode([token, *ids], skip_special_tokens=True)
        if ids and text.strip():
            rows.append({"text": text, "cut": cut})
    return rows


def _random_token(writer: _Writer, number: int) -> int:
    known = sorted(set(range(len(writer.tokenizer))) - set(writer.tokenizer.all_special_ids))
    return known[int(torch.randint(len(known), (1,), generator=writer.stream(number, "first")))]


def _chats(writer: _Writer, numbers: Sequence[int], chat: _Opening) -> list[dict[str, Any]]:
    tokenizer = writer.tokenizer
    before, after = chat.turn()
    whole = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    special = set(_encode(tokenizer, after.strip())[:1]) & whole
    opening = _encode(tokenizer, before) or [tokenizer.bos_token_id or tokenizer.eos_token_id or 0]
    asked = writer.write([opening] * len(numbers), numbers, "user", writer.ends | special)
    users: dict[int, str] = {}
    for number, (ids, _) in zip(numbers, asked, strict=True):
        message = tokenizer.decode(ids, skip_special_tokens=True)
        if after.strip() and not special:  # the turn ends with words, not with a token
            message = message.split(after.strip())[0]
        if message.strip():
            users[number] = message.strip()
    if not users:
        return []
    prompts = [_encode(tokenizer, chat.render(message, answer=True)) for message in users.values()]
    answers = writer.write(prompts, list(users), "assistant", writer.ends | special, writer.sampling.answer_tokens)
    rows = []
    for message, (ids, cut) in zip(users.values(), answers, strict=True):
        answer = tokenizer.decode(ids, skip_special_tokens=True)
        if answer.strip():
            said = [*chat.messages(message), {"role": "assistant", "content": answer}]
            rows.append({"messages": said, "cut": cut})
    return rows


@dataclass(frozen=True)
class _Opening:
    """How a conversation begins: the template, and the system message if there is one."""

    tokenizer: Any
    template: str | None
    system: str | None

    def messages(self, message: str) -> list[Message]:
        user = {"role": "user", "content": message}
        return [{"role": "system", "content": self.system}, user] if self.system else [user]

    def turn(self) -> tuple[str, str]:
        """What the template writes before and after a user's message."""
        before, shown, after = self.render(MARK, answer=False).partition(MARK)
        if not shown:
            raise InputError("the chat template leaves out the user's message; expected one that shows it. Try 'none'.")
        return before, after

    def render(self, message: str, *, answer: bool) -> str:
        try:
            return apply_template(self.tokenizer, str(self.template), self.messages(message), ask=answer)
        except Exception as error:  # templates are programs: they raise what they like
            given = "a system message and one of the user" if self.system else "one user message"
            raise InputError(
                f"the chat template failed on {given} ({type(error).__name__}: {error}); expected one that takes it. "
                f"Use another template, 'none', or no system prompt."
            ) from error


def _encode(tokenizer: Any, text: str) -> list[int]:
    """As written: the template has put the start token where it wants one."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
