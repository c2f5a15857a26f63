"""What every model of a study is asked: tasks under prompt formats, with so many shots, scored in one way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from catchment.capabilities import (
    Described,
    Format,
    Item,
    Task,
    check_scorer,
    describe,
    describe_yaml,
    gates,
    resolve_tasks,
    sample,
    variant,
)
from catchment.commands.study import axes
from catchment.commands.study.axes import OWN, TaskAxis
from catchment.commands.study.record import Status
from catchment.commands.study.settings import StudySettings
from catchment.errors import CatchmentError, GateError, InputError, TaskError, did_you_mean


@dataclass(frozen=True)
class Question:
    """A task under one format, with its shots and scorer.

    Attributes:
        name: Of the task, in tables.
        task: With shots and scorer in place; ``None`` where it cannot be asked.
        items: The seeded sample that is asked.
        wanted: Number of items, known or declared.
        status: ``"missing"``: may be asked; ``"refused"``: a gate says no; ``"failed"``: the task is not here.
        reason: Why it cannot be asked.
        notes: What a reader must know of the task.
        total: Items that the task has, known or declared.
    """

    name: str
    format: str
    shots: int
    scorer: str
    task: Task | None = field(default=None, repr=False)
    items: tuple[Item, ...] = field(default=(), repr=False)
    wanted: int = 0
    status: Status = "missing"
    reason: str = ""
    split: str = ""
    notes: tuple[str, ...] = ()
    total: int = 0


def ask(s: StudySettings, tasks: Sequence[TaskAxis]) -> tuple[Question, ...]:
    """Every combination of task, shots, scorer and format. A task that is not here, or that a gate refuses, is kept
    with the reason.

    Raises:
        InputError: A task, a format or a number of shots twice; a format, shots or a scorer that a task cannot have.
    """
    shots, scorers = axes.read_shots(s.shots), axes.read_scorers(s.scorers)
    questions = [
        question
        for number, axis in enumerate(tasks)
        for entry in _entries(s, axis, f"tasks[{number}]")
        for count in shots
        for scorer in scorers
        for question in (_absent if entry.task is None else _asked)(s, entry, count, scorer)
    ]
    axes.distinct(((q.name, q.format, q.shots, q.scorer) for q in questions), "tasks")
    _check_items(questions)
    return tuple(questions)


def _check_items(questions: Sequence[Question]) -> None:
    """Refuse one task under two names: it would count twice in every mean."""
    names: dict[tuple[str, str], str] = {}
    for q in questions:
        if q.task is not None and names.setdefault((q.task.hash(), q.format), q.name) != q.name:
            first = names[q.task.hash(), q.format]
            raise InputError(
                f"tasks: {first!r} and {q.name!r} ask the same items; expected each task once. Remove one."
            )


@dataclass(frozen=True)
class _Entry:
    """A task of the grid with what is known of it: all, or what its description says and why there is no more."""

    axis: TaskAxis
    name: str
    task: Task | None = None
    pool: tuple[Item, ...] = ()
    said: Described | None = None
    status: Status = "failed"
    reason: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        return (self.axis.note,) if self.axis.note else ()


def _entries(s: StudySettings, axis: TaskAxis, where: str) -> list[_Entry]:
    """The tasks of one entry; "default" is several."""
    said = _described(s, axis, where)
    name = axis.name or (said.name if said else Path(axis.task).name.rpartition(":")[2])
    absent = _Entry(axis, name, said=said)
    if axis.unlabelled:
        return [dataclasses.replace(absent, status="refused", reason=axis.unlabelled)]
    try:
        tasks = [said.task()] if said else resolve_tasks([_path(s, axis.task)])
    except InputError:
        raise
    except CatchmentError as error:
        return [dataclasses.replace(absent, reason=_why(error))]
    if axis.name and len(tasks) > 1:
        raise InputError(f"task {axis.task!r} is {len(tasks)} tasks; expected one where a name {axis.name!r} is given.")
    try:
        pool = resolve_tasks([_path(s, axis.shots_from)])[0].items if axis.shots_from else ()
    except CatchmentError as error:
        reason = f"shots_from: {_why(error)}"
        names = [axis.name or task.name for task in tasks]
        return [dataclasses.replace(absent, name=name, reason=reason) for name in names]
    named = [dataclasses.replace(task, name=axis.name) if axis.name else task for task in tasks]
    return [_Entry(axis, task.name, task, pool, said) for task in named]


def _described(s: StudySettings, axis: TaskAxis, where: str) -> Described | None:
    """What an entry, or its YAML file, says of the task; nothing of other files and names."""
    path = Path(_path(s, axis.task))
    try:
        if axis.content:
            return describe(axis.content, s.study.parent if s.study is not None else Path(), where)
        return describe_yaml(path) if path.suffix in (".yaml", ".yml") else None
    except TaskError as error:
        raise InputError(str(error)) from error


def _why(error: CatchmentError) -> str:
    """The reason of an error, without the name of what it is about where that is known: many share one reason."""
    return str(getattr(error, "reason", error))


def _path(s: StudySettings, name: str) -> str:
    folder = s.study.parent if s.study is not None else Path()
    return str(folder / name) if not Path(name).is_absolute() and (folder / name).is_file() else name


def _absent(s: StudySettings, entry: _Entry, shots: int | str, scorer: str) -> Iterator[Question]:
    """Questions of a task that is not here, as far as its description and the study tell what they would be."""
    axis, said = entry.axis, entry.said
    own = said.scorer if said else ""
    if scorer != OWN:
        check_scorer(entry.name, own, scorer)
    count = shots if isinstance(shots, int) else said.shots if said else 0
    if said and said.source == "dataset" and count > said.shots and not (said.has_pool or axis.shots_from):
        raise InputError(f"task {entry.name!r}: {count} shots and no rows to draw them from; expected shot_split or "
                         "shots_from.")  # fmt: skip
    items = axis.items or 0
    for form in _forms(entry, _wanted(s, axis)):
        yield Question(entry.name, form, count, scorer if scorer != OWN else own or OWN,
                       wanted=min(items, s.limit or items), status=entry.status, reason=entry.reason,
                       split=_split(entry), notes=entry.notes, total=items)  # fmt: skip


def _forms(entry: _Entry, wanted: object) -> list[str]:
    """Names of the formats of a task that is not here; numbers where nobody knows them."""
    if entry.said and entry.said.formats:
        return [form.name for form in _chosen(entry.name, entry.said.formats, wanted)]
    if isinstance(wanted, (tuple, list)):
        _check_names(wanted)
        return [str(form) for form in wanted]
    return [f"format {k + 1}" for k in range(_number(wanted))]


def _split(entry: _Entry) -> str:
    return entry.axis.split or str((entry.said.options.get("split") if entry.said else "") or "")


def _asked(s: StudySettings, entry: _Entry, shots: int | str, scorer: str) -> Iterator[Question]:
    """Questions of a task that is here."""
    assert entry.task is not None
    made, status, reason, notes = _variant(s, entry, entry.task, shots, scorer)
    items = sample(made.items, s.limit, s.seed)
    for form in _chosen(entry.name, entry.task.formats, _wanted(s, entry.axis)):
        yield Question(entry.name, form.name, len(made.shots), made.scorer if scorer == OWN else scorer,
                       None if reason else made, items, len(items), status, reason, _split(entry), notes,
                       len(made.items))  # fmt: skip


def _variant(
    s: StudySettings, entry: _Entry, task: Task, shots: int | str, scorer: str
) -> tuple[Task, Status, str, tuple[str, ...]]:
    """The task with its shots and scorer; why a gate refuses it, and what else a reader must know."""
    try:
        made = variant(
            task, shots=None if shots == OWN else int(shots), pool=entry.pool, shot_seed=s.shot_seed,
            scorer=None if scorer == OWN else scorer,
        )  # fmt: skip
        gates.check_labels(made)
        asked = made.with_items(sample(made.items, s.limit, s.seed))  # near-duplicates cost a minute of 10,000 articles
        return made, "missing", "", (*entry.notes, *gates.check_task(asked))
    except GateError as error:
        return task, "refused", str(error), entry.notes


def _wanted(s: StudySettings, axis: TaskAxis) -> object:
    """Formats of a task: names, or their number."""
    formats = s.formats if axis.formats is None else axis.formats
    return [formats] if isinstance(formats, str) and axis.formats is not None else formats


def _number(formats: object) -> int:
    if isinstance(formats, bool) or not isinstance(formats, int) or formats < 1:
        raise InputError(f"formats is {formats!r}; expected names, or a number from 1, e.g. formats: 2.")
    return formats


def _check_names(formats: Sequence[object]) -> None:
    if not formats or not all(isinstance(form, str) for form in formats):
        raise InputError(f"formats is {formats!r}; expected names, or a number from 1, e.g. formats: 2.")
    axes.distinct(formats, "formats")


def _chosen(name: str, own: Sequence[Format], formats: object) -> list[Format]:
    """The formats of a task that are asked, the default first."""
    if not isinstance(formats, (tuple, list)):
        return list(own[: _number(formats)])
    _check_names(formats)
    known = {form.name: form for form in own} | {"default": own[0]}
    missing = [str(form) for form in formats if form not in known]
    if missing:
        raise InputError(
            f"task {name!r} has no format {missing[0]!r}; it has {', '.join(known)}." + did_you_mean(missing[0], known)
        )
    return [known[str(form)] for form in formats]
