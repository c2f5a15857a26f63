"""``compare`` end to end on tiny models: verdicts from rows, resume after kill -9, one OUT, bad input, exit codes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import catchment
from catchment.capabilities import Format, Item, Task
from catchment.cli.runner import run
from catchment.commands.compare.record import Comparison
from catchment.errors import CatchmentError, GateError, InputError, ModelError, StoreError, TaskError
from catchment.records import from_json
from tests import tiny

torch.set_num_threads(1)


def make_task(name: str = "echo", n: int = 120, seed: int = 0) -> Task:
    draw = random.Random(seed)
    words = ["red", "blue", "green", "tall", "small", "warm", "cold", "fast"]
    items = []
    for i in range(n):
        a, b, c = draw.sample(words, 3)
        items.append(Item(f"{name} {i}: the cat is {a} and the dog is", (a, b, c), draw.randrange(3)))
    forms = (Format("plain"), Format("quoted", "Text: {prompt}"), Format("again", "Again. {prompt}"))
    return Task(name, tuple(items), "choice", forms, style="continue")


def write_task(path: Path, task: Task) -> Path:
    lines = [json.dumps({"task": {"name": task.name, "scorer": "choice", "style": "continue"}})]
    lines += [json.dumps({"prompt": i.prompt, "choices": list(i.choices), "gold": i.gold}) for i in task.items]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, a tuned copy that moved, and a twin under another name, as ordinary model folders."""
    root = tmp_path_factory.mktemp("models")
    model, tokenizer = tiny.tiny_llama(), tiny.tiny_tokenizer()
    for name in ("base", "twin"):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * weight.std().nan_to_num(0.1) * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(root / "tuned")
    tokenizer.save_pretrained(root / "tuned")
    write_task(root / "echo.jsonl", make_task())
    return root


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CATCHMENT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "home"


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """The command line in this process: a start of Python and torch takes longer than all that is tested here."""

    def call(*arguments: Any) -> Result:
        capsys.readouterr()
        code = run(str(arguments[0]), [str(a) for a in arguments[1:]])
        return Result(code, *capsys.readouterr())

    return call


Cli = Callable[..., Result]


def compare(folder: Path, **options: Any) -> Comparison:
    options = {"tasks": [make_task()], "text": "none", **options}
    return catchment.compare(str(folder / "base"), str(folder / "tuned"), **options)


def numbers(comparison: Comparison) -> Any:
    return comparison.tasks, comparison.flips, comparison.texts, comparison.drift, comparison.verdict


def test_rows_become_results(folder: Path, tmp_path: Path) -> None:
    comparison = compare(folder, out=tmp_path / "out")
    result = comparison["echo"]
    assert result.n == 120
    assert result.base != result.tuned
    assert result.flips_lost - result.flips_gained == round((result.base - result.tuned) * 120)
    assert len(comparison.flips) == result.flips_lost + result.flips_gained
    assert [f.name for f in result.formats] == ["plain", "quoted", "again"]
    assert comparison.drift is not None
    assert comparison.drift.rms == pytest.approx(comparison.drift.distance / comparison.drift.size**0.5)
    assert from_json(Comparison, (tmp_path / "out/comparison.json").read_text()) == comparison
    page = (tmp_path / "out/report.html").read_text()
    assert comparison.flips[0].prompt.split(":")[0] in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_second_run_measures_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compare(folder, out=tmp_path / "out")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded again")

    monkeypatch.setattr("catchment.models.load", refuse)
    assert numbers(compare(folder, out=tmp_path / "out")) == numbers(first)


def test_base_rows_are_shared_between_comparisons(folder: Path, tmp_path: Path) -> None:
    first = compare(folder, out=tmp_path / "a", limit=64)
    more = compare(folder, out=tmp_path / "b", limit=100)
    assert (first["echo"].n, more["echo"].n) == (64, 100)


