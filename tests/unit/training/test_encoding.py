"""Token ids and labels: what is learned, where the border lies, and that questions are put as they were trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from catchment.capabilities import evaluate, prepare
from catchment.errors import InputError
from catchment.training.data import read_rows
from catchment.training.encoding import IGNORE, Encoded, encode_rows
from catchment.training.tasks import as_task
from tests.tiny import CHAT, TEXT, tiny_llama, tiny_tokenizer

torch.set_num_threads(1)

TRIM = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] | trim }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
OPEN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
THINK = CHAT.replace(
    "{{ m['content'] }}",
    "{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}{{ m['content'] }}",
)
NEVER = "{{ messages | length }}" + CHAT
TOKENIZERS = {
    "bos": tiny_tokenizer(),
    "no bos": tiny_tokenizer(bos=False),
    "chat": tiny_tokenizer(chat=True),
    "chat with bos": tiny_tokenizer(chat=TRIM),
    "chat without end": tiny_tokenizer(bos=False, chat=OPEN),
    "slow": tf.ByT5Tokenizer(),
}
SUMS = [{"prompt": f"Question: What is {a} + 7? Answer:", "completion": f" {a + 7}"} for a in range(12)]
BLANK = [{"prompt": f"What is {a} + 7? Answer: ", "completion": str(a + 7)} for a in range(12)]
LINES = [{"prompt": f"Text: {a} + 7\n", "completion": f"{a + 7}\n"} for a in range(12)]
CHOICES = [{"prompt": f"Is {a} + 7 the cat?", "completion": (" yes", " no")[a % 2]} for a in range(12)]
TURNS = [
    {"messages": [{"role": "user", "content": f"{a} + 7?"}, {"role": "assistant", "content": str(a + 7)}]}
    for a in range(12)
]


class Slow:
    """A fast tokenizer without its offsets."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self.inner = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, text: str, **options: Any) -> Any:
        assert "return_offsets_mapping" not in options
        return self.inner(text, **options)


