"""plan.json of a scan: what was spent and on what, and what the next run on the same OUT takes up."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catchment.capabilities import Task
from catchment.commands.scan.clock import Clock
from catchment.commands.scan.settings import ScanSettings
from catchment.records import Panel
from catchment.runs import processes, write_atomic

NOT_ASKED = ("out", "budget", "store", "dry_run", "workers", "executor", "memory", "model", "tasks")
FILE = "plan.json"


@dataclass(frozen=True)
class Notes:
    """What plan.json keeps beside the clock.

    Attributes:
        speed: Tokens per second at displaced points.
        point: Seconds per displaced point.
        middle: Scale that the plane was laid out for.
        batch_tokens: Padded tokens per forward pass.
        found: How much the finished scan held, by panel; a replay that finds less lacks rows.
        own: Items per task whose own scores were measured.
        check_items: Items per task of the self-check.
    """

    speed: float | None = None
    point: float | None = None
    middle: float | None = None
    batch_tokens: int | None = None
    found: dict[str, int] = field(default_factory=dict)
    own: dict[str, int] = field(default_factory=dict)
    check_items: int | None = None


@dataclass(frozen=True)
class Earlier:
    """What an earlier run on the same OUT left of the same question.

    Attributes:
        spent: Seconds that it took.
        budget: Of the scan that was finished here, which is replayed: nothing is measured again; ``None``: none was.
        panels: What the finished scan said of its budget.
    """

    notes: Notes = field(default_factory=Notes)
    spent: float = 0.0
    budget: float | None = None
    panels: tuple[Panel, ...] = ()

    @property
    def finished(self) -> bool:
        return self.budget is not None


def ask(settings: ScanSettings, tasks: Sequence[Task]) -> dict[str, Any]:
    """What decides a scan beside its budget; another question begins another clock."""
    fields = dataclasses.fields(settings)
    question = {f.name: getattr(settings, f.name) for f in fields if f.name not in NOT_ASKED}
    question |= {"tasks": [t.name for t in tasks], "hashes": {t.name: t.hash() for t in tasks}}
    return json.loads(json.dumps(question, default=str))


def take_up(settings: ScanSettings, tasks: Sequence[Task]) -> Earlier:
    """What OUT keeps of an earlier run that asked the same; nothing where it cannot be read."""
    if settings.out is None or not (settings.out / FILE).is_file():
        return Earlier()
    try:
        content = json.loads((settings.out / FILE).read_text(encoding="utf-8"))
        same = content["ask"] == ask(settings, tasks)
        budget, spent, finished = float(content["budget"]), float(content["spent"]), bool(content["finished"])
        panels = tuple(Panel(**panel) for panel in content["panels"])
        notes = Notes(**content["kept"])
    except (OSError, ValueError, KeyError, TypeError):
        return Earlier()
    if not same:
        return Earlier()
    if settings.seconds > budget:
        notes = dataclasses.replace(notes, own={})  # more time may pay for more of them
    replayed = finished and settings.seconds <= budget
    return Earlier(notes, spent, budget if replayed else None, panels if replayed else ())


class Journal:
    """Writes plan.json while a scan runs, so that one that is killed was paid for; nothing without an OUT, or while a
    finished scan is replayed.

    Args:
        question: What was asked; see :func:`ask`.
        notes: What is known at the begin.
    """

    def __init__(self, out: Path | None, question: dict[str, Any], clock: Clock, notes: Notes, writes: bool) -> None:
        self.out, self.question, self.clock, self.notes = out, question, clock, notes
        self.writes = writes
        self.panels: tuple[Panel, ...] = ()
        self._looked = 0.0

    def due(self, spent: float, seconds: float) -> bool:
        """Whether so many seconds were spent since this last said so."""
        if spent < self._looked + seconds:
            return False
        self._looked = spent
        return True

    def note(self, **changes: Any) -> None:
        """Note what was learnt; it is written with the next :meth:`write`."""
        self.notes = dataclasses.replace(self.notes, **changes)

    def write(self, panels: Sequence[Panel] | None = None, *, finished: bool = False) -> None:
        """Write what was spent and on what, and whether the scan ran to its end. Every process must call it."""
        self.panels = self.panels if panels is None else tuple(panels)
        spent = self.clock.spent
        if self.out is None or not self.writes or not processes.is_main():
            return
        content = {
            "ask": self.question, "budget": self.clock.budget, "spent": spent, "finished": finished,
            "panels": [dataclasses.asdict(panel) for panel in self.panels], "kept": dataclasses.asdict(self.notes),
        }  # fmt: skip
        write_atomic(self.out / FILE, json.dumps(content, indent=1))

    def writing(self) -> Journal:
        """The same, that writes from now on."""
        return Journal(self.out, self.question, self.clock, self.notes, writes=True)
