"""The ruler of a set of weights: what relative widths, drifts and attack radii are relative to."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from catchment.records import Ruler

OUTLIER = 10.0
"""A matrix whose own RMS is more than this many times the median one is left out of the ruler. Over the matrices of
trained language models own RMS lie between 0.24 and 2.4 times their median (SmolLM2-135M, stories15M), so none of these
is left out, and at 10 a matrix is of another kind."""


@dataclass(frozen=True)
class Tally:
    """Entries of one tensor: how many, the sum of their squares, and their number format."""

    name: str
    matrix: bool
    entries: int
    squares: float
    dtype: str = ""

    @property
    def rms(self) -> float:
        return math.sqrt(self.squares / self.entries)


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether a tensor has at least two dimensions of more than one entry: kernels and fused experts do, gains of
    norms and biases do not, whatever dimensions of size 1 they are stored with.

    >>> is_matrix((4, 3)), is_matrix((8, 4, 3, 3)), is_matrix((4,)), is_matrix((1, 4, 1))
    (True, True, False, False)
    """
    return sum(size > 1 for size in shape) >= 2


def ruler(tallies: Sequence[Tally]) -> Ruler | None:
    """RMS over the entries of the matrices, outlier matrices left out: ``sqrt(sum of squares / entries)``.

    A matrix is an outlier when its own RMS is above :data:`OUTLIER` times the median over matrices that are not all
    zero. So neither norms, biases nor a single matrix can raise the ruler. Small matrices are never left out, those
    that are all zero included: together they lower the ruler by ``sqrt(1 - their share of the entries)`` at most,
    and the ruler does not jump when a matrix leaves zero. Of two matrices none is an outlier: nothing says which.
    Without a matrix it is the same statistic over the vectors.

    Returns:
        ``None`` when there is no entry.

    >>> weights = [Tally(f"m{i}", True, 100, 4.0) for i in range(3)]
    >>> ruler([*weights, Tally("norm", False, 10, 9e5), Tally("embedding", True, 500, 9e7)])
    Ruler(rms=0.2, of='matrices', share=0.37037037037037035, left_out=('embedding',), dtype='')
    """
    tallies = [tally for tally in tallies if tally.entries]
    if not tallies:
        return None
    matrices = [tally for tally in tallies if tally.matrix]
    rows = matrices or tallies
    sizes = [tally.rms for tally in rows if tally.squares > 0]
    most = OUTLIER * statistics.median(sizes) if sizes else math.inf
    usual = [tally for tally in rows if not tally.rms > most]
    entries = sum(tally.entries for tally in usual)
    formats: Counter[str] = Counter()
    for tally in usual:
        formats[tally.dtype] += tally.entries
    return Ruler(
        rms=math.sqrt(math.fsum(tally.squares for tally in usual) / entries),
        of="matrices" if matrices else "vectors",
        share=entries / sum(tally.entries for tally in tallies),
        left_out=tuple(tally.name for tally in rows if tally.rms > most),
        dtype=formats.most_common(1)[0][0],
    )
