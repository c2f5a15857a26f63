"""What a study will measure and what that costs, before anything is: cells, time, memory and disk."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from catchment import models
from catchment.capabilities import context_length, prepare, sample
from catchment.commands.study.calls import gaps_of, stand_of
from catchment.commands.study.design import Place, Unit, read_design
from catchment.commands.study.fetched import bytes_on_hub
from catchment.commands.study.pace import BACKWARD, Pace, pace_of
from catchment.commands.study.questions import Question
from catchment.commands.study.record import Gap, Status
from catchment.commands.study.scanning import check_scans, scan_gaps, stands_of_scans
from catchment.commands.study.settings import StudySettings
from catchment.commands.study.standing import Site, Stand, read_remarks, ready_made
from catchment.commands.study.tunings import artefact
from catchment.errors import CatchmentError, GateError
from catchment.measuring import Progress
from catchment.records import ModelCard
from catchment.training import Rows, encode_rows

SAMPLED = 32
"""Items of a task, and rows of data, whose tokens are counted for a price."""
SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
UNKNOWN_TOKENS = 200
"""Tokens of an item, or a row, that cannot be read here: only for a price, which says so."""
UNKNOWN_ROWS = 1000
"""Rows of data that cannot be read here, where the study does not say."""


@dataclass(frozen=True)
class Plan:
    """What a study asks for.

    Attributes:
        counts: Cells by status: done, missing, failed, refused; and "trainings".
        seconds: Of all that is open; ``measured``: whether every pace was measured here.
        memory: Bytes of the largest model at work.
        disk: Bytes of tuned models to come.
        aliases: Names of checkpoints whose weights are the same bytes.
        gaps: What is open, by kind, with its price.
        questions: One line per task: split, items, gate.
    """

    name: str
    counts: dict[str, int]
    seconds: float
    measured: bool
    memory: float
    disk: float
    aliases: tuple[tuple[str, ...], ...]
    gaps: tuple[Gap, ...]
    questions: tuple[str, ...]
    models: tuple[str, ...]
    notes: tuple[str, ...] = ()


def plan(settings: StudySettings, progress: Progress) -> Plan:
    """The plan of a study. Identifies the checkpoints that are here, by their bytes; runs nothing.

    Raises:
        GateError: Prompts longer than the context of a model: the run would refuse them, too.
    """
    design = read_design(settings)
    progress.status("looking at the checkpoints")
    site = Site.open(settings, design)
    check_scans(site)
    check_contexts(site)
    return plan_of(site, list(site.stands()))


def plan_of(site: Site, stands: Sequence[Stand]) -> Plan:
    """The plan, from where the study stands.

    Raises:
        GateError: Prompts longer than the context of a model.
    """
    design = site.design
    prices = Prices(site)
    reasons = {key: told.reason for key, told in read_remarks(site.store).items()}
    scans = list(stands_of_scans(site, reasons))
    counts = Counter(stand.status for stand in stands)
    counts.update(status for _, status, _ in scans)
    counts.update(stand_of(site.store, call, reasons)[0] for call in design.calls)
    trainings = [unit for place in design.places for unit in design.units(place) if unit.trains]
    todo = [unit for unit in trainings if site.known(unit).card is None]
    same, notes = far_aliases(site)
    gaps = [*_gaps(prices, stands, todo, reasons), *scan_gaps(scans), *gaps_of(design.calls, site.store, reasons)]
    return Plan(
        name=design.settings.label,
        counts={**{s: counts[s] for s in ("done", "missing", "failed", "refused")},
                "cells": len(stands) + len(scans) + len(design.calls),
                "trainings": len(trainings), "to train": len(todo)},
        seconds=sum(gap.seconds or 0.0 for gap in gaps),
        measured=prices.measured,
        memory=max((prices.memory(unit) for place in design.places for unit in design.units(place)), default=0.0),
        disk=sum(prices.disk(unit) for unit in trainings if _is_to_come(site, unit)),
        aliases=(*aliases_of(site), *same),
        gaps=tuple(gaps),
        questions=tuple(dict.fromkeys(_line(question) for question in design.questions)),
        models=tuple(_model_line(site, place) for place in design.places),
        notes=tuple(notes),
    )  # fmt: skip


def _is_to_come(site: Site, unit: Unit) -> bool:
    """Whether the tuned weights are not there."""
    known = site.known(unit)
    return not known.key or artefact(site.store, known.key) is None


def aliases_of(site: Site) -> tuple[tuple[str, ...], ...]:
    """Checkpoints, and tuned models that are there, of different names with the same weights, byte for byte."""
    places, ready = site.design.places, [recipe for recipe in site.design.recipes if recipe.model]
    cards = [(place.name, site.card(place)) for place in places]
    units = [Unit(place, recipe) for place in places for recipe in ready]
    cards += [(unit.name, site.card(ready_made(unit))) for unit in units]
    named = [dataclasses.replace(card, name=name) for name, card in cards if isinstance(card, ModelCard)]
    return tuple(tuple(names) for names in models.aliases(named))


def far_aliases(site: Site) -> tuple[list[tuple[str, ...]], list[str]]:
    """The same of checkpoints that are not here, by the hub's checksums; and what could not be compared."""
    far = [place for place in site.design.places if site.is_far(place)]
    known, why = bytes_on_hub(far) if far else ({}, "")
    groups: dict[str, list[str]] = {}
    for place, identity in known.items():
        groups.setdefault(identity, []).append(place.name)
    missing = len(far) - len(known)
    said = f"{missing} checkpoints are not here, and whether some are the same bytes is not known: {why}"
    notes = [said] if missing else []
    return [tuple(names) for names in groups.values() if len(names) > 1], notes


