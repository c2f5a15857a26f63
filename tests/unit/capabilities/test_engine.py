"""Every path against dense oracles written here: one unpadded forward pass per answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch

from catchment.capabilities import Prepared, generation, make_engine, prepare, run
from catchment.capabilities import engine as engines
from catchment.capabilities.engine import Engine, Prefix
from catchment.capabilities.prompts import Encoded
from catchment.capabilities.tasks import Item, Task
from catchment.errors import ModelError, TaskError
from tests import tiny

# PEFT 0.19 still asks transformers for the old name.
old_name_in_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
PLAIN = {"mistral", "bloom", "mamba"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CASES = [pytest.param(name, dtype, id=f"{name}-{dtype}") for name in tiny.CAUSAL for dtype in DTYPES]


@cache
def model_of(name: str, dtype: str = "fp32") -> Any:
    model = tiny.CAUSAL[name]().to(DTYPES[dtype])
    model.generation_config.repetition_penalty = 1.7  # must not reach a greedy decoding
    return model


def draw(seed: int, *, items: int = 7, shared: int = 11) -> tuple[list[tuple[int, ...]], list[list[tuple[int, ...]]]]:
    """Prompts that share ``shared`` tokens, of 3 to 15 more; 2 to 4 answers of 1 to 5 tokens each."""
    rng = random.Random(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, tiny.VOCABULARY) for _ in range(n))

    begin = (1, *ids(shared - 1)) if shared else ()
    prompts = [(*begin, *ids(rng.randint(3, 15))) for _ in range(items)]
    return prompts, [[ids(rng.randint(1, 5)) for _ in range(rng.randint(2, 4))] for _ in prompts]


def oracle(model: Any, prompt: Any, answer: Any) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
    steps = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    return float(sum(steps[k, token] for k, token in enumerate(answer)))


def task_of(prompts: Any, answers: Any, scorer: str = "choice", **settings: Any) -> tuple[Task, tuple[Encoded, ...]]:
    choices = tuple("abcd")
    items = tuple(
        Item(f"q{i}", choices[: len(g)] if scorer == "choice" else (), gold=i % 2 if scorer == "choice" else f"g{i}")
        for i, g in enumerate(answers)
    )
    task = Task("t", items, scorer, **settings)
    encoded = tuple(
        Encoded(item, "", tuple(p), tuple(map(tuple, group)), tuple(1 for _ in group))
        for item, p, group in zip(items, prompts, answers, strict=True)
    )
    return task, encoded


def prepared_of(task: Task, encoded: tuple[Encoded, ...]) -> Any:
    prefix = engines.common_prefix([e.prompt for e in encoded])
    longest = max(len(e.prompt) + sum(len(a) for a in e.answers) for e in encoded) + task.max_new_tokens
    return Prepared(task, task.formats[0], encoded, prefix, longest, 0)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_logprobs_equal_the_dense_oracle(name: str, dtype: str) -> None:
    model = model_of(name, dtype)
    prompts, answers = draw(1)
    task, encoded = task_of(prompts, answers)
    engine = Engine(model, tiny.tiny_tokenizer(), batch_tokens=160)
    rows = {row.item: row for row in run(engine, prepared_of(task, encoded))}

    assert engine.packed == (name not in PLAIN), engine.notes
    assert (name in PLAIN) == bool(engine.notes)
    for e in encoded:
        for got, ids in zip(rows[e.item.id].logprobs, e.answers, strict=True):
            tolerance = 1e-4 if dtype == "fp32" else 0.15 * len(ids)
            assert got == pytest.approx(oracle(model, e.prompt, ids), abs=tolerance)


@pytest.mark.parametrize("name", ["llama", "gpt2", "pythia", "gemma2", "opt"])
def test_logprobs_do_not_depend_on_the_batch(name: str) -> None:
    prompts, answers = draw(2)
    task, encoded = task_of(prompts, answers)
    found = []
    for batch_tokens, order in ((1, encoded), (90, encoded), (4096, encoded), (300, encoded[::-1])):
        engine = Engine(model_of(name), tiny.tiny_tokenizer(), batch_tokens=batch_tokens)
        rows = run(engine, prepared_of(task, tuple(order)))
        assert engine.packed
        found.append({row.item: row.logprobs for row in rows})
    for other in found[1:]:
        for item, values in found[0].items():
            assert other[item] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize("name", list(tiny.CAUSAL))
def test_generation_equals_the_models_own_one_at_a_time(name: str) -> None:
    model, tokenizer = model_of(name), tiny.tiny_tokenizer()
    prompts, golds = draw(3, items=5)
    golds = [group[:1] for group in golds]
    engine = Engine(model, tokenizer, packed=name not in PLAIN)
    with torch.no_grad():
        prefix = engines.make_prefix(engine, prompts[0][:11])
        found = generation.generate(engine, prefix, prompts, golds=golds, max_new_tokens=9)
        for prompt, gold, answer in zip(prompts, golds, found, strict=True):
            ids = torch.tensor([prompt])
            expected = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9, repetition_penalty=1.0
            )[0, len(prompt) :].tolist()
            ended = 2 in expected
            expected = expected[: expected.index(2)] if ended else expected
            assert list(answer.ids) == expected
            assert answer.text == tokenizer.decode(expected, skip_special_tokens=True)
            assert answer.cut is not ended
            assert answer.gold_logprob == pytest.approx(oracle(model, prompt, gold[0]), abs=1e-4)
    assert model.generation_config.repetition_penalty == 1.7


@pytest.mark.parametrize("packed", [True, False])
def test_generation_stops_where_asked_and_rows_leave_the_batch(packed: bool) -> None:
    """The stop string is taken from what the model says without one, so that every row stops at another step."""
    model, tokenizer = model_of("llama"), tiny.tiny_tokenizer()
    prompts, _ = draw(4, items=6)
    engine = Engine(model, tokenizer, packed=packed)
    with torch.no_grad():
        free = generation.generate(engine, Prefix(0), prompts, max_new_tokens=12)
        letters = [answer.text.strip()[1:2] for answer in free]
        stops = [s for s in letters[:2] if s]
        assert stops
        found = generation.generate(engine, Prefix(0), prompts, max_new_tokens=12, stop=stops)
    lengths = set()
    for answer, whole in zip(found, free, strict=True):
        lengths.add(len(answer.ids))
        lead = len(whole.text) - len(whole.text.lstrip())
        ends = [whole.text.find(s, lead + 1) for s in stops if whole.text.find(s, lead + 1) >= 0]
        assert answer.text == (whole.text[: min(ends)] if ends else whole.text)
        assert answer.cut == (not ends)
    assert len(lengths) > 1


def test_an_end_token_at_once_is_an_empty_answer() -> None:
    model, tokenizer = model_of("llama"), tiny.tiny_tokenizer()
    prompts, _ = draw(5, items=3)
    with torch.no_grad():
        first = [int(model(torch.tensor([p])).logits[0, -1].argmax()) for p in prompts]
    for packed in (True, False):
        engine = Engine(model, tokenizer, packed=packed)
        saved = model.generation_config.eos_token_id
        model.generation_config.eos_token_id = [2, first[0]]
        try:
            with torch.no_grad():
                answer = generation.generate(engine, Prefix(0), prompts, max_new_tokens=4)[0]
        finally:
            model.generation_config.eos_token_id = saved
        assert (answer.text, answer.ids, answer.cut) == ("", (), False)


@contextmanager
def tokens_through(model: Any) -> Iterator[list[int]]:
    seen: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numel()))
    try:
        yield seen
    finally:
        hook.remove()


def test_shared_prefix_and_prompts_are_computed_once() -> None:
    """Equal lengths, so no padding: prefix + each prompt's own tokens + all but the last token of each answer."""
    rng = random.Random(6)
    begin = tuple(rng.randrange(3, 300) for _ in range(40))
    prompts = [(*begin, i + 3, *(rng.randrange(3, 300) for _ in range(9))) for i in range(12)]
    answers = [[tuple(rng.randrange(3, 300) for _ in range(4)) for _ in range(4)] for _ in prompts]
    task, encoded = task_of(prompts, answers)
    engine = Engine(model_of("llama"), tiny.tiny_tokenizer(), batch_tokens=70, checked=True)
    with tokens_through(engine.model) as seen:
        run(engine, prepared_of(task, encoded))
    assert sum(seen) == 40 + 12 * (10 + 4 * 3)
    assert len(seen) == 1 + 12 // 3


