"""``scan`` end to end, further: bad input, subspaces, gradients, planes through other models, workers."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import catchment
from catchment.capabilities import Item, Task, sample
from catchment.commands.scan.record import Scan
from catchment.commands.scan.settings import ScanSettings
from catchment.errors import CatchmentError, GateError, InputError, ModelError, StoreError, TaskError
from catchment.records import from_json
from tests import tiny
from tests.integration.stored import store_lines
from tests.integration.test_compare import Cli, home, make_task, run_cli, write_task
from tests.integration.test_scan import (
    FEW,
    QUICK,
    brackets,
    forwards,
    honest,
    measured,
    models,
    scan,
    spent_on_own_scores,
    stable,
    task,
)

__all__ = ["brackets", "forwards", "home", "measured", "models", "run_cli", "task"]
torch.set_num_threads(1)

BAD = [
    (["{nowhere}"], "nowhere-model"),
    (["{base}", "--subspace", "*.mpl.*"], "Did you mean"),
    (["{base}", "--subspace", "frame:many"], "frame:RANK"),
    (["{base}", "--subspace", "frame:0"], "frame rank 0"),
    (["{base}", "--subspace", "sparse:nowhere.safetensors"], "nowhere.safetensors"),
    (["{base}", "--budget", "0"], "90s, 4m"),
    (["{base}", "--budget", "soon"], "90s, 4m"),
    (["{base}", "--plane", "10"], "odd number of points"),
    (["{base}", "--plane", "1"], "odd number of points"),
    (["{base}", "--ladder", "0.1:0.01:9"], "0 < LOW < HIGH"),
    (["{base}", "--ladder", "0.01:0.1:4"], "8 to 1000 rungs"),
    (["{base}", "--ladder", "low:high"], "LOW:HIGH:RUNGS"),
    (["{base}", "--ladder", "0.1:1e38:8"], "HIGH <= 10000"),
    (["{base}", "--items", "stale"], "'fresh' or 'fixed'"),
    (["{base}", "--memory", "huge"], "'mapped'"),
    (["{base}", "--through", "{other}", "--plane", "0"], "through"),
    (["{base}", "--through", "nowhere-model"], "nowhere-model"),
    (["{base}", "--tau", "2"], "tau 2"),
    (["{base}", "--directions", "1"], "directions 1"),
    (["{base}", "--workers", "0"], "workers 0"),
    (["{base}", "--tasks", "arithmetik"], "Did you mean 'arithmetic'"),
    (["{base}", "--gradients", "--subspace", "frame:2"], "--gradients"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[" ".join(a[1:]) or s for a, s in BAD])
def test_bad_input_is_one_clear_line(
    models: Path, tmp_path: Path, run_cli: Cli, arguments: list[str], said: str, forwards: Counter[str]
) -> None:
    names = {"base": models / "base", "other": models / "other", "nowhere": "nowhere-model"}
    filled = [word.format(**names) for word in arguments]
    if "--tasks" not in filled:
        filled += ["--tasks", str(models / "echo.jsonl")]
    result = run_cli("scan", *filled, "--text", "none", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert said in result.stderr
    assert result.stderr.startswith("catchment: ")
    assert result.stderr.count("\n") == 1
    assert forwards["rows"] == 0  # said before anything was measured


def test_unknown_settings_get_a_suggestion(models: Path, tmp_path: Path, run_cli: Cli) -> None:
    with pytest.raises(InputError, match="Did you mean 'subspace'"):
        scan(models, subspce="all")
    with pytest.raises(InputError, match="no setting 'dry_run'"):
        scan(models, dry_run=True)
    config = tmp_path / "scan.yaml"
    config.write_text("direktions: 4\n")
    result = run_cli("scan", models / "base", "--config", config)
    assert result.returncode == 2
    assert "Did you mean 'directions'" in result.stderr
    wrong = run_cli("scan", models / "base", "--subspce", "all")
    assert wrong.returncode == 2
    assert "--subspace" in wrong.stderr


def test_tasks_that_the_model_cannot_do(models: Path, tmp_path: Path, task: Task, run_cli: Cli) -> None:
    """Random weights are at chance on a task with random gold: in the record, and never silently left out."""
    found = scan(models, tasks=[task, make_task("noise")], budget="1s")
    by_name = {a.task: a for a in found.admissions}
    assert by_name["echo"].admitted
    assert not by_name["noise"].admitted
    assert "chance" in by_name["noise"].reason
    assert [basin.task for basin in found.basins] == ["echo"]
    write_task(tmp_path / "noise.jsonl", make_task("noise"))
    alone = run_cli(
        "scan", models / "base", "--tasks", tmp_path / "noise.jsonl", "--text", "none", "--out", tmp_path / "out"
    )
    assert alone.returncode == 2
    assert "none of the tasks can be scanned" in alone.stderr
    assert "the 0.483 needed" in alone.stderr
    with pytest.raises(TaskError, match="expected at least 16"):
        scan(models, tasks=[task], limit=12)
    with pytest.raises(GateError, match="no label"):
        scan(models, tasks=[task.with_items(tuple(Item(i.prompt, i.choices, -1) for i in task.items))])


def test_a_first_rung_that_destroys_the_model(models: Path) -> None:
    found = scan(models, ladder="5:5000:8")
    (basin,) = found.basins
    honest(basin)
    assert (basin.low, basin.high) == (0.0, 5.0)
    assert "lower --ladder" in basin.note
    assert found.check.hash_after == found.check.hash_before
    assert found.check.ok


def test_outputs_that_are_not_finite_count_as_lost(models: Path, tmp_path: Path) -> None:
    found = scan(models, ladder="1:9000:8", dtype="float16", out=tmp_path / "out", limit=24, tau=0.5, plane=0)
    assert stable(from_json(Scan, (tmp_path / "out/scan.json").read_text())) == stable(found)
    assert found.basins[0].low == 0
    assert found.profiles[0].points[-1].score.estimate == 0
    assert found.basins[0].high is not None
    assert any("not finite" in warning for warning in found.warnings)
    assert found.check.hash_after == found.check.hash_before


def test_weights_that_cannot_be_moved(models: Path, task: Task) -> None:
    """The card alone says that a model is quantised; tiny weights in 4 bits need a GPU."""
    base = catchment.load(str(models / "base"))
    base.card = dataclasses.replace(base.card, quantization="bitsandbytes-4bit")
    with pytest.raises(ModelError, match="unquantised"):
        catchment.scan(base, tasks=task, **QUICK)
    broken = tiny.tiny_llama()
    with torch.no_grad():
        broken.lm_head.weight[3, 5] = float("nan")
    with pytest.raises(GateError, match="lm_head"):
        catchment.scan(broken, tokenizer=tiny.tiny_tokenizer(), tasks=task, **QUICK)


@pytest.mark.usefixtures("measured")
def test_a_loss_that_is_not_finite_in_the_ascent(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every displaced loss is NaN: the scan goes on without a worst case, and the page says why."""
    worst = importlib.import_module("catchment.landscape.worst")
    monkeypatch.setattr(worst, "mean_loss", lambda *_: float("nan"))
    real = worst._gradient

    def gradient(evaluator: Any, batches: Any) -> Any:
        value, found = real(evaluator, batches)
        return (float("nan") if evaluator.mover.displaced else value), found

    monkeypatch.setattr(worst, "_gradient", gradient)
    found = scan(models, out=tmp_path / "out", **FEW)
    (attack,) = found.worst
    assert (attack.radius, attack.survived, attack.nodes) == (None, None, ())
    assert "not finite" in attack.note
    assert found.curvature is not None
    assert "not finite" in (tmp_path / "out/report.html").read_text()
    assert found.check.hash_after == found.check.hash_before


