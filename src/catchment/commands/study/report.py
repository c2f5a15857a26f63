"""From the store to the table of scores that the analysis takes, and from its result to the record of the study."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catchment.capabilities import CHOICE_SCORERS
from catchment.commands.study.analysis.index import Refusals
from catchment.commands.study.analysis.whole import analyse
from catchment.commands.study.choice import choice
from catchment.commands.study.design import Place
from catchment.commands.study.plan import aliases_of, plan_of
from catchment.commands.study.questions import Question
from catchment.commands.study.record import Cell, CellResult, Checkpoint, Flag, Study
from catchment.commands.study.row_gates import flags_of
from catchment.commands.study.scanning import scans_of
from catchment.commands.study.scores import Pairs, Scored, ScoreTable
from catchment.commands.study.standing import Site, Stand
from catchment.commands.study.verdicts import verdicts_of
from catchment.commands.study.words import sentence
from catchment.measuring import POLICY, environment
from catchment.records import ModelCard
from catchment.runs import Columns
from catchment.statistics import mean_interval


@dataclass
class Asked:
    """The items of a question as numbers, and how the rows of its cells become arrays in their order."""

    question: Question
    place: dict[str, int]
    chance: float
    groups: NDArray[np.int64] | None
    _items: tuple[str, ...] = ()
    _order: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, question: Question) -> Asked:
        assert question.task is not None
        names = [str(item.meta["group"]) if "group" in item.meta else None for item in question.items]
        groups = None
        if any(name is not None for name in names):
            own = [name if name is not None else f"\0{number}" for number, name in enumerate(names)]
            groups = np.unique(own, return_inverse=True)[1].astype(np.int64)
        chance = question.task.with_items(question.items).chance_level
        return cls(question, {item.id: k for k, item in enumerate(question.items)}, chance, groups)

    def arrays(self, columns: Columns) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scores and companions in the question's order, NaN where there is none."""
        if self._order is None or columns.items != self._items:
            self._items = columns.items
            self._order = np.array([self.place.get(item, -1) for item in columns.items], dtype=np.int64)
        scores, companions = np.full((2, len(self.place)), np.nan)
        there = self._order >= 0
        scores[self._order[there]] = columns.scores[there]
        companions[self._order[there]] = columns.companions[there]
        return scores, companions


def table_of(site: Site, stands: Sequence[Stand]) -> tuple[ScoreTable, list[Stand]]:
    """The scores of every cell that is whole, and the cells that are not although the store counts enough rows: damaged
    ones, and ones whose rows are of other items. Cost: reading all rows once."""
    design, s = site.design, site.design.settings
    asked = {id(q): Asked.of(q) for q in design.questions if q.task is not None}
    by_key: dict[str, list[Stand]] = {}
    for stand in stands:
        if stand.status == "done":
            by_key.setdefault(stand.key, []).append(stand)
    read: dict[Cell, Scored] = {}
    short: list[Stand] = []
    for key, columns in site.store.columns(by_key):
        for stand in by_key[key]:
            found = _scored(asked[id(stand.question)], stand, columns)
            if found is not None:
                read[stand.cell] = found
    scored = {stand.cell: read[stand.cell] for stand in stands if stand.cell in read}  # not as they lie on the disk
    cells = []
    for stand in stands:
        if stand.status == "done" and stand.cell not in scored:
            stand = dataclasses.replace(
                stand, status="missing", have=0, reason="its rows are damaged or of other items"
            )
            short.append(stand)
        cells.append(_result(stand, scored.get(stand.cell), s.alpha))
    return _table(site, cells, scored, tuple(flags_of(site, stands, scored))), short


def unread_table(site: Site, stands: Sequence[Stand]) -> ScoreTable:
    """Every cell with its status, as the store counts rows, and no scores."""
    return _table(site, [CellResult(s.cell, s.status, s.have, None, s.reason) for s in stands], {}, ())


