"""What has to be run, before any model is: items as tokens, their batches, and what these cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from catchment.capabilities import gates, prompts
from catchment.capabilities.engine import common_prefix
from catchment.capabilities.prompts import Encoded, PromptOptions
from catchment.capabilities.tasks import GENERATED_SCORERS, Format, Item, Task
from catchment.errors import InputError, TaskError, did_you_mean


class AllTooLongError(TaskError):
    """Every prompt that was given is longer than the context."""


def format_of(task: Task, name: str | None) -> Format:
    """The task's format of this name; the first one for ``None``."""
    if name is None:
        return task.formats[0]
    for form in task.formats:
        if form.name == name:
            return form
    names = [form.name for form in task.formats]
    raise InputError(f"task {task.name!r} has no format {name!r}; it has {names}.{did_you_mean(name, names)}")


def batches(encoded: Sequence[Encoded], prefix: int, batch_tokens: int) -> list[list[int]]:
    """Indices of the items of each batch: sorted by length, at most ``batch_tokens`` padded tokens each.

    Depends on the items and ``batch_tokens`` alone, so that a resumed run forms the same batches.
    """
    cost = [(len(e.prompt) - prefix, sum(len(a) - 1 for a in e.answers)) for e in encoded]
    order = sorted(range(len(encoded)), key=lambda i: (*cost[i], i))
    groups: list[list[int]] = []
    wide = deep = 0
    for i in order:
        wide, deep = max(wide, cost[i][0]), max(deep, cost[i][1])
        if groups and (len(groups[-1]) + 1) * (wide + deep) <= batch_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
            wide, deep = cost[i]
    return groups


@dataclass(frozen=True)
class Work:
    """Tokens of some items, behind the prefix that they share: read at once, and generated one by one (expected)."""

    read: int
    generated: float = 0.0


def workload(task: Task, encoded: Sequence[Encoded], prefix: int) -> Work:
    """What items ask of a model. An answer that is generated is expected to be as long as the right ones are in the
    mean; where none is known, as long as it may be."""
    read = sum(len(e.prompt) - prefix + sum(len(a) - 1 for a in e.answers) for e in encoded)
    if task.scorer not in (*GENERATED_SCORERS, "agreement"):
        return Work(read)
    known = [len(a) for e in encoded for a in e.answers]
    expected = min(task.max_new_tokens, (sum(known) / len(known) + 1) if known else task.max_new_tokens)
    return Work(read, expected * len(encoded))


def cost_tokens(task: Task, encoded: Sequence[Encoded], prefix: int) -> int:
    """Tokens that a task costs: prompts behind the shared prefix, answers, and expected generation.

    A generated token is counted as 3: decoding reads all weights for one token a row.
    """
    work = workload(task, encoded, prefix)
    return prefix + work.read + int(3 * work.generated)


@dataclass(frozen=True)
class Prepared:
    """A task encoded for one tokenizer under one format: what has to be run, before any model is.

    Attributes:
        prefix: Tokens that all prompts share (0: too few to be worth it).
        longest: Most tokens that one row can hold, padding, all answers and the generation included.
        tokens: Estimated cost; see :func:`cost_tokens`.
        dropped: Items longer than the context, left out on request.
    """

    task: Task
    form: Format
    encoded: tuple[Encoded, ...]
    prefix: int
    longest: int
    tokens: int
    dropped: tuple[str, ...] = ()


def prepare(
    tokenizer: Any,
    task: Task,
    *,
    format: str | None = None,
    items: Sequence[Item] | None = None,
    chat_template: str = "auto",
    system: str | None = None,
    prompt_options: PromptOptions | None = None,
    context: int | None = None,
    drop_long: bool = False,
) -> Prepared:
    """Encode, check lengths, find the shared prefix. No forward pass.

    How the items are put is in ``prompt_options``, or else in ``chat_template`` and ``system``.

    Raises:
        GateError: prompts longer than ``context`` (unless ``drop_long``).
        AllTooLongError: with ``drop_long``, no prompt is left.
    """
    form, asked = format_of(task, format), PromptOptions.of(prompt_options, chat_template, system)
    items = task.items if items is None else items
    if task.scorer == "text":
        encoded = _encode_passages(tokenizer, items)
        return Prepared(task, form, tuple(encoded), 0, context or 0, sum(len(e.answers[0]) for e in encoded))
    encoded = prompts.encode(tokenizer, task, form, items=items, prompt_options=asked)
    generated = task.max_new_tokens if task.scorer in (*GENERATED_SCORERS, "agreement") else 0
    lengths = {
        e.item.id: len(e.prompt) + max([generated, *(len(a) - 1 for a in e.answers)], default=0) for e in encoded
    }
    dropped: tuple[str, ...] = ()
    if drop_long and context is not None:
        dropped = tuple(name for name, n in lengths.items() if n > context)
        encoded = [e for e in encoded if lengths[e.item.id] <= context]
        if not encoded:
            raise AllTooLongError(f"task {task.name!r}: every prompt is longer than the context of {context} tokens.")
    else:
        gates.check_lengths(task, lengths, context)
    prefix = common_prefix([e.prompt for e in encoded])
    prefix = prefix if prefix >= 4 and len(encoded) > 1 else 0
    region = max(sum(len(a) - 1 for a in e.answers) for e in encoded)
    longest = max(len(e.prompt) for e in encoded) + region + generated
    return Prepared(task, form, tuple(encoded), prefix, longest, cost_tokens(task, encoded, prefix), dropped)


def _encode_passages(tokenizer: Any, items: Sequence[Item]) -> list[Encoded]:
    """The passage as one answer after the start token; after its own first token where the tokenizer has no such."""
    start = prompts.start_token(tokenizer)
    encoded = []
    for item, ids in zip(items, prompts.encode_texts(tokenizer, [i.prompt for i in items]), strict=True):
        first, rest = (start, ids) if start is not None and ids[0] != start else (ids[0], ids[1:])
        if not rest:
            raise TaskError(f"item {item.id}: the passage {item.prompt!r} has no token to score; expected some text.")
        encoded.append(Encoded(item, item.prompt, (first,), (tuple(rest),), (len(item.prompt.encode()),)))
    return encoded
