"""What measuring will cost: tokens of each task, timed on each of the two models, corrected by what was measured."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from catchment.capabilities import Pace, Task, Work, classifiers, measure_pace, sample, workload
from catchment.commands.compare.allocation import CHUNKS, Plan, TaskPlan
from catchment.commands.compare.pair import Pair
from catchment.measuring import Subject

PATIENCE, MOST_PATIENCE = 0.02, 3.0
"""Of a budget, to time one model; seconds at most."""
BATCH_SHARE = 0.03
"""Of a budget that reading one batch may take."""
CHUNK_SHARE = 0.08
"""Of a budget that items between two looks at the clock may take."""
LEAST_BATCH = 64
LITTLE_MORE = 1.25
"""More items that take up to so many times as long are measured together: a step of decoding may take the same."""


@dataclass(frozen=True)
class Load:
    """What an item of a task asks for, in the mean: tokens to read and to generate, and padded tokens of its row.
    ``most``: tokens that it may generate, where a model does not stop after an answer as long as the right one."""

    read: float
    generated: float = 0.0
    width: float = 1.0
    most: float = 0.0


@dataclass(frozen=True)
class Prices:
    """Seconds that items will take on the two models, as known now.

    Attributes:
        paces: Of base and tuned: each is timed, since an adapter or another type of weights may be many times slower.
        loads: By task.
        batch_tokens: Padded tokens of a batch.
        ratios: By task, measured seconds over those foretold, of the last items measured; 1 before.
    """

    paces: tuple[Pace, Pace]
    loads: Mapping[str, Load]
    batch_tokens: int
    ratios: Mapping[str, float] = field(default_factory=dict)

    def foretold(self, task: str, items: Sequence[int], *, most: bool = False) -> float:
        """Seconds for so many items on base and tuned, as timed; ``most``: with the longest answers."""
        load = self.loads[task]
        generated = load.most if most else load.generated
        rows = max(1, int(self.batch_tokens / max(load.width, 1.0)))
        pairs = zip(self.paces, items, strict=True)
        return sum(pace.seconds(load.read, generated, n, rows) for pace, n in pairs if n)

    def seconds(self, task: str, items: int) -> float:
        """Seconds for so many items on both models."""
        return self.foretold(task, (items, items)) * self.ratios.get(task, 1.0)

    def at_most(self, task: str, items: int) -> float:
        """The same; with the longest answers as long as nothing was measured of the task."""
        if task in self.ratios:
            return self.seconds(task, items)
        return self.foretold(task, (items, items), most=True)

    def learn(self, task: str, items: Sequence[int], seconds: float) -> Prices:
        """Prices after so many fresh items took so long."""
        foretold = self.foretold(task, items)
        return self._with_ratio(task, seconds / foretold) if foretold > 0 else self

    def fell_short(self, task: str, items: Sequence[int], seconds: float) -> Prices:
        """Prices after so many items were not done in so long; they are taken to need twice as many seconds."""
        foretold = self.foretold(task, items)
        ratio = max(self.ratios.get(task, 1.0), 2 * seconds / foretold) if foretold > 0 else 1.0
        return self._with_ratio(task, ratio) if foretold > 0 else self

    def _with_ratio(self, task: str, ratio: float) -> Prices:
        return dataclasses.replace(self, ratios={**self.ratios, task: ratio})

    def chunk(self, t: TaskPlan, budget: float) -> int:
        """Items between two looks at the clock: the most that take a small share of the budget, or hardly more than
        the fewest do."""
        least = self.at_most(t.task, min(CHUNKS[-1], t.available))
        most = max(CHUNK_SHARE * budget, LITTLE_MORE * least)
        return next((n for n in CHUNKS if self.at_most(t.task, min(n, t.available)) <= most), CHUNKS[-1])

    def each(self, t: TaskPlan, budget: float) -> float:
        """Seconds per item in chunks."""
        n = min(self.chunk(t, budget), t.available)
        return self.seconds(t.task, n) / n


def load_of(subject: Subject, task: Task, seed: int) -> tuple[Load, float]:
    """The load of a task from a few of its items, and its estimated tokens per item; a classifier's is an item."""
    if task.scorer == "classify":
        return Load(1.0), 0.0
    few = sample(task.items, min(32, len(task.items)), seed)
    prepared = subject.prepare(task, task.formats[0].name, few)
    n = len(prepared.encoded)
    work: Work = workload(task, prepared.encoded, prepared.prefix)
    width = max(len(e.prompt) - prepared.prefix + sum(len(a) - 1 for a in e.answers) for e in prepared.encoded)
    longest = task.max_new_tokens if work.generated else 0
    return Load((work.read + prepared.prefix / n) / n, work.generated / n, width, longest), prepared.tokens / len(few)


def time_models(pair: Pair, plan: Plan, loads: Mapping[str, Load], budget: float) -> Prices:
    """Time both models on a few tokens, and choose a batch that takes a small share of the budget."""
    patience = min(PATIENCE * budget, MOST_PATIENCE)
    base, tuned = (_pace(pair, subject, plan.batch_tokens, patience) for subject in pair.subjects)
    batch = plan.batch_tokens
    if pair.settings.batch_tokens is None and not pair.base.classifies:
        slowest = max(base.read, tuned.read)
        while batch > LEAST_BATCH and batch * slowest > BATCH_SHARE * budget:
            batch //= 2
    return Prices((base, tuned), loads, batch)


def _pace(pair: Pair, subject: Subject, batch_tokens: int, patience: float) -> Pace:
    """Of a classifier the seconds of one item stand for those of a token."""
    if not subject.classifies:
        return measure_pace(subject.engine(batch_tokens), patience)
    task, loaded = pair.tasks[0], subject.loaded
    begin = time.perf_counter()
    classifiers.evaluate(loaded.model, loaded.tokenizer, task, sample(task.items, 1, pair.settings.seed))
    return Pace(time.perf_counter() - begin)
