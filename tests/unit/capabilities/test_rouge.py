"""ROUGE-L against longest common subsequences counted by hand by the plain recursion, and by the library."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from catchment.capabilities import GENERATED_SCORERS, JUDGED_SCORERS, Item, Task, gates, task_from_dataset
from catchment.capabilities.rouge import rouge_l
from catchment.capabilities.scorers import answer_row, score_answer
from catchment.capabilities.sources import task_from_jsonl
from catchment.errors import GateError
from catchment.statistics import decide


@pytest.mark.parametrize(
    ("reference", "answer", "common", "lengths"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 6, (6, 6)),
        ("the cat sat on the mat", "The cat on a mat.", 4, (6, 5)),
        ("a b c d e f g", "g f e d c b a", 1, (7, 7)),
        ("police killed the gunman", "the gunman killed police", 2, (4, 4)),
        ("a b a b", "b a b a", 3, (4, 4)),
        ("one two three", "", 0, (3, 0)),
        ("running runs", "run run", 0, (2, 2)),  # no stemming
        ("don't 3.5", "don t 3 5", 4, (4, 4)),
    ],
)
def test_longest_common_subsequences_by_hand(
    reference: str, answer: str, common: int, lengths: tuple[int, int]
) -> None:
    expected = 0.0 if common == 0 else 2 * common / sum(lengths)  # 2 P R / (P + R) with P = L / a and R = L / r
    assert rouge_l([reference], answer) == pytest.approx(expected, abs=1e-12)


def common(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, by the plain recursion."""
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + common(a[:-1], b[:-1])
    return max(common(a[:-1], b), common(a, b[:-1]))


def test_random_texts_against_the_plain_recursion() -> None:
    rng = random.Random(0)
    for _ in range(50):
        a, b = (rng.choices("uvwxyz", k=rng.randrange(1, 8)) for _ in range(2))
        assert rouge_l([" ".join(a)], " ".join(b)) == pytest.approx(2 * common(a, b) / (len(a) + len(b)))


def test_the_best_reference_counts() -> None:
    task = Task("t", (Item("q", gold=("a b c d", "x y")), Item("r", gold="x z")), "rouge_l")
    assert score_answer(task, task.items[0], "x y") == (1.0, ())
    assert score_answer(task, task.items[1], "x y") == (0.5, ())


def test_numbers_are_those_of_the_library_that_lm_eval_uses() -> None:
    library = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    rng = random.Random(1)
    signs = [*"abcdeXYZ0123", "caf\u00e9", "don't", "3.5", "-", "\u6771", "\n", "U.S.", "_"]
    for _ in range(200):
        a, b = (" ".join(rng.choices(signs, k=rng.randrange(30))) for _ in range(2))
        assert rouge_l([a], b) == pytest.approx(library.score(a, b)["rougeL"].fmeasure, abs=1e-12)


def test_a_task_of_references(tmp_path: Any) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "Sum up: it rains.", "answer": ["rain", "wet"]}\n{"prompt": "Go.", "answer": "gone"}\n')
    task = task_from_jsonl(path, scorer="rouge_l")
    assert (task.max_new_tokens, task.stop, task.chance_level) == (60, (), 0.0)
    assert (task_from_jsonl(path).max_new_tokens, task_from_jsonl(path).stop) == (32, ("\n",))
    rows = [{"doc": "It rains.", "summary": "rain"}, {"doc": "It snows.", "summary": "snow"}]
    made = task_from_dataset(rows, prompt="{doc}", answer="summary", scorer="rouge_l", stop=["\n"])
    assert (made.scorer, made.stop, made.max_new_tokens) == ("rouge_l", ("\n",), 60)


def test_the_row_of_an_answer() -> None:
    task = Task("t", (Item("q", gold="rain falls"),), "rouge_l")
    row = answer_row(task, task.items[0], " rain\n", cut=True, gold_logprob=-3.0)
    assert (row.score, row.prediction, row.flags) == (pytest.approx(2 / 3), "rain", ("cut",))
    assert (row.logprobs, row.companion) == ((-3.0,), None)  # one of many that would do
    many = replace(task, items=tuple(Item(f"q{i}", gold=f"gold {i}", id=str(i)) for i in range(20)))
    rows = [replace(row, item=str(i), prediction=str(i)) for i in range(20)]
    assert gates.check_rows(many, rows) == ["20 of 20 answers were cut at the limit of 32 tokens"]


def test_verdicts_on_fractions() -> None:
    """A summary is rarely right word for word: half of the answers being so is not asked of a base."""
    assert "rouge_l" in GENERATED_SCORERS
    assert "rouge_l" not in JUDGED_SCORERS
    rng = random.Random(0)
    base = [0.2 + 0.1 * rng.random() for _ in range(400)]
    decision = decide(base, [b + 0.03 + 0.02 * rng.random() for b in base], chance=0.0, margin=0.02)
    assert (decision.admitted, decision.verdict) == (True, "gained")
    lost = decide(base, [b - 0.05 for b in base], chance=0.0)
    assert (lost.verdict, lost.flips_lost) == ("lost", 0)  # none crossed one half
    crossed = decide([0.6] * 50, [0.4] * 50, chance=0.0)
    assert (crossed.flips_lost, crossed.flips_gained) == (50, 0)


def test_an_unlabelled_reference() -> None:
    with pytest.raises(GateError, match="1 of 2 items have no label"):
        gates.check_task(Task("t", (Item("q", gold=()), Item("r", gold="b")), "rouge_l"))
