"""Every row of a table is read as it stands, or the file is refused: never fewer rows without a word."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catchment.capabilities import gates
from catchment.capabilities.delimited import local_options, parse_table
from catchment.capabilities.tables import task_from_dataset
from catchment.errors import TaskError


class RefusedError(Exception):
    pass


def refuse(where: str, message: str) -> NoReturn:
    raise RefusedError(f"{where}: {message}")


def parse(text: str, suffix: str = ".csv") -> list[list[str]]:
    return [list(row.values()) for _, row in parse_table(text, suffix, refuse)[0]]


def written(rows: list[list[str]], **options: Any) -> str:
    out = io.StringIO()
    csv.writer(out, **options).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("q,a\nx,y\n", [["x", "y"]]),
        ("q,a\nx,y", [["x", "y"]]),
        ("q,a\r\nx,y\r\n", [["x", "y"]]),
        ("q,a\rx,y\r", [["x", "y"]]),
        ("\n\nq,a\n\nx,y\n\n\n", [["x", "y"]]),
        ('q,a\n"What, now?",no\n', [["What, now?", "no"]]),
        ('q,a\n"He said ""no""",""\n', [['He said "no"', ""]]),
        ('q,a\n"Two\nlines?",yes\n', [["Two\nlines?", "yes"]]),
        ('q,a\n"Two\r\n\r\nlines, yes?",yes\r\n', [["Two\r\n\r\nlines, yes?", "yes"]]),
        ('q,a\nyes,"Dear Sir,\nit is cold, but dry, here.\nYours,\nA"\nz,w\n',
         [["yes", "Dear Sir,\nit is cold, but dry, here.\nYours,\nA"], ["z", "w"]]),
        ('q,a\nx,y\n"Roses are red,\nviolets are blue,\nsugar is sweet,",1\n',
         [["x", "y"], ["Roses are red,\nviolets are blue,\nsugar is sweet,", "1"]]),
        ('q,a\n"A car costs\n1,000 dollars.\nHow much are two?","2,000"\n',
         [["A car costs\n1,000 dollars.\nHow much are two?", "2,000"]]),
        ('q,a\n5" pipe,3\nthe 7" single,4\n', [['5" pipe', "3"], ['the 7" single', "4"]]),
        ("q;a\nx, y;1\n", [["x, y", "1"]]),
        ('q\ta\n"x\t""y""",\t1\n'.replace(",\t", "\t"), [['x\t"y"', "1"]]),
        (",q,a\n0,x,y\n", [["0", "x", "y"]]),
        ("q\nx\n y\n", [["x"], [" y"]]),
        ('q\n"one, two\nthree"\n', [["one, two\nthree"]]),
        ("q,a\nline\u2028break,form\x0cfeed\n", [["line\u2028break", "form\x0cfeed"]]),
        (f"q,a\n{'x' * 200_000},y\n", [["x" * 200_000, "y"]]),
        ("q,a\n", []),
        ("", []),
    ],
)  # fmt: skip
def test_legal_tables(text: str, rows: list[list[str]]) -> None:
    assert parse(text) == rows


