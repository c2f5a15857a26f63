"""LoRA (arXiv 2106.09685), by PEFT: a low-rank term beside frozen matrices, under the protocol of the methods."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from catchment.errors import InputError, ModelError
from catchment.methods.dense import write_recipe
from catchment.methods.targets import ALL_LINEAR
from catchment.models import family_of, locate
from catchment.training import check_number, decay_groups

_ADAPTER = "default"
_FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class LoRA:
    """``W = W0 + lora_alpha / r * B A``: ``A`` has shape ``(r, in)``, ``B`` has shape ``(out, r)`` and starts at 0.

    Adapters of a half-precision base are fp32 (PEFT's default), so small steps are not lost.

    Args:
        r: Rank.
        lora_alpha: The move is multiplied by ``lora_alpha / r`` (``/ sqrt(r)`` with ``use_rslora``).
        lora_dropout: Dropout on the adapter's input while training.
        target_modules: ``"all-linear"``: the linear layers of attention and FFN in the blocks, the same as for SIFT; or
            what PEFT understands: a regular expression, or the ends of modules' names.
        use_rslora: Rank-stabilised scaling (arXiv 2312.03732).
        modules_to_save: Modules that train whole beside the adapter, e.g. a new classifier.
    """

    name: ClassVar[str] = "lora"
    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    use_rslora: bool = False
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.r < 1:
            raise InputError(f"r {self.r}: expected a rank of at least 1, e.g. 8.")
        check_number("lora_alpha", self.lora_alpha, 0.0)
        check_number("lora_dropout", self.lora_dropout, 0.0, 1.0)

    def attach(self, model: nn.Module, *, seed: int = 0) -> LoRATuning:
        """Put adapters into the model, in place; ``seed`` draws ``A``, and the global random state is left alone.

        Raises:
            InputError: The model has an adapter already, or PEFT finds no such target; nothing was altered.
        """
        from peft import LoraConfig, get_peft_model

        if hasattr(model, "peft_config"):
            raise InputError("the model has a PEFT adapter already; expected the base, or merge the adapter first.")
        flags = {name: p.requires_grad for name, p in model.named_parameters()}
        modes = {id(module): module.training for module in model.modules()}
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.lora_alpha,  # type: ignore[arg-type]
            lora_dropout=self.lora_dropout,
            target_modules=self._targets(model),
            use_rslora=self.use_rslora,
            modules_to_save=list(self.modules_to_save) or None,
        )
        try:
            with _quiet(), _seeded(model, seed):
                wrapped = get_peft_model(model, config)
        except ValueError as error:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(flags[name])
            if hasattr(model, "peft_config"):
                del model.peft_config
            raise InputError(f"target_modules {self.target_modules!r}: {error}") from error
        for module in wrapped.modules():
            module.training = modes.get(id(module), model.training)
        return LoRATuning(wrapped, self, flags)

    def _targets(self, model: nn.Module) -> str | list[str]:
        if self.target_modules != ALL_LINEAR:
            given = self.target_modules
            return given if isinstance(given, str) else list(given)
        from transformers.pytorch_utils import Conv1D

        family = family_of(model)
        found = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                layer, kind = locate(f"{name}.weight", family)
                if layer is not None and kind in ("attention", "ffn"):
                    found.append(name)
        return found or ALL_LINEAR


class LoRATuning:
    """LoRA at work; see :class:`~catchment.methods.protocol.Tuning`.

    Attributes:
        model: The base wrapped by PEFT.
        method: The settings.
    """

    def __init__(self, model: Any, method: LoRA, flags: dict[str, bool]) -> None:
        self.model, self.method, self._flags = model, method, flags

    def parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def optimizer(self, factory: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, **options: Any) -> Any:
        """An optimizer over the adapter. ``weight_decay`` shrinks ``A`` and ``B``, not their product with the base."""
        parameters: Any = self.parameters()
        if "weight_decay" in options:
            parameters = decay_groups(parameters, options.pop("weight_decay"))
        return factory(parameters, **options)

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        return nn.utils.clip_grad_norm_(self.parameters(), max_norm)

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    def second_pass(self, again: Callable[[], None]) -> None:
        """Nothing: one pass is enough."""

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply every ``B``: the move ``B A`` becomes ``factor`` times itself, up to the rounding of ``B``'s dtype.

        Modules that train whole go to ``base + factor * (tuned - base)``. Training on from here starts at the scaled
        ``B`` with the old ``A``.
        """
        for name, parameter in self.model.named_parameters():
            if ".lora_B." in name or ".lora_embedding_B." in name:
                parameter.mul_(factor)
        for tuned, base in self._replaced():
            wide = torch.promote_types(tuned.dtype, torch.float32)
            tuned.copy_(torch.lerp(base.to(wide), tuned.to(wide), factor))

    def _replaced(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Weights of ``modules_to_save`` with those of the base."""
        for wrapper in self._wrappers().values():
            tuned, base = wrapper.modules_to_save[_ADAPTER], wrapper.original_module
            yield from zip(tuned.parameters(), base.parameters(), strict=True)

    def _wrappers(self) -> dict[str, Any]:
        """What PEFT put in the place of ``modules_to_save``, by their names in the base."""
        named = self.model.get_base_model().named_modules()
        return {name: m for name, m in named if isinstance(getattr(m, "modules_to_save", None), nn.ModuleDict)}

    def finish(self) -> None:
        """Nothing is left to do after the last step."""

    def save_pretrained(
        self, folder: str | Path, *, base_hash: str | None = None, recipe: Mapping[str, Any] | None = None
    ) -> Path:
        """Write PEFT's adapter folder.

        Returns:
            The folder: ``catchment.models.load`` reads it as ``BASE+FOLDER``.
        """
        with _quiet():  # "auto" would ask the hub about the base's vocabulary
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
        return write_recipe(folder, self.method, base_hash, recipe)

    def load_pretrained(self, folder: str | Path) -> None:
        """Take up a saved adapter with the same targets and rank.

        Raises:
            ModelError: There is no adapter there, or it does not fit this one; nothing was altered.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors.torch import load_file

        path = Path(folder) / _FILE
        if not path.is_file():
            raise ModelError(f"{str(folder)!r} has no {_FILE}; expected a folder that LoRA saved.")
        saved = load_file(str(path))
        with _quiet():
            own = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        shapes = {name: tensor.shape for name, tensor in own.items()}
        if shapes != {name: tensor.shape for name, tensor in saved.items()}:
            raise ModelError(f"{str(path)!r} holds another adapter: expected r={self.method.r} and the same targets.")
        set_peft_model_state_dict(self.model, saved)

    def merge(self) -> nn.Module:
        """Add ``lora_alpha / r * B A`` to the base's weights, in place and rounded to their dtype."""
        return self._end(self.model.merge_and_unload())

    def remove(self) -> nn.Module:
        """The base; its own weights never moved."""
        originals = {name: wrapper.original_module for name, wrapper in self._wrappers().items()}
        base = self.model.unload()  # which keeps the trained copies of whole modules
        for name, module in originals.items():
            parent, _, child = name.rpartition(".")
            setattr(base.get_submodule(parent), child, module)
        return self._end(base)

    def _end(self, base: nn.Module) -> nn.Module:
        if hasattr(base, "peft_config"):
            del base.peft_config
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(self._flags[name])
            parameter.grad = None
        return base


@contextmanager
def _seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Draw from ``seed`` inside, and leave the global random states as they were."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(sorted(d.index or 0 for d in devices)):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT reads an attribute that transformers has renamed, and says that it finds out how ``Conv1D`` is laid out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
        yield
