"""``MethodTrainer`` with replay: its gradient, its share in the logged loss, and what it holds."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from catchment.methods.dense import SAM, Full
from catchment.training import Collator, Replay
from tests.tiny import VOCABULARY, tiny_llama
from tests.unit.methods.test_trainer import TOKENIZER, examples, trainer_of, weights

torch.set_num_threads(1)


def replay_for(model: Any, per_batch: float, weight: float = 2.0) -> Replay:
    rows = torch.randint(3, VOCABULARY, (12, 6), generator=torch.Generator().manual_seed(9)).tolist()
    texts = [{"input_ids": row, "labels": [-100, -100, *row[2:]]} for row in rows]
    return Replay(model, texts, Collator(TOKENIZER), per_batch=per_batch, weight=weight)


def elsewhere() -> Any:
    """A model whose distributions are others than those of ``tiny_llama()``."""
    model, generator = tiny_llama(), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def after_one_step(folder: Path, replay: Replay | None, **settings: Any) -> dict[str, torch.Tensor]:
    trainer = trainer_of(
        Full(), folder, model=tiny_llama(), options={"replay": replay}, max_steps=1, optim="sgd",
        learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0.0, weight_decay=0.0, **settings,
    )  # fmt: skip
    trainer.train()
    return weights(trainer.tuning.model)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_replay_adds_its_gradient_once_per_step(tmp_path: Path, accumulation: int) -> None:
    """A step of SGD at rate 1 with replay less one without is minus the gradient of the mean divergence over the rows
    beside the step's batches, at the weights before the step."""
    replay = replay_for(elsewhere(), 4 / accumulation)
    settings = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    without, along = (after_one_step(tmp_path, r, **settings) for r in (None, replay))
    model = tiny_llama()
    rows = [row for batch in range(accumulation) for row in replay.rows(batch)]
    assert len(rows) == 4
    replay.loss(model, rows).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(without[name] - along[name], p.grad, rtol=1e-3, atol=1e-6)
    assert max(float(p.grad.abs().max()) for p in model.parameters()) > 1e-3  # type: ignore[union-attr]


def test_replay_holds_to_the_base(tmp_path: Path) -> None:
    ends = {}
    for weight in (0.0, 1.0):
        replay = replay_for(tiny_llama(), 2.0, weight) if weight else None
        trainer = trainer_of(Full(), tmp_path, model=tiny_llama(), options={"replay": replay}, max_steps=24)
        trainer.train()
        ends[weight] = float(replay_for(tiny_llama(), 2.0, 1.0).loss(trainer.tuning.model, range(12)).detach())
    assert ends[1.0] < 0.6 * ends[0.0], ends


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("method", [Full(), SAM()], ids=["full", "sam"])
def test_replay_is_logged_beside_the_loss(tmp_path: Path, accumulation: int, method: Any) -> None:
    """At rate 0 every step has the loss of the same weights: the logged ones differ by replay's share."""
    replay = replay_for(elsewhere(), 2.0)
    logs = []
    for held in (None, replay):
        trainer = trainer_of(
            method, tmp_path, model=tiny_llama(), options={"replay": held}, max_steps=4, learning_rate=0.0,
            logging_steps=2, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        trainer.train()
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    without, along = logs
    assert len(along) == 2
    assert not any("replay_loss" in entry for entry in without)
    each = [float(replay.loss(tiny_llama(), replay.rows(batch)).detach()) for batch in range(4 * accumulation)]
    for number, (one, two) in enumerate(zip(without, along, strict=True)):
        share = fmean(each[2 * number * accumulation : 2 * (number + 1) * accumulation])
        assert two["replay_loss"] == pytest.approx(share, rel=1e-4)
        assert two["loss"] - two["replay_loss"] == pytest.approx(one["loss"], abs=1e-4)


def test_an_evaluation_has_no_replay_in_its_loss(tmp_path: Path) -> None:
    base = elsewhere()
    found = []
    for replay in (None, replay_for(base, 2.0)):
        options = {"eval_dataset": examples(6), "replay": replay}
        found.append(trainer_of(Full(), tmp_path, model=tiny_llama(), options=options).evaluate()["eval_loss"])
    assert found[0] == found[1]
