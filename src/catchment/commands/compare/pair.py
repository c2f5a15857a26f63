"""The two models of a comparison and what they are asked: how they are opened, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catchment import models
from catchment.capabilities import PromptOptions, Task, gates, resolve_tasks
from catchment.commands.compare.settings import CompareSettings
from catchment.errors import InputError, ModelError, TaskError
from catchment.measuring import Clock, Progress, Subject, text_task
from catchment.runs import Store, claim_folder


@dataclass(frozen=True)
class Pair:
    """What is compared with what, and how.

    Attributes:
        base, tuned: The two models; their weights are read when something is measured.
        tasks, text, prompts: What they are asked; ``prompts`` are unlabelled.
        store: Where rows are kept.
        notes: What differs between the two, and what follows.
        task_notes: What a reader must know of each task.
    """

    settings: CompareSettings
    base: Subject
    tuned: Subject
    tasks: tuple[Task, ...]
    text: Task | None
    prompts: Task | None
    store: Store
    progress: Progress
    clock: Clock
    notes: tuple[str, ...] = ()
    task_notes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def subjects(self) -> tuple[Subject, Subject]:
        return self.base, self.tuned

    @property
    def out(self) -> Path | None:
        return self.settings.out

    def locked(self) -> AbstractContextManager[object]:
        """Inside, no other comparison writes to OUT."""
        return nullcontext() if self.out is None else Store(self.out).lock("compare")


def open_pair(
    settings: CompareSettings,
    progress: Progress,
    tokenizer: Any = None,
    asked: PromptOptions | None = None,
    started: float | None = None,
) -> Pair:
    """Read what the two names mean, and refuse what cannot be compared.

    Args:
        asked: How the models are asked, where a caller has read it already.
        started: When the command began, on ``time.perf_counter``; now by default.
    """
    clock = Clock(time.perf_counter() if started is None else started, settings.seconds)
    progress.clock(clock.remaining)
    tasks = resolve_tasks(settings.tasks)
    task_notes = {task.name: gates.check_task(task) for task in tasks}
    text, prompts = _unscored(settings, tasks)
    progress.status("reading the models")
    for spec, revision in ((settings.base, settings.revision), (settings.tuned, settings.tuned_revision)):
        if isinstance(spec, (str, Path)):
            models.resolve(str(spec), revision)  # a name that means nothing is said before anything is loaded
    shape: dict[str, Any] = {
        "asked": asked or PromptOptions(settings.chat_template, settings.system), "drop_long": settings.drop_long,
        "tokenizer": tokenizer, "check": clock.check,
    }  # fmt: skip
    options = settings.model_options()
    base = Subject("base", settings.base, {**options, "revision": settings.revision}, **shape)
    if isinstance(settings.tuned, (str, Path)) and options["dtype"] == "auto" and base.card.quantization is None:
        options["dtype"] = base.card.dtype
    tuned = Subject("tuned", settings.tuned, {**options, "revision": settings.tuned_revision}, **shape)
    notes = _comparable(base, tuned)
    _check_kinds(settings, base, tuned)
    if settings.out is not None:
        claim_folder(settings.out, _fingerprint(settings, base, tuned), "comparison")
    return Pair(
        settings, base, tuned, tuple(tasks), None if base.classifies else text, prompts, Store(settings.store_folder),
        progress, clock, tuple(notes), task_notes,
    )  # fmt: skip


def _unscored(settings: CompareSettings, tasks: list[Task]) -> tuple[Task | None, Task | None]:
    """The text for bits per byte and the unlabelled prompts; each kind of file has its own option."""
    for task in tasks:
        if task.scorer in ("text", "agreement"):
            option = "--text" if task.scorer == "text" else "--prompts"
            raise InputError(f"task {task.name!r} has no right answers to score; give it as {option} instead.")
    text = text_task(settings.text) if settings.text != "none" else None
    prompts = resolve_tasks([str(settings.prompts)])[0] if settings.prompts else None
    if prompts is not None and prompts.scorer != "agreement":
        raise InputError(
            f"--prompts {str(settings.prompts)!r} has labels; give it as a task: --tasks {settings.prompts}."
        )
    return text, prompts


def _check_kinds(settings: CompareSettings, base: Subject, tuned: Subject) -> None:
    """Refuse before anything is measured what could only fail afterwards."""
    if settings.prompts and base.card.tokenizer_hash != tuned.card.tokenizer_hash:
        raise TaskError("--prompts: agreement needs one tokenizer for both models; theirs differ. Leave out --prompts.")
    for option, given in (
        ("--prompts", settings.prompts), ("--recover", settings.recover), ("--system", base.asked.system),
        ("--chat-template FILE", base.asked.jinja),
    ):  # fmt: skip
        if given and (base.classifies or tuned.classifies):
            raise InputError(f"{option} is for language models; {base.card.name} is a {base.card.architecture}.")


def _comparable(base: Subject, tuned: Subject) -> list[str]:
    """What differs between the two and what follows. Refuses what cannot be compared."""
    a, b = base.card, tuned.card
    notes = []
    if a.weights_hash == b.weights_hash:
        notes.append("both names hold the same weights, byte for byte: there is nothing to lose or gain")
    if a.dtype != b.dtype and not (a.quantization or b.quantization):
        raise ModelError(
            f"{a.name} is in {a.dtype} and {b.name} in {b.dtype}; expected equal conditions. Add --dtype {a.dtype}."
        )
    if a.quantization != b.quantization:
        notes.append(f"precision differs ({a.quantization or a.dtype} against {b.quantization or b.dtype})")
    if a.tokenizer_hash != b.tokenizer_hash:
        notes.append("tokenizers differ: tasks are compared as text, log-probabilities per token are not")
    if a.template_hash != b.template_hash and base.asked.chat_template == "auto":
        notes.append("chat templates differ: each model was asked in its own (use --chat-template FILE for one)")
    if a.architecture != b.architecture:
        notes.append(f"architectures differ ({a.architecture} against {b.architecture}): drift is not defined")
    return notes


def _fingerprint(settings: CompareSettings, base: Subject, tuned: Subject) -> dict[str, Any]:
    return {
        "base": base.card.weights_hash,
        "tuned": tuned.card.weights_hash,
        "base_config": base.card.config_hash,
        "tuned_config": tuned.card.config_hash,
        "dtype": base.card.dtype,
        "chat_template": base.asked.key,
        "system": base.asked.system,
        "seed": settings.seed,
    }