@pytest.mark.usefixtures("measured")
def test_a_plane_through_a_model_of_another_shape(models: Path) -> None:
    found = scan(models, through=models / "wide", **FEW)
    assert found.plane is None
    panel = next(p for p in found.panels if p.name == "plane")
    assert not panel.bought
    assert "no counterpart of the same shape" in panel.note
    assert any("wide" in warning for warning in found.warnings)
    assert found.curvature is not None  # the rest is there


# ---------------------------------------------------------------------------------------- subspaces, planes, workers


@pytest.mark.parametrize("subspace", ["*.mlp.*", "sparse", "frame:2"])
def test_subspaces(models: Path, tmp_path: Path, subspace: str) -> None:
    if subspace == "sparse":
        base, tuned = tiny.tiny_llama(), tiny.tiny_llama()
        with torch.no_grad():
            for layer in tuned.model.layers:
                layer.mlp.up_proj.weight[::3] += 0.01
                layer.self_attn.q_proj.weight[:, 0] += 0.01
        catchment.make_increment(base, tuned, tmp_path / "inc.safetensors")
        subspace = f"sparse:{tmp_path / 'inc.safetensors'}"
    found = scan(models, subspace=subspace, **FEW)
    size, kind = {
        "*": (2 * 3 * 48 * 32, "glob"),
        "s": (2 * (16 * 32 + 32), "sparse"),
        "f": (found.subspace.size, "frame"),
    }[subspace[0]]
    assert (found.subspace.size, found.subspace.kind) == (size, kind)
    honest(found.basins[0])
    assert found.worst
    assert found.plane is not None
    assert abs(found.plane.cosine) < 0.2
    assert (found.curvature is None) == (kind == "frame")
    assert found.check.ok or kind == "frame"


