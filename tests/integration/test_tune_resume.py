"""``tune`` that is killed, damaged or diverges: the same command goes on to the same bytes, or says what is wrong."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from catchment import models
from catchment.commands.tune.record import Tune
from catchment.records import from_json
from tests import tiny
from tests.integration.test_compare import Cli, home, make_task, run_cli, write_task
from tests.integration.test_scan import solved
from tests.integration.test_tune import SUMS, lines
from tests.integration.test_tune_bad_input import command, refused

__all__ = ["home", "run_cli"]
torch.set_num_threads(1)

NURSERY = """
import os, sys
import torch
import catchment.commands.tune.run
from catchment.cli import runner
import catchment.cli.live, peft
from transformers import Trainer
torch.set_num_threads(1)
for line in sys.stdin:
    where, *words = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if not child:
        log = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        code = runner.run(words[0], words[1:])
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""A process that has imported everything, and forks for each command: a start of Python and torch takes seconds."""


class Nursery:
    """Runs commands in processes of their own, which can be killed."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log.txt"
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "CATCHMENT_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, words: list[Any], until: Callable[[], bool] = lambda: False) -> bool:
        """Run to the end, or kill -9 as soon as ``until`` holds; whether it was killed."""
        assert self.process.stdin
        assert self.process.stdout
        print(self.log, *words, sep="\t", file=self.process.stdin, flush=True)
        child, deadline = int(self.process.stdout.readline()), time.monotonic() + 60
        while _lives(child):
            if until() or time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                break
            time.sleep(0.001)
        status = int(self.process.stdout.readline())
        assert time.monotonic() < deadline, self.log.read_text()
        killed = os.WIFSIGNALED(status)
        assert killed or os.waitstatus_to_exitcode(status) == 0, self.log.read_text()
        return killed

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def _lives(child: int) -> bool:
    try:
        state = Path(f"/proc/{child}/stat").read_text()
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resumed")
    for name, model in (("base", tiny.tiny_llama()), ("wide", tiny.tiny_llama(intermediate_size=64))):
        model.save_pretrained(root / name)
        tiny.tiny_tokenizer().save_pretrained(root / name)
    lines(root / "prompt.jsonl", SUMS)
    write_task(root / "echo.jsonl", solved(tiny.tiny_llama(), make_task(n=160)))
    return root


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    found = Nursery(tmp_path_factory.mktemp("nursery"))
    yield found
    found.close()


def fenced(room: Path, out: Path, method: str) -> list[Any]:
    rate = {"sift": "0.3", "lora": "0.1"}[method]
    return [
        "tune", room / "base", "--data", room / "prompt.jsonl", "--out", out, "--method", method, "--max-steps", "9",
        "--tasks", "none", "--held-out", "5", "--protect", room / "echo.jsonl", "--max-drop", "0.05", "--fence-steps",
        "3", "--save-steps", "2", "--learning-rate", rate, "--limit", "40", "--max-length", "48", "--batch-size", "4",
    ]  # fmt: skip


def artefacts(out: Path) -> dict[str, bytes]:
    """What a tune is for, byte by byte."""
    names = ["rooms.json", "replay.jsonl", *(f"{run}/{file}" for run in ("protected", "plain") for file in WEIGHTS)]
    found = {name: (out / name).read_bytes() for name in names if (out / name).is_file()}
    looks = sorted((out / "fence/protected").glob("*.json"))
    return found | {look.name: look.read_bytes() for look in looks}


WEIGHTS = ("increment.safetensors", "adapter_model.safetensors")


def told(out: Path) -> Tune:
    return from_json(Tune, (out / "tune.json").read_text())


@needs_proc
@pytest.mark.parametrize("method", ["sift", pytest.param("lora", marks=pytest.mark.soak)])
def test_a_killed_tune_goes_on_to_the_same_bytes(room: Path, tmp_path: Path, nursery: Nursery, method: str) -> None:
    """kill -9 at moments drawn among all that leave a trace, then the same command: as if nothing had happened."""
    out = tmp_path / "out"
    assert not nursery.run(fenced(room, out, method))
    whole, record = artefacts(out), told(out)
    assert any(f"protected/{name}" in whole for name in WEIGHTS)
    assert any(f"plain/{name}" in whole for name in WEIGHTS)
    looks = record.runs[0].looks
    assert any(look.factor < 1 for look in looks), "a fence that never pulls shows little"
    last = record.runs[0].steps
    early = [
        *["rooms.json"] * (method == "sift"),
        "replay.jsonl",
        "checkpoints/protected/checkpoint-2",
        "fence/protected/fence-base.json",
    ]
    steps = [
        f"checkpoints/protected/checkpoint-{k}/{f}" for k in (4, 6) for f in ("scheduler.pt", "trainer_state.json")
    ]
    pulls = [f"fence/protected/fence-{look.step:08d}.json" for look in looks[:-1]]
    late = [f"checkpoints/protected/checkpoint-{last}", "protected/run.json", "checkpoints/plain/checkpoint-4"]
    draw = random.Random(method)
    shutil.move(out, tmp_path / "whole")
    moments = [draw.choice(group) for group in (early, steps, pulls, late)]
    killed = [nursery.run(fenced(room, out, method), (out / moment).exists) for moment in moments]
    assert sum(killed) >= 2  # a moment that an earlier kill has passed kills at once; others may come too late
    assert not nursery.run(fenced(room, out, method))
    assert artefacts(out) == whole, moments
    again = told(out)
    for one, two in zip(record.runs, again.runs, strict=True):
        assert (one.loss, one.held_out, one.looks, one.stopped) == (two.loss, two.held_out, two.looks, two.stopped)
        assert (one.steps, one.tokens, one.tasks) == (two.steps, two.tokens, two.tasks)
    assert (again.rooms, again.against, again.sentence) == (record.rooms, record.against, record.sentence)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:.*was not written to its end and is passed over")
