"""``catchment.study``: work through a grid, say where it stands, and report what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catchment.commands.study.choice import losses
from catchment.commands.study.record import Study
from catchment.commands.study.settings import StudySettings
from catchment.measuring import Progress
from catchment.options import as_settings, read_config


def study(study: Any, action: str = "run", *, progress: Progress | None = None, **options: Any) -> Study:
    """A grid of checkpoints, tunings and tasks: what each model gained, lost and kept, and where.

    Args:
        study: a YAML file, or a mapping with its content.
        action: ``"run"``, ``"status"``, ``"report"`` or ``"merge"``.
        progress: told what goes on.
        **options: the fields of :class:`~catchment.commands.study.settings.StudySettings`; they stand above the file.

    Returns:
        The record; with ``out`` also written to ``out/study.json``, with the page in ``out/report.html``.

    Raises:
        CatchmentError: bad input; the message names the value, what was expected and the fix.

    Cost: what :func:`catchment.commands.study.plan.plan` says; what is in the store costs nothing.

    Example:
        >>> record = study("study.yaml", hours=2, workers=2)  # doctest: +SKIP
        >>> record.counts["missing"]  # doctest: +SKIP
        0
    """
    closed = {"dry_run", "study"}
    as_settings(StudySettings, options={"action": action, **options}, caller="study()", closed=closed)
    given = dict(study) if isinstance(study, Mapping) else read_config(Path(study), StudySettings)
    if not isinstance(study, Mapping):
        given["study"] = Path(study)
    options = {**given, "action": action, **options}
    settings = as_settings(StudySettings, options=options, caller="study()", closed={"dry_run"})
    return run(settings, progress or Progress())


def run(settings: StudySettings, progress: Progress) -> Study:
    """:func:`study` with checked settings. Scores of others are read without what trains and measures."""
    if settings.foreign:
        from catchment.commands.study.foreign_report import report

        return report(settings, progress)
    from catchment.commands.study.driver import drive

    return drive(settings, progress)


def broken(record: Study, settings: StudySettings) -> list[str]:
    """What breaks ``--fail-if-drop``: a drop that is shown, of any tuning; and gates that refused a task."""
    if settings.fail_if_drop is None:
        return []
    lines = [f"{flag.where}: {flag.sentence}" for flag in record.flags if flag.refused]
    if record.verdicts:
        return [*lines, *losses(record.verdicts, settings.fail_if_drop)]
    return lines + [
        f"{change.task} dropped by {-change.interval.estimate:.3f} [{-change.interval.high:.3f}, "
        f"{-change.interval.low:.3f}], more than --fail-if-drop {settings.fail_if_drop:g}, in {change.tuning} of "
        f"{change.model} at {change.revision}"
        for change in record.changes
        if change.interval.high < 0 and -change.interval.estimate > settings.fail_if_drop
    ]


def unproven(record: Study, settings: StudySettings) -> list[str]:
    """What a gate that passes does not say."""
    if settings.fail_if_drop is None or record.headline == "complete":
        return []
    return [f"{record.counts.get('cells', 0) - record.counts.get('done', 0):,} cells of the study are not there"]
