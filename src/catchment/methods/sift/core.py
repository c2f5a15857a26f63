"""SIFT: fine-tune the entries of the weights that the first gradients choose (arXiv 2312.11875).

The state is flat over all tensors: ``values`` (fp32, the entries' own copies, what the optimizer steps), the sorted
``index``, the ``base`` values in the model's dtype, and while a batch is at work the gradient of ``values``. After each
optimizer step ``W[index] = cast(values)``: nothing is pending after a step, and nothing enters the autograd graph.

Memory beyond weights and activations, in bytes per entry: values 4, index 4, gradient 4, AdamW's moments 8, base 2
(half types) or 4; and the largest dense gradient. Time beyond forward and backward: reading and writing ``k`` entries.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catchment.errors import InputError, ModelError, did_you_mean, finish
from catchment.methods.sift import files, sharing
from catchment.methods.sift.callback import SiftCallback
from catchment.methods.sift.choice import Choice
from catchment.methods.sift.intake import Intake
from catchment.methods.sift.layout import Flat, Target, plan
from catchment.methods.sift.selection import RULES, SCOPES
from catchment.methods.targets import (
    ALL_LINEAR,
    as_names,
    claim,
    module_weights,
    refuse_fsdp1,
    release,
    supported_weights,
    target_weights,
)
from catchment.models import ModelLayout, weights_hash

DECAYS = ("zero", "base")


class Sift:
    """A model of which some entries train.

        sift = Sift(model, sparsity=0.01)
        optimizer = sift.optimizer(torch.optim.AdamW, lr=2e-4)
        for batch in data:
            model(**batch).loss.backward()
            optimizer.step()
        sift.save_pretrained("increment")

    With a Trainer: ``Trainer(model, args, train_dataset=data, **sift.for_trainer(lr=2e-4))``. The optimizer's
    ``state_dict`` carries indices, values and base, so whatever saves and loads the optimizer resumes the tuning.
    Checkpoint activations with ``use_reentrant=False``.

    Under DDP make the Sift first, then wrap the model; under FSDP2 call ``fully_shard`` first. Every process must
    run the same backward passes. The optimizer may not look at the shape of the weights (Adafactor's factors, Muon).

    Args:
        model: Its other weights are frozen. Training mode and values stay as they are.
        sparsity: Share of the targeted weights that train: ``min(int(x n) + 1, n)`` of each tensor; with
            ``scope="global"`` as many in all.
        target_modules: As PEFT's; see :func:`~catchment.methods.targets.target_weights`.
        rule: ``gradient``, ``fisher``, ``saliency``, ``random`` or ``magnitude``; see ``selection``.
        scope: ``tensor``: each has its own share (the paper); ``global``: all compete.
        floor: With ``global``: part of its own share that every tensor is certain of, 0 to 1.
        selection_batches: Backward passes whose gradients choose; they count for the first update too. More than one
            keeps dense sums of scores and gradients until then.
        modules_to_save: Modules all of whose entries train, such as a new ``classifier``; biases included. A name, or a
            list of names.
        decay: What a ``weight_decay`` pulls towards: ``zero`` (the optimizer's own) or ``base`` (L2-SP, decoupled).
        support: Flat indices per weight's name to train, instead of choosing; what says how to choose (sparsity,
            target_modules, rule, scope, floor, selection_batches) is then not used.
        seed: For ``random``.

    Attributes:
        values: What the optimizer steps: fp32, ``(k,)``; on each process its part where the model is sharded.

    Raises:
        InputError: A setting out of range, a pattern that matches nothing.
        ModelError: Weights that cannot be trained in place: packed, offloaded, FSDP1, ZeRO-3.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sparsity: float = 0.01,
        target_modules: str | Sequence[str] = ALL_LINEAR,
        rule: str = "gradient",
        scope: str = "tensor",
        floor: float = 0.0,
        selection_batches: int = 1,
        modules_to_save: str | Sequence[str] = (),
        decay: str = "zero",
        support: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        _check(rule, scope, decay, floor, selection_batches)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise ModelError("the model is wrapped in DDP already; make the Sift of the plain model, then wrap it.")
        refuse_fsdp1(model)
        modules_to_save = as_names("modules_to_save", modules_to_save)
        dense = module_weights(model, modules_to_save)
        chosen = target_weights(model, target_modules) if support is None else supported_weights(model, support)
        chosen = {name: parameter for name, parameter in chosen.items() if name not in dense}
        self.model, self.decay = model, decay
        self.settings = {
            "sparsity": sparsity, "rule": "given" if support is not None else rule, "scope": scope, "floor": floor,
            "selection_batches": selection_batches, "decay": decay, "seed": seed,
            "target_modules": target_modules if isinstance(target_modules, str) else list(target_modules),
            "modules_to_save": list(modules_to_save),
        }  # fmt: skip
        self._flat = Flat(plan(chosen, dense, sparsity, floor))
        self.sharded = sharing.is_sharded(self.targets)
        if floor and self.sharded:
            raise InputError("floor is not supported where tensors are sharded; use scope='tensor', or floor=0.")
        self._replicas = 1 if self.sharded else sharing.processes()
        self._handles: list[Any] = []
        self._undo: list[Callable[[], None]] = []
        self._base_hash: str | None = None
        if self._replicas > 1:
            sharing.align(self.targets)
        self._choice = Choice(self._flat, rule, scope, selection_batches, seed, self.sharded)
        self._intake = Intake(self._flat, self._choice, self._replicas)
        with torch.no_grad():
            self._choice.without_data(support)
        claim(model)
        if self._replicas > 1:
            self._undo.append(sharing.leave_to_sift(model, self.targets))
        self._flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for target in self.targets:
            target.parameter.requires_grad_(True)
        self._handles += self._intake.hooks()

    # ---- what trains ----------------------------------------------------------------------------------------------

    @property
    def targets(self) -> list[Target]:
        """The tensors whose entries train."""
        return self._flat.targets

    @property
    def values(self) -> nn.Parameter:
        return self._flat.values

    @property
    def base(self) -> Tensor:
        """What the entries were before, in the model's dtype, ``(k,)``."""
        return self._flat.base

    @property
    def delta(self) -> Tensor:
        """The move so far: ``values - base``, fp32, ``(k,)``."""
        return self.values.detach() - self.base.float()

    @property
    def k(self) -> int:
        """Entries that train; where tensors are sharded those of this process."""
        return self.values.numel()

    @property
    def ready(self) -> bool:
        """Whether entries have been chosen."""
        return self._choice.done

    def support(self) -> dict[str, Tensor]:
        """Flat indices of the entries that train, per weight (within the part that this process holds)."""
        return {t.name: t.index.long() for t in self.targets if t.index is not None and t.count}

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer sees: one vector."""
        return [self.values]

    def optimizer(self, factory: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, **options: Any) -> Any:
        """An optimizer over the entries, attached: ``factory(parameters, **options)``."""
        return self.attach(factory(self.parameters(), **options))

    def attach(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Make an optimizer's steps reach the weights, and its ``state_dict`` carry the tuning.

        Raises:
            InputError: It does not hold :meth:`parameters`, steps within a closure, or must know sizes that the
                first gradients decide.
        """
        groups = [g for g in optimizer.param_groups if any(p is self.values for p in g["params"])]
        if not groups:
            raise InputError("the optimizer does not hold this Sift's parameters; make it of sift.parameters().")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise InputError("LBFGS evaluates the loss within a step, before weights are written; use AdamW or SGD.")
        if optimizer.state.get(self.values) and self._choice.movable and not self.ready:
            raise InputError(
                f"{type(optimizer).__name__} makes its state before the first step, when the number of entries per "
                "process is not known yet; use AdamW, or scope='tensor' on whole tensors."
            )
        if type(optimizer).__name__ == "Adafactor":
            warnings.warn("Adafactor sees one vector, so its second moments are not factored", stacklevel=3)
        if self.decay == "base":
            for group in groups:
                group["decay_to_base"], group["weight_decay"] = group.get("weight_decay", 0.0), 0.0
        self._handles += [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_post_hook(self._into_state),
            optimizer.register_load_state_dict_pre_hook(self._from_state),
        ]
        return optimizer

    def for_trainer(self, factory: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW, **options: Any) -> dict:
        """``optimizers`` and ``callbacks`` for ``transformers.Trainer``, TRL's trainers and what derives from them."""
        return {"optimizers": (self.optimizer(factory, **options), None), "callbacks": [SiftCallback(self)]}

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Clip the flat gradient to this norm, over all processes where it is sharded; returns the norm before."""
        gradient = self.values.grad
        if not self.sharded:
            return torch.zeros(()) if gradient is None else nn.utils.clip_grad_norm_([self.values], max_norm)
        squares = self.values.new_zeros(()) if gradient is None else gradient.square().sum()
        norm = sharing.sum_(squares).sqrt()  # also by a process that holds no entry and so has no gradient
        nn.utils.clip_grads_with_norm_([self.values], max_norm, norm)
        return norm

    def zero_grad(self) -> None:
        """Forget the flat gradient, after a step that was left out."""
        self.values.grad = None

    def second_pass(self, again: Callable[[], None]) -> None:
        """One pass is enough."""

    def finish(self) -> None:
        """Nothing is pending after a step."""

    # ---- moving the model -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """``values = base + factor * (values - base)``, in fp32, and write them."""
        self.values.copy_(torch.lerp(self.base.float(), self.values, factor))  # exact at 0 and 1
        self._flat.write(self.values)

    def snapshot(self) -> Tensor:
        """The move as it stands, for :meth:`restore`."""
        return self.values.detach().clone()

    @torch.no_grad()
    def restore(self, state: Tensor) -> None:
        """Stand where :meth:`snapshot` stood, bit for bit."""
        self.values.copy_(state)
        self._flat.write(self.values)

    @torch.no_grad()
    def read(self) -> None:
        """Take the weights as they stand, where something else has written them (``load_best_model_at_end``)."""
        for target, part in self._flat.parts(self.values.detach()):
            here = target.local[target.index.long()]  # type: ignore[union-attr]
            part.copy_(torch.where(part.to(here.dtype) == here, part, here.float()))

    @contextmanager
    def unmerged(self) -> Iterator[nn.Module]:
        """Inside, the model is the base, bit for bit; afterwards it has the move again, in the same parameters,
        whatever replaced them inside (``model.half()``).

        Raises:
            ModelError: On exit, by name, weights that the block put into the model or gave another shape. They are
                undone; of a block that raised, this becomes a note of its own exception.
        """
        layout = ModelLayout(self.model)
        self._flat.write(self.base)
        raised: BaseException | None = None
        try:
            yield self.model
        except BaseException as error:
            raised = error
            raise
        finally:
            finish(lambda: self._move_again(layout), raised)

    def _move_again(self, layout: ModelLayout) -> None:
        damage = layout.put_back()
        self._flat.write(self.values)
        damage.raise_if_any()

    def merge(self) -> nn.Module:
        """The model with the move in its weights, without hooks; the tuning is over."""
        self._close()
        return self.model

    def remove(self) -> nn.Module:
        """The base, bit for bit; the tuning is over."""
        self._flat.write(self.base)
        self._close()
        return self.model

    def _close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._flags[name])
        while self._undo:
            self._undo.pop()()
        release(self.model)

    # ---- files ----------------------------------------------------------------------------------------------------

    def save_pretrained(
        self, folder: str | Path, *, base_hash: str | None = None, recipe: Mapping[str, Any] | None = None
    ) -> Path:
        """Write the move as ``folder/increment.safetensors``, which loads as ``BASE+FOLDER``.

        Cost: ``k`` entries, and a hash of the base where none is given. Where tensors are sharded every process calls
        it, and the first one writes.

        Raises:
            ModelError: Nothing was chosen yet.
        """
        if not self.ready:
            raise ModelError("nothing to save: the entries are chosen by the first gradients, and none came yet.")
        told = {"method": "sift", **self.settings, **(recipe or {})}
        return files.save(self._flat, Path(folder), base_hash or self._hash_of_base(), told)

    def load_pretrained(self, folder: str | Path) -> None:
        """Take up a saved move: its entries are those that train from here on.

        Raises:
            ModelError: It was made for another base, or moves weights that are no targets.
        """
        if self.sharded:
            raise ModelError(
                "an increment is taken up before fully_shard: apply it to the model, or load the state_dict."
            )
        increment = files.read(Path(folder))
        increment.verify(self._hash_of_base())
        files.load(increment, self._flat, self._choice)

    def _hash_of_base(self) -> str:
        """The base stays what it is: hashed once."""
        if self._base_hash is None:
            with self.unmerged() as base:
                self._base_hash = weights_hash(base)
        return self._base_hash

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed tuning needs beside the optimizer's moments; tensors, numbers and text."""
        return files.state(self._flat, self._choice)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up :meth:`state_dict`, whether the model has the base's weights or the tuned ones.

        Raises:
            ModelError: It is of another model or of other targets.
        """
        files.load_state(self._flat, self._choice, state)

    # ---- hooks ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._intake.listen()
        if not self._choice.step_begins():  # moments and step counts must not move
            self.values.grad = None
            return
        for group in optimizer.param_groups:
            if group.get("decay_to_base") and self.values.grad is not None:
                self.values.sub_(self.delta, alpha=group["lr"] * group["decay_to_base"])

    @torch.no_grad()
    def _after_step(self, *_: Any) -> None:
        if self.values.grad is not None:
            self._flat.write(self.values)
            self.values.grad = None

    def _into_state(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "sift": self.state_dict()}

    def _from_state(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        state = dict(state)
        own = state.pop("sift", None)
        if own is None:
            raise ModelError("the optimizer's state has no 'sift' part; it was not saved by an attached optimizer.")
        self.load_state_dict(own)
        return state


def _check(rule: str, scope: str, decay: str, floor: float, batches: int) -> None:
    for option, value, known in (("rule", rule, RULES), ("scope", scope, SCOPES), ("decay", decay, DECAYS)):
        if value not in known:
            raise InputError(f"{option} {value!r}: expected one of {', '.join(known)}.{did_you_mean(value, known)}")
    if not 0 <= floor <= 1:
        raise InputError(f"floor {floor}: expected a part of a tensor's own share, between 0 and 1.")
    if floor and scope != "global":
        raise InputError("floor is for scope='global'; with scope='tensor' every tensor has its own share anyway.")
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
        raise InputError(f"selection_batches {batches!r}: expected a whole number of at least 1.")
