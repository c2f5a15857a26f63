"""Numbers with an address: independent of pieces and threads, normal, and different wherever the address is."""

from __future__ import annotations

import math

import pytest
import torch

from catchment.landscape import noise


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (65_530, 65_545), (100_000, 250_001), (249_999, 250_001)])
def test_pieces_are_parts_of_the_whole(start: int, stop: int) -> None:
    whole = noise.normal(3, "w", 250_001)
    assert torch.equal(noise.normal(3, "w", 250_001, start, stop), whole[start:stop])


def test_threads_do_not_change_numbers() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = noise.normal(1, "w", 400_000)
        torch.set_num_threads(3)
        assert torch.equal(noise.normal(1, "w", 400_000), one)
    finally:
        torch.set_num_threads(before)


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    noise.normal(1, "w", 70_000)
    assert torch.equal(torch.get_rng_state(), before)


def test_standard_normal() -> None:
    z = noise.normal(0, "w", 2_000_000).double()
    n = z.numel()
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.square().mean() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)


@pytest.mark.parametrize("other", [(1, "w"), (0, "v")])
def test_other_addresses_are_independent(other: tuple[int, str]) -> None:
    a, b = noise.normal(0, "w", 500_000).double(), noise.normal(*other, 500_000).double()
    assert abs(float(a @ b)) / 500_000 < 4 / math.sqrt(500_000)


def test_blocks_of_one_stream_differ() -> None:
    z = noise.normal(0, "w", 2 * noise.BLOCK).double()
    a, b = z[: noise.BLOCK], z[noise.BLOCK :]
    assert abs(float(a @ b)) / noise.BLOCK < 4 / math.sqrt(noise.BLOCK)


def test_equal_generator_seeds_are_still_out_of_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps 32 bits of a seed: force a collision and see that the blocks do not coincide."""
    real = noise.hashlib.blake2b

    class Colliding:
        def __init__(self, text: bytes, digest_size: int) -> None:
            self.rest = real(text, digest_size=digest_size).digest()[8:]

        def digest(self) -> bytes:
            return bytes(8) + self.rest

    monkeypatch.setattr(noise.hashlib, "blake2b", Colliding)
    a, b = noise.normal(0, "w", noise.BLOCK), noise.normal(1, "w", noise.BLOCK)
    assert not torch.equal(a, b)
    assert torch.equal(a.sort().values, b.sort().values)
