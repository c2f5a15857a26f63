"""What a user may choose: types of values, groups of options that commands share, and how both are read and refused."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, dataclass_transform, get_args, get_type_hints

import pydantic.dataclasses
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SkipValidation,
    Strict,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticCustomError, core_schema

from catchment.errors import CatchmentError, InputError, did_you_mean

LARGEST = 1e4
"""RMS displacement per weight at most: beyond it float16 weights are no numbers any more."""

T = TypeVar("T")
S = TypeVar("S", bound="Options")


def cache_dir() -> Path:
    """Folder for what can be made again: ``$CATCHMENT_HOME``, ``$XDG_CACHE_HOME/catchment`` or ``~/.cache/catchment``.
    It may not exist yet. An empty variable counts as unset, and so does a relative ``XDG_CACHE_HOME``, which the XDG
    Base Directory Specification calls invalid."""
    home = os.environ.get("CATCHMENT_HOME")
    if home:
        return Path(home).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "catchment"


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


# ------------------------------------------------------------------------------------------------- types of values


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
"""Annotations of lists of names and of times; see :func:`marked`."""

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


# ------------------------------------------------------------------------------------------------- what is refused

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


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def checked(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass whose fields are keywords, checked by pydantic; what it refuses is an
    :class:`~catchment.errors.InputError`.

    >>> @checked
    ... class Example(Options):
    ...     limit: Count = 3
    >>> Example(limit=0)
    Traceback (most recent call last):
    catchment.errors.InputError: limit 0: expected a whole number of at least 1.
    """
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    made: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)
    validated = made.__init__

    @functools.wraps(validated)
    def init(self: Any, /, *args: Any, **values: Any) -> None:
        try:
            validated(self, *args, **values)
        except ValidationError as error:
            raise refusal(error, [f.name for f in dataclasses.fields(made)]) from None

    made.__init__ = init
    return made


# ------------------------------------------------------------------------------------------------- groups of options


@dataclass(frozen=True)
class Options:
    """Base of all groups. A command's settings are made of groups, and have their fields."""

    def shared(self, *groups: type[Options]) -> dict[str, Any]:
        """The values of these groups' options, as keywords for other settings that have them.

        >>> @checked
        ... class Example(AskOptions, OutputOptions): ...
        >>> Example(system="Be brief.").shared(AskOptions)
        {'chat_template': 'auto', 'system': 'Be brief.'}
        """
        return {f.name: getattr(self, f.name) for group in groups for f in dataclasses.fields(group)}


@checked
class MeasureOptions(Options):
    """What is measured, on how many items.

    Attributes:
        tasks: Built-in tasks, "default", "stories", files (.jsonl, .yaml), or lm-eval:NAME. Default: "default".
        limit: Items per task, a seeded random subset.
        alpha: Error rate of all verdicts together.
        seed: Chooses the items.
        batch_tokens: Padded tokens per forward pass. Default: 1024 on a CPU, else found on this machine.
    """

    tasks: SomeNames = ("default",)
    limit: Count | None = None
    alpha: Share = 0.05
    seed: Integer = 0
    batch_tokens: Count | None = None


@checked
class MarginOption(Options):
    """Which drop does not matter.

    Attributes:
        margin: Largest drop that still counts as kept.
    """

    margin: Share = 0.02


@checked
class BudgetOption(Options):
    """How long a command may take.

    Attributes:
        budget: Time to spend, e.g. 4m, reading the models included.
    """

    budget: Duration | None = None

    @property
    def seconds(self) -> float | None:
        """The budget in seconds."""
        return parse_seconds(self.budget)


@checked
class ContentOptions(Options):
    """What is measured beside the tasks, and what is left out.

    Attributes:
        text: Built-in text, or a file, for bits per byte; "none" to leave out.
        drop_long: Leave out items longer than the context instead of refusing the task.
    """

    text: Text = "text"
    drop_long: bool = False


@checked
class AskOptions(Options):
    """How a model is asked, in words; read into a :class:`~catchment.capabilities.PromptOptions`.

    Attributes:
        chat_template: "auto", "none", or a Jinja file.
        system: System prompt, in place of the tasks' own.
    """

    chat_template: Text = "auto"
    system: str | None = None


@checked
class ModelOptions(Options):
    """How a model is loaded.

    Attributes:
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: "cpu", "cuda", "cuda:1", "mps".
        attn_implementation: "sdpa", "eager", "flash_attention_2".
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Run Python code that comes with a model.
    """

    dtype: Object = "auto"
    device: Object | None = None
    attn_implementation: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    def model_options(self) -> dict[str, Any]:
        """What a model is loaded with: the arguments of :func:`catchment.load`."""
        return self.shared(*(group for group in (ModelOptions, DeviceMapOption, HeadOption) if isinstance(self, group)))


@checked
class DeviceMapOption(Options):
    """Where parts of a model go.

    Attributes:
        device_map: For models larger than one device, e.g. "auto".
    """

    device_map: Object | None = None


@checked
class HeadOption(Options):
    """What a model gives out.

    Attributes:
        head: "causal-lm", "sequence-classification", "image-classification" or "auto".
    """

    head: str = "auto"


@checked
class OutputOptions(Options):
    """Where results go.

    Attributes:
        out: Folder for the record and the page.
        store: Folder of measured rows, shared between commands. Default: in the cache folder.
        dry_run: Print the plan and stop.
    """

    shown: ClassVar[str] = "the table"
    """What a person sees of the record in the terminal, and ``--json`` prints it instead of."""

    out: Path | None = None
    store: Path | None = None
    dry_run: bool = False

    @property
    def store_folder(self) -> Path:
        """Where measured rows are."""
        return self.store or cache_dir() / "store"


# ------------------------------------------------------------------------------------------------- how they are read


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
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not YAML: {str(error).splitlines()[0]}.") from error
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
            values[name] = TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise InputError(f"{where}: {key} is {value!r}; {said[0].lower()}{said[1:]}.") from error
    return values


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