@pytest.mark.parametrize("seed", range(6))
def test_rows_hold_every_prompt_once_with_less_padding(seed: int) -> None:
    rng = random.Random(seed)
    sizes = [rng.randint(1, 90 if seed % 2 else 30) for _ in range(40)]
    rows = engines.shared_rows(sizes, limit=100)
    lengths = [sum(sizes[i] for i in row) for row in rows]
    assert sorted(i for row in rows for i in row) == list(range(40))
    assert max(lengths) <= max(100, *sizes)
    assert sum(lengths) <= len(rows) * max(lengths) < 1.3 * sum(sizes) < 40 * max(sizes)


def test_a_limit_below_the_longest_prompt_leaves_it_a_row() -> None:
    assert sorted(engines.shared_rows([5, 70, 6], limit=10)) == [[1], [2, 0]]
    assert engines.shared_rows([9, 9], limit=-3) == [[0], [1]]


@pytest.mark.parametrize("name", ["llama", "gpt2", "pythia", "gemma2", "opt"])
def test_logits_are_made_where_an_answer_is_predicted_only(name: str) -> None:
    """Answers of one token are all predicted by the last token of the prompt."""
    prompts, answers = draw(12)
    single = [[(3,), (4,)] for _ in prompts]
    for group, places in ((answers, sum(1 + sum(len(a) - 1 for a in g) for g in answers)), (single, len(prompts))):
        task, encoded = task_of(prompts, group)
        engine = Engine(model_of(name), tiny.tiny_tokenizer(), batch_tokens=4096, checked=True)
        assert engines.calls_of(engine.model).head
        head, before = engine.model.get_output_embeddings(), set(engine.model.get_output_embeddings()._forward_hooks)
        seen: list[int] = []
        hook = head.register_forward_hook(lambda _, given, made, seen=seen: seen.append(made.shape[:-1].numel()))
        with tokens_through(engine.model) as read:
            rows = {row.item: row for row in run(engine, prepared_of(task, encoded))}
        hook.remove()
        assert set(head._forward_hooks) == before
        assert not head._forward_pre_hooks
        assert seen == [1, places]  # of the prefix, and of all items in one pass
        assert sum(read) < 11 + 1.3 * sum(engines._sizes(Prefix(11), prompts, group))
        for e in encoded:
            expected = [oracle(engine.model, e.prompt, ids) for ids in e.answers]
            assert rows[e.item.id].logprobs == pytest.approx(expected, abs=1e-4)


