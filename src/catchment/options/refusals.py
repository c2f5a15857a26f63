"""Settings are checked when they are made: a dataclass checked by pydantic, whose errors are ours."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import pydantic.dataclasses
from pydantic import ConfigDict, ValidationError

from catchment.errors import CatchmentError, InputError, did_you_mean

T = TypeVar("T")

EXPECTED = {
    "int": "a whole number", "float": "a number", "finite": "a finite number", "bool": "true or false",
    "string": "text", "path": "a path", "tuple": "one or more names, e.g. a,b", "list": "one or more names, e.g. a,b",
}  # fmt: skip
"""What pydantic expected, by the first word of its error's type."""


def expected(error: ValidationError) -> str:
    """What the first of pydantic's errors says was expected, in words that end a sentence."""
    first = error.errors(include_url=False)[0]
    kind, message = first["type"].split("_")[0], first["msg"]
    return EXPECTED.get(kind, message.removeprefix("Input should be ").rstrip("."))


def refusal(error: ValidationError, names: list[str]) -> CatchmentError:
    """pydantic's error on one of the values called ``names``, as one of ours: the value, what was expected, the fix."""
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    if isinstance(context.get("error"), CatchmentError):
        return context["error"]
    place = first["loc"][0] if first["loc"] else ""
    name = names[place] if isinstance(place, int) and place < len(names) else str(place)
    option, value = name.replace("_", "-"), first["input"]
    if first["type"] == "check":
        return InputError(context["sentence"].format(**{**context, "name": name, "option": option, "value": value}))
    if first["type"] == "missing":
        return InputError(f"{option} is missing.")
    if first["type"] == "unexpected_keyword_argument":
        return InputError(f"there is no setting {name!r}.{did_you_mean(name, names)}")
    return InputError(f"{option} {value!r}: expected {expected(error)}.")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def checked(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose fields are keywords, checked by pydantic; what it refuses is an
    :class:`~catchment.errors.InputError`.

    >>> @checked
    ... class Example:
    ...     limit: int = 3
    >>> Example(limit="many")
    Traceback (most recent call last):
    catchment.errors.InputError: limit 'many': expected a whole number.
    """
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    made: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)
    validated = made.__init__

    def init(self: Any, /, *args: Any, **values: Any) -> None:
        try:
            validated(self, *args, **values)
        except ValidationError as error:
            raise refusal(error, [f.name for f in dataclasses.fields(made)]) from None

    made.__init__ = init
    return made
