"""However a model is asked, every part of a command asks in the same way: the token ids of each item against those that
the tokenizer alone gives."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import catchment
from catchment.capabilities import Format, Item, Task, evaluate, prompts
from catchment.commands.tune.record import Tune
from catchment.errors import InputError, StoreError, TaskError
from catchment.measuring import Progress
from tests import tiny
from tests.integration.test_compare import home, make_task

__all__ = ["home"]
torch.set_num_threads(1)

SYSTEM = "Say one word."
OTHER = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ '<think></think>' if m['role'] == 'assistant' }}"
    "{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}[assistant] <think></think>{% endif %}"
)
"""A template that writes BOS and an empty thought."""
WHERE = {
    ("tune/protection.py", "check_admission"): "admission", ("training/pilot.py", "pilot_room"): "pilot",
    ("training/fence.py", "_rows"): "fence", ("training/callbacks.py", "_evaluate"): "callback",
    ("training/generation.py", "answered"): "replay", ("compare/run.py", "run"): "judge",
    ("compare/recover.py", "recover"): "recover", ("compare/room.py", "measure_rooms"): "room",
    ("compare/extras.py", "_agreement"): "agreement", ("scan/run.py", "run"): "scan",
}  # fmt: skip
"""Functions within which items are put to a model, and what for; the innermost counts."""
Seen = dict[str, dict[str, list[prompts.Encoded]]]


def purpose() -> str | None:
    frame = sys._getframe(1)
    while frame is not None:
        name = WHERE.get(("/".join(Path(frame.f_code.co_filename).parts[-2:]), frame.f_code.co_name))
        if name is not None:
            return name
        frame = frame.f_back  # type: ignore[assignment]
    return None


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Every item that is encoded: by what for, and by its id."""
    found: Seen = defaultdict(lambda: defaultdict(list))
    encode = prompts.encode

    def recorded(*args: Any, **given: Any) -> list[prompts.Encoded]:
        encoded = encode(*args, **given)
        name = purpose()
        for one in encoded if name else []:
            found[str(name)][one.item.id].append(one)
        return encoded

    monkeypatch.setattr(prompts, "encode", recorded)
    return found


@dataclasses.dataclass(frozen=True)
class Asked:
    """One way to ask: the tokenizer's template, the file's, the system prompts, and what the right messages are."""

    own: Any = tiny.CHAT
    file: str | None = None
    none: bool = False
    system: str | None = None
    of_task: str | None = None
    style: str = "ask"
    bos: bool = True

    @property
    def tokenizer(self) -> Any:
        tokenizer = tiny.tiny_tokenizer(bos=self.bos)
        tokenizer.chat_template = self.own
        return tokenizer

    @property
    def template(self) -> str | None:
        if self.none or self.style == "continue":
            return None
        own = self.own["default"] if isinstance(self.own, dict) else self.own
        return self.file or own

    def options(self, folder: Path) -> dict[str, Any]:
        if self.file:
            (folder / "chat.jinja").write_text(self.file)
        template = str(folder / "chat.jinja") if self.file else "none" if self.none else "auto"
        return {"chat_template": template, "system": self.system}

    def ids(self, task: Task, item: Item) -> list[int]:
        """What the item has to become, by the tokenizer alone."""
        tokenizer, system = self.tokenizer, self.system or self.of_task
        shots = [(f"Word. {shot.prompt}", shot.choices[shot.gold]) for shot in task.shots]  # type: ignore[index]
        if self.template is None:
            parts = [*([system] if system else []), *(f"{question} {answer}" for question, answer in shots)]
            text = "\n\n".join([*parts, f"Word. {item.prompt}"])
        else:
            messages = [{"role": "system", "content": system}] if system else []
            for question, answer in shots:
                messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            messages.append({"role": "user", "content": f"Word. {item.prompt}"})
            text = tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, add_generation_prompt=True
            )
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return [1, *ids] if self.bos and ids[0] != 1 else ids


WAYS = {
    "file and system": Asked(file=OTHER, system=SYSTEM),
    "own template and system": Asked(system=SYSTEM, bos=False),
    "one template of several": Asked(own={"default": OTHER, "tool_use": "tools"}, system=SYSTEM),
    "no template and system": Asked(none=True, system=SYSTEM),
    "the task's own system prompt": Asked(of_task="Be brief."),
    "two system prompts": Asked(file=OTHER, system=SYSTEM, of_task="Be brief."),
    "text to go on with": Asked(style="continue", system=SYSTEM, file=OTHER),
}


