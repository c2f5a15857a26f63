"""A table of scores from elsewhere (CSV, TSV, Parquet) as the analysis of a study takes it.

One row is one cell. Columns, with the other names they may have:

========== =============================== ==================================================================
checkpoint revision, step                  required; a name, or the pre-training step
train      tuning, tuned                   required; ``BASE`` or ``base``: the checkpoint itself
eval       task, dataset                   required
score      accuracy, value                 required, in [0, 1]; empty: a cell that is missing
model                                      default: the name of the table
format     prompt, template                default: ``default``
seed       train_seed                      of the training
shots      num_fewshot                     default: 0
scorer     metric                          default: none
tokens                                     that the checkpoint has seen
se         bootstrap_se, stderr, std_err   standard error over items
n          items                           number of items
========== =============================== ==================================================================

Other columns are not used, which a note of the table says.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from catchment.capabilities import parse_table
from catchment.commands.study.grid import expected_cells, ordered, tokens_of
from catchment.commands.study.record import BASE, Cell, CellResult, Checkpoint, Flag, TuningCard
from catchment.commands.study.scores import Pairs, Scored, ScoreTable
from catchment.errors import InputError, MissingExtraError, did_you_mean

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "checkpoint": ("checkpoint", "revision", "step"),
    "train": ("train", "tuning", "tuned"),
    "eval": ("eval", "task", "dataset"),
    "score": ("score", "accuracy", "value"),
    "model": ("model",),
    "format": ("format", "prompt", "template"),
    "seed": ("seed", "train_seed"),
    "shots": ("shots", "num_fewshot"),
    "scorer": ("scorer", "metric"),
    "tokens": ("tokens",),
    "se": ("se", "bootstrap_se", "stderr", "std_err"),
    "n": ("n", "items"),
}
"""What a column may be called; the first name that a table has is taken."""
REQUIRED = ("checkpoint", "train", "eval", "score")
DEFAULT_FORMAT = "default"
LARGEST_ERROR = 0.5
"""Standard error of the mean of two scores in [0, 1] that are 0 and 1: no larger one can be."""
Rows = Sequence[tuple[str, Mapping[str, str]]]


@dataclass(frozen=True)
class TableSettings:
    """What the numbers of a table do not say themselves.

    Attributes:
        contrasts: Lists of pairs (tuning, task) to average over.
        in_domain: For each tuning, the tasks that belong to its data.
        flags: Gates that whoever knows the tasks declares, such as a test set without labels.
        chance: Score of guessing, by task.
        known: Tunings and tasks of the study, which may have more than the table: a contrast of them of which the table
            has no pair is left out, and a note says so.
        alpha, margin: Error over all changes, and the drop that does not matter.
    """

    contrasts: Sequence[Pairs] = ()
    in_domain: Mapping[str, Sequence[str]] = field(default_factory=dict)
    flags: Sequence[Flag] = ()
    chance: Mapping[str, float] = field(default_factory=dict)
    alpha: float = 0.05
    margin: float = 0.02
    known: Collection[str] = ()


def read_scores(path: str | Path, name: str | None = None, settings: TableSettings | None = None) -> ScoreTable:
    """Read a table of scores; its format is told by the suffix: ``.csv``, ``.tsv``, ``.parquet``.

    The grid is every checkpoint x (base and every tuning, with every seed it has) x every task in the formats of the
    tasks it shares a format with; cells that the table lacks are missing cells. Checkpoints are ordered by tokens
    where all are known, else by the number in their name; names without a number come last, as they appear.

    Args:
        path: The file.
        name: Of the table; default: the name of the file.
        settings: Contrasts, domains and gates.

    Raises:
        InputError: No such file, a column is missing, a cell stands twice, a score is no number in [0, 1], or no row
            is a base; the message names the place.
        MissingExtraError: A Parquet file without pyarrow.
    """
    path, settings = Path(path), settings or TableSettings()
    name = name or path.name.rsplit(".", 1)[0]
    rows = _rows(path)
    names = next((list(row) for _, row in rows), [])
    columns = _columns(path, names)
    entries = _entries(path, rows, columns, name)
    unused = [column for column in names if column not in columns.values()]
    notes = [f"{path.name}: column {', '.join(unused)} is not used"] if unused else []
    return _table(path, name, entries, settings, notes)


@dataclass(frozen=True)
class _Entry:
    """One row: where it stands, its cell, and its numbers; ``score`` is ``None`` where the field is empty."""

    place: str
    cell: Cell
    score: float | None
    se: float | None
    n: int
    tokens: float | None


def _rows(path: Path) -> Rows:
    if not path.is_file():
        raise InputError(f"no table {str(path)!r}; expected a .csv, .tsv or .parquet file of scores.")
    if path.suffix == ".parquet":
        rows = _parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            _refuse(path, f"byte {error.start}", "is not UTF-8; expected text in UTF-8. Is it compressed?")
        rows = parse_table(text, path.suffix, lambda place, what: _refuse(path, place, what))[0]
    else:
        raise InputError(f"{str(path)!r} is no .csv, .tsv or .parquet file; expected a table of scores.")
    if not rows:
        raise InputError(f"{path} holds no rows; expected one row per score below a line that names the columns.")
    return rows


def _parquet(path: Path) -> Rows:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "study", f"reading {path.name}") from error
    try:
        entries = parquet.read_table(path).to_pylist()
    except Exception as error:  # pyarrow's own kinds
        raise InputError(f"{path} cannot be read as Parquet ({' '.join(str(error).split())[:200]}).") from error
    return [(f"row {i}", {k: _text(v) for k, v in entry.items()}) for i, entry in enumerate(entries, 1)]


def _text(value: object) -> str:
    """As a CSV would hold it: a step that became 1000.0 because another is missing is 1000."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _refuse(path: Path, place: str, what: str) -> NoReturn:
    raise InputError(f"{path}, {place}: {what}.")


