"""``fit``: what it trains equals a training by hand, a killed one goes on, and the model is given back bit for bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from catchment.errors import CatchmentError, InputError, NonFiniteError, TrainingArgumentsError
from catchment.methods import (
    L2SP,
    SIFT,
    FitOptions,
    Full,
    LoRA,
    MethodTrainer,
    encode_for,
    fit,
    training_arguments,
    try_out,
)
from catchment.models import Increment, LoadedModel, load
from catchment.training import CapabilityCallback, Collator, pack, read_rows
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.unit.methods.test_trainer import Kill, same, weights

torch.set_num_threads(1)
SUMS = [{"prompt": f"What is {a} + {b}?", "completion": f" {a + b}"} for a in range(6) for b in range(4)]
METHODS = {"sift": SIFT(sparsity=0.05), "lora": LoRA(lora_dropout=0.1), "full": Full(), "l2-sp": L2SP(strength=0.5)}


def base_of(**settings: Any) -> LoadedModel:
    return load(tiny_llama(attention_dropout=0.1, **settings), tokenizer=tiny_tokenizer())


def options_of(folder: Path, **options: Any) -> FitOptions:
    given = {"learning_rate": 3e-3, "max_steps": 6, "batch_size": 4, "max_length": 64, "seed": 7}
    return FitOptions(folder / "out", **{**given, **options})


def modes(model: Any) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_as_by_hand_and_gives_the_base_back(name: str, tmp_path: Path) -> None:
    method, options = METHODS[name], options_of(tmp_path, accumulation=2)
    base = base_of()
    base.model.train()
    base.model.model.layers[0].eval()
    before, as_found = weights(base.model), modes(base.model)
    with fit(base, read_rows(SUMS), method, options) as fitted:
        ours = weights(fitted.model)
        assert (fitted.steps, len(fitted.losses)) == (6, 6)
        trainable = fitted.trainable
    assert same(weights(base.model), before)
    assert modes(base.model) == as_found
    assert all(p.requires_grad and p.grad is None for p in base.model.parameters())

    twin = base_of()
    twin.model.train()
    twin.model.model.layers[0].eval()
    tuning = method.attach(twin.model, seed=7)
    examples = encode_for(twin, read_rows(SUMS), 64, options.prompt_options).examples
    trainer = MethodTrainer(
        tuning, training_arguments("cpu", options, 6), train_dataset=examples, data_collator=Collator(twin.tokenizer)
    )
    trainer.remove_callback(tf.PrinterCallback)
    trainer.train()
    assert same(ours, weights(tuning.model))
    assert trainable == sum(p.numel() for p in tuning.parameters())


def test_rows_are_packed_and_named(tmp_path: Path) -> None:
    rows = read_rows(SUMS)
    base, options = base_of(), options_of(tmp_path, packing=True)
    with fit(base, rows, Full(), options) as fitted:
        ours, path = weights(fitted.model), fitted.save()
    blocks = pack(encode_for(base, rows, 64, options.prompt_options).examples, 64)
    with fit(base, blocks, Full(), options_of(tmp_path / "again")) as fitted:
        assert same(ours, weights(fitted.model))
    recipe = json.loads((path / "tuning.json").read_text(encoding="utf-8"))["recipe"]
    assert recipe == {
        "base": base.card.name, "method": "full", "data": "rows", "data_fingerprint": rows.fingerprint, "seed": 7,
        "steps": 6, "learning_rate": 3e-3,
    }  # fmt: skip


def test_what_is_saved_is_what_stood_there(tmp_path: Path) -> None:
    base = base_of()
    with fit(base, read_rows(SUMS), Full(), options_of(tmp_path, recipe={"method": "mine"})) as fitted:
        ours, path = weights(fitted.model), fitted.save()
    saved = load(str(path), device="cpu")  # with its tokenizer
    assert same(weights(saved.model), ours)
    assert json.loads((path / "tuning.json").read_text(encoding="utf-8"))["recipe"]["method"] == "mine"
    with fit(base, read_rows(SUMS), SIFT(sparsity=0.05), options_of(tmp_path / "sift")) as fitted:
        ours, path = weights(fitted.model), fitted.save(tmp_path / "elsewhere")
    Increment.from_pretrained(path).apply(base.model)
    assert same(weights(base.model), ours)


@pytest.mark.parametrize("name", ["sift", "lora", "full"])
def test_a_killed_training_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Killed within step 6, after a checkpoint at 4; whoever asks again gets what an uninterrupted one gives."""
    method, rows = METHODS[name], read_rows(SUMS)
    options = options_of(tmp_path / "a", save_steps=2)
    with fit(base_of(), rows, method, options) as straight:
        expected = weights(straight.model)
    base, options = base_of(), options_of(tmp_path / "b", save_steps=2)
    before = weights(base.model)
    with pytest.raises(KeyboardInterrupt), fit(base, rows, method, options, callbacks=lambda _: [Kill(5)]):
        pass
    assert same(weights(base.model), before)
    folder = tmp_path / "b" / "out" / "checkpoints" / "checkpoint-4"
    (folder / "seconds.json").write_text('{"seconds": 1000.0}', encoding="utf-8")
    with fit(base, rows, method, options) as resumed:
        assert same(weights(resumed.model), expected)
    assert (resumed.steps, resumed.tokens, resumed.losses) == (6, straight.tokens, straight.losses)
    assert (straight.earlier, resumed.earlier) == (0.0, 1000.0)
    assert 1000 < resumed.seconds < 1600


