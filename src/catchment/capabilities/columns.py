"""What of a row becomes what of an item: columns, templates over them, and labels in whatever form they come."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from catchment.capabilities.jsonl import SCORERS_OF, fail
from catchment.capabilities.tasks import Item
from catchment.errors import InputError, did_you_mean

Row = Mapping[str, Any]
Template = str | Callable[[Row], Any]
"""A column name, a template such as ``"{context} {question}"``, or a function of the row."""

Placed = Sequence[tuple[str, Row]]
"""Rows with where each stands, for errors."""
UNLABELLED = -1
_ENTRY = re.compile(r"(.+)\[(\d+)\]")
"""An entry of a column that holds a list: ``Answer[0]``."""


def fill(template: Template, row: Row, where: str) -> Any:
    """The value of a column, a filled template, or what a function makes of the row.

    >>> fill("{a} and {b[0]}", {"a": 1, "b": [2, 3]}, "here")
    '1 and 2'
    """
    if callable(template):
        return template(row)
    if template in row:
        return row[template]
    if "{" not in template:
        fail(where, f"no column {template!r}; it has {_columns(row)}.{did_you_mean(template, list(row))}")
    text = ""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        fail(where, f"template {template!r}: {error}; write literal braces as '{{{{' and '}}}}'.")
    for literal, column, _, _ in parts:
        text += literal
        if column is None:
            continue
        entry = _ENTRY.fullmatch(column)
        if column not in row and entry is not None and entry[1] in row:
            text += str(_entry(row[entry[1]], int(entry[2]), column, where))
            continue
        if column not in row:
            fail(where, f"template {template!r} names {column!r}, which is no column; it has {_columns(row)}."
                 + did_you_mean(column, list(row)))  # fmt: skip
        text += str(row[column])
    return text


def _entry(values: Any, place: int, column: str, where: str) -> Any:
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) <= place:
        fail(where, f"{column!r} names an entry of {values!r:.80}; expected a list of more than {place} values.")
    return values[place]


def _columns(row: Row) -> str:
    return ", ".join(str(column) for column in row)


def _choices(choices: Any, row: Row, where: str) -> tuple[tuple[str, ...], list[str]]:
    """Texts of the choices, and their labels where the column holds them (as in ARC)."""
    if isinstance(choices, Sequence) and not isinstance(choices, str):
        return tuple(str(_literal(template, row, where)) for template in choices), []
    found = fill(choices, row, where)
    labels: list[str] = []
    if isinstance(found, Mapping) and "text" in found:
        labels = [str(label) for label in found.get("label", [])]
        found = found["text"]
    if isinstance(found, str) or not isinstance(found, Sequence) or len(found) < 2:
        fail(where, f"choices {choices!r} give {found!r}; expected a list of at least 2 texts, or {{'text': [...]}}.")
    return tuple(str(c) for c in found), labels


def _literal(template: Template, row: Row, where: str) -> Any:
    """In a list of choices, text that is no column and no template stands for itself."""
    plain = isinstance(template, str) and template not in row and "{" not in template
    return template if plain else fill(template, row, where)


def gold_index(value: Any, choices: Sequence[str], labels: Sequence[str], where: str) -> int:
    """The index of the right choice from an index, a label of the row, the text of a choice, or a letter.

    A text is looked up in this order: labels, texts of the choices, letters (A is 0), digits (an index from 0).
    ``None``, ``""``, NaN and -1 mean unlabelled and stay -1, for the validity gate to refuse. A whole number may be of
    any numeric type, or written as one (``1.0``, as pandas writes a column that has gaps).

    >>> gold_index("B", ["x", "y"], [], "here"), gold_index("2", ["x", "y"], ["1", "2"], "here")
    (1, 1)
    """
    value = value.item() if getattr(value, "ndim", None) == 0 else value  # numbers of numpy and torch
    text = str(value).strip()
    index: int | None = None
    if isinstance(value, str) and text in labels:
        index = list(labels).index(text)
    elif isinstance(value, str) and text in choices:
        index = list(choices).index(text)
    elif _missing(value) or text == "" or _whole(value) == -1:
        return UNLABELLED
    elif isinstance(value, str) and len(text) == 1 and text.upper() in string.ascii_uppercase[: len(choices)]:
        index = ord(text.upper()) - 65
    else:
        index = _whole(value)
    if index is None or not 0 <= index < len(choices):
        fail(where, f"gold is {value!r}; expected an index from 0 to {len(choices) - 1}, a label or the text of one of "
             f"{list(choices)!r}. Are the labels counted from 1?")  # fmt: skip
    return index


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _missing(value: Any) -> bool:
    """Nothing, or what stands for nothing in a column of numbers."""
    return value is None or (not isinstance(value, str) and str(value) in ("nan", "<NA>", "NaT"))


def _whole(value: Any) -> int | None:
    """A whole number of any numeric type or as text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def _above(value: Any, limit: float, where: str) -> int:
    """1 for a number above the limit, 0 for another, -1 for none; -1 itself means unlabelled, as elsewhere."""
    if _missing(value) or str(value).strip() == "" or _whole(value) == UNLABELLED:
        return UNLABELLED
    try:
        return int(float(value) > limit)
    except (TypeError, ValueError):
        fail(where, f"gold is {value!r}; expected a number to compare with gold_above {limit:g}.")