def test_models_in_memory(folder: Path) -> None:
    model, tokenizer = tiny.tiny_llama(), tiny.tiny_tokenizer()
    other = tiny.tiny_llama()
    with torch.no_grad():
        other.lm_head.weight.add_(0.1)
    comparison = catchment.compare(model, other, tokenizer=tokenizer, tasks=make_task(n=30), text="none", formats=1)
    assert comparison.base.source == "memory"
    assert comparison._repr_html_().startswith("<")  # type: ignore[attr-defined]


def test_a_slow_path_is_in_every_record_and_page(tmp_path: Path) -> None:
    """The second run measures nothing: it knows of the path from beside the rows."""
    models = tiny.tiny_mistral(), tiny.tiny_mistral()
    with torch.no_grad():
        models[1].lm_head.weight.add_(0.1)
    for _ in range(2):
        comparison = catchment.compare(
            *models, tokenizer=tiny.tiny_tokenizer(), tasks=make_task(n=12), text="none", formats=1, out=tmp_path
        )
        assert [w for w in comparison.warnings if "packed path is off for MistralForCausalLM" in w]
        assert "packed path is off for MistralForCausalLM" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_equal_weights_are_reported(folder: Path) -> None:
    comparison = catchment.compare(str(folder / "base"), str(folder / "twin"), tasks=[make_task()], text="none")
    assert "same weights" in comparison.warnings[0]
    assert comparison["echo"].difference.estimate == 0


def test_budget_freezes_a_plan_that_a_second_run_follows(folder: Path, tmp_path: Path) -> None:
    first = compare(folder, out=tmp_path / "out", budget="20s", tasks=[make_task(n=400), make_task("other", 400, 3)])
    plan = json.loads((tmp_path / "out/plan.json").read_text())["plan"]
    assert plan["frozen"]
    assert {t["task"]: t["items"] for t in plan["tasks"]} == {r.task: r.n for r in first.tasks}
    again = compare(folder, out=tmp_path / "out", budget="20s", tasks=[make_task(n=400), make_task("other", 400, 3)])
    assert numbers(again) == numbers(first)


@pytest.mark.soak  # one kill of every command is in the conformance test
@pytest.mark.parametrize("moments", [(60,), (3, 20, 60, 90, 120)], ids=["once", "five times"])
def test_killed_runs_go_on_to_the_same_numbers(
    folder: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, moments: tuple[int, ...]
) -> None:
    """kill -9 once so many files are in the store, then the same command: same rows bit for bit, nothing evaluated
    twice but what was in flight."""
    task = write_task(tmp_path / "long.jsonl", make_task("long", 300))
    command = [
        folder / "base",
        folder / "tuned",
        "--tasks",
        task,
        "--text",
        "none",
        "--batch-tokens",
        "64",
        "--formats",
        "1",
    ]
    monkeypatch.setenv("CATCHMENT_HOME", str(tmp_path / "other"))
    assert run("compare", [*map(str, command), "--out", str(tmp_path / "whole")]) == 0
    monkeypatch.setenv("CATCHMENT_HOME", str(home))
    line = [sys.executable, "-m", "catchment", "compare", *map(str, command), "--out", str(tmp_path / "killed")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    store = home / "store"
    for stop in moments:
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
        deadline = time.monotonic() + 120
        while len(list(store.rglob("*.jsonl"))) < stop and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def rows(root: Path) -> list[str]:
        return sorted(x for p in root.rglob("*.jsonl") for x in p.read_text().splitlines() if x.startswith('{"item"'))

    before = rows(store)
    assert len(before) >= 50
    assert run("compare", [*map(str, command), "--out", str(tmp_path / "killed")]) == 0
    assert not Counter(before) - Counter(rows(store))
    assert not list(store.glob("cells/*/*/*.jsonl"))  # the end of a command compacts what it used
    assert rows(store) == rows(tmp_path / "other/store")
    a, b = (from_json(Comparison, (tmp_path / n / "comparison.json").read_text()) for n in ("whole", "killed"))
    assert numbers(a) == numbers(b)


def test_recover_saves_a_model_that_loads(folder: Path, tmp_path: Path) -> None:
    comparison = compare(folder, recover=tmp_path / "recovered")
    recovered = comparison.recovered
    assert recovered is not None
    assert sum(c["chosen"] for c in recovered.candidates) == 1
    assert recovered.tasks[0].n < 120
    loaded = catchment.load(str(tmp_path / "recovered"))
    assert loaded.card.parameters == comparison.base.parameters
    task = make_task()
    scores = catchment.evaluate(loaded, task)
    judged = recovered.tasks[0]
    assert judged.tuned <= 1
    assert len(scores.rows) == 120


def test_recover_of_equal_models_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="equal weights"):
        catchment.compare(
            str(folder / "base"), str(folder / "twin"), tasks=[make_task()], text="none", recover=tmp_path / "r"
        )


