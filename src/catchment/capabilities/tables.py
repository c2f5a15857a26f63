"""Tasks from rows: a `datasets` data set, a list of dicts, a CSV, TSV or JSONL file; with templates over columns."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from catchment.capabilities.delimited import DELIMITED, local_options, parse_table
from catchment.capabilities.jsonl import SCORERS_OF, build_task, check_keys, fail, read_entries, read_text
from catchment.capabilities.tasks import Item, Task
from catchment.errors import InputError, MissingExtraError, TaskError, did_you_mean

Row = Mapping[str, Any]
Template = str | Callable[[Row], Any]
"""A column name, a template such as ``"{context} {question}"``, or a function of the row."""

Placed = Sequence[tuple[str, Row]]
"""Rows with where each stands, for errors."""
UNLABELLED = -1
TASK_OPTIONS = ("style", "formats", "chance", "max_new_tokens", "stop", "system", "version", "description")
POOL = 1000
"""Rows that shots can be drawn from: a seeded sample of more."""
TABLE_FILES = (".jsonl", ".jsonl.gz", ".json", *DELIMITED)


def fill(template: Template, row: Row, where: str) -> Any:
    """The value of a column, a filled template, or what a function makes of the row.

    >>> fill("{a} and {b}", {"a": 1, "b": 2}, "here")
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
        if column not in row:
            fail(where, f"template {template!r} names {column!r}, which is no column; it has {_columns(row)}."
                 + did_you_mean(column, list(row)))  # fmt: skip
        text += str(row[column])
    return text


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


def _kind_of(scorer: str | None, choices: Any, answer: Any, gold: Any) -> str:
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
class _Columns:
    """What of a row becomes what of an item: a kind of item, and templates as :func:`task_from_dataset` takes them."""

    kind: str
    prompt: Template
    choices: Template | Sequence[Template] | None
    gold: Template | None
    answer: Template | None

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
        for argument, template in (("prompt", self.prompt), ("gold", self.gold), ("answer", self.answer)):
            if template is not None and not isinstance(template, str) and not callable(template):
                raise InputError(f"{where}: {argument} is {template!r}; expected a column or a template.")

    def items(self, rows: Placed) -> list[Item]:
        self._check_choices(rows)
        return [self._item(row, where) for where, row in rows]

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
            return Item(text, options, gold_index(self._gold(row, where), options, labels, where))
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

    def _gold(self, row: Row, where: str) -> Any:
        assert self.gold is not None  # by check
        return fill(self.gold, row, where)

    def _answer(self, row: Row, where: str) -> str | tuple[str, ...] | None:
        assert self.answer is not None
        value = fill(self.answer, row, where)
        if isinstance(value, Sequence) and not isinstance(value, str) and self.kind == "answer":
            return tuple(str(v) for v in value)
        return None if _missing(value) else str(value)


def distinct(items: Sequence[Item]) -> tuple[Item, ...]:
    """The items with distinct ids: published data sets repeat rows, and the gates then count the repeats."""
    seen: dict[str, int] = {}
    result = []
    for item in items:
        times = seen[item.id] = seen.get(item.id, 0) + 1
        result.append(item if times == 1 else replace(item, id=f"{item.id}-{times}"))
    return tuple(result)


def _load(name: str, subset: str | None, split: str) -> Sequence[Row]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "datasets", f"the data set {name!r}") from error
    options = local_options(name, lambda path, where, message: fail(f"{path}, {where}", f"{message}."))
    try:
        return datasets.load_dataset(name, subset, split=split, **options)
    except Exception as error:  # the hub, builders and file systems each raise their own
        raise TaskError(
            f"data set {name!r} (subset {subset!r}, split {split!r}) cannot be loaded "
            f"({type(error).__name__}: {str(error).strip()[:200]}); expected a data set on the hub or a local folder."
        ) from error


def _file_rows(path: str, notes: list[str]) -> Placed:
    """Rows of a CSV, TSV or JSON(L) file, each with where it stands."""
    suffix = Path(path).suffix
    if suffix in DELIMITED:
        rows, said = parse_table(
            read_text(path), suffix, lambda where, message: fail(f"{path}, {where}", f"{message}.")
        )
        notes += [f"{Path(path).name}: {note}" for note in said]
        return [(f"{path}, {where}", row) for where, row in rows]
    entries = read_entries(path)
    for where, row in entries:
        if not isinstance(row, Mapping):
            fail(where, f"{row!r}; expected an object with one value a column.")
    return entries


def _rows(
    dataset: Any,
    subset: str | None,
    split: str,
    where: str,
    notes: list[str],
    *,
    most: int | None = None,
    seed: int = 0,
) -> Placed:
    """The rows of a split, or a seeded sample of ``most`` of them; a file has no splits."""
    if isinstance(dataset, str | Path):
        if str(dataset).endswith(TABLE_FILES):
            rows = _file_rows(str(dataset), notes)
            return [rows[i] for i in _sampled(len(rows), most, seed)]
        dataset = _load(str(dataset), subset, split)
    if isinstance(dataset, Mapping):  # a DatasetDict
        if split not in dataset:
            raise InputError(f"no split {split!r}; it has {', '.join(dataset)}.{did_you_mean(split, dataset)}")
        dataset = dataset[split]
    if most is None or len(dataset) <= most:
        return [(f"{where}, {split} row {number}", row) for number, row in enumerate(dataset)]
    return [(f"{where}, {split} row {i}", dataset[i]) for i in _sampled(len(dataset), most, seed)]


