"""Budgets are kept on slow machines: within 10% and one forward pass, with nothing dropped in silence.

The machine is simulated: a forward pass moves the clock on by what it reads and decodes (see ``budgets.py``).
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import catchment
from catchment.capabilities import Engine, Item, Task, measure_pace, sample
from catchment.commands.compare.record import Comparison
from catchment.commands.compare.run import broken_bounds
from catchment.commands.compare.tables import Tables
from catchment.errors import InputError
from catchment.models import calls_of
from tests import tiny
from tests.unit.commands.compare.budgets import WORDS, Machine, Watched, choice, generated, machine, pair, solved

__all__ = ["machine"]
torch.set_num_threads(1)
SLOW = {"read": 0.003, "decode": 0.06}
"""Decoding a token takes 20 times as long as reading one."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CATCHMENT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Tables]:
    """The rows of comparisons that came to a record."""
    module = importlib.import_module("catchment.commands.compare.run")
    real, seen = module.comparison_of, []

    def comparison_of(pair: Any, state: Any, *rest: Any) -> Any:
        seen.append(state.tables)
        return real(pair, state, *rest)

    monkeypatch.setattr(module, "comparison_of", comparison_of)
    return seen


def mixed(base: Any, n: int = 32, tokens: int = 8) -> list[Task]:
    return [
        solved(base, choice(n=n)), solved(base, generated("exact", n, tokens)),
        generated("refusal", n, tokens, "refusal"), generated("regex", n, tokens, "regex"),
    ]  # fmt: skip


def compared(machine: Machine, models: Any, tasks: list[Task], budget: float, **options: Any) -> Any:
    """A comparison that kept to its budget, and what it said. Its plan is said within a tenth of the budget from where
    measuring begins."""
    costs = options.pop("costs", None)
    watched = Watched(machine, costs)
    machine.passes.clear()
    started = machine.now
    options = {"text": "none", "tokenizer": tiny.tiny_tokenizer(), **options}
    comparison = catchment.compare(*models, tasks=tasks, budget=f"{budget:g}s", progress=watched, **options)
    assert machine.now - started <= 1.1 * budget + max(machine.passes, default=0.0)
    if watched.plans:
        begun = next(when for when, text in watched.statuses if text.startswith("timing"))
        assert watched.plans[0][0] - begun <= 0.1 * budget
    return comparison, watched


def accounted(comparison: Comparison, tasks: list[Task]) -> None:
    """Every task has a result, or is said to have none."""
    measured = [result.task for result in comparison.tasks]
    assert sorted([*measured, *comparison.unmeasured]) == sorted(task.name for task in tasks)
    for name in comparison.unmeasured:
        assert f"{name}: not measured: the budget ended before its first item" in comparison.warnings
        assert "Not measured within the budget" in comparison.verdict