def test_fail_if_drop_breaks_with_exit_1(folder: Path, tmp_path: Path, run_cli: Cli) -> None:
    """A task that the base answers by construction and the tuned model does not."""
    base = catchment.evaluate(catchment.load(str(folder / "base")), make_task(n=600))
    right = {r.item: r.prediction for r in base.rows}
    solved = tuple(Item(i.prompt, i.choices, i.choices.index(right[i.id])) for i in make_task(n=600).items)
    task = write_task(tmp_path / "solved.jsonl", make_task().with_items(solved))
    arguments = ("compare", folder / "base", folder / "tuned", "--tasks", task, "--text", "none", "--formats", "1")
    fine = run_cli(*arguments, "--out", tmp_path / "a")
    assert fine.returncode == 0, fine.stderr
    broken = run_cli(*arguments, "--out", tmp_path / "a", "--fail-if-drop", "0.02", "--json")
    assert broken.returncode == 1
    assert "more than --fail-if-drop 0.02" in broken.stderr
    record = json.loads(broken.stdout)
    assert record["tasks"][0]["verdict"] == "lost"
    assert record["headline"] == "loss"


def test_a_loss_of_a_weak_base_breaks_the_gate_too(folder: Path, tmp_path: Path, run_cli: Cli) -> None:
    """The base answers 42% of three choices by construction: above chance, and below what "kept" needs."""
    task = make_task(n=600)
    said = [
        {r.item: r.prediction for r in catchment.evaluate(catchment.load(str(folder / name)), task).rows}
        for name in ("base", "tuned")
    ]
    solved = []
    for k, item in enumerate(task.items):
        mine = [model[item.id] for model in said]
        gold = mine[0] if k % 50 < 21 else next(c for c in item.choices if c not in mine)
        solved.append(Item(item.prompt, item.choices, item.choices.index(gold)))
    right = [sum(m[i.id] == s.choices[s.gold] for i, s in zip(task.items, solved, strict=True)) for m in said]
    assert right[0] == 252
    assert right[1] < 220
    path = write_task(tmp_path / "weak.jsonl", task.with_items(tuple(solved)))
    arguments = ("compare", folder / "base", folder / "tuned", "--tasks", path, "--text", "none", "--formats", "1")
    broken = run_cli(*arguments, "--out", tmp_path / "a", "--fail-if-drop", "0.02", "--json")
    assert broken.returncode == 1
    assert "more than --fail-if-drop 0.02" in broken.stderr
    record = json.loads(broken.stdout)
    result = record["tasks"][0]
    assert (result["verdict"], result["admitted"], record["headline"]) == ("lost", False, "loss")
    assert (result["base"], result["tuned"]) == (pytest.approx(0.42), pytest.approx(right[1] / 600))
    assert result["difference"]["high"] < 0


