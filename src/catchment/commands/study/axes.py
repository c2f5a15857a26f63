"""The axes of a study as its YAML file gives them: models, tunings, tasks, scans; read and refused with their place."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, TypeVar, get_type_hints

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from catchment.capabilities import SOURCES
from catchment.errors import InputError, did_you_mean

T = TypeVar("T")
OWN = "own"
"""Shots or scorer of a task as it comes."""


def _listed(value: object) -> object:
    """One where several may stand."""
    return [value] if isinstance(value, (str, int, float, Mapping)) or value is None else value


def _texts(value: object) -> object:
    """Names, of which a revision may be a whole number; what YAML made of other words is not what was written."""
    listed = _listed(value)
    for part in listed if isinstance(listed, (list, tuple)) else ():
        if isinstance(part, (bool, float)) or not isinstance(part, (str, int)):
            raise ValueError("expected texts; put what YAML reads as something else in quotes")
    return [str(part) for part in listed] if isinstance(listed, (list, tuple)) else listed


def _no_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("expected a number, not yes or no")
    return value


def _one_line(value: object) -> object:
    if isinstance(value, str) and not value.isprintable():
        raise ValueError("expected a text of one line, without control characters")
    return value


def _tokens(value: object) -> object:
    return [value] if isinstance(value, (str, int, float)) else value


Some = BeforeValidator(_listed)
NO_FLAG = BeforeValidator(_no_flag)
Name = Annotated[str, BeforeValidator(_one_line)]
Texts = Annotated[tuple[Name, ...], BeforeValidator(_texts)]
"""Names; a revision may be written as a number."""
SEVERAL = Field(min_length=1)
Positive = Annotated[float, NO_FLAG, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, NO_FLAG, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, NO_FLAG, Field(ge=1)]
Numbers = Annotated[tuple[Positive, ...], SEVERAL, Some]
Counts = Annotated[tuple[Count, ...], SEVERAL, Some]


@dataclass(frozen=True)
class ModelAxis:
    """A model and its checkpoints.

    Attributes:
        model: As every command takes it.
        name: In tables. Default: the last part of ``model``.
        revisions: Branches, tags or commits; ``{revision}`` in ``model`` is filled in, else they are those of the hub.
        tokens: That each of the revisions had seen, in their order; or by revision.
        parameters: For prices where the weights are not here.
    """

    model: Annotated[Name, SEVERAL]
    name: Name = ""
    revisions: Annotated[Texts, SEVERAL] = ()
    tokens: Annotated[tuple[NotNegative, ...] | dict[str, NotNegative], BeforeValidator(_tokens)] = ()
    parameters: Positive | None = None


@dataclass(frozen=True)
class TuningAxis:
    """What is trained, by which methods and settings; every list makes the grid larger.

    Attributes:
        data: Rows to train on, as ``tune --data`` takes them.
        model: A tuned model that is there, instead of data; ``{model}`` and ``{revision}`` are filled in.
        name: In tables. Default: the last part of ``data`` or ``model``.
        method: sift, lora, full ...
        method_args: Further settings of the method; lists of them are further values of the axis.
        learning_rate ... weight_decay: As ``tune``.
        rows: The first so many rows of the seeded order; ``None`` for all.
        seeds: Instead of the study's.
        in_domain: Tasks that belong to the data.
    """

    data: str = ""
    model: str = ""
    name: Name = ""
    method: Annotated[Texts, SEVERAL] = ("full",)
    method_args: Annotated[tuple[dict[str, object], ...], SEVERAL, Some] = ()
    learning_rate: Numbers = ()
    epochs: Numbers = (1.0,)
    max_steps: Annotated[tuple[Count | None, ...], SEVERAL, Some] = (None,)
    batch_size: Counts = (8,)
    accumulation: Counts = (1,)
    max_length: Annotated[tuple[Annotated[int, NO_FLAG, Field(ge=2)], ...], SEVERAL, Some] = (1024,)
    packing: bool = False
    weight_decay: Annotated[tuple[NotNegative, ...], SEVERAL, Some] = (0.0,)
    rows: Count | None = None
    seeds: object = None
    in_domain: Texts = ()

    @property
    def called(self) -> str:
        """The name in tables."""
        return self.name or Path(self.data or self.model).name.partition(".")[0]


@dataclass(frozen=True)
class TaskAxis:
    """A task of the grid.

    Attributes:
        task: A name or a file, as ``compare --tasks`` takes it; of an entry that describes its task itself, the source.
        name: In tables. Default: the task's own.
        shots_from: Task whose items are the solved examples.
        formats: Instead of the study's.
        items: Their number, for prices where the task is not here.
        split: For people: which split the items are.
        note: For people: what a reader must know of it.
        unlabelled: Why its gold labels are none; its cells are refused, and a foreign table's are left out.
    """

    task: Annotated[str, SEVERAL]
    name: Name = ""
    shots_from: str = ""
    formats: object = None
    items: Annotated[int, NO_FLAG, Field(ge=0)] | None = None
    split: str = ""
    note: str = ""
    unlabelled: str = ""
    content: Mapping[str, object] = field(default_factory=dict)
    """Keys of a task's YAML file, of an entry that describes its task itself."""