MACHINES: dict[str, dict[str, float]] = {
    "decoding": SLOW,
    "decoding by steps": {"read": 0.0002, "decode": 0.0, "call": 0.02, "step": 0.4},
    "decoding and reading by passes": {"read": 0.0, "decode": 0.0, "call": 0.3, "step": 0.3},
    "reading": {"read": 0.02, "decode": 0.02},
    "one side": {**SLOW, "slower": 20.0},
    "the base": {"read": 0.02, "decode": 0.4, "slower": 0.05},
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_slow_machine_keeps_to_the_budget(name: str, machine: Machine, measured: list[Tables]) -> None:
    models = pair(machine, **MACHINES[name])
    tasks = mixed(models[0])
    comparison, watched = compared(machine, models, tasks, 60.0)
    accounted(comparison, tasks)
    assert len(comparison.tasks) >= 3
    assert comparison.plan["budget"] == 60
    assert len(watched.plans) >= 2
    (tables,) = measured
    for task in [task for task in tasks if task.name not in comparison.unmeasured]:
        # the first items of the seeded order, the same on both sides, and no others
        n = comparison[task.name].n
        first = {item.id for item in sample(task.items, n, 0)}
        assert [set(table) for table in tables.both(task)] == [first, first]


def test_the_time_is_used(machine: Machine) -> None:
    """An item takes 8 tokens of 60 ms and 10 of 3 ms on both sides, about 1 s; so a minute buys 16 of three tasks."""
    models = pair(machine, **SLOW)
    tasks = mixed(models[0], n=64)
    started = machine.now
    comparison, _ = compared(machine, models, tasks, 90.0, room=False, formats=1)
    assert machine.now - started >= 0.75 * 90
    assert all(comparison[task.name].n >= 14 for task in tasks)


def test_a_machine_that_becomes_slower_cuts_the_plan(machine: Machine) -> None:
    models = pair(machine, **SLOW)
    tasks = mixed(models[0])
    slow_from = machine.now + 25
    machine.factor = lambda: 10.0 if machine.now > slow_from else 1.0
    comparison, _ = compared(machine, models, tasks, 60.0)
    accounted(comparison, tasks)
    assert comparison.plan["cut"]
    assert any("fewer items than planned" in line for line in comparison.warnings)
    planned = {t["task"]: t["items"] for t in comparison.plan["tasks"]}
    assert {r.task: r.n for r in comparison.tasks} == {name: n for name, n in planned.items() if n}


def test_one_task_of_long_answers_does_not_starve_the_others(machine: Machine) -> None:
    config = {"max_position_embeddings": 1024, "num_hidden_layers": 1}
    models = tiny.tiny_llama(**config), tiny.tiny_llama(**config)
    with torch.no_grad():
        models[1].lm_head.weight[5] += 0.1
    for model in models:
        machine.run(model, read=0.001, decode=0.02)
    short, long = solved(models[0], choice(n=60)), generated("long", 24, tokens=512)
    comparison, _ = compared(machine, models, [short, long], 60.0)
    accounted(comparison, [short, long])
    assert comparison["choice"].n == 60


def test_one_task_of_long_prompts(machine: Machine) -> None:
    models = pair(machine, read=0.005, decode=0.005)
    long = [dataclasses.replace(i, prompt=" ".join([i.prompt] * 6)) for i in choice("long", 40).items]
    tasks = [solved(models[0], choice(n=60)), Task("long", tuple(long), "choice", style="continue")]
    comparison, _ = compared(machine, models, tasks, 40.0)
    accounted(comparison, tasks)
    assert min(result.n for result in comparison.tasks) >= 4


def test_of_many_tasks_each_gets_few_items_before_any_gets_many(machine: Machine) -> None:
    models = pair(machine, **SLOW)
    tasks = [generated(f"t{k}", 32, tokens=4) for k in range(20)]
    comparison, _ = compared(machine, models, tasks, 30.0)
    accounted(comparison, tasks)
    counts = [result.n for result in comparison.tasks]
    assert len(counts) == 20
    assert max(counts) <= 8


def test_a_budget_that_ends_among_the_first_items_says_which_tasks_have_none(machine: Machine) -> None:
    models = pair(machine, **SLOW)
    tasks = [generated(f"t{k}", 32, tokens=12) for k in range(20)]
    comparison, _ = compared(machine, models, tasks, 12.0)
    accounted(comparison, tasks)
    assert comparison.unmeasured
    assert comparison.tasks
    assert comparison.headline == "open"
    assert any(comparison.unmeasured[0] in line for line in broken_bounds(comparison, 0.5))
    assert all(math.isfinite(result.difference.low) for result in comparison.tasks)


@pytest.mark.parametrize("reading", [9.0, 30.0])
def test_a_budget_that_reading_the_models_used_up_is_refused(reading: float, machine: Machine, tmp_path: Path) -> None:
    models = pair(machine, **SLOW)
    with pytest.raises(InputError, match=r"--budget 10s: it ended before the first item .* expected about \d+ s"):
        compared(machine, models, mixed(models[0], 8), 10.0, costs={"reading": reading}, out=tmp_path / "out")
    assert machine.now - 1000 < 10 + reading
    comparison, _ = compared(machine, models, mixed(models[0], 8), 10.0, out=tmp_path / "out")  # reading is quick now
    assert comparison.tasks


def test_what_comes_before_the_items_is_paid_from_the_budget(machine: Machine) -> None:
    models = pair(machine, **SLOW)
    tasks = mixed(models[0])
    comparison, _ = compared(machine, models, tasks, 60.0, costs={"reading": 15.0, "drift": 15.0})
    accounted(comparison, tasks)


def test_text_and_unlabelled_prompts_within_the_budget(machine: Machine, tmp_path: Path) -> None:
    models = pair(machine, read=0.001, decode=0.02)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"Tell me of {a} {b}" for a in WORDS for b in WORDS))
    tasks = mixed(models[0])
    comparison, _ = compared(machine, models, tasks, 60.0, text="text", prompts=str(prompts), out=tmp_path / "out")
    accounted(comparison, tasks)
    assert 2 <= comparison.agreements[0].n < 64
    assert f"measured on {comparison.agreements[0].n} of 64 prompts" in " ".join(comparison.warnings)
    assert 2 <= comparison.texts[0].n < 52
    assert f"measured on {comparison.texts[0].n} of 52 passages" in " ".join(comparison.warnings)
    machine.passes.clear()
    again, _ = compared(machine, models, tasks, 60.0, text="text", prompts=str(prompts), out=tmp_path / "out")
    assert machine.passes == []
    assert (again.tasks, again.texts, again.agreements) == (comparison.tasks, comparison.texts, comparison.agreements)
    assert again.warnings == comparison.warnings


