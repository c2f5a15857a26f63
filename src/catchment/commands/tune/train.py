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
from catchment.commands.tune.opened import Opened
from catchment.commands.tune.opening import load_base
from catchment.commands.tune.replay import make_replay
from catchment.commands.tune.setup import fit_options, kept_warnings, protected_method, training_arguments
from catchment.commands.tune.watching import fence_of, watch_of
from catchment.errors import StoreError
from catchment.measuring import Progress
from catchment.methods import SIFT, Fitted, Tuning, fit, sharding
from catchment.records import Companion, Interval, Row, TuneRun, Watched, from_json, to_json
from catchment.runs import processes, write_atomic
from catchment.statistics import paired_interval, unbounded_paired_interval
from catchment.training import CapabilityCallback, Fence, Replay, completion_losses


@dataclass(frozen=True)
class Trained:
    """One training that has ended, and the tune with its base for the next: the same, or, where accelerate has cut it
    over processes, loaded anew."""

    run: TuneRun
    opened: Opened


def train(opened: Opened, name: str, *, fenced: bool) -> Trained:
    """Train once, or take up what an earlier run of the same command left; the model is the base again afterwards, bit
    for bit."""
    done = opened.out / name / "run.json"
    earlier = finished(done)
    if earlier is not None:
        return Trained(earlier, opened)
    began = time.monotonic()
    with kept_warnings() as said:
        replay = make_replay(opened) if fenced and opened.settings.replay else None
        before = held_out(opened, opened.loaded.model)
        trained = _trained(opened, name, replay, before, began, fenced=fenced)
    seconds = round(trained.run.seconds + time.monotonic() - began, 1)
    run = dataclasses.replace(trained.run, seconds=seconds, warnings=tuple(said))
    if processes.is_main():
        write_atomic(done, to_json(run))
    return dataclasses.replace(trained, run=run)


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
    opened: Opened, name: str, replay: Replay | None, before: HeldOut, began: float, *, fenced: bool
) -> Trained:
    """Train, measure the held-out rows again, and save; ``seconds`` are those of earlier runs alone."""
    s = opened.settings
    method = protected_method(opened) if fenced else opened.method
    options = fit_options(opened, name, decay=s.pull if fenced and isinstance(method, SIFT) else 0.0)
    fences: list[Fence] = []
    watch = watch_of(opened, name)

    def callbacks(tuning: Tuning) -> list[TrainerCallback]:
        fence = fence_of(opened, name, tuning) if fenced else None
        fences.extend([fence] if fence else [])
        return [_Told(opened.progress, name), *fences, *([watch] if watch else [])]

    base, cut = opened.loaded, sharding(training_arguments(opened, name))
    with fit(base, opened.examples, method, options, callbacks=callbacks, replay=replay, since=began) as fitted:
        after = held_out(opened, fitted.model)
        run = _run_of(fitted, name, _save(fitted))
    run = dataclasses.replace(
        run,
        held_out=_companion(before, after, s.alpha),
        accuracy=_accuracy(before, after, s.alpha),
        looks=tuple(look for fence in fences for look in fence.history),
        stopped=next((by.stopped for by in (*fences, watch) if by is not None and by.stopped), None),
        watched=tuple(_watched(watch)) if watch else (),
    )
    again = load_base(s, opened.train, opened.loaded.tokenizer) if cut else base
    return Trained(run, dataclasses.replace(opened, loaded=again))


def _run_of(fitted: Fitted, name: str, path: Path) -> TuneRun:
    """What the training itself says; ``path``: where it was saved."""
    losses = fitted.losses
    tenth = max(1, len(losses) // 10)
    return TuneRun(
        name=name,
        path=str(path),
        trainable=fitted.trainable,
        share=fitted.trainable / max(fitted.base.card.parameters, 1),
        steps=fitted.steps,
        tokens=fitted.tokens,
        seconds=fitted.earlier,
        bytes=_bytes(path) if processes.is_main() else 0,
        loss=(_mean(losses[:tenth]), _mean(losses[-tenth:])) if losses else None,
        logged=len(losses),
        held_out=None,
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


def _save(fitted: Fitted) -> Path:
    return fitted.save()


@dataclass(frozen=True)
class HeldOut:
    """Rows that were not trained on: loss per trained token of each, and for a classifier its answers."""

    losses: list[float]
    rows: dict[str, Row]


def held_out(opened: Opened, model: Any) -> HeldOut:
    """Measure the held-out rows on the model as it stands."""
    if opened.held_encoded is None:
        return HeldOut([], {})
    opened.progress.status("held-out rows")
    if not opened.classifies:
        return HeldOut(completion_losses(model, opened.held_encoded), {})
    if opened.own is None:
        return HeldOut([], {})
    scores = evaluate(model, opened.own, tokenizer=opened.loaded.tokenizer)
    return HeldOut([], {row.item: row for row in scores.rows})


def _companion(before: HeldOut, after: HeldOut, alpha: float) -> Companion | None:
    if len(before.losses) < 2:
        return None
    change: Interval = unbounded_paired_interval(before.losses, after.losses, 1 - alpha)
    return Companion("nats per token on held-out rows", _mean(before.losses), _mean(after.losses), change)


def _accuracy(before: HeldOut, after: HeldOut, alpha: float) -> Companion | None:
    """Of a classifier, whose base has a new head and is at chance: before and after, on the same rows."""
    shared = [item for item in before.rows if item in after.rows]
    if len(shared) < 2:
        return None
    one, two = ([rows[item].score for item in shared] for rows in (before.rows, after.rows))
    change = paired_interval(one, two, level=1 - alpha)
    return Companion("accuracy on held-out rows", _mean(one), _mean(two), change)


class _Told(TrainerCallback):
    """Tells the progress of each step."""

    def __init__(self, progress: Progress, name: str) -> None:
        self.progress, self.name = progress, name

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.total(state.max_steps - state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = next((e["loss"] for e in reversed(state.log_history) if "loss" in e), None)
        said = f" · loss {loss:.3f}" if loss is not None else ""
        self.progress.status(f"{self.name} · step {state.global_step} of {state.max_steps}{said}")
        self.progress.advance(1)