def test_the_base_is_given_back_when_the_block_fails(tmp_path: Path) -> None:
    base = base_of()
    before, as_found = weights(base.model), modes(base.model)
    moved = []

    def fail(tuned: Any) -> None:
        moved.append(not same(weights(tuned), before))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), fit(base, read_rows(SUMS), Full(), options_of(tmp_path)) as fitted:
        fail(fitted.model)
    assert moved == [True]
    assert same(weights(base.model), before)
    assert modes(base.model) == as_found


class Spoil(tf.TrainerCallback):
    """Puts a NaN into a weight after this step."""

    def __init__(self, model: Any, step: int) -> None:
        self.model, self.step = model, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            next(self.model.parameters()).data[0, 0] = math.nan


def test_a_loss_that_is_no_number(tmp_path: Path) -> None:
    base = base_of()
    before = weights(base.model)
    options = options_of(tmp_path, learning_rate=1e30, training_args={"warmup_steps": 0})
    said = pytest.raises(NonFiniteError, match=r"step 2.* The last good state is in '.*last-good'")
    with said, fit(base, read_rows(SUMS), Full(), options):
        raise AssertionError
    assert (tmp_path / "out" / "last-good" / "model.safetensors").is_file()
    assert same(weights(base.model), before)


def test_weights_that_are_no_numbers_at_the_end(tmp_path: Path) -> None:
    base = base_of()
    before = weights(base.model)
    said = pytest.raises(NonFiniteError, match=r"after step 6 weight .*far below 0\.003\. Nothing was saved")
    with said, fit(base, read_rows(SUMS), Full(), options_of(tmp_path), callbacks=lambda t: [Spoil(t.model, 6)]):
        raise AssertionError
    assert same(weights(base.model), before)


def test_a_watch_logs_through_the_trainer(tmp_path: Path) -> None:
    from tests.integration.test_compare import make_task

    watch = CapabilityCallback(make_task("echo", 20), table=False)
    with fit(base_of(), read_rows(SUMS), Full(), options_of(tmp_path), callbacks=lambda _: [watch]) as fitted:
        assert watch._trainer is fitted.trainer
    assert [e.step for e in watch.history] == [0, 6]


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 6), ({"batch_size": 7}, 4), ({"batch_size": 7, "accumulation": 2}, 2), ({"epochs": 2.5}, 15),
     ({"max_steps": 3, "epochs": 9.0}, 3), ({"epochs": 0.01}, 1)],
)  # fmt: skip
def test_steps_are_those_that_the_trainer_makes(tmp_path: Path, options: dict[str, Any], steps: int) -> None:
    given = options_of(tmp_path, **{"max_steps": None, **options})
    with fit(base_of(), read_rows(SUMS), LoRA(), given) as fitted:
        assert fitted.steps == given.steps(len(SUMS)) == steps


REFUSED = [
    ({"learning_rate": 0.0}, "learning_rate 0.0: expected a number above 0"),
    ({"epochs": math.nan}, "epochs nan"),
    ({"batch_size": 0}, "batch_size 0: expected at least 1"),
    ({"max_length": 1}, "max_length 1: expected at least 2"),
    ({"weight_decay": -1.0}, "weight_decay"),
    ({"training_args": {"num_train_epochs": 3}}, "give it as epochs= of FitOptions"),
    ({"training_args": {"optim": "best"}}, "training_args optim=best: "),
    ({"training_args": {"adam_beta1": 2}}, "beta"),
    ({"training_args": {"lr_scheduler_kwargs": {"a": 1}}}, "unexpected keyword argument 'a'"),
    ({"training_args": {"fsdp": True}}, "fsdp or deepspeed with sift: only full and lora"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_options_that_cannot_work_are_refused_and_the_base_is_as_it_was(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    base = base_of()
    before = weights(base.model)
    examples = encode_for(base, read_rows(SUMS), 64, options_of(tmp_path).prompt_options).examples
    with pytest.raises(CatchmentError, match=said.replace("(", r"\(")):
        try_out(base, examples, SIFT(sparsity=0.05), options_of(tmp_path, **options))
    assert same(weights(base.model), before)
    assert all(p.requires_grad for p in base.model.parameters())
    assert not (tmp_path / "out").exists()


def test_what_was_refused_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(TrainingArgumentsError) as caught:
        training_arguments("cpu", options_of(tmp_path, training_args={"learning_rat": 1}), 6)
    assert "learning_rat" in caught.value.reason
    assert str(caught.value) == f"training_args learning_rat=1: {caught.value.reason}"


def test_a_trial_leaves_no_trace(tmp_path: Path) -> None:
    base = base_of()
    before, as_found = weights(base.model), modes(base.model)
    examples = encode_for(base, read_rows(SUMS), 64, options_of(tmp_path).prompt_options).examples
    try_out(base, examples, SIFT(sparsity=0.05), options_of(tmp_path))
    assert same(weights(base.model), before)
    assert modes(base.model) == as_found
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="selection_batches 7: this tune has 6 batches"):
        try_out(base, examples, SIFT(selection_batches=7), options_of(tmp_path))


def test_rows_longer_than_the_context_are_said(tmp_path: Path) -> None:
    base = base_of(max_position_embeddings=64)
    said = pytest.warns(UserWarning, match="max_length 100 is lowered to the model's context of 64")
    with said, fit(base, read_rows(SUMS), LoRA(), options_of(tmp_path, max_length=100, max_steps=1)):
        pass
