"""What a comparison carries from step to step, and the plan in OUT that a run which goes on follows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from catchment.commands.compare.allocation import Plan
from catchment.commands.compare.pair import Pair
from catchment.commands.compare.prices import Prices
from catchment.commands.compare.tables import Tables
from catchment.runs import write_atomic


@dataclass(frozen=True)
class State:
    """What is planned, known and measured so far. A step takes one and returns the next.

    Attributes:
        plan: As accepted last.
        tables: Rows measured so far.
        prices: Of items; ``None`` where a frozen plan is followed or there is no budget.
        reached: Items of each task that were measured on both models, in the seeded order.
        closed: Tasks that get no more items: the base cannot do them, and neither a gain nor a loss shows.
        end: Seconds from the start at which items have to be done.
    """

    plan: Plan
    tables: Tables
    prices: Prices | None = None
    reached: Mapping[str, int] = field(default_factory=dict)
    closed: frozenset[str] = frozenset()
    end: float = 0.0


def accept(pair: Pair, state: State, plan: Plan) -> State:
    """The state with a new plan, which is written to OUT, so that a run that is killed goes on with it."""
    if pair.out is not None:
        content = {"ask": _ask(pair), "plan": json.loads(plan.to_json())}
        write_atomic(pair.out / "plan.json", json.dumps(content, indent=1))
    return dataclasses.replace(state, plan=plan)


@contextmanager
def following_plan(pair: Pair) -> Iterator[Plan | None]:
    """Inside, the clock is that of a run which follows the plan in OUT, where that is final and answers the same
    question; ``None`` where there is no such plan."""
    plan = _frozen_plan(pair)
    with pair.clock.following(plan is not None):
        yield plan


def _frozen_plan(pair: Pair) -> Plan | None:
    if pair.out is None or not (pair.out / "plan.json").is_file():
        return None
    try:
        content = json.loads((pair.out / "plan.json").read_text(encoding="utf-8"))
        plan = Plan.from_json(json.dumps(content["plan"]))
    except (ValueError, KeyError, TypeError):
        return None
    return plan if content["ask"] == _ask(pair) and plan.frozen else None


def forget_plan(pair: Pair) -> None:
    """Take the plan out of OUT: one of no item is not to be followed."""
    if pair.out is not None:
        (pair.out / "plan.json").unlink(missing_ok=True)


def _ask(pair: Pair) -> dict[str, Any]:
    """What a plan answers; another question gets another plan."""
    s = pair.settings
    return {
        "tasks": [[t.name, t.hash()] for t in pair.tasks], "limit": s.limit, "budget": s.budget, "formats": s.formats,
        "room": s.room,
        "batch_tokens": s.batch_tokens,
    }  # fmt: skip
