from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from catchment.capabilities import PromptOptions, prompts
from catchment.capabilities.tasks import CONTINUE, Format, Item, Task
from catchment.errors import InputError, TaskError
from tests import tiny

WITH_BOS = "<s>" + tiny.CHAT
WITH_DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|system|>\nYou are a helpful assistant.</s>\n{% endif %}" + tiny.CHAT
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + tiny.CHAT
ITEM = Item("What is 12 + 7?", ("19", "17", "a cat"), 0)
SHOTS = (Item("2 + 2?", ("4", "5"), 0), Item("3 + 3?", ("5", "6"), 1))
FORM = Format("question", "Question: {prompt}\nAnswer:")


def task(**settings: Any) -> Task:
    return Task("sums", (ITEM,), **{"scorer": "choice", "formats": (FORM,), **settings})


def encode(tokenizer: Any, given: Task, **settings: Any) -> prompts.Encoded:
    (encoded,) = prompts.encode(tokenizer, given, given.formats[0], **settings)
    return encoded


@pytest.mark.parametrize("chat", [False, tiny.CHAT, WITH_BOS, WITH_DEFAULT_SYSTEM, "<s>" + WITH_BOS])
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_exactly_one_bos(bos: bool, chat: Any, system: str | None) -> None:
    tokenizer = tiny.tiny_tokenizer(bos=bos, chat=chat)
    encoded = encode(tokenizer, task(), system=system)
    expected = 1 if bos or (chat and chat.startswith("<s>")) else 0
    assert encoded.prompt.count(tokenizer.bos_token_id) == expected
    assert (encoded.prompt[0] == tokenizer.bos_token_id) == bool(expected)
    assert not any(tokenizer.bos_token_id in answer for answer in encoded.answers)
    assert tokenizer.decode([i for i in encoded.prompt if i != 1]) == encoded.text.replace("<s>", "")


@pytest.mark.parametrize("bos", [True, False])
def test_prompt_and_answers_make_up_the_text(bos: bool) -> None:
    tokenizer = tiny.tiny_tokenizer(bos=bos)
    encoded = encode(tokenizer, task())
    assert encoded.text == "Question: What is 12 + 7?\nAnswer:"
    for answer, ids in zip(ITEM.choices, encoded.answers, strict=True):
        assert tokenizer.decode(ids) == " " + answer
        joint = tokenizer(encoded.text + " " + answer)["input_ids"]
        assert [*encoded.prompt, *ids] == joint
    assert encoded.sizes == (2, 2, 5)


def test_tokens_are_joint_and_split_at_the_length_of_the_prompt() -> None:
    """'capi' + 'tal' tokenizes otherwise than 'capital'; what is beyond the prompt's own length is the answer."""
    tokenizer = tiny.tiny_tokenizer(bos=False)
    given = Task(
        "t",
        (Item("The capi", ("tal of France", "tal of Italy"), 0),),
        "choice",
        (Format("plain", separator=""),),
        "continue",
    )
    encoded = encode(tokenizer, given)
    alone = tokenizer("The capi")["input_ids"]
    whole = tokenizer("The capital of France")["input_ids"]
    assert whole[: len(alone)] != alone  # or the example shows nothing
    assert len(whole) > len(alone)
    assert list(encoded.answers[0]) == whole[len(alone) :]


@pytest.mark.parametrize(
    ("prompt", "separator", "scorer", "text", "answer"),
    [
        ("Paris is", " ", "choice", "Paris is", " big"),
        ("Paris is ", "", "choice", "Paris is", " big"),
        ("Paris is:\n", "", "choice", "Paris is:", "\nbig"),
        ("Paris is", "\n", "choice", "Paris is", "\nbig"),
        ("Paris is", "\n", "exact", "Paris is\n", "big"),
        ("Paris is  ", "", "exact", "Paris is", "  big"),
    ],
)
def test_blanks_between_prompt_and_answer(prompt: str, separator: str, scorer: str, text: str, answer: str) -> None:
    tokenizer = tiny.tiny_tokenizer()
    item = Item(prompt, ("big", "old"), 0) if scorer == "choice" else Item(prompt, gold="big")
    given = Task("t", (item,), scorer, (Format("plain", separator=separator),), "continue")
    encoded = encode(tokenizer, given)
    assert encoded.text == text
    assert tokenizer.decode(encoded.answers[0]) == answer


@pytest.mark.parametrize("bos", [True, False])
def test_an_empty_prompt_is_the_start_token(bos: bool) -> None:
    tokenizer = tiny.tiny_tokenizer(bos=bos)
    given = Task("t", (Item("", ("The cat", "A dog"), 0),), "choice", CONTINUE[:1], "continue")
    encoded = encode(tokenizer, given)
    assert encoded.prompt == (1,)
    assert [tokenizer.decode(ids).strip() for ids in encoded.answers] == ["The cat", "A dog"]


def test_an_answer_without_a_token_is_refused() -> None:
    given = Task("t", (Item("a", ("", "b"), 0),), "choice", (Format("plain", separator=""),))
    with pytest.raises(TaskError, match="an answer becomes no token of its own"):
        encode(tiny.tiny_tokenizer(), given)


