"""Rows as a task: held-out rows with short answers, so that the gain can be measured."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from catchment.capabilities import Format, Item, Task, gates, sample
from catchment.errors import GateError
from catchment.training.data import Rows

LINE = 40
"""Longest completion that is measured by exact match, in characters."""
FEW = 8
"""Most distinct completions that are measured as a choice."""


def as_task(rows: Rows, name: str = "tuned_on", limit: int | None = None, seed: int = 0) -> Task | None:
    """Held-out rows as a task, so that the gain can be measured; the prompt is put exactly as training puts it.

    Prompts whose completions are all one line of at most 40 characters: ``choice`` among all distinct completions
    where these are at most 8 and the rows at least 5 times as many, otherwise ``exact``. Conversations of one user and
    one assistant turn count as prompts (a system message is allowed where all rows share it). Classification:
    ``classify``.

    A system message of the rows stands, whatever system prompt the model is asked under: they are trained with theirs.

    Args:
        limit: a seeded sample of this many items; ``None`` for all.

    Returns:
        The task, or ``None`` where no scorer can judge these rows (long answers, several turns, plain text, no rows),
        and, with a warning, where all answers are the same. Rows that nearly repeat another are left out, with one too.

    >>> from catchment.training import read_rows
    >>> rows = read_rows([{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(10)])
    >>> task = as_task(rows)
    >>> task.scorer, task.items[0].prompt, task.items[0].gold
    ('exact', '0 + 1 =', ' 1')
    """
    plain = (Format("plain", "{prompt}", separator=""),)
    if rows.kind == "classification" and len(rows):
        items = [
            Item(row["text"], gold=row["label"], meta={"pair": row["text_pair"]} if "text_pair" in row else {})
            for row in rows.rows
        ]
        return _measurable(Task(name, _apart(items), "classify", plain), limit, seed)
    turns = [_one_turn(rows.kind, row) for row in rows.rows]
    asked = [turn for turn in turns if turn is not None]
    if not asked or len(asked) < len(turns):
        return None
    answers = [answer.rstrip() for _, _, answer in asked]
    systems = {system for system, _, _ in asked}
    if len(systems) > 1 or any(len(answer) > LINE or len(answer.splitlines()) != 1 for answer in answers):
        return None
    questions = [question for _, question, _ in asked]
    choices = tuple(sorted(set(answers)))
    few = 2 <= len(choices) <= FEW and len(asked) >= 5 * len(choices)
    if few and not any(question[-1:].isspace() and question[-1] != " " for question in questions):
        items = [Item(q, choices, choices.index(a)) for q, a in zip(questions, answers, strict=True)]
        scorer = "choice"
    else:
        # A scored choice takes the line break at the end of a prompt for a part of the answer; a generation does not.
        golds: dict[str, Counter[str]] = {}
        for question, answer in zip(questions, answers, strict=True):
            golds.setdefault(question, Counter())[answer] += 1
        items = [Item(q, gold=_gold(a)) for q, a in golds.items()]
        scorer = "exact"
    longest = max(len(answer.encode()) for answer in answers)  # no token is shorter than a byte
    task = Task(name, _apart(items), scorer, plain, system=systems.pop(), max_new_tokens=longest + 8)
    task = replace(task, keeps_system=task.system is not None)
    return _measurable(task, limit, seed)


def _gold(answers: Counter[str]) -> str | tuple[str, ...]:
    """Every completion that the rows give to a prompt is right, the most frequent first."""
    completions = tuple(answer for answer, _ in answers.most_common())
    return completions if len(completions) > 1 else completions[0]


def _apart(items: Sequence[Item]) -> tuple[Item, ...]:
    """The items without those that (nearly) repeat an earlier one, which a validity gate would refuse."""
    distinct = list({item.id: item for item in items}.values())
    copies = {copy for _, copy in gates.near_duplicates(distinct)}
    kept = tuple(item for item in distinct if item.id not in copies)
    if len(kept) < len(items):
        left = len(items) - len(kept)
        warnings.warn(f"{left} of {len(items)} held-out rows nearly repeat another: not measured", stacklevel=3)
    return kept


def _measurable(task: Task, limit: int | None, seed: int) -> Task | None:
    task = task.with_items(sample(task.items, limit, seed))
    try:
        gates.check_labels(task)
    except GateError as error:
        warnings.warn(f"the gain on the held-out rows cannot be measured: {error}", stacklevel=3)
        return None
    return task


def _one_turn(kind: str, row: Mapping[str, Any]) -> tuple[str | None, str, str] | None:
    """System message, question and answer of a row with one turn of each; ``None`` for other rows."""
    if kind == "prompt" and isinstance(row["prompt"], str):
        return None, row["prompt"], row["completion"]
    if kind not in ("prompt", "messages"):
        return None
    messages = row["messages"] if kind == "messages" else [*row["prompt"], *row["completion"]]
    roles = [message["role"] for message in messages]
    plain = all(set(message) == {"role", "content"} for message in messages)
    if not plain or roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        return None
    system = messages[0]["content"] if roles[0] == "system" else None
    return system, messages[-2]["content"], messages[-1]["content"]
