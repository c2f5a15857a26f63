"""One model under test: the model, how it is asked, and where its rows are."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from catchment import models
from catchment.capabilities import (
    DATE,
    Engine,
    Item,
    Prepared,
    PromptOptions,
    Task,
    context_length,
    gates,
    make_engine,
    measure_speed,
    prepare,
    resolve_tasks,
)
from catchment.errors import InputError, ModelError
from catchment.landscape import Ground
from catchment.records import ModelCard
from catchment.runs import Cell, Store, cell_key, processes

CPU_BATCH = 1024
"""Padded tokens per forward pass on a CPU: more is no faster."""
POLICY = "sorted-1"
"""How items become batches; part of every cell's address. Raised when scores could change beyond rounding."""


@dataclass
class Subject:
    """One model under test: its card at once where the files are known, its weights only when something is to be
    measured.

    Attributes:
        check: Called before every forward pass; raises where no more may be measured.
        notes: What a reader must know of the model and of how its rows were made. It grows while rows are measured or
            read (:meth:`hear`, :meth:`prepare`), and nothing else here does; a record reads it at its end.
    """

    role: Literal["base", "tuned"]
    spec: Any
    options: dict[str, Any]
    asked: PromptOptions
    drop_long: bool = False
    tokenizer: Any = None
    _card: ModelCard | None = None
    _loaded: models.LoadedModel | None = None
    _engine: Engine | None = None
    notes: list[str] = field(default_factory=list)
    check: Callable[[], None] = lambda: None

    @property
    def card(self) -> ModelCard:
        if self._card is None:
            self._card = models.card_of(self.spec, tokenizer=self.tokenizer, **self.options) or self.loaded.card
            self.notes += [f"{self._card.name}: {note}" for note in self._card.notes]
        return self._card

    @property
    def classifies(self) -> bool:
        return self.card.architecture.endswith("Classification")

    @property
    def loaded(self) -> models.LoadedModel:
        if self._loaded is None:
            ready = isinstance(self.spec, models.LoadedModel)
            loaded = (
                with_tokenizer(self.spec, self.tokenizer)
                if ready
                else models.load(self.spec, tokenizer=self.tokenizer, **self.options)
            )
            self._refuse_another(loaded.card)
            gates.check_model(loaded.card.name, loaded.newly_initialised, models.non_finite(loaded.model))
            self._loaded = loaded
        return self._loaded

    def _refuse_another(self, loaded: ModelCard) -> None:
        """Rows are stored under the card; what was loaded must be the model that the card is of.

        Raises:
            ModelError: The files were replaced after the card was read.
        """
        for part in ("weights_hash", "config_hash", "tokenizer_hash", "template_hash"):
            if self._card is not None and getattr(self._card, part) != getattr(loaded, part):
                what = part.removesuffix("_hash")
                raise ModelError(
                    f"the files of {loaded.name!r} changed after the run began: the hash of the {what} as loaded is "
                    "not the one read first. Run it again while nothing writes to them."
                )

    def engine(self, batch_tokens: int | None) -> Engine:
        if self._engine is None:
            loaded = self.loaded
            self._engine = make_engine(loaded.model, loaded.tokenizer, batch_tokens)
            self._engine.check = self.check
        self._engine.batch_tokens = batch_tokens or self._engine.batch_tokens
        return self._engine

    @property
    def engine_notes(self) -> list[str]:
        """What the engine has said so far of how its rows were made; a classifier has none."""
        return [] if self._engine is None else self._engine.notes

    def hear(self, cell: Cell) -> None:
        """Take over what was said when the rows of a cell were made, by this process or another."""
        self.notes += [note for note in cell.notes() if note not in self.notes]

    def prepare(self, task: Task, form: str, items: Sequence[Item]) -> Prepared:
        loaded = self.loaded
        note = self.asked.note_for(loaded.tokenizer, task)
        if note is not None and note not in self.notes:
            self.notes.append(note)
        return prepare(
            loaded.tokenizer, task, format=form, items=items, prompt_options=self.asked,
            context=context_length(loaded.model), drop_long=self.drop_long,
        )  # fmt: skip

    def template_hash(self, task: Task) -> str:
        if task.style == "continue" or self.asked.chat_template == "none":
            return "none"
        return self.card.template_hash if self.asked.chat_template == "auto" else self.asked.key

    def conditions(self, task: Task, form: str) -> dict[str, Any]:
        """Everything that decides a row: the address of its cell."""
        card, template = self.card, self.template_hash(task)
        return {
            "weights": card.weights_hash,
            "config": card.config_hash,
            "tokenizer": card.tokenizer_hash,
            "template": template,
            "system": self.asked.system,
            **({} if template == "none" else {"date": f"{DATE:%Y-%m-%d}"}),
            "task": task.hash(),
            "name": task.name,
            "format": form,
            "dtype": card.dtype,
            "attention": card.attention,
            "device": card.device.split(":")[0],
            "quantization": card.quantization,
            "policy": POLICY,
        }

    def cell(self, store: Store, task: Task, form: str) -> Cell:
        conditions = self.conditions(task, form)
        return store.cell(cell_key(conditions), conditions)

    def moved_cell(self, store: Store, ground: Ground, address: Mapping[str, Any]) -> Cell:
        """Where rows of this model at displaced points are kept: its own cell's address, and where it stood."""
        own = self.conditions(ground.prepared.task, ground.prepared.form.name)
        conditions = {**own, "moved": dict(address)}
        return store.cell(cell_key(conditions), conditions)


def with_tokenizer(loaded: models.LoadedModel, tokenizer: Any) -> models.LoadedModel:
    """The model asked with this tokenizer instead of its own; as it is with ``None``.

    Raises:
        InputError: The tokenizer of a loaded model by its name.
    """
    if tokenizer is None or tokenizer is loaded.tokenizer:
        return loaded
    if isinstance(tokenizer, (str, Path)):
        raise InputError(
            f"tokenizer {str(tokenizer)!r} for the loaded model {loaded.spec!r}: expected a tokenizer object, or the "
            "model by its name."
        )
    card = replace(
        loaded.card,
        tokenizer_hash=models.tokenizer_hash(tokenizer),
        template_hash=models.template_hash(tokenizer),
    )
    return replace(loaded, tokenizer=tokenizer, card=card)


def environment(card: ModelCard) -> dict[str, Any]:
    """What a record says of the machine and the libraries."""
    versions = {name: importlib.metadata.version(name) for name in ("catchment", "torch", "transformers", "peft")}
    on_gpu = card.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or card.device,
        "threads": torch.get_num_threads(),
        "versions": {**versions, "python": platform.python_version()},
    }


def batch_tokens(subject: Subject, asked: int | None) -> int:
    """Padded tokens per forward pass: those asked for; on a CPU :data:`CPU_BATCH`; elsewhere measured, once, on this
    model. Processes that share a model take :data:`CPU_BATCH` too, because each would measure something else."""
    if asked:
        return asked
    if subject.card.device.startswith("cpu") or subject.classifies or processes.count() > 1:
        return CPU_BATCH
    engine = subject.engine(CPU_BATCH)
    engine.batch_tokens = measure_speed(engine).batch_tokens
    return engine.batch_tokens


def text_task(name: str) -> Task:
    """The text that ``--text`` names, as a task.

    Raises:
        InputError: Something that is scored otherwise.
    """
    text = resolve_tasks([name])[0]
    if text.scorer != "text":
        raise InputError(
            f"--text {name!r} is scored by {text.scorer!r}; expected 'text', 'none' or a .jsonl file with "
            'lines like {"text": "..."}.'
        )
    return text