BAD = [
    (["nowhere-model", "{tuned}"], "nowhere-model"),
    (["{base}", "{tuned}", "--tasks", "arithmetik"], "Did you mean 'arithmetic'"),
    (["{base}", "{tuned}", "--tasks", "missing.jsonl"], "missing.jsonl"),
    (["{base}", "{tuned}", "--margin", "2"], "margin 2"),
    (["{base}", "{tuned}", "--budget", "soon"], "90s, 4m"),
    (["{base}", "{tuned}", "--limit", "0"], "limit 0"),
    (["{base}", "{tuned}", "--dtype", "float23"], "float23"),
    (["{base}", "{tuned}", "--chat-template", "nowhere.jinja", "--tasks", "arithmetic"], "nowhere.jinja"),
    (["{base}", "{broken}"], "broken"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_is_one_clear_line(
    folder: Path, tmp_path: Path, run_cli: Cli, arguments: list[str], said: str
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (folder / "base").iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    filled = [a.format(base=folder / "base", tuned=folder / "tuned", broken=broken) for a in arguments]
    if "--tasks" not in filled:
        filled += ["--tasks", str(folder / "echo.jsonl")]
    result = run_cli("compare", *filled, "--text", "none", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_empty_and_unlabelled_tasks(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(CatchmentError, match="empty"):
        compare(folder, tasks=[str(tmp_path / "empty.jsonl")])
    unlabelled = make_task().with_items(tuple(Item(i.prompt, i.choices, -1) for i in make_task().items))
    with pytest.raises(GateError, match="no label"):
        compare(folder, tasks=[unlabelled])


def test_prompt_longer_than_the_context(folder: Path) -> None:
    task = make_task()
    long = Item("word " * 2000, ("red", "blue", "green"), 1)
    with pytest.raises(GateError, match="longer than the model's context"):
        compare(folder, tasks=[task.with_items((*task.items, long))])
    comparison = compare(folder, tasks=[task.with_items((*task.items, long))], drop_long=True)
    assert comparison["echo"].n == 120
    assert any("longer than the context" in w for w in comparison["echo"].warnings)


def test_out_of_another_comparison(folder: Path, tmp_path: Path) -> None:
    compare(folder, out=tmp_path / "out")
    with pytest.raises(StoreError, match="another comparison"):
        catchment.compare(
            str(folder / "tuned"), str(folder / "base"), tasks=[make_task()], text="none", out=tmp_path / "out"
        )


def test_two_processes_on_one_out(folder: Path, tmp_path: Path) -> None:
    compare(folder, out=tmp_path / "out")
    holder = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys; from catchment.runs import Store\n"
            f"with Store({str(tmp_path / 'out')!r}).lock('compare'):\n print('held', flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "held"
    with pytest.raises(StoreError, match=str(holder.pid)):
        compare(folder, out=tmp_path / "out")
    holder.communicate("")
    assert compare(folder, out=tmp_path / "out")["echo"].n == 120


def test_unknown_setting_and_config(folder: Path, tmp_path: Path, run_cli: Cli) -> None:
    with pytest.raises(InputError, match="Did you mean 'margin'"):
        compare(folder, margn=0.1)
    config = tmp_path / "settings.yaml"
    config.write_text(f"tasks: [{folder / 'echo.jsonl'}]\ntext: none\nlimit: 40\nformats: 1\n")
    result = run_cli(
        "compare", folder / "base", folder / "tuned", "--config", config, "--out", tmp_path / "o", "--json"
    )
    assert json.loads(result.stdout)["tasks"][0]["n"] == 40
    config.write_text("limitt: 40\n")
    result = run_cli("compare", folder / "base", folder / "tuned", "--config", config)
    assert result.returncode == 2
    assert "Did you mean 'limit'" in result.stderr


def test_classifier_and_causal_tasks_do_not_mix(folder: Path) -> None:
    task = Task("label", (Item("a", gold=0), Item("b", gold=1)), "classify")
    with pytest.raises(TaskError):
        compare(folder, tasks=[task])


def test_dry_run_prints_a_plan(folder: Path, tmp_path: Path, run_cli: Cli) -> None:
    result = run_cli(
        "compare", folder / "base", folder / "tuned", "--tasks", folder / "echo.jsonl", "--text", "none", "--dry-run",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "120 items over 1 tasks" in " ".join(result.stdout.split())
    assert not (tmp_path / "out").exists()