def test_a_model_that_makes_logits_in_another_way_has_a_row_per_prompt() -> None:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    class Functional(type(model_of("llama"))):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, logits_to_keep: Any = 0, **rest: Any) -> Any:
            output = self.model(input_ids, **rest)
            places = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = output.last_hidden_state[:, places] @ self.lm_head.weight.T
            return CausalLMOutputWithPast(logits=logits, past_key_values=output.past_key_values)

    model = tiny.CAUSAL["llama"]()
    model.__class__ = Functional
    prompts, answers = draw(13)
    task, encoded = task_of(prompts, answers)
    engine = Engine(model, tiny.tiny_tokenizer(), batch_tokens=4096)
    with tokens_through(model) as seen:
        rows = {row.item: row for row in run(engine, prepared_of(task, encoded))}
    assert engine.packed
    assert not engines.calls_of(model).head
    assert seen[-1] == 7 * max(engines._sizes(Prefix(11), prompts, answers))
    for e in encoded:
        expected = [oracle(model, e.prompt, ids) for ids in e.answers]
        assert rows[e.item.id].logprobs == pytest.approx(expected, abs=1e-4)


def test_a_gold_answer_costs_no_second_prompt() -> None:
    prompts, answers = draw(7, items=1)
    engine = Engine(model_of("llama"), tiny.tiny_tokenizer())
    with tokens_through(engine.model) as seen, torch.no_grad():
        generation.generate(engine, Prefix(0), prompts, golds=[answers[0][:1]], max_new_tokens=5)
    assert seen[0] == len(prompts[0]) + len(answers[0][0]) - 1
    assert all(n == 1 for n in seen[1:])


