"""From rows to token ids, with the loss on completions only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from catchment.capabilities import PromptOptions, apply_template, date_note
from catchment.errors import InputError
from catchment.training.data import Message, Rows

Example = dict[str, Any]
Span = tuple[int, int]

IGNORE = -100
"""The label of a token without loss, as in torch and transformers."""
CHUNK = 1000
"""Texts tokenised at once."""


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids.

    Attributes:
        examples: ``{"input_ids", "labels"}``, a label of -100 where there is no loss, as on every first token, which
            nothing predicts; classification: what the tokenizer returns and ``"labels"``, the number of the class.
        tokens: Token ids of all examples.
        trained_tokens: Labels other than -100; examples in classification.
        truncated: Examples that were cut at ``max_length``.
        kind: Of the rows.
        cut_tokens: Tokens that would have been learned and were cut off.
    """

    examples: list[Example]
    tokens: int
    trained_tokens: int
    truncated: int
    kind: str
    cut_tokens: int = 0

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True)
class _Marked:
    """A text, the spans of it that are learned (characters), and whether the end token follows."""

    text: str
    spans: tuple[Span, ...]
    ends: bool = True


def encode_rows(
    rows: Rows,
    tokenizer: Any,
    *,
    max_length: int,
    chat_template: str = "auto",
    system: str | None = None,
    prompt_options: PromptOptions | None = None,
    completion_only: bool = True,
) -> Encoded:
    """Token ids and labels of all rows, in their order.

    Prompt and completion are tokenised together and cut by character offsets, so that the model reads the tokens that
    plain text has; a token across the border counts as completion, and so do blanks at the end of a plain prompt. The
    prompt's tokens are those that :func:`~catchment.capabilities.evaluate` asks with. Plain text ends with the end
    token; so does a conversation whose template writes no end token of its own.

    Args:
        max_length: longest example in tokens; longer ones are cut at the end, and one warning counts them.
        chat_template: ``"auto"``: the tokenizer's own where it has one; ``"none"``; or the path of a Jinja file.
        system: system message where a row has none; in plain text it stands before the prompt.
        prompt_options: the two in one object, instead of them.
        completion_only: loss on completions (assistant turns) alone; otherwise on everything.

    Returns:
        :class:`Encoded`. Cost: one tokenisation of the text, no forward pass.

    Raises:
        InputError: no chat template for messages, or one that cannot be followed; prompts that fill ``max_length``.

    Example:
        >>> rows = read_rows([{"prompt": "2 + 2 =", "completion": " 4"}])  # doctest: +SKIP
        >>> encode_rows(rows, tokenizer, max_length=64).examples[0]["labels"]  # doctest: +SKIP
        [-100, -100, -100, -100, 19, 2]
    """
    if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 2:
        raise InputError(f"max_length {max_length!r}: expected a whole number of at least 2 tokens.")
    asked = PromptOptions.of(prompt_options, chat_template, system)
    if asked.system and rows.kind in ("text", "classification"):
        raise InputError(
            f"system {asked.system!r:.60} with rows of kind {rows.kind!r}: expected prompts or messages. Omit it."
        )
    if rows.kind == "classification":
        return _encode_classes(rows, tokenizer, max_length)
    template = asked.template(tokenizer) if rows.kind != "text" else None
    if date_note(template) is not None:
        warnings.warn(str(date_note(template)), stacklevel=2)
    marked = _mark_rows(rows, tokenizer, template, asked.chat_template, asked.system, completion_only)
    return _encode_texts(rows, marked, tokenizer, max_length)


def _encode_texts(rows: Rows, marked: Sequence[_Marked], tokenizer: Any, max_length: int) -> Encoded:
    if tokenizer.eos_token_id is None and any(text.ends for text in marked):
        warnings.warn("the tokenizer has no end token (eos_token): the model will not learn to stop", stacklevel=3)
    examples: list[Example] = []
    truncated, across, cut, full = 0, 0, 0, []
    starts = rows.kind == "prompt"
    for number, (ids, learned, straddles) in enumerate(_tokenise(tokenizer, marked, starts), 1):
        truncated += len(ids) > max_length
        across += straddles
        cut += sum(learned[max_length:])
        labels = [i if learn else IGNORE for i, learn in zip(ids, learned, strict=True)][:max_length]
        labels[:1] = [IGNORE] * bool(labels)
        if all(label == IGNORE for label in labels):
            full.append(number)
        examples.append({"input_ids": ids[:max_length], "labels": labels})
    _report(rows, max_length, full=full, truncated=truncated, across=across)
    trained = sum(label != IGNORE for example in examples for label in example["labels"])
    return Encoded(examples, sum(len(e["input_ids"]) for e in examples), trained, truncated, rows.kind, cut)


