"""Tasks from rows: a `datasets` data set, a list of dicts, a CSV, TSV or JSONL file; with templates over columns."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from catchment.capabilities.columns import UNLABELLED, Columns, Placed, Row, Template, kind_of
from catchment.capabilities.delimited import DELIMITED, local_options, parse_table
from catchment.capabilities.hub import cache_alone, check_reach
from catchment.capabilities.jsonl import build_task, check_keys, fail, read_entries, read_text
from catchment.capabilities.tasks import NAMED, Item, Task
from catchment.errors import InputError, MissingExtraError, TaskError, did_you_mean

TASK_OPTIONS = ("style", "chance", "max_new_tokens", "stop", "system", "version", "description")
POOL = 1000
"""Rows that shots can be drawn from: a seeded sample of more."""
TABLE_FILES = (".jsonl", ".jsonl.gz", ".json", *DELIMITED)


def distinct(items: Sequence[Item]) -> tuple[Item, ...]:
    """The items with distinct ids: published data sets repeat rows, and the gates then count the repeats."""
    seen: dict[str, int] = {}
    result = []
    for item in items:
        times = seen[item.id] = seen.get(item.id, 0) + 1
        result.append(item if times == 1 else replace(item, id=f"{item.id}-{times}"))
    return tuple(result)


def _load(name: str, subset: str | None, split: str, revision: str | None) -> Sequence[Row]:
    if find_spec("datasets") is None:
        raise MissingExtraError("datasets", "datasets", f"the data set {name!r}")
    check_reach(name)
    import datasets

    options = local_options(name, lambda path, where, message: fail(f"{path}, {where}", f"{message}."))
    pinned = {} if revision is None else {"revision": revision}
    try:
        with nullcontext() if Path(name).exists() else cache_alone():
            return datasets.load_dataset(name, subset, split=split, **pinned, **options)
    except Exception as error:  # the hub, builders and file systems each raise their own
        at = f", revision {revision!r}" if revision else ""
        raise TaskError(
            f"data set {name!r} (subset {subset!r}, split {split!r}{at}) cannot be loaded "
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


@dataclass(frozen=True)
class _Source:
    """Where rows come from; ``notes`` gathers what is to be said of how they were read."""

    dataset: Any
    subset: str | None
    revision: str | None
    where: str
    notes: list[str]

    def rows(self, split: str, most: int | None = None, seed: int = 0) -> Placed:
        """The rows of a split, or a seeded sample of ``most`` of them; a file has no splits."""
        dataset = self.dataset
        file = isinstance(dataset, str | Path) and str(dataset).endswith(TABLE_FILES)
        if self.revision is not None and (file or not isinstance(dataset, str | Path) or Path(dataset).exists()):
            raise InputError(f"{self.where}: revision {self.revision!r} of rows that are here; expected a data set of "
                             "the hub. Leave it out.")  # fmt: skip
        if file:
            rows = _file_rows(str(dataset), self.notes)
            return [rows[i] for i in _sampled(len(rows), most, seed)]
        if isinstance(dataset, str | Path):
            dataset = _load(str(dataset), self.subset, split, self.revision)
        if isinstance(dataset, Mapping):  # a DatasetDict
            if split not in dataset:
                raise InputError(f"no split {split!r}; it has {', '.join(dataset)}.{did_you_mean(split, dataset)}")
            dataset = dataset[split]
        if most is None or len(dataset) <= most:
            return [(f"{self.where}, {split} row {number}", row) for number, row in enumerate(dataset)]
        return [(f"{self.where}, {split} row {i}", dataset[i]) for i in _sampled(len(dataset), most, seed)]


def _shown(formats: Any, rows: Placed) -> tuple[str, ...]:
    """The columns that formats name beside the prompt and the choices."""
    listed = formats if isinstance(formats, list | tuple) else ()
    templates = [
        form.get("template") if isinstance(form, Mapping) else getattr(form, "template", form) for form in listed
    ]
    named = dict.fromkeys(name for text in templates if isinstance(text, str) for name in NAMED.findall(text))
    first = rows[0][1] if rows else {}
    return tuple(name for name in named if name not in ("prompt", "choices") and name.partition("[")[0] in first)


def _name(dataset: Any) -> str:
    if isinstance(dataset, str | Path):
        return Path(str(dataset)).name.split(".")[0]
    return str(getattr(getattr(dataset, "info", None), "dataset_name", None) or "dataset")


# long: each column and option of a public function is described, and there are 18
def task_from_dataset(
    dataset: Any,
    *,
    prompt: Template,
    choices: Template | Sequence[Template] | None = None,
    gold: Template | None = None,
    gold_above: float | None = None,
    shuffle: bool = False,
    answer: Template | None = None,
    name: str | None = None,
    split: str = "validation",
    subset: str | None = None,
    revision: str | None = None,
    scorer: str | None = None,
    shots: int = 0,
    shot_split: str | None = None,
    shots_from: Any = None,
    seed: int = 0,
    formats: Any = None,
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
        gold_above: of two choices the second is right where the gold is a number above this one, else the first.
        shuffle: put the choices of each row in a seeded order: for data that has the right one always at one place.
        answer: a column or template with the right answer (or a list of them): exact match; with ``scorer="regex"``
            the pattern, with ``scorer="rouge_l"`` the reference.
        split, subset, revision: of a named data set; ``split`` also of a ``DatasetDict``.
        scorer: default: choice with choices, exact with an answer, otherwise agreement.
        shots: solved examples, a seeded sample of ``shot_split``; without one, of the rows themselves, which are then
            not scored.
        shot_split, shots_from: the split, and the file or data set, of rows that are not scored. 1,000 of them, a
            seeded sample, are the task's pool, of which :func:`catchment.capabilities.variant` draws other shots.
        formats: templates with ``{prompt}``, or with columns in its place, for formats that order them otherwise.
        **task_options: style, chance, max_new_tokens, stop, system, version, description.

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
    kind = kind_of(scorer, choices, answer, gold)
    columns = Columns(kind, prompt, choices, gold, answer, gold_above, shuffle=shuffle)
    check_columns(columns, shots, seed, where)
    check_keys(task_options, TASK_OPTIONS, where)
    source = _Source(dataset, subset, revision, where, [])
    rows = source.rows(split)
    columns = replace(columns, shown=_shown(formats, rows))
    items = columns.items(rows)
    apart: list[Item] = []
    separate = shot_split is not None or shots_from is not None
    if separate:
        other = source if shots_from is None else replace(source, dataset=shots_from, subset=None, revision=None)
        apart = columns.items(other.rows(shot_split or "train", None if shots else POOL, seed))
    examples = _draw(apart if separate else items, shots, seed, where) if shots else []
    taken = {shot.id for shot in examples}
    items = [item for item in items if item.id not in taken]
    if not items:
        fail(where, "holds no rows to score; expected at least one.")
    given = {"scorer": scorer, "formats": formats}
    options = {**task_options, "shots": examples, **{key: value for key, value in given.items() if value is not None}}
    task = build_task(columns.kind, distinct(items), options, where, name or _name(dataset))
    pool = tuple({apart[i].id: apart[i] for i in _sampled(len(apart), POOL, seed)}.values())
    return replace(task, notes=tuple(dict.fromkeys(source.notes)), pool=pool)


def check_columns(columns: Columns, shots: int, seed: int, where: str) -> None:
    """Refuse arguments of :func:`task_from_dataset` that are wrong whatever the rows are.

    Raises:
        InputError: Names the argument.
    """
    columns.check(where)
    for argument, number in (("shots", shots), ("seed", seed)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise InputError(f"{where}: {argument} is {number!r}; expected a whole number.")


def _sampled(n: int, most: int | None, seed: int) -> Sequence[int]:
    return range(n) if most is None or n <= most else sorted(random.Random(seed).sample(range(n), most))


def _draw(pool: Sequence[Item], shots: int, seed: int, where: str) -> list[Item]:
    """A seeded sample of labelled, distinct items."""
    labelled = list({item.id: item for item in pool if item.gold not in (None, "", UNLABELLED)}.values())
    if shots < 0 or shots > len(labelled):
        fail(where, f"shots is {shots}; expected 0 to {len(labelled)}, the labelled rows to draw from.")
    return random.Random(seed).sample(labelled, shots)