def test_shots_become_turns() -> None:
    tokenizer = tiny.tiny_tokenizer(chat=True)
    encoded = encode(tokenizer, task(shots=SHOTS, system="Be brief."))
    assert encoded.text == (
        "<|system|>\nBe brief.</s>\n"
        "<|user|>\nQuestion: 2 + 2?\nAnswer:</s>\n<|assistant|>\n4</s>\n"
        "<|user|>\nQuestion: 3 + 3?\nAnswer:</s>\n<|assistant|>\n6</s>\n"
        "<|user|>\nQuestion: What is 12 + 7?\nAnswer:</s>\n<|assistant|>\n"
    )
    assert tokenizer.decode(encoded.answers[0]) == "19"


def test_shots_without_a_template_are_paragraphs() -> None:
    encoded = encode(tiny.tiny_tokenizer(chat=True), task(shots=SHOTS), chat_template="none", system="Be brief.")
    assert encoded.text == (
        "Be brief.\n\nQuestion: 2 + 2?\nAnswer: 4\n\nQuestion: 3 + 3?\nAnswer: 6\n\nQuestion: What is 12 + 7?\nAnswer:"
    )


def test_a_template_is_never_applied_to_a_text_to_continue() -> None:
    encoded = encode(tiny.tiny_tokenizer(chat=True), task(style="continue"))
    assert "<|" not in encoded.text


def test_a_given_system_prompt_wins_over_the_tasks_and_the_templates() -> None:
    tokenizer = tiny.tiny_tokenizer(chat=WITH_DEFAULT_SYSTEM)
    assert "helpful" in encode(tokenizer, task()).text
    own = encode(tokenizer, task(system="Of the task.")).text
    assert "Of the task." in own
    assert "helpful" not in own
    given = encode(tokenizer, task(system="Of the task."), system="Given.").text
    assert "Given." in given
    assert "Of the task." not in given


def test_a_template_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}>", encoding="utf-8")
    encoded = encode(tiny.tiny_tokenizer(chat=True), task(), chat_template=str(path))
    assert encoded.text == "[user] Question: What is 12 + 7?\nAnswer: >"


@pytest.mark.parametrize("style", ["ask", "continue"])
def test_a_template_that_is_no_file(style: Any) -> None:
    with pytest.raises(InputError, match=r"'autos': expected 'auto', 'none' or the path"):
        encode(tiny.tiny_tokenizer(chat=True), task(style=style), chat_template="autos")


def test_a_template_that_fails_names_the_item() -> None:
    tokenizer = tiny.tiny_tokenizer(chat=NO_SYSTEM)
    assert encode(tokenizer, task()).text
    with pytest.raises(TaskError, match=rf"'sums', item {ITEM.id}: the chat template failed .*no system role"):
        encode(tokenizer, task(), system="Be brief.")


def test_named_templates() -> None:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.chat_template = {"default": tiny.CHAT, "tool_use": "tools"}
    assert encode(tokenizer, task()).text.startswith("<|user|>")
    tokenizer.chat_template = {"rag": "r", "tool_use": "tools"}
    with pytest.raises(InputError, match=r"\['rag', 'tool_use'\] and no default"):
        encode(tokenizer, task())


def test_a_shot_without_an_answer_is_refused() -> None:
    for gold in (None, -1, 7):
        with pytest.raises(TaskError, match="has no answer to show"):
            encode(tiny.tiny_tokenizer(), task(shots=(replace(SHOTS[0], gold=gold, id=""),)))


@pytest.mark.parametrize(
    ("item", "scorer", "expected"),
    [
        (ITEM, "choice_per_byte", "19"),
        (Item("q", gold="Paris"), "exact", "Paris"),
        (Item("q", gold=("four", "4")), "exact", "four"),
        (Item("q", gold=4), "exact", "4"),
        (Item("q", gold=r"\d+"), "regex", None),
        (Item("q", gold=r"\d+", meta={"answer": 12}), "regex", "12"),
        (Item("q", gold="refuse"), "refusal", None),
    ],
)
def test_expected_answer(item: Item, scorer: str, expected: str | None) -> None:
    assert prompts.expected_answer(item, scorer) == expected


def test_lettered_choices() -> None:
    form = Format("letters", "{prompt}\n{choices}\nAnswer:")
    assert form.fill(ITEM) == "What is 12 + 7?\nA. 19\nB. 17\nC. a cat\nAnswer:"


# ------------------------------------------------------------------------------------------------- PromptOptions


def test_the_object_and_its_two_parts_ask_alike(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}>", encoding="utf-8")
    tokenizer = tiny.tiny_tokenizer(chat=True)
    for options in ({}, {"system": "Be brief."}, {"chat_template": "none"}, {"chat_template": path, "system": "Be."}):
        two = encode(tokenizer, task(shots=SHOTS, system="Own."), **options)
        assert encode(tokenizer, task(shots=SHOTS, system="Own."), prompt_options=PromptOptions(**options)) == two
    for part in ({"system": "Be brief."}, {"chat_template": "none"}):
        with pytest.raises(InputError, match="expected either the two or the object"):
            encode(tokenizer, task(), prompt_options=PromptOptions(), **part)


