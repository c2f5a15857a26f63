"""A command line made from a class of settings: its options, and below them a YAML file."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import docstring_parser
import tyro

from catchment.cli.table import Command
from catchment.options import COMMAS, IN_FILE, marked, read_config


def parse(command: Command, arguments: list[str]) -> Any:
    """What a command line asks for: the command's settings that it can have, ``json`` and ``config``; not checked."""
    return read(command, arguments).line


def read(command: Command, arguments: list[str]) -> Asked:
    """What a command line and its YAML files ask for; the command line wins."""
    kind = command.settings
    files = [kind.config_in(arguments), _value_of("--config", arguments)]
    values: dict[str, Any] = {}
    for file in files:
        values |= read_config(Path(file), kind) if file else {}
    hints = get_type_hints(kind, include_extras=True)
    line, inner = command_line(kind), {name for name in hints if marked(hints[name], IN_FILE)}
    missing = dict.fromkeys(subjects(kind), tyro.MISSING)
    shown = {name: value for name, value in values.items() if name not in inner}
    asked: Any = tyro.cli(
        line,
        prog=f"catchment {command.name}",
        args=arguments,
        default=line(**{**missing, **shown}) if values else None,
        config=(tyro.conf.PositionalRequiredArgs, tyro.conf.FlagCreatePairsOff),
    )
    lists = {name: _split(getattr(asked, name)) for name in hints if marked(hints[name], COMMAS) and name not in inner}
    named = [value for name in kind.named_by or subjects(kind) if (value := getattr(asked, name))]
    out = asked.out or default_out(*named, suffix=command.name)
    return Asked(dataclasses.replace(asked, out=out, **lists), {name: values[name] for name in inner & values.keys()})


@dataclasses.dataclass(frozen=True)
class Asked:
    """What was asked for, not checked yet: on the command line, and only in a file."""

    line: Any
    in_file: dict[str, Any]


def settings_of(command: Command, asked: Asked) -> Any:
    """What was asked for as settings.

    Raises:
        InputError: A value that a setting cannot have.
    """
    kind = command.settings
    line = {f.name: getattr(asked.line, f.name) for f in dataclasses.fields(kind) if hasattr(asked.line, f.name)}
    return kind(**line, **asked.in_file)


def subjects(kind: Any) -> list[str]:
    """The settings without a default: what a command is about."""
    return [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]


def command_line(kind: Any) -> Any:
    """A dataclass of what a command line may say: all settings, the command's own first, and ``--json`` and
    ``--config``. It checks no ranges: an error in here the parser would draw in a frame."""
    fields, types, told = {f.name: f for f in dataclasses.fields(kind)}, get_type_hints(kind), help_of(kind)
    names = [name for cls in kind.__mro__ for name in inspect.get_annotations(cls) if name in fields]
    hints = get_type_hints(kind, include_extras=True)
    rows: list[Any] = []
    for name in dict.fromkeys(name for name in names if not marked(hints[name], IN_FILE)):
        marks = [tyro.conf.arg(help=told[name])]
        if name in (kind.positional or subjects(kind)):
            marks = [tyro.conf.arg(help=told[name], metavar=name.upper()), tyro.conf.Positional]
        rows.append((name, Annotated[types[name], *marks], dataclasses.field(default=fields[name].default)))
    json = tyro.conf.arg(help=f"Print the record as JSON instead of {kind.shown}.")
    config = tyro.conf.arg(help="YAML file of settings; the command line wins.")
    rows += [("json", Annotated[bool, json], False), ("config", Annotated[Path | None, config], None)]
    line = dataclasses.make_dataclass(f"{kind.__name__}Line", rows, frozen=True)
    line.__doc__ = str(kind.__doc__).partition("\n\n")[0]
    return line


def help_of(kind: type) -> dict[str, str]:
    """What the docstrings of settings and of their groups say of each field; a command's own words win."""
    words: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        for field in docstring_parser.parse(cls.__dict__.get("__doc__") or "").params:
            words[field.arg_name] = " ".join((field.description or "").split())
    return words


def default_out(*specs: str, suffix: str) -> Path:
    """``catchment-out/<base>-vs-<tuned>``, or ``catchment-out/<model>-<suffix>``, from the last parts of the names.

    >>> str(default_out("org/base", "runs/tuned", suffix="compare")), str(default_out("m.gguf", suffix="scan"))
    ('catchment-out/base-vs-tuned', 'catchment-out/m.gguf-scan')
    """
    names = [re.sub(r"[^\w.-]+|\.ya?ml$", "-", Path(str(s)).name or "model").strip("-.") for s in specs]
    return Path("catchment-out") / ("-vs-".join(names) if len(names) > 1 else "-".join([*names, suffix]))


def _split(words: Sequence[str]) -> tuple[str, ...]:
    """Names given apart or with commas between them; a path may contain commas."""
    names = (name for word in words for name in ([word] if Path(word).exists() else word.split(",")))
    return tuple(name for name in names if name)


def given_options(arguments: Sequence[str]) -> frozenset[str]:
    """Names of the options among these arguments.

    >>> sorted(given_options(["--limit", "3", "--fail-if-drop=0.1"]))
    ['fail_if_drop', 'limit']
    """
    options = (word.removeprefix("--").partition("=")[0] for word in arguments if word.startswith("--"))
    return frozenset(option.replace("-", "_") for option in options)


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    for place, word in enumerate(arguments):
        if word == option and place + 1 < len(arguments):
            return arguments[place + 1]
        if word.startswith(f"{option}="):
            return word.split("=", 1)[1]
    return None
