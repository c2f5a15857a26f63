"""Tasks that are described before their rows are read, and data sets that cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from catchment.capabilities import describe, gates, hub, task_from_dataset
from catchment.errors import CatchmentError, InputError, TaskError, UnavailableError
from catchment.models import no_hub, sources

CONTENT: dict[str, Any] = {"dataset": "owner/nli", "prompt": "{p}", "choices": ["no", "yes"], "gold": "label"}


def test_what_is_known_without_rows() -> None:
    said = describe({**CONTENT, "shot_split": "train", "formats": [{"name": "a", "template": "{p} and {q}"}]}, ".", "x")
    assert (said.name, said.scorer, said.shots, said.has_pool) == ("nli", "choice", 0, True)
    assert [form.name for form in said.formats] == ["a"]
    summary = describe({"dataset": "s", "prompt": "d", "answer": "a", "scorer": "rouge_l", "shots": 2}, ".", "x")
    assert (summary.scorer, summary.shots, summary.has_pool, len(summary.formats)) == ("rouge_l", 2, False, 3)
    of_lm_eval = describe({"lm_eval": "sciq", "num_fewshot": 5}, ".", "x")
    assert (of_lm_eval.name, of_lm_eval.shots, of_lm_eval.formats) == ("sciq", 5, ())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"promt": "x"}, "unknown field 'promt'.*Did you mean 'prompt'"),
        ({"file": "x.jsonl"}, "it has file, dataset; expected exactly one"),
        ({"dataset": 3}, "'dataset' is 3; expected a text"),
        ({"split": 3}, "'split' is 3; expected a text"),
        ({"scorer": "rouge"}, "scorer 'rouge' cannot be used on rows.*Did you mean 'rouge_l'"),
        ({"scorer": "rouge_l"}, "scorer 'exact' on rows takes answer; got choices, gold"),
        ({"gold": None}, "scorer 'choice' on rows takes choices and gold"),
        ({"gold_above": "x"}, "gold_above is 'x'; expected a number"),
        ({"shuffle": 1}, "shuffle is 1; expected true or false"),
        ({"shots": "4"}, "shots is '4'; expected a whole number"),
        ({"style": "chat"}, "'style' is 'chat'; expected 'ask' or 'continue'"),
        ({"max_new_tokens": 0}, "'max_new_tokens' is 0; expected a whole number from 1"),
        ({"formats": [{"name": "a"}, {"name": "a"}]}, "expected distinct names"),
        ({"formats": [{"name": "a", "template": "no column"}]}, "expected '{prompt}' exactly once"),
    ],
)
def test_what_is_wrong_whatever_the_rows_are(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CatchmentError, match=said):
        describe({**CONTENT, **changes}, ".", "here")


def test_a_data_set_that_cannot_be_had_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[bool] = []

    def load(*_: object, **__: object) -> None:
        asked.append(datasets.config.HF_HUB_OFFLINE)
        raise ConnectionError("not built")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "no_hub", lambda: "the hub did not answer (ConnectError)")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(UnavailableError, match="data set 'owner/nli': not in the cache of data sets, and the hub") as e:
        describe(CONTENT, ".", "here").task()
    assert e.value.reason == "not in the cache of data sets, and the hub did not answer (ConnectError)"
    assert asked == []
    (tmp_path / "owner___nli").mkdir()
    with pytest.raises(TaskError, match="ConnectionError: not built"):
        describe(CONTENT, ".", "here").task()
    assert asked == [True]  # the cache alone
    assert datasets.config.HF_HUB_OFFLINE is False


def test_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[str] = []

    class Session:
        def head(self, url: str, timeout: float) -> None:
            asked.append(url)
            raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(sources, "offline", lambda: False)
    sources._silence.cache_clear()
    try:
        assert [no_hub(), no_hub()] == ["the hub did not answer (ConnectionError)"] * 2
        assert len(asked) == 1
    finally:
        sources._silence.cache_clear()


def test_choices_in_an_order_that_the_prompt_decides() -> None:
    rows = [{"q": f"question {n}", "r": f"right {n}", "a": f"wrong {n}", "b": f"bad {n}"} for n in range(300)]
    given: dict[str, Any] = {"prompt": "q", "choices": ["r", "a", "b"], "gold": "r"}
    plain, mixed = task_from_dataset(rows, **given), task_from_dataset(rows, **given, shuffle=True)
    assert all(item.choices[int(str(item.gold))] == f"right {n}" for n, item in enumerate(mixed.items))
    counts = [sum(item.gold == place for item in mixed.items) for place in range(3)]
    assert all(70 < count < 130 for count in counts)  # of 300 items 100 each are expected, standard deviation 8
    assert task_from_dataset(rows[::-1], **given, shuffle=True).items[0] == mixed.items[-1]
    with pytest.raises(CatchmentError, match="the right answer is '0' for all 300 items"):
        gates.check_task(plain)
    gates.check_task(mixed)
    with pytest.raises(InputError, match="shuffle is True; expected true or false, beside choices and gold"):
        task_from_dataset(rows, prompt="q", answer="r", shuffle=True)
