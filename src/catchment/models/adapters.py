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


def base_parameters(model: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """The base's parameters under the names that they have without PEFT, tied ones under each of theirs, and with the
    full name of each: ``{plain: (full, tensor)}``, in the order of the base."""
    front = prefix(model)
    root = model.get_submodule(front.removesuffix("."))
    return {plain: (full, tensor) for full, plain, tensor in _walk(root, front, "", parameters=True)}


def base_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The base's buffers, saved or not, under the names that they have without PEFT."""
    front = prefix(model)
    root = model.get_submodule(front.removesuffix("."))
    return {plain: tensor for _, plain, tensor in _walk(root, front, "", parameters=False)}


def _walk(module: nn.Module, full: str, plain: str, *, parameters: bool) -> Iterator[tuple[str, str, Tensor]]:
    """Full name, plain name and tensor of all that is below a module and not PEFT's own."""
    wrapped = _wrapped(module)
    if wrapped is not None:
        yield from _walk(wrapped[1], f"{full}{wrapped[0]}.", plain, parameters=parameters)
        return
    for leaf, tensor in (module._parameters if parameters else module._buffers).items():
        if tensor is not None:
            yield full + leaf, plain + leaf, tensor
    for child, inner in module._modules.items():
        if inner is not None:
            yield from _walk(inner, f"{full}{child}.", f"{plain}{child}.", parameters=parameters)


def _wrapped(module: nn.Module) -> tuple[str, nn.Module] | None:
    """Where, in a module that PEFT put in the place of the base's, that one stands."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
        return None
    paths = ("base_layer", "original_module", "token_adapter.base_layer")
    return next(((path, inner) for path in paths if (inner := _below(module, path)) is not None), None)


def _below(module: nn.Module, path: str) -> nn.Module | None:
    inner: nn.Module | None = module
    for part in path.split("."):
        inner = inner._modules.get(part) if inner is not None else None
    return inner


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """Names of all adapters of a PEFT model."""
    return tuple(model.peft_config)  # type: ignore[arg-type]


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


def state(layer: nn.Module) -> tuple[tuple[str, ...], bool]:
    """The active adapters of a layer, and whether they are switched off."""
    return tuple(layer.active_adapters), bool(getattr(layer, "disable_adapters", False))  # type: ignore[arg-type]


class Adapted:
    """The layers of an adapted model, to ask what the base's tensors in them become. The model is not altered.

    Raises:
        ModelError: The adapter moves no weight (prompt or prefix tuning), or stands on another adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        front = prefix(model)
        if is_peft(model.get_submodule(front.removesuffix("."))):
            raise ModelError("the adapter stands on another one; merge the first into the base, and save that.")
        self._layers = {name.removeprefix(front): layer for name, layer in adapted_layers(model).items()}
        if not self._layers:
            raise ModelError(f"an adapter of type {kinds(model)} moves no weight of its base; there is no distance.")

    def _find(self, name: str) -> tuple[nn.Module | None, str]:
        """The layer that a weight of the base stands in, and the weight's name inside it."""
        parts = name.split(".")
        for i in range(len(parts) - 1, 0, -1):
            layer = self._layers.get(".".join(parts[:i]))
            if layer is not None:
                return layer, ".".join(parts[i:])
        return None, ""

    def acting(self, name: str) -> frozenset[object]:
        """What acts on a weight: the storages and scalings of the active adapters in its layer. Two names of one tensor
        stay tied under an adapter when the same acts on both."""
        layer, _ = self._find(name)
        if layer is None or _at_rest(layer):
            return frozenset()
        active = set(layer.active_adapters)  # type: ignore[arg-type]
        base = {id(tensor) for _, _, tensor in _walk(layer, "", "", parameters=True)}
        own = [t for n, t in layer.named_parameters() if id(t) not in base and active.intersection(n.split("."))]
        scaling = getattr(layer, "scaling", None)
        scales = [(a, scaling[a]) for a in active if a in scaling] if isinstance(scaling, Mapping) else []
        return frozenset([*(t.data_ptr() for t in own), *scales])

    def merged(self, name: str, tensor: Tensor) -> Tensor:
        """What a weight of the base becomes: one layer is copied, merged, read and dropped.

        Raises:
            ModelError: The layer cannot be merged.
        """
        layer, leaf = self._find(name)
        return tensor if layer is None else _merged(layer, leaf, tensor)


def _at_rest(layer: nn.Module) -> bool:
    """Whether a layer computes with the base's weights as they stand: adapters are disabled or merged into them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    parts = [part for part in layer.modules() if isinstance(part, BaseTunerLayer)]
    return bool(getattr(layer, "disable_adapters", False)) or (bool(parts) and all(part.merged for part in parts))


def _merged(layer: nn.Module, leaf: str, tensor: Tensor) -> Tensor:
    from peft.tuners.tuners_utils import BaseTunerLayer

    if _at_rest(layer):
        return tensor
    try:
        if "modules_to_save" in layer._modules:
            return _replaced(layer, leaf, tensor)
        refuse_lost_parts(layer)
        twin = copy.deepcopy(layer)
        for part in list(twin.modules()):  # several parameters of one module: each has its own layer around it
            if isinstance(part, BaseTunerLayer) and not part.merged:
                part.merge()
        return next(tensor for _, plain, tensor in _walk(twin, "", "", parameters=True) if plain == leaf).detach()
    except Exception as error:
        raise ModelError(f"the adapter on {type(layer).__name__} cannot be merged: {error}.") from error


def refuse_lost_parts(layer: nn.Module) -> None:
    """Raise a :class:`ModelError` for trained tokens that a merged weight cannot hold as PEFT computes with them."""
    tokens = [part for part in layer.modules() if hasattr(part, "trainable_tokens_delta")]
    if tokens and not (layer in tokens or "token_adapter" in layer._modules):
        raise ModelError("PEFT cannot merge another adapter around a layer whose tokens are trained")
    if any(getattr(part.base_layer, "bias", None) is not None for part in tokens):
        raise ModelError("PEFT leaves out the bias of a head whose tokens are trained, and a merged head has one")


def _replaced(wrapper: nn.Module, leaf: str, tensor: Tensor) -> Tensor:
    """The weight of the module that PEFT trains instead of the original one (``modules_to_save``)."""
    copies: nn.ModuleDict = wrapper.modules_to_save  # type: ignore[assignment]
    for adapter in wrapper.active_adapters:  # type: ignore[union-attr]
        if adapter in copies:
            return copies[adapter].get_parameter(leaf).detach()
    return tensor
