"""Which weights a method may move: PEFT's ``target_modules``, and patterns of parameter names."""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from catchment.errors import InputError, ModelError, did_you_mean
from catchment.models import family_of, locate, named_weights

ALL_LINEAR = "all-linear"
"""Every matrix in the blocks that belongs to attention or FFN; no embedding, head, norm or bias."""

_CLAIM = "_catchment_tuning"


class _Claim:
    """True in the model that is being tuned; ``False`` in a copy of it, which no tuning holds."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return bool, ()


def claim(model: nn.Module) -> None:
    """Mark a model as being tuned, until :func:`release`.

    Raises:
        InputError: It or a part of it is being tuned already; nothing was altered.
        ModelError: It is FSDP1's.
    """
    refuse_fsdp1(model)
    if any(vars(module).get(_CLAIM) for module in model.modules()):
        raise InputError("the model is being tuned already; call remove() or merge() on that tuning first.")
    object.__setattr__(model, _CLAIM, _Claim())


def release(model: nn.Module) -> None:
    """The model is not being tuned any more; nothing happens where it was not."""
    vars(model).pop(_CLAIM, None)


def refuse_fsdp1(model: nn.Module) -> None:
    """FSDP1 computes with flat copies of its own: hooks on the weights never fire, and what is written to them is lost.

    Raises:
        ModelError: The model is, holds or was taken out of a ``FullyShardedDataParallel``.
    """
    if not dist.is_available():
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    held = any(isinstance(module, FullyShardedDataParallel) for module in model.modules())
    if held or any(hasattr(parameter, "_fsdp_flattened") for parameter in model.parameters()):
        raise ModelError(
            "the model is wrapped in FSDP1 (FullyShardedDataParallel), which keeps its weights in flat copies; "
            "expected FSDP2: call torch.distributed.fsdp.fully_shard on the plain model."
        )


def as_names(option: str, given: Any) -> tuple[str, ...]:
    """One name, or several of them.

    Raises:
        InputError: Something else.

    >>> as_names("modules_to_save", "lm_head")
    ('lm_head',)
    """
    names = (given,) if isinstance(given, str) else given
    if isinstance(names, Mapping) or not isinstance(names, Iterable):
        raise InputError(f"{option} {given!r}: expected a name or a list of names, e.g. ['lm_head'].")
    names = tuple(names)
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None:
        raise InputError(f"{option} {given!r}: {wrong!r} is no name; expected text, e.g. ['lm_head'].")
    return names


def target_weights(
    model: nn.Module, target_modules: str | Sequence[str] = ALL_LINEAR, option: str = "target_modules"
) -> dict[str, nn.Parameter]:
    """Unique parameters by name that ``target_modules`` means, in the model's order.

    A later name of a tied weight means that weight, under its first name and with a warning.

    Args:
        target_modules: ``"all-linear"``; a regular expression that matches whole module names; or a list whose entries
            are the end of a module's name (``"q_proj"``, its ``weight``), a parameter's name, or a glob over
            parameters' names (``"*.mlp.*"``, ``"*.bias"``).
        option: What to call it in an error.

    Raises:
        InputError: An entry matches nothing, or is no regular expression.
        ModelError: A matched weight cannot be trained: packed, offloaded or not contiguous.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> list(target_weights(model, ["1", "0.bias"]))
    ['0.bias', '1.weight']
    """
    weights = {name: p for name, p in named_weights(model).items() if isinstance(p, nn.Parameter)}
    if target_modules == ALL_LINEAR:
        chosen = _linear(model, weights)
    else:
        tied = _later_names(model, weights)
        names = (*weights, *tied)
        single = isinstance(target_modules, str)
        chosen = set()
        for entry in as_names(option, target_modules):
            matched = _expressed(entry, names, option) if single else _matches(entry, names)
            if not matched:
                raise _nothing(entry, names, option, single)
            chosen |= _first_names(matched, tied, entry, option)
    targets = {name: p for name, p in weights.items() if name in chosen}
    if not targets:
        raise InputError(f"{option} {target_modules!r} names no weight; expected e.g. 'all-linear' or ['q_proj'].")
    for name, parameter in targets.items():
        _check(name, parameter)
    return targets


def _linear(model: nn.Module, weights: Iterable[str]) -> set[str]:
    family = family_of(model)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}  # T5's relative positions
    matched = set()
    for name in weights:
        layer, kind = locate(name, family)
        parameter = model.get_parameter(name)
        if layer is not None and kind in ("attention", "ffn") and parameter.ndim >= 2 and id(parameter) not in tables:
            matched.add(name)
    return matched


def _later_names(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """Further names of tied weights, with the first name of each."""
    first = {id(parameter): name for name, parameter in weights.items()}
    seen: set[int] = set()
    later = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in seen and id(parameter) in first:
            later[name] = first[id(parameter)]
        seen.add(id(parameter))
    return later


def _first_names(matched: set[str], tied: Mapping[str, str], entry: str, option: str) -> set[str]:
    """The matched weights under their first names. Warns of each that the entry means under a later name only."""
    own = matched - tied.keys()
    for name in sorted(matched & tied.keys()):
        if tied[name] not in own:
            warnings.warn(
                f"{option} {entry!r} names {name!r}, which is tied to {tied[name]!r}: that one weight trains, and "
                "moves wherever it is used",
                stacklevel=4,
            )
            own.add(tied[name])
    return own


def _expressed(expression: str, names: Iterable[str], option: str) -> set[str]:
    """Names of weights in modules whose whole name the regular expression matches."""
    try:
        compiled = re.compile(expression)
    except re.error as error:
        hint = as_list(expression, names)
        raise InputError(f"{option} {expression!r} is no regular expression ({error}); {_a_list(hint)}.") from error
    return {name for name in names if compiled.fullmatch(name.rpartition(".")[0])}


def as_list(text: str, names: Iterable[str]) -> str | None:
    """The entry of a list that finds what this string, given alone, seems to mean: an ending or a glob.

    >>> as_list("*.q_proj", ["layers.0.q_proj.weight"])
    'q_proj'
    """
    names = list(names)
    return next((entry for entry in (text, text.lstrip("*."), f"{text}.weight") if _matches(entry, names)), None)


def _a_list(entry: str | None) -> str:
    told = "a string is a regular expression over whole module names"
    return f"{told}; for an ending or a glob give a list: [{entry!r}]" if entry else f"{told}, e.g. '.*q_proj'"


def _matches(entry: str, weights: Iterable[str]) -> set[str]:
    if any(c in entry for c in "*?["):
        return set(fnmatch.filter(weights, entry))
    ends = (f".{entry}", f".{entry}.weight")
    return {name for name in weights if name in (entry, f"{entry}.weight") or name.endswith(ends)}


def _nothing(entry: str, names: Sequence[str], option: str, single: bool) -> InputError:
    """The error for an entry (``single``: a regular expression) that matches no weight."""
    hint = as_list(entry, names) if single else None
    if hint is not None:
        return InputError(f"{option} {entry!r} matches no module of this model; {_a_list(hint)}.")
    parts = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
    words = [w for w in re.split(r"[^\w-]+", entry) if w and w not in parts]
    hint = did_you_mean(words[0], parts) if words else ""
    return InputError(f"{option} {entry!r} matches no weight of this model; its parts are {', '.join(parts)}.{hint}")


def _check(name: str, parameter: nn.Parameter) -> None:
    if not parameter.is_floating_point():
        raise ModelError(f"weight {name!r} is packed as {parameter.dtype}; train LoRA over it, or load it unquantised.")
    if parameter.device.type == "meta":
        raise ModelError(f"weight {name!r} is offloaded; load the model without disk offload to train it.")
    if hasattr(parameter, "ds_id"):
        raise ModelError(f"weight {name!r} is cut up by DeepSpeed ZeRO-3; use DDP, or FSDP2 (fully_shard).")
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    if not local.is_contiguous():
        raise ModelError(f"weight {name!r} is not contiguous and cannot be moved in place; call .contiguous() first.")


def supported_weights(model: nn.Module, support: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """The weights of a given support, by their exact names."""
    weights = named_weights(model)
    for name in support:
        if name not in weights:
            raise InputError(f"support names {name!r}, which is no weight of this model.{did_you_mean(name, weights)}")
    return {name: p for name, p in target_weights(model, list(support), "support").items() if name in support}


def module_weights(model: nn.Module, modules: Sequence[str]) -> dict[str, nn.Parameter]:
    """Every parameter of these modules."""
    weights: dict[str, nn.Parameter] = {}
    for entry in modules:
        names = [name for name, _ in model.named_modules() if name == entry or name.endswith(f".{entry}")]
        patterns = [f"{name}.*" for name in names if next(model.get_submodule(name).parameters(), None) is not None]
        weights |= target_weights(model, patterns or [entry], "modules_to_save")
    return weights
