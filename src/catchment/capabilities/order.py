"""The seeded order of items, their split in two, and samples: every part and unit of items is drawn by these."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from catchment.capabilities.tasks import Item
from catchment.errors import InputError

Named = TypeVar("Named", Item, str)
"""An item, or its id."""


def seeded_order(items: Iterable[Named], prefix: str) -> list[Named]:
    """The items sorted by ``SHA-256(prefix + id)``: a random order that depends on the prefix and the ids alone.

    A hash in place of a shuffle: where an item stands depends neither on the order of the list nor on which other
    items are in it. So the first n of more items contain the first n of fewer wherever these are among them, a data
    file in another order gives the same parts, and a larger sample contains every smaller one.

    Args:
        prefix: Purpose and seed as text, the separator before the id included, e.g. ``"room:0:"``. Two purposes with
            different prefixes draw independently of each other.

    >>> seeded_order(["a", "b", "c"], "room:0:"), seeded_order(["c", "b", "a"], "room:0:")
    (['c', 'a', 'b'], ['c', 'a', 'b'])
    """
    return sorted(items, key=lambda item: _digest(prefix, item))


def seeded_halves(items: Iterable[Named], prefix: str) -> tuple[list[Named], list[Named]]:
    """The items in two parts, each in the given order: the parity of the first byte of ``SHA-256(prefix + id)``, even
    first. Every item falls on either side with probability 1/2, whatever the others do, so sizes differ by chance.

    >>> seeded_halves(["a", "b", "c", "d"], "recover:0:")
    (['d'], ['a', 'b', 'c'])
    """
    parts: tuple[list[Named], list[Named]] = ([], [])
    for item in items:
        parts[_digest(prefix, item)[0] % 2].append(item)
    return parts


def sample(items: Sequence[Item], limit: int | None, seed: int) -> tuple[Item, ...]:
    """A seeded random subset in the task's order; a larger limit contains every smaller one.

    >>> len(sample([Item(str(i), gold="x") for i in range(10)], 4, seed=0))
    4
    """
    if limit is None or limit >= len(items):
        return tuple(items)
    if limit < 1:
        raise InputError(f"limit {limit}: expected at least 1 item, or None for all.")
    chosen = {item.id for item in seeded_order(items, f"{seed}:")[:limit]}
    return tuple(item for item in items if item.id in chosen)


def _digest(prefix: str, item: Item | str) -> bytes:
    name = item if isinstance(item, str) else item.id
    return hashlib.sha256(f"{prefix}{name}".encode()).digest()
