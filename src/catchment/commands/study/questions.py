"""What every model of a study is asked: tasks under prompt formats, with so many shots, scored in one way."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from catchment.capabilities import Format, Item, Task, gates, resolve_tasks, sample, variant
from catchment.commands.study import axes
from catchment.commands.study.axes import OWN, TaskAxis
from catchment.commands.study.record import Status
from catchment.commands.study.settings import StudySettings
from catchment.errors import CatchmentError, GateError, InputError, did_you_mean


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


def ask(s: StudySettings, tasks: Sequence[TaskAxis]) -> tuple[Question, ...]:
    """Every combination of task, shots, scorer and format. A task that is not here, or that a gate refuses, is kept
    with the reason.

    Raises:
        InputError: A task, a format or a number of shots twice; a format that no task has.
    """
    shots, scorers = axes.read_shots(s.shots), axes.read_scorers(s.scorers)
    questions = []
    for axis in tasks:
        for resolved in _resolved(s, axis):
            questions += list(_asked(s, axis, resolved, shots, scorers))
    axes.distinct(((q.name, q.format, q.shots, q.scorer) for q in questions), "tasks")
    return tuple(questions)


def _resolved(s: StudySettings, axis: TaskAxis) -> list[Task | str]:
    """The tasks of one entry ("default" is several); a text says why there is none."""
    try:
        tasks = resolve_tasks([_path(s, axis.task)])
    except InputError:
        raise
    except CatchmentError as error:
        return [str(error)]
    if axis.name and len(tasks) > 1:
        raise InputError(f"task {axis.task!r} is {len(tasks)} tasks; expected one where a name {axis.name!r} is given.")
    return [dataclasses.replace(task, name=axis.name) if axis.name else task for task in tasks]


def _path(s: StudySettings, name: str) -> str:
    folder = s.study.parent if s.study is not None else Path()
    return str(folder / name) if not Path(name).is_absolute() and (folder / name).is_file() else name


def _asked(
    s: StudySettings, axis: TaskAxis, task: Task | str, shots: Sequence[int | str], scorers: Sequence[str]
) -> Iterator[Question]:
    name = axis.name or (task.name if isinstance(task, Task) else Path(axis.task).name.rpartition(":")[2])
    for number in shots:
        for scorer in scorers:
            yield from _formats(s, axis, name, task, number, scorer)


def _formats(
    s: StudySettings, axis: TaskAxis, name: str, task: Task | str, shots: int | str, scorer: str
) -> Iterator[Question]:
    wanted = axis.formats if axis.formats is not None else s.formats
    count = shots if isinstance(shots, int) else 0
    if isinstance(task, str):
        for form in (
            wanted if isinstance(wanted, (tuple, list)) else [f"format {k + 1}" for k in range(_number(wanted))]
        ):
            most = min(axis.items or 0, s.limit or axis.items or 0)
            yield Question(name, str(form), count, scorer, wanted=most, status="failed", reason=task, split=axis.split,
                           notes=(axis.note,) if axis.note else ())  # fmt: skip
        return
    made, status, reason, notes = _variant(s, axis, task, shots, scorer)
    for form in _chosen(task, wanted):
        items = sample(made.items, s.limit, s.seed)
        scored = made.scorer if scorer == OWN else scorer
        yield Question(name, form.name, len(made.shots), scored, None if reason else made, items, len(items), status,
                       reason, axis.split, notes)  # fmt: skip


def _variant(
    s: StudySettings, axis: TaskAxis, task: Task, shots: int | str, scorer: str
) -> tuple[Task, Status, str, tuple[str, ...]]:
    """The task with its shots and scorer; why a gate refuses it, and what else a reader must know."""
    said = (axis.note,) if axis.note else ()
    if axis.unlabelled:
        return task, "refused", axis.unlabelled, said
    pool = resolve_tasks([_path(s, axis.shots_from)])[0].items if axis.shots_from else ()
    try:
        made = variant(
            task, shots=None if shots == OWN else int(shots), pool=pool, shot_seed=s.shot_seed,
            scorer=None if scorer == OWN else scorer,
        )  # fmt: skip
        return made, "missing", "", (*said, *gates.check_task(made))
    except GateError as error:
        return task, "refused", str(error), said


def _number(formats: object) -> int:
    if isinstance(formats, bool) or not isinstance(formats, int) or formats < 1:
        raise InputError(f"formats is {formats!r}; expected names, or a number from 1, e.g. formats: 2.")
    return formats


def _chosen(task: Task, formats: object) -> list[Format]:
    """The formats of a task that are asked, the default first."""
    if not isinstance(formats, (tuple, list)):
        return list(task.formats[: _number(formats)])
    axes.distinct(formats, "formats")
    known = {form.name: form for form in task.formats} | {"default": task.formats[0]}
    missing = [str(name) for name in formats if name not in known]
    if missing:
        raise InputError(
            f"task {task.name!r} has no format {missing[0]!r}; it has {', '.join(known)}."
            + did_you_mean(missing[0], known)
        )
    return [known[str(name)] for name in formats]
