"""One training of a tune: the method on the base, watched, fenced, saved, and the base given back bit for bit."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from catchment.capabilities import evaluate
from catchment.errors import InputError, NonFiniteError, StoreError
from catchment.landscape import Batch, Subspace
from catchment.methods import L2SP, SIFT, Full, LoRA, Method, MethodTrainer, PunctualTrainer, Tuning, whole_checkpoint
from catchment.models import non_finite
from catchment.records import Companion, FenceLook, Interval, PilotSteps, Row, TuneRun, from_json, to_json
from catchment.runs import make_folder, write_atomic
from catchment.statistics import ladder, paired_interval, unbounded_paired_interval
from catchment.training import (
    CapabilityCallback,
    Collator,
    Fence,
    completion_losses,
    encode_rows,
    first_direction,
    mix,
    pack,
    pilot_room,
    read_rows,
    self_generated,
)
from catchment.workflows import distributed
from catchment.workflows.tune_job import TuneJob, load_base, own_task, parse_pairs

WARM_UP = 0.03
RUNGS = 8
"""Scales at which the room before training is measured."""
REPLAY_TOKENS, REPLAY_ROWS, REPLAY_BATCH = 96, 128, 64
OURS = {
    "output_dir": "--out", "per_device_train_batch_size": "--batch-size", "num_train_epochs": "--epochs",
    "gradient_accumulation_steps": "--accumulation", "max_steps": "--max-steps", "learning_rate": "--learning-rate",
    "seed": "--seed", "data_seed": "--seed", "save_steps": "--save-steps", "eval_strategy": "--eval-steps",
    "eval_steps": "--eval-steps", "push_to_hub": "hf upload afterwards",
    "remove_unused_columns": "nothing: rows are tokenised here",
}  # fmt: skip
"""Training arguments that are settings of the tune, and so of its record."""
SHARDED = ("full", "lora")
"""Methods that accelerate may cut over processes: their weights are ordinary parameters of the model."""


def train(job: TuneJob, name: str, *, fenced: bool) -> TuneRun:
    """Train once, or take up what an earlier run of the same command left; the model is the base again afterwards:
    bit for bit the same one, or, where accelerate has cut it over processes, loaded anew."""
    folder = job.out / name
    done = folder / "run.json"
    kept = finished(done)
    if kept is not None:
        return kept
    model, training = job.loaded.model, job.loaded.model.training
    began = time.monotonic()
    with kept_warnings() as said:
        examples = _with_replay(job) if fenced and job.settings.replay else job.examples
        before = held_out(job, job.loaded.model)
        method = protected_method(job) if fenced else job.method
        args = training_arguments(job, name, len(examples))
        tuning = method.attach(job.loaded.model, seed=job.settings.seed)
        try:
            run = _trained(job, name, folder, tuning, args, examples, fenced, before)
        finally:
            if sharding(args):
                job.loaded = load_base(job.settings, job.train, job.loaded.tokenizer)
            else:
                tuning.remove()
                model.train(training)
    run = dataclasses.replace(run, seconds=round(time.monotonic() - began, 1), warnings=tuple(said))
    if distributed.first():
        write_atomic(done, to_json(run))
    return run


def finished(path: Path) -> TuneRun | None:
    """The record of a training that has ended and whose artefact is still there.

    Raises:
        StoreError: The record is damaged.
    """
    if not path.is_file():
        return None
    try:
        run = from_json(TuneRun, path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path} is damaged; delete it, and the training goes on from its last checkpoint.") from error
    folder = path.parent  # where it stands now, if it has been moved
    return dataclasses.replace(run, path=str(folder)) if any(folder.glob("*.safetensors")) else None


def _trained(
    job: TuneJob, name: str, folder: Path, tuning: Tuning, args: TrainingArguments, examples: list[Any], fenced: bool,
    before: HeldOut,
) -> TuneRun:  # fmt: skip
    s = job.settings
    if fenced and s.pull and isinstance(job.method, SIFT):
        args.weight_decay = s.pull
    fence = _fence(job, name, tuning, args) if fenced else None
    told = _Told(job, name)
    watch = _watch(job, name)
    callbacks: list[TrainerCallback] = [told, *([watch] if watch else []), *([fence] if fence else [])]
    trainer = make_trainer(job, tuning, args, examples, callbacks)
    trainer.remove_callback(PrinterCallback)  # prints every log entry; they are in the checkpoints' trainer_state.json
    try:
        trainer.train(resume_from_checkpoint=_resume(str(args.output_dir)))
    except NonFiniteError as error:
        kept = ""
        if trainer.state.global_step and distributed.first() and not non_finite(tuning.model):
            kept = f" The last good state is in {str(_artefact(job, folder / 'last-good', tuning, trainer))!r}."
        raise NonFiniteError(f"{error}{kept}") from error
    broken = non_finite(tuning.model)
    if broken:
        raise NonFiniteError(
            f"after step {trainer.state.global_step} weight {broken[0]!r} and {len(broken) - 1} others are not finite; "
            f"use a learning rate far below {job.rate:g}. Nothing was saved."
        )
    after = held_out(job, tuning.model)
    path = _save(job, folder, tuning, trainer)
    trainable = sum(p.numel() for p in tuning.parameters())
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tenth = max(1, len(history) // 10)
    return TuneRun(
        name=name,
        path=str(path),
        trainable=trainable,
        share=trainable / max(job.loaded.card.parameters, 1),
        steps=trainer.state.global_step,
        tokens=told.tokens,
        seconds=0.0,
        bytes=_bytes(path) if distributed.first() else 0,
        loss=(_mean(history[:tenth]), _mean(history[-tenth:])) if history else None,
        logged=len(history),
        held_out=_companion(job, before, after),
        accuracy=_accuracy(job, before, after),
        looks=tuple(FenceLook(**dataclasses.asdict(look)) for look in fence.history) if fence else (),
        stopped=(fence.stopped if fence else None) or (watch.stopped if watch else None),
    )


def _bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*.safetensors")) if path.is_dir() else path.stat().st_size


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


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def training_arguments(job: TuneJob, name: str, rows: int) -> TrainingArguments:
    """transformers' arguments: ours, and over them those of ``--training-args``.

    Raises:
        InputError: An unknown argument, or one that transformers refuses.
    """
    s = job.settings
    per_step = s.batch_size * s.accumulation * distributed.processes()
    # Replayed rows come on top: the tune's own data is seen as often with them as without.
    most = s.max_steps and math.ceil(s.max_steps * rows / len(job.examples))
    steps = most or max(1, round(s.epochs * -(-rows // per_step)))
    values: dict[str, Any] = {
        "output_dir": str(job.out / "checkpoints" / name),
        "per_device_train_batch_size": s.batch_size,
        "gradient_accumulation_steps": s.accumulation,
        "num_train_epochs": s.epochs,
        "max_steps": most or -1,
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
    if sharding(args) and job.method.name not in SHARDED:
        raise InputError(
            f"--training-args fsdp or deepspeed with {job.method.name}: only {' and '.join(SHARDED)} can be cut by "
            "accelerate. Use torchrun without it (DDP), or fully_shard and Sift in a loop of your own."
        )
    if sharding(args) and not isinstance(s.base, (str, Path)):
        raise InputError(
            "--training-args fsdp or deepspeed: a model in memory cannot be given back once accelerate has cut it; "
            "expected the base by its name or folder."
        )
    return args


def sharding(args: Any) -> bool:
    """Whether accelerate is asked to cut the weights over processes."""
    return bool(getattr(args, "fsdp", None) or getattr(args, "deepspeed", None))


def make_trainer(
    job: TuneJob, tuning: Tuning, args: TrainingArguments, examples: list[Any], callbacks: list[TrainerCallback]
) -> Any:
    """The method's trainer, or the plain one where accelerate is to cut the weights over processes."""
    tokenizer = job.loaded.tokenizer
    shared: dict[str, Any] = {
        "train_dataset": examples,
        "data_collator": Collator(tokenizer),
        "processing_class": tokenizer,
        "callbacks": callbacks,
    }
    if not sharding(args):
        return MethodTrainer(tuning, args, **shared)
    trainer = PunctualTrainer(model=tuning.model, args=args, **shared)
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        where = f"{distributed.processes()} process(es) on {args.device.type}"
        warnings.warn(f"accelerate does not cut weights over {where}: each holds the whole model", stacklevel=2)
    return trainer