def test_a_file_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("[{{ messages[0].content }}]", encoding="utf-8")
    asked, tokenizer = PromptOptions(str(path)), tiny.tiny_tokenizer()
    before = asked.conditions(tokenizer)
    path.write_text("something else", encoding="utf-8")
    assert encode(tokenizer, task(), prompt_options=asked).text == f"[{FORM.fill(ITEM)}]"
    assert replace(asked, system="Be brief.").template(tokenizer) == "[{{ messages[0].content }}]"
    assert PromptOptions(str(path)).conditions(tokenizer) != before
    path.unlink()
    (tmp_path / "b.jinja").write_text("[{{ messages[0].content }}]", encoding="utf-8")
    assert PromptOptions(str(tmp_path / "b.jinja")).conditions(tokenizer) == before


def test_conditions_tell_apart_what_gives_other_tokens() -> None:
    chat = tiny.tiny_tokenizer(chat=True)
    others = [
        PromptOptions().conditions(tiny.tiny_tokenizer(chat=WITH_DEFAULT_SYSTEM)),
        PromptOptions().conditions(tiny.tiny_tokenizer(chat=True, bos=False)),
        PromptOptions("none").conditions(chat),
        PromptOptions(system="Be brief.").conditions(chat),
    ]
    same = PromptOptions().conditions(chat)
    assert all(other != same for other in others)
    assert same == PromptOptions().conditions(tiny.tiny_tokenizer(chat=True))


@pytest.mark.parametrize("style", ["ask", "continue"])
def test_a_file_that_is_no_text(tmp_path: Path, style: Any) -> None:
    (tmp_path / "chat.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"cannot be read \(UnicodeDecodeError"):
        encode(tiny.tiny_tokenizer(), task(style=style), chat_template=str(tmp_path / "chat.jinja"))
    with pytest.raises(InputError, match="expected 'auto', 'none' or the path"):
        PromptOptions(str(tmp_path))


def test_a_system_prompt_that_belongs_to_the_items_stands() -> None:
    tokenizer = tiny.tiny_tokenizer(chat=True)
    kept = task(system="Of the rows.", keeps_system=True)
    assert encode(tokenizer, kept, system="Given.") == encode(tokenizer, task(system="Of the rows."))
    assert kept.hash() != task(system="Of the rows.").hash()


@pytest.mark.parametrize(
    "template",
    [
        "{%- if strftime_now is defined %}{%- set d = strftime_now('%d %b %Y') %}{%- else %}{%- set d = 'never' %}"
        "{%- endif %}<|system|>\n{{ d }}</s>\n" + tiny.CHAT,
        "\n  {% for m in messages %}{{ m['content'] }} {{ strftime_now('%A, %B %-d, %Y, %H:%M') }}\n{% endfor %}",
        "  {% macro day() %}{{ strftime_now('%Y-%m-%d') }}{% endmacro %}\n {{ day() }} {{ messages[0].content }}",
        "{{ strftime_now('%j %% %-m %e %T %U') }} {{ messages[0].content }}",
    ],
)
def test_the_date_of_a_template_is_the_same_on_every_day(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers itself renders it on that day."""
    import datetime

    from transformers.utils import chat_template_utils

    tokenizer = tiny.tiny_tokenizer(chat=template)
    ours = encode(tokenizer, task()).text

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2024, 7, 26)

    monkeypatch.setattr(chat_template_utils, "datetime", Then)
    messages = [{"role": "user", "content": FORM.fill(ITEM)}]
    assert ours == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert "26" in ours or "208" in ours


@pytest.mark.parametrize(
    "template", ["", "Hello!", "{{ bos_token }}{{ messages | length }}:", "{{ messages[0].content }}"]
)
def test_a_template_that_leaves_the_request_out_is_refused(template: str, tmp_path: Path) -> None:
    """All items would become one prompt, and a score would come of it."""
    path = tmp_path / "chat.jinja"
    path.write_text(template, encoding="utf-8")
    with pytest.raises(TaskError, match="leaves the request out"):
        encode(tiny.tiny_tokenizer(), task(style="ask"), chat_template=str(path), system="Be brief.")


@pytest.mark.parametrize(
    ("template", "system", "said"),
    [
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "Be brief.", True),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", None, False),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "Be brief.", False),
        ("{% for m in messages %}{{ raise_exception('no') if m.role == 'system' }}{% endfor %}", "Be brief.", False),
    ],
)
def test_a_template_that_leaves_the_system_prompt_out_is_said(
    template: str, system: str | None, said: bool, tmp_path: Path
) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(template, encoding="utf-8")
    note = PromptOptions(str(path), system).note_for(tiny.tiny_tokenizer(), task(style="ask"))
    assert (note is not None and prompts.NO_SYSTEM in note) == said
