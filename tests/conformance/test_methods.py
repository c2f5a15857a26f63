"""One table over every method, dtype and kind of model: what :mod:`catchment.methods.protocol` promises."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from catchment.methods.dense import L2SP, SAM, Full, WiSEFT
from catchment.methods.lora import LoRA
from catchment.methods.protocol import Method, Tuning
from catchment.methods.sift import SIFT
from catchment.methods.targets import target_weights
from catchment.methods.trainer import MethodTrainer
from catchment.models import effective_weights, named_weights, weights_hash
from tests.tiny import CAUSAL, VOCABULARY, tiny_llama

torch.set_num_threads(1)


METHODS: dict[str, Callable[[], Any]] = {
    "full": Full,
    "l2-sp": lambda: L2SP(strength=0.5),
    "sam": lambda: SAM(target_modules="all-linear"),
    "wise-ft": lambda: WiSEFT(target_modules="all-linear"),
    "lora": LoRA,
    "sift": lambda: SIFT(sparsity=0.05),
}
DENSE = ("full", "l2-sp")  # nothing is frozen


def tiny_bert() -> Any:
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.3, num_labels=3,
    )  # fmt: skip
    return tf.BertForSequenceClassification(config).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "llama": CAUSAL["llama"],
    "gpt2": CAUSAL["gpt2"],
    "pythia": CAUSAL["pythia"],
    "bert": tiny_bert,
    "tied": lambda: tiny_llama(tie_word_embeddings=True),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def examples(classes: int) -> list[dict[str, Any]]:
    ids = torch.randint(3, VOCABULARY, (16, 8), generator=torch.Generator().manual_seed(5)).tolist()
    return [{"input_ids": row, "labels": row[0] % classes if classes else row} for row in ids]


class FrozenGradients(tf.TrainerCallback):
    """Looks for gradients of frozen weights at every step."""

    def __init__(self) -> None:
        self.steps, self.found = 0, set[str]()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        frozen = ((name, p) for name, p in kwargs["model"].named_parameters() if not p.requires_grad)
        self.found |= {name for name, p in frozen if p.grad is not None}


@dataclass
class Row:
    """One row of the table, with a training of four steps that others are compared with."""

    name: str
    method: Method
    kind: str
    dtype: torch.dtype
    folder: Path
    tuned: dict[str, torch.Tensor]
    logits: torch.Tensor
    losses: list[float]
    watch: FrozenGradients

    def model(self) -> Any:
        return MODELS[self.kind]().to(self.dtype)

    def loaded(self) -> Tuning:
        tuning = self.method.attach(self.model(), seed=1)
        tuning.load_pretrained(self.folder / "tuned")
        return tuning


def train(method: Method, model: Any, folder: Path, **settings: Any) -> tuple[Tuning, list[float], FrozenGradients]:
    resume = settings.pop("resume", None)
    tuning = method.attach(model, seed=1)
    given: dict[str, Any] = {
        "max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-2,
        "weight_decay": 0.01, "lr_scheduler_type": "linear", "logging_steps": 1, "save_strategy": "no", "report_to": [],
        "use_cpu": True, "seed": 7, "disable_tqdm": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    args = tf.TrainingArguments(str(folder), **{**given, **settings})
    watch = FrozenGradients()
    classes = getattr(model.config, "num_labels", 0) if "Classification" in type(model).__name__ else 0
    trainer = MethodTrainer(tuning, args, train_dataset=examples(classes), callbacks=[watch])
    trainer.remove_callback(tf.PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return tuning, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], watch


def weights(model: Any) -> dict[str, torch.Tensor]:
    """What the model computes with, adapters merged."""
    return {name: tensor.detach().clone() for name, tensor in effective_weights(model).items()}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    modes = {module: module.training for module in model.modules()}
    out = model.eval()(input_ids=torch.arange(3, 19).reshape(2, 8)).logits.float()
    for module, mode in modes.items():
        module.training = mode
    return out


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Any:
    """Each training collects garbage; without what the imports left, that takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", params=[(m, k, d) for m in METHODS for k in MODELS for d in DTYPES], ids="-".join)