LINES = [f"it is {n} degrees,{'cold' if n < 50 else 'warm'}" for n in range(100)]
STRAY_START = [*LINES[:20], f'"{LINES[20]}', *LINES[21:]]
PAIRS = "expected quotes in pairs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('q,a\n"cold,1\nx,2\n', f"line 2: the quote before 'cold,1' is never closed; {PAIRS}"),
        ('q,a\nx,1\ny,"\n', f"line 3: the quote before '' is never closed; {PAIRS}"),
        ('q,a\n"cold" it is,1\n', "line 2: the quote before 'cold\" it is,1' is closed in the middle of a field"),
        ('q,a\n"cold,1\nx,2\nsay "no",3\n', "line 2: the quote before 'cold,1' is closed on line 4 in the middle of"),
        (r'q,a' + '\n' + r'"say \"no\"",3' + '\n', "line 2: .* in the middle of a field"),
        ('q,a\n"cold,1\nx,2\nwarm",3\n', f"lines 2 to 4: one row, .*rows of their own; {PAIRS}.*QUOTE_ALL.*jsonl"),
        ('q,a\nz,0\n"cold,1\nwarm",3\n', "lines 3 to 4: one row"),
        ('q,a\nz,0\n"cold,1\nx,2\nwarm"\n', "lines 3 to 5: 1 of 2 columns: 'a' missing.*A quote joins these lines"),
        ('q,a,b\n"cold,1,\nx,2,\ny,2,\nwarm",3,\n', "lines 2 to 5: one row"),
        ('q,a\nx, 1\n"cold, 1\nz, 2\nwarm", 3\n', "lines 3 to 5: one row"),
        ('q\nx\n"cold\ny\nwarm"\n', "lines 3 to 5: one row"),
        ("q,a,b\nx,1\n", "line 2: 2 of 3 columns: 'b' missing; expected q, a, b, as line 1 says"),
        ("q,a,b,c\nx\n", "line 2: 1 of 4 columns: 'a', 'b', 'c' missing"),
        ("q,a\nx,1\ny, or not,2\n", r"line 3: 3 fields for 2 columns, '2' too many; expected q, a\. Put a text"),
        ("q,a\n\n\nx,1,\n", "line 4: 3 fields for 2 columns, '' too many"),
        ("q,a\n \nx,1\n", "line 2: 1 of 2 columns"),
        ("q,q\nx,1\n", "line 1: columns 1 and 2 are both called 'q'; expected distinct names"),
        ("q,,a\nx,1,2\n", "line 1: column 2 of 3 has no name.*Is the first line a row"),
        ("q,a,\nx,1,\n", "line 1: column 3 of 3 has no name.*end in a separator"),
        ("q,a\nx\0y,1\n", "line 2: holds a zero byte.*UTF-16"),
        ('q,a\nz, "x, y"\n', "line 2: 3 fields for 2 columns"),
    ],
)  # fmt: skip
def test_refused_tables(text: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        parse(text)


@pytest.mark.parametrize("close", ['it is 60 degrees",cold', '"",cold', '",cold', 'it is 60 degrees,cold"', '"'])
def test_a_stray_quote_and_another_forty_rows_later(close: str) -> None:
    """Read with the csv module, the first is one row of the right width, and 60 of 100 are left."""
    lines = [*STRAY_START[:60], close, *STRAY_START[61:]]
    text = "\n".join(["q,a", *lines])
    if close.startswith('it is 60 degrees"'):
        assert len(list(csv.DictReader(io.StringIO(text), strict=True))) == 60
    with pytest.raises(RefusedError, match=r"^lines? 22"):
        parse(text)


def test_rows_over_several_lines_are_said() -> None:
    text = 'q,a\none,1\n"Two\nlines?",yes\nthree,3\n"Four,\n\nfour.",4\n'
    rows, notes = parse_table(text, ".csv", refuse)
    assert [where for where, _ in rows] == ["line 2", "lines 3 to 4", "line 5", "lines 6 to 8"]
    assert notes == ["2 of 4 rows stand over several lines, joined by quotes (first: lines 3 to 4)"]
    rows = [["q", "a"], *[list(row.values()) for _, row in rows]]  # type: ignore[assignment, misc]
    assert parse_table(written(rows, quoting=csv.QUOTE_ALL), ".csv", refuse)[1] == []  # type: ignore[arg-type]


def test_how_to_say_that_line_breaks_are_meant() -> None:
    rows = [["q", "a"], ["Turn into a sum:\nx,y\n1,2\n3,4\nNow.", "4,6"], ["x", "1"]]
    with pytest.raises(RefusedError, match="lines 2 to 6: one row"):
        parse(written(rows))
    assert parse(written(rows, quoting=csv.QUOTE_ALL)) == rows[1:]
    one = [["text"], ["Two\nlines"], ["one"]]
    with pytest.raises(RefusedError, match="lines 2 to 3: one row"):
        parse(written(one))
    assert parse(written(one, quoting=csv.QUOTE_ALL)) == one[1:]


TEXT = st.text(st.sampled_from('ab ,;"\n\r\t.'), max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 4).flatmap(lambda width: st.lists(st.lists(TEXT, min_size=width, max_size=width), max_size=6)))
def test_what_a_writer_wrote_is_read(rows: list[list[str]]) -> None:
    """With every field in quotes always; with the needed quotes only, unless the lines look like rows."""
    header = [f"c{n}" for n in range(len(rows[0]) if rows else 2)]
    assert parse(written([header, *rows], quoting=csv.QUOTE_ALL)) == rows
    text = written([header, *rows])
    try:
        read = parse(text)
    except RefusedError:
        with pytest.raises(RefusedError, match=r"one row, because .*QUOTE_ALL"):
            parse(text)
        return
    assert read == rows


