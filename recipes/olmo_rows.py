"""Make the rows to tune on of ``examples/studies/olmo-1b.yaml`` and ``pythia.yaml``, from data sets of the hub.

The prompts are those of the study's tasks, under their first format; so what is trained is what is asked. Which rows:
those of the paper (arXiv 2408.06663), the first 6,000 of ``shuffle(seed=42)``, and 5% of TULU-v2. The blank that the
paper's prompts end in stands before the completion instead.

    python recipes/olmo_rows.py                 # all
    python recipes/olmo_rows.py mnli paws       # some
    catchment study plan examples/studies/olmo-1b.yaml
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from catchment.capabilities import Task, expected_answer, task_from_dataset

STUDIES = Path(__file__).resolve().parent.parent / "examples/studies"
SEED = 42
TULU = "allenai/tulu-v2-sft-mixture"
TULU_ROWS = 16_307
ELSEWHERE = ("dataset", "subset", "split", "shot_split", "items", "note")
"""Keys of a task in the study that do not say how a row is read."""


@dataclass(frozen=True)
class Source:
    """The task of a study whose prompts are trained, and how many rows."""

    study: str
    task: str
    rows: int = 6000


SOURCES = {
    "mnli": Source("olmo-1b.yaml", "mnli_matched"),
    "paws": Source("olmo-1b.yaml", "paws"),
    "xsum": Source("olmo-1b.yaml", "xsum"),
    "socialiqa": Source("olmo-1b.yaml", "socialiqa"),
    "sciq": Source("pythia.yaml", "sciq", 1000),
}
NAMES = (*SOURCES, "tulu")


def task_of(source: Source, rows: Any = None) -> Task:
    """The task as the study describes it, over rows of its training split."""
    tasks = yaml.safe_load((STUDIES / source.study).read_text(encoding="utf-8"))["tasks"]
    entry = next(task for task in tasks if isinstance(task, Mapping) and task["name"] == source.task)
    rows = shuffled(entry["dataset"], entry.get("subset"), source.rows) if rows is None else rows
    return task_from_dataset(rows, **{key: value for key, value in entry.items() if key not in ELSEWHERE})


def rows_of(task: Task) -> list[dict[str, str]]:
    """A prompt and its completion for each item."""
    form = task.formats[0]
    return [
        {"prompt": form.fill(item), "completion": f"{form.separator}{expected_answer(item, task.scorer)}"}
        for item in task.items
    ]


def shuffled(name: str, subset: str | None, rows: int) -> Any:
    """The first rows of a training split in the order of the paper."""
    import datasets

    return datasets.load_dataset(name, subset, split="train").shuffle(seed=SEED).select(range(rows))


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; default: all")
    parser.add_argument("--out", type=Path, default=STUDIES / "rows")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in NAMES]:
        parser.error(f"no rows called {unknown[0]!r}; expected some of {', '.join(NAMES)}")
    for name in options.names or NAMES:
        path = options.out / f"{name}-train.jsonl"
        if name == "tulu":
            write(path, ({"messages": row["messages"]} for row in shuffled(TULU, None, TULU_ROWS)))
        else:
            write(path, rows_of(task_of(SOURCES[name])))
        print(path)


if __name__ == "__main__":
    main()
