"""Where a study stands: every cell with its address in the store, what is there, and why the rest is not."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from catchment import models
from catchment.commands.study.design import Design, Place, Recipe, Unit
from catchment.commands.study.fetched import is_fetched, of_hub
from catchment.commands.study.questions import Question
from catchment.commands.study.record import Cell, Status
from catchment.commands.study.settings import StudySettings
from catchment.commands.study.tunings import key_of, read_tuned
from catchment.errors import CatchmentError, StoreError
from catchment.measuring import Subject
from catchment.records import ModelCard, from_json, to_json
from catchment.runs import Store, StoreWarning, canonical_json, cell_key, make_folder, write_atomic
from catchment.training import Rows, read_rows, seeded_rows

FAR = "its weights are not here yet"


@dataclass(frozen=True)
class Known:
    """What is known of a unit before it is loaded.

    Attributes:
        card: Identity of its weights; ``None`` until they are there, or trained.
        key: Address of its training.
        reason: Why there can be no card.
        waiting: What has to be done before there is one.
    """

    unit: Unit
    card: ModelCard | None
    key: str = ""
    reason: str = ""
    waiting: str = "its tuning is not trained yet"


@dataclass(frozen=True)
class Remark:
    """What is known of a cell beside its rows: why it failed, or how many items were left out."""

    reason: str = ""
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Stand:
    """One cell: who is asked what, its key in the store, the rows there and those wanted."""

    cell: Cell
    unit: Unit
    question: Question
    key: str
    have: int
    wanted: int
    status: Status
    reason: str = ""

    @property
    def open(self) -> bool:
        """Whether there is something to do."""
        return self.status in ("missing", "failed") and self.question.task is not None


@dataclass
class Site:
    """A study at its store: what workers, plans and reports share."""

    design: Design
    store: Store
    _cards: dict[Place, ModelCard | str] = field(default_factory=dict)
    _known: dict[tuple[str, str, str, int | None], Known] = field(default_factory=dict)

    @classmethod
    def open(cls, settings: StudySettings, design: Design) -> Site:
        if settings.store_folder.is_file():
            raise StoreError(f"--store {str(settings.store_folder)!r} is a file; expected a folder, which may be new.")
        return cls(design, Store(settings.store_folder))

    def card(self, place: Place) -> ModelCard | str:
        """Identity of a checkpoint, or why it is not known: empty where it only has to be fetched. Cost: loading it,
        the first time ever; nothing is fetched."""
        if place not in self._cards:
            self._cards[place] = self._look(place)
        return self._cards[place]

    def _look(self, place: Place) -> ModelCard | str:
        if self.is_far(place):
            return self._remembered(place) or remark_of(self.store, fetch_key(place)).reason
        try:
            subject = self.subject(place)
            return models.card_of(place.spec, **subject.options) or subject.loaded.card
        except CatchmentError as error:
            return str(error)

    @staticmethod
    def is_far(place: Place) -> bool:
        """Whether the weights have to be fetched first."""
        return of_hub(place) and not is_fetched(place)

    def fetched(self, place: Place, card: ModelCard) -> None:
        """A checkpoint was fetched and loaded; its identity is remembered, so that it may be dropped."""
        self._cards[place] = card
        self._known = {}
        make_folder(self._memory(place).parent)
        write_atomic(self._memory(place), to_json(card))
        remark(self.store, fetch_key(place), Remark())

    def _memory(self, place: Place) -> Path:
        return self.store.root / "checkpoints" / f"{fetch_key(place)}.json"

    def _remembered(self, place: Place) -> ModelCard | None:
        try:
            return from_json(ModelCard, self._memory(place).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def subject(self, place: Place, card: ModelCard | None = None) -> Subject:
        """A checkpoint as a model under test."""
        s = self.design.settings
        options = {**s.model_options(), "revision": place.revision}
        return Subject("base", place.spec, options, self.design.asked, s.drop_long, _card=card)

    def rows(self, recipe: Recipe) -> Rows:
        """The rows that a recipe trains on."""
        return _rows(recipe.data, recipe.rows, self.design.settings.seed)

    def known(self, unit: Unit) -> Known:
        """Identity of a unit, as far as it is there; what has one keeps it."""
        c = unit.place.checkpoint
        name = (c.model, c.revision, unit.tuning, unit.seed)
        known = self._known.get(name)
        if known is None or (known.card is None and known.key):  # perhaps trained since
            known = self._known[name] = self._look_at(unit, known.key if known else "")
        return known

    def forget(self) -> None:
        """Look again at what others may have trained meanwhile, also where a training was there before."""
        self._known = {}

    def refresh(self) -> None:
        """The same, and look again at checkpoints that were not here or could not be loaded: perhaps fetched since."""
        self._cards = {place: card for place, card in self._cards.items() if isinstance(card, ModelCard)}
        self.forget()

    def _look_at(self, unit: Unit, key: str) -> Known:
        base = self.card(unit.place)
        if isinstance(base, str):
            return Known(unit, None, reason=base, waiting=FAR)
        if unit.recipe is None:
            return Known(unit, base)
        if unit.recipe.model:
            return self._ready_made(unit)
        try:
            key = key or key_of(unit, base, self.rows(unit.recipe), self.design.asked)
        except CatchmentError as error:
            return Known(unit, None, reason=str(error))
        tuned = read_tuned(self.store, key)
        return Known(unit, tuned.card if tuned else None, key)

    def _ready_made(self, unit: Unit) -> Known:
        place = ready_made(unit)
        card = self.card(place)
        return Known(unit, None, reason=card) if isinstance(card, str) else Known(unit, card)

    def stands(self) -> Iterator[Stand]:
        """Every cell of the grid, in order. Cost: a key and two look-ups each."""
        counts, remarks = self.store.counts(), read_remarks(self.store)
        for place in self.design.places:
            for unit in self.design.units(place):
                yield from self.stands_of(self.known(unit), counts, remarks)

    def stands_of(self, known: Known, counts: Mapping[str, int], remarks: Mapping[str, Remark]) -> Iterator[Stand]:
        """The cells of one unit."""
        subject = None if known.card is None else Subject("tuned", None, {}, self.design.asked, _card=known.card)
        failed = remarks.get(known.key, Remark()).reason or known.reason
        for question in self.design.questions:
            cell = cell_of(known.unit, question)
            if question.task is None or subject is None:
                status = question.status if question.task is None else "failed" if failed else "missing"
                reason = question.reason or failed or known.waiting
                yield Stand(cell, known.unit, question, "", 0, question.wanted, status, reason)
                continue
            key = cell_key(subject.conditions(question.task, question.format))
            remark = remarks.get(key, Remark())
            have = counts.get(key, 0)
            done = have + remark.left_out >= question.wanted
            status = "done" if done else "failed" if remark.reason else "missing"
            said = f"{remark.left_out} items longer than the context were left out" if remark.left_out else ""
            yield Stand(cell, known.unit, question, key, have, question.wanted, status, said if done else remark.reason)


def fetch_key(place: Place) -> str:
    """Address of what is known of fetching a checkpoint."""
    return cell_key({"kind": "fetch", "spec": place.spec, "revision": place.revision})


def ready_made(unit: Unit) -> Place:
    """Where a tuned model that is there lies."""
    assert unit.recipe is not None
    c = unit.place.checkpoint
    spec = unit.recipe.model.replace("{model}", unit.place.spec).replace("{revision}", c.revision)
    return Place(spec, None, c, unit.place.parameters)


def cell_of(unit: Unit, question: Question) -> Cell:
    """Its place in the grid."""
    c = unit.place.checkpoint
    return Cell(
        c.model, c.revision, unit.tuning, unit.seed, question.name, question.format, question.shots, question.scorer
    )  # fmt: skip


@lru_cache(maxsize=32)
def _rows(data: str, limit: int | None, seed: int) -> Rows:
    rows = read_rows(data)
    return rows if limit is None else seeded_rows(rows, limit, seed)


def remark(store: Store, key: str, told: Remark) -> None:
    """Keep why a cell or a training failed, or what was left out; nothing said takes it back."""
    path = _remark(store, key)
    if told == Remark():
        path.unlink(missing_ok=True)
    elif read_remark(path) != told:
        make_folder(path.parent)
        content = {"reason": told.reason, "left_out": told.left_out}
        write_atomic(path, json.dumps({**content, "sha256": _digest(content)}))


def remark_of(store: Store, key: str) -> Remark:
    """What is known of one cell, training or scan."""
    return read_remark(_remark(store, key))


def read_remarks(store: Store) -> dict[str, Remark]:
    """All remarks, by key."""
    folder = store.root / "remarks"
    return {path.stem: read_remark(path) for path in folder.glob("[!.]*.json")} if folder.is_dir() else {}


def read_remark(path: Path) -> Remark:
    """What a file says; nothing where there is none, or it is damaged, so that the cell is tried again."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("sha256", None) not in (None, _digest(content)):
            raise ValueError("checksum")
        return Remark(str(content["reason"]), int(content["left_out"]))
    except FileNotFoundError:
        return Remark()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"{path} is damaged ({type(error).__name__}); the cell is tried again."
        warnings.warn(said, StoreWarning, stacklevel=2)
        return Remark()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _remark(store: Store, key: str) -> Path:
    return store.root / "remarks" / f"{key}.json"
