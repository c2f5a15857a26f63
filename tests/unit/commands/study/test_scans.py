"""Scans as cells of a study: refused before anything runs, missing and failed ones are rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from catchment.commands.study import scanning
from catchment.commands.study.axes import ScanAxis
from catchment.commands.study.record import Gap
from catchment.commands.study.scanning import check_scans, scan_gaps, stands_of_scans
from catchment.commands.study.standing import Site
from catchment.errors import InputError
from catchment.runs import Store
from tests.unit.commands.study.grids import design, settings, write_grid


def site(folder: Path, scans: list[dict[str, Any]]) -> Site:
    path = write_grid(folder, scans=scans, tasks=["recall"], tunings=[])
    return Site(design(path), Store(settings(path).store_folder))


@pytest.mark.parametrize(
    ("scans", "said"),
    [
        ([{"settings": {"direction": 3}}], "no setting 'direction' of a scan in a study. Did you mean 'directions'?"),
        ([{"settings": {"directions": "x"}}], "scans.scan: directions 'x'"),
        ([{"settings": {"directions": -1}}], "scans.scan: directions -1"),
        ([{"of": "bases"}], "scans.scan.of is 'bases'; expected one of all, base"),
        ([{"settings": {"directions": 2}}, {"settings": {"directions": 3}}], "'scan' is there twice"),
    ],
)
def test_a_scan_that_cannot_run_is_refused(tmp_path: Path, scans: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(InputError) as caught:
        check_scans(site(tmp_path, scans))
    assert said in str(caught.value)


def test_scans_that_are_not_there_are_rows_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One card for the model, and keys by the name of the scan: only what the store says of them decides."""
    grid = site(tmp_path, [{"name": name} for name in ("done", "missing", "failed")])
    card = SimpleNamespace(reason="")
    monkeypatch.setattr(Site, "known", lambda self, unit: SimpleNamespace(unit=unit, card=card, reason="", waiting=""))
    monkeypatch.setattr(scanning, "key_of", lambda grid, axis, card: axis.name)
    monkeypatch.setattr(scanning, "read_scan", lambda grid, axis, card: axis if axis.name == "done" else None)
    stands = list(stands_of_scans(grid, {"failed": "no memory"}))
    assert [status for _, status, _ in stands] == ["done", "missing", "failed"]
    assert scan_gaps(stands) == [
        Gap("scan missing of base + base", 1, "", "missing"),
        Gap("scan failed of base + base", 1, "no memory", "failed"),
    ]
    assert isinstance(grid.design.scans[0], ScanAxis)
