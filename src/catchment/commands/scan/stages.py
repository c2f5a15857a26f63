"""What a budget buys, in this order: brackets, worst case, profiles, plane, curvature, gradients; what is left over
goes back to the brackets. Every stage gets a share of the time that is left, and says what it would have cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from catchment import landscape, models
from catchment.capabilities import gates
from catchment.commands.scan.gradients import claims
from catchment.commands.scan.job import ScanJob, split, unit_scales
from catchment.errors import CatchmentError, InputError
from catchment.landscape import Batch, Direction, Effort, Evaluator, Field, Ground, NotStoredError, Towards
from catchment.measuring import failures
from catchment.records import Curvature, Gradients, Panel, Plane, PlanePoint, Worst, from_json, to_json
from catchment.runs import processes

WHOLE = ("worst", "curvature", "gradients")
"""Stages that take gradients, which weights cut over processes do not give whole."""
PILOT = 4
"""Units per scale from which the search guesses where a task is lost."""
ATTACK_ITEMS = 16
JUDGED_ITEMS = 128
PLANE_ITEMS = 24
CURVED_ITEMS = 4
PRODUCTS = range(4, 16)
"""With the Hessian, for its trace: as many as memory holds."""
SPEED, POINT = 500.0, 0.1
"""Tokens per second, and seconds per displaced point, until any were measured."""
SAVE_SECONDS = 5.0
"""Between two looks at the clock that are written to plan.json."""
SHARES = {"basins": 0.55, "worst": 0.45, "profiles": 0.5, "plane": 0.6, "curvature": 0.8, "gradients": 1.0}
"""Of the time that is left when a stage begins."""
TITLES = {
    "basins": "Basins", "worst": "Worst case", "profiles": "Profiles", "plane": "Plane", "curvature": "Curvature",
    "gradients": "Gradients",
}  # fmt: skip


_Axes = tuple[tuple[Direction, Direction], tuple[float, float], tuple[str, str], list[PlanePoint]]


class Stages:
    """The stages of one scan, and what came out of them."""

    def __init__(self, job: ScanJob, evaluator: Evaluator, field: Field) -> None:
        self.job, self.evaluator, self.field = job, evaluator, field
        self.panels: list[Panel] = []
        self.worst: list[Worst] = []
        self.plane: Plane | None = None
        self.curvature: Curvature | None = None
        self.gradients: Gradients | None = None
        self._deadline = self._saved = 0.0

    def run(self) -> None:
        """All stages in order, then the brackets again with what is left."""
        s = self.job.settings
        self._stage("basins", self._brackets, None)
        self._stage("worst", self._worst, None)
        self._stage("profiles", self._profiles, None)
        if s.plane:
            self._stage("plane", self._plane, self._plane_price)
        self._stage("curvature", self._curvature, self._curvature_price)
        if s.gradients:
            self._stage("gradients", self._gradients, None, forced=True)
        self._rest_for_brackets()
        self.evaluator.flush()

    def lost(self) -> bool:
        """Whether a replay came to less than the scan that it replays: the store was cleared, or is another one."""
        here = {panel.name for panel in self.panels if panel.bought}
        found, before = self.found(), self.job.kept.found
        return any(panel.bought and panel.name not in here for panel in self.job.bought) or any(
            found[name] < before.get(name, 0) for name in found
        )

    def found(self) -> dict[str, int]:
        """Scales that were decided and radii that were looked at."""
        return {
            "basins": sum(len(known) for known in self.field.decided.values()),
            "worst": sum(len(worst.nodes) for worst in self.worst),
        }

    def _rest_for_brackets(self) -> None:
        clock, first = self.job.clock, self.panels[0]
        self._deadline, before = clock.end, clock.spent

        def rest() -> bool:
            bought = self._brackets()
            landscape.sharpen(self.field, self.job.admitted, self.field.design.cap, self._stop)
            return bought

        bought, note = self._tried("basins", rest, replay=clock.left <= 0)
        bought, note = bought or first.bought, note or first.note
        seconds = round(first.seconds + clock.spent - before, 1)
        price = None if bought or note else first.price
        self.panels[0] = Panel(first.name, first.title, bought, seconds, price, "" if bought else note)

    def _stage(
        self, name: str, work: Callable[[], bool], price: Callable[[], float] | None, *, forced: bool = False
    ) -> None:
        """Run a stage within its share of the time left. One whose price does not fit, or that this machine cannot
        hold, is only looked up in the store."""
        clock = self.job.clock
        share = max(clock.left, 0.0) * SHARES[name]
        self._deadline = clock.spent + share
        self.job.progress.status(TITLES[name].lower())
        before = clock.spent
        cost: float | None = None
        refused = self._refused(name)

        def whole() -> bool:
            nonlocal cost
            cost = price() if price is not None and not refused else None
            fits = forced or (share > 0 and (cost is None or cost <= share))
            self.evaluator.frozen |= bool(refused) or not fits
            return work()

        bought, failed = self._tried(name, whole)
        note = "" if bought else failed or refused
        if refused and not bought and not failed:
            self.job.warnings.append(f"{TITLES[name].lower()}: {refused}")
        left = None if bought or note else max(cost if cost is not None else self._rest(name), 1.0)
        spent = clock.spent - before
        self.panels.append(Panel(name, TITLES[name], bought, round(spent, 1), left and round(left, 1), note))
        self.save()

    def _tried(self, name: str, work: Callable[[], bool], replay: bool = False) -> tuple[bool, str]:
        """What ``work`` says it bought, and why it failed: one stage that fails costs no other. ``replay``: from the
        store alone."""
        frozen = self.evaluator.frozen
        self.evaluator.frozen |= replay
        try:
            return work(), ""
        except NotStoredError:
            return False, ""
        except Exception as error:
            note = failures.failure(error)
            if note is None:
                raise
            note = note.rstrip(".")
            self.job.warnings.append(f"{TITLES[name].lower()}: {note}")
            return False, note
        finally:
            self.evaluator.frozen = frozen

    def _refused(self, name: str) -> str:
        """Why a stage is not begun here whatever the budget; empty where it may be."""
        if name in WHOLE and processes.count() > 1:
            return "it needs the gradient of whole weights on one process; scan without torchrun for it"
        subspace, e = self.job.subspace, self.evaluator
        if name == "worst":
            return failures.short_of(landscape.attack_memory(subspace), e.mover, e.engine.device)
        if name == "curvature":
            products = self._products()
            k, steps = _lanczos(products)
            needed = landscape.curvature_memory(subspace, steps, k, products)
            return failures.short_of(needed, e.mover, e.engine.device)
        return ""

    def save(self) -> None:
        """Write the clock, and what was learnt of this machine, to plan.json."""
        kept = self.job.kept
        kept.speed, kept.point = self._pace()
        self.job.save_plan(self.panels)

    def _stop(self) -> bool:
        """Whether the share of the stage is spent; what is only looked up takes no time of it."""
        if self.evaluator.frozen:
            return False
        spent = self.job.clock.spent
        if spent >= self._saved + SAVE_SECONDS:  # a run that is killed was paid for
            self._saved = spent
            self.save()
        return spent >= self._deadline

    def _pace(self) -> tuple[float, float]:
        """Tokens per second, and seconds per point: measured here, else by an earlier run, else a guess."""
        e, kept = self.evaluator, self.job.kept
        if e.seconds <= 0 or not e.fresh_tokens:
            return kept.speed or SPEED, kept.point or POINT
        known: dict[tuple[float, int], int] = {}
        for number, table in enumerate((self.field.units, self.field.pilot)):
            for (_, scale), units in table.items():  # tasks share the points of a scale
                known[scale, number] = max(known.get((scale, number), 0), len(units))
        fresh = 2 * sum(known.values()) * e.fresh_tokens / max(e.tokens, 1)
        return e.fresh_tokens / e.seconds, e.seconds / fresh if fresh else kept.point or POINT

    def _seconds(self, tokens: float, points: int = 0) -> float:
        """What evaluating so many tokens takes, and placing the model at so many points, two directions drawn for
        each."""
        speed, point = processes.agreed(self._pace())
        return float(tokens / speed + 2 * points * point)

    def _tokens(self, task: str, items: int) -> float:
        ground = self.evaluator.grounds[task]
        return ground.prepared.tokens / len(ground.items) * items

    def _rest(self, name: str) -> float:
        """A rough price of a stage that was begun or skipped without one."""
        design, tasks = self.field.design, self.job.admitted
        unit = self._seconds(sum(2 * self._tokens(t, design.items_each) for t in tasks))
        if name == "basins":
            return unit * 100
        if name == "profiles":
            return unit * self.job.settings.directions * len(unit_scales(design)) / 2
        if name == "worst":
            each = 3 * self.job.settings.steps * self.job.settings.restarts * ATTACK_ITEMS + JUDGED_ITEMS
            return sum(self._seconds(5 * self._tokens(t, each)) for t in tasks)
        return self.job.clock.budget / 2

    def _brackets(self) -> bool:
        tasks = self.job.admitted
        if not self.field.guesses:
            deadline = self._deadline
            self._deadline = self.job.clock.spent + (deadline - self.job.clock.spent) / 3
            landscape.scout(self.field, tasks, PILOT, self._stop)
            self._deadline = deadline
        landscape.search(self.field, tasks, self._stop)
        return any(self.field.decided.get(task) for task in tasks)

    def _profiles(self) -> bool:
        scales = unit_scales(self.field.design)
        tasks = [t for t in self.job.admitted if self.evaluator.grounds[t].prepared.task.scorer != "text"]
        landscape.fill(self.field, tasks or self.job.admitted, scales, self.job.settings.directions, self._stop)
        return all(any((task, scale) in self.field.units for task in self.job.admitted) for scale in scales)

    def _batches(self, ground: Ground, items: Sequence[str]) -> list[Batch]:
        return landscape.batches_of(self.evaluator, ground, items)

    def _worst(self) -> bool:
        s = self.job.settings
        tasks = [t for t in self.job.admitted if self.evaluator.grounds[t].prepared.task.scorer != "text"]
        start, end = self.job.clock.spent, self._deadline
        effort = landscape.within(Effort(s.restarts, s.steps, seed=s.seed), self.job.ruler.rms)
        for number, task in enumerate(tasks, 1):
            self._deadline = start + (end - start) * number / len(tasks)
            ground = self.evaluator.grounds[task]
            attack, judged = split(ground, ATTACK_ITEMS)
            self.job.progress.status(f"worst case · {task}")
            found = landscape.worst(
                self.evaluator, ground.with_items(judged[:JUDGED_ITEMS]), self._batches(ground, attack), effort,
                level=1 - s.alpha, family=len(tasks), stop=self._stop,
            )  # fmt: skip
            if found is not None:
                self.worst.append(found)
        return bool(self.worst)

    def _flagship(self) -> str:
        """The task that plane and curvature are drawn for: the best above chance."""
        grounds = [self.evaluator.grounds[t] for t in self.job.admitted]
        return max(grounds, key=lambda g: (g.prepared.task.scorer != "text", g.score - g.chance)).name

    def _plane_price(self) -> float:
        points = self.job.settings.plane**2
        return self._seconds(points * self._tokens(self._flagship(), PLANE_ITEMS), points)

    def _plane(self) -> bool:
        task = self._flagship()
        ground = self.evaluator.grounds[task]
        axes, reach, names, places = self._axes(task)
        grid = landscape.Grid(axes, reach, self.job.settings.plane, names, self.job.side.card.name, places)
        self.plane = landscape.plane(self.evaluator, task, ground.items[:PLANE_ITEMS], grid, stop=self._stop)
        return self.plane is not None

    def _middle(self, task: str) -> float:
        """The scale that the plane is laid out for: that of the first run, so that a later one finds its points."""
        kept = self.job.kept
        if kept.middle is not None:
            return kept.middle
        basin, crossed = landscape.basin(self.field, task), landscape.estimate(self.field, task)
        middle = crossed.estimate if crossed else basin.high or basin.low or self.field.design.ladder[-1]
        if not self.evaluator.frozen:
            kept.middle = middle
        return middle

    def _axes(self, task: str) -> _Axes:
        s, mover = self.job.settings, self.evaluator.mover
        self.evaluator.home()
        first, second = (landscape.gaussian(mover.subspace, s.seed, 2**20 + i) for i in (0, 1))
        if not s.through:
            middle = self._middle(task)
            pair: tuple[Direction, Direction] = (first, second)
            if s.filter_normalised:
                model = self.evaluator.engine.model
                pair = (landscape.filter_normalised(model, first), landscape.filter_normalised(model, second))
                return pair, (1.0, 1.0), ("filter-normalised 1", "filter-normalised 2"), []
            return pair, (2.5 * middle, 2.5 * middle), ("random 1", "random 2"), []
        ways = [self._way(spec) for spec in s.through]
        if len(ways) == 1:
            way = ways[0]
            one = landscape.Stored(mover.subspace, {n: way.delta(n) for n in mover.subspace.shapes}, way.address)
            axes = (one, landscape.orthogonal(one, first, mover))
            place = PlanePoint(s.through[0], way.alpha, 0.0)
            return axes, (1.5 * way.alpha, 1.5 * way.alpha), (f"to {s.through[0]}", "random"), [place]
        one, two, places = landscape.through(*ways)
        named = [dataclasses.replace(p, name=n) for p, n in zip(places, s.through, strict=True)]
        reach = (1.5 * max(abs(p.x) for p in places), 1.5 * max(abs(p.y) for p in places))
        return (one, two), reach, (f"to {s.through[0]}", f"to {s.through[1]}, across"), named

    def _way(self, spec: str) -> Towards:
        if models.named_weights(self.evaluator.engine.model, "adapter"):
            raise InputError(f"--through {str(spec)!r}: the model stands under an adapter; merge it and save it first.")
        options = {k: v for k, v in self.job.settings.model_options().items() if k != "revision"}
        other = models.load(spec, **{**options, "dtype": self.job.side.card.dtype})
        gates.check_model(other.card.name, other.newly_initialised, models.non_finite(other.model))
        self.job.warnings += [f"{other.card.name}: {note}" for note in other.card.notes]
        try:
            found = landscape.towards(
                self.evaluator.engine.model, other.model, self.job.subspace, other.card.weights_hash
            )
        except CatchmentError as error:
            raise InputError(f"--through {str(spec)!r}: {error}") from error
        return found

    def _curved(self) -> tuple[list[str], list[Batch], int]:
        """Tasks, batches and products for the Hessian: as many vectors as a quarter of the free memory holds."""
        choices = [t for t in self.job.admitted if self.evaluator.grounds[t].prepared.task.scorer != "text"]
        tasks = choices or self.job.admitted
        grounds = [self.evaluator.grounds[t] for t in tasks]
        batches = [b for ground in grounds for b in self._batches(ground, ground.items[:CURVED_ITEMS])]
        return tasks, batches, self._products()

    def _products(self) -> int:
        quarter = landscape.free_memory(self.evaluator.engine.device) / 4
        for products in reversed(PRODUCTS):
            k, steps = _lanczos(products)
            if 4 * self.job.subspace.size * landscape.vectors(steps, k, products) <= quarter:
                return products
        return PRODUCTS[0]

    def _curvature_price(self) -> float:
        _, batches, products = self._curved()
        rows = sum(batch.input_ids.numel() for batch in batches)
        return self._seconds(10.0 * rows * (1.5 * products + 3))

    def _curvature(self) -> bool:
        tasks, batches, products = self._curved()
        family = {
            "kind": "curvature", "subspace": self.job.subspace.hash, "seed": self.job.settings.seed, "of": tasks,
            "tasks": {t: self.evaluator.grounds[t].prepared.task.hash() for t in tasks},
            "items": sorted(item for batch in batches for item in batch.items),
        }  # fmt: skip
        for number in reversed(PRODUCTS):  # more or less memory than now was free when it was measured
            with suppress(NotStoredError):
                if (kept := self.evaluator.kept(tasks[0], family, f"{number}")) is not None:
                    self.curvature = from_json(Curvature, kept)
                    return True
        if self.evaluator.frozen:
            return False
        self.evaluator.home()
        model, subspace = self.evaluator.engine.model, self.job.subspace
        if subspace.kind == "frame":
            raise InputError("curvature in a low-rank frame is not measured; expected all, globs or a sparse support.")
        k, steps = _lanczos(products)
        found = landscape.curvature(
            model, subspace.weights(model), batches, k=k, steps=steps, products=products,
            seed=self.job.settings.seed, project=_project(self.job), check=self.evaluator.engine.check,
        )  # fmt: skip
        self.evaluator.keep(tasks[0], family, f"{products}", to_json(found))
        self.curvature = found
        return True

    def _gradients(self) -> bool:
        self.gradients = claims(self.job, self.evaluator, self._batches, self._flagship())
        return True


def _lanczos(products: int) -> tuple[int, int]:
    """Eigenvalues and Lanczos steps that go with so many products for the trace."""
    return min(3, max(1, products // 6)), max(4, products // 2)


def _project(job: ScanJob) -> Any:
    """Zeroes what lies outside a sparse support; ``None`` for whole tensors."""
    if job.subspace.kind != "sparse":
        return None

    def project(name: str, tensor: Any) -> Any:
        kept = tensor.new_zeros(tensor.shape)
        index = job.subspace.support[name].to(tensor.device)
        kept.view(-1)[index] = tensor.reshape(-1)[index]
        return kept

    return project