def _line(question: Question) -> str:
    """A task, its split, items and gate."""
    gate = {
        "refused": f"refused: {question.reason}",
        "failed": f"not here: {question.reason}; declared: {question.total:,} items",
    }.get(question.status, f"gates passed ({question.total:,} items)")
    asked = f"{question.shots} shots, {question.scorer}" if question.shots else question.scorer
    split = f", {question.split}" if question.split else ""
    notes = "".join(f"; {note}" for note in question.notes)
    items = f"{question.total:,} items" if question.status == "refused" else f"{question.wanted:,} items asked"
    return f"{question.name}{split}, {asked}: {items}; {gate}{notes}"


def _model_line(site: Site, place: Place) -> str:
    card = site.card(place)
    if isinstance(card, str):
        size = f", {place.parameters:,.0f} weights" if place.parameters else ""
        return f"{place.name}: not here{size}: {card or 'it will be fetched from the hub'}"
    return f"{place.name}: {card.parameters:,} weights in {card.dtype}, {card.weights_hash[:12]}"


def _gaps(prices: Prices, stands: Sequence[Stand], todo: Sequence[Unit], reasons: Mapping[str, str]) -> list[Gap]:
    """Open cells by model, tuning and reason, over checkpoints; trainings first."""
    trainings: dict[tuple[str, str, str], list[Unit]] = {}
    for unit in todo:
        known = prices.site.known(unit)
        reason = known.reason or reasons.get(known.key, "")
        trainings.setdefault((unit.place.checkpoint.model, unit.tuning, reason), []).append(unit)
    gaps = []
    for (_, tuning, reason), units in trainings.items():
        what, status = f"training {_where([u.place for u in units])} + {tuning}", "failed" if reason else "missing"
        gaps.append(Gap(what, len(units), reason, cast(Status, status), sum(prices.training(u) for u in units)))
    cells: dict[tuple[str, str, Status, str], list[Stand]] = {}
    for stand in stands:
        if stand.status != "done":
            key = (stand.unit.place.checkpoint.model, stand.unit.tuning, stand.status, stand.reason)
            cells.setdefault(key, []).append(stand)
    for (_, tuning, status, reason), group in cells.items():
        seconds = None if status == "refused" else sum(prices.evaluation(stand) for stand in group)
        what = f"{_where([stand.unit.place for stand in group])} + {tuning}"
        gaps.append(Gap(what, len(group), reason, status, seconds))
    return gaps


def _where(places: Sequence[Place]) -> str:
    """A checkpoint, or how many of its model."""
    names = dict.fromkeys(place.name for place in places)
    return next(iter(names)) if len(names) == 1 else f"{places[0].checkpoint.model} at {len(names)} checkpoints"