def _report(rows: Rows, max_length: int, *, truncated: int, full: Sequence[int] = (), across: int = 0) -> None:
    """Refuse rows without a learned token; name in one warning each what was cut and what crosses a border."""
    whose = f"of {len(rows)} rows of {rows.name!r}"
    if full:
        raise InputError(
            f"max_length {max_length}: in {len(full)} {whose} (the first is {rows.place(full[0] - 1)}) no token is "
            f"left to learn, because the prompt alone fills it; expected room for the completion. Raise max_length, or "
            f"shorten or remove these rows."
        )
    if truncated:
        warnings.warn(
            f"{truncated} {whose} are longer than max_length {max_length}: their end is cut off",
            stacklevel=4,
        )
    if across:
        warnings.warn(
            f"in {across} {whose} one token holds the end of the prompt and the begin of "
            f"the completion, so that the model is trained after other tokens than it will be asked with; begin "
            f"the completions with a blank, or end the prompts (with a chat template: its answer's head) with a line "
            f"break",
            stacklevel=4,
        )


# What is learned of a row


def _mark_rows(
    rows: Rows, tokenizer: Any, template: str | None, named: str, system: str | None, completion_only: bool
) -> list[_Marked]:
    marked, last_only = [], 0
    ends = _end_texts(tokenizer)
    for row in rows.rows:
        conversation = _conversation(row, system) if template is not None or _lists(row) else None
        if conversation is None:
            marked.append(_plain(row, system, completion_only))
            continue
        if template is None:
            raise InputError(
                f"rows of {rows.name!r} are lists of messages and there is no chat template (chat_template {named!r}); "
                f"expected the path of a Jinja file, a tokenizer with a template, or rows of plain prompts."
            )
        chat = _Chat(tokenizer, template, named, ends)
        text, only = chat.mark(*conversation, completion_only)
        marked.append(text)
        last_only += only
    if last_only:
        warnings.warn(
            f"the chat template ({named!r}) writes earlier turns differently once a later one follows: in {last_only} "
            f"of {len(rows)} rows only the last assistant turn is learned",
            stacklevel=3,
        )
    return marked


def _lists(row: Mapping[str, Any]) -> bool:
    return "messages" in row or isinstance(row.get("prompt"), list)


def _plain(row: Mapping[str, Any], system: str | None, completion_only: bool) -> _Marked:
    if "text" in row:
        return _Marked(row["text"], ((0, len(row["text"])),))
    prompt = (system + "\n\n" if system else "") + row["prompt"]
    text = prompt + row["completion"]
    # Blanks at the end of a prompt join the first token of the answer; who asks leaves them to the model.
    return _Marked(text, ((len(prompt.rstrip(" ")) if completion_only else 0, len(text)),))


def _conversation(row: Mapping[str, Any], system: str | None) -> tuple[list[Message], int] | None:
    """The messages, and the number of the first that may be learned; ``None`` for plain text."""
    if "text" in row:
        return None
    if "messages" in row:
        messages, first = list(row["messages"]), 0
    elif _lists(row):
        messages, first = [*row["prompt"], *row["completion"]], len(row["prompt"])
    else:
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        first = 1
    if system and messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages], first + 1
    return messages, first


def _end_texts(tokenizer: Any) -> tuple[str, ...]:
    """The tokens with which a template may end a turn."""
    return tuple({*map(str, tokenizer.all_special_tokens), *map(str, tokenizer.get_added_vocab())} - {""})


@dataclass(frozen=True)
class _Chat:
    """A chat template at work. ``named``: what the user called it; ``ends``: texts of the special tokens."""

    tokenizer: Any
    template: str
    named: str
    ends: tuple[str, ...]

    def render(self, messages: Sequence[Message], ask: bool = False) -> str:
        try:
            return apply_template(self.tokenizer, self.template, messages, ask=ask)
        except Exception as error:  # templates are programs: they raise what they like
            roles = ", ".join(sorted({message["role"] for message in messages}))
            raise InputError(
                f"the chat template ({self.named!r}) failed ({type(error).__name__}: {error}); expected one that takes "
                f"the roles {roles}. Use another template, or no system message."
            ) from error

    def mark(self, messages: list[Message], first: int, completion_only: bool) -> tuple[_Marked, bool]:
        """The conversation with its learned spans, and whether only the last answer could be found."""
        answers = [k for k, message in enumerate(messages) if k >= first and message["role"] == "assistant"]
        if not completion_only:
            text = self.render(messages)
            end, closed = self._end(text)
            return _Marked(text[:end], ((0, end),), not closed), False
        messages = messages[: answers[-1] + 1] if answers else messages  # nothing is learned after the last answer
        text = self.render(messages)
        end, closed = self._end(text)
        spans = [self._span(messages, k, text) for k in answers]
        known = tuple(span for span in spans if span is not None)
        if not known or spans[-1] is None:
            raise InputError(
                f"the chat template ({self.named!r}) does not write a conversation so that it begins with its first "
                f"turns, so the answers cannot be found in it; expected a template that does. Use another template, or "
                f"rows of plain prompts with 'none'."
            )
        whole = len(known) == len(spans)
        return _Marked(text[:end], known if whole else known[-1:], not closed), not whole

    def _span(self, messages: list[Message], k: int, text: str) -> Span | None:
        """Characters of answer ``k``, its end token included; ``None`` where prefixes do not tell."""
        try:
            before = self.render(messages[:k], ask=True)
            after = text if k == len(messages) - 1 else self.render(messages[: k + 1])
        except InputError:  # some templates take whole conversations only
            return None
        if not (text.startswith(before) and text.startswith(after)) or len(after) <= len(before):
            return None
        return len(before), self._end(after)[0]

    def _end(self, text: str) -> tuple[int, bool]:
        """Where a turn ends, without the white space after its end token; whether it has an end token."""
        bare = text.rstrip()
        closed = bare.endswith(self.ends)
        return (len(bare), True) if closed else (len(text), False)