@pytest.mark.usefixtures("measured")
def test_gradients(models: Path) -> None:
    found = scan(models, gradients=True, **FEW)
    gradients = found.gradients
    assert gradients is not None
    assert {share.name for share in gradients.pretrained} == {share.name for share in gradients.random}
    assert all(0 < share.fresh_squared <= 1 for share in gradients.pretrained)
    assert len(gradients.oscillation) == 4
    assert found.check.hash_after == found.check.hash_before


@pytest.mark.usefixtures("measured")
def test_planes_through_other_models(models: Path, tmp_path: Path, task: Task) -> None:
    """The other model's own score stands where the plane says that it is."""
    other = str(models / "other")
    found = scan(models, through=other, **{**FEW, "plane": 7})
    plane = found.plane
    assert plane is not None
    place = plane.models[1]
    assert place.name == other
    assert place.y == 0
    assert place.x == pytest.approx(2 / 3 * plane.xs[-1])
    rows = catchment.evaluate(catchment.load(other), task).rows
    assert 0 < sum(row.score for row in rows) < len(rows)
    column = plane.xs.index(min(plane.xs, key=lambda x: abs(x - place.x)))
    assert plane.xs[column] == pytest.approx(place.x)
    middle = plane.ys.index(0.0)
    items = _plane_items(found, task)
    assert plane.values[middle][column] == pytest.approx(sum(row.score for row in rows if row.item in items) / 24)


@pytest.mark.usefixtures("measured")
def test_other_planes(models: Path) -> None:
    options: dict[str, Any] = {**FEW, "plane": 5}
    plane = scan(models, filter_normalised=True, **options).plane
    assert plane is not None
    assert not plane.comparable
    assert plane.axes == ("filter-normalised 1", "filter-normalised 2")
    pair = (str(models / "other"), str(models / "third"))
    plane = scan(models, through=pair, **options).plane
    assert plane is not None
    assert [point.name for point in plane.models[1:]] == list(pair)
    assert plane.models[2].y > 0
    assert abs(plane.cosine) < 1e-4


