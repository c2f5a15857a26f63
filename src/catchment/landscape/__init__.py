"""What moving the weights costs: subspaces, directions, exact displacement, and what is measured along the way."""

from catchment.landscape.basin import basin, estimate, fill, profile, scout, search, sharpen
from catchment.landscape.check import check
from catchment.landscape.curvature import Hessian, curvature, curvature_memory, top_eigenvalues, trace, vectors
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
from catchment.landscape.evaluator import Evaluator, Ground, NotStoredError, batches_of
from catchment.landscape.gradients import gaussian_share, oscillation, quasi_sparsity, random_init, summarise
from catchment.landscape.losses import Batch, accumulate_gradient, answer_batches, batch_loss, mean_loss
from catchment.landscape.memory import free_memory
from catchment.landscape.plane import Grid, orthogonal, plane, through
from catchment.landscape.rays import Ray, barrier, measure, room
from catchment.landscape.sharding import shard
from catchment.landscape.subspace import Subspace
from catchment.landscape.truncated import Truncated, truncated
from catchment.landscape.units import Design, Field, items_each
from catchment.landscape.worst import Effort, ascend, attack_memory, unit, within, worst

__all__ = [
    "Batch",
    "Design",
    "Direction",
    "Effort",
    "Evaluator",
    "Field",
    "FilterNormalised",
    "Gaussian",
    "Grid",
    "Ground",
    "Hessian",
    "Mover",
    "NotStoredError",
    "Ray",
    "Stored",
    "Subspace",
    "Towards",
    "Truncated",
    "accumulate_gradient",
    "answer_batches",
    "ascend",
    "attack_memory",
    "barrier",
    "basin",
    "batch_loss",
    "batches_of",
    "check",
    "curvature",
    "curvature_memory",
    "displaced",
    "estimate",
    "fill",
    "filter_normalised",
    "free_memory",
    "gaussian",
    "gaussian_share",
    "items_each",
    "mean_loss",
    "measure",
    "moved_subspace",
    "orthogonal",
    "oscillation",
    "plane",
    "profile",
    "quasi_sparsity",
    "random_init",
    "room",
    "scout",
    "search",
    "shard",
    "sharpen",
    "summarise",
    "through",
    "top_eigenvalues",
    "towards",
    "trace",
    "truncated",
    "unit",
    "vectors",
    "within",
    "worst",
]