def _table(site: Site, cells: list[CellResult], scored: Mapping[Cell, Scored], flags: tuple[Flag, ...]) -> ScoreTable:
    design, s = site.design, site.design.settings
    return ScoreTable(
        name=s.label,
        checkpoints=tuple(_with_hash(site, place) for place in design.places),
        tunings=tuple(recipe.card for recipe in design.recipes),
        tasks=tuple(dict.fromkeys(q.name for q in design.questions)),
        formats=tuple(dict.fromkeys(q.format for q in design.questions)),
        cells=cells,
        scored=scored,
        contrasts=tuple(Pairs(name, pairs) for name, pairs in design.contrasts.items()),
        flags=flags,
        alpha=s.alpha,
        margin=s.margin,
        seed=s.seed,
        task_formats=_task_formats(design.questions),
    )


def _scored(asked: Asked, stand: Stand, columns: Columns) -> Scored | None:
    """The scores of a cell; ``None`` where it is short of the items that were asked."""
    scores, companions = asked.arrays(columns)
    there = ~np.isnan(scores)
    n = int(there.sum())
    left_out = max(stand.wanted - stand.have, 0)
    if n == 0 or n + left_out < stand.wanted:
        return None
    values = scores[there]
    se = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    groups = None if asked.groups is None else asked.groups[there]
    items = np.flatnonzero(there).astype(np.int64)
    return Scored(stand.cell, float(values.mean()), n, se, items, values, groups, asked.chance, companions[there])


def _result(stand: Stand, scored: Scored | None, alpha: float) -> CellResult:
    if scored is None or scored.scores is None:
        return CellResult(stand.cell, stand.status, stand.have, None, stand.reason)
    return CellResult(stand.cell, "done", scored.n, mean_interval(scored.scores, level=1 - alpha), stand.reason)


def _with_hash(site: Site, place: Place) -> Checkpoint:
    card = site.card(place)
    return dataclasses.replace(
        place.checkpoint, weights_hash=card.weights_hash if isinstance(card, ModelCard) else None
    )


def _task_formats(questions: Sequence[Question]) -> Mapping[str, tuple[str, ...]]:
    formats: dict[str, dict[str, None]] = {}
    for question in questions:
        formats.setdefault(question.name, {})[question.format] = None
    return {name: tuple(listed) for name, listed in formats.items()}


def study_of(site: Site, stands: Sequence[Stand], table: ScoreTable) -> Study:
    """The record: what the scores say, what is missing and what it would cost, and under which conditions."""
    plan = plan_of(site, stands)
    study = analyse(table)
    verdicts = verdicts_of(site, stands, Refusals(study.flags, study.tasks))
    cards = [card for place in site.design.places if isinstance(card := site.card(place), ModelCard)]
    whole = dataclasses.replace(
        study,
        counts=plan.counts,
        headline="complete" if plan.counts["done"] == plan.counts["cells"] else "incomplete",
        gaps=plan.gaps,
        aliases=plan.aliases,
        verdicts=verdicts,
        choice=choice(verdicts),
        scans=tuple(scans_of(site)),
        conditions=_conditions(site, cards),
        warnings=tuple(dict.fromkeys([*study.warnings, *_warnings(site, cards)])),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return dataclasses.replace(whole, sentence=sentence(whole))


def _warnings(site: Site, cards: Sequence[ModelCard]) -> Iterator[str]:
    for card in cards:
        yield from (f"{card.name}: {note}" for note in card.notes)
    for names in aliases_of(site):
        yield f"{' and '.join(names)} are the same weights, byte for byte: one measurement stands under each name"
    for question in site.design.questions:
        yield from (f"{question.name}: {note}" for note in question.notes)


def _conditions(site: Site, cards: Sequence[ModelCard]) -> dict[str, Any]:
    s, design = site.design.settings, site.design
    path = s.study or f"{s.label}.yaml"
    return {
        "command": f"catchment study run {shlex.quote(str(path))}" if s.study or not design.recipes else "",
        "sampling": "items are a sample of a population, training seeds of all seeds; where there is one seed the "
        "statement is about these very models",
        "chat_template": design.asked.chat_template,
        "system": design.asked.system,
        "seed": s.seed,
        "limit": s.limit,
        "batch_policy": POLICY,
        "task_hashes": {q.name: q.task.hash() for q in design.questions if q.task is not None},
        "choice_tasks": sorted({q.name for q in design.questions if q.task and q.task.scorer in CHOICE_SCORERS}),
        **(environment(cards[0]) if cards else {}),
    }
