"""Rows to train on of which nothing is learned are refused, those that were cut are told."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from catchment.errors import GateError
from catchment.training import Encoded, check_completions, encode_rows, read_rows
from tests import tiny


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.tiny_tokenizer()


def encoded(tokenizer: Any, completion: str, max_length: int) -> Encoded:
    rows = read_rows([{"prompt": "the cat", "completion": " sat"}, {"prompt": "the cat", "completion": completion}])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return encode_rows(rows, tokenizer, max_length=max_length)


def test_whole_completions_pass(tokenizer: Any) -> None:
    assert check_completions(encoded(tokenizer, " sat on the mat", 200)) == []


def test_cut_completions_are_counted(tokenizer: Any) -> None:
    whole = encoded(tokenizer, " sat on the mat" * 3, 200)
    cut = encoded(tokenizer, " sat on the mat" * 3, 12)
    assert (cut.truncated, whole.cut_tokens) == (1, 0)
    assert cut.trained_tokens + cut.cut_tokens == whole.trained_tokens
    assert check_completions(cut) == [
        f"1 of 2 rows to train on were cut at max_length: {cut.cut_tokens} of {whole.trained_tokens} tokens to learn "
        "are lost, and these rows do not teach where to stop"
    ]


def test_a_row_without_a_learned_token_is_refused() -> None:
    examples = [{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [5, 6], "labels": [-100, -100]}]
    with pytest.raises(GateError, match=r"1 of 2 rows to train on \(first: row 2\) have no token left to learn"):
        check_completions(Encoded(examples, 4, 1, 1, "prompt"))
    with pytest.raises(GateError, match="1 of 1 rows"):
        check_completions(Encoded([{"input_ids": [], "labels": []}], 0, 0, 0, "prompt"))


def test_texts_to_classify_keep_their_label() -> None:
    examples = [{"input_ids": [5], "labels": 0}]
    assert check_completions(Encoded(examples, 1, 1, 0, "classification")) == []
    assert check_completions(Encoded(examples, 1, 1, 1, "classification")) == ["1 of 1 texts were cut at max_length"]
