"""A study with everything on its page: 3 tunings, 8 checkpoints, 6 tasks, 3 formats, gaps, gates and plateaus."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from catchment.commands.study import words
from catchment.commands.study.choice import choice
from catchment.commands.study.record import (
    BASE,
    Change,
    Checkpoint,
    Contrast,
    Flag,
    Gap,
    Matrix,
    Point,
    Ratio,
    Sensitivity,
    Study,
    TaskNoise,
    Trajectory,
    TuningCard,
    Verdicts,
)
from catchment.records import Interval
from tests.samples import sample_comparison

MODEL = "allenai/OLMo-1B"
STEPS = (1000, 18000, 342000, 424000, 505000, 592000, 738000, 757000)
TASKS = {"mnli_m": (0.34, 1 / 3), "paws": (0.55, 0.5), "xsum": (0.10, 0.0), "boolq": (0.58, 0.5), "sciq": (0.86, 0.25),
         "socialiqa": (0.06, 0.0)}  # fmt: skip
FORMATS = ("default", "instruct", "io")
GAINS = {("mnli", "mnli_m"): 0.45, ("paws", "paws"): 0.36, ("xsum", "xsum"): 0.1, ("xsum", "socialiqa"): -0.02}
SIZE = 500


def card(label: str) -> TuningCard:
    inside = {"mnli": ("mnli_m",), "paws": ("paws",), "xsum": ("xsum",)}
    return TuningCard(label, label, "full", "lr 2e-6, 3 epochs", inside.get(label, ()))


def interval(value: float, half: float, family: int = 1) -> Interval:
    return Interval(value, value - half, value + half, 0.95, "bootstrap", family)


def checkpoints(steps: tuple[int, ...] = STEPS, tokens: bool = True) -> tuple[Checkpoint, ...]:
    return tuple(
        Checkpoint(MODEL, f"step{step}", step * 4.19e6 if tokens else None, order, f"{step:064x}")
        for order, step in enumerate(steps)
    )


def score(tuning: str, task: str, step: int, at: random.Random) -> float:
    """Rises with log steps to a plateau at 342,000; a tuning adds its gain, and costs others a little."""
    end, chance = TASKS[task]
    grown = min(1.0, math.log(step / 1000) / math.log(342))
    base = chance + (end - chance) * (0.25 + 0.75 * grown) + at.gauss(0, 0.006)
    if tuning == BASE:
        return base
    return base + GAINS.get((tuning, task), -0.015 - 0.05 * (tuning == "paws")) * grown + at.gauss(0, 0.008)


def sample_study(
    steps: tuple[int, ...] = STEPS,
    tunings: tuple[str, ...] = ("mnli", "paws", "xsum"),
    tokens: bool = True,
    **changes: Any,
) -> Study:
    """The whole study; ``changes`` replace fields of the record."""
    at = random.Random(0)
    points = checkpoints(steps, tokens)
    labels = (BASE, *tunings)
    values = {(label, task, c.revision): score(label, task, step, at)
              for label in labels for task in TASKS for c, step in zip(points, steps, strict=True)}  # fmt: skip
    absent = {("xsum", "sciq", points[-1].revision), ("paws", "xsum", points[0].revision)} if len(steps) > 1 else set()
    study = Study(
        name="amuro",
        sentence="",
        headline="incomplete",
        counts={"done": 412, "missing": 14, "failed": 4, "refused": 2},
        checkpoints=points,
        tunings=(TuningCard(BASE, "", "", ""), *(card(label) for label in tunings)),
        tasks=tuple(TASKS),
        formats=FORMATS,
        alpha=0.05,
        margin=0.02,
        trajectories=_trajectories(labels, points, values, absent),
        changes=_changes(tunings, points, values, absent),
        matrices=_matrices(tunings, points, values, absent),
        contrasts=_contrasts(points),
        sensitivities=_sensitivities(labels, points, values),
        noise=tuple(TaskNoise(task, 0.004 + 0.003 * i, 0.011 if task == "paws" else 0.005, 0.016, 3.1 + i)
                    for i, task in enumerate(TASKS)),
        flags=FLAGS,
        gaps=(Gap("xsum on sciq", 14, "not run", "missing", 5400.0), Gap("paws, seed 3", 4, "out of memory", "failed"),
              Gap("stsb", 2, "every label is -1", "refused", 120.0)),
        scans=_scans(points),
        aliases=((f"{MODEL}@step757000", f"{MODEL}@main"),),
        conditions={"seed": 0, "versions": {"torch": "2.8"}, "resamples": 2000},
        warnings=("2 prompts were cut at 2,048 tokens",),
        created="2026-11-29T12:00:00Z",
    )  # fmt: skip
    made = replace(study, **changes)
    return made if "sentence" in changes else replace(made, sentence=words.sentence(made))


FLAGS = (
    Flag("near-zero base", "socialiqa at step1000", "a ratio of change divides by 0.018", False),
    Flag("unlabelled test set", "stsb", "every gold label is -1, so accuracy is the rate of one answer", True),
)


def _trajectories(labels: Any, points: Any, values: Any, absent: Any) -> tuple[Trajectory, ...]:
    made = []
    for task in TASKS:
        for label in labels:
            line = tuple(
                Point(
                    c.revision,
                    c.tokens,
                    SIZE,
                    0 if label == BASE else 3,
                    interval(values[label, task, c.revision], 0.02),
                )
                for c in points
                if (label, task, c.revision) not in absent
            )
            flat = (
                Interval(1.6e12, 7e11, 2.2e12, 0.95, "change-point") if label == "mnli" and task == "mnli_m" else None
            )
            note = "" if flat else "the interval of the change-point holds both ends" if label == BASE else ""
            made.append(Trajectory(MODEL, label, task, "default", line, flat, note if task == "sciq" else ""))
    return tuple(made)


def _changes(tunings: Any, points: Any, values: Any, absent: Any) -> tuple[Change, ...]:
    made = []
    for c in points:
        for label in tunings:
            for task, (_, chance) in TASKS.items():
                if (label, task, c.revision) in absent:
                    continue
                base, tuned = values[BASE, task, c.revision], values[label, task, c.revision]
                size = tuned - base
                verdict = "gained" if size > 0.03 else "lost" if size < -0.03 else "kept" if size > 0 else "undecided"
                inside = task in card(label).in_domain
                change = interval(size, 0.03, 18)
                above, near = base > chance + 0.04, base < 0.03
                made.append(Change(MODEL, c.revision, label, task, base, tuned, chance, SIZE, 3, change,
                                   size / (1 - chance), inside, verdict, above, near))  # fmt: skip
    return tuple(made)


def _matrices(tunings: Any, points: Any, values: Any, absent: Any) -> tuple[Matrix, ...]:
    made = []
    for c in points:
        rows = tuple(
            tuple(
                None
                if (t, task, c.revision) in absent
                else values[t, task, c.revision] - values[BASE, task, c.revision]
                for task in TASKS
            )
            for t in tunings
        )
        away = tuple(-0.021 - 0.01 * i for i in range(len(tunings)))
        made.append(
            Matrix(MODEL, c.revision, tunings, tuple(TASKS), rows, away, sum(v is None for r in rows for v in r))
        )
    return tuple(made)


def _contrasts(points: Any) -> tuple[Contrast, ...]:
    gains = tuple((c.revision, 0.048 - 0.006 * i if i != 2 else None) for i, c in enumerate(points))
    ratios = tuple((c.revision, -0.7 + 0.2 * i) for i, c in enumerate(points))
    ratio = Ratio(32, -0.6146, 1.06, -3.28, -0.99, -0.69, None, -0.031, ("mnli on xsum at step424000 (base 1.9%)",),
                  "mnli on xsum at step424000", -0.80, "without checkpoint step424000",
                  tuple((c.revision, -0.6 - 0.01 * c.order) for c in points))  # fmt: skip
    once = tuple((revision, None if gain is None else gain - 0.01) for revision, gain in gains)
    pairs = (("mnli", "xsum"), ("mnli", "socialiqa"), ("paws", "xsum"), ("paws", "xsum"))
    missing = ("paws on xsum at step1000",)
    return (Contrast("class->gen", MODEL, pairs, gains, ratios, ratio, -0.031, once, missing, ("socialiqa",)),)


def _sensitivities(labels: Any, points: Any, values: Any) -> tuple[Sensitivity, ...]:
    made = []
    for c in points:
        for label in labels:
            for i, task in enumerate(TASKS):
                best = values[label, task, c.revision]
                fade = (0.2 / (1 + c.order) + 0.01 * i) * (1 + 0.4 * labels.index(label)) / (1 + (7 * i + c.order) % 3)
                scores = (("default", best), ("instruct", best - fade), ("io", best - fade / 2))
                made.append(Sensitivity(MODEL, c.revision, label, task, scores, fade,
                                        (("instruct", fade), ("io", fade / 2)), 0.8 if i else None, SIZE))  # fmt: skip
    return tuple(made)


def _scans(points: Any) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"model": MODEL, "revision": c.revision, "tuning": BASE, "task": "sciq", "sigma_low": 0.004 / (1 + c.order),
         "sigma_high": 0.006 / (1 + c.order) if c.order else None, "relative_low": 0.08, "relative_high": 0.12,
         "trace": 900.0 + 40 * c.order}
        for c in points
    )  # fmt: skip


def one_checkpoint(**changes: Any) -> Study:
    """``compare BASE T1 T2``: one base at one checkpoint, with verdicts."""
    c = sample_comparison()
    other = tuple(replace(task, verdict="kept" if task.verdict == "lost" else task.verdict) for task in c.tasks)
    verdicts = (Verdicts("full", "trade", c.verdict, c.tasks), Verdicts("lora", "gain", c.verdict, other[:-1]))
    kept = {"verdicts": verdicts, "choice": choice(verdicts), **changes}
    return sample_study(steps=(757000,), contrasts=(), scans=(), **kept)


def empty_study() -> Study:
    """A grid with no cell."""
    return Study("empty", "", "incomplete", {}, (), (), (), (), 0.05, 0.02)