def _plane_items(found: Scan, task: Task) -> set[str]:
    items = sample(task.items, FEW["limit"], 0)
    key = {i.id: hashlib.sha256(f"0/{i.id}".encode()).digest() for i in items}
    return set(sorted(key, key=key.__getitem__)[: found.plane.items if found.plane else 0])


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What asks for Ray gets one that is started for it, and ends with the test."""
    with tempfile.TemporaryDirectory(prefix="ray") as short:
        monkeypatch.setenv("RAY_TMPDIR", short)
        yield
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize("executor", ["processes", pytest.param("ray", marks=pytest.mark.soak)])
def test_workers_measure_the_same_rows(models: Path, tmp_path: Path, forwards: Counter[str], executor: str) -> None:
    """Two processes fill the store with the rows that one process would have measured, and the record is the same."""
    if executor == "ray":
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'catchment[ray]'")
    options = {**FEW, "directions": 6, "plane": 0, "tau": 0.9}
    one = scan(models, store=tmp_path / "one", **options)
    alone = forwards["rows"]
    forwards.clear()
    two = scan(models, store=tmp_path / "two", workers=2, executor=executor, **options)
    assert two.basins == one.basins
    assert two.profiles == one.profiles
    assert two.worst == one.worst
    assert forwards["rows"] < alone - 5 * 4 * 2 * 8  # at least the profile's units were measured elsewhere
    first, second = (store_lines(tmp_path / name) for name in ("one", "two"))
    assert len(first) > 500
    assert set(first) <= set(second)


def test_workers_need_a_model_that_they_can_load(task: Task) -> None:
    with pytest.raises(InputError, match="not a model in memory"):
        catchment.scan(tiny.tiny_llama(), tokenizer=tiny.tiny_tokenizer(), tasks=task, workers=2, **QUICK)


def test_a_worker_that_fails_is_named(models: Path, tmp_path: Path) -> None:
    """A task with a function of its own cannot be sent to another process."""
    items = tuple(Item(i.prompt, gold=i.choices[i.gold]) for i in make_task(n=20).items)  # type: ignore[index]
    task = Task("own", items, "callable", function=lambda item, answer: 1.0, max_new_tokens=1, chance=0.0)
    with pytest.raises(CatchmentError, match="worker"):
        scan(models, tasks=[task], workers=2)


# ------------------------------------------------------------------------------------ a stage that fails costs no other


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        ("curvature", torch.OutOfMemoryError("CUDA out of memory"), "memory ran out"),
        ("curvature", ValueError("Out of range float values"), "no finite numbers"),
        ("worst", MemoryError("8 GB"), "memory ran out"),
        ("sharpen", TaskError("the scorer failed on item 3."), "the scorer failed on item 3"),
        ("plane", ZeroDivisionError("division by zero"), "no finite numbers"),
        ("check", TaskError("the scorer failed on item 3."), "could not be made: the scorer failed"),
    ],
)
def test_one_error_does_not_cost_the_record(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: Exception, said: str
) -> None:
    from catchment import landscape

    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(landscape, function, fails)
    found = scan(models, out=tmp_path / "out", **FEW)
    assert from_json(Scan, (tmp_path / "out/scan.json").read_text()).warnings == found.warnings
    assert any(said in warning for warning in found.warnings)
    assert found.basins[0].low > 0
    panels = {panel.name: panel for panel in found.panels}
    if function in panels:
        assert not panels[function].bought
        assert said in panels[function].note
        assert panels[function].price is None  # no budget buys it
    assert all(panel.bought for name, panel in panels.items() if name != function)
    assert found.check.ok == (function != "check")
    assert found.check.hash_after == found.check.hash_before


@pytest.mark.usefixtures("measured")
def test_faults_of_the_program_are_not_hidden(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from catchment import landscape

    monkeypatch.setattr(landscape, "curvature", lambda *_, **__: {}["missing"])
    with pytest.raises(KeyError):
        scan(models, **FEW)


def test_stages_that_do_not_fit_are_not_begun(
    models: Path, tmp_path: Path, brackets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was measured when there was memory is there."""
    from catchment import landscape

    shutil.copytree(brackets, tmp_path / "one")
    with monkeypatch.context() as patch:
        patch.setattr(landscape, "free_memory", lambda device: 1e5)
        found = scan(models, store=tmp_path / "one", out=tmp_path / "out", **FEW)
    panels = {panel.name: panel for panel in found.panels}
    for name in ("worst", "curvature"):
        assert (panels[name].bought, panels[name].price) == (False, None)
        assert "GB of free memory" in panels[name].note
        assert any("GB of free memory" in warning and name[:5] in warning for warning in found.warnings)
    assert found.plane is not None
    page = (tmp_path / "out/report.html").read_text()
    assert "No budget buys it here. It needs about" in page
    low = scan(models, store=tmp_path / "one", memory="low", **FEW)
    assert low.worst == ()
    whole = scan(models, store=tmp_path / "one", **FEW)
    assert whole.worst
    monkeypatch.setattr(landscape, "free_memory", lambda device: 1e5)
    assert scan(models, store=tmp_path / "one", **FEW).worst == whole.worst
    assert scan(models, store=tmp_path / "one", **FEW).curvature == whole.curvature


