"""What a model writes by itself or answers, and the divergence that holds a tuned model to it."""

from __future__ import annotations

import copy
import json
import math
import random
from collections import Counter
from typing import Any

import pytest
import torch

from catchment.capabilities import Item, Task, prepare
from catchment.errors import InputError
from catchment.training import Collator, encode_rows, read_rows
from catchment.training.encoding import IGNORE
from catchment.training.generation import Sampling, answered, self_generated
from catchment.training.replay import Replay
from tests.tiny import CAUSAL, CHAT, tiny_llama, tiny_tokenizer

torch.set_num_threads(1)


class Fixed(torch.nn.Module):
    """Draws each token from one distribution, whatever came before."""

    def __init__(self, probabilities: torch.Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(probabilities.numel(), 2)
        self.logits = probabilities.log()
        self.config = type("Config", (), {"max_position_embeddings": 10_000})()

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.table

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        logits = self.logits.expand(*input_ids.shape, -1)
        return type("Out", (), {"logits": logits})()


def letters() -> tuple[torch.Tensor, list[int]]:
    """A distribution over the end token and three letters."""
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.encode(c, add_special_tokens=False)[0] for c in "abc"]
    p = torch.full((len(tokenizer),), 1e-30)
    p[tokenizer.eos_token_id] = 0.25
    p[ids] = torch.tensor([0.15, 0.225, 0.375])
    return p / p.sum(), ids


def test_tokens_are_drawn_with_their_probabilities() -> None:
    """Letters 0.2, 0.3, 0.5 given that the text goes on; lengths geometric with the end at 1/4."""
    p, _ = letters()
    with pytest.warns(UserWarning, match=r"of 4000 self-generated rows were empty"):
        rows = self_generated(Fixed(p), tiny_tokenizer(), 4000, Sampling(max_new_tokens=60, seed=1, batch_size=500))
    empty = 4000 - len(rows)
    assert abs(empty / 4000 - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    counts = Counter("".join(row["text"] for row in rows))
    total = sum(counts.values())
    assert abs(total / len(rows) - 4) < 4 * math.sqrt(12 / len(rows))  # a geometric length has variance (1-p)/p^2
    for letter, share in zip("abc", (0.2, 0.3, 0.5), strict=True):
        assert abs(counts[letter] / total - share) < 4 * math.sqrt(share * (1 - share) / total)
    assert not any(row["cut"] for row in rows if len(row["text"]) < 60)


def test_cross_entropy_on_the_rows_estimates_the_divergence() -> None:
    """E[-log q] - H(p) = KL(p || q) per token, against its closed form."""
    p, ids = letters()
    q = p.clone()
    q[ids] = q[ids[::-1]]
    inner = [*ids, tiny_tokenizer().eos_token_id]
    exact = float((p[inner] * (p[inner] / q[inner]).log()).sum())
    with pytest.warns(UserWarning, match="empty"):
        rows = self_generated(Fixed(p), tiny_tokenizer(), 4000, Sampling(max_new_tokens=100, batch_size=1000))
    counts = Counter("".join(row["text"] for row in rows))
    tokens = sum(counts.values()) + 4000
    seen = {token: counts[letter] for token, letter in zip(ids, "abc", strict=True)} | {inner[-1]: 4000}
    cross = -sum(k * float(q[token].log()) for token, k in seen.items()) / tokens
    entropy = -float((p[inner] * p[inner].log()).sum())
    assert exact > 0.1
    assert cross - entropy == pytest.approx(exact, abs=0.03)


def test_temperature_sharpens() -> None:
    p, _ = letters()
    with pytest.warns(UserWarning, match="empty"):
        rows = self_generated(
            Fixed(p), tiny_tokenizer(), 500, Sampling(max_new_tokens=40, temperature=0.25, batch_size=500)
        )
    counts = Counter("".join(row["text"] for row in rows))
    assert counts["c"] / sum(counts.values()) == pytest.approx(0.5**4 / (0.5**4 + 0.3**4 + 0.2**4), abs=0.04)


def test_rows_are_those_of_the_seed_and_leave_no_trace() -> None:
    model, tokenizer = tiny_llama().train(), tiny_tokenizer()
    state = torch.get_rng_state()
    first = self_generated(model, tokenizer, 6, Sampling(max_new_tokens=8, seed=3, batch_size=4))
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    torch.manual_seed(99)
    random.seed(99)
    assert first == self_generated(model, tokenizer, 6, Sampling(max_new_tokens=8, seed=3, batch_size=4))
    assert first == self_generated(model, tokenizer, 6, Sampling(max_new_tokens=8, seed=3, batch_size=1))
    assert first != self_generated(model, tokenizer, 6, Sampling(max_new_tokens=8, seed=4, batch_size=4))
    assert all(set(row) == {"text", "cut"} for row in first)
    assert json.loads(json.dumps(first)) == first


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom", "mamba", "gemma2"])
def test_padding_and_caches_change_nothing(name: str) -> None:
    """Answers to messages of other lengths, in one batch or one by one."""
    model, tokenizer = CAUSAL[name](), tiny_tokenizer(chat=True)
    together = self_generated(model, tokenizer, 4, Sampling(max_new_tokens=6, seed=5, batch_size=4))
    assert together == self_generated(model, tokenizer, 4, Sampling(max_new_tokens=6, seed=5, batch_size=1))
    assert len({len(row["messages"][0]["content"]) for row in together}) > 1


@pytest.mark.parametrize("opening", [None, 2])
def test_a_chat_model_writes_the_question_and_answers_it(opening: int | None) -> None:
    """The answer is drawn from the model's own distribution after the rendered message: greedy at a low temperature.
    Of a long answer the opening can be enough."""
    model, tokenizer = tiny_llama(), tiny_tokenizer(chat=True)
    sampling = Sampling(max_new_tokens=6, max_answer_tokens=opening, seed=0, temperature=1e-4)
    rows = self_generated(model, tokenizer, 5, sampling)
    assert rows
    for row in rows:
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        prompt = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=opening or 6, do_sample=False, use_cache=True)
        answer = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert assistant["content"] == answer


