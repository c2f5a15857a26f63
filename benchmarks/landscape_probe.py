"""One tool, measured in a process of its own: what a point costs, what it keeps in memory, and where it really stands.

    python landscape_probe.py --tool "reference: stored" --job cost --folder FOLDER      prints one line of JSON

Jobs: ``cost`` (time per point in axpy), ``memory`` (peak of what is kept beside the model), ``facts`` (geometry).
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import threading
import time
import tracemalloc
import warnings
import weakref
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from landscape_facts import facts
from landscape_models import REACH, build
from landscape_peers import TOOLS, Seen, Tool
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DIRECTIONS, STEPS = 5, 21


# Time


class Clock(Seen):
    """Notes when it is called; touches nothing."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.begin()

    def now(self) -> tuple[float, float]:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def begin(self) -> None:
        self.started: list[tuple[float, float]] = []
        self.points: list[list[tuple[float, float]]] = []
        self.first = self.now()

    def line(self) -> None:
        self.started.append(self.now())
        self.points.append([])

    def __call__(self) -> float:
        self.points[-1].append(self.now())
        return 0.0

    def spent(self, which: int) -> dict[str, float]:
        """Seconds (0: on the clock, 1: of the processor): per later point of a direction, per direction before its
        first point (beyond such a point), and in all per point, from the call of the tool to its return."""
        end = self.now()[which]
        later = [b[which] - a[which] for points in self.points for a, b in pairwise(points)]
        point = statistics.fmean(later)
        first = [points[0][which] - start[which] for start, points in zip(self.started, self.points, strict=True)]
        number = sum(map(len, self.points))
        return {
            "point": point,
            "set_up": statistics.fmean(first) - point,
            "whole": (end - self.first[which]) / number,
        }


def timed(work: Callable[[], Any], clock: Clock) -> tuple[float, float]:
    a = clock.now()
    work()
    b = clock.now()
    return b[0] - a[0], b[1] - a[1]


def cost(tool: Tool, folder: Path, device: str, repeats: int) -> dict[str, Any]:
    """Median over repeats of seconds over the axpy of the same repeat, measured right before and after it."""
    model = build("plain", folder, device)
    clock = Clock(device != "cpu")
    theta = [p.detach().clone() for p in model.parameters()]
    delta = [torch.randn_like(t) for t in theta]

    def axpy() -> None:
        for t, d in zip(theta, delta, strict=True):
            t.add_(d, alpha=1e-6)

    def axpys(number: int = 7) -> list[tuple[float, float]]:
        return [timed(axpy, clock) for _ in range(number)]

    axpys()
    draw = tool.draw(model)
    rows = []
    for turn in range(repeats + 1):  # the first warms up
        around = axpys()
        drawn = [timed(draw, clock) for _ in range(3)] if draw else []
        clock.begin()
        tool.lines(model, clock, DIRECTIONS if turn else 1, STEPS, REACH)
        spent = clock.spent(0), clock.spent(1)
        around += axpys()
        if turn:
            rows.append((spent, drawn, [statistics.median(a[i] for a in around) for i in (0, 1)]))
    return {"points": DIRECTIONS * STEPS, "repeats": repeats, **_ratios(rows)}


def _ratios(rows: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"axpy_seconds": [axpy[0] for _, _, axpy in rows]}
    for which, name in enumerate(("", "_processor")):
        for key in ("point", "set_up", "whole"):
            values = [spent[which][key] / axpy[which] for spent, _, axpy in rows]
            found[f"{key}_axpy{name}"] = statistics.median(values)
            found[f"{key}_axpy{name}_range"] = [min(values), max(values)]
        drawn = [statistics.median(d[which] for d in draws) / axpy[which] for _, draws, axpy in rows if draws]
        found[f"generation_axpy{name}"] = statistics.median(drawn) if drawn else None
    return found


# Memory


