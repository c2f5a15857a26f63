"""Opening a tune: data, base, method and items, all checked before anything is trained."""

from __future__ import annotations

import dataclasses
import random
import warnings
from typing import Any

from catchment import models
from catchment.capabilities import PromptOptions, Task, context_length, gates, resolve_tasks, sample
from catchment.commands.tune.opened import Opened
from catchment.commands.tune.protection import affordable, check_admission, split_by_use
from catchment.commands.tune.settings import TuneSettings
from catchment.commands.tune.warned import kept_warnings
from catchment.errors import InputError, did_you_mean
from catchment.measuring import Progress
from catchment.methods import METHODS, Method, encode_for
from catchment.options import parse_pairs
from catchment.training import Rows, as_task, pack, read_rows, split_rows

MOST_HELD = 200
OWN = "held_out"
"""Name of the task that is made of the rows that were not trained on."""


def open_tune(settings: TuneSettings, progress: Progress, tokenizer: Any = None) -> Opened:
    """Read and check everything; nothing is written yet."""
    with kept_warnings() as texts:
        opened = _open(settings, progress, tokenizer)
    told = [*(f"{opened.loaded.card.name}: {note}" for note in opened.loaded.card.notes), *texts]
    of_held_out = opened.warnings
    told = [*told, *of_held_out] if opened.classifies else [*of_held_out, *told]
    return dataclasses.replace(opened, warnings=tuple(told))


def _open(settings: TuneSettings, progress: Progress, tokenizer: Any) -> Opened:
    asked = PromptOptions(settings.chat_template, settings.system)
    progress.status("reading the data")
    rows = read_rows(settings.data)
    train, held = _split(settings, rows)
    method = make_method(settings)
    tasks, guarded = _tasks(settings, rows)
    _refuse_unfit(settings, rows, asked)
    protected = tuple(split_by_use(task, settings) for task in guarded)
    progress.status("reading the base")
    loaded = _base(settings, rows, tokenizer)
    longest = min(settings.max_length, context_length(loaded.model) or settings.max_length)
    if longest < settings.max_length:
        warnings.warn(f"max-length {settings.max_length} is lowered to the model's context of {longest}", stacklevel=2)
    encoded = encode_for(loaded, train, longest, asked)
    few = held.of(_drawn(held.rows, settings.seed))
    with kept_warnings() as of_held_out:
        own = as_task(held, OWN, limit=settings.limit, seed=settings.seed) if len(held) else None
    opened = Opened(
        settings=settings,
        asked=asked,
        tokenizer=None if tokenizer is None else loaded.tokenizer,
        method=_with_new_head(method, loaded),
        loaded=loaded,
        train=train,
        held=held,
        encoded=encoded,
        examples=pack(encoded.examples, longest, model=loaded.model) if settings.packing else encoded.examples,
        held_encoded=encode_for(loaded, few, longest, asked) if len(few) else None,
        own=own,
        protected=protected,
        tasks=tuple(tasks),
        progress=progress,
        warnings=tuple(of_held_out),
    )
    opened = dataclasses.replace(opened, protected=affordable(opened))
    _check_asked(opened)
    check_admission(opened)
    return opened


def _split(settings: TuneSettings, rows: Rows) -> tuple[Rows, Rows]:
    """Rows to train on, and those that are held out."""
    share = settings.held_out if settings.held_out < 1 else int(settings.held_out)
    return split_rows(rows, _held_count(share, len(rows)), settings.seed) if share else (rows, rows.of([]))


def _tasks(settings: TuneSettings, rows: Rows) -> tuple[list[Task], list[Task]]:
    """Tasks to compare on, and those to protect. A classifier has none of either."""
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
    return tasks, guarded


def _refuse_unfit(settings: TuneSettings, rows: Rows, asked: PromptOptions) -> None:
    """Options that rows of this kind have no use for."""
    if rows.kind == "classification" and (asked.system or asked.jinja):
        raise InputError(
            f"--system {asked.system!r}, --chat-template {asked.chat_template!r}: classification rows train a "
            "classifier, which is asked nothing; leave them out."
        )
    if asked.system and rows.kind == "text":
        warnings.warn("--system is for the tasks only: rows of text are trained as they stand", stacklevel=2)


def _base(settings: TuneSettings, rows: Rows, tokenizer: Any) -> models.LoadedModel:
    """The base, refused where it does not fit the rows."""
    head = _head(rows)
    if settings.head not in ("auto", head):
        raise InputError(f"head {settings.head!r} does not fit rows of {rows.kind}; expected {head!r}, or 'auto'.")
    loaded = load_base(settings, rows, tokenizer)
    classifies = rows.kind == "classification"
    gates.check_model(loaded.card.name, _lost(loaded, classifies), ())
    if classifies and loaded.model.config.num_labels != len(rows.classes):
        raise InputError(
            f"{rows.name} has {len(rows.classes)} classes ({', '.join(map(str, rows.classes[:5]))}) and the model's "
            f"head is for {loaded.model.config.num_labels}; expected equal numbers. Set num_labels in its config.json."
        )
    return loaded


def _head(rows: Rows) -> str:
    return "sequence-classification" if rows.kind == "classification" else "causal-lm"


def load_base(settings: TuneSettings, rows: Rows, tokenizer: Any = None) -> models.LoadedModel:
    """The base with the head that these rows need."""
    return models.load(settings.base, tokenizer=tokenizer, **{**settings.model_options(), "head": _head(rows)})


def _drawn(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """At most :data:`MOST_HELD` of the rows, drawn by the seed."""
    if len(rows) <= MOST_HELD:
        return rows
    chosen = sorted(random.Random(seed).sample(range(len(rows)), MOST_HELD))
    return [rows[i] for i in chosen]


def _held_count(asked: float, rows: int) -> int:
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


def _check_asked(opened: Opened) -> None:
    """Encode all that is asked later: a prompt beyond the context, or one that the template refuses, is said before
    the training and not after it."""
    names = {item.guard.name for item in opened.protected}
    others = [task for task in opened.tasks if task.name not in names]
    parts = [part for p in opened.protected for part in (p.pilot, p.replayed, p.guard, p.judged)]
    parts += [task.with_items(sample(task.items, opened.settings.limit, opened.settings.seed)) for task in others]
    own = [] if opened.classifies or opened.own is None else [opened.own]
    for part in [*parts, *own]:
        opened.prepared(part)
