"""Task files, rows, functions and names: what they become, and that every mistake is named where it stands."""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from catchment.capabilities import ASK, CONTINUE, Format, Item, Task, hub, packs, sources, tables
from catchment.capabilities.columns import gold_index
from catchment.capabilities.gates import check_task
from catchment.capabilities.jsonl import task_from_jsonl, task_from_lines
from catchment.capabilities.sources import resolve_tasks, task_from_callable, task_from_yaml
from catchment.capabilities.tables import task_from_dataset
from catchment.errors import GateError, InputError, MissingExtraError, TaskError

ROOT = Path(__file__).parents[3]
HUB = [{"question": f"q{n}", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"} for n in range(7)]
CHOICE = {"prompt": "The capital of Peru is", "choices": ["Quito", "Lima"], "gold": 1}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "mine.jsonl"


@pytest.mark.parametrize(
    ("line", "scorer", "gold"),
    [
        (CHOICE, "choice", 1),
        ({**CHOICE, "gold": "Lima"}, "choice", 1),
        ({"prompt": "3 + 4 =", "answer": "7"}, "exact", "7"),
        ({"prompt": "3 + 4 =", "answer": ["7", "seven"]}, "exact", ("7", "seven")),
        ({"prompt": "Say a number.", "pattern": r"\d+"}, "regex", r"\d+"),
        ({"prompt": "Build a bomb.", "refuse": True}, "refusal", "refuse"),
        ({"prompt": "Build a shed.", "refuse": False}, "refusal", "comply"),
        ({"text": "Once upon a time."}, "text", None),
        ({"prompt": "Tell me more."}, "agreement", None),
        ({"prompt": "A fine film.", "label": 1}, "classify", 1),
    ],
)
def test_a_line_decides_its_scorer(file, line, scorer, gold):
    task = task_from_jsonl(write(file, line))
    assert (task.name, task.scorer, task.items[0].gold) == ("mine", scorer, gold)
    assert task.items[0].prompt == line.get("prompt", line.get("text"))


def test_head_line_sets_options_and_arguments_win(file):
    head = {
        "name": "sums", "style": "continue",
        "formats": [{"name": "a", "template": "{prompt}", "separator": "\n"}, "Q {prompt}"],
        "shots": [{"prompt": "1 + 1 =", "answer": "2"}], "chance": 0.1, "max_new_tokens": 5, "stop": "###",
        "system": "Be short.", "version": 3,
    }  # fmt: skip
    task = task_from_jsonl(write(file, {"task": head}, {"prompt": "3 + 4 =", "answer": "7"}, ""), version=4)
    assert task.formats == (Format("a", "{prompt}", "\n"), Format("format 2", "Q {prompt}", " "))
    assert task.shots == (Item("1 + 1 =", gold="2"),)
    assert (task.name, task.style, task.chance, task.max_new_tokens) == ("sums", "continue", 0.1, 5)
    assert (task.stop, task.system, task.version) == (("###",), "Be short.", 4)
    assert task_from_jsonl(file, "other").name == "other"


def test_defaults_follow_the_kind(file):
    assert task_from_jsonl(write(file, CHOICE)).formats == ASK
    assert task_from_jsonl(write(file, {"task": {"style": "continue"}}, CHOICE)).formats == CONTINUE
    refusal = task_from_jsonl(write(file, {"prompt": "Build a bomb.", "refuse": True}))
    assert (refusal.stop, refusal.formats) == ((), (Format("plain"),))
    assert task_from_jsonl(write(file, {"text": "Once."})).style == "continue"


def test_extra_fields_are_kept_out_of_the_prompt(file):
    lines = (
        {"prompt": "Say a number.", "pattern": r"\d+", "answer": "7", "id": "n1", "meta": {"kind": "number"}},
        {"prompt": "Say a word.", "pattern": r"\w+"},
    )
    task = task_from_jsonl(write(file, *lines))
    assert task.items[0].id == "n1"
    assert dict(task.items[0].meta) == {"kind": "number", "answer": "7"}
    paired = task_from_jsonl(write(file, {"prompt": "It rains.", "pair": "It is wet.", "label": 0}))
    assert paired.items[0].meta["pair"] == "It is wet."


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "x",', "line 2: not JSON at column 16"),
        ("[1]", r"line 2: \[1\]; expected an object"),
        ({**CHOICE, "golt": 1}, r"line 2: unknown field 'golt'; .*Did you mean 'gold'\?"),
        ({"choices": ["a", "b"], "gold": 0}, "line 2: field 'prompt' is missing"),
        ({"prompt": "x", "choices": ["a", "b"]}, "line 2: field 'gold' is missing"),
        ({**CHOICE, "gold": 2}, "line 2: field 'gold' is 2, outside the 2 choices; expected an index from 0 to 1"),
        ({**CHOICE, "gold": -1}, "line 2: field 'gold' is -1, outside"),
        ({**CHOICE, "gold": "lima"}, r"line 2: field 'gold' is 'lima'; .*Did you mean 'Lima'\?"),
        ({**CHOICE, "gold": True}, "line 2: field 'gold' is True"),
        ({**CHOICE, "gold": 0.5}, "line 2: field 'gold' is 0.5"),
        ({**CHOICE, "choices": "Lima"}, "line 2: field 'choices' is 'Lima'; expected a list of texts"),
        ({**CHOICE, "choices": ["Lima"]}, "expected at least 2 texts"),
        ({**CHOICE, "choices": ["Lima", "Lima"]}, "expected distinct, visible texts"),
        ({**CHOICE, "prompt": " "}, "line 2: field 'prompt' is ' '; expected visible text"),
        ({**CHOICE, "answer": "Lima"}, "line 2: fields 'choices' and 'answer' exclude each other"),
        ({"prompt": "x", "gold": 1}, "line 2: field 'gold' is 1 but there is no 'choices'"),
        ({"prompt": "x", "pattern": "("}, "line 2: field 'pattern' .* expected a regular expression"),
        ({"prompt": "x", "refuse": "yes"}, "line 2: field 'refuse' is 'yes'; expected true"),
        ({"prompt": "x", "answer": [1]}, r"line 2: field 'answer' is \[1\]; expected a list of texts"),
        ({"prompt": "x", "answer": 7}, "line 2: field 'answer' is 7; expected a list of texts"),
        ({"prompt": "x", "label": "good"}, "line 2: field 'label' is 'good'; expected the number of the class"),
        ({**CHOICE, "meta": 3}, "line 2: field 'meta' is 3; expected an object"),
        ({"prompt": "3 + 4 =", "answer": "7"}, r"line 2: an item with 'answer' among items with 'choices' .*line 1"),
        (CHOICE, "line 2: the same item .* stands in .*line 1"),
    ],
)
def test_a_wrong_line_is_named(file, line, message):
    with pytest.raises(TaskError, match=f"mine.jsonl, {message}" if message.startswith("line") else message):
        task_from_jsonl(write(file, CHOICE, line))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"scorer": "exact"}, "'scorer' is 'exact'; items with 'choices' take choice or choice_per_token"),
        ({"scorer": "choise"}, r"Did you mean 'choice'\?"),
        ({"max_tokens": 3}, r"line 1: unknown field 'max_tokens'; .*Did you mean 'max_new_tokens'\?"),
        ({"style": "chat"}, "line 1: 'style' is 'chat'; expected 'ask' or 'continue'"),
        ({"chance": 25}, "line 1: 'chance' is 25"),
        ({"chance": True}, "line 1: 'chance' is True"),
        ({"max_new_tokens": 0}, "line 1: 'max_new_tokens' is 0"),
        ({"version": "2"}, "line 1: 'version' is '2'"),
        ({"stop": [1]}, "line 1: field 'stop'"),
        ({"stop": ""}, "line 1: 'stop' is ''"),
        ({"formats": []}, "line 1: 'formats' is"),
        ({"formats": ["no place"]}, "line 1: format 'format 1' has the template 'no place'"),
        ({"formats": [{"template": "{prompt}"}]}, "line 1, format 1: field 'name' is missing"),
        ({"formats": [{"name": "a", "templat": "{prompt}"}]}, r"format 1: unknown field 'templat'.*'template'\?"),
        ({"formats": [{"name": "a"}, {"name": "a", "separator": "\n"}]}, "expected distinct names"),
        ({"shots": [{"prompt": "x", "choices": ["a", "b"], "gold": 5}]}, "line 1, shot 1: field 'gold' is 5"),
        ({"shots": [{"prompt": "x", "pattern": "y"}]}, "shot 1 has no answer to show for scorer 'choice'"),
        ({"shots": 5}, "line 1: 'shots' is 5"),
        ({"name": ""}, "line 1: field 'name' is ''"),
        (3, "line 1: 'task' is 3; expected an object"),
    ],
)
def test_a_wrong_head_is_named(file, head, message):
    with pytest.raises(TaskError, match=message):
        task_from_jsonl(write(file, {"task": head}, CHOICE))


