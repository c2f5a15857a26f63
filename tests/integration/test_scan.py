"""``scan`` end to end on tiny models: brackets, the record and its page, resume after kill -9, one OUT."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import catchment
from catchment.capabilities import Engine, Item, Task
from catchment.commands.scan.record import Scan
from catchment.errors import InputError
from catchment.models import weights_hash
from catchment.records import Basin, from_json, to_json
from tests import tiny
from tests.integration.stored import store_rows
from tests.integration.test_compare import Cli, home, make_task, run_cli, write_task

__all__ = ["home", "run_cli"]
torch.set_num_threads(1)

QUICK: dict[str, Any] = {
    "text": "none", "budget": "10m", "tau": 0.3, "alpha": 0.3, "depth": 0, "ladder": "0.0002:168:8", "directions": 2,
    "plane": 3, "restarts": 1, "steps": 1,
}  # fmt: skip
"""Enough to decide the rungs that are not near the crossing, in two or three seconds."""
FEW: dict[str, Any] = {"limit": 64, "tau": 0.5}
"""For tests that ask for no bracket: eight units at a scale."""


def line(options: dict[str, Any]) -> list[str]:
    """Options as the command line writes them."""
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def solved(model: Any, task: Task) -> Task:
    """The task with what the model itself answers as its gold: random weights score 1, and moves lose it."""
    rows = catchment.evaluate(model, task, tokenizer=tiny.tiny_tokenizer(), batch_tokens=1024).rows
    said = {row.item: row.prediction for row in rows}
    return task.with_items(tuple(Item(i.prompt, i.choices, i.choices.index(said[i.id])) for i in task.items))


@pytest.fixture(scope="module")
def task() -> Task:
    return solved(tiny.tiny_llama(), make_task(n=240))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, task: Task) -> Path:
    """A tiny base, a copy that moved, one of another shape, and a file of a task that the base can do."""
    root = tmp_path_factory.mktemp("scans")
    base, other, wide = tiny.tiny_llama(), tiny.tiny_llama(), tiny.tiny_llama(intermediate_size=64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    third = tiny.tiny_llama()
    with torch.no_grad():
        for weight in third.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    for name, model in (("base", base), ("other", other), ("third", third), ("wide", wide)):
        model.save_pretrained(root / name)
        tiny.tiny_tokenizer().save_pretrained(root / name)
    write_task(root / "echo.jsonl", task)
    return root


def counting(patch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what is really evaluated from here on: rows measured by the one evaluation path."""
    counted: Counter[str] = Counter()
    for name in ("catchment.landscape.evaluator", "catchment.measuring.fill"):
        place = importlib.import_module(name)
        run = place.run

        def counted_run(engine: Engine, prepared: Any, run: Any = run, **options: Any) -> Any:
            rows = run(engine, prepared, **options)
            counted["rows"] += len(rows)
            return rows

        patch.setattr(place, "run", counted_run)
    return counted


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return counting(monkeypatch)


def failing(*_: Any, **__: Any) -> None:
    raise MemoryError


