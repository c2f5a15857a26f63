"""Which parameter, in which memory, stands under which name in a model: remembered before a block of code, put back
after it.

A block may replace what a model consists of without writing to a single weight: ``model.double()``,
``load_state_dict(assign=True)``, ``module.weight = nn.Parameter(...)``, an adapter put in. Only references are kept
here, so the values of a weight are restored only where its memory was not written to; what was written to, by anyone,
is told by a checksum (:meth:`ModelLayout.seal`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from catchment.errors import ModelError
from catchment.models.checksums import checksums

_K = TypeVar("_K")
_T = TypeVar("_T")
_SMALL = 1 << 20
_SHOWN = 5


@dataclass
class Damage:
    """What a block did to a model that is not simply undone.

    Attributes:
        added: Names of weights that it put into the model. They are out of it again.
        reshaped: Names of weights that it gave another shape. They have their own again.
        changed: Names of weights that are not what they were.
    """

    added: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.added or self.reshaped or self.changed)

    def raise_if_any(self) -> None:
        """
        Raises:
            ModelError: Anything is listed; it names the tensors.
        """
        lines = []
        if self.changed:
            lines.append(
                f"weights are not what they were before the block, and no copy of them is left: "
                f"{listed(self.changed)}. Load the model again, and write to weights on a copy.deepcopy of it"
            )
        if self.added:
            lines.append(
                f"the block put weights into the model, which are out of it again: {listed(self.added)}. Put adapters "
                "and modules into a copy.deepcopy of the model"
            )
        if self.reshaped:
            lines.append(
                f"the block gave weights another shape; they have their own again, but settings that go with the shape "
                f"(config.vocab_size, out_features) may not: {listed(self.reshaped)}. Resize a copy.deepcopy of the "
                "model"
            )
        if lines:
            raise ModelError("; ".join(lines) + ".")


class ModelLayout:
    """What a model consists of now. Cost: one walk over its modules; memory: references, and copies of its small saved
    buffers.

    Example::

        layout = ModelLayout(model)
        model.double()
        layout.put_back().raise_if_any()  # the same Parameters, in the same memory, of the same dtype
    """

    def __init__(self, model: nn.Module) -> None:
        reshard(model)
        self._model = model
        modules = list(model.named_modules())
        self._places = [_Place(name, module) for name, module in modules]
        self._weights: dict[int, _Weight] = {}
        for name, parameter in _parameters(modules):
            self._weights.setdefault(id(parameter), _Weight(name, parameter))
        self._buffers = [
            buffer for name, module in modules for buffer in _saved_buffers(name, module) if buffer.tensor.numel()
        ]
        self._sums: dict[str, int] = {}

    def holds(self, parameter: Tensor) -> bool:
        """Whether this very parameter stood in the model."""
        return id(parameter) in self._weights

    def seal(self, but: Iterable[Tensor] = ()) -> None:
        """Take the checksum of every weight and large saved buffer, so that :meth:`changed` can tell.

        Offloaded weights, which have no values here, are left out. Cost: one pass over what is not in ``but``.

        Args:
            but: Flat tensors in whose memory whole weights lie that need none, such as those of which a copy is kept.
        """
        covered = {(tensor.data_ptr(), tensor.nbytes) for tensor in but}
        self._sums = checksums({
            name: tensor for name, tensor in self._values() if (tensor.data_ptr(), tensor.nbytes) not in covered
        })  # fmt: skip

    def changed(self) -> list[str]:
        """Names of the sealed weights whose bits are others than when they were sealed. Cost: as :meth:`seal`."""
        now = checksums({name: tensor for name, tensor in self._values() if name in self._sums})
        return [name for name, value in self._sums.items() if now.get(name) != value]

    def _values(self) -> Iterator[tuple[str, Tensor]]:
        sealed: list[_Weight | _Buffer] = [*self._weights.values()]
        sealed += [buffer for buffer in self._buffers if buffer.copy is None]
        for what in sealed:
            for number, tensor in enumerate(what.memory):
                if tensor.device.type != "meta" and tensor.numel():
                    yield what.name if number == 0 else f"{what.name} ({number})", tensor

    def put_back(self) -> Damage:
        """Every module, Parameter and saved buffer under its own name again, in its own memory, dtype and device.

        Values are not looked at, except of small saved buffers, which are written back. Gradients follow the dtype of
        their weights. Cost, where nothing was replaced: one walk over the modules.
        """
        reshard(self._model)
        damage = Damage()
        places = [place for place in self._places if place.is_touched()]
        for place in places:
            damage.reshaped += place.reshaped()
        for place in places:
            damage.added += place.put_back(self._weights.keys())
        for place in self._places:
            place.put_back_buffers()
        for weight in self._weights.values():
            if weight.has_other_shape():
                damage.reshaped.append(weight.name)
            if not weight.put_back(flag=bool(damage.added)):
                damage.changed.append(weight.name)
        for buffer in self._buffers:
            buffer.put_back()
        damage.reshaped = list(dict.fromkeys(damage.reshaped))
        return damage


def reshard(model: nn.Module) -> None:
    """Drop gathered weights that FSDP2 keeps after a forward pass: what is written meanwhile would not be seen."""
    for module in model.modules():
        drop = getattr(module, "reshard", None)
        if drop is not None and hasattr(module, "unshard"):
            drop()


def _parameters(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Parameter]]:
    for name, module in modules:
        for key, parameter in module._parameters.items():
            if parameter is not None:
                yield _joined(name, key), parameter


class _Place:
    """One module: its kind, and what stands under which of its names."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        self.kind = type(module)
        self.parameters = dict(module._parameters)
        self.shapes = {key: tuple(p.shape) for key, p in module._parameters.items() if p is not None}
        self.children = dict(module._modules)
        self.hooks = dict(module._forward_pre_hooks)
        self.buffers = dict(module._buffers)
        self.memory = {key: b.data for key, b in module._buffers.items() if b is not None}
        self.numbers = _numbers(module)

    def is_touched(self) -> bool:
        """Whether anything else stands under its names of parameters and modules."""
        module = self.module
        return not (_same_items(module._parameters, self.parameters) and _same_items(module._modules, self.children))

    def reshaped(self) -> list[str]:
        """Names of weights under which a Parameter of another shape stands."""
        now = self.module._parameters
        return [
            _joined(self.name, key)
            for key, shape in self.shapes.items()
            if (p := now.get(key)) is not None and p is not self.parameters[key] and tuple(p.shape) != shape
        ]

    def put_back(self, known: Collection[int]) -> list[str]:
        """Names of the weights that are taken out: none of ``known``, under names that had no weight."""
        added = [*self._new_parameters(known), *self._new_in_children(known)]
        if list(self.module._parameters) != list(self.parameters):
            self._undo_computed_weights()
        if not _same_items(self.module._parameters, self.parameters):
            for key in self.parameters:
                for other in (vars(self.module), self.module._buffers, self.module._modules):
                    other.pop(key, None)
            _refill(self.module._parameters, self.parameters)
        if not _same_items(self.module._modules, self.children):
            plain = {
                key: child
                for key, child in self.module._modules.items()
                if key not in self.children and (child is None or next(child.parameters(), None) is None)
            }
            for key in self.children:
                vars(self.module).pop(key, None)
            _refill(self.module._modules, {**self.children, **plain})
        return added

    def _new_parameters(self, known: Collection[int]) -> list[str]:
        return [
            _joined(self.name, key)
            for key, p in self.module._parameters.items()
            if p is not None and self.parameters.get(key) is None and id(p) not in known
        ]

    def _new_in_children(self, known: Collection[int]) -> list[str]:
        return [
            _joined(self.name, f"{key}.{name}")
            for key, child in self.module._modules.items()
            if child is not None and child is not self.children.get(key)
            for name, p in child.named_parameters()
            if id(p) not in known
        ]

    def _undo_computed_weights(self) -> None:
        """Undo what makes a weight a function of others: a class with a property of its name (``parametrize``), a hook
        that computes it before every pass (pruning, the older ``weight_norm``), from a buffer of its own."""
        if type(self.module) is not self.kind:
            with suppress(TypeError):
                self.module.__class__ = self.kind
        _refill(self.module._forward_pre_hooks, self.hooks)
        for key in self.module._buffers.keys() - self.buffers.keys():
            del self.module._buffers[key]

    def put_back_buffers(self) -> None:
        """The tensors that the module had, together with its plain numbers, some of which tell what a buffer holds
        (rotary frequencies, and the length of text that they were made for). Buffers that came later stay."""
        for key, memory in self.memory.items():
            buffer = self.buffers[key]
            if buffer is not None and not _alike(buffer, memory):
                buffer.data = memory
        if all(self.module._buffers.get(key) is buffer for key, buffer in self.buffers.items()):
            return
        for key in self.buffers:
            vars(self.module).pop(key, None)
        self.module._buffers.update(self.buffers)
        vars(self.module).update(self.numbers)


