"""How a model is called is tried by value: renamed, ignored, missing and unusable arguments, as other versions or code
that comes with a model have them; every score against one unpadded pass per answer through the unaltered model."""

from __future__ import annotations

import functools
import gc
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from catchment.capabilities import Item, Task, evaluate, prepare
from catchment.errors import ModelError
from catchment.landscape.losses import Batch, batch_loss
from catchment.models import calls_of, check_trainer, compat, picking
from catchment.training.generation import Sampling, self_generated
from tests import tiny

TASK = Task(
    "t",
    tuple(
        Item(f"The old cat slept on {word}", (" the warm stone", " Rome", " 19 dogs"), gold=0, id=word)
        for word in ("the big garden and", "a", "Paris is the capital of", "7")
    ),
    "choice",
)
SAID = Task("said", tuple(Item(item.prompt, gold="the old stone", id=item.id) for item in TASK.items), "exact",
            max_new_tokens=6, stop=())  # fmt: skip
CACHE = "cache" if "cache" in tiny.tiny_llama()(input_ids=torch.tensor([[1]])) else "past_key_values"
"""What the installed transformers call it."""


@dataclass
class Output:
    """Of a model with code of its own: no mapping, and any field."""

    logits: torch.Tensor
    state: Any = None


class Wrapped(nn.Module):
    """A Llama with another forward function; what it computes is unaltered."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config, self.generation_config = inner, inner.config, inner.generation_config

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def can_generate(self) -> bool:
        return True

    def generate(self, *args: Any, **options: Any) -> Any:
        self.inner.generation_config = self.generation_config
        return self.inner.generate(*args, **options)


class Renamed(Wrapped):
    """Both names of the cache, and that of the last logits, are new."""

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, kv_memory: Any = None,
        use_cache: Any = None, logits_to_keep: Any = 0,
    ) -> Output:  # fmt: skip
        out = self.inner(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache,
            logits_to_keep=logits_to_keep, **{CACHE: kv_memory},
        )  # fmt: skip
        return Output(out.logits, out.get(CACHE))


class Swallowing(Wrapped):
    """Takes every keyword and ignores the cache, the positions and the number of logits."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, use_cache: Any = None, **rest: Any) -> Any:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


class IgnoringCache(Wrapped):
    def forward(self, input_ids: Any = None, **rest: Any) -> Any:
        rest.pop("cache", None), rest.pop("past_key_values", None)
        return self.inner(input_ids=input_ids, **rest)


class IgnoringPositions(Wrapped):
    def forward(self, input_ids: Any = None, position_ids: Any = None, **rest: Any) -> Any:
        return self.inner(input_ids=input_ids, **rest)


class WithoutPositions(Wrapped):
    """An older signature."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, use_cache: Any = None) -> Any:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


class OnlyText(Wrapped):
    """Nothing but tokens and a mask, and no cache comes back."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None) -> Output:
        return Output(self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits)


class Tuples(Wrapped):
    """The cache is a tuple of keys and values, as before transformers 4.36."""

    def forward(self, input_ids: Any = None, **rest: Any) -> Output:
        out = self.inner(input_ids=input_ids, **rest)
        cache = out.get(CACHE)
        return Output(out.logits, cache and tuple((layer.keys, layer.values) for layer in cache.layers))


class FlatMasks(Wrapped):
    def forward(self, input_ids: Any = None, attention_mask: Any = None, **rest: Any) -> Any:
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(f"expected a mask of 2 dimensions, got {attention_mask.ndim}")
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, **rest)


class Uncut(Wrapped):
    """Its cache cannot be cut down to some rows."""

    def forward(self, input_ids: Any = None, **rest: Any) -> Any:
        out = self.inner(input_ids=input_ids, **rest)
        if CACHE in out and out[CACHE] is not None:
            out[CACHE].batch_select_indices = None
        return out


class InPlace(Wrapped):
    """What is appended to a copy of its cache is appended to the cache it was copied from as well."""

    def forward(self, input_ids: Any = None, **rest: Any) -> Any:
        origin = next((value.origin for value in rest.values() if hasattr(value, "origin")), None)
        out = self.inner(input_ids=input_ids, **rest)
        if CACHE in out and out[CACHE] is not None:
            if origin is not None:
                for layer in origin.layers:
                    layer.keys = torch.cat([layer.keys, layer.keys[:, :, :1]], dim=2)
                    layer.values = torch.cat([layer.values, layer.values[:, :, :1]], dim=2)
            out[CACHE].origin = out[CACHE]
        return out


class AllLogits(Wrapped):
    def forward(self, input_ids: Any = None, logits_to_keep: Any = 0, **rest: Any) -> Any:
        return self.inner(input_ids=input_ids, **rest)


class FirstLogits(Wrapped):
    """Keeps as many logits as were asked for, but the first ones."""

    def forward(self, input_ids: Any = None, logits_to_keep: Any = 0, **rest: Any) -> Any:
        out = self.inner(input_ids=input_ids, **rest)
        if isinstance(logits_to_keep, int) and logits_to_keep:
            out.logits = out.logits[:, :logits_to_keep]
        return out


