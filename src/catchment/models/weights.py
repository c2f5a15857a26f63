"""Weights by name: the one way to list, select, flatten and compare the parameters of a model.

A tied tensor appears once, under the first of its names. Buffers are not weights. In a PEFT model the base's
weights keep the names they have without the adapter, so that a base and its adapted version can be compared.

What is tied is what shares its memory in the model at hand, whatever a config says. An adapter cuts a tie when it acts
on one name of a tied tensor only: :func:`effective_weights` then lists each of them.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from catchment.errors import InputError, ModelError, did_you_mean
from catchment.models import adapters
from catchment.models.families import Family, family_of, locate
from catchment.records import Drift, DriftRow
from catchment.statistics import Tally, is_matrix, ruler

Part = Literal["all", "base", "adapter"]
_CHUNK = 1 << 22


def place(tensor: Tensor) -> tuple[object, ...]:
    """Where a tensor's numbers are; a transposed view of them has the same place."""
    here = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # a tensor cut over processes has no place
    if here.device.type == "meta" or not here.numel():
        return (id(tensor),)
    layout = tuple(sorted(zip(tensor.stride(), tensor.shape, strict=True)))
    return (here.data_ptr(), tensor.dtype, layout, str(tensor.device))


def _unique(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Drop later names of a tensor that was seen: the same object, or the same memory."""
    seen: set[tuple[object, ...]] = set()
    for name, tensor in named:
        key = place(tensor)
        if key not in seen:
            seen.add(key)
            yield name, tensor


def named_weights(model: nn.Module, part: Part = "all") -> dict[str, Tensor]:
    """Unique parameters by name: ties once, no buffers, in the model's own order. Nothing is copied.

    Args:
        model: Any module; a PEFT model is looked through.
        part: ``base`` selects the weights that an adapter leaves alone (under their names without PEFT),
            ``adapter`` the adapter's own, ``all`` both.

    Raises:
        InputError: ``part`` is none of the three.

    >>> tied = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False)})
    >>> tied["b"] = tied["a"]
    >>> list(named_weights(tied))
    ['a.weight']
    """
    if part not in ("all", "base", "adapter"):
        raise InputError(f"part {part!r} is not one of 'all', 'base', 'adapter'.")
    if not adapters.is_peft(model):
        return {} if part == "adapter" else dict(_unique(model.named_parameters()))
    plain = {id(tensor): name for name, (_, tensor) in reversed(adapters.base_parameters(model).items())}
    weights: dict[str, Tensor] = {}
    for name, tensor in _unique(model.named_parameters()):
        if part == "all" or (id(tensor) in plain) == (part == "base"):
            weights[plain.get(id(tensor), name)] = tensor
    return weights


class Weights(Mapping[str, Tensor]):
    """A model's weights by name, as the model computes with them: an adapter is merged, tensor by tensor, when a tensor
    is asked for. Tensors are listed once, under the first of their names; a later name may be asked for too.

    Attributes:
        names: All names, ties included, in the model's order, each with the first name of its tensor.
        held: The tensors as the model holds them, the base's under an adapter, by first names.
    """

    def __init__(self, model: nn.Module) -> None:
        self._adapted = adapters.Adapted(model) if adapters.is_peft(model) else None
        self.names: dict[str, str] = {}
        self.held: dict[str, Tensor] = {}
        first: dict[tuple[object, ...], str] = {}
        for name, tensor in _all_names(model).items():
            acting = self._adapted.acting(name) if self._adapted else frozenset()
            self.names[name] = first.setdefault((place(tensor), tuple(tensor.shape), acting), name)
            self.held.setdefault(self.names[name], tensor)

    def __getitem__(self, name: str) -> Tensor:
        first = self.names[name]
        return self._adapted.merged(first, self.held[first]) if self._adapted else self.held[first]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


def _all_names(model: nn.Module) -> dict[str, Tensor]:
    """Parameters of a model, or of the base under an adapter, a tied one under each of its names."""
    if adapters.is_peft(model):
        return {name: tensor for name, (_, tensor) in adapters.base_parameters(model).items()}
    return dict(model.named_parameters(remove_duplicate=False))


def effective_weights(model: nn.Module) -> Weights:
    """Weights as the model computes with them: an adapter is merged, tensor by tensor, when a tensor is asked for.

    Every name that an adapter acts on has its own tensor, also where the base ties it to another.

    Raises:
        ModelError: The adapter moves no weight, or cannot be merged.
    """
    return Weights(model)


def shared_names(one: Weights, other: Weights) -> list[str]:
    """Names under which two models are subtracted: every different pair of tensors once.

    A tensor that is tied in one model and is two in the other counts under both names.

    Raises:
        ModelError: The two cannot be subtracted; see :func:`refuse_different`.
    """
    return [names[0] for names in _pairs(one, other)]


def names_to_untie(one: Weights, other: Weights) -> list[list[str]]:
    """Names that are tied in one model and have a tensor of their own in the other, those of one tensor together.

    Raises:
        ModelError: As :func:`shared_names`.
    """
    return [names for names in _pairs(one, other) if one.names[names[0]] != names[0]]


def _pairs(one: Weights, other: Weights) -> list[list[str]]:
    refuse_different(one, other)
    pairs: dict[tuple[str, str], list[str]] = {}
    for name, first in one.names.items():
        pairs.setdefault((first, other.names[name]), []).append(name)
    return list(pairs.values())


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that are saved with the model (running means, packed 4-bit weights), ties once; an adapter's own not."""
    if adapters.is_peft(model):
        saved = {id(t) for t in model.state_dict(keep_vars=True).values()}
        return dict(_unique((n, t) for n, t in adapters.base_buffers(model).items() if id(t) in saved))
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    named = [(name, t) for name, t in model.state_dict().items() if name not in parameters and isinstance(t, Tensor)]
    return dict(_unique(named))


