"""The studies of ``examples/studies`` without a network: what they count, list and refuse; and, over rows with the
columns of the published data sets, that every task can be built as it is written there."""

from __future__ import annotations

import runpy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from catchment.capabilities import tables
from catchment.commands.study.plan import Plan, plan
from catchment.commands.study.record import Study
from catchment.commands.study.run import study
from catchment.measuring import Progress
from tests.unit.commands.study.grids import design, settings
from tests.unit.commands.study.released import CSV, STEPS, printed

STUDIES = Path(__file__).parents[4] / "examples" / "studies"
LABELLED = (
    "mnli_matched", "mnli_mismatched", "rte", "gpt3nli", "paws", "qqp_validation", "stsb_validation", "xsum", "xlsum",
    "cnn", "socialiqa", "sciq", "tweetqa",
)  # fmt: skip
WORDS = ("amber", "birch", "cedar", "delta", "ember", "flint", "grove", "heath", "inlet", "jetty", "knoll", "ledge")
RANKED = ("arc_easy_mc", "arc_challenge_mc", "openbookqa_mc", "hellaswag_mc", "boolq_mc", "sciq_mc")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a hub nor data sets of an earlier day."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "none"))


def planned(name: str, tmp_path: Path) -> Plan:
    return plan(settings(STUDIES / name, store=tmp_path / "store"), Progress())


def test_the_paper_s_grid_is_planned_without_a_network(tmp_path: Path) -> None:
    began = time.process_time()
    result = planned("olmo-1b.yaml", tmp_path)
    assert time.process_time() - began < 5
    # 8 checkpoints x (base + 5 tunings x 3 seeds) = 128 models; 13 sets x 3 formats + 6 ranked = 45 questions each
    assert result.counts == {
        "cells": 5760 + 768, "done": 0, "missing": 0, "failed": 128 * 45, "refused": 128 * 2 * 3,
        "trainings": 8 * 5 * 3, "to train": 120,
    }  # fmt: skip
    assert sum(gap.cells for gap in result.gaps if gap.status == "refused") == 768
    assert all(gap.seconds for gap in result.gaps if gap.status != "refused")
    assert len(result.models) == 8
    assert all("1,176,764,416 weights" in line for line in result.models)


def test_every_data_set_is_listed_with_its_split_and_gate(tmp_path: Path) -> None:
    lines = {line.partition(",")[0]: line for line in planned("olmo-1b.yaml", tmp_path).questions}
    assert set(lines) == {*LABELLED, *RANKED, "qqp", "stsb"}
    here = "not here: not in the cache of data sets, and HF_HUB_OFFLINE=1 forbids asking the hub"
    assert lines["mnli_matched"] == (
        f"mnli_matched, validation_matched, 4 shots, choice: 1,000 items asked; {here}; declared: 9,815 items"
    )
    assert lines["xsum"].startswith("xsum, test, 4 shots, rouge_l: 1,000 items asked; not here: ")
    assert lines["hellaswag_mc"].startswith("hellaswag_mc, validation, 4 shots, choice_per_byte: ")
    assert lines["rte"].endswith(
        "277 items; the paper scores the training split, and offers 'contradiction', which is never gold"
    )
    for name, items in (("qqp", "390,965"), ("stsb", "1,379")):
        assert f"{name}, test, 4 shots, choice: {items} items; refused: every gold label " in lines[name]
    assert all("; declared: " in lines[name] for name in (*LABELLED, *RANKED))


def test_pythia_is_planned_without_a_network(tmp_path: Path) -> None:
    result = planned("pythia.yaml", tmp_path)
    # 3 sizes x 9 steps x (base + 3 seeds) = 108 models; 2 sets of the hub and 2 built-in tasks each
    assert result.counts == {
        "cells": 432, "done": 0, "missing": 216, "failed": 216, "refused": 0, "trainings": 81, "to train": 81,
    }  # fmt: skip
    assert "recall, exact: 500 items asked; gates passed (1,600 items)" in result.questions


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("none")))
        yield study(STUDIES / "olmo-1b.yaml", "report", csv=CSV)


