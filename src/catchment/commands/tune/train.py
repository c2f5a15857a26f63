"""One training of a tune: the method on the base, watched, fenced, saved, and the base given back bit for bit."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from catchment.capabilities import evaluate
from catchment.commands.tune.job import TuneJob, load_base, own_task
from catchment.commands.tune.protect import fence_of, make_replay, watch_of
from catchment.commands.tune.setup import kept_warnings, make_trainer, protected_method, sharding, training_arguments
from catchment.errors import NonFiniteError, StoreError
from catchment.methods import SIFT, MethodTrainer, Tuning, whole_checkpoint
from catchment.models import non_finite
from catchment.records import Companion, Interval, Row, TuneRun, Watched, from_json, to_json
from catchment.runs import make_folder, read_json, write_atomic
from catchment.statistics import paired_interval, unbounded_paired_interval
from catchment.training import CapabilityCallback, Replay, completion_losses
from catchment.workflows import distributed


def train(job: TuneJob, name: str, *, fenced: bool) -> TuneRun:
    """Train once, or take up what an earlier run of the same command left; the model is the base again afterwards:
    bit for bit the same one, or, where accelerate has cut it over processes, loaded anew."""
    folder = job.out / name
    done = folder / "run.json"
    kept = finished(done)
    if kept is not None:
        return kept
    modes = [(module, module.training) for module in job.loaded.model.modules()]
    began = time.monotonic()
    with kept_warnings() as said:
        replay = make_replay(job) if fenced and job.settings.replay else None
        before = held_out(job, job.loaded.model)
        method = protected_method(job) if fenced else job.method
        args = training_arguments(job, name)
        tuning = method.attach(job.loaded.model, seed=job.settings.seed)
        try:
            run = _trained(job, name, folder, tuning, args, replay, fenced, before, began)
        finally:
            if sharding(args):
                job.loaded = load_base(job.settings, job.train, job.loaded.tokenizer)
            else:
                tuning.remove()
                for module, training in modes:
                    module.training = training
    seconds = round(run.seconds + time.monotonic() - began, 1)
    run = dataclasses.replace(run, seconds=seconds, warnings=tuple(said))
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
    job: TuneJob, name: str, folder: Path, tuning: Tuning, args: TrainingArguments, replay: Replay | None,
    fenced: bool, before: HeldOut, began: float,
) -> TuneRun:  # fmt: skip
    s = job.settings
    if fenced and s.pull and isinstance(job.method, SIFT):
        args.weight_decay = s.pull
    fence = fence_of(job, name, tuning) if fenced else None
    told = _Told(job, name, began)
    watch = watch_of(job, name)
    callbacks: list[TrainerCallback] = [told, *([fence] if fence else []), *([watch] if watch else [])]
    trainer = make_trainer(job, tuning, args, callbacks, replay)
    if watch:
        watch.attach(trainer)
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
    history = [e["loss"] - e.get("replay_loss", 0.0) for e in trainer.state.log_history if "loss" in e]
    tenth = max(1, len(history) // 10)
    return TuneRun(
        name=name,
        path=str(path),
        trainable=trainable,
        share=trainable / max(job.loaded.card.parameters, 1),
        steps=trainer.state.global_step,
        tokens=told.tokens,
        seconds=told.earlier,
        bytes=_bytes(path) if distributed.first() else 0,
        loss=(_mean(history[:tenth]), _mean(history[-tenth:])) if history else None,
        logged=len(history),
        held_out=_companion(job, before, after),
        accuracy=_accuracy(job, before, after),
        looks=tuple(fence.history) if fence else (),
        stopped=(fence.stopped if fence else None) or (watch.stopped if watch else None),
        watched=tuple(_watched(watch)) if watch else (),
    )


def _watched(watch: CapabilityCallback) -> Iterator[Watched]:
    for evaluation in watch.history:
        for task, scores in evaluation.scores.items():
            decided = evaluation.decisions.get(task)
            said = (decided.interval, decided.verdict) if decided else (None, "")
            yield Watched(evaluation.step, task, len(scores.rows), scores.mean, *said)


def _bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*.safetensors")) if path.is_dir() else path.stat().st_size


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


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


def _seconds_file(args: Any, state: Any) -> Path:
    """In a checkpoint: what it took to get there."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "seconds.json"


class _Told(TrainerCallback):
    """Tells the progress of each step, and counts tokens and the seconds of runs before this one."""

    def __init__(self, job: TuneJob, name: str, began: float) -> None:
        self.job, self.name, self.began = job, name, began
        self.tokens, self.earlier = 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.job.progress.total(state.max_steps - state.global_step)
        path = _seconds_file(args, state)
        if path.is_file():
            self.earlier = float(read_json(path)["seconds"])

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        path = _seconds_file(args, state)
        if state.is_world_process_zero and path.parent.is_dir():
            write_atomic(path, json.dumps({"seconds": self.earlier + time.monotonic() - self.began}))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = next((e["loss"] for e in reversed(state.log_history) if "loss" in e), None)
        said = f" · loss {loss:.3f}" if loss is not None else ""
        self.job.progress.status(f"{self.name} · step {state.global_step} of {state.max_steps}{said}")
        self.job.progress.advance(1)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.tokens = int(state.num_input_tokens_seen)
