"""Files: safetensors headers checked before anything is loaded, and writing that leaves no half file behind."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from catchment.errors import ModelError, StoreError

_MAX_HEADER = 100_000_000
AGAIN = "download or save it again"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""What safetensors calls each dtype."""


@dataclass(frozen=True)
class Entry:
    """One tensor in a safetensors file: bytes ``[start, stop)`` of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    path: Path


def read_header(path: Path, again: str = AGAIN) -> tuple[list[Entry], dict[str, str]]:
    """Tensors and metadata of a safetensors file, after checking that the file holds all of its bytes.

    Cost: the header only. ``again`` is the advice in the error.

    Raises:
        ModelError: The file cannot be opened, is not safetensors, or is cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if not 2 <= length <= min(_MAX_HEADER, max(size - 8, 0)):
                raise ModelError(f"{path} is not a safetensors file, or is cut short ({size} bytes); {again}.")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        entries = [_entry(name, value, 8 + length, path) for name, value in header.items()]
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} has a damaged safetensors header; {again}.") from error
    needed = max((entry.stop for entry in entries), default=8 + length)
    if needed != size:
        raise ModelError(f"{path} holds {size} bytes but its header describes {needed}: it is damaged; {again}.")
    return entries, metadata


def _entry(name: str, value: dict[str, Any], data: int, path: Path) -> Entry:
    start, stop = value["data_offsets"]
    return Entry(name, str(value["dtype"]), tuple(int(n) for n in value["shape"]), data + start, data + stop, path)


def mapped_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """Tensors of safetensors files by name, mapped and not read: pages come from the file when they are looked at.

    They must not be written to. Tensors of dtypes that torch does not know, or that are not aligned, are left out.

    Raises:
        ModelError: As :func:`read_header`.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        entries = read_header(path)[0]
        raw = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        for entry in entries:
            dtype = DTYPES.get(entry.dtype)
            if dtype is not None and entry.stop > entry.start and entry.start % dtype.itemsize == 0:
                tensors[entry.name] = raw[entry.start : entry.stop].view(dtype).view(entry.shape)
    return tensors


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, streaming."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_beside(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a temporary file in the same folder, synced, then renamed.

    Raises:
        StoreError: The folder is missing, read-only or full.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error.strerror or error}; is it read-only or full?") from error