def test_text_and_prompts_that_the_budget_does_not_reach_are_said(machine: Machine, tmp_path: Path) -> None:
    models = pair(machine, read=0.01, decode=0.2)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"Tell me of {a} {b}" for a in WORDS for b in WORDS))
    comparison, _ = compared(
        machine, models, [solved(models[0], choice(n=20))], 40.0, text="text", prompts=str(prompts)
    )
    assert (comparison.texts, comparison.agreements) == ((), ())
    assert "bits per byte of text: not measured: the budget ended before its first passages" in comparison.warnings
    assert "agreement on prompts: not measured: the budget ended before its first prompts" in comparison.warnings


def test_prompt_formats_and_the_room_within_the_budget(machine: Machine) -> None:
    from catchment.capabilities import Format

    models = pair(machine, read=0.002, decode=0.002)
    forms = (Format("plain"), Format("quoted", "Text: {prompt}"), Format("again", "Again. {prompt}"))
    task = dataclasses.replace(solved(models[0], choice(n=400)), formats=forms)
    comparison, _ = compared(machine, models, [task], 60.0, formats=3, margin=0.2)
    assert 64 <= comparison["choice"].n < 400
    assert [result.name for result in comparison["choice"].formats] == ["plain", "quoted", "again"]
    assert comparison.rooms


@pytest.mark.parametrize(("budget", "written"), [(60.0, True), (12.0, False)])
def test_recover_within_the_budget(budget: float, written: bool, machine: Machine, tmp_path: Path) -> None:
    models = pair(machine, read=0.001, decode=0.004)
    tasks = [solved(models[0], choice(n=100)), solved(models[0], generated("exact", 48, tokens=8))]
    comparison, _ = compared(machine, models, tasks, budget, recover=tmp_path / "model", room=False)
    assert (tmp_path / "model").exists() == written == (comparison.recovered is not None)
    said = [line for line in comparison.warnings if line.startswith("recover:")]
    if comparison.recovered is not None:
        assert all(result.n >= 2 for result in comparison.recovered.tasks)
    else:
        assert any("no model was written" in line for line in said)


def test_classifiers_within_the_budget(machine: Machine) -> None:
    config = tf.BertConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=3, pad_token_id=0,
    )  # fmt: skip
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(machine.run(tf.BertForSequenceClassification(config).eval(), read=0.02, decode=0.0))
    items = [Item(f"{a} {b} {c}", gold=k % 3) for k, (a, b, c) in enumerate(
        (a, b, c) for a in WORDS for b in WORDS for c in WORDS)]  # fmt: skip
    tasks = [Task(name, tuple(items), "classify") for name in ("one", "two")]
    comparison, _ = compared(machine, models, tasks, 40.0)
    accounted(comparison, tasks)
    assert all(4 <= result.n < 512 for result in comparison.tasks)


def test_a_model_without_a_packed_layout(machine: Machine) -> None:
    """It answers one prompt after the other, through its own ``generate``."""
    base, tuned = tiny.CAUSAL["bloom"](), tiny.CAUSAL["bloom"]()
    with torch.no_grad():
        tuned.transformer.ln_f.weight += 0.05
    models = [machine.run(model, **SLOW) for model in (base, tuned)]
    tasks = [solved(base, choice(n=16)), solved(base, generated("exact", 16, tokens=6))]
    comparison, _ = compared(machine, models, tasks, 30.0, room=False)
    accounted(comparison, tasks)
    assert not comparison.unmeasured


def test_a_second_run_follows_the_frozen_plan(machine: Machine, tmp_path: Path) -> None:
    models = pair(machine, **SLOW)
    tasks = mixed(models[0])
    first, _ = compared(machine, models, tasks, 60.0, out=tmp_path / "out")
    again, _ = compared(machine, models, tasks, 60.0, out=tmp_path / "out")
    assert machine.passes == []
    assert (again.tasks, again.flips, again.plan, again.warnings) == (
        first.tasks,
        first.flips,
        first.plan,
        first.warnings,
    )
    elsewhere, _ = compared(machine, models, tasks, 60.0, out=tmp_path / "out", store=tmp_path / "empty")
    assert {r.task: r.n for r in elsewhere.tasks} == {r.task: r.n for r in first.tasks}


