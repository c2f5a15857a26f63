"""Where tasks come from: names, files, data sets, functions. ``resolve_tasks`` turns what a user names into tasks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from catchment.capabilities import packs
from catchment.capabilities.delimited import DELIMITED
from catchment.capabilities.jsonl import (
    OPTIONS,
    SUFFIXES,
    check_keys,
    fail,
    parse_options,
    read_text,
    task_from_jsonl,
    task_from_lines,
)
from catchment.capabilities.lmeval import task_from_lm_eval
from catchment.capabilities.tables import TABLE_FILES, task_from_dataset
from catchment.capabilities.tasks import ASK, CONTINUE, Item, Task
from catchment.errors import InputError, did_you_mean

YAML_SUFFIXES = (".yaml", ".yml")
LM_EVAL = "lm-eval:"
GROUPS = {"default": packs.DEFAULT, "stories": packs.STORIES}
_DATASET_KEYS = (
    "prompt", "choices", "gold", "gold_above", "answer", "split", "subset", "revision", "shots", "shot_split",
    "shots_from", "seed",
)  # fmt: skip
_SOURCES: dict[str, tuple[str, ...]] = {
    "file": (*OPTIONS, "shots_from"),
    "dataset": (*_DATASET_KEYS, *(key for key in OPTIONS if key != "shots")),
    "lm_eval": ("num_fewshot", "limit", "seed", "metric"),
}


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


def task_from_yaml(path: str | Path) -> Task:
    """A task from a YAML file: ``file:``, ``dataset:`` or ``lm_eval:`` and the arguments that belong to it.

    Paths in it are relative to its folder. See ``docs/tasks-format.md``.

    Raises:
        InputError: no such file.
        TaskError: not YAML, unknown keys, or values that do not fit.
    """
    where = str(path)
    content = _read_yaml(path)
    sources = [key for key in _SOURCES if key in content]
    if len(sources) != 1:
        fail(where, f"it has {', '.join(sources) or 'no source'}; expected exactly one of {', '.join(_SOURCES)}.")
    source = sources[0]
    check_keys(content, (source, *_SOURCES[source], "name"), where)
    value = content.pop(source)
    if not isinstance(value, str) or not value:
        fail(where, f"{source!r} is {value!r}; expected a text.")
    if source == "lm_eval":
        return task_from_lm_eval(value, **content)
    beside = Path(path).parent / value
    if source == "file":
        pool = content.pop("shots_from", None)
        return _with_pool(task_from_jsonl(beside, **content), path, pool)
    if "prompt" not in content:
        fail(where, "'prompt' is missing; expected a column or a template such as '{question}'.")
    later = (*_DATASET_KEYS, "name", "scorer", "formats")  # formats may name columns, which the rows tell
    options = {key: content.pop(key) for key in list(content) if key not in later}
    for key, named in (("shots_from", content.get("shots_from")), (source, value)):
        if named is not None:
            content[key] = _beside(path, key, named)
    return task_from_dataset(content.pop(source), **content, **parse_options(options, where))


def _beside(path: str | Path, key: str, named: Any) -> str:
    """A table or a folder beside the YAML file; any other name as it is."""
    if not isinstance(named, str) or not named:
        fail(str(path), f"{key!r} is {named!r}; expected a text.")
    beside = Path(path).parent / named
    return str(beside) if named.endswith(TABLE_FILES) or beside.is_dir() else named


def _with_pool(task: Task, path: str | Path, named: Any) -> Task:
    """The task with the items of another task file as its pool of shots."""
    if named is None:
        return task
    pool = task_from_jsonl(_beside(path, "shots_from", named), scorer=task.scorer)
    return replace(task, pool=pool.items)


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
