"""Opening a scan: the model, its tasks and what may move, all checked before anything is measured."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from catchment import landscape, models
from catchment.capabilities import PromptOptions, Task, gates, resolve_tasks
from catchment.commands.scan.clock import Clock
from catchment.commands.scan.journal import Earlier, take_up
from catchment.commands.scan.settings import ScanSettings
from catchment.errors import InputError, ModelError
from catchment.landscape import Evaluator, Ground, Mover, Subspace
from catchment.measuring import Progress, Subject, batch_tokens, text_task
from catchment.records import Ruler, SubspaceCard
from catchment.runs import Cell, Store, claim_folder, processes


@dataclass(frozen=True)
class Opened:
    """A scan that may begin.

    Attributes:
        subject: The model.
        card: Of the subspace.
        earlier: What OUT keeps of an earlier run.
        batch_tokens: Padded tokens per forward pass.
    """

    settings: ScanSettings
    subject: Subject
    tasks: tuple[Task, ...]
    store: Store
    progress: Progress
    clock: Clock
    subspace: Subspace
    card: SubspaceCard
    earlier: Earlier
    batch_tokens: int

    @property
    def ruler(self) -> Ruler:
        """What scales are chosen by, and widths are relative to."""
        assert self.card.ruler is not None, "a card of weights has one"
        return self.card.ruler

    @property
    def replayed(self) -> bool:
        """Whether an equal scan was finished here: nothing is measured again."""
        return self.earlier.finished

    def anew(self) -> Opened:
        """The same, to be measured within the budget that was asked for, from the start of this run on."""
        self.clock.budget, self.clock.spent_before, self.clock.open = self.settings.seconds, 0.0, True
        return replace(self, earlier=replace(self.earlier, budget=None, panels=()))

    def cell(self, ground: Ground, address: Mapping[str, Any]) -> Cell:
        """Where rows of a task at displaced points are kept: the model's own cell, and the displacement."""
        return self.subject.moved_cell(self.store, ground, address)

    def evaluator(self, grounds: Sequence[Ground]) -> Evaluator:
        """What evaluates these tasks at displaced points; a context manager."""
        loaded = self.subject.loaded
        mover = Mover(loaded.model, self.subspace, memory=self.settings.memory, files=loaded.files)  # type: ignore[arg-type]
        engine = self.subject.engine(self.batch_tokens)
        return Evaluator(engine, mover, list(grounds), self.cell, frozen=self.replayed, on_tokens=self.progress.advance)


def open_scan(settings: ScanSettings, progress: Progress, tokenizer: Any, started: float | None = None) -> Opened:
    """Load, refuse what cannot be scanned, take up what an earlier run left in OUT. ``started``: when the command
    began, on ``time.perf_counter``; now by default."""
    processes.join(settings.device)
    clock = Clock(settings.seconds, started=started)
    progress.clock(clock.remaining)
    if settings.workers > 1 and not isinstance(settings.model, (str, Path)):
        raise InputError("workers load the model themselves; expected a name or a path, not a model in memory.")
    if settings.through and processes.count() > 1:
        raise InputError("--through reads whole weights, and torchrun cuts them; scan without torchrun for it.")
    tasks = scan_tasks(settings)
    for spec in settings.through:
        models.resolve(str(spec))  # a name that means nothing is said before anything is measured
    progress.status("reading the model")
    asked = PromptOptions(settings.chat_template, settings.system)
    subject = Subject(
        "base", settings.model, settings.model_options(), asked, settings.drop_long, tokenizer, check=clock.check
    )
    subspace, card = _subspace(settings, subject)
    landscape.shard(subject.loaded.model)
    _claim(settings, subject, subspace)
    alone = processes.count() == 1
    store = Store(settings.store_folder if alone else _own_store())
    earlier = take_up(settings, tasks) if alone else Earlier()
    clock.spent_before = earlier.spent
    if earlier.budget is not None:
        clock.budget, clock.open = earlier.budget, False
    batch = settings.batch_tokens or earlier.notes.batch_tokens or batch_tokens(subject, None)
    return Opened(settings, subject, tuple(tasks), store, progress, clock, subspace, card, earlier, batch)


def scan_tasks(settings: ScanSettings) -> list[Task]:
    """The tasks, and the text as one more."""
    tasks = resolve_tasks(settings.tasks)
    for task in tasks:
        if task.scorer == "agreement":
            raise InputError(f"task {task.name!r} has no right answers to score; a scan needs labelled tasks.")
        gates.check_task(task)
    if settings.text == "none" or any(task.scorer == "text" for task in tasks):
        return tasks
    text = text_task(settings.text)
    return tasks if text.name in {task.name for task in tasks} else [*tasks, text]


def _subspace(settings: ScanSettings, subject: Subject) -> tuple[Subspace, SubspaceCard]:
    """What may move, and its card. Refuses a model that cannot be moved, or that cannot be asked."""
    subject.loaded.movable()
    if subject.classifies:
        raise ModelError(f"{subject.card.name} is a {subject.card.architecture}; scan takes causal language models.")
    model = subject.loaded.model
    subspace = Subspace.parse(model, settings.subspace)
    if settings.gradients and subspace.kind not in ("all", "glob"):
        raise InputError("--gradients looks at whole tensors; expected --subspace all or patterns of names.")
    if settings.gradients and models.named_weights(model, "adapter"):
        raise InputError("--gradients makes the model anew at random weights; it stands under an adapter. Merge it.")
    card = subspace.card(model)
    if settings.ladder is None and card.ruler is not None and card.ruler.rms == 0:
        raise InputError(
            f"the {card.ruler.of} of subspace {settings.subspace!r} hold only zeros, so it has no scale; give --ladder "
            "LOW:HIGH:RUNGS."
        )
    return subspace, card


def _claim(settings: ScanSettings, subject: Subject, subspace: Subspace) -> None:
    """Make OUT the folder of this scan."""
    if settings.out is not None and processes.is_main():
        card, asked = subject.card, subject.asked
        fingerprint = {
            "model": card.weights_hash, "config": card.config_hash, "dtype": card.dtype,
            "subspace": subspace.hash, "seed": settings.seed, "chat_template": asked.key,
            "system": asked.system,
        }  # fmt: skip
        claim_folder(settings.out, fingerprint, "scan")


def _own_store() -> Path:
    """A store that lasts as long as this process: kept rows that one process sees and another does not would make them
    part ways."""
    folder = Path(tempfile.mkdtemp(prefix="catchment-rank-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
