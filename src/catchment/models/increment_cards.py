"""README.md beside an artefact: what it stands on, how it was made, how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from catchment.errors import InputError, StoreError
from catchment.records import ModelCard

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_FACTS = (
    ("method", ("method",)),
    ("density that was asked for", ("density", "sparsity")),
    ("seed", ("seed",)),
    ("data", ("data", "data_name")),
    ("data fingerprint", ("data_fingerprint", "fingerprint", "data_hash", "data_sha256")),
)


def base_name(base: ModelCard | str | None, recipe: Mapping[str, Any] | None = None) -> str | None:
    """The base's name: as given, or as the recipe tells it.

    >>> base_name(None, {"base": "org/name"}), base_name(None)
    ('org/name', None)
    """
    told = base.name if isinstance(base, ModelCard) else base or (recipe or {}).get("base")
    return str(told) if isinstance(told, str) and told else None


def make_folder(folder: str | Path) -> Path:
    """The folder, made with its parents when it is not there.

    Raises:
        StoreError: A file is in the way, or the place is read-only.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror or error}.") from error
    return folder


def readme(
    title: str,
    loading: str,
    *,
    base: str | None,
    facts: Mapping[str, Any],
    recipe: Mapping[str, Any],
    tags: Sequence[str],
    library: str = "catchment",
) -> str:
    """Markdown with the hub's front matter. ``base_model`` stands there only when it can be a hub id.

    Args:
        loading: Python code that loads the artefact.
        facts: Rows of the table, before what the recipe tells; ``None`` leaves a row out.
        recipe: How it was made; the whole of it is written at the end.
    """
    front = ["---", f"library_name: {library}"]
    if base and _HUB_ID.match(base):
        front.append(f"base_model: {base}")
    front += ["tags:", *(f"- {tag}" for tag in tags), "---"]
    rows = {"base": base, **facts}
    for row, keys in _FACTS:
        rows[row] = next((recipe[key] for key in keys if recipe.get(key) is not None), None)
    table = ["| | |", "|-|-|", *(f"| {row} | {_cell(value)} |" for row, value in rows.items() if value is not None)]
    text = ["\n".join(front), f"# {title}", "\n".join(table), f"```python\n{loading}\n```"]
    if recipe:
        try:
            told = json.dumps(dict(recipe), indent=2, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the recipe is not plain JSON ({error}); use strings, numbers, lists and dicts."
            ) from error
        text.append(f"Recipe:\n\n```json\n{told}\n```")
    return "\n\n".join(text) + "\n"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.replace("|", "\\|").replace("\n", " ")
