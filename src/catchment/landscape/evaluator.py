"""Scores of many tasks at many displaced points, each measured once and kept.

Everything that is measured of a landscape goes through :meth:`Evaluator.rows`, which calls
:func:`catchment.capabilities.run`, the one evaluation path.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from catchment.capabilities import NON_FINITE, Encoded, Engine, Prepared, cost_tokens, run, seeded_order, settle_path
from catchment.errors import CatchmentError, finish
from catchment.landscape.directions import Direction
from catchment.landscape.displace import Mover
from catchment.landscape.losses import Batch, answer_batches
from catchment.records import Interval, Node, Outcome, Row
from catchment.runs import Cell, append_all
from catchment.statistics import paired_interval

FLUSH_SECONDS = 2.0
_JSON = "json#"  # no label begins like this, so no "label:item" is taken for it


class NotStoredError(CatchmentError):
    """Rows were asked for that the store does not have, of a frozen evaluator or without a way to measure them: no move
    was given, or no time is left."""


@dataclass(frozen=True)
class Ground:
    """A task as a landscape sees it.

    Attributes:
        prepared: All of its items, encoded.
        base: The model's own rows, by item.
        items: Items that are scored, in a fixed order; all have a row in ``base``.
        chance: Score of guessing.
        tau: Tolerated drop.
    """

    prepared: Prepared
    base: Mapping[str, Row]
    items: tuple[str, ...]
    chance: float
    tau: float
    encoded: Mapping[str, Encoded] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoded", {e.item.id: e for e in self.prepared.encoded})

    @property
    def name(self) -> str:
        return self.prepared.task.name

    def value(self, row: Row) -> float:
        """The score in [0, 1]; of a text the mean probability of a byte, ``2^(-bits per byte)``."""
        return row.score

    @property
    def score(self) -> float:
        return sum(self.value(self.base[item]) for item in self.items) / len(self.items)

    def with_items(self, items: Sequence[str]) -> Ground:
        return dataclasses.replace(self, items=tuple(items))


class Evaluator:
    """Evaluates tasks at displaced points of one model, and keeps the rows.

    The model stays displaced between calls (the next point is formed from clean weights anyway); :meth:`home` or
    leaving the context puts it back.

    Args:
        engine: Of the model that ``mover`` moves.
        cell: Where rows of a task under an address are kept; ``None`` keeps them in memory only.
        frozen: Give what is kept and measure nothing.

    Attributes:
        evaluations, tokens: Item evaluations asked for so far and their cost, kept ones included.
        broken: Rows whose outputs were not finite; they count as score 0 and are flagged.
        fresh_tokens, seconds: What was not kept before, and the time that displacing and evaluating took.
    """

    def __init__(
        self,
        engine: Engine,
        mover: Mover,
        grounds: Sequence[Ground],
        cell: Callable[[Ground, Mapping[str, Any]], Cell] | None = None,
        *,
        frozen: bool = False,
        on_tokens: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        self.engine = engine
        self.mover = mover
        self.grounds = {ground.name: ground for ground in grounds}
        self.frozen = frozen
        self.evaluations = self.tokens = self.fresh_tokens = self.broken = 0
        self.seconds = 0.0
        self._cell = cell
        self._on_tokens = on_tokens
        self._tables: dict[str, dict[str, Row]] = {}
        self._cells: dict[str, Cell] = {}
        self._waiting: dict[str, list[Row]] = {}
        self._flushed = time.monotonic()

    def rows(
        self,
        family: Mapping[str, Any],
        label: str,
        wanted: Mapping[str, Sequence[str]],
        *moves: tuple[Direction, float],
    ) -> dict[str, dict[str, Row]]:
        """Rows per task and item at ``theta + sum scale * delta``.

        Args:
            family, label: Together the address of the point: the family names a cell of the store, the label the
                point in it. They must decide ``moves``.
            wanted: Items per task.
            moves: None to look up only; the model's own weights are a move of scale 0.

        Raises:
            NotStoredError: Not all of them are kept, and the evaluator is frozen or there is no move.
        """
        found: dict[str, dict[str, Row]] = {}
        missing: dict[str, Sequence[str]] = {}
        for task, items in wanted.items():
            found[task] = self.known(task, family, label, items)
            if len(found[task]) < len(items):
                missing[task] = items
        if missing and self.frozen:
            raise NotStoredError("the store holds no rows of a point that this plan needs; scan again.")
        if missing and not moves:  # at the model's own weights they would be kept under an address that means others
            raise NotStoredError("rows of a point are not kept, and no move was given; expected the move.")
        for task, items in wanted.items():
            cost = self._count(task, items)
            self.fresh_tokens += cost if task in missing else 0
        if missing:
            self._settle(missing)
            begin = time.perf_counter()
            try:
                self.mover.place(*moves)
                for task, items in missing.items():
                    have, fresh = found[task], self.fresh(task, items)
                    self._keep(task, family, label, {item: row for item, row in fresh.items() if item not in have})
                    found[task] = fresh | have  # a row that was kept stays as it is: batches may round otherwise
            finally:
                self.seconds += time.perf_counter() - begin
        self.broken += sum(NON_FINITE in row.flags for rows in found.values() for row in rows.values())
        return found

    def known(self, task: str, family: Mapping[str, Any], label: str, items: Sequence[str]) -> dict[str, Row]:
        """Rows of these items that are kept under an address; nothing is measured."""
        table = self._table(task, family)
        kept = {item: table[f"{label}:{item}"] for item in items if f"{label}:{item}" in table}
        return {item: dataclasses.replace(row, item=item) for item, row in kept.items()}

    def _settle(self, tasks: Iterable[str]) -> None:
        """Let the engine choose its path at the model's own weights: at a displaced point its check could fail for the
        wrong reason."""
        if self.engine.packed and not self.engine.checked:
            self.mover.restore()
            for task in tasks:
                settle_path(self.engine, self.grounds[task].prepared)

    def fresh(self, task: str, items: Sequence[str]) -> dict[str, Row]:
        """Rows of the model where it stands now, in the order of the items; nothing is looked up or kept."""
        ground = self.grounds[task]
        part = dataclasses.replace(ground.prepared, encoded=tuple(ground.encoded[item] for item in items))
        rows = {row.item: row for row in run(self.engine, part, non_finite="isolate")}
        return {item: rows[item] for item in items}

    def cost(self, task: str, items: Sequence[str]) -> int:
        """Tokens that evaluating these items together takes."""
        ground = self.grounds[task]
        return cost_tokens(ground.prepared.task, [ground.encoded[item] for item in items], ground.prepared.prefix)

    def _count(self, task: str, items: Sequence[str]) -> int:
        self.evaluations += len(items)
        cost = self.cost(task, items)
        self.tokens += cost
        self._on_tokens(cost)
        return cost

    def _key(self, task: str, family: Mapping[str, Any]) -> str:
        return f"{task}|{sorted(family.items())!r}"

    def _table(self, task: str, family: Mapping[str, Any]) -> dict[str, Row]:
        key = self._key(task, family)
        if key not in self._tables:
            self._tables[key] = {}
            if self._cell is not None:
                self._cells[key] = self._cell(self.grounds[task], family)
                self._tables[key] = self._cells[key].rows()
        return self._tables[key]

    def _keep(self, task: str, family: Mapping[str, Any], label: str, rows: Mapping[str, Row]) -> None:
        fresh = [dataclasses.replace(row, item=f"{label}:{item}") for item, row in rows.items()]
        self._book(task, family, fresh)

    def _book(self, task: str, family: Mapping[str, Any], rows: Sequence[Row]) -> None:
        self._table(task, family).update({row.item: row for row in rows})
        if self._cell is not None:
            self._waiting.setdefault(self._key(task, family), []).extend(rows)
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self.flush()

    def kept(self, task: str, family: Mapping[str, Any], label: str) -> Any:
        """What :meth:`keep` put beside the rows of an address; ``None`` when there is nothing.

        Raises:
            NotStoredError: Frozen, and not kept.
        """
        row = self._table(task, family).get(f"{_JSON}{label}")
        if row is None and self.frozen:
            raise NotStoredError("the store lacks a result that this plan needs; scan again.")
        return None if row is None else json.loads(row.prediction)

    def keep(self, task: str, family: Mapping[str, Any], label: str, value: Any) -> None:
        """Keep JSON that belongs to an address and is no score: a loss, a curvature."""
        content = json.dumps(value, allow_nan=False)
        self._book(task, family, [Row(f"{_JSON}{label}", 0.0, content)])

    def flush(self) -> None:
        """Make what was measured durable."""
        append_all([(self._cells[key], rows) for key, rows in self._waiting.items()])
        self._waiting.clear()
        self._flushed = time.monotonic()

    def home(self) -> None:
        """The model's own weights, bit for bit, and everything on the disk.

        Raises:
            ModelError: As :meth:`Mover.restore`.
        """
        try:
            self.mover.restore()
        finally:
            self.flush()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, kind: object, raised: BaseException | None, trace: object) -> None:
        try:
            finish(self.mover.close, raised)
        finally:
            self.flush()


def paired_node(
    ground: Ground, scale: float, before: Sequence[float], after: Sequence[float], level: float, family: int
) -> Node:
    """One point of a fixed direction, decided over items: the paired interval of the drop against tau."""
    change = paired_interval(before, after, level=level, family=family)
    drop = Interval(-change.estimate, -change.high, -change.low, change.level, change.method, change.family)
    outcome: Outcome = "undecided"
    if drop.high <= ground.tau:
        outcome = "inside"
    elif drop.low > ground.tau:
        outcome = "outside"
    return Node(scale, outcome, drop, len(before), len(before))


def batches_of(evaluator: Evaluator, ground: Ground, items: Sequence[str], batch_tokens: int = 1024) -> list[Batch]:
    """Right answers of some items as differentiable batches; where none is known, what the model itself answered."""
    part = dataclasses.replace(ground.prepared, encoded=tuple(ground.encoded[i] for i in items))
    tokenizer = evaluator.engine.tokenizer
    own = {
        i: tokenizer.encode(ground.base[i].prediction, add_special_tokens=False)[: part.task.max_new_tokens]
        for i in items
    }
    return answer_batches(part, own, batch_tokens, evaluator.engine.pad)


def subset(ground: Ground, stream: str, unit: int, count: int, redraw: bool = False) -> tuple[str, ...]:
    """The items of one unit: a random order of all items of the stream, cut into pieces of ``count``, so that no item
    is used twice before all were used. ``redraw``: an order of its own for each unit, so that units are independent
    draws from these items."""
    size = len(ground.items)
    count = min(count, size)
    turn, place = (unit, 0) if redraw else divmod(unit, size // count)
    order = seeded_order(ground.items, f"{stream}/{turn}/")
    return tuple(order[place * count : (place + 1) * count])
