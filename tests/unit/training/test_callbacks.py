"""With a real ``transformers.Trainer`` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from catchment.capabilities import CONTINUE, Item, Task, evaluate
from catchment.errors import InputError, StoreError
from catchment.methods import Full, MethodTrainer
from catchment.training import CapabilityCallback
from tests import tiny

torch.set_num_threads(1)
TOKENIZER = tiny.tiny_tokenizer()
NOUNS = ("cat", "dog", "garden", "stone", "door", "city", "book", "tree")
PAIRS = [(a, b) for a in NOUNS for b in NOUNS]
TRAINED = Task(
    "places", tuple(Item(f"The {a} and {b} are", ("there", "here"), k % 2) for k, (a, b) in enumerate(PAIRS)), "choice",
    CONTINUE, "continue",
)  # fmt: skip
ANSWERED = Task("sums", tuple(Item(f"{k} + 1", gold=str(k + 1)) for k in range(12)), "exact", max_new_tokens=3, stop=())


class Texts(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, texts: list[str]) -> None:
        self.rows = [TOKENIZER(text)["input_ids"] for text in texts]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int) -> dict[str, list[int]]:
        return {"input_ids": self.rows[k], "labels": self.rows[k]}


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


def texts(*, right: bool = True) -> Texts:
    """Texts that teach the task's answers, or the opposite ones."""
    return Texts([f"{i.prompt} {i.choices[i.gold if right else 1 - i.gold]}" for i in TRAINED.items])  # type: ignore[operator, index, misc]


def trainer_of(folder: Path, callbacks: list[Any], *, steps: int = 6, data: Any = None, **settings: Any) -> tf.Trainer:
    torch.manual_seed(3)
    model = settings.pop("model", None) or tiny.tiny_llama(attention_dropout=0.1)
    arguments: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": steps, "per_device_train_batch_size": 16, "learning_rate": 2e-3,
        "lr_scheduler_type": "constant", "logging_steps": 2, "report_to": [], "use_cpu": True, "seed": 7,
        "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    return tf.Trainer(
        model,
        tf.TrainingArguments(**{**arguments, **settings}),
        train_dataset=data or texts(),
        data_collator=collate,
        processing_class=TOKENIZER,
        callbacks=callbacks,
    )


@pytest.fixture(scope="module")
def taught() -> Any:
    """A model that knows the task, so that it has something to lose."""
    model = tiny.tiny_llama(initializer_range=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    data = texts()
    batch = collate([data[k] for k in range(len(data))])
    for _ in range(60):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert evaluate(model.eval(), TRAINED, tokenizer=TOKENIZER, batch_tokens=2048).mean > 0.95
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def knowing(taught: Any) -> Any:
    model = tiny.tiny_llama(initializer_range=0.1)
    model.load_state_dict(taught)
    return model


def test_training_is_the_same_bit_for_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = trainer_of(tmp_path, [])
    alone.train()
    modes: list[bool] = []

    class Modes(tf.TrainerCallback):
        def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
            modes.append(all(m.training for m in model.modules()))

    watch = CapabilityCallback([TRAINED, ANSWERED], eval_steps=2, limit=12)
    watched = trainer_of(tmp_path, [watch, Modes()])
    watched.train()
    for (name, a), (_, b) in zip(alone.model.named_parameters(), watched.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (alone, watched)]
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]
    assert modes == [True] * 6
    assert [e.step for e in watch.history] == [0, 2, 4, 6]
    assert "step 0 to 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, [0, 5]),
        ({"eval_steps": 2}, [0, 2, 4, 5]),
        ({"eval_steps": 2, "eval_on_start": False}, [2, 4, 5]),
        ({"eval_on_start": False}, [5]),
        ({"eval_steps": 99}, [0, 5]),
    ],
)
def test_evaluations_are_at_the_right_steps(tmp_path: Path, settings: dict[str, Any], steps: list[int]) -> None:
    watch = CapabilityCallback(TRAINED, limit=4, batch_tokens=512, **settings)
    trainer_of(tmp_path, [watch], steps=5).train()
    assert [e.step for e in watch.history] == steps
    assert watch.history[0].decisions == {}
    assert all(e.decisions.keys() == {"places"} for e in watch.history[1:])


