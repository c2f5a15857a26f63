"""Writing files so that a reader sees all of one or nothing, and a failure says what to do."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from catchment.errors import StoreError

TEMPORARY = ".tmp"

_ADVICE = {
    errno.EROFS: "the file system is read-only: choose an output folder on another disk",
    errno.ENOSPC: "the disk is full: free some space and run the same command again, finished items are kept",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again, finished items are kept",
    errno.EACCES: "no permission to write here: choose another output folder or change its owner",
    errno.EPERM: "no permission to write here: choose another output folder or change its owner",
    errno.ENOTDIR: "a part of the path is a file: choose another output folder",
    errno.EEXIST: "a file of that name is in the way: choose another output folder",
    errno.ENAMETOOLONG: "the name is too long for this file system: choose a shorter one",
}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError into a StoreError that names the path, the reason of the system and the fix."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "check the disk, or choose another output folder")
        raise StoreError(f"cannot write {path}: {error.strerror or error}; {advice}.") from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents. Raises StoreError."""
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)


def write_atomic(path: str | Path, text: str) -> None:
    """Write text so that after a crash the file is the old one or the new one, never a part.

    Written beside, flushed to the disk, renamed; the temporary file is removed when anything fails.

    Raises:
        StoreError: Read-only, full, no permission; the message names the path, the reason and the fix.
    """
    _write(Path(path), text.encode(), os.replace)


def read_json(path: Path, fix: str = "delete it, and the same command makes it anew", lines: bool = False) -> Any:
    """What a JSON file holds, or each line of a JSON Lines file.

    Raises:
        StoreError: It cannot be read, is cut short or damaged; the message ends with ``fix``.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged ({error}); {fix}.") from error


def write_new(path: Path, data: bytes) -> bool:
    """Like :func:`write_atomic`, but never overwrites: False when another writer had the name first."""
    try:
        _write(path, data, _link)
    except FileExistsError:
        return False
    return True


def _write(path: Path, data: bytes, publish: Callable[[Path, Path], None]) -> None:
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY}")
    taken = False
    with explained(path):
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                publish(beside, path)
            except FileExistsError:
                taken = True
            else:
                sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(beside)
    if taken:
        raise FileExistsError(path)


def _link(beside: Path, path: Path) -> None:
    """Give a finished file its name unless the name is taken; in one step where the file system has hard links."""
    try:
        os.link(beside, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(path) from None
        os.rename(beside, path)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder, so that a rename survives a power cut. Some systems cannot; then do nothing."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
