from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from catchment.capabilities import Scores, cost_tokens, evaluate, make_engine, prepare, run, sample, speed
from catchment.capabilities.engine import Engine
from catchment.capabilities.prepared import batches
from catchment.capabilities.prompts import Encoded
from catchment.capabilities.tasks import CONTINUE, Item, Task
from catchment.errors import InputError, ModelError, TaskError
from catchment.records import Row
from tests import tiny

NOUNS = ("cat", "dog", "garden", "stone", "door", "city")
CHOICE = Task(
    "choice",
    tuple(
        Item(f"The old {a} and the big {b} ran into number {i} of", (f"the {a}", b, "Rome"), i % 3)
        for i, (a, b) in enumerate((a, b) for a in NOUNS for b in NOUNS)
    ),
    "choice",
    CONTINUE,
    "continue",
    shots=(Item("A small dog ran into the big", ("garden", "stone"), 0),),
)
EXACT = Task("exact", tuple(Item(f"What is {i} + {7 * i}?", gold=str(8 * i)) for i in range(12)), "exact", stop=())
TEXT = Task("text", tuple(Item(text) for text in tiny.TEXT), "text")
ALL = {"choice": CHOICE, "exact": replace(EXACT, max_new_tokens=5), "text": TEXT}


def score(model: Any, task: Task, tokenizer: Any, **settings: Any) -> Scores:
    return evaluate(model, task, tokenizer=tokenizer, **{"batch_tokens": 120, **settings})


@pytest.mark.parametrize("name", ALL)
def test_rows_come_in_the_order_of_the_items(name: str, llama: Any, tokenizer: Any) -> None:
    seen: list[Row] = []
    cost = []
    task = ALL[name]
    scores = score(llama, task, tokenizer, on_rows=lambda rows, tokens: (seen.extend(rows), cost.append(tokens)))
    assert [row.item for row in scores.rows] == [item.id for item in task.items]
    assert sorted(seen, key=lambda r: r.item) == sorted(scores.rows, key=lambda r: r.item)
    assert all(tokens > 0 for tokens in cost)
    assert scores.mean == pytest.approx(sum(r.score for r in scores.rows) / len(scores.rows))
    assert scores.chance == {"choice": pytest.approx(1 / 3)}.get(name, 0.0)
    assert scores.conditions["batch_tokens"] == 120


@pytest.mark.parametrize("name", ALL)
def test_a_resumed_run_gives_the_same_bits(name: str, llama: Any, tokenizer: Any) -> None:
    task = ALL[name]
    whole = score(llama, task, tokenizer)

    class StopError(Exception):
        pass

    kept: list[Row] = []

    def interrupt(rows: list[Row], tokens: int) -> None:
        kept.extend(rows)
        if len(kept) >= len(task.items) // 2:
            raise StopError

    with pytest.raises(StopError):
        score(llama, task, tokenizer, on_rows=interrupt)
    done = {row.item: row for row in kept[:-1]}  # also when a batch was saved in part
    rest = score(llama, task, tokenizer, done=done.keys())
    assert 0 < len(rest.rows) < len(task.items)
    assert not done.keys() & {row.item for row in rest.rows}
    assert {**done, **{r.item: r for r in rest.rows}} == {r.item: r for r in whole.rows}


def test_all_done_is_no_work(llama: Any, tokenizer: Any) -> None:
    scores = score(llama, CHOICE, tokenizer, done={item.id for item in CHOICE.items})
    assert scores.rows == ()
    assert math.isnan(scores.mean)
    assert "n=0" in repr(scores)


def test_limits_are_nested_and_seeded() -> None:
    items = CHOICE.items
    small, large = sample(items, 5, seed=3), sample(items, 20, seed=3)
    assert (len(small), len(large)) == (5, 20)
    assert {i.id for i in small} < {i.id for i in large}
    assert [i for i in items if i in large] == list(large)
    assert sample(items, 20, seed=3) == large
    assert sample(items, 20, seed=4) != large
    assert sample(items, None, seed=3) == sample(items, 99, seed=3) == items
    assert sample(items[::-1], 20, seed=3) == large[::-1]
    with pytest.raises(InputError, match="limit 0: expected at least 1"):
        sample(items, 0, seed=3)


def test_a_limit_scores_the_same_rows(llama: Any, tokenizer: Any) -> None:
    whole = {row.item: row for row in score(llama, CHOICE, tokenizer).rows}
    few = score(llama, CHOICE, tokenizer, limit=6, seed=1).rows
    assert len(few) == 6
    for row in few:
        assert row.logprobs == pytest.approx(whole[row.item].logprobs, abs=1e-4)