def protected_method(job: TuneJob) -> Method:
    """The method, with a decay towards the base where ``--pull`` asks for one.

    Raises:
        InputError: A method without one.
    """
    strength = job.settings.pull
    if not strength:
        return job.method
    if isinstance(job.method, SIFT):
        return dataclasses.replace(job.method, decay="base")
    if isinstance(job.method, Full):
        shared = dataclasses.asdict(job.method)
        return L2SP(strength=strength, **{k: v for k, v in shared.items() if k not in ("keep_base", "strength")})
    raise InputError(f"--pull {strength:g}: only sift and full can be pulled towards the base; not {job.method.name}.")


def _resume(output_dir: str) -> str | None:
    """The last checkpoint that was written to its end; ``None``, with a warning where one was cut short: start anew."""
    found = whole_checkpoint(output_dir)
    return None if found is None else str(found)


def _save(job: TuneJob, folder: Path, tuning: Tuning, trainer: Any) -> Path:
    """The artefact, on the first process; a model that is cut over processes is saved by all."""
    if not isinstance(trainer, MethodTrainer):
        trainer.save_model(str(folder))
        return folder
    return _artefact(job, folder, tuning, trainer) if distributed.first() else folder


def _artefact(job: TuneJob, folder: Path, tuning: Tuning, trainer: Any) -> Path:
    """What was trained, and with it what it was made from and how; a whole model with its tokenizer."""
    recipe = {
        "base": job.loaded.card.name,
        "method": job.method.name,
        "data": job.train.name,
        "data_fingerprint": job.train.fingerprint,
        "seed": job.settings.seed,
        "steps": trainer.state.global_step,
        "learning_rate": job.rate,
    }
    make_folder(folder)
    path = Path(tuning.save_pretrained(folder, base_hash=job.loaded.card.weights_hash, recipe=recipe))
    if (path / "config.json").is_file():
        job.loaded.tokenizer.save_pretrained(str(path))
    return path