def _columns(path: Path, names: Sequence[str]) -> dict[str, str]:
    """For each column of ours that the table has, its name there."""
    columns = {ours: next((n for n in known if n in names), None) for ours, known in COLUMNS.items()}
    for ours in REQUIRED:
        if columns[ours] is None:
            close = next((hint for hint in (did_you_mean(k, names) for k in COLUMNS[ours]) if hint), "")
            raise InputError(
                f"{path}: no column {' or '.join(map(repr, COLUMNS[ours]))} among {', '.join(names)}; expected one of "
                f"them for the {ours}.{close}"
            )
    return {ours: theirs for ours, theirs in columns.items() if theirs is not None}


def _entries(path: Path, rows: Rows, columns: Mapping[str, str], name: str) -> list[_Entry]:
    entries: dict[Cell, _Entry] = {}
    for place, row in rows:
        fields = {ours: row[theirs].strip() for ours, theirs in columns.items()}
        entry = _entry(path, place, fields, name)
        first = entries.setdefault(entry.cell, entry)
        if first is not entry:
            fix = "Is the column that tells them apart called seed, format, shots or model"
            if entry.cell.tuning == BASE and fields.get("seed"):
                fix = "A base was tuned with no seed: keep one of its rows, or name the models apart by a column model"
            _refuse(path, place, f"{described(entry.cell)} stands in {first.place} already; expected each cell "
                    f"once. {fix}")  # fmt: skip
    return list(entries.values())


def _entry(path: Path, place: str, fields: Mapping[str, str], name: str) -> _Entry:
    for column in ("checkpoint", "train", "eval"):
        if not fields[column]:
            _refuse(path, place, f"{column} is empty; expected a name")

    def number(column: str, whole: bool = False) -> float | None:
        text = fields.get(column, "")
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            _refuse(path, place, f"{column} is {text!r}; expected a number, or nothing where there is none")
        if not math.isfinite(value) or value < 0:
            said = "expected a finite number of at least 0, or nothing where there is none"
            _refuse(path, place, f"{column} is {text!r}; {said}")
        if whole and not value.is_integer():
            _refuse(path, place, f"{column} is {text!r}; expected a whole number")
        return value

    score = number("score")
    if score is not None and score > 1:
        _refuse(path, place, f"score is {score:g}; expected a number in [0, 1]. Is it a percentage? Divide by 100")
    error = number("se")
    if error is not None and error > LARGEST_ERROR:
        said = f"se is {error:g}, which no score in [0, 1] has; expected at most {LARGEST_ERROR}"
        _refuse(path, place, f"{said}. Is it a percentage? Divide by 100")
    tuning = BASE if fields["train"].lower() == BASE else fields["train"]
    seed = number("seed", whole=True) if tuning != BASE else None
    cell = Cell(
        model=fields.get("model") or name, revision=fields["checkpoint"], tuning=tuning,
        seed=None if seed is None else int(seed), task=fields["eval"], format=fields.get("format") or DEFAULT_FORMAT,
        shots=int(number("shots", whole=True) or 0), scorer=fields.get("scorer", ""),
    )  # fmt: skip
    return _Entry(place, cell, score, error, int(number("n", whole=True) or 0), number("tokens"))


def described(cell: Cell) -> str:
    """A cell in words.

    >>> described(Cell("olmo", "1000", "base", None, "paws", "default", 4, ""))
    'checkpoint 1000, tuning base, task paws, format default'
    """
    text = f"checkpoint {cell.revision}, tuning {cell.tuning}, task {cell.task}, format {cell.format}"
    return text + (f", seed {cell.seed}" if cell.seed is not None else "")