def split(example: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The tokens before the first learned one, and the others."""
    labels = example["labels"]
    first = next(k for k, label in enumerate(labels) if label != IGNORE)
    return example["input_ids"][:first], example["input_ids"][first:]


def learned(tokenizer: Any, example: dict[str, Any]) -> list[str]:
    """The texts of the learned spans."""
    texts: list[str] = []
    before = IGNORE
    for label in example["labels"]:
        if label != IGNORE:
            texts = [*texts, ""] if before == IGNORE else texts
            texts[-1] += tokenizer.decode([label])
        before = label
    return texts


def encode(rows: list[dict[str, Any]], tokenizer: Any, **options: Any) -> Encoded:
    return encode_rows(read_rows(rows), tokenizer, **{"max_length": 256, **options})


@pytest.mark.parametrize(
    "rows", [SUMS, BLANK, LINES, CHOICES, TURNS], ids=["sums", "blank", "lines", "choices", "turns"]
)
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("system", [None, "You are a helpful assistant."])
def test_questions_are_put_as_they_were_trained(name: str, rows: list[dict[str, Any]], system: str | None) -> None:
    tokenizer = TOKENIZERS[name]
    if rows is TURNS and not tokenizer.chat_template:
        return
    read = read_rows(rows)
    encoded = encode_rows(read, tokenizer, max_length=256, system=system)
    task = as_task(read)
    assert task is not None
    assert task.scorer == ("choice" if rows is CHOICES else "exact")
    asked = prepare(tokenizer, task, system=system).encoded
    trained = [split(example) for example in encoded.examples]
    assert [list(item.prompt) for item in asked] == [prompt for prompt, _ in trained]
    for item, (_, completion) in zip(asked, trained, strict=True):
        gold = item.item.gold if task.scorer == "choice" else 0
        if name in ("bos", "no bos", "slow") or (rows is TURNS and name != "chat without end"):  # no blanks between
            assert list(item.answers[gold]) == completion[: len(item.answers[gold])]  # type: ignore[index]
        assert completion[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("name", TOKENIZERS)
def test_one_bos_and_one_end(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    for rows in (SUMS, [{"text": text} for text in TEXT]):
        for example in encode(rows, tokenizer).examples:
            ids = example["input_ids"]
            begins = name in ("bos", "chat", "chat with bos")
            assert ids[:2].count(tokenizer.bos_token_id) == begins
            assert (ids[0] == 1) == begins
            assert ids[-1] == tokenizer.eos_token_id != ids[-2]


def test_a_template_that_writes_bos_twice() -> None:
    (twice, *_), (once, *_) = (encode(SUMS, tiny_tokenizer(chat=bos + CHAT)).examples for bos in ("<s><s>", "<s>"))
    assert twice == once
    assert once["input_ids"].count(1) == 1


def test_the_text_is_joint_and_the_end_is_learned() -> None:
    tokenizer = TOKENIZERS["bos"]
    for row, example in zip(SUMS, encode(SUMS, tokenizer).examples, strict=True):
        assert example["input_ids"] == [*tokenizer(row["prompt"] + row["completion"])["input_ids"], 2]
        assert learned(tokenizer, example) == [row["completion"] + "</s>"]


def test_a_completion_that_ends_itself() -> None:
    tokenizer = TOKENIZERS["bos"]
    ends = [{"prompt": "a", "completion": " b</s>"}]
    assert encode(ends, tokenizer).examples == encode([{"prompt": "a", "completion": " b"}], tokenizer).examples


def test_a_token_across_the_border_is_completion() -> None:
    tokenizer = TOKENIZERS["bos"]
    rows = [{"prompt": "The capit", "completion": "al of"}]
    with pytest.warns(
        UserWarning, match="in 1 of 1 rows of 'rows' one token holds the end of the prompt and the begin"
    ):
        (example,) = encode(rows, tokenizer).examples
    assert example["input_ids"] == [*tokenizer("The capital of")["input_ids"], 2]
    assert learned(tokenizer, example) == [" capital of</s>"]
    assert split(example)[0] == tokenizer("The")["input_ids"]


def test_slow_tokenizers() -> None:
    fast = TOKENIZERS["bos"]
    assert encode(SUMS, Slow(fast)).examples == encode(SUMS, fast).examples
    (apart,) = encode([{"prompt": "The capit", "completion": "al of"}], Slow(fast)).examples
    assert split(apart) == (fast("The capit")["input_ids"], [*fast("al of", add_special_tokens=False)["input_ids"], 2])
    chat = TOKENIZERS["chat"]
    talk = [{"messages": [{"role": r, "content": f"{r} {k}"} for k in range(3) for r in ("user", "assistant")]}]
    assert encode(talk, Slow(chat)).examples == encode(talk, chat).examples


def test_an_empty_prompt_gives_the_first_token_a_context() -> None:
    for name, start in (("bos", 1), ("no bos", 1), ("slow", 1)):
        (example,) = encode([{"prompt": "", "completion": "cat"}], TOKENIZERS[name]).examples
        prompt, completion = split(example)
        assert prompt == [start]
        assert TOKENIZERS[name].decode(completion[:-1]) == "cat"


PIECES = st.text(alphabet="abc catphetl 0+7?:\n漢é", min_size=1, max_size=24)


@settings(max_examples=60, deadline=None)
@given(
    prompt=PIECES, completion=PIECES.filter(lambda text: text.strip()), name=st.sampled_from(["bos", "no bos", "slow"])
)
@pytest.mark.filterwarnings("ignore:in 1 of 1 rows")
def test_no_label_points_into_the_prompt(prompt: str, completion: str, name: str) -> None:
    tokenizer = TOKENIZERS[name]
    (example,) = encode([{"prompt": prompt, "completion": completion}], tokenizer).examples
    head, tail = split(example)
    labels = example["labels"]
    assert labels == [IGNORE] * len(head) + tail  # one span to the end, labels are the tokens
    options = {"add_special_tokens": False}
    joint = tokenizer(prompt + completion, **options)["input_ids"]
    assert [i for i in example["input_ids"] if i > 2] == [i for i in joint if i > 2]  # the joint text, always
    kept = prompt.rstrip(" ")
    before, after = (list(tokenizer(text, **options)["input_ids"]) for text in (kept, prompt[len(kept) :] + completion))
    if before + after == joint:  # no token across the border: joint and separate are the same
        assert [i for i in head if i > 2] == before
        assert tail[:-1] == after
    wholly = [i for i in head if i > 2]  # tokens of the prompt hold nothing of the completion
    assert len(tokenizer.decode(wholly).replace("\ufffd", "")) <= len(kept)


def test_every_assistant_turn_is_learned() -> None:
    talk = [{"messages": [{"role": "system", "content": "Be kind."}]
             + [{"role": r, "content": f"{r} {k}"} for k in range(3) for r in ("user", "assistant")]
             + [{"role": "user", "content": "and?"}]}]  # fmt: skip
    for name, end in (("chat", "</s>"), ("chat with bos", "</s>"), ("chat without end", "\n")):
        (example,) = encode(talk, TOKENIZERS[name]).examples
        found = [text.strip(" ") for text in learned(TOKENIZERS[name], example)]
        last = "\n</s>" if end == "\n" else end  # a template without end tokens gets one at the end
        assert found == [f"assistant 0{end}", f"assistant 1{end}", f"assistant 2{last}"]
        assert "and?" not in TOKENIZERS[name].decode(example["input_ids"])
    (whole,) = encode(talk, TOKENIZERS["chat"], completion_only=False).examples
    assert whole["labels"] == [IGNORE, *whole["input_ids"][1:]]
    assert "and?" in TOKENIZERS["chat"].decode(whole["input_ids"])


def test_lists_of_messages_as_prompt_and_completion() -> None:
    user, said = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    rows = [{"prompt": [user, said, user], "completion": [said]}]
    (example,) = encode(rows, TOKENIZERS["chat"]).examples
    assert learned(TOKENIZERS["chat"], example) == ["b</s>"]
    (plain,) = encode([{"prompt": "a", "completion": "b"}], TOKENIZERS["chat"]).examples
    assert plain == encode([{"prompt": [user], "completion": [said]}], TOKENIZERS["chat"]).examples[0]


def test_templates_that_rewrite_earlier_turns() -> None:
    talk = [{"messages": [{"role": r, "content": f"{r} {k}"} for k in range(2) for r in ("user", "assistant")]}]
    tokenizer = tiny_tokenizer(chat=THINK)
    with pytest.warns(UserWarning, match="in 1 of 1 rows only the last assistant turn is learned"):
        (example,) = encode(talk, tokenizer).examples
    assert learned(tokenizer, example) == ["<think></think>assistant 1</s>"]
    with pytest.raises(
        InputError, match=r"the chat template \('auto'\) does not write a conversation so that it begins"
    ):
        encode(talk, tiny_tokenizer(chat=NEVER))


def test_templates_from_files(tmp_path: Path) -> None:
    path = tmp_path / "open.jinja"
    path.write_text(OPEN)
    tokenizer = TOKENIZERS["no bos"]
    (example, *_) = encode(SUMS, tokenizer, chat_template=str(path)).examples
    assert (
        tokenizer.decode(example["input_ids"]) == f"user: {SUMS[0]['prompt']}\nassistant: {SUMS[0]['completion']}\n</s>"
    )
    with pytest.raises(InputError, match=r"chat_template 'open\.jinj': expected 'auto', 'none' or the path"):
        encode(SUMS, tokenizer, chat_template="open.jinj")
    plain = encode(SUMS, TOKENIZERS["chat"], chat_template="none").examples
    assert plain == encode(SUMS, TOKENIZERS["bos"]).examples
    several = tiny_tokenizer()
    several.chat_template = {"a": CHAT, "b": OPEN}
    with pytest.raises(InputError, match=r"has the chat templates \['a', 'b'\] and no default"):
        encode(SUMS, several)


def test_refused() -> None:
    bos, chat = TOKENIZERS["bos"], TOKENIZERS["chat"]
    with pytest.raises(InputError, match=r"lists of messages and there is no chat template \(chat_template 'auto'\)"):
        encode(TURNS, bos)
    with pytest.raises(InputError, match=r"no chat template \(chat_template 'none'\)"):
        encode(TURNS, chat, chat_template="none")
    strict = tiny_tokenizer(chat="{{ raise_exception('no system') if messages[0].role == 'system' }}" + CHAT)
    with pytest.raises(
        InputError, match=r"failed \(TemplateError: no system\); expected one that takes the roles .*system"
    ):
        encode(SUMS, strict, system="Be kind.")
    for wrong in (1, 2.5, True):
        with pytest.raises(InputError, match=f"max_length {wrong}: expected a whole number of at least 2"):
            encode(SUMS, bos, max_length=wrong)
    with pytest.raises(InputError, match="system 'x' with rows of kind 'text': expected prompts or messages"):
        encode([{"text": "a"}], bos, system="x")
    long = {"prompt": "a " * 40, "completion": "b"}
    with pytest.raises(
        InputError, match=r"max_length 32: in 2 of 14 .* \(the first is row 2\) no token is left to learn"
    ):
        encode([SUMS[0], long, long, *SUMS[1:]], bos, max_length=32)
    rows = read_rows([*SUMS[:5], long])
    with pytest.raises(InputError, match=r"in 1 of 2 .* \(the first is row 6\)"):  # as a user counts them
        encode_rows(rows.of(rows.rows[4:]), bos, max_length=32)
    endless = tiny_tokenizer()
    endless.eos_token = None
    with pytest.warns(UserWarning, match="has no end token"):
        assert learned(endless, encode(SUMS, endless).examples[0]) == [SUMS[0]["completion"]]


def test_long_rows_are_cut_at_the_end() -> None:
    rows = [{"prompt": "a", "completion": " b" * n} for n in (3, 30, 40)]
    whole = encode(rows, TOKENIZERS["bos"])
    with pytest.warns(UserWarning, match="2 of 3 rows of 'rows' are longer than max_length 16: their end is cut off"):
        cut = encode(rows, TOKENIZERS["bos"], max_length=16)
    assert cut.truncated == 2
    assert [e["input_ids"] for e in cut.examples] == [e["input_ids"][:16] for e in whole.examples]
    assert [e["labels"] for e in cut.examples] == [e["labels"][:16] for e in whole.examples]
    assert cut.tokens == sum(len(e["input_ids"]) for e in cut.examples)


def test_plain_text_is_learned_but_for_its_first_token() -> None:
    encoded = encode([{"text": text} for text in TEXT], TOKENIZERS["bos"])
    for text, example in zip(TEXT, encoded.examples, strict=True):
        assert example["input_ids"] == [*TOKENIZERS["bos"](text)["input_ids"], 2]
        assert example["labels"] == [IGNORE, *example["input_ids"][1:]]
    assert encoded.trained_tokens == encoded.tokens - len(TEXT)
    (bare,) = encode([{"text": "cat"}], TOKENIZERS["no bos"]).examples
    assert bare["labels"] == [IGNORE, *bare["input_ids"][1:]]
    chat = encode([{"text": text} for text in TEXT], TOKENIZERS["chat"])  # text is no conversation
    assert chat.examples == encoded.examples


def test_loss_on_everything() -> None:
    everything = encode(SUMS, TOKENIZERS["bos"], completion_only=False)
    assert all(e["labels"] == [IGNORE, *e["input_ids"][1:]] for e in everything.examples)
    assert [e["input_ids"] for e in everything.examples] == [
        e["input_ids"] for e in encode(SUMS, TOKENIZERS["bos"]).examples
    ]


def test_classes() -> None:
    tokenizer = TOKENIZERS["bos"]
    rows = [{"premise": "The cat " * n, "hypothesis": "slept.", "label": n % 2} for n in (1, 2, 30)]
    with pytest.warns(UserWarning, match="1 of 3 rows of 'rows' are longer than max_length 40"):
        encoded = encode(rows, tokenizer, max_length=40)
    assert encoded.kind == "classification"
    assert [e["labels"] for e in encoded.examples] == [1, 0, 0]
    assert encoded.examples[0]["input_ids"] == tokenizer("The cat ", "slept.")["input_ids"]
    assert set(encoded.examples[0]) == {*tokenizer("a", "b"), "labels"}
    assert (len(encoded.examples[2]["input_ids"]), encoded.trained_tokens, encoded.truncated) == (40, 3, 1)


def test_a_second_call_is_equal() -> None:
    for name, rows in (("bos", SUMS), ("chat", TURNS), ("slow", BLANK)):
        assert encode(rows, TOKENIZERS[name]) == encode(rows, TOKENIZERS[name])


def test_a_template_that_writes_the_date_is_told_the_same_day_in_training_and_questions() -> None:
    tokenizer = tiny_tokenizer(chat="Today is {{ strftime_now('%d %b %Y') }}. " + CHAT)
    with pytest.warns(UserWarning, match="writes the date; it was told 26 July 2024"):
        (example, *_) = encode_rows(read_rows(SUMS), tokenizer, max_length=256).examples
    assert tokenizer.decode(example["input_ids"]).startswith("<s>Today is 26 Jul 2024. <|user|>")
    task = as_task(read_rows(SUMS))
    assert task is not None
    asked = prepare(tokenizer, task).encoded[0].prompt
    assert tuple(example["input_ids"][: len(asked)]) == asked
    scores = evaluate(tiny_llama(), task, tokenizer=tokenizer, batch_tokens=512, limit=2)
    assert any("26 July 2024" in warning for warning in scores.warnings)