def standing(model: Any) -> Any:
    return (
        {name: module.training for name, module in model.named_modules()},
        {name: (p.requires_grad, p.is_inference()) for name, p in model.named_parameters()},
        {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        {name: t.clone() for name, t in model.state_dict().items()},
        torch.get_rng_state(),
        torch.is_grad_enabled(),
        model.generation_config.to_dict(),
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("family", ["llama", "bloom"])
@pytest.mark.parametrize("fails", [False, True])
def test_no_trace(name: str, family: str, fails: bool, tokenizer: Any) -> None:
    model = tiny.CAUSAL[family]()
    model.train()
    layer = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))[1]
    layer.eval()
    next(layer.parameters()).requires_grad_(False)
    ids = torch.tensor([[1, 5, 9, 7]])
    model(input_ids=ids, labels=ids).loss.backward()
    torch.manual_seed(11)
    torch.rand(3)
    before = standing(model)
    calls = []

    def on_rows(rows: list[Row], tokens: int) -> None:
        calls.append(len(rows))
        torch.rand(2)
        if fails:
            raise KeyError("inside")

    if fails:
        with pytest.raises(KeyError):
            score(model, ALL[name], tokenizer, on_rows=on_rows)
    else:
        score(model, ALL[name], tokenizer, on_rows=on_rows, batch_tokens=None)
    assert calls
    for a, b in zip(before, standing(model), strict=True):
        assert same(a, b)
    model(input_ids=ids, labels=ids).loss.backward()


def test_evaluation_is_without_dropout(tokenizer: Any) -> None:
    model = tiny.tiny_llama(attention_dropout=0.5)
    first = score(model.eval(), CHOICE, tokenizer).rows
    assert score(model.train(), CHOICE, tokenizer).rows == first


