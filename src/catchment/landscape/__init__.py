"""What moving the weights costs: subspaces, directions, exact displacement, and what is measured along the way."""

from catchment.landscape.directions import (
    Direction,
    FilterNormalised,
    Gaussian,
    Stored,
    Towards,
    filter_normalised,
    gaussian,
    moved_subspace,
    towards,
)
from catchment.landscape.displace import Mover, displaced
from catchment.landscape.subspace import Subspace

__all__ = [
    "Direction",
    "FilterNormalised",
    "Gaussian",
    "Mover",
    "Stored",
    "Subspace",
    "Towards",
    "displaced",
    "filter_normalised",
    "gaussian",
    "moved_subspace",
    "towards",
]
