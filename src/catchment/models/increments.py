"""Increments: a sparse move of a model's weights as one small safetensors file.

A file holds *final values*, not differences, so that applying it is exact in every dtype:

- ``values.<DTYPE>``: the new values, tensor after tensor, in the model's own dtype;
- ``gaps``: for each tensor the strictly increasing flat indices as gaps in LEB128 bytes (see ``varint``);
- metadata: ``format``, ``version``, ``base_hash``, ``k``, ``tensors`` (name, shape, dtype, count, in file order),
  ``recipe`` (free JSON), ``sha256`` of the other metadata, the gaps and the values.

Size: about ``k * (bytes per value + log128(N/k))`` for ``k`` of ``N`` weights, plus 60 bytes per tensor.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from catchment.errors import InputError, ModelError
from catchment.models import varint
from catchment.models.adapters import is_peft
from catchment.models.files import read_header, write_beside
from catchment.models.identity import weights_hash
from catchment.models.weights import effective_weights, named_weights, persistent_buffers, refuse_different
from catchment.records import ModelCard

FORMAT = "catchment-increment"
VERSION = 1
_AGAIN = "download it again, or make it again from its recipe"
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Piece:
    """The part of an increment that lies in one tensor: ``count`` entries from ``start`` in the flat arrays."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    start: int


