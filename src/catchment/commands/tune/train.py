"""One training of a tune: the method on the base, watched, fenced, saved, and the base given back bit for bit."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from transformers import TrainerCallback

from catchment.commands.tune.held_out import HeldOut, accuracy_change, loss_change, mean, measure_held_out
from catchment.commands.tune.opened import Opened
from catchment.commands.tune.opening import load_base
from catchment.commands.tune.replay import make_replay
from catchment.commands.tune.setup import PROTECTED, fit_options, method_of, training_arguments
from catchment.commands.tune.warned import kept_warnings
from catchment.commands.tune.watching import watchers
from catchment.errors import StoreError
from catchment.methods import Fitted, fit, sharding
from catchment.records import TuneRun, Watched, from_json, to_json
from catchment.runs import processes, write_atomic
from catchment.training import CapabilityCallback, Fence

Callback = TypeVar("Callback", bound=TrainerCallback)


@dataclass(frozen=True)
class Trained:
    """One training that has ended, and the tune with its base for the next: the same, or, where accelerate has cut it
    over processes, loaded anew."""

    run: TuneRun
    opened: Opened


def train(opened: Opened, name: str) -> Trained:
    """Train once, or take up what an earlier run of the same command left; the model is the base again afterwards, bit
    for bit."""
    done = opened.out / name / "run.json"
    earlier = finished(done)
    if earlier is not None:
        return Trained(earlier, opened)
    began, base, again = time.monotonic(), opened.loaded, opened
    method, options, callbacks = method_of(opened, name), fit_options(opened, name), partial(watchers, opened, name)
    with kept_warnings() as texts:
        replay = make_replay(opened) if name == PROTECTED and opened.settings.replay else None
        before = measure_held_out(opened, base.model)
        cut = sharding(training_arguments(opened, name))
        with fit(base, opened.examples, method, options, callbacks=callbacks, replay=replay, since=began) as fitted:
            run = _run_of(opened, name, before, fitted)
        if cut:
            again = dataclasses.replace(opened, loaded=load_base(opened.settings, opened.train, base.tokenizer))
    seconds = round(run.seconds + time.monotonic() - began, 1)
    run = dataclasses.replace(run, seconds=seconds, warnings=tuple(texts))
    if processes.is_main():
        write_atomic(done, to_json(run))
    return Trained(run, again)


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


def _run_of(opened: Opened, name: str, before: HeldOut, fitted: Fitted) -> TuneRun:
    """Measure the held-out rows again, and save; ``seconds`` are those of earlier runs alone."""
    after = measure_held_out(opened, fitted.model)
    path, losses, alpha = fitted.save(), fitted.losses, opened.settings.alpha
    tenth = max(1, len(losses) // 10)
    fence, watch = _callback(fitted, Fence), _callback(fitted, CapabilityCallback)
    return TuneRun(
        name=name,
        path=str(path),
        trainable=fitted.trainable,
        share=fitted.trainable / max(fitted.base.card.parameters, 1),
        steps=fitted.steps,
        tokens=fitted.tokens,
        seconds=fitted.earlier,
        bytes=_bytes(path) if processes.is_main() else 0,
        loss=(mean(losses[:tenth]), mean(losses[-tenth:])) if losses else None,
        logged=len(losses),
        held_out=loss_change(before, after, alpha),
        accuracy=accuracy_change(before, after, alpha),
        looks=tuple(fence.history) if fence else (),
        stopped=(fence.stopped if fence else None) or (watch.stopped if watch else None),
        watched=tuple(_watched(watch)) if watch else (),
    )


def _callback(fitted: Fitted, kind: type[Callback]) -> Callback | None:
    callbacks = fitted.trainer.callback_handler.callbacks
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


def _watched(watch: CapabilityCallback) -> Iterator[Watched]:
    for evaluation in watch.history:
        for task, scores in evaluation.scores.items():
            decided = evaluation.decisions.get(task)
            verdict = (decided.interval, decided.verdict) if decided else (None, "")
            yield Watched(evaluation.step, task, len(scores.rows), scores.mean, *verdict)


def _bytes(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*.safetensors")) if path.is_dir() else path.stat().st_size
