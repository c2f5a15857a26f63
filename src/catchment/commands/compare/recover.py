"""``--recover``: the best point between base and tuned, for those who have already lost something.

Two one-parameter families of candidates, both cheap to make and both ordinary models:

- interpolation (WiSE-FT, arXiv 2109.01903): base + t * (tuned - base);
- truncation: only the largest share of the changed weights is kept, the rest goes back to the base.

The candidate is chosen on one half of the items and judged on the other, so that its verdicts are not flattered by
the choice.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from catchment import models
from catchment.capabilities import Item, Task, make_engine, non_finite_note, run, sample, seeded_halves
from catchment.commands.compare.job import Job
from catchment.commands.compare.rounds import Measuring, save_plan
from catchment.errors import ModelError, StoreError
from catchment.measuring import OutOfTimeError, verdicts
from catchment.records import Recovered, Row, TaskResult
from catchment.runs import cell_key

STRENGTHS: tuple[tuple[Literal["interpolation", "truncation"], float], ...] = (
    ("interpolation", 0.25), ("interpolation", 0.5), ("interpolation", 0.75),
    ("truncation", 0.1), ("truncation", 0.25), ("truncation", 0.5),
)  # fmt: skip
CHOOSING_ITEMS = 200
CHOOSING_SHARE = 0.7
"""Of the time left for all of it."""
LEAST_ITEMS = 8
"""Items per task to choose on, and to judge on, without which a budget is too short for it."""
SAVE_SECONDS = 4.0
"""Per GB of weights, to write the model."""


@dataclass(frozen=True)
class Candidate:
    """How a point between base and tuned is made: its family and strength, and its model while it is measured."""

    recipe: Literal["interpolation", "truncation"]
    strength: float

    @property
    def name(self) -> str:
        return f"{self.recipe} {self.strength:g}"


def thresholds(base: dict[str, Tensor], tuned: dict[str, Tensor], shares: Sequence[float]) -> dict[float, float]:
    """The size of change above which the given shares of the changed weights lie, over all tensors together."""
    changes = torch.cat([(tuned[n] - base[n]).abs().float().flatten() for n in base])
    changes = changes[changes > 0]
    if not len(changes):
        raise ModelError("recover: base and tuned have equal weights; expected a fine-tune that moved some.")
    order = changes.sort(descending=True).values
    return {share: float(order[min(int(share * len(order)), len(order) - 1)]) for share in shares}


def move(
    model: Any, base: dict[str, Tensor], tuned: dict[str, Tensor], candidate: Candidate, cuts: dict[float, float]
) -> None:
    """Set the weights of ``model`` to the candidate's, formed in fp32 from the two ends."""
    with torch.no_grad():
        for name, weight in models.named_weights(model).items():
            if not weight.is_floating_point():
                continue
            start, change = base[name].float(), tuned[name].float() - base[name].float()
            if candidate.recipe == "interpolation":
                weight.copy_((start + candidate.strength * change).to(weight.dtype))
            else:
                weight.copy_(torch.where(change.abs() >= cuts[candidate.strength], tuned[name], base[name]))


def halves(task: Task, rows: dict[str, Row], seed: int) -> tuple[list[Item], list[Item]]:
    """Measured items in two halves by a hash that nothing else uses: to choose on, and to judge on."""
    items = [item for item in task.items if item.id in rows]
    choosing, judging = seeded_halves(items, f"recover:{seed}:")
    return list(sample(choosing, CHOOSING_ITEMS, seed)), judging


def check_recover(job: Job) -> None:
    """Refuse before anything is measured. Raises as :func:`recover`."""
    target = Path(job.settings.recover or "")
    if target.is_file():
        raise StoreError(f"--recover {str(target)!r} is a file; expected a new folder. Choose another.")
    if target.exists() and any(target.iterdir()) and not (target / "recovered.json").exists():
        raise StoreError(f"--recover {str(target)!r}: the folder is not empty; expected a new one. Choose another.")
    if job.base.card.weights_hash == job.tuned.card.weights_hash:
        raise ModelError("recover: base and tuned have equal weights; expected a fine-tune that moved some.")
    for side in job.sides:
        side.loaded.movable()


