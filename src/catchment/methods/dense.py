"""Methods that move every targeted weight: full fine-tuning, L2-SP, SAM and WiSE-FT, on one :class:`DenseTuning`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from catchment.errors import InputError, ModelError
from catchment.methods.targets import claim, release, target_weights
from catchment.models import mapped_weights, named_weights, persistent_buffers, save_model
from catchment.runs import make_folder, write_atomic
from catchment.training import MasterWeights, SharpnessAware, check_number, decay_groups, pull_to_base

RECIPE = "tuning.json"
"""What a method writes beside the weights: its name and settings, the hash of the base, the caller's recipe."""


@dataclass(frozen=True)
class _Dense:
    """Settings that the dense methods share.

    Args:
        target_modules: What trains, as in :func:`~catchment.methods.targets.target_weights`; ``None``: every weight.
            The rest is frozen.
        master_weights: Half-precision weights get fp32 copies that the optimizer moves (8 bytes per weight with their
            gradient, see :class:`~catchment.training.MasterWeights`). Without them bf16 loses small steps.
        base_files: The base's safetensors files, to read its weights from in place of a copy in memory. They must
            hold exactly the model's weights, which is checked tensor by tensor.
    """

    target_modules: str | tuple[str, ...] | None = None
    master_weights: bool = True
    base_files: str | Path | tuple[str | Path, ...] = ()

    def attach(self, model: nn.Module, *, seed: int = 0) -> DenseTuning:
        """Make the targets trainable and freeze the rest; ``seed`` is not used, nothing is random.

        Memory: one copy of the trained weights in main memory (not with ``base_files`` or ``keep_base=False``), and
        fp32 masters where weights are of half precision.

        Raises:
            InputError: The model is being tuned already, a target matches nothing, or ``base_files`` hold other
                weights.
            ModelError: A target cannot be trained: packed, or offloaded.
        """
        claim(model)
        try:
            return self._attach(model)
        except BaseException:
            release(model)
            raise

    def _attach(self, model: nn.Module) -> DenseTuning:
        targets = target_weights(model, ["*"] if self.target_modules is None else self.target_modules)
        base = None
        if self.base_files:
            base = _base_of(self.base_files, targets)
        elif getattr(self, "keep_base", True):  # L2-SP and WiSE-FT cannot do without
            base = {name: weight.detach().cpu().clone() for name, weight in targets.items()}
        return DenseTuning(model, self, targets, base)


@dataclass(frozen=True)
class Full(_Dense):
    """Full fine-tuning: every targeted weight follows the optimizer.

    Args:
        keep_base: Keep the base for :meth:`DenseTuning.scale` and :meth:`DenseTuning.remove`.
    """

    name: ClassVar[str] = "full"
    keep_base: bool = True


@dataclass(frozen=True)
class L2SP(_Dense):
    """Fine-tuning with a pull towards the base (L2-SP, arXiv 1802.01483), decoupled as in AdamW.

    Before each step ``w <- w - lr * strength * (w - w0)``, see :func:`~catchment.training.pull_to_base`. A new head
    is pulled towards its random start like any other weight. The base moves to the weights' device when the optimizer
    is made.
    """

    name: ClassVar[str] = "l2-sp"
    strength: float = 0.01

    def __post_init__(self) -> None:
        check_number("strength", self.strength, 0.0)


@dataclass(frozen=True)
class SAM(_Dense):
    """Sharpness-aware minimisation (arXiv 2010.01412): descend by the gradient at ``w + rho * g / ||g||``.

    With gradient accumulation each micro-batch climbs its own loss (m-SAM). Costs a second forward and backward pass,
    which draws new dropout masks; see :class:`~catchment.training.SharpnessAware`.
    """

    name: ClassVar[str] = "sam"
    rho: float = 0.05
    keep_base: bool = True

    def __post_init__(self) -> None:
        check_number("rho", self.rho, 0.0)


@dataclass(frozen=True)
class WiSEFT(_Dense):
    """Full fine-tuning, and at the end ``w0 + alpha * (w - w0)`` (WiSE-FT, arXiv 2109.01903, equation 1)."""

    name: ClassVar[str] = "wise-ft"
    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0.0, 1.0)