class NumberOfLogits(Wrapped):
    """Only a number; one position as a tensor counts as a number: as many logits as expected, of other positions."""

    def forward(self, input_ids: Any = None, logits_to_keep: int = 0, **rest: Any) -> Any:
        out = self.inner(input_ids=input_ids, **rest)
        out.logits = out.logits[:, slice(-logits_to_keep, None)]
        return out


class OldNumberOfLogits(NumberOfLogits):
    """Transformers 4.45 to 4.49."""

    def forward(self, input_ids: Any = None, num_logits_to_keep: int = 0, **rest: Any) -> Any:
        rest.pop("logits_to_keep", None)
        return super().forward(input_ids, num_logits_to_keep, **rest)


ON: dict[type[Wrapped], tuple[str | None, str | None, bool]] = {
    Renamed: ("kv_memory", "logits_to_keep", True),
    AllLogits: (CACHE, None, False),
    FirstLogits: (CACHE, None, False),
    NumberOfLogits: (CACHE, "logits_to_keep", False),
    OldNumberOfLogits: (CACHE, "num_logits_to_keep", False),
}
"""Packs; the cache's keyword, that of the logits, and whether this takes positions."""
OFF: dict[type[Wrapped], str] = {
    Swallowing: "no argument of it goes on from the cache that it returns",
    IgnoringCache: "no argument of it goes on from the cache that it returns",
    WithoutPositions: "no argument of it goes on from the cache that it returns",
    IgnoringPositions: "differ by",
    OnlyText: "it returns no cache",
    Tuples: "'state', a tuple",
    Uncut: "no argument of it goes on from the cache that it returns",
    InPlace: "no argument of it goes on from the cache that it returns",
    FlatMasks: "expected a mask of 2 dimensions",
}
"""Does not pack, and why."""


def check_rows(plain: Any, scores: Any, task: Task) -> None:
    """Choices against one unpadded pass per answer; greedy texts against one pass per token, without any cache."""
    tokenizer = tiny.tiny_tokenizer()
    for row, e in zip(scores.rows, prepare(tokenizer, task).encoded, strict=True):
        if task.scorer == "choice":
            assert row.logprobs == pytest.approx([_summed(plain, e.prompt, a) for a in e.answers], abs=2e-4)
        else:
            said = _greedy(plain, list(e.prompt), task.max_new_tokens)
            assert row.prediction == tokenizer.decode(said, skip_special_tokens=True).strip()