@pytest.fixture(scope="module")
def brackets(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the rows of a scan with FEW up to its brackets and profiles; the stages after them fail."""
    from catchment import landscape

    root = tmp_path_factory.mktemp("brackets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CATCHMENT_HOME", str(root))
        for stage in ("worst", "plane", "curvature"):
            patch.setattr(landscape, stage, failing)
        scan(models, **FEW)
    return root / "store"


@pytest.fixture
def measured(brackets: Path, home: Path) -> None:
    """Brackets and profiles of a scan with FEW are looked up: this test is about what comes after them."""
    shutil.copytree(brackets, home / "store")


@dataclass(frozen=True)
class Finished:
    """A scan with FEW that is done: its folder and store, its record, and how many rows it measured."""

    root: Path
    record: Scan
    rows: int

    def copy(self, folder: Path) -> Scan:
        """``folder/out`` and ``folder/home`` as if the scan had been made there; its record."""
        for name in ("out", "home"):
            shutil.copytree(self.root / name, folder / name)
        return self.record


@pytest.fixture(scope="module")
def finished(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CATCHMENT_HOME", str(root / "home"))
        rows = counting(patch)
        return Finished(root, scan(models, out=root / "out", **FEW), rows["rows"])


def scan(models: Path, **options: Any) -> Scan:
    return catchment.scan(str(models / "base"), **{"tasks": models / "echo.jsonl", **QUICK, **options})


def honest(basin: Basin) -> None:
    """The bracket is what the decided nodes say."""
    outcomes = {node.scale: node.outcome for node in basin.nodes}
    assert basin.low == 0 or outcomes[basin.low] == "inside"
    assert basin.high is None or outcomes[basin.high] == "outside"
    for node in basin.nodes:
        if node.outcome == "inside":
            assert node.drop.high <= basin.tau
        if node.outcome == "outside":
            assert node.drop.low > basin.tau


def stable(found: Scan) -> dict[str, Any]:
    """The record without the day it was written and the machine's seconds."""
    record: dict[str, Any] = json.loads(to_json(found))
    record["plan"].pop("spent_seconds")
    record.pop("created")
    return record


# ------------------------------------------------------------------------------------------------- the whole verb


def test_a_scan_from_the_command_line(models: Path, tmp_path: Path, run_cli: Cli) -> None:
    out = tmp_path / "out"
    arguments = ("scan", models / "base", "--tasks", models / "echo.jsonl", "--out", out)
    options = {**QUICK, "budget": "60s", "plane": 301}
    first = run_cli(*arguments, *line(options))
    assert first.returncode == 0, first.stderr
    found = from_json(Scan, (out / "scan.json").read_text())
    (basin,) = found.basins
    honest(basin)
    assert basin.high is not None
    assert 0 < basin.low < basin.high
    assert basin.base == 1
    assert basin.tau == pytest.approx(0.3 * (1 - 1 / 3))
    assert found.check.ok
    assert found.check.centre == 0
    assert found.check.hash_before == found.check.hash_after == weights_hash(tiny.tiny_llama())
    assert found.worst[0].radius is not None
    assert found.worst[0].radius < basin.high  # somebody who looks for harm finds it sooner than chance does
    panels = {panel.name: panel for panel in found.panels}
    assert panels["basins"].bought
    assert not panels["plane"].bought  # 90,601 points
    assert found.plane is None
    assert all((panel.price is None) == panel.bought for panel in found.panels)
    assert (panels["plane"].price or 0) > 60
    page = (out / "report.html").read_text()
    assert not re.search(r"https?://(?!www\.w3\.org)|(src|href)=[\"']?//", page)
    assert "Plane" in page

    (out / "report.html").unlink()
    again = run_cli("report", out)
    assert again.returncode == 0, again.stderr
    assert (out / "report.html").read_text() == page
    asked = run_cli(*arguments, *line(options), "--json")
    assert from_json(Scan, asked.stdout).basins == found.basins


def test_a_dry_run_measures_nothing(
    models: Path, tmp_path: Path, home: Path, run_cli: Cli, forwards: Counter[str]
) -> None:
    result = run_cli(
        "scan", models / "base", "--tasks", models / "echo.jsonl", "--text", "none", "--out", tmp_path / "out",
        "--dry-run",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert "36,000 of 36,000 weights may move" in said
    assert "echo: 240 items" in said
    assert forwards["rows"] == 0
    assert not (tmp_path / "out").exists()
    assert not (home / "store").exists()


def test_a_model_in_memory(task: Task) -> None:
    model = tiny.tiny_llama()
    before = weights_hash(model)
    model.train()
    found = catchment.scan(model, tokenizer=tiny.tiny_tokenizer(), tasks=task, **{**QUICK, **FEW})
    assert found.model.source == "memory"
    assert found.plane is not None
    assert found.plane.values[1][1] == 1  # the model itself stands in the middle
    assert found.curvature is not None
    assert len(found.profiles[0].points) >= 4
    assert all(panel.bought for panel in found.panels)
    assert weights_hash(model) == before
    assert model.training
    assert not any(weight.grad is not None for weight in model.parameters())


def test_text_is_scanned_as_one_more_capability(models: Path, tmp_path: Path) -> None:
    (tmp_path / "prose.jsonl").write_text(
        "\n".join(json.dumps({"text": f"{text} {k}"}) for k in range(5) for text in tiny.TEXT)
    )
    found = scan(models, text=tmp_path / "prose.jsonl", **FEW)
    names = [basin.task for basin in found.basins]
    assert names == ["echo", "prose"]
    assert found.basins[1].place == "prompt"
    with pytest.raises(InputError, match="--text"):
        scan(models, text=models / "echo.jsonl", tasks=make_task("other"))


# ----------------------------------------------------------------------------------------------- going on, and OUT


@pytest.mark.soak  # one kill of every command is in the conformance test
def test_a_killed_scan_goes_on(models: Path, tmp_path: Path, home: Path, run_cli: Cli) -> None:
    """kill -9 half-way, then the same command: nothing that is in the store is measured again, and the record equals
    that of a scan that was never killed."""
    options = {**QUICK, **FEW, "directions": 8, "plane": 5}
    arguments = ["scan", str(models / "base"), "--tasks", str(models / "echo.jsonl"), *line(options)]
    whole = run_cli(*arguments, "--store", tmp_path / "other", "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    code = (
        "import catchment.landscape.evaluator as e, sys; e.FLUSH_SECONDS = 0.0\n"
        "from catchment.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *arguments, "--out", str(tmp_path / "killed")]
    store = home / "store"
    for stop in (40,):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        deadline = time.monotonic() + 60
        while len(list(store.rglob("*.jsonl"))) < stop and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None, "the scan was over before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = store_rows(store)
    assert len(before) > 120
    last = run_cli(*arguments, "--out", tmp_path / "killed")
    assert last.returncode == 0, last.stderr
    after = store_rows(store)
    assert before.items() <= after.items()
    assert max(after.values()) == 1  # an item that was measured again would stand there twice
    one, two = (from_json(Scan, (tmp_path / name / "scan.json").read_text()) for name in ("whole", "killed"))
    assert two.basins == one.basins
    assert two.profiles == one.profiles
    assert two.plane == one.plane
    assert two.worst == one.worst


def test_a_second_run_measures_nothing(
    models: Path, tmp_path: Path, forwards: Counter[str], finished: Finished
) -> None:
    first = finished.copy(tmp_path)
    assert finished.rows > 500
    assert stable(scan(models, out=tmp_path / "out", **FEW)) == stable(first)
    assert forwards["rows"] <= 2 * 16  # the self-check's, which are about this process
    forwards.clear()
    assert scan(models, out=tmp_path / "elsewhere", **FEW).basins == first.basins  # the store is shared
    assert forwards["rows"] <= 2 * 16


def test_a_second_run_after_a_spent_budget(models: Path, tmp_path: Path, forwards: Counter[str]) -> None:
    """A record that a budget cut is read back with the same brackets and the same prices."""
    options = {"tau": 0.1, "depth": 3, "ladder": None, "budget": "3s", "directions": 200, "plane": 301}
    first = scan(models, out=tmp_path / "out", **options)
    assert not all(panel.bought for panel in first.panels)
    forwards.clear()
    again = scan(models, out=tmp_path / "out", **options)
    assert forwards["rows"] <= 2 * 16
    assert again.panels == first.panels
    assert [(b.low, b.high) for b in again.basins] == [(b.low, b.high) for b in first.basins]
    assert again.basins == first.basins
    assert again.worst == first.worst


@contextmanager
def spent_on_own_scores() -> Iterator[None]:
    """The budget ends when the model's own scores are measured."""
    workflow = importlib.import_module("catchment.commands.scan.run")
    real = workflow.admit

    def admit(opened: Any) -> Any:
        admitted = real(opened)
        opened.clock.started -= opened.clock.budget
        return admitted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflow, "admit", admit)
        yield


def test_a_larger_budget_adds_to_the_first(models: Path, tmp_path: Path, forwards: Counter[str], home: Path) -> None:
    with spent_on_own_scores():
        first = scan(models, out=tmp_path / "out", budget="5m")
    assert not any(panel.bought for panel in first.panels)
    assert all(panel.price for panel in first.panels)
    assert first.basins[0].high is None
    before = store_rows(home / "store")
    more = scan(models, out=tmp_path / "out", budget="10m")
    after = store_rows(home / "store")
    assert before.items() <= after.items()
    assert all(panel.bought for panel in more.panels)
    assert more.basins[0].high is not None
    assert more.plan["budget_seconds"] == 600
    smaller = scan(models, out=tmp_path / "out", budget="1s")  # what was bought stays
    assert smaller.basins == more.basins
    assert smaller.plan["budget_seconds"] == 600


def test_an_out_of_another_model_or_verb(models: Path, tmp_path: Path, run_cli: Cli) -> None:
    quick = line({**QUICK, "budget": "5m"})
    arguments = ("--tasks", models / "echo.jsonl", "--out", tmp_path / "out")
    with spent_on_own_scores():
        assert run_cli("scan", models / "base", *arguments, *quick).returncode == 0
    other = run_cli("scan", models / "other", *arguments, *quick)
    assert other.returncode == 2
    assert other.stderr.startswith(f"catchment: {tmp_path / 'out'} holds another scan: model is ")
    hashes = [weights_hash(tiny.tiny_llama()), weights_hash(catchment.load(str(models / "other")).model)]
    assert all(found[:12] in other.stderr for found in hashes)
    assert other.stderr.count("\n") == 1
    compared = run_cli("compare", models / "base", models / "other", *arguments, "--text", "none", "--formats", "1")
    assert compared.returncode == 2
    assert "holds another scan" in compared.stderr
    (tmp_path / "compared").mkdir()
    where = ("--tasks", models / "echo.jsonl", "--out", tmp_path / "compared")
    pair = ("compare", models / "base", models / "other", *where, "--text", "none", "--formats", "1", "--limit", "32")
    assert run_cli(*pair, "--no-room").returncode == 0
    scanned = run_cli("scan", models / "base", *where, *quick)
    assert scanned.returncode == 2
    assert "holds another comparison" in scanned.stderr
    assert scanned.stderr.count("\n") == 1


def test_a_larger_budget_keeps_what_the_store_holds(
    models: Path, tmp_path: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a stage would cost: what was measured costs nothing. And the speed of the first run is remembered."""
    from catchment.commands.scan import stages
    from catchment.commands.scan.bench import Bench

    first = finished.copy(tmp_path)
    assert first.plane is not None
    kept = json.loads((tmp_path / "out/plan.json").read_text())["kept"]
    assert kept["speed"] > 0
    assert kept["point"] > 0
    for name in ("PLANE", "CURVATURE"):
        monkeypatch.setattr(stages, name, replace(getattr(stages, name), price=lambda bench: 1e9))
    paces = []
    pace = Bench.pace
    monkeypatch.setattr(Bench, "pace", lambda self: paces.append(pace(self)) or paces[-1])
    more = scan(models, out=tmp_path / "out", budget="11m", **FEW)
    assert more.plane == first.plane
    assert more.curvature == first.curvature
    assert all(panel.bought for panel in more.panels)
    assert paces[0] == (kept["speed"], kept["point"])
    fresh = scan(models, store=tmp_path / "other", **FEW)
    assert fresh.plane is None
    assert fresh.curvature is None
    assert {p.name: p.price for p in fresh.panels if p.price} == {"plane": 1e9, "curvature": 1e9}


def test_a_spent_budget_still_gives_what_the_store_holds(models: Path, tmp_path: Path, finished: Finished) -> None:
    """Killed after the last row and before the record, with nothing of the budget left."""
    first = finished.copy(tmp_path)
    plan = tmp_path / "out/plan.json"
    content = json.loads(plan.read_text())
    plan.write_text(json.dumps({**content, "finished": False, "spent": 10_000.0}))
    again = scan(models, out=tmp_path / "out", **FEW)
    assert again.basins[0].low == first.basins[0].low > 0
    assert again.worst == first.worst
    assert again.plane == first.plane
    assert again.curvature == first.curvature


def test_a_finished_scan_whose_store_is_gone_is_measured_again(
    models: Path, tmp_path: Path, home: Path, forwards: Counter[str], finished: Finished
) -> None:
    first = finished.copy(tmp_path)
    for store in (None, tmp_path / "other"):
        if store is None:
            shutil.rmtree(home / "store")
        forwards.clear()
        again = scan(models, out=tmp_path / "out", store=store, **FEW)
        assert forwards["rows"] > 500
        assert again.basins == first.basins
        assert again.worst == first.worst
        assert again.plane == first.plane
        assert any("measured again" in warning for warning in again.warnings)
        assert json.loads((tmp_path / "out/plan.json").read_text())["spent"] < 300
    forwards.clear()
    last = scan(models, out=tmp_path / "out", **FEW)
    assert forwards["rows"] <= 2 * 16
    assert not any("measured again" in warning for warning in last.warnings)


def test_a_scan_that_is_stopped_has_paid_for_its_time(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the first stage writes the clock; a kill leaves what was written on the way."""
    from catchment import landscape
    from catchment.commands.scan import bench
    from catchment.commands.scan.journal import Journal

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    plan = tmp_path / "out/plan.json"
    with monkeypatch.context() as patch:
        patch.setattr(landscape, "sharpen", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scan(models, out=tmp_path / "out", plane=0, **{**FEW, "directions": 2})
    stopped = json.loads(plan.read_text())
    assert not stopped["finished"]
    assert stopped["kept"]["speed"] > 0
    written = []
    with monkeypatch.context() as patch:
        patch.setattr(bench, "SAVE_SECONDS", 0.0)
        patch.setattr(landscape, "worst", interrupted)
        write = Journal.write
        patch.setattr(Journal, "write", lambda journal, *a, **k: (written.append(len(a)), write(journal, *a, **k)))
        with pytest.raises(KeyboardInterrupt):
            scan(models, out=tmp_path / "two", seed=1, plane=0, **FEW)
    assert len(written) > 4  # at its begin, on the way through the first stage, and at the end


def test_tasks_of_ones_own_and_a_model_in_memory_with_an_out(task: Task, tmp_path: Path) -> None:
    model = tiny.tiny_llama()
    options: dict[str, Any] = {
        "tokenizer": tiny.tiny_tokenizer(),
        "tasks": task,
        "out": tmp_path / "out",
        **QUICK,
        **FEW,
    }
    first = catchment.scan(model, **options)
    assert stable(catchment.scan(model, **options)) == stable(first)
