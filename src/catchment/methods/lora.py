"""LoRA (arXiv 2106.09685), by PEFT: a low-rank term beside frozen matrices, under the protocol of the methods."""

from __future__ import annotations

import json
import re
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
from catchment.methods.targets import ALL_LINEAR, as_list, as_names, claim, release
from catchment.models import family_of, locate, merge_adapter, named_weights, quiet_peft, read_header
from catchment.runs import make_folder
from catchment.training import check_number, decay_groups

_ADAPTER = "default"
_FILE = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_SCALES = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
"""Settings that decide how far an adapter's matrices move the base."""


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
        modules_to_save: Modules that train whole beside the adapter, e.g. a new classifier; a name, or several.
    """

    name: ClassVar[str] = "lora"
    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    use_rslora: bool = False
    modules_to_save: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise InputError(f"r {self.r!r}: expected a rank, a whole number of at least 1, e.g. 8.")
        check_number("lora_alpha", self.lora_alpha, 0.0)
        check_number("lora_dropout", self.lora_dropout, 0.0, 1.0)
        for option in ("target_modules", "modules_to_save"):
            given = getattr(self, option)
            if option == "modules_to_save" or not isinstance(given, str):  # one string is an expression of targets
                object.__setattr__(self, option, as_names(option, given))

    def attach(self, model: nn.Module, *, seed: int = 0) -> LoRATuning:
        """Put adapters into the model, in place; ``seed`` draws ``A``, and the global random state is left alone.

        Raises:
            InputError: The model is being tuned or has an adapter already, or a target is not there or cannot have
                an adapter; nothing was altered.
        """
        claim(model)
        try:
            return self._attach(model, seed)
        except BaseException:
            release(model)
            raise

    def _attach(self, model: nn.Module, seed: int) -> LoRATuning:
        from peft import LoraConfig, get_peft_model

        if hasattr(model, "peft_config"):
            raise InputError("the model has a PEFT adapter already; expected the base, or merge the adapter first.")
        flags = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
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
            with _put_back(model), _quiet(), _seeded(model, seed):
                wrapped = get_peft_model(model, config)
        except (ValueError, re.error) as error:
            raise self._refused(model, config, error) from error
        for module in wrapped.modules():
            module.training = modes.get(id(module), model.training)
        return LoRATuning(wrapped, self, flags)

    def _refused(self, model: nn.Module, config: Any, error: Exception) -> InputError:
        """What PEFT's error means: a module that can have no adapter, a string that should be a list, or its words."""
        given = f"target_modules {self.target_modules!r}"
        name = None if isinstance(error, re.error) else _unsupported(model, config)
        if name is not None:
            kind = type(model.get_submodule(name)).__name__
            return InputError(
                f"{given} names {name!r}, a {kind}, which can have no LoRA adapter; expected linear layers, "
                "convolutions or embeddings. Leave it out, or train it whole: modules_to_save."
            )
        entry = as_list(self.target_modules, named_weights(model)) if isinstance(self.target_modules, str) else None
        if entry is not None and not any(c in entry for c in "*?["):
            told = "a string is a regular expression over whole module names; for an ending give a list"
            return InputError(f"{given}: {error}; {told}: [{entry!r}].")
        return InputError(f"{given}: {error}")

    def _targets(self, model: nn.Module) -> str | list[str]:
        if self.target_modules != ALL_LINEAR:
            given = self.target_modules
            return given if isinstance(given, str) else list(given)
        from transformers.pytorch_utils import Conv1D

        family = family_of(model)
        names = []
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                layer, kind = locate(f"{name}.weight", family)
                if layer is not None and kind in ("attention", "ffn"):
                    names.append(name)
        return names or ALL_LINEAR


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

        Raises:
            StoreError: A file is in the way, or the place is read-only.
        """
        make_folder(Path(folder))
        with _quiet():  # "auto" would ask the hub about the base's vocabulary
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
        return write_recipe(folder, self.method, base_hash, recipe)

    def load_pretrained(self, folder: str | Path) -> None:
        """Take up a saved adapter with the same targets, rank and scaling.

        Raises:
            ModelError: There is no adapter there, it is damaged or does not fit this one; nothing was altered.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = Path(folder) / _FILE
        if not path.is_file():
            raise ModelError(f"{str(folder)!r} has no {_FILE}; expected a folder that LoRA saved.")
        shapes = {entry.name: entry.shape for entry in read_header(path)[0]}
        self._check_scales(Path(folder) / _CONFIG)
        with _quiet():
            own = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        if shapes != {name: tuple(tensor.shape) for name, tensor in own.items()}:
            raise ModelError(f"{str(path)!r} holds another adapter: expected r={self.method.r} and the same targets.")
        try:
            saved = load_file(str(path))
        except SafetensorError as error:
            raise ModelError(f"{str(path)!r} is damaged ({error}); download or save it again.") from error
        set_peft_model_state_dict(self.model, saved)

    def _check_scales(self, path: Path) -> None:
        """Refuse an adapter whose matrices mean another move than they would mean here."""
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            theirs = {name: saved.get(name) or None for name in _SCALES}
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror or error}; expected what LoRA saved.") from error
        except (ValueError, AttributeError) as error:
            raise ModelError(f"{path} is damaged ({error}); download or save it again.") from error
        config = self.model.peft_config[_ADAPTER]
        ours = {name: getattr(config, name) or None for name in _SCALES}
        other = [name for name in _SCALES if theirs[name] != ours[name]]
        if other:
            raise ModelError(
                f"{str(path.parent)!r} holds another adapter: it was saved with "
                f"{', '.join(f'{name}={theirs[name]}' for name in other)}, and this tuning has "
                f"{', '.join(f'{name}={ours[name]}' for name in other)}; attach LoRA with the saved settings."
            )

    def merge(self) -> nn.Module:
        """Add ``lora_alpha / r * B A`` to the base's weights, in place and rounded to their dtype.

        A weight that the base ties and the adapter moves under one name only becomes two; the config then says so.
        """
        return self._end(merge_adapter(self.model))

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
        release(base)
        return base


def _unsupported(model: nn.Module, config: Any) -> str | None:
    """The first module among the targets that is of none of the classes that LoRA is known for."""
    from peft.tuners.tuners_utils import check_target_module_exists
    from transformers.pytorch_utils import Conv1D

    known = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
    for name, module in model.named_modules():
        if name and not isinstance(module, known) and check_target_module_exists(config, name):
            return name
    return None


@contextmanager
def _put_back(model: nn.Module) -> Iterator[None]:
    """When what is inside fails, every module stands where it stood, with its parameters' ``requires_grad``."""
    children = [(module, dict(module._modules)) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    except BaseException:
        for module, held in children:
            module._modules.clear()
            module._modules.update(held)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        vars(model).pop("peft_config", None)
        raise


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
    with quiet_peft(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
        yield
