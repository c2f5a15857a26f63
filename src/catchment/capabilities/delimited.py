"""Tables in text files, read strictly: as many rows as the file holds, or a refusal that names the line.

CSV is read as RFC 4180 says: a field may stand in quotes, quotes within it are doubled. A reader that forgives a stray
quote puts all lines up to the next quote into one field, without a word. TSV is read by the line, quotes as any other
letter, as GLUE is published; unless the whole file is as a program writes it that puts fields in quotes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

DELIMITED = (".csv", ".tsv")
Refuse = Callable[[str, str], NoReturn]
"""Called with a place such as "line 3" and what is wrong there; raises."""
Rows = list[tuple[str, dict[str, str]]]
"""Rows with the lines where each stands."""

_QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)"')
_BREAK = re.compile(r"\r\n|\r|\n")
_MEANT = "If the line breaks are meant, put every field of the file in quotes (csv.QUOTE_ALL), or save it as .jsonl"
_PAIRS = "expected quotes in pairs around a whole field, and quotes within it doubled"


class _MalformedError(Exception):
    """A place and what is wrong there."""


@dataclass(frozen=True)
class _Record:
    first: int
    last: int
    fields: list[str]
    quoted: list[bool]

    @property
    def place(self) -> str:
        return f"line {self.first}" if self.first == self.last else f"lines {self.first} to {self.last}"


def parse_table(text: str, suffix: str, refuse: Refuse) -> tuple[Rows, list[str]]:
    """Rows of a table whose first line names the columns; blank lines are no rows. And notes for the user: which rows
    stand over several lines, where it is only likely that they are meant to.

    Args:
        text: of the whole file.
        suffix: ``".csv"``: fields are separated by commas, or by semicolons or tabs where the first line has no comma;
            ``".tsv"``: by tabs.
        refuse: called for the first mistake: a quote that is not closed or not opened, a row with another number of
            fields than the header, a column without a name or with the name of another, a row over several lines
            that look like rows of their own.

    Cost: about 5 s for a million fields, when any are in quotes.

    >>> parse_table('q,a\\n"One, two?",2\\n', ".csv", print)
    ([('line 2', {'q': 'One, two?', 'a': '2'})], [])
    """
    if "\0" in text:
        refuse(f"line {text[: text.index(chr(0))].count(chr(10)) + 1}", "holds a zero byte, so it is no table of "
               "text; expected UTF-8. Is it UTF-16, or compressed?")  # fmt: skip
    try:
        records, delimiter = _tabbed(text) if suffix == ".tsv" else _separated(text)
        names = _names(records)
        _check_widths(records, names, delimiter)
        if suffix != ".tsv":
            _check_line_breaks(records, delimiter)
    except _MalformedError as error:
        refuse(*error.args)
    rows = [(record.place, dict(zip(names, record.fields, strict=True))) for record in records[1:]]
    return rows, _notes(records)


def _separated(text: str) -> tuple[list[_Record], str]:
    first = _BREAK.split(text.lstrip("\r\n"), maxsplit=1)[0]
    delimiter = next((mark for mark in (",", ";", "\t") if mark in first), ",")
    return _records(text, delimiter), delimiter


def _tabbed(text: str) -> tuple[list[_Record], str]:
    records = _try_records(text)
    if _written_with_quotes(records):
        return records, "\t"
    return _by_line([line.removesuffix("\r") for line in text.split("\n")], "\t"), "\t"


def _by_line(lines: Iterable[str], delimiter: str) -> list[_Record]:
    split = ((number, line.split(delimiter)) for number, line in enumerate(lines, 1) if line)
    return [_Record(number, number, fields, [False] * len(fields)) for number, fields in split]


def _try_records(text: str) -> list[_Record]:
    try:
        return _records(text, "\t")
    except _MalformedError:
        return []


def _written_with_quotes(records: Sequence[_Record]) -> bool:
    """Whether a program put the quotes around fields: they are needed, or are around a whole column, and no others
    stand anywhere."""
    fields = [pair for record in records for pair in zip(record.fields, record.quoted, strict=True)]
    width = len(records[0].fields) if records else 0
    if any('"' in field for field, quoted in fields if not quoted) or any(len(r.fields) != width for r in records):
        return False
    needed = any(quoted and re.search(r'["\t\r\n]', field) for field, quoted in fields)
    whole = any(all(record.quoted[column] for record in records) for column in range(width))
    return (needed or whole) and (all(quoted for _, quoted in fields) or not any(_swallowed(records, "\t")))


def _records(text: str, delimiter: str) -> list[_Record]:
    if '"' not in text:
        return _by_line(_BREAK.split(text), delimiter)
    plain = re.compile(rf"[^{delimiter}\r\n]*")
    records, position, line = [], 0, 1
    while position < len(text):
        begin, fields, quoted = line, [], []
        while True:
            opened = text.startswith('"', position)
            match = (_QUOTED if opened else plain).match(text, position)
            if match is None:
                raise _MalformedError(f"line {line}", f"the quote before {_after(text, position + 1)} is never closed; "
                                      f"{_PAIRS}")  # fmt: skip
            fields.append(match[1].replace('""', '"') if opened else match[0])
            quoted.append(opened)
            breaks = len(_BREAK.findall(match[1])) if opened else 0
            position = match.end()
            if position == len(text) or text[position] in "\r\n":
                break
            if text[position] != delimiter:
                _refuse_text_after(text, match.start() + 1, position, line, line + breaks)
            line += breaks
            position += 1
        line += breaks
        if fields != [""] or opened:
            records.append(_Record(begin, line, fields, quoted))
        end = _BREAK.match(text, position)
        if end is not None:
            position, line = end.end(), line + 1
    return records


def _after(text: str, position: int) -> str:
    return repr(_BREAK.split(text[position : position + 40])[0])


def _refuse_text_after(text: str, opened: int, closed: int, first: int, last: int) -> NoReturn:
    where = f" on line {last}" if last > first else ""
    raise _MalformedError(f"line {first}", f"the quote before {_after(text, opened)} is closed{where} in the middle of "
                          f"a field, before {_after(text, closed)}; {_PAIRS}")  # fmt: skip


def _names(records: Sequence[_Record]) -> list[str]:
    if not records:
        return []
    header = records[0]
    names = list(header.fields)
    if names[0] == "" and len(names) > 1:
        names[0] = "Unnamed: 0"  # the index that pandas writes, under the name that it reads it by
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise _MalformedError(
                header.place,
                f"column {number} of {len(names)} has no name; expected the names of the columns. Is the first line a "
                "row already, or does it end in a separator?",
            )
        if names.index(name) != number - 1:
            raise _MalformedError(header.place, f"columns {names.index(name) + 1} and {number} are both called "
                                  f"{name!r}; expected distinct names")  # fmt: skip
    return names


def _check_widths(records: Sequence[_Record], names: Sequence[str], delimiter: str) -> None:
    for record in records[1:]:
        fields = record.fields
        joined = "" if record.first == record.last else f". A quote joins these lines; {_PAIRS}"
        if len(fields) < len(names):
            missing = ", ".join(map(repr, names[len(fields) :]))
            raise _MalformedError(record.place, f"{len(fields)} of {len(names)} columns: {missing} missing; expected "
                                  f"{', '.join(names)}, as {records[0].place} says{joined}")  # fmt: skip
        if len(fields) > len(names):
            extra = ", ".join(repr(field[:40]) for field in fields[len(names) :][:3])
            raise _MalformedError(
                record.place,
                f"{len(fields)} fields for {len(names)} columns, {extra} too many; expected {', '.join(names)}. "
                f"Put a text that holds {delimiter!r} in quotes{joined}",
            )


def _notes(records: Sequence[_Record]) -> list[str]:
    long = [record for record in records if record.first != record.last]
    if not long or all(all(record.quoted) for record in records):
        return []
    return [
        f"{len(long)} of {len(records) - 1} rows stand over several lines, joined by quotes (first: {long[0].place})"
    ]


def _check_line_breaks(records: Sequence[_Record], delimiter: str) -> None:
    if all(all(record.quoted) for record in records):
        return
    for record, swallowed in zip(records, _swallowed(records, delimiter), strict=True):
        if swallowed:
            field = next(field for field in record.fields if _BREAK.search(field))
            raise _MalformedError(
                record.place,
                f"one row, because the quote before {_after(field, 0)} is closed on line {record.last}, but its lines "
                f"look like rows of their own; {_PAIRS}. {_MEANT}",
            )


def _swallowed(records: Sequence[_Record], delimiter: str) -> list[bool]:
    """For each record, whether its lines look like rows that a stray quote has put into one field."""
    single = [record.fields for record in records if record.first == record.last]
    spaced = {column for fields in single for column, field in enumerate(fields) if field[:1] == " "}
    empty = {column for fields in single for column, field in enumerate(fields) if not field}

    def usual(fields: Sequence[str]) -> bool:
        # Prose has a space after its commas, and commas at the ends of lines.
        columns = enumerate(fields)
        return all((c in spaced or f[:1] != " ") and (f or c in empty or len(fields) > 2) for c, f in columns)

    width = len(records[0].fields) if records else 0
    return [
        any(_like_rows(lines, width, usual) for lines in _lines_as_rows(record.fields, delimiter))
        for record in records
    ]  # fmt: skip


def _lines_as_rows(fields: Sequence[str], delimiter: str) -> Iterator[list[list[str]]]:
    """For each field over several lines: the rows that they would be if its quotes were letters."""
    for column, field in enumerate(fields):
        first, *inner = _BREAK.split(field)
        if inner:
            last = inner.pop().split(delimiter)
            middle = [line.split(delimiter) for line in inner if line.strip()]
            yield [[*fields[:column], *first.split(delimiter)], *middle, [*last, *fields[column + 1 :]]]


def _like_rows(lines: Sequence[Sequence[str]], width: int, usual: Callable[[Sequence[str]], bool]) -> bool:
    """All are like the other rows of the file; or four and more have the number of fields; or most of them and three
    and more, the first and the last not counted, are like the others."""
    fit = [len(line) == width for line in lines]
    alike = [fits and usual(line) for line, fits in zip(lines, fit, strict=True)]
    most = sum(alike[1:-1]) >= max(3, len(alike[1:-1]) / 2)
    return all(alike) or (all(fit) and len(fit) >= 4) or (most and width > 1)


def local_options(name: str, refuse: Callable[[Path, str, str], NoReturn]) -> dict[str, str]:
    """Options for `datasets` to load a data set by name; a local folder is read anew, because the cache of `datasets`
    knows files by their times, and its tables are checked first, because its reader forgives stray quotes.

    Args:
        refuse: called with the file, a place in it and what is wrong there, for the first mistake.
    """
    if not Path(name).exists():
        return {}
    for path in sorted(p for p in Path(name).rglob("*") if p.suffix in DELIMITED and p.is_file()):
        _check_file(path, functools.partial(refuse, path))
    return {"download_mode": "force_redownload"}


def _check_file(path: Path, refuse: Refuse) -> None:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(f"byte {error.start}", "is not UTF-8; expected text in UTF-8")
    parse_table(text, path.suffix, refuse)
    if path.suffix == ".tsv" and '"' in text and not _written_with_quotes(_try_records(text)):
        refuse("the whole file", "it has quotes that are not in pairs around fields, which `datasets` would take for "
               "such; give the file itself instead of its folder")  # fmt: skip