OF_TASKS = ("name", "items", "split", "note", "unlabelled")
"""Keys of the study in an entry that describes its task itself; name and split belong to both."""


@dataclass(frozen=True)
class ScanAxis:
    """A scan of every model of the grid, or of the bases alone: settings of ``catchment scan``."""

    settings: dict[str, object] = field(default_factory=dict)
    name: Name = "scan"
    of: str = "all"


def read(kind: type[T], value: object, where: str, main: str, beside: Iterable[str] = ()) -> T:
    """One entry of an axis; a text alone is its ``main`` field. ``beside``: what else a wrong key may have meant.

    Raises:
        InputError: An unknown key, or a value of another type; names the place.
    """
    given = {main: value} if isinstance(value, str) else value
    if not isinstance(given, Mapping):
        raise InputError(f"{where} is {value!r}; expected a text or `key: value` lines such as {main}: ...")
    names = [f.name for f in fields(kind) if f.name != "content"]  # type: ignore[arg-type]
    types = get_type_hints(kind, include_extras=True)
    values = {}
    for key, part in given.items():
        name = str(key).replace("-", "_")
        if name not in names:
            raise InputError(f"{where}: unknown key {key!r}.{did_you_mean(name, [*names, *beside])}")
        try:
            values[name] = TypeAdapter(types[name]).validate_python(part)
        except ValidationError as error:
            raise InputError(f"{where}: {key} is {part!r}; {_said(error)}.") from error
    if main not in values and kind not in (TuningAxis, ScanAxis):
        raise InputError(f"{where} has no {main!r}; expected e.g. {main}: ...")
    return kind(**values)


def _said(error: ValidationError) -> str:
    """What is wrong with a value, in the words of pydantic but for an empty one."""
    first = error.errors()[0]
    if first["type"] in ("too_short", "string_too_short"):
        empty = first["input"] == ""
        return "expected a text that is not empty" if empty else "expected one; leave the key out for its default"
    said = first["msg"].removeprefix("Value error, ")
    return f"{said[:1].lower()}{said[1:]}"


def read_all(kind: type[T], values: object, where: str, main: str) -> tuple[T, ...]:
    """All entries of an axis."""
    entries = [values] if isinstance(values, (str, Mapping)) else values
    if not isinstance(entries, Sequence):
        raise InputError(f"{where} is {values!r}; expected a list.")
    return tuple(read(kind, value, f"{where}[{number}]", main) for number, value in enumerate(entries))


def read_tasks(values: object, where: str = "tasks") -> tuple[TaskAxis, ...]:
    """The tasks: names, mappings with ``task:``, and mappings that describe their task as a task's YAML file does, by
    ``dataset:``, ``file:`` or ``lm_eval:``. There ``formats`` are templates, or how many of them are asked.

    Raises:
        InputError: An unknown key, or a value of another type; names the place.
    """
    entries = [values] if isinstance(values, (str, Mapping)) else values
    if not isinstance(entries, Sequence):
        raise InputError(f"{where} is {values!r}; expected a list.")
    return tuple(_read_task(value, f"{where}[{number}]") for number, value in enumerate(entries))


