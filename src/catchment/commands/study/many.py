"""``catchment compare BASE T1 T2 ...``: a study of one base and tuned models that are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from catchment.commands.compare.settings import CompareSettings
from catchment.commands.study.settings import StudySettings
from catchment.errors import InputError
from catchment.options import AskOptions, MarginOption, MeasureOptions, ModelOptions, OutputOptions

ONE_ONLY = ("budget", "recover", "prompts", "device_map", "tuned_revision")
"""Options of a comparison that several tuned models do not have."""


def settings_of(compare: CompareSettings, tuned: Sequence[str], given: frozenset[str]) -> StudySettings:
    """The study that compares one base with several tuned models.

    Args:
        compare: A comparison with the first of them.
        tuned: All of them.
        given: Options that were given.

    Raises:
        InputError: An option that only a comparison of two models has; a model twice.
    """
    for name in ONE_ONLY:
        if name in given:
            raise InputError(
                f"--{name.replace('_', '-')} is for a comparison of two models, and {len(tuned)} tuned ones were given;"
                " leave it out, or compare them one by one."
            )
    groups = (MeasureOptions, MarginOption, AskOptions, ModelOptions, OutputOptions)
    shared = {**compare.shared(*groups), "tasks": list(compare.tasks)}
    return StudySettings(
        action="run",
        name=f"{Path(str(compare.base)).name or compare.base} and {len(tuned)} tuned models",
        models=[{"model": str(compare.base)}],
        tunings=[{"model": spec, "name": name} for spec, name in zip(tuned, names_of(tuned), strict=True)],
        formats=compare.formats,
        drop_long=compare.drop_long,
        fail_if_drop=compare.fail_if_drop,
        **shared,
    )


def names_of(specs: Sequence[str]) -> list[str]:
    """Short names that tell the models apart: as many last parts of their paths as that takes.

    >>> names_of(["runs/a/model", "runs/b/model", "base+c.safetensors"])
    ['a/model', 'b/model', 'c']
    """
    if len(set(specs)) < len(specs):
        twice = next(spec for spec in specs if list(specs).count(spec) > 1)
        raise InputError(f"the tuned model {twice!r} is given twice; expected different ones.")
    parts = [Path(spec.rpartition("+")[2]).with_suffix("").parts if "+" in spec else Path(spec).parts for spec in specs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(specs)
