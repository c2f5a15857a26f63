"""Where rows come from: files of JSON, tables, data sets by name or in memory. Each row keeps its place, for errors."""

from __future__ import annotations

import gzip
import json
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from catchment.capabilities import DoubleKeyError, distinct_keys, local_options, parse_table
from catchment.errors import InputError, MissingExtraError, did_you_mean

Given = list[tuple[str, Mapping[str, Any]]]
"""Rows with where each stands ("line 3", "row 3"), for errors."""

FILES = (".jsonl", ".jsonl.gz", ".json", ".tsv", ".csv", ".parquet")
_NUMBERS = ((int, re.compile(r"-?[0-9]+")), (float, re.compile(r"-?[0-9]+\.[0-9]*")))
SPLITS = ("train", "validation", "test", "dev")


def fail(name: str, where: str, message: str) -> NoReturn:
    """Refuse a row.

    Raises:
        InputError: always.
    """
    raise InputError(f"data {name!r}, {where}: {message}.")


def given_rows(data: Any, split: str) -> tuple[Given, str, tuple[str, ...]]:
    """Rows with their places, the name, and the names of the classes where the data set knows them."""
    if isinstance(data, str | Path):
        suffix = next((end for end in (".jsonl.gz", *FILES) if str(data).endswith(end)), None)
        if suffix is None and not Path(data).is_file():
            return _numbered(_load_named(str(data), split), _file_name(data))
        _check_file(Path(data), suffix, split)
        if suffix == ".parquet":
            return _numbered(_load_parquet(Path(data)), _file_name(data))
        if suffix in (".csv", ".tsv"):
            return _text_rows(Path(data), suffix), _file_name(data), ()
        return list(_json_rows(Path(data))), _file_name(data), ()
    if isinstance(data, Mapping):  # a DatasetDict
        if split not in data:
            raise InputError(
                f"data: no split {split!r}; expected one of {', '.join(map(str, data))}."
                + did_you_mean(split, map(str, data))
            )
        data = data[split]
    if isinstance(data, bytes) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise InputError(f"data is {data!r:.80}; expected a file, the name of a data set, a list of rows or a Dataset.")
    name = str(getattr(getattr(data, "info", None), "dataset_name", None) or "rows")
    return _numbered(data, name)


def _file_name(data: str | Path) -> str:
    return Path(data).name if Path(data).exists() else str(data)


def _numbered(rows: Any, name: str) -> tuple[Given, str, tuple[str, ...]]:
    label = (getattr(rows, "features", None) or {}).get("label")
    names = tuple(getattr(label, "names", None) or ())
    return [(f"row {number}", row) for number, row in enumerate(rows, 1)], name, names


def _check_file(path: Path, suffix: str | None, split: str) -> None:
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"data: no file {str(path)!r}; expected a file.{did_you_mean(path.name, beside)}")
    if suffix is None:
        raise InputError(f"data: {path.name!r} is no file of rows; expected one that ends in {', '.join(FILES)}.")
    if split != "train":
        raise InputError(f"data: split {split!r} of the file {path.name!r}; a file has no splits. Name another file.")
    if path.stat().st_size == 0:
        raise InputError(f"data {path.name!r} holds no rows; expected at least one. Is the file empty?")


def _read(path: Path) -> str:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            f"data {path.name!r}, line {line}: byte {error.start} is not UTF-8; expected text in UTF-8."
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"data {path.name!r} cannot be read ({error}); expected a readable, whole file.") from error


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    text = _read(path)
    if path.suffix == ".json":
        rows = _parsed(text, path.name, "the file")
        if not isinstance(rows, list):
            raise InputError(
                f"data {path.name!r} holds a {type(rows).__name__}; expected a list of rows, [{{...}}, ...]. One "
                f"object a line belongs into a .jsonl file."
            )
        yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"line {number}", _parsed(line, path.name, f"line {number}")


def _parsed(text: str, name: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=distinct_keys)
    except DoubleKeyError as error:
        fail(name, where, f"column {error.args[0]!r} stands twice in one object; expected each once")
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        fail(name, where, f"not JSON at {place} ({error.msg}): {text.strip()[:60]!r}; expected one object. The "
              "file may be cut off")  # fmt: skip
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(
            f"data {name!r}, {where}: cannot be read as JSON ({reason}): {text.strip()[:60]!r}; expected one object of "
            "texts, such as {'prompt': ..., 'completion': ...}."
        ) from error


def _datasets(purpose: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "datasets", purpose) from error
    return datasets


def _load_parquet(path: Path) -> Any:
    datasets = _datasets(f"the table {path.name!r}")
    try:
        from pyarrow import parquet

        return datasets.Dataset(parquet.read_table(path))  # not through its cache, which knows files by their times
    except Exception as error:  # readers of tables raise what they like
        reason = str(error.__cause__ or error).strip()[:200]
        raise InputError(f"data {path.name!r} cannot be read as a table ({reason}); expected .parquet.") from error


def _text_rows(path: Path, suffix: str) -> Given:
    """Rows of a CSV or TSV file, all values as text, but labels as numbers where all of them are."""
    rows, notes = parse_table(_read(path), suffix, lambda where, message: fail(path.name, where, message))
    for note in notes:
        warnings.warn(f"data {path.name!r}: {note}", stacklevel=2)
    labels = [row["label"].strip() for _, row in rows if "label" in row]
    number = next((kind for kind, form in _NUMBERS if labels and all(map(form.fullmatch, labels))), None)
    return [(where, row | {"label": number(row["label"])} if number else row) for where, row in rows]


def parse_name(data: str, split: str) -> tuple[str, str | None, str]:
    """Name, subset and split of a named data set.

    >>> parse_name("nyu-mll/glue:sst2", "train"), parse_name("owner/name/test", "train"), parse_name("imdb/test", "x")
    (('nyu-mll/glue', 'sst2', 'train'), ('owner/name', None, 'test'), ('imdb', None, 'test'))
    """
    if Path(data).exists():
        return data, None, split
    name, _, subset = data.partition(":")
    head, _, last = (subset if subset else name).rpartition("/")
    if head and (subset or last in SPLITS or "/" in head):
        split = last
        name, subset = (name, head) if subset else (head, "")
    return name, subset or None, split


def _load_named(data: str, split: str) -> Any:
    name, subset, split = parse_name(data, split)
    datasets = _datasets(f"the data set {name!r}")
    options = local_options(name, lambda path, where, message: fail(str(path), where, message))
    try:
        return datasets.load_dataset(name, subset, split=split, **options)
    except Exception as error:  # the hub, builders and file systems each raise their own
        raise InputError(
            f"data set {name!r} (subset {subset!r}, split {split!r}) cannot be loaded "
            f"({type(error).__name__}: {str(error).strip()[:200]}); expected a file that ends in {', '.join(FILES)}, "
            f"a data set on the hub or a local folder."
        ) from error