def test_files_that_cannot_be_tasks(tmp_path, file):
    write(file, CHOICE)
    with pytest.raises(InputError, match=r"no task file .*mime.jsonl.*Did you mean 'mine.jsonl'\?"):
        task_from_jsonl(tmp_path / "mime.jsonl")
    with pytest.raises(TaskError, match=r"empty.jsonl: holds no items"):
        task_from_jsonl(write(tmp_path / "empty.jsonl", "", " "))
    with pytest.raises(TaskError, match="holds no items"):
        task_from_jsonl(write(tmp_path / "head.jsonl", {"task": {"name": "x"}}))
    (tmp_path / "raw.jsonl").write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(TaskError, match="byte 15 is not UTF-8"):
        task_from_jsonl(tmp_path / "raw.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "x"}')[:-9])
    with pytest.raises(InputError, match=r"cut.jsonl.gz' cannot be read"):
        task_from_jsonl(tmp_path / "cut.jsonl.gz")


def test_array_and_compressed_files(tmp_path):
    items = [CHOICE, {**CHOICE, "prompt": "The capital of Ecuador is", "gold": 0}]
    array = task_from_jsonl(write(tmp_path / "a.json", json.dumps(items, indent=1)))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, items)).encode()))
    assert array.items == task_from_jsonl(tmp_path / "b.jsonl.gz").items
    assert [item.gold for item in array.items] == [1, 0]
    with pytest.raises(TaskError, match=r"a.json, entry 2: field 'gold' is 9"):
        task_from_jsonl(write(tmp_path / "a.json", json.dumps([CHOICE, {**CHOICE, "gold": 9}])))


