"""From rows to results: one task, its prompt formats, and the record of the whole comparison."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from catchment import models
from catchment.capabilities import JUDGED_SCORERS, Task, gates
from catchment.commands.compare.allocation import Plan
from catchment.commands.compare.extras import Extras, short_extras
from catchment.commands.compare.pair import Pair
from catchment.commands.compare.record import Comparison
from catchment.commands.compare.state import State
from catchment.commands.compare.tables import Tables
from catchment.measuring import POLICY, environment, flips, format_result, task_result, verdict_sentence
from catchment.records import Drift, FormatResult, Room, TaskResult


def result_of(pair: Pair, state: State, task: Task) -> TaskResult:
    """The verdict on a task, from the rows of its default format measured so far."""
    s, plan = pair.settings, state.plan
    base, tuned = state.tables.both(task)
    warnings = list(pair.task_notes[task.name])
    missing = plan.of(task.name).items - len(base) if s.drop_long and plan.frozen else 0
    if missing > 0:
        warnings.append(f"{missing} items longer than the context were left out")
    return task_result(task, base, tuned, margin=s.margin, alpha=s.alpha, family=len(pair.tasks), warnings=warnings)


def _format_results(pair: Pair, tables: Tables, task: Task) -> tuple[FormatResult, ...]:
    """All prompt formats, on the items that they share; empty when only one was measured."""
    rest = [form for form in task.formats[1 : pair.settings.formats] if tables.of("tuned", task, form.name)]
    if not rest:
        return ()
    shared = tables.of("tuned", task, rest[0].name)
    results = []
    for form in [task.formats[0], *rest]:
        base, tuned = tables.both(task, form.name)
        base = {item: row for item, row in base.items() if item in shared}
        results.append(format_result(form, base, tuned, alpha=pair.settings.alpha))
    return tuple(results)


def comparison_of(
    pair: Pair, state: State, drift: Drift | None, extras: Extras, rooms: tuple[Room, ...], notes: Sequence[str]
) -> Comparison:
    """The record. Refuses two models of equal weights whose rows differ.

    Args:
        notes: What the steps had to say.
    """
    s, plan, tables = pair.settings, state.plan, state.tables
    _check_twins(pair, tables, drift)
    measured = tables.measured(pair.tasks)
    results = tuple(
        dataclasses.replace(result_of(pair, state, task), formats=_format_results(pair, tables, task))
        for task in measured
    )
    missing = tuple(task.name for task in pair.tasks if task not in measured)
    headline, verdict = verdict_sentence(results, s.margin, s.alpha, unmeasured=missing)
    warnings = [*pair.notes, *notes, *_short(plan, missing), *short_extras(pair, plan)]
    return Comparison(
        base=pair.base.card,
        tuned=pair.tuned.card,
        tasks=results,
        verdict=verdict,
        headline=headline,
        margin=s.margin,
        alpha=s.alpha,
        flips=tuple(
            flip for task in measured for flip in flips(task, task.formats[0], *tables.both(task))
        ),
        texts=extras.texts,
        agreements=extras.agreements,
        drift=drift,
        rooms=rooms,
        unmeasured=missing,
        conditions=_conditions(pair, plan),
        plan={**json.loads(plan.to_json()), "sentence": plan.sentence()},
        warnings=tuple(dict.fromkeys([*warnings, *pair.base.notes, *pair.tuned.notes])),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def _short(plan: Plan, unmeasured: Sequence[str]) -> list[str]:
    """What a reader must know of a plan that the budget cut."""
    lines = [f"{name}: not measured: the budget ended before its first item" for name in unmeasured]
    if plan.cut:
        lines.append("the budget ended before the planned items did: fewer items than planned were measured")
    return lines


def _check_twins(pair: Pair, tables: Tables, drift: Drift | None) -> None:
    base, tuned = (
        {task.name: list(tables.of(role, task).values()) for task in pair.tasks} for role in ("base", "tuned")
    )
    gates.check_twins(base, tuned, same_weights=_same_weights(pair, drift))


def _same_weights(pair: Pair, drift: Drift | None) -> bool:
    """Equal hashes, or two plain models that differ in nothing but in what they tie. An adapter that moves nothing is
    perhaps not at work, so its base is another model."""
    if pair.base.card.weights_hash == pair.tuned.card.weights_hash:
        return True
    if drift is None or drift.changed:
        return False
    return not any(models.named_weights(subject.loaded.model, "adapter") for subject in pair.subjects)


def _conditions(pair: Pair, plan: Plan) -> dict[str, Any]:
    s = pair.settings
    return {
        "sampling": "items are a sample of a population; the statement is about these two models",
        "intervals": f"paired over items, simultaneous over {len(pair.tasks)} tasks (Bonferroni)",
        "chat_template": pair.base.asked.chat_template,
        "system": pair.base.asked.system,
        "seed": s.seed,
        "dtype": pair.base.card.dtype,
        "attention": pair.base.card.attention,
        "batch_policy": f"{POLICY}, {plan.batch_tokens} padded tokens",
        "generated_tasks": [t.name for t in pair.tasks if t.scorer in JUDGED_SCORERS],
        "task_hashes": {t.name: t.hash() for t in pair.tasks},
        **environment(pair.base.card),
    }
