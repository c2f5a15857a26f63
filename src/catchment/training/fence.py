"""A fence around what a model can do: while it is tuned, protected tasks are looked at and the move is pulled back.

The fence chooses factors by its own guard items, again and again. So no final claim rests on its numbers: what the
tuned model kept is judged on other items, which ``split_items`` sets aside before the training.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from catchment.capabilities import NON_FINITE, PromptOptions, Task, seeded_order
from catchment.errors import InputError, ModelError
from catchment.records import FenceLook, Row
from catchment.runs import processes
from catchment.statistics import mean_sequence
from catchment.training.look_files import LookFiles
from catchment.training.looks import above, spend, verdict
from catchment.training.moves import Move, Pull, slow_down
from catchment.training.pilot import Scorer

CHUNK = 32
"""Guard items that are scored together; after each chunk a look or the trial of a factor may stop."""
EVALUATIONS = 4
"""Factors that a pull tries at most, so factors are multiples of 1/16."""
SMALL = 0.1
Score = Callable[[Task], Sequence[Row]]
"""Rows of a task's items of the model as it stands now."""


@dataclass(frozen=True)
class _Action:
    """What a look leads to, for every process: the numbers that ``scale`` is called with, in this order."""

    looks: tuple[FenceLook, ...]
    scales: tuple[float, ...] = ()
    stopped: str | None = None