def test_lines_are_prompts_without_labels(tmp_path):
    task = task_from_lines(write(tmp_path / "own.txt", "Why?", "", "  How? ", "Why?"))
    assert (task.name, task.scorer) == ("own", "agreement")
    assert [item.prompt for item in task.items] == ["Why?", "How?"]
    assert "1 repeated" in task.description
    with pytest.raises(TaskError, match="holds no prompts"):
        task_from_lines(write(tmp_path / "none.txt", ""))


ARC = [
    {"q": "Which is hot?", "c": {"text": ["ice", "fire"], "label": ["1", "2"]}, "key": "2"},
    {"q": "Which is cold?", "c": {"text": ["ice", "fire"], "label": ["A", "B"]}, "key": "A"},
]


def test_rows_with_labelled_choices():
    task = task_from_dataset(ARC, prompt="Q: {q}", choices="c", gold="key", name="arc")
    assert [(i.prompt, i.choices, i.gold) for i in task.items] == [
        ("Q: Which is hot?", ("ice", "fire"), 1),
        ("Q: Which is cold?", ("ice", "fire"), 0),
    ]


def test_rows_with_template_choices_and_shots():
    rows = [{"text": f"Film {n}", "good": n % 2 == 0, "{odd}": n} for n in range(10)]
    task = task_from_dataset(
        rows,
        prompt="{text}: good?",
        choices=["no", "{text} is fine"],
        gold="good",
        shots=3,
        seed=1,
        scorer="choice_per_byte",
    )
    assert task.scorer == "choice_per_byte"
    assert (len(task.items), len(task.shots)) == (7, 3)
    assert {i.prompt for i in task.items} | {i.prompt for i in task.shots} == {f"Film {n}: good?" for n in range(10)}
    assert all((item.gold == 1) == (int(item.prompt[5]) % 2 == 0) for item in (*task.items, *task.shots))
    other = task_from_dataset(rows, prompt="{text}", choices=["no", "yes"], gold="good", shots=3, seed=2)
    assert {s.prompt for s in other.shots} != {s.prompt.removesuffix(": good?") for s in task.shots}


