"""What a point of a loss landscape costs beyond its evaluation, and where it lies: ours, two references, three peers.

The unit of time is an axpy: one in-place ``theta.add_(delta, alpha=a)`` over all weights of the same model, measured
in the same process right before and after. The evaluation is replaced by a function that does nothing. Memory is the
peak beside the model, in copies of its weights. Every tool runs in a process of its own, and the peers in their own
environment (``benchmarks/peers.txt``); facts about geometry are measured, not looked up.

    python benchmarks/bench_landscape.py --peers-python .venv-peers/bin/python --goldstein DIR
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from landscape_facts import EVERY
from landscape_models import REACH, config
from landscape_peers import OWN, TOOLS
from landscape_probe import DIRECTIONS, STEPS

ROOT = Path(__file__).parents[1]
JOBS = ("cost", "memory", "facts")
UNITS = {
    "axpy": "seconds / seconds of one in-place theta.add_(delta, alpha=a) over all weights, median over repeats",
    "point": "between two evaluations on one direction: all that moving to the next point costs",
    "generation": "one direction drawn, where the tool's own function can be called apart; else null",
    "set_up": "per direction, from its start to its first evaluation, beyond one point: drawing, normalising, copying",
    "whole": "per point, from the call of the tool to its return: set-up, points, restoration",
    "_processor": "the same in processor time, which hardly notices what else the machine does",
    "copies": "peak of live bytes beside the model / bytes of the weights: all storages seen by a dispatch mode until "
    "they are freed, NumPy's arrays and Python's objects by tracemalloc, file-backed storages left out; on a GPU "
    "max_memory_allocated",
    "resident_copies": "the same as the operating system sees it: peak of anonymous resident memory, every ms",
    "file_backed_copies": "peak of resident pages that belong to files, which the system can drop at any time",
    "off_line": "share of the displacement that does not lie on the fitted straight line",
    "spacing_error_in_steps": "largest distance of a point from the equally spaced line, in steps",
    "theta0_at_position": "where the model's own weights lie on the line, counted in points from 0",
    "plane_second_singular_value": "of the two axes, over the first: 1 for a square plane, 0 for a line",
    "tied_over_untied": "movement of a tied embedding over that of an untied one; 1.41 where it moves twice",
    "bf16_off_direction": "sine of the angle between the way from end to end and the direction asked for, in bf16; "
    "that of 'reference: stored' is what rounding alone does",
}


def cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def save_model(folder: Path) -> int:
    """The model of the benchmark as safetensors; returns its number of weights."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(config())
    model.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def run_job(python: Path, name: str, job: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One job of one tool in a process of its own; what fails says how."""
    command = [
        str(python), str(Path(__file__).with_name("landscape_probe.py")), "--tool", name, "--job", job,
        "--folder", str(folder), "--device", options.device, "--threads", str(options.threads),
        "--repeats", str(options.repeats),
    ]  # fmt: skip
    command += ["--extra", str(options.goldstein)] if name == "goldstein" else []
    env = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    if job == "memory":
        env["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back to the system at once, and is seen to go
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        return {"raised": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def run_tool(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    python = Path(sys.executable) if name in OWN else options.peers_python
    if python is None:
        return {"ran": False, "why": "no --peers-python"}
    if name == "goldstein" and options.goldstein is None:
        return {"ran": False, "why": "no --goldstein: tomgoldstein/loss-landscape is not on PyPI"}
    found: dict[str, Any] = {"ran": True, "note": TOOLS[name].note}
    for job in options.jobs:
        print(f"{name}: {job}", flush=True)
        part = run_job(python, name, job, folder, options)
        found |= {key: part.pop(key) for key in ("version", "beside") if key in part}
        found[job] = part
    return found


def bars(tools: dict[str, Any]) -> list[dict[str, Any]]:
    """What was promised beside what came out. Memory is compared at the one decimal that it was promised with."""
    rows = []

    def add(name: str, what: str, value: float | None, bar: float) -> None:
        if value is not None:
            rows.append({"tool": name, "what": what, "value": value, "bar": bar, "reached": value <= bar})

    for name, bar in (("ours (default)", 1.0), ("ours (copy)", 2.0)):
        time, kept = (tools.get(name, {}).get(job, {}) for job in ("cost", "memory"))
        add(name, "axpy per point beside generation", time.get("point_axpy"), 1.5)
        add(name, "extra copies, profile", kept and round(kept.get("line_copies", 99.0), 1), bar)
    time, kept = (tools.get("ours (low memory)", {}).get(job, {}) for job in ("cost", "memory"))
    if time.get("generation_axpy") is not None:
        beyond = time["point_axpy"] - time["generation_axpy"]
        add("ours (low memory)", "axpy per point beyond one generation", beyond, 2.5)
    if "line_copies" in kept:
        allowed = max(0.15 * kept["line_mib"] / kept["line_copies"], 64.0)
        add("ours (low memory)", "extra MiB, profile", kept["line_mib"], allowed)
    return rows


def conditions(parameters: int, options: argparse.Namespace, before: tuple[float, ...]) -> dict[str, Any]:
    return {
        "model": "Llama, hidden 512, 8 layers, vocabulary 8,000, untied, random weights",
        "parameters": parameters,
        "dtype": "float32",
        "device": torch.cuda.get_device_name() if options.device != "cpu" else "cpu",
        "threads": options.threads,
        "threads_of_memory_job": 1,
        "points": f"{DIRECTIONS} directions x {STEPS} points (cost); 5 and 3 x 3 points (memory)",
        "reach": f"largest displacement {REACH} of the norm of the weights, where the tool lets one say so",
        "facts_from": f"every {EVERY}th entry of each tensor; bit for bit: all entries",
        "cores": os.cpu_count(),
        "cpu": cpu_model(),
        "load_average_before": before,
        "load_average_after": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("catchment", "torch", "transformers", "peft")},
    }


def shown(value: Any, form: str = ".2f") -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return format(value, form) if isinstance(value, int | float) else "-"


def print_tables(tools: dict[str, Any]) -> None:
    """Cost and memory, then facts."""
    print(f"\n{'tool':20} {'point':>7} {'gener.':>7} {'set-up':>8} {'whole':>7} {'copies: line':>13} {'plane':>6}")
    for name, tool in tools.items():
        if not tool["ran"]:
            print(f"{name:20} not run: {tool['why']}")
            continue
        time, kept = tool.get("cost", {}), tool.get("memory", {})
        cells = [shown(time.get(f"{key}_axpy")) for key in ("point", "generation", "set_up", "whole")]
        copies = [shown(kept.get(f"{key}_copies")) for key in ("line", "plane")]
        print(f"{name:20} {cells[0]:>7} {cells[1]:>7} {cells[2]:>8} {cells[3]:>7} {copies[0]:>13} {copies[1]:>6}")
    keys = {
        "centre_evaluated": "centre", "weights_restored": "restored", "requires_grad_kept": "grad flag",
        "share_of_positive_entries": "positive", "cosine_of_two_lines": "cos lines", "plane_cosine_of_axes": "cos axes",
        "plane_second_singular_value": "2nd sv", "plane_error_in_steps": "plane err", "tied_over_untied": "tied",
        "frozen_base_moved": "LoRA base", "bf16_off_direction": "bf16 off", "non_finite_score_reported": "NaN kept",
    }  # fmt: skip
    print(f"\n{'tool':20} " + " ".join(f"{word:>9}" for word in keys.values()))
    for name, tool in tools.items():
        if "facts" in tool:
            print(f"{name:20} " + " ".join(f"{shown(tool['facts'].get(key), '.3f'):>9}" for key in keys))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", type=Path, help="Python of an environment with benchmarks/peers.txt")
    parser.add_argument("--goldstein", type=Path, help="source tree of tomgoldstein/loss-landscape")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<date>-landscape.json")
    options = parser.parse_args()
    date, before = datetime.date.today().isoformat(), os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        parameters = save_model(Path(folder))
        tools = {name: run_tool(name, Path(folder), options) for name in options.tools}
    record = {"date": date, "conditions": conditions(parameters, options, before), "units": UNITS}
    record |= {"bars": bars(tools), "tools": tools}
    out = options.out or ROOT / "benchmarks" / "results" / f"{date}-landscape.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print_tables(tools)
    for bar in record["bars"]:
        word = "reached" if bar["reached"] else "NOT REACHED"
        print(f"{bar['tool']}: {bar['what']} {bar['value']:.2f} (bar {bar['bar']:.1f}): {word}")
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
