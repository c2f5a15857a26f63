"""``--recover``: the best point between base and tuned, for those who have already lost something.

Two one-parameter families of candidates, both cheap to make and both ordinary models:

- interpolation (WiSE-FT, arXiv 2109.01903): base + t * (tuned - base), points of the ray that the room measures;
- truncation: only the largest share of the changed weights is kept, the rest goes back to the base.

The candidate is chosen on one half of the items and judged on the other, so that its verdicts are not flattered by
the choice.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from catchment import landscape, models
from catchment.capabilities import Item, Task, non_finite_note, sample, seeded_halves
from catchment.commands.compare.pair import Pair
from catchment.commands.compare.results import result_of
from catchment.commands.compare.state import State, accept
from catchment.commands.compare.tables import Rows
from catchment.commands.compare.way import ground_of, open_way
from catchment.errors import ModelError, StoreError
from catchment.landscape import Evaluator, Towards
from catchment.measuring import OutOfTimeError, task_result
from catchment.records import Recovered, TaskResult

CHOOSING_ITEMS = 200
RECOVER_SHARE = 0.4
"""Of the time left after the pilot that is kept for all of it."""
CHOOSING_SHARE = 0.7
"""Of the time left for all of it."""
LEAST_ITEMS = 8
"""Items per task to choose on, and to judge on, without which a budget is too short for it."""
SAVE_SECONDS = 4.0
"""Per GB of weights, to write the model."""


@dataclass(frozen=True)
class Candidate:
    """A point between base and tuned: its family, and how far towards tuned it is."""

    recipe: Literal["interpolation", "truncation"]
    strength: float

    @property
    def name(self) -> str:
        return f"{self.recipe} {self.strength:g}"

    def on(self, way: Towards) -> tuple[Towards, float]:
        """The direction in which it lies and its place there, as a multiple of the direction's alpha. Ask for it while
        the base stands at its own weights."""
        if self.recipe == "interpolation":
            return way, self.strength
        return landscape.truncated(way, self.strength), 1.0


CANDIDATES = (
    Candidate("interpolation", 0.25), Candidate("interpolation", 0.5), Candidate("interpolation", 0.75),
    Candidate("truncation", 0.1), Candidate("truncation", 0.25), Candidate("truncation", 0.5),
)  # fmt: skip
TUNED = Candidate("interpolation", 1.0)
Changes = dict[str, float]
"""Mean change of the score by task."""
Parts = dict[str, tuple[list[Item], list[Item]]]
"""By task, items to choose on and to judge on."""
CHOOSING, JUDGING = 0, 1


@dataclass(frozen=True)
class Search:
    """What candidates are chosen, judged and saved with: the items of each task, the base, which may be moved, and
    where each candidate lies."""

    pair: Pair
    state: State
    parts: Parts
    evaluator: Evaluator
    places: Mapping[Candidate, tuple[Towards, float]]

    @property
    def tasks(self) -> list[Task]:
        return self.state.tables.measured(self.pair.tasks)


def halves(task: Task, rows: Rows, seed: int) -> tuple[list[Item], list[Item]]:
    """Measured items in two halves by a hash that nothing else uses: to choose on, and to judge on."""
    items = [item for item in task.items if item.id in rows]
    choosing, judging = seeded_halves(items, f"recover:{seed}:")
    return list(sample(choosing, CHOOSING_ITEMS, seed)), judging


def check_recover(pair: Pair) -> None:
    """Refuse before anything is measured. Raises as :func:`recover`."""
    target = Path(pair.settings.recover or "")
    if target.is_file():
        raise StoreError(f"--recover {str(target)!r} is a file; expected a new folder. Choose another.")
    if target.exists() and any(target.iterdir()) and not (target / "recovered.json").exists():
        raise StoreError(f"--recover {str(target)!r}: the folder is not empty; expected a new one. Choose another.")
    if pair.base.card.weights_hash == pair.tuned.card.weights_hash:
        raise ModelError("recover: base and tuned have equal weights; expected a fine-tune that moved some.")
    for subject in pair.subjects:
        subject.loaded.movable()


def seconds_to_keep(pair: Pair) -> float:
    """Seconds of a budget that are kept for it; a frozen plan was made with them."""
    if pair.settings.recover is None or pair.clock.budget is None or pair.clock.resumed:
        return 0.0
    return RECOVER_SHARE * max(pair.clock.left, 0.0)


def recover(pair: Pair, state: State) -> tuple[Recovered | None, list[str]]:
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
    pair.progress.status("looking for the best point between base and tuned")
    weights = (models.effective_weights(subject.loaded.model) for subject in pair.subjects)
    models.shared_names(*weights)  # refuses what cannot be subtracted, by its name
    with pair.clock.keeping(_seconds_to_save(pair)):
        state, parts = _parts(pair, state)
        if not parts:
            return None, ["recover: no model was written: the budget ended before a candidate was measured"]
        grounds = [
            ground_of(pair, state.tables, task, [*parts[task.name][0], *parts[task.name][1]])
            for task in state.tables.measured(pair.tasks)
        ]
        with open_way(pair, state.plan, grounds) as (evaluator, way):
            places = {candidate: candidate.on(way) for candidate in (*CANDIDATES, TUNED)}
            return _recovered(Search(pair, state, parts, evaluator, places))


def _seconds_to_save(pair: Pair) -> float:
    weights = models.effective_weights(pair.base.loaded.model)
    return SAVE_SECONDS * sum(w.numel() * w.element_size() for w in weights.held.values()) / 1e9


def _recovered(search: Search) -> tuple[Recovered | None, list[str]]:
    """:func:`recover` where the base may be moved."""
    pair, target = search.pair, Path(search.pair.settings.recover or "")
    tried, notes = _tried(search)
    if len(tried) < len(CANDIDATES):
        notes.append(f"recover: {len(tried)} of {len(CANDIDATES)} candidates were measured, because the budget ended")
    tried.append((TUNED, _tuned_changes(search)))
    results = [result_of(pair, search.state, task) for task in search.tasks]
    best = choose(tried, pair.settings.margin, {result.task for result in results if result.can_lose})
    judged, said = _judged(search, best)
    notes += said
    missing = [name for name in search.parts if name not in {result.task for result in judged}]
    if missing:
        notes.append(f"recover: not judged on {', '.join(missing)}: the budget ended")
    if not judged:
        return None, [*notes, "recover: no model was written, because it was not judged"]
    direction, t = search.places[best]
    with search.evaluator.mover.at((direction, t * direction.alpha)) as model:
        _save(pair, model, target, best)
    candidates = tuple(
        {
            "recipe": c.recipe,
            "strength": c.strength,
            "chosen": c == best,
            "changes": {k: round(v, 4) for k, v in changes.items()},
        }
        for c, changes in tried
    )
    return Recovered(str(target), best.recipe, best.strength, tuple(judged), candidates), notes


def _parts(pair: Pair, state: State) -> tuple[State, Parts]:
    """Items to choose on and to judge on, of each task; within a budget as many as the time left pays for, and none
    where it pays for too few. The numbers are written into the plan."""
    seed, tables = pair.settings.seed, state.tables
    parts = {task.name: halves(task, tables.of("base", task), seed) for task in tables.measured(pair.tasks)}
    budget, prices = state.plan.budget, state.prices
    if budget is None or (state.plan.recover is None and prices is None):
        return state, parts
    if state.plan.recover is None:
        assert prices is not None
        each = sum(prices.each(state.plan.of(name), budget) for name in parts) / 2
        choosing = int(CHOOSING_SHARE * pair.clock.left / max(len(CANDIDATES) * each, 1e-9))
        judging = int((1 - CHOOSING_SHARE) * pair.clock.left / max(each, 1e-9))
        state = accept(pair, state, dataclasses.replace(state.plan, recover=(choosing, judging, len(CANDIDATES))))
    choosing, judging, _ = state.plan.recover or (0, 0, 0)
    if min(choosing, judging) < LEAST_ITEMS:
        return state, {}
    return state, {
        name: (list(sample(a, choosing, seed)), list(sample(b, judging, seed))) for name, (a, b) in parts.items()
    }


def _tried(search: Search) -> tuple[list[tuple[Candidate, Changes]], list[str]]:
    """Mean changes on the choosing half for each candidate that the time allowed, whose number is written into the
    plan; and notes on outputs that are not finite."""
    tried: list[tuple[Candidate, Changes]] = []
    notes: list[str] = []
    clock, planned = search.pair.clock, search.state.plan.recover
    most = len(CANDIDATES) if planned is None else planned[2]
    try:
        with clock.within(CHOOSING_SHARE * clock.left):
            for candidate in CANDIDATES[:most]:
                measured = list(_measured(search, candidate, CHOOSING))
                tried.append((candidate, {task.name: _mean_change(search, task, rows) for task, rows in measured}))
                notes += _broken(candidate, "to choose on", [rows for _, rows in measured])
    except OutOfTimeError:
        if planned is not None:
            plan = dataclasses.replace(search.state.plan, recover=(*planned[:2], len(tried)))
            accept(search.pair, search.state, plan)
    return tried, notes


def _mean_change(search: Search, task: Task, rows: Rows) -> float:
    base = search.state.tables.of("base", task)
    return sum(row.score - base[item].score for item, row in rows.items()) / max(len(rows), 1)


def _tuned_changes(search: Search) -> Changes:
    """Those of the tuned model itself, from its own rows."""
    changes = {}
    for task in search.tasks:
        base, tuned = search.state.tables.both(task)
        shared = [i.id for i in search.parts[task.name][CHOOSING] if i.id in base and i.id in tuned]
        changes[task.name] = _mean_change(search, task, {item: tuned[item] for item in shared})
    return changes


def _judged(search: Search, best: Candidate) -> tuple[list[TaskResult], list[str]]:
    """Results on the judging half, as far as the time goes, and notes."""
    pair, seen = search.pair, []
    s, judged = pair.settings, []
    with suppress(OutOfTimeError):
        for task, rows in _measured(search, best, JUDGING):
            seen.append(rows)
            base = {item: row for item, row in search.state.tables.of("base", task).items() if item in rows}
            judged.append(task_result(task, base, rows, margin=s.margin, alpha=s.alpha, family=len(pair.tasks)))
    return judged, _broken(best, "to judge on", seen)


def _broken(candidate: Candidate, where: str, tables: Iterable[Rows]) -> list[str]:
    note = non_finite_note([row for rows in tables for row in rows.values()])
    return [] if note is None else [f"recover: {candidate.name}, items {where}: {note}"]


def choose(tried: Sequence[tuple[Candidate, Changes]], margin: float, can_lose: set[str]) -> Candidate:
    """The candidate with the best mean change among those that lose nothing beyond the margin; see :func:`recover`."""

    def worst(changes: Changes) -> float:
        return min((v for k, v in changes.items() if k in can_lose), default=0.0)

    safe = [(c, d) for c, d in tried if worst(d) >= -margin]
    if safe:
        return max(safe, key=lambda cd: sum(cd[1].values()))[0]
    return max(tried, key=lambda cd: worst(cd[1]))[0]


def _measured(search: Search, candidate: Candidate, half: int) -> Iterator[tuple[Task, Rows]]:
    """Rows of a candidate on one half of the items, task by task; what is in the store is not measured again.

    Raises:
        OutOfTimeError: The budget ended before those of a task were whole.
    """
    direction, t = search.places[candidate]
    family, label, move = direction.family, f"{t!r}", (direction, t * direction.alpha)
    for task in search.tasks:
        wanted = [item.id for item in search.parts[task.name][half]]
        if not wanted:
            continue
        rows = search.evaluator.known(task.name, family, label, wanted)
        missing = [item for item in wanted if item not in rows]
        if missing:
            search.pair.clock.check()
            search.pair.progress.status(f"{candidate.name} · {task.name}")
            rows |= search.evaluator.rows(family, label, {task.name: missing}, move)[task.name]
        yield task, {item: rows[item] for item in wanted}


def _save(pair: Pair, model: Any, target: Path, best: Candidate) -> None:
    """The model as it stands as an ordinary folder with its tokenizer; written beside and renamed."""
    beside = target.with_name(f".{target.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    own = copy.copy(model)  # the same weights; what saving writes into its configs stays out of the base's
    for name in ("config", "generation_config"):
        setattr(own, name, copy.deepcopy(getattr(model, name, None)))
    try:
        models.save_model(own, beside)
        pair.base.loaded.tokenizer.save_pretrained(beside)
        text = f'{{"recipe": "{best.recipe}", "strength": {best.strength}, "base": "{pair.base.card.name}"}}\n'
        (beside / "recovered.json").write_text(text, encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        beside.rename(target)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise StoreError(
            f"--recover {str(target)!r} cannot be written ({error.strerror}); free space or choose another."
        ) from error