def select(model: nn.Module, patterns: str | Sequence[str]) -> dict[str, Tensor]:
    """Weights whose names match at least one glob (``*`` also crosses dots), in the model's order.

    Raises:
        InputError: A pattern matches no weight.

    >>> list(select(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "1.*"))
    ['1.weight', '1.bias']
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    weights = named_weights(model)
    chosen: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(weights, pattern) if any(c in pattern for c in "*?[") else [pattern]
        matched = [name for name in matched if name in weights]
        if not matched:
            hint = did_you_mean(pattern, weights) or _part_meant(pattern, weights)
            raise InputError(f"pattern {pattern!r} matches none of the {len(weights)} weights.{hint}")
        chosen.update(matched)
    return {name: tensor for name, tensor in weights.items() if name in chosen}


def _part_meant(pattern: str, names: Iterable[str]) -> str:
    """For a glob: the part of a name that is closest to the first of its words that no name has."""
    parts = {part for name in names for part in name.split(".")}
    words = [word for word in re.split(r"[^\w-]+", pattern) if word and word not in parts]
    return did_you_mean(words[0], sorted(parts)) if words else ""


def to_vector(weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """Concatenate weights in their order: shape ``(k,)``, on the device of the first. A copy.

    Raises:
        InputError: No weights, or different dtypes and no ``dtype`` to convert to.

    >>> to_vector({"a": torch.ones(1, 2), "b": torch.zeros(1)}).tolist()
    [1.0, 1.0, 0.0]
    """
    if not weights:
        raise InputError("no weights to make a vector of; select at least one tensor.")
    dtypes = {t.dtype for t in weights.values()}
    if dtype is None and len(dtypes) > 1:
        raise InputError(f"weights have different dtypes {sorted(map(str, dtypes))}; pass dtype=, e.g. torch.float32.")
    device = next(iter(weights.values())).device
    return torch.cat([t.detach().reshape(-1).to(device=device, dtype=dtype or t.dtype) for t in weights.values()])


def from_vector(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut a vector of :func:`to_vector` into tensors with the shapes and dtypes of ``like``.

    Raises:
        InputError: The vector's length is not the number of weights in ``like``.

    >>> from_vector(torch.arange(3.0), {"a": torch.ones(1, 2), "b": torch.zeros(1)})["a"].tolist()
    [[0.0, 1.0]]
    """
    total = sum(t.numel() for t in like.values())
    if vector.dim() != 1 or vector.numel() != total:
        raise InputError(f"a vector of shape {tuple(vector.shape)} does not fit {total} weights; expected ({total},).")
    pieces = torch.split(vector, [t.numel() for t in like.values()])
    return {
        name: piece.reshape(t.shape).to(device=t.device, dtype=t.dtype)
        for (name, t), piece in zip(like.items(), pieces, strict=True)
    }


def norm(weights: nn.Module | Mapping[str, Tensor]) -> float:
    """Euclidean norm of all weights together, accumulated in float64.

    >>> norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    5.0
    """
    tensors = named_weights(weights) if isinstance(weights, nn.Module) else weights
    return math.sqrt(sum(_squares(t) for t in tensors.values()))


