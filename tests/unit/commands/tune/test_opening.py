"""Opening a tune: what is learned, what is set aside for what, methods from words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from transformers import TrainingArguments

from catchment.capabilities import Task
from catchment.commands.tune.opening import make_method, open_tune
from catchment.commands.tune.protection import GUARD, PILOT
from catchment.commands.tune.settings import TuneSettings
from catchment.errors import InputError
from catchment.measuring import Progress
from catchment.methods import METHODS, SIFT, LoRA
from catchment.options import parse_pairs
from tests import tiny

SUMS = [{"prompt": f"What is {a} + {b}? Answer:", "completion": f" {a + b}"} for a in range(8) for b in range(5)]


def opened(rows: Any = SUMS, *, model: Any = None, tokenizer: Any = None, **options: Any) -> Any:
    settings = TuneSettings(
        model or tiny.tiny_llama(), rows, **{"tasks": ("none",), "held_out": 0.0, "max_length": 200, **options}
    )
    return open_tune(settings, Progress(), tokenizer or tiny.tiny_tokenizer())


def preferred(name: str, n: int) -> Task:
    """Items of which every base knows the answer: the gold of each is what the tiny model itself prefers."""
    from tests.integration.test_compare import make_task
    from tests.integration.test_scan import solved

    return solved(tiny.tiny_llama(), make_task(name, n))


# ------------------------------------------------------------------------------------------------- what is learned


def test_the_loss_is_on_completions_only() -> None:
    job = opened()
    tokenizer = job.loaded.tokenizer
    for row, example in zip(SUMS, job.examples, strict=True):
        learned = [label for label in example["labels"] if label != -100]
        assert tokenizer.decode(learned) == f"{row['completion']}</s>"
        assert example["labels"][-len(learned) :] == learned == example["input_ids"][-len(learned) :]
    assert job.encoded.trained_tokens == sum(label != -100 for e in job.examples for label in e["labels"])


def test_the_loss_is_on_what_the_assistant_says() -> None:
    rows = [
        {"messages": [
            {"role": "user", "content": "hello"}, {"role": "assistant", "content": "Paris"},
            {"role": "user", "content": "and"}, {"role": "assistant", "content": "Rome"},
        ]}
    ]  # fmt: skip
    job = opened(rows, tokenizer=tiny.tiny_tokenizer(chat=True))
    learned = [label for label in job.examples[0]["labels"] if label != -100]
    assert job.loaded.tokenizer.decode(learned) == "Paris</s>Rome</s>"


def test_text_is_learned_whole_but_for_its_first_token() -> None:
    job = opened([{"text": tiny.TEXT[0]}])
    assert job.examples[0]["labels"] == [-100, *job.examples[0]["input_ids"][1:]]


def test_packing_keeps_every_token() -> None:
    wide, packed = opened(), opened(packing=True, max_length=128)
    assert len(packed.examples) < len(wide.examples) / 3
    one, two = ([i for e in job.examples for i in e["input_ids"]] for job in (wide, packed))
    assert sorted(one) == sorted(two)
    one, two = (sum(label != -100 for e in job.examples for label in e["labels"]) for job in (wide, packed))
    assert one == two


# ------------------------------------------------------------------------------------------------- what is set aside


def test_items_of_a_protected_task_serve_one_purpose_each() -> None:
    task = preferred("echo", 240)
    job = opened(protect=(task,), limit=None)
    (echo,) = job.protected
    parts = [{item.id for item in part.items} for part in (echo.pilot, echo.guard, echo.judged)]
    assert len(parts[0]) == 24
    assert 48 <= len(parts[1]) <= 96
    assert len(parts[2]) == 120
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    again = opened(protect=(task.with_items(tuple(reversed(task.items))),), limit=None).protected[0]
    assert [{i.id for i in p.items} for p in (again.pilot, again.judged)] == [parts[0], parts[2]]
    other = opened(protect=(task,), limit=None, seed=1).protected[0]
    assert {i.id for i in other.judged.items} != parts[2]


def test_large_parts_are_cut_and_the_limit_is_for_the_judged() -> None:
    (echo,) = opened(protect=(preferred("echo", 600),), limit=50).protected
    assert (len(echo.pilot.items), len(echo.judged.items)) == (PILOT, 50)
    assert 48 <= len(echo.guard.items) <= GUARD


def test_a_protected_task_needs_items_and_a_base_that_can_do_it() -> None:
    with pytest.raises(InputError, match=r"has 30 items; expected at least"):
        opened(protect=(preferred("echo", 30),))
    task = preferred("echo", 240)
    wrong = tuple(dataclasses.replace(item, gold=(item.gold + 1) % 3) for item in task.items)  # type: ignore[operator]
    with pytest.raises(InputError, match="Protect tasks that the base can do"):
        opened(protect=(task.with_items(wrong),))


def test_classification_has_nothing_to_protect() -> None:
    rows = [{"text": f"{k} is", "label": k % 2} for k in range(12)]
    with pytest.raises(InputError, match="--protect needs a language model"):
        opened(rows, protect=(preferred("echo", 240),))


def test_held_out_rows_are_not_trained_on() -> None:
    job = opened(held_out=0.25)
    assert (len(job.train), len(job.held)) == (30, 10)
    assert not {row["prompt"] for row in job.train.rows} & {row["prompt"] for row in job.held.rows}
    assert job.own is not None
    assert {item.prompt for item in job.own.items} <= {row["prompt"] for row in job.held.rows}
    assert len(opened(held_out=7).held) == 7
    assert opened().own is None


# ------------------------------------------------------------------------------------------------- words to settings


def test_every_method_by_its_name() -> None:
    for name, kind in METHODS.items():
        assert type(make_method(TuneSettings("m", "d", method=name))) is kind
    method = make_method(TuneSettings("m", "d", sparsity=0.05, method_args=("rule=random", "target-modules=q_proj,v")))
    assert method == SIFT(sparsity=0.05, rule="random", target_modules=("q_proj", "v"))
    method = make_method(TuneSettings("m", "d", method="lora", method_args=("r=4",)))
    assert isinstance(method, LoRA)
    assert method.r == 4


@pytest.mark.parametrize(
    ("pair", "value"),
    [("weight_decay=1e-3", 1e-3), ("bf16=true", True), ("report_to=wandb,trackio", ("wandb", "trackio")),
     ("run_name=a=b", "a=b"), ("optim = sgd", "sgd"), ("warmup-steps=7", 7)],
)  # fmt: skip
def test_pairs(pair: str, value: Any) -> None:
    assert list(parse_pairs((pair,), TrainingArguments, "training-args", "").values()) == [value]


@pytest.mark.parametrize(
    ("pair", "said"),
    [("r", "expected key=value"), ("ranks=3", "no setting 'ranks'"), ("r=much", "expected r to be a whole number"),
     ("r=[", "cannot be read"), ("r=", "expected r to be a whole number")],
)  # fmt: skip
def test_bad_pairs(pair: str, said: str) -> None:
    with pytest.raises(InputError, match="--method-args") as caught:
        parse_pairs((pair,), LoRA, "method-args", "of lora")
    assert said in str(caught.value)


def test_the_later_pair_wins() -> None:
    assert parse_pairs(("r=3", "r=5"), LoRA, "method-args", "") == {"r": 5}


# ------------------------------------------------------------------------------------------------- what does not fit


def test_one_class_too_many() -> None:
    from tests.integration.test_tune import tiny_bert

    rows = [{"text": f"{k} is", "label": k % 3} for k in range(12)]
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification(tiny_bert().config)
    with pytest.raises(InputError, match=r"has 3 classes \(0, 1, 2\) and the model's head is for 2"):
        opened(rows, model=model)
