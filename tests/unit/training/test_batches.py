"""Packed blocks, padded batches and completion losses."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from catchment.errors import InputError
from catchment.training.batches import Collator, check_packing, completion_losses, pack
from catchment.training.data import read_rows
from catchment.training.encoding import IGNORE, Encoded, encode_rows
from tests.tiny import CAUSAL, TEXT, tiny_llama, tiny_mistral, tiny_tokenizer

torch.set_num_threads(1)
TOKENIZER = tiny_tokenizer()
WORDS = TEXT[2].split()
ROWS = [
    {"prompt": " ".join(WORDS[: 1 + n % 5]) + ":", "completion": " " + " ".join(WORDS[n % 7 : n % 7 + 1 + n % 4])}
    for n in range(14)
]


@pytest.fixture(scope="module")
def encoded() -> Encoded:
    return encode_rows(read_rows(ROWS), TOKENIZER, max_length=40)


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_llama()


def loss(model: Any, batches: list[dict[str, Any]]) -> float:
    """Mean over all labels of the batches, summed outside the model."""
    total, count = 0.0, 0
    for batch in batches:
        labels = batch["labels"][:, 1:]
        with torch.no_grad():
            logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
        chosen = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
        total -= float(chosen[labels != IGNORE].sum())
        count += int((labels != IGNORE).sum())
    return total / count


def batches(examples: list[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    collate = Collator(TOKENIZER)
    return [collate(examples[at : at + size]) for at in range(0, len(examples), size)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("make", [tiny_llama, tiny_mistral, CAUSAL["gpt2"]], ids=["llama", "mistral", "gpt2"])
def test_packed_examples_do_not_see_each_other(make: Any, attention: str, size: int, encoded: Encoded) -> None:
    model = make()
    model.set_attn_implementation(attention)
    assert model.config.use_cache  # with a cache transformers would not look for borders
    blocks = pack(encoded.examples, 48)
    assert len(blocks) < len(encoded) / 2
    assert len({len(block["input_ids"]) for block in blocks}) > 1  # so that padding takes part
    alone = loss(model, batches(encoded.examples, 1))
    assert loss(model, batches(blocks, size)) == pytest.approx(alone, abs=1e-5)
    assert loss(model, batches(encoded.examples, size)) == pytest.approx(alone, abs=1e-5)


def test_the_comparison_would_notice(encoded: Encoded, llama: Any) -> None:
    """The same blocks with an attention mask, from which no borders are read."""
    batch = Collator(TOKENIZER)(pack(encoded.examples, 48)[:1])
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    seen = loss(llama, [batch])
    assert abs(seen - loss(llama, batches(pack(encoded.examples, 48)[:1], 1))) > 1e-2


@pytest.mark.parametrize("name", CAUSAL)
def test_families_are_tried(name: str) -> None:
    model = CAUSAL[name]()
    if name in ("opt", "bloom", "mamba"):
        with pytest.raises(InputError, match=r"packing: .*(takes no position_ids|logits of .* differ by)"):
            check_packing(model)
        with pytest.raises(InputError, match="packing: "):
            pack([{"input_ids": [3], "labels": [3]}], 8, model=model)
    else:
        check_packing(model)


def test_check_leaves_no_trace(llama: Any) -> None:
    llama.train()
    state = torch.get_rng_state()
    check_packing(llama)
    assert llama.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in llama.parameters())
    llama.eval()
    check_packing(tiny_llama().to(torch.bfloat16))
    other = tiny_llama()
    other.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="packing: attention 'flash_attention_2' of LlamaForCausalLM; expected 'sdpa'"):
        check_packing(other)


def first_fit_decreasing(lengths: list[int], room: int) -> list[list[int]]:
    """The definition, in quadratic time."""
    bins: list[list[int]] = []
    for k in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        fits = next((group for group in bins if sum(lengths[i] for i in group) + lengths[k] <= room), None)
        if fits is None:
            bins.append([k])
        else:
            fits.append(k)
    return sorted(map(sorted, bins))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 64))
def test_packing_keeps_the_examples(lengths: list[int], room: int) -> None:
    draw = random.Random(0)
    examples = []
    for n in lengths:
        ids = [draw.randrange(3, 320) for _ in range(n)]
        examples.append({"input_ids": ids, "labels": [IGNORE if draw.random() < 0.3 else i for i in ids]})
    blocks = pack(examples, room)
    assert blocks == pack(examples, room)
    found = []
    for block in blocks:
        assert len(block["input_ids"]) == len(block["labels"]) == len(block["position_ids"]) <= room
        starts = [k for k, position in enumerate(block["position_ids"]) if position == 0] + [len(block["input_ids"])]
        for a, b in pairwise(starts):
            assert block["position_ids"][a:b] == list(range(b - a))
            found.append((block["input_ids"][a:b], block["labels"][a:b]))
    expected = [(e["input_ids"], [IGNORE, *e["labels"][1:]]) for e in examples]
    assert sorted(found) == sorted(expected)
    groups = first_fit_decreasing(lengths, room)
    assert [b["input_ids"] for b in blocks] == [[i for k in g for i in examples[k]["input_ids"]] for g in groups]


def test_packing_refuses(encoded: Encoded) -> None:
    longest = max(len(e["input_ids"]) for e in encoded.examples)
    with pytest.raises(InputError, match=f"packing: an example of {longest} tokens does not fit .* max_length 8"):
        pack(encoded.examples, 8)
    with pytest.raises(InputError, match="packing: labels of a classification"):
        pack([{"input_ids": [3], "labels": 1}], 8)
    with pytest.raises(InputError, match="packed blocks and single examples; expected one or the other"):
        Collator(TOKENIZER)([encoded.examples[0], pack(encoded.examples, 48)[0]])


def test_batches_are_padded_on_the_right(encoded: Encoded) -> None:
    some = encoded.examples[:3]
    for tokenizer, pad in ((TOKENIZER, 0), (tiny_tokenizer(pad=False), 2)):
        batch = Collator(tokenizer, pad_to_multiple_of=8)(some)
        assert set(batch) == {"input_ids", "labels", "attention_mask"}
        assert batch["input_ids"].shape[1] % 8 == 0
        for row, example in enumerate(some):
            n = len(example["input_ids"])
            assert batch["input_ids"][row, :n].tolist() == example["input_ids"]
            assert batch["labels"][row, :n].tolist() == example["labels"]
            assert set(batch["input_ids"][row, n:].tolist()) <= {pad}
            assert set(batch["labels"][row, n:].tolist()) <= {IGNORE}
            assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (batch["input_ids"].shape[1] - n)


def test_batches_of_classes() -> None:
    rows = [{"sentence1": "The cat", "sentence2": "slept " * n, "label": n % 2} for n in range(3)]
    found = encode_rows(read_rows(rows), TOKENIZER, max_length=64)
    batch = Collator(TOKENIZER)(found.examples)
    assert batch["labels"].tolist() == [0, 1, 0]
    expected = TOKENIZER(["The cat"] * 3, ["slept " * n for n in range(3)], padding=True, return_tensors="pt")
    assert all(torch.equal(batch[key], value) for key, value in expected.items())
    bare = [{"input_ids": e["input_ids"], "labels": e["labels"]} for e in found.examples]
    assert torch.equal(Collator(TOKENIZER)(bare)["attention_mask"], batch["attention_mask"])


def trained(folder: Path, examples: list[dict[str, Any]], **settings: Any) -> dict[str, torch.Tensor]:
    args = tf.TrainingArguments(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=len(examples), learning_rate=0.5, optim="sgd",
        lr_scheduler_type="constant", report_to=[], use_cpu=True, seed=1, save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False, max_grad_norm=0, logging_strategy="no", **settings,
    )  # fmt: skip
    model = tiny_llama()
    tf.Trainer(model, args, train_dataset=examples, data_collator=Collator(TOKENIZER)).train()  # type: ignore[arg-type]
    return model.state_dict()


def test_a_trainer_takes_the_same_step_packed_or_not(tmp_path: Path, encoded: Encoded) -> None:
    base = tiny_llama().state_dict()
    single, packed = trained(tmp_path, encoded.examples), trained(tmp_path, pack(encoded.examples, 48))
    moved = max(float((single[k] - base[k]).abs().max()) for k in base)
    assert moved > 1e-2
    assert max(float((single[k] - packed[k]).abs().max()) for k in base) < 1e-4 * moved


@pytest.mark.parametrize("budget", [1, 64, 2048])
def test_completion_losses(encoded: Encoded, llama: Any, budget: int) -> None:
    found = completion_losses(llama, encoded, budget)
    expected = [loss(llama, [Collator(TOKENIZER)([example])]) for example in encoded.examples]
    assert found == pytest.approx(expected, abs=1e-5)
    weights = [sum(label != IGNORE for label in example["labels"]) for example in encoded.examples]
    assert sum(weights) == encoded.trained_tokens


def test_completion_losses_leave_no_trace(encoded: Encoded) -> None:
    model = tiny_llama(attention_dropout=0.5)
    quiet = completion_losses(model, encoded)
    model.train()
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    assert completion_losses(model, encoded) == quiet == completion_losses(model, encoded)
    assert all(module.training for module in model.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(model.lm_head.weight.grad, torch.ones_like(model.lm_head.weight))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_completion_losses_refuse(encoded: Encoded, llama: Any) -> None:
    classes = encode_rows(read_rows([{"text": "a", "label": k} for k in (0, 1)]), TOKENIZER, max_length=8)
    with pytest.raises(InputError, match="completion_losses: rows of kind 'classification'; expected"):
        completion_losses(llama, classes)
    with pytest.raises(InputError, match="batch_tokens 0: expected at least 1"):
        completion_losses(llama, encoded, 0)
