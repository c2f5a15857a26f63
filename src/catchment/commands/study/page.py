"""The page of a study: what was gained and lost over checkpoints, self-contained HTML from one record."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from catchment import pages
from catchment.commands.study import figures, heat, views, words
from catchment.commands.study.choice import outcome
from catchment.commands.study.record import BASE, FILE, Change, Study, Trajectory
from catchment.measuring import family, short_note
from catchment.pages import clean, frame, render, write_html

FOLDERS = ("catchment.commands.study",)
SHARED = "catchment.pages/charts.css"
SECTIONS = {
    "choice": "Which",
    "trajectories": "Trajectories",
    "forgetting": "Forgetting",
    "gain": "Gain",
    "formats": "Formats",
    "contrasts": "Contrasts",
    "noise": "Noise",
    "scans": "Scans",
    "missing": "Missing",
    "conditions": "Conditions",
}
MOST_PANELS, MOST_SCATTERS, MOST_CONTRASTS = 24, 6, 12
MOST_FORMAT_TASKS, MOST_FORMAT_MODELS = 6, 2
MOST_TABLE = 800
"""Points up to which trajectories also stand as tables."""


def study_html(study: Study) -> str:
    """The whole page of a study as one HTML document without any reference to the outside.

    Scripts and styles are inlined and pinned by hash in a content security policy; texts of the record are escaped.
    Every figure is drawn without a script. Of a large study the page shows the tasks with the largest changes and says
    how many are left out; all cells stand in ``cells.csv``, so the page stays below 4 MB.

    Args:
        study: The record.

    Returns:
        HTML of about 100 kB to 4 MB.
    """
    return render(
        "study.html",
        FOLDERS,
        s=study,
        w=words,
        title=clean(words.title(study)),
        source=FILE,
        sections=_sections(study),
        states=[(state, number) for state, number in words.states(study.counts).items() if number],
        total=sum(words.states(study.counts).values()),
        flags=sorted(study.flags, key=lambda flag: not flag.refused),
        gaps=sorted(study.gaps, key=lambda gap: -gap.cells),
        clean=clean,
        soft=_soft,
        number=pages.number,
        duration=pages.duration,
        short_note=short_note,
        family=family,
        margin_points=f"{100 * study.margin:.3g}",
        **_verdicts(study),
        **_figures(study),
        contrasts=[views.contrast_view(one, study) for one in study.contrasts[:MOST_CONTRASTS]],
        contrasts_left_out=max(0, len(study.contrasts) - MOST_CONTRASTS),
        noise=views.noise_table(study.noise),
        scans=views.scan_table(study),
        **frame([SHARED, f"{FOLDERS[0]}/study.css"]),
    )


def write_page(study: Study, path: Path | str) -> Path:
    """Write the page of a study, e.g. to ``OUT/report.html``; a reader never sees half a page.

    Raises:
        StoreError: The file cannot be written (read-only folder, full disk).
    """
    return write_html(study_html(study), path)


def _soft(text: str) -> Any:
    """A name that may break after its separators."""
    escaped = html.escape(clean(text))
    return pages.markup(escaped.replace("_", "_<wbr>").replace("/", "/<wbr>"))


def _sections(study: Study) -> list[tuple[str, str]]:
    present: dict[str, Any] = {
        "choice": study.verdicts,
        "trajectories": study.trajectories,
        "forgetting": study.matrices,
        "gain": study.changes,
        "formats": study.sensitivities,
        "contrasts": study.contrasts,
        "noise": study.noise,
        "scans": study.scans,
        "missing": study.gaps,
    }
    return [(key, name) for key, name in SECTIONS.items() if present.get(key, True)]


def _verdicts(study: Study) -> dict[str, Any]:
    tasks = [task for one in study.verdicts for task in one.tasks]
    scale = [end for task in tasks for end in (task.difference.low, task.difference.high)]
    return {
        "verdict_table": views.verdict_table(study.verdicts),
        "verdict_axis": pages.axis([0.0, -study.margin, *scale]),
        "outcome": outcome,
        "verdict_family": family(tasks),
    }


def _figures(study: Study) -> dict[str, Any]:
    kinds = figures.kinds(study)
    tasks = telling(study)
    last, earlier, unshown = heat.heats(study)
    tunings = [label for label in _by_size(study.changes, "tuning") if label != BASE]
    scatters = heat.scatters(study, tunings[:MOST_SCATTERS], kinds)
    drawn = {spot.shape for one in scatters for spot in one.spots}
    return {
        "kinds": kinds,
        "groups": _groups(study, kinds, tasks),
        "models_left_out": max(0, len({t.model for t in study.trajectories}) - MOST_PANELS // 2),
        "heats": last,
        "earlier": earlier,
        "heats_unshown": unshown,
        "heat_steps": heat.STEPS,
        "scatters": scatters,
        "shapes": [(shape, text) for shape, text in heat.SHAPES.items() if shape in drawn],
        "scatters_left_out": max(0, len(tunings) - MOST_SCATTERS),
        "change_words": _interval_words(study.changes, study.alpha),
        "refused_changes": sum(change.refused for change in study.changes),
        "refused_tasks": {change.task for change in study.changes if change.refused},
        "near_zero": sum(change.near_zero for change in study.changes),
        **_formats(study, kinds),
    }


def telling(study: Study) -> list[str]:
    """Tasks in their order where all can be shown; else the tasks with the largest shown change first."""
    of_trajectories = dict.fromkeys(t.task for t in study.trajectories)
    tasks = list(dict.fromkeys([*study.tasks, *of_trajectories]))
    if len(of_trajectories) * len({t.model for t in study.trajectories}) <= MOST_PANELS:
        return tasks
    ranks = {task: i for i, task in enumerate(_by_size(study.changes, "task"))}
    return sorted(tasks, key=lambda task: ranks.get(task, len(ranks)))


def _by_size(changes: Sequence[Change], what: str) -> list[str]:
    """Tasks or tunings by the largest change of each: those that are shown before those that are not."""
    size: dict[str, tuple[bool, float]] = {}
    for change in changes:
        key = getattr(change, what)
        size[key] = max(size.get(key, (False, 0.0)), (bool(words.direction(change)), abs(change.interval.estimate)))
    return sorted(size, key=lambda key: size[key], reverse=True)


@dataclass(frozen=True)
class Group:
    """Trajectories of one model: panels over checkpoints, or dots where there is only one.

    Attributes:
        names: Tunings whose names did not fit beside their lines, with the class that draws them.
        what: The axis, n and intervals, in words.
        rows: The same as tables; empty where they would be long.
    """

    model: str
    format: str
    panels: tuple[figures.Panel, ...]
    dots: tuple[figures.Dots, ...]
    names: tuple[tuple[str, str], ...]
    axis_words: str
    x_title: str
    what: str
    left_out: int
    rows: tuple[tuple[str, tuple[Trajectory, ...]], ...]
    note: str


def _groups(study: Study, kinds: dict[str, str], tasks: Sequence[str]) -> list[Group]:
    models = list(dict.fromkeys(t.model for t in study.trajectories))
    most = max(2, MOST_PANELS // max(1, len(models)))
    groups = [_group(study, model, kinds, tasks, most) for model in models[: MOST_PANELS // 2]]
    if figures.dots_of(panel for group in groups for panel in group.panels) <= figures.MOST_DOTS:
        return groups
    return [replace(group, panels=tuple(map(figures.without_dots, group.panels))) for group in groups]


def _group(study: Study, model: str, kinds: dict[str, str], tasks: Sequence[str], most: int) -> Group:
    by_task = _by_task([t for t in study.trajectories if t.model == model], study.formats)
    there = [task for task in tasks if task in by_task]
    shown = {task: by_task[task] for task in there[:most]}
    points = [point for some in shown.values() for t in some for point in t.points]
    floors = {one.task: words.finite(one.floor) for one in study.noise}
    scale = figures.checkpoint_scale(
        [c for c in study.checkpoints if c.model == model], [(p.revision, p.tokens) for p in points]
    )
    one = len({point.revision for point in points}) <= 1
    panels = [
        figures.trajectory_panel(task, some, scale, kinds, floors.get(task)) for task, some in shown.items() if not one
    ]
    dots = [figures.dot_panel(task, some, kinds, floors.get(task)) for task, some in shown.items() if one]
    names = dict.fromkeys(t.tuning for some in shown.values() for t in some)
    unnamed = one or any(
        not panel.labels or any(label.text != label.name for label in panel.labels) for panel in panels
    )
    what = [words.between([p.n for p in points], "item"), words.levels([p.interval for p in points])]
    seeds = words.between([p.seeds for p in points], "training seed")
    return Group(
        model,
        next((t.format for some in shown.values() for t in some), ""),
        tuple(panels),
        tuple(dots),
        tuple((words.tuning_name(name), kinds[name]) for name in names) if unnamed and not one else (),
        scale.words if not one else "",
        scale.title,
        ", ".join(part for part in [f"n = {what[0]}" if what[0] else "n not known", seeds, what[1]] if part),
        len(there) - len(shown),
        tuple((task, tuple(some)) for task, some in shown.items()) if len(points) <= MOST_TABLE else (),
        figures.thinned_words(max((len(t.points) for some in shown.values() for t in some), default=0)),
    )


def _by_task(trajectories: Sequence[Trajectory], formats: Sequence[str]) -> dict[str, list[Trajectory]]:
    """Trajectories under the default format of each task: the first of the study that the task has."""
    order = {name: i for i, name in enumerate(formats)}
    first: dict[str, str] = {}
    for t in sorted(trajectories, key=lambda t: order.get(t.format, len(order))):
        first.setdefault(t.task, t.format)
    chosen: dict[str, list[Trajectory]] = defaultdict(list)
    for t in trajectories:
        if t.format == first[t.task]:
            chosen[t.task].append(t)
    return chosen


def _interval_words(changes: Sequence[Change], alpha: float) -> str:
    parts = [words.between([c.n for c in changes], "item"), words.levels([c.interval for c in changes], alpha)]
    return ", ".join(part for part in (f"n = {parts[0]}" if parts[0] else "n not known", parts[1]) if part)


def _formats(study: Study, kinds: dict[str, str]) -> dict[str, Any]:
    """Panels over checkpoints for the tasks with the widest spread, and a table of the last checkpoint."""
    orders = {(c.model, c.revision): c.order for c in study.checkpoints}
    last: dict[str, str] = {}
    for s in sorted(study.sensitivities, key=lambda s: orders.get((s.model, s.revision), -1)):
        last[s.model] = s.revision
    widest: dict[str, float] = {}
    for s in study.sensitivities:
        widest[s.task] = max(widest.get(s.task, 0.0), s.spread)
    of_model: dict[str, set[str]] = defaultdict(set)
    for s in study.sensitivities:
        of_model[s.model].add(s.task)
    shown = sorted(widest, key=lambda task: -widest[task])[:MOST_FORMAT_TASKS]
    made = [
        (model, [_format_panels(study, model, task, kinds) for task in shown if task in of_model[model]])
        for model in list(of_model)[:MOST_FORMAT_MODELS]
        if len({s.revision for s in study.sensitivities if s.model == model}) > 1
    ]
    if figures.dots_of(panel for _, some in made for one in some for panel in one.panels) > figures.MOST_DOTS:
        made = [
            (model, [replace(one, panels=tuple(map(figures.without_dots, one.panels))) for one in some])
            for model, some in made
        ]
    scales = [_format_scale(study, model) for model, _ in made]
    return {
        "format_groups": made,
        "format_axis_words": list(dict.fromkeys(scale.words for scale in scales)),
        "format_table": views.format_table(study.sensitivities, last.items()),
        "format_left_out": len(widest) - len(shown),
        "format_models_left_out": max(0, len(of_model) - MOST_FORMAT_MODELS),
        "format_note": figures.thinned_words(max((len(scale.places) for scale in scales), default=0)),
        "format_n": words.between([s.n for s in study.sensitivities], "item"),
    }


def _format_panels(study: Study, model: str, task: str, kinds: dict[str, str]) -> figures.FormatPanels:
    scale = _format_scale(study, model)
    mine = [s for s in study.sensitivities if s.model == model and s.task == task]
    return figures.format_panels(task, mine, scale, kinds)


def _format_scale(study: Study, model: str) -> figures.Scale:
    revisions = dict.fromkeys(s.revision for s in study.sensitivities if s.model == model)
    return figures.checkpoint_scale([c for c in study.checkpoints if c.model == model], [(r, None) for r in revisions])
