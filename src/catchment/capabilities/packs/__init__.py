"""The built-in pack: tasks of ours, generated from seeds or written by hand, Apache-2.0.

Each task is a module with a function ``build() -> Task``; it is imported when the task is first asked for.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from catchment.capabilities.tasks import Task
from catchment.errors import InputError, did_you_mean

_MODULES = {
    "language": "language",
    "knowledge": "knowledge",
    "arithmetic": "arithmetic",
    "recall": "recall",
    "format": "instructions",
    "code": "code",
    "refusal": "refusal",
    "stories_cloze": "stories_cloze",
    "stories_coherence": "stories_coherence",
    "stories_entity": "stories_entity",
    "text": "text",
}

NAMES: tuple[str, ...] = tuple(_MODULES)
DEFAULT: tuple[str, ...] = ("language", "knowledge", "arithmetic", "recall", "format", "code", "refusal")
STORIES: tuple[str, ...] = ("stories_cloze", "stories_coherence", "stories_entity")


@cache
def load(name: str) -> Task:
    """The built-in task called ``name``: deterministic, built in well under a second, then cached.

    Raises:
        InputError: ``name`` is not one of :data:`NAMES`.

    >>> load("recall").scorer
    'exact'
    """
    if name not in _MODULES:
        raise InputError(f"no built-in task {name!r}; expected one of {', '.join(NAMES)}.{did_you_mean(name, NAMES)}")
    return import_module(f"{__name__}.{_MODULES[name]}").build()


__all__ = ["DEFAULT", "NAMES", "STORIES", "load"]
