"""What measuring will cost: tokens of each task, timed on each of the two models, corrected by what was measured."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from catchment.capabilities import Pace, Task, Work, classifiers, measure_pace, sample, workload
from catchment.commands.compare.allocation import CHUNKS, TaskPlan
from catchment.commands.compare.job import Job
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


@dataclass
class Prices:
    """Seconds that items will take on the two models.

    Attributes:
        paces: Of base and tuned: each is timed, since an adapter or another type of weights may be many times slower.
        loads: By task.
        batch_tokens: Padded tokens of a batch.
        ratios: By task, measured seconds over those foretold, of the last items measured; 1 before.
    """

    paces: tuple[Pace, Pace]
    loads: dict[str, Load]
    batch_tokens: int
    ratios: dict[str, float] = field(default_factory=dict)

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

    def learn(self, task: str, items: Sequence[int], seconds: float) -> None:
        """Note what so many fresh items took."""
        if any(items) and (foretold := self.foretold(task, items)) > 0:
            self.ratios[task] = seconds / foretold

    def fell_short(self, task: str, items: Sequence[int], seconds: float) -> None:
        """Note that so many items were not done after so many seconds; they are taken to need twice as many."""
        if any(items) and (foretold := self.foretold(task, items)) > 0:
            self.ratios[task] = max(self.ratios.get(task, 1.0), 2 * seconds / foretold)

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


def load_of(side: Subject, task: Task, seed: int) -> tuple[Load, float]:
    """The load of a task from a few of its items, and its estimated tokens per item; a classifier's is an item."""
    if task.scorer == "classify":
        return Load(1.0), 0.0
    few = sample(task.items, min(32, len(task.items)), seed)
    prepared = side.prepare(task, task.formats[0].name, few)
    n = len(prepared.encoded)
    work: Work = workload(task, prepared.encoded, prepared.prefix)
    width = max(len(e.prompt) - prepared.prefix + sum(len(a) - 1 for a in e.answers) for e in prepared.encoded)
    longest = task.max_new_tokens if work.generated else 0
    return Load((work.read + prepared.prefix / n) / n, work.generated / n, width, longest), prepared.tokens / len(few)


def time_models(job: Job, loads: dict[str, Load], budget: float) -> Prices:
    """Time both models on a few tokens, and choose a batch that takes a small share of the budget."""
    patience = min(PATIENCE * budget, MOST_PATIENCE)
    paces = (_pace(job, job.base, patience), _pace(job, job.tuned, patience))
    batch = job.plan.batch_tokens
    if job.settings.batch_tokens is None and not job.base.classifies:
        slowest = max(pace.read for pace in paces)
        while batch > LEAST_BATCH and batch * slowest > BATCH_SHARE * budget:
            batch //= 2
    return Prices(paces, loads, batch)


def _pace(job: Job, side: Subject, patience: float) -> Pace:
    """Of a classifier the seconds of one item stand for those of a token."""
    if not side.classifies:
        return measure_pace(side.engine(job.plan.batch_tokens), patience)
    task, loaded = job.tasks[0], side.loaded
    begin = time.perf_counter()
    classifiers.evaluate(loaded.model, loaded.tokenizer, task, sample(task.items, 1, job.settings.seed))
    return Pace(time.perf_counter() - begin)