def known(asked: Asked, options: dict[str, Any], n: int = 160, name: str = "words") -> Task:
    """A task with a shot whose answers are those that the tiny model prefers when it is asked so."""
    task = dataclasses.replace(
        make_task(name, n),
        formats=(Format("word", "Word. {prompt}"), Format("bare")),
        style=asked.style,  # type: ignore[arg-type]
        shots=(Item("The dog is", ("red", "blue"), 1),),
        system=asked.of_task,
    )
    rows = evaluate(tiny.tiny_llama(), task, tokenizer=asked.tokenizer, batch_tokens=1024, **options).rows
    said = {row.item: row.prediction for row in rows}
    items = (dataclasses.replace(item, gold=item.choices.index(said[item.id])) for item in task.items)
    return task.with_items(tuple(items))


def tune(out: Path, asked: Asked, task: Task, data: Any = None, **options: Any) -> Tune:
    rows = [{"prompt": f"Say {k}.", "completion": f" {k}"} for k in range(24)] if data is None else data
    quick: dict[str, Any] = {
        "max_steps": 2,
        "eval_steps": 2,
        "eval_limit": 8,
        "limit": 16,
        "held_out": 0.0,
        "method": "full",
    }
    return catchment.tune(
        tiny.tiny_llama(), rows, tokenizer=asked.tokenizer, out=out, protect=[task], tasks=[task],
        **{**quick, "batch_size": 2, "learning_rate": 1e-6, **options},
    )  # fmt: skip


def check(seen: Seen, asked: Asked, task: Task, names: Sequence[str]) -> None:
    items = {item.id: item for item in task.items}
    assert set(names) <= set(seen), sorted(seen)
    for name in names:
        for id, encoded in seen[name].items():
            right = asked.ids(task, items[id])
            for one in encoded:
                assert list(one.prompt) == right, (name, one.text)


@pytest.mark.parametrize("way", WAYS)
def test_every_part_of_a_tune_asks_in_the_same_way(way: str, seen: Seen, tmp_path: Path) -> None:
    asked = WAYS[way]
    options = asked.options(tmp_path)
    task = known(asked, options)
    seen.clear()
    whole = way == "file and system"
    tune(tmp_path / "out", asked, task, no_plain=not whole, **options)
    check(seen, asked, task, ["admission", "pilot", "fence", "callback", "replay", "judge"])
    rows = [json.loads(line) for line in (tmp_path / "out/replay.jsonl").read_text().splitlines()]
    wanted = {tuple(asked.ids(task, item)) for item in task.items}
    answers = [row for row in rows if row["task"]]
    assert answers
    for row in answers:
        at = next(k for k, label in enumerate(row["labels"]) if label != -100)
        assert tuple(row["input_ids"][:at]) in wanted
    written = [row["text"] for row in rows if not row["task"]]
    assert written
    if not asked.none:  # what the base writes begins as what it is asked with
        other = OTHER in (asked.file, *(asked.own.values() if isinstance(asked.own, dict) else ()))
        system = f"[system] {asked.system}\n" if other else f"<|system|>\n{asked.system}</s>"
        assert all((system in text) == bool(asked.system) for text in written), written[0]


CHATS = [
    {"messages": [{"role": "user", "content": f"{k} + 1?"}, {"role": "assistant", "content": f"{k + 1}"}]}
    for k in range(24)
]
LED = [{"messages": [{"role": "system", "content": "Count."}, *row["messages"]]} for row in CHATS]


