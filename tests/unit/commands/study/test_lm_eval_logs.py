"""lm-eval's per-sample logs: real ones, and ones that are wrong in one way each."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catchment.commands.study.analysis.whole import analyse
from catchment.commands.study.lm_eval_logs import read_lm_eval
from catchment.commands.study.record import BASE, Flag
from catchment.commands.study.scores import ScoreTable
from catchment.errors import InputError

LOGS = Path(__file__).parents[3] / "data" / "lm_eval"
DATE = "2026-01-02T03-04-05.678"


def _sample(number: int, score: float = 1.0, **changes: Any) -> dict[str, Any]:
    """As lm-eval logs an item of two choices; the right one alternates."""
    right = number % 2
    logprobs = [-1.0, -2.0] if (score == 1) == (right == 0) else [-2.0, -1.0]
    context = f"Is the statement with number {number} true?"
    return {
        "doc_id": number, "doc": {"q": number}, "target": str(right), "filter": "none", "metrics": ["acc"],
        "arguments": {f"gen_args_{k}": {"arg_0": context, "arg_1": text} for k, text in enumerate((" yes", " no"))},
        "resps": [], "filtered_resps": [[str(v - number / 1000), "False"] for v in logprobs],
        "doc_hash": f"d{number}", "prompt_hash": f"p{number}", "target_hash": f"t{right}", "acc": score, **changes,
    }  # fmt: skip


def _write(folder: Path, samples: list[Mapping[str, Any]], task: str = "qa", date: str = DATE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"samples_{task}_{date}.jsonl"
    path.write_text("".join(json.dumps(s) + "\n" for s in samples), encoding="utf-8")
    return path


def _pair(root: Path, change: Callable[[int], dict[str, Any]], n: int = 40) -> ScoreTable:
    """A base that is right on all but every eighth item, and a tuned model with changed samples."""
    _write(root / "base", [_sample(i, float(i % 8 != 0)) for i in range(n)])
    _write(root / "tuned", [_sample(i, float(i % 8 != 0), **change(i)) for i in range(n)])
    return read_lm_eval(root, base="base")


def _raised(table: ScoreTable, gate: str) -> list[Flag]:
    return [flag for flag in table.flags if flag.gate == gate]


def test_real_logs_give_what_lm_eval_printed() -> None:
    table = read_lm_eval(LOGS, base="stories15M")
    study = analyse(table)
    for folder in ("stories15M", "noisy"):
        (path,) = (LOGS / folder).glob("results_*.json")
        printed = json.loads(path.read_text())["results"]
        label = BASE if folder == "stories15M" else folder
        own = {cell.task: scored for cell, scored in table.scored.items() if cell.tuning == label}
        assert own["story_choice"].mean == pytest.approx(printed["story_choice"]["acc,none"])
        assert own["story_word (strict)"].mean == pytest.approx(printed["story_word"]["exact_match,strict"])
        assert own["story_word (first-word)"].mean == pytest.approx(printed["story_word"]["exact_match,first-word"])
        assert own["story_choice"].chance == pytest.approx(1 / 3)
        assert own["story_word (strict)"].generated
    assert {cell.shots for cell in table.scored if cell.task.startswith("story_word")} == {1}
    change = next(c for c in study.changes if c.task == "story_choice")
    assert (change.n, change.verdict) == (24, "not measurable")
    assert "12 groups" in change.interval.method
    assert [f.where for f in _raised(table, "repeated items")] == ["story_choice"]
    assert [(f.task, f.refused) for f in _raised(table, "shots in the test set")] == [
        ("story_word (strict)", False),
        ("story_word (first-word)", False),
    ]


def test_a_metric_that_no_log_has_is_refused() -> None:
    with pytest.raises(InputError, match=r"no log has the metric 'acc_nrom'.*Did you mean 'acc"):
        read_lm_eval(LOGS, base="stories15M", metric="acc_nrom")


def test_another_metric_on_request() -> None:
    table = read_lm_eval(LOGS, base="stories15M", metric="acc_norm")
    scores = {cell.tuning: s.mean for cell, s in table.scored.items() if cell.task == "story_choice"}
    assert scores == {BASE: 1.0, "noisy": pytest.approx(0.9167, abs=1e-4)}
    assert "no acc_norm for each item" in table.notes[0]


def test_probability_of_the_right_choice() -> None:
    table = read_lm_eval(LOGS, base="stories15M")
    scored = next(s for cell, s in table.scored.items() if (cell.tuning, cell.task) == ("noisy", "story_choice"))
    first = json.loads(next((LOGS / "noisy").glob("samples_story_choice*")).read_text().splitlines()[0])
    logprobs = [float(r[0]) for r in first["filtered_resps"]]
    expected = math.exp(logprobs[int(first["target"])]) / sum(map(math.exp, logprobs))
    assert scored.companions is not None
    assert scored.companions[0] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["base", "runs/base"])
def test_many_models_against_one_base(tmp_path: Path, name: str) -> None:
    n = 400
    _write(tmp_path / "runs/base", [_sample(i, float(i % 8 != 0)) for i in range(n)])
    _write(tmp_path / "runs/bad", [_sample(i, float(i % 3 != 0)) for i in range(n)])
    _write(tmp_path / "other/good", [_sample(i) for i in range(n)])
    study = analyse(read_lm_eval(tmp_path, base=name))
    assert {c.tuning: c.verdict for c in study.changes} == {"other/good": "gained", "runs/bad": "lost"}
    assert {c.interval.family for c in study.changes} == {2}


def test_items_are_joined_by_their_hashes_and_lacking_ones_are_said(tmp_path: Path) -> None:
    _write(tmp_path / "base", [_sample(i, float(i % 8 != 0)) for i in range(40)])
    _write(tmp_path / "tuned", [_sample(i) for i in reversed(range(10, 50))])
    study = analyse(read_lm_eval(tmp_path, base="base"))
    (change,) = study.changes
    assert (change.n, change.tuned, change.base) == (30, 1.0, 27 / 30)
    assert [f.gate for f in study.flags if "lacks" in f.gate] == ["items that a model lacks"]


def test_the_newest_log_is_read(tmp_path: Path) -> None:
    _write(tmp_path / "base", [_sample(i, float(i % 8 != 0)) for i in range(40)])
    _write(tmp_path / "tuned", [_sample(i) for i in range(40)], date="2026-03-01T00-00-00.1")
    _write(tmp_path / "tuned", [_sample(i, 0.0) for i in range(40)], date="2026-02-01T00-00-00.1")
    table = read_lm_eval(tmp_path, base="base")
    assert [s.mean for cell, s in table.scored.items() if cell.tuning == "tuned"] == [1.0]
    assert table.notes == ("tuned: 1 older logs are not read; the newest of each task is",)


def test_revisions_that_share_a_folder_are_models_of_their_own(tmp_path: Path) -> None:
    for date, revision, score in (("2026-01-01T00-00-00", "step1", 0.0), ("2026-01-02T00-00-00", "step2", 1.0)):
        folder = _write(tmp_path / "pythia", [_sample(i, score) for i in range(20)], date=date).parent
        config = {"config": {"model_args": f"pretrained=pythia,revision={revision}"}, "n-shot": {"qa": 3}}
        (folder / f"results_{date}.json").write_text(json.dumps(config))
    table = read_lm_eval(tmp_path, base="pythia@step1")
    assert table.checkpoints[0].revision == "step1"
    assert [card.label for card in table.tunings] == ["pythia@step2"]
    assert {cell.shots for cell in table.scored} == {3}
    with pytest.raises(InputError, match="names pythia@step1, pythia@step2"):
        read_lm_eval(tmp_path, base="pythia")


def test_a_task_that_one_model_lacks_is_a_missing_cell(tmp_path: Path) -> None:
    _write(tmp_path / "base", [_sample(i) for i in range(12)])
    _write(tmp_path / "tuned", [_sample(i) for i in range(12)])
    _write(tmp_path / "base", [_sample(i) for i in range(12)], task="only_base")
    gaps = analyse(read_lm_eval(tmp_path, base="base")).gaps
    assert [(g.what, g.reason) for g in gaps] == [
        ("tuning tuned, format default: only_base (1)", "no log of this model")
    ]


def test_a_task_without_a_score_for_each_item_is_refused(tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        _write(tmp_path / name, [_sample(i) for i in range(12)])
        word = [{**_sample(i), "metrics": ["perplexity"], "perplexity": [-3.0, 2]} for i in range(12)]
        _write(tmp_path / name, word, task="wiki")
    study = analyse(read_lm_eval(tmp_path, base="base"))
    assert study.counts["refused"] == 2
    assert study.gaps[0].reason == "none of its metrics (perplexity) is a score in [0, 1] for each item"


def test_unlabelled_targets_are_refused(tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        _write(tmp_path / name, [_sample(i, float(i % 8 != 0), target="-1") for i in range(20)])
    study = analyse(read_lm_eval(tmp_path, base="base"))
    assert [(f.task, f.refused) for f in study.flags if f.gate == "unlabelled"] == [("qa", True)]
    assert [(c.refused, c.verdict) for c in study.changes] == [(True, "not measurable")]


def test_one_label_for_all_is_refused_unless_the_choices_differ(tmp_path: Path) -> None:
    table = _pair(tmp_path / "same", lambda i: {"target": "0", "acc": float(i % 8 != 0)})
    assert not _raised(table, "constant gold")  # the base's log has both labels
    for name in ("base", "tuned"):
        _write(tmp_path / "all" / name, [_sample(i, float(i % 8 != 0), target="1") for i in range(20)])
        own = [_sample(i, target="1", arguments=[["q", f" a{i}"], ["q", f" b{i}"]]) for i in range(20)]
        _write(tmp_path / "all" / name, own, task="own_choices")
    assert [f.task for f in _raised(read_lm_eval(tmp_path / "all", base="base"), "constant gold")] == ["qa"]


def test_a_model_that_always_says_the_same(tmp_path: Path) -> None:
    table = _pair(tmp_path, lambda i: {"filtered_resps": [["-1", "True"], [str(-2 - i), "False"]]})
    (flag,) = _raised(table, "constant predictor")
    assert (flag.tuning, flag.task) == ("tuned", "qa")
    assert "choice 1 is the likeliest on 40 of 40 items" in flag.sentence


def test_a_prompt_that_holds_its_own_item_solved_is_refused(tmp_path: Path) -> None:
    def context(i: int) -> str:
        shots = [f"What is the capital of country {k}? It is city {k}" for k in range(4)]
        return "\n\n".join([*shots, f"What is the capital of country {i}?"])

    for name in ("base", "tuned"):
        samples = [_sample(i, arguments=[[context(i), " a"], [context(i), " b"]]) for i in range(20)]
        _write(tmp_path / name, samples)
    (flag,) = _raised(read_lm_eval(tmp_path, base="base"), "shots in the test set")
    assert flag.refused
    assert flag.sentence.startswith("4 of 20 prompts hold their own item")


def test_shots_of_another_split_raise_nothing(tmp_path: Path) -> None:
    table = _pair(tmp_path, lambda i: {"arguments": [[f"Shot of another split\n\nQuestion number {i} is", " a"]] * 2})
    assert not _raised(table, "shots in the test set")


def test_two_folders_with_one_model(tmp_path: Path) -> None:
    table = _pair(tmp_path, lambda i: {})
    assert {(f.tuning, f.refused) for f in _raised(table, "identical outputs")} == {(BASE, True), ("tuned", True)}
    assert all(c.refused for c in analyse(table).changes)
    other = _pair(tmp_path / "b", lambda i: {"filtered_resps": [[str(-1 - (i % 2)), "x"], [str(-1.5 + i), "x"]]})
    assert not _raised(other, "identical outputs")


def test_prompts_that_differ_are_refused(tmp_path: Path) -> None:
    def change(i: int) -> dict[str, Any]:
        return {"prompt_hash": "other", "arguments": [["<|user|>Is the statement", " yes"]] * 2} if i > 30 else {}

    with pytest.raises(InputError, match=r"asked 9 of 40 items with different prompts \(first: qa, 'Is the"):
        _pair(tmp_path, change)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"doc": {}, "target"', "line 3: not JSON .*Was the run cut short"),
        ("[1]", "line 3: no sample with doc and target"),
        (json.dumps({**_sample(3), "acc": "x"}), "line 3: acc is 'x'; expected a score"),
    ],
)
def test_logs_that_cannot_be_read(tmp_path: Path, line: str, message: str) -> None:
    _write(tmp_path / "base", [_sample(i) for i in range(12)])
    path = _write(tmp_path / "tuned", [_sample(i) for i in range(2)])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=message):
        read_lm_eval(tmp_path, base="base")


def test_folders_and_bases_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        read_lm_eval(tmp_path / "absent")
    with pytest.raises(InputError, match="--log_samples"):
        read_lm_eval(tmp_path)
    shutil.copytree(LOGS, tmp_path / "logs")
    with pytest.raises(InputError, match=r"2 models \(noisy, stories15M\); expected the name of the base"):
        read_lm_eval(tmp_path / "logs")
    with pytest.raises(InputError, match=r"'storie15M' names no model.*Did you mean 'stories15M'"):
        read_lm_eval(tmp_path / "logs", base="storie15M")
    shutil.rmtree(tmp_path / "logs" / "noisy")
    with pytest.raises(InputError, match="stories15M alone"):
        read_lm_eval(tmp_path / "logs", base="stories15M")


def test_scores_are_those_of_the_lines() -> None:
    table = read_lm_eval(LOGS, base="stories15M")
    scored = next(s for cell, s in table.scored.items() if (cell.tuning, cell.task) == (BASE, "story_choice"))
    lines = next((LOGS / "stories15M").glob("samples_story_choice*")).read_text().splitlines()
    assert scored.scores is not None
    np.testing.assert_array_equal(scored.scores, [json.loads(line)["acc"] for line in lines])
