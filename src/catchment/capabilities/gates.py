"""Validity gates: what would look like a result and is none. On by default; each raises or warns by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from catchment.capabilities.duplicates import Asked, near_duplicates, overlap
from catchment.capabilities.rouge import words
from catchment.capabilities.scorers import normalise_answer
from catchment.capabilities.tallies import Tally, tally
from catchment.capabilities.tasks import CHOICE_SCORERS, Item, Task
from catchment.errors import GateError
from catchment.records import Row

FEW = 10
"""Rows, or items, below which nothing is said of constant answers."""
CONSTANT = 0.95
"""Share of one answer above which a model is called a constant predictor."""
MANY = 0.05
"""Share of items that repeat others, or stand in training rows, above which a task is refused."""


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


def _unlabelled(task: Task) -> list[Item]:
    missing = [item for item in task.items if not _labelled(item, task.scorer)]
    if not missing and task.scorer in ("exact", "rouge_l") and len(task.items) > 1:
        golds = [item.gold if isinstance(item.gold, tuple) else (item.gold,) for item in task.items]
        missing = list(task.items) if all(str(gold).strip() == "-1" for group in golds for gold in group) else []
    return missing


def check_labels(task: Task) -> None:
    """Refuse unlabelled gold (``None``, -1, an index outside the choices), choices that are none, and constant gold.

    Constant gold makes a model that always answers the same look perfect.
    """
    if task.scorer in ("text", "agreement", "callable"):
        return
    _check_choices(task)
    missing = _unlabelled(task)
    if missing:
        raise GateError(
            f"task {task.name!r}: {len(missing)} of {len(task.items)} items have no label that {task.scorer!r} can "
            f"score (first: item {missing[0].id}, gold {missing[0].gold!r}); test splits are often published without "
            f"labels: use the validation split."
        )
    if task.scorer == "regex":
        _check_patterns(task)
    if task.scorer == "rouge_l":
        _check_references(task)
    constant = _constant_gold(task)
    if constant is not None and len(task.items) >= FEW:
        raise GateError(
            f"task {task.name!r}: the right answer is {constant!r} for all {len(task.items)} items; a model "
            f"that always says so would score 1. Shuffle the choices or add items of the other classes."
        )


def _constant_gold(task: Task) -> str | None:
    """What would be right for every item, if anything is; a pattern is a form and no answer."""
    items = task.items
    if task.scorer == "regex":
        return None
    groups = [{str(item.gold)} for item in items]
    if task.scorer in ("exact", "rouge_l"):
        golds = [item.gold if isinstance(item.gold, tuple) else (item.gold,) for item in items]
        groups = [{normalise_answer(str(gold)) for gold in group} for group in golds]
    shared = set.intersection(*groups)
    if not shared and task.scorer in CHOICE_SCORERS:
        shared = set.intersection(*({item.choices[item.gold]} for item in items if isinstance(item.gold, int)))
    return min(shared, default=None)


def _check_choices(task: Task) -> None:
    """Refuse items without a choice to make."""
    if task.scorer not in CHOICE_SCORERS:
        return
    for item in task.items:
        if len(item.choices) < 2 or not all(choice.strip() for choice in item.choices):
            raise GateError(
                f"task {task.name!r}, item {item.id}: its choices are {list(item.choices)!r}; expected at least 2 "
                f"visible texts. Fill the columns of the choices, or leave the item out."
            )


def _check_references(task: Task) -> None:
    for item in task.items:
        golds = item.gold if isinstance(item.gold, tuple) else (item.gold,)
        if not any(words(str(gold)) for gold in golds):
            raise GateError(
                f"task {task.name!r}, item {item.id}: the right answer {golds[0]!r:.80} holds no ASCII letter or "
                f"digit, which is all that ROUGE reads, so every answer would score 0. Use scorer 'exact'."
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


def check_shots(task: Task) -> list[str]:
    """Refuse shots that are also scored, choices in any order; warn of those that nearly repeat a scored item."""
    if not task.shots:
        return []
    asked = Asked(task.items)
    shared = [shot.id for shot in task.shots if asked.same(shot) is not None]
    if shared:
        raise GateError(
            f"task {task.name!r}: {len(shared)} of its {len(task.shots)} shots are among the scored items (first: "
            f"{shared[0]}); take the shots from another split."
        )
    near = {shot.id: name for shot in task.shots if (name := asked.near(shot)) is not None}
    if not near:
        return []
    first, item = next(iter(near.items()))
    return [f"{len(near)} of {len(task.shots)} shots nearly repeat a scored item (first: {first} repeats {item})"]


def check_duplicates(task: Task) -> list[str]:
    """Refuse a task where more than 5% of the items repeat others (intervals would claim too much); warn of fewer."""
    pairs = near_duplicates(task.items)
    if not pairs:
        return []
    text = f"{len(pairs)} of {len(task.items)} items nearly repeat another (first: {pairs[0][1]} repeats {pairs[0][0]})"
    if len(pairs) > MANY * len(task.items):
        raise GateError(f"task {task.name!r}: {text}; intervals would claim too much. Remove the copies.")
    return [text]


def check_task(task: Task) -> list[str]:
    """All gates that need no model. Returns warnings, the task's own notes first.

    Raises:
        GateError: The task would give numbers that look like a result.
    """
    check_labels(task)
    return [*task.notes, *check_shots(task), *check_duplicates(task), *_repeated_choices(task)]


def _repeated_choices(task: Task) -> list[str]:
    """Two equal choices are equally likely, so that the first of them is taken."""
    if task.scorer not in CHOICE_SCORERS:
        return []
    twice = [item.id for item in task.items if len(set(item.choices)) < len(item.choices)]
    return [f"{len(twice)} of {len(task.items)} items offer a choice twice (first: {twice[0]})"] if twice else []


def check_overlap(train: Iterable[Any], task: Task, *, allow: bool = False) -> list[str]:
    """Warn of items that stand in the rows a model is trained on; refuse where they are more than 5%.

    See :func:`catchment.capabilities.overlap`, which also names the items, so that they can be left out.

    Args:
        train: The rows; texts, or objects such as ``{"prompt", "completion"}`` and ``{"messages"}``.
        allow: Warn only, however many they are.

    Raises:
        GateError: More than 5% of the items were trained on, and ``allow`` is false.
    """
    met = overlap(train, task)
    if not met.rows:
        return []
    if met.share > MANY and not allow:
        raise GateError(
            f"task {task.name!r}: {met.sentence}: the score would measure memory. Leave these items or rows out, "
            f"take another split, or allow the overlap."
        )
    return [f"{met.sentence}: what is scored there was trained on"]


def check_first_tokens(task: Task, tokenizer: Any) -> list[str]:
    """Warn of labels that begin with one token, without or with a blank in front.

    The choice scorers compare whole choices, so that their scores hold; a reading of the first token alone, as some
    published numbers are, cannot tell such labels apart, and is no reproduction of these.
    """
    if task.scorer not in CHOICE_SCORERS or len({item.choices for item in task.items}) != 1:
        return []
    warnings = []
    for blank, said in (("", "without"), (" ", "with")):
        firsts: dict[int, list[str]] = {}
        for label in dict.fromkeys(task.items[0].choices):
            ids = tokenizer(blank + label.strip(), add_special_tokens=False)["input_ids"]
            firsts.setdefault(ids[0], []).append(label)
        warnings += [
            f"the labels {', '.join(map(repr, labels))} begin with the same token {said} a blank in front: their first "
            "token alone does not tell them apart (the score compares whole labels)"
            for labels in firsts.values()
            if len(labels) > 1
        ]
    return warnings


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
    """Warn of completions that the token limit cut, of gibberish, of ties, and of a model that always says the same."""
    rows = list(rows)
    found = check_constant(task, rows)
    count = Counter(flag for row in rows for flag in row.flags)
    limit = f"the limit of {task.max_new_tokens} tokens"
    if task.scorer in ("exact", "regex", "rouge_l", "callable") and count["cut"] > 0.1 * len(rows):
        found.append(f"{count['cut']} of {len(rows)} answers were cut at {limit}")
    if count["incoherent"] > 0.02 * len(rows):
        found.append(f"{count['incoherent']} of {len(rows)} answers are gibberish: neither refusal nor answer")
    if count["tie"]:
        found.append(f"{count['tie']} of {len(rows)} decisions are ties that rounding may decide")
    if count["truncated"]:
        found.append(f"{count['truncated']} of {len(rows)} passages were cut at the context length")
    return found


def check_constant(task: Task, rows: Sequence[Row]) -> list[str]:
    """Warn where (nearly) every answer is the same though the right ones are mixed, or where one answer was right for
    every item that was measured: the score is then that of the answer and not of the model."""
    counts = tally(task, rows)
    if counts is None or counts.n < FEW:
        return []
    if len(counts.golds) == 1:
        only = next(iter(counts.golds))
        return [] if task.scorer in ("regex", "callable") else [
            f"the right answer is {only!r} for all {counts.n} items that were measured: always saying so scores 1"
        ]  # fmt: skip
    said, times = next(iter(counts.answers.items()))
    if times < CONSTANT * counts.n or counts.majority > 0.9:
        return []
    return [
        f"constant answers: {times} of {counts.n} are {said!r} ({counts.histogram}), which is right for "
        f"{counts.golds.get(said, 0)}; {_beside_constant(counts)}"
    ]


def _beside_constant(counts: Tally) -> str:
    """What a constant answer scores, beside the score."""
    label, n = next(iter(counts.golds.items()))
    equal = abs(counts.score - counts.majority) < 1e-9
    return (
        f"the score {counts.score:.3f} {'equals' if equal else 'beside'} the majority baseline {counts.majority:.3f} "
        f"({label[:40]!r} is right for {n}); chance {counts.chance:.3f}"
    )


def check_twins(base: Mapping[str, Sequence[Row]], tuned: Mapping[str, Sequence[Row]], same_weights: bool) -> None:
    """:func:`check_identical` for two models.

    Args:
        base, tuned: rows per task, as measured.
        same_weights: the two weight hashes are equal (then identical outputs are what one expects).
    """
    check_identical({"base": base, "tuned": tuned}, {"base": "", "tuned": "" if same_weights else "other"})


def check_identical(outputs: Mapping[str, Mapping[str, Sequence[Row]]], weights: Mapping[str, str]) -> None:
    """Refuse bit-identical log-probabilities from different weights: the wrong model was measured twice.

    Two models are compared on the items that both have, and only where these are at least 5. Cost: one comparison per
    pair of models, up to the first item where they differ.

    Args:
        outputs: For each model by its name, the rows per task (and condition), as measured.
        weights: The hash of the weights of each; models with the same hash are expected to agree.

    Raises:
        GateError: Models with different hashes agree on all items; names them.
    """
    numbers = {
        name: {(task, row.item): row.logprobs for task, rows in tasks.items() for row in rows if row.logprobs}
        for name, tasks in outputs.items()
    }
    for one, other in combinations(numbers, 2):
        shared = 0 if weights[one] == weights[other] else _identical(numbers[one], numbers[other])
        if shared >= 5:
            others = [name for name in numbers if weights[name] != weights[one]]
            alike = [one, *(name for name in others if _identical(numbers[one], numbers[name]) >= 5)]
            named = f"{', '.join(map(repr, alike[:-1]))} and {alike[-1]!r}"
            raise GateError(
                f"models {named} have different weights but gave bit-identical log-probabilities on all {shared} "
                f"items; expected some difference. One of them was probably not the model its name says: check the "
                f"paths, the revision, and that the adapter is active."
            )


def _identical(one: Mapping[Any, tuple[float, ...]], other: Mapping[Any, tuple[float, ...]]) -> int:
    """How many items two models share where they agree on all of these; 0 where they differ."""
    if len(other) < len(one):
        one, other = other, one
    shared = 0
    for key, values in one.items():
        if key in other:
            if values != other[key]:
                return 0
            shared += 1
    return shared
