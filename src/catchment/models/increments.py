"""Increments: a sparse move of a model's weights as one small safetensors file.

A file holds *final values*, not differences, so that applying it is exact in every dtype; how it is laid out is
told in ``increment_codec``. Merging is :meth:`Increment.apply`, unmerging (bit for bit) :meth:`Increment.revert`.

Size: about ``k * (bytes per value + log128(N/k))`` for ``k`` of ``N`` weights, plus 60 bytes per tensor.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catchment.errors import ModelError, did_you_mean, finish
from catchment.models.adapters import is_peft
from catchment.models.files import write_beside
from catchment.models.identity import weights_hash
from catchment.models.increment_cards import base_name, make_folder, readme
from catchment.models.increment_codec import Content, Entry, Piece, collect, decode, encode
from catchment.models.layout import ModelLayout
from catchment.models.weights import Weights, effective_weights, named_weights, persistent_buffers, shared_names
from catchment.records import ModelCard

FILE_NAME = "increment.safetensors"
_STANDING: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Increment]] = weakref.WeakKeyDictionary()
"""The increment that stands in a model. One that nobody holds any more stays for good, as a part of that model."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
        return {piece.name: self.index(piece) for piece in self.pieces}

    @classmethod
    def read(cls, path: str | Path) -> Increment:
        """Read a file and verify its checksum.

        Raises:
            ModelError: Not an increment, of a newer format, cut short or damaged.
        """
        return cls._of(Path(path), decode(Path(path)))

    @classmethod
    def from_pretrained(cls, folder_or_file: str | Path) -> Increment:
        """Read ``increment.safetensors`` of a folder, or a file, and verify its checksum.

        Raises:
            ModelError: As :meth:`read`, or a folder without ``increment.safetensors``.
        """
        path = Path(folder_or_file).expanduser()
        if path.is_dir():
            if not (path / FILE_NAME).is_file():
                raise ModelError(f"{path} has no {FILE_NAME}; {_instead(path)}")
            path = path / FILE_NAME
        return cls.read(path)

    @classmethod
    def _of(cls, path: Path, what: Content) -> Increment:
        k = what.indices.numel()
        return cls(path, what.base_hash, k, what.pieces, what.indices, what.values, what.recipe)

    def save_pretrained(self, folder: str | Path, *, base: ModelCard | str | None = None) -> Path:
        """Write ``increment.safetensors`` and a model card ``README.md``; each file whole or not at all.

        Args:
            folder: Made when it is not there; files of these two names are replaced.
            base: The base's card or name, for the README; else ``recipe["base"]``.

        Returns:
            The folder; ``load("BASE+FOLDER")`` takes it.

        Raises:
            ModelError: The card is another base's.
            StoreError: The folder cannot be written.
        """
        if isinstance(base, ModelCard):
            self.verify(base)
        folder = make_folder(folder)
        write_beside(folder / "README.md", self._readme(base_name(base, self.recipe)).encode())
        data = encode(Content(self.base_hash, self.pieces, self.indices, self.values, self.recipe))
        write_beside(folder / FILE_NAME, data)
        return folder

    def _readme(self, base: str | None) -> str:
        targeted = sum(piece.numel for piece in self.pieces)
        facts = {
            "base weights (SHA-256)": self.base_hash,
            "k": f"{self.k:,} weights in {len(self.pieces)} tensors",
            "density": f"{self.k / targeted:.4%} of the {targeted:,} weights of these tensors",
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        code = f'from catchment.models import load\n\nloaded = load("{base or "BASE"}+THIS_FOLDER")'
        title = "Sparse increment" + (f" of {base}" if base else "")
        return readme(title, code, base=base, facts=facts, recipe=self.recipe, tags=("increment", "sparse"))

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
        """Merge: write the values into the model, in place; the old ones are kept for :meth:`revert`.

        Only names, shapes and dtypes are checked here, all of them before the first write; :meth:`verify` checks the
        base. Interrupted half way, it puts everything back. Cost: ``k`` reads and writes.

        Raises:
            ModelError: Already applied, another increment stands in the model, or a tensor is missing or differs in
                shape or dtype.
        """
        if self._model is not None and self._model() is not None:
            raise ModelError(f"{self.path} is already applied; revert it first.")
        other = _standing(model)
        if other is not None:
            raise ModelError(
                f"{other.path} is applied to this model, and {self.path} cannot stand on it; put it in place of the "
                "other with swap, or make one of both with add_increments."
            )
        moves = []
        with torch.no_grad():
            for piece, flat in self.flats(model):  # all memory is taken before the first write
                index = self.index(piece).to(flat.device)
                self._old[piece.name] = flat[index]
                moves.append((flat, index, self.values[piece.name].to(flat.device)))
            self._model = weakref.ref(model)
            _STANDING[model] = weakref.ref(self)
            try:
                for flat, index, new in moves:
                    flat[index] = new
            except BaseException:
                self.revert(model)
                raise

    def revert(self, model: nn.Module) -> None:
        """Unmerge: put back, bit for bit, what :meth:`apply` replaced. Cost: ``k`` writes.

        Raises:
            ModelError: The increment is not applied to this model.
        """
        if not self.is_applied(model):
            raise ModelError(f"{self.path} is not applied to this model; nothing to revert.")
        with torch.no_grad():
            for piece, flat in self.flats(model):
                flat[self.index(piece).to(flat.device)] = self._old[piece.name]
        self._model = None
        _STANDING.pop(model, None)
        self._old.clear()

    def is_applied(self, model: nn.Module) -> bool:
        """Whether the move stands in this model."""
        return self._model is not None and self._model() is model

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """Inside, the model has the move; outside it is what it was, bit for bit, whatever happened inside.

        What the block replaced (``model.double()``, a new Parameter, another increment) is put back. Of weights that
        do not move there is no copy: they are compared by a checksum. Cost: as :meth:`apply` and :meth:`revert`, and
        two passes over the weights.

        Raises:
            ModelError: As :meth:`apply`; on exit, by name, weights that the block wrote to or added. Everything else
                is restored then. Of a block that raised, this becomes a note of its own exception.
        """
        layout = ModelLayout(model)
        layout.seal()
        self.apply(model)
        raised: BaseException | None = None
        try:
            yield model
        except BaseException as error:
            raised = error
            raise
        finally:
            finish(lambda: _take_out(model, layout), raised)

    def flats(self, model: nn.Module) -> list[tuple[Piece, Tensor]]:
        """Each piece with the model's tensor, flat and sharing its memory; all are checked first.

        Raises:
            ModelError: A tensor is missing or differs in shape or dtype.
        """
        weights = named_weights(model)
        return [(piece, self._flat(piece, weights)) for piece in self.pieces]

    def index(self, piece: Piece) -> Tensor:
        """Flat indices of one piece, strictly increasing."""
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


def _standing(model: nn.Module) -> Increment | None:
    """The increment that was applied to this model and can be reverted."""
    held = _STANDING.get(model)
    return held() if held is not None else None


def _take_out(model: nn.Module, layout: ModelLayout) -> None:
    """Put back what was replaced, and take out whatever increment stands in the model by now."""
    damage = layout.put_back()
    standing = _standing(model)
    if standing is not None:
        standing.revert(model)
    damage.changed += layout.changed()
    damage.raise_if_any()


def _instead(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "it holds a PEFT adapter: load('BASE+FOLDER') takes it."
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return f"give one of its files: {', '.join(others[:3])}.{did_you_mean(FILE_NAME, others)}"
    return "give the folder that save_pretrained wrote."


def swap(model: nn.Module, old: Increment, new: Increment) -> None:
    """Take one increment out of a model and put another in, without loading the base again.

    The base's hash is not computed: that both were made for one base is read off the increments.
    Cost: ``k`` of both, whatever the size of the model.

    Raises:
        ModelError: Different bases, ``old`` is not applied to this model, or ``new`` cannot be; then ``old`` stays.
    """
    if old.base_hash != new.base_hash:
        raise ModelError(
            f"{new.path} was made for a base with weights {new.base_hash[:12]}…, but {old.path} for "
            f"{old.base_hash[:12]}…; only increments of one base can be swapped."
        )
    old.revert(model)
    try:
        new.apply(model)
    except BaseException:
        old.apply(model)
        raise


def write_increment(
    path: str | Path, entries: Iterable[Entry], *, base_hash: str, recipe: Mapping[str, Any] | None = None
) -> Increment:
    """Write final values of chosen entries as an increment, without two models to compare.

    Cost: ``k``; memory: about 40 bytes per entry. The file is written whole or not at all.

    Args:
        path: The file, ``.safetensors``.
        entries: Per tensor its name (as in ``named_weights``), its shape, the flat indices (strictly increasing)
            and the final values in the model's dtype. A tensor without entries is left out.
        base_hash: Weights hash of the base.
        recipe: How the move was made; plain JSON.

    Returns:
        The increment as read back from the file.

    Raises:
        InputError: Indices that do not increase or lie outside, values that do not fit, no entry at all, a
            recipe that is not plain JSON.
        StoreError: The file cannot be written.

    Example::

        entries = [("lm_head.weight", (320, 32), [3, 70], values)]
        write_increment("move.safetensors", entries, base_hash=card.weights_hash)
    """
    write_beside(Path(path), encode(collect(entries, base_hash, recipe)))
    return Increment.read(path)


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
        ModelError: Names, shapes, dtypes or buffers differ, nothing differs, or the tuned model has two tensors where
            the base has one.
        InputError: The recipe is not plain JSON.
        StoreError: The file cannot be written.
    """
    if is_peft(base_model):
        raise ModelError("the base of an increment is a model with an adapter; merge the adapter and save it first.")
    base, tuned = effective_weights(base_model), effective_weights(tuned_model)
    names = shared_names(base, tuned)
    _refuse_buffers(base_model, tuned_model)
    _refuse_untied(base, tuned, names)
    moved: list[Entry] = []
    for name, tensor in base.items():
        index, values = _changed(name, tensor, tuned[name])
        if index.numel():
            moved.append((name, tuple(tensor.shape), index, values))
    if not moved:
        raise ModelError(f"the two models have the same weights, bit for bit; no increment for {path}.")
    return write_increment(path, moved, base_hash=base_hash or weights_hash(base_model), recipe=recipe)


def _changed(name: str, base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor]:
    if base.dtype != tuned.dtype:
        raise ModelError(f"weight {name!r} is {base.dtype} in the base and {tuned.dtype} in the tuned model; use one.")
    bits = _BITS[base.element_size()]
    flat = tuned.detach().reshape(-1)
    other = base.detach().reshape(-1).to(flat.device)
    index = torch.nonzero(other.view(bits) != flat.view(bits)).squeeze(1)
    return index.cpu(), flat[index].cpu()


def _refuse_untied(base: Weights, tuned: Weights, names: Iterable[str]) -> None:
    """An increment moves a tensor of the base: two names that the base ties can only get the same values."""
    for name in names:
        first = base.names[name]
        if first != name and _changed(name, tuned[first], tuned[name])[0].numel():
            raise ModelError(
                f"the tuned model has another tensor for {name!r} than for {first!r}, which the base ties to one; an "
                "increment cannot untie them. Save the whole model: export_merged."
            )


def _refuse_buffers(base: nn.Module, tuned: nn.Module) -> None:
    ours, theirs = persistent_buffers(base), persistent_buffers(tuned)
    for name in ours.keys() | theirs.keys():
        if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name].to(ours[name].device)):
            raise ModelError(f"buffer {name!r} differs; an increment holds weights only, save the whole model instead.")
