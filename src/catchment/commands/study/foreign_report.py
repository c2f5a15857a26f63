"""``study report --csv`` and ``--lm-eval``: the record of a study of somebody else's scores."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

from catchment.commands.study import axes
from catchment.commands.study.analysis.whole import analyse
from catchment.commands.study.foreign_table import TableSettings, read_scores
from catchment.commands.study.grid import step_of
from catchment.commands.study.lm_eval_logs import read_lm_eval
from catchment.commands.study.output import claim, write
from catchment.commands.study.record import Flag, Study
from catchment.commands.study.scores import Pairs, ScoreTable
from catchment.commands.study.settings import StudySettings
from catchment.errors import InputError
from catchment.measuring import Progress

SAMPLING = (
    "as the table has it: intervals are over items where it says their spread, and over seeds where it has several"
)
ITEMS = "items are a sample of a population; the statements are about these very models"


def report(settings: StudySettings, progress: Progress) -> Study:
    """The record and the page of somebody else's scores.

    Raises:
        InputError: Another action than ``report``, or what :func:`read_foreign` refuses.
    """
    if settings.action != "report":
        raise InputError(f"--csv and --lm-eval are read by `study report`, not by `study {settings.action}`.")
    progress.status("reading the scores")
    study, table = read_foreign(settings)
    claim(settings)
    return write(settings, study, table, progress)


def read_foreign(settings: StudySettings) -> tuple[Study, ScoreTable]:
    """Read the scores that ``settings.csv`` or ``settings.lm_eval`` names, and analyse them.

    Of the study's own file contrasts, the tunings' ``in_domain``, the tasks' ``unlabelled`` and the tokens of
    checkpoints are used.

    Raises:
        InputError: Both or neither are given, or what :func:`read_scores` and :func:`read_lm_eval` refuse.
    """
    if (settings.csv is None) == (settings.lm_eval is None):
        raise InputError("expected --csv TABLE or --lm-eval FOLDER, one of them; they are two reports.")
    if settings.csv is not None:
        table = _with_tokens(settings, read_scores(settings.csv, settings.label, table_settings(settings)))
        source, sampling = settings.csv, SAMPLING
    else:
        assert settings.lm_eval is not None
        source, sampling = settings.lm_eval, ITEMS
        table = read_lm_eval(
            source, settings.base, settings.metric, alpha=settings.alpha, margin=settings.margin
        )  # fmt: skip
        table = dataclasses.replace(table, name=settings.label, contrasts=_contrasts(settings))
    study = dataclasses.replace(
        analyse(table),
        conditions={"source": Path(source).name, "sampling": sampling},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return study, table


def table_settings(settings: StudySettings) -> TableSettings:
    """What a study's file says of the tunings and tasks of a table."""
    tunings = axes.read_all(axes.TuningAxis, settings.tunings, "tunings", "data")
    tasks = axes.read_tasks(settings.tasks)
    in_domain = {t.called: t.in_domain for t in tunings}
    return TableSettings(
        contrasts=_contrasts(settings),
        in_domain=in_domain,
        flags=[
            Flag("unlabelled", t.name or t.task, t.unlabelled, refused=True, task=t.name or t.task)
            for t in tasks
            if t.unlabelled
        ],
        alpha=settings.alpha,
        margin=settings.margin,
        known={*in_domain, *(t.name or t.task for t in tasks)},
    )


def _with_tokens(settings: StudySettings, table: ScoreTable) -> ScoreTable:
    """The table with the tokens that the study's file gives for checkpoints of the same name or step."""
    known: dict[str | int, float] = {}
    for axis in axes.read_all(axes.ModelAxis, settings.models, "models", "model"):
        given = axis.tokens if isinstance(axis.tokens, dict) else dict(zip(axis.revisions, axis.tokens, strict=False))
        known |= {_place(revision): tokens for revision, tokens in given.items()}
    points = [
        point if point.tokens is not None else dataclasses.replace(point, tokens=known.get(_place(point.revision)))
        for point in table.checkpoints
    ]
    return dataclasses.replace(table, checkpoints=tuple(points))


def _place(revision: str) -> str | int:
    """A checkpoint by its step, or its name where it has none."""
    step = step_of(revision)
    return revision if step is None else step


def _contrasts(settings: StudySettings) -> tuple[Pairs, ...]:
    return tuple(Pairs(name, pairs) for name, pairs in axes.read_contrasts(settings.contrasts).items())
