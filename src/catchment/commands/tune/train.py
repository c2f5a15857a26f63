"""One training of a tune: the method on the base, watched, fenced, saved, and the base given back bit for bit."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from catchment.capabilities import evaluate
from catchment.commands.tune.job import TuneJob, load_base, own_task
from catchment.commands.tune.protect import fence_of, make_replay, watch_of
from catchment.commands.tune.setup import fit_options, kept_warnings, protected_method, training_arguments
from catchment.errors import StoreError
from catchment.methods import SIFT, Fitted, Tuning, fit, sharding
from catchment.records import Companion, Interval, Row, TuneRun, Watched, from_json, to_json
from catchment.runs import processes, write_atomic
from catchment.statistics import paired_interval, unbounded_paired_interval
from catchment.training import CapabilityCallback, Fence, Replay, completion_losses


def train(job: TuneJob, name: str, *, fenced: bool) -> TuneRun:
    """Train once, or take up what an earlier run of the same command left; the model is the base again afterwards:
    bit for bit the same one, or, where accelerate has cut it over processes, loaded anew."""
    folder = job.out / name
    done = folder / "run.json"
    kept = finished(done)
    if kept is not None:
        return kept
    began = time.monotonic()
    with kept_warnings() as said:
        replay = make_replay(job) if fenced and job.settings.replay else None
        before = held_out(job, job.loaded.model)
        run = _trained(job, name, replay, before, began, fenced=fenced)
    run = dataclasses.replace(run, seconds=round(run.seconds + time.monotonic() - began, 1), warnings=tuple(said))
    if processes.is_main():
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


def _trained(job: TuneJob, name: str, replay: Replay | None, before: HeldOut, began: float, *, fenced: bool) -> TuneRun:
    """Train, measure the held-out rows again, and save; ``seconds`` are those of earlier runs alone."""
    s = job.settings
    method = protected_method(job) if fenced else job.method
    options = fit_options(job, name, decay=s.pull if fenced and isinstance(method, SIFT) else 0.0)
    fence: Fence | None = None
    watch = watch_of(job, name)

    def callbacks(tuning: Tuning) -> list[TrainerCallback]:
        nonlocal fence
        fence = fence_of(job, name, tuning) if fenced else None
        return [_Told(job, name), *([fence] if fence else []), *([watch] if watch else [])]

    cut = sharding(training_arguments(job, name))
    try:
        with fit(job.loaded, job.examples, method, options, callbacks=callbacks, replay=replay, since=began) as fitted:
            after = held_out(job, fitted.model)
            path = _save(fitted)
            losses = fitted.losses
            tenth = max(1, len(losses) // 10)
            return TuneRun(
                name=name,
                path=str(path),
                trainable=fitted.trainable,
                share=fitted.trainable / max(job.loaded.card.parameters, 1),
                steps=fitted.steps,
                tokens=fitted.tokens,
                seconds=fitted.earlier,
                bytes=_bytes(path) if processes.is_main() else 0,
                loss=(_mean(losses[:tenth]), _mean(losses[-tenth:])) if losses else None,
                logged=len(losses),
                held_out=_companion(job, before, after),
                accuracy=_accuracy(job, before, after),
                looks=tuple(fence.history) if fence else (),
                stopped=(fence.stopped if fence else None) or (watch.stopped if watch else None),
                watched=tuple(_watched(watch)) if watch else (),
            )
    finally:
        if cut:
            job.loaded = load_base(job.settings, job.train, job.loaded.tokenizer)


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


def _save(fitted: Fitted) -> Path:
    return fitted.save()


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


class _Told(TrainerCallback):
    """Tells the progress of each step."""

    def __init__(self, job: TuneJob, name: str) -> None:
        self.job, self.name = job, name

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.job.progress.total(state.max_steps - state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = next((e["loss"] for e in reversed(state.log_history) if "loss" in e), None)
        said = f" · loss {loss:.3f}" if loss is not None else ""
        self.job.progress.status(f"{self.name} · step {state.global_step} of {state.max_steps}{said}")
        self.job.progress.advance(1)
