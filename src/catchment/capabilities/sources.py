"""Where tasks come from: names, files, data sets, functions. ``resolve_tasks`` turns what a user names into tasks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from catchment.capabilities import packs
from catchment.capabilities.columns import Columns, kind_of
from catchment.capabilities.delimited import DELIMITED
from catchment.capabilities.jsonl import (
    OPTIONS,
    SUFFIXES,
    check_keys,
    complete_options,
    fail,
    parse_options,
    read_text,
    task_from_jsonl,
    task_from_lines,
)
from catchment.capabilities.lmeval import task_from_lm_eval
from catchment.capabilities.tables import TABLE_FILES, check_columns, task_from_dataset
from catchment.capabilities.tasks import ASK, CONTINUE, NAMED, Format, Item, Task
from catchment.errors import InputError, did_you_mean

YAML_SUFFIXES = (".yaml", ".yml")
LM_EVAL = "lm-eval:"
GROUPS = {"default": packs.DEFAULT, "stories": packs.STORIES}
_DATASET_KEYS = (
    "prompt", "choices", "gold", "gold_above", "shuffle", "answer", "split", "subset", "revision", "shots",
    "shot_split", "shots_from", "seed",
)  # fmt: skip
SOURCES: dict[str, tuple[str, ...]] = {
    "file": (*OPTIONS, "shots_from"),
    "dataset": (*_DATASET_KEYS, *(key for key in OPTIONS if key != "shots")),
    "lm_eval": ("num_fewshot", "limit", "seed", "metric"),
}
"""Where a task of a YAML file comes from, and the keys that may stand beside it."""


def task_from_callable(
    name: str, prompts: Sequence[str | Item], function: Callable[[Item, str], float], **options: Any
) -> Task:
    """A task whose greedy answers are scored by a function of yours.

    Args:
        name: shown in tables.
        prompts: texts, or items whose ``gold`` and ``meta`` the function can read.
        function: ``function(item, answer) -> score`` in [0, 1]. It is not part of the task's hash: raise ``version``
            when it changes, or stored rows of the old one are used again.
        **options: style, formats, shots, chance, max_new_tokens, stop, system, version, description.

    Raises:
        InputError: ``function`` cannot be called with an item and an answer, or there are no prompts.

    Example:
        >>> task = task_from_callable("short", ["Say hello."], lambda item, answer: float(len(answer) < 20))
        >>> task.scorer, len(task.items)
        ('callable', 1)
    """
    where = f"task {name!r}"
    if isinstance(prompts, str) or not prompts:
        raise InputError(f"{where}: prompts is {prompts!r}; expected a list of texts or items.")
    _check_function(function, where)
    if options.get("scorer", "callable") != "callable":
        raise InputError(f"{where}: scorer is {options['scorer']!r}; a function is always scored as 'callable'.")
    options = parse_options({**options, "name": name}, where)
    options.setdefault("formats", ASK if options.get("style", "ask") == "ask" else CONTINUE)
    items = []
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str | Item):
            raise InputError(f"{where}: prompt {number} is {prompt!r}; expected a text or an Item.")
        items.append(prompt if isinstance(prompt, Item) else Item(prompt))
    return Task(items=tuple(items), **{**options, "scorer": "callable", "function": function})


def _check_function(function: Any, where: str) -> None:
    if not callable(function):
        raise InputError(f"{where}: function is {function!r}; expected function(item, answer) -> score.")
    try:
        inspect.signature(function).bind(None, "")
    except TypeError as error:
        raise InputError(f"{where}: function cannot be called as function(item, answer): {error}.") from error
    except ValueError:  # a built-in without a signature
        return


@dataclass(frozen=True)
class Described:
    """A task as a mapping describes it, checked as far as that goes without its rows.

    Attributes:
        source: ``"file"``, ``"dataset"`` or ``"lm_eval"``.
        value: Which of them.
        options: What belongs to it.
        folder: That its paths are relative to.
        where: Its place, for errors.
        formats: Its prompt formats; empty where the source alone knows them, as for ``scorer``.
    """

    source: str
    value: str
    options: Mapping[str, Any]
    folder: Path
    where: str
    formats: tuple[Format, ...] = ()
    scorer: str = ""

    @property
    def name(self) -> str:
        """In tables."""
        return str(self.options.get("name") or Path(self.value).name.split(".")[0])

    @property
    def shots(self) -> int:
        """Solved examples of its own."""
        given = self.options.get("num_fewshot" if self.source == "lm_eval" else "shots") or 0
        return given if isinstance(given, int) else len(given)

    @property
    def has_pool(self) -> bool:
        """Whether it names rows to draw shots from."""
        return any(self.options.get(key) is not None for key in ("shot_split", "shots_from"))

    def task(self) -> Task:
        """The task itself.

        Raises:
            InputError: no such file.
            TaskError: rows that do not fit, or that cannot be had.
        """
        options = dict(self.options)
        if self.source == "lm_eval":
            name = options.pop("name", None)
            task = task_from_lm_eval(self.value, **options)
            return replace(task, name=name) if name else task
        if self.source == "file":
            pool = options.pop("shots_from", None)
            return self._with_pool(task_from_jsonl(self.folder / self.value, **options), pool)
        if "shots_from" in options:
            options["shots_from"] = self._beside(options["shots_from"])
        later = (*_DATASET_KEYS, "name", "scorer", "formats")  # formats may name columns, which the rows tell
        checked = parse_options({key: value for key, value in options.items() if key not in later}, self.where)
        return task_from_dataset(self._beside(self.value), **{**options, **checked})

    def _beside(self, named: str) -> str:
        """A table or a folder beside the YAML file; any other name as it is."""
        beside = self.folder / named
        return str(beside) if named.endswith(TABLE_FILES) or beside.is_dir() else named

    def _with_pool(self, task: Task, named: str | None) -> Task:
        """The task with the items of another task file as its pool of shots."""
        if named is None:
            return task
        return replace(task, pool=task_from_jsonl(self._beside(named), scorer=task.scorer).items)


def describe(content: Mapping[str, Any], folder: str | Path, where: str) -> Described:
    """What a mapping with the keys of a task's YAML file says; its data is not read.

    Args:
        content: ``file:``, ``dataset:`` or ``lm_eval:`` and the arguments that belong to it.
        folder: that paths in it are relative to.
        where: its place, for errors.

    Raises:
        InputError: arguments that do not fit together.
        TaskError: unknown keys, or values that cannot be right.

    Example:
        >>> content = {"dataset": "owner/glue", "prompt": "{q}", "choices": ["no", "yes"], "gold": "label"}
        >>> said = describe(content, ".", "here")
        >>> said.name, said.scorer, [form.name for form in said.formats][0]
        ('glue', 'choice', 'question')
    """
    sources = [key for key in SOURCES if key in content]
    if len(sources) != 1:
        fail(where, f"it has {', '.join(sources) or 'no source'}; expected exactly one of {', '.join(SOURCES)}.")
    source, value = sources[0], content[sources[0]]
    check_keys(content, (source, *SOURCES[source], "name"), where)
    if not isinstance(value, str) or not value:
        fail(where, f"{source!r} is {value!r}; expected a text.")
    options = {key: part for key, part in content.items() if key != source}
    for key in ("split", "subset", "revision", "shot_split", "shots_from"):
        if options.get(key) is not None and (not isinstance(options[key], str) or not options[key]):
            fail(where, f"{key!r} is {options[key]!r}; expected a text.")
    said = Described(source, value, options, Path(folder), where)
    if source == "lm_eval":
        return said
    if source == "file":
        checked = parse_options({key: part for key, part in options.items() if key != "shots_from"}, where)
        return replace(said, formats=checked.get("formats", ()), scorer=checked.get("scorer", ""))
    return _of_rows(said)


def _of_rows(said: Described) -> Described:
    """A task over rows, with its formats and scorer; which columns there are is not known yet."""
    options, where = said.options, said.where
    if "prompt" not in options:
        fail(where, "'prompt' is missing; expected a column or a template such as '{question}'.")
    given: dict[str, Any] = {key: options.get(key) for key in ("choices", "gold", "answer")}
    columns = Columns(
        kind_of(options.get("scorer"), given["choices"], given["answer"], given["gold"]), options["prompt"], **given,
        above=options.get("gold_above"), shuffle=options.get("shuffle", False),
    )  # fmt: skip
    check_columns(columns, options.get("shots", 0), options.get("seed", 0), where)
    own = {key: part for key, part in options.items() if key in OPTIONS and key != "shots"}
    complete = complete_options(columns.kind, own, where, columns=NAMED.findall(str(options.get("formats", ""))))
    return replace(said, formats=complete["formats"], scorer=complete["scorer"])


def task_from_yaml(path: str | Path) -> Task:
    """A task from a YAML file: ``file:``, ``dataset:`` or ``lm_eval:`` and the arguments that belong to it.

    Paths in it are relative to its folder. See ``docs/tasks-format.md``.

    Raises:
        InputError: no such file.
        TaskError: not YAML, unknown keys, or values that do not fit.
    """
    return describe_yaml(path).task()


def describe_yaml(path: str | Path) -> Described:
    """What a task's YAML file says, as :func:`describe`."""
    return describe(_read_yaml(path), Path(path).parent, str(path))


