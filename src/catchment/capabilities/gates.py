"""Validity gates: what would look like a result and is none. On by default; each raises or warns by name."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from catchment.capabilities.tasks import CHOICE_SCORERS, Item, Task
from catchment.errors import GateError
from catchment.records import Row

NEAR = 0.9
"""Two items whose word 3-grams overlap by more (Jaccard) are near-duplicates."""


_PUNCTUATION = re.compile(r"[.,;:!?\"'`\u2018\u2019\u201c\u201d](?!\d)")


def _normalised(item: Item) -> str:
    """What makes an item the same question: words, numbers and operators (``7 - 2`` is not ``7 + 2``), the choices,
    and the second text of a pair; case, blanks and punctuation aside."""
    text = " ".join([item.prompt, *item.choices, str(item.meta.get("pair") or "")])
    return " ".join(_PUNCTUATION.sub(" ", text.lower()).split())


def _question(item: Item) -> str:
    """As :func:`_normalised`, with the choices in any order: a shot gives the answer away either way."""
    return _normalised(Item(item.prompt, tuple(sorted(item.choices)), id="question", meta=item.meta))


def _labelled(item: Item, scorer: str) -> bool:
    if scorer in CHOICE_SCORERS:
        return isinstance(item.gold, int) and not isinstance(item.gold, bool) and 0 <= item.gold < len(item.choices)
    if scorer == "classify":
        return isinstance(item.gold, int) and item.gold >= 0
    if scorer == "refusal":
        return item.gold in ("refuse", "comply")
    if scorer == "regex":
        return isinstance(item.gold, str) and item.gold != ""
    golds = item.gold if isinstance(item.gold, tuple) else (item.gold,)
    return bool(golds) and all(gold is not None and gold != -1 and str(gold).strip() for gold in golds)


def check_labels(task: Task) -> None:
    """Refuse unlabelled gold (``None``, -1, an index outside the choices) and constant gold.

    Constant gold makes a model that always answers the same look perfect.
    """
    if task.scorer in ("text", "agreement", "callable"):
        return
    missing = [item for item in task.items if not _labelled(item, task.scorer)]
    if missing:
        raise GateError(
            f"task {task.name!r}: {len(missing)} of {len(task.items)} items have no label that {task.scorer!r} can "
            f"score (first: item {missing[0].id}, gold {missing[0].gold!r}); test splits are often published without "
            f"labels: use the validation split."
        )
    if task.scorer == "regex":
        _check_patterns(task)
    golds = Counter(str(item.gold) for item in task.items)
    if task.scorer != "regex" and len(task.items) >= 10 and len(golds) == 1:
        raise GateError(
            f"task {task.name!r}: the right answer is {next(iter(golds))!r} for all {len(task.items)} items; a model "
            f"that always says so would score 1. Shuffle the choices or add items of the other classes."
        )


def _check_patterns(task: Task) -> None:
    for item in task.items:
        try:
            re.compile(str(item.gold))
        except re.error as error:
            raise GateError(
                f"task {task.name!r}, item {item.id}: {item.gold!r} is no regular expression ({error}); expected a "
                f"pattern for the whole answer. Escape special characters with re.escape."
            ) from error


def check_shots(task: Task) -> None:
    """Refuse shots that are also scored."""
    scored = {_question(item) for item in task.items}
    shared = [shot.id for shot in task.shots if _question(shot) in scored]
    if shared:
        raise GateError(
            f"task {task.name!r}: {len(shared)} of its {len(task.shots)} shots are among the scored items (first: "
            f"{shared[0]}); take the shots from another split."
        )


def near_duplicates(items: Sequence[Item]) -> list[tuple[str, str]]:
    """Pairs of near-duplicate items: equal after normalisation, or word 3-grams overlapping by more than NEAR.

    Compares only items that share their rarest 3-gram's bucket, so the cost is near linear in the items.
    """
    pairs: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    shingles: dict[str, frozenset[tuple[str, ...]]] = {}
    for item in items:
        if "image" in item.meta:
            continue  # what is asked is in the picture
        text = _normalised(item)
        if text in seen:
            pairs.append((seen[text], item.id))
            continue
        seen[text] = item.id
        words = text.split()
        if len(words) >= 12:
            shingles[item.id] = frozenset(zip(words, words[1:], words[2:], strict=False))
    counts = Counter(s for group in shingles.values() for s in group)
    buckets: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, group in shingles.items():
        # With more than NEAR in common, two sets share one of their rarest (1 - NEAR) * size + 1 members.
        rare = sorted(group, key=lambda s: (counts[s], s))[: int((1 - NEAR) * len(group)) + 1]
        near = {other for s in rare for other in buckets[s][:50]}
        for other in near:
            both = len(group & shingles[other])
            if both > NEAR * (len(group) + len(shingles[other]) - both):
                pairs.append((other, name))
                break
        for s in rare:
            buckets[s].append(name)
    return pairs


def check_duplicates(task: Task) -> list[str]:
    """Refuse a task where more than 5% of the items repeat others (intervals would claim too much); warn of fewer."""
    pairs = near_duplicates(task.items)
    if not pairs:
        return []
    text = f"{len(pairs)} of {len(task.items)} items nearly repeat another (first: {pairs[0][1]} repeats {pairs[0][0]})"
    if len(pairs) > 0.05 * len(task.items):
        raise GateError(f"task {task.name!r}: {text}; intervals would claim too much. Remove the copies.")
    return [text]


def check_task(task: Task) -> list[str]:
    """All gates that need no model. Returns warnings, the task's own notes first.

    Raises:
        GateError: The task would give numbers that look like a result.
    """
    check_labels(task)
    check_shots(task)
    return [*task.notes, *check_duplicates(task)]


def check_model(name: str, newly_initialised: Sequence[str], non_finite: Sequence[str]) -> None:
    """Refuse weights that no training made: initialised at random while loading, NaN or infinite."""
    if newly_initialised:
        raise GateError(
            f"model {name!r}: {len(newly_initialised)} weights are not in its files and were newly initialised at "
            f"random (first: {newly_initialised[0]!r}); expected a complete checkpoint for this head. Load it with "
            f"the head it was trained with, or repair the files."
        )
    if non_finite:
        raise GateError(
            f"model {name!r}: {len(non_finite)} tensors hold NaN or infinite values (first: {non_finite[0]!r}); "
            f"expected finite weights. Take an earlier checkpoint."
        )


def check_lengths(task: Task, lengths: Mapping[str, int], limit: int | None) -> None:
    """Refuse prompts that do not fit into the context: a cut prompt measures something else."""
    if limit is None:
        return
    over = {name: n for name, n in lengths.items() if n > limit}
    if over:
        worst = max(over, key=over.__getitem__)
        raise GateError(
            f"task {task.name!r}: {len(over)} of {len(lengths)} prompts are longer than the model's context of "
            f"{limit} tokens (longest: item {worst}, {over[worst]} tokens, answer included); use fewer shots, shorter "
            f"items or another task; compare and scan can leave these items out for both models (--drop-long)."
        )


def check_rows(task: Task, rows: Iterable[Row]) -> list[str]:
    """Warn of completions that the token limit cut, of gibberish, and of ties."""
    rows = list(rows)
    found = []
    count = Counter(flag for row in rows for flag in row.flags)
    limit = f"the limit of {task.max_new_tokens} tokens"
    if task.scorer in ("exact", "regex", "callable") and count["cut"] > 0.1 * len(rows):
        found.append(f"{count['cut']} of {len(rows)} answers were cut at {limit}")
    if count["incoherent"] > 0.02 * len(rows):
        found.append(f"{count['incoherent']} of {len(rows)} answers are gibberish: neither refusal nor answer")
    if count["tie"]:
        found.append(f"{count['tie']} of {len(rows)} decisions are ties that rounding may decide")
    if count["truncated"]:
        found.append(f"{count['truncated']} of {len(rows)} passages were cut at the context length")
    return found


def check_twins(base: Mapping[str, Sequence[Row]], tuned: Mapping[str, Sequence[Row]], same_weights: bool) -> None:
    """Refuse bit-identical log-probabilities from different weights: the wrong model was measured twice.

    Args:
        base, tuned: rows per task, as measured.
        same_weights: the two weight hashes are equal (then identical outputs are what one expects).
    """
    if same_weights:
        return
    numbers = {(task, r.item): r.logprobs for task, rows in base.items() for r in rows if r.logprobs}
    others = {(task, r.item): r.logprobs for task, rows in tuned.items() for r in rows if r.logprobs}
    shared = numbers.keys() & others.keys()
    if len(shared) >= 5 and all(numbers[key] == others[key] for key in shared):
        raise GateError(
            f"the two models have different weights but gave bit-identical log-probabilities on all {len(shared)} "
            f"items; expected some difference. One of them was probably not the model its name says: check the "
            f"paths, the revision, and that the adapter is active."
        )
