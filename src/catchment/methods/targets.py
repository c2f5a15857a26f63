"""Which weights a method may move: PEFT's ``target_modules``, and patterns of parameter names."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

from torch import nn

from catchment.errors import InputError, ModelError, did_you_mean
from catchment.models import family_of, locate, named_weights

ALL_LINEAR = "all-linear"
"""Every matrix in the blocks that belongs to attention or FFN; no embedding, head, norm or bias."""


def target_weights(
    model: nn.Module, target_modules: str | Sequence[str] = ALL_LINEAR, option: str = "target_modules"
) -> dict[str, nn.Parameter]:
    """Unique parameters by name that ``target_modules`` means, in the model's order.

    Args:
        target_modules: ``"all-linear"``; a regular expression that matches whole module names; or a list whose entries
            are the end of a module's name (``"q_proj"``, its ``weight``), a parameter's name, or a glob over
            parameters' names (``"*.mlp.*"``, ``"*.bias"``).
        option: What to call it in an error.

    Raises:
        InputError: An entry matches nothing.
        ModelError: A matched weight cannot be trained: packed, offloaded or not contiguous.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> list(target_weights(model, ["1", "0.bias"]))
    ['0.bias', '1.weight']
    """
    weights = {name: p for name, p in named_weights(model).items() if isinstance(p, nn.Parameter)}
    if target_modules == ALL_LINEAR:
        chosen = _linear(model, weights)
    elif isinstance(target_modules, str):
        chosen = {name for name in weights if re.fullmatch(target_modules, name.rpartition(".")[0])}
        _found(chosen, target_modules, weights, option)
    else:
        chosen = set()
        for entry in target_modules:
            matched = _matches(entry, weights)
            _found(matched, entry, weights, option)
            chosen |= matched
    found = {name: p for name, p in weights.items() if name in chosen}
    if not found:
        raise InputError(f"{option} {target_modules!r} names no weight; expected e.g. 'all-linear' or ['q_proj'].")
    for name, parameter in found.items():
        _check(name, parameter)
    return found


def _linear(model: nn.Module, weights: Iterable[str]) -> set[str]:
    family = family_of(model)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}  # T5's relative positions
    found = set()
    for name in weights:
        layer, kind = locate(name, family)
        parameter = model.get_parameter(name)
        if layer is not None and kind in ("attention", "ffn") and parameter.ndim >= 2 and id(parameter) not in tables:
            found.add(name)
    return found


def _matches(entry: str, weights: Iterable[str]) -> set[str]:
    if any(c in entry for c in "*?["):
        return set(fnmatch.filter(weights, entry))
    ends = (f".{entry}", f".{entry}.weight")
    return {name for name in weights if name in (entry, f"{entry}.weight") or name.endswith(ends)}


def _found(matched: set[str], entry: str, weights: Iterable[str], option: str) -> None:
    if not matched:
        parts = sorted({part for name in weights for part in name.split(".") if not part.isdigit()})
        words = [w for w in re.split(r"[^\w-]+", entry) if w and w not in parts]
        hint = did_you_mean(words[0], parts) if words else ""
        raise InputError(f"{option} {entry!r} matches no weight of this model; its parts are {', '.join(parts)}.{hint}")


def _check(name: str, parameter: nn.Parameter) -> None:
    if not parameter.is_floating_point():
        raise ModelError(f"weight {name!r} is packed as {parameter.dtype}; train LoRA over it, or load it unquantised.")
    if parameter.device.type == "meta":
        raise ModelError(f"weight {name!r} is offloaded; load the model without disk offload to train it.")
    if hasattr(parameter, "ds_id"):
        raise ModelError(f"weight {name!r} is cut up by DeepSpeed ZeRO-3; use DDP, or FSDP2 (fully_shard).")
    if type(parameter).__name__ == "FlatParameter" or hasattr(parameter, "_is_flat_param"):
        raise ModelError(f"weight {name!r} is flattened by FSDP1; use FSDP2: torch.distributed.fsdp.fully_shard.")
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    if not local.is_contiguous():
        raise ModelError(f"weight {name!r} is not contiguous and cannot be moved in place; call .contiguous() first.")