def recover(job: Job, state: Measuring) -> tuple[Recovered | None, list[str]]:
    """Choose, judge and save the recovered model; see the module's text.

    The choice: among candidates whose drop on every task above chance is at most the margin on the choosing half, the
    one with the largest mean score; where none is, the one with the smallest worst drop.

    Returns:
        The result, and what a reader must know: what a budget left out, and how many outputs are not finite. Nothing
        is saved that was not judged.

    Raises:
        ModelError: quantised weights, different architectures, equal weights.
        StoreError: the folder exists and is not empty, or cannot be written.
    """
    target = Path(job.settings.recover or "")
    base_weights, tuned_weights = (models.effective_weights(side.loaded.model) for side in job.sides)
    names = models.shared_names(base_weights, tuned_weights)  # refuses what cannot be subtracted, by its name
    start = {n: base_weights[n].detach().clone() for n in names}
    end = {n: tuned_weights[n].detach() for n in names}
    job.clock.later = SAVE_SECONDS * sum(w.numel() * w.element_size() for w in start.values()) / 1e9
    parts = _parts(job, state)
    if not parts:
        return None, ["recover: no model was written: the budget ended before a candidate was measured"]
    model = copy.deepcopy(job.base.loaded.model)
    if hasattr(model, "merge_and_unload"):
        model = models.merge_adapter(model)  # a base that is itself an adapter becomes an ordinary model
    models.untie(model, job.tuned.loaded.model)
    cuts = thresholds(start, end, [s for r, s in STRENGTHS if r == "truncation"])

    def stand(candidate: Candidate) -> Any:
        move(model, start, end, candidate, cuts)
        return model

    tried, notes = _tried(job, stand, parts)
    if len(tried) < len(STRENGTHS):
        notes.append(f"recover: {len(tried)} of {len(STRENGTHS)} candidates were measured, because the budget ended")
    tried.append((Candidate("interpolation", 1.0), _tuned_changes(job, parts)))
    best = choose(tried, job.settings.margin, {t.name for t in job.measured if job.result(t).can_lose})
    judged, said = _judged(job, stand(best), best, parts)
    notes += said
    missing = [name for name in parts if name not in {result.task for result in judged}]
    if missing:
        notes.append(f"recover: not judged on {', '.join(missing)}: the budget ended")
    if not judged:
        return None, [*notes, "recover: no model was written, because it was not judged"]
    _save(job, model, target, best)
    candidates = tuple(
        {
            "recipe": c.recipe,
            "strength": c.strength,
            "chosen": c == best,
            "changes": {k: round(v, 4) for k, v in d.items()},
        }
        for c, d in tried
    )
    return Recovered(str(target), best.recipe, best.strength, tuple(judged), candidates), notes


Parts = dict[str, tuple[list[Item], list[Item]]]


def _parts(job: Job, state: Measuring) -> Parts:
    """Items to choose on and to judge on, of each task; within a budget as many as the time left pays for, and none
    where it pays for too few. The numbers are written into the plan."""
    parts = {t.name: halves(t, job.table(job.base, t, t.formats[0].name), job.settings.seed) for t in job.measured}
    budget, prices = job.plan.budget, state.prices
    if budget is None:
        return parts
    if job.plan.recover is None:
        if prices is None:
            return parts
        each = sum(prices.each(job.plan.of(name), budget) for name in parts) / 2
        choosing = int(CHOOSING_SHARE * job.clock.left / max(len(STRENGTHS) * each, 1e-9))
        judging = int((1 - CHOOSING_SHARE) * job.clock.left / max(each, 1e-9))
        job.plan = dataclasses.replace(job.plan, recover=(choosing, judging, len(STRENGTHS)))
        save_plan(job)
    choosing, judging, _ = job.plan.recover or (0, 0, 0)
    if min(choosing, judging) < LEAST_ITEMS:
        return {}
    seed = job.settings.seed
    return {name: (list(sample(a, choosing, seed)), list(sample(b, judging, seed))) for name, (a, b) in parts.items()}


def _tried(
    job: Job, stand: Callable[[Candidate], Any], parts: Parts
) -> tuple[list[tuple[Candidate, dict[str, float]]], list[str]]:
    """Mean changes on the choosing half for each candidate that the time allowed; which is written into the plan. And
    notes on outputs that are not finite."""
    tried: list[tuple[Candidate, dict[str, float]]] = []
    notes: list[str] = []
    items = {name: part[0] for name, part in parts.items()}
    most = len(STRENGTHS) if job.plan.recover is None else job.plan.recover[2]
    try:
        with job.clock.within(CHOOSING_SHARE * job.clock.left):
            for candidate in [Candidate(*s) for s in STRENGTHS[:most]]:
                changes: dict[str, float] = {}
                seen: list[Row] = []
                for task, rows in _measured(job, stand(candidate), candidate, items):
                    base = job.table(job.base, task, task.formats[0].name)
                    changes[task.name] = sum(rows[i].score - base[i].score for i in rows) / max(len(rows), 1)
                    seen += rows.values()
                tried.append((candidate, changes))
                notes += _broken(candidate, "to choose on", seen)
    except OutOfTimeError:
        if job.plan.recover is not None:
            job.plan = dataclasses.replace(job.plan, recover=(*job.plan.recover[:2], len(tried)))
            save_plan(job)
    return tried, notes


