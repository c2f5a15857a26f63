"""Comparisons and scans ask every item in the same way too, and with the tokenizer that was given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import catchment
from catchment.errors import InputError, StoreError
from tests import tiny
from tests.integration.test_asking import OTHER, SYSTEM, WAYS, Seen, check, known, seen
from tests.integration.test_compare import home, make_task

__all__ = ["home", "seen"]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pair() -> Callable[[], tuple[Any, Any]]:
    def made() -> tuple[Any, Any]:
        tuned, generator = tiny.tiny_llama(), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in tuned.parameters():
                weight.add_(0.003 * torch.randn(weight.shape, generator=generator))
        return tiny.tiny_llama(), tuned

    return made


def test_every_part_of_a_comparison_asks_in_the_same_way(
    pair: Callable[[], tuple[Any, Any]], seen: Seen, tmp_path: Path
) -> None:
    asked = WAYS["file and system"]
    options = asked.options(tmp_path)
    task = known(asked, options, n=40)
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree")
    seen.clear()
    comparison = catchment.compare(
        *pair(), tokenizer=asked.tokenizer, tasks=[task], text="none", formats=1, recover=tmp_path / "recovered",
        prompts=tmp_path / "prompts.txt", margin=0.3, alpha=0.3, **options,
    )  # fmt: skip
    assert comparison.rooms
    check(seen, asked, task, ["judge", "recover", "room"])
    texts = [one.text for encoded in seen["agreement"].values() for one in encoded]
    assert sorted(texts) == sorted(f"<s>[system] {SYSTEM}\n[user] {word}\n[assistant] <think></think>"
                                   for word in ("one", "two", "three"))  # fmt: skip
    assert (comparison.conditions["chat_template"], comparison.conditions["system"]) == (
        str(tmp_path / "chat.jinja"), SYSTEM,
    )  # fmt: skip


def test_a_scan_asks_in_the_same_way(seen: Seen, tmp_path: Path) -> None:
    asked = WAYS["two system prompts"]
    options = asked.options(tmp_path)
    task = known(asked, options, n=60)
    seen.clear()
    catchment.scan(
        tiny.tiny_llama(), tokenizer=asked.tokenizer, tasks=[task], text="none", budget="3s", plane=0, directions=2,
        **options,
    )  # fmt: skip
    check(seen, asked, task, ["scan"])


def test_rows_belong_to_the_text_of_a_template_not_to_its_path(
    pair: Callable[[], tuple[Any, Any]], seen: Seen, tmp_path: Path
) -> None:
    path, moved = tmp_path / "chat.jinja", tmp_path / "moved.jinja"
    path.write_text(OTHER)
    task = known(WAYS["file and system"], {"chat_template": str(path)}, n=40)

    def companion(template: Path, store: str, **options: Any) -> Any:
        seen.clear()
        return catchment.compare(
            *pair(), tokenizer=tiny.tiny_tokenizer(chat=True), tasks=[task], text="none", formats=1, room=False,
            chat_template=template, store=tmp_path / store, **options,
        )["words"].companion  # fmt: skip

    first = companion(path, "store", out=tmp_path / "out")
    path.rename(moved)
    assert companion(moved, "store", out=tmp_path / "out") == first  # the same text, elsewhere
    path.write_text(tiny.CHAT)
    second = companion(path, "store")
    assert second == companion(path, "fresh") != first
    with pytest.raises(StoreError, match=r"chat_template is .*sha256"):
        companion(path, "store", out=tmp_path / "out")


def test_a_tokenizer_given_with_loaded_models_is_the_one_they_are_asked_with(
    pair: Callable[[], tuple[Any, Any]], tmp_path: Path
) -> None:
    """By name and in memory it is so; a loaded model's own must not win silently."""
    given = tiny.tiny_tokenizer(bos=False, chat=OTHER)
    options: dict[str, Any] = {"tasks": [make_task(n=30)], "text": "none", "formats": 1, "room": False}
    loaded = [catchment.load(model, tokenizer=tiny.tiny_tokenizer()) for model in pair()]
    found = catchment.compare(*loaded, tokenizer=given, **options)
    right = catchment.compare(*pair(), tokenizer=given, **options)
    assert found.base.tokenizer_hash == right.base.tokenizer_hash != loaded[0].card.tokenizer_hash
    assert found.base.template_hash == right.base.template_hash
    assert found["echo"].companion == right["echo"].companion
    with pytest.raises(InputError, match="expected a tokenizer object"):
        catchment.compare(*loaded, tokenizer=str(tmp_path), **options)


@pytest.mark.parametrize("named", [False, True])
def test_a_tokenizer_given_for_a_named_base_is_the_judges_too(named: bool, tmp_path: Path) -> None:
    tiny.tiny_llama().save_pretrained(tmp_path / "base")
    tiny.tiny_tokenizer().save_pretrained(tmp_path / "base")
    given = tiny.tiny_tokenizer(bos=False, chat=OTHER)
    given.save_pretrained(tmp_path / "words")
    given = str(tmp_path / "words") if named else given
    found = catchment.tune(
        str(tmp_path / "base"), [{"text": text} for text in tiny.TEXT], tokenizer=given, out=tmp_path / "out",
        tasks=[dataclasses.replace(make_task(n=30), style="ask")], max_steps=1, batch_size=2, held_out=0.0,
    )  # fmt: skip
    assert found.comparison is not None
    assert not [warning for warning in found.comparison.warnings if "differ" in warning]
    assert found.comparison.tuned.tokenizer_hash == found.comparison.base.tokenizer_hash


def test_a_base_in_memory_and_its_tune_take_the_same_path(tmp_path: Path) -> None:
    base = tiny.tiny_llama(attn_implementation="eager")
    found = catchment.tune(
        base, [{"text": text} for text in tiny.TEXT], tokenizer=tiny.tiny_tokenizer(), out=tmp_path / "out",
        tasks=[make_task(n=30)], max_steps=1, batch_size=2, held_out=0.0, method="full",
    )  # fmt: skip
    assert found.comparison is not None
    assert found.comparison.tuned.attention == found.comparison.base.attention == "eager"


def test_a_classifier_is_asked_nothing(tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = tf.BertForSequenceClassification(tf.BertConfig(vocab_size=tiny.VOCABULARY, **shape)).eval()
    (tmp_path / "chat.jinja").write_text(OTHER)
    for option in ({"system": SYSTEM}, {"chat_template": tmp_path / "chat.jinja"}):
        with pytest.raises(InputError, match=r"--(system|chat-template FILE) is for language models"):
            catchment.compare(model, model, tokenizer=tiny.tiny_tokenizer(), tasks=[make_task()], **option)
