"""The loss on right answers: against the evaluation path, against plain log-softmax, and without a trace."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

from catchment.capabilities import Item, Task, evaluate, prepare
from catchment.errors import InputError, ModelError
from catchment.landscape.losses import Batch, accumulate_gradient, answer_batches, batch_loss, mean_loss, probing
from catchment.models import named_weights, select
from tests import tiny

torch.set_num_threads(1)
CHOICE = Task(
    "choice",
    tuple(
        Item(prompt, choices=("Paris", "Rome", "a small dog"), gold=gold)
        for prompt, gold in (("The capital of France is", 0), ("The capital of the big old Italy is", 1), ("I am", 2))
    ),
    "choice",
)
EXACT = Task("sums", (Item("What is 12 + 7?", gold=("19", "nineteen")), Item("2 + 2?", gold="4")), "exact")
REFUSAL = Task("refusal", (Item("Open the door.", gold="comply"), Item("Break it.", gold="refuse")), "refusal")
TEXT = Task("text", tuple(Item(text) for text in tiny.TEXT[:3]), "text", style="continue")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.tiny_tokenizer()


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny.tiny_llama()


def batches_of(tokenizer: Any, task: Task, batch_tokens: int = 64, **settings: Any) -> list[Batch]:
    return answer_batches(prepare(tokenizer, task, **settings), None, batch_tokens, pad=0)


def nats_row_by_row(model: Any, batch: Batch) -> float:
    """Without padding, and with all logits."""
    total = 0.0
    for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):
        n = int(mask.sum())
        with torch.no_grad():
            logprobs = log_softmax(model(input_ids=ids[None, :n]).logits[0].double(), dim=-1)
        total -= sum(float(logprobs[t - 1, ids[t]]) for t in range(1, n) if labels[t] != -100)
    return total


@pytest.mark.parametrize("task", [CHOICE, EXACT, TEXT], ids=lambda t: t.name)
def test_loss_is_the_log_probability_that_evaluate_reports(tokenizer: Any, llama: Any, task: Task) -> None:
    rows = {row.item: row for row in evaluate(llama, task, tokenizer=tokenizer, batch_tokens=256).rows}
    right = [
        rows[item.id].logprobs[item.gold if isinstance(item.gold, int) else 0]  # the gold choice, or the one answer
        for item in task.items
    ]
    batches = batches_of(tokenizer, task)
    tokens = sum(b.tokens for b in batches)
    assert mean_loss(llama, batches) * tokens == pytest.approx(-sum(right), rel=1e-5)
    assert sorted(name for b in batches for name in b.items) == sorted(item.id for item in task.items)


def test_long_passages_are_cut_into_windows_as_evaluate_cuts_them(tokenizer: Any) -> None:
    model = tiny.tiny_llama(max_position_embeddings=9)
    scores = evaluate(model, TEXT, tokenizer=tokenizer, batch_tokens=256)
    batches = batches_of(tokenizer, TEXT, context=9)
    assert max(b.input_ids.shape[1] for b in batches) == 9
    assert sum(len(b.items) for b in batches) > len(TEXT.items)
    expected = -sum(row.logprobs[0] for row in scores.rows)
    assert mean_loss(model, batches) * sum(b.tokens for b in batches) == pytest.approx(expected, rel=1e-5)


def test_labels_hold_the_answer_and_nothing_else(tokenizer: Any) -> None:
    [batch] = batches_of(tokenizer, EXACT, batch_tokens=10_000)
    texts = [tokenizer.decode(row[row != -100]) for row in batch.labels]
    assert sorted(texts) == [" 19", " 4"]
    assert batch.tokens == int((batch.labels != -100).sum())
    scored = batch.labels != -100
    assert torch.equal(batch.input_ids[scored], batch.labels[scored])
    assert torch.equal(batch.attention_mask.sum(1), (batch.input_ids != 0).sum(1))


def test_batches_keep_to_their_budget_and_do_not_change_the_loss(tokenizer: Any, llama: Any) -> None:
    one = batches_of(tokenizer, CHOICE, batch_tokens=1)
    all_ = batches_of(tokenizer, CHOICE, batch_tokens=10_000)
    two = batches_of(tokenizer, CHOICE, batch_tokens=60)
    assert [len(x) for x in (one, all_)] == [3, 1]
    assert 1 < len(two) < 3
    assert all(b.input_ids.numel() <= 60 for b in two if len(b.items) > 1)
    assert mean_loss(llama, one) == pytest.approx(mean_loss(llama, all_), rel=1e-5)


def test_unknown_answers_are_the_callers_and_items_without_any_are_seen(tokenizer: Any) -> None:
    prepared = prepare(tokenizer, REFUSAL)
    with pytest.raises(InputError, match="none of its 2 items has an answer"):
        answer_batches(prepared, None, 64, pad=0)
    first = REFUSAL.items[0].id
    [batch] = answer_batches(prepared, {first: [7, 8, 9], "another": [1]}, 64, pad=0)
    assert batch.items == (first,)
    assert batch.tokens == 3
    assert batch.labels[batch.labels != -100].tolist() == [7, 8, 9]


def test_known_answers_go_before_the_callers(tokenizer: Any) -> None:
    prepared = prepare(tokenizer, EXACT)
    [batch] = answer_batches(prepared, {item.id: [300] for item in EXACT.items}, 10_000, pad=0)
    assert 300 not in batch.labels


def hand_made(model: Any) -> Batch:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 300, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = torch.where(mask.bool(), ids, -100)
    labels[:, :4] = -100
    labels[2, 5] = -100  # a hole
    return Batch(ids, mask, labels, int((labels != -100).sum()), ("a", "b", "c"))


@pytest.mark.parametrize("family", sorted(tiny.CAUSAL))
def test_loss_equals_log_softmax_row_by_row(family: str) -> None:
    model = tiny.CAUSAL[family]()
    batch = hand_made(model)
    assert batch_loss(model, batch).item() == pytest.approx(nats_row_by_row(model, batch), rel=1e-5)


def test_gradient_agrees_with_differences_and_with_backward() -> None:
    model = tiny.CAUSAL["gpt2"]().double()  # a Llama normalises in float32 even then, which differences would show
    batch, weights = hand_made(model), named_weights(model)
    loss, gradient = accumulate_gradient(model, weights, [batch, batch])
    assert loss == pytest.approx(nats_row_by_row(model, batch) / batch.tokens, rel=1e-9)
    generator = torch.Generator().manual_seed(0)
    direction = {n: torch.randn(w.shape, generator=generator, dtype=w.dtype) for n, w in weights.items()}
    ends = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            for name, w in weights.items():
                w += step * direction[name]
            ends.append(mean_loss(model, [batch]))
        for name, w in weights.items():
            w += 1e-5 * direction[name]
    slope = sum(float((gradient[n] * direction[n]).sum()) for n in weights)
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)
    (batch_loss(model, batch) / batch.tokens).backward()
    for name, w in weights.items():
        torch.testing.assert_close(gradient[name], w.grad)


def test_tied_weights_count_once_and_parameters_that_share_memory_add_up() -> None:
    tied = tiny.tiny_llama(tie_word_embeddings=True).double()
    batch = hand_made(tied)
    name = "model.embed_tokens.weight"
    weights = named_weights(tied)
    assert "lm_head.weight" not in weights
    whole = accumulate_gradient(tied, {name: weights[name]}, [batch])[1][name]
    tied.lm_head.weight = torch.nn.Parameter(tied.model.embed_tokens.weight.data)  # one memory, two parameters
    split = named_weights(tied)
    assert "lm_head.weight" not in split
    torch.testing.assert_close(accumulate_gradient(tied, {name: split[name]}, [batch])[1][name], whole)


def state(model: Any) -> tuple[Any, ...]:
    flags = [p.requires_grad for p in model.parameters()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return flags, grads, [m.training for m in model.modules()], torch.get_rng_state()


def same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    grads = all(
        (x is None) == (y is None) and (x is None or torch.equal(x, y)) for x, y in zip(a[1], b[1], strict=True)
    )
    return a[0] == b[0] and grads and a[2] == b[2] and torch.equal(a[3], b[3])


def test_a_probe_leaves_no_trace_and_sees_no_dropout() -> None:
    model = tiny.CAUSAL["gpt2"]()  # GPT-2 drops out in training mode
    batch = hand_made(model)
    weights = select(model, "*mlp*")
    expected = accumulate_gradient(model, weights, [batch])
    model.train()
    model.transformer.h[0].eval()
    for number, p in enumerate(model.parameters()):
        p.requires_grad_(number % 3 == 0)
        p.grad = torch.full_like(p, number) if number % 2 else None
    before, values = state(model), [p.clone() for p in model.parameters()]
    loss, gradient = accumulate_gradient(model, weights, [batch])
    assert mean_loss(model, [batch]) == pytest.approx(expected[0], rel=1e-6)
    assert same(state(model), before)
    assert all(torch.equal(p, v) for p, v in zip(model.parameters(), values, strict=True))
    assert loss == expected[0]
    assert all(torch.equal(gradient[n], expected[1][n]) for n in weights)


def test_flags_are_restored_after_an_error() -> None:
    model = tiny.tiny_llama()
    model.train()
    before = state(model)

    def fail() -> None:
        with probing(model, select(model, "model.norm.weight")):
            assert [n for n, p in model.named_parameters() if p.requires_grad] == ["model.norm.weight"]
            assert not model.training
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert same(state(model), before)


def test_foreign_weights_and_empty_batches_are_refused() -> None:
    model, other = tiny.tiny_llama(), tiny.tiny_llama()
    batch = hand_made(model)
    with pytest.raises(InputError, match="no parameter of this model"):
        accumulate_gradient(model, named_weights(other), [batch])
    with pytest.raises(InputError, match="no weights"):
        accumulate_gradient(model, {}, [batch])
    with pytest.raises(InputError, match="score no token"):
        mean_loss(model, [])


def test_half_precision_is_summed_in_float32() -> None:
    model = tiny.tiny_llama().bfloat16()
    batch, name = hand_made(model), "model.layers.0.mlp.up_proj.weight"
    loss, half = accumulate_gradient(model, select(model, name), [batch] * 3)
    full_model = model.float()
    full_loss, full = accumulate_gradient(full_model, select(full_model, name), [batch])
    assert half[name].dtype == torch.float32
    assert loss == pytest.approx(full_loss, rel=0.02)
    assert float((half[name] - full[name]).norm() / full[name].norm()) < 0.05


def test_a_broken_model_is_named() -> None:
    model = tiny.tiny_llama()
    with torch.no_grad():
        model.model.norm.weight[0] = math.inf
    with pytest.raises(ModelError, match="expected a finite number"):
        accumulate_gradient(model, select(model, "lm_head.weight"), [hand_made(model)])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's old name
def test_only_an_adapter() -> None:
    import peft

    base = tiny.tiny_llama()
    batch = hand_made(base)
    plain = mean_loss(base, [batch])
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config).eval()
    weights = named_weights(model, "adapter")
    loss, gradient = accumulate_gradient(model, weights, [batch])
    assert loss == pytest.approx(plain, rel=1e-5)
    assert set(gradient) == set(weights)
    assert all(float(g.norm()) == 0 for n, g in gradient.items() if "lora_A" in n)  # B starts at zero
    assert all(float(g.norm()) > 0 for n, g in gradient.items() if "lora_B" in n)
    frozen = named_weights(model, "base")  # frozen by PEFT, and still to be differentiated
    name = "model.layers.1.self_attn.q_proj.weight"
    assert float(accumulate_gradient(model, {name: frozen[name]}, [batch])[1][name].norm()) > 0
    assert not frozen[name].requires_grad
