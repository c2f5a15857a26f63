"""What watches a training: the fence around protected tasks, and evaluations on request."""

from __future__ import annotations

from catchment.commands.tune.opened import Opened
from catchment.methods import Tuning
from catchment.training import CapabilityCallback, Fence


def fence_of(opened: Opened, name: str, tuning: Tuning) -> Fence | None:
    """What keeps the drop of the protected tasks within its bound; ``None`` without any."""
    if not opened.protected:
        return None
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