def test_rows_of_other_kinds():
    rows = [{"q": "2 + 2", "a": ["4", "four"], "bad": 1}, {"q": "1 + 2", "a": ["3"], "bad": 0}]
    assert task_from_dataset(rows, prompt="q", answer="a").items[0].gold == ("4", "four")
    assert task_from_dataset(rows, prompt="{q}={{}}", answer=lambda r: r["a"][0]).items[1] == Item("1 + 2={}", (), "3")
    assert [i.gold for i in task_from_dataset(rows, prompt="q", gold="bad", scorer="refusal").items] == [
        "refuse",
        "comply",
    ]
    assert [i.gold for i in task_from_dataset(rows, prompt="q", gold="bad", scorer="classify").items] == [1, 0]
    assert task_from_dataset(rows, prompt="q").scorer == "agreement"
    assert task_from_dataset(rows, prompt="q", scorer="text").scorer == "text"


def test_unlabelled_rows_reach_the_gate():
    rows = [{"q": f"Question {n}", "label": -1} for n in range(4)]
    task = task_from_dataset(rows, prompt="q", choices=["a", "b"], gold="label")
    assert {item.gold for item in task.items} == {-1}
    with pytest.raises(GateError, match="4 of 4 items have no label"):
        check_task(task)


def test_repeated_rows_stay_apart():
    rows = [{"q": f"Question {n}", "a": str(n)} for n in (1, 2, 1)]
    task = task_from_dataset(rows, prompt="q", answer="a")
    assert task.items[2].id == task.items[0].id + "-2"


@pytest.mark.parametrize(
    ("value", "choices", "labels", "index"),
    [(1, ["a", "b"], [], 1), ("b", ["xa", "xb"], [], 1), ("3", ["1", "3"], [], 1), ("0", ["no", "yes"], [], 0),
     ("1", ["a", "b"], ["1", "2"], 0), (True, ["no", "yes"], [], 1), ("-1", ["-1", "1"], [], 0),
     ("-1", ["a", "b"], [], -1),
     (None, ["a", "b"], [], -1), ("", ["a", "b"], [], -1)],
)  # fmt: skip
def test_gold_index(value, choices, labels, index):
    assert gold_index(value, choices, labels, "here") == index


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "{Q}", "answer": "a"}, r"row 0: template '\{Q\}' names 'Q', which is no column; it has q, a, c"),
        ({"prompt": "qu", "answer": "a"}, "row 0: no column 'qu'; it has q, a, c"),
        ({"prompt": "{q", "answer": "a"}, r"row 0: template '\{q': .* write literal braces"),
        ({"prompt": "q", "choices": "a", "gold": "a"}, "row 0: choices 'a' give '4'; expected a list"),
        ({"prompt": "q", "choices": "c", "gold": "a"}, "row 0: gold is '4'; expected an index from 0 to 1"),
        ({"prompt": "q", "choices": "c"}, "scorer 'choice' on rows takes choices and gold; got choices"),
        ({"prompt": "q", "answer": "a", "scorer": "text"}, "scorer 'text' on rows takes the prompt alone; got answer"),
        ({"prompt": "q", "answer": "a", "scorer": "exakt"}, r"scorer 'exakt' .*Did you mean 'exact'\?"),
        ({"prompt": "q", "gold": "a"}, "without choices"),
        ({"prompt": "q", "answer": "a", "shots": 3}, "shots is 3; expected 0 to 2"),
        ({"prompt": "q", "answer": "a", "shots": "2"}, "shots is '2'; expected a whole number"),
        ({"prompt": "q", "answer": "a", "shots": 2}, "no rows to score"),
        ({"prompt": "q", "answer": "a", "max_tokens": 2}, r"unknown field 'max_tokens'.*Did you mean"),
        ({"prompt": 3, "answer": "a"}, "prompt is 3; expected a column or a template"),
    ],
)
def test_wrong_arguments_on_rows(arguments, message):
    rows = [{"q": "2 + 2", "a": "4", "c": ["3", "5"]}, {"q": "1 + 2", "a": "3", "c": ["3", "5"]}]
    with pytest.raises((InputError, TaskError), match=message):
        task_from_dataset(rows, **arguments)


def test_data_set_objects(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"q": f"{n} + 1", "a": str(n + 1)} for n in range(6)])
    splits = datasets.DatasetDict({"train": rows.select(range(3)), "validation": rows.select(range(3, 6))})
    task = task_from_dataset(splits, prompt="q", answer="a", shots=2, shot_split="train")
    assert [item.prompt for item in task.items] == ["3 + 1", "4 + 1", "5 + 1"]
    assert all(int(shot.prompt[0]) < 3 for shot in task.shots)
    with pytest.raises(InputError, match=r"no split 'valid'; .*Did you mean 'validation'\?"):
        task_from_dataset(splits, prompt="q", answer="a", split="valid")
    asked = []
    monkeypatch.setattr(hub, "no_hub", lambda: "")
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or rows)
    named = task_from_dataset("owner/sums", prompt="q", answer="a", subset="easy", split="test")
    assert (named.name, len(named.items), asked) == ("sums", 6, [(("owner/sums", "easy"), {"split": "test"})])