class _Weight:
    """One parameter, the memory in which it lies and its gradient. Tied names share one."""

    def __init__(self, name: str, parameter: nn.Parameter) -> None:
        self.name = name
        self.parameter = parameter
        self.wrapped = _is_wrapper(parameter)
        self.memory = _memory(parameter)
        storages = [tensor.untyped_storage() for tensor in self.memory if tensor.device.type != "meta"]
        self.storages = [(storage, storage.nbytes()) for storage in storages]
        self.flag = parameter.requires_grad
        self.gradient = None if parameter.grad is None else parameter.grad.detach()

    def has_other_shape(self) -> bool:
        return not self.wrapped and self.parameter.shape != self.memory[0].shape

    def put_back(self, flag: bool) -> bool:
        """Whether the parameter lies in its own memory now."""
        for storage, size in self.storages:
            if storage.nbytes() < size:  # given up: the values are lost, and are written anew or missed
                storage.resize_(size)
        if not self.is_home() and not self._replace():
            return False
        if flag:
            self.parameter.requires_grad_(self.flag)
        self._fit_gradient()
        return True

    def is_home(self) -> bool:
        if not self.wrapped and not _is_wrapper(self.parameter):
            return _alike(self.parameter, self.memory[0])
        now = _memory(self.parameter)
        return len(now) == len(self.memory) and all(_alike(a, b) for a, b in zip(now, self.memory, strict=True))

    def _replace(self) -> bool:
        if self.wrapped or _is_wrapper(self.parameter):
            return False  # cut over processes: the memory is known to more than the parameter
        try:
            self.parameter.data = self.memory[0]
        except RuntimeError:  # of another kind of device, by torch.__future__.set_swap_module_params_on_conversion
            with suppress(RuntimeError):
                torch.utils.swap_tensors(self.parameter, nn.Parameter(self.memory[0], self.flag))
        return self.is_home()

    def _fit_gradient(self) -> None:
        """Casts take gradients along. One that was only cast gets its own bits back; another keeps its values."""
        weight, gradient = self.parameter, self.parameter.grad
        if gradient is None or (gradient.dtype, gradient.device) == (weight.dtype, weight.device):
            return
        held = self.gradient
        if held is not None and held.shape == gradient.shape and torch.equal(held.to(gradient), gradient):
            weight.grad = None
            gradient.data = held
            weight.grad = gradient
        else:
            weight.grad = gradient.to(weight) if gradient.shape == weight.shape else None