FIELD = st.text(st.sampled_from("ab.é'"), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(2, 12))
def test_stray_quotes_never_cost_a_row(data: st.DataObject, width: int, n: int) -> None:
    lines = [",".join(data.draw(FIELD) for _ in range(width)) for _ in range(n)]
    text = "\n".join(lines)
    for _ in range(data.draw(st.integers(1, 4))):
        spots = [m.start() for m in re.finditer(r"(?<![^,\n])|(?=[,\n])|$", text)]  # where a field begins or ends
        where = data.draw(st.sampled_from(spots) | st.integers(0, len(text)))
        text = f'{text[:where]}"{text[where:]}'
    header = ",".join(f"c{k}" for k in range(width))
    try:
        rows = parse(f"{header}\n{text}")
    except RefusedError:
        return
    assert len(rows) == n


def test_the_notes_of_a_task_are_warnings(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('q,a\n"Two\nlines?",yes\nOne?,no\n', encoding="utf-8")
    task = task_from_dataset(path, prompt="q", answer="a")
    note = "1 of 2 rows stand over several lines, joined by quotes (first: lines 2 to 3)"
    assert gates.check_task(task) == [f"t.csv: {note}"]


GLUE = (
    "Quality\t#1 String\t#2 String\n"
    "1\t\" The business does not fit .\tHe said the pie doesn 't fit .\n"
    '0\tShe said " no " .\t" Yes , " she said .\n'
    '1\tNo quotes .\t" Enclosed . "\n'
    '0\tends with one "\t" begins with one\n'
)


def test_tsv_is_read_by_the_line() -> None:
    """As GLUE is published: as many rows as lines, every quote a letter. pandas makes fewer of them."""
    expected = [line.split("\t") for line in GLUE.splitlines()[1:]]
    assert parse(GLUE, ".tsv") == parse(GLUE.replace("\n", "\r\n"), ".tsv") == expected
    swallowing = 'q\ta\n"cold\t1\nx\t2\nwarm"\t3\n'
    assert parse(swallowing, ".tsv") == [['"cold', "1"], ["x", "2"], ['warm"', "3"]]
    with pytest.raises(RefusedError, match="line 3: 1 of 2 columns: 'a' missing"):
        parse("q\ta\nx\t1\ny\n", ".tsv")


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_tsv_that_a_program_wrote_with_quotes(quoting: int) -> None:
    tab = "a\ttab, and\ntwo lines" if quoting == csv.QUOTE_ALL else "a\ttab"
    rows = [["q", "a"], ['He said "no"', "1"], ["two\nlines", "2"], [tab, "3"], ["plain", "4"]]
    assert parse(written(rows, delimiter="\t", quoting=quoting), ".tsv") == rows[1:]


def test_tasks_from_tables(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text(GLUE, encoding="utf-8-sig")
    task = task_from_dataset(path, prompt="#1 String", answer="Quality", scorer="exact")
    assert [item.prompt for item in task.items] == [line.split("\t")[1] for line in GLUE.splitlines()[1:]]
    path = tmp_path / "t.csv"
    path.write_text('q,gold\nx,A\ny,"\n', encoding="utf-8")
    with pytest.raises(TaskError, match=r"t\.csv, line 3: the quote before '' is never closed; .*doubled\.$"):
        task_from_dataset(path, prompt="q", answer="gold")
    path.write_text("q,gold\n\nx,A\ny,C\n", encoding="utf-8")
    with pytest.raises(TaskError, match=r"t\.csv, line 4: gold is 'C'"):
        task_from_dataset(path, prompt="q", choices=["yes", "no"], gold="gold")
    path.write_bytes(b"q,gold\nx,A\n\xe9,B\n")
    with pytest.raises(TaskError, match=r"t\.csv, line 3: byte 11 is not UTF-8"):
        task_from_dataset(path, prompt="q", answer="gold")


def test_a_choice_is_a_column_in_all_rows_or_in_none() -> None:
    rows = [{"q": "x", "one": "a", "two": "b", "g": 0}, {"q": "y", "one": "c", "g": 0}]
    with pytest.raises(TaskError, match=r"validation row 1: no column 'two', which other rows have"):
        task_from_dataset(rows, prompt="q", choices=["one", "two"], gold="g")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.csv", 'q,a\n"cold,1\nx,2\nwarm",3\n', r"train\.csv: lines 2 to 4: one row"),
        ("train.tsv", GLUE, r"train\.tsv: the whole file: .*give the file itself instead"),
        ("deep/a.csv", "q,a\nx\n", r"a\.csv: line 2: 1 of 2 columns"),
    ],
)
def test_tables_in_a_folder_are_checked(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)

    def refuse_file(path: Path, where: str, what: str) -> NoReturn:
        raise RefusedError(f"{path.name}: {where}: {what}")

    with pytest.raises(RefusedError, match=message):
        local_options(str(tmp_path), refuse_file)
    assert local_options("owner/on-the-hub", refuse_file) == {}
