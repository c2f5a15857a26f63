"""Validity gates on any table of scores: what would look like a result and is none.

They see scores, and where there are any, the items' scores; what only rows, weights or labels show is gated where
those are read, and comes with the table's own flags.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations, pairwise

from catchment.commands.study.analysis.contrasts import twice
from catchment.commands.study.analysis.index import Index, Key
from catchment.commands.study.analysis.intervals import standard_error
from catchment.commands.study.grid import step_of
from catchment.commands.study.record import BASE, Checkpoint, Contrast, Flag
from catchment.commands.study.scores import Scored

PERFECT = 0.9995
"""A score that prints as 1.000."""
INFORMATIVE = (0.02, 0.98)
"""Scores outside are near what a constant predictor gets, so that two models often agree on them."""
NEAR_STEPS = 1.3
"""Two checkpoints whose tokens differ by a smaller factor are near: what differs between them is mostly noise."""
NOISY = 5
"""Item standard errors by which the scores of near checkpoints differ only where training itself is noisy."""
SHOWN = 8
"""Places that a sentence names before it counts the others."""
SAME_ITEMS = 200
"""Items on which two models must agree in every score to be taken for the same model."""
SAME_TASKS = 3
"""Tasks of a table of means on which two models must agree to the last digit."""


def gates(index: Index) -> list[Flag]:
    """All gates on the scores themselves; the table's own flags first."""
    flags = list(index.table.flags)
    refused = {flag.task or flag.where for flag in flags if flag.refused}
    flags += [flag for flag in _unlabelled(index) if flag.where not in refused]
    flags += [*_degenerate(index), *_constant(index), *_same_checkpoints(index), *_unchanged(index)]
    return [*flags, *_training_noise(index)]


def contrast_gates(contrasts: Iterable[Contrast]) -> list[Flag]:
    """A pair that counts twice, and ratios that one small base governs."""
    flags = []
    for c in contrasts:
        for label, task in twice(c.pairs):
            flags.append(Flag("duplicate pair", f"contrast {c.name}", f"{label} -> {task} stands "
                              f"{c.pairs.count((label, task))} times in the list and counts as often; the mean with "
                              "every pair once stands beside it."))  # fmt: skip
        if c.ratio is not None and c.ratio.near_zero:
            flags.append(Flag("near-zero denominator", f"contrast {c.name}", _fragile(c)))
        if c.refused:
            text = f"{', '.join(c.refused)} cannot measure what it asks; its numbers are shown and conclude nothing."
            flags.append(Flag("refused tasks in a contrast", f"contrast {c.name}", text))
    return flags


def _fragile(c: Contrast) -> str:
    ratio = c.ratio
    assert ratio is not None
    text = f"{len(ratio.near_zero)} of {ratio.n} ratios have a base near 0 (first: {ratio.near_zero[0]})"
    if ratio.mean is None or ratio.median is None:
        return f"{text}; the mean ratio is not defined, because a base is 0. Read the raw change."
    apart = f"; the mean ratio is {ratio.mean:+.3f}, the median {ratio.median:+.3f}"
    without = f", the mean {ratio.without_what} {ratio.without:+.3f}" if ratio.without is not None else ""
    return f"{text}{apart}{without}. Read the median, the pooled ratio and the raw change beside it."


def _unlabelled(index: Index) -> Iterator[Flag]:
    """Tables of means only: where there are items, their labels were checked when they were read."""
    for task in index.views:
        for model, points in index.checkpoints.items():
            bases = [(p.revision, s) for p in points for s in index.seeds(Key(model, p.revision, BASE, task))]
            bases = [(revision, s) for revision, s in bases if s.scores is None]
            perfect = [revision for revision, s in bases if s.mean >= PERFECT]
            if not perfect or (bases[0][0] not in perfect and max(s.mean for _, s in bases) < 1):
                continue
            refused = len(bases) > 1 and bases[0][0] in perfect
            where = f"{listed(perfect)}, the first checkpoint among them" if refused else listed(perfect)
            yield Flag("unlabelled or constant gold", task, f"the base scores 1.000 at {where}: probably the test set "
                       "is unlabelled or has one right answer, and the score is the rate of that answer. Use a "
                       "labelled split.", refused=refused, task=task,
                       model=model if len(index.checkpoints) > 1 else "")  # fmt: skip


