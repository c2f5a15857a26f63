"""What a fine-tune loses while it loses it: capabilities measured inside ``transformers.Trainer``."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from catchment.capabilities import JUDGED_SCORERS, PromptOptions, Scores, Task, evaluate, sample
from catchment.errors import InputError
from catchment.records import Row
from catchment.runs import make_folder, processes, read_json, write_atomic
from catchment.statistics import Decision, decide


@dataclass(frozen=True)
class Evaluation:
    """One evaluation during training.

    Attributes:
        step: Optimiser steps taken before it.
        scores: Per task, item by item.
        decisions: Per task, against the first evaluation; empty for the first itself.
    """

    step: int
    scores: dict[str, Scores]
    decisions: dict[str, Decision] = field(default_factory=dict)


class CapabilityCallback(TrainerCallback):
    """Measure tasks on a fixed seeded subset: before training, every ``eval_steps`` optimiser steps, and at the end.

    Every later evaluation is compared with the first, item by item; the intervals hold for all tasks and all planned
    evaluations together, so that looking often does not raise alarms by itself. The trained weights are bit for bit
    those of a run without the callback: training mode, gradients and random states are left alone.

    Scores go to the trainer's log as ``capability/<task>``, and their drop since the first evaluation as
    ``capability/<task>_drop`` (positive: lost). ``attach(trainer)`` also sends them to the trainer's integrations
    (``report_to``); a callback alone has no access to those.

    Cost: one :func:`~catchment.capabilities.evaluate` of ``limit`` items per task and evaluation, on the main process.

    Args:
        tasks: What to measure; not ``agreement``, which needs two models in memory.
        eval_on_start: Evaluate before the first step. Without it, later evaluations are compared with the first one
            that takes place.
        eval_steps: Optimiser steps between evaluations; ``None``: only at the start and the end.
        limit: Items per task; ``None`` for all.
        seed: Chooses the subset.
        margin: Drop that does not matter, for the verdicts.
        max_drop: A drop beyond this is an alarm once the whole interval lies below ``-max_drop``. ``None``: the
            verdict "lost" is.
        tokenizer: For the prompts; by default the trainer's ``processing_class``.
        on_drop: ``"warn"`` or ``"stop"``: end the training at an alarm.
        output_dir: Folder for one JSON file of rows per evaluation. A resumed training reads its start from there, and
            whether it had been stopped: then it ends at once (a plain ``Trainer`` takes one step before it looks).
        alpha: Error over all tasks and evaluations.
        batch_tokens: Padded tokens per forward pass; measured once when ``None``.
        chat_template, system: How the model is asked; see :class:`~catchment.capabilities.PromptOptions`.
        prompt_options: The two in one object, instead of them.
        table: Print a table of the results at the end of the training.

    Attributes:
        history: All :class:`Evaluation` so far, in order.
        results: The last decision per task.
        stopped: Why the callback ended the training, or ``None``.

    Raises:
        InputError: a setting out of range, no tokenizer, or weights that are sharded over processes.
        StoreError: ``output_dir`` cannot be written.

    Example:
        >>> from catchment.capabilities import packs
        >>> watch = CapabilityCallback([packs.load("recall")], eval_steps=100, on_drop="stop")
        >>> trainer = Trainer(model, args, train_dataset=data, callbacks=[watch])  # doctest: +SKIP
        >>> watch.attach(trainer).train()  # doctest: +SKIP
        >>> watch.results["recall"].verdict  # doctest: +SKIP
        'kept'
    """

    def __init__(
        self,
        tasks: Task | Sequence[Task],
        *,
        eval_on_start: bool = True,
        eval_steps: int | None = None,
        limit: int | None = 200,
        seed: int = 0,
        margin: float = 0.02,
        max_drop: float | None = None,
        tokenizer: Any = None,
        on_drop: Literal["warn", "stop"] = "warn",
        output_dir: str | Path | None = None,
        alpha: float = 0.05,
        batch_tokens: int | None = None,
        chat_template: str = "auto",
        system: str | None = None,
        prompt_options: PromptOptions | None = None,
        table: bool = True,
    ) -> None:
        self.tasks = _checked_tasks(tasks)
        if eval_steps is not None and eval_steps < 1:
            raise InputError(f"eval_steps {eval_steps}: expected at least 1, or None for the start and the end only.")
        if on_drop not in ("warn", "stop"):
            raise InputError(f"on_drop {on_drop!r}: expected 'warn' or 'stop'.")
        if max_drop is not None and not 0 <= max_drop < 1:
            raise InputError(f"max_drop {max_drop}: expected a drop in [0, 1), e.g. 0.05 for 5 points.")
        for task in self.tasks:
            sample(task.items, limit, seed)  # refuses a limit out of range before any training
        self.eval_on_start, self.eval_steps = eval_on_start, eval_steps
        self.limit, self.seed, self.margin, self.alpha = limit, seed, margin, alpha
        self.max_drop, self.on_drop, self.table = max_drop, on_drop, table
        self.asked = PromptOptions.of(prompt_options, chat_template, system)
        self.tokenizer, self._tokenizer, self.batch_tokens = tokenizer, tokenizer, batch_tokens
        self.output_dir = Path(output_dir) if output_dir is not None else None
        self.history: list[Evaluation] = []
        self.stopped: str | None = None
        self._trainer: Any = None
        self._looks = 1

    @property
    def results(self) -> dict[str, Decision]:
        return self.history[-1].decisions if self.history else {}

    def attach(self, trainer: Any) -> Any:
        """Log through this trainer, and so to its integrations. Returns the trainer."""
        self._trainer = trainer
        return trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        _check_whole(args)
        self._tokenizer = self.tokenizer if self.tokenizer is not None else kwargs.get("processing_class")
        self.history, self.stopped = [], None
        later = math.ceil(state.max_steps / self.eval_steps) if self.eval_steps else 1
        self._looks = max(1, later)
        if state.global_step > 0:
            self._resume(state)
            control.should_training_stop |= self.stopped is not None
        elif state.is_world_process_zero:  # what an earlier training left is not the history of this one
            for path in self._files():
                path.unlink()
        if self.eval_on_start and not self.history:
            self._evaluate(args, state, control, kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.eval_steps and state.global_step % self.eval_steps == 0:
            self._evaluate(args, state, control, kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # With load_best_model_at_end these are other weights than those measured at the last step.
        if not self.history or self.history[-1].step != state.global_step or args.load_best_model_at_end:
            self._evaluate(args, state, control, kwargs)
        if self.table and state.is_world_process_zero:
            _print(self.history, self.limit, self.stopped)

    def _evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, given: dict[str, Any]
    ) -> None:
        alarm = None
        if state.is_world_process_zero:
            now = Evaluation(state.global_step, self._scores(given))
            if self.history:
                now = Evaluation(now.step, now.scores, self._decisions(self.history[0], now))
            self.history.append(now)
            alarm = self._alarm(now)
            self._write(now, alarm if self.on_drop == "stop" else None)
            self._log(state, now)
            if alarm is not None and self.on_drop == "warn":
                warnings.warn(alarm, stacklevel=2)
        else:
            self.history.append(Evaluation(state.global_step, {}))
        if self.on_drop == "stop" and processes.anywhere(alarm is not None):
            self.stopped = alarm or "a capability was lost (see the main process)"
            control.should_training_stop = True

    def _scores(self, given: dict[str, Any]) -> dict[str, Scores]:
        if self._tokenizer is None:
            raise InputError(
                "CapabilityCallback: no tokenizer; expected CapabilityCallback(..., tokenizer=...) or "
                "Trainer(..., processing_class=tokenizer)."
            )
        measured = {}
        for task in self.tasks:
            scores = evaluate(
                given["model"],
                task,
                tokenizer=self._tokenizer,
                prompt_options=self.asked,
                limit=self.limit,
                seed=self.seed,
                batch_tokens=self.batch_tokens,
            )
            self.batch_tokens = self.batch_tokens or scores.conditions.get("batch_tokens")
            measured[task.name] = scores
        return measured

    def _decisions(self, first: Evaluation, now: Evaluation) -> dict[str, Decision]:
        family = len(self.tasks) * self._looks
        decisions = {}
        for task in self.tasks:
            base, tuned = first.scores[task.name], now.scores[task.name]
            decisions[task.name] = decide(
                [row.score for row in base.rows],
                [row.score for row in tuned.rows],
                chance=base.chance,
                margin=self.margin,
                alpha=self.alpha,
                family=family,
                generated=task.scorer in JUDGED_SCORERS,
            )
        return decisions

    def _alarm(self, now: Evaluation) -> str | None:
        lines = []
        for name, decision in now.decisions.items():
            i = decision.interval
            lost = decision.verdict == "lost" if self.max_drop is None else i.high < -self.max_drop
            if lost:
                lines.append(f"{name} {i.estimate:+.3f} [{i.low:+.3f}, {i.high:+.3f}]")
        return f"lost by step {now.step}: {'; '.join(lines)}" if lines else None

    def _log(self, state: TrainerState, now: Evaluation) -> None:
        values: dict[str, float] = {}
        for name, scores in now.scores.items():
            values[f"capability/{name}"] = scores.mean
            if self.history[0] is not now:
                values[f"capability/{name}_drop"] = self.history[0].scores[name].mean - scores.mean
        if self._trainer is not None:
            self._trainer.log(values)
        else:
            epoch = {"epoch": state.epoch} if state.epoch is not None else {}
            state.log_history.append({**values, **epoch, "step": state.global_step})

    def _write(self, now: Evaluation, stopped: str | None) -> None:
        if self.output_dir is None:
            return
        content = {"step": now.step, "conditions": self._conditions(), "stopped": stopped, "scores": {}}
        content["scores"] = {name: asdict(scores) for name, scores in now.scores.items()}
        write_json(self.output_dir / f"capabilities-{now.step:08d}.json", content)

    def _files(self) -> list[Path]:
        return sorted(self.output_dir.glob("capabilities-*.json")) if self.output_dir is not None else []

    def _conditions(self) -> dict[str, Any]:
        tasks = {task.name: task.hash() for task in self.tasks}
        asked = self.asked.conditions(self._tokenizer)
        return {"tasks": tasks, "limit": self.limit, "seed": self.seed, **asked}

    def _resume(self, state: TrainerState) -> None:
        """Stand where the evaluations up to this step left the callback, on every process."""
        if state.is_world_process_zero:
            self._read(state)
        steps, self.stopped = processes.agreed(([e.step for e in self.history], self.stopped))
        if not state.is_world_process_zero:
            self.history = [Evaluation(step, {}) for step in steps]

    def _read(self, state: TrainerState) -> None:
        """Take the evaluations up to this step from ``output_dir``; say so where the start is not there."""
        for path in self._files():
            content = read_json(path, "delete it; what it measured is then missing from the history")
            if content["conditions"] != self._conditions() or content["step"] > state.global_step:
                continue
            read = Evaluation(content["step"], {k: _scores_from(v) for k, v in content["scores"].items()})
            decisions = self._decisions(self.history[0], read) if self.history else {}
            self.history.append(Evaluation(read.step, read.scores, decisions))
            alarm = self._alarm(self.history[-1])
            if self.on_drop == "stop":  # only an evaluation of this very step ended this training
                self.stopped = content.get("stopped") if read.step == state.global_step else None
            elif alarm is not None:
                warnings.warn(alarm, stacklevel=2)
        if self.history:
            self.batch_tokens = self.batch_tokens or next(
                (
                    s.conditions["batch_tokens"]
                    for s in self.history[0].scores.values()
                    if "batch_tokens" in s.conditions
                ),
                None,
            )
        elif state.is_world_process_zero:
            warnings.warn(
                f"training resumes at step {state.global_step} and output_dir holds no earlier evaluation under these "
                f"conditions: drops are counted from this step, not from the model before the fine-tune",
                stacklevel=2,
            )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of ``output_dir``, all of it or nothing. Raises StoreError."""
    make_folder(path.parent)
    write_atomic(path, json.dumps(content, ensure_ascii=False, allow_nan=False))