def test_the_released_scores_are_read_with_the_study_s_contrasts(released: Study) -> None:
    contrasts = {c.name: c for c in released.contrasts}
    rows = {name: printed([v for _, v in contrasts[name].by_checkpoint], 4) for name in contrasts}
    assert tuple(step for step, _ in contrasts["learned"].by_checkpoint) == STEPS
    assert rows["learned"] == ".0478 .0479 .0041 .0096 .0297 .0267 .0211 -.0049"
    assert rows["learned once"] == ".0368 .0406 .0017 .0087 .0220 .0174 .0136 -.0019"
    assert rows["not learned"] == ".0618 .1487 .2857 .2968 .3035 .2971 .2644 .2903"
    ratios = {name: contrast.ratio for name, contrast in contrasts.items() if contrast.ratio}
    assert {name: printed([ratio.mean], 3) for name, ratio in ratios.items() if "->" in name} == {
        "class->gen": "-.615", "gen->class": ".003", "mnli->rte": ".540", "mnli->gpt3nli": ".906",
        "paws->qqp": "-.140", "paws->stsb": "-.233", "xsum->cnn": "-.055", "socialiqa->sciq": ".233",
        "socialiqa->tweetqa": "1.238",
    }  # fmt: skip
    assert "paws->qqp_validation" not in contrasts
    assert any("no pair of contrast paws->qqp_validation" in warning for warning in released.warnings)


def test_the_unlabelled_sets_are_refused_in_the_released_scores(released: Study) -> None:
    refused = {flag.where: flag.sentence for flag in released.flags if flag.gate == "unlabelled"}
    assert set(refused) == {"qqp", "stsb"}
    assert all(c.refused == (c.task in ("qqp", "stsb")) for c in released.changes)
    assert {c.name: c.refused for c in released.contrasts if c.refused} == {
        "paws->qqp": ("qqp",), "paws->stsb": ("stsb",),
    }  # fmt: skip


def _row(name: str, subset: str | None, n: int, split: str) -> dict[str, Any]:
    """A row with the columns that the published data set has."""

    def text(what: str) -> str:
        seed = sum(map(ord, what + split)) * 7 + n
        return f"{what} {split} {n} {WORDS[seed % 12]} {WORDS[(seed * 5 + n) % 12]} {WORDS[(seed * 3 + 2 * n) % 12]}"

    glue = {
        "mnli": {"premise": text("p"), "hypothesis": text("h"), "label": n % 3},
        "rte": {"sentence1": text("s"), "sentence2": text("t"), "label": n % 2},
        "qqp": {"question1": text("s"), "question2": text("t"), "label": n % 2},
        "stsb": {"sentence1": text("s"), "sentence2": text("t"), "label": n % 6 + 0.2},
    }
    right = {"text": [text("a"), text("b"), text("c")], "label": ["A", "B", "C"]}
    rows: dict[str, dict[str, Any]] = {
        "nyu-mll/glue": glue.get(str(subset), {}),
        "pietrolesci/gpt3_nli": {"text_a": text("p"), "text_b": text("h"), "label": n % 3},
        "google-research-datasets/paws": {"sentence1": text("s"), "sentence2": text("t"), "label": n % 2},
        "EdinburghNLP/xsum": {"document": text("d"), "summary": text("s")},
        "csebuetnlp/xlsum": {"text": text("d"), "summary": text("s"), "title": "", "url": ""},
        "abisee/cnn_dailymail": {"article": text("d"), "highlights": text("s")},
        "allenai/social_i_qa": {"context": text("c"), "question": text("q"), "answerA": text("a"), "answerB": text("b"),
                                "answerC": text("e"), "label": "1"},
        "allenai/sciq": {"question": text("q"), "support": "" if n % 2 else text("s"), "correct_answer": text("r"),
                         "distractor1": text("a"), "distractor2": text("b"), "distractor3": text("c")},
        "ucsbnlp/tweet_qa": {"Tweet": text("t"), "Question": text("q"), "Answer": [text("a"), text("b")]},
        "allenai/ai2_arc": {"question": text("q"), "choices": right, "answerKey": "ABC"[n % 3]},
        "allenai/openbookqa": {"question_stem": text("q"), "choices": right, "answerKey": "ABC"[n % 3]},
        "Rowan/hellaswag": {"activity_label": text("l"), "ctx": text("c"), "endings": right["text"],
                            "label": str(n % 3)},
        "google/boolq": {"question": text("q"), "passage": text("p"), "answer": n % 3 > 0},
    }  # fmt: skip
    return rows[name]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, subset: str | None, split: str, revision: str | None) -> list[dict[str, Any]]:
        return [_row(name, subset, n, split) for n in range(24)]

    monkeypatch.setattr(tables, "_load", load)


