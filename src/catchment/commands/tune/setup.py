"""The set-up of a tune's training: transformers' arguments, the trainer, and a trial of both beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers import TrainingArguments

from catchment import methods
from catchment.commands.tune.opened import Opened
from catchment.errors import InputError, TrainingArgumentsError
from catchment.methods import L2SP, SIFT, FitOptions, Full, Method, WiSEFT, not_cut, sharding, try_out
from catchment.options import parse_pairs

PLAIN, PROTECTED = "plain", "protected"
OURS = {
    "output_dir": "--out", "per_device_train_batch_size": "--batch-size", "num_train_epochs": "--epochs",
    "gradient_accumulation_steps": "--accumulation", "max_steps": "--max-steps", "learning_rate": "--learning-rate",
    "seed": "--seed", "data_seed": "--seed", "save_steps": "--save-steps", "eval_strategy": "--eval-steps",
    "eval_steps": "--eval-steps", "do_eval": "--eval-steps", "eval_on_start": "--eval-steps",
    "push_to_hub": "hf upload afterwards", "remove_unused_columns": "nothing: rows are tokenised here",
    "resume_from_checkpoint": "the same command, which goes on from its last checkpoint",
}  # fmt: skip
"""Training arguments that are settings of the tune, and so of its record."""


def fit_options(opened: Opened, name: str) -> FitOptions:
    """How one of the trainings is done. ``--pull`` is the weight decay of a protected SIFT.

    Raises:
        InputError: ``--training-args`` with an unknown argument, or one that is a setting of the tune.
    """
    s = opened.settings
    given = parse_pairs(s.training_args, TrainingArguments, "training-args", "of transformers.TrainingArguments")
    ours = sorted(given.keys() & OURS.keys())
    if ours:
        raise InputError(f"--training-args {ours[0]}=...: give it as {OURS[ours[0]]} instead.")
    shared = ("epochs", "max_steps", "batch_size", "accumulation", "max_length", "packing", "seed", "save_steps")
    return FitOptions(
        output_dir=opened.out / name,
        checkpoints=opened.out / "checkpoints" / name,
        learning_rate=opened.rate,
        weight_decay=s.pull if name == PROTECTED and isinstance(opened.method, SIFT) else 0.0,
        training_args=given,
        prompt_options=opened.asked,
        recipe={"method": opened.method.name, "data": opened.train.name, "data_fingerprint": opened.train.fingerprint},
        **{name: getattr(s, name) for name in shared},
    )


def training_arguments(opened: Opened, name: str) -> TrainingArguments:
    """transformers' arguments: ours, and over them those of ``--training-args``.

    Raises:
        InputError: An unknown argument, or one that transformers or this tune refuses.
    """
    s, options = opened.settings, fit_options(opened, name)
    with as_option(s.training_args):
        args = methods.training_arguments(opened.loaded.card.device, options, opened.steps)
    if s.pull and "weight_decay" in options.training_args and isinstance(opened.method, SIFT):
        raise InputError(
            f"--pull {s.pull:g} is the weight decay of the protected tune, towards the base; leave "
            "--training-args weight_decay out, or --pull."
        )
    if sharding(args):
        _check_sharding(opened)
    return args


@contextmanager
def as_option(pairs: Sequence[str]) -> Iterator[None]:
    """Training arguments that are refused inside are named as the command line writes them."""
    try:
        yield
    except TrainingArgumentsError as error:
        raise InputError(f"--training-args {' '.join(pairs)}: {error.reason}") from error


def _check_sharding(opened: Opened) -> None:
    """Refuse what weights that accelerate has cut over processes do not allow."""
    s, asked = opened.settings, "--training-args fsdp or deepspeed"
    reason = not_cut(opened.method)
    if reason:
        raise InputError(f"{asked} {reason}")
    if not isinstance(s.base, (str, Path)):
        raise InputError(
            f"{asked}: a model in memory cannot be given back once accelerate has cut it; expected the base by its "
            "name or folder."
        )
    if opened.protected or s.eval_steps:
        raise InputError(
            f"{asked} with {'--protect' if opened.protected else '--eval-steps'}: tasks are measured on whole weights "
            "while the model is trained. Use torchrun without it (DDP), or compare the result afterwards."
        )


def method_of(opened: Opened, name: str) -> Method:
    """The method of one of the trainings."""
    return protected_method(opened) if name == PROTECTED else opened.method


def protected_method(opened: Opened) -> Method:
    """The method, with a decay towards the base where ``--pull`` asks for one.

    Raises:
        InputError: A method without one, or one that moves once more after the fence's last look.
    """
    strength = opened.settings.pull
    if isinstance(opened.method, WiSEFT):
        raise InputError(
            "--protect with --method wise-ft: at its end it goes part of the way back, which the fence never sees. "
            "Use --method full with --protect, or wise-ft without."
        )
    if not strength:
        return opened.method
    if isinstance(opened.method, SIFT):
        return dataclasses.replace(opened.method, decay="base")
    if isinstance(opened.method, Full):
        shared = dataclasses.asdict(opened.method)
        return L2SP(strength=strength, **{k: v for k, v in shared.items() if k not in ("keep_base", "strength")})
    raise InputError(
        f"--pull {strength:g}: only sift and full can be pulled towards the base; not {opened.method.name}."
    )


def try_set_up(opened: Opened) -> None:
    """Make the trainer, its optimizer and its schedule once, and drop them: what cannot work is said before a folder is
    claimed. The base is as it was.

    Raises:
        InputError: With what transformers, accelerate or torch said.
    """
    name = PROTECTED if opened.protected else PLAIN
    method = method_of(opened, name)
    training_arguments(opened, name)
    with as_option(opened.settings.training_args):
        try_out(opened.loaded, opened.examples, method, fit_options(opened, name))
