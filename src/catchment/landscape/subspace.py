"""Subspaces: the weights that a move may touch. Scales are always per weight of one subspace."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from catchment.errors import InputError, ModelError
from catchment.landscape.noise import normal
from catchment.landscape.sharding import local, whole
from catchment.models import Increment, named_weights, select
from catchment.records import Ruler, SubspaceCard
from catchment.statistics import Tally, is_matrix, ruler

_PIECE = 1 << 22


@dataclass(frozen=True, eq=False)
class Subspace:
    """A linear subspace of weight space with an orthonormal basis, so that ``||dtheta||_2 = ||z||_2``.

    Made by :meth:`all`, :meth:`glob`, :meth:`sparse` or :meth:`frame`, or from text by :meth:`parse`. It holds names
    and shapes, never weights, so it fits every model of the same architecture.

    Attributes:
        kind: ``all``: every unique weight. ``glob``: whole tensors. ``sparse``: given entries. ``frame``: for every
            matrix W (m, n) the moves ``A C`` with A (m, r) fixed, of orthonormal columns, and C (r, n) free.
        what: As it was asked for.
        shapes: Tensors that may move, by name: ties once, no buffers.
        support: ``sparse``: sorted flat indices per tensor, int64.
        rank, seed: ``frame``: r, and the seed of A.
    """

    kind: Literal["all", "glob", "sparse", "frame"]
    what: str
    shapes: Mapping[str, tuple[int, ...]]
    support: Mapping[str, Tensor] = field(default_factory=dict)
    rank: int = 0
    seed: int = 0

    @classmethod
    def all(cls, model: nn.Module) -> Subspace:
        """Every weight, ties once; of a model under a PEFT adapter the adapter's own weights only."""
        adapter = named_weights(model, "adapter")
        return cls("all", "the adapter" if adapter else "all weights", _shapes(adapter or named_weights(model)))

    @classmethod
    def glob(cls, model: nn.Module, patterns: str | Sequence[str]) -> Subspace:
        """Tensors whose names match at least one pattern; this is also how to ask for the base under an adapter.

        Raises:
            InputError: A pattern matches nothing.
        """
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        return cls("glob", ", ".join(patterns), _shapes(select(model, patterns)))

    @classmethod
    def sparse(cls, model: nn.Module, support: Mapping[str, Tensor], what: str = "given entries") -> Subspace:
        """Single entries: flat indices per tensor, in any order, without repetition.

        Raises:
            InputError: No entry, an unknown tensor, an index out of range or given twice.
        """
        weights = named_weights(model)
        kept: dict[str, Tensor] = {}
        for name, given in support.items():
            if name not in weights:
                raise InputError(f"the support names {name!r}, which is none of the {len(weights)} weights.")
            indices = given.to("cpu", torch.int64).reshape(-1).sort().values
            if not indices.numel():
                continue
            if indices[0] < 0 or indices[-1] >= weights[name].numel() or bool((indices.diff() == 0).any()):
                raise InputError(
                    f"the support of {name!r} has indices from {int(indices[0])} to {int(indices[-1])}; expected "
                    f"distinct ones from 0 to {weights[name].numel() - 1}."
                )
            kept[name] = indices
        if not kept:
            raise InputError("the support holds no entry; expected at least one index.")
        return cls("sparse", what, _shapes({n: w for n, w in weights.items() if n in kept}), kept)

    @classmethod
    def frame(cls, model: nn.Module, rank: int, *, seed: int = 0, patterns: Sequence[str] | None = None) -> Subspace:
        """A fixed low-rank frame on every matrix (of those that match): A is the Q of a seeded normal (m, r).

        Raises:
            InputError: A rank below 1, or no matrix with more rows than the rank.
        """
        if rank < 1:
            raise InputError(f"frame rank {rank}; expected at least 1.")
        chosen = select(model, patterns) if patterns else named_weights(model, "adapter") or named_weights(model)
        shapes = {n: s for n, s in _shapes(chosen).items() if len(s) == 2 and s[0] >= rank}
        if not shapes:
            raise InputError(f"frame rank {rank}: no matrix has that many rows; expected a smaller rank.")
        what = f"rank {rank}" + (f" in {', '.join(patterns)}" if patterns else "")
        return cls("frame", what, shapes, rank=rank, seed=seed)

    @classmethod
    def parse(cls, model: nn.Module, text: str) -> Subspace:
        """``all``; ``sparse:FILE.safetensors`` (the entries that an increment changed); ``frame:RANK``; else globs,
        separated by commas.

        Raises:
            InputError: As the constructors.
        """
        kind, _, rest = text.partition(":")
        if text == "all":
            return cls.all(model)
        if kind == "sparse" and rest:
            return cls.sparse(model, Increment.read(Path(rest)).support(), f"the entries of {Path(rest).name}")
        if kind == "frame" and rest:
            if not rest.isdigit():
                raise InputError(f"subspace {text!r}: expected frame:RANK with a whole number, e.g. frame:8.")
            return cls.frame(model, int(rest))
        return cls.glob(model, [word.strip() for word in text.split(",") if word.strip()] or [text])

    def coordinates(self, name: str) -> int:
        """Dimensions that a tensor contributes."""
        if self.kind == "sparse":
            return self.support[name].numel()
        if self.kind == "frame":
            return self.rank * self.shapes[name][1]
        return math.prod(self.shapes[name])

    @cached_property
    def size(self) -> int:
        """k, the dimension."""
        return sum(self.coordinates(name) for name in self.shapes)

    @property
    def spread(self) -> float:
        """Displacement per dimension over that per weight: ``sqrt(weights / k)`` in a frame, whose moves are spread
        over whole tensors; else 1."""
        if self.kind != "frame":
            return 1.0
        return math.sqrt(sum(math.prod(shape) for shape in self.shapes.values()) / self.size)

    @cached_property
    def hash(self) -> str:
        """Hex SHA-256 of what decides the subspace: tensors, shapes, support, frame."""
        content = [self.kind, sorted((n, list(s)) for n, s in self.shapes.items()), self.rank, self.seed]
        digest = hashlib.sha256(json.dumps(content).encode())
        for name in sorted(self.support):
            digest.update(name.encode() + self.support[name].numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def _bases(self) -> dict[str, Tensor]:
        return {}

    def basis(self, name: str) -> Tensor:
        """A of a frame: fp32 (m, r), orthonormal columns."""
        rows = self.shapes[name][0]
        if name not in self._bases:
            drawn = normal(self.seed, f"frame/{name}", rows * self.rank).reshape(rows, self.rank)
            self._bases[name] = torch.linalg.qr(drawn).Q
        return self._bases[name]

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's own tensors of this subspace, live (sharded ones as they are).

        Raises:
            ModelError: A tensor is missing, has another shape, is packed or offloaded.
        """
        weights = named_weights(model)
        for name, shape in self.shapes.items():
            if name not in weights or tuple(weights[name].shape) != tuple(shape):
                has = tuple(weights[name].shape) if name in weights else "nothing"
                raise ModelError(f"the subspace moves {name!r} of shape {shape}; this model has {has} there.")
            refuse_fixed(name, weights[name])
        return {name: weights[name] for name in self.shapes}

    def card(self, model: nn.Module) -> SubspaceCard:
        """Size, norm and ruler of the weights there; one pass over them."""
        tallies = self._tallies(model)
        squares, count = sum(tally.squares for tally in tallies), sum(tally.entries for tally in tallies)
        return SubspaceCard(
            self.kind, self.what, self.size, len(self.shapes), math.sqrt(squares),
            math.sqrt(squares / max(count, 1)), self.hash, ruler(tallies),
        )  # fmt: skip

    def ruler(self, model: nn.Module) -> Ruler:
        """What relative widths in this subspace are relative to: RMS over its part of the matrices of the model.

        Raises:
            InputError: The subspace holds no weight.
        """
        measure = ruler(self._tallies(model))
        if measure is None:
            raise InputError(f"subspace {self.what!r} holds no weight; expected at least one.")
        return measure

    def _tallies(self, model: nn.Module) -> list[Tally]:
        """Energy of each tensor's part in the subspace; for a frame of the whole tensors that it moves."""
        tallies = []
        for name, tensor in self.weights(model).items():
            flat = local(whole(tensor)).reshape(-1)
            if self.kind == "sparse":
                flat = flat[self.support[name].to(flat.device)]
            squares = sum(float(piece.double().square().sum()) for piece in flat.split(_PIECE))
            dtype = str(flat.dtype).removeprefix("torch.")
            tallies.append(Tally(name, is_matrix(self.shapes[name]), flat.numel(), squares, dtype))
        return tallies


def refuse_fixed(name: str, tensor: Any) -> None:
    """Raise a :class:`ModelError` for a weight that cannot be moved."""
    if tensor.device.type == "meta":
        raise ModelError(
            f"weight {name!r} is offloaded and cannot be moved; load with a device_map that keeps every weight on a "
            "GPU or in memory."
        )
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise ModelError(f"weight {name!r} is packed as {tensor.dtype} and cannot be moved; use unquantised weights.")


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
