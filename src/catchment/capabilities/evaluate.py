"""``evaluate(model, task) -> Scores``: the one path by which everything here is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from catchment.capabilities import classifiers, gates, prompts, scorers, speed
from catchment.capabilities import engine as engines
from catchment.capabilities.engine import Engine, Prefix
from catchment.capabilities.order import seeded_order
from catchment.capabilities.prompts import Encoded, PromptOptions
from catchment.capabilities.tasks import CHOICE_SCORERS, GENERATED_SCORERS, Format, Item, Task
from catchment.errors import InputError, ModelError, TaskError, did_you_mean
from catchment.models import without_trace
from catchment.records import Row

OnRows = Callable[[list[Row], int], None]
"""Called after every batch with its rows and the tokens it cost."""


class AllTooLongError(TaskError):
    """Every prompt that was given is longer than the context."""


@dataclass(frozen=True)
class Scores:
    """One row per item, in the order of the task's items, with the conditions they were measured under."""

    task: str
    format: str
    rows: tuple[Row, ...]
    chance: float
    conditions: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Mean score; NaN without rows (all items were in ``done``)."""
        return sum(row.score for row in self.rows) / len(self.rows) if self.rows else math.nan

    def __repr__(self) -> str:
        return f"Scores({self.task}: {self.mean:.3f}, n={len(self.rows)}, chance={self.chance:.2f})"


def sample(items: Sequence[Item], limit: int | None, seed: int) -> tuple[Item, ...]:
    """A seeded random subset in the task's order; a larger limit contains every smaller one.

    >>> len(sample([Item(str(i), gold="x") for i in range(10)], 4, seed=0))
    4
    """
    if limit is None or limit >= len(items):
        return tuple(items)
    if limit < 1:
        raise InputError(f"limit {limit}: expected at least 1 item, or None for all.")
    chosen = {item.id for item in seeded_order(items, f"{seed}:")[:limit]}
    return tuple(item for item in items if item.id in chosen)


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
    prefix = engines.common_prefix([e.prompt for e in encoded])
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


def run(
    engine: Engine,
    prepared: Prepared,
    *,
    done: Collection[str] = (),
    on_rows: OnRows | None = None,
) -> list[Row]:
    """Score the items that are not in ``done``, batch by batch. A batch with any item left is run whole, so that an
    item meets the same batch in a resumed run; rows already done are not returned again."""
    encoded, task = prepared.encoded, prepared.task
    rows: list[Row] = []
    todo = [
        group
        for group in batches(encoded, prepared.prefix, engine.batch_tokens)
        if any(encoded[i].item.id not in done for i in group)
    ]
    if not todo:
        return rows
    settle_path(engine, prepared)
    with without_trace(engine.model):
        usable = prepared.prefix if engine.packed else 0
        prefix = engines.make_prefix(engine, encoded[0].prompt[:usable]) if usable else Prefix(0)
        for group in todo:

            def score(indices: list[int]) -> list[Row]:
                return _score_batch(engine, prefix, task, [encoded[i] for i in indices])

            fresh = speed.halving_on_oom(score, group, engine.notes)
            fresh = [row for row in fresh if row.item not in done]
            rows += fresh
            if on_rows is not None:
                on_rows(fresh, cost_tokens(task, [encoded[i] for i in group], prepared.prefix) - prepared.prefix)
    return rows


def _score_batch(engine: Engine, prefix: Prefix, task: Task, batch: list[Encoded]) -> list[Row]:
    if task.scorer == "text":
        return [_text(engine, e) for e in batch]
    ids = [e.prompt for e in batch]
    answers = [e.answers for e in batch]
    if task.scorer in CHOICE_SCORERS:
        found = engines.answer_logprobs(engine, prefix, ids, answers)
        return [scorers.score_choice(e, values, task.scorer) for e, values in zip(batch, found, strict=True)]
    texts = engines.generate(engine, prefix, ids, golds=answers, max_new_tokens=task.max_new_tokens, stop=task.stop)
    return [scorers.answer_row(task, e.item, a.text, a.cut, a.gold_logprob) for e, a in zip(batch, texts, strict=True)]


def _text(engine: Engine, passage: Encoded) -> Row:
    """Windows of the context length without overlap, each after the start token."""
    limit = (engines.context_length(engine.model) or len(passage.answers[0]) + 1) - 1
    ids = passage.answers[0]
    windows = [ids[at : at + limit] for at in range(0, len(ids), limit)]
    values = engines.plain_logprobs(engine, [passage.prompt] * len(windows), [[w] for w in windows])
    return scorers.text_row(passage.item, sum(v[0] for v in values), len(windows) > 1)


def settle_path(engine: Engine, prepared: Prepared) -> None:
    """Packed or plain: by what the architecture takes, and once per engine by a check against the plain path."""
    if not engine.packed or prepared.task.scorer == "text":
        return
    reason = engines.supports_packing(engine.model, prepared.longest)
    if reason is None and not engine.checked:
        reason = _self_check(engine, prepared)
        engine.checked = True
    if reason is not None:
        engine.packed = False
        name = type(engine.base).__name__
        engine.notes.append(f"the packed path is off for {name}, so the slower plain path was used: {reason}")


def _self_check(engine: Engine, prepared: Prepared) -> str | None:
    """Packed against one row per answer: equal within rounding, or the reason.

    The texts are made from the task's own tokens so that padding, branches of several tokens and a shared prefix are
    always in play, whatever this task happens to need.
    """
    room = min(32, (engines.context_length(engine.model) or 32) - 4)
    tokens = (max((e.prompt for e in prepared.encoded), key=len) * room)[:room]
    ids = [tokens, tokens[: max(1, room - 3)]]
    answers = [[tokens[:3], tokens[1:3]], [tokens[2:4], tokens[:2], tokens[1:2]]]
    tolerance = 2e-4 if engine.dtype in (torch.float32, torch.float64) else 0.15
    with without_trace(engine.model):
        try:
            prefix = engines.make_prefix(engine, tokens[: room // 2])
            packed = engines.packed_forward(engine, prefix, ids, answers).logprobs
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            return f"the packed layout fails on {type(engine.base).__name__} ({type(error).__name__}: {error})"[:300]
        plain = engines.plain_logprobs(engine, ids, answers)
    worst = max(
        abs(a - b) / len(ids_)
        for x, y, group in zip(packed, plain, answers, strict=True)
        for a, b, ids_ in zip(x, y, group, strict=True)
    )
    return None if worst <= tolerance else f"packed log-probabilities differ by {worst:.2g} per token"


def make_engine(model: Any, tokenizer: Any, batch_tokens: int | None = None) -> Engine:
    """An engine for this model; ``batch_tokens=None`` measures the best size on this machine.

    Raises:
        TaskError: not a causal language model.
        ModelError: an adapter of virtual tokens, which has no place for shared prompts.
    """
    check_causal(model)
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ModelError(
            f"{type(model).__name__}: its adapter puts virtual tokens before the text; expected an adapter that "
            f"changes weights (LoRA and its kin)."
        )
    engine = Engine(model, tokenizer)
    engine.batch_tokens = batch_tokens or speed.measure_speed(engine).batch_tokens
    return engine


def check_causal(model: Any) -> None:
    """Refuse what does not predict the next token.

    Raises:
        TaskError: an encoder-decoder, a masked language model or a classifier.
    """
    inner = getattr(model, "get_base_model", lambda: model)()
    if getattr(inner.config, "is_encoder_decoder", False) or not inner.can_generate():
        raise TaskError(
            f"{type(inner).__name__} cannot be scored by its next-token probabilities; expected a causal language "
            f"model (...ForCausalLM). Classifiers take tasks with scorer 'classify'."
        )


def unwrap(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The model and tokenizer of a :class:`~catchment.models.LoadedModel`, or what was given.

    Raises:
        GateError: Weights of a loaded model are not in its files and were initialised at random.
    """
    if hasattr(model, "card"):
        gates.check_model(model.card.name, model.newly_initialised, ())
        return model.model, tokenizer if tokenizer is not None else model.tokenizer
    return model, tokenizer


