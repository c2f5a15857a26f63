"""The same numbers on a GPU: run with ``make gpu`` where there is one."""

from __future__ import annotations

import pytest
import torch

import catchment
from catchment.capabilities import Format, Item, Task
from tests import tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


def make_task() -> Task:
    words = ["red", "blue", "green", "tall", "small", "warm"]
    items = tuple(
        Item(f"{i}: the cat is {words[i % 6]} and the dog is", (words[i % 6], words[(i + 1) % 6], "fast"), i % 3)
        for i in range(60)
    )
    return Task("echo", items, "choice", (Format("plain"),), style="continue")


@pytest.mark.parametrize("family", sorted(tiny.CAUSAL))
def test_equal_to_the_cpu(family: str) -> None:
    model, tokenizer = tiny.CAUSAL[family](), tiny.tiny_tokenizer()
    cpu = catchment.evaluate(model, make_task(), tokenizer=tokenizer, batch_tokens=512)
    gpu = catchment.evaluate(model.to("cuda"), make_task(), tokenizer=tokenizer)
    for a, b in zip(cpu.rows, gpu.rows, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)
    assert gpu.conditions["batch_tokens"] >= 2048


def test_compare_on_the_gpu() -> None:
    model, other = tiny.tiny_llama().to("cuda"), tiny.tiny_llama().to("cuda")
    with torch.no_grad():
        other.lm_head.weight.add_(0.1)
    comparison = catchment.compare(
        model, other, tokenizer=tiny.tiny_tokenizer(), tasks=make_task(), text="none", formats=1
    )
    assert comparison.base.device.startswith("cuda")
    assert comparison["echo"].n == 60
