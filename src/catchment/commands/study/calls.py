"""Cells of a study that are neither trainings nor evaluations: calls of functions in a file beside the YAML file.

``STORE/calls/<key>/`` holds ``result.json``, and what a long call keeps between two runs. The key is that of the
study, the function, its version and its arguments; a change of the source text is told by raising ``version``.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catchment.commands.study import axes
from catchment.commands.study.record import Gap, Status
from catchment.commands.study.settings import StudySettings
from catchment.errors import InputError, did_you_mean
from catchment.measuring import OutOfTimeError, Progress
from catchment.runs import Store, cell_key, make_folder, write_atomic

FILE = "result.json"


@dataclass(frozen=True)
class CallAxis:
    """A function and the arguments it is called with.

    Attributes:
        function: ``file.py:name``; the file is relative to the YAML file.
        over: Values of each keyword argument; one call for each combination.
        version: Raised by hand when the same arguments would give another result.
    """

    function: str
    over: dict[str, object] = field(default_factory=dict)
    version: int = 1


@dataclass(frozen=True)
class PlannedCall:
    """One call of the grid; ``path`` of the file with the function, ``study`` whose call it is."""

    path: Path
    study: str
    function: str
    version: int
    arguments: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Address of its result."""
        decides = {"function": self.function, "version": self.version, "arguments": self.arguments}
        return cell_key({"kind": "call", "study": self.study, **decides})

    @property
    def short(self) -> str:
        """The function, without its file."""
        return self.function.rpartition(":")[2]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.short}({', '.join(f'{name}={value}' for name, value in self.arguments.items())})"


@dataclass
class Call(Progress):
    """What a function of a study is given before its arguments; as a progress, it ends at the next token or line of
    status what goes on when the time is spent.

    Attributes:
        folder: Of this call, for what it keeps between two runs; it is there.
        store: Of the study.
        progress: Who watches.
        until: Raises OutOfTimeError once the time is spent.
    """

    planned: PlannedCall
    folder: Path
    store: Store
    progress: Progress
    until: Callable[[], None]
    late: bool = False

    def check(self) -> None:
        """End the call where the time is spent; the next run calls the function again.

        Raises:
            OutOfTimeError: It is.
        """
        try:
            self.until()
        except OutOfTimeError:
            self.late = True
            raise

    def status(self, text: str) -> None:
        self.progress.status(f"{self.planned.name} · {text}")
        self.check()

    def advance(self, tokens: float) -> None:
        self.progress.advance(tokens)
        self.check()


def read_calls(settings: StudySettings) -> tuple[PlannedCall, ...]:
    """The calls that the settings ask for, in order. No file is executed.

    Raises:
        InputError: No such file or function, an argument that the function does not have, a call twice.
    """
    listed = axes.read_all(CallAxis, settings.calls, "calls", "function") if settings.calls else ()
    calls = tuple(call for number, axis in enumerate(listed) for call in _planned(axis, settings, f"calls[{number}]"))
    axes.distinct((call.name for call in calls), "calls")
    return calls


def _planned(axis: CallAxis, settings: StudySettings, where: str) -> Iterator[PlannedCall]:
    file, _, function = axis.function.rpartition(":")
    path = (settings.study.parent if settings.study is not None else Path()) / file
    if not file or not path.is_file():
        raise InputError(f"{where}.function is {axis.function!r}; expected file.py:name, a file beside the YAML file.")
    names = _parameters(path, function, where)
    for name, values in axis.over.items():
        if name not in names:
            raise InputError(f"{where}.over: {function} has no argument {name!r}.{did_you_mean(name, names)}")
        if isinstance(values, list):
            axes.distinct([json.dumps(value, sort_keys=True) for value in values], f"{where}.over.{name}")
    lists = {name: values if isinstance(values, list) else [values] for name, values in axis.over.items()}
    for arguments in axes.product(lists):
        yield PlannedCall(path, settings.label, axis.function, axis.version, arguments)


def _parameters(path: Path, function: str, where: str) -> list[str]:
    """Names of the parameters of a function behind its first one, read off the source text."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{where}: {path} cannot be read as Python: {error}") from error
    there = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if function not in there:
        raise InputError(f"{where}: {path.name} has no function {function!r}.{did_you_mean(function, there)}")
    arguments = there[function].args
    return [a.arg for a in (*arguments.args[1:], *arguments.kwonlyargs)]


def read_result(store: Store, call: PlannedCall) -> Any:
    """What a call returned; ``None`` where it has not. A damaged file counts as none."""
    path = store.root / "calls" / call.key / FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))["result"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        store.warn(str(path), "it is no result of a call")
        return None


def make_call(call: PlannedCall, store: Store, progress: Progress, check: Callable[[], None]) -> None:
    """Call the function and keep what it returns, which must be JSON and not null.

    Raises:
        OutOfTimeError: The time was spent while it was at work, whatever it made of that.
        InputError: What it returned is no JSON.
    """
    folder = store.root / "calls" / call.key
    make_folder(folder)
    progress.status(call.name)
    own = Call(call, folder, store, progress, check)
    with _function(call) as function:
        result = function(own, **call.arguments)
    if own.late:
        raise OutOfTimeError(f"the time was spent during {call.name}.")
    content = {"function": call.function, "version": call.version, "arguments": call.arguments, "result": result}
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{call.name} returned what is no JSON: {error}") from error
    if result is None:
        raise InputError(f"{call.name} returned nothing; expected JSON.")
    write_atomic(folder / FILE, text)


@contextmanager
def _function(call: PlannedCall) -> Iterator[Callable[..., Any]]:
    """The function; inside, its file finds the modules beside it."""
    name = f"_calls_{cell_key({'file': str(call.path.resolve())})[:16]}"
    sys.path.insert(0, str(call.path.parent.resolve()))
    try:
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, call.path)
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
        yield getattr(sys.modules[name], call.short)
    finally:
        sys.path.remove(str(call.path.parent.resolve()))


def stand_of(store: Store, call: PlannedCall, reasons: Mapping[str, str]) -> tuple[Status, str]:
    """Whether a call is done, missing or failed, and why; ``reasons`` of failures by key."""
    if read_result(store, call) is not None:
        return "done", ""
    reason = reasons.get(call.key, "")
    return ("failed" if reason else "missing"), reason


def gaps_of(calls: tuple[PlannedCall, ...], store: Store, reasons: Mapping[str, str]) -> list[Gap]:
    """Calls that are not done, by function and reason."""
    groups: dict[tuple[str, Status, str], int] = {}
    for call in calls:
        status, reason = stand_of(store, call, reasons)
        if status != "done":
            key = (f"{call.short}: {call.name}" if reason else call.short, status, reason)
            groups[key] = groups.get(key, 0) + 1
    return [Gap(f"calls of {what}", number, reason, status) for (what, status, reason), number in groups.items()]