@torch.no_grad()
def _summed(plain: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    logits = plain(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0].double()
    steps = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    return float(sum(steps[k, token] for k, token in enumerate(answer)))


@torch.no_grad()
def _greedy(plain: Any, ids: list[int], most: int) -> list[int]:
    start = len(ids)
    while len(ids) < start + most and ids[-1] != 2:
        ids.append(int(plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[start:]


@pytest.mark.parametrize("kind", ON, ids=lambda kind: kind.__name__)
def test_what_still_packs(kind: type[Wrapped]) -> None:
    inner = tiny.tiny_llama()
    model = kind(inner).eval()
    calls = calls_of(model)
    assert (calls.cache, calls.some_logits, calls.columns) == ON[kind]
    for task in (TASK, SAID):
        scores = evaluate(model, task, tokenizer=tiny.tiny_tokenizer(), batch_tokens=200)
        assert scores.conditions["packed"], scores.warnings
        check_rows(inner, scores, task)


@pytest.mark.parametrize("kind", OFF, ids=lambda kind: kind.__name__)
def test_what_no_longer_packs_says_why_and_scores_the_same(kind: type[Wrapped]) -> None:
    inner = tiny.tiny_llama()
    for task in (TASK, SAID):
        scores = evaluate(kind(inner).eval(), task, tokenizer=tiny.tiny_tokenizer(), batch_tokens=200)
        assert not scores.conditions["packed"]
        (said,) = [w for w in scores.warnings if "packed path is off" in w]
        assert f"off for {kind.__name__}, so the slower plain path was used: " in said
        assert OFF[kind] in said
        check_rows(inner, scores, task)


@pytest.mark.parametrize("kind", [*ON, OnlyText, Swallowing])
@pytest.mark.parametrize("scored", [[2], [3], [1, 4]])
def test_losses_whatever_logits_can_be_asked_for(kind: type[Wrapped], scored: list[int]) -> None:
    """The second token is predicted at position 1, which as a number would be one logit: that of the last position."""
    inner = tiny.tiny_llama()
    ids = torch.tensor([[1, 5, 9, 14, 30, 7]])
    labels = torch.full_like(ids, -100)
    labels[0, scored] = ids[0, scored]
    found = batch_loss(kind(inner).eval(), Batch(ids, torch.ones_like(ids), labels, len(scored), ("a",)))
    with torch.no_grad():
        steps = torch.log_softmax(inner(input_ids=ids).logits[0].double(), -1)
    expected = -sum(float(steps[at - 1, ids[0, at]]) for at in scored)
    assert float(found.detach()) == pytest.approx(expected, abs=1e-4)


class Forgetting(Wrapped):
    """Names the cache as the installed transformers do, gives one back, and reads none."""

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, use_cache: Any = None,
        past_key_values: Any = None, cache: Any = None,
    ) -> Any:  # fmt: skip
        mask = attention_mask[:, -input_ids.shape[1] :] if attention_mask is not None else None
        return self.inner(input_ids=input_ids, attention_mask=mask, position_ids=position_ids, use_cache=use_cache)


@pytest.mark.parametrize("kind", [*ON, Swallowing, IgnoringCache, Tuples, Forgetting])
def test_what_a_model_writes_for_replay_does_not_hang_on_its_cache(kind: type[Wrapped]) -> None:
    inner, tokenizer = tiny.tiny_llama(), tiny.tiny_tokenizer()
    sampling = Sampling(max_new_tokens=8, seed=3)
    texts = [self_generated(model, tokenizer, 6, sampling) for model in (inner, kind(inner).eval())]
    assert texts[0] == texts[1]
    assert len({row["text"] for row in texts[0]}) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [name for name in tiny.CAUSAL if name not in ("bloom", "mamba")])
def test_every_family_takes_what_the_packed_path_needs(name: str, dtype: torch.dtype) -> None:
    calls = calls_of(tiny.CAUSAL[name]().to(dtype))
    assert calls.cache == calls.returned == CACHE
    assert calls.position_ids
    assert calls.use_cache
    assert calls.some_logits == "logits_to_keep"
    assert calls.columns


def test_a_recurrent_state_is_no_cache() -> None:
    calls = calls_of(tiny.CAUSAL["mamba"]())
    assert calls.cache is None
    assert "no argument of it goes on from the cache" in calls.no_cache


def test_logits_that_rule_tokens_out_do_not_blind_the_trial() -> None:
    """Against a largest logit of 1e38 every gap is small."""

    class Ruled(IgnoringCache):
        def forward(self, input_ids: Any = None, **rest: Any) -> Any:
            out = super().forward(input_ids, **rest)
            out.logits[..., 300:] = torch.finfo(out.logits.dtype).min
            return out

    assert calls_of(Ruled(tiny.tiny_llama()).eval()).cache is None
    Ruled.__bases__ = (AllLogits,)
    assert calls_of(Ruled(tiny.tiny_llama()).eval()).cache == CACHE


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_picking_gives_the_logits_of_chosen_positions(name: str) -> None:
    """Gemma2 changes its logits after the head. In any order, from either end, more than once."""
    model = tiny.CAUSAL[name]()
    ids = torch.tensor([[1, 5, 6, 7], [8, 9, 10, 11]])
    rows, columns = torch.tensor([1, 0, 1, 1]), torch.tensor([-1, 2, 0, 3])
    assert calls_of(model).head
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        with picking(model, rows, columns):
            some = model(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, whole)
    assert some.shape == (1, 4, whole.shape[-1])
    torch.testing.assert_close(some[0], whole[rows, columns])


def test_a_trial_is_made_once_and_leaves_no_trace() -> None:
    model = tiny.tiny_llama().train()
    passes = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, given: passes.append(given[0].numel()))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = calls_of(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert len(passes) <= 7
    assert sum(passes) <= 42
    assert calls_of(model) is first
    hook.remove()


def test_another_forward_function_is_tried_anew() -> None:
    model = tiny.tiny_llama()
    assert calls_of(model).cache == CACHE
    inner = model.forward
    model.forward = lambda input_ids=None, attention_mask=None, use_cache=None: inner(input_ids, attention_mask)
    assert calls_of(model).cache is None
    del model.forward
    assert calls_of(model).cache == CACHE


def test_weights_that_are_not_finite_are_not_remembered() -> None:
    model = tiny.tiny_llama()
    weight = model.lm_head.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
        assert calls_of(model).cache is None
        weight.copy_(kept)
    assert calls_of(model).cache == CACHE


def test_nothing_keeps_a_model_alive() -> None:
    model = tiny.tiny_llama()
    model.forward = functools.partial(type(model).forward, model)  # as accelerate's hooks do
    calls_of(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_through_an_adapter() -> None:
    import peft

    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny.tiny_llama(), lora).eval()
    assert calls_of(model) == calls_of(tiny.tiny_llama())
    scores = evaluate(model, TASK, tokenizer=tiny.tiny_tokenizer(), batch_tokens=200)
    assert scores.conditions["packed"]
    check_rows(model, scores, TASK)


def test_a_trainer_without_a_method_that_ours_replaces_is_refused() -> None:
    from transformers import Trainer

    check_trainer(Trainer)
    methods: dict[str, Callable[[], None]] = {
        name: lambda: None for name in compat.TRAINER_METHODS if name not in ("_get_grad_norm", "_load_scaler")
    }
    with pytest.raises(
        ModelError, match=rf"transformers {transformers.__version__}: .*no _get_grad_norm, _load_scaler"
    ):
        check_trainer(types.new_class("Newer", exec_body=lambda body: body.update(methods)))
