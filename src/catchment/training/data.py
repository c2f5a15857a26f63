"""Rows to tune on: read from a file, a data set or memory, checked, split into train and held-out."""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

from catchment.errors import InputError, did_you_mean
from catchment.training.tables import Given, fail, given_rows

Message = dict[str, Any]
PAIRS = (("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("sentence", None))
"""Columns of a classification row: the text and, where there may be one, the second text."""
EXPECTED = (
    "expected 'messages', 'prompt' and 'completion', 'text', or 'label' with a text (text[, text_pair], sentence, "
    "sentence1[, sentence2], premise[, hypothesis])"
)
SHOWN = 40
"""Characters before a damaged one that an error shows."""
BLANK = {"messages": "last assistant message", "prompt": "completion", "text": "text", "classification": "text"}


@dataclass(frozen=True)
class Rows:
    """Examples of one kind, in canonical form.

    Attributes:
        kind: ``"messages"``, ``"prompt"``, ``"text"`` or ``"classification"``.
        rows: ``{"messages": [...]}``; ``{"prompt", "completion"}`` (texts or message lists); ``{"text"}``;
            ``{"text", "label"}`` and, for pairs, ``"text_pair"``.
        name: Of the file or data set.
        fingerprint: SHA-256 over kind, classes and rows.
        classes: Names of the classes, in the order of the labels; empty for the other kinds.
        places: Where each row stands in what was read ("line 3", "row 3"), so that an error after a split names what
            a user finds; empty where nobody knows.
    """

    kind: str
    rows: list[dict[str, Any]]
    name: str
    fingerprint: str
    classes: tuple[str, ...] = ()
    places: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, rows: list[dict[str, Any]]) -> Rows:
        """Other rows of the same kind, name and classes; rows that are among these keep their places."""
        known = {id(row): place for row, place in zip(self.rows, self.places, strict=False)}
        places = tuple(known[id(row)] for row in rows if id(row) in known)
        return replace(
            self,
            rows=rows,
            fingerprint=_fingerprint(self.kind, self.classes, rows),
            places=places if len(places) == len(rows) else (),
        )

    def place(self, index: int) -> str:
        """Where the row with this index, from 0, stands: "line 3" of the file, or else "row 3" of these."""
        return self.places[index] if self.places else f"row {index + 1}"


def read_rows(data: Any, *, split: str = "train") -> Rows:
    """Read and check the rows to tune on.

    Args:
        data: a ``.jsonl``, ``.jsonl.gz`` or ``.json`` file (a list); a ``.tsv``, ``.csv`` or ``.parquet`` file; a data
            set as ``name``, ``name:subset``, ``owner/name/split`` or ``name/train`` (``train``, ``validation``,
            ``test`` or ``dev`` after a name is a split); a list of mappings; a ``datasets`` ``Dataset`` or
            ``DatasetDict``. Parquet and named data sets need the extra ``[datasets]``.
        split: of a data set; a split in the name wins.

    Returns:
        The rows. String labels are numbered in sorted order; columns that are not used are named in one warning.

    Raises:
        InputError: nothing there, damaged, unknown columns, empty completions, labels that are no classes, half
            characters.
        MissingExtraError: `datasets` is needed and not installed.

    Example:
        >>> read_rows([{"prompt": "2 + 2 =", "completion": " 4"}]).kind
        'prompt'
    """
    given, name, names = given_rows(data, split)
    if not given:
        raise InputError(f"data {name!r} holds no rows; expected at least one. Is the file empty?")
    for where, row in given:
        if not isinstance(row, Mapping):
            fail(name, where, f"{row!r:.80}; expected an object such as {{'prompt': ..., 'completion': ...}}")
    kind, columns = _kind_of(given[0][1], name)
    keys = list(given[0][1])
    for where, row in given:
        if set(row) != set(keys):
            missing, extra = [c for c in keys if c not in row], [c for c in row if c not in keys]
            wrong = [f"{', '.join(map(str, c))} {w}" for c, w in ((missing, "missing"), (extra, "too many")) if c]
            fail(name, where, f"columns {' and '.join(wrong)}; expected {', '.join(keys)}, the columns of the first "
                  "row. One kind of row in a file: split the file or fill the columns")  # fmt: skip
    unused = [str(column) for column in keys if column not in columns.values()]
    if unused:
        warnings.warn(f"data {name!r}: columns not used for {kind!r} rows: {', '.join(unused)}", stacklevel=2)
    read = {"messages": _messages_row, "prompt": _prompt_row, "text": _text_row, "classification": _text_row}[kind]
    rows = [read({key: row[column] for key, column in columns.items()}, name, where) for where, row in given]
    _refuse_blank(kind, rows, given, name)
    classes = _number_labels(rows, given, name, names) if kind == "classification" else ()
    places = tuple(where for where, _ in given)
    return Rows(kind, rows, name, _checked_fingerprint(kind, classes, rows, given, name), classes, places)


def _checked_fingerprint(
    kind: str, classes: Sequence[str], rows: Sequence[Mapping[str, Any]], given: Given, name: str
) -> str:
    try:
        return _fingerprint(kind, classes, rows)
    except (ValueError, TypeError, RecursionError):
        for (where, source), row in zip(given, rows, strict=True):
            _refuse_unwritable({**row, "label": source["label"]} if "label" in row else row, name, where)
        raise


def _refuse_unwritable(row: Mapping[str, Any], name: str, where: str) -> None:
    try:
        _fingerprint("", (), [row])
    except UnicodeEncodeError as error:
        half = str(error.object)[error.start : error.end]
        before = str(error.object)[max(0, error.start - SHOWN) : error.start]
        fail(name, where, f"{half!a} after {before!a} is half of a character (a lone surrogate), which no text can "
             "hold; expected whole characters. Was an emoji cut in two?")  # fmt: skip
    except (ValueError, TypeError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        fail(name, where, f"cannot be written as JSON ({reason}); expected texts, numbers, lists and objects")


def _fingerprint(kind: str, classes: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for part in ([kind, list(classes)], *rows):
        digest.update(json.dumps(part, ensure_ascii=False, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _kind_of(row: Mapping[str, Any], name: str) -> tuple[str, dict[str, str]]:
    """The kind, and for every key of a canonical row the column that it comes from."""
    if "messages" in row:
        return "messages", {"messages": "messages"}
    if "prompt" in row and "completion" in row:
        return "prompt", {"prompt": "prompt", "completion": "completion"}
    if "label" in row:
        for first, second in PAIRS:
            if first in row:
                pair = {"text_pair": second} if second in row and second is not None else {}
                return "classification", {"text": first, **pair, "label": "label"}
    if "text" in row:
        return "text", {"text": "text"}
    known = ["messages", "prompt", "completion", "label", *(c for pair in PAIRS for c in pair if c)]
    hints = (did_you_mean(str(column), known) for column in row)
    raise InputError(
        f"data {name!r} has the columns {', '.join(map(str, row)) or 'none'}; {EXPECTED}. Rename the columns."
        + next((hint for hint in hints if hint), "")
    )


def _text(value: Any, key: str, name: str, where: str) -> str:
    if not isinstance(value, str):
        fail(name, where, f"{key!r} is {value!r:.80}; expected text")
    return value


def _text_row(row: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    return {key: value if key == "label" else _text(value, key, name, where) for key, value in row.items()}


def _messages(value: Any, key: str, name: str, where: str) -> list[Message]:
    good = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    good = good and all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in value)
    if not good or not all(isinstance(m.get("content"), str) or m.get("tool_calls") for m in value):
        fail(name, where, f"{key!r} is {value!r:.80}; expected a list of {{'role': ..., 'content': ...}}")
    return [{k: v for k, v in message.items() if v is not None} for message in value]


def _messages_row(row: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    messages = _messages(row["messages"], "messages", name, where)
    if not any(message["role"] == "assistant" for message in messages):
        roles = ", ".join(message["role"] for message in messages)
        fail(name, where, f"'messages' has the roles {roles}; expected at least one of 'assistant', which is learned")
    return {"messages": messages}


def _prompt_row(row: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    texts = [isinstance(row[key], str) for key in ("prompt", "completion")]
    if all(texts):
        return dict(row)
    if any(texts):
        fail(name, where, "one of 'prompt' and 'completion' is text and the other is not; expected two texts or two "
              "lists of messages")  # fmt: skip
    return {key: _messages(row[key], key, name, where) for key in ("prompt", "completion")}


def last_answer(row: Mapping[str, Any]) -> str:
    """The text that a row teaches last: its completion, its last assistant message, its text.

    >>> last_answer({"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]})
    '4'
    """
    value = row.get("completion", row.get("messages", row.get("text")))
    if isinstance(value, str):
        return value
    said = [m for m in value or () if m["role"] == "assistant"] or [{}]
    return str(said[-1].get("content") or said[-1].get("tool_calls") or "")


def _refuse_blank(kind: str, rows: Sequence[Mapping[str, Any]], given: Given, name: str) -> None:
    blank = [where for (where, _), row in zip(given, rows, strict=True) if not last_answer(row).strip()]
    if blank:
        raise InputError(
            f"data {name!r}: {len(blank)} of {len(rows)} rows have an empty {BLANK[kind]}, the first is {blank[0]}; "
            f"expected visible text to learn. Remove these rows."
        )


def _number_labels(rows: list[dict[str, Any]], given: Given, name: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Put whole numbers for the labels, in place; returns the names of the classes."""
    words = isinstance(rows[0]["label"], str)
    for (where, _), row in zip(given, rows, strict=True):
        label = row["label"]
        if isinstance(label, bool) or not isinstance(label, str if words else Integral):
            fail(name, where, f"label {label!r}; expected {'text' if words else 'a whole number'} in every row, the "
                  "classes as 0, 1, ... or as text")  # fmt: skip
        if isinstance(label, str) and not label.strip():
            fail(name, where, "label is empty; expected the name of a class. Rows without a label cannot be learned: "
                  "remove them")  # fmt: skip
        row["label"] = label if words else int(label)
        if not words and row["label"] < 0:
            fail(name, where, f"label {label}; expected classes from 0. Rows without a label (-1) cannot be learned: "
                  "remove them")  # fmt: skip
    labels: list[Any] = sorted({row["label"] for row in rows})
    if len(labels) < 2:
        raise InputError(
            f"data {name!r}: every label is {labels[0]!r}; expected at least 2 classes. Is the file sorted?"
        )
    classes = tuple(labels) if words else names or tuple(map(str, range(len(labels))))
    if not words and labels[-1] >= len(classes):
        some = ", ".join(map(str, [*labels[:8], "..."] if len(labels) > 8 else labels))
        raise InputError(
            f"data {name!r}: labels {some}; expected all of 0 to n - 1 for n classes. Number them from 0 "
            f"without gaps, or give them as text."
        )
    if words:
        number = {word: k for k, word in enumerate(labels)}
        for row in rows:
            row["label"] = number[row["label"]]
    return classes


def prompt_key(kind: str, row: Mapping[str, Any]) -> str:
    """What decides on which side of a split a row falls: everything before the first answer, blanks evened out.

    >>> prompt_key("prompt", {"prompt": "2  + 2 = ", "completion": "4"})
    '2 + 2 ='
    """
    if kind == "messages":
        first = next(k for k, message in enumerate(row["messages"]) if message["role"] == "assistant")
        asked = [[m["role"], " ".join(str(m.get("content", "")).split())] for m in row["messages"][:first]]
        return json.dumps(asked)
    if kind == "prompt":
        prompt = row["prompt"]
        return " ".join(prompt.split()) if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)
    return json.dumps([" ".join(row[key].split()) for key in ("text", "text_pair") if key in row])


def seeded_rows(rows: Rows, limit: int, seed: int) -> Rows:
    """A seeded random subset of so many rows, in the order of the data; all of them where there are no more.

    Raises:
        InputError: A limit below 1.

    >>> len(seeded_rows(read_rows([{"text": str(n)} for n in range(9)]), 4, seed=0))
    4
    """
    if limit < 1:
        raise InputError(f"rows {limit}: expected at least 1 row to train on.")
    if limit >= len(rows):
        return rows
    chosen = sorted(random.Random(seed).sample(range(len(rows)), limit))
    return rows.of([rows.rows[index] for index in chosen])


def split_rows(rows: Rows, held_out: int | float, seed: int) -> tuple[Rows, Rows]:
    """Seeded split into train and held-out rows; rows with the same prompt stay on one side.

    Args:
        held_out: how many rows (whole number) or which share (between 0 and 1) to hold out; 0 for none.
        seed: chooses them.

    Returns:
        Train and held-out rows, each in the order of the data. Where prompts repeat so often that the number cannot
        be met, fewer rows are held out, and a warning says how many.

    Raises:
        InputError: a number that leaves nothing to train on, or nothing that could be held out.

    >>> rows = read_rows([{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(10)])
    >>> [len(part) for part in split_rows(rows, 0.2, seed=0)]
    [8, 2]
    """
    n = len(rows)
    share = isinstance(held_out, float)
    if isinstance(held_out, bool) or not (0 < held_out < 1 if share else 0 <= held_out < n):
        raise InputError(
            f"held_out {held_out!r} of {n} rows: expected a whole number from 0 to {n - 1}, or a share between 0 and 1."
        )
    wanted = max(1, round(held_out * n)) if share else int(held_out)
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows.rows):
        groups.setdefault(prompt_key(rows.kind, row), []).append(number)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    held: set[int] = set()
    for group in order:
        if len(held) + len(group) <= min(wanted, n - 1):
            held.update(group)
    if wanted and not held:
        raise InputError(
            f"held_out {held_out!r}: {n} rows have only {len(order)} distinct prompts, none of which repeats at most "
            f"{wanted} times; expected rows with distinct prompts. Hold out more rows, or give the evaluation its own."
        )
    if len(held) < wanted:
        warnings.warn(
            f"held_out: {len(held)} rows instead of {wanted}, because rows with the same prompt stay together",
            stacklevel=2,
        )
    return (
        rows.of([row for number, row in enumerate(rows.rows) if number not in held]),
        rows.of([row for number, row in enumerate(rows.rows) if number in held]),
    )
