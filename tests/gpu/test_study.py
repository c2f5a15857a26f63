"""A study on a GPU: trained, measured and resumed there, its rows apart from those of a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from catchment.commands.study.record import FILE, Study
from catchment.records import from_json
from catchment.runs import Store
from tests import freeze
from tests.freeze import said
from tests.unit.commands.study.grids import write_grid

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine"),
]


@pytest.mark.parametrize(("dtype", "workers"), [("float32", "1"), ("bfloat16", "2")])
def test_a_study(tmp_path: Path, dtype: str, workers: str) -> None:
    freeze.write_inputs(tmp_path)
    path = write_grid(tmp_path, device=None, dtype=dtype)
    words = ("study", "run", str(path), "--workers", workers, "--store", "store", "--out", "out")
    with freeze.place(tmp_path):
        code, _, errors = said(*words)
        assert code == 0, errors
        record = from_json(Study, (tmp_path / "out" / FILE).read_text(encoding="utf-8"))
        store = Store(tmp_path / "store")
        before = store.counts()
        devices = {store.conditions(key)["device"] for key in before}
        again = said(*words)[0]
        after = Store(tmp_path / "store").counts()
    assert record.headline == "complete"
    assert devices == {"cuda"}
    assert (again, after) == (0, before)