def _broken(candidate: Candidate, where: str, rows: Iterable[Row]) -> list[str]:
    note = non_finite_note(rows)
    return [] if note is None else [f"recover: {candidate.name}, items {where}: {note}"]


def _judged(job: Job, model: Any, best: Candidate, parts: Parts) -> tuple[list[TaskResult], list[str]]:
    judged: list[TaskResult] = []
    seen: list[Row] = []
    with suppress(OutOfTimeError):
        for task, rows in _measured(job, model, best, {name: part[1] for name, part in parts.items()}):
            seen += rows.values()
            base = {i: r for i, r in job.table(job.base, task, task.formats[0].name).items() if i in rows}
            judged.append(
                verdicts.task_result(
                    task, base, rows, margin=job.settings.margin, alpha=job.settings.alpha, family=len(job.tasks)
                )
            )
    return judged, _broken(best, "to judge on", seen)


def choose(tried: list[tuple[Candidate, dict[str, float]]], margin: float, can_lose: set[str]) -> Candidate:
    """The candidate with the best mean change among those that lose nothing beyond the margin; see :func:`recover`."""

    def worst(changes: dict[str, float]) -> float:
        return min((v for k, v in changes.items() if k in can_lose), default=0.0)

    safe = [(c, d) for c, d in tried if worst(d) >= -margin]
    if safe:
        return max(safe, key=lambda cd: sum(cd[1].values()))[0]
    return max(tried, key=lambda cd: worst(cd[1]))[0]


def _tuned_changes(job: Job, parts: dict[str, tuple[list[Item], list[Item]]]) -> dict[str, float]:
    changes = {}
    for task in job.measured:
        base, tuned = (job.table(side, task, task.formats[0].name) for side in job.sides)
        shared = [i.id for i in parts[task.name][0] if i.id in base and i.id in tuned]
        changes[task.name] = sum(tuned[i].score - base[i].score for i in shared) / max(len(shared), 1)
    return changes


def _measured(
    job: Job, model: Any, candidate: Candidate, items: dict[str, list[Item]]
) -> Iterator[tuple[Task, dict[str, Row]]]:
    """Rows of a candidate, in cells addressed by its two ends and its recipe."""
    engine = None
    for task in job.measured:
        if not items[task.name]:
            continue
        form = task.formats[0].name
        between = {"tuned": job.tuned.card.weights_hash, "recipe": candidate.recipe, "strength": candidate.strength}
        conditions = {**job.base.conditions(task, form), "between": between}
        cell = job.store.cell(cell_key(conditions), conditions)
        have = cell.rows()
        if any(i.id not in have for i in items[task.name]):
            job.clock.check()
            job.progress.status(f"{candidate.name} · {task.name}")
            engine = engine or make_engine(model, job.base.loaded.tokenizer, job.plan.batch_tokens)
            engine.check = job.clock.check
            prepared = job.base.prepare(task, form, items[task.name])

            def keep(rows: list[Row], _: int) -> None:
                cell.append(rows)  # noqa: B023

            have.update({r.item: r for r in run(engine, prepared, done=set(have), on_rows=keep, non_finite="isolate")})
        yield task, {i.id: have[i.id] for i in items[task.name] if i.id in have}


def _save(job: Job, model: Any, target: Path, best: Candidate) -> None:
    """An ordinary model folder with its tokenizer; written beside and renamed."""
    beside = target.with_name(f".{target.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        models.save_model(model, beside)
        job.base.loaded.tokenizer.save_pretrained(beside)
        text = f'{{"recipe": "{best.recipe}", "strength": {best.strength}, "base": "{job.base.card.name}"}}\n'
        (beside / "recovered.json").write_text(text, encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        beside.rename(target)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise StoreError(
            f"--recover {str(target)!r} cannot be written ({error.strerror}); free space or choose another."
        ) from error
