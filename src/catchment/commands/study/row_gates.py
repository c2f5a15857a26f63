"""Validity gates over a whole study: what would look like a result and is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from catchment.capabilities import CHOICE_SCORERS, overlap
from catchment.commands.study.record import Cell, Flag
from catchment.commands.study.standing import Site, Stand
from catchment.commands.study.tunings import read_tuned
from catchment.errors import CatchmentError

if TYPE_CHECKING:
    from catchment.commands.study.scores import Scored

CONSTANT = 0.98
"""Share of items on which scores are those of one answer for all: a constant predictor."""
FEWEST = 20
"""Items below which a constant answer is not told from chance."""
CUT = "cut off"
"""What a warning of a training says of completions that were cut."""


def flags_of(site: Site, stands: Sequence[Stand], scored: Mapping[Cell, Scored]) -> Iterator[Flag]:
    """All gates that a study can raise from its design, its trainings and its rows."""
    yield from _refused(stands)
    yield from _trained(site)
    yield from _overlapping(site)
    yield from _constant(stands, scored)
    yield from _twins(site, stands, scored)


def _refused(stands: Sequence[Stand]) -> Iterator[Flag]:
    reasons = {(s.question.name, s.reason): None for s in stands if s.status == "refused"}
    for name, reason in reasons:
        yield Flag("task refused", name, reason, refused=True)


def _trained(site: Site) -> Iterator[Flag]:
    """Trainings whose completions were cut."""
    for place in site.design.places:
        for unit in site.design.units(place):
            known = site.known(unit) if unit.trains else None
            tuned = read_tuned(site.store, known.key) if known and known.key else None
            for warning in tuned.warnings if tuned else ():
                if CUT in warning:
                    yield Flag("truncated completions", unit.name, warning)


def _overlapping(site: Site) -> Iterator[Flag]:
    """Rows that are trained on and asked, too."""
    seen = set()
    for recipe in site.design.recipes:
        if recipe.model or (recipe.data, recipe.rows) in seen:
            continue
        seen.add((recipe.data, recipe.rows))
        try:
            rows = site.rows(recipe)
        except CatchmentError:
            continue  # its trainings are failed cells with this reason
        for question in {q.name: q for q in site.design.questions if q.task is not None}.values():
            assert question.task is not None
            shared = overlap(rows.rows, question.task.with_items(question.items))
            if shared.rows:
                where = f"{recipe.card.data} -> {question.name}"
                yield Flag("near-duplicates between train and test", where, shared.sentence)


def _constant(stands: Sequence[Stand], scored: Mapping[Cell, Scored]) -> Iterator[Flag]:
    """Models that give one answer for (nearly) all items although the gold is mixed."""
    golds: dict[int, np.ndarray] = {}
    told: dict[tuple[str, str], list[str]] = {}
    for stand in stands:
        task, cell = stand.question.task, scored.get(stand.cell)
        if task is None or cell is None or cell.scores is None or cell.items is None or cell.n < FEWEST:
            continue
        if task.scorer not in CHOICE_SCORERS:
            continue
        gold = golds.setdefault(id(stand.question), np.array([int(i.gold) for i in stand.question.items]))[cell.items]  # type: ignore[arg-type]
        for answer in np.unique(gold):
            always = gold == answer
            if always.mean() < 0.9 and (cell.scores == always).mean() >= CONSTANT:
                said = (
                    f"answer {answer + 1} for almost all {cell.n} items: score {cell.mean:.3f}, the share of the gold"
                )
                told.setdefault((stand.question.name, said), []).append(stand.unit.name)
    for (name, said), units in told.items():
        who = units[0] if len(units) == 1 else f"{units[0]} and {len(units) - 1} more"
        yield Flag("constant predictor", name, f"{who}: {said}")


def _twins(site: Site, stands: Sequence[Stand], scored: Mapping[Cell, Scored]) -> Iterator[Flag]:
    """Models of different weights with the same score on every item of every question."""
    rows: dict[tuple[str, str], list[np.ndarray]] = {}
    keys: dict[tuple[str, str], set[str]] = {}
    cells: dict[tuple[str, str], Cell] = {}
    for stand in stands:
        cell = scored.get(stand.cell)
        if cell is not None and cell.companions is not None:
            name = (stand.unit.place.name, stand.unit.name)
            cells[name] = stand.cell
            rows.setdefault(name, []).append(cell.companions)
            keys.setdefault(name, set()).add(stand.key)
    prints: dict[bytes, tuple[str, str]] = {}
    for name, arrays in rows.items():
        values = np.concatenate(arrays)
        values = values[~np.isnan(values)]
        if values.size < FEWEST:
            continue
        other = prints.setdefault(values.tobytes(), name)
        if other != name and keys[other] != keys[name]:
            said = (
                f"bit-identical probabilities on all {values.size} items from different weights: one of them is "
                "probably not the model its name says; check the revision, the path and that the tuning is at work"
            )
            for twin in (cells[other], cells[name]):
                yield Flag(
                    "identical outputs", f"{other[1]} and {name[1]}", said, refused=True,
                    model=twin.model, revision=twin.revision, tuning=twin.tuning,
                )  # fmt: skip
