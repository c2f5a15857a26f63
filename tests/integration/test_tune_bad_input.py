"""Bad input of ``tune``: one line that names it, exit code 2, and nothing half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.test_compare import Cli, home, run_cli
from tests.integration.test_tune import CHATS, SUMS, TEXTS, lines, room

__all__ = ["home", "room", "run_cli"]
torch.set_num_threads(1)


def command(room: Path, out: Path, data: Any = None, base: str = "base") -> list[Any]:
    data = data or room / "prompt.jsonl"
    return [
        "tune", room / base, "--data", data, "--out", out, "--max-steps", "4", "--tasks", "none", "--held-out", "0"
    ]  # fmt: skip


def refused(result: Any, *said: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("catchment: ")
    assert result.stderr.count("\n") == 1
    assert "This is a defect of catchment" not in result.stderr
    for words in said:
        assert words in result.stderr


BAD_DATA: dict[str, tuple[list[dict[str, Any]], str]] = {
    "an empty completion": ([*SUMS[:3], {"prompt": "a", "completion": " "}], "1 of 4 rows have an empty completion"),
    "unknown columns": ([{"promt": "a", "completion": "b"}], "Did you mean 'prompt'?"),
    "no rows": ([], "holds no rows"),
    "mixed rows": ([SUMS[0], TEXTS[0]], "line 2"),
    "no assistant": ([{"messages": [{"role": "user", "content": "a"}]}], "at least one of 'assistant'"),
    "one class": ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], "at least 2 classes"),
    "messages without a template": (CHATS[:4], "there is no chat template"),
}


@pytest.mark.parametrize("name", list(BAD_DATA))
def test_bad_data_is_refused(room: Path, tmp_path: Path, run_cli: Cli, name: str) -> None:
    rows, said = BAD_DATA[name]
    result = run_cli(*command(room, tmp_path / "out", lines(tmp_path / "data.jsonl", rows)))
    refused(result, said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-length", "8"], "in 48 of 48 rows"),
        (["--method", "sfit"], "Did you mean 'sift'?"),
        (["--method-args", "sparsty=0.1"], "Did you mean 'sparsity'?"),
        (["--method-args", "sparsity"], "expected key=value"),
        (["--method", "lora", "--method-args", "r=many"], "expected r to be a whole number"),
        (["--method", "lora", "--method-args", "r=0"], "a whole number of at least 1"),
        (["--method", "lora", "--sparsity", "0.1"], "is a setting of sift, not of lora"),
        (["--held-out", "48"], "leaves nothing to train on"),
        (["--head", "causal"], "does not fit rows"),
        (["--protect", "echoes"], "no task 'echoes'"),
        (["--data", "nowhere.jsonl"], "no file 'nowhere.jsonl'"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    room: Path, tmp_path: Path, run_cli: Cli, options: list[str], said: str
) -> None:
    result = run_cli(*command(room, tmp_path / "out"), *options)
    refused(result, said)
    assert not (tmp_path / "out").exists()


LATE = [
    pytest.param(["--sparsity", "0"], "sparsity 0", id="sparsity 0"),
    pytest.param(["--sparsity", "nan"], "sparsity nan", id="sparsity nan"),
    pytest.param(["--method-args", "rule=best"], "rule 'best': expected one of", id="rule"),
    pytest.param(["--method-args", "scope=5"], "scope", id="scope"),
    pytest.param(["--method-args", "target_modules=none"], "target_modules 'none' matches no weight", id="targets"),
    pytest.param(["--method-args", "target_modules=no"], "target_modules", id="a word of YAML"),
    pytest.param(["--training-args", "learning_rat=1"], "Did you mean 'learning_rate'?", id="training-args"),
    pytest.param(["--training-args", "optim=best"], "--training-args optim=best", id="optim"),
    pytest.param(["--training-args", "eval_strategy=steps"], "give it as --eval-steps", id="eval"),
    pytest.param(["--training-args", "per_device_train_batch_size=0"], "give it as --batch-size", id="batch"),
    pytest.param(["--training-args", "fsdp=full_shard"], "Use torchrun without it (DDP)", id="fsdp"),
    pytest.param(["--head", "sequence-classification"], "head", id="head"),
    pytest.param(["--epochs", "0", "--training-args", "max_steps=-1"], "epochs", id="epochs"),
    pytest.param(["--method", "lora", "--pull", "0.1", "--protect", "ECHO"], "only sift and full", id="pull"),
    pytest.param(["--method", "wise-ft", "--protect", "ECHO"], "--method full with --protect", id="wise-ft"),
    pytest.param(["--eval-steps", "2", "--on-drop", "stop"], "eval-steps", id="eval-steps"),
    pytest.param(["--method", "lora", "--pull", "0.1"], "pull 0.1", id="pull without protect"),
]


@pytest.mark.parametrize(("options", "said"), LATE)
def test_settings_that_do_not_fit_are_refused(
    room: Path, tmp_path: Path, run_cli: Cli, options: list[str], said: str
) -> None:
    options = [str(room / "echo.jsonl") if word == "ECHO" else word for word in options]
    refused(run_cli(*command(room, tmp_path / "out"), *options), said)
    assert not (tmp_path / "out/tune.json").exists()


def test_a_task_that_the_base_fails_is_not_protected(room: Path, tmp_path: Path, run_cli: Cli) -> None:
    result = run_cli(*command(room, tmp_path / "out"), "--protect", room / "wrong.jsonl")
    refused(result, "--protect wrong", "Protect tasks that the base can do")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--method-args", "target_modules=none"]),
        pytest.param(["--sparsity", "0"]),
        ["--training-args", "learning_rat=1"],
    ],
    ids=["targets", "sparsity", "training-args"],
)
def test_a_refused_command_leaves_its_folder_free(room: Path, tmp_path: Path, run_cli: Cli, options: list[str]) -> None:
    assert run_cli(*command(room, tmp_path / "out"), *options).returncode == 2
    corrected = run_cli(*command(room, tmp_path / "out"))
    assert corrected.returncode == 0, corrected.stderr