def test_a_turn_that_ends_with_words() -> None:
    """No special token closes the turn: the message ends where the template's own words begin."""
    template = "{% for m in messages %}USER: {{ m['content'] }} abc{% endfor %}"
    p = torch.full((len(tiny_tokenizer()),), 1e-30)
    tokenizer = tiny_tokenizer(chat=template)
    ids = [tokenizer.encode(c, add_special_tokens=False)[0] for c in "abc"]
    p[ids] = 1.0
    rows = self_generated(Fixed(p / p.sum()), tokenizer, 20, Sampling(max_new_tokens=200, seed=2))
    assert rows
    assert all("abc" not in row["messages"][0]["content"] for row in rows)
    assert all("abc" in row["messages"][1]["content"] and row["cut"] for row in rows)


def test_without_bos_the_first_token_is_random() -> None:
    tokenizer = tiny_tokenizer(bos=False)
    tokenizer.bos_token = None
    p, _ = letters()
    with pytest.warns(UserWarning, match="empty"):
        rows = self_generated(Fixed(p), tokenizer, 300, Sampling(max_new_tokens=4, batch_size=300))
    assert len({row["text"][0] for row in rows}) > 40


def test_a_text_ends_with_the_context() -> None:
    p = torch.full((len(tiny_tokenizer()),), 1e-30)
    p[letters()[1]] = 1 / 3
    model = Fixed(p)
    model.config.max_position_embeddings = 16
    rows = self_generated(model, tiny_tokenizer(), 4, Sampling(max_new_tokens=99))
    assert [(len(row["text"]), row["cut"]) for row in rows] == [(15, True)] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n 0, max_new_tokens 4"),
        ({"max_answer_tokens": 0}, "max_answer_tokens 0, batch_size 16"),
        ({"temperature": 0.0}, "temperature 0.0: expected at least 1 each"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    given = {"n": 1, "max_new_tokens": 4, **settings}
    with pytest.raises(InputError, match=message):
        self_generated(tiny_llama(), tiny_tokenizer(), given.pop("n"), Sampling(**given))


def test_a_template_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"chat_template 'nowhere\.jinja': expected 'auto'"):
        self_generated(tiny_llama(), tiny_tokenizer(), 1, Sampling(4), chat_template="nowhere.jinja")


def test_a_template_without_the_message_is_refused() -> None:
    with pytest.raises(InputError, match="leaves out the user's message"):
        self_generated(tiny_llama(), tiny_tokenizer(chat="hello"), 1, Sampling(max_new_tokens=2))
    with pytest.raises(InputError, match="the chat template failed"):
        self_generated(tiny_llama(), tiny_tokenizer(chat="{{ raise_exception('no') }}"), 1, Sampling(max_new_tokens=2))
    assert self_generated(tiny_llama(), tiny_tokenizer(chat=CHAT), 1, Sampling(max_new_tokens=2), chat_template="none")


