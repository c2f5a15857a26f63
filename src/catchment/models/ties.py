"""Ties: cutting them where a tune did, merging an adapter that cuts them, and saving a model that says so.

A tie is memory that two names of a model share. transformers ties by ``config.tie_word_embeddings`` when it loads, so a
model whose embeddings and head are two tensors must be saved with both, and with that field false.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from catchment.errors import ModelError
from catchment.models import adapters
from catchment.models.weights import Weights, names_to_untie, place

_FIELD = "tie_word_embeddings"


def untie(model: nn.Module, like: nn.Module) -> list[str]:
    """Give the names that another model does not tie tensors of their own, with equal values, in place.

    The model computes what it computed before. Its config is left alone: save it with :func:`save_model`. Memory: a
    copy of every weight that is untied.

    Args:
        model: A model without an adapter.
        like: A model of the same architecture, perhaps with an adapter; it is left alone.

    Returns:
        The names; empty when nothing was tied that is not tied in ``like``.

    Raises:
        ModelError: The two have different weights.
    """
    groups = names_to_untie(Weights(model), Weights(like))
    for names in groups:
        _set(model, names, _copy(model.get_parameter(names[0])))
    return [name for names in groups for name in names]


@contextmanager
def untied(model: nn.Module, like: nn.Module) -> Iterator[list[str]]:
    """Inside, the model is untied as by :func:`untie`; outside its ties are what they were."""
    held = dict(model.named_parameters(remove_duplicate=False))
    names = untie(model, like)
    try:
        yield names
    finally:
        for name in names:
            _set(model, [name], held[name])


def merge_adapter(model: Any) -> nn.Module:
    """PEFT's ``merge_and_unload``, in place, where every name that the adapter acts on becomes its own tensor.

    PEFT adds the move of one name to the tensor that a tied name shares, and the move of an adapter that is tied itself
    twice. The config of the merged model says whether it is tied.

    Raises:
        ModelError: The adapter moves no weight, cannot be merged, or cuts a tie of an encoder-decoder.
    """
    weights, adapted = Weights(model), adapters.Adapted(model)
    for layer in adapters.adapted_layers(model).values():
        adapters.refuse_lost_parts(layer)
    parameters = adapters.base_parameters(model)
    first: dict[object, str] = {}
    ties = [(name, first.setdefault(place(tensor), name)) for name, (_, tensor) in parameters.items()]
    cut = next((name for name, tied in ties if weights.names[name] != weights.names[tied]), None)
    if cut is not None:
        _refuse_encoder_decoder(model, cut)
    for name, (full, tensor) in parameters.items():
        if adapted.acting(name):
            _set(model, [full], _copy(tensor))
    told = _fields(getattr(model, "config", None))
    declare_untied(getattr(model, "config", None))  # as it is now: PEFT warns of a config that says otherwise
    merged = model.merge_and_unload()
    for config, value in told if cut is None else []:
        setattr(config, _FIELD, value)
    for name, tied in weights.names.items():
        if name != tied:
            _set(merged, [name], merged.get_parameter(tied))
    return merged


def save_model(
    model: Any, folder: str | Path, weights: Weights | None = None, buffers: Mapping[str, Tensor] | None = None
) -> None:
    """``save_pretrained`` into a folder that loads as what was saved, whatever the model's config says about ties.

    Args:
        model: The transformers model that gives the architecture and the config.
        folder: Where to.
        weights: Saved instead of the model's own, under the same names.
        buffers: Saved beside ``weights``.

    Raises:
        ModelError: An encoder-decoder whose ties are cut: the field of the config changes what it computes.
    """
    own = weights or Weights(model)
    declared = _declared(model)
    cut = next((later for later, first in declared.items() if own.names[later] != own.names[first]), None)
    as_declared = cut is None and all(name == first or name in declared for name, first in own.names.items())
    if as_declared and weights is None:
        model.save_pretrained(folder)
        return
    if cut is not None:
        _refuse_encoder_decoder(model, cut)
        declared = {}
    model.save_pretrained(folder, state_dict={**_apart(own, declared), **(buffers or {})})
    if cut is not None:
        _write_untied(Path(folder) / "config.json")


def _refuse_encoder_decoder(model: Any, name: str) -> None:
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"the tune has another tensor for {name!r} than for what its architecture ties it to, and such an encoder-"
            f"decoder computes something else with {_FIELD} false: no merged model is the same. Keep the adapter."
        )


def _apart(weights: Weights, declared: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors under all names that loading does not tie, each in memory of its own."""
    state: dict[str, Tensor] = {}
    written: set[str] = set()
    for name, first in weights.names.items():
        if name not in declared:
            tensor = weights[name].detach()
            state[name] = tensor.clone() if first in written else tensor
            written.add(first)
    return state


def _declared(model: Any) -> dict[str, str]:
    """What transformers ties when it loads a model with this config: later names, with the names they are tied to."""
    told = getattr(model, "get_expanded_tied_weights_keys", None)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    ties: dict[str, str] = told(all_submodels=True) if told is not None else {}
    return {later: first for later, first in ties.items() if later in names and first in names}


def declare_untied(config: Any) -> None:
    """Write into a config in memory, and into those inside it, that embeddings and head are two tensors."""
    for part, _ in _fields(config):
        setattr(part, _FIELD, False)


def _fields(config: Any) -> list[tuple[Any, bool]]:
    """The configs that say whether embeddings are tied, of the model and of its parts, with what they say."""
    inner = [entry for part in getattr(config, "__dict__", {}).values() if _is_config(part) for entry in _fields(part)]
    return ([(config, getattr(config, _FIELD))] if hasattr(config, _FIELD) else []) + inner


def _is_config(value: object) -> bool:
    return hasattr(value, "model_type") and hasattr(value, "to_diff_dict")


def _write_untied(path: Path) -> None:
    """The same in ``config.json``, also where the field is left out because it has its default."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config[_FIELD] = False
    for name, part in config.items():
        if isinstance(part, dict) and (part.get(_FIELD) or name == "text_config"):
            part[_FIELD] = False
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)


def _set(model: nn.Module, names: list[str], parameter: Tensor) -> None:
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, parameter)