def test_a_resumed_run_on_a_slower_machine_ends_too(machine: Machine, tmp_path: Path) -> None:
    models = pair(machine, **SLOW)
    tasks = mixed(models[0])
    compared(machine, models, tasks, 60.0, out=tmp_path / "out")
    machine.factor = lambda: 10.0
    cut, _ = compared(machine, models, tasks, 60.0, out=tmp_path / "out", store=tmp_path / "empty")
    accounted(cut, tasks)
    assert cut.plan["cut"]


def test_a_pace_is_what_the_machine_takes(machine: Machine) -> None:
    model = machine.run(tiny.tiny_llama(), read=0.0003, decode=0.002, step=0.01)
    pace = measure_pace(Engine(model, tiny.tiny_tokenizer()), patience=10.0)
    assert pace.read == pytest.approx(0.0003)
    assert (pace.step, pace.token) == pytest.approx((0.01, 0.002))
    assert pace.seconds(read=10, generated=5, items=8, rows=4) == pytest.approx(
        8 * 10 * 0.0003 + 5 * (2 * 0.01 + 8 * 0.002)
    )


def test_timing_a_very_slow_model_repeats_nothing(machine: Machine) -> None:
    model = machine.run(tiny.tiny_llama(), read=1.0, decode=20.0)
    calls_of(model)
    machine.passes.clear()
    measure_pace(Engine(model, tiny.tiny_tokenizer()), patience=1.0)
    assert len(machine.passes) == 3  # one pass to read, and a prompt and a step to decode


SCANS = {"decoding": SLOW, "very slow": {"read": 0.02, "decode": 0.3}}


@pytest.mark.parametrize("name", SCANS)
def test_a_scan_keeps_to_its_budget(name: str, machine: Machine) -> None:
    model, _ = pair(machine, **SCANS[name])
    tasks = [solved(model, choice(n=32)), solved(model, generated("exact", 24, tokens=4))]
    machine.passes.clear()
    started = machine.now
    scan = catchment.scan(
        model, tokenizer=tiny.tiny_tokenizer(), tasks=tasks, budget="60s", text="none", progress=Watched(machine)
    )
    assert machine.now - started <= 66 + max(machine.passes)
    assert scan.check.ok
    assert {a.task for a in scan.admissions} == {"choice", "exact"}
    for admission, task in zip(scan.admissions, tasks, strict=True):
        short = f"{admission.n} of {len(task.items)} items are scanned, because the budget ended"
        assert (admission.n == len(task.items)) or any(short in line for line in scan.warnings)


def test_a_scan_on_a_machine_that_becomes_slower(machine: Machine) -> None:
    model, _ = pair(machine, **SLOW)
    tasks = [solved(model, choice(n=32)), solved(model, generated("exact", 24, tokens=4))]
    machine.passes.clear()
    started = machine.now
    machine.factor = lambda: 10.0 if machine.now > started + 25 else 1.0
    scan = catchment.scan(model, tokenizer=tiny.tiny_tokenizer(), tasks=tasks, budget="60s", text="none")
    assert machine.now - started <= 66 + max(machine.passes)
    assert scan.check.ok


def test_a_scan_whose_budget_reading_used_up_is_refused(machine: Machine) -> None:
    model, _ = pair(machine, **SLOW)
    watched = Watched(machine, {"reading": 12.0})
    with pytest.raises(InputError, match="--budget 10s: it ended before the first items"):
        catchment.scan(
            model, tokenizer=tiny.tiny_tokenizer(), tasks=[choice(n=48)], budget="10s", text="none", progress=watched
        )


def test_tasks_of_a_scan_that_the_budget_does_not_reach_are_said(machine: Machine) -> None:
    model, _ = pair(machine, **SLOW)
    tasks = [solved(model, choice(n=32)), generated("long", 32, tokens=100)]
    scan = catchment.scan(model, tokenizer=tiny.tiny_tokenizer(), tasks=tasks, budget="20s", text="none")
    assert [a.task for a in scan.admissions] == ["choice"]
    assert "long: not measured: the budget ended before its first item" in scan.warnings


def test_a_plan_on_the_disk_says_what_was_cut(machine: Machine, tmp_path: Path) -> None:
    models = pair(machine, **SLOW)
    compared(machine, models, [generated(f"t{k}", 32, tokens=12) for k in range(20)], 12.0, out=tmp_path / "out")
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())["plan"]
    assert plan["cut"]
    assert 0 in {t["items"] for t in plan["tasks"]}