class Fence(TrainerCallback):
    """Keep protected tasks within ``max_drop`` of the base while ``transformers.Trainer`` moves the weights.

    The base is scored on the guard items before the first step. A look scores them again: at steps N/8, N/4 and N/2,
    so that a learning rate that is far too high is caught early, every N = ``eval_steps`` steps, and after the last
    step. It takes the paired drops in a seeded order, 32 at a time, and stops early where the answer is clear (the
    last look takes all). Outcomes per task are those of :class:`FenceLook`.

    If a task is broken, the move is pulled back: a bisection of 4 evaluations finds the largest factor c at which the
    mean drop of every task over all guard items is at most ``near * max_drop``, ``move.scale(c)`` is applied (0, the
    base, where none of the four will do), and training goes on from there, at a lower learning rate until a look finds
    no bound broken. The optimizer's moments stay. The last look pulls too, so that the delivered weights break no bound
    on the guard items.

    **What is claimed.** Look j may err with ``alpha * 6/(pi^2 j^2) / tasks`` per task, so that "broken (shown)" is ever
    said without cause with probability at most alpha over all tasks and however many looks there are (union bound),
    as long as the weights do not depend on the guard items: up to the first pull. After it they do, because the items
    are the same at every look. From then on the fence is a controller and its numbers are no evidence; judge the
    end on items it never saw (``split_items``).

    The trained weights without a pull are bit for bit those of a run without the fence: training mode, gradients and
    random states are left alone. Cost: one evaluation of the guard items per look and up to 4 per pull.

    Args:
        tasks: The protected tasks, each with its guard items only.
        max_drop: Drop of the score that is not to be passed, absolute, in (0, 1).
        move: What is pulled; see :class:`Move`.
        eval_steps: N.
        tokenizer: For the prompts; by default the trainer's ``processing_class``.
        chat_template, system: How the model is asked; see :class:`~catchment.capabilities.PromptOptions`.
        prompt_options: The two in one object, instead of them.
        alpha: Error over all looks and tasks.
        near: Share of ``max_drop`` to which a pull goes back; above it a task is near, which is told and no more.
        patience: Pulls after which a drop that is shown to be broken again stops the training. So does the second
            factor below 0.1.
        slow: Multiplies the learning rate (the scheduler's base rates) from a pull to the next look without one: the
            gradient still points out of the fence, and in smaller steps the move settles where data and fence agree.
            Pulls in a row do not add up: over few items the mean drop passes the bound by chance now and then, and that
            shall not cost the gain. 1: leave the rate alone.
        seed: Of the order of the items.
        output_dir: Folder for one JSON file per look and the base's scores. A resumed training reads them there and
            goes on as if it had not been interrupted: one that the fence had stopped ends at once (in a plain
            ``Trainer`` after one step). A training that starts anew removes the looks of an earlier one.
        batch_tokens: Padded tokens per forward pass; measured once when ``None``.
        score: Scores the model where it stands; by default the evaluation path of everything here, items whose
            outputs are not finite with 0 and a warning.

    Attributes:
        history: Every :class:`FenceLook`, in order.
        stopped: Why the fence ended the training, or ``None``.

    Raises:
        InputError: A setting out of range, no tokenizer, sharded weights, ``load_best_model_at_end``, or a resumed
            training whose base scores are not in ``output_dir``.
        ModelError: The weights are no longer finite, so that no factor can pull them back.
        StoreError: ``output_dir`` cannot be written.

    Example:
        >>> fence = Fence([split.guard], max_drop=0.02, move=tuning, eval_steps=50)  # doctest: +SKIP
        >>> Trainer(model, args, train_dataset=data, callbacks=[fence]).train()  # doctest: +SKIP
    """

    def __init__(
        self,
        tasks: Task | Sequence[Task],
        *,
        max_drop: float,
        move: Move,
        eval_steps: int = 50,
        tokenizer: Any = None,
        chat_template: str = "auto",
        system: str | None = None,
        prompt_options: PromptOptions | None = None,
        alpha: float = 0.05,
        near: float = 0.75,
        patience: int = 3,
        slow: float = 0.5,
        seed: int = 0,
        output_dir: str | Path | None = None,
        batch_tokens: int | None = None,
        score: Score | None = None,
    ) -> None:
        self.tasks = _checked(tasks)
        _check_settings(max_drop, alpha, near, slow, eval_steps, patience)
        self.max_drop, self.alpha, self.near, self.slow = max_drop, alpha, near, slow
        self.move, self.eval_steps, self.patience, self.seed = move, int(eval_steps), int(patience), seed
        self.asked = PromptOptions.of(prompt_options, chat_template, system)
        self.tokenizer, self._tokenizer, self.batch_tokens = tokenizer, tokenizer, batch_tokens
        self._files = LookFiles(output_dir)
        self.history: list[FenceLook] = []
        self.stopped: str | None = None
        self._given_score = score
        self._score: Score | None = None
        self._base: dict[str, dict[str, float]] = {}
        self._broken: Counter[str] = Counter()
        self._chunks = {task.name: _chunked(task, seed) for task in self.tasks}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        _check_training(args)
        self.history, self.stopped = [], None
        self._tokenizer = self.tokenizer if self.tokenizer is not None else given.get("processing_class")
        if state.is_world_process_zero:
            self._begin(state.global_step, given)
        if state.global_step > 0:
            self.history, self.stopped = processes.agreed((self.history, self.stopped))
        if self.stopped is not None:
            control.should_training_stop = True
            if state.is_world_process_zero:
                warnings.warn(f"the fence stopped the training: {self.stopped}", stacklevel=2)

    def _begin(self, step: int, given: Mapping[str, Any]) -> None:
        """Score the base, or take up what a training that is resumed here left."""
        kept = self._files.read_base(self._conditions()) if step > 0 else None
        self._score = self._given_score or self._scorer(given, kept)
        if kept is not None:
            self._base = kept["scores"]
            self._files.forget(step)
            self.history, self.stopped = self._files.read()
            return
        self._files.forget(-1)
        self._base = {name: self._rows(parts) for name, parts in self._chunks.items()}
        self._warn_broken(step)
        engine = self._score.settings if isinstance(self._score, Scorer) else {}
        self._files.write_base(self._conditions(), engine, self._base)

    def _scorer(self, given: Mapping[str, Any], kept: Mapping[str, Any] | None) -> Scorer:
        if self._tokenizer is None:
            raise InputError("Fence: no tokenizer; expected Fence(tokenizer=...) or Trainer(processing_class=...).")
        if kept is not None:  # the path is not chosen anew on weights that have moved
            return Scorer(given["model"], self._tokenizer, self.asked, **kept["engine"])
        return Scorer(given["model"], self._tokenizer, self.asked, self.batch_tokens)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        ends = control.should_training_stop or state.global_step >= state.max_steps
        if ends or due(state.global_step, self.eval_steps):
            self._look(state, control, given, whole=ends)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """For a training that something else has ended after this step's :meth:`on_step_end`."""
        if state.global_step > 0 and (not self.history or self.history[-1].step != state.global_step):
            self._look(state, control, given, whole=True)

    def _look(self, state: TrainerState, control: TrainerControl, given: Mapping[str, Any], *, whole: bool) -> None:
        action = self._decide(state, given.get("model"), whole) if state.is_world_process_zero else None
        self._warn_broken(state.global_step)
        action = processes.agreed(action)
        assert action is not None
        if not state.is_world_process_zero:
            for factor in action.scales:
                self.move.scale(factor)
        before = self._slowed()
        self.history += action.looks
        change = self._slowed() / before
        if change != 1:
            slow_down(given.get("optimizer"), given.get("lr_scheduler"), change)
        if action.stopped is not None:
            self.stopped = action.stopped
            control.should_training_stop = True
        if state.is_world_process_zero:
            self._files.write(state.global_step, self._conditions(), action.looks, action.stopped)
            self._log(state, action.looks)
            if action.stopped is not None:
                warnings.warn(f"the fence stopped the training: {action.stopped}", stacklevel=2)

    def _decide(self, state: TrainerState, model: Any, whole: bool) -> _Action:
        number = len({look.step for look in self.history}) + 1
        error = spend(self.alpha, number, len(self.tasks))
        looks = [self._judge(state.global_step, task.name, error, whole) for task in self.tasks]
        if all(look.outcome != "broken" for look in looks):
            return _Action(tuple(looks))
        pull = Pull(self.move)
        try:
            factor, after = self._factor(pull, looks)
        except BaseException:  # Ctrl-C between two factors
            pull.to(1.0)
            raise
        pull.to(factor)
        if factor == 0:
            _check_finite(model, state.global_step)
        looks = [replace(look, factor=factor, after=after[look.task]) for look in looks]
        return _Action(tuple(looks), tuple(pull.scales), self._reason(looks, state))

    def _slowed(self) -> float:
        """What the learning rate stands at after all looks, as a share of the schedule's."""
        return self.slow if self.history and self.history[-1].factor < 1 else 1.0

    def _judge(self, step: int, name: str, error: float, whole: bool) -> FenceLook:
        drops: list[float] = []
        parts = self._chunks[name]
        for number, part in enumerate(parts, 1):
            drops += self._drops(part)
            last = number == len(parts)
            decided = verdict(drops, self.max_drop, self.near, error, last=last) if last or not whole else None
            if decided is not None:
                break
        assert decided is not None
        interval = mean_sequence(drops, error)
        return FenceLook(step, name, len(drops), interval.estimate, interval.low, interval.high, *decided)

    def _factor(self, pull: Pull, looks: Sequence[FenceLook]) -> tuple[float, dict[str, float]]:
        """The largest factor found at which all tasks are inside, and their drops there. The task that stands worst
        comes first, because it decides."""
        names = [look.task for look in sorted(looks, key=lambda look: -look.drop)]
        low, high = 0.0, 1.0
        best = dict.fromkeys(names, 0.0)  # at 0 stands the base
        for _ in range(EVALUATIONS):
            middle = (low + high) / 2
            pull.to(middle)
            drops = self._all_inside(names)
            low, high, best = (low, middle, best) if drops is None else (middle, high, drops)
        return low, best

    def _all_inside(self, names: Sequence[str]) -> dict[str, float] | None:
        """Mean drops over all guard items, or ``None`` at the first task that is not inside, as soon as the items that
        are left cannot bring it there."""
        means: dict[str, float] = {}
        for name in names:
            parts, base = self._chunks[name], self._base[name]
            n = len(base)
            drop, left = 0.0, math.fsum(1 - score for score in base.values())
            for part in parts:
                drop += math.fsum(self._drops(part))
                left -= math.fsum(1 - base[item.id] for item in part.items)  # what these could still have gained
                if above((drop - left) / n, self.near * self.max_drop):
                    return None
            means[name] = drop / n
        return means

    def _drops(self, part: Task) -> list[float]:
        base, now = self._base[part.name], self._rows([part])
        return [base[item.id] - now[item.id] for item in part.items]

    def _rows(self, parts: Sequence[Task]) -> dict[str, float]:
        assert self._score is not None
        rows = [row for part in parts for row in self._score(part)]
        self._broken[parts[0].name] += sum(NON_FINITE in row.flags for row in rows)
        return {row.item: row.score for row in rows}

    def _warn_broken(self, step: int) -> None:
        said = [f"{count} of {name}" for name, count in self._broken.items() if count]
        if said:
            warnings.warn(
                f"step {step}: outputs that are not finite ({', '.join(said)}); they count as 0", stacklevel=3
            )
        self._broken.clear()

    def _reason(self, looks: Sequence[FenceLook], state: TrainerState) -> str | None:
        """Why the training is to stop after this pull, if it is."""
        if state.global_step >= state.max_steps:
            return None
        before = {look.step: look.factor for look in self.history if look.factor < 1}
        shown = [look for look in looks if (look.outcome, look.evidence) == ("broken", "shown")]
        broken = [f"{look.task} {look.drop:+.3f} [{look.low:+.3f}, {look.high:+.3f}]" for look in shown]
        after = f"step {state.global_step}, after {len(before)} pulls"
        if broken and len(before) >= self.patience:
            return f"{after}: the drop of {'; '.join(broken)} is shown to be above {self.max_drop:g} again"
        if looks[0].factor < SMALL and min(before.values(), default=1.0) < SMALL:
            return f"{after}: only a factor of {looks[0].factor:g} is inside, the second below {SMALL:g}"
        return None

    def _log(self, state: TrainerState, looks: Sequence[FenceLook]) -> None:
        values = {f"fence/{look.task}_drop": look.drop for look in looks}
        state.log_history.append({**values, "fence/factor": looks[0].factor, "step": state.global_step})

    def _conditions(self) -> dict[str, Any]:
        tasks = {task.name: task.hash() for task in self.tasks}
        return {"tasks": tasks, "seed": self.seed, "chunk": CHUNK, **self.asked.conditions(self._tokenizer)}


