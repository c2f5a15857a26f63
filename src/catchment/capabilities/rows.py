"""From prepared items to rows, batch by batch: the one path by which everything here is measured."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from typing import Literal

import torch
from torch import nn

from catchment.capabilities import engine as engines
from catchment.capabilities import scorers, speed
from catchment.capabilities.engine import Engine, Ids, Prefix
from catchment.capabilities.generation import Answer, generate
from catchment.capabilities.prepared import Prepared, batches, cost_tokens
from catchment.capabilities.prompts import Encoded
from catchment.capabilities.scores import OnRows
from catchment.capabilities.tasks import CHOICE_SCORERS, Item, Task
from catchment.errors import NonFiniteError
from catchment.models import without_trace
from catchment.records import Row

NON_FINITE = "non-finite"
"""Flag of a row that stands for outputs that are not finite."""
NonFinite = Literal["raise", "isolate"]


def run(
    engine: Engine,
    prepared: Prepared,
    *,
    done: Collection[str] = (),
    on_rows: OnRows | None = None,
    non_finite: NonFinite = "raise",
) -> list[Row]:
    """Score the items that are not in ``done``, batch by batch. A batch with any item left is run whole, so that an
    item meets the same batch in a resumed run; rows already done are not returned again.

    Args:
        on_rows: Called after every batch with its rows and the tokens it cost.
        non_finite: What becomes of an item where the model's outputs are not finite. ``"raise"``: an error; so a model
            is asked at its own weights. ``"isolate"``: its row has score 0, no companion and the flag
            :data:`NON_FINITE`, and the other items of its batch keep the rows they have; so weights are asked that
            were moved, where such an output is one more thing that was lost.

    Raises:
        NonFiniteError: A log-probability, or the largest logit at a generated token, is NaN or infinite.
    """
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

        def score(indices: list[int]) -> list[Row]:
            return _score_batch(engine, prefix, task, [encoded[i] for i in indices], non_finite)

        for group in todo:
            fresh = [row for row in speed.halving_on_oom(score, group, engine.notes) if row.item not in done]
            rows += fresh
            if on_rows is not None:
                on_rows(fresh, cost_tokens(task, [encoded[i] for i in group], prepared.prefix) - prepared.prefix)
    return rows


def _score_batch(
    engine: Engine, prefix: Prefix, task: Task, batch: Sequence[Encoded], non_finite: NonFinite
) -> list[Row]:
    """Items that share a row of the batch spoil each other where one has outputs that are not finite. Those that have
    finite ones alone get the rows of this batch with tokens of a sound item in the place of the others."""
    rows = _rows_or_errors(engine, prefix, task, batch)
    doubted = [i for i, row in enumerate(rows) if isinstance(row, NonFiniteError)]
    if doubted and len(batch) > 1:
        for i in doubted:
            [rows[i]] = _rows_or_errors(engine, prefix, task, [batch[i]])
        sick = [i for i in doubted if isinstance(rows[i], NonFiniteError)]
        if 0 < len(sick) < len(doubted):
            sound = next(e for i, e in enumerate(batch) if i not in sick)
            healed = [_in_place_of(e, sound, prefix) if i in sick else e for i, e in enumerate(batch)]
            again = _rows_or_errors(engine, prefix, task, healed)
            rows = [row if i in sick or isinstance(new, NonFiniteError) else new
                    for i, (row, new) in enumerate(zip(rows, again, strict=True))]  # fmt: skip
    return [_row_of(e, row, non_finite) for e, row in zip(batch, rows, strict=True)]


def _row_of(e: Encoded, row: Row | NonFiniteError, non_finite: NonFinite) -> Row:
    if isinstance(row, Row):
        return row
    if non_finite == "raise":
        raise row
    return Row(e.item.id, 0.0, "", flags=(NON_FINITE,))


def _rows_or_errors(engine: Engine, prefix: Prefix, task: Task, batch: Sequence[Encoded]) -> list[Row | NonFiniteError]:
    rows: list[Row | NonFiniteError] = []
    for make in _scored(engine, prefix, task, batch):
        try:
            rows.append(make())
        except NonFiniteError as error:
            rows.append(error)
    return rows


def _in_place_of(e: Encoded, sound: Encoded, prefix: Prefix) -> Encoded:
    """As many tokens as ``e`` has, behind the same prefix, of another item."""
    tokens = cycle(sound.prompt[prefix.length :])

    def other(ids: Ids) -> tuple[int, ...]:
        return tuple(islice(tokens, len(ids)))

    prompt = (*e.prompt[: prefix.length], *other(e.prompt[prefix.length :]))
    return replace(e, prompt=prompt, answers=tuple(map(other, e.answers)))


def _scored(engine: Engine, prefix: Prefix, task: Task, batch: Sequence[Encoded]) -> list[Callable[[], Row]]:
    """The model's outputs for a batch, and per item what makes its row of them, or raises."""
    if task.scorer == "text":
        return [partial(_text, engine, e) for e in batch]
    ids = [e.prompt for e in batch]
    answers = [e.answers for e in batch]
    if task.scorer in CHOICE_SCORERS:
        values = engines.answer_logprobs(engine, prefix, ids, answers)
        return [partial(scorers.score_choice, e, v, task.scorer) for e, v in zip(batch, values, strict=True)]
    said = generate(engine, prefix, ids, golds=answers, max_new_tokens=task.max_new_tokens, stop=task.stop)
    return [partial(_answered, task, e.item, answer) for e, answer in zip(batch, said, strict=True)]


