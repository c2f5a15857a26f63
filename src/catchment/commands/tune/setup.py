"""The set-up of a tune's training: transformers' arguments, the trainer, and a trial of both beforehand."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from catchment.commands.tune.job import TuneJob
from catchment.errors import CatchmentError, InputError
from catchment.methods import L2SP, SIFT, Full, Method, MethodTrainer, PunctualTrainer, Tuning, WiSEFT
from catchment.options import parse_pairs
from catchment.training import Collator, Replay
from catchment.workflows import distributed

PLAIN, PROTECTED = "plain", "protected"
WARM_UP = 0.1
"""Of the steps. Adam's first ones move every entry by the whole rate, whatever its gradient: out of any tolerance."""
OURS = {
    "output_dir": "--out", "per_device_train_batch_size": "--batch-size", "num_train_epochs": "--epochs",
    "gradient_accumulation_steps": "--accumulation", "max_steps": "--max-steps", "learning_rate": "--learning-rate",
    "seed": "--seed", "data_seed": "--seed", "save_steps": "--save-steps", "eval_strategy": "--eval-steps",
    "eval_steps": "--eval-steps", "do_eval": "--eval-steps", "eval_on_start": "--eval-steps",
    "push_to_hub": "hf upload afterwards", "remove_unused_columns": "nothing: rows are tokenised here",
    "resume_from_checkpoint": "the same command, which goes on from its last checkpoint",
}  # fmt: skip
"""Training arguments that are settings of the tune, and so of its record."""
SHARDED = ("full", "lora")
"""Methods that accelerate may cut over processes: their weights are ordinary parameters of the model."""


