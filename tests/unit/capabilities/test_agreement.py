from __future__ import annotations

import copy
import math
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from catchment.capabilities import agreement, agreement_rows, prepare
from catchment.capabilities.agreement import distances
from catchment.capabilities.engine import Engine
from catchment.capabilities.tasks import Item, Task
from catchment.errors import GateError, InputError, TaskError
from catchment.records import Row
from tests import tiny

PROMPTS = [f"{text} {k}" for k, text in enumerate(tiny.TEXT * 2)]
TASK = Task("mine", tuple(Item(p) for p in PROMPTS), "agreement", max_new_tokens=6, stop=())


def moved(model: Any, by: float = 0.02) -> Any:
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight += by * torch.randn(weight.shape, generator=generator)
    return tuned


def oracle(base: Any, tuned: Any, tokenizer: Any, prompt: str, steps: int) -> tuple[str, float, float]:
    """One prompt, one token at a time, in float64: the base's answer, mean total variation, mean KL in bits."""
    base, tuned = copy.deepcopy(base).double(), copy.deepcopy(tuned).double()
    start = tokenizer(prompt)["input_ids"]
    ids, variation, bits = list(start), [], []
    for _ in range(steps):
        with torch.no_grad():
            p, q = (m(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1) for m in (base, tuned))
        variation.append(0.5 * float((p - q).abs().sum()))
        bits.append(float((p * (p / q).log2()).sum()))
        if int(p.argmax()) == 2:
            break
        ids.append(int(p.argmax()))
    answer = tokenizer.decode(ids[len(start) :], skip_special_tokens=True).strip()
    return answer, sum(variation) / len(variation), sum(bits) / len(bits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_against_a_dense_oracle(family: str, tokenizer: Any) -> None:
    base = tiny.CAUSAL[family]()
    tuned = moved(base)
    scores = agreement(base, tuned, replace(TASK, formats=(TASK.formats[1],)), tokenizer=tokenizer, batch_tokens=90)
    assert [row.item for row in scores.rows] == [item.id for item in TASK.items]
    lengths = set()
    for item, row in zip(TASK.items, scores.rows, strict=True):
        answer, variation, bits = oracle(base, tuned, tokenizer, item.prompt + "\n", 6)
        assert row.prediction == answer
        assert row.score == pytest.approx(1 - variation, abs=1e-5)
        assert row.companion == pytest.approx(bits, abs=1e-4)
        lengths.add(len(answer))
    assert len(lengths) > 1
    assert 0.1 < scores.mean < 0.95


def test_equal_models_agree_exactly(llama: Any, tokenizer: Any) -> None:
    scores = agreement(llama, copy.deepcopy(llama), PROMPTS, tokenizer=tokenizer, max_new_tokens=5, batch_tokens=90)
    assert [(row.score, row.companion) for row in scores.rows] == [(1.0, 0.0)] * len(PROMPTS)
    assert scores.task == "agreement"


def test_the_further_the_move_the_less_they_agree(llama: Any, tokenizer: Any) -> None:
    means = [
        agreement(llama, moved(llama, by), TASK, tokenizer=tokenizer, batch_tokens=256).mean
        for by in (0.0, 0.002, 0.02, 0.2)
    ]
    assert means == sorted(means, reverse=True)
    assert means[0] == 1.0
    assert means[-1] < 0.6


def test_distances_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.25, 0.25]])
    variation, bits = distances(p.log(), q.log(), block=1)
    assert variation == pytest.approx((0.25 + 0.5) / 2)
    assert bits == pytest.approx((0.5 * math.log2(0.5 / 0.25) + 0.5 * math.log2(0.5 / 0.75) + 1.0) / 2)
    assert distances(q[:1].log(), p[:1].log())[0] == pytest.approx(0.25)  # total variation is symmetric
    assert distances(p.log(), q.log(), block=64) == pytest.approx((variation, bits))