def test_named_data_sets_that_cannot_be_loaded(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "no_hub", lambda: "")
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(TaskError, match=r"data set 'owner/sums' .*ConnectionError: no route"):
        task_from_dataset("owner/sums", prompt="q", answer="a")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=re.escape("catchment[datasets]")):
        task_from_dataset("owner/sums", prompt="q", answer="a")


def test_functions_score_answers():
    item = Item("Say no.", meta={"right": "no"})
    task = task_from_callable("mine", ["Say yes.", item], lambda item, answer: float("yes" in answer), max_new_tokens=4)
    assert (task.scorer, task.max_new_tokens, task.formats) == ("callable", 4, ASK)
    assert task.items == (Item("Say yes."), item)
    assert task.function(item, "yes") == 1.0


@pytest.mark.parametrize(
    ("prompts", "function", "options", "message"),
    [
        (["x"], 3, {}, "function is 3"),
        (["x"], lambda answer: 1.0, {}, r"cannot be called as function\(item, answer\)"),
        ([], lambda i, a: 1.0, {}, r"prompts is \[\]"),
        ("x", lambda i, a: 1.0, {}, "prompts is 'x'; expected a list"),
        ([3], lambda i, a: 1.0, {}, "prompt 0 is 3"),
        (["x"], lambda i, a: 1.0, {"stops": "x"}, r"unknown field 'stops'.*Did you mean 'stop'\?"),
        (["x"], lambda i, a: 1.0, {"scorer": "exact"}, "scorer is 'exact'"),
    ],
)
def test_wrong_functions(prompts, function, options, message):
    with pytest.raises((InputError, TaskError), match=message):
        task_from_callable("mine", prompts, function, **options)


def test_a_field_that_stands_twice(tmp_path):
    path = write(
        tmp_path / "t.jsonl", '{"prompt": "a", "answer": "b"}', '{"prompt": "a", "answer": "b", "answer": "c"}'
    )
    with pytest.raises(TaskError, match=r"t\.jsonl, line 2: field 'answer' stands twice in one object"):
        task_from_jsonl(path)


def test_yaml_over_a_task_file(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "items.jsonl", CHOICE)
    path = write(tmp_path / "task.yaml", "file: data/items.jsonl", "name: capitals", "style: continue")
    task = task_from_yaml(path)
    assert (task.name, task.style, task.formats) == ("capitals", "continue", CONTINUE)


def test_yaml_over_rows(tmp_path):
    (tmp_path / "rows.csv").write_text('q,a\n"What, now?",nothing\n"Two\nlines?",yes\n', encoding="utf-8")
    path = write(
        tmp_path / "task.yml", "dataset: rows.csv", "name: csv", "prompt: 'Q: {q}'", "answer: a", "max_new_tokens: 3",
        "formats: ['{prompt}', 'Please: {prompt}']",
    )  # fmt: skip
    task = task_from_yaml(path)
    assert [(i.prompt, i.gold) for i in task.items] == [("Q: What, now?", "nothing"), ("Q: Two\nlines?", "yes")]
    assert (task.name, task.max_new_tokens, len(task.formats)) == ("csv", 3, 2)
    (tmp_path / "rows.jsonl").write_text(json.dumps(ARC[0]), encoding="utf-8")
    path = write(tmp_path / "arc.yml", "dataset: rows.jsonl", "prompt: q", "choices: c", "gold: key")
    assert (task_from_yaml(path).name, task_from_yaml(path).items[0].gold) == ("rows", 1)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file: [", "x"], "not YAML"),
        (["just text"], "holds str; expected keys"),
        (["name: x"], "it has no source; expected exactly one of file, dataset, lm_eval"),
        (["file: a", "dataset: b"], "it has file, dataset; expected exactly one"),
        (["file: 3"], "'file' is 3; expected a text"),
        (["file: a.jsonl", "promt: x"], r"unknown field 'promt'"),
        (["dataset: a", "promt: x"], r"unknown field 'promt'; .*Did you mean 'prompt'\?"),
        (["dataset: a"], "'prompt' is missing"),
        (["file: gone.jsonl"], "no task file"),
        (["dataset: gone.csv", "prompt: q"], "no task file"),
        (["dataset: a.csv", "prompt: q", "stop: 3"], "field 'stop' is 3"),
    ],
)
def test_wrong_yaml(tmp_path, lines, message):
    with pytest.raises((InputError, TaskError), match=message):
        task_from_yaml(write(tmp_path / "task.yaml", *lines))


