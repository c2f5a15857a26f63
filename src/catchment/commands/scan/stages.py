"""What a budget buys, in this order: brackets, worst case, profiles, plane, curvature, gradients; what is left over
goes back to the brackets. Every stage gets a share of the time that is left, and says what it would have cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from catchment.commands.scan.bench import Allotment, Bench, Note, Stage
from catchment.commands.scan.brackets import BASINS, PROFILES, sharpen
from catchment.commands.scan.curvature import CURVATURE
from catchment.commands.scan.gradients import GRADIENTS
from catchment.commands.scan.plane import PLANE
from catchment.commands.scan.settings import ScanSettings
from catchment.commands.scan.worst import WORST
from catchment.errors import CatchmentError
from catchment.landscape import Evaluator, Field, NotStoredError
from catchment.measuring import failure
from catchment.records import Curvature, Gradients, Panel, Plane, Worst
from catchment.runs import processes


@dataclass(frozen=True)
class Attempt:
    """What a stage came to.

    Attributes:
        results: What it yielded, also before an error.
        bought: It yielded something and came to its end.
        note: Why it failed; empty where it did not.
        warnings: What a reader must know, whatever came of it.
    """

    results: tuple[Any, ...]
    bought: bool
    note: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Purchases:
    """What came out of all stages.

    Attributes:
        panels: Each stage with what it took, or would take.
        field: The random directions that were drawn: brackets and profiles are read off it.
    """

    panels: tuple[Panel, ...]
    field: Field
    worst: tuple[Worst, ...] = ()
    plane: Plane | None = None
    curvature: Curvature | None = None
    gradients: Gradients | None = None
    warnings: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """Scales that were decided and radii that were looked at."""
        return {
            "basins": sum(len(known) for known in self.field.decided.values()),
            "worst": sum(len(worst.nodes) for worst in self.worst),
        }

    def lacks(self, panels: Sequence[Panel], counts: dict[str, int]) -> bool:
        """Whether a replay came to less than the scan that it replays: the store was cleared, or is another one."""
        here, own = {panel.name for panel in self.panels if panel.bought}, self.counts()
        return any(panel.bought and panel.name not in here for panel in panels) or any(
            own[name] < counts.get(name, 0) for name in own
        )


def chosen(settings: ScanSettings) -> list[Stage]:
    """The stages that were asked for, in order."""
    stages = [BASINS, WORST, PROFILES]
    stages += [PLANE] if settings.plane else []
    stages += [CURVATURE]
    return stages + ([GRADIENTS] if settings.gradients else [])


def buy(bench: Bench) -> Purchases:
    """All stages in order, then the brackets again with what is left. What is interrupted has its time written down:
    it was spent."""
    panels: list[Panel] = []
    attempts: dict[str, Attempt] = {}
    warnings: list[str] = []
    try:
        for stage in chosen(bench.opened.settings):
            attempts[stage.name], panel, said = _within_its_share(bench, stage)
            panels, warnings = [*panels, panel], [*warnings, *said]
            bench.save(panels)
        panels[0], said = _rest(bench, panels[0])
        bench.evaluator.flush()
    except BaseException:
        if processes.count() == 1:
            with suppress(CatchmentError):
                bench.save()
        raise
    return _purchases(bench, panels, attempts, [*warnings, *said])


def _purchases(
    bench: Bench, panels: Sequence[Panel], attempts: dict[str, Attempt], warnings: Sequence[str]
) -> Purchases:
    def last(stage: Stage) -> Any:
        results = attempts[stage.name].results if stage.name in attempts else ()
        return results[-1] if results else None

    return Purchases(
        panels=tuple(panels),
        field=bench.field,
        worst=attempts[WORST.name].results,
        plane=last(PLANE),
        curvature=last(CURVATURE),
        gradients=last(GRADIENTS),
        warnings=tuple(warnings),
    )


def _within_its_share(bench: Bench, stage: Stage) -> tuple[Attempt, Panel, list[str]]:
    """Run a stage within its share of the time left. One whose price does not fit, or that this machine cannot hold,
    is only looked up in the store."""
    clock = bench.opened.clock
    share = max(clock.left, 0.0) * stage.share
    time = Allotment(bench, clock.spent + share)
    bench.opened.progress.status(stage.title.lower())
    before = clock.spent
    refused = stage.refused(bench)
    priced: list[float] = []

    def run() -> Iterator[Any]:
        if stage.price is not None and not refused:
            priced.append(stage.price(bench))
        fits = stage.forced or (share > 0 and all(price <= share for price in priced))
        with only_stored(bench.evaluator, bool(refused) or not fits):
            yield from stage.run(bench, time)

    attempt = _attempt(run)
    note = "" if attempt.bought else attempt.note or refused
    said = [*attempt.warnings, *([f"{stage.title.lower()}: {note}"] if note else [])]
    price = None if attempt.bought or note else round(max(priced[0] if priced else stage.rough(bench), 1.0), 1)
    return attempt, Panel(stage.name, stage.title, attempt.bought, round(clock.spent - before, 1), price, note), said


def _rest(bench: Bench, panel: Panel) -> tuple[Panel, list[str]]:
    """The brackets again, with the time that is left; from the store alone where there is none."""
    clock = bench.opened.clock
    time, before = Allotment(bench, clock.end), clock.spent
    with only_stored(bench.evaluator, clock.left <= 0):
        attempt = _attempt(lambda: sharpen(bench, time))
    said = [f"{panel.title.lower()}: {attempt.note}"] if attempt.note else []
    bought, note = attempt.bought or panel.bought, attempt.note or panel.note
    seconds, price = round(panel.seconds + clock.spent - before, 1), None if bought or note else panel.price
    more = dataclasses.replace(panel, bought=bought, seconds=seconds, price=price, note="" if bought else note)
    return more, said


def _attempt(run: Callable[[], Iterator[Any]]) -> Attempt:
    """One stage that fails costs no other, and what it yielded before counts."""
    yielded: list[Any] = []
    bought, note = False, ""
    try:
        for result in run():
            yielded.append(result)  # noqa: PERF402 - extend would lose what came before an error
        bought = any(not isinstance(result, Note) for result in yielded)
    except NotStoredError:
        pass
    except Exception as error:
        reason = failure(error)
        if reason is None:
            raise
        note = reason.rstrip(".")
    results = tuple(result for result in yielded if not isinstance(result, Note))
    return Attempt(results, bought, note, tuple(str(said) for said in yielded if isinstance(said, Note)))


@contextmanager
def only_stored(evaluator: Evaluator, wanted: bool) -> Iterator[None]:
    """Inside, nothing is measured, where that is wanted."""
    before = evaluator.frozen
    evaluator.frozen = before or wanted
    try:
        yield
    finally:
        evaluator.frozen = before