def _answered(task: Task, item: Item, answer: Answer) -> Row:
    scorers.check_generated(item, answer.finite)
    return scorers.answer_row(task, item, answer.text, answer.cut, answer.gold_logprob)


def _text(engine: Engine, passage: Encoded) -> Row:
    """Windows of the context length without overlap, each after the start token."""
    limit = (engines.context_length(engine.model) or len(passage.answers[0]) + 1) - 1
    ids = passage.answers[0]
    windows = [ids[at : at + limit] for at in range(0, len(ids), limit)]
    values = engines.plain_logprobs(engine, [passage.prompt] * len(windows), [[w] for w in windows])
    return scorers.text_row(passage.item, sum(v[0] for v in values), len(windows) > 1)


def non_finite_note(rows: Iterable[Row]) -> str | None:
    """A sentence for the reader on how many of the rows are flagged; ``None`` where none is."""
    flags = [NON_FINITE in row.flags for row in rows]
    if not any(flags):
        return None
    return f"{sum(flags)} of {len(flags)} outputs are not finite; they count as 0"


_FLAWS: weakref.WeakKeyDictionary[nn.Module, tuple[object, str | None]] = weakref.WeakKeyDictionary()


def settle_path(engine: Engine, prepared: Prepared) -> None:
    """Packed or plain: by what the architecture takes, and by a check against the plain path.

    The check is kept for each model object as long as its forward function, attention, type and device stay.
    """
    if not engine.packed or prepared.task.scorer == "text":
        return
    reason = engines.supports_packing(engine.model, prepared.longest)
    if reason is None and not engine.checked:
        reason = _flaw(engine, prepared)
        engine.checked = True
    if reason is not None:
        engine.packed = False
        name = type(engine.base).__name__
        engine.notes.append(f"the packed path is off for {name}, so the slower plain path was used: {reason}")


def _flaw(engine: Engine, prepared: Prepared) -> str | None:
    """Why the packed layout does not work for this model; ``None`` when it does."""
    forward = getattr(engine.base.forward, "__func__", engine.base.forward)
    attention = getattr(engine.base.config, "_attn_implementation", None)
    state = id(forward), attention, engine.dtype, engine.device
    seen = _FLAWS.get(engine.model)
    if seen is not None and seen[0] == state:
        return seen[1]
    check = _self_check(engine, prepared)
    if check.finite:
        _FLAWS[engine.model] = state, check.flaw
    return check.flaw


@dataclass(frozen=True)
class _Check:
    """``finite``: the numbers compared were, so that they say something about the layout."""

    flaw: str | None
    finite: bool = True


def _self_check(engine: Engine, prepared: Prepared) -> _Check:
    """Packed against one row per answer: equal within rounding, or the reason.

    The texts are made from the task's own tokens so that padding, rows of several items, branches of several tokens
    and a shared prefix are always in play, whatever this task happens to need.
    """
    room = min(32, (engines.context_length(engine.model) or 32) - 4)
    tokens = (max((e.prompt for e in prepared.encoded), key=len) * room)[:room]
    ids = [tokens, tokens[: max(1, room - 3)]]
    answers = [[tokens[:3], tokens[1:3]], [tokens[2:4], tokens[:2], tokens[1:2]]]
    with without_trace(engine.model):
        try:
            prefix = engines.make_prefix(engine, tokens[: room // 2])
            packed = engines.packed_forward(engine, prefix, ids * 2, answers * 2).logprobs
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            reason = f"the packed layout fails on {type(engine.base).__name__} ({type(error).__name__}: {error})"
            return _Check(reason[:300])
        plain = engines.plain_logprobs(engine, ids, answers)
        tolerance = _tolerance(engine, tokens)
    pairs = [
        (a / len(answer), b / len(answer))
        for x, y, group in zip(packed, plain * 2, answers * 2, strict=True)
        for a, b, answer in zip(x, y, group, strict=True)
    ]
    worst = max(_difference(a, b) for a, b in pairs)
    flaw = None if worst <= tolerance else f"packed log-probabilities differ by {worst:.2g} per token"
    return _Check(flaw, all(math.isfinite(b) for _, b in pairs))


def _tolerance(engine: Engine, tokens: Ids) -> float:
    """Nats per token by which two ways to compute the same may differ. In half precision a logit of size s is rounded
    by up to s * eps / 2, and so is the sum of what made it."""
    if engine.dtype in (torch.float32, torch.float64):
        return 2e-4
    logits, _ = engines.last_logits(engine, 1, input_ids=torch.tensor([list(tokens)], device=engine.device))
    largest = float(logits[logits.isfinite()].float().abs().max()) if logits.isfinite().any() else 0.0
    return max(0.15, 2 * torch.finfo(engine.dtype).eps * largest)


def _difference(a: float, b: float) -> float:
    """Where neither is finite the weights are broken, which says nothing about the layout."""
    if math.isfinite(a) and math.isfinite(b):
        return abs(a - b)
    return math.inf if math.isfinite(a) or math.isfinite(b) else 0.0
