"""What a study writes into OUT: the tables, the record and the page."""

from __future__ import annotations

import dataclasses

from catchment.commands.study.export import write_tables
from catchment.commands.study.page import write_page
from catchment.commands.study.record import FILE, Study
from catchment.commands.study.scores import ScoreTable
from catchment.commands.study.settings import StudySettings
from catchment.measuring import Progress
from catchment.records import to_json
from catchment.runs import Store, claim_folder, write_atomic

PATIENCE = 60.0
"""Seconds that a driver waits for another one that writes into the same OUT, as when both come to their end at once."""


def claim(settings: StudySettings) -> None:
    """Make OUT the folder of this study; its grid may grow, its name stays.

    Raises:
        StoreError: OUT holds something else.
    """
    if settings.out is not None:
        claim_folder(settings.out, {"study": settings.label}, "study")


def write(settings: StudySettings, record: Study, table: ScoreTable, progress: Progress) -> Study:
    """Write everything, and give the record with what could not be written; nothing without OUT."""
    if settings.out is None:
        return record
    progress.status("writing the page")
    with Store(settings.out).lock("study", PATIENCE):
        notes = write_tables(table, settings.out)
        record = dataclasses.replace(record, warnings=tuple(dict.fromkeys([*record.warnings, *notes])))
        write_atomic(settings.out / FILE, to_json(record))
        write_page(record, settings.out / "report.html")
    return record