def test_the_prefix_cache_is_not_changed_by_its_use() -> None:
    prompts, _ = draw(8)
    engine = Engine(model_of("llama"), tiny.tiny_tokenizer())
    with torch.no_grad():
        prefix = engines.make_prefix(engine, prompts[0][:11])
        before = [(layer.keys.clone(), layer.values.clone()) for layer in prefix.cache.layers]
        first = generation.generate(engine, prefix, prompts, max_new_tokens=6)
        again = generation.generate(engine, prefix, prompts, max_new_tokens=6)
    assert first == again
    for layer, (keys, values) in zip(prefix.cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
        assert torch.equal(layer.values, values)


@pytest.mark.parametrize("window", [16, 20, 24, 40, 64])
def test_sliding_windows_near_the_length_of_the_text(window: int) -> None:
    """Around the window either path may be chosen, but the numbers are right."""
    model = tiny.tiny_gemma2(sliding_window=window)
    prompts, answers = draw(9)
    task, encoded = task_of(prompts, answers)
    engine = Engine(model, tiny.tiny_tokenizer(), batch_tokens=500)
    rows = {row.item: row for row in run(engine, prepared_of(task, encoded))}
    for e in encoded:
        expected = [oracle(model, e.prompt, ids) for ids in e.answers]
        assert rows[e.item.id].logprobs == pytest.approx(expected, abs=1e-4)


def test_generation_beyond_the_window_is_right() -> None:
    """A cache of sliding layers forgets; padding and a long right answer must not push the prompt out of it."""
    model, tokenizer = tiny.tiny_gemma2(sliding_window=32), tiny.tiny_tokenizer()
    texts = ["The old cat slept.", "A dog ran into the garden"]
    items = tuple(Item(text, gold="the big garden and the warm stone", id=text) for text in texts)
    task = Task("t", items, "exact", max_new_tokens=8, stop=())
    prepared = prepare(tokenizer, task)
    rows = {row.item: row for row in run(Engine(model, tokenizer), prepared)}
    for e in prepared.encoded:
        ids = torch.tensor([e.prompt])
        with torch.no_grad():
            output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
        expected = tokenizer.decode(output[0, len(e.prompt) :], skip_special_tokens=True)
        assert rows[e.item.id].prediction == expected.strip()
        assert rows[e.item.id].logprobs[0] == pytest.approx(oracle(model, e.prompt, e.answers[0]), abs=1e-4)


def test_the_self_check_catches_a_model_that_ignores_positions() -> None:
    """The check must see it although this task itself has neither padding nor branches."""

    class Deaf(type(model_of("gpt2"))):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, position_ids: Any = None, **rest: Any) -> Any:
            return super().forward(input_ids, **rest)

    model = tiny.CAUSAL["gpt2"]()
    model.__class__ = Deaf
    task, encoded = task_of([(1, 5, 6, 7, 8)] * 2, [[(9,), (10,)]] * 2)
    engine = Engine(model, tiny.tiny_tokenizer())
    rows = run(engine, prepared_of(task, encoded))
    assert not engine.packed
    assert "differ" in engine.notes[0]
    assert rows[0].logprobs == pytest.approx([oracle(model, (1, 5, 6, 7, 8), (t,)) for t in (9, 10)], abs=1e-4)


def test_large_logits_in_half_precision_are_no_flaw_of_the_layout() -> None:
    """A logit of 40 is rounded to 0.25 in bfloat16, so that two right ways differ by more than they do elsewhere."""
    model = tiny.CAUSAL["llama"]().to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight *= 40 / float(model(torch.tensor([[1, 5, 6, 7, 8]])).logits.abs().max())
    task, encoded = task_of(*draw(14))
    prepared = prepared_of(task, encoded)
    engine = Engine(model, tiny.tiny_tokenizer())
    run(engine, prepared)
    assert engine.packed

    class Deaf(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Any = None, position_ids: Any = None, **rest: Any) -> Any:
            return super().forward(input_ids, **rest)

    model.__class__ = Deaf
    engine = Engine(model, tiny.tiny_tokenizer())
    run(engine, prepared)
    assert not engine.packed


