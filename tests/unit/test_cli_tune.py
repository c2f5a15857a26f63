"""The command line of ``tune``: what becomes a setting, what wins over what, where the output goes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from catchment.cli.arguments import parse
from catchment.cli.runner import run
from catchment.cli.table import COMMANDS
from catchment.commands.tune import run as tuning
from catchment.commands.tune.record import Tune
from catchment.commands.tune.settings import TuneSettings
from catchment.records import Interval, from_json
from tests import tiny
from tests.unit.commands.tune.test_words import sample_tune

ONE_LINE: dict[str, tuple[str, Any]] = {
    "out": ("o", Path("o")), "method": ("lora", "lora"), "sparsity": ("0.02", 0.02), "learning_rate": ("1e-4", 1e-4),
    "epochs": ("2.5", 2.5), "max_steps": ("7", 7), "batch_size": ("3", 3), "accumulation": ("2", 2),
    "max_length": ("77", 77), "held_out": ("12", 12.0), "max_drop": ("0.1", 0.1), "replay": ("0", 0.0),
    "replay_weight": ("0.5", 0.5),
    "pull": ("0.1", 0.1), "fence_steps": ("5", 5), "eval_steps": ("6", 6), "eval_limit": ("9", 9),
    "on_drop": ("stop", "stop"), "save_steps": ("4", 4), "limit": ("50", 50), "margin": ("0.3", 0.3),
    "alpha": ("0.1", 0.1), "chat_template": ("none", "none"), "system": ("Be kind.", "Be kind."), "seed": ("3", 3),
    "batch_tokens": ("512", 512), "dtype": ("bfloat16", "bfloat16"), "device": ("cpu", "cpu"),
    "attn_implementation": ("eager", "eager"), "revision": ("main", "main"), "head": ("causal-lm", "causal-lm"),
    "store": ("s", Path("s")),
}  # fmt: skip
LISTS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "tasks": (["recall,language", "code"], ("recall", "language", "code")),
    "protect": (["recall", "language,code"], ("recall", "language", "code")),
    "method_args": (["rule=random", "target_modules=q_proj,v_proj"], ("rule=random", "target_modules=q_proj,v_proj")),
    "training_args": (["bf16=true", "warmup_steps=3"], ("bf16=true", "warmup_steps=3")),
}
FLAGS = ("packing", "no_plain", "trust_remote_code", "dry_run")


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def parsed(*words: str) -> Any:
    return parse(COMMANDS["tune"], ["org/base", "--data", "d.jsonl", *words])


def test_every_setting_is_tried_here() -> None:
    fields = {field.name for field in dataclasses.fields(TuneSettings)}
    assert fields == {"base", "data", *ONE_LINE, *LISTS, *FLAGS}


def test_every_setting_has_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tune", ["--help"]) == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(TuneSettings):
        assert field.name.upper() in shown if field.name == "base" else field.name.replace("_", "-") in shown


@pytest.mark.parametrize("name", list(ONE_LINE))
def test_a_word_becomes_a_setting(name: str) -> None:
    word, value = ONE_LINE[name]
    assert getattr(parsed(option(name), word), name) == value
    assert getattr(parsed(f"{option(name)}={word}"), name) == value


@pytest.mark.parametrize("name", list(LISTS))
def test_words_become_a_list(name: str) -> None:
    words, value = LISTS[name]
    assert getattr(parsed(option(name), *words), name) == value


def test_flags() -> None:
    assert all(getattr(parsed(option(name)), name) for name in FLAGS)
    assert not any(getattr(parsed(), name) for name in FLAGS)
    assert parsed("--json").json


def test_defaults_are_those_of_the_settings() -> None:
    found, plain = parsed(), TuneSettings("org/base", "d.jsonl")
    for field in dataclasses.fields(TuneSettings):
        if field.name != "out":
            assert getattr(found, field.name) == getattr(plain, field.name)


@pytest.mark.parametrize(
    ("base", "folder"),
    [
        ("org/some-model", "some-model-tune"),
        ("a b/c d.gguf", "c-d.gguf-tune"),
        ("org/doc-scanner", "doc-scanner-tune"),
    ],
)  # fmt: skip
def test_default_out(base: str, folder: str) -> None:
    assert parse(COMMANDS["tune"], [base, "--data", "d.jsonl"]).out == Path("catchment-out") / folder


def test_the_command_line_wins_over_yaml(tmp_path: Path) -> None:
    path = tmp_path / "tune.yaml"
    path.write_text(
        "base: a\ndata: d.jsonl\nmax-steps: 40\nprotect: recall\ntasks: [language, code]\n"
        "method_args: [rule=random, scope=global]\ntraining_args: bf16=true\nno_plain: true\nsparsity: 0.05\n"
    )
    found = parse(COMMANDS["tune"], ["--config", str(path), "--max-steps", "7", "--tasks", "recall,arithmetic"])
    assert (found.base, found.data, found.max_steps, found.protect) == ("a", "d.jsonl", 7, ("recall",))
    assert found.tasks == ("recall", "arithmetic")
    assert found.method_args == ("rule=random", "scope=global")
    assert (found.training_args, found.no_plain, found.sparsity) == (("bf16=true",), True, 0.05)
    found = parse(COMMANDS["tune"], [f"--config={path}", "x"])
    assert (found.base, found.max_steps, found.tasks) == ("x", 40, ("language", "code"))


@pytest.mark.parametrize(
    "line", ["max_steps: many", "packing: perhaps", "protect: 5", "method_args: {r: 4}", "held_out: most", "sparsty: 1"]
)
def test_a_wrong_line_of_yaml_is_one_clear_line(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tune.yaml"
    path.write_text(line)
    assert run("tune", ["m", "--data", "d", "--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("catchment: ")
    assert line.split(":")[0] in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max-drop", "0"), ("max-drop", "1"), ("margin", "2"), ("alpha", "3"), ("max-steps", "0"), ("batch-size", "0"),
        ("accumulation", "-1"), ("max-length", "1"), ("fence-steps", "0"), ("eval-steps", "0"), ("eval-limit", "0"),
        ("save-steps", "0"), ("limit", "0"), ("batch-tokens", "-5"), ("replay", "1"), ("replay", "nan"),
        ("replay-weight", "0"),
        ("pull", "-1"), ("held-out", "-0.1"), ("held-out", "nan"), ("held-out", "7.5"),
        ("epochs", "0"), ("epochs", "inf"), ("learning-rate", "0"),
        ("learning-rate", "nan"), ("on-drop", "cry"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_one_clear_line(
    name: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tune", ["m", "--data", "d", "--out", str(tmp_path / "out"), f"--{name}={value}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("catchment: ")
    assert name in said.replace("_", "-")
    assert value.lstrip("-") in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_data_or_base(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tune", ["m"]) == 2
    assert capsys.readouterr().err.startswith("catchment: --data is missing")
    assert run("tune", []) == 2
    assert "BASE" in capsys.readouterr().err.upper()


# --------------------------------------------------------------------------------------------------- what is printed


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tune], None]:
    """Has every tune end with this record."""
    return lambda record: monkeypatch.setattr(tuning, "run", lambda settings, progress: record)


def test_json_prints_the_record_and_nothing_else(
    tuned: Callable[[Tune], None], capsys: pytest.CaptureFixture[str]
) -> None:
    record = sample_tune(protected=())  # with it a bound would be broken
    tuned(record)
    assert run("tune", ["m", "--data", "d", "--json"]) == 0
    assert from_json(Tune, capsys.readouterr().out) == record


def test_what_a_person_sees(tuned: Callable[[Tune], None], capsys: pytest.CaptureFixture[str]) -> None:
    record = sample_tune(protected=())  # with it a bound would be broken
    tuned(record)
    assert run("tune", ["org/m", "--data", "d"]) == 0
    found = capsys.readouterr()
    assert record.sentence.split("(")[0] in " ".join(found.out.split())
    assert f"page: {Path('catchment-out/m-tune/report.html')}" in found.out
    assert found.err == ""


@pytest.mark.parametrize(
    ("low", "high", "protected", "code"),
    [
        (-0.2, -0.03, ("recall",), 1),  # the whole interval is beyond the bound of 0.02
        (-0.2, -0.01, ("recall",), 1),  # a drop is shown, and it is estimated to be more than is tolerated
        (-0.02, -0.01, ("recall",), 0),  # a drop is shown, and estimated to be tolerated
        (-0.2, 0.01, ("recall",), 0),  # no drop is shown
        (-0.2, -0.03, (), 0),
        (-0.2, -0.03, ("language",), 0),
    ],
)
def test_a_broken_bound_is_exit_code_1(
    tuned: Callable[[Tune], None], capsys: pytest.CaptureFixture[str], low: float, high: float,
    protected: tuple[str, ...], code: int,
) -> None:  # fmt: skip
    record = sample_tune(protected=protected)
    found = Interval((low + high) / 2, low, high, 0.95, "wald")
    tasks = tuple(replace(t, difference=found) if t.task == "recall" else t for t in record.runs[0].tasks)
    tuned(replace(record, runs=(replace(record.runs[0], tasks=tasks), record.runs[1])))
    assert run("tune", ["m", "--data", "d"]) == code
    said = capsys.readouterr().err
    if code:
        assert said == (
            f"catchment: recall dropped by {-found.estimate:.3f} [{-high:.3f}, {-low:.3f}], more than --max-drop 0.02\n"
        )
    else:
        assert said == ""


def test_the_plain_run_breaks_no_bound() -> None:
    record = sample_tune()
    lost = tuple(replace(t, difference=Interval(-0.5, -0.6, -0.4, 0.95, "wald")) for t in record.runs[0].tasks)
    kept = tuple(replace(t, difference=Interval(0.0, -0.01, 0.01, 0.95, "wald")) for t in record.runs[0].tasks)
    runs = (replace(record.runs[0], tasks=kept), replace(record.runs[1], tasks=lost))
    assert tuning.broken(replace(record, runs=runs), TuneSettings("m", "d")) == []


def test_a_dry_run_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CATCHMENT_HOME", str(tmp_path / "home"))
    tiny.tiny_llama().save_pretrained(tmp_path / "base")
    tiny.tiny_tokenizer().save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"Question: {a} + {b}? Answer:", "completion": f" {a + b}"} for a in range(5) for b in range(4)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    before = sorted(path.name for path in tmp_path.iterdir())
    words = [str(tmp_path / "base"), "--data", str(tmp_path / "d.jsonl"), "--out", str(tmp_path / "out"), "--dry-run"]
    assert run("tune", [*words, "--batch-size", "6", "--epochs", "2", "--sparsity", "0.05", "--tasks", "none"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "36,000 weights in float32; sift trains" in said
    assert "18 rows of prompt to train on, 2 held out" in said
    assert "1 training of 6 steps x 6 rows" in said
    assert "learning rate 0.001" in said
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == before


@pytest.mark.parametrize("word", ["--sparsity=0", "--method-args=target_modules=none"])
def test_a_dry_run_finds_what_a_run_would(tmp_path: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.tiny_llama().save_pretrained(tmp_path / "base")
    tiny.tiny_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "d.jsonl").write_text('{"prompt": "a b", "completion": " c"}\n{"prompt": "d e", "completion": " f"}')
    words = [str(tmp_path / "base"), "--data", str(tmp_path / "d.jsonl"), "--dry-run", word]
    assert run("tune", words) == 2
    assert capsys.readouterr().err.startswith("catchment: ")