@dataclass(frozen=True)
class HeldOut:
    """Rows that were not trained on: loss per trained token of each, and for a classifier its answers."""

    losses: list[float]
    rows: dict[str, Row]


def held_out(job: TuneJob, model: Any) -> HeldOut:
    """Measure the held-out rows on the model as it stands."""
    if job.held_encoded is None:
        return HeldOut([], {})
    job.progress.status("held-out rows")
    if not job.classifies:
        return HeldOut(completion_losses(model, job.held_encoded), {})
    task = own_task(job)
    if task is None:
        return HeldOut([], {})
    scores = evaluate(model, task, tokenizer=job.loaded.tokenizer)
    return HeldOut([], {row.item: row for row in scores.rows})


def _companion(job: TuneJob, before: HeldOut, after: HeldOut) -> Companion | None:
    if len(before.losses) < 2:
        return None
    found: Interval = unbounded_paired_interval(before.losses, after.losses, 1 - job.settings.alpha)
    return Companion("nats per token on held-out rows", _mean(before.losses), _mean(after.losses), found)


def _accuracy(job: TuneJob, before: HeldOut, after: HeldOut) -> Companion | None:
    """Of a classifier, whose base has a new head and is at chance: before and after, on the same rows."""
    shared = [item for item in before.rows if item in after.rows]
    if len(shared) < 2:
        return None
    one, two = ([rows[item].score for item in shared] for rows in (before.rows, after.rows))
    found = paired_interval(one, two, level=1 - job.settings.alpha)
    return Companion("accuracy on held-out rows", _mean(one), _mean(two), found)


# ---- protection -----------------------------------------------------------------------------------------------------


