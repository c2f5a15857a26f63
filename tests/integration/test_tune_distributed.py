"""``torchrun -m catchment tune``: two gloo processes against one that sees both batches, by DDP and by FSDP2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from catchment.cli import main
from tests import tiny
from tests.integration.test_compare import home, make_task, write_task
from tests.integration.test_scan import solved
from tests.integration.test_tune import SUMS, lines

__all__ = ["home"]
torch.set_num_threads(1)
BATCH = 4
"""Rows of a step, over all processes."""
SHARD = ("--training-args", "fsdp=true")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("processes")
    tiny.tiny_llama().save_pretrained(root / "base")
    tiny.tiny_tokenizer().save_pretrained(root / "base")
    lines(root / "sums.jsonl", SUMS)
    write_task(root / "echo.jsonl", solved(tiny.tiny_llama(), make_task(n=160)))
    return root


def tune(room: Path, out: Path, processes: int, *options: str, module: str = "catchment") -> dict[str, Any]:
    """Run the command, one process of it in this one; its record."""
    words = [
        "tune", str(room / "base"), "--data", str(room / "sums.jsonl"), "--out", str(out), "--batch-size",
        str(BATCH // processes), "--max-steps", "4", "--save-steps", "2", "--max-length", "64", "--tasks", "none",
        "--held-out", "8", "--device", "cpu", *options,
    ]  # fmt: skip
    if processes == 1:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        return json.loads((out / "tune.json").read_text())
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--rdzv-endpoint", "127.0.0.1:0")
    done = subprocess.run(
        [sys.executable, *torchrun, "--rdzv-backend", "c10d", "-m", module, *words],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "tune.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


WAYS = {
    "sift": ("catchment", ("--method", "sift", "--sparsity", "0.1")),
    "full": ("catchment", ("--method", "full", "--learning-rate", "1e-2")),
    "full, FSDP2": ("tests.gloo_sharding", ("--method", "full", "--learning-rate", "1e-2", *SHARD)),
    "lora, FSDP2": ("tests.gloo_sharding", ("--method", "lora", "--learning-rate", "1e-2", *SHARD)),
}


@pytest.mark.parametrize("way", ["sift", *(pytest.param(way, marks=pytest.mark.soak) for way in WAYS if way != "sift")])
def test_two_processes_equal_one(room: Path, tmp_path: Path, way: str) -> None:
    module, options = WAYS[way]
    alone = tune(room, tmp_path / "one", 1, *(o for o in options if o not in SHARD))
    shared = tune(room, tmp_path / "two", 2, *options, module=module)
    assert not any("does not cut weights" in text for text in shared["warnings"])
    one, two = weights(tmp_path / "one/plain"), weights(tmp_path / "two/plain")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name].float(), tensor.float(), atol=1e-5, rtol=1e-5, msg=name)
    a, b = alone["runs"][0], shared["runs"][0]
    assert (a["steps"], a["bytes"] > 0) == (b["steps"], b["bytes"] > 0)
    assert b["held_out"]["base"] == a["held_out"]["base"]
    assert b["held_out"]["tuned"] == pytest.approx(a["held_out"]["tuned"], abs=1e-5)
    assert a["held_out"]["tuned"] < a["held_out"]["base"] - 1e-3


@pytest.mark.soak
def test_two_processes_protect_as_one_does(room: Path, tmp_path: Path) -> None:
    """The fence looks on one process and both pull; what is replayed is shared among them."""
    options = (
        "--method", "sift", "--sparsity", "0.1", "--learning-rate", "0.3", "--protect", str(room / "echo.jsonl"),
        "--max-drop", "0.05", "--fence-steps", "2", "--replay", "0.5", "--no-plain",
    )  # fmt: skip
    runs = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        found = tune(room, out, processes, *options)
        runs.append((weights(out / "protected"), found["runs"][0], (out / "replay.jsonl").read_text(encoding="utf-8")))
    (one, a, texts), (two, b, again) = runs
    assert texts == again
    pulls, others = ([(look["step"], look["factor"]) for look in run["looks"]] for run in (a, b))
    assert pulls == others
    assert any(look["factor"] < 1 for look in a["looks"])
    for name, tensor in one.items():
        torch.testing.assert_close(two[name].float(), tensor.float(), atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.soak
def test_sharded_tunes_are_taken_up(room: Path, tmp_path: Path) -> None:
    """A tune that was killed behind its last checkpoint takes no further step, and one killed before it goes on."""
    module, options = WAYS["full, FSDP2"]
    tune(room, tmp_path / "out", 2, *options, "--training-args", "fsdp=true", "save_total_limit=2", module=module)
    whole = weights(tmp_path / "out/plain")
    for lost in ((), ("checkpoint-4",)):
        (tmp_path / "out/tune.json").unlink()
        for folder in ("plain", *(f"checkpoints/plain/{name}" for name in lost)):
            shutil.rmtree(tmp_path / "out" / folder)
        record = tune(
            room, tmp_path / "out", 2, *options, "--training-args", "fsdp=true", "save_total_limit=2", module=module
        )
        assert not record["warnings"]
        again = weights(tmp_path / "out/plain")
        assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


@pytest.mark.soak
def test_sharding_that_accelerate_does_not_do_is_told(room: Path, tmp_path: Path) -> None:
    record = tune(room, tmp_path / "out", 2, "--method", "full", *SHARD)
    assert any("does not cut weights over 2 process(es) on cpu" in text for text in record["warnings"])
