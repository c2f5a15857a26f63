"""What watches a training: its progress, the fence around protected tasks, and evaluations on request."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from catchment.commands.tune.opened import Opened
from catchment.commands.tune.setup import PROTECTED
from catchment.measuring import Progress
from catchment.methods import Tuning
from catchment.training import CapabilityCallback, Fence


def watchers(opened: Opened, name: str, tuning: Tuning) -> list[TrainerCallback]:
    """The Trainer's callbacks of one training."""
    watch = watch_of(opened, name)
    fences = [_fence(opened, name, tuning)] if name == PROTECTED else []
    return [_Steps(opened.progress, name), *fences, *([watch] if watch else [])]


def _fence(opened: Opened, name: str, tuning: Tuning) -> Fence:
    """Keeps the drop of the protected tasks within its bound."""
    s = opened.settings
    return Fence(
        [item.guard for item in opened.protected], max_drop=s.max_drop, move=tuning,
        eval_steps=s.fence_steps or max(1, opened.steps // 8), tokenizer=opened.loaded.tokenizer,
        prompt_options=opened.asked, alpha=s.alpha, seed=s.seed, output_dir=opened.out / "fence" / name,
        batch_tokens=opened.batch_tokens,
    )  # fmt: skip


def watch_of(opened: Opened, name: str) -> CapabilityCallback | None:
    """What measures the tasks while the model is trained; of protected ones items that the fence sees too, since the
    others judge the end."""
    s = opened.settings
    if s.eval_steps is None or not opened.tasks:
        return None
    seen = {item.guard.name: item.guard for item in opened.protected}
    return CapabilityCallback(
        [seen.get(task.name, task) for task in opened.tasks], eval_steps=s.eval_steps, limit=s.eval_limit, seed=s.seed,
        margin=s.margin, alpha=s.alpha,
        tokenizer=opened.loaded.tokenizer, on_drop=s.on_drop, table=False, output_dir=opened.out / "watch" / name,  # type: ignore[arg-type]
        batch_tokens=opened.batch_tokens, prompt_options=opened.asked,
    )  # fmt: skip


class _Steps(TrainerCallback):
    """Tells the progress of each step."""

    def __init__(self, progress: Progress, name: str) -> None:
        self.progress, self.name = progress, name

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.total(state.max_steps - state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = next((e["loss"] for e in reversed(state.log_history) if "loss" in e), None)
        shown = f" · loss {loss:.3f}" if loss is not None else ""
        self.progress.status(f"{self.name} · step {state.global_step} of {state.max_steps}{shown}")
        self.progress.advance(1)