def _fence(job: TuneJob, name: str, tuning: Tuning, args: TrainingArguments) -> Fence | None:
    if not job.protected:
        return None
    s = job.settings
    return Fence(
        [item.guard for item in job.protected], max_drop=s.max_drop, move=tuning,
        eval_steps=s.fence_steps or max(1, _total_steps(job, args) // 8), tokenizer=job.loaded.tokenizer,
        chat_template=s.chat_template, alpha=s.alpha, seed=s.seed, output_dir=job.out / "fence" / name,
        batch_tokens=job.batch_tokens,
    )  # fmt: skip


def _total_steps(job: TuneJob, args: TrainingArguments) -> int:
    if args.max_steps > 0:
        return args.max_steps
    replay = job.settings.replay if job.protected else 0.0
    return max(1, round(args.num_train_epochs * job.steps_per_epoch(replay)))


def _watch(job: TuneJob, name: str) -> CapabilityCallback | None:
    s = job.settings
    if s.eval_steps is None or not job.tasks:
        return None
    return CapabilityCallback(
        job.tasks, eval_steps=s.eval_steps, limit=s.eval_limit, seed=s.seed, margin=s.margin, alpha=s.alpha,
        tokenizer=job.loaded.tokenizer, on_drop=s.on_drop, table=False, output_dir=job.out / "watch" / name,  # type: ignore[arg-type]
        batch_tokens=job.batch_tokens, chat_template=s.chat_template,
    )  # fmt: skip


def _with_replay(job: TuneJob) -> list[Any]:
    """The training examples and, among them, text that the base writes itself; written once, to OUT/replay.jsonl."""
    s = job.settings
    path = job.out / "replay.jsonl"
    wanted = max(8, round(len(job.encoded.examples) * s.replay / (1 - s.replay)))
    if path.is_file():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    else:
        job.progress.status("the base writes text to be replayed")
        rows = self_generated(
            job.loaded.model, job.loaded.tokenizer, min(wanted, REPLAY_ROWS), seed=s.seed,
            chat_template=s.chat_template, max_new_tokens=min(REPLAY_TOKENS, job.max_length // 2),
            batch_size=REPLAY_BATCH,
        )  # fmt: skip
        if distributed.first():
            write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    cut = [bool(row.pop("cut", False)) for row in rows]
    encoded = encode_rows(
        read_rows(rows), job.loaded.tokenizer, max_length=job.max_length, chat_template=s.chat_template
    )
    ends = set(job.loaded.tokenizer.all_special_ids) | set(job.loaded.tokenizer.added_tokens_decoder)
    replay = [_without_end(e, ends) if was else e for e, was in zip(encoded.examples, cut, strict=True)]
    if s.packing:
        replay = pack(replay, job.max_length, model=job.loaded.model)
    return mix(job.examples, replay, s.replay, s.seed)


def _without_end(example: dict[str, Any], ends: set[int]) -> dict[str, Any]:
    """A text that was cut did not end where it ends: what the template or the encoding put behind it is not learned."""
    labels = list(example["labels"])
    at = len(labels)
    while at > 1 and (example["input_ids"][at - 1] in ends or labels[at - 1] == -100):
        at -= 1
    return {**example, "labels": labels[:at] + [-100] * (len(labels) - at)}


def measure_rooms(job: TuneJob) -> tuple[PilotSteps, ...]:
    """How far the protected tasks let the weights go along the first gradient, before anything is trained: in the
    entries that SIFT would choose, or in the weights that a dense method trains. An adapter's first steps are no
    direction of the weights, so for LoRA there are none."""
    if not job.protected or isinstance(job.method, LoRA):
        return ()
    path = job.out / "rooms.json"
    if path.is_file():
        return tuple(PilotSteps(**entry) for entry in json.loads(path.read_text(encoding="utf-8")))
    job.progress.status("the room before training")
    model = job.loaded.model
    batches = _first_batches(job)
    tuning = job.method.attach(model, seed=job.settings.seed)
    support: dict[str, Any] | None = None
    try:
        if hasattr(tuning, "support"):
            for _ in range(job.method.selection_batches):  # type: ignore[attr-defined]
                _loss(model, batches[0]).backward()
            support = tuning.support()
        elif getattr(job.method, "target_modules", None):
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            support = {name: torch.arange(p.numel(), device=p.device) for name, p in trained.items()}
    finally:
        tuning.remove()
    way = first_direction(model, batches, support)
    found = pilot_room(
        model, job.loaded.tokenizer, [item.pilot for item in job.protected], way, max_drop=job.settings.max_drop,
        seed=job.settings.seed, chat_template=job.settings.chat_template, batch_tokens=job.batch_tokens,
        files=job.loaded.files, scales=_scales(job), directions=1,
    )  # fmt: skip
    rooms = tuple(
        PilotSteps(
            task=name, items=room.items, scale=room.way.estimate, steps=room.steps(job.rate)[0],
            random_scale=None if room.random is None else room.random.estimate, reach=room.way.reach,
            warning=room.warning(job.rate, job.steps),
        )
        for name, room in found.items()
    )  # fmt: skip
    if distributed.first():
        write_atomic(path, json.dumps([dataclasses.asdict(room) for room in rooms]))
    return rooms


def _scales(job: TuneJob) -> tuple[float, ...]:
    """From one step of the learning rate to as many as the tune has, and no further than random moves are tolerated."""
    most = min(job.rate * job.steps, 2 * Subspace.all(job.loaded.model).card(job.loaded.model).rms)
    return ladder(job.rate, max(most, 2 * job.rate), RUNGS)


def _loss(model: Any, batch: Batch) -> Any:
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss


def _first_batches(job: TuneJob, count: int = 2) -> list[Batch]:
    collate, size = Collator(job.loaded.tokenizer), job.settings.batch_size
    device = next(job.loaded.model.parameters()).device
    batches = []
    for at in range(0, min(count * size, len(job.encoded.examples)), size):
        part = {k: v.to(device) for k, v in collate(job.encoded.examples[at : at + size]).items()}
        labels = part["labels"]
        rows = tuple(f"row {at + i}" for i in range(len(labels)))
        batches.append(Batch(part["input_ids"], part["attention_mask"], labels, int((labels != -100).sum()), rows))
    return batches


class _Told(TrainerCallback):
    """Tells the progress of each step, and counts tokens."""

    def __init__(self, job: TuneJob, name: str) -> None:
        self.job, self.name, self.tokens = job, name, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.job.progress.total(state.max_steps - state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = next((e["loss"] for e in reversed(state.log_history) if "loss" in e), None)
        said = f" · loss {loss:.3f}" if loss is not None else ""
        self.job.progress.status(f"{self.name} · step {state.global_step} of {state.max_steps}{said}")
        self.job.progress.advance(1)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tokens = int(state.num_input_tokens_seen)
