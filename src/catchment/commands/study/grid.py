"""The grid that a table of scores spans: its cells, also those that are missing, and the order of its checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from catchment.commands.study.record import BASE, Cell, Checkpoint


def expected_cells(
    cells: Sequence[Cell], checkpoints: Sequence[Checkpoint], tunings: Sequence[str]
) -> tuple[list[Cell], dict[str, tuple[str, ...]]]:
    """Every checkpoint x (base, every tuning and seed) x every task, format, number of shots and scorer; and the
    formats of each task, in order.

    Tasks that share a format are asked in the same formats: those that any of them has. So tasks of another kind, with
    a format of their own, are not counted as missing in all others.
    """
    formats = _task_formats(cells)
    seeds = {t: tuple(dict.fromkeys(c.seed for c in cells if c.tuning == t)) for t in (BASE, *tunings)}
    ways: dict[str, dict[tuple[int, str], None]] = {}
    for c in cells:
        ways.setdefault(c.task, {})[c.shots, c.scorer] = None
    expected = [
        Cell(point.model, point.revision, tuning, seed, task, form, shots, scorer)
        for point in checkpoints
        for tuning, its_seeds in seeds.items()
        for seed in its_seeds
        for task, forms in formats.items()
        for form in forms
        for shots, scorer in ways[task]
    ]
    return expected, formats


def _task_formats(cells: Iterable[Cell]) -> dict[str, tuple[str, ...]]:
    own: dict[str, dict[str, None]] = {}
    for c in cells:
        own.setdefault(c.task, {})[c.format] = None
    order = list(dict.fromkeys(form for forms in own.values() for form in forms))
    groups = _joined([set(forms) for forms in own.values()])
    return {
        task: tuple(form for form in order if form in next(g for g in groups if g & forms.keys()))
        for task, forms in own.items()
    }


def _joined(sets: Iterable[set[str]]) -> list[set[str]]:
    """Sets that have a member in common, united."""
    groups: list[set[str]] = []
    for members in sets:
        touched = [g for g in groups if g & members]
        groups = [g for g in groups if not g & members] + [members.union(*touched)]
    return groups


def default_views(cells: Iterable[Cell], formats: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, int, str]]:
    """For each task the format, shots and scorer that changes are taken under: the first format, and the first shots
    and scorer that the table has for it."""
    views: dict[str, tuple[str, int, str]] = {}
    for c in cells:
        if c.task not in views:
            views[c.task] = (formats[c.task][0], c.shots, c.scorer)
    return views


_TOKENS = re.compile(r"tokens?[-_]?(\d+(?:\.\d+)?)([MBT])", re.IGNORECASE)
_STEP = re.compile(r"step[-_]?(\d+)|(\d+)\Z", re.IGNORECASE)
_UNITS = {"M": 1e6, "B": 1e9, "T": 1e12}


def step_of(revision: str) -> int | None:
    """The pre-training step in a checkpoint's name; ``None`` where it has none.

    >>> step_of("step1000-tokens4B"), step_of("738000"), step_of("main")
    (1000, 738000, None)
    """
    match = _STEP.search(revision)
    return int(match[1] or match[2]) if match else None


def tokens_of(revision: str) -> float | None:
    """The tokens in a checkpoint's name.

    >>> tokens_of("step1000-tokens4B"), tokens_of("step1000")
    (4000000000.0, None)
    """
    match = _TOKENS.search(revision)
    return float(match[1]) * _UNITS[match[2].upper()] if match else None


def ordered(revisions: Mapping[str, float | None]) -> list[str]:
    """Checkpoints by tokens where all are known, else by the step in their name, those without one last.

    >>> ordered({"main": None, "18000": None, "1000": None})
    ['1000', '18000', 'main']
    """
    if all(tokens is not None for tokens in revisions.values()):
        return sorted(revisions, key=lambda r: revisions[r] or 0.0)
    return sorted(revisions, key=lambda r: (step_of(r) is None, step_of(r) or 0))
