"""Memory: how much is free, and where clean weights are read back from."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from catchment.errors import StoreError
from catchment.landscape import sharding
from catchment.models import mapped_weights
from catchment.options import cache_dir

SHARE = 0.8
"""Of the free memory: more is not planned with."""
_CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device | str = "cpu") -> float:
    """Free memory in bytes, as far as it can be told; infinite where it cannot.

    On a GPU: what the driver has free, and what torch holds of it and does not use. Else what the system has
    available, or what is left of the limit of the container (cgroup v2) where that is less; pages of files that were
    read count as free, because they are given up when needed.
    """
    device = torch.device(device)
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + idle)
    return min(_system(), _container())


def _system() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return float("inf")


def _container() -> float:
    try:
        left = float(int((_CGROUP / "memory.max").read_text()) - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # none, or "max": no limit
        return float("inf")
    with suppress(OSError, StopIteration, ValueError):
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        left += next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return max(left, 0.0)


def matching(weights: Mapping[str, Tensor], files: Sequence[Path]) -> dict[str, Tensor]:
    """Mapped tensors that equal the weights bit for bit; on a GPU, and for cut weights, none."""
    if not files:
        return {}
    equal = {}
    stored = mapped_weights(files)
    for name, tensor in weights.items():
        there = stored.get(name)
        if there is None or sharding.is_sharded(tensor) or tensor.device.type != "cpu" or not tensor.is_contiguous():
            continue
        same = there.dtype == tensor.dtype and there.shape == tensor.shape
        if same and torch.equal(there.reshape(-1).view(torch.uint8), tensor.detach().reshape(-1).view(torch.uint8)):
            equal[name] = there
    return equal


def choose(memory: str, weights: Mapping[str, Tensor], mapped: Mapping[str, Tensor]) -> str:
    """The mode for ``memory``; ``auto`` becomes ``low`` where a direction, and a copy of what is not mapped, would not
    fit on any one of the devices."""
    if memory in ("copy", "low"):
        return memory
    size = kept = 0
    needed: dict[torch.device, int] = {}
    for name, weight in weights.items():
        here = sharding.local(weight)
        size += here.nbytes
        kept += here.nbytes if name in mapped else 0
        needed[here.device] = needed.get(here.device, 0) + here.nbytes * (1 if name in mapped else 2)
    if memory == "auto" and any(count > SHARE * free_memory(device) for device, count in needed.items()):
        return "low"
    return "mapped" if kept > size / 2 else "copy"


def spill(weights: Mapping[str, Tensor]) -> Path:
    """Write weights to a temporary file, and remove those that killed processes of this machine left behind.

    Raises:
        StoreError: The folder cannot be written.
    """
    from safetensors.torch import save_file

    folder = cache_dir() / "spill"
    path: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _clear(folder)
        prefix = f"{_machine()}.{os.getpid()}."
        with tempfile.NamedTemporaryFile(dir=folder, prefix=prefix, suffix=".safetensors", delete=False) as file:
            path = Path(file.name)
        save_file({n: sharding.local(w).contiguous() for n, w in weights.items()}, str(path))
    except OSError as error:
        if path is not None:
            remove(path)
        raise StoreError(f"cannot write the clean weights to {folder}: {error}; set CATCHMENT_HOME.") from error
    return path


def remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def stamp(path: Path) -> tuple[int, ...]:
    """What tells whether a file was written to in place; its ``ctime`` too, because its ``mtime`` can be put back."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def altered(path: Path, before: tuple[int, ...]) -> bool:
    """Whether a file was written to in place since its stamp. One that was removed or replaced under its name was not:
    what is mapped of it stays."""
    try:
        now = stamp(path)
    except OSError:
        return False
    return now != before and now[:2] == before[:2]


def _machine() -> str:
    return platform.node().replace(".", "-").replace("/", "-")


def _clear(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        machine, pid, *_ = [*path.name.split("."), ""]
        if machine == _machine() and pid.isdigit() and not _alive(int(pid)):
            remove(path)


def _alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # elsewhere signal 0 is no question
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
