"""Pure functions of item rows: intervals, verdicts, how many items a verdict takes, and where a drop crosses a
tolerance. Nothing here knows models."""

from catchment.statistics.binomial import clopper_pearson
from catchment.statistics.bootstrap import cluster_band, crossing, crossing_interval
from catchment.statistics.changes import RatioOfChange, chance_adjusted, ratio_of_change, retention, sensitivity
from catchment.statistics.decisions import ABOVE_CHANCE, FEW, Decision, admission, decide
from catchment.statistics.discovery import Discovery, chance_p_value, discoveries, improvement_p_value
from catchment.statistics.hierarchy import hierarchical_interval
from catchment.statistics.intervals import mean_interval, paired_interval, unbounded_paired_interval
from catchment.statistics.matrices import ForgettingMatrix, Transfer, forgetting_matrix, transfer
from catchment.statistics.noise import NoiseFloor, SignalToNoise, checkpoint_noise, seed_noise, signal_to_noise
from catchment.statistics.plateaus import Plateau, plateau
from catchment.statistics.rulers import Tally, is_matrix, ruler
from catchment.statistics.search import (
    bracket,
    ladder,
    most_nodes,
    next_down,
    next_near,
    next_node,
    node_error,
    rungs_below,
)
from catchment.statistics.sequences import decide_mean, mean_sequence, units_needed
from catchment.statistics.sizes import expected_half_width, required_n
from catchment.statistics.smoothing import certified_radius, hoeffding, strict, strong_law, weak_law

__all__ = [
    "ABOVE_CHANCE",
    "FEW",
    "Decision",
    "Discovery",
    "ForgettingMatrix",
    "NoiseFloor",
    "Plateau",
    "RatioOfChange",
    "SignalToNoise",
    "Tally",
    "Transfer",
    "admission",
    "bracket",
    "certified_radius",
    "chance_adjusted",
    "chance_p_value",
    "checkpoint_noise",
    "clopper_pearson",
    "cluster_band",
    "crossing",
    "crossing_interval",
    "decide",
    "decide_mean",
    "discoveries",
    "expected_half_width",
    "forgetting_matrix",
    "hierarchical_interval",
    "hoeffding",
    "improvement_p_value",
    "is_matrix",
    "ladder",
    "mean_interval",
    "mean_sequence",
    "most_nodes",
    "next_down",
    "next_near",
    "next_node",
    "node_error",
    "paired_interval",
    "plateau",
    "ratio_of_change",
    "required_n",
    "retention",
    "ruler",
    "rungs_below",
    "seed_noise",
    "sensitivity",
    "signal_to_noise",
    "strict",
    "strong_law",
    "transfer",
    "unbounded_paired_interval",
    "units_needed",
    "weak_law",
]
