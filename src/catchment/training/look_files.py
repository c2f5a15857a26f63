"""What a fence leaves in a folder: the base's scores and every look, so that a resumed training goes on from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from catchment.errors import InputError
from catchment.records import FenceLook
from catchment.runs import read_json
from catchment.training.callbacks import write_json

BASE_FILE = "fence-base.json"


class LookFiles:
    """One JSON file per look, and one with the base's scores.

    Args:
        folder: Where; ``None``: nothing is kept.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def write_base(self, conditions: Mapping[str, Any], engine: Mapping[str, Any], scores: Mapping[str, Any]) -> None:
        self._write(BASE_FILE, {"conditions": conditions, "engine": engine, "scores": scores})

    def write(self, step: int, conditions: Mapping[str, Any], looks: Sequence[FenceLook], stopped: str | None) -> None:
        """The looks of all tasks after a step, and why the training ends there, if it does."""
        content = {"step": step, "conditions": conditions, "looks": [asdict(look) for look in looks]}
        self._write(f"fence-{step:08d}.json", {**content, "stopped": stopped})

    def read_base(self, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """What :meth:`write_base` wrote.

        Raises:
            InputError: It is not there, or of other conditions.
        """
        path = None if self.folder is None else self.folder / BASE_FILE
        if path is None or not path.is_file():
            raise InputError(
                f"training resumes and the base's scores are not in output_dir ({path}); expected the folder of the "
                f"training that is resumed. The weights have moved, so the base cannot be measured now: start anew."
            )
        content = read_json(path, "the weights have moved since, so it cannot be made anew: start in another folder")
        if content["conditions"] != conditions:
            raise InputError(
                f"{str(path)!r} holds the base's scores under {content['conditions']}; expected {conditions}. "
                f"Resume with the settings of that training, or start anew."
            )
        return content

    def read(self) -> tuple[list[FenceLook], str | None]:
        """All looks in order, and why the last of them ended the training, if it did."""
        looks: list[FenceLook] = []
        stopped = None
        for path in self._files():
            content = read_json(path, "delete it; that look is then missing from the record")
            looks += [FenceLook(**look) for look in content["looks"]]
            stopped = content["stopped"]
        return looks, stopped

    def forget(self, step: int) -> None:
        """Remove looks after this step, which the training that goes on from here never took."""
        for path in self._files():
            if int(path.stem[-8:]) > step:
                path.unlink()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"fence-{'[0-9]' * 8}.json")) if self.folder is not None else []

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        if self.folder is not None:
            write_json(self.folder / name, content)
