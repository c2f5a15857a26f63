"""Processes of ``torchrun``: who writes, what they agree on; alone, nothing is imported and nothing is made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from catchment.runs import processes

SOURCE = Path(__file__).parents[3]


def test_alone_nothing_is_imported() -> None:
    code = (
        "import sys; from catchment.runs import processes as p; p.join('cpu'); v = []; "
        "assert (p.count(), p.is_main(), p.agreed(v) is v, p.anywhere(True), p.anywhere(False)) "
        "== (1, True, True, True, False); "
        "print([m for m in ('torch', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_alone_no_state_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would decide the device of an Accelerator that the user makes later."""
    import accelerate

    def made(*_: object, **__: object) -> None:
        raise AssertionError("a PartialState was made")

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(accelerate, "PartialState", made)
    processes.join()
    assert (processes.count(), processes.is_main(), processes.agreed(3)) == (1, True, 3)


def test_before_the_processes_have_met_each_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's script under torchrun that compares on one process only must not wait for the others."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (processes.count(), processes.is_main(), processes.agreed(3), processes.anywhere(True)) == (1, True, 3, True)


RANKS = """
import os, sys, torch
from pathlib import Path
from catchment.runs import processes
rank = int(os.environ["RANK"])
if sys.argv[2] == "gpu machine":
    torch.cuda.is_available = lambda: True
processes.join("cpu" if sys.argv[2] == "gpu machine" else None)
processes.join("cpu")
said = []
def look():
    one, none = processes.anywhere(rank == 1), processes.anywhere(False)
    said.append((processes.count(), processes.is_main(), processes.agreed({"rank": rank}), one, none))
look()
if sys.argv[2] == "trainer":
    from transformers import TrainingArguments
    args = TrainingArguments(output_dir=sys.argv[1], use_cpu=True, report_to=[])
    assert (args.world_size, args.process_index) == (2, rank)
    look()
assert torch.distributed.get_backend() == "gloo"
for told in said:
    assert told == (2, rank == 0, {"rank": 0}, True, False), told
(Path(sys.argv[1]) / str(rank)).write_text(str(len(said)))
"""


@pytest.mark.parametrize(
    ("how", "looks"),
    [
        pytest.param("plain", "1", marks=pytest.mark.soak),
        ("gpu machine", "1"),
        pytest.param("trainer", "2", marks=pytest.mark.soak),
    ],
)
def test_two_processes_agree(tmp_path: Path, how: str, looks: str) -> None:
    """Also where the machine has a GPU and the model is on the CPU, and after the Trainer has made its own state."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-endpoint", "127.0.0.1:0",
            "--rdzv-backend", "c10d", str(script), str(tmp_path), how,
        ],
        capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=SOURCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "destroy_process_group" not in done.stderr
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == [looks, looks]