def _name(dataset: Any) -> str:
    if isinstance(dataset, str | Path):
        return Path(str(dataset)).name.split(".")[0]
    return str(getattr(getattr(dataset, "info", None), "dataset_name", None) or "dataset")


# long: each column and option of a public function is described, and there are 13
def task_from_dataset(
    dataset: Any,
    *,
    prompt: Template,
    choices: Template | Sequence[Template] | None = None,
    gold: Template | None = None,
    answer: Template | None = None,
    name: str | None = None,
    split: str = "validation",
    subset: str | None = None,
    scorer: str | None = None,
    shots: int = 0,
    shot_split: str | None = None,
    shots_from: Any = None,
    seed: int = 0,
    **task_options: Any,
) -> Task:
    """A task from rows with a template over their columns.

    Args:
        dataset: a ``datasets.Dataset`` or ``DatasetDict``, a list of dicts, the path of a ``.csv``, ``.tsv``,
            ``.jsonl`` or ``.json`` file, or the name of a data set (extra ``[datasets]``).
        prompt: a column, a template such as ``"{context}\\n{question}"``, or a function of the row.
        choices: a column with a list of texts or with ``{"text": [...], "label": [...]}``; or a list of columns,
            templates and literal texts.
        gold: a column with the right choice as index from 0, label or text. Unlabelled rows (-1, empty) are kept as
            -1; the validity gate refuses them. With scorer ``"classify"`` the class, with ``"refusal"`` true or false.
        answer: a column or template with the right answer (or a list of them): exact match; with ``scorer="regex"``
            the pattern.
        split, subset: of a named data set; ``split`` also of a ``DatasetDict``.
        scorer: default: choice with choices, exact with an answer, otherwise agreement.
        shots: solved examples, a seeded sample of ``shot_split``; without one, of the rows themselves, which are then
            not scored.
        shot_split, shots_from: the split, and the file or data set, of rows that are not scored. 1,000 of them, a
            seeded sample, are the task's pool, of which :func:`catchment.capabilities.variant` draws other shots.
        **task_options: style, formats, chance, max_new_tokens, stop, system, version, description.

    Raises:
        InputError: arguments that do not fit together, or an unknown split.
        TaskError: a row that does not fit; names row, value and what was expected.
        MissingExtraError: a named data set without `datasets` installed.

    Example:
        >>> rows = [{"q": "2 + 2?", "a": "4"}, {"q": "1 + 2?", "a": "3"}]
        >>> task_from_dataset(rows, prompt="{q}", answer="a", name="sums").items[1].gold
        '3'
    """
    where = f"data set {name or _name(dataset)!r}"
    columns = _Columns(_kind_of(scorer, choices, answer, gold), prompt, choices, gold, answer)
    columns.check(where)
    for argument, number in (("shots", shots), ("seed", seed)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise InputError(f"{where}: {argument} is {number!r}; expected a whole number.")
    check_keys(task_options, TASK_OPTIONS, where)
    notes: list[str] = []

    items = columns.items(_rows(dataset, subset, split, where, notes))
    apart: list[Item] = []
    separate = shot_split is not None or shots_from is not None
    if separate:
        source, part = dataset if shots_from is None else shots_from, shot_split or "train"
        apart = columns.items(_rows(source, subset, part, where, notes, most=None if shots else POOL, seed=seed))
    examples = _draw(apart if separate else items, shots, seed, where) if shots else []
    taken = {shot.id for shot in examples}
    items = [item for item in items if item.id not in taken]
    if not items:
        fail(where, "holds no rows to score; expected at least one.")
    options = {**task_options, "shots": examples, **({} if scorer is None else {"scorer": scorer})}
    task = build_task(columns.kind, distinct(items), options, where, name or _name(dataset))
    pool = tuple({apart[i].id: apart[i] for i in _sampled(len(apart), POOL, seed)}.values())
    return replace(task, notes=tuple(dict.fromkeys(notes)), pool=pool)


def _sampled(n: int, most: int | None, seed: int) -> Sequence[int]:
    return range(n) if most is None or n <= most else sorted(random.Random(seed).sample(range(n), most))


def _draw(pool: Sequence[Item], shots: int, seed: int, where: str) -> list[Item]:
    """A seeded sample of labelled, distinct items."""
    labelled = list({item.id: item for item in pool if item.gold not in (None, "", UNLABELLED)}.values())
    if shots < 0 or shots > len(labelled):
        fail(where, f"shots is {shots}; expected 0 to {len(labelled)}, the labelled rows to draw from.")
    return random.Random(seed).sample(labelled, shots)
