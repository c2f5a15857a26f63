"""What stands in a store, read without the code that wrote it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path


def store_lines(store: Path) -> list[tuple[str, str]]:
    """Every row in the store, in chunks and segments, as (cell, line)."""
    found = []
    for path in store.rglob("*.jsonl"):
        cell = path.parent.name
        for text in path.read_text().splitlines():
            if text.startswith('{"cell"'):
                cell = json.loads(text)["cell"]
            elif text.startswith('{"item"'):
                found.append((cell, text))
    return found


def store_rows(store: Path) -> Counter[tuple[str, str]]:
    """How often each (cell, item) stands in the store."""
    return Counter((cell, json.loads(text)["item"]) for cell, text in store_lines(store))