def row(request: Any, tmp_path_factory: Any) -> Row:
    name, kind, dtype = request.param
    method = METHODS[name]()
    folder = tmp_path_factory.mktemp("row")
    model = MODELS[kind]().to(DTYPES[dtype])
    base_hash = weights_hash(model)
    tuning, losses, watch = train(method, model, folder, save_strategy="steps", save_steps=2)
    tuning.save_pretrained(folder / "tuned", base_hash=base_hash, recipe={"seed": 1})
    return Row(
        name, method, kind, DTYPES[dtype], folder, weights(tuning.model), logits(tuning.model), losses, watch
    )  # fmt: skip


def test_saves_and_loads(row: Row) -> None:
    """On a fresh base the weights are the same bits, and so is what the model says."""
    tuning = row.loaded()
    assert differing(weights(tuning.model), row.tuned) == []
    assert torch.equal(logits(tuning.model), row.logits)


def test_resumes_and_repeats(row: Row, tmp_path: Path) -> None:
    """A second run, and one that starts anew at the checkpoint of step 2, end in the same bits."""
    again, losses, _ = train(row.method, row.model(), tmp_path)
    assert losses == row.losses
    assert differing(weights(again.model), row.tuned) == []
    resumed, losses, _ = train(row.method, row.model(), tmp_path, resume=str(row.folder / "checkpoint-2"))
    assert losses == row.losses
    assert differing(weights(resumed.model), row.tuned) == []


def test_merges(row: Row) -> None:
    merged = row.loaded().merge()
    assert isinstance(merged, tf.PreTrainedModel)
    off = torch.linalg.vector_norm(logits(merged) - row.logits)
    move = torch.linalg.vector_norm(logits(row.model()) - row.logits)
    assert off <= (1e-4 if row.dtype == torch.float32 else 0.2) * move  # bf16: the merged weights are rounded
    assert differing(weights(merged), row.tuned) == []


def test_removes_without_a_trace(row: Row) -> None:
    model = row.model()
    first = next(iter(named_weights(model)))
    model.get_parameter(first).requires_grad_(False)
    next(model.modules()).training = True  # unlike the modules inside it
    base, flags = weights(model), {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    tuning = row.method.attach(model, seed=1)
    tuning.load_pretrained(row.folder / "tuned")
    tuning.save_pretrained(row.folder / "again")
    assert differing(weights(tuning.model), base) != []
    removed = tuning.remove()
    assert removed is model
    assert differing(weights(removed), base) == []
    assert {name: p.requires_grad for name, p in removed.named_parameters()} == flags
    assert {name: module.training for name, module in removed.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_moves_its_targets_and_nothing_else(row: Row) -> None:
    model = row.model()
    targets, base = list(target_weights(model)), weights(model)
    moved = differing(base, row.tuned)
    assert {targets[0], targets[-1]} <= set(moved)
    if row.name in DENSE:
        assert set(moved) >= set(targets)
    else:
        assert set(moved) <= set(targets)
    assert row.watch.steps == 4
    assert row.watch.found == set()


def test_scales(row: Row) -> None:
    base = weights(row.model())
    tuning = row.loaded()
    tuning.scale(1.0)
    close = {"rtol": 1e-6, "atol": 1e-7} if row.dtype == torch.float32 else {"rtol": 2**-7, "atol": 1e-4}
    for name, tensor in weights(tuning.model).items():
        torch.testing.assert_close(tensor, row.tuned[name], **close)
    tuning.scale(0.5)
    middle = weights(tuning.model)
    name = next(iter(target_weights(row.model())))
    wanted = base[name].double() + 0.5 * (row.tuned[name].double() - base[name].double())
    close = {"rtol": 1e-5, "atol": 1e-6} if row.dtype == torch.float32 else {"rtol": 2**-7, "atol": 2e-3}
    torch.testing.assert_close(middle[name].double(), wanted, **close)
    tuning.scale(0.0)
    assert differing(weights(tuning.model), base) == []
