"""Two judgements of the same task side by side, and the items that are decided differently."""

from __future__ import annotations

import dataclasses
from typing import Any

import harness
import verdicts

from catchment.capabilities import CHOICE_SCORERS, JUDGED_SCORERS, Item, Task
from catchment.records import Row, TaskResult

NEAR = 1e-3
"""Two choices whose (normalised) log-probabilities are this close in either evaluation: rounding may decide them."""


def task_row(
    task: Task, items: list[Item], tables: list[dict[str, Any]], result: TaskResult, margin: float
) -> dict[str, Any]:
    """One line of the table: our numbers, theirs, and whether the verdicts agree.

    tables: our rows for base and tuned, then lm-eval's for base and tuned, each by item id.
    """
    theirs = [[harness.right(task, table[i.id], i) for i in items] for table in tables[2:]]
    chance = sum(1 / len(i.choices) for i in items) / len(items) if task.scorer in CHOICE_SCORERS else 0.0
    interval = result.difference
    opinion = verdicts.opinion(
        *theirs, chance=chance, generated=task.scorer in JUDGED_SCORERS, margin=margin,
        alpha=(1 - interval.level) * interval.family, family=interval.family,
    )  # fmt: skip
    differing = [
        differing_item(task, item, role, tables[k][item.id], tables[k + 2][item.id])
        for k, role in enumerate(("base", "tuned"))
        for item, score in zip(items, theirs[k], strict=True)
        if int(tables[k][item.id].score) != score
    ]
    return {
        "task": task.name,
        "scorer": task.scorer,
        "n": len(items),
        "ours": {"base": result.base, "tuned": result.tuned, "interval": [interval.low, interval.high],
                 "lost": result.flips_lost, "gained": result.flips_gained, "verdict": result.verdict},
        "independent": dataclasses.asdict(opinion),
        "level": interval.level,
        "decided_differently": differing,
        "largest_logprob_gap": largest_gap(task, items, tables),
        "answers_with_other_text": other_texts(task, items, tables),
        "agree": result.verdict == opinion.verdict,
    }  # fmt: skip


def largest_gap(task: Task, items: list[Item], tables: list[dict[str, Any]]) -> float | None:
    """Largest difference of a summed log-likelihood between the two evaluations, in nats."""
    if task.scorer not in CHOICE_SCORERS:
        return None
    return max(
        abs(a - b)
        for k in (0, 1)
        for i in items
        for a, b in zip(tables[k][i.id].logprobs, tables[k + 2][i.id]["logprobs"], strict=True)
    )


def other_texts(task: Task, items: list[Item], tables: list[dict[str, Any]]) -> int | None:
    """Generated answers, of both models, that are not the same text."""
    if task.scorer in CHOICE_SCORERS:
        return None
    return sum(
        tables[k][i.id].prediction.strip() != harness.answer_of(task, tables[k + 2][i.id]["text"]).strip()
        for k in (0, 1)
        for i in items
    )


def differing_item(task: Task, item: Item, role: str, ours: Row, theirs: dict[str, Any]) -> dict[str, Any]:
    """An item that the two evaluations score differently, and why."""
    found: dict[str, Any] = {"item": item.id, "model": role, "ours": ours.score, "prompt": item.prompt}
    if task.scorer in CHOICE_SCORERS:
        mine = harness.values(task.scorer, {"logprobs": ours.logprobs}, item)
        other = harness.values(task.scorer, theirs, item)
        gap = min(_lead(mine), _lead(other))
        return {**found, "our_values": mine, "their_values": other, "cause": "tie" if gap < NEAR else "log-likelihood"}
    text = harness.answer_of(task, theirs["text"]).strip()
    cause = "scorer" if text == ours.prediction.strip() else "generation"
    return {**found, "our_answer": ours.prediction, "their_answer": text, "gold": item.gold, "cause": cause}


def _lead(values: list[float]) -> float:
    first, second = sorted(values, reverse=True)[:2]
    return first - second