class LiveBytes(TorchDispatchMode):
    """Bytes of live storages that any operation reads or writes, from the moment it does so until they are freed
    (a weak reference to the storage), and of NumPy's arrays and Python's objects by ``tracemalloc``. File-backed
    storages are left out. ``peak`` is the largest sum, beyond what was alive at the start."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._alive: dict[int, Any] = {}
        self.live = self.peak = self.mapped = 0
        for tensor in [*model.parameters(), *model.buffers()]:
            self._see(tensor)
        self.size = self.live

    def _see(self, tensor: Any) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or not size or tensor.device.type == "meta":
            return
        if tensor.device.type == "cpu" and file_backed(storage.data_ptr(), size):
            size = 0
        self.live += size
        self._alive[key] = weakref.ref(storage, lambda _: self._gone(key, size))

    def _gone(self, key: int, size: int) -> None:
        del self._alive[key]
        self.live -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        self.look()
        return out

    def look(self) -> None:
        self.peak = max(self.peak, self.live - self.size + tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()


def file_backed(address: int, size: int) -> bool:
    """Whether the bytes lie in the mapping of a file (only asked of what is worth asking about)."""
    if size < 1 << 16:
        return False
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        low, high = (int(part, 16) for part in fields[0].split("-"))
        if low <= address < high:
            return len(fields) > 5 and fields[5].startswith("/")
    return False


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


class Resident(threading.Thread):
    """Looks at the process's resident memory every millisecond, whoever asked for it: peaks beyond the start, of
    anonymous memory and of pages that belong to a file."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.base = resident("RssAnon"), resident("RssFile")
        self.anonymous = self.file = 0
        self.done = False

    def run(self) -> None:
        while not self.done:
            self.anonymous = max(self.anonymous, resident("RssAnon") - self.base[0])
            self.file = max(self.file, resident("RssFile") - self.base[1])
            time.sleep(0.001)


def memory(tool: Tool, folder: Path, device: str) -> dict[str, Any]:
    """Peaks along a line of 5 points and a plane of 3 x 3, in copies of the weights. On a CPU each is run twice: once
    under the operating system's eyes alone, once with every storage counted."""
    found: dict[str, Any] = {}
    for shape in ("line", "plane"):

        def work(model: Any, shape: str = shape) -> None:
            if shape == "line":
                tool.lines(model, Seen(), 1, 5, REACH)
            else:
                tool.plane(model, Seen(), 3, REACH)

        if device != "cpu":
            peaks = _peak_of_gpu(work, build("plain", folder, device))
        else:
            peaks = _resident(work, build("plain", folder, device)) | _live(work, build("plain", folder, device))
        found |= {f"{shape}_{key}": value for key, value in peaks.items()}
    return found | {"mode": getattr(tool, "mode", "")}


def _bytes(model: Any) -> int:
    gc.collect()
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _peak_of_gpu(work: Callable[[Any], None], model: Any) -> dict[str, float]:
    size = _bytes(model)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work(model)
    peak = torch.cuda.max_memory_allocated() - before
    return {"copies": peak / size, "mib": peak / 2**20}


def _resident(work: Callable[[Any], None], model: Any) -> dict[str, float]:
    size = _bytes(model)
    watch = Resident()
    watch.start()
    work(model)
    watch.done = True
    watch.join()
    return {"resident_copies": watch.anonymous / size, "file_backed_copies": watch.file / size}


def _live(work: Callable[[Any], None], model: Any) -> dict[str, float]:
    size = _bytes(model)
    tracemalloc.start()
    with LiveBytes(model) as live:
        tracemalloc.reset_peak()
        work(model)
        live.look()
    tracemalloc.stop()
    return {"copies": live.peak / size, "mib": live.peak / 2**20}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", choices=TOOLS, required=True)
    parser.add_argument("--job", choices=("cost", "memory", "facts"), required=True)
    parser.add_argument("--folder", type=Path, required=True, help="the model, with its safetensors file")
    parser.add_argument("--extra", type=Path, help="the tool's source tree, where it has no package")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1 if options.job == "memory" else options.threads)
    warnings.simplefilter("ignore")
    tool = TOOLS[options.tool](options.folder, options.extra)
    if options.job == "cost":
        found = cost(tool, options.folder, options.device, options.repeats)
    elif options.job == "memory":
        found = memory(tool, options.folder, options.device)
    else:
        found = facts(tool, options.folder, options.device)
    versions = {name: version(name) for name in ("torch", "numpy", "transformers")}
    sys.stdout.write(json.dumps({"version": tool.version(), "beside": versions, **found}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
