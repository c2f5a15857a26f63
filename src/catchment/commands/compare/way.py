"""The way from base to tuned: what rooms and recovery are measured on."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from catchment import landscape, models
from catchment.capabilities import Item, Task, make_engine
from catchment.commands.compare.allocation import Plan
from catchment.commands.compare.pair import Pair
from catchment.commands.compare.tables import Tables
from catchment.landscape import Evaluator, Ground, Mover, Towards
from catchment.measuring import CPU_BATCH, chance_of

TAU = 0.1
"""Tolerated drop, as a share of what the base has above chance."""


def ground_of(pair: Pair, tables: Tables, task: Task, items: Sequence[Item]) -> Ground:
    """Items of a task, all measured on the base, as the landscape takes them."""
    form, base = task.formats[0].name, tables.of("base", task)
    rows = [base[item.id] for item in items]
    chance = chance_of(task, rows)
    tau = TAU * max(sum(row.score for row in rows) / len(rows) - chance, 0.0)
    return Ground(pair.base.prepare(task, form, items), base, tuple(i.id for i in items), chance, max(tau, 1e-6))


@contextmanager
def open_way(
    pair: Pair, plan: Plan, grounds: Sequence[Ground], *, frozen: bool = False
) -> Iterator[tuple[Evaluator, Towards]]:
    """Inside, the base may be moved towards the tuned model; outside its weights and ties are what they were. Of a base
    under an adapter a merged copy is moved.

    Args:
        frozen: Give rows that are stored and measure nothing.
    """
    base, tuned = pair.base.loaded, pair.tuned.loaded
    batch_tokens = plan.batch_tokens or CPU_BATCH
    if hasattr(base.model, "merge_and_unload"):
        model = models.merge_adapter(copy.deepcopy(base.model))
        engine = make_engine(model, base.tokenizer, batch_tokens)
        engine.check = pair.clock.check
    else:
        model, engine = base.model, pair.base.engine(batch_tokens)
    with models.untied(model, tuned.model):
        way = landscape.towards(model, tuned.model, identity=pair.tuned.card.weights_hash)
        mover = Mover(model, way.subspace, files=base.files)
        cell = functools.partial(pair.base.moved_cell, pair.store)
        with Evaluator(engine, mover, grounds, cell, frozen=frozen, on_tokens=pair.progress.advance) as evaluator:
            yield evaluator, way
