"""The stage that searches for the worst move: an upper bound on the worst-case radius of each task."""

from __future__ import annotations

from collections.abc import Iterator

from catchment import landscape
from catchment.capabilities import seeded_order
from catchment.commands.scan.bench import Allotment, Bench, Stage
from catchment.landscape import Effort, Ground
from catchment.records import Worst

ATTACK_ITEMS = 16
JUDGED_ITEMS = 128


def split(ground: Ground, count: int) -> tuple[list[str], list[str]]:
    """Items to attack with and items to judge on, by a hash that nothing else uses."""
    order = seeded_order(ground.items, "attack:")
    count = min(count, len(order) // 2)
    return order[:count], order[count:]


def attacks(bench: Bench, time: Allotment) -> Iterator[Worst]:
    """Each task in an equal part of the time."""
    s, tasks, clock = bench.opened.settings, bench.choices, bench.opened.clock
    start = clock.spent
    effort = landscape.within(Effort(s.restarts, s.steps, seed=s.seed), bench.opened.ruler.rms)
    for number, task in enumerate(tasks, 1):
        until = Allotment(bench, start + (time.end - start) * number / len(tasks))
        ground = bench.evaluator.grounds[task]
        attack, judged = split(ground, ATTACK_ITEMS)
        bench.opened.progress.status(f"worst case · {task}")
        worst = landscape.worst(
            bench.evaluator, ground.with_items(judged[:JUDGED_ITEMS]), bench.batches(ground, attack), effort,
            level=1 - s.alpha, family=len(tasks), stop=until.stop,
        )  # fmt: skip
        if worst is not None:
            yield worst


def _rough(bench: Bench) -> float:
    s = bench.opened.settings
    each = 3 * s.steps * s.restarts * ATTACK_ITEMS + JUDGED_ITEMS
    return sum(bench.seconds(5 * bench.tokens(t, each)) for t in bench.admitted.tasks)


def _memory(bench: Bench) -> float:
    return landscape.attack_memory(bench.opened.subspace)


WORST = Stage("worst", "Worst case", 0.45, attacks, _rough, memory=_memory, whole=True)
