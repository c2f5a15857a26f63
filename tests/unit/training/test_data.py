"""Rows from files, tables and memory; what is refused and how; splits; held-out rows as a task."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from catchment.capabilities import evaluate
from catchment.errors import InputError, MissingExtraError
from catchment.training.data import Rows, last_answer, prompt_key, read_rows, split_rows
from catchment.training.tables import parse_name
from catchment.training.tasks import as_task
from tests import tiny

SUMS = [{"prompt": f"{a} + {b} =", "completion": f" {a + b}"} for a in range(6) for b in range(5)]
CHAT = [
    {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": str(n)}]}
    for n in range(12)
]


def pair(*turns: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[k % 2], "content": turn} for k, turn in enumerate(turns)]}


def write(path: Path, rows: list[Any]) -> Path:
    text = json.dumps(rows) if path.suffix == ".json" else "\n".join(json.dumps(row) for row in rows) + "\n\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return datasets


@pytest.mark.parametrize(
    ("row", "kind", "canonical"),
    [
        ({"prompt": "a", "completion": "b"}, "prompt", {"prompt": "a", "completion": "b"}),
        ({"text": "a"}, "text", {"text": "a"}),
        (pair("a", "b"), "messages", pair("a", "b")),
        ({"text": "a", "label": 0}, "classification", {"text": "a", "label": 0}),
        ({"sentence": "a", "label": 0}, "classification", {"text": "a", "label": 0}),
        ({"sentence1": "a", "sentence2": "b", "label": 0}, "classification",
         {"text": "a", "text_pair": "b", "label": 0}),
        ({"hypothesis": "b", "label": 0, "premise": "a"}, "classification",
         {"text": "a", "text_pair": "b", "label": 0}),
    ],
)  # fmt: skip
def test_kind_follows_from_the_columns(row: dict[str, Any], kind: str, canonical: dict[str, Any]) -> None:
    second = {**row, "label": 1} if "label" in row else row
    rows = read_rows([row, second])
    assert (rows.kind, rows.rows[0], len(rows)) == (kind, canonical, 2)


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.json"])
def test_files_say_what_the_list_says(tmp_path: Path, name: str) -> None:
    rows = read_rows(write(tmp_path / name, SUMS))
    assert (rows.rows, rows.fingerprint) == (SUMS, read_rows(SUMS).fingerprint)
    assert rows.name == name


def test_fingerprint_is_of_the_content() -> None:
    first = read_rows(SUMS).fingerprint
    assert first == read_rows([dict(reversed(row.items())) for row in SUMS]).fingerprint
    changed = [*SUMS[:-1], {**SUMS[-1], "completion": " 0"}]
    assert len({first, read_rows(changed).fingerprint, read_rows(SUMS[::-1]).fingerprint}) == 3


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables(tmp_path: Path, cache: Any, suffix: str) -> None:
    rows = [{"sentence": "NA", "label": "no"}, {"sentence": 'a, "b"', "label": "yes"}]
    path = tmp_path / f"d{suffix}"
    if suffix == ".parquet":
        cache.Dataset.from_list(rows).to_parquet(path)
    else:
        cut = "," if suffix == ".csv" else "\t"
        path.write_text(cut.join(["sentence", "label"]) + f'\nNA{cut}no\n"a, ""b"""{cut}yes\n', encoding="utf-8")
    read = read_rows(path)
    assert read.rows == [{"text": "NA", "label": 0}, {"text": 'a, "b"', "label": 1}]  # pandas: "NA" is nothing
    assert read.classes == ("no", "yes")