def test_the_layout_is_checked_once_for_each_model() -> None:
    model = tiny.CAUSAL["llama"]()
    task, encoded = task_of(*draw(15))
    prepared = prepared_of(task, encoded)
    passes = []
    for dtype in (torch.float32, torch.float32, torch.bfloat16):
        with tokens_through(model.to(dtype)) as seen:
            run(Engine(model, tiny.tiny_tokenizer(), batch_tokens=4096), prepared)
        passes.append(len(seen))
    assert passes[1] == 2
    assert passes[0] > 2
    assert passes[2] > 2


def test_common_prefix_leaves_every_prompt_a_token() -> None:
    assert engines.common_prefix([(1, 2, 3), (1, 2, 3, 4)]) == 2
    assert engines.common_prefix([(1, 2), (3, 4)]) == 0
    assert engines.common_prefix([(1, 2, 3)]) == 2


@old_name_in_peft
def test_engine_refuses_what_does_not_predict_the_next_token(tokenizer: Any) -> None:
    import peft
    import transformers as tf

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = tf.BertForMaskedLM(tf.BertConfig(vocab_size=320, **small))
    with pytest.raises(TaskError, match="BertForMaskedLM cannot be scored by its next-token"):
        make_engine(bert, tokenizer, 64)
    prompted = peft.get_peft_model(
        tiny.tiny_llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    with pytest.raises(ModelError, match="virtual tokens"):
        make_engine(prompted, tokenizer, 64)


@old_name_in_peft
def test_an_adapter_is_active_on_both_paths(tokenizer: Any) -> None:
    import peft

    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny.tiny_llama(), lora).eval()
    prompts, answers = draw(10, items=3)
    task, encoded = task_of(prompts, answers)
    for packed in (True, False):
        engine = Engine(model, tokenizer, packed=packed)
        rows = {row.item: row for row in run(engine, prepared_of(task, encoded))}
        assert engine.packed == packed
        with torch.no_grad():
            (answer,) = generation.generate(engine, Prefix(0), prompts[:1], max_new_tokens=4)
        for e in encoded:
            expected = [oracle(model, e.prompt, ids) for ids in e.answers]
            assert rows[e.item.id].logprobs == pytest.approx(expected, abs=1e-4)
        ids = list(prompts[0])
        with torch.no_grad():
            for token in answer.ids:
                assert int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
                ids.append(token)
    with torch.no_grad(), model.disable_adapter():
        assert abs(oracle(model, prompts[0], answers[0][0]) - rows[encoded[0].item.id].logprobs[0]) > 1e-3


@pytest.mark.parametrize(("given", "expected"), [("a\nb", "a"), ("\n\n a\nb", "\n\n a"), (" \n", None), ("ab", None)])
def test_a_stop_counts_after_a_visible_character(given: str, expected: str | None) -> None:
    assert generation._stopped(given, ("\n",)) == expected


@pytest.mark.parametrize("packed", [True, False])
def test_padding_without_an_embedding_is_not_asked_for(packed: bool) -> None:
    """A token that was added to the tokenizer only: any other one pads as well, as padding is masked."""
    model, tokenizer = model_of("llama"), tiny.tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.add_special_tokens({"additional_special_tokens": ["<more>"], "pad_token": "[PAD]"})
    assert tokenizer.pad_token_id >= tiny.VOCABULARY
    prompts, answers = draw(11)
    task, encoded = task_of(prompts, answers)
    rows = {row.item: row for row in run(Engine(model, tokenizer, packed=packed), prepared_of(task, encoded))}
    for e in encoded:
        expected = [oracle(model, e.prompt, ids) for ids in e.answers]
        assert rows[e.item.id].logprobs == pytest.approx(expected, abs=1e-4)
