"""Whose output folder is it: a marker with the fingerprint of the work, and a lock for the process at work."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from catchment.errors import StoreError
from catchment.records import SCHEMA_VERSION
from catchment.runs.cells import canonical_json
from catchment.runs.files import TEMPORARY, explained, make_folder, write_atomic, write_new

MARKER = "catchment.json"
LOCK, HOLDER = ".lock", ".lock.json"


def claim_folder(out: str | Path, fingerprint: Mapping[str, Any], what: str) -> Path:
    """Make ``out`` the folder of this piece of work, or say why it cannot be.

    A new or empty folder gets a marker, ``catchment.json``, with the fingerprint. A folder with an equal fingerprint
    is taken up again. Anything else is refused, so that results never mix and foreign files are never touched.

    Args:
        out: The folder; created with its parents.
        fingerprint: What decides the results, as JSON types: models, tasks, settings.
        what: Kind of work, for people: "comparison".

    Returns:
        ``out`` as a Path.

    Raises:
        StoreError: Another fingerprint (names the differing fields, given and found), foreign files, an unreadable
            marker, or a folder that cannot be written.
        InputError: The fingerprint holds NaN or something that is not JSON.
    """
    out = Path(out)
    given = {"what": what, "schema_version": SCHEMA_VERSION, "fingerprint": json.loads(canonical_json(fingerprint))}
    make_folder(out)
    marker = out / MARKER
    with explained(out):
        foreign = sorted(entry.name for entry in out.iterdir() if not _ours(entry.name))
    if not marker.exists():
        if foreign:
            some = ", ".join(foreign[:3]) + (" ..." if len(foreign) > 3 else "")
            raise StoreError(
                f"{out} holds files that are not ours ({some}); expected a new or empty folder, "
                f"or one with a {MARKER}. Choose another output folder."
            )
        if write_new(marker, (json.dumps(given, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()):
            return out
    _check_marker(out, marker, given)
    return out


def _ours(name: str) -> bool:
    return name in {MARKER, LOCK, HOLDER} or (name.startswith(".") and name.endswith(TEMPORARY))


def _check_marker(out: Path, marker: Path, given: dict[str, Any]) -> None:
    try:
        found = dict(json.loads(marker.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(
            f"{marker} cannot be read ({type(error).__name__}); expected the marker of a {given['what']}. "
            "Choose another output folder, or delete this one."
        ) from None
    differences = _differences(given, found, "")
    if differences:
        shown = "; ".join(differences[:4]) + (f"; and {len(differences) - 4} more" if len(differences) > 4 else "")
        raise StoreError(
            f"{out} holds another {found.get('what', 'result')}: {shown}. "
            "Choose another output folder, or delete this one to start over."
        )


def _differences(given: Any, found: Any, name: str) -> list[str]:
    if isinstance(given, dict) and isinstance(found, dict):
        lines: list[str] = []
        for key in sorted(given.keys() | found.keys()):
            inner = key if name in ("", "fingerprint") else f"{name}.{key}"
            lines += _differences(given.get(key), found.get(key), inner)
        return lines
    return [] if given == found else [f"{name} is {_short(given)} here and {_short(found)} there"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


@contextlib.contextmanager
def locked(root: Path, purpose: str, patience: float = 0.0) -> Iterator[None]:
    """Hold ``root`` for this process. The operating system releases the lock when the process ends, however it ends.

    Raises:
        StoreError: After ``patience`` seconds, when another process holds it: its number, its machine, since when,
            what for.
    """
    from filelock import FileLock, Timeout

    make_folder(root)
    lock = FileLock(root / LOCK)
    with explained(root / LOCK):
        try:
            lock.acquire(timeout=patience)
        except Timeout as error:
            raise StoreError(_busy(root)) from error
    try:
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "purpose": purpose,
        }
        write_atomic(root / HOLDER, json.dumps(holder, ensure_ascii=False))
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(root / HOLDER)
        lock.release()


def _busy(root: Path) -> str:
    try:
        holder = json.loads((root / HOLDER).read_text("utf-8"))
        who = f"process {holder['pid']} on {holder['host']} ({holder['purpose']}), running since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process that is just starting or ending"
    return f"{root} is in use by {who}; wait until it has finished, stop it, or choose another output folder."