def due(step: int, every: int) -> bool:
    """Whether a look is due: every ``every`` steps, and at an eighth, a quarter and half of the first such stretch.

    >>> [step for step in range(1, 33) if due(step, 16)]
    [2, 4, 8, 16, 32]
    """
    return step % every == 0 or step in {every // part for part in (8, 4, 2)} - {0}


def _chunked(task: Task, seed: int) -> list[Task]:
    order = seeded_order(task.items, f"guard:{seed}:")
    return [task.with_items(tuple(order[at : at + CHUNK])) for at in range(0, len(order), CHUNK)]


def _checked(tasks: Task | Sequence[Task]) -> tuple[Task, ...]:
    tasks = (tasks,) if isinstance(tasks, Task) else tuple(tasks)
    names = [getattr(task, "name", task) for task in tasks]
    if not tasks or not all(isinstance(task, Task) for task in tasks) or len(set(names)) != len(names):
        raise InputError(f"tasks {names}: expected at least one Task, with distinct names.")
    for task in tasks:
        if task.scorer in ("agreement", "classify"):
            raise InputError(f"task {task.name!r}: expected a scorer of one model's answers, not {task.scorer!r}.")
    return tasks


def _check_settings(max_drop: float, alpha: float, near: float, slow: float, eval_steps: int, patience: int) -> None:
    for name, value, most in (("max_drop", max_drop, 0), ("alpha", alpha, 0), ("near", near, 1), ("slow", slow, 1)):
        if not 0 < value < 1 and value != (most or None):
            raise InputError(f"{name} {value}: expected a number above 0 and {'at most' if most else 'below'} 1.")
    if eval_steps < 1 or patience < 0:
        raise InputError(f"eval_steps {eval_steps}, patience {patience}: expected at least 1 and 0.")


def _check_training(args: TrainingArguments) -> None:
    from transformers.integrations import is_deepspeed_zero3_enabled

    problem = None
    if getattr(args, "fsdp", None) or is_deepspeed_zero3_enabled():
        problem = "the weights are sharded (FSDP or ZeRO-3), and one process evaluates; expected whole weights on each"
    elif getattr(args, "load_best_model_at_end", False):
        problem = "load_best_model_at_end=True puts back weights that it has not looked at; expected False"
    if problem is not None:
        raise InputError(f"Fence: {problem}.")


def _check_finite(model: Any, step: int) -> None:
    broken = [n for n, p in model.named_parameters() if not bool(p.isfinite().all())] if model is not None else []
    if broken:
        raise ModelError(
            f"step {step}: {len(broken)} weights such as {broken[0]!r} are not finite, so no factor pulls them back; "
            f"expected finite ones. Lower the learning rate, or clip the gradient."
        )