def _degenerate(index: Index) -> Iterator[Flag]:
    """Cells without any spread over items."""
    cells: dict[str, list[str]] = defaultdict(list)
    for place, seeds in index.groups.items():
        for scored in seeds:
            if is_degenerate(scored):
                cells[place.task].append(f"{place.tuning} at {place.revision}, {place.format} ({scored.mean:.3f})")
    for task, places in cells.items():
        text = f"{len(places)} cells have a standard error of 0, as all items score the same: {listed(places)}. "
        text += "A constant predictor, or a task that is too hard, too easy or mis-scored."
        yield Flag("degenerate", task, text)


def is_degenerate(scored: Scored) -> bool:
    """Whether all items score the same, as far as the table says."""
    if scored.scores is not None:
        return scored.n >= 2 and bool((scored.scores == scored.scores[0]).all())
    return scored.se == 0


def _constant(index: Index) -> Iterator[Flag]:
    """A base that scores the same at many checkpoints gives the same answer to every item."""
    for task in index.views:
        for model, points in index.checkpoints.items():
            bases = [(p.revision, s) for p in points for s in index.seeds(Key(model, p.revision, BASE, task))[:1]]
            bases = [(r, s) for r, s in bases if INFORMATIVE[0] < s.mean < INFORMATIVE[1] and s.scores is None and s.se]
            for revision, scored in bases:
                same = [r for r, s in bases if abs(s.mean - scored.mean) <= 0.1 * (scored.se or 0.0)]
                if len(same) >= 4 and same[0] == revision:
                    yield Flag("constant predictor", task, f"the base scores {scored.mean:.3f} at {len(same)} "
                               f"checkpoints ({', '.join(same)}), closer than items would vary: probably the rate of "
                               "one class. Compare with the score of always giving the commonest answer.",
                               model=model, task=task)  # fmt: skip
                    break


def _same_checkpoints(index: Index) -> Iterator[Flag]:
    """Different checkpoints with the same scores: one of them was not the model that its name says."""
    runs: dict[tuple[str, str, int | None], dict[str, dict[str, Scored]]] = defaultdict(dict)
    for key in index.keys:
        for scored in index.seeds(key):
            runs[key.model, key.tuning, scored.cell.seed].setdefault(key.revision, {})[key.task] = scored
    hashes = {(p.model, p.revision): p.weights_hash for p in index.table.checkpoints}
    for (model, tuning, _), revisions in runs.items():
        twins: dict[str, tuple[list[str], list[str]]] = {}
        prints = {r: {task: _print(s) for task, s in tasks.items()} for r, tasks in revisions.items()}
        for one, other in combinations(revisions, 2):
            alias = hashes.get((model, one)) is not None and hashes.get((model, one)) == hashes.get((model, other))
            tasks = [] if alias else _agreed(revisions[one], prints[one], prints[other])
            for here, there in ((one, other), (other, one)) if tasks else ():
                names, shared = twins.setdefault(here, ([], tasks))
                names.append(there)
        for revision, (others, shared) in twins.items():
            text = f"the scores on {', '.join(shared)} are those of {', '.join(others)} to the last digit: one of them "
            text += "was probably not the model that its name says. Check the weights that were loaded."
            yield Flag("identical outputs", f"{tuning} at {revision}", text, refused=True,
                       model=model, revision=revision, tuning=tuning)  # fmt: skip


