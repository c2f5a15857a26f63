"""Types of the values that options take: numbers in a range, times, names, files."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field, PlainValidator, SkipValidation, Strict, ValidationError
from pydantic_core import PydanticCustomError, core_schema

from catchment.errors import InputError

LARGEST = 1e4
"""RMS displacement per weight at most: beyond it float16 weights are no numbers any more."""


def parse_seconds(budget: str | float | None) -> float | None:
    """``"90s"``, ``"4m"``, ``"1.5h"`` or a number of seconds.

    >>> parse_seconds("4m"), parse_seconds("1h30m"), parse_seconds(20)
    (240.0, 5400.0, 20.0)
    """
    if budget is None:
        return None
    if isinstance(budget, (int, float)):
        seconds = float(budget)
    else:
        parts = re.fullmatch(r"\s*(?:([\d.]+)h)?\s*(?:([\d.]+)m)?\s*(?:([\d.]+)s?)?\s*", str(budget))
        try:
            seconds = sum(
                float(value) * unit for value, unit in zip(parts.groups(), (3600, 60, 1), strict=True) if value
            ) if parts else 0.0  # fmt: skip
        except ValueError:
            seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"budget {budget!r}: expected a time such as 90s, 4m or 1h30m.")
    return seconds


@dataclass(frozen=True)
class Check:
    """Annotation of a type: what fails is refused with this sentence, what passes is kept as it was given.

    Attributes:
        sentence: What was expected. ``{name}``, ``{option}`` (the name on the command line), ``{value}`` and pydantic's
            constraints (``{ge}`` ...) are filled in.
        test: What pydantic has no constraint for.
    """

    sentence: str
    test: Callable[[Any], Any] | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> core_schema.CoreSchema:
        schema = handler(source)
        limits = {name: schema[name] for name in ("ge", "gt", "le", "lt") if name in schema}
        kept = functools.partial(self._kept, {"sentence": self.sentence, **limits})
        return core_schema.no_info_wrap_validator_function(kept, schema)

    def _kept(self, context: dict[str, Any], value: Any, validate: Callable[[Any], Any]) -> Any:
        try:
            validate(value)
        except ValidationError as error:
            if error.errors()[0]["type"] == "check":  # of a part of the type, which knows better
                raise
        else:
            if self.test is None or self.test(value):
                return value
        raise PydanticCustomError("check", "{sentence}", context)


def one_of(*words: str) -> Check:
    """Annotation of a text that is one of these words."""
    listed = " or ".join([", ".join(map(repr, words[:-1])), repr(words[-1])])
    return Check(f"{{option}} {{value!r}}: expected {listed}.", words.__contains__)


def _timed(budget: Any) -> Any:
    parse_seconds(budget)
    return budget


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _several(value: Any) -> Any:
    """One where several may stand, and paths as text."""
    alone = isinstance(value, (str, Path)) or not isinstance(value, Iterable)
    return tuple(map(_text, (value,) if alone else value))


def _all_named(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, str) or (hasattr(value, "name") and hasattr(value, "items")) for value in values)


WHOLE = Check("{name} {value!r}: expected a whole number of at least {ge}.")
SHARE = Check("{option} {value}: expected a fraction between 0 and 1, e.g. 0.02 for two points.")
NAMES = Check("{name} {value!r}: expected names, e.g. recall, or files.", _all_named)
FILLED = Check("{name} is empty: expected at least one, e.g. 'default'.", bool)
COMMAS = "On the command line commas part the names, too."
SECONDS = "In a YAML file a number is a number of seconds."
IN_FILE = "Only in a YAML file, or in Python."
"""Annotations of lists of names, of times, and of what the command line does not have; see :func:`marked`."""

Object = Annotated[str, SkipValidation]
"""A text, or in Python the object that it names: a model, a device ...; checked where it is used."""
Text = Annotated[str, BeforeValidator(_text)]
"""A word, or the path of a file."""
Texts = Annotated[tuple[str, ...], BeforeValidator(_several)]
Names = Annotated[tuple[str, ...], SkipValidation, NAMES, BeforeValidator(_several), COMMAS]
"""Names; in Python also tasks in memory."""
SomeNames = Annotated[tuple[str, ...], SkipValidation, NAMES, FILLED, BeforeValidator(_several), COMMAS]
Integer = Annotated[int, Strict()]
Count = Annotated[int, Strict(), Field(ge=1), WHOLE]
Real = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Share = Annotated[Real, Field(gt=0, lt=1), SHARE]
Duration = Annotated[str, PlainValidator(_timed), SECONDS]
"""A time such as 4m; in Python also a number of seconds."""


def marked(hint: Any, mark: str) -> bool:
    """Whether a type, or a part of it, has this annotation."""
    return any(part == mark or marked(part, mark) for part in get_args(hint))