@pytest.mark.parametrize("rows", [CHATS, LED], ids=["the system prompt given", "the rows' own"])
def test_held_out_rows_are_asked_as_they_are_trained(
    rows: list[dict[str, Any]], seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("catchment.commands.tune.run")
    jobs: list[Any] = []
    opened = module.open_tune
    monkeypatch.setattr(module, "open_tune", lambda *given: jobs.append(opened(*given)) or jobs[0])
    tokenizer = tiny.tiny_tokenizer(chat=True)
    found = catchment.tune(
        tiny.tiny_llama(), rows, tokenizer=tokenizer, out=tmp_path / "out", tasks=["none"], system=SYSTEM, held_out=8,
        max_steps=1, batch_size=2, method="full",
    )  # fmt: skip
    assert [result.task for result in found.runs[0].tasks] == ["held_out"]
    (job,) = jobs
    trained = []
    for row, example in zip(job.held.rows, job.held_encoded.examples, strict=True):
        first = row["messages"] if rows is LED else [{"role": "system", "content": SYSTEM}, *row["messages"]]
        text = tokenizer.apply_chat_template(first[:2], tokenize=False, add_generation_prompt=True)
        prompt = [1, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert [i for i, label in zip(example["input_ids"], example["labels"], strict=True) if label == -100] == prompt
        trained.append(tuple(prompt))
    assert {one.prompt for encoded in seen["judge"].values() for one in encoded} == set(trained)


class Meddling(Progress):
    """Rewrites the template's file once the training is over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def status(self, text: str) -> None:
        if "tune cost" in text:
            self.path.write_text(tiny.CHAT)


def test_a_template_file_that_changes_meanwhile_changes_nothing(seen: Seen, tmp_path: Path) -> None:
    asked = WAYS["file and system"]
    options = asked.options(tmp_path)
    task = known(asked, options)
    seen.clear()
    options |= {"no_plain": True, "method": "lora", "replay": 0.0}
    tune(tmp_path / "out", asked, task, progress=Meddling(tmp_path / "chat.jinja"), **options)
    assert (tmp_path / "chat.jinja").read_text() == tiny.CHAT
    check(seen, asked, task, ["fence", "judge"])
    # And a run that takes this folder up with the new content is another tune.
    with pytest.raises(StoreError, match=r"chat_template is .*sha256"):
        tune(tmp_path / "out", asked, task, **options)


def test_a_tune_goes_on_only_as_it_was_asked(tmp_path: Path) -> None:
    def again(out: Path, tokenizer: Any, **options: Any) -> Tune:
        return catchment.tune(
            tiny.tiny_llama(), CHATS, tokenizer=tokenizer, out=out, tasks=["none"], held_out=0.0, max_steps=1,
            batch_size=2, method="full", **options,
        )  # fmt: skip

    chat = tiny.tiny_tokenizer(chat=True)
    (tmp_path / "a.jinja").write_text(OTHER)
    (tmp_path / "b.jinja").write_text(OTHER)
    first = again(tmp_path / "one", chat, chat_template=tmp_path / "a.jinja")
    assert again(tmp_path / "one", chat, chat_template=tmp_path / "b.jinja").runs == first.runs  # the same text
    again(tmp_path / "two", chat)
    for name, tokenizer, options in (
        ("system", chat, {"system": "Be brief."}),
        ("template", tiny.tiny_tokenizer(chat=OTHER), {}),
        ("tokenizer", tiny.tiny_tokenizer(chat=True, bos=False), {}),
    ):
        with pytest.raises(StoreError, match=f"{name} is .* here"):
            again(tmp_path / "two", tokenizer, **options)


def test_where_nobody_is_asked_a_prompt_is_refused_or_told(tmp_path: Path) -> None:
    texts = [{"text": f"{text} {k}", "label": k % 2} for k in range(6) for text in tiny.TEXT]
    (tmp_path / "chat.jinja").write_text(OTHER)
    for option in ({"system": SYSTEM}, {"chat_template": tmp_path / "chat.jinja"}):
        with pytest.raises(InputError, match=r"--system .* classification rows train a classifier"):
            catchment.tune(tiny.tiny_llama(), texts, tokenizer=tiny.tiny_tokenizer(), out=tmp_path / "out", **option)
    found = catchment.tune(
        tiny.tiny_llama(), [{"text": row["text"]} for row in texts], tokenizer=tiny.tiny_tokenizer(), system=SYSTEM,
        out=tmp_path / "out", tasks=["none"], max_steps=1, batch_size=2,
    )  # fmt: skip
    assert "--system is for the tasks only: rows of text are trained as they stand" in found.warnings
    assert (found.conditions["chat_template"], found.conditions["system"]) == ("auto", SYSTEM)


def test_what_cannot_be_asked_is_said_before_the_training(tmp_path: Path) -> None:
    words = {"tasks": ["none"], "held_out": 0.0, "max_steps": 1, "batch_size": 2}
    rows = [{"text": text} for text in tiny.TEXT]
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + tiny.CHAT
    short = Task("sums", tuple(Item(f"{k} + 1", gold=str(k + 1)) for k in range(20)), "exact")
    long = dataclasses.replace(short, items=(*short.items, Item("cat " * 300, gold="cat")))
    for tokenizer, options, error in (
        (tiny.tiny_tokenizer(chat=strict), {"tasks": [short], "system": SYSTEM}, "no system"),
        (tiny.tiny_tokenizer(), {"tasks": [long], "limit": None}, "1 of 21 prompts are longer than"),
    ):
        given: dict[str, Any] = {**words, **options}
        with pytest.raises(TaskError, match=error):
            catchment.tune(tiny.tiny_llama(), rows, tokenizer=tokenizer, out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
