"""Any method in ``transformers.Trainer``: data, schedule, logging, checkpoints and accelerate are the Trainer's."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import nested_gather
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from catchment.errors import CatchmentError, InputError, ModelError, NonFiniteError, StoreError
from catchment.methods.protocol import Tuning
from catchment.models import check_trainer, mapped_weights
from catchment.runs import processes
from catchment.training import Replay

_SHOWN = 32  # tokens of the first example in an error
ELSEWHERE = "the loss or gradient is not finite on another process,"
OPTIMIZERS = (OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, "optimizer_*", "global_step*")
"""What a checkpoint keeps the optimizer's state in: one file, FSDP's whole or sharded kind, DeepSpeed's folder."""
_SHARDED = "MethodTrainer does not shard weights with FSDP or DeepSpeed; expected one process or DDP."


class PunctualTrainer(Trainer):
    """``transformers.Trainer``, but a training that resumes where it had ended, by its number of steps or by a callback
    that says so in ``on_train_begin``, takes no further step."""

    def _run_epoch(self, *args: Any, **options: Any) -> Any:
        """The Trainer's loop looks for its end after a step only; a resumed training may stand there already."""
        if processes.anywhere(self.state.global_step >= self.state.max_steps or self.control.should_training_stop):
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*args, **options)


class MethodTrainer(PunctualTrainer):
    """``transformers.Trainer`` whose weights are moved by a :class:`~catchment.methods.protocol.Tuning`.

    Differences from the Trainer: the optimizer is the tuning's (of the class and options that the arguments name);
    clipping and the logged ``grad_norm`` concern what trains; a checkpoint holds the tuning's artefact, and a run that
    resumes from it equals the uninterrupted one bit for bit (CPU, same threads); gradient checkpointing is not
    reentrant; the first loss or gradient that is not finite, on any process, ends the training on all of them before
    the step, with the weights of the last good step. Resuming is that of :class:`PunctualTrainer`. After the last step
    ``tuning.finish()`` is called, before the callbacks' ``on_train_end``.

    Args:
        tuning: From ``method.attach(model)``.
        args: ``transformers.TrainingArguments``.
        replay: Its divergence is added to the loss of every batch, and is in the logged loss; its share is logged
            beside that as ``replay_loss``.
        options: The Trainer's other arguments, without ``model``, ``model_init`` and ``optimizers``.

    Raises:
        InputError: One of those three was given, or sharded training (FSDP, DeepSpeed) was asked for.
        ModelError: The installed Trainer lacks a method that this one replaces.

    Example:
        >>> tuning = Full().attach(model)  # doctest: +SKIP
        >>> MethodTrainer(tuning, args, train_dataset=data, processing_class=tokenizer).train()  # doctest: +SKIP
        >>> tuned = tuning.merge()  # doctest: +SKIP
    """

    def __init__(self, tuning: Tuning, args: Any = None, *, replay: Replay | None = None, **options: Any) -> None:
        for name in ("model", "model_init", "optimizers"):
            if name in options:
                raise InputError(f"MethodTrainer takes no {name}=; the tuning has the model and makes the optimizer.")
        if args is not None and (getattr(args, "fsdp", None) or getattr(args, "deepspeed", None)):
            raise InputError(_SHARDED)
        check_trainer(Trainer)
        self.tuning, self.replay = tuning, replay
        self._micro_batch = 0
        self._share = torch.zeros(())
        self._replayed: list[Tensor] = []
        """Replay's share in the loss: of the last pass, and of every micro-batch since the last log."""
        if args is not None:
            _not_reentrant(args)
        super().__init__(model=tuning.model, args=args, **options)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # by accelerate's own configuration
            raise InputError(_SHARDED)
        self.callback_handler.callbacks.insert(0, _Follow(self))  # before callbacks that look at the weights

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any) -> Any:
        """As the Trainer's; ``True`` resumes from the last checkpoint in ``output_dir`` that was written to its end.

        Raises:
            ModelError: There is none, or not where it was said to be.
            StoreError: It is damaged, or of a training with other settings.
            NonFiniteError: A loss or gradient was not finite.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = _last_whole(Path(self.args.output_dir))  # type: ignore[arg-type]
        return super().train(resume_from_checkpoint, *args, **options)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            named: Any = self.optimizer_cls_and_kwargs
            given = named or self.get_optimizer_cls_and_kwargs(self.args, self.model)  # type: ignore[arg-type]
            factory, options = given[0], dict(given[1])
            layered = {"params", "model", "optimizer_dict"} & options.keys()
            if layered or not isinstance(factory, type) or not issubclass(factory, torch.optim.Optimizer):
                raise InputError(f"optim {self.args.optim!s} chooses its own weights; expected e.g. 'adamw_torch'.")
            options.setdefault("weight_decay", self.args.weight_decay)
            self.optimizer = self.tuning.optimizer(factory, **options)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        self._micro_batch += 1
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.replay is not None:
            self._replayed.append(self._share)
        broken = not bool(torch.isfinite(loss).all())
        if processes.anywhere(broken):
            raise self._stopped(f"the loss is {float(loss):g}" if broken else ELSEWHERE, inputs if broken else None)

        def again() -> None:
            super(MethodTrainer, self).training_step(model, inputs, num_items_in_batch)

        self.tuning.second_pass(again)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.replay is None or not model.training:
            return loss
        batch = self.state.global_step * self.args.gradient_accumulation_steps + self._micro_batch - 1
        extra = self.replay.loss(model, self.replay.rows(batch, self.args.process_index, self.args.world_size))
        self._share = extra.detach()
        if num_items_in_batch is not None and self.model_accepts_loss_kwargs:  # then the Trainer takes no mean any more
            extra = extra / self.current_gradient_accumulation_steps
        return (loss[0] + extra, loss[1]) if return_outputs else loss + extra

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._replayed:
            share = torch.stack(self._replayed).mean()
            logs["replay_loss"] = float(nested_gather(share, self.args.parallel_mode).mean())  # type: ignore[union-attr]
            self._replayed.clear()
        super().log(logs, start_time)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return self._clip(self.args.max_grad_norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = self._clip(float("inf")) if grad_norm is None else grad_norm
        if self.accelerator.scaler is None:
            broken = not bool(torch.isfinite(torch.as_tensor(norm)))
            if processes.anywhere(broken):
                raise self._stopped(f"the gradient's norm is {float(norm):g}" if broken else ELSEWHERE)
        return norm

    def _clip(self, max_norm: float) -> Tensor:
        self.accelerator.unscale_gradients(self.optimizer)
        return self.tuning.clip_grad_norm_(max_norm)

    def _stopped(self, what: str, inputs: Any = None) -> NonFiniteError:
        """Drop the gradients and say where it happened."""
        self.tuning.zero_grad()
        where = f"step {self.state.global_step + 1}, micro-batch {self._micro_batch}"
        shown = self._first_example(inputs)
        return NonFiniteError(
            f"{what} at {where}{shown}; the weights are those of step {self.state.global_step}. "
            "Try a smaller learning rate, or look at that batch for empty labels."
        )

    def _first_example(self, inputs: Any) -> str:
        decode = getattr(self.processing_class, "decode", None)
        ids = inputs.get("input_ids") if isinstance(inputs, dict) or hasattr(inputs, "get") else None
        if decode is None or ids is None:
            return ""
        return f", whose first example begins {decode(ids[0][:_SHOWN].tolist())!r}"

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)  # type: ignore[arg-type]
        folder.mkdir(parents=True, exist_ok=True)
        if getattr(self.tuning, "ready", True):  # before SIFT has chosen there is nothing beside the optimizer's state
            self.tuning.save_pretrained(folder)
        processor = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if processor is not None:
            processor.save_pretrained(str(folder))
        torch.save(self.args, folder / TRAINING_ARGS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        if not folder.is_dir():
            raise ModelError(f"there is no checkpoint folder {resume_from_checkpoint!r} to resume from.")
        if not (folder / TRAINER_STATE_NAME).is_file():
            raise ModelError(
                f"{resume_from_checkpoint!r} holds no {TRAINER_STATE_NAME}; expected a Trainer's checkpoint."
            )
        files = sorted(folder.glob("*.safetensors"))
        with _taking_up(folder):
            json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
            mapped_weights(files)  # reads their headers, and whether the bytes are all there
        if files:
            with _taking_up(folder, CatchmentError):  # "made for another base" says it better
                self.tuning.load_pretrained(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _taking_up(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with _taking_up(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _taking_up(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self.tuning.load_pretrained(self.state.best_model_checkpoint)


class _Follow(TrainerCallback):
    """Tell the tuning what the Trainer only tells the model."""

    def __init__(self, trainer: MethodTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._forget()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._forget()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.tuning.finish()

    def _forget(self) -> None:
        self._trainer.tuning.zero_grad()
        self._trainer._micro_batch = 0


def whole_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint with the highest step that was written to its end: the Trainer writes its state last.

    Args:
        folder: The Trainer's ``output_dir``.

    Returns:
        Its folder; ``None`` where there is none. One warning names each checkpoint that is passed over.
    """
    folder = Path(folder)
    checkpoints = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()]
    for path in sorted(checkpoints, key=lambda p: int(p.name.rpartition("-")[2]), reverse=True):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            warnings.warn(f"{str(path)!r} was not written to its end and is passed over", stacklevel=3)
        else:
            if any(next(path.glob(pattern), None) for pattern in OPTIMIZERS):
                return path
            warnings.warn(f"{str(path)!r} has no {OPTIMIZER_NAME} and is passed over", stacklevel=3)
    return None


