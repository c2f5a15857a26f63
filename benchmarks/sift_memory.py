"""Memory of one training step, and what a tuning takes on disk; each contender in a process of its own.

Peak: bytes of torch's CPU allocator. At rest between steps: all storages of all live tensors (the garbage collector
finds them; the weights are not views of a file). Within a step: the allocator's own events, each allocation and each
release, summed in their order (``torch.profiler``, ``profile_memory=True``). Nothing that lives at rest is released in
a step, so peak = at rest + largest sum, to the byte. Not seen: buffers that a BLAS library allocates itself, which
only the resident memory shows (``resident_growth``: peak of the step less that of the loaded model, from the kernel).
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sift_peers import Spec, Step, build, load
from torch.profiler import ProfilerActivity, profile, record_function

MARK = "part of step: "


def in_process(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """``work`` in a fresh process, forked from one that has imported the libraries and done nothing else."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back to the system at once
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sift_memory", "peft", "transformers", "catchment.methods"])
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(send, work, arguments))
    process.start()
    send.close()
    try:
        found: dict[str, Any] = receive.recv()
    except EOFError:
        found = {"raised": "the process ended without a result"}
    process.join()
    return found


def _child(send: Any, work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    warnings.simplefilter("ignore")
    try:
        send.send(work(*arguments))
    except Exception as error:
        send.send({"raised": f"{type(error).__name__}: {error}".splitlines()[0][:200]})
    send.close()


def batch_of(model: Any, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Random tokens, the same for all."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, shape, generator=generator)
    return {"input_ids": tokens, "labels": tokens}


# Memory of a step


def memory(spec: Spec, folder: Path, dtype: str, shape: tuple[int, int], threads: int) -> dict[str, Any]:
    """Bytes of one contender: weights, at rest, peak of the whole step and of each part."""
    torch.set_num_threads(threads)
    model = load(folder, dtype)
    batch = batch_of(model, shape)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    loaded = _resident("VmRSS")
    step = build(spec, model, clocks=False)
    for _ in range(2):  # SIFT chooses in the first; the optimizers make their states
        step(batch)
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak starts anew
    step(batch)
    resident = _resident("VmHWM") - loaded
    step.phase = lambda name: record_function(MARK + name)
    gc.collect()
    rest = at_rest()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(batch)
    gc.collect()
    peaks, left = _peaks(profiler)
    return {
        "trainable": step.trainable, "weights": weights, "at_rest": rest, "peak": rest + peaks["whole"],
        "peak_of_part": {name: rest + peak for name, peak in peaks.items() if name != "whole"},
        "left_over": left, "rest_after": at_rest() - rest, "resident_growth": resident, **step.sizes,
    }  # fmt: skip


def at_rest() -> int:
    """Bytes of all storages of live tensors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.device.type == "cpu"]
    storages = [t.untyped_storage() for t in tensors if t.layout == torch.strided]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def _peaks(profiler: Any) -> tuple[dict[str, int], int]:
    """Largest sum of the allocator's events in the step and within each part, and what is left at its end."""
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    marks = [e for e in events if e.name().startswith(MARK)]
    ends = {e.name().removeprefix(MARK): (e.start_ns(), e.start_ns() + e.duration_ns()) for e in marks}
    live, peaks = 0, dict.fromkeys(["whole", *ends], 0)
    for event in events:
        if event.name() == "[memory]":
            live += event.nbytes()
            at = event.start_ns()
            for name in ["whole", *(n for n, (a, b) in ends.items() if a <= at <= b)]:
                peaks[name] = max(peaks[name], live)
    return peaks, live


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


# Files


def files(spec: Spec, folder: Path, dtype: str, shape: tuple[int, int], threads: int) -> dict[str, Any]:
    """Bytes on disk, seconds to write and to read (with the move in place), medians of three, warm file cache."""
    torch.set_num_threads(threads)
    model = load(folder, dtype)
    step = build(spec, model, clocks=False)
    for _ in range(2):
        step(batch_of(model, shape))
    with tempfile.TemporaryDirectory() as place:
        found = (_sift_files if spec.kind == "sift" else _peft_files)(step, Path(place), folder, dtype)
        size = sum(f.stat().st_size for f in Path(place).rglob("*.safetensors"))
    return {"trainable": step.trainable, "bytes": size, "bytes_per_parameter": size / step.trainable, **found}


def _median(work: Callable[[], Any], times: int = 3) -> float:
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def _sift_files(step: Step, place: Path, folder: Path, dtype: str) -> dict[str, Any]:
    from catchment.models import Increment, weights_hash

    sift = step.tuning
    with sift.unmerged() as base:
        named = weights_hash(base)
        hashing = _median(lambda: weights_hash(base))
    save = _median(lambda: sift.save_pretrained(place, base_hash=named))
    model = sift.remove()
    read = _median(lambda: Increment.from_pretrained(place))
    increment = Increment.from_pretrained(place)
    swap = []
    for _ in range(3):
        swap.append(_median(lambda: increment.apply(model), 1))
        increment.revert(model)
    return {"save": save, "load": read + statistics.median(swap), "read": read, "hash_of_base": hashing}


def _peft_files(step: Step, place: Path, folder: Path, dtype: str) -> dict[str, Any]:
    from peft import PeftModel

    save = _median(lambda: step.tuning.save_pretrained(place, save_embedding_layers=False))
    spent = []
    for _ in range(2):
        base = load(folder, dtype)
        spent.append(_median(lambda base=base: PeftModel.from_pretrained(base, place), 1))
    return {"save": save, "load": min(spent)}


if __name__ == "__main__":
    sys.exit("imported by bench_sift.py")
