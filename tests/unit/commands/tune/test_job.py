"""Opening a tune: what is learned, what is set aside for what, methods and arguments from words."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from catchment.capabilities import Task
from catchment.commands.tune.job import GUARD, PILOT, make_method, open_tune, own_task, settings_told
from catchment.commands.tune.settings import TuneSettings
from catchment.commands.tune.setup import protected_method, training_arguments
from catchment.errors import InputError
from catchment.measuring import Progress
from catchment.methods import METHODS, SIFT, LoRA, make_trainer
from catchment.options import parse_pairs
from catchment.runs import processes
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
    (found,) = job.protected
    parts = [{item.id for item in part.items} for part in (found.pilot, found.guard, found.judged)]
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
    (found,) = opened(protect=(preferred("echo", 600),), limit=50).protected
    assert (len(found.pilot.items), len(found.judged.items)) == (PILOT, 50)
    assert 48 <= len(found.guard.items) <= GUARD


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
    task = own_task(job)
    assert task is not None
    assert {item.prompt for item in task.items} <= {row["prompt"] for row in job.held.rows}
    assert len(opened(held_out=7).held) == 7
    assert own_task(opened()) is None


# ------------------------------------------------------------------------------------------------- words to settings


def test_every_method_by_its_name() -> None:
    for name, kind in METHODS.items():
        assert type(make_method(TuneSettings("m", "d", method=name))) is kind
    found = make_method(TuneSettings("m", "d", sparsity=0.05, method_args=("rule=random", "target-modules=q_proj,v")))
    assert found == SIFT(sparsity=0.05, rule="random", target_modules=("q_proj", "v"))
    found = make_method(TuneSettings("m", "d", method="lora", method_args=("r=4",)))
    assert isinstance(found, LoRA)
    assert found.r == 4


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


# ------------------------------------------------------------------------------------------------- steps and arguments


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 5), ({"batch_size": 7}, 6), ({"batch_size": 7, "accumulation": 2}, 3), ({"epochs": 2.5}, 13),
     ({"max_steps": 3, "epochs": 9.0}, 3), ({"epochs": 0.01}, 1)],
)  # fmt: skip
def test_steps_are_those_that_the_trainer_makes(tmp_path: Path, options: dict[str, Any], steps: int) -> None:
    job = opened(**options, out=tmp_path / "out")
    args = training_arguments(job, "plain")
    tuning = job.method.attach(job.loaded.model, seed=0)
    trainer = make_trainer(job.loaded, tuning, args, job.examples)
    loader = trainer.get_train_dataloader()
    per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    made = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    tuning.remove()
    assert job.steps == made == steps


def test_tokens_are_counted_for_what_a_batch_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch trains on every token once, in rows or in packed blocks; with twice the processes a step does twice."""
    rows, packed = opened(), opened(packing=True, max_length=64)
    assert len(packed.examples) < len(rows.examples)
    for job in (rows, packed):
        assert job.tokens_per_row * len(job.examples) == job.encoded.tokens
    assert packed.tokens_per_row > 2 * rows.tokens_per_row
    long = opened(max_steps=6, batch_size=4, accumulation=2)
    alone = long.tokens
    assert alone == pytest.approx(6 * 8 * long.tokens_per_row)
    monkeypatch.setattr(processes, "count", lambda: 2)
    assert long.tokens == 2 * alone


def test_a_protected_training_takes_the_same_steps(tmp_path: Path) -> None:
    job = opened(max_steps=6, out=tmp_path / "out", protect=(preferred("echo", 240),))
    assert training_arguments(job, "plain").max_steps == training_arguments(job, "protected").max_steps == 6


def test_given_arguments_win(tmp_path: Path) -> None:
    pairs = ("warmup_steps=0", "lr_scheduler_type=constant", "save_total_limit=3")
    args = training_arguments(opened(out=tmp_path / "out", training_args=pairs), "plain")
    assert (args.warmup_steps, args.lr_scheduler_type, args.save_total_limit) == (0, "constant", 3)


def test_fsdp_with_sift_names_what_to_use(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"with sift: only full and lora .* torchrun"):
        training_arguments(opened(out=tmp_path / "out", training_args=("fsdp=true",)), "plain")


def test_fsdp_with_a_base_in_memory_names_what_to_use(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a model in memory cannot be given back .* by its name or folder"):
        training_arguments(opened(out=tmp_path / "out", method="full", training_args=("fsdp=true",)), "plain")


def pulled(method: str) -> Any:
    return opened(method=method, pull=0.1, protect=(preferred("echo", 240),))


@pytest.mark.parametrize(("method", "name"), [("sift", "sift"), ("full", "l2-sp")])
def test_a_pull_towards_the_base(method: str, name: str) -> None:
    found = protected_method(pulled(method))
    assert found.name == name
    if method == "sift":
        assert found.decay == "base"  # type: ignore[attr-defined]
    else:
        assert found.strength == 0.1  # type: ignore[attr-defined]
    assert protected_method(opened(method=method)) == METHODS[method]()
    with pytest.raises(InputError, match="only sift and full"):
        protected_method(pulled("lora"))


def test_what_the_record_tells_of_the_settings() -> None:
    told = settings_told(opened(sparsity=0.05, learning_rate=0.5, batch_size=3))
    assert (told["sparsity"], told["rule"], told["learning_rate"], told["batch_size"]) == (0.05, "gradient", 0.5, 3)


def test_one_class_too_many() -> None:
    from tests.integration.test_tune import tiny_bert

    rows = [{"text": f"{k} is", "label": k % 3} for k in range(12)]
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification(tiny_bert().config)
    with pytest.raises(InputError, match=r"has 3 classes \(0, 1, 2\) and the model's head is for 2"):
        opened(rows, model=model)