def _last_whole(folder: Path) -> str:
    checkpoint = whole_checkpoint(folder)
    if checkpoint is None:
        raise ModelError(f"there is no whole checkpoint in {str(folder)!r} to resume from; start without resuming.")
    return str(checkpoint)


@contextmanager
def _taking_up(checkpoint: str | Path | None, *but: type[Exception]) -> Iterator[None]:
    """What cannot be read of a checkpoint, ``but`` for these errors, is told as one that names its folder."""
    try:
        yield
    except Exception as error:  # torch, pickle, safetensors and json each raise their own
        if isinstance(error, (*but, torch.OutOfMemoryError)):
            raise
        said = next(iter(str(error).splitlines()), "")[:200]
        raise StoreError(
            f"the checkpoint {str(checkpoint)!r} cannot be taken up ({type(error).__name__}: {said}); it is damaged, "
            "or of a training with other settings. Delete that folder to resume from an earlier one or to start anew."
        ) from error


def _not_reentrant(args: TrainingArguments) -> None:
    """Reentrant checkpointing runs backward hooks of a block more than once or not at all."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        if not getattr(args, name, None):
            continue
        options = dict(getattr(args, f"{name}_kwargs", None) or {})
        if options.get("use_reentrant"):
            warnings.warn("use_reentrant=True is set to False: methods need the non-reentrant kind", stacklevel=3)
        setattr(args, f"{name}_kwargs", {**options, "use_reentrant": False})