def _read_yaml(path: str | Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        fail(str(path), f"not YAML ({' '.join(str(error).split())[:200]}).")
    if not isinstance(content, Mapping):
        fail(str(path), f"holds {type(content).__name__}; expected keys such as 'file' or 'dataset'.")
    return {str(key): value for key, value in content.items()}


def resolve_tasks(names: Sequence[str | Task]) -> list[Task]:
    """Tasks from what a user names, in order.

    Args:
        names: each a :class:`Task`; a built-in task or ``"default"``, ``"stories"``; the path of a ``.jsonl``,
            ``.json``, ``.yaml`` or ``.txt`` file (unlabelled prompts); ``"lm-eval:NAME"`` or ``"lm-eval:NAME:SHOTS"``.

    Raises:
        InputError: an unknown name (with the nearest known one), or two tasks of one name.
        TaskError: a file with mistakes.

    Example:
        >>> [task.name for task in resolve_tasks(["recall", "arithmetic"])]
        ['recall', 'arithmetic']
    """
    tasks: list[Task] = []
    for name in [names] if isinstance(names, str | Task) else names:
        tasks += [name] if isinstance(name, Task) else _resolve(name)
    if not tasks:
        raise InputError(f"no tasks: expected at least one of {_known()}.")
    seen: set[str] = set()
    for task in tasks:
        if task.name in seen:
            raise InputError(f"two tasks are called {task.name!r}; expected distinct names. Leave one out.")
        seen.add(task.name)
    return tasks


def _known() -> str:
    return f"{', '.join([*GROUPS, *packs.NAMES])}, a .jsonl, .json, .yaml or .txt file, or {LM_EVAL}NAME"


def _resolve(name: str) -> list[Task]:
    if not isinstance(name, str):
        raise InputError(f"task {name!r}: expected a name, a path or a Task.")
    if name in GROUPS:
        return [packs.load(member) for member in GROUPS[name]]
    if name in packs.NAMES:
        return [packs.load(name)]
    if name.startswith(LM_EVAL):
        return [_lm_eval(name)]
    if name.endswith(YAML_SUFFIXES):
        return [task_from_yaml(name)]
    if name.endswith(SUFFIXES):
        return [task_from_jsonl(name)]
    if name.endswith(".txt"):
        return [task_from_lines(name)]
    if name.endswith((*DELIMITED, ".parquet")):
        raise InputError(
            f"task {name!r}: a table does not say which column asks and which answers; expected a .yaml file with "
            f"dataset: {name}, prompt: and choices: or answer:. docs/tasks-format.md shows one."
        )
    raise InputError(f"no task {name!r}; expected {_known()}.{did_you_mean(name, [*GROUPS, *packs.NAMES])}")


def _lm_eval(name: str) -> Task:
    task, colon, shots = name.removeprefix(LM_EVAL).rpartition(":")
    if colon and shots.isdigit() and task:
        return task_from_lm_eval(task, num_fewshot=int(shots))
    if colon and not shots:
        raise InputError(f"task {name!r}: expected {LM_EVAL}NAME or {LM_EVAL}NAME:SHOTS.")
    return task_from_lm_eval(name.removeprefix(LM_EVAL))
