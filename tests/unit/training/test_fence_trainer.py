"""The fence around a real training of a tiny model in ``transformers.Trainer``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from catchment.capabilities import CONTINUE, Item, Task, evaluate
from catchment.methods import Full, MethodTrainer
from catchment.training.fence import Fence
from tests import tiny

torch.set_num_threads(1)
TOKENIZER = tiny.tiny_tokenizer()
NOUNS = ("cat", "dog", "garden", "stone", "door", "city", "book", "tree")
PLACES = Task(
    "places",
    tuple(Item(f"The {a} and {b} are", ("there", "here"), k % 2) for k, (a, b) in enumerate(
        (a, b) for a in NOUNS for b in NOUNS)),
    "choice", CONTINUE, "continue",
)  # fmt: skip


class Dense:
    """All weights, moved from where they are now."""

    def __init__(self, model: Any) -> None:
        self.model, self.base = model, [p.detach().clone() for p in model.parameters()]

    def scale(self, factor: float) -> None:
        with torch.no_grad():
            for weight, base in zip(self.model.parameters(), self.base, strict=True):
                weight.copy_(base + factor * (weight - base))

    def snapshot(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def restore(self, state: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for weight, kept in zip(self.model.parameters(), state, strict=True):
                weight.copy_(kept)


def rows_for(right: bool) -> list[dict[str, list[int]]]:
    found = []
    for item in PLACES.items:
        answer = item.choices[item.gold if right else 1 - item.gold]  # type: ignore[index, operator]
        ids = TOKENIZER(f"{item.prompt} {answer}")["input_ids"]
        found.append({"input_ids": ids, "labels": ids})
    return found


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


@pytest.fixture(scope="module")
def taught() -> Any:
    """A model that knows the task, so that it has something to lose."""
    model = tiny.tiny_llama(initializer_range=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batch = collate(rows_for(right=True))
    for _ in range(60):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert evaluate(model.eval(), PLACES, tokenizer=TOKENIZER, batch_tokens=2048).mean > 0.95
    return model.state_dict()


def trainer_of(folder: Path, taught: Any, fence: bool = True, right: bool = False, **settings: Any) -> Any:
    model = tiny.tiny_llama(initializer_range=0.1, attention_dropout=0.1)
    model.load_state_dict(taught)
    arguments: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 24, "per_device_train_batch_size": 16, "learning_rate": 2e-3,
        "lr_scheduler_type": "linear", "report_to": [], "use_cpu": True, "seed": 7, "save_strategy": "no",
        "disable_tqdm": True, "dataloader_pin_memory": False, "logging_steps": 4,
    }  # fmt: skip
    callback = Fence(
        PLACES, max_drop=0.1, move=Dense(model), eval_steps=8, patience=9, batch_tokens=2048, output_dir=folder / "f"
    )
    torch.manual_seed(3)
    trainer = tf.Trainer(
        model, tf.TrainingArguments(**{**arguments, **settings}), train_dataset=rows_for(right),  # type: ignore[arg-type]
        data_collator=collate, processing_class=TOKENIZER, callbacks=[callback] if fence else [],
    )  # fmt: skip
    return trainer, callback


def test_a_harmful_training_ends_inside(tmp_path: Path, taught: Any) -> None:
    before = evaluate(trainer_of(tmp_path, taught)[0].model, PLACES, tokenizer=TOKENIZER, batch_tokens=2048).mean
    plain, _ = trainer_of(tmp_path / "plain", taught, fence=False)
    plain.train()
    lost = before - evaluate(plain.model, PLACES, tokenizer=TOKENIZER, batch_tokens=2048).mean
    trainer, fence = trainer_of(tmp_path, taught)
    trainer.train()
    drop = before - evaluate(trainer.model, PLACES, tokenizer=TOKENIZER, batch_tokens=2048).mean
    assert lost > 0.2
    assert drop <= 0.05 + 1e-9
    assert any(look.factor < 1 for look in fence.history)
    assert fence.history[-1].step == trainer.state.global_step
    assert trainer.model.training
    entries = [e for e in trainer.state.log_history if "fence/places_drop" in e]
    assert [e["fence/factor"] for e in entries] == [look.factor for look in fence.history]


def test_a_harmless_training_is_the_same_bit_for_bit(tmp_path: Path, taught: Any) -> None:
    pairs = []
    for fence in (False, True):
        pairs.append(trainer_of(tmp_path, taught, fence=fence, right=True, learning_rate=1e-5))
        pairs[-1][0].train()
    assert {look.outcome for look in pairs[1][1].history} == {"inside"}
    for (name, a), (_, b) in zip(*(t.model.named_parameters() for t, _ in pairs), strict=True):
        assert torch.equal(a, b), name


def test_a_real_training_resumes_bit_for_bit(tmp_path: Path, taught: Any) -> None:
    settings = {"save_strategy": "steps", "save_steps": 10}
    alone, first = trainer_of(tmp_path / "a", taught, **settings)
    alone.train()
    again, second = trainer_of(tmp_path / "a", taught, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-10"))
    assert second.history == first.history
    assert any(look.factor < 1 for look in first.history if look.step < 10)
    for (name, a), (_, b) in zip(alone.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_resumed_after_the_last_checkpoint_nothing_is_looked_at_again(tmp_path: Path, taught: Any) -> None:
    """The last look and its pull came before that checkpoint: the same weights, the same looks, no step more."""
    settings = {"save_strategy": "steps", "save_steps": 8, "max_steps": 8, "lr_scheduler_type": "constant"}
    plain, _ = trainer_of(tmp_path, taught, **settings)

    def method_trainer() -> tuple[MethodTrainer, Fence]:
        model = tiny.tiny_llama(initializer_range=0.1, attention_dropout=0.1)
        model.load_state_dict(taught)
        tuning = Full().attach(model)
        fence = Fence(
            PLACES, max_drop=0.1, move=tuning, eval_steps=8, patience=9, batch_tokens=2048, output_dir=tmp_path / "f"
        )
        return MethodTrainer(
            tuning, plain.args, train_dataset=plain.train_dataset, data_collator=collate, processing_class=TOKENIZER,
            callbacks=[fence],
        ), fence  # fmt: skip

    alone, first = method_trainer()
    alone.train()
    again, second = method_trainer()
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 8
    assert second.history == first.history
    assert first.history[-1].factor < 1
    for (name, a), (_, b) in zip(alone.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
