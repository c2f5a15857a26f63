"""Cell keys: the address of a piece of work is the hash of everything that decides its result."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from catchment.errors import InputError
from catchment.records import SCHEMA_VERSION

_LEAVES = frozenset({str, int, bool, type(None)})
"""Types that need neither a check nor a copy."""
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def cell_key(parts: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the canonical JSON of ``parts`` and the schema version.

    Equal parts in any order have equal keys. Floats enter by ``repr``, so 0.1 and 0.1 + 1e-17 are one number and 1
    and 1.0 are two; tuples count as lists.

    Raises:
        InputError: A part is NaN or infinite, not a JSON type, or text that UTF-8 cannot encode; the message names it.

    >>> cell_key({"task": "recall", "limit": 400}) == cell_key({"limit": 400, "task": "recall"})
    True
    """
    content = _encode({"schema_version": SCHEMA_VERSION, "parts": _plain(parts, "parts")})
    try:
        return hashlib.sha256(content.encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise InputError(f"parts hold {content[error.start]!r}; expected text that UTF-8 can encode.") from None


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal bytes. Raises InputError as :func:`cell_key`."""
    return _encode(_plain(value, "value"))


def _plain(value: Any, name: str) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{name} is {value}; expected a finite number, because an address must equal itself.")
        return float(value)
    if isinstance(value, (list, tuple)):
        return [
            entry if type(entry) in _LEAVES else _plain(entry, f"{name}[{place}]") for place, entry in enumerate(value)
        ]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{name} has the key {key!r}; expected text. Use str(key).")
        return {
            key: entry if type(entry) in _LEAVES else _plain(entry, f"{name}.{key}") for key, entry in value.items()
        }
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    raise InputError(
        f"{name} is a {kind}; expected text, a number, true/false, null, a list or a mapping. "
        "Give its name or its hash instead."
    )
