"""What a user of ``study`` may choose. The grid is in the YAML file; the command line has what a run may change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from catchment.options import (
    IN_FILE,
    SHARE,
    AskOptions,
    Check,
    ExecutorOptions,
    MarginOption,
    MeasureOptions,
    ModelOptions,
    OutputOptions,
    Real,
    Texts,
    checked,
    one_of,
)

ACTIONS = ("plan", "run", "status", "report", "merge")
SUFFIXES = (".yaml", ".yml")
ABOVE_0 = Check("{option} {value}: expected a number above 0, e.g. 2.")
Axis = Annotated[object, IN_FILE]
"""A part of the grid, read by :mod:`catchment.commands.study.axes`."""


@checked
class StudySettings(MeasureOptions, MarginOption, AskOptions, ModelOptions, ExecutorOptions, OutputOptions):
    """A grid of checkpoints, tunings and tasks that survives a crash.

    Attributes:
        action: "plan" (counts and prices), "run", "status", "report" (the page, from what is there), "merge".
        study: YAML file of the grid. Not needed for `report --csv` and `report --lm-eval`.
        hours: Time to spend; the same command goes on later.
        disk: GB of tuned models that are kept, those used last; and checkpoints fetched from the hub are dropped.
        drop_long: Leave out items longer than the context instead of refusing the task.
        fail_if_drop: Exit with 1 when a drop is shown and estimated to be larger than this, e.g. 0.02.
        others: merge: folders of rows, from other machines, to take over.
        csv: report: a table of somebody else's scores, .csv, .tsv or .parquet.
        lm_eval: report: a folder of lm-eval's per-sample logs, one folder per model.
        base: report --lm-eval: the folder of the model that the others are compared with.
        metric: report --lm-eval: metric of the logs, where it is not the task's first.
        name: Of the study. Default: of its file.
        models: Models and their checkpoints.
        tasks: Built-in tasks, files or lm-eval:NAME; or mappings with `task:` and what else is to be said of it.
        tunings: What is trained on, by which methods and settings; or tuned models that are there.
        seeds: Of the trainings.
        formats: Prompt formats by name, or how many of each task; the first is the default.
        shots: Numbers of solved examples before each item; "own": as the task has them.
        shot_seed: Chooses the examples.
        scorers: Ways to score; "own": as the task says.
        scans: Settings of scans, as cells of their own.
        calls: Functions of a file beside the YAML file, as cells of their own.
        contrasts: Named lists of pairs of tuning and tasks, to average over.
        seed: Chooses the items.
        store: Folder of measured rows, shared with other commands. Default: in the cache folder.
        out: Folder for the record, the page and the tables.
    """

    positional: ClassVar[tuple[str, ...]] = ("action", "study")
    named_by: ClassVar[tuple[str, ...]] = ("study", "csv", "lm_eval")
    shown: ClassVar[str] = "the tables"

    action: Annotated[str, one_of(*ACTIONS)] = "run"
    study: Path | None = None
    hours: Annotated[Real, Field(gt=0), ABOVE_0] | None = None
    disk: Annotated[Real, Field(gt=0), ABOVE_0] | None = None
    drop_long: bool = False
    fail_if_drop: Annotated[Real, Field(ge=0, le=1), SHARE] | None = None
    others: Texts = ()
    csv: Path | None = None
    lm_eval: Path | None = None
    base: str = ""
    metric: str = ""
    name: Annotated[str, IN_FILE] = ""
    tasks: Axis = ("default",)  # type: ignore[assignment]
    models: Axis = ()
    tunings: Axis = ()
    seeds: Axis = (0,)
    formats: Axis = 1
    shots: Axis = ("own",)
    shot_seed: Annotated[int, IN_FILE] = 0
    scorers: Axis = ("own",)
    scans: Axis = ()
    calls: Axis = ()
    contrasts: Axis = ()

    @property
    def planned(self) -> bool:
        """Whether nothing is to be done but a plan."""
        return self.dry_run or self.action == "plan"

    @property
    def writes(self) -> bool:
        return self.action != "status"

    @property
    def foreign(self) -> bool:
        """Whether the scores are somebody else's."""
        return self.csv is not None or self.lm_eval is not None

    @property
    def label(self) -> str:
        """Name of the study."""
        given = self.study or self.csv or self.lm_eval
        return self.name or (given.stem if given else "study")

    @classmethod
    def config_in(cls, arguments: Sequence[str]) -> str | None:
        """The YAML file among these arguments: the second word."""
        words = list(arguments[:2])
        return words[1] if len(words) == 2 and words[0] in ACTIONS and Path(words[1]).suffix in SUFFIXES else None
