"""Validity gates on lm-eval's logs: labels, constant answers, shots among the scored items, one model twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from catchment.commands.study.lm_eval_samples import MISSING, NO_CHOICE, Log, Sample
from catchment.commands.study.record import BASE, Flag

CONSTANT = 0.98
"""Share of items with one choice from which a model is called constant."""
FEWEST = 10
"""Items below which one answer, or one label, for all says little."""
SHORT = 20
"""Letters below which an item's own part of a prompt may stand in others by chance."""
DELIMITER = "\n\n"
"""Between shots, lm-eval's default."""
Logs = Mapping[str, Mapping[str, Log]]
"""By model, the base under its own name, and task."""


def flags_of(logs: Logs) -> list[Flag]:
    """All gates."""
    flags = []
    for task in dict.fromkeys(task for own in logs.values() for task in own):
        log = next(own[task] for own in logs.values() if task in own)
        if log.samples:
            flags += [*_labels(log), *_shots(log), *_repeats(log)]
    for model, own in logs.items():
        flags += [flag for log in own.values() for flag in _constant(model, log)]
    return [*flags, *_twins(logs)]


def _labels(log: Log) -> Iterator[Flag]:
    """Every model was asked the same items, so that one log shows them."""
    unlabelled = [s for s in log.samples if s.target.strip() in MISSING]
    choices = [s for s in log.samples if len(s.logprobs) > 1]
    if unlabelled:
        yield Flag("unlabelled", log.task, f"{len(unlabelled)} of {len(log.samples)} items have the target "
                   f"{unlabelled[0].target!r}, which is no label: test splits are often published without. Use the "
                   "validation split.", refused=True, task=log.task)  # fmt: skip
    elif len(log.samples) >= FEWEST and len({(s.target, s.choices) for s in log.samples}) == 1:
        yield Flag("constant gold", log.task, f"the target is {log.samples[0].target!r} for all {len(log.samples)} "
                   "items: a model that always says so scores 1.", refused=True, task=log.task)  # fmt: skip
    elif len(choices) == len(log.samples) and all(s.right == NO_CHOICE and s.target.isdigit() for s in choices):
        yield Flag("unlabelled", log.task, f"the targets (first: {choices[0].target}) are outside of the "
                   f"{len(choices[0].logprobs)} choices.", refused=True, task=log.task)  # fmt: skip


def _constant(model: str, log: Log) -> Iterator[Flag]:
    chosen = Counter(_chosen(s) for s in log.samples if len(s.logprobs) > 1)
    total = sum(chosen.values())
    if total < FEWEST or len({s.target for s in log.samples}) < 2:
        return
    choice, times = chosen.most_common(1)[0]
    if times >= CONSTANT * total:
        yield Flag("constant predictor", f"{model} on {log.task}", f"choice {choice + 1} is the likeliest on {times} "
                   f"of {total} items, whatever the item: the score is near the share of that label.",
                   task=log.task, tuning=model)  # fmt: skip


def _chosen(sample: Sample) -> int:
    return max(range(len(sample.logprobs)), key=sample.logprobs.__getitem__)


def _shots(log: Log) -> Iterator[Flag]:
    """Solved examples that are scored items, as far as the prompts show them."""
    parts = [s.context.split(DELIMITER) for s in log.samples]
    own = Counter(blocks[-1] for blocks in parts)
    asked = {text for text, times in own.items() if times == 1 and len(text) >= SHORT}
    lengths = sorted({len(text) for text in asked})
    tested, leaked = set(), 0
    for blocks in parts:
        heads = {block[:n] for block in blocks[:-1] for n in lengths if len(block) > n} & asked
        tested |= heads
        leaked += blocks[-1] in heads
    if leaked:
        yield Flag("shots in the test set", log.task, f"{leaked} of {len(parts)} prompts hold their own item as a "
                   "solved example: the answer is given away. Take the shots from another split.",
                   refused=True, task=log.task)  # fmt: skip
    elif tested:
        yield Flag("shots in the test set", log.task, f"{len(tested)} of {len(parts)} scored items are solved examples "
                   "in the prompts of others. Take the shots from another split.", task=log.task)  # fmt: skip


def _repeats(log: Log) -> Iterator[Flag]:
    repeats = sum(s.key[2] > 0 for s in log.samples)
    if repeats:
        yield Flag("repeated items", log.task, f"{repeats} of {len(log.samples)} items repeat another, label included: "
                   "they are counted as one group.", task=log.task)  # fmt: skip


def _twins(logs: Logs) -> Iterator[Flag]:
    """Models with bit-identical log-probabilities on all items of all multiple choices."""
    prints: dict[str, dict[tuple[str, tuple[str, str, int]], tuple[float, ...]]] = {
        model: {(log.task, s.key): s.logprobs for log in own.values() for s in log.samples if s.logprobs}
        for model, own in logs.items()
    }
    for one, other in combinations(logs, 2):
        shared = prints[one].keys() & prints[other].keys()
        if len(shared) >= FEWEST and all(prints[one][key] == prints[other][key] for key in shared):
            text = f"{one} and {other} have bit-identical log-probabilities on all {len(shared)} items: one of them "
            text += "was probably not the model that its folder says. Check the path, the revision and the adapter."
            yield from (
                Flag("identical outputs", f"{one} and {other}", text, refused=True, tuning=name)
                for name in (one, other) if name != BASE or len(logs) == 2
            )  # fmt: skip


def check_prompts(name: str, base: Sequence[Log], other: str, logs: Sequence[Log]) -> str:
    """What is wrong with the prompts of two models, empty where they are the same for every shared item."""
    mine = {(log.task, s.key): s for log in base for s in log.samples}
    pairs = [(log.task, mine[log.task, s.key], s) for log in logs for s in log.samples if (log.task, s.key) in mine]
    differ = [pair for pair in pairs if pair[1].prompt != pair[2].prompt]
    if not differ:
        return ""
    task, one, two = differ[0]
    return (
        f"{name} and {other} were asked {len(differ)} of {len(pairs)} items with different prompts (first: {task}, "
        f"{_apart(one.context, two.context)}); expected the same number of shots, seed and chat template for both. "
        "Run lm-eval again with equal settings."
    )


def _apart(one: str, two: str, width: int = 40) -> str:
    """Two texts from where they part."""
    place = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    start = max(place - 10, 0)
    return f"{one[start : start + width]!r} against {two[start : start + width]!r}"