def training_arguments(job: TuneJob, name: str) -> TrainingArguments:
    """transformers' arguments: ours, and over them those of ``--training-args``.

    Raises:
        InputError: An unknown argument, or one that transformers refuses.
    """
    s, steps = job.settings, job.steps
    values: dict[str, Any] = {
        "output_dir": str(job.out / "checkpoints" / name),
        "per_device_train_batch_size": s.batch_size,
        "gradient_accumulation_steps": s.accumulation,
        "num_train_epochs": s.epochs,
        "max_steps": s.max_steps or -1,
        "learning_rate": job.rate,
        "warmup_steps": round(WARM_UP * steps),
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "logging_steps": max(1, steps // 50),
        "save_steps": s.save_steps or max(1, steps // 5),
        "save_total_limit": 1,
        "include_num_input_tokens_seen": "non_padding",
        "report_to": [],
        "disable_tqdm": True,
        "seed": s.seed,
        "data_seed": s.seed,
        "remove_unused_columns": False,
        "use_cpu": job.loaded.card.device == "cpu",
        "dataloader_pin_memory": job.loaded.card.device != "cpu",
    }
    given = parse_pairs(s.training_args, TrainingArguments, "training-args", "of transformers.TrainingArguments")
    ours = sorted(given.keys() & OURS.keys())
    if ours:
        raise InputError(f"--training-args {ours[0]}=...: give it as {OURS[ours[0]]} instead.")
    try:
        args = TrainingArguments(**{**values, **given})
    except (ValueError, TypeError, ImportError) as error:
        said = str(error).strip().splitlines()[0]
        raise InputError(f"--training-args {' '.join(s.training_args)}: {said}") from error
    if s.pull and "weight_decay" in given and isinstance(job.method, SIFT):
        raise InputError(
            f"--pull {s.pull:g} is the weight decay of the protected tune, towards the base; leave "
            "--training-args weight_decay out, or --pull."
        )
    if sharding(args):
        _check_sharding(job)
    return args


def _check_sharding(job: TuneJob) -> None:
    """Refuse what weights that accelerate has cut over processes do not allow."""
    s, asked = job.settings, "--training-args fsdp or deepspeed"
    if job.method.name not in SHARDED:
        raise InputError(
            f"{asked} with {job.method.name}: only {' and '.join(SHARDED)} can be cut by accelerate. Use torchrun "
            "without it (DDP), or fully_shard and Sift in a loop of your own."
        )
    if not isinstance(s.base, (str, Path)):
        raise InputError(
            f"{asked}: a model in memory cannot be given back once accelerate has cut it; expected the base by its "
            "name or folder."
        )
    if job.protected or s.eval_steps:
        raise InputError(
            f"{asked} with {'--protect' if job.protected else '--eval-steps'}: tasks are measured on whole weights "
            "while the model is trained. Use torchrun without it (DDP), or compare the result afterwards."
        )


def sharding(args: Any) -> bool:
    """Whether accelerate is asked to cut the weights over processes."""
    return bool(getattr(args, "fsdp", None) or getattr(args, "deepspeed", None))


def make_trainer(
    job: TuneJob, tuning: Tuning, args: TrainingArguments, callbacks: list[TrainerCallback],
    replay: Replay | None = None,
) -> Any:  # fmt: skip
    """The method's trainer, or the plain one where accelerate is to cut the weights over processes."""
    tokenizer = job.loaded.tokenizer
    shared: dict[str, Any] = {
        "train_dataset": job.examples,
        "data_collator": Collator(tokenizer),
        "processing_class": tokenizer,
        "callbacks": callbacks,
    }
    if not sharding(args):
        return MethodTrainer(tuning, args, replay=replay, **shared)
    trainer = PunctualTrainer(model=tuning.model, args=args, **shared)
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        where = f"{distributed.processes()} process(es) on {args.device.type}"
        warnings.warn(f"accelerate does not cut weights over {where}: each holds the whole model", stacklevel=2)
    if isinstance(job.method, Full) and next(tuning.model.parameters()).dtype in (torch.bfloat16, torch.float16):
        warnings.warn(
            f"cut by accelerate, the {job.loaded.card.dtype} weights themselves are stepped, and small steps are lost "
            "in rounding; use --dtype float32 with --training-args bf16=true",
            stacklevel=2,
        )
    return trainer


def protected_method(job: TuneJob) -> Method:
    """The method, with a decay towards the base where ``--pull`` asks for one.

    Raises:
        InputError: A method without one, or one that moves once more after the fence's last look.
    """
    strength = job.settings.pull
    if isinstance(job.method, WiSEFT):
        raise InputError(
            "--protect with --method wise-ft: at its end it goes part of the way back, which the fence never sees. "
            "Use --method full with --protect, or wise-ft without."
        )
    if not strength:
        return job.method
    if isinstance(job.method, SIFT):
        return dataclasses.replace(job.method, decay="base")
    if isinstance(job.method, Full):
        shared = dataclasses.asdict(job.method)
        return L2SP(strength=strength, **{k: v for k, v in shared.items() if k not in ("keep_base", "strength")})
    raise InputError(f"--pull {strength:g}: only sift and full can be pulled towards the base; not {job.method.name}.")


def try_set_up(job: TuneJob) -> None:
    """Make the trainer, its optimizer and its schedule once, and drop them: what cannot work is said before a folder is
    claimed. The base is as it was.

    Raises:
        InputError: With what transformers, accelerate or torch said.
    """
    s = job.settings
    name = PROTECTED if job.protected else PLAIN
    method = protected_method(job) if job.protected else job.method
    wanted, there = getattr(method, "selection_batches", 1), job.steps * s.accumulation
    if wanted > there:
        raise InputError(
            f"selection_batches {wanted}: this tune has {there} batches, so entries would never be chosen; expected at "
            "most half of them."
        )
    args = training_arguments(job, name)
    tuning = method.attach(job.loaded.model, seed=s.seed)
    try:
        with tempfile.TemporaryDirectory() as folder, kept_warnings():
            args.output_dir = folder
            trainer = make_trainer(job, tuning, args, [])
            trainer.create_optimizer_and_scheduler(num_training_steps=job.steps)
    except CatchmentError:
        raise
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"--training-args {' '.join(s.training_args)}: {said}") from error
    finally:
        tuning.remove()


@contextmanager
def kept_warnings() -> Iterator[list[str]]:
    """Inside, warnings for users are kept for the record instead of printed."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield said
        finally:
            said += dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning))
