"""Which files of a folder hold a model's weights, in the order in which transformers looks for them, and what is in
them: names and shapes from the headers, values only where two tensors claim one place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from catchment.errors import ModelError
from catchment.models.files import mapped_tensors, read_header

_LOOKED_FOR = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_NAMED = ("model*.safetensors", "pytorch_model*.bin")
Shapes = dict[str, tuple[int, ...]]


def check_weights(folder: Path) -> None:
    """Check that a folder's weight files are all there and whole; cost: their headers.

    Raises:
        ModelError: No weights, a missing shard, or a damaged file.
    """
    for index in folder.glob("*.safetensors.index.json"):
        for shard in _shards(index):
            if not shard.is_file():
                raise ModelError(f"{folder} lacks {shard.name}, which {index.name} names; download it again.")
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        read_header(path)
    if not files and not any(folder.glob("*.bin")):
        raise ModelError(f"{folder} has a config.json but no weights (model.safetensors or pytorch_model.bin).")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{index} is damaged; download or save the model again.") from error
    return [index.parent / name for name in names]


def weight_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The files that transformers reads: one whole file before shards, safetensors before ``.bin``; empty when the
    folder holds none under the names that it looks for.

    Raises:
        ModelError: A damaged index of shards.
    """
    named = config.get("transformers_weights")
    for name in (named,) if isinstance(named, str) else _LOOKED_FOR:
        path = folder / name
        if path.is_file():
            return _shards(path) if name.endswith(".json") else [path]
    return []


def unread(folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Say which weight files lie beside those that are read."""
    read = weight_files(folder, config)
    others = sorted({path for glob in _NAMED for path in folder.glob(glob)} - set(read))
    if not read or not others:
        return ()
    many = f" and {len(others) - 1} more weight files" if len(others) > 1 else ""
    return (f"{others[0].name}{many} in its folder: not read, because {read[0].name} comes first",)


def shapes(files: list[Path]) -> Shapes:
    """Shape of every tensor in some weight files, by name. Cost: headers, or for ``.bin`` the pickle without values.

    Raises:
        ModelError: A file cannot be read, or two files hold different tensors under one name.
    """
    owners: dict[str, Path] = {}
    sizes: Shapes = {}
    for path in files:
        for name, shape in _shapes(path).items():
            if name in owners and not same_values((owners[name], name), (path, name)):
                raise ModelError(
                    f"{owners[name].name} and {path.name} hold different tensors under one name, {name!r}, and only "
                    "one can be read; save the model again into an empty folder."
                )
            owners[name], sizes[name] = path, shape
    return sizes


def _shapes(path: Path) -> Shapes:
    if path.suffix == ".safetensors":
        return {entry.name: entry.shape for entry in read_header(path)[0]}
    return {name: tuple(tensor.shape) for name, tensor in _pickled(path).items()}


def _pickled(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.bin`` file, mapped; of the format before torch 1.6, which cannot be mapped, without values."""
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except RuntimeError:
        content = torch.load(path, map_location="meta", weights_only=True)
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def stored(files: list[Path], name: str) -> Tensor | None:
    """One tensor of some weight files, mapped and not read; ``None`` when its values cannot be looked at."""
    for path in files:
        tensors = mapped_tensors([path]) if path.suffix == ".safetensors" else _pickled(path)
        if name in tensors:
            return None if tensors[name].is_meta else tensors[name]
    return None


def same_values(one: tuple[Path, str], two: tuple[Path, str]) -> bool:
    """Whether two tensors, each given by its file and name, are equal; false when it cannot be found out."""
    first, second = (stored([path], name) for path, name in (one, two))
    if first is None or second is None or first.shape != second.shape or first.dtype != second.dtype:
        return False
    return torch.equal(first, second)