def test_a_killed_process_of_its_own(room: Path, tmp_path: Path, run_cli: Cli) -> None:
    """As a person kills it: ``python -m catchment tune``, and the same command again."""
    words = [*command(room, tmp_path / "out"), "--save-steps", "1"]
    words[words.index("--max-steps") + 1] = "40"
    process = subprocess.Popen(
        [sys.executable, "-m", "catchment", *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not (tmp_path / "out/checkpoints/plain/checkpoint-3").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert process.poll() is None, "the tune was over before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = run_cli(*words)
    assert again.returncode == 0, again.stderr
    words[words.index("--out") + 1] = tmp_path / "whole"
    assert run_cli(*words).returncode == 0
    assert _increment(tmp_path / "out") == _increment(tmp_path / "whole")


# ----------------------------------------------------------------------------------------------- an OUT of its own


@pytest.fixture(scope="module")
def finished(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tune that is done, to be copied and damaged."""
    from catchment.cli.runner import run

    out = tmp_path_factory.mktemp("finished") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CATCHMENT_HOME", str(out.parent / "home"))
        assert run("tune", [str(w) for w in (*command(room, out)[1:], "--save-steps", "2")]) == 0
    return out


def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sparsity", "0.02"], "sparsity is 0.02 here and null there"),
        (["--learning-rate", "0.01"], "learning_rate is 0.01 here and 0.001 there"),
        (["--seed", "3"], "seed is 3 here and 0 there"),
        (["--method", "lora"], 'method is "lora" here and "sift" there'),
        (["--held-out", "4"], "data is"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_out_of_another_tune(
    room: Path, finished: Path, tmp_path: Path, run_cli: Cli, options: list[str], said: str
) -> None:
    out = copied(finished, tmp_path)
    before = (out / "tune.json").read_bytes()
    refused(run_cli(*command(room, out), *options), f"{out} holds another tune", said)
    assert (out / "tune.json").read_bytes() == before


def test_an_out_of_another_base_or_of_something_else(room: Path, finished: Path, tmp_path: Path, run_cli: Cli) -> None:
    out = copied(finished, tmp_path)
    refused(run_cli(*command(room, out, base="wide")), "base is")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    refused(run_cli(*command(room, tmp_path / "mine")), "holds files that are not ours (thesis.txt)")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_settings_that_decide_nothing_may_change(room: Path, finished: Path, tmp_path: Path, run_cli: Cli) -> None:
    out = copied(finished, tmp_path)
    again = run_cli(*command(room, out), "--save-steps", "1", "--tasks", room / "echo.jsonl", "--limit", "40")
    assert again.returncode == 0, again.stderr
    assert {task.task for task in told(out).runs[0].tasks} == {"echo"}
    assert told(out).runs[0].seconds == told(finished).runs[0].seconds  # not trained again


def test_an_increment_of_another_base(room: Path, finished: Path) -> None:
    from catchment.errors import ModelError

    with pytest.raises(ModelError, match="base"):
        models.load(f"{room / 'wide'}+{finished / 'plain'}")


DAMAGE = [
    pytest.param("run.json", id="run.json"),
    pytest.param("trainer_state.json", id="trainer_state"),
    pytest.param("optimizer.pt", id="optimizer"),
    pytest.param("scheduler.pt", id="scheduler"),
    pytest.param("rng_state.pth", id="rng"),
    pytest.param("increment.safetensors", id="increment"),
]


@pytest.mark.filterwarnings("ignore:.*was not written to its end and is passed over")
@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_was_cut_short(room: Path, finished: Path, tmp_path: Path, run_cli: Cli, name: str) -> None:
    """Trained again to the same bytes, or one line that names the file or its folder."""
    out = copied(finished, tmp_path)
    if name != "run.json":
        (out / "plain/run.json").unlink()
    (path,) = (p for p in out.rglob(name) if name != "increment.safetensors" or "checkpoint" in str(p))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    again = run_cli(*command(room, out), "--save-steps", "2")
    if again.returncode == 0:
        assert (out / "plain/increment.safetensors").read_bytes() == _increment(finished)
    else:
        refused(again, str(path.parent))


@pytest.mark.parametrize(
    "length",
    [
        pytest.param(["--max-steps", "4"], id="in an epoch"),
        pytest.param(["--max-steps", "6"], id="at the end of an epoch"),
    ],
)
def test_killed_between_the_last_checkpoint_and_the_record(
    room: Path, tmp_path: Path, run_cli: Cli, length: list[str]
) -> None:
    """The training is over, and nothing of it is repeated."""
    words = [*command(room, tmp_path / "out"), *length, "--save-steps", "2"]
    assert run_cli(*words).returncode == 0
    whole = _increment(tmp_path / "out")
    for name in ("plain/run.json", "plain/increment.safetensors", "tune.json"):
        (tmp_path / "out" / name).unlink()
    assert run_cli(*words).returncode == 0
    assert told(tmp_path / "out").runs[0].steps == int(length[1])
    assert _increment(tmp_path / "out") == whole


@pytest.mark.filterwarnings("ignore:.*was not written to its end and is passed over")
def test_a_checkpoint_that_was_passed_over_is_in_the_record(
    room: Path, finished: Path, tmp_path: Path, run_cli: Cli
) -> None:
    out = copied(finished, tmp_path)
    (out / "plain/run.json").unlink()
    (out / "checkpoints/plain/checkpoint-9").mkdir()
    (out / "checkpoints/plain/checkpoint-4/seconds.json").write_text('{"seconds": 1000.0}')
    assert run_cli(*command(room, out), "--save-steps", "2").returncode == 0
    assert any("passed over" in warning for warning in told(out).warnings)
    assert 1000 < told(out).runs[0].seconds < 1600  # with those before the kill


def _increment(out: Path) -> bytes:
    return (out / "plain/increment.safetensors").read_bytes()


def test_a_checkpoint_without_its_optimizer(room: Path, finished: Path, tmp_path: Path, run_cli: Cli) -> None:
    out = tmp_path / "out"
    half = [*command(room, out), "--save-steps", "2", "--training-args", "save_total_limit=9"]
    assert run_cli(*half).returncode == 0
    (out / "plain/run.json").unlink()
    shutil.rmtree(out / "checkpoints/plain/checkpoint-4")
    (out / "checkpoints/plain/checkpoint-2/optimizer.pt").unlink()
    again = run_cli(*half)
    assert again.returncode == 0, again.stderr
    assert "has no optimizer.pt" in again.stderr + again.stdout
    assert _increment(out) == _increment(finished)


def test_a_finished_tune_whose_weights_are_gone(room: Path, finished: Path, tmp_path: Path, run_cli: Cli) -> None:
    out = copied(finished, tmp_path)
    (out / "plain/increment.safetensors").unlink()
    again = run_cli(*command(room, out), "--save-steps", "2")
    assert again.returncode == 0, again.stderr
    assert _increment(out) == _increment(finished)


# --------------------------------------------------------------------------------------------------- no number any more


@pytest.mark.parametrize("method", ["sift", "lora"])
def test_a_loss_that_is_no_number(room: Path, tmp_path: Path, run_cli: Cli, method: str) -> None:
    out = tmp_path / "out"
    words = [*command(room, out), "--method", method, "--learning-rate", "1e30", "--save-steps", "1"]
    for _ in range(2):  # the same command finds the same
        refused(
            run_cli(*words), "the loss is nan at step 2, micro-batch 1", "the weights are those of step 1",
            "Try a smaller learning rate", str(out / "plain/last-good"),
        )  # fmt: skip
        assert not (out / "tune.json").exists()
        assert not (out / "plain/run.json").exists()
    found = models.load(f"{room / 'base'}+{out / 'plain/last-good'}").model
    assert all(torch.isfinite(weight).all() for weight in found.parameters())
    refused(run_cli(*command(room, out)), "learning_rate is 0.001 here and 1e+30 there")


def test_weights_that_are_no_numbers_are_not_delivered(room: Path, tmp_path: Path, run_cli: Cli) -> None:
    out = tmp_path / "out"
    words = command(room, out)
    words[words.index("--max-steps") + 1] = "1"  # no next loss tells
    refused(run_cli(*words, "--learning-rate", "1e39"), "are not finite", "Nothing was saved")
    assert not list(out.glob("plain/*.safetensors"))


def test_no_state_is_called_good_that_is_none(room: Path, tmp_path: Path, run_cli: Cli) -> None:
    out = tmp_path / "out"
    result = run_cli(*command(room, out), "--learning-rate", "1e39")
    refused(result, "the loss is nan")
    assert "last good state" not in result.stderr  # no step left one
    assert not (out / "plain/last-good").exists()
