"""SIFT on two gloo processes against one: DDP and FSDP2."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

from catchment.methods import SIFT, MethodTrainer, Sift
from tests.gloo import Gloo
from tests.tiny import VOCABULARY, tiny_llama

STEPS, LR, CLIP, SPARSITY = 5, 1e-2, 0.5, 0.02


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCABULARY, (4, 12), generator=generator) for _ in range(2 * STEPS)]


def train(model: Any, forward: Any, sift: Sift, part: slice, every: int) -> None:
    optimizer = sift.optimizer(torch.optim.AdamW, lr=LR, weight_decay=0.1)
    for number, batch in enumerate(batches(), 1):
        mine = batch[part]
        (forward(input_ids=mine, labels=mine).loss / every).backward()
        if number % every == 0:
            sift.clip_grad_norm_(CLIP)
            optimizer.step()
            optimizer.zero_grad()


def alone(settings: dict[str, Any], every: int) -> tuple[dict[str, list[int]], dict[str, torch.Tensor]]:
    model = tiny_llama(num_hidden_layers=2)
    sift = Sift(model, sparsity=SPARSITY, **settings)
    train(model, model, sift, slice(None), every)
    return {n: i.tolist() for n, i in sift.support().items()}, copy.deepcopy(model.state_dict())


def _ddp(rank: int, settings: dict[str, Any], every: int, out: str) -> None:
    model = tiny_llama(num_hidden_layers=2)
    if rank == 1:  # every process starts from the first one's weights
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.add_(1.0)
    sift = Sift(model, sparsity=SPARSITY, **settings)
    wrapped = nn.parallel.DistributedDataParallel(model)
    train(model, wrapped, sift, slice(2 * rank, 2 * rank + 2), every)
    content = {"support": {n: i.tolist() for n, i in sift.support().items()}, "weights": model.state_dict()}
    torch.save(content, Path(out) / f"{rank}.pt")


def sharded() -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = tiny_llama(num_hidden_layers=2)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _fsdp(rank: int, settings: dict[str, Any], every: int, out: str) -> None:
    model = sharded()
    sift = Sift(model, sparsity=SPARSITY, **settings)
    train(model, model, sift, slice(2 * rank, 2 * rank + 2), every)
    sift.save_pretrained(out, base_hash="0" * 64)
    torch.save({"k": sift.k}, Path(out) / f"{rank}.pt")


def _fsdp_resumes(rank: int, settings: dict[str, Any], every: int, out: str) -> None:
    """A straight run, and one whose optimizer goes through a file after ``every`` batches; both end here."""

    def go(model: Any, optimizer: Any, part: list[torch.Tensor]) -> None:
        for batch in part:
            mine = batch[2 * rank : 2 * rank + 2]
            model(input_ids=mine, labels=mine).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def begin() -> tuple[Any, Sift, Any]:
        model = sharded()
        sift = Sift(model, sparsity=SPARSITY, **settings)
        return model, sift, sift.optimizer(torch.optim.AdamW, lr=LR, weight_decay=0.1)

    data, path = batches(), Path(out) / f"optimizer-{rank}.pt"
    model, straight, optimizer = begin()
    go(model, optimizer, data)
    model, _, optimizer = begin()
    go(model, optimizer, data[:every])
    torch.save(optimizer.state_dict(), path)
    model, resumed, optimizer = begin()
    optimizer.load_state_dict(torch.load(path, weights_only=True))
    go(model, optimizer, data[every:])
    pairs = zip(resumed.targets, straight.targets, strict=True)
    same = torch.equal(resumed.values, straight.values) and all(torch.equal(a.local, b.local) for a, b in pairs)
    moved = float(resumed.delta.abs().max())
    support = {n: torch.equal(i, resumed.support()[n]) for n, i in straight.support().items()}
    torch.save({"same": same, "moved": moved, "support": support}, Path(out) / f"{rank}.pt")


def _trainer(rank: int, settings: dict[str, Any], every: int, out: str, world: int = 2) -> None:
    ids = torch.randint(3, VOCABULARY, (32, 8), generator=torch.Generator().manual_seed(5)).tolist()
    data = [{"input_ids": row, "labels": row} for row in ids]
    args = tf.TrainingArguments(
        out, max_steps=4, per_device_train_batch_size=4 // world, gradient_accumulation_steps=every, learning_rate=LR,
        report_to=[], use_cpu=True, seed=7, disable_tqdm=True, save_strategy="no", dataloader_pin_memory=False,
        logging_steps=1, max_grad_norm=CLIP, **({"ddp_backend": "gloo"} if world > 1 else {}),
    )  # fmt: skip
    sift = SIFT(sparsity=SPARSITY, **settings).attach(tiny_llama(num_hidden_layers=2))
    trainer = MethodTrainer(sift, args, train_dataset=data, data_collator=tf.default_data_collator)
    trainer.remove_callback(tf.PrinterCallback)
    trainer.train()
    logged = {key: [e[key] for e in trainer.state.log_history if key in e] for key in ("loss", "grad_norm")}
    support = {n: i.tolist() for n, i in sift.support().items()}
    torch.save({"support": support, "weights": sift.model.state_dict(), **logged}, Path(out) / f"{rank}-{world}.pt")


def _fsdp_on_one(rank: int, settings: dict[str, Any], every: int, out: str) -> None:
    """All that moves lies in the first process's rows of the embedding."""
    model = sharded()
    sift = Sift(model, sparsity=0.01, target_modules=["embed_tokens"], **settings)
    optimizer = sift.optimizer(torch.optim.AdamW, lr=LR)
    batch = torch.randint(3, 12, (2, 12), generator=torch.Generator().manual_seed(rank))
    norms = []
    for _ in range(3):
        model(input_ids=batch, labels=batch).loss.backward()
        norms.append(float(sift.clip_grad_norm_(CLIP)))
        optimizer.step()
        optimizer.zero_grad()
    torch.save({"k": sift.k, "norms": norms}, Path(out) / f"{rank}.pt")


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"scope": "global", "selection_batches": 2}], ids=str)
def test_ddp_equals_one_process(settings: dict[str, Any], every: int, tmp_path: Path, gloo: Gloo) -> None:
    support, weights = alone(settings, every)
    gloo.run(_ddp, settings, every, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert found[0]["support"] == found[1]["support"] == support
    for name, weight in weights.items():
        assert torch.equal(found[0]["weights"][name], found[1]["weights"][name])
        torch.testing.assert_close(found[0]["weights"][name], weight, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scope": "global", "selection_batches": 2},
        {"rule": "random"},
        {"rule": "magnitude"},
        {"rule": "random", "scope": "global"},
    ],
    ids=str,
)
def test_fsdp2_equals_one_process(settings: dict[str, Any], tmp_path: Path, gloo: Gloo) -> None:
    from catchment.models import Increment

    support, weights = alone(settings, 2)
    gloo.run(_fsdp, settings, 2, str(tmp_path))
    increment = Increment.read(tmp_path / "increment.safetensors")
    assert {n: i.tolist() for n, i in increment.support().items()} == support
    for name, index in increment.support().items():
        torch.testing.assert_close(increment.values[name], weights[name].flatten()[index], rtol=0, atol=2e-5)
    held = [torch.load(tmp_path / f"{rank}.pt", weights_only=True)["k"] for rank in (0, 1)]
    assert sum(held) == increment.k
    assert min(held) > 0


