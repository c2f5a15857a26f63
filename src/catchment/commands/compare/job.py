"""One comparison at work: its two sides, tasks, plan and rows; how it is opened, and what is refused."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catchment import models
from catchment.capabilities import PromptOptions, Task, gates, resolve_tasks, sample
from catchment.commands.compare.allocation import CHUNKS, PILOT, Plan
from catchment.commands.compare.settings import CompareSettings
from catchment.errors import InputError, ModelError, TaskError
from catchment.measuring import CPU_BATCH, Clock, Progress, Subject, verdicts
from catchment.records import FormatResult, Row, TaskResult
from catchment.runs import Store, claim_folder


@dataclass
class Job:
    """One comparison at work."""

    settings: CompareSettings
    base: Subject
    tuned: Subject
    tasks: list[Task]
    text: Task | None
    prompts: Task | None
    store: Store
    out: Path
    progress: Progress
    clock: Clock
    warnings: list[str] = field(default_factory=list)
    task_warnings: dict[str, list[str]] = field(default_factory=dict)
    plan: Plan = field(default_factory=lambda: Plan((), None, CPU_BATCH))
    rows: dict[tuple[str, str, str], dict[str, Row]] = field(default_factory=dict)
    orders: dict[str, list[str]] = field(default_factory=dict)

    @property
    def sides(self) -> tuple[Subject, Subject]:
        return self.base, self.tuned

    @property
    def resumed(self) -> bool:
        """Whether a frozen plan was taken up."""
        return self.clock.resumed

    @property
    def measured(self) -> list[Task]:
        """Tasks that have rows of both models; a budget may end before a task's first item."""
        return [t for t in self.tasks if all(self.table(side, t, t.formats[0].name) for side in self.sides)]

    def table(self, side: Subject, task: Task, form: str) -> dict[str, Row]:
        return self.rows.setdefault((side.role, task.name, form), {})

    def add(self, side: Subject, task: Task, form: str, rows: dict[str, Row]) -> None:
        """Put rows into a table, in an order that does not depend on the steps in which they were measured: sums
        round the same in a run that goes on."""
        if task.name not in self.orders:
            size, order = len(task.items), dict[str, None]()
            for stop in (*range(PILOT, size, CHUNKS[0]), size):
                order |= dict.fromkeys(item.id for item in sample(task.items, stop, self.settings.seed))
            self.orders[task.name] = list(order)
        table = self.table(side, task, form)
        known = {**table, **rows}
        table.clear()
        table.update({name: known[name] for name in self.orders[task.name] if name in known})

    def result(self, task: Task) -> TaskResult:
        """The task's result from the rows of the default format measured so far."""
        s = self.settings
        base, tuned = (self.table(side, task, task.formats[0].name) for side in self.sides)
        warnings = list(self.task_warnings[task.name])
        missing = self.plan.of(task.name).items - len(base) if s.drop_long and self.plan.frozen else 0
        if missing > 0:
            warnings.append(f"{missing} items longer than the context were left out")
        return verdicts.task_result(
            task, base, tuned, margin=s.margin, alpha=s.alpha, family=len(self.tasks), warnings=warnings
        )

    def format_results(self, task: Task) -> tuple[FormatResult, ...]:
        """All prompt formats, on the items that they share; empty when only one was measured."""
        rest = [f for f in task.formats[1 : self.settings.formats] if self.table(self.tuned, task, f.name)]
        shared = self.table(self.tuned, task, rest[0].name) if rest else {}
        found = []
        for form in [task.formats[0], *rest] if rest else []:
            base, tuned = (self.table(side, task, form.name) for side in self.sides)
            base = {item: row for item, row in base.items() if item in shared}
            found.append(verdicts.format_result(form, base, tuned, alpha=self.settings.alpha))
        return tuple(found)


def open_job(
    settings: CompareSettings,
    progress: Progress,
    tokenizer: Any,
    asked: PromptOptions | None = None,
    started: float | None = None,
) -> Job:
    """Read what the two names mean, and refuse what cannot be compared.

    Args:
        asked: How the models are asked, where a caller has read it already.
        started: When the command began, on ``time.perf_counter``; now by default.
    """
    clock = Clock(time.perf_counter() if started is None else started, settings.seconds)
    progress.clock(clock.remaining)
    tasks = resolve_tasks(settings.tasks)
    task_warnings = {task.name: gates.check_task(task) for task in tasks}
    text, prompts = _unscored(settings, tasks)
    asked = asked or PromptOptions(settings.chat_template, settings.system)
    progress.status("reading the models")
    shared = settings.model_options()
    shape: dict[str, Any] = {"asked": asked, "drop_long": settings.drop_long, "tokenizer": tokenizer}
    for spec, revision in ((settings.base, settings.revision), (settings.tuned, settings.tuned_revision)):
        if isinstance(spec, (str, Path)):
            models.resolve(str(spec), revision)  # a name that means nothing is said before anything is loaded
    base = Subject("base", settings.base, {**shared, "revision": settings.revision}, **shape, check=clock.check)
    own = {**shared, "revision": settings.tuned_revision}
    named = isinstance(settings.tuned, (str, Path))
    if named and shared["dtype"] == "auto" and base.card.quantization is None:
        own["dtype"] = base.card.dtype
    tuned = Subject("tuned", settings.tuned, own, **shape, check=clock.check)
    warnings = _comparable(base, tuned)
    _check_kinds(settings, base, tuned)
    if base.classifies:
        text = None
    out = settings.out or Path(".")
    if settings.out is not None:
        claim_folder(settings.out, _fingerprint(settings, base, tuned), "comparison")
    store = Store(settings.store_folder)
    return Job(settings, base, tuned, tasks, text, prompts, store, out, progress, clock, warnings, task_warnings)


def _unscored(settings: CompareSettings, tasks: list[Task]) -> tuple[Task | None, Task | None]:
    """The text for bits per byte and the unlabelled prompts; each kind of file has its own option."""
    for task in tasks:
        if task.scorer in ("text", "agreement"):
            option = "--text" if task.scorer == "text" else "--prompts"
            raise InputError(f"task {task.name!r} has no right answers to score; give it as {option} instead.")
    text = resolve_tasks([settings.text])[0] if settings.text != "none" else None
    if text is not None and text.scorer != "text":
        raise InputError(
            f"--text {settings.text!r} is scored by {text.scorer!r}; expected 'text', 'none' or a .jsonl file with "
            'lines like {"text": "..."}.'
        )
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
    found = []
    if a.weights_hash == b.weights_hash:
        found.append("both names hold the same weights, byte for byte: there is nothing to lose or gain")
    if a.dtype != b.dtype and not (a.quantization or b.quantization):
        raise ModelError(
            f"{a.name} is in {a.dtype} and {b.name} in {b.dtype}; expected equal conditions. Add --dtype {a.dtype}."
        )
    if a.quantization != b.quantization:
        found.append(f"precision differs ({a.quantization or a.dtype} against {b.quantization or b.dtype})")
    if a.tokenizer_hash != b.tokenizer_hash:
        found.append("tokenizers differ: tasks are compared as text, log-probabilities per token are not")
    if a.template_hash != b.template_hash and base.asked.chat_template == "auto":
        found.append("chat templates differ: each model was asked in its own (use --chat-template FILE for one)")
    if a.architecture != b.architecture:
        found.append(f"architectures differ ({a.architecture} against {b.architecture}): drift is not defined")
    return found


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
