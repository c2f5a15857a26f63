"""Small grids for tests of studies: settings from the content of a YAML file, beside tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from catchment.commands.study.design import Design, read_design
from catchment.commands.study.settings import StudySettings
from catchment.options import read_config

GRID: dict[str, Any] = {
    "models": "base",
    "tunings": [{"name": "sums", "data": "sums.jsonl", "method": ["full", "lora"], "max_steps": 3, "max_length": 64}],
    "seeds": [0, 1],
    "tasks": ["echo.jsonl"],
    "formats": 2,
    "limit": 24,
    "device": "cpu",
}


def write_grid(folder: Path, name: str = "study.yaml", **changes: Any) -> Path:
    """The small grid with these changes, as a YAML file; ``None`` takes a key out."""
    grid = {key: value for key, value in {**GRID, **changes}.items() if value is not None}
    path = folder / name
    path.write_text(yaml.safe_dump(grid), encoding="utf-8")
    return path


def settings(path: Path, **options: Any) -> StudySettings:
    return StudySettings(
        **{**read_config(path, StudySettings), "study": path, "store": path.parent / "store", **options}
    )


def design(path: Path, **options: Any) -> Design:
    return read_design(settings(path, **options))
