"""Scans of the models of a study, as cells of their own: basin widths and curvature by checkpoint and tuning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from catchment.commands.scan.record import FILE, Scan
from catchment.commands.scan.run import run
from catchment.commands.scan.settings import ScanSettings
from catchment.commands.study.axes import ScanAxis, distinct
from catchment.commands.study.record import Gap, Status
from catchment.commands.study.standing import Known, Site
from catchment.errors import InputError, did_you_mean
from catchment.measuring import Progress, Subject
from catchment.options import AskOptions
from catchment.records import ModelCard, from_json
from catchment.runs import cell_key

OF = ("all", "base")
OURS = ("model", "out", "store", "budget", "workers", "dry_run", "config")
"""Settings of a scan that are those of the study."""


def check_scans(site: Site) -> None:
    """Refuse scans that could not be run, before anything is.

    Raises:
        InputError: A name twice, or what :func:`settings_of` refuses.
    """
    scans = site.design.scans
    distinct((axis.name for axis in scans), "scans")
    for axis in scans:
        settings_of(site, axis, "")


def settings_of(site: Site, axis: ScanAxis, model: Any) -> ScanSettings:
    """The settings of one scan.

    Raises:
        InputError: A setting that a scan does not have, that is the study's, or whose value it cannot have.
    """
    names = set(ScanSettings.__dataclass_fields__) - set(OURS)
    for name in axis.settings:
        if name not in names:
            raise InputError(f"scans.{axis.name}: no setting {name!r} of a scan in a study.{did_you_mean(name, names)}")
    if axis.of not in OF:
        raise InputError(f"scans.{axis.name}.of is {axis.of!r}; expected one of {', '.join(OF)}.")
    s = site.design.settings
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in axis.settings.items()}
    shared = {**s.shared(AskOptions), "seed": s.seed, "batch_tokens": s.batch_tokens, "device": s.device}
    try:
        return ScanSettings(model, **{**shared, **lists, "store": s.store_folder})
    except InputError as error:
        raise InputError(f"scans.{axis.name}: {error}") from error


def key_of(site: Site, axis: ScanAxis, card: ModelCard) -> str:
    """Address of a scan: the model and the settings."""
    s = site.design.settings
    plain = {name: list(v) if isinstance(v, tuple) else v for name, v in axis.settings.items()}
    own = {"weights": card.weights_hash, "config": card.config_hash, "tokenizer": card.tokenizer_hash}
    return cell_key({"kind": "scan", **own, "dtype": card.dtype, "seed": s.seed, "system": s.system, "settings": plain})


def read_scan(site: Site, axis: ScanAxis, card: ModelCard) -> Scan | None:
    """A scan that has ended; ``None`` where it has not."""
    path = site.store.root / "scans" / key_of(site, axis, card) / FILE
    try:
        return from_json(Scan, path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        site.store.warn(str(path), "it is no record of a scan")
        return None


def _of(site: Site, known: Known) -> Iterator[ScanAxis]:
    """Scans that the study asks of a model."""
    yield from (axis for axis in site.design.scans if axis.of == "all" or known.unit.recipe is None)


def scans_due(site: Site, known: Known) -> Iterator[ScanAxis]:
    """Scans of this model that are missing; of one that is not trained yet every one is."""
    return (axis for axis in _of(site, known) if known.card is None or read_scan(site, axis, known.card) is None)


def scan_unit(site: Site, axis: ScanAxis, card: ModelCard, opened: Subject, progress: Progress) -> None:
    """Scan a model that is loaded."""
    folder = site.store.root / "scans" / key_of(site, axis, card)
    run(replace(settings_of(site, axis, opened.loaded), out=folder), progress)


def stands_of_scans(site: Site, reasons: Mapping[str, str]) -> Iterator[tuple[str, Status, str]]:
    """Every scan of the grid: what it is of, whether it is done, missing or failed, and why; ``reasons`` of failures by
    key."""
    for place in site.design.places:
        for unit in site.design.units(place):
            known = site.known(unit)
            for axis in _of(site, known):
                yield f"{axis.name} of {place.name} + {unit.tuning}", *_status(site, axis, known, reasons)


def _status(site: Site, axis: ScanAxis, known: Known, reasons: Mapping[str, str]) -> tuple[Status, str]:
    if known.card is not None and read_scan(site, axis, known.card) is not None:
        return "done", ""
    reason = known.reason if known.card is None else reasons.get(key_of(site, axis, known.card), "")
    if reason:
        return "failed", reason
    return "missing", known.waiting if known.card is None else ""


def scan_gaps(stands: Iterable[tuple[str, Status, str]]) -> list[Gap]:
    """Scans that are not done, by what they are of and reason."""
    number = Counter(stand for stand in stands if stand[1] != "done")
    return [Gap(f"scan {what}", times, reason, status) for (what, status, reason), times in number.items()]


def scans_of(site: Site) -> Iterator[dict[str, Any]]:
    """What the scans that are there say, one entry per model, scan and task."""
    for place in site.design.places:
        for unit in site.design.units(place):
            known = site.known(unit)
            for axis in _of(site, known) if known.card is not None else ():
                assert known.card is not None
                scan = read_scan(site, axis, known.card)
                if scan is not None:
                    yield from _told(unit, axis, scan)


def _told(unit: Any, axis: ScanAxis, scan: Scan) -> Iterator[dict[str, Any]]:
    c, ruler = unit.place.checkpoint, scan.subspace.ruler
    rms = ruler.rms if ruler is not None else None
    for basin in scan.basins:
        relative = [None if end is None or not rms else end / rms for end in (basin.low, basin.high)]
        yield {
            "model": c.model, "revision": c.revision, "tuning": unit.tuning, "seed": unit.seed, "scan": axis.name,
            "task": basin.task, "sigma_low": basin.low, "sigma_high": basin.high, "relative_low": relative[0],
            "relative_high": relative[1], "trace": None if scan.curvature is None else scan.curvature.trace.estimate,
        }  # fmt: skip
