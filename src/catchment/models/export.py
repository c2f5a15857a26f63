"""Increments for other tools: a PEFT adapter that stock PEFT loads, and a plain merged Hugging Face folder.

PEFT has two sparse adapters that store their indices. SHiRA keeps ``r * (in + out)`` entries of every adapted linear
layer as (row, column) pairs with their differences; loading replaces the random mask, which the config asks for, by
the stored indices, so that any support of that size can be given. Super-Tuning keeps ``int((1 - sparsity) * n)``
flat indices. SHiRA is used because PEFT has had it since 0.16, and Super-Tuning only in its newest releases; both
fix the count by shape, so that either needs padding: zeros at unused places, which move nothing.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from catchment.errors import ModelError, StoreError
from catchment.models.adapters import is_peft
from catchment.models.files import write_beside
from catchment.models.identity import weights_hash
from catchment.models.increment_cards import base_name, make_folder, readme
from catchment.models.increment_codec import Piece
from catchment.models.increment_sums import refuse_applied
from catchment.models.increments import Increment
from catchment.models.ties import save_model
from catchment.models.weights import Weights, effective_weights, persistent_buffers, refuse_different
from catchment.records import ModelCard


@dataclass(frozen=True)
class Export:
    """What a PEFT adapter made of an increment holds, beside the increment.

    Attributes:
        folder: Where it is.
        r: SHiRA's rank: ``r * (in + out)`` entries per layer.
        k: Entries of the increment.
        padded: Zeros added.
        bytes: Of the adapter's weights file.
        increment_bytes: Of the same move as an increment.
        rounded: Entries at which base plus difference, as PEFT adds them, is not the increment's value.
        error: The largest such deviation.
    """

    folder: Path
    r: int
    k: int
    padded: int
    bytes: int
    increment_bytes: int
    rounded: int
    error: float

    @property
    def ratio(self) -> float:
        """Size of the adapter by that of the increment."""
        return self.bytes / self.increment_bytes

    def __str__(self) -> str:
        exact = (
            "base plus difference gives every value exactly"
            if not self.rounded
            else f"{self.rounded:,} values are rounded, by at most {self.error:.2g}"
        )
        return (
            f"PEFT SHiRA adapter in {self.folder}: r = {self.r}, {self.k:,} entries and {self.padded:,} zeros of "
            f"padding ({self.padded / self.k:.0%}), {self.bytes:,} bytes, {self.ratio:.1f} times the increment's "
            f"{self.increment_bytes:,}; {exact}."
        )


def export_peft(
    increment: Increment,
    base_model: nn.Module,
    folder: str | Path,
    *,
    base: ModelCard | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Export:
    """Write an increment as a SHiRA adapter: ``PeftModel.from_pretrained(base_model, folder)`` loads it.

    The adapter holds differences ``value - base``. In float32 their sum with the base can be one rounding off the
    value; the result counts where. ``r`` is the smallest that holds the fullest layer, and common to all.
    Cost: ``O(r * sum of (in + out))``, and a hash of the base unless its card is given. The base is not altered.

    Args:
        base: The base's card or name, for the config and README; else where ``base_model`` was loaded from.
        dtype: Of the differences.

    Raises:
        ModelError: Another base; a tensor that is no weight of a linear layer; a layer too small for ``r``.
        StoreError: The folder cannot be written.
    """
    _check_base(increment, base_model, base)
    flats = increment.flats(base_model)
    _refuse_foreign(increment, base_model)
    r = _rank(increment.pieces)
    tensors: dict[str, Tensor] = {}
    rounded, error, padded = 0, 0.0, 0
    for piece, flat in flats:
        index, value = increment.index(piece), increment.values[piece.name]
        old = flat[index.to(flat.device)].cpu()
        delta = _difference(old, value, dtype)
        deviation = (_as_peft_adds(old, delta).double() - value.double()).abs()
        rounded += int(torch.count_nonzero(deviation))
        error = max(error, float(deviation.max()))
        module = f"base_model.model.{piece.name.removesuffix('.weight')}"
        places, filled = _padded(piece, index.numpy(), delta, r)
        tensors[f"{module}.shira_indices"] = torch.from_numpy(places)
        tensors[f"{module}.shira_weight"] = filled
        padded += filled.numel() - piece.count
    name = base_name(base, increment.recipe) or _origin(base_model)
    data = save(tensors, {"format": "pt"})
    made = Export(Path(folder), r, increment.k, padded, len(data), increment.size_on_disk, rounded, error)
    _write_adapter(made, data, increment, base_model, name)
    return made


def _check_base(increment: Increment, base_model: nn.Module, base: ModelCard | str | None) -> None:
    if is_peft(base_model):
        raise ModelError("the base is a model with an adapter; give the plain model that the increment was made for.")
    refuse_applied([increment], base_model)
    increment.verify(base if isinstance(base, ModelCard) else weights_hash(base_model))


def _origin(model: Any) -> str | None:
    """Where the model was loaded from."""
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or "") or None


def _refuse_foreign(increment: Increment, model: nn.Module) -> None:
    """SHiRA adapts weights of ``nn.Linear`` only: say which tensors are something else."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = {name: others for others in names.values() if len(others) > 1 for name in others}
    foreign = []
    for piece in increment.pieces:
        owner, _, leaf = piece.name.rpartition(".")
        module = model.get_submodule(owner)
        if not owner or not isinstance(module, nn.Linear) or leaf != "weight":
            foreign.append(f"{piece.name!r} ({leaf} of a {type(module).__name__}, shape {piece.shape})")
        elif piece.name in tied:
            foreign.append(f"{piece.name!r} (shared by {', '.join(tied[piece.name])})")
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise ModelError(
            f"PEFT's SHiRA adapts weights of nn.Linear only, but {increment.path} moves {', '.join(foreign[:3])}"
            f"{more}; use export_merged, or tune linear layers only."
        )