def test_scores_are_those_of_evaluate_on_one_fixed_subset(tmp_path: Path) -> None:
    watch = CapabilityCallback([TRAINED], limit=20, seed=5, batch_tokens=512)
    trainer = trainer_of(tmp_path, [watch])
    before = evaluate(trainer.model, TRAINED, tokenizer=TOKENIZER, limit=20, seed=5, batch_tokens=512)
    trainer.train()
    after = evaluate(trainer.model, TRAINED, tokenizer=TOKENIZER, limit=20, seed=5, batch_tokens=512)
    assert [e.scores["places"].rows for e in watch.history] == [before.rows, after.rows]
    assert watch.results["places"].interval.estimate == pytest.approx(after.mean - before.mean)


def test_the_log_has_scores_and_drops(tmp_path: Path) -> None:
    watch = CapabilityCallback([TRAINED, ANSWERED], eval_steps=3, limit=8, batch_tokens=512)
    trainer = trainer_of(tmp_path, [watch])
    trainer.train()
    entries = [e for e in trainer.state.log_history if "capability/places" in e]
    assert [e["step"] for e in entries] == [0, 3, 6]
    assert "capability/places_drop" not in entries[0]
    for entry, found in zip(entries, watch.history, strict=True):
        assert entry["capability/sums"] == found.scores["sums"].mean
        assert entry["capability/places"] == found.scores["places"].mean
    first, last = (e["capability/places"] for e in (entries[0], entries[-1]))
    assert entries[-1]["capability/places_drop"] == pytest.approx(first - last)
    json.dumps(trainer.state.log_history)


