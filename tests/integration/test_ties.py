"""``compare`` of a tied base with a tune that cuts the tie: drift, room and the recovered folder see the move."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

import catchment
from catchment.capabilities import Task
from catchment.commands.compare.record import Comparison
from catchment.commands.compare.recover import halves
from catchment.models import load, save_model
from catchment.records import Room
from tests import tiny
from tests.integration.test_compare import home, make_task
from tests.integration.test_scan import solved

__all__ = ["home"]
torch.set_num_threads(1)


def tied() -> Any:
    return tiny.tiny_llama(tie_word_embeddings=True)


@pytest.fixture(scope="module")
def task() -> Task:
    return solved(tied(), make_task(n=96))


def noisy(weight: torch.Tensor, scale: float = 0.35) -> nn.Parameter:
    generator = torch.Generator().manual_seed(2)
    return nn.Parameter(weight.detach() + scale * torch.randn(weight.shape, generator=generator))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied base; an adapter that trains its head whole; the same tune as a folder; a LoRA on the embedding."""
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("ties")
    base = tied()
    full = copy.deepcopy(base)
    full.lm_head.weight = noisy(base.lm_head.weight)
    full.config.tie_word_embeddings = False
    for name, model in (("base", base), ("full", full)):
        model.save_pretrained(root / name)
        tiny.tiny_tokenizer().save_pretrained(root / name)
    options: dict[str, Any] = {"r": 1, "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head = get_peft_model(tied(), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], **options))
        head.base_model.model.lm_head.modules_to_save["default"].weight = noisy(base.lm_head.weight)
        head.save_pretrained(root / "head")
        torch.manual_seed(3)
        lora = LoraConfig(target_modules=["embed_tokens"], init_lora_weights=False, lora_alpha=0.6, **options)
        get_peft_model(tied(), lora).save_pretrained(root / "embedding")
    return root


def compare(base: str, tuned: str, task: Task, **options: Any) -> Comparison:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        return catchment.compare(base, tuned, tasks=[task], text="none", formats=1, **options)


def scores(model: Any, task: Task) -> dict[str, float]:
    loaded = load(model.eval(), tokenizer=tiny.tiny_tokenizer())
    return {row.item: row.score for row in catchment.evaluate(loaded, task).rows}


def tunes(folder: Path) -> dict[str, tuple[str, str]]:
    base, full = str(folder / "base"), str(folder / "full")
    return {
        "adapter on the head": (base, f"{base}+{folder / 'head'}"),
        "full tune that unties": (base, full),
        "full tune that ties": (full, base),
        "LoRA on the embedding": (base, f"{base}+{folder / 'embedding'}"),
    }


def measured_between_the_two_heads(room: Room, task: Task) -> None:
    """The drops on the way are those of a model whose head was set by hand."""
    model, own = tied(), scores(tied(), task)
    start = model.lm_head.weight.detach()
    for node in room.nodes:
        model.lm_head.weight = nn.Parameter(start + node.scale * (noisy(start).detach() - start))
        there = scores(model, task)
        drop = sum(own[item] - there[item] for item in own) / len(own)
        assert node.drop.estimate == pytest.approx(drop, abs=1.5 / len(own))


@pytest.mark.parametrize(
    ("kind", "room"),
    [
        ("adapter on the head", True),
        ("full tune that unties", False),
        ("full tune that ties", False),
        ("LoRA on the embedding", False),
    ],
)
def test_the_move_is_seen(kind: str, room: bool, folder: Path, task: Task, tmp_path: Path) -> None:
    base, tuned = tunes(folder)[kind]
    comparison = compare(base, tuned, task, room=room, recover=tmp_path / "out")
    assert comparison.drift is not None
    changed = {row.name: row.distance for row in comparison.drift.tensors if row.changed}
    assert list(changed) == ["model.embed_tokens.weight" if "embedding" in kind else "lm_head.weight"]
    assert not [w for w in comparison.warnings if "no room" in w or "no drift" in w]
    if room:
        assert [one.task for one in comparison.rooms] == [task.name]
        way = comparison.rooms[0]
        assert way.alpha * way.subspace.size**0.5 == pytest.approx(comparison.drift.distance, rel=1e-4)
        measured_between_the_two_heads(way, task)
    recovered = comparison.recovered
    assert recovered is not None
    plain = scores(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out"), task)
    reported = recovered.tasks[0].tuned
    half = halves(task, dict.fromkeys(i.id for i in task.items), 0)[1]  # type: ignore[arg-type]
    assert recovered.tasks[0].n == len(half)
    assert reported == pytest.approx(sum(plain[item.id] for item in half) / len(half), abs=1e-9)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_recovery_from_a_base_under_an_adapter(folder: Path, task: Task, tmp_path: Path) -> None:
    plain, adapter = tunes(folder)["adapter on the head"]
    comparison = compare(adapter, plain, task, room=False, recover=tmp_path / "out")
    assert comparison.drift is not None
    assert [row.name for row in comparison.drift.tensors if row.changed] == ["lm_head.weight"]
    assert comparison.recovered is not None
    own = scores(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out"), task)
    half = halves(task, dict.fromkeys(i.id for i in task.items), 0)[1]  # type: ignore[arg-type]
    assert comparison.recovered.tasks[0].tuned == pytest.approx(sum(own[i.id] for i in half) / len(half), abs=1e-9)


def test_an_untied_twin_is_no_other_model(folder: Path, task: Task, tmp_path: Path) -> None:
    twin = tied()
    twin.lm_head.weight = nn.Parameter(twin.lm_head.weight.detach().clone())
    save_model(twin, tmp_path / "twin")
    tiny.tiny_tokenizer().save_pretrained(tmp_path / "twin")
    comparison = compare(str(folder / "base"), str(tmp_path / "twin"), task, room=False)
    assert comparison.drift is not None
    assert comparison.drift.changed == 0
    assert comparison.tasks[0].tuned == comparison.tasks[0].base