# ------------------------------------------------------------------------------------- the divergence from the base


def moved(model: Any, size: float) -> Any:
    """A copy whose weights are moved at random."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator))
    return other


def texts(tokenizer: Any) -> list[dict[str, Any]]:
    rows = [{"prompt": p, "completion": c} for p, c in (("ab", "cd"), ("a", "b a c"), ("hello", "dog"), ("x y", "z"))]
    return encode_rows(read_rows(rows), tokenizer, max_length=64, chat_template="none").examples


def replay_of(model: Any, **settings: Any) -> Replay:
    tokenizer = tiny_tokenizer()
    return Replay(model, texts(tokenizer), Collator(tokenizer), **{"per_batch": 2, **settings})


def by_hand(base: Any, model: Any, example: dict[str, Any]) -> torch.Tensor:
    """KL over the whole vocabulary at each place that predicts a label, one text alone."""
    ids = torch.tensor([example["input_ids"]])
    learned = torch.tensor(example["labels"])[1:] != IGNORE
    p, q = (m(input_ids=ids).logits[0, :-1][learned].double().log_softmax(-1) for m in (base, model))
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("family", sorted(CAUSAL))
def test_the_divergence_is_that_of_the_whole_vocabulary_when_all_tokens_are_kept(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catchment.training.replay.TOP", 10**6)
    base = CAUSAL[family]().eval()
    model = moved(base, 0.02)
    replay = replay_of(base, weight=3.0)
    with torch.no_grad():
        wanted = torch.stack([by_hand(base, model, replay.examples[row]).mean() for row in (0, 2, 3)]).mean()
        assert float(replay.loss(model, [0, 2, 3])) == pytest.approx(3 * float(wanted), rel=2e-4, abs=1e-8)


def test_few_tokens_and_the_others_as_one_are_a_lower_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_llama().eval()
    model = moved(base, 0.05)
    found = []
    for top in (1, 4, 16, 10**6):
        monkeypatch.setattr("catchment.training.replay.TOP", top)
        found.append(float(replay_of(base).loss(model, [0, 1, 2, 3]).detach()))
    assert 0 < found[0] < found[1] < found[2] < found[3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_the_base_there_is_no_step_to_take(dtype: torch.dtype) -> None:
    base = tiny_llama().to(dtype).eval()
    replay = replay_of(base)
    loss = replay.loss(base, [0, 1])
    loss.backward()
    largest = max(float(p.grad.abs().max()) for p in base.parameters() if p.grad is not None)
    away = moved(base, 0.05)
    replay.loss(away, [0, 1]).backward()
    there = max(float(p.grad.abs().max()) for p in away.parameters() if p.grad is not None)
    small = 1e-5 if dtype == torch.float32 else 0.05
    assert abs(float(loss.detach())) < small
    assert largest < small * there * 10


def test_tokens_that_a_model_rules_out() -> None:
    """Their logits are -inf; the 64 likeliest are more than are possible."""
    tokenizer = tiny_tokenizer()
    possible = torch.full((len(tokenizer),), 0.0)
    possible[3:13] = 0.1
    others = possible.clone()
    others[3:13] = torch.linspace(0.05, 0.15, 10)
    replay = Replay(Fixed(possible), texts(tokenizer), Collator(tokenizer), per_batch=1)
    wanted = float((0.1 * (0.1 / others[3:13]).log()).sum())
    assert float(replay.loss(Fixed(others), [0, 1])) == pytest.approx(wanted, rel=1e-4)
    assert float(replay.loss(Fixed(possible), [0, 1])) == pytest.approx(0, abs=1e-6)


def test_rows_come_in_turn_and_processes_share_them() -> None:
    replay = replay_of(tiny_llama(), per_batch=1.5, seed=4)
    seen = [row for batch in range(8) for row in replay.rows(batch)]
    assert [len(replay.rows(batch)) for batch in range(4)] == [1, 2, 1, 2]
    assert sorted(seen[:4]) == sorted(seen[4:8]) == [0, 1, 2, 3]
    assert seen[:4] != seen[4:8] or seen[4:8] != seen[8:12]
    two = [row for batch in range(4) for rank in range(2) for row in replay.rows(batch, rank, 2)]
    assert two == seen
    assert replay_of(tiny_llama(), per_batch=0.5).rows(0) == []
    assert float(replay.loss(tiny_llama(), [])) == 0


def test_the_order_is_the_same_on_every_python() -> None:
    assert replay_of(tiny_llama(), per_batch=4, seed=4).rows(0) == [2, 0, 3, 1]


def test_replay_refuses() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    with pytest.raises(InputError, match=r"per_batch 0, weight 1: expected numbers above 0"):
        replay_of(model, per_batch=0)
    with pytest.raises(InputError, match="weight nan"):
        replay_of(model, weight=math.nan)
    with pytest.raises(InputError, match="none of 1 texts to replay has a token to learn"):
        Replay(model, [{"input_ids": [1, 2], "labels": [IGNORE] * 2}], Collator(tokenizer), per_batch=1)


# ------------------------------------------------------------------------------------------- answers to a task's items


@pytest.mark.parametrize("family", sorted(CAUSAL))
def test_answers_are_what_the_model_says_greedily(family: str) -> None:
    model, tokenizer = CAUSAL[family]().eval(), tiny_tokenizer()
    task = Task("t", tuple(Item(text, gold="x") for text in ("a", "a b c", "hello dog", "b")), "exact")
    found = answered(model, tokenizer, task, max_new_tokens=5, batch_size=3)
    assert len(found) == 4
    for example in found:
        asked = sum(label == IGNORE for label in example["labels"])
        assert example["labels"][asked:] == example["input_ids"][asked:]
        ids = torch.tensor([example["input_ids"]])
        with torch.no_grad():
            said = model(input_ids=ids).logits[0, asked - 1 : -1].argmax(-1).tolist()
        assert said == example["labels"][asked:]
    prompts = {tuple(e.prompt) for e in prepare(tokenizer, task).encoded}
    assert {tuple(e["input_ids"][: sum(label == IGNORE for label in e["labels"])]) for e in found} == prompts


def test_of_choices_all_are_replayed_and_of_letters_one_stands_for_all() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    for choices, rows in ((("a b", "b a c"), 4), (("a", "b", "c"), 2)):
        task = Task("t", tuple(Item(text, choices, 0) for text in ("x", "y z")), "choice")
        encoded = prepare(tokenizer, task).encoded
        found = answered(model, tokenizer, task)
        assert len(found) == rows
        tails = {tuple(label for label in e["labels"] if label != IGNORE) for e in found}
        assert tails == ({a for e in encoded for a in e.answers} if rows == 4 else {encoded[0].answers[0]})


def test_the_base_writes_and_answers_under_the_system_prompt() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer(chat=True)
    rows = self_generated(model, tokenizer, 4, Sampling(max_new_tokens=6), system="Be brief.")
    assert rows
    assert [[m["role"] for m in row["messages"]] for row in rows] == [["system", "user", "assistant"]] * len(rows)
    assert {row["messages"][0]["content"] for row in rows} == {"Be brief."}
    bare = self_generated(model, tokenizer, 4, Sampling(max_new_tokens=6))
    assert [row["messages"][-2:] for row in rows] != [row["messages"] for row in bare]
    # Nobody is asked where there is no template.
    plain = self_generated(model, tiny_tokenizer(), 2, Sampling(max_new_tokens=6), system="Be brief.")
    assert plain == self_generated(model, tiny_tokenizer(), 2, Sampling(max_new_tokens=6))
    strict = tiny_tokenizer(chat="{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + CHAT)
    with pytest.raises(InputError, match=r"failed on a system message and one of the user .*no system prompt"):
        self_generated(model, strict, 2, Sampling(max_new_tokens=6), system="Be brief.")
    task = Task("t", (Item("2 + 2?", gold="4"),), "exact")
    (example, *_) = answered(model, tokenizer, task, max_new_tokens=4, system="Be brief.")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": task.formats[0].fill(task.items[0])},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = [1, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert example["input_ids"][: len(prompt)] == prompt
    assert example["labels"][: len(prompt) + 1].count(-100) == len(prompt)


def test_items_beyond_the_context_are_named() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    task = Task("t", (Item("2 + 2?", gold="4"), Item("cat " * 300, gold="cat")), "exact")
    with pytest.warns(UserWarning, match="1 of 2 items of 't' do not fit into the context"):
        assert len(answered(model, tokenizer, task, max_new_tokens=4)) == 1
