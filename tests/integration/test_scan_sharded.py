"""Rows at displaced points of weights that are cut over two processes (FSDP2): those of one process, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from catchment.capabilities import make_engine, prepare, run
from catchment.landscape import Evaluator, Ground, Mover, Subspace, gaussian
from catchment.models import weights_hash
from tests import tiny
from tests.gloo import Gloo

VOCABULARY = 321
"""Rows that two processes cannot share evenly."""
SCALES = (-0.02, 0.3)


def task() -> Any:
    from tests.integration.test_compare import make_task

    return make_task(n=6)


def rows(model: Any) -> dict[str, Any]:
    """Rows per point: at the model's own weights, along two directions and back, and the hashes before and after."""
    tokenizer = tiny.tiny_tokenizer()
    found: dict[str, Any] = {"before": weights_hash(model)}
    engine = make_engine(model, tokenizer, 256)
    prepared = prepare(tokenizer, task())
    base = {row.item: row for row in run(engine, prepared)}
    ground = Ground(prepared, base, tuple(base), 1 / 3, 0.1)
    found["own"] = [base[i] for i in ground.items]
    for subspace in (Subspace.all(model), Subspace.glob(model, "*.mlp.*")):
        with Evaluator(engine, Mover(model, subspace), [ground]) as evaluator:
            for index in (0, 1):
                for scale in SCALES:
                    point = f"{subspace.kind}/{index}/{scale}"
                    move = gaussian(subspace, 0, index), scale
                    there = evaluator.rows({"point": point}, "", {"echo": ground.items}, move)
                    found[point] = [there["echo"][i] for i in ground.items]
            evaluator.home()
            found[f"{subspace.kind}/after"] = weights_hash(model)
            found[f"{subspace.kind}/home"] = list(evaluator.fresh("echo", ground.items).values())
    return found


def worker(rank: int, out: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = tiny.tiny_llama(vocab_size=VOCABULARY)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    torch.save(rows(model), f"{out}/{rank}.pt")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed part here")
def test_two_processes_score_what_one_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gloo: Gloo) -> None:
    monkeypatch.setenv("CATCHMENT_HOME", str(tmp_path / "home"))
    gloo.run(worker, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = rows(tiny.tiny_llama(vocab_size=VOCABULARY))
    finally:
        torch.set_num_threads(threads)
    assert first == one
    assert second == one
    assert one["all/after"] == one["glob/after"] == one["before"]
    assert one["all/home"] == one["own"]
    assert one["all/0/0.3"] != one["own"]
    assert one["all/0/0.3"] != one["all/1/0.3"]
