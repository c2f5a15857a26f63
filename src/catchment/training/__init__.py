"""How weights are moved, and what is watched while they move."""

from catchment.training.callbacks import CapabilityCallback, Evaluation

__all__ = ["CapabilityCallback", "Evaluation"]
