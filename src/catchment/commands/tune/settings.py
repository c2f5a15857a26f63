"""What a user of ``tune`` may choose."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, ClassVar

from pydantic import Field

from catchment.errors import InputError
from catchment.options import (
    WHOLE,
    AskOptions,
    Check,
    Count,
    HeadOption,
    Integer,
    MarginOption,
    MeasureOptions,
    ModelOptions,
    Names,
    Object,
    OutputOptions,
    Real,
    Share,
    Texts,
    checked,
    one_of,
)


def _share_or_count(held_out: float) -> bool:
    return 0 <= held_out < 1 or (held_out >= 2 and float(held_out).is_integer())


HELD_OUT = Check("{option} {value}: expected a share below 1, or a number of rows of at least 2.", _share_or_count)
REPLAY = Check("{option} {value}: expected a share of the rows, from 0 to below 1, e.g. 0.25.")
SEED = Check("{option} {value!r}: expected a whole number from 0 to below 2**32, as numpy's.")
ABOVE_0 = Check("{option} {value}: expected a number above 0, e.g. 2.")
RATE = Check("{option} {value}: expected a number above 0, e.g. 2e-4.")
FROM_0 = Check("{option} {value}: expected a number of at least 0.")
SPARSITY = Check(
    "{option} {value}: the share of the targeted weights that train; expected more than 0 (which selects nothing) and "
    "at most 1, e.g. 0.01."
)


@checked
class TuneSettings(MeasureOptions, MarginOption, AskOptions, ModelOptions, HeadOption, OutputOptions):
    """Fine-tune a model, and see what it cost.

    Attributes:
        base: Hub id, folder, GGUF file or package; or a model in memory (Python).
        data: File (.jsonl, .json, .csv, .tsv, .parquet) or data set with `messages`, `prompt`/`completion`, `text` or
            classification rows; or rows (Python).
        out: Folder for the tuned model or increment, the record and the page.
        method: "sift", "lora", "full", "l2-sp", "sam" or "wise-ft".
        sparsity: SIFT: share of the targeted weights that train.
        method_args: Further settings of the method, as key=value: rule=random, scope=global, r=16 ...
        learning_rate: Default: 1e-3 (sift), 2e-4 (lora), 2e-5 (others).
        epochs: Passes over the data.
        max_steps: Optimizer steps, instead of epochs.
        batch_size: Rows per step and device.
        accumulation: Batches per optimizer step.
        max_length: Tokens per row; longer rows are cut.
        packing: Several rows in one sequence, which do not see each other.
        training_args: Fields of transformers.TrainingArguments, as key=value: bf16=true, report_to=wandb, fsdp=...
        held_out: Rows (or share of them) that are not trained on, for the gain.
        protect: Tasks that the tune may not lose: a fence looks at them while it runs, and pulls the move back.
        max_drop: Largest tolerated drop of a protected task.
        replay: With --protect: share of rows, on top of the data, on which the tuned model's next-token distributions
            are held to the base's: its own texts, and its answers to set-aside items of the protected tasks; 0: none.
        replay_weight: What a nat of their divergence counts against a nat of the data's loss.
        pull: Strength of a decay towards the base (L2-SP).
        fence_steps: Optimizer steps between two looks of the fence. Default: an eighth of the training.
        no_plain: With --protect, do not tune without protection beside it.
        eval_steps: Also measure tasks every so many steps, on a fixed subset, before and during training.
        eval_limit: Items per task of those evaluations.
        on_drop: What a shown loss in them does: "warn" or "stop".
        save_steps: Optimizer steps between checkpoints. Default: a fifth of the training.
        tasks: What is compared at the end: built-in tasks, "default", "stories", files, or lm-eval:NAME; "none".
        limit: Items per task at the end, a seeded random subset.
        chat_template: "auto", "none", or a Jinja file; for data and tasks.
        system: System prompt of every task, of rows that have none of their own, and of what the base writes.
        seed: Data order, selection, items.
        batch_tokens: Padded tokens per forward pass of an evaluation.
        head: "causal-lm", "sequence-classification" or "auto": as the data.
        store: Folder of measured rows, shared with comparisons. Default: in the cache folder.
        dry_run: Print what would be trained, and its cost, and stop.
    """

    shown: ClassVar[str] = "the tables"

    base: Object = field(kw_only=False)
    data: Object = field(default="", kw_only=False)
    method: str = "sift"
    sparsity: Annotated[Real, Field(gt=0, le=1), SPARSITY] | None = None
    method_args: Texts = ()
    learning_rate: Annotated[Real, Field(gt=0), RATE] | None = None
    epochs: Annotated[Real, Field(gt=0), ABOVE_0] = 1.0
    max_steps: Count | None = None
    batch_size: Count = 8
    accumulation: Count = 1
    max_length: Annotated[Integer, Field(ge=2), WHOLE] = 1024
    packing: bool = False
    training_args: Texts = ()
    held_out: Annotated[Real, HELD_OUT] = 0.1
    protect: Names = ()
    max_drop: Share = 0.02
    replay: Annotated[Real, Field(ge=0, lt=1), REPLAY] = 0.25
    replay_weight: Annotated[Real, Field(gt=0), ABOVE_0] = 2.0
    pull: Annotated[Real, Field(ge=0), FROM_0] = 0.0
    fence_steps: Count | None = None
    no_plain: bool = False
    eval_steps: Count | None = None
    eval_limit: Count = 100
    on_drop: Annotated[str, one_of("warn", "stop")] = "warn"
    save_steps: Count | None = None
    limit: Count | None = 200
    seed: Annotated[Integer, Field(ge=0, lt=2**32), SEED] = 0

    def __post_init__(self) -> None:
        if isinstance(self.data, str) and not self.data:
            raise InputError("--data is missing: expected a file such as data.jsonl, or a data set's name.")
