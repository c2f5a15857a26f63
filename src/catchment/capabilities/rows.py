"""From prepared items to rows, batch by batch: the one path by which everything here is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Literal

import torch

from catchment.capabilities import engine as engines
from catchment.capabilities import scorers, speed
from catchment.capabilities.engine import Engine, Prefix
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
    rows = []
    for e, row in zip(batch, _scored(engine, prefix, task, batch), strict=True):
        try:
            rows.append(row())
        except NonFiniteError:
            if non_finite == "raise":
                raise
            if len(batch) > 1:  # alone, in case that the outputs of another item spoiled these
                rows += _score_batch(engine, prefix, task, [e], non_finite)
            else:
                rows.append(Row(e.item.id, 0.0, "", flags=(NON_FINITE,)))
    return rows


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
        _difference(a, b) / len(ids_)
        for x, y, group in zip(packed, plain, answers, strict=True)
        for a, b, ids_ in zip(x, y, group, strict=True)
    )
    return None if worst <= tolerance else f"packed log-probabilities differ by {worst:.2g} per token"


def _difference(a: float, b: float) -> float:
    """Where neither is finite the weights are broken, which says nothing about the layout."""
    if math.isfinite(a) and math.isfinite(b):
        return abs(a - b)
    return math.inf if math.isfinite(a) or math.isfinite(b) else 0.0
