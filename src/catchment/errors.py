"""One tree of errors. Every message names the value given, what was expected and the likely fix."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping


class CatchmentError(Exception):
    """Base of every error that a user can act on. The command line prints it in one line and exits with 2."""


class InputError(CatchmentError, ValueError):
    """A value that was given cannot be used: wrong name, empty file, setting out of range."""


class TrainingArgumentsError(InputError):
    """Arguments that ``transformers.TrainingArguments`` or the Trainer refuses; ``reason`` is what it said."""

    def __init__(self, given: Mapping[str, object], error: Exception) -> None:
        self.reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        super().__init__(f"training_args {' '.join(f'{name}={value}' for name, value in given.items())}: {self.reason}")


class ModelError(CatchmentError):
    """A model cannot be found, read or used for what was asked."""


class TaskError(CatchmentError):
    """A task cannot be built or scored honestly: unlabelled, empty, prompts that do not fit."""


class UnavailableError(TaskError):
    """A data set that is not on this machine and cannot be fetched now; ``reason`` is why, without its name."""

    def __init__(self, name: str, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{name}: {reason}; expected it in the hub's cache, or a network.")


class NonFiniteError(TaskError):
    """A model's outputs are NaN or infinite, so there is nothing to score."""


class GateError(TaskError):
    """A validity gate refused a measurement that would have looked like a result."""


class StoreError(CatchmentError):
    """The output folder cannot be used: read-only, full, locked, or holding another comparison."""


class MissingExtraError(CatchmentError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.reason = f"{package!r} is not installed: pip install 'catchment[{extra}]'"
        super().__init__(f"{purpose} needs {package!r}, which is not installed: pip install 'catchment[{extra}]'")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string.

    >>> did_you_mean("arithmetik", ["arithmetic", "recall"])
    " Did you mean 'arithmetic'?"
    """
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def finish(work: Callable[[], None], raised: BaseException | None) -> None:
    """Do what belongs to the end of a block. Where the block itself raised, an error here becomes a note of it."""
    try:
        work()
    except Exception as error:
        if raised is None:
            raise
        raised.add_note(f"{type(error).__name__}: {error}")