@dataclass(eq=False)
class Increment:
    """A sparse move: which entries of which tensors get which values.

    Attributes:
        path: The file.
        base_hash: Weights hash of the only base that it fits.
        k: Number of entries.
        pieces: One per tensor that moves.
        indices: Flat indices within each tensor, concatenated: int64, shape ``(k,)``.
        values: Per piece, the final values in the model's dtype.
        recipe: Whatever the maker wrote down.
    """

    path: Path
    base_hash: str
    k: int
    pieces: tuple[Piece, ...]
    indices: Tensor = field(repr=False)
    values: dict[str, Tensor] = field(repr=False)
    recipe: dict[str, Any] = field(default_factory=dict)
    _old: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _model: weakref.ref[nn.Module] | None = field(default=None, repr=False)

    @property
    def size_on_disk(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights that move (of the first tensor, when they differ)."""
        return self.values[self.pieces[0].name].dtype

    def support(self) -> dict[str, Tensor]:
        """Flat indices of the entries that move, per tensor."""
        return {piece.name: self._index(piece) for piece in self.pieces}

    @classmethod
    def read(cls, path: str | Path) -> Increment:
        """Read a file and verify its checksum.

        Raises:
            ModelError: Not an increment, of a newer format, cut short or damaged.
        """
        path = Path(path)
        header = read_metadata(path)
        try:
            return _decode(path, header)
        except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
            raise ModelError(f"{path} is damaged ({error}); {_AGAIN}.") from error

    def verify(self, card_or_hash: ModelCard | str) -> None:
        """Refuse a base that is not the one that the increment was made from.

        Raises:
            ModelError: Another weights hash.
        """
        given = card_or_hash.weights_hash if isinstance(card_or_hash, ModelCard) else card_or_hash
        if given != self.base_hash:
            who = f" ({card_or_hash.name}, {card_or_hash.dtype})" if isinstance(card_or_hash, ModelCard) else ""
            raise ModelError(
                f"{self.path} was made for a base with weights {self.base_hash[:12]}…, not {given[:12]}…{who}; "
                f"give its own base, in {str(self.dtype).removeprefix('torch.')}."
            )

    def apply(self, model: nn.Module) -> None:
        """Write the values into the model, in place; the old ones are kept for :meth:`revert`.

        Only names, shapes and dtypes are checked here, all of them before the first write;
        :meth:`verify` checks the base. Cost: ``k`` reads and writes.

        Raises:
            ModelError: Already applied, or a tensor is missing or differs in shape or dtype.
        """
        if self._model is not None:
            raise ModelError(f"{self.path} is already applied; revert it first.")
        flats = {piece.name: self._flat(piece, named_weights(model)) for piece in self.pieces}
        self._model = weakref.ref(model)
        with torch.no_grad():
            for piece in self.pieces:
                flat, index = flats[piece.name], self._index(piece).to(flats[piece.name].device)
                self._old[piece.name] = flat[index].clone()
                flat[index] = self.values[piece.name].to(flat.device)

    def revert(self, model: nn.Module) -> None:
        """Put back, bit for bit, what :meth:`apply` replaced.

        Raises:
            ModelError: The increment is not applied to this model.
        """
        if self._model is None or self._model() is not model:
            raise ModelError(f"{self.path} is not applied to this model; nothing to revert.")
        weights = named_weights(model)
        with torch.no_grad():
            for piece in self.pieces:
                flat = self._flat(piece, weights)
                flat[self._index(piece).to(flat.device)] = self._old[piece.name]
        self._model = None
        self._old.clear()

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """Inside, the model has the move; outside it is what it was, bit for bit, whatever happened inside."""
        self.apply(model)
        try:
            yield model
        finally:
            self.revert(model)

    def _index(self, piece: Piece) -> Tensor:
        return self.indices[piece.start : piece.start + piece.count]

    def _flat(self, piece: Piece, weights: Mapping[str, Tensor]) -> Tensor:
        tensor = weights.get(piece.name)
        if tensor is None:
            raise ModelError(f"{self.path} moves {piece.name!r}, which the model lacks; give the increment's own base.")
        theirs = self.values[piece.name].dtype
        if tuple(tensor.shape) != piece.shape or tensor.dtype != theirs:
            raise ModelError(
                f"{self.path} moves {piece.name!r} of shape {piece.shape} in {theirs}, but the model has "
                f"{tuple(tensor.shape)} in {tensor.dtype}; load the increment's own base in its own dtype."
            )
        if tensor.device.type == "meta" or not tensor.is_contiguous():
            raise ModelError(f"weight {piece.name!r} is offloaded or not contiguous and cannot be moved in place.")
        return tensor.detach().view(-1)


def make_increment(
    base_model: nn.Module,
    tuned_model: nn.Module,
    path: str | Path,
    base_hash: str | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Increment:
    """Write the entries in which the tuned model's bits differ from the base's.

    Both models keep their weights; an adapter of the tuned model is merged tensor by tensor.
    Cost: one pass over both models, and a hash of the base when ``base_hash`` is not given.

    Args:
        base_hash: The base's weights hash, when it is already known.
        recipe: How the move was made; plain JSON.

    Returns:
        The increment as read back from the file.

    Raises:
        ModelError: Names, shapes, dtypes or buffers differ, or nothing differs.
        InputError: The recipe is not plain JSON.
        StoreError: The file cannot be written.
    """
    if is_peft(base_model):
        raise ModelError("the base of an increment is a model with an adapter; merge the adapter and save it first.")
    base, tuned = named_weights(base_model), effective_weights(tuned_model)
    refuse_different(base, named_weights(tuned_model, "base"))
    _refuse_buffers(base_model, tuned_model)
    moved: list[tuple[str, tuple[int, ...], Tensor, Tensor]] = []
    for name, tensor in base.items():
        index, values = _changed(name, tensor, tuned[name])
        if index.numel():
            moved.append((name, tuple(tensor.shape), index, values))
    if not moved:
        raise ModelError(f"the two models have the same weights, bit for bit; no increment for {path}.")
    base_hash = base_hash or weights_hash(base_model)
    tensors, metadata = _encode(moved, base_hash, recipe)
    write_beside(Path(path), save(tensors, metadata))
    return Increment.read(path)


def _changed(name: str, base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor]:
    if base.dtype != tuned.dtype:
        raise ModelError(f"weight {name!r} is {base.dtype} in the base and {tuned.dtype} in the tuned model; use one.")
    bits = _BITS[base.element_size()]
    flat = tuned.detach().reshape(-1)
    other = base.detach().reshape(-1).to(flat.device)
    index = torch.nonzero(other.view(bits) != flat.view(bits)).squeeze(1)
    return index.cpu(), flat[index].cpu()


def _refuse_buffers(base: nn.Module, tuned: nn.Module) -> None:
    ours, theirs = persistent_buffers(base), persistent_buffers(tuned)
    for name in ours.keys() | theirs.keys():
        if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name].to(ours[name].device)):
            raise ModelError(f"buffer {name!r} differs; an increment holds weights only, save the whole model instead.")


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _key(dtype: torch.dtype) -> str:
    return f"values.{str(dtype).removeprefix('torch.')}"


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    told = {key: value for key, value in metadata.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _encode(
    moved: list[tuple[str, tuple[int, ...], Tensor, Tensor]], base_hash: str, recipe: Mapping[str, Any] | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        recipe_text = json.dumps(dict(recipe or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the recipe is not plain JSON ({error}); use strings, numbers, lists and dicts.") from error
    gaps = np.concatenate([varint.to_gaps(index.numpy()) for _, _, index, _ in moved])
    tensors = {"gaps": torch.from_numpy(varint.encode(gaps))}
    for dtype in dict.fromkeys(values.dtype for *_, values in moved):
        tensors[_key(dtype)] = torch.cat([values for *_, values in moved if values.dtype == dtype])
    table = [[name, shape, str(v.dtype).removeprefix("torch."), v.numel()] for name, shape, _, v in moved]
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "base_hash": base_hash,
        "k": str(gaps.size),
        "tensors": json.dumps(table, separators=(",", ":")),
        "recipe": recipe_text,
    }
    return tensors, {**metadata, "sha256": _checksum(tensors, metadata)}


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of an increment; cost: the header only.

    Raises:
        ModelError: Not an increment, cut short, or of a newer format.
    """
    metadata = read_header(path, _AGAIN)[1]
    if metadata.get("format") != FORMAT:
        raise ModelError(f"{path} is a safetensors file but not an increment; give its model's folder instead.")
    if metadata.get("version") != str(VERSION):
        raise ModelError(
            f"{path} has format version {metadata.get('version')}; only {VERSION} can be read: update catchment."
        )
    return metadata


def _decode(path: Path, metadata: Mapping[str, str]) -> Increment:
    tensors = _load(path)
    if _checksum(tensors, metadata) != metadata["sha256"]:
        raise ValueError("its checksum does not match")
    pieces, start = [], 0
    for name, shape, dtype, count in json.loads(metadata["tensors"]):
        pieces.append(Piece(name, tuple(shape), dtype, count, start))
        start += count
    counts = np.array([piece.count for piece in pieces], np.int64)
    gaps = varint.decode(tensors["gaps"].numpy())
    if not pieces or gaps.size != start or start != int(metadata["k"]):
        raise ValueError("its index does not match its table")
    indices = torch.from_numpy(varint.from_gaps(gaps, counts))
    taken: dict[str, int] = {}
    values = {}
    for piece in pieces:
        last = int(indices[piece.start + piece.count - 1]) if piece.count else 0
        if last >= int(np.prod(piece.shape, dtype=np.int64)):
            raise ValueError(f"an index lies outside {piece.name!r}")
        at = taken.get(piece.dtype, 0)
        values[piece.name] = tensors[f"values.{piece.dtype}"][at : at + piece.count]
        if values[piece.name].numel() != piece.count:
            raise ValueError(f"values of {piece.name!r} are missing")
        taken[piece.dtype] = at + piece.count
    recipe = json.loads(metadata["recipe"])
    return Increment(path, metadata["base_hash"], start, tuple(pieces), indices, values, recipe)


def _load(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read {path} ({error}); {_AGAIN}.") from error