def _checked_tasks(tasks: Task | Sequence[Task]) -> tuple[Task, ...]:
    tasks = (tasks,) if isinstance(tasks, Task) else tuple(tasks)
    if not tasks or not all(isinstance(task, Task) for task in tasks):
        raise InputError(f"tasks {tasks!r}: expected at least one Task, e.g. packs.load('recall').")
    names = [task.name for task in tasks]
    if len(set(names)) != len(names):
        raise InputError(f"tasks {names}: expected distinct names.")
    if any(task.scorer == "agreement" for task in tasks):
        raise InputError("agreement needs the base in memory beside the model that is trained; use catchment.compare.")
    return tasks


def _scores_from(content: dict[str, Any]) -> Scores:
    rows = tuple(
        Row(**{**row, "logprobs": tuple(row["logprobs"]), "flags": tuple(row["flags"])}) for row in content["rows"]
    )
    return Scores(**{**content, "rows": rows, "warnings": tuple(content["warnings"])})


def _check_whole(args: TrainingArguments) -> None:
    """The main process evaluates alone, so it must hold all weights."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if getattr(args, "fsdp", None) or is_deepspeed_zero3_enabled():
        raise InputError(
            "CapabilityCallback: the weights are sharded over processes (FSDP or ZeRO-3), and one process cannot "
            "evaluate alone; expected whole weights on each. Compare saved checkpoints with catchment.compare."
        )


def _print(history: Sequence[Evaluation], limit: int | None, stopped: str | None) -> None:
    """One table: first score, last score, difference with its interval, verdict."""
    from rich.console import Console
    from rich.table import Table

    first, last = history[0], history[-1]
    table = Table(title=f"capabilities, step {first.step} to {last.step}")
    for column in ("task", "n", f"step {first.step}", f"step {last.step}", "difference", "verdict"):
        table.add_column(column, justify="left" if column in ("task", "verdict") else "right")
    for name, scores in last.scores.items():
        decision = last.decisions.get(name)
        said, verdict = "", ""
        if decision is not None:
            i = decision.interval
            said, verdict = f"{i.estimate:+.3f} [{i.low:+.3f}, {i.high:+.3f}]", decision.verdict
        before = f"{first.scores[name].mean:.3f}"
        table.add_row(name, str(len(scores.rows)), before, f"{scores.mean:.3f}", said, verdict)
    console = Console()
    console.print(table)
    if stopped is not None:
        console.print(f"Training was stopped: {stopped}")
