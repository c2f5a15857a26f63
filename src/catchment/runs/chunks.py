"""Chunks: immutable files of rows, one JSON line per row and a last line that proves they are all there."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any

from catchment.errors import StoreError
from catchment.records import Row

_ENCODER = json.JSONEncoder(allow_nan=False)


class TornError(Exception):
    """A chunk that is not whole; the message says in which way."""


def encode(rows: Iterable[Row]) -> bytes:
    """Rows as JSON lines and an end line with their number and SHA-256. Floats come back bit for bit.

    Raises:
        StoreError: A number in a row is NaN or infinite; the message names the item.
    """
    lines = [_line(row) for row in rows]
    body = "".join(lines).encode()
    end = json.dumps({"end": len(lines), "sha256": hashlib.sha256(body).hexdigest()})
    return body + end.encode() + b"\n"


def decode(data: bytes) -> list[Row]:
    """The rows of a whole chunk. Raises :class:`TornError` otherwise."""
    body, count = checked(data)
    rows = [_row(json.loads(line)) for line in body.decode().split("\n")[:-1]]
    if len(rows) != count:
        raise TornError(f"it has {len(rows)} rows and names {count}")
    return rows


def whole(data: bytes) -> bytes:
    """The same bytes, of a whole chunk. Raises :class:`TornError` otherwise."""
    checked(data)
    return data


def first_rows(rows: Iterable[Row]) -> dict[str, Row]:
    """The first row of every item, by item."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.item, row)
    return first


def checked(data: bytes) -> tuple[bytes, int]:
    """The lines of a chunk with a right checksum, and the number of rows that its end names. Raises TornError."""
    body, _, last = data.rstrip(b"\n").rpartition(b"\n")
    body = body + b"\n" if body else b""
    try:
        end = json.loads(last)
        rows, digest = end["end"], end["sha256"]
    except (ValueError, KeyError, TypeError):
        raise TornError("its end is missing") from None
    if hashlib.sha256(body).hexdigest() != digest:
        raise TornError("its content does not match its checksum")
    return body, rows


def _line(row: Row) -> str:
    numbers = [row.score, *row.logprobs] + ([] if row.companion is None else [row.companion])
    for value in numbers:
        if not math.isfinite(value):
            raise StoreError(
                f"item {row.item!r} has the value {value}; expected finite numbers. "
                "The model gives NaN or infinite outputs: check its weights or load it in float32."
            )
    fields = {
        "item": row.item,
        "score": float(row.score),
        "prediction": row.prediction,
        "logprobs": [float(v) for v in row.logprobs],
        "companion": None if row.companion is None else float(row.companion),
        "flags": list(row.flags),
    }
    # ASCII: a lone surrogate from a byte-level tokenizer survives, and no line separator hides in a text
    return _ENCODER.encode(fields) + "\n"


def _row(fields: dict[str, Any]) -> Row:
    return Row(
        item=fields["item"],
        score=fields["score"],
        prediction=fields["prediction"],
        logprobs=tuple(fields["logprobs"]),
        companion=fields["companion"],
        flags=tuple(fields["flags"]),
    )
