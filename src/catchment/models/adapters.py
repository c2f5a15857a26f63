"""Looking through PEFT: which parameters are the base's, what they are called without it, and what they merge to."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from catchment.errors import ModelError


def is_peft(model: nn.Module) -> bool:
    """Whether the model is wrapped by PEFT (answered without importing PEFT)."""
    return hasattr(model, "peft_config") and hasattr(model, "base_model") and hasattr(model, "get_base_model")


def kinds(model: nn.Module) -> str:
    """The adapter's type for messages, e.g. ``LORA``."""
    configs = model.peft_config.values()  # type: ignore[union-attr,operator]
    return ", ".join(sorted({str(getattr(c.peft_type, "value", c.peft_type)) for c in configs}))


def prefix(model: nn.Module) -> str:
    """What PEFT puts in front of the base's names: tuners add two levels, prompt learning one."""
    from peft.tuners.tuners_utils import BaseTuner

    return "base_model.model." if isinstance(model.base_model, BaseTuner) else "base_model."


def plain(name: str, front: str) -> str:
    """A base parameter's name without PEFT.

    >>> plain("base_model.model.h.0.attn.base_layer.weight", "base_model.model.")
    'h.0.attn.weight'
    """
    parts = name.removeprefix(front).split(".")
    return ".".join(part for part in parts if part not in ("base_layer", "original_module"))


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Outermost modules that PEFT put in the place of the base's, by their full names."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not _inside(name, layers):
            layers[name] = module  # type: ignore[assignment]
    return layers


def _inside(name: str, owners: Mapping[str, nn.Module]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:i]) in owners for i in range(1, len(parts)))


def is_base(name: str, front: str, layers: Mapping[str, nn.Module]) -> bool:
    """Whether a parameter (full name) belongs to the base rather than to the adapter."""
    if not name.startswith(front):
        return False
    if not _inside(name, layers):
        return True
    return not {"base_layer", "original_module"}.isdisjoint(name.split("."))


class Effective(Mapping[str, Tensor]):
    """Weights as an adapted model computes with them; each is merged when it is asked for.

    The model is not altered: one layer is copied, merged, read and dropped, so the extra memory is one layer.

    Raises:
        ModelError: The adapter moves no weight (prompt or prefix tuning), or a layer cannot be merged.
    """

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        self._weights = weights
        front = prefix(model)
        self._layers = {plain(name, front): layer for name, layer in adapted_layers(model).items()}
        if not self._layers:
            raise ModelError(f"an adapter of type {kinds(model)} moves no weight of its base; there is no distance.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._weights[name]
        parts = name.split(".")
        for i in range(len(parts) - 1, 0, -1):
            layer = self._layers.get(".".join(parts[:i]))
            if layer is not None:
                return _merged(layer, ".".join(parts[i:]), tensor)
        return tensor


def _merged(layer: nn.Module, leaf: str, tensor: Tensor) -> Tensor:
    from peft.tuners.tuners_utils import BaseTunerLayer

    if getattr(layer, "disable_adapters", False):
        return tensor
    if not isinstance(layer, BaseTunerLayer):
        return _replaced(layer, leaf, tensor)
    if layer.merged:
        return tensor
    try:
        twin = copy.deepcopy(layer)
        twin.merge()
        return twin.get_base_layer().get_parameter(leaf).detach()
    except Exception as error:
        raise ModelError(f"the adapter on {type(layer).__name__} cannot be merged: {error}.") from error


def _replaced(wrapper: nn.Module, leaf: str, tensor: Tensor) -> Tensor:
    """The weight of the module that PEFT trains instead of the original one (``modules_to_save``)."""
    copies = getattr(wrapper, "modules_to_save", None)
    if copies is None:
        raise ModelError(f"cannot read what {type(wrapper).__name__} trains; merge the adapter and save the model.")
    for adapter in wrapper.active_adapters:  # type: ignore[union-attr]
        if adapter in copies:  # type: ignore[operator]
            return copies[adapter].get_parameter(leaf).detach()  # type: ignore[index,union-attr,operator]
    return tensor
