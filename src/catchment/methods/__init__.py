"""Ways to fine-tune: one protocol, one table of conformance."""

from catchment.methods.protocol import Method, Tuning
from catchment.methods.sift import SIFT, Sift, SiftCallback

__all__ = ["SIFT", "Method", "Sift", "SiftCallback", "Tuning"]