def _rank(pieces: tuple[Piece, ...]) -> int:
    """Smallest ``r`` such that ``r * (in + out)`` holds every piece, and refuse a layer that has fewer weights."""
    fullest = max(pieces, key=lambda piece: -(-piece.count // sum(piece.shape)))
    r = -(-fullest.count // sum(fullest.shape))
    for piece in pieces:
        if r * sum(piece.shape) > piece.numel:
            raise ModelError(
                f"{fullest.name!r} moves {fullest.count} entries, which needs r = {r} for all layers, but "
                f"{piece.name!r} of shape {piece.shape} has {piece.numel} entries, fewer than {r} * "
                f"{sum(piece.shape)}; use export_merged, or a sparser increment."
            )
    return r


def _difference(old: Tensor, new: Tensor, dtype: torch.dtype) -> Tensor:
    wide = torch.promote_types(torch.promote_types(old.dtype, torch.float32), dtype)
    return (new.to(wide) - old.to(wide)).to(dtype)


def _as_peft_adds(old: Tensor, delta: Tensor) -> Tensor:
    """``old + delta`` with the kernel and the rounding that PEFT's layer has: dense ``+=`` sparse, float32 at least."""
    places = torch.arange(old.numel()).unsqueeze(0)
    wide = delta.to(torch.promote_types(delta.dtype, torch.float32))
    return old.clone().add_(torch.sparse_coo_tensor(places, wide, old.shape, check_invariants=False))


def _padded(piece: Piece, index: NDArray[np.int64], delta: Tensor, r: int) -> tuple[NDArray[np.int32], Tensor]:
    """Rows and columns (2, r * (in + out)) in increasing order, and differences with zeros at the first free places."""
    size = r * sum(piece.shape)
    free = np.setdiff1d(np.arange(min(piece.numel, size), dtype=np.int64), index, assume_unique=True)
    places = np.concatenate([index, free[: size - piece.count]])
    order = np.argsort(places)
    filled = torch.cat([delta, delta.new_zeros(size - piece.count)])[torch.from_numpy(order)]
    return np.stack(np.divmod(places[order], piece.shape[1])).astype(np.int32), filled


def _write_adapter(made: Export, data: bytes, increment: Increment, model: nn.Module, name: str | None) -> None:
    from peft import ShiraConfig

    modules = sorted(piece.name.removesuffix(".weight") for piece in increment.pieces)
    config = ShiraConfig(
        r=made.r,
        random_seed=0,  # of the mask that the stored indices replace
        target_modules="|".join(map(re.escape, modules)),
        base_model_name_or_path=name,
        task_type="CAUSAL_LM" if type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")) else None,
        inference_mode=True,
    ).to_dict()
    text = readme(
        "Sparse increment as a PEFT adapter" + (f" of {name}" if name else ""),
        "from peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base_model, THIS_FOLDER)",
        base=name,
        facts={
            "base weights (SHA-256)": increment.base_hash,
            "adapter": f"SHiRA, r = {made.r}",
            "k": f"{made.k:,}, and {made.padded:,} zeros of padding",
        },
        recipe=increment.recipe,
        tags=("peft", "shira", "sparse"),
        library="peft",
    )
    folder = make_folder(made.folder)
    write_beside(folder / "README.md", text.encode())
    write_beside(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True, default=str).encode())
    write_beside(folder / "adapter_model.safetensors", data)


def export_merged(
    increment_or_model: Increment | nn.Module,
    base_model: nn.Module,
    folder: str | Path,
    tokenizer: Any = None,
    *,
    base: ModelCard | str | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> Path:
    """Write a plain merged model that ``from_pretrained`` and :func:`load` take, with a model card ``README.md``.

    The folder appears whole or not at all. What is tied in it is what the tuned model ties: where that one has two
    tensors, both are written, with ``tie_word_embeddings: false``. Cost: writing all weights; for an increment also a
    hash of the base unless its card is given. The base is left as it was, bit for bit.

    Args:
        increment_or_model: What was tuned: an increment, a model, or a model with an adapter (which is merged).
        base_model: The base, a transformers model; it gives the architecture and the config.
        folder: New or empty.
        tokenizer: Saved beside the weights.
        base: The base's card or name, for the README; else where ``base_model`` was loaded from.
        recipe: How it was made, for the README, added to the increment's own; plain JSON.

    Raises:
        ModelError: Another base, or a model that cannot be saved.
        InputError: The recipe is not plain JSON.
        StoreError: The folder is not empty or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise StoreError(f"{folder} is not an empty folder; give a new one, so that no file of two models mixes.")
    if not hasattr(base_model, "save_pretrained") or is_peft(base_model):
        raise ModelError(f"the base is a {type(base_model).__name__}; give the plain transformers model.")
    told = {**(increment_or_model.recipe if isinstance(increment_or_model, Increment) else {}), **(recipe or {})}
    name = base_name(base, told) or _origin(base_model)
    text = _merged_readme(increment_or_model, name, base, told)
    if isinstance(increment_or_model, Increment):
        _check_base(increment_or_model, base_model, base)
        with _whole(folder) as place, increment_or_model.applied(base_model):
            _save(base_model, place, tokenizer, text)
    else:
        weights, buffers = effective_weights(increment_or_model), persistent_buffers(increment_or_model)
        refuse_different(effective_weights(base_model), weights)
        with _whole(folder) as place:
            _save(base_model, place, tokenizer, text, weights, buffers)
    return folder


def _merged_readme(
    what: Increment | nn.Module, name: str | None, base: ModelCard | str | None, recipe: Mapping[str, Any]
) -> str:
    facts: dict[str, Any] = {}
    if isinstance(what, Increment):
        facts = {"base weights (SHA-256)": what.base_hash, "k": f"{what.k:,} weights in {len(what.pieces)} tensors"}
    elif isinstance(base, ModelCard):
        facts = {"base weights (SHA-256)": base.weights_hash}
    title = "Merged model" + (f" on {name}" if name else "")
    code = 'from catchment.models import load\n\nloaded = load("THIS_FOLDER")'
    return readme(title, code, base=name, facts=facts, recipe=recipe, tags=("merged",), library="transformers")


def _save(
    model: Any,
    place: Path,
    tokenizer: Any,
    text: str,
    weights: Weights | None = None,
    buffers: Mapping[str, Tensor] | None = None,
) -> None:
    config = dict(vars(model.config))  # save_pretrained writes dtype and architectures into it
    try:
        save_model(model, place, weights, buffers)
        if tokenizer is not None:
            tokenizer.save_pretrained(place)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"the merged model cannot be saved ({str(error).splitlines()[0]}).") from error
    finally:
        vars(model.config).clear()
        vars(model.config).update(config)
    (place / "README.md").write_text(text, encoding="utf-8")


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its name when everything in it was written."""
    make_folder(folder.parent)
    place = None
    try:
        place = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        yield place
        place.chmod(0o755)
        place.replace(folder)
    except OSError as error:
        raise StoreError(f"cannot write {folder}: {error.strerror or error}; is it read-only or full?") from error
    finally:
        if place is not None and place.exists():
            shutil.rmtree(place, ignore_errors=True)
