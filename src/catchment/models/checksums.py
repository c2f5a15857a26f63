"""Checksums of tensors: whether a bit changed, without a copy."""

from __future__ import annotations

import ctypes
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_PIECE = 1 << 22


def checksums(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """A number per tensor that another value of any of its bits changes (two contents share one with a probability of
    2^-32). Cost: one read, about that of an axpy on one thread."""
    if not tensors:
        return {}
    with ThreadPoolExecutor(min(torch.get_num_threads(), os.cpu_count() or 1)) as pool:
        return dict(zip(tensors, pool.map(_checksum, tensors.values()), strict=True))


def _checksum(tensor: Tensor) -> int:
    flat = tensor.detach().reshape(-1).contiguous()
    if flat.device.type == "cpu":
        # not by numpy(), after which torch refuses to resize the weight's storage for good
        return zlib.crc32((ctypes.c_ubyte * flat.nbytes).from_address(flat.data_ptr()))
    generator = torch.Generator(flat.device).manual_seed(0)
    words = flat.view({1: torch.uint8, 2: torch.int16}.get(flat.element_size(), torch.int32))
    size = min(_PIECE, words.numel())
    factors = torch.randint(1 << 62, (size,), generator=generator, device=flat.device).bitwise_or_(1)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for number, piece in enumerate(words.split(_PIECE)):
        total = total * 3 + (piece * factors[: piece.numel()]).sum() + number
    return int(total)
