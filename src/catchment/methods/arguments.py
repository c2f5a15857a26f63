"""What a training is set to: :class:`FitOptions`, and transformers' arguments made of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from catchment.capabilities import PromptOptions, context_length
from catchment.errors import InputError, TrainingArgumentsError
from catchment.methods.protocol import Method
from catchment.training import check_number

WARM_UP = 0.1
"""Of the steps. Adam's first ones move every entry by the whole rate, whatever its gradient: out of any tolerance."""
SHARDED = ("full", "lora")
"""Methods that accelerate may cut over processes: their weights are ordinary parameters of the model."""
NAMED = {
    "output_dir": "checkpoints", "per_device_train_batch_size": "batch_size", "num_train_epochs": "epochs",
    "gradient_accumulation_steps": "accumulation", "max_steps": "max_steps", "learning_rate": "learning_rate",
    "seed": "seed", "data_seed": "seed", "save_steps": "save_steps",
}  # fmt: skip
"""Training arguments that are fields of :class:`FitOptions`."""


@dataclass(frozen=True)
class FitOptions:
    """How long, how fast and in which order :func:`~catchment.methods.fit` trains.

    Args:
        output_dir: Folder for what is trained.
        learning_rate: At its peak, after a linear warm-up of a tenth of the steps; it falls linearly to 0.
        epochs: Passes over the rows.
        max_steps: Optimizer steps, instead of epochs.
        batch_size: Rows (packed: blocks) per step and process.
        accumulation: Batches per optimizer step.
        max_length: Tokens per row, as far as the model's context goes; longer rows are cut.
        packing: Several rows in one block, which do not see each other.
        weight_decay: Of the optimizer; towards the base for ``SIFT(decay="base")``, towards 0 for the others.
        seed: Of the method's random choices and of the order of the rows.
        save_steps: Optimizer steps between checkpoints; ``None``: a fifth of the training.
        checkpoints: Folder for the Trainer's checkpoints; ``None``: ``output_dir/checkpoints``.
        training_args: Further fields of ``transformers.TrainingArguments``, by name.
        prompt_options: How the rows' prompts are put.
        recipe: What else the artefact says of its making, beside base, method, seed, steps and learning rate.
    """

    output_dir: Path
    learning_rate: float
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 8
    accumulation: int = 1
    max_length: int = 1024
    packing: bool = False
    weight_decay: float = 0.0
    seed: int = 0
    save_steps: int | None = None
    checkpoints: Path | None = None
    training_args: Mapping[str, Any] = field(default_factory=dict)
    prompt_options: PromptOptions = field(default_factory=PromptOptions)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epochs"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise InputError(f"{name} {value}: expected a number above 0.")
        check_number("weight_decay", self.weight_decay, 0.0)
        for name, least in (
            ("batch_size", 1),
            ("accumulation", 1),
            ("max_length", 2),
            ("max_steps", 1),
            ("save_steps", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} {value}: expected at least {least}.")
        for name in sorted(self.training_args.keys() & NAMED.keys()):
            raise InputError(f"training_args {name}: give it as {NAMED[name]}= of FitOptions instead.")

    def steps(self, examples: int) -> int:
        """Optimizer steps over so many examples: rows, or packed blocks; with ``WORLD_SIZE`` processes.

        >>> FitOptions(Path("out"), 1e-3, batch_size=7, accumulation=2).steps(40)
        3
        """
        rows = self.batch_size * int(os.environ.get("WORLD_SIZE", "1"))
        return self.max_steps or steps_of(examples, rows, self.accumulation, self.epochs)

    def row_length(self, model: Any) -> int:
        """Tokens per row of this model: ``max_length``, as far as its context goes."""
        return min(self.max_length, context_length(model) or self.max_length)


def steps_of(examples: int, rows: int, accumulation: int, epochs: float) -> int:
    """Optimizer steps of so many epochs over the examples, ``rows`` at once, ``accumulation`` times per step.

    >>> steps_of(40, 7, 2, epochs=2.5)
    8
    """
    return max(1, math.ceil(epochs * math.ceil(math.ceil(examples / rows) / accumulation)))


def training_arguments(device: str, options: FitOptions, steps: int) -> TrainingArguments:
    """transformers' arguments: ours, and over them those of ``options.training_args``.

    Args:
        device: Where the model is.
        steps: Of the whole training.

    Raises:
        TrainingArgumentsError: An unknown argument, or one that transformers refuses.
    """
    values: dict[str, Any] = {
        "output_dir": str(options.checkpoints or options.output_dir / "checkpoints"),
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.accumulation,
        "num_train_epochs": options.epochs,
        "max_steps": options.max_steps or -1,
        "learning_rate": options.learning_rate,
        "warmup_steps": round(WARM_UP * steps),
        "lr_scheduler_type": "linear",
        "weight_decay": options.weight_decay,
        "logging_steps": max(1, steps // 50),
        "save_steps": options.save_steps or max(1, steps // 5),
        "save_total_limit": 1,
        "include_num_input_tokens_seen": "non_padding",
        "report_to": [],
        "disable_tqdm": True,
        "seed": options.seed,
        "data_seed": options.seed,
        "remove_unused_columns": False,
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device != "cpu",
    }
    try:
        return TrainingArguments(**{**values, **options.training_args})
    except (ValueError, TypeError, ImportError) as error:
        raise TrainingArgumentsError(options.training_args, error) from error


def sharding(args: TrainingArguments) -> bool:
    """Whether accelerate is asked to cut the weights over processes."""
    return bool(getattr(args, "fsdp", None) or getattr(args, "deepspeed", None))


def not_cut(method: Method) -> str | None:
    """Why accelerate may not cut this method's weights over processes; ``None`` where it may.

    >>> from catchment.methods import Full
    >>> not_cut(Full()) is None
    True
    """
    if method.name in SHARDED:
        return None
    return (
        f"with {method.name}: only {' and '.join(SHARDED)} can be cut by accelerate. Use torchrun "
        "without it (DDP), or fully_shard and Sift in a loop of your own."
    )
