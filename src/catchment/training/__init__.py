"""How weights are moved, what they are moved with, and what is watched while they move."""

from catchment.training.batches import Collator, completion_losses, pack
from catchment.training.callbacks import CapabilityCallback, Evaluation
from catchment.training.data import Rows, read_rows, seeded_rows, split_rows
from catchment.training.encoding import Encoded, encode_rows
from catchment.training.fence import Fence
from catchment.training.gates import check_completions
from catchment.training.generation import Sampling, answered, self_generated
from catchment.training.moves import Move
from catchment.training.optimizers import MasterWeights, SharpnessAware, check_number, decay_groups, pull_to_base
from catchment.training.pilot import LineSearch, PilotRoom, first_direction, pilot_room, split_items
from catchment.training.replay import Replay
from catchment.training.tasks import as_task

__all__ = [
    "CapabilityCallback",
    "Collator",
    "Encoded",
    "Evaluation",
    "Fence",
    "LineSearch",
    "MasterWeights",
    "Move",
    "PilotRoom",
    "Replay",
    "Rows",
    "Sampling",
    "SharpnessAware",
    "answered",
    "as_task",
    "check_completions",
    "check_number",
    "completion_losses",
    "decay_groups",
    "encode_rows",
    "first_direction",
    "pack",
    "pilot_room",
    "pull_to_base",
    "read_rows",
    "seeded_rows",
    "self_generated",
    "split_items",
    "split_rows",
]