def _squares(tensor: Tensor) -> float:
    total = 0.0
    for piece in tensor.detach().reshape(-1).split(_CHUNK):
        wide = piece.double()
        total += float(torch.dot(wide, wide))
    return total


def _difference(a: Tensor, b: Tensor) -> tuple[float, float, int]:
    """``(||a||^2, ||b - a||^2, number of entries that differ)`` in float64, in pieces so that memory stays flat."""
    squares, moved, changed = 0.0, 0.0, 0
    flat_b = b.detach().reshape(-1)
    for piece, other in zip(a.detach().reshape(-1).split(_CHUNK), flat_b.split(_CHUNK), strict=True):
        wide = piece.double()
        squares += float(torch.dot(wide, wide))
        delta = other.to(piece.device).double() - wide
        count = int(torch.count_nonzero(delta))
        changed += count
        moved += float(torch.dot(delta, delta)) if count else 0.0
    return squares, moved, changed


def drift(base_model: nn.Module, tuned_model: nn.Module, family: Family | None = None) -> Drift:
    """How far the tuned model stands from its base: ``||tuned - base||_2`` per tensor and in all.

    Accumulated in float64, tensor by tensor; adapters are compared by what they merge to, and nothing is altered.
    A weight that one model ties and the other does not counts under both names.
    Cost: one pass over both models; memory: one adapted layer and a fixed buffer. ``changed`` counts the entries
    whose values differ.

    Raises:
        ModelError: A weight is missing in one model, has another shape, is packed (4/8-bit) or is offloaded.
    """
    family = family or family_of(base_model)
    base, tuned = effective_weights(base_model), effective_weights(tuned_model)
    rows, tallies = [], []
    for name in shared_names(base, tuned):
        tensor = base[name]
        squares, moved, changed = _difference(tensor, tuned[name])
        layer, kind = locate(name, family)
        tally = Tally(name, is_matrix(tensor.shape), tensor.numel(), squares, str(tensor.dtype).removeprefix("torch."))
        tallies.append(tally)
        distance = math.sqrt(moved)
        rows.append(DriftRow(name, layer, kind, tally.entries, math.sqrt(squares), distance, changed, tally.matrix))
    size = sum(row.size for row in rows)
    distance = math.sqrt(sum(row.distance**2 for row in rows))
    return Drift(
        size=size,
        norm=math.sqrt(sum(row.norm**2 for row in rows)),
        distance=distance,
        rms=distance / math.sqrt(size) if size else 0.0,
        changed=sum(row.changed for row in rows),
        tensors=tuple(rows),
        ruler=ruler(tallies),
    )


def refuse_different(base: Weights, tuned: Weights) -> None:
    """Raise a :class:`ModelError` that names the first weight in which two models cannot be subtracted."""
    for one, other, where in ((base, tuned, "tuned model"), (tuned, base, "base")):
        missing = next((name for name in one.names if name not in other), None)
        if missing is not None:
            hint = did_you_mean(missing, other.names)
            raise ModelError(f"weight {missing!r} is not in the {where}; both must have one architecture.{hint}")
    for name, first in base.names.items():
        tensor, other_tensor = base.held[first], tuned.held[tuned.names[name]]
        if tensor.shape != other_tensor.shape:
            shapes = f"{tuple(tensor.shape)} in the base and {tuple(other_tensor.shape)} in the tuned model"
            raise ModelError(f"weight {name!r} has shape {shapes}; e.g. a resized vocabulary cannot be subtracted.")
        for t in (tensor, other_tensor):
            if t.device.type == "meta":
                raise ModelError(f"weight {name!r} is offloaded; load both models without disk offload to compare.")
            if not t.is_floating_point():
                raise ModelError(f"weight {name!r} is packed as {t.dtype}; quantised weights cannot be subtracted.")


def non_finite(model: nn.Module) -> list[str]:
    """Names of the weights that hold a NaN or an infinity.

    >>> model = nn.Linear(1, 1)
    >>> model.bias.data.fill_(math.inf)
    tensor([inf])
    >>> non_finite(model)
    ['bias']
    """
    return [
        name
        for name, tensor in named_weights(model).items()
        if tensor.is_floating_point() and tensor.device.type != "meta" and not _all_finite(tensor)
    ]


def _all_finite(tensor: Tensor) -> bool:
    return all(bool(torch.isfinite(piece).all()) for piece in tensor.detach().reshape(-1).split(_CHUNK))