def test_a_stray_quote_in_a_table(tmp_path: Path) -> None:
    """pandas reads 60 of these 100 rows, the others are one text."""
    lines = [f"what is {n} + 1?,{n + 1}" for n in range(100)]
    path = tmp_path / "d.csv"
    path.write_text("\n".join(["prompt,completion", *lines]))
    assert [list(row.values()) for row in read_rows(path).rows] == [line.split(",") for line in lines]
    lines[20], lines[60] = f'"{lines[20]}', lines[60].replace(",", '",')
    path.write_text("\n".join(["prompt,completion", *lines]))
    with pytest.raises(
        InputError, match=r"data 'd\.csv', lines 22 to 62: one row, because .*QUOTE_ALL\), or save it as"
    ):
        read_rows(path)
    path.with_suffix(".tsv").write_text(path.read_text().replace(",", "\t"))
    assert [list(row.values()) for row in read_rows(path.with_suffix(".tsv")).rows] == [s.split(",") for s in lines]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,completion\na,b\nc\n", "line 3: 1 of 2 columns: 'completion' missing; expected prompt, completion"),
        ("prompt,completion\na,b,c\n", "line 2: 3 fields for 2 columns, 'c' too many"),
        ("prompt,completion\n", "holds no rows"),
        ("sentence,label\na,x\nb,y\nc,\n", "line 4: label is empty; expected the name of a class"),
        ("sentence,label\na,1.0\nb,0.0\n", r"line 2: label 1\.0; expected a whole number"),
        ("sentence,label\na,1\nb,-1\n", "line 3: label -1; expected classes from 0"),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / "d.csv")


def test_values_of_a_table(tmp_path: Path) -> None:
    """Texts stay texts, labels that are all numbers become numbers, in their order; long rows are said."""
    path = tmp_path / "d.csv"
    path.write_text("id,sentence,label\n" + "".join(f"7,0{n},{n}\n" for n in range(11)))
    with pytest.warns(UserWarning, match="columns not used for 'classification' rows: id"):
        rows = read_rows(path)
    assert rows.rows == [{"text": f"0{n}", "label": n} for n in range(11)]
    path.write_text('prompt,completion\na,b\n"Two\nlines?",4\n')
    with pytest.warns(UserWarning, match=r"'d\.csv': 1 of 2 rows stand over several lines.*lines 3 to 4"):
        assert read_rows(path).rows[1] == {"prompt": "Two\nlines?", "completion": "4"}


@pytest.mark.parametrize("suffix", [".csv", ".parquet", "folder"])
def test_rows_replaced_with_size_and_time_kept(tmp_path: Path, cache: Any, suffix: str) -> None:
    """The cache of `datasets` gives the rows of the first file again."""
    (tmp_path / "rows").mkdir()
    path = tmp_path / "rows" / ("train.csv" if suffix == "folder" else f"train{suffix}")
    name = str(path.parent if suffix == "folder" else path)
    for completion in ("one", "two"):
        stat = path.stat() if path.exists() else None
        data = cache.Dataset.from_list([{"prompt": "a", "completion": completion}])
        (data.to_parquet if suffix == ".parquet" else data.to_csv)(str(path))
        if stat is not None:
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        assert read_rows(name).rows == [{"prompt": "a", "completion": completion}]


def test_a_folder_with_a_stray_quote(tmp_path: Path, cache: Any) -> None:
    (tmp_path / "train.csv").write_text('prompt,completion\n"a,b\nc,d\ne",f\n')
    with pytest.raises(InputError, match=r"train\.csv', lines 2 to 4: one row, because"):
        read_rows(str(tmp_path))


def test_a_column_that_stands_twice(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "a", "text": "b"}')
    with pytest.raises(InputError, match=r"line 1: column 'text' stands twice"):
        read_rows(tmp_path / "d.jsonl")


def test_damaged_table(tmp_path: Path, cache: Any) -> None:
    path = tmp_path / "d.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"data 'd.parquet' cannot be read as a table .*; expected \.parquet"):
        read_rows(path)


def test_data_sets_in_memory(cache: Any) -> None:
    features = cache.Features({"text": cache.Value("string"), "label": cache.ClassLabel(names=["bad", "fair", "good"])})
    train = cache.Dataset.from_list([{"text": "a", "label": 0}, {"text": "b", "label": 2}], features=features)
    rows = read_rows(cache.DatasetDict({"train": train}))
    assert (rows.classes, [row["label"] for row in rows.rows]) == (("bad", "fair", "good"), [0, 2])
    with pytest.raises(InputError, match=r"no split 'trian'; expected one of train\. Did you mean 'train'"):
        read_rows(cache.DatasetDict({"train": train}), split="trian")
    turns = cache.Dataset.from_list(
        [{"messages": [{"role": "user", "content": "a", "name": "n"}, {"role": "assistant", "content": "b"}]}]
    )
    assert read_rows(turns).rows[0]["messages"][1] == {"role": "assistant", "content": "b"}  # no name: None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("imdb", ("imdb", None, "x")),
        ("owner/name", ("owner/name", None, "x")),
        ("glue:sst2", ("glue", "sst2", "x")),
        ("owner/name:sub/validation", ("owner/name", "sub", "validation")),
        ("owner/name/train_sft", ("owner/name", None, "train_sft")),
        ("imdb/test", ("imdb", None, "test")),
    ],
)
def test_names_of_data_sets(given: str, expected: tuple[str, str | None, str]) -> None:
    assert parse_name(given, "x") == expected


