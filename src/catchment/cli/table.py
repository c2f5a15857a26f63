"""The table of commands: one line each. A command's work, words and pages are in its folder, under the same names."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command of ``catchment`` whose folder is ``catchment.commands.<name>``.

    Attributes:
        subject: What follows the name at least.
        does: One line for ``catchment --help``.
        record: Class of ``record.py``: what a run leaves.
    """

    name: str
    subject: str
    does: str
    record: str

    def part(self, file: str) -> Any:
        """A file of the command, imported now: ``settings``, ``plan``, ``run``, ``record``, ``table`` or ``page``."""
        return importlib.import_module(f"catchment.commands.{self.name}.{file}")

    @property
    def settings(self) -> Any:
        """The class of what a user may choose."""
        return getattr(self.part("settings"), f"{self.name.capitalize()}Settings")


COMMANDS = {
    command.name: command
    for command in (
        Command("compare", "BASE TUNED", "gained, lost, kept, undecided; the items that flipped", "Comparison"),
        Command("scan", "MODEL", "basins, worst case, profiles: how far it can move", "Scan"),
        Command("tune", "BASE --data D", "fine-tune, protected on request, and see what it cost", "Tune"),
        Command("study", "ACTION STUDY", "a grid of checkpoints, tunings and tasks, resumable", "Study"),
    )
}
OTHERS = {"report": ("OUT", "the page again, from the record"), "tasks": ("", "the built-in tasks")}
"""Verbs that measure nothing; each is a file of :mod:`catchment.cli` with ``main(arguments)``."""