def _table(
    path: Path, name: str, entries: Sequence[_Entry], settings: TableSettings, notes: Sequence[str]
) -> ScoreTable:
    cells = [e.cell for e in entries]
    labels = tuple(dict.fromkeys(c.tuning for c in cells if c.tuning != BASE))
    tasks = tuple(dict.fromkeys(c.task for c in cells))
    absent = [p for p in settings.contrasts if _is_elsewhere(p, labels, tasks, settings.known)]
    notes = [*notes, *_unknown(path, labels, tasks, settings, absent)]
    settings = replace(settings, contrasts=[p for p in settings.contrasts if p not in absent])
    _check_names(path, cells, labels, tasks, settings)
    checkpoints = _checkpoints(path, entries)
    expected, task_formats = expected_cells(cells, checkpoints, labels)
    results = {cell: CellResult(cell, "missing", reason="not in the table") for cell in expected}
    scored = {}
    for e in entries:
        if e.score is None:
            results[e.cell] = CellResult(e.cell, "missing", reason=f"{e.place} has no score")
            continue
        results[e.cell] = CellResult(e.cell, "done", e.n)
        scored[e.cell] = Scored(e.cell, e.score, e.n, e.se, chance=settings.chance.get(e.cell.task))
    formats = tuple(dict.fromkeys(c.format for c in cells))
    return ScoreTable(
        name=name, checkpoints=checkpoints, tasks=tasks, formats=formats, cells=tuple(results.values()), scored=scored,
        tunings=tuple(TuningCard(t, t, "", "", _domain(settings, t, tasks)) for t in labels),
        contrasts=tuple(settings.contrasts), flags=tuple(settings.flags), alpha=settings.alpha, margin=settings.margin,
        task_formats=task_formats, notes=tuple(notes),
    )  # fmt: skip


def _domain(settings: TableSettings, label: str, tasks: Sequence[str]) -> tuple[str, ...]:
    return tuple(task for task in settings.in_domain.get(label, ()) if task in tasks)


def _check_names(
    path: Path, cells: Sequence[Cell], labels: Sequence[str], tasks: Sequence[str], settings: TableSettings
) -> None:
    if all(c.tuning != BASE for c in cells):
        raise InputError(
            f"{path}: no row is a base; expected rows with tuning 'BASE' for the checkpoints themselves, because every "
            f"change is against them. The tunings are {', '.join(labels)}.{did_you_mean('base', labels)}"
        )
    for label, task in (pair for contrast in settings.contrasts for pair in contrast.pairs):
        if label not in labels:
            raise InputError(f"{path} has no tuning {label!r}; expected one of {', '.join(labels)}."
                             f"{did_you_mean(label, labels)}")  # fmt: skip
        if task not in tasks:
            raise InputError(f"{path} has no task {task!r}; expected one of {', '.join(tasks)}."
                             f"{did_you_mean(task, tasks)}")  # fmt: skip


def _is_elsewhere(pairs: Pairs, labels: Sequence[str], tasks: Sequence[str], known: Collection[str]) -> bool:
    """Whether a contrast is one of the study of which the table has no pair."""
    there = any(tuning in labels and task in tasks for tuning, task in pairs.pairs)
    return not there and all({tuning, task} <= {*known} for tuning, task in pairs.pairs)


def _unknown(
    path: Path, labels: Sequence[str], tasks: Sequence[str], settings: TableSettings, contrasts: Sequence[Pairs]
) -> Sequence[str]:
    """What the settings say that the table has nothing of: a study may have more than it."""
    tunings = [label for label in settings.in_domain if label not in labels]
    named = [task for domain in settings.in_domain.values() for task in domain]
    named += [flag.task for flag in settings.flags if flag.task]
    absent = [*(f"tuning {t}" for t in tunings), *(f"task {t}" for t in dict.fromkeys(named) if t not in tasks)]
    absent += [f"pair of contrast {pairs.name}" for pairs in contrasts]
    return [f"{path.name} has no {', '.join(absent)}, which the study names"] if absent else []


def _checkpoints(path: Path, entries: Sequence[_Entry]) -> tuple[Checkpoint, ...]:
    tokens: dict[tuple[str, str], float | None] = {}
    for e in entries:
        key = (e.cell.model, e.cell.revision)
        known = tokens.setdefault(key, tokens_of(e.cell.revision) if e.tokens is None else e.tokens)
        if e.tokens is not None and known != e.tokens:
            _refuse(path, e.place, f"checkpoint {e.cell.revision} has seen {e.tokens:g} tokens; another row says "
                    f"{'nothing' if known is None else f'{known:g}'}")  # fmt: skip
    checkpoints = []
    for model in dict.fromkeys(m for m, _ in tokens):
        revisions = {r: t for (m, r), t in tokens.items() if m == model}
        for order, revision in enumerate(ordered(revisions)):
            checkpoints.append(Checkpoint(model, revision, revisions[revision], order))
    return tuple(checkpoints)
