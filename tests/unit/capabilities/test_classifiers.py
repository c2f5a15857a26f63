from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from catchment.capabilities import evaluate
from catchment.capabilities.tasks import Item, Task
from catchment.errors import GateError, InputError, TaskError
from catchment.records import Row
from tests import tiny

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.5,
    "num_labels": 3,
}


class ArrayImageProcessor:
    """As an image processor of transformers behaves, without pillow."""

    def __call__(self, images: list[Any], return_tensors: str) -> Any:
        pixels = np.stack([np.moveaxis(image.astype(np.float32) / 255, -1, 0) for image in images])
        return tf.BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


TEXTS = [" ".join(tiny.TEXT[k % 5].split()[: 3 + k % 9]) + f" {k}" for k in range(40)]


@pytest.fixture(scope="module")
def bert() -> Any:
    torch.manual_seed(0)
    config = tf.BertConfig(vocab_size=320, max_position_embeddings=64, **SMALL)
    config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    return tf.BertForSequenceClassification(config).eval()


def texts(*, pair: bool = False) -> Task:
    meta = [{"pair": TEXTS[-k]} if pair else {} for k in range(40)]
    return Task("nli", tuple(Item(t, gold=k % 3, meta=meta[k]) for k, t in enumerate(TEXTS)), "classify")


@pytest.mark.parametrize("pair", [False, True])
def test_texts_against_one_forward_pass_each(bert: Any, tokenizer: Any, pair: bool) -> None:
    task = texts(pair=pair)
    scores = evaluate(bert, task, tokenizer=tokenizer)
    assert [r.item for r in scores.rows] == [i.id for i in task.items]
    assert scores.chance == pytest.approx(1 / 3)
    assert len({r.prediction for r in scores.rows}) > 1
    for item, row in zip(task.items, scores.rows, strict=True):
        second = (item.meta["pair"],) if pair else ()
        with torch.no_grad():
            logits = bert(**tokenizer(item.prompt, *second, return_tensors="pt")).logits[0].double()
        expected = torch.log_softmax(logits, -1)
        best = int(logits.argmax())
        assert row.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
        assert row.companion == pytest.approx(float(expected[item.gold].exp()), abs=1e-5)
        assert row.prediction == ("no", "maybe", "yes")[best]
        assert row.score == float(best == item.gold)


@pytest.mark.parametrize("pad", [True, False])
def test_a_decoder_with_a_head(pad: bool) -> None:
    """Without a padding token there is nothing that says where a text ends, so texts go one by one."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(vocab_size=320, **SMALL, pad_token_id=0 if pad else None)
    model = tf.LlamaForSequenceClassification(config).eval()
    tokenizer = tiny.tiny_tokenizer(pad=pad)
    task = texts()
    scores = evaluate(model, task, tokenizer=tokenizer)
    for item, row in zip(task.items, scores.rows, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokenizer(item.prompt)["input_ids"]])).logits[0]
        assert row.logprobs == pytest.approx(torch.log_softmax(logits, -1).tolist(), abs=1e-4)


def test_images_from_arrays() -> None:
    torch.manual_seed(0)
    model = tf.ViTForImageClassification(tf.ViTConfig(image_size=8, patch_size=4, **SMALL)).eval()
    processor = ArrayImageProcessor()
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 255, (8, 8, 3), dtype=np.uint8) for _ in range(20)]
    items = tuple(Item("", gold=k % 3, id=f"i{k}", meta={"image": a}) for k, a in enumerate(arrays))
    scores = evaluate(model, Task("shapes", items, "classify"), tokenizer=processor)
    for item, row in zip(items, scores.rows, strict=True):
        with torch.no_grad():
            logits = model(**processor(images=[item.meta["image"]], return_tensors="pt")).logits[0]
        assert row.logprobs == pytest.approx(torch.log_softmax(logits, -1).tolist(), abs=1e-4)
        assert row.score == float(int(logits.argmax()) == item.gold)
    missing = Task("shapes", (Item("no/such.png", gold=0), Item("nor/this.png", gold=1)), "classify")
    with pytest.raises((TaskError, ImportError), match=r"no/such.png|pillow"):
        evaluate(model, missing, tokenizer=processor)


def test_a_label_outside_the_classes(bert: Any, tokenizer: Any) -> None:
    task = Task("nli", (Item("a", gold=0), Item("b", gold=3, id="bad")), "classify")
    with pytest.raises(TaskError, match="item bad: label 3; expected 0 to 2, the classes of BertForSequence"):
        evaluate(bert, task, tokenizer=tokenizer)


def test_models_without_a_head(llama: Any, bert: Any, tokenizer: Any) -> None:
    with pytest.raises(TaskError, match="needs a model with a classification head; got LlamaForCausalLM"):
        evaluate(llama, texts(), tokenizer=tokenizer)
    config = tf.BertConfig(vocab_size=320, **SMALL)
    with pytest.raises(TaskError, match="classification head; got BertForTokenClassification"):
        evaluate(tf.BertForTokenClassification(config), texts(), tokenizer=tokenizer)
    with pytest.raises(InputError, match="tokenizer or image processor"):
        evaluate(bert, texts())


def test_nothing_is_cut_silently(bert: Any, tokenizer: Any) -> None:
    task = Task("nli", (Item("a", gold=0), Item("a cat " * 60, gold=1, id="long")), "classify")
    with pytest.raises(GateError, match=r"longer than the model's context of 64 tokens \(longest: item long"):
        evaluate(bert, task, tokenizer=tokenizer)
    half = Task("nli", (Item("a", gold=0), Item("b", gold=1, meta={"pair": "c"})), "classify")
    with pytest.raises(TaskError, match="1 of 2 items have a second text"):
        evaluate(bert, half, tokenizer=tokenizer)


def test_resumed_rows_are_the_same_bits(bert: Any, tokenizer: Any) -> None:
    whole = {r.item: r for r in evaluate(bert, texts(), tokenizer=tokenizer).rows}
    done = set(list(whole)[::3])
    seen: list[Row] = []
    rest = evaluate(bert, texts(), tokenizer=tokenizer, done=done, on_rows=lambda rows, tokens: seen.extend(rows))
    assert {r.item: r for r in rest.rows} == {k: v for k, v in whole.items() if k not in done}
    assert {r.item for r in seen} == whole.keys() - done


def test_no_trace(tokenizer: Any) -> None:
    model = tf.BertForSequenceClassification(tf.BertConfig(vocab_size=320, **SMALL)).train()
    model.bert.encoder.eval()
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    evaluate(model, texts(), tokenizer=tokenizer)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