def test_named_data_sets(cache: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*names: Any, **options: Any) -> Any:
        asked.append((names, options))
        if names[0] == "gone":
            raise ConnectionError("offline")
        return cache.Dataset.from_list(SUMS)

    monkeypatch.setattr(cache, "load_dataset", load)
    rows = read_rows("owner/name:sub", split="test")
    assert (rows.rows, rows.name) == (SUMS, "owner/name:sub")
    assert asked == [(("owner/name", "sub"), {"split": "test"})]
    with pytest.raises(
        InputError, match=r"data set 'gone' .* cannot be loaded \(ConnectionError: offline\); expected a"
    ):
        read_rows("gone")


def test_without_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "d.csv").write_text("text\na\n")
    assert read_rows(tmp_path / "d.csv").rows == [{"text": "a"}]
    (tmp_path / "d.parquet").write_text("text")
    for data, what in ((tmp_path / "d.parquet", "the table 'd.parquet'"), ("imdb", "the data set 'imdb'")):
        with pytest.raises(MissingExtraError, match=rf"{what} needs 'datasets'.*catchment\[datasets\]"):
            read_rows(data)
    assert read_rows(write(tmp_path / "d.jsonl", SUMS)).kind == "prompt"


LABELS: list[tuple[list[Any], str]] = [
    ([0, 2], "labels 0, 2; expected all of 0 to n - 1 for n classes"),
    ([1, 1], "every label is 1; expected at least 2 classes"),
    ([0, -1], "row 2: label -1; expected classes from 0"),
    ([0, 0.5], r"row 2: label 0\.5; expected a whole number in every row"),
    ([True, False], "row 1: label True; expected a whole number"),
    (["a", 1], "row 2: label 1; expected text in every row"),
]
REFUSED: list[tuple[list[Any], str]] = [
    ([], "holds no rows; expected at least one"),
    ([["a"]], r"row 1: \['a'\]; expected an object such as"),
    ([{"promt": "a", "completion": "b"}], "has the columns promt, completion; expected .* Did you mean 'prompt'"),
    ([{}], "has the columns none; expected"),
    ([*SUMS[:2], {"text": "a"}], "row 3: columns prompt, completion missing and text too many; expected prompt, comp"),
    ([{"text": "a"}, {"text": 3}], "row 2: 'text' is 3; expected text"),
    ([{"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}], "row 1: one of 'prompt'"),
    ([{"messages": "a"}], r"row 1: 'messages' is 'a'; expected a list of \{'role'"),
    ([{"messages": []}], r"row 1: 'messages' is \[\]; expected a list"),
    ([{"messages": [{"role": "user", "content": 3}]}], "row 1: 'messages' is .*; expected a list"),
    ([{"messages": [{"from": "human", "value": "a"}]}], "row 1: 'messages' is .*; expected a list"),
    ([pair("a")], "row 1: 'messages' has the roles user; expected at least one of 'assistant'"),
    ([SUMS[0], {"prompt": "a", "completion": " \n"}, {"prompt": "b", "completion": ""}],
     "2 of 3 rows have an empty completion, the first is row 2; .*Remove"),
    ([pair("a", "b"), pair("a", "b", "c", " ")], "1 of 2 rows have an empty last assistant message"),
    ([{"text": " "}], "1 of 1 rows have an empty text"),
    *(([{"text": "a", "label": x} for x in labels], message) for labels, message in LABELS),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), REFUSED)
def test_refused_rows(rows: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_rows(rows)


def test_refused_files(tmp_path: Path) -> None:
    write(tmp_path / "sums.jsonl", SUMS)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "cut.jsonl").write_text('{"text": "a"}\n\n{"text": "b')
    (tmp_path / "cut.json").write_text('[{"text": "a"},\n{"text"')
    (tmp_path / "one.json").write_text('{"text": "a"}')
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}')[:-4])
    (tmp_path / "latin.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    (tmp_path / "rows.txt").write_text("a")
    whole = gzip.compress("".join(f'{{"text": "{k * k}"}}\n' for k in range(400)).encode())
    middle = len(whole) // 2
    (tmp_path / "bits.jsonl.gz").write_bytes(whole[:middle] + bytes(255 - b for b in whole[middle:-8]) + whole[-8:])
    (tmp_path / "deep.jsonl").write_text('{"text": "a"}\n' + "[" * 100_000)
    (tmp_path / "digits.jsonl").write_text('{"text": "a"}\n{"text": ' + "9" * 5000 + "}")
    (tmp_path / "half.jsonl").write_text('{"text": "a"}\n\n{"text": "so \\ud83d"}')
    for name, message in {
        "sum.jsonl": r"no file '.*sum\.jsonl'; expected a file\. Did you mean 'sums\.jsonl'",
        "empty.jsonl": "'empty.jsonl' holds no rows; .*Is the file empty",
        "blank.jsonl": "'blank.jsonl' holds no rows",
        "cut.jsonl": "'cut.jsonl', line 3: not JSON at column 10 .*The file may be cut off",
        "cut.json": "'cut.json', the file: not JSON at line 2",
        "one.json": r"'one.json' holds a dict; expected a list of rows.*\.jsonl",
        "cut.jsonl.gz": "'cut.jsonl.gz' cannot be read .*expected a readable, whole file",
        "bits.jsonl.gz": "'bits.jsonl.gz' cannot be read .*expected a readable, whole file",
        "deep.jsonl": r"'deep.jsonl', line 2: cannot be read as JSON \(it is nested too deeply\)",
        "digits.jsonl": r"'digits.jsonl', line 2: cannot be read as JSON \(Exceeds the limit",
        "half.jsonl": r"'half.jsonl', line 3: '\\ud83d' after .*so ' is half of a character .*Was an emoji cut in two",
        "latin.jsonl": "byte 10 is not UTF-8; expected text in UTF-8",
        "rows.txt": "'rows.txt' is no file of rows; expected one that ends in .jsonl",
    }.items():
        with pytest.raises(InputError, match=message):
            read_rows(tmp_path / name)
    with pytest.raises(InputError, match=r"split 'test' of the file 'sums\.jsonl'; a file has no splits"):
        read_rows(tmp_path / "sums.jsonl", split="test")
    with pytest.raises(InputError, match="data is 3; expected a file, the name of a data set"):
        read_rows(3)


def test_half_characters_and_what_json_cannot_hold() -> None:
    half = "\ud800"
    labelled = [{"text": "a", "label": "x"}, {"text": "b", "label": half}]
    for given in (
        [SUMS[0], {"prompt": "a", "completion": f" b{half}"}], [CHAT[0], pair("a", half)], labelled
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"data 'rows', row 2: '\\ud800' after .* is half of a character"):
            read_rows(given)
    called = [*CHAT[:1], {"messages": [{"role": "assistant", "tool_calls": [{1, 2}]}]}]
    with pytest.raises(InputError, match=r"row 2: cannot be written as JSON .*set is not JSON serializable"):
        read_rows(called)


def test_a_row_keeps_its_place_through_splits(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in SUMS[:20]) + "\n\n" + "\n".join(map(json.dumps, SUMS[20:])))
    rows = read_rows(path)
    assert (rows.place(0), rows.place(19), rows.place(20)) == ("line 1", "line 20", "line 22")
    for part in split_rows(rows, 9, 0):
        for index, row in enumerate(part.rows):
            at = SUMS.index(row)
            assert part.place(index) == f"line {at + 1 + (at >= 20)}"
    held = split_rows(rows, 9, 0)[1]
    assert held.of(held.rows[5:]).place(0) == held.place(5)
    assert rows.of([{"prompt": "a", "completion": "b"}]).place(0) == "row 1"


def test_columns_that_are_not_used_are_named() -> None:
    with pytest.warns(UserWarning, match="not used for 'prompt' rows: id, source"):
        rows = read_rows([{"id": 1, **SUMS[0], "source": "x"}])
    assert rows.rows == SUMS[:1]


def test_text_labels_become_sorted_classes() -> None:
    rows = read_rows([{"text": str(k), "label": label} for k, label in enumerate("cabca")])
    assert (rows.classes, [row["label"] for row in rows.rows]) == (("a", "b", "c"), [2, 0, 1, 2, 0])
    assert read_rows([{"text": "a", "label": k} for k in (1, 0)]).classes == ("0", "1")


# Splits

REPEATED = [{"prompt": f"{n % 7}  ?", "completion": str(n)} for n in range(40)] + [
    {"prompt": f"{n} ?", "completion": "x"} for n in range(40)
]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rows", "held_out"), [(SUMS, 7), (SUMS, 0.2), (REPEATED, 20), (CHAT, 3)])
def test_split_is_disjoint_by_prompt(rows: list[Any], held_out: float, seed: int) -> None:
    read = read_rows(rows)
    train, held = split_rows(read, held_out, seed)
    assert len(held) == (held_out if isinstance(held_out, int) else round(held_out * len(rows)))
    keys = [{prompt_key(part.kind, row) for row in part.rows} for part in (train, held)]
    assert not keys[0] & keys[1]
    merged = sorted(json.dumps(row) for part in (train, held) for row in part.rows)
    assert merged == sorted(json.dumps(row) for row in rows)
    assert [row for row in rows if row in held.rows] == held.rows  # the order of the data
    again = split_rows(read, held_out, seed)
    assert [part.fingerprint for part in again] == [train.fingerprint, held.fingerprint]
    assert held.fingerprint == read_rows(held.rows).fingerprint


def test_split_depends_on_the_seed() -> None:
    assert len({split_rows(read_rows(SUMS), 7, seed)[1].fingerprint for seed in range(5)}) == 5


def test_split_of_conversations_with_one_question() -> None:
    rows = read_rows([pair("a", "b", "c", "d"), pair("a", "b", "e", "f"), pair("g", "h")])
    for seed in range(4):
        assert split_rows(rows, 1, seed)[1].rows == [pair("g", "h")]


def test_split_that_cannot_be_met() -> None:
    rows = read_rows([{"prompt": "a", "completion": str(k)} for k in range(4)] + SUMS[:1])
    with pytest.warns(UserWarning, match="1 rows instead of 3, because rows with the same prompt stay together"):
        assert split_rows(rows, 3, 0)[1].rows == SUMS[:1]
    with pytest.raises(InputError, match="4 rows have only 1 distinct prompts"):
        split_rows(rows.of(rows.rows[:4]), 2, 0)
    for wrong in (-1, 5, 1.0, 0.0, True):
        with pytest.raises(
            InputError, match=f"held_out {wrong} of 5 rows: expected a whole number from 0 to 4, or a share"
        ):
            split_rows(rows, wrong, 0)
    train, held = split_rows(rows, 0, 0)
    assert (train.fingerprint, len(held)) == (rows.fingerprint, 0)


# As a task


def prompts(completions: list[str]) -> Rows:
    return read_rows([{"prompt": f"q{k}", "completion": c} for k, c in enumerate(completions)])


def test_short_answers_are_matched() -> None:
    task = as_task(read_rows(SUMS), "sums")
    assert task is not None
    assert (task.name, task.scorer, len(task.items)) == ("sums", "exact", 30)
    assert (task.items[7].prompt, task.items[7].gold) == ("1 + 2 =", " 3")
    assert task.formats[0].fill(task.items[7]) + task.formats[0].separator == "1 + 2 ="


def test_few_answers_are_a_choice() -> None:
    task = as_task(prompts([" yes", " no", " no"] * 4))
    assert task is not None
    assert task.scorer == "choice"
    assert {item.choices for item in task.items} == {(" no", " yes")}
    assert [item.choices[item.gold] for item in task.items[:3]] == [" yes", " no", " no"]  # type: ignore[index]
    assert as_task(prompts(["yes", "no", "no"] * 3)).scorer == "exact"  # type: ignore[union-attr]  # 9 rows < 5 x 2
    ends = read_rows([{"prompt": f"{k}\n", "completion": "yn"[k % 2]} for k in range(20)])
    assert as_task(ends).scorer == "exact"  # type: ignore[union-attr]


def test_several_right_answers_of_one_prompt() -> None:
    given = [("a", "1"), ("a", "2"), ("a", "2"), ("b", "1")]
    task = as_task(read_rows([{"prompt": p, "completion": c} for p, c in given]))
    assert task is not None
    assert [(item.prompt, item.gold) for item in task.items] == [("a", ("2", "1")), ("b", "1")]


def test_what_the_gates_refuse_is_left_out() -> None:
    twice = read_rows([{"prompt": f"q{k % 10}", "completion": "yn"[k % 3 == 0]} for k in range(20)])
    with pytest.warns(UserWarning, match="10 of 20 held-out rows nearly repeat another: not measured"):
        task = as_task(twice)
    assert task is not None
    assert (task.scorer, [item.gold for item in task.items]) == ("choice", [int(k % 3 != 0) for k in range(10)])


def test_one_answer_for_all_is_not_measured() -> None:
    with pytest.warns(UserWarning, match="cannot be measured: task 'tuned_on': the right answer is 'ok' for all 20"):
        assert as_task(prompts(["ok"] * 20)) is None


@pytest.mark.parametrize("rows", [SUMS, CHAT, [{"prompt": f"q{k}", "completion": "yn"[k % 2]} for k in range(20)]])
@pytest.mark.parametrize("template", ["auto", "none"])
def test_the_task_can_be_evaluated(rows: list[Any], template: str) -> None:
    task = as_task(read_rows(rows), limit=10)
    assert task is not None
    scores = evaluate(tiny.tiny_llama(), task, tokenizer=tiny.tiny_tokenizer(chat=True), chat_template=template)
    assert len(scores.rows) == 10


def test_conversations_of_one_turn_are_prompts() -> None:
    task = as_task(read_rows(CHAT))
    assert task is not None
    assert (task.items[3].prompt, task.items[3].gold, task.system) == ("Say 3.", "3", None)
    led = [{"messages": [{"role": "system", "content": "Count."}, *row["messages"]]} for row in CHAT]
    assert as_task(read_rows(led)).system == "Count."  # type: ignore[union-attr]
    assert as_task(read_rows([*led, *CHAT])) is None
    listed = [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in CHAT]
    assert as_task(read_rows(listed)).items == task.items  # type: ignore[union-attr]


def test_classes_are_a_task() -> None:
    rows = read_rows([{"premise": str(k), "hypothesis": "b", "label": k % 3} for k in range(9)])
    task = as_task(rows, limit=4, seed=1)
    assert task is not None
    assert (task.scorer, len(task.items)) == ("classify", 4)
    assert all(item.meta["pair"] == "b" and item.gold == int(item.prompt) % 3 for item in task.items)
    assert as_task(rows, limit=4, seed=2).items != task.items  # type: ignore[union-attr]


def test_rows_that_no_scorer_can_judge() -> None:
    for rows in (
        prompts(["x" * 41]),
        prompts(["a\nb"]),
        prompts(["\na"]),
        read_rows([{"text": "a"}]),
        read_rows([pair("a", "b", "c", "d")]),
        read_rows([*CHAT, pair("a", "b", "c", "d")]),
        split_rows(read_rows(SUMS), 0, 0)[1],
    ):
        assert as_task(rows) is None
    assert as_task(prompts(["x" * 40 + "\n"])) is not None


def test_room_for_the_longest_answer() -> None:
    assert as_task(prompts(["\u6f22" * 40])).max_new_tokens >= 120  # type: ignore[union-attr]


def test_last_answer() -> None:
    assert last_answer(pair("a", "b", "c", "d", "e")) == "d"
    assert [last_answer(row) for row in ({"prompt": "a", "completion": "b"}, {"text": "a", "label": 1})] == ["b", "a"]