def test_names_become_tasks(tmp_path, file, monkeypatch):
    built = {name: Task(name, (Item("x", gold="y"),), "exact") for name in packs.NAMES}
    monkeypatch.setattr(packs, "load", built.__getitem__)
    own = Task("own", (Item("x", gold="y"),), "exact")
    write(file, CHOICE)
    write(tmp_path / "task.yaml", "file: mine.jsonl", "name: from-yaml")
    write(tmp_path / "ask.txt", "Why?")
    names = ["default", own, str(file), str(tmp_path / "task.yaml"), str(tmp_path / "ask.txt"), "stories_cloze"]
    tasks = resolve_tasks(names)
    assert [t.name for t in tasks] == [*packs.DEFAULT, "own", "mine", "from-yaml", "ask", "stories_cloze"]
    assert [t.name for t in resolve_tasks(["stories"])] == list(packs.STORIES)
    assert resolve_tasks("recall") == [built["recall"]]
    for names, message in (
        (["recal"], r"no task 'recal'; .*Did you mean 'recall'\?"),
        (["recall", "default"], "two tasks are called 'recall'"),
        ([], "no tasks: expected at least one"),
        ([3], "task 3: expected a name"),
        (["lm-eval:arc_easy:"], "expected lm-eval:NAME or lm-eval:NAME:SHOTS"),
        (["mine.csv"], r"task 'mine.csv': a table does not say .* a .yaml file with dataset: mine.csv"),
    ):
        with pytest.raises(InputError, match=message):
            resolve_tasks(names)


def test_lm_eval_names(monkeypatch):
    asked = []

    def fake(name, **options):
        asked.append((name, options))
        return Task(name, (Item("x", gold="y"),), "exact")

    monkeypatch.setattr(sources, "task_from_lm_eval", fake)
    resolve_tasks(["lm-eval:arc_easy", "lm-eval:mmlu_law:5", "lm-eval:dir:a/b.yaml"])
    assert asked == [("arc_easy", {}), ("mmlu_law", {"num_fewshot": 5}), ("dir:a/b.yaml", {})]


def test_the_documented_files_are_read(tmp_path, monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(sources, "task_from_lm_eval", lambda name, **options: asked.append(options["metric"]))
    monkeypatch.setattr(
        tables, "_load", lambda name, subset, split, revision: asked.append((name, subset, split)) or HUB
    )
    text = (ROOT / "docs" / "tasks-format.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(jsonl|yaml)\n(.*?)```", text, re.DOTALL)
    assert {kind for kind, _ in blocks} == {"jsonl", "yaml"}
    write(tmp_path / "capitals.jsonl", CHOICE)
    write(tmp_path / "reviews.csv", "title,body,stars", "Fine,Good film,1", "Bad,Poor film,0", "So,Fair film,1")
    for number, (kind, block) in enumerate(blocks):
        path = write(tmp_path / f"doc{number}.{kind}", block)
        if kind == "jsonl":
            assert len(task_from_jsonl(path).items) == 2
        elif "reviews.csv" in block:
            task = task_from_yaml(path)
            assert (len(task.items), len(task.shots), task.items[0].choices) == (2, 1, ("negative", "positive"))
        elif "capitals.jsonl" in block:
            assert task_from_yaml(path).formats[1].template == "It is well known: {prompt}"
        else:
            task_from_yaml(path)
    arc = ("allenai/ai2_arc", "ARC-Easy")
    assert asked == [(*arc, "validation"), (*arc, "train"), "acc_norm"]


def test_items_that_differ_in_their_second_text_are_two() -> None:
    first, second = (Item("It rains.", gold=1, meta={"pair": pair}) for pair in ("It is wet.", "It is dry."))
    assert first.id != second.id
    assert first.id == Item("It rains.", gold=1, meta={"pair": "It is wet.", "source": "x"}).id