def _unchanged(index: Index) -> Iterator[Flag]:
    """A tuned model whose scores are all those of its base."""
    models: dict[tuple[str, str, str, int | None], dict[str, Scored]] = defaultdict(dict)
    for key in index.keys:
        for scored in index.seeds(key):
            models[key.model, key.revision, key.tuning, scored.cell.seed][key.task] = scored
    prints = {name: {task: _print(s) for task, s in tasks.items()} for name, tasks in models.items()}
    for (model, revision, tuning, seed), tasks in models.items():
        base = prints.get((model, revision, BASE, None))
        shared = [] if tuning == BASE or base is None else _agreed(tasks, prints[model, revision, tuning, seed], base)
        if shared:
            yield Flag("identical outputs", f"{tuning} at {revision}", f"all scores are those of the base, on "
                       f"{', '.join(shared)}: is the adapter active, and did the training move the weights?",
                       model=model, revision=revision, tuning=tuning)  # fmt: skip


def _print(scored: Scored) -> object:
    """What is equal for two cells only where their scores are; ``None`` where agreement says nothing."""
    if not INFORMATIVE[0] < scored.mean < INFORMATIVE[1]:
        return None
    if scored.scores is None or scored.items is None:
        return round(scored.mean, 9)
    beside = b"" if scored.companions is None else scored.companions.tobytes()
    return hash((scored.items.tobytes(), scored.scores.tobytes(), beside))


def _agreed(cells: dict[str, Scored], one: dict[str, object], other: dict[str, object]) -> list[str]:
    """The tasks whose scores agree, where they are too many for chance; else none."""
    shared = [task for task in one if task in other and one[task] is not None and other[task] is not None]
    same = [task for task in shared if one[task] == other[task]]
    if not same:
        return []
    if all(cells[task].scores is not None for task in same):
        enough = len(same) == len(shared) and sum(cells[task].n for task in same) >= SAME_ITEMS
    else:
        enough = len(same) >= SAME_TASKS and 2 * len(same) >= len(shared)
    return same if enough else []


def near(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two adjacent checkpoints are near: by tokens, else by step; a last one without a step is."""
    places = (one.tokens, other.tokens)
    if None in places:
        places = (step_of(one.revision), step_of(other.revision))
    first, last = places
    if last is None:
        return True
    return first is not None and 0 < first <= last < NEAR_STEPS * first


def _training_noise(index: Index) -> Iterator[Flag]:
    """Scores of near checkpoints that differ by many item standard errors; per tuning, the latest for each task."""
    latest: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for model, tuning, task in dict.fromkeys((key.model, key.tuning, key.task) for key in index.keys):
        for one, other in reversed(list(pairwise(index.checkpoints[model]))):
            times, text = _apart(index, Key(model, one.revision, tuning, task), other.revision)
            if times > NOISY and near(one, other):
                latest[model, tuning][task] = text
                break
    for (model, tuning), tasks in latest.items():
        yield Flag("training noise", f"tuning {tuning}", f"{listed(list(tasks.values()))}. Near checkpoints differ by "
                   "what no interval over items holds: read differences against the noise floor, and train with "
                   "several seeds.", model=model, tuning=tuning)  # fmt: skip


def listed(names: Sequence[str], most: int = SHOWN) -> str:
    """Names in a row, the first few of many.

    >>> listed(["a", "b", "c"], 2)
    'a; b; and 1 more'
    """
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return "; ".join([*names[:most], *more])


def _apart(index: Index, key: Key, revision: str) -> tuple[float, str]:
    """By how many standard errors the scores of two checkpoints differ, and that in words."""
    here, there = index.mean(key), index.mean(key._replace(revision=revision))
    errors = [standard_error(index.seeds(k)) for k in (key, key._replace(revision=revision))]
    if here is None or there is None or errors[0] is None or errors[1] is None:
        return 0.0, ""
    error = math.hypot(errors[0], errors[1])
    if error == 0:
        return 0.0, ""
    times = abs(there - here) / error
    text = f"{key.task} {here:.3f} at {key.revision}, {there:.3f} at {revision} ({times:.0f} times the standard error)"
    return times, text