def test_fsdp2_clips_where_one_process_holds_all_entries(tmp_path: Path, gloo: Gloo) -> None:
    gloo.run(_fsdp_on_one, {}, 1, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["k"] > 0
    assert second["k"] == 0
    assert first["norms"] == second["norms"]
    assert min(first["norms"]) > 0


@pytest.mark.parametrize("settings", [{}, {"scope": "global", "selection_batches": 3}], ids=str)
@pytest.mark.parametrize("after", [2, 4])
def test_fsdp2_resumes_from_the_state_of_the_optimizer(
    settings: dict[str, Any], after: int, tmp_path: Path, gloo: Gloo
) -> None:
    """Bit for bit on each process; in one of the rows before the entries are chosen."""
    gloo.run(_fsdp_resumes, settings, after, str(tmp_path))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["same"]
        assert found["moved"] > 0.01
        assert all(found["support"].values())


@pytest.mark.parametrize("settings", [{}, {"scope": "global", "selection_batches": 3}], ids=str)
def test_the_trainer_under_ddp_equals_one_process(settings: dict[str, Any], tmp_path: Path, gloo: Gloo) -> None:
    """The same entries, weights, losses and gradient norms; the two processes agree bit for bit."""
    _trainer(0, settings, 2, str(tmp_path), world=1)
    gloo.run(_trainer, settings, 2, str(tmp_path))
    alone, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("0-1", "0-2", "1-2"))
    assert first["support"] == second["support"] == alone["support"]
    for name, weight in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], weight, rtol=0, atol=2e-5)
    assert len(alone["loss"]) == 4
    assert first["loss"] == pytest.approx(alone["loss"], abs=1e-4)
    assert first["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