def kind_of(scorer: str | None, choices: Any, answer: Any, gold: Any) -> str:
    if scorer is not None:
        for kind, scorers in SCORERS_OF.items():
            if scorer in scorers:
                return kind
        known = [s for scorers in SCORERS_OF.values() for s in scorers]
        raise InputError(
            f"scorer {scorer!r} cannot be used on rows; expected one of {', '.join(known)}."
            + did_you_mean(scorer, known)
        )
    if choices is not None:
        return "choices"
    if answer is not None:
        return "answer"
    if gold is not None:
        raise InputError(f"gold={gold!r} without choices: expected choices=..., or scorer='classify' or 'refusal'.")
    return "prompt"


@dataclass(frozen=True)
class Columns:
    """What of a row becomes what of an item: a kind of item, and templates as :func:`task_from_dataset` takes them.

    Attributes:
        above: The second choice is right where the gold is a number above this one, else the first.
        shown: Columns that the formats name beside the prompt.
        shuffle: Choices in an order that the prompt decides, for data that has the right one always at one place.
    """

    kind: str
    prompt: Template
    choices: Template | Sequence[Template] | None
    gold: Template | None
    answer: Template | None
    above: float | None = None
    shown: tuple[str, ...] = ()
    shuffle: bool = False

    def check(self, where: str) -> None:
        """A kind of item takes exactly its own arguments, and each is a template.

        Raises:
            InputError: One lacks, is too many, or is no template.
        """
        wanted = {"choices": {"choices", "gold"}, "pattern": {"answer"}, "answer": {"answer"}, "refuse": {"gold"},
                  "label": {"gold"}}.get(self.kind, set())  # fmt: skip
        given = {name for name in ("choices", "gold", "answer") if getattr(self, name) is not None}
        if given != wanted:
            scorer = SCORERS_OF[self.kind][0]
            expected = " and ".join(sorted(wanted)) or "the prompt alone"
            raise InputError(f"scorer {scorer!r} on rows takes {expected}; got {', '.join(sorted(given)) or 'none'}.")
        if self.above is not None and (self.kind != "choices" or not _number(self.above)):
            raise InputError(f"{where}: gold_above is {self.above!r}; expected a number, beside choices and gold.")
        if not isinstance(self.shuffle, bool) or (self.shuffle and self.kind != "choices"):
            raise InputError(f"{where}: shuffle is {self.shuffle!r}; expected true or false, beside choices and gold.")
        for argument, template in (("prompt", self.prompt), ("gold", self.gold), ("answer", self.answer)):
            if template is not None and not isinstance(template, str) and not callable(template):
                raise InputError(f"{where}: {argument} is {template!r}; expected a column or a template.")

    def items(self, rows: Placed) -> list[Item]:
        self._check_choices(rows)
        if not self.shown:
            return [self._item(row, where) for where, row in rows]
        return [replace(self._item(row, where), columns=self._shown(row, where)) for where, row in rows]

    def _shown(self, row: Row, where: str) -> dict[str, str]:
        return {column: str(fill(f"{{{column}}}", row, where)) for column in self.shown}

    def _check_choices(self, rows: Placed) -> None:
        """A text in a list of choices is a column or stands for itself: in all rows the same."""
        listed = self.choices if isinstance(self.choices, Sequence) and not isinstance(self.choices, str) else ()
        for template in listed:
            lacking = next((where for where, row in rows if template not in row), None)
            if lacking is not None and any(template in row for _, row in rows):
                fail(lacking, f"no column {template!r}, which other rows have; expected it in every row, or in none "
                     "for a choice that is this text itself.")  # fmt: skip

    def _item(self, row: Row, where: str) -> Item:
        text = str(fill(self.prompt, row, where))
        if not text.strip():
            fail(where, f"prompt {self.prompt!r} gives {text!r}; expected visible text.")
        if self.choices is not None:
            options, labels = _choices(self.choices, row, where)
            if self.above is not None:
                if len(options) != 2:
                    fail(where, f"gold_above {self.above:g} with the choices {list(options)!r}; expected 2 of them.")
                return Item(text, options, _above(self._gold(row, where), self.above, where))
            gold = gold_index(self._gold(row, where), options, labels, where)
            return Item(text, *self._ordered(text, options, gold))
        if self.answer is not None:
            return Item(text, (), self._answer(row, where))
        if self.kind == "refuse":
            words = {"True": "refuse", "1": "refuse", "False": "comply", "0": "comply"}
            value = self._gold(row, where)
            return Item(text, (), words.get(str(value), str(value)))
        if self.kind == "label":
            label = _whole(self._gold(row, where))
            return Item(text, (), UNLABELLED if label is None else label)
        return Item(text)

    def _ordered(self, text: str, choices: tuple[str, ...], gold: int) -> tuple[tuple[str, ...], int]:
        """Choices and the place of the right one, shuffled where that is asked for."""
        if not self.shuffle:
            return choices, gold
        order = random.Random(f"choices:{text}").sample(range(len(choices)), len(choices))
        return tuple(choices[i] for i in order), gold if gold == UNLABELLED else order.index(gold)

    def _gold(self, row: Row, where: str) -> Any:
        assert self.gold is not None  # by check
        return fill(self.gold, row, where)

    def _answer(self, row: Row, where: str) -> str | tuple[str, ...] | None:
        assert self.answer is not None
        value = fill(self.answer, row, where)
        if isinstance(value, Sequence) and not isinstance(value, str) and self.kind == "answer":
            return tuple(str(v) for v in value)
        return None if _missing(value) else str(value)
