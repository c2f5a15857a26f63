"""Opening a tune: data, base, method and items, all checked before anything is trained."""

from __future__ import annotations

import dataclasses
import json
import random
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catchment import models
from catchment.capabilities import (
    GENERATED_SCORERS,
    Prepared,
    PromptOptions,
    Task,
    context_length,
    evaluate,
    gates,
    prepare,
    resolve_tasks,
    sample,
)
from catchment.commands.tune.settings import TuneSettings
from catchment.errors import InputError, did_you_mean
from catchment.measuring import CPU_BATCH, Progress
from catchment.methods import METHODS, Method, encode_for, steps_of
from catchment.options import parse_pairs
from catchment.runs import claim_folder, processes
from catchment.statistics import admission
from catchment.training import Encoded, Rows, as_task, pack, read_rows, split_items, split_rows

RATES = {"sift": 1e-3, "lora": 2e-4}
RATE = 2e-5
MOST_HELD = 200
GUARD, LEAST_GUARD, PILOT, REPLAYED = 128, 96, 32, 64
"""Items per protected task that the fence looks at, at most and at least, that the room before is measured on, and
whose answers are replayed, at most."""
LOOKS = 24
"""Evaluations of the guard items that a training takes, pulls included, as far as plans go."""
OWN = "held_out"
"""Name of the task that is made of the rows that were not trained on."""


@dataclass(frozen=True)
class Protected:
    """A task to be kept, and its items by what they serve; the judged ones are seen at the end only.

    Attributes:
        pilot: For the room before training.
        replayed: Items whose answers the base is replayed on, the pilot's among them.
        guard: For the fence.
        judged: For the comparison at the end.
    """

    pilot: Task
    replayed: Task
    guard: Task
    judged: Task


@dataclass
class TuneJob:
    """One tune at work.

    Attributes:
        asked: How the model is asked, by everything in it.
        tokenizer: That of the caller, where it is not the base's own.
    """

    settings: TuneSettings
    asked: PromptOptions
    tokenizer: Any
    method: Method
    loaded: models.LoadedModel
    train: Rows
    held: Rows
    encoded: Encoded
    examples: list[dict[str, Any]]
    held_encoded: Encoded | None
    protected: list[Protected]
    tasks: list[Task]
    out: Path
    progress: Progress
    warnings: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.settings.learning_rate or RATES.get(self.method.name, RATE)

    @property
    def max_length(self) -> int:
        """Tokens per row: what was asked for, as far as the model's context goes."""
        return min(self.settings.max_length, context_length(self.loaded.model) or self.settings.max_length)

    @property
    def steps(self) -> int:
        """Optimizer steps of one training."""
        s = self.settings
        rows = s.batch_size * processes.count()
        return s.max_steps or steps_of(len(self.examples), rows, s.accumulation, s.epochs)

    @property
    def tokens_per_row(self) -> float:
        """Mean over what is trained on: rows, or with packing full blocks of them."""
        return self.encoded.tokens / max(len(self.examples), 1)

    @property
    def rows_per_step(self) -> int:
        return self.settings.batch_size * self.settings.accumulation * processes.count()

    @property
    def tokens(self) -> float:
        """About as many are trained on by one training, replay left out."""
        return self.tokens_per_row * self.rows_per_step * self.steps

    @property
    def batch_tokens(self) -> int | None:
        """Padded tokens per forward pass of an evaluation; fixed on a CPU, so that equal runs have equal batches."""
        return self.settings.batch_tokens or (CPU_BATCH if self.loaded.card.device.startswith("cpu") else None)

    @property
    def classifies(self) -> bool:
        return self.train.kind == "classification"


