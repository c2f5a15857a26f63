"""Where settings come from: a Python call, a YAML file, ``key=value`` texts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from catchment.errors import InputError, did_you_mean
from catchment.options.groups import Options
from catchment.options.refusals import expected
from catchment.options.values import SECONDS, marked

S = TypeVar("S", bound=Options)


def as_settings(kind: type[S], *subjects: Any, options: dict[str, Any], caller: str, closed: set[str]) -> S:
    """The settings of a Python call.

    Raises:
        InputError: An unknown name, one that only the command line has (``closed``), or a value that it cannot have.
    """
    known = {f.name for f in dataclasses.fields(kind)} - closed
    for name in options:
        if name not in known:
            raise InputError(f"{caller} has no setting {name!r}.{did_you_mean(name, known)}")
    return kind(*subjects, **options)


def read_config(path: Path, kind: type) -> dict[str, Any]:
    """Settings from a YAML file, of the right types; ranges are checked when the settings are made.

    Raises:
        InputError: No such file, not a mapping, an unknown key, or a value of another type.
    """
    import yaml

    where = f"--config {str(path)!r}"
    if not path.is_file():
        raise InputError(f"{where}: no such file; expected a YAML file of settings.")
    try:
        text = path.read_text(encoding="utf-8")
        content, repeated = yaml.safe_load(text) or {}, _repeated(yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = str(error).splitlines()[0] if mark is None else f"line {mark.line + 1}: {getattr(error, 'problem', '')}"
        raise InputError(f"{where} is not YAML: {said}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 at byte {error.start}; expected a YAML file of settings.") from error
    if repeated:
        raise InputError(f"{where}: {repeated}; expected each key once. Remove one.")
    if not isinstance(content, Mapping):
        raise InputError(f"{where} holds a {type(content).__name__}; expected `key: value` lines.")
    names = [f.name for f in dataclasses.fields(kind)]
    types, marks = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in names:
            raise InputError(f"{where}: unknown key {key!r}.{did_you_mean(name, names)}")
        if isinstance(value, str) and types[name] == tuple[str, ...]:
            value = (value,)
        if value is not None and marked(marks[name], SECONDS):
            value = str(value)
        try:
            strict = True if isinstance(value, bool) else None  # yes is no number
            values[name] = TypeAdapter(types[name]).validate_python(value, strict=strict)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise InputError(f"{where}: {key} is {value!r}; {said[0].lower()}{said[1:]}.") from error
    return values


def _repeated(node: Any) -> str:
    """The first key of a YAML text that stands twice in its mapping, of which YAML would take the last; empty where
    there is none."""
    import yaml

    if not isinstance(node, yaml.CollectionNode):
        return ""
    seen: set[str] = set()
    for entry in node.value:
        key, value = entry if isinstance(node, yaml.MappingNode) else (None, entry)
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                return f"key {key.value!r} stands twice, the second time in line {key.start_mark.line + 1}"
            seen.add(key.value)
        if text := _repeated(value):
            return text
    return ""


def parse_pairs(pairs: tuple[str, ...], kind: type, option: str, what: str) -> dict[str, Any]:
    """``key=value`` texts as the fields of a dataclass; values are read as YAML. Fields whose default is None are left
    to the class to check: what others write there as types is often less than they take.

    Raises:
        InputError: No ``=``, an unknown key, or a value of another type.
    """
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    types = get_type_hints(kind)
    values: dict[str, Any] = {}
    for pair in pairs:
        where = f"--{option} {pair!r}"
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise InputError(f"{where}: expected key=value, e.g. {next(iter(fields))}=...")
        if name not in fields:
            raise InputError(f"{where}: no setting {name!r} {what}.{did_you_mean(name, fields)}")
        default = fields[name].default
        value = _read_value(text, where)
        values[name] = (value,) if isinstance(default, tuple) and not isinstance(value, (list, tuple)) else value
        if default is None or default is dataclasses.MISSING:
            continue
        try:
            strict = not isinstance(values[name], (list, tuple))
            TypeAdapter(types[name]).validate_python(values[name], strict=strict)
        except ValidationError as error:
            raise InputError(f"{where}: expected {name} to be {expected(error)}, e.g. {default}.") from error
    return values


def _read_value(text: str, where: str) -> Any:
    """A value as YAML reads it; numbers such as 1e-3, which it takes for text; and lists with commas."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: {text!r} cannot be read as a value.") from error
    if not isinstance(value, str):
        return value
    with contextlib.suppress(ValueError):
        return float(value)
    return tuple(part.strip() for part in text.split(",")) if "," in text else value
