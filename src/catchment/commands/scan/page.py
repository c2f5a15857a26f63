"""The page of a scan: basins, profiles, worst case, plane and curvature, self-contained HTML from one record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from catchment import measuring, pages
from catchment.commands.scan import figures, words
from catchment.commands.scan.record import Scan
from catchment.pages import (
    Axis,
    axis,
    clean,
    frame,
    number,
    percent,
    render,
    ruler_name,
    ruler_note,
    sigma,
    typeset,
    write_html,
)
from catchment.records import Basin, Curvature, Gradients, Oscillation, Panel, Plane, Profile, Share, Worst

FOLDERS = ("catchment.commands.scan",)
SECTIONS = {
    "basins": "Basins",
    "places": "Breaks first",
    "worst": "Worst",
    "profiles": "Profiles",
    "plane": "Plane",
    "curvature": "Curvature",
    "gradients": "Gradients",
    "tasks": "Tasks",
    "more": "More",
    "check": "Check",
    "conditions": "Conditions",
}
DIRECTIONS = {
    "gaussian": "random directions",
    "filter": "filter-normalised random directions",
    "towards": "towards another model",
    "worst": "the worst direction found",
    "gradient": "along the gradient",
}
MOST_SHARES = 200


def scan_html(scan: Scan) -> str:
    """The whole page of a scan as one HTML document without any reference to the outside.

    Scripts and styles are inlined and pinned by hash in a content security policy; texts of the record are escaped.
    Every figure is an SVG that needs no script; the plane can also be turned where scripts run. What the budget did
    not buy stays in its place as a greyed panel with its price.

    Args:
        scan: The record.

    Returns:
        HTML of about 100 to 300 kB.
    """
    return render(
        "scan.html",
        FOLDERS,
        s=scan,
        title=clean(words.scan_title(scan.basins)),
        sections=_sections(scan),
        offers=_offers(scan),
        cards=[(field.name, getattr(scan.model, field.name)) for field in fields(scan.model)],
        evaluations=sum(basin.evaluations for basin in scan.basins),
        w=words,
        sigma=sigma,
        duration=pages.duration,
        bar_of=pages.bar,
        colour=pages.colour,
        estimate_of=measuring.estimate_of,
        state_of=measuring.state_of,
        together=measuring.together,
        clean=clean,
        number=number,
        **_basins(scan),
        **_profiles(scan),
        **_plane(scan.plane),
        **_gradients(scan.gradients),
        curvature=_curvature(scan.curvature),
        checks=_checks(scan),
        **frame(["catchment.pages/charts.css", f"{FOLDERS[0]}/scan.css"], [f"{FOLDERS[0]}/scan.js"]),
    )


def write_page(scan: Scan, path: Path | str) -> Path:
    """Write the page of a scan, e.g. to ``OUT/report.html``; a reader never sees half a page.

    Raises:
        StoreError: The file cannot be written (read-only folder, full disk).
    """
    return write_html(scan_html(scan), path)


def _sections(scan: Scan) -> list[tuple[str, str]]:
    offered = _offers(scan)
    present: dict[str, Any] = {
        "places": len({basin.place for basin in scan.basins}) > 1,
        "worst": scan.worst,
        "profiles": scan.profiles,
        "plane": scan.plane,
        "curvature": scan.curvature,
        "gradients": scan.gradients,
        "tasks": scan.admissions,
        "more": offered["more"],
    }
    return [(key, name) for key, name in SECTIONS.items() if present.get(key, True) or (key != "more" and offered[key])]


def _offers(scan: Scan) -> dict[str, list[tuple[Panel, str]]]:
    """Panels that were not bought with their offers, by section; those of no section, or of one that was bought in
    part, stand under ``more``."""
    bought: dict[str, Any] = {"basins": scan.basins, "worst": scan.worst, "profiles": scan.profiles}
    bought |= {"plane": scan.plane, "curvature": scan.curvature, "gradients": scan.gradients}
    found: dict[str, list[tuple[Panel, str]]] = {key: [] for key in SECTIONS}
    for panel in scan.panels:
        if not panel.bought:
            place = panel.name if panel.name in bought and not bought[panel.name] else "more"
            found[place].append((panel, words.offer(panel, scan.panels, scan.plan)))
    return found


def _basins(scan: Scan) -> dict[str, Any]:
    scale = figures.basin_axis(scan.basins)
    radii = [radius for worst in scan.worst for radius in (worst.radius or 0.0, worst.survived or 0.0)]
    both = figures.basin_axis(scan.basins, radii)
    return {
        "ranked": measuring.ranked(scan.basins),
        "basin_axis": scale,
        "rms_axis": pages.relative(scale, scan.subspace.ruler),
        "worst_axis": both,
        "worst_rms_axis": pages.relative(both, scan.subspace.ruler),
        "worst_rows": [_WorstRow(worst, _of_task(scan.basins, worst.task)) for worst in scan.worst],
        "ruler_note": ruler_note(scan.subspace.ruler),
        "of_ruler": ruler_name(scan.subspace.ruler) if scan.subspace.ruler else "",
        "place_groups": words.by_place(scan.basins),
    }


@dataclass(frozen=True)
class _WorstRow:
    """Worst and most case of one task side by side."""

    worst: Worst
    basin: Basin | None

    @property
    def ratio(self) -> str:
        """How many times farther random moves reach, at least: ``low / radius``, as the true radius is smaller."""
        if self.basin is None or not self.worst.radius or self.basin.low <= self.worst.radius:
            return ""
        return f"{float(f'{self.basin.low / self.worst.radius:.2g}'):g}"


def _of_task(basins: Sequence[Basin], task: str) -> Basin | None:
    return next((basin for basin in basins if basin.task == task), None)


@dataclass(frozen=True)
class _ProfileFigure:
    profile: Profile
    what: str
    score: pages.Chart
    companion: pages.Chart | None
    tau: float | None

    @property
    def summary(self) -> str:
        """The largest drop of the mean score, and where."""
        lowest = min(self.profile.points, key=lambda point: point.score.estimate)
        return (
            f"Base {percent(self.profile.base)}, lowest mean {percent(lowest.score.estimate)} at {sigma(lowest.scale)}."
        )


def _profiles(scan: Scan) -> dict[str, Any]:
    made = [_profile_figure(profile, _of_task(scan.basins, profile.task)) for profile in scan.profiles]
    return {"profiles": made}


def _profile_figure(profile: Profile, basin: Basin | None) -> _ProfileFigure:
    points = sorted(profile.points, key=lambda point: point.scale)
    scale = pages.scale_axis([point.scale for point in points])
    tau = basin.tau if basin else None
    level = profile.base - tau if tau is not None else None
    spans: list[tuple[float, float | None]] = []
    if basin and profile.direction == "gaussian" and (basin.low > 0 or basin.high is not None):
        spans = [(basin.low, basin.high)]
    ends = [end for p in points for end in (p.score.low, p.score.high)]
    ruled = [(profile.base, "base-line", "base"), (profile.chance, "chance-line", "chance")]
    ruled += [(level, "tau-line", "tolerance")] if level is not None else []
    score = pages.chart(
        [pages.Series("score", tuple((p.scale, *_three(p.score), _point_words(p, True)) for p in points))],
        pages.Plot(scale, axis([*ends, *(value for value, _, _ in ruled)], 5)),
        ruled,
        spans,
    )
    beside = [p for p in points if p.companion is not None]
    companion = None
    if beside:
        rules = [(profile.base_companion, "base-line", "base")] if profile.base_companion is not None else []
        values = [end for p in beside if p.companion for end in (p.companion.low, p.companion.high)]
        companion = pages.chart(
            [pages.Series("companion", tuple((p.scale, *_three(p.companion), _point_words(p, False)) for p in beside))],
            pages.Plot(scale, axis([*values, *(value for value, _, _ in rules)], 4), height=112),
            rules,
            spans,
            y_unit=1.0,
        )
    return _ProfileFigure(profile, DIRECTIONS[profile.direction], score, companion, tau)


def _three(interval: Any) -> tuple[float, float, float]:
    return interval.estimate, interval.low, interval.high


def _point_words(point: Any, score: bool) -> str:
    found = point.score if score else point.companion
    text = percent if score else (lambda value: f"{value:.3f}")
    return (
        f"{sigma(point.scale)}: {text(found.estimate)} ({text(found.low)} to {text(found.high)}), "
        f"{point.directions:,} directions, {point.items:,} evaluations"
    )


def _plane(plane: Plane | None) -> dict[str, Any]:
    if plane is None:
        return {"plane_maps": [], "plane_data": ""}
    maps = [("Score, percent", figures.heat_map(plane), True)]
    if plane.companions:
        maps.append(("Likelihood companion", figures.heat_map(plane, companion=True), False))
    data = {
        "xs": plane.xs,
        "ys": plane.ys,
        "score": [[round(value, 5) for value in row] for row in plane.values],
        "companion": [[float(f"{value:.5g}") for value in row] for row in plane.companions],
        "axes": [clean(name) for name in plane.axes],
        "models": [[clean(model.name), model.x, model.y] for model in plane.models],
        "stops": pages.STOPS,
    }
    return {"plane_maps": maps, "plane_data": json.dumps(data, separators=(",", ":"))}


@dataclass(frozen=True)
class _CurvatureView:
    curvature: Curvature
    mean: float
    bars: tuple[tuple[float, float, float], ...]
    quadratic: str


def _curvature(found: Curvature | None) -> _CurvatureView | None:
    """Bars are (eigenvalue, residual, share of the largest). The quadratic reading holds where the trace is above
    zero with its whole interval: a random move of RMS s raises the loss by s^2 / 2 times the trace."""
    if found is None:
        return None
    most = max((abs(value) for value in found.top), default=0.0) or 1.0
    bars = tuple((value, rest, abs(value) / most) for value, rest in zip(found.top, found.residuals, strict=True))
    reading = ""
    if found.trace.low > 0:
        low, high = ((0.2 / trace) ** 0.5 for trace in (found.trace.high, found.trace.low))
        reading = (
            "If the loss were a parabola, random moves would raise it by 0.1 nats at "
            f"{sigma(low)} to {sigma(high)} RMS per weight"
        )
        if found.top and found.top[0] > 0:
            steep = (0.2 / found.top[0]) ** 0.5 / found.size**0.5
            reading += f", and the steepest direction at {sigma(steep)}"
        reading += "."
    return _CurvatureView(found, found.trace.estimate / found.size, bars, reading)


@dataclass(frozen=True)
class _ShareRow:
    """Shares of one tensor at one cut: pre-trained, random initialisation, Gaussian entries."""

    name: str
    top: float
    pretrained: Share
    random: Share | None
    gaussian: tuple[float, float] | None


def _gradients(found: Gradients | None) -> dict[str, Any]:
    if found is None:
        return {"share_rows": [], "share_left_out": 0, "share_chart": None, "waves": []}
    other = {(share.name, share.top): share for share in found.random}
    gaussian = {top: (share, squared) for top, share, squared in found.gaussian}
    rows = [
        _ShareRow(s.name, s.top, s, other.get((s.name, s.top)), gaussian.get(s.top))
        for s in sorted(found.pretrained, key=lambda s: s.name != "all")
    ]
    return {
        "share_rows": rows[:MOST_SHARES],
        "share_left_out": max(0, len(rows) - MOST_SHARES),
        "share_chart": _share_chart(found),
        "waves": [(wave, _wave_chart(wave)) for wave in found.oscillation],
    }


def _share_chart(found: Gradients) -> pages.Chart | None:
    def series(kind: str, points: list[tuple[float, float]]) -> pages.Series:
        named = ((x, y, y, y, f"largest {100 * x:g}% of the entries: {percent(y)}") for x, y in sorted(points))
        return pages.Series(kind, tuple(named))

    def whole(shares: Sequence[Share], static: bool = False) -> list[tuple[float, float]]:
        return [(s.top, s.static if static else s.fresh) for s in shares if s.name == "all"]

    lines = [
        series("pretrained", whole(found.pretrained)),
        series("static", whole(found.pretrained, static=True)),
        series("random", whole(found.random)),
        series("gauss", [(top, share) for top, share, _ in found.gaussian]),
    ]
    tops = [point[0] for line in lines for point in line.points]
    if len(set(tops)) < 2:
        return None
    scale = pages.ticked(min(tops), max(tops), percent=True)
    return pages.chart(lines, pages.Plot(scale, Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0)), height=200))


def _wave_chart(wave: Oscillation) -> pages.Chart:
    lines = [
        pages.Series("wave", tuple((x, y, y, y, "") for x, y in zip(wave.scales, losses, strict=True)))
        for losses in wave.losses
    ]
    values = [value for losses in wave.losses for value in losses]
    bounds = Axis(min(wave.scales), max(wave.scales), axis(wave.scales, 4, 0.0).ticks, unit=1.0)
    plot = pages.Plot(bounds, axis([*values, wave.centre], 4), height=130)
    return pages.chart(lines, plot, [(wave.centre, "base-line", "")], y_unit=1.0)


def _checks(scan: Scan) -> list[tuple[str, str, str]]:
    """Each number of the self-check with its meaning in a few words."""
    check = scan.check
    same = check.hash_before == check.hash_after
    rows = [
        ("At displacement 0", f"{check.centre:.2g}", "largest difference from the model’s own rows; 0 is exact"),
        ("Realised move", f"{100 * check.realised:.4g}%", "of the intended size, after rounding"),
        ("Off the axis", f"{100 * check.off_axis:.2g}%", "of the move points elsewhere, by rounding"),
        ("Tied names", str(check.tied), "share a moved tensor; each is moved once"),
        ("Weights afterwards", "the same" if same else "CHANGED", f"hash {check.hash_before[:12]} before and after"),
        ("Arithmetic", check.mode, "in which the moved weights were formed"),
    ]
    if not same:
        rows[4] = (rows[4][0], "CHANGED", f"hash {check.hash_before[:12]} before, {check.hash_after[:12]} after")
    if check.cosine is not None:
        rows.insert(3, ("Axes of the plane", f"cosine {check.cosine:.2g}", "0 is a right angle"))
    return [(name, typeset(value), meaning) for name, value, meaning in rows]