def test_training_goes_on_after_scaled_rotary_frequencies_were_renewed(tokenizer: Any) -> None:
    """These models replace a buffer when a text is longer than any before; training must be able to use it."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    model = tiny.tiny_llama(rope_parameters=rope, max_position_embeddings=16)
    model.config.max_position_embeddings = 256  # so that the gate lets longer texts through
    score(model, CHOICE, tokenizer)
    ids = torch.arange(3, 50)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    assert next(model.parameters()).grad is not None


def test_passages_against_a_dense_oracle(llama: Any, tokenizer: Any) -> None:
    long = Item(" ".join(tiny.TEXT * 6))
    rows = {r.item: r for r in score(llama, replace(TEXT, items=(*TEXT.items, long)), tokenizer).rows}
    for item in (*TEXT.items, long):
        ids = tokenizer(item.prompt)["input_ids"]
        assert ids[0] == 1
        total = 0.0
        for at in range(1, len(ids), 255):  # windows of the context of 256, each after the start token
            window = torch.tensor([[1, *ids[at : at + 255]]])
            with torch.no_grad():
                steps = torch.log_softmax(llama(window).logits[0, :-1].double(), -1)
            total += float(steps.gather(1, window[0, 1:, None]).sum())
        expected = -total / math.log(2) / len(item.prompt.encode())
        assert rows[item.id].companion == pytest.approx(expected, rel=1e-5)
        assert rows[item.id].flags == (("truncated",) if item is long else ())


def test_passages_where_no_start_token_exists(llama: Any) -> None:
    """Every passage then begins with its own first token, not with that of another."""
    tokenizer = tiny.tiny_tokenizer(bos=False)
    tokenizer.bos_token = tokenizer.eos_token = None
    encoded = prepare(tokenizer, TEXT).encoded
    for e in encoded:
        assert [*e.prompt, *e.answers[0]] == tokenizer(e.item.prompt)["input_ids"]
    with pytest.raises(TaskError, match="has no token to score"):
        prepare(tokenizer, Task("t", (Item(""),), "text"))


def test_batches_hold_every_item_once_and_keep_to_the_size() -> None:
    sizes = [3, 50, 4, 4, 9, 30, 31, 5]
    encoded = [Encoded(Item(str(i)), "", tuple(range(n)), ((1, 2), (1,)), (1, 1)) for i, n in enumerate(sizes)]
    groups = batches(encoded, 2, 40)
    assert sorted(i for g in groups for i in g) == list(range(8))
    for group in groups:
        width = max(sizes[i] - 2 for i in group) + 1
        assert len(group) == 1 or width * len(group) <= 40
    assert max(map(len, groups)) > 3
    assert [len(g) for g in batches(encoded, 2, 1)] == [1] * 8


def test_cost_counts_the_prefix_once() -> None:
    encoded = [Encoded(Item(str(i)), "", (1,) * 10, ((1, 2, 3), (1,)), (1, 1)) for i in range(4)]
    assert cost_tokens(CHOICE, encoded, 6) == 6 + 4 * (4 + 2)


@pytest.mark.parametrize("kind", ["seq2seq", "classifier", "masked", "image"])
def test_other_kinds_of_models_get_one_clear_error(kind: str, tokenizer: Any) -> None:
    import transformers as tf

    small: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    model = {
        "seq2seq": lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(vocab_size=320, d_model=16, d_ff=16, num_layers=1)
        ),
        "classifier": lambda: tf.BertForSequenceClassification(tf.BertConfig(vocab_size=320, **small)),
        "masked": lambda: tf.BertForMaskedLM(tf.BertConfig(vocab_size=320, **small)),
        "image": lambda: tf.ViTForImageClassification(tf.ViTConfig(image_size=8, patch_size=4, **small)),
    }[kind]()
    for task in (CHOICE, EXACT, TEXT):
        with pytest.raises(TaskError, match=rf"{type(model).__name__} cannot be scored .* expected a causal language"):
            score(model, task, tokenizer)


def test_agreement_needs_two_models(llama: Any, tokenizer: Any) -> None:
    with pytest.raises(TaskError, match=r"agreement is between two models; use capabilities\.agreement"):
        score(llama, Task("a", (Item("x"),), "agreement"), tokenizer)


def test_no_tokenizer(llama: Any) -> None:
    with pytest.raises(InputError, match=r"LlamaForCausalLM, ...\): expected tokenizer=..."):
        evaluate(llama, CHOICE)


def test_a_loaded_model_brings_its_tokenizer(llama: Any, tokenizer: Any) -> None:
    loaded = SimpleNamespace(model=llama, tokenizer=tokenizer, card=SimpleNamespace(name="tiny"), newly_initialised=())
    assert evaluate(loaded, CHOICE, batch_tokens=120).rows == score(llama, CHOICE, tokenizer).rows


def test_formats(llama: Any, tokenizer: Any) -> None:
    quoted = score(llama, CHOICE, tokenizer, format="quoted")
    assert quoted.format == quoted.conditions["format"] == "quoted"
    assert quoted.rows != score(llama, CHOICE, tokenizer).rows
    with pytest.raises(InputError, match=r"no format 'quotes'; it has \['plain', .*Did you mean 'quoted'"):
        score(llama, CHOICE, tokenizer, format="quotes")


def test_a_users_function_sees_item_and_answer_and_its_error_names_the_item(llama: Any, tokenizer: Any) -> None:
    answers = {}

    def judge(item: Item, answer: str) -> float:
        answers[item.id] = answer
        return len(answer) % 2

    task = replace(EXACT, name="mine", scorer="callable", function=judge, max_new_tokens=4)
    rows = score(llama, task, tokenizer).rows
    assert answers.keys() == {item.id for item in task.items}
    assert {row.item: row.score for row in rows} == {name: len(text) % 2 for name, text in answers.items()}

    bad = task.items[5].id
    failing = replace(task, function=lambda item, answer: 1 / (item.id != bad))
    with pytest.raises(TaskError, match=f"task 'mine', item {bad}: its function failed .*ZeroDivisionError"):
        score(llama, failing, tokenizer)


def test_dropped_items_are_named(llama: Any, tokenizer: Any) -> None:
    long = Item("The cat " * 300, ("a", "b"), 1, id="long")
    task = replace(CHOICE, items=(*CHOICE.items, long), shots=())
    scores = score(llama, task, tokenizer, drop_long=True)
    assert len(scores.rows) == len(CHOICE.items)
    assert "1 items longer than the context were left out (long)" in scores.warnings


def test_the_slow_path_is_said() -> None:
    scores = score(tiny.tiny_mistral(), CHOICE, tiny.tiny_tokenizer())
    assert scores.conditions["packed"] is False
    assert any("plain path was used" in w and "window of 12" in w for w in scores.warnings)


def test_the_batch_size_is_measured_and_recorded(llama: Any, tokenizer: Any) -> None:
    scores = score(llama, replace(CHOICE, items=CHOICE.items[:3]), tokenizer, batch_tokens=None)
    assert scores.conditions["batch_tokens"] in (128, 512, 2048)
    found = speed.measure_speed(Engine(llama, tokenizer))
    assert found.tokens_per_second > 100


def test_a_batch_that_does_not_fit_is_halved_and_said() -> None:
    notes: list[str] = []
    ran = []

    def work(batch: list[int]) -> list[int]:
        if len(batch) > 3:
            raise torch.cuda.OutOfMemoryError("full")
        ran.append(batch)
        return [10 * i for i in batch]

    assert speed.halving_on_oom(work, list(range(9)), notes) == [10 * i for i in range(9)]
    assert ran == [[0, 1], [2, 3], [4, 5], [6, 7, 8]]
    assert notes == [f"a batch of {n} items ran out of GPU memory and was halved" for n in (9, 4, 5)]

    def never(batch: list[int]) -> list[int]:
        raise torch.cuda.OutOfMemoryError("full")

    with pytest.raises(ModelError, match="one item alone does not fit"):
        speed.halving_on_oom(never, [0, 1], [])


def test_an_engine_is_checked_once(llama: Any, tokenizer: Any) -> None:
    engine = make_engine(llama, tokenizer, 120)
    prepared = prepare(tokenizer, CHOICE)
    assert not engine.checked
    first = run(engine, prepared)
    assert engine.checked
    assert run(engine, prepared) == first
