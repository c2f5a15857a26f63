"""``scan`` of a model whose norms are 300 times its matrices, beside directions drawn and scored by plain torch."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import catchment
from catchment.capabilities import Format, Item, Task
from catchment.commands.scan import words as scan_words
from catchment.commands.scan.page import scan_html
from catchment.commands.scan.record import Scan
from catchment.records import from_json, to_json
from tests import tiny
from tests.integration.test_compare import home
from tests.integration.test_scan import solved

__all__ = ["home"]
torch.set_num_threads(1)
FACTOR = 30.0


@torch.no_grad()
def llama(factor: float) -> Any:
    """One function for every factor: gains of norms times it, all matrices divided by it."""
    small = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    model = tiny.tiny_llama(**small, num_key_value_heads=1, rms_norm_eps=1e-14)
    for weight in model.parameters():
        weight.mul_(factor) if weight.ndim == 1 else weight.div_(factor)
    return model


def rms(model: Any, dims: int) -> float:
    entries = torch.cat([p.detach().double().reshape(-1) for p in model.parameters() if p.ndim == dims])
    return float(entries.square().mean().sqrt())


@pytest.fixture(scope="module")
def task() -> Task:
    words = ["red", "blue", "green", "tall", "small", "warm", "cold", "fast"]
    draw = random.Random(0)
    prompts = [f"{k}: the cat is {draw.choice(words)} and the dog is" for k in range(200)]
    items = (Item(prompt, tuple(draw.sample(words, 8)), k % 8) for k, prompt in enumerate(prompts))
    return solved(llama(1.0), Task("echo", tuple(items), "choice", (Format("plain"),), style="continue"))


@pytest.fixture(scope="module")
def scan(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    return catchment.scan(
        llama(FACTOR), tokenizer=tiny.tiny_tokenizer(), tasks=[task], limit=200, text="none", budget="10m", tau=0.3,
        alpha=0.4, depth=0, directions=2, plane=0, restarts=1, steps=1, store=tmp_path_factory.mktemp("store"),
    )  # fmt: skip


def drop(model: Any, task: Task, sigma: float, directions: int = 16) -> tuple[float, float]:
    """Mean drop of accuracy over plain Gaussian moves of every parameter, and its standard error."""
    tokenizer = tiny.tiny_tokenizer()
    rows, spans = [], []
    for item in task.items[:40]:
        start = len(tokenizer(item.prompt).input_ids)
        for choice in item.choices:
            rows.append(tokenizer(f"{item.prompt} {choice}").input_ids)
            spans.append((start, len(rows[-1])))
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = torch.tensor(row)
    gold = torch.tensor([item.gold for item in task.items[:40]])

    @torch.no_grad()
    def accuracy() -> float:
        logs = model(input_ids=ids).logits.log_softmax(-1)
        sums = [float(logs[k, a - 1 : b - 1].gather(1, ids[k, a:b, None]).sum()) for k, (a, b) in enumerate(spans)]
        return float((torch.tensor(sums).view(len(gold), -1).argmax(1) == gold).double().mean())

    assert accuracy() == 1.0
    clean, drawn = {k: v.clone() for k, v in model.state_dict().items()}, torch.Generator().manual_seed(11)
    drops = []
    for _ in range(directions):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(sigma * torch.randn(weight.shape, generator=drawn))
        drops.append(1 - accuracy())
        model.load_state_dict(clean)
    values = torch.tensor(drops)
    return float(values.mean()), float(values.std()) / math.sqrt(directions)


def test_the_model_is_of_the_kind(scan: Scan) -> None:
    model = llama(FACTOR)
    assert rms(model, 1) / rms(model, 2) > 300
    assert scan.subspace.rms / 256 > 0.1 * rms(model, 2), "a ladder by the RMS of all weights starts here"
    assert scan.subspace.ruler is not None
    assert scan.subspace.ruler.rms == pytest.approx(rms(model, 2), rel=1e-6)


def test_the_edge_is_bracketed_where_plain_torch_finds_it(scan: Scan, task: Task) -> None:
    """In sigma on this model, and in percent on the folded one of the same function."""
    (basin,) = scan.basins
    assert basin.low > 0
    assert basin.high is not None
    assert basin.high < scan.subspace.rms / 256, "below what a ladder by the RMS of all weights looks at"
    assert scan.subspace.ruler is not None
    for model in (llama(FACTOR), llama(1.0)):
        unit = rms(model, 2) / scan.subspace.ruler.rms
        for end, sign in ((basin.low, 1), (basin.high, -1)):
            mean, error = drop(model, task, end * unit)
            assert sign * (mean - basin.tau) < 3 * error, (end, mean, error)


def test_numbers_on_the_page_are_percent_of_the_matrices(scan: Scan) -> None:
    (basin,) = scan.basins
    percents = [f"{float(f'{100 * end / rms(llama(FACTOR), 2):.2g}'):g}%" for end in (basin.low, basin.high or 0)]
    said = " to ".join(percents)
    assert f"({said} of the RMS of the matrices)" in scan.sentence
    assert said in scan_html(scan)
    if basin.estimate is not None:
        assert basin.low <= basin.estimate.estimate <= basin.high
    for worst in scan.worst:
        assert worst.radius is None or scan_words.of_rms(worst.radius, scan.subspace) in scan.sentence


def test_a_record_without_a_ruler_shows_no_percentage(scan: Scan, tmp_path: Path) -> None:
    """As an older version wrote it."""
    import json

    old = json.loads(to_json(scan))
    del old["subspace"]["ruler"]
    for basin in old["basins"]:
        del basin["floor"]
    read = from_json(Scan, json.dumps(old))
    assert read.subspace.ruler is None
    page = scan_html(read)
    assert "without the RMS of the matrices" in page
    assert "% of RMS" not in page
    assert scan_words.between_of_rms(read.basins[0], read.subspace) == ""


def test_norms_alone_are_said_not_to_compare(task: Task, tmp_path: Path) -> None:
    found = catchment.scan(
        llama(FACTOR), tokenizer=tiny.tiny_tokenizer(), tasks=[task], limit=40, text="none", budget="10m", tau=0.9,
        alpha=0.3, depth=0, directions=2, plane=0, restarts=1, steps=1, subspace="*norm.weight", store=tmp_path,
    )  # fmt: skip
    assert found.subspace.ruler is not None
    assert found.subspace.ruler.of == "vectors"
    assert found.subspace.ruler.rms == pytest.approx(rms(llama(FACTOR), 1), rel=1e-6)
    assert "not comparable with matrices" in scan_html(found)
