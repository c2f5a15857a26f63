"""Geometry of axes: where values stand, in percent of the plot's width."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from catchment.pages.words import sigma
from catchment.records import Interval, Ruler

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Axis:
    """A linear scale. ``ticks`` are values in data units; they are labelled as ``unit`` times the value."""

    low: float
    high: float
    ticks: tuple[float, ...]
    unit: float = 100.0

    def at(self, value: float) -> float:
        """Position of a value in percent of the width; values outside stand on the edge.

        >>> Axis(-1.0, 1.0, (0.0,)).at(0.5)
        75.0
        """
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 3)


def axis(values: Iterable[float], most: int = 7, padding: float = 0.06, unit: float = 100.0) -> Axis:
    """A scale that holds all values, with at most about ``most`` round ticks.

    >>> axis([-0.12, 0.35]).ticks
    (-0.1, 0.0, 0.1, 0.2, 0.3)
    """
    low, high = _range(values)
    span = high - low
    low, high = low - padding * span, high + padding * span
    step = _step(high - low, most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(low, high, tuple(round(i * step, 12) for i in range(first, last + 1)), unit)


def _range(values: Iterable[float]) -> tuple[float, float]:
    known = list(values) or [0.0]
    low, high = min(known), max(known)
    return (low, high) if high > low else (low - 0.01, high + 0.01)


def _step(span: float, most: int) -> float:
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(power * step for step in STEPS if span / (power * step) <= most)


@dataclass(frozen=True)
class Mark:
    """An interval with its estimate on an axis, in percent of the width."""

    low: float
    high: float
    middle: float


def mark(scale: Axis, interval: Interval) -> Mark:
    """Where an interval stands on an axis."""
    return Mark(scale.at(interval.low), scale.at(interval.high), scale.at(interval.estimate))


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic scale between two positive ends. ``signed``: mirrored around a zero in the middle; ``zero``: a
    zero stands at the left edge, apart from the rest. ``percent``: values are labelled as percent."""

    low: float
    high: float
    ticks: tuple[float, ...]
    signed: bool = False
    zero: bool = False
    percent: bool = False

    def at(self, value: float) -> float:
        """Position of a value in percent of the width; values outside stand on the edge.

        >>> LogAxis(0.001, 0.1, ()).at(0.01), LogAxis(0.001, 0.1, (), signed=True).at(-0.1)
        (50.0, 0.0)
        """
        apart = 0.12 if self.signed else 0.08 if self.zero else 0.0
        size = abs(value) if self.signed else max(value, 0.0)
        share = math.log(size / self.low) / math.log(self.high / self.low) if size > 0 else 0.0
        share = (apart + (1 - apart) * min(max(share, 0.0), 1.0)) if size > 0 else 0.0
        if self.signed:
            share = 0.5 + math.copysign(share / 2, value)
        return round(100 * share, 3)

    @property
    def labels(self) -> tuple[tuple[float, str], ...]:
        """Positions of the ticks with their texts."""
        return tuple((self.at(tick), f"{100 * tick:g}%" if self.percent else sigma(tick)) for tick in self.ticks)


def log_axis(values: Iterable[float], most: int = 5, percent: bool = False) -> LogAxis:
    """A logarithmic scale that holds all positive values with some air, ticks at 1, 2, 5 or at powers of ten.

    >>> log_axis([0.0012, 0.008]).ticks
    (0.001, 0.002, 0.005, 0.01)
    """
    known = [value for value in values if value > 0 and math.isfinite(value)] or [1e-3]
    return ticked(min(known) / 1.4, max(known) * 1.4, most, percent=percent)


def ticked(low: float, high: float, most: int = 5, percent: bool = False, signed: bool = False) -> LogAxis:
    """A logarithmic scale with exactly these ends and at most ``most`` ticks on a side."""
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    for steps in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        ticks = _between([step * 10.0**power for power in range(first, last) for step in steps], low, high)
        if len(ticks) <= most:
            break
    else:
        ticks = ticks[:: math.ceil(len(ticks) / most)]
    ticks = ticks or [math.sqrt(low * high)]
    if signed:  # ticks beside the zero would run into its label
        ticks = [tick for tick in ticks if math.log(tick / low) > 0.15 * math.log(high / low)]
    both = [-tick for tick in reversed(ticks)] + [0.0, *ticks] if signed else ticks
    return LogAxis(low, high, tuple(both), signed, percent=percent)


def _between(values: Sequence[float], low: float, high: float) -> list[float]:
    return [float(f"{value:.6g}") for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


def relative(scale: LogAxis, ruler: Ruler | None) -> LogAxis | None:
    """The same stretch in units of the ruler, as percent; ``None`` where there is none, or it is 0."""
    rms = ruler.rms if ruler is not None else 0.0
    return ticked(scale.low / rms, scale.high / rms, percent=True) if rms > 0 else None


def scale_axis(scales: Sequence[float]) -> LogAxis | Axis:
    """The axis of a profile's scales: logarithmic, mirrored where scales have both signs; a zero stands apart."""
    sizes = [abs(scale) for scale in scales if scale != 0]
    if not sizes:
        return axis([0.0], unit=1.0)
    low, high = min(sizes), max(sizes)
    if low == high:
        low, high = low / 2, high * 2
    signed = min(scales) < 0
    made = ticked(low, high, 3 if signed else 5, signed=signed)
    if 0.0 in scales and not signed:
        return LogAxis(low, high, (0.0, *made.ticks), zero=True)
    return made
