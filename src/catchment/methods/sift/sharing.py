"""SIFT over several processes: what they tell each other, always in the same order.

Data parallel (DDP): every process holds all weights. While entries are chosen the dense gradients are averaged, so
that all choose the same; afterwards one all-reduce of the flat gradient per backward pass is all there is.
FSDP2 (``fully_shard``): every process holds rows of every tensor and, of the flat vectors, the entries that lie there.
Only the choice of the best ``k`` of a tensor (scores of candidates) and the norm of the gradient are exchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from catchment.errors import ModelError
from catchment.methods.sift.layout import Target
from catchment.methods.sift.selection import top

_IGNORED = "_ddp_params_and_buffers_to_ignore"
"""Where DDP looks for the names of what it shall leave alone."""


def processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_sharded(targets: list[Target]) -> bool:
    """Whether the weights are FSDP2's; refuses the shardings that are not by rows over all processes."""
    sharded = [t for t in targets if hasattr(t.parameter, "to_local")]
    for target in sharded:
        placements: Any = getattr(target.parameter, "placements", ())
        if len(placements) != 1 or not placements[0].is_shard(0):
            raise ModelError(
                f"weight {target.name!r} is laid out as {placements}; expected FSDP2 over one mesh dimension "
                "(fully_shard), cut by rows. Tensor parallelism and hybrid sharding are not supported."
            )
    if sharded and len(sharded) != len(targets):
        raise ModelError(f"{targets[0].name!r} and others are sharded, some are not; call fully_shard on all blocks.")
    return bool(sharded)


def mean_(tensor: Tensor) -> Tensor:
    """The mean over processes, in place."""
    dist.all_reduce(tensor)
    return tensor.div_(processes())


def sum_(tensor: Tensor) -> Tensor:
    dist.all_reduce(tensor)
    return tensor


def anywhere(flags: list[bool], device: torch.device) -> list[bool]:
    """Of each flag, whether it is set on any process; every process has the same list of things to ask about."""
    if not flags:
        return []
    return [count > 0 for count in sum_(torch.tensor(flags, dtype=torch.int32, device=device)).tolist()]


def best_of_all(scores: Tensor, k: int) -> tuple[Tensor, int]:
    """Mask ``(n,)`` of those of this process's scores that are among the best ``k`` of all processes; of equal ones
    those of the first process; and how many there are in all. Exchanges ``k`` scores per process."""
    counts = torch.zeros(processes(), dtype=torch.int64, device=scores.device)
    counts[dist.get_rank()] = scores.numel()
    dist.all_reduce(counts)
    widest = int(counts.max())
    padded = torch.full((widest,), -1.0, device=scores.device)
    padded[: scores.numel()] = scores
    parts = [torch.empty_like(padded) for _ in range(processes())]
    dist.all_gather(parts, padded)
    everyone = torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])
    mask = torch.zeros(everyone.numel(), dtype=torch.bool, device=scores.device)
    mask[top(everyone, min(k, everyone.numel()))] = True
    before = int(counts[: dist.get_rank()].sum())
    return mask[before : before + scores.numel()], everyone.numel()


def gather(parts: Any) -> list[Any]:
    """What every process has, on every process."""
    everywhere: list[Any] = [None] * processes()
    dist.all_gather_object(everywhere, parts)
    return everywhere


def leave_to_sift(model: nn.Module, targets: list[Target]) -> Callable[[], None]:
    """Keep the targets out of DDP's buckets: their dense gradients need not travel. DDP refuses a module that leaves
    it nothing, so the smallest target stays in; what DDP puts in its gradient (zeros) does no harm.

    Returns:
        What undoes it.
    """
    smallest = min(targets, key=lambda t: t.parameter.numel())
    objects = {id(t.parameter) for t in targets if t is not smallest}
    names = [name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in objects]
    before = getattr(model, _IGNORED, None)
    setattr(model, _IGNORED, sorted({*(before or ()), *names}))

    def take_back() -> None:
        if before is None:
            vars(model).pop(_IGNORED, None)
        else:
            setattr(model, _IGNORED, before)

    return take_back


def align(targets: list[Target]) -> None:
    """Give every process the first one's weights, as DDP does."""
    for target in targets:
        dist.broadcast(target.local, 0)