def evaluate(
    model: Any,
    task: Task,
    *,
    tokenizer: Any = None,
    format: str | None = None,
    chat_template: str = "auto",
    system: str | None = None,
    prompt_options: PromptOptions | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_tokens: int | None = None,
    drop_long: bool = False,
    done: Collection[str] = (),
    on_rows: OnRows | None = None,
) -> Scores:
    """Score a model on a task: one row per item.

    Prompts are computed once for all choices of an item and a prefix that all items share once for all; batches are
    sorted by length; an item's log-probabilities do not depend on its batch (1e-4 in fp32). Leaves no trace: training
    mode and random states are restored. Cost: about one forward pass over the prompts' own tokens and the answers.

    Args:
        model: a :class:`~catchment.models.LoadedModel`, or a transformers model (then give ``tokenizer``).
        task: what to measure; see :class:`~catchment.capabilities.Task`.
        format: name of one of the task's formats; the first by default.
        chat_template, system: how the model is asked; see :class:`~catchment.capabilities.PromptOptions`.
        prompt_options: the two in one object, instead of them.
        limit: score a seeded random subset of this many items.
        batch_tokens: padded tokens per forward pass; measured when ``None``.
        drop_long: leave out items that do not fit into the context (they are named in the warnings).
        done: ids of items not to score again; with ``batch_tokens`` given, the rows that are left are bit for bit
            those of one run without pause.
        on_rows: called after every batch.

    Raises:
        GateError: the measurement would look like a result and be none (see :mod:`catchment.capabilities.gates`).
        TaskError: the task cannot be encoded or scored, or the model is of the wrong kind.
        InputError: no tokenizer, an unknown format, a limit below 1.

    Example:
        >>> scores = evaluate(model, task, tokenizer=tokenizer, limit=200)  # doctest: +SKIP
        >>> scores.mean  # doctest: +SKIP
        0.71
    """
    model, tokenizer = unwrap(model, tokenizer)
    asked = PromptOptions.of(prompt_options, chat_template, system)
    warnings = gates.check_task(task)
    items = sample(task.items, limit, seed)
    if task.scorer == "classify":
        return classifiers.evaluate(model, tokenizer, task, items, on_rows=on_rows, done=done)
    if task.scorer == "agreement":
        raise TaskError(
            f"task {task.name!r}: agreement is between two models; use capabilities.agreement(base, tuned, task)."
        )
    if tokenizer is None:
        raise InputError(f"evaluate({type(model).__name__}, ...): expected tokenizer=..., because the model has none.")
    check_causal(model)
    prepared = prepare(
        tokenizer, task, format=format, items=items, prompt_options=asked,
        context=engines.context_length(model), drop_long=drop_long,
    )  # fmt: skip
    engine = make_engine(model, tokenizer, batch_tokens)
    rows = {row.item: row for row in run(engine, prepared, done=done, on_rows=on_rows)}
    ordered = tuple(rows[item.id] for item in items if item.id in rows)
    if prepared.dropped:
        names = ", ".join(prepared.dropped[:3]) + (", ..." if len(prepared.dropped) > 3 else "")
        warnings.append(f"{len(prepared.dropped)} items longer than the context were left out ({names})")
    note = asked.note_for(tokenizer, task)
    warnings += gates.check_rows(task, ordered) + engine.notes + ([note] if note else [])
    conditions = {
        "format": prepared.form.name,
        "chat_template": asked.chat_template,
        "system": asked.system_for(task),
        "batch_tokens": engine.batch_tokens,
        "packed": engine.packed,
        "shared_prefix": prepared.prefix,
        "seed": seed,
        "limit": limit,
    }
    return Scores(task.name, prepared.form.name, ordered, task.chance_level, conditions, tuple(warnings))