def open_tune(settings: TuneSettings, progress: Progress, tokenizer: Any = None) -> TuneJob:
    """Read and check everything; nothing is written yet."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        job = _open(settings, progress, tokenizer)
    job.warnings += [f"{job.loaded.card.name}: {note}" for note in job.loaded.card.notes]
    job.warnings += [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    return job


def _open(settings: TuneSettings, progress: Progress, tokenizer: Any) -> TuneJob:
    asked = PromptOptions(settings.chat_template, settings.system)
    progress.status("reading the data")
    rows = read_rows(settings.data)
    held_out = settings.held_out if settings.held_out < 1 else int(settings.held_out)
    train, held = split_rows(rows, _held(held_out, len(rows)), settings.seed) if held_out else (rows, rows.of([]))
    method = make_method(settings)
    classifies = rows.kind == "classification"
    tasks = [] if settings.tasks == ("none",) or classifies else resolve_tasks(settings.tasks)
    guarded = resolve_tasks(settings.protect) if settings.protect else []
    if classifies and settings.tasks not in (("default",), ("none",)):
        raise InputError("--tasks needs a language model, and classification rows train a classifier; leave it out.")
    if settings.eval_steps and not tasks:
        raise InputError(f"--eval-steps {settings.eval_steps} measures tasks, and there are none; leave it out.")
    if settings.pull and not guarded:
        raise InputError(f"--pull {settings.pull:g} is a protection: name what it is to protect, --protect TASK.")
    if classifies and guarded:
        raise InputError("--protect needs a language model, and classification rows train a classifier; leave it out.")
    if classifies and (asked.system or asked.jinja):
        raise InputError(
            f"--system {asked.system!r}, --chat-template {asked.chat_template!r}: classification rows train a "
            "classifier, which is asked nothing; leave them out."
        )
    if asked.system and rows.kind == "text":
        warnings.warn("--system is for the tasks only: rows of text are trained as they stand", stacklevel=2)
    protected = [_protected(task, settings) for task in guarded]
    progress.status("reading the base")
    head = _head(rows)
    if settings.head not in ("auto", head):
        raise InputError(f"head {settings.head!r} does not fit rows of {rows.kind}; expected {head!r}, or 'auto'.")
    loaded = load_base(settings, rows, tokenizer)
    gates.check_model(loaded.card.name, _lost(loaded, classifies), ())
    method = _with_new_head(method, loaded)
    if classifies and loaded.model.config.num_labels != len(rows.classes):
        raise InputError(
            f"{rows.name} has {len(rows.classes)} classes ({', '.join(map(str, rows.classes[:5]))}) and the model's "
            f"head is for {loaded.model.config.num_labels}; expected equal numbers. Set num_labels in its config.json."
        )
    longest = min(settings.max_length, context_length(loaded.model) or settings.max_length)
    if longest < settings.max_length:
        warnings.warn(f"max-length {settings.max_length} is lowered to the model's context of {longest}", stacklevel=2)
    encoded = encode_for(loaded, train, longest, asked)
    examples = encoded.examples
    if settings.packing:
        examples = pack(examples, longest, model=loaded.model)
    few = held.of(_drawn(held.rows, settings.seed))
    job = TuneJob(
        settings, asked, None if tokenizer is None else loaded.tokenizer, method, loaded, train, held, encoded,
        examples, encode_for(loaded, few, longest, asked) if len(few) else None,
        protected, tasks, settings.out or Path("."), progress,
    )  # fmt: skip
    _spare(job)
    _check_asked(job)
    _admit(job)
    return job


def _head(rows: Rows) -> str:
    return "sequence-classification" if rows.kind == "classification" else "causal-lm"


def load_base(settings: TuneSettings, rows: Rows, tokenizer: Any = None) -> models.LoadedModel:
    """The base with the head that these rows need."""
    return models.load(settings.base, tokenizer=tokenizer, **{**settings.model_options(), "head": _head(rows)})


def _spare(job: TuneJob) -> None:
    """Fewer guard items where looking at all of them would cost more than the training: a trained token counts for
    three, because its backward pass costs two forward passes."""
    if not job.protected:
        return
    each = 0.0
    for item in job.protected:
        few = sample(item.guard.items, min(16, len(item.guard.items)), job.settings.seed)
        made = prepared(job, item.guard.with_items(few))
        each += made.tokens / len(few)
    wanted = int(3 * job.tokens / (LOOKS * max(each, 1.0)))
    n = min(max(LEAST_GUARD, min(GUARD, wanted)), *(len(p.guard.items) for p in job.protected))
    job.protected = [
        dataclasses.replace(p, guard=p.guard.with_items(sample(p.guard.items, n, job.settings.seed)))
        for p in job.protected
    ]  # fmt: skip


def claim(job: TuneJob) -> None:
    """Make OUT the folder of this tune, when all else has been found right."""
    if job.settings.out is not None and processes.is_main():
        claim_folder(job.settings.out, _fingerprint(job), "tune")


def _drawn(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """At most :data:`MOST_HELD` of the rows, drawn by the seed."""
    if len(rows) <= MOST_HELD:
        return rows
    chosen = sorted(random.Random(seed).sample(range(len(rows)), MOST_HELD))
    return [rows[i] for i in chosen]


def _held(asked: float, rows: int) -> int:
    count = int(asked) if asked >= 1 else max(1, round(asked * rows))
    if count >= rows:
        raise InputError(f"held-out {asked:g} of {rows} rows leaves nothing to train on; expected fewer, e.g. 0.1.")
    return count


def make_method(settings: TuneSettings) -> Method:
    """The method by its name, with ``--sparsity`` and ``--method-args``.

    Raises:
        InputError: An unknown method or setting, or a value that it cannot have.
    """
    kind = METHODS.get(settings.method)
    if kind is None:
        known = ", ".join(METHODS)
        hint = did_you_mean(settings.method, METHODS)
        raise InputError(f"method {settings.method!r}: expected one of {known}.{hint}")
    values = parse_pairs(settings.method_args, kind, "method-args", f"of {settings.method}")
    if settings.sparsity is not None:
        if "sparsity" not in {f.name for f in dataclasses.fields(kind)}:
            raise InputError(f"sparsity {settings.sparsity:g} is a setting of sift, not of {settings.method}.")
        values["sparsity"] = settings.sparsity
    return kind(**values)


def _lost(loaded: models.LoadedModel, classifies: bool) -> list[str]:
    """Weights that the base's files lack and that training must not start at random: all but a classifier's head."""
    family = models.family_of(loaded.model)
    places = {name: models.locate(name, family) for name in loaded.newly_initialised}
    new_head = {name for name, (block, kind) in places.items() if classifies and block is None and kind != "embedding"}
    return [name for name in loaded.newly_initialised if name not in new_head]


def _with_new_head(method: Method, loaded: models.LoadedModel) -> Method:
    """A head that the checkpoint does not have trains whole, as with PEFT's ``modules_to_save``."""
    names = {f.name for f in dataclasses.fields(method)}  # type: ignore[arg-type]
    if not loaded.newly_initialised or "modules_to_save" not in names or method.modules_to_save:  # type: ignore[attr-defined]
        return method
    modules = tuple(dict.fromkeys(name.rpartition(".")[0] for name in loaded.newly_initialised))
    return dataclasses.replace(method, modules_to_save=modules)  # type: ignore[type-var]


