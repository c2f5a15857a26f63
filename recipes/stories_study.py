"""Make the rows of ``examples/studies/stories15M.yaml``: short film reviews (SST-2) that end in a judgement.

stories15M was trained on stories for children. The study asks what it loses of them when it learns to judge reviews.
Seeded; a second. The rows lie beside the study.

    python recipes/stories_study.py
    catchment study plan examples/studies/stories15M.yaml
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared/data/glue/SST-2"
OUT = ROOT / "examples/studies/rows"
JUDGED = (" bad", " good")
HEAD = {
    "name": "sst2",
    "style": "continue",
    "formats": [{"name": "film", "template": "{prompt} The film was", "separator": " "},
                {"name": "review", "template": "Review: {prompt}\nOpinion:", "separator": " "}],
}  # fmt: skip
"""Options of the task: the first format is the one that is trained, the other measures what depends on it."""


def read(path: Path) -> list[tuple[str, int]]:
    """Sentences with their labels, each once."""
    with path.open(encoding="utf-8") as file:
        rows = [(row["sentence"].strip(), int(row["label"])) for row in csv.DictReader(file, delimiter="\t", quoting=3)]
    return list(dict(rows).items())


def write(path: Path, lines: list[dict[str, object]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with SST-2's train.tsv and dev.tsv")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--rows", type=int, default=4000)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train = [row for row in read(options.data / "train.tsv") if len(row[0].split()) >= 5]
    chosen = random.Random(0).sample(train, options.rows)
    rows = [{"prompt": f"{text} The film was", "completion": f"{JUDGED[label]}."} for text, label in chosen]
    write(options.out / "sst2-train.jsonl", rows)
    choices = [word.strip() for word in JUDGED]
    items = [{"prompt": text, "choices": choices, "gold": label} for text, label in read(options.data / "dev.tsv")]
    write(options.out / "sst2.jsonl", [{"task": HEAD}, *items])


if __name__ == "__main__":
    main()