@pytest.mark.usefixtures("hub")
def test_every_task_can_be_built_from_its_published_columns() -> None:
    questions = design(STUDIES / "olmo-1b.yaml").questions
    assert {q.name: q.reason for q in questions if q.status != "missing"}.keys() == {"qqp", "stsb"}
    assert len(questions) == (13 + 2) * 3 + 6
    there = [q for q in questions if q.task is not None]
    assert all(q.shots == 4 and len(q.task.shots) == 4 for q in there if q.task)
    assert all(not {s.id for s in q.task.shots} & {i.id for i in q.items} for q in there if q.task)
    golds = {q.name: {item.gold for item in q.items} for q in there}
    assert golds["sciq_mc"] <= {0, 1, 2, 3}
    assert len(golds["sciq_mc"]) > 1
    assert golds["rte"] == golds["stsb_validation"] == golds["boolq_mc"] == {0, 1}


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "form", "expected"),
    [
        ("mnli_matched", "default", "### Input_1: {premise}\n ### Input_2: {hypothesis}\n ### Inference: "),
        ("paws", "instruct", "Let\u2019s compare the two sentences: Sentence_1: {sentence1} Sentence_2: {sentence2} "
                             "Are they paraphrasing?: "),
        ("xsum", "io", "{document}"),
        ("socialiqa", "default", "### Input: {context}\n ### Answer: Answer A: {answerA} Answer B: {answerB}Answer C: "
                                 "{answerC}\n ### Question: "),
    ],
)  # fmt: skip
def test_prompts_are_those_of_the_paper(name: str, form: str, expected: str) -> None:
    question = next(q for q in design(STUDIES / "olmo-1b.yaml").questions if (q.name, q.format) == (name, form))
    assert question.task is not None
    item = question.task.items[0]
    shape = next(f for f in question.task.formats if f.name == form)
    assert shape.fill(item) + shape.separator == expected.format(**item.columns)


def test_rows_to_tune_on_are_the_prompts_that_are_asked() -> None:
    recipe = runpy.run_path(str(STUDIES.parents[1] / "recipes" / "olmo_rows.py"))
    rows = {"premise": "Snow fell.", "hypothesis": "It was cold.", "label": 2}
    assert recipe["rows_of"](recipe["task_of"](recipe["SOURCES"]["mnli"], [rows])) == [
        {
            "prompt": "### Input_1: Snow fell.\n ### Input_2: It was cold.\n ### Inference:",
            "completion": " contradiction",
        }
    ]
    row = _row("allenai/sciq", None, 0, "train")
    (made,) = recipe["rows_of"](recipe["task_of"](recipe["SOURCES"]["sciq"], [row]))
    assert made["prompt"] == f"{row['support']}\nQuestion: {row['question']}\nAnswer:"
    assert made["completion"] == f" {row['correct_answer']}"