def _protected(task: Task, settings: TuneSettings) -> Protected:
    split = split_items(task, settings.seed)
    parts = zip((split.pilot, *split), (PILOT, REPLAYED, GUARD, settings.limit), strict=True)
    cut = [part.with_items(sample(part.items, _fewer(limit, part), settings.seed)) for part, limit in parts]
    return Protected(*cut)


def _fewer(limit: int | None, task: Task) -> int | None:
    return None if limit is None or limit >= len(task.items) else limit


def prepared(job: TuneJob, task: Task) -> Prepared:
    """The task's items as the base is asked with them, before, during and after the training."""
    return prepare(job.loaded.tokenizer, task, prompt_options=job.asked, context=context_length(job.loaded.model))


def _check_asked(job: TuneJob) -> None:
    """Encode all that is asked later: a prompt beyond the context, or one that the template refuses, is said before
    the training and not after it."""
    kept = {item.guard.name for item in job.protected}
    others = [task for task in job.tasks if task.name not in kept]
    parts = [part for p in job.protected for part in (p.pilot, p.replayed, p.guard, p.judged)]
    parts += [task.with_items(sample(task.items, job.settings.limit, job.settings.seed)) for task in others]
    own = None if job.classifies else own_task(job)
    for part in [*parts, *([own] if own else [])]:
        prepared(job, part)


def _admit(job: TuneJob) -> None:
    """Refuse to protect what the base cannot do: there a drop cannot be seen."""
    for item in job.protected:
        job.progress.status(f"what the base can do · {item.guard.name}")
        scores = evaluate(
            job.loaded.model, item.guard, tokenizer=job.loaded.tokenizer, prompt_options=job.asked,
            batch_tokens=job.batch_tokens,
        )  # fmt: skip
        admitted, reason = admission(
            [row.score for row in scores.rows], scores.chance, generated=item.guard.scorer in GENERATED_SCORERS
        )
        if not admitted:
            raise InputError(f"--protect {item.guard.name}: {reason} Protect tasks that the base can do.")


def own_task(job: TuneJob) -> Task | None:
    """The held-out rows as a task, where they have short answers."""
    if not len(job.held):
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = as_task(job.held, OWN, limit=job.settings.limit, seed=job.settings.seed)
    job.warnings += [str(w.message) for w in caught]
    return task


def _fingerprint(job: TuneJob) -> dict[str, Any]:
    """What decides the result; other settings may change between a run and its resumption."""
    s = job.settings
    names = (
        "method_args", "sparsity", "epochs", "max_steps", "batch_size", "accumulation", "max_length", "packing",
        "training_args", "held_out", "protect", "max_drop", "replay", "replay_weight", "pull", "fence_steps",
        "seed", "eval_steps", "on_drop",
    )  # fmt: skip
    judged = ("alpha",) if s.protect else ()
    watched = ("tasks", "eval_limit", "margin", "alpha") if s.eval_steps and s.on_drop == "stop" else ()
    card = job.loaded.card
    return {
        "base": card.weights_hash,
        "dtype": card.dtype,
        "data": job.train.fingerprint,
        "method": job.method.name,
        "learning_rate": job.rate,
        **job.asked.conditions(job.loaded.tokenizer),
        **{name: getattr(s, name) if not isinstance(getattr(s, name), tuple) else [str(v) if not isinstance(v, Task)
           else v.name for v in getattr(s, name)] for name in (*names, *judged, *watched)},
    }  # fmt: skip


def settings_told(job: TuneJob) -> dict[str, Any]:
    """The settings of a record: the method's own, and those of the training."""
    method = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(job.method).items()}  # type: ignore[call-overload]
    s = job.settings
    training = {
        name: getattr(s, name)
        for name in (
            "epochs", "max_steps", "batch_size", "accumulation", "max_length", "packing", "seed", "held_out",
            "training_args", *(("replay", "replay_weight", "pull", "fence_steps") if job.protected else ()),
            *(("eval_steps", "on_drop") if s.eval_steps else ()),
        )
    }  # fmt: skip
    return json.loads(json.dumps({**method, "learning_rate": job.rate, **training}, default=str))