def test_an_empty_answer_has_one_position(llama: Any, tokenizer: Any) -> None:
    """The base ends its answer at once: what is compared is whether the tuned model ends there too."""
    tuned = moved(llama)
    ids = tokenizer("Question: The cat\nAnswer:")["input_ids"]
    with torch.no_grad():
        p, q = (m(torch.tensor([ids])).logits[0, -1].double().softmax(-1) for m in (llama, tuned))
    saved = llama.generation_config.eos_token_id
    llama.generation_config.eos_token_id = int(p.argmax())
    try:
        (row,) = agreement(llama, tuned, ["The cat"], tokenizer=tokenizer, batch_tokens=90).rows
    finally:
        llama.generation_config.eos_token_id = saved
    assert row.prediction == ""
    assert row.score == pytest.approx(1 - 0.5 * float((p - q).abs().sum()), abs=1e-5)


def test_a_resumed_run_gives_the_same_bits_and_leaves_no_trace(llama: Any, tokenizer: Any) -> None:
    tuned = moved(llama).train()
    state = torch.get_rng_state()
    prepared = prepare(tokenizer, TASK)
    base_engine, tuned_engine = Engine(llama, tokenizer, batch_tokens=120), Engine(tuned, tokenizer)
    whole = {r.item: r for r in agreement_rows(base_engine, tuned_engine, prepared)}
    done = set(list(whole)[::2])
    seen: list[Row] = []
    rest = agreement_rows(
        base_engine, tuned_engine, prepared, done=done, on_rows=lambda rows, tokens: seen.extend(rows)
    )
    assert rest == seen
    assert {r.item: r for r in rest} == {k: v for k, v in whole.items() if k not in done}
    assert all(m.training for m in tuned.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in tuned.parameters())


def test_large_vocabularies_are_compared_in_parts(llama: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = moved(llama)
    whole = agreement(llama, tuned, TASK, tokenizer=tokenizer, batch_tokens=4096)
    monkeypatch.setattr(sys.modules[agreement.__module__], "LOGITS", 320 * 150)
    parts = agreement(llama, tuned, TASK, tokenizer=tokenizer, batch_tokens=4096)
    for a, b in zip(whole.rows, parts.rows, strict=True):
        assert (a.item, a.prediction) == (b.item, b.prediction)
        assert a.score == pytest.approx(b.score, abs=1e-5)


def test_other_vocabularies_are_refused(llama: Any, tokenizer: Any) -> None:
    wide = tiny.tiny_llama(vocab_size=330)
    with pytest.raises(TaskError, match="the base has 320 tokens and the tuned model 330; expected equal vocabularies"):
        agreement(llama, wide, TASK, tokenizer=tokenizer, batch_tokens=90)
    other = tiny.tiny_tokenizer()
    other.add_tokens(["<extra>"])
    pair = [
        SimpleNamespace(model=llama, tokenizer=t, card=SimpleNamespace(name="tiny"), newly_initialised=())
        for t in (tokenizer, other)
    ]
    with pytest.raises(TaskError, match="the two models have different tokenizers; expected the same one"):
        agreement(*pair, TASK, batch_tokens=90)
    pair[1].tokenizer = tiny.tiny_tokenizer()
    assert agreement(*pair, TASK, batch_tokens=90).mean == 1.0


def test_bad_input(llama: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="expected a list of texts, got one text"):
        agreement(llama, llama, "Who?", tokenizer=tokenizer)
    with pytest.raises(InputError, match="has scorer 'exact'; expected 'agreement'"):
        agreement(llama, llama, Task("t", (Item("a", gold="b"),), "exact"), tokenizer=tokenizer)
    with pytest.raises(InputError, match=r"expected tokenizer=\.\.\."):
        agreement(llama, llama, TASK)
    with pytest.raises(TaskError, match="has no items"):
        agreement(llama, llama, [], tokenizer=tokenizer)
    with pytest.raises(GateError, match="longer than the model's context of 256"):
        agreement(llama, llama, ["The cat " * 200], tokenizer=tokenizer, batch_tokens=90)