class Prices:
    """What cells and trainings cost here. Tokens are counted on a sample with the model's tokenizer."""

    def __init__(self, site: Site) -> None:
        self.site, self.measured = site, True
        self._tokens: dict[tuple[str, int], float] = {}
        self._rows: dict[tuple[str, str, int], float] = {}
        self._paces: dict[tuple[str, float], Pace] = {}
        self._tokenizers: dict[Place, tuple[object, int | None] | None] = {}

    def evaluation(self, stand: Stand) -> float:
        """Seconds of the missing items of a cell."""
        share = (stand.wanted - stand.have) / max(stand.wanted, 1)
        return share * self._cell_tokens(stand.unit.place, stand.question) * self._pace(stand.unit.place)

    def training(self, unit: Unit) -> float:
        """Seconds of a training."""
        assert unit.recipe is not None
        return BACKWARD * self._row_tokens(unit) * self._pace(unit.place)

    def memory(self, unit: Unit) -> float:
        """Bytes of a model at work: weights; in training gradients and two moments of what moves, too."""
        weights, each = self._parameters(unit.place), self._bytes(unit.place)
        if not unit.trains or unit.recipe is None:
            return weights * each
        moved = {"sift": 0.02, "lora": 0.02}.get(unit.recipe.card.method, 1.0)
        return weights * (each + moved * (each + 8 + (4 if each == 2 else 0)))

    def disk(self, unit: Unit) -> float:
        """Bytes of a tuned model."""
        assert unit.recipe is not None
        small = {"sift": 0.05, "lora": 0.02}.get(unit.recipe.card.method, 1.0)
        return self._parameters(unit.place) * self._bytes(unit.place) * small

    def _card(self, place: Place) -> ModelCard | None:
        card = self.site.card(place)
        return card if isinstance(card, ModelCard) else None

    def _parameters(self, place: Place) -> float:
        card = self._card(place)
        return float(card.parameters) if card else place.parameters or 1e9

    def _bytes(self, place: Place) -> int:
        card, asked = self._card(place), self.site.design.settings.dtype
        return SIZES.get(card.dtype if card else str(asked), 4 if card else 2)

    def _pace(self, place: Place) -> float:
        card, parameters = self._card(place), self._parameters(place)
        key = (card.architecture if card else "", parameters)
        if key not in self._paces:
            self._paces[key] = pace_of(self.site.store, card, parameters)
        self.measured = self.measured and self._paces[key].measured
        return self._paces[key].seconds_per_token

    def tokenizer(self, place: Place) -> tuple[object, int | None] | None:
        """Tokenizer and context of a checkpoint that is here."""
        if place not in self._tokenizers:
            s = self.site.design.settings
            if self._card(place) is None:
                self._tokenizers[place] = None
            else:
                tokenizer, configured = models.tokenizer_of(
                    place.spec, revision=place.revision, trust_remote_code=s.trust_remote_code
                )
                self._tokenizers[place] = tokenizer, context_length(configured)
        return self._tokenizers[place]

    def _cell_tokens(self, place: Place, question: Question) -> float:
        """Tokens of a cell; a prompt beyond the context is refused here, before anything is run."""
        opened = self.tokenizer(place)
        if opened is None or question.task is None:
            return float(UNKNOWN_TOKENS * question.wanted)
        card = self._card(place)
        key = (card.tokenizer_hash if card else "", id(question))
        if key not in self._tokens:
            few = sample(question.items, SAMPLED, 0)
            design = self.site.design
            prepared = prepare(
                opened[0], question.task, format=question.format, items=few, prompt_options=design.asked,
                drop_long=design.settings.drop_long, context=opened[1],
            )  # fmt: skip
            self._tokens[key] = prepared.tokens * len(question.items) / max(len(few), 1)
        return self._tokens[key]

    def _row_tokens(self, unit: Unit) -> float:
        """Tokens of a training, from a sample of its rows."""
        recipe, opened = unit.recipe, self.tokenizer(unit.place)
        assert recipe is not None
        options = dict(recipe.options or {})
        try:
            rows = self.site.rows(recipe)
            count = len(rows)
        except CatchmentError:
            rows, count = None, recipe.rows or UNKNOWN_ROWS
        each = float(UNKNOWN_TOKENS)
        if opened is not None and rows is not None:
            length = min(int(options.get("max_length", 1024)), opened[1] or 1024)
            key = (str(unit.place.spec), rows.fingerprint, length)
            if key not in self._rows:
                self._rows[key] = self._tokens_of(rows.of(rows.rows[:SAMPLED]), opened[0], length)
            each = self._rows[key]
        steps = options.get("max_steps")
        batch = int(options.get("batch_size", 8)) * int(options.get("accumulation", 1))
        return each * (steps * batch if steps else count * float(options.get("epochs", 1.0)))

    def _tokens_of(self, rows: Rows, tokenizer: Any, length: int) -> float:
        """Tokens of a row; a guess where they cannot be trained on, which the training will say."""
        try:
            encoded = encode_rows(rows, tokenizer, max_length=length, prompt_options=self.site.design.asked)
        except CatchmentError:
            return float(UNKNOWN_TOKENS)
        return encoded.tokens / max(len(rows), 1)


def check_contexts(site: Site) -> None:
    """Encode every item of every question for every tokenizer: a prompt beyond the context is said before any compute.

    Raises:
        GateError: Names the task, its longest item and the context.
    """
    prices, seen = Prices(site), set()
    for place in site.design.places:
        opened = prices.tokenizer(place)
        card = site.card(place)
        if opened is None or not isinstance(card, ModelCard):
            continue
        for question in site.design.questions:
            key = (card.tokenizer_hash, opened[1], question.name, question.format, question.shots)
            if question.task is None or key in seen:
                continue
            seen.add(key)
            asked = site.design.asked
            try:
                prepare(opened[0], question.task, format=question.format, items=question.items, prompt_options=asked,
                        context=opened[1], drop_long=site.design.settings.drop_long)  # fmt: skip
            except GateError as error:
                raise GateError(f"{place.name}: {error}") from error