class DenseTuning:
    """A dense method at work; see :class:`~catchment.methods.protocol.Tuning`.

    Attributes:
        model: The model that was given; it is trained in place.
        method: Its settings.
    """

    def __init__(
        self, model: nn.Module, method: _Dense, targets: dict[str, nn.Parameter], base: dict[str, Tensor] | None
    ) -> None:
        self.model, self.method = model, method
        self._targets, self._base = targets, base
        self._flags = [(p, p.requires_grad) for p in model.parameters()]
        self._buffers = {name: buffer.detach().clone() for name, buffer in persistent_buffers(model).items()}
        chosen = {id(p) for p in targets.values()}
        for parameter, _ in self._flags:
            parameter.requires_grad_(id(parameter) in chosen)
        weights = list(targets.values())
        self._masters = MasterWeights(weights, enabled=method.master_weights)
        self._sharp = SharpnessAware(self._masters, method.rho) if isinstance(method, SAM) else None

    def parameters(self) -> list[nn.Parameter]:
        return list(self._masters.leaves)

    def optimizer(self, factory: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, **options: Any) -> Any:
        """An optimizer over the trained weights (or their masters, which its state holds). Build it after the model
        has moved to its device. ``weight_decay`` reaches matrices only, no bias or norm."""
        self._masters.settle()
        leaves: Any = self._masters.leaves
        if "weight_decay" in options:
            leaves = decay_groups(leaves, options.pop("weight_decay"))
        optimizer = factory(leaves, **options)
        self._masters.follow(optimizer)
        if isinstance(self.method, L2SP):
            base = [value.to(leaf.device) for value, leaf in zip(self._kept().values(), self.parameters(), strict=True)]
            pull_to_base(optimizer, list(zip(self.parameters(), base, strict=True)), self.method.strength)
        if self._sharp is not None:
            optimizer.register_step_post_hook(self._sharp.forget)
        return optimizer

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        self._masters.collect()
        return nn.utils.clip_grad_norm_(self._masters.leaves, max_norm)

    def zero_grad(self) -> None:
        for parameter in (*self._masters.leaves, *self._masters.weights):
            parameter.grad = None
        if self._sharp is not None:
            self._sharp.forget()

    def second_pass(self, again: Callable[[], None]) -> None:
        if self._sharp is not None:
            self._sharp.second_pass(again)

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """``w <- w0 + factor * (w - w0)``, in fp32 (fp64 for fp64 weights) tensor by tensor; 0 and 1 are exact.

        Raises:
            ModelError: The base was not kept.
        """
        for base, leaf in zip(self._kept().values(), self._masters.leaves, strict=True):
            wide = torch.promote_types(leaf.dtype, torch.float32)
            leaf.copy_(torch.lerp(base.to(device=leaf.device, dtype=wide), leaf.to(wide), factor))
        self._masters.write()

    def finish(self) -> None:
        """WiSE-FT: go back to ``alpha`` of the way. Other methods: nothing."""
        if isinstance(self.method, WiSEFT):
            self.scale(self.method.alpha)

    def save_pretrained(
        self, folder: str | Path, *, base_hash: str | None = None, recipe: Mapping[str, Any] | None = None
    ) -> Path:
        """Write the whole model, as transformers does.

        Returns:
            The folder: ``catchment.models.load`` reads it alone.

        Raises:
            StoreError: A file is in the way, or the place is read-only.
        """
        make_folder(Path(folder))
        save_model(self.model, folder)
        return write_recipe(folder, self.method, base_hash, recipe)

    @torch.no_grad()
    def load_pretrained(self, folder: str | Path) -> None:
        """Take the weights of a saved model of the same architecture.

        Raises:
            ModelError: There are no weights there, or one of the model's is missing or has another shape.
        """
        saved = _weights_in(Path(folder), self.model)
        own: dict[str, Tensor] = {**named_weights(self.model), **persistent_buffers(self.model)}
        for name, tensor in own.items():
            if name not in saved or saved[name].shape != tensor.shape:
                raise ModelError(f"{str(folder)!r} has no weight {name!r} of this shape; expected the same model.")
        for name, tensor in own.items():
            tensor.copy_(saved[name])
        self._masters.read()

    def merge(self) -> nn.Module:
        self._end()
        return self.model

    @torch.no_grad()
    def remove(self) -> nn.Module:
        """The base again: its weights and buffers bit for bit.

        Raises:
            ModelError: The base was not kept; nothing was altered.
        """
        base = self._kept()
        for name, weight in self._targets.items():
            weight.copy_(base[name])
        for name, buffer in persistent_buffers(self.model).items():
            buffer.copy_(self._buffers[name])
        self._end()
        return self.model

    def _end(self) -> None:
        self.zero_grad()
        self._masters.close()
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        release(self.model)

    def _kept(self) -> dict[str, Tensor]:
        if self._base is None:
            raise ModelError("the base was not kept; attach with keep_base=True, or with base_files=.")
        return self._base


def write_recipe(folder: str | Path, method: Any, base_hash: str | None, recipe: Mapping[str, Any] | None) -> Path:
    """Write :data:`RECIPE` into the folder. Returns the folder."""
    content = {
        "method": method.name,
        "settings": asdict(method),
        "base_hash": base_hash,
        "recipe": dict(recipe) if recipe is not None else None,
    }
    path = Path(folder) / RECIPE
    write_atomic(path, json.dumps(content, indent=2, sort_keys=True, default=str) + "\n")
    return path.parent


def _base_of(files: str | Path | Sequence[str | Path], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The targets' values in the files, mapped and not read into memory; each is compared with the model's."""
    files = (files,) if isinstance(files, str | Path) else files
    mapped = mapped_weights(Path(file) for file in files)
    base = {}
    for name, weight in targets.items():
        if name not in mapped:
            raise InputError(f"base_files hold no weight {name!r}; leave base_files out to keep a copy in memory.")
        if not _same_bits(mapped[name], weight.detach().cpu()):
            raise InputError(f"base_files hold another {name!r} than the model; expected the files it was loaded from.")
        base[name] = mapped[name]
    return base


def _same_bits(a: Tensor, b: Tensor) -> bool:
    same = a.dtype == b.dtype and a.shape == b.shape
    return same and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _weights_in(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """A saved model's tensors under the names of this model's :func:`named_weights`."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{str(folder)!r} holds no safetensors file; expected a folder of save_pretrained.")
    saved = mapped_weights(files)
    first = {id(tensor): name for name, tensor in named_weights(model).items()}
    for name, parameter in model.named_parameters(remove_duplicate=False):  # a tied tensor is saved under one name
        if name in saved and id(parameter) in first:
            saved.setdefault(first[id(parameter)], saved[name])
    wanted = {*first.values(), *persistent_buffers(model)}
    if wanted <= saved.keys():
        return saved
    # Some architectures are saved under other names than they are held (fused experts): let transformers translate.
    twin = type(model).from_pretrained(folder, dtype="auto")  # type: ignore[attr-defined]
    return {**named_weights(twin), **persistent_buffers(twin)}
