"""The bytes of an increment's file: from (name, shape, indices, values) to safetensors and back.

- ``values.<DTYPE>``: the new values, tensor after tensor, in the model's own dtype;
- ``gaps``: for each tensor the strictly increasing flat indices as gaps in LEB128 bytes (see ``varint``);
- metadata: ``format``, ``version``, ``base_hash``, ``k``, ``tensors`` (name, shape, dtype, count, in file order),
  ``recipe`` (free JSON), ``sha256`` of the other metadata, the gaps and the values.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from catchment.errors import InputError, ModelError
from catchment.models import varint
from catchment.models.files import read_header

FORMAT = "catchment-increment"
VERSION = 1
AGAIN = "download it again, or make it again from its recipe"
Entry = tuple[str, Sequence[int], Any, Tensor]
"""Name, shape, strictly increasing flat indices, final values."""


@dataclass(frozen=True)
class Piece:
    """The part of an increment that lies in one tensor: ``count`` entries from ``start`` in the flat arrays."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    start: int

    @property
    def numel(self) -> int:
        """Entries of the whole tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Content:
    """What a file holds: the pieces in file order, their indices (int64, concatenated) and values by name."""

    base_hash: str
    pieces: tuple[Piece, ...]
    indices: Tensor
    values: dict[str, Tensor]
    recipe: dict[str, Any]


def collect(entries: Iterable[Entry], base_hash: str, recipe: Mapping[str, Any] | None) -> Content:
    """Check entries and put them on the CPU, side by side; a tensor without entries is left out.

    Raises:
        InputError: Indices that do not increase strictly or lie outside, values that do not fit them, a name twice.
    """
    pieces: list[Piece] = []
    indices, values, start = [], {}, 0
    for name, shape, given, new in entries:
        index = torch.as_tensor(given).detach().to("cpu", torch.int64)
        new = new.detach().cpu()
        piece = Piece(name, tuple(int(n) for n in shape), _word(new.dtype), index.numel(), start)
        _check(piece, index, new)
        if name in values:
            raise InputError(f"the tensor {name!r} was given twice; put all of its entries together.")
        if piece.count:
            pieces.append(piece)
            indices.append(index)
            values[name] = new
            start += piece.count
    if not base_hash:
        raise InputError("an increment needs the hash of its base: base_hash=weights_hash(base_model).")
    if not pieces:
        raise InputError("an increment without entries; give at least one index with its value.")
    return Content(base_hash, tuple(pieces), torch.cat(indices), values, _plain(recipe))


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check(piece: Piece, index: Tensor, values: Tensor) -> None:
    if index.dim() != 1 or values.shape != index.shape:
        raise InputError(
            f"{piece.name!r} has indices of shape {tuple(index.shape)} and values of shape {tuple(values.shape)}; "
            "expected one flat list of each, equally long."
        )
    if not values.is_floating_point():
        raise InputError(f"the values of {piece.name!r} are {values.dtype}; expected the model's floating dtype.")
    if not piece.count:
        return
    if bool((index[1:] <= index[:-1]).any()):
        raise InputError(f"the indices of {piece.name!r} do not increase strictly; sort them and drop the doubles.")
    if int(index[0]) < 0 or int(index[-1]) >= piece.numel:
        wrong = int(index[0]) if int(index[0]) < 0 else int(index[-1])
        raise InputError(f"index {wrong} lies outside {piece.name!r} of shape {piece.shape} ({piece.numel} entries).")


def _plain(recipe: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        return dict(json.loads(json.dumps(dict(recipe or {}), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise InputError(f"the recipe is not plain JSON ({error}); use strings, numbers, lists and dicts.") from error


def encode(what: Content) -> bytes:
    """The file. Equal content gives equal bytes."""
    parts = [what.indices[p.start : p.start + p.count].numpy() for p in what.pieces]
    gaps = np.concatenate([varint.to_gaps(part) for part in parts])
    tensors = {"gaps": torch.from_numpy(varint.encode(gaps))}
    for dtype in dict.fromkeys(piece.dtype for piece in what.pieces):
        tensors[f"values.{dtype}"] = torch.cat([what.values[p.name] for p in what.pieces if p.dtype == dtype])
    table = [[p.name, p.shape, p.dtype, p.count] for p in what.pieces]
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "base_hash": what.base_hash,
        "k": str(gaps.size),
        "tensors": json.dumps(table, separators=(",", ":")),
        "recipe": json.dumps(what.recipe, allow_nan=False),
    }
    return _ordered(save(tensors, {**metadata, "sha256": _checksum(tensors, metadata)}))


def _ordered(data: bytes) -> bytes:
    """The same safetensors file with its header sorted: the library writes metadata in an order of chance."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    told = {key: value for key, value in metadata.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of an increment; cost: the header only.

    Raises:
        ModelError: Not an increment, cut short, or of a newer format.
    """
    metadata = read_header(path, AGAIN)[1]
    if metadata.get("format") != FORMAT:
        raise ModelError(f"{path} is a safetensors file but not an increment; give its model's folder instead.")
    if metadata.get("version") != str(VERSION):
        raise ModelError(
            f"{path} has format version {metadata.get('version')}; only {VERSION} can be read: update catchment."
        )
    return metadata


def decode(path: Path) -> Content:
    """Read a file and verify its checksum, its table and its indices.

    Raises:
        ModelError: Not an increment, of a newer format, cut short or damaged.
    """
    metadata = read_metadata(path)
    try:
        return _decoded(load_file(path), metadata)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {path} ({error}); {AGAIN}.") from error
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError, OverflowError) as error:
        raise ModelError(f"{path} is damaged ({error}); {AGAIN}.") from error


def _decoded(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Content:
    if _checksum(tensors, metadata) != metadata["sha256"]:
        raise ValueError("its checksum does not match")
    pieces, start = [], 0
    for name, shape, dtype, count in json.loads(metadata["tensors"]):
        pieces.append(Piece(name, tuple(shape), dtype, count, start))
        start += count
    counts = np.array([piece.count for piece in pieces], np.int64)
    gaps = varint.decode(tensors["gaps"].numpy())
    if not pieces or counts.min() < 1 or gaps.size != start or start != int(metadata["k"]):
        raise ValueError("its index does not match its table")
    indices = varint.from_gaps(gaps, counts)
    outside = (indices < 0) | (indices >= np.repeat(np.array([p.numel for p in pieces], np.int64), counts))
    if outside.any():
        where = next(p.name for p in pieces if outside[p.start : p.start + p.count].any())
        raise ValueError(f"an index lies outside {where!r}")
    taken: dict[str, int] = {}
    values = {}
    for piece in pieces:
        at = taken.get(piece.dtype, 0)
        values[piece.name] = tensors[f"values.{piece.dtype}"][at : at + piece.count]
        if values[piece.name].numel() != piece.count:
            raise ValueError(f"values of {piece.name!r} are missing")
        taken[piece.dtype] = at + piece.count
    return Content(
        metadata["base_hash"], tuple(pieces), torch.from_numpy(indices), values, json.loads(metadata["recipe"])
    )
