"""Writing files so that a reader sees all of one or nothing, and a failure says what to do."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from catchment.errors import StoreError

TEMPORARY = ".tmp"
STALE_SECONDS = 24 * 3600
"""Age from which a temporary file counts as left behind by a process that was killed."""

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


def make_folder(path: Path) -> list[Path]:
    """Create a folder and its parents; returns those that hold a new name, for :func:`sync_folder`.

    Raises:
        StoreError: As :func:`write_atomic`.
    """
    grown: list[Path] = []
    with explained(path):
        for folder in (path, *path.parents):
            if folder.exists():
                break
            grown.append(folder.parent)
        path.mkdir(parents=True, exist_ok=True)
    return grown


def write_atomic(path: str | Path, text: str) -> None:
    """Write text so that after a crash the file is the old one or the new one, never a part.

    Written beside, flushed to the disk, renamed; the temporary file is removed when anything fails.

    Raises:
        StoreError: Read-only, full, no permission; the message names the path, the reason and the fix.
    """
    _write(Path(path), text.encode(), os.replace)


@contextlib.contextmanager
def open_atomic(path: str | Path) -> Iterator[BinaryIO]:
    """As :func:`write_atomic`, for what is too large to hold: a file to write to, which takes its name at the end of
    the block, and none where the block fails.

    Raises:
        StoreError: As :func:`write_atomic`.
    """
    path = Path(path)
    with explained(path), temporary(path.parent) as (beside, file):
        yield file
        flush(file)
        os.replace(beside, path)
        sync_folder(path.parent)


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


def write_new(path: Path, data: bytes, *, sync: bool = True) -> bool:
    """Like :func:`write_atomic`, but never overwrites: False when another writer had the name first. Without ``sync``
    it may be lost or empty after a power cut, never after a crash of the process."""
    try:
        with _gone(path.parent):
            _write(path, data, _link, sync)
    except FileExistsError:
        return False
    return True


def write_numbered(folder: Path, number: int, **contents: bytes | Path) -> int:
    """Write files ``000007.<ending>`` of one number, from ``number`` on the first that no other writer has.

    All contents are on the disk before the first name is there, names appear in the order given, and the folder is
    flushed once, after the last.

    Args:
        contents: By ending, with ``_`` for a dot: the bytes, or a temporary file in this folder, flushed already.

    Raises:
        FolderGoneError: The folder was removed meanwhile.
        StoreError: The disk is full or read-only.
    """
    endings = [ending.replace("_", ".") for ending in contents]
    with contextlib.ExitStack() as stack, explained(folder), _gone(folder):
        files = [_on_disk(folder, content, stack) for content in contents.values()]
        while not _take(folder, number, endings, files):
            number += 1
        sync_folder(folder)
    return number


class FolderGoneError(StoreError):
    """The folder to write into was removed by another process; make it again."""


@contextlib.contextmanager
def _gone(folder: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, StoreError) as error:
        if not isinstance(error if isinstance(error, OSError) else error.__cause__, FileNotFoundError):
            raise
        raise FolderGoneError(f"{folder} was removed while it was written to; run the same command again.") from error


def _on_disk(folder: Path, content: bytes | Path, stack: contextlib.ExitStack) -> Path:
    if isinstance(content, Path):
        return content
    path, file = stack.enter_context(temporary(folder))
    file.write(content)
    flush(file)
    return path


def _take(folder: Path, number: int, endings: list[str], files: list[Path]) -> bool:
    """Name the files with this number, unless it is taken. Who has the first name has the number."""
    paths = [folder / f"{number:06d}.{ending}" for ending in endings]
    if any(path.exists() for path in paths):
        return False
    try:
        _link(files[0], paths[0])
    except FileExistsError:
        return False
    for file, path in zip(files[1:], paths[1:], strict=True):
        _link(file, path)
    return True


@contextlib.contextmanager
def temporary(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file of a passing name, removed when the block is left."""
    path = folder / f".{uuid.uuid4().hex}{TEMPORARY}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with open(descriptor, "wb") as file:
            yield path, file
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def flush(file: BinaryIO) -> None:
    """Everything written so far is on the disk when this returns."""
    file.flush()
    os.fsync(file.fileno())


def is_stale(path: Path) -> bool:
    """Whether it is a temporary file that a writer which was killed long ago left behind."""
    return path.name.endswith(TEMPORARY) and is_old(path)


def is_old(path: Path) -> bool:
    """Whether nobody can be at work on a file that is half written."""
    try:
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    except OSError:
        return False


def _write(path: Path, data: bytes, publish: Callable[[Path, Path], None], sync: bool = True) -> None:
    taken = False
    with explained(path), temporary(path.parent) as (beside, file):
        file.write(data)
        flush(file) if sync else file.flush()
        try:
            publish(beside, path)
        except FileExistsError:
            taken = True
        else:
            if sync:
                sync_folder(path.parent)
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