def test_curvature_and_gradients_of_other_items_are_others(models: Path, tmp_path: Path, brackets: Path) -> None:
    """What one scan keeps in the store is not another's that looks at other items."""
    options: dict[str, Any] = {**FEW, "gradients": True, "plane": 0}
    for name in ("shared", "other"):
        shutil.copytree(brackets, tmp_path / name)
    few = scan(models, store=tmp_path / "shared", **{**options, "limit": 40})
    shared = scan(models, store=tmp_path / "shared", **options)
    alone = scan(models, store=tmp_path / "other", **options)
    assert shared.curvature == alone.curvature
    assert shared.gradients == alone.gradients
    assert few.curvature != alone.curvature
    assert few.gradients != alone.gradients


@pytest.mark.usefixtures("measured")
def test_a_plane_stops_with_its_share(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are kept, and the next run finds them where they are: the plane is laid out as it was."""
    from catchment import landscape

    plane = landscape.plane

    def cut(*arguments: Any, stop: Any, **options: Any) -> Any:
        looks = iter(range(4))
        return plane(*arguments, stop=lambda: stop() or next(looks, None) is None, **options)

    with monkeypatch.context() as patch:
        patch.setattr(landscape, "plane", cut)
        first = scan(models, out=tmp_path / "out", **FEW)
    panel = next(p for p in first.panels if p.name == "plane")
    assert first.plane is None
    assert not panel.bought
    assert panel.price
    more = scan(models, out=tmp_path / "out", budget="11m", **FEW)
    assert more.plane is not None
    places = Counter(line.split('"item": "')[1].split(":")[0] for _, line in store_lines_of_planes())
    assert len(places) == 9  # none beside those of the grid


def store_lines_of_planes() -> list[tuple[str, str]]:
    """Rows of the store whose address is a plane's: two numbers with a comma."""
    import os
    import re

    lines = store_lines(Path(os.environ["CATCHMENT_HOME"]) / "store")
    return [(cell, text) for cell, text in lines if re.search(r'"item": ?"-?[\d.e-]+,-?[\d.e-]+:', text)]


def test_two_scans_on_one_out(models: Path, tmp_path: Path) -> None:
    from catchment.runs import Store

    with spent_on_own_scores():
        scan(models, out=tmp_path / "out", budget="5m")
    with Store(tmp_path / "out").lock("scan"), pytest.raises(StoreError, match="in use"):
        scan(models, out=tmp_path / "out", budget="1s")


def test_torchrun_refuses_planes_through_models(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from catchment.commands.scan.opened import open_scan
    from catchment.runs import processes

    monkeypatch.setattr(processes, "count", lambda: 2)
    settings = ScanSettings(str(models / "base"), through=(str(models / "other"),))
    with pytest.raises(InputError, match="--through"):
        open_scan(settings, catchment.measuring.progress.Progress(), None)


def test_gradients_under_an_adapter_are_refused(task: Task) -> None:
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(tiny.tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        with pytest.raises(InputError, match=r"--gradients.*adapter"):
            catchment.scan(model.eval(), tokenizer=tiny.tiny_tokenizer(), tasks=task, gradients=True, **QUICK)


def test_a_task_that_can_never_be_inside_is_said(models: Path) -> None:
    with spent_on_own_scores():
        found = scan(models, limit=24, **{**QUICK, "tau": 0.1})
    assert any("no scale can be shown to be inside" in warning and "--limit" in warning for warning in found.warnings)