def test_attached_it_reaches_the_integrations(tmp_path: Path) -> None:
    """An integration is a callback with ``on_log``, as those of ``report_to`` are."""
    seen: list[tuple[int, set[str]]] = []

    class Integration(tf.TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "capability/places" in logs:
                seen.append((state.global_step, set(logs)))

    watch = CapabilityCallback(TRAINED, limit=8, batch_tokens=512)
    trainer = trainer_of(tmp_path, [Integration(), watch], steps=2)
    watch.attach(trainer).train()
    assert [step for step, _ in seen] == [0, 2]
    assert {"capability/places", "capability/places_drop"} <= seen[1][1]
    entries = [e for e in trainer.state.log_history if "capability/places" in e]
    assert [e["step"] for e in entries] == [0, 2]


def test_a_loss_stops_the_training(tmp_path: Path, taught: Any, capsys: pytest.CaptureFixture[str]) -> None:
    watch = CapabilityCallback(
        TRAINED, eval_steps=10, limit=None, max_drop=0.1, on_drop="stop", batch_tokens=2048, output_dir=tmp_path / "w"
    )
    trainer = trainer_of(
        tmp_path, [watch], steps=60, model=knowing(taught), data=texts(right=False), learning_rate=5e-3
    )
    trainer.train()
    assert trainer.state.global_step < 60
    assert trainer.state.global_step == watch.history[-1].step
    assert watch.results["places"].interval.high < -0.1
    assert all(e.decisions["places"].interval.high >= -0.1 for e in watch.history[1:-1])
    assert watch.stopped is not None
    assert f"lost by step {watch.history[-1].step}: places -" in watch.stopped
    assert "Training was stopped" in capsys.readouterr().out


@pytest.mark.parametrize("max_drop", [None, 0.1])
def test_a_loss_of_a_weak_base_stops_the_training_too(tmp_path: Path, taught: Any, max_drop: float | None) -> None:
    """29 of 64 right of three choices, 45%: above chance, and below what "kept" needs."""
    choices = ("there", "here", "away")
    items = [Item(i.prompt, choices, i.gold if k < 29 else 2) for k, i in enumerate(TRAINED.items)]
    weak = Task("places", tuple(items), "choice", CONTINUE, "continue")
    watch = CapabilityCallback(
        weak, eval_steps=10, limit=None, max_drop=max_drop, on_drop="stop", batch_tokens=2048, table=False
    )
    trainer = trainer_of(
        tmp_path, [watch], steps=60, model=knowing(taught), data=texts(right=False), learning_rate=5e-3
    )
    trainer.train()
    assert watch.history[0].scores["places"].mean == pytest.approx(29 / 64, abs=0.05)
    assert not watch.results["places"].admitted
    assert trainer.state.global_step < 60
    assert "places -" in str(watch.stopped)


def test_a_loss_is_warned_of(tmp_path: Path, taught: Any) -> None:
    watch = CapabilityCallback(TRAINED, eval_steps=40, limit=None, batch_tokens=2048)
    trainer = trainer_of(
        tmp_path, [watch], steps=40, model=knowing(taught), data=texts(right=False), learning_rate=5e-3
    )
    with pytest.warns(UserWarning, match=r"lost by step 40: places -0\.\d+ \[-"):
        trainer.train()
    assert trainer.state.global_step == 40
    assert watch.stopped is None


def test_nothing_is_said_without_a_loss(tmp_path: Path, taught: Any) -> None:
    watch = CapabilityCallback(TRAINED, eval_steps=5, limit=None, on_drop="stop", batch_tokens=2048)
    trainer = trainer_of(tmp_path, [watch], steps=10, model=knowing(taught), learning_rate=1e-5)
    trainer.train()
    assert trainer.state.global_step == 10
    assert watch.stopped is None


def test_looking_often_widens_the_intervals(tmp_path: Path) -> None:
    levels = []
    for eval_steps in (None, 3, 1):
        watch = CapabilityCallback([TRAINED, ANSWERED], eval_steps=eval_steps, limit=4, batch_tokens=512)
        trainer_of(tmp_path, [watch], steps=6).train()
        levels.append(watch.results["places"].interval.level)
    assert levels == pytest.approx([1 - 0.05 / 2, 1 - 0.05 / 4, 1 - 0.05 / 12])


def test_a_resumed_training_keeps_its_start(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    watch = CapabilityCallback(TRAINED, eval_steps=2, limit=8, batch_tokens=512, output_dir=tmp_path / "watch")
    trainer_of(tmp_path / "run", [watch], steps=4, **settings).train()

    def resumed(**given: Any) -> CapabilityCallback:
        again = CapabilityCallback(TRAINED, eval_steps=2, batch_tokens=512, **{"limit": 8, **given})
        trainer_of(tmp_path / "run", [again], steps=4, **settings).train(
            resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2")
        )
        return again

    again = resumed(output_dir=tmp_path / "watch")
    assert [e.step for e in again.history] == [0, 2, 4]
    assert [e.scores["places"].rows for e in again.history] == [e.scores["places"].rows for e in watch.history]
    assert again.results == watch.results
    there = {"output_dir": tmp_path / "watch"}
    for given in ({}, {**there, "limit": 6}, {**there, "system": "Be brief."}, {**there, "chat_template": "none"}):
        with pytest.warns(UserWarning, match="resumes at step 2 and output_dir holds no earlier evaluation"):
            other = resumed(**given)
        assert [e.step for e in other.history] == [2, 4]


def test_a_stop_survives_a_kill(tmp_path: Path, taught: Any) -> None:
    """Killed after the checkpoint of the step at which it stopped; from an earlier checkpoint it stops there again."""
    settings: dict[str, Any] = {
        "save_strategy": "steps", "save_steps": 10, "steps": 40, "data": texts(right=False), "learning_rate": 5e-3,
    }  # fmt: skip

    def watch(on_drop: Any = "stop") -> CapabilityCallback:
        return CapabilityCallback(
            TRAINED, eval_steps=10, limit=None, max_drop=0.1, on_drop=on_drop, batch_tokens=2048, table=False,
            output_dir=tmp_path / "w",
        )  # fmt: skip

    class Killed(tf.TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if control.should_training_stop:
                raise KeyboardInterrupt

    first = watch()
    killed = trainer_of(tmp_path, [first, Killed()], model=knowing(taught), **settings)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    step = killed.state.global_step
    assert first.stopped is not None
    assert step < 40
    after = str(tmp_path / f"checkpoint-{step}")
    again = watch()
    trainer = MethodTrainer(
        Full().attach(knowing(taught)), killed.args, train_dataset=killed.train_dataset, data_collator=collate,
        processing_class=TOKENIZER, callbacks=[again],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=after)
    assert trainer.state.global_step == step
    assert (again.stopped, again.history) == (first.stopped, first.history)
    plain = watch()  # whose loop looks after a step
    follower = trainer_of(tmp_path, [plain], model=knowing(taught), **settings)
    follower.train(resume_from_checkpoint=after)
    assert follower.state.global_step == step + 1
    goes_on = watch("warn")
    with pytest.warns(UserWarning, match="lost by step") as warned:
        trainer_of(tmp_path, [goes_on], model=knowing(taught), **settings).train(resume_from_checkpoint=after)
    assert goes_on.stopped is None
    assert goes_on.history[-1].step == 40
    assert str(warned[0].message) == first.stopped  # what was found before the kill is said again


def test_other_processes_resume_as_the_main_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from catchment.training import callbacks as module

    monkeypatch.setattr(module.processes, "agreed", lambda value: ([0, 4], "lost by step 4"))
    watch = CapabilityCallback(TRAINED, limit=4, eval_steps=2, on_drop="stop", output_dir=tmp_path / "nowhere")
    args = tf.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    state = tf.TrainerState(max_steps=8, global_step=4, is_world_process_zero=False)
    control = tf.TrainerControl()
    watch.on_train_begin(args, state, control, model=None)
    assert control.should_training_stop
    watch.on_train_end(args, state, control, model=None)
    assert [e.step for e in watch.history] == [0, 4]


def test_without_a_table_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch = CapabilityCallback(TRAINED, limit=4, batch_tokens=512, table=False)
    trainer = trainer_of(tmp_path, [watch], steps=1)
    trainer.remove_callback(tf.PrinterCallback)
    trainer.train()
    assert len(watch.history) == 2
    assert capsys.readouterr().out == ""


def test_only_the_main_process_evaluates(tmp_path: Path) -> None:
    watch = CapabilityCallback(TRAINED, limit=4, eval_steps=1, on_drop="stop", output_dir=tmp_path / "watch")
    args = tf.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    state = tf.TrainerState(max_steps=2, is_world_process_zero=False)
    control = tf.TrainerControl()
    watch.on_train_begin(args, state, control, model=None)
    state.global_step = 1
    watch.on_step_end(args, state, control, model=None)
    assert not control.should_training_stop
    assert state.log_history == []
    assert not (tmp_path / "watch").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_steps": 0}, "eval_steps 0: expected at least 1"),
        ({"limit": 0}, "limit 0: expected at least 1"),
        ({"on_drop": "halt"}, "on_drop 'halt': expected 'warn' or 'stop'"),
        ({"max_drop": 5}, r"max_drop 5: expected a drop in \[0, 1\)"),
        ({"tasks": []}, "expected at least one Task"),
        ({"tasks": ["recall"]}, "expected at least one Task"),
        ({"tasks": [TRAINED, TRAINED]}, "expected distinct names"),
        ({"tasks": Task("a", (Item("x"),), "agreement")}, "agreement needs the base in memory"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CapabilityCallback(**{"tasks": TRAINED, **settings})


def test_errors_when_training_begins(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, [CapabilityCallback(TRAINED, limit=4)])
    trainer.callback_handler.processing_class = None
    with pytest.raises(InputError, match="no tokenizer; expected CapabilityCallback"):
        trainer.train()
    (tmp_path / "file").write_text("")
    watch = CapabilityCallback(TRAINED, limit=4, batch_tokens=512, output_dir=tmp_path / "file")
    with pytest.raises(StoreError, match=r"cannot write .*file: "):
        trainer_of(tmp_path, [watch]).train()
