"""Checks of what is given to the statistics; each raises InputError with the value, the expectation and the fix."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from catchment.errors import InputError

Floats = NDArray[np.float64]


def finite(values: ArrayLike, name: str) -> Floats:
    """A 1-d float64 array, not empty and free of NaN and infinities."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{name} has shape {array.shape}; expected one number per item and at least one item.")
    if not np.isfinite(array).all():
        place = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(
            f"{name}[{place}] is {array[place]}; expected a finite number. Was the item scored by a broken model?"
        )
    return array


def scores(values: ArrayLike, name: str) -> Floats:
    """Like :func:`finite`, and every value in [0, 1]."""
    array = finite(values, name)
    outside = np.flatnonzero((array < 0) | (array > 1))
    if outside.size:
        place = int(outside[0])
        raise InputError(f"{name}[{place}] is {array[place]:g}; expected a score in [0, 1]. Rescale the scorer.")
    return array


def same_length(base: Floats, tuned: Floats) -> None:
    if base.size != tuned.size:
        raise InputError(
            f"base has {base.size} items and tuned has {tuned.size}; expected the same items in the same order. "
            "Join the rows on the item id first."
        )


def open_unit(value: float, name: str) -> float:
    """A number strictly between 0 and 1."""
    if not 0 < value < 1:
        raise InputError(f"{name} is {value}; expected a number between 0 and 1, such as 0.05.")
    return float(value)


def error_rate(level: float, family: int) -> float:
    """Bonferroni: the error each of ``family`` intervals may make so that together they hold at ``level``.

    >>> round(error_rate(0.95, family=5), 6)
    0.01
    """
    open_unit(level, "level")
    if isinstance(family, bool) or int(family) != family or family < 1:
        raise InputError(f"family is {family}; expected the number of simultaneous statements, 1 or more.")
    return (1.0 - level) / int(family)


def is_binary(array: Floats) -> bool:
    return bool(((array == 0) | (array == 1)).all())