def _read_task(value: object, where: str) -> TaskAxis:
    sources = [key for key in SOURCES if isinstance(value, Mapping) and key in value]
    if not sources or not isinstance(value, Mapping):
        return read(TaskAxis, value, where, "task", beside=SOURCES)
    if "task" in value:
        raise InputError(f"{where} has task and {sources[0]}; expected one of them.")
    counted = isinstance(value.get("formats"), int)
    own = {key: value[key] for key in (*OF_TASKS, *(["formats"] if counted else [])) if key in value}
    left = {str(key): part for key, part in value.items() if key not in own or key in ("name", "split")}
    known = (*sources, *dict.fromkeys([*SOURCES[sources[0]], *OF_TASKS]))
    for key in left:
        if key not in known:
            raise InputError(f"{where}: unknown key {key!r}.{did_you_mean(key, known)}")
    if sources[0] != "dataset":
        left.pop("split", None)
    axis = read(TaskAxis, {"task": value[sources[0]], **own}, where, "task")
    return replace(axis, content=left)


def distinct(values: Iterable[object], where: str) -> None:
    """Refuse a value that is there twice: its cells would count twice."""
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise InputError(f"{where}: {value!r} is there twice; expected each value once. Remove one.")
        seen.add(value)


def read_seeds(values: object, where: str) -> tuple[int, ...]:
    """Seeds of trainings.

    Raises:
        InputError: None at all, or one that is no whole number from 0 to below 2**32.
    """
    listed = list(values) if isinstance(values, (list, tuple)) else [values]
    wrong = [v for v in listed if isinstance(v, bool) or not isinstance(v, int) or not 0 <= v < 2**32]
    if wrong or not listed:
        said = f"holds {wrong[0]!r}" if wrong else "is empty"
        raise InputError(f"{where} {said}; expected whole numbers from 0 to below 2**32, e.g. [0, 1, 2].")
    distinct(listed, where)
    return tuple(value for value in listed if isinstance(value, int))


def read_shots(values: object) -> tuple[int | str, ...]:
    """Numbers of shots, or "own"."""
    listed = list(values) if isinstance(values, (list, tuple)) else [values]
    wrong = [v for v in listed if v != OWN and (isinstance(v, bool) or not isinstance(v, int) or v < 0)]
    if wrong or not listed:
        said = f"holds {wrong[0]!r}" if wrong else "is empty"
        raise InputError(f"shots {said}; expected whole numbers from 0, or 'own', e.g. [0, 4].")
    distinct(listed, "shots")
    return tuple(value for value in listed if isinstance(value, (int, str)))


def read_scorers(values: object) -> tuple[str, ...]:
    """Names of scorers, or "own"; checked against each task."""
    listed = [values] if isinstance(values, str) else values
    if not isinstance(listed, (list, tuple)) or not listed or not all(isinstance(v, str) for v in listed):
        raise InputError(f"scorers is {values!r}; expected names, e.g. [own, choice_per_byte].")
    distinct(listed, "scorers")
    return tuple(listed)


def read_contrasts(values: object) -> dict[str, tuple[tuple[str, str], ...]]:
    """Named lists of pairs: ``name: [{tuning: [task, task]}, ...]`` or ``name: [[tuning, task], ...]``.

    A pair that is there twice counts twice, and the analysis says so.
    """
    if not values:
        return {}
    if not isinstance(values, Mapping):
        raise InputError(f"contrasts is {values!r}; expected names with lists of pairs, e.g. learned: [{{mnli: rte}}].")
    contrasts = {str(name): tuple(_pairs(pairs, f"contrasts.{name}")) for name, pairs in values.items()}
    for name, pairs in contrasts.items():
        if not pairs:
            raise InputError(f"contrasts.{name} is empty; expected pairs, e.g. {name}: [{{mnli: rte}}].")
    return contrasts


def _pairs(given: object, where: str) -> Iterable[tuple[str, str]]:
    for entry in [given] if isinstance(given, Mapping) else given if isinstance(given, list) else [given]:
        if isinstance(entry, Mapping):
            listed = [(tuning, tasks if isinstance(tasks, list) else [tasks]) for tuning, tasks in entry.items()]
            pairs = [(tuning, task) for tuning, tasks in listed for task in tasks]
        else:
            pairs = [tuple(entry)] if isinstance(entry, list) and len(entry) == 2 else []
        if not pairs or not all(isinstance(name, str) for pair in pairs for name in pair):
            raise InputError(f"{where} holds {entry!r}; expected tuning: [task, ...] or [tuning, task].")
        yield from pairs


def product(axes: Mapping[str, Sequence[object]]) -> list[dict[str, object]]:
    """Every combination of one value per axis.

    >>> product({"a": [1, 2], "b": ["x"]})
    [{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'x'}]
    """
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