class _Buffer:
    """A buffer that is saved with the model; a small one with a copy of its values."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name = name
        self.tensor = tensor
        self.memory = (tensor.data,)
        small = tensor.numel() <= _SMALL and tensor.device.type != "meta" and type(tensor) is Tensor
        self.copy = tensor.detach().clone() if small else None

    def put_back(self) -> None:
        if self.copy is not None and not torch.equal(self.tensor, self.copy):
            with torch.no_grad():
                self.tensor.copy_(self.copy)


def _saved_buffers(name: str, module: nn.Module) -> Iterator[_Buffer]:
    for key, tensor in module._buffers.items():
        if tensor is not None and key not in module._non_persistent_buffers_set:
            yield _Buffer(_joined(name, key), tensor)


def _numbers(module: nn.Module) -> dict[str, object]:
    return {key: v for key, v in vars(module).items() if isinstance(v, int | float) and key != "training"}


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _same_items(now: Mapping[str, _T], before: Mapping[str, _T]) -> bool:
    return len(now) == len(before) and all(
        a == b and x is y for (a, x), (b, y) in zip(now.items(), before.items(), strict=True)
    )


def _refill(now: MutableMapping[_K, _T], before: Mapping[_K, _T]) -> None:
    now.clear()
    now.update(before)


def _is_wrapper(tensor: Tensor) -> bool:
    return hasattr(tensor, "__tensor_flatten__")


def _memory(tensor: Tensor) -> tuple[Tensor, ...]:
    """The plain tensors that a parameter lies in: itself, or what a wrapper (cut over processes, packed) holds."""
    if not _is_wrapper(tensor):
        return (tensor.data,)
    inner, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    parts = [getattr(tensor, key) for key in inner]
    return tuple(plain for part in parts if isinstance(part, Tensor) for plain in _memory(part))


def _alike(a: Tensor, b: Tensor) -> bool:
    return (
        a.data_ptr() == b.data_ptr()
        and a.dtype == b.dtype
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.device == b.device
    )


def listed(names: Iterable[str]) -> str:
    """At most five names, and how many more."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