# Tokens


def _tokenise(tokenizer: Any, marked: Sequence[_Marked], starts: bool) -> Iterator[tuple[list[int], list[bool], bool]]:
    """Per text: token ids, which are learned, and whether a token lies across the begin of a span.

    ``starts``: a text that is learned from its first token gets a start token, so that this one has a context.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    head = list(tokenizer("a")["input_ids"])[:1]
    adds = bos is not None and head == [bos]
    for at in range(0, len(marked), CHUNK):
        some = marked[at : at + CHUNK]
        for text, (ids, learned, across) in zip(some, _pieces(tokenizer, some), strict=True):
            while bos is not None and ids[:2] == [bos, bos]:  # the template wrote one BOS, the text another
                ids, learned = ids[1:], learned[1:]
            needs = starts and bool(learned) and learned[0]
            first = bos if bos is not None else eos
            if (adds and ids[:1] != [bos]) or (needs and first is not None and ids[:1] != [first]):
                ids, learned = [bos if adds else first, *ids], [False, *learned]
            if text.ends and eos is not None and ids[-1:] != [eos]:
                ids, learned = [*ids, eos], [*learned, True]
            yield ids, learned, across


def _pieces(tokenizer: Any, marked: Sequence[_Marked]) -> Iterator[tuple[list[int], list[bool], bool]]:
    if not getattr(tokenizer, "is_fast", False):
        yield from (_slow(tokenizer, text) for text in marked)
        return
    made = tokenizer([m.text for m in marked], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for text, ids, offsets in zip(marked, made["input_ids"], made["offset_mapping"], strict=True):
        learned = [any(end > s and begin < e for s, e in text.spans) for begin, end in offsets]
        across = any(begin < s < end for s, _ in text.spans for begin, end in offsets)
        yield list(ids), learned, across


def _slow(tokenizer: Any, marked: _Marked) -> tuple[list[int], list[bool], bool]:
    """Without offsets: cut the whole's tokens where a beginning has the same ones, else tokenise part by part."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    whole = encode(marked.text)
    borders = [border for span in marked.spans for border in span]
    heads = [encode(marked.text[:border]) for border in borders[:-1]]
    if borders[-1] == len(marked.text) and all(whole[: len(ids)] == ids for ids in heads):
        cuts = [0, *(len(ids) for ids in heads), len(whole)]
        return whole, [k % 2 == 1 for k in range(len(cuts) - 1) for _ in range(cuts[k], cuts[k + 1])], False
    edges = [0, *borders, len(marked.text)]
    parts = [encode(marked.text[a:b]) if b > a else [] for a, b in pairwise(edges)]
    return [i for ids in parts for i in ids], [k % 2 == 1 for k, ids in enumerate(parts) for _ in ids], False


def _encode_classes(rows: Rows, tokenizer: Any, max_length: int) -> Encoded:
    examples, truncated = [], 0
    for row in rows.rows:
        texts = [[row[key]] for key in ("text", "text_pair") if key in row]  # lists: a lone "" counts as no second text
        made = tokenizer(*texts, truncation=False, verbose=False)
        if len(made["input_ids"][0]) > max_length:
            truncated += 1
            made = tokenizer(*texts, truncation=True, max_length=max_length, verbose=False)
        examples.append({**{key: list(value[0]) for key, value in made.items()}, "labels": row["label"]})
    _report(rows, max_length, truncated=truncated)
    return Encoded(examples, sum(len(e["input_ids"]) for e in examples), len(examples), truncated, rows.kind)
