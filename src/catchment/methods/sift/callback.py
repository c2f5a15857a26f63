"""SIFT inside ``transformers.Trainer`` and its relatives."""

from __future__ import annotations

from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from catchment.errors import InputError
from catchment.methods.protocol import Tuning


class Rereading(Tuning, Protocol):
    """A tuning that keeps copies of what it trains; the weights themselves may be replaced by others."""

    def read(self) -> None:
        """Take the weights as they stand into the copies."""


class SiftCallback(TrainerCallback):
    """What a Trainer cannot know of a tuning whose gradient is not in the model: it clips by ``args.max_grad_norm``,
    and forgets gradients of steps that a scaler left out. The trainer's logged ``grad_norm`` stays 0; ``norm`` is the
    last one before clipping.

    Args:
        sift: Made of the trainer's model.

    Raises:
        InputError: At the start: another optimizer, or weights that accelerate would flatten or cut up itself.
    """

    def __init__(self, sift: Rereading) -> None:
        self.sift = sift
        self.norm: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        from transformers.integrations import is_deepspeed_zero3_enabled

        if getattr(args, "fsdp", None) or is_deepspeed_zero3_enabled():
            raise InputError(
                "SIFT in a Trainer runs on one process or under DDP; expected no --fsdp and no ZeRO-3. For sharded "
                "weights call fully_shard(model), then Sift(model), in a loop of your own."
            )
        optimizer = kwargs.get("optimizer")
        inner = getattr(optimizer, "optimizer", optimizer)
        own = {id(p) for p in self.sift.parameters()}
        if inner is None or not any(id(p) in own for g in inner.param_groups for p in g["params"]):
            raise InputError("the trainer has another optimizer; expected Trainer(..., **sift.for_trainer(lr=...)).")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        limit = args.max_grad_norm if args.max_grad_norm and args.max_grad_norm > 0 else float("inf")
        self.norm = float(self.sift.clip_grad_norm_(limit))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.sift.zero_grad()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.load_best_model_at_end:
            self.sift.read()
