"""A tune that may begin: its data, base, method and items, and the numbers that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catchment import models
from catchment.capabilities import Prepared, PromptOptions, Task, context_length, prepare
from catchment.commands.tune.settings import TuneSettings
from catchment.measuring import CPU_BATCH, Progress
from catchment.methods import Method, steps_of
from catchment.runs import processes
from catchment.training import Encoded, Rows

RATES = {"sift": 1e-3, "lora": 2e-4}
RATE = 2e-5


@dataclass(frozen=True)
class Protected:
    """A task to be kept, and its items by what they serve; the judged ones are seen at the end only.

    Attributes:
        pilot: For the room before training.
        replayed: Items whose answers the base is replayed on, the pilot's among them.
        guard: For the fence.
        judged: For the comparison at the end.
    """

    pilot: Task
    replayed: Task
    guard: Task
    judged: Task


@dataclass(frozen=True)
class Opened:
    """A tune that may begin: everything was read and checked.

    Attributes:
        asked: How the model is asked, by everything in it.
        tokenizer: That of the caller, where it is not the base's own.
        train, held: Rows to train on, and those that are held out.
        encoded, examples: The rows to train on in tokens; with packing the examples are blocks of them.
        held_encoded: Some of the held-out rows in tokens.
        own: The held-out rows as a task, where they have short answers.
        warnings: What a reader of the record must know of all this.
    """

    settings: TuneSettings
    asked: PromptOptions
    tokenizer: Any
    method: Method
    loaded: models.LoadedModel
    train: Rows
    held: Rows
    encoded: Encoded
    examples: list[dict[str, Any]]
    held_encoded: Encoded | None
    own: Task | None
    protected: tuple[Protected, ...]
    tasks: tuple[Task, ...]
    progress: Progress
    warnings: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        return self.settings.out or Path(".")

    @property
    def rate(self) -> float:
        return self.settings.learning_rate or RATES.get(self.method.name, RATE)

    @property
    def max_length(self) -> int:
        """Tokens per row: what was asked for, as far as the model's context goes."""
        return min(self.settings.max_length, context_length(self.loaded.model) or self.settings.max_length)

    @property
    def steps(self) -> int:
        """Optimizer steps of one training."""
        s = self.settings
        rows = s.batch_size * processes.count()
        return s.max_steps or steps_of(len(self.examples), rows, s.accumulation, s.epochs)

    @property
    def tokens_per_row(self) -> float:
        """Mean over what is trained on: rows, or with packing full blocks of them."""
        return self.encoded.tokens / max(len(self.examples), 1)

    @property
    def rows_per_step(self) -> int:
        return self.settings.batch_size * self.settings.accumulation * processes.count()

    @property
    def tokens(self) -> float:
        """About as many are trained on by one training, replay left out."""
        return self.tokens_per_row * self.rows_per_step * self.steps

    @property
    def batch_tokens(self) -> int | None:
        """Padded tokens per forward pass of an evaluation; fixed on a CPU, so that equal runs have equal batches."""
        return self.settings.batch_tokens or (CPU_BATCH if self.loaded.card.device.startswith("cpu") else None)

    @property
    def classifies(self) -> bool:
        return self.train.kind == "classification"

    @property
    def margin(self) -> float:
        """The drop that still counts as kept: what the protection was asked for, or the margin."""
        return self.settings.max_drop if self.protected else self.settings.margin

    def prepared(self, task: Task) -> Prepared:
        """The task's items as the base is asked with them, before, during and after the training."""
        context = context_length(self.loaded.model)
        return prepare(self.loaded.tokenizer, task, prompt_options=self.asked, context=context)
