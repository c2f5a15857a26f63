"""What does not hold yet. Nothing may be added; what holds is taken out, and a test fails until it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

STRANGERS: set[str] = set()
MISSING_PARTS: set[str] = set()
TRESPASSES: set[str] = set()
CIRCLES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
MANY_PARAMETERS: set[str] = set()
LONG_FILES = {}


def told(found: Iterable[str] | Mapping[str, int], still: Iterable[str]) -> None:
    """What is found, by name or as a size by name, is what does not hold yet, no more and no less."""
    sizes = found if isinstance(found, Mapping) else {}
    new, gone = sorted(set(found) - set(still)), sorted(set(still) - set(found))
    assert not new, "\n".join(["against the map:", *(f"{name} {sizes.get(name, '')}".rstrip() for name in new)])
    assert not gone, "\n".join(["these hold now; take them out of tests/unit/map/still.py:", *gone])
