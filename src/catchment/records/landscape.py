"""Records of ``catchment scan`` and of the room of a fine-tune: what moving the weights costs.

Scales are RMS displacements per weight of the subspace, ``alpha_S = ||dtheta_S||_2 / sqrt(k)``, unless a field says
otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from catchment.records.core import Interval

Outcome = Literal["inside", "outside", "undecided"]


_FORMATS = {
    "float16": (2.0**-10, 2.0**-24),
    "bfloat16": (2.0**-7, 2.0**-133),
    "float32": (2.0**-23, 2.0**-149),
    "float64": (2.0**-52, 2.0**-1074),
}
"""Distance from 1 to the next larger number, and the smallest number above 0."""


@dataclass(frozen=True)
class Ruler:
    """What relative widths, drifts and attack radii are relative to: the RMS over the entries of the matrices.

    Attributes:
        rms: Over the matrices, outliers left out; over the vectors (gains of norms, biases) where there is no matrix.
        of: Which of the two.
        share: Of all entries, those that it is taken over.
        left_out: Tensors that were left out, because their own RMS is too far above the others'.
        dtype: Number format of most of the entries.
    """

    rms: float
    of: Literal["matrices", "vectors"]
    share: float
    left_out: tuple[str, ...] = ()
    dtype: str = ""

    @property
    def step(self) -> float:
        """The smallest displacement that the number format holds at a weight of this size: half of the distance to
        the next number, at the least (just below a power of 2). 0 for a format that is not known."""
        spacing, smallest = _FORMATS.get(self.dtype, (0.0, 0.0))
        return max(self.rms * spacing / 4, smallest / 2) if self.rms > 0 else 0.0


@dataclass(frozen=True)
class SubspaceCard:
    """The weights that were moved: ``size`` is k, the dimension.

    ``norm`` and ``rms`` = norm / sqrt(k) are over all weights there (for a frame: of the tensors it moves), to which a
    few gains of norms may contribute most; widths are relative to ``ruler``. ``None``: the record is of a version that
    had none, and no relative width is shown.
    """

    kind: Literal["all", "glob", "sparse", "frame"]
    what: str
    size: int
    tensors: int
    norm: float
    rms: float
    hash: str
    ruler: Ruler | None = None


@dataclass(frozen=True)
class ProfilePoint:
    """Mean score at one scale, with its band over directions. ``directions`` are independent units (an antithetic pair
    is one); ``items`` are item evaluations. ``companion``: the continuous score with its band, where rows have it."""

    scale: float
    score: Interval
    directions: int
    items: int
    companion: Interval | None = None


@dataclass(frozen=True)
class Profile:
    """Raw scores of a task along directions. ``comparable``: scales are alpha_S; False for filter-normalised
    directions, whose scales mean nothing elsewhere."""

    task: str
    direction: Literal["gaussian", "filter", "towards", "worst", "gradient"]
    base: float
    chance: float
    points: tuple[ProfilePoint, ...]
    base_companion: float | None = None
    comparable: bool = True


@dataclass(frozen=True)
class Node:
    """One scale at which the drop was decided against tau. ``drop``: anytime-valid confidence sequence at the node's
    own level, over ``units`` directions or pairs (basin), or over items (worst, room)."""

    scale: float
    outcome: Outcome
    drop: Interval
    units: int
    evaluations: int


@dataclass(frozen=True)
class Strict:
    """Share of directions at one radius on which nothing was lost: ``hits`` of ``directions``, Clopper-Pearson."""

    scale: float
    directions: int
    hits: int
    items_each: int
    interval: Interval


@dataclass(frozen=True)
class Basin:
    """Most-case basin of one task: drop(low) <= tau < drop(high), both decided.

    ``low`` 0: no rung was shown to be inside. ``high`` ``None``: none was shown to be outside. ``estimate``: where the
    mean curve crosses tau, with a bootstrap interval over directions (an estimate, not a decision); ``None`` where no
    bracket with two ends holds it. ``earlier``: whether a crossing below ``low`` was seen; "not looked" where rungs
    below were not measured. ``sampling``: what the claim is over. ``evaluations``: item evaluations; ``tokens``: their
    cost. ``floor``: the number format whose smallest step was decided to be outside, so that there is nothing below to
    decide; else empty.
    """

    task: str
    base: float
    chance: float
    tau: float
    low: float
    high: float | None
    estimate: Interval | None
    nodes: tuple[Node, ...]
    earlier: Literal["no", "yes", "not looked"]
    level: float
    sampling: str
    evaluations: int
    tokens: int
    strict: tuple[Strict, ...] = ()
    place: Literal["prompt", "inside", "outside"] = "outside"
    note: str = ""
    floor: str = ""


@dataclass(frozen=True)
class Worst:
    """Upper bound on the worst-case radius: at ``radius`` an attack was found whose drop is decided to exceed tau on
    items that the ascent never saw; at ``survived`` (the largest radius below) none was found, which proves nothing.
    ``radius`` ``None``: no attack succeeded."""

    task: str
    tau: float
    radius: float | None
    survived: float | None
    nodes: tuple[Node, ...]
    restarts: int
    steps: int
    ascent_items: int
    scored_items: int
    loss_base: float
    losses: tuple[float, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Barrier:
    """Highest drop below the straight line between the two ends' scores, over ``points`` inner points of the segment;
    positive: there is a barrier. ``at`` is where (0 base, 1 tuned)."""

    task: str
    height: Interval
    at: float
    points: int


@dataclass(frozen=True)
class Room:
    """Where a fine-tune stands on its own ray theta0 + t (tuned - base): drop(low) <= tau < drop(high).

    ``t`` estimates the first crossing; ``None``: no crossing up to ``reach``. t > 1: the tuned model is inside.
    ``typical`` = sigma_S / alpha_S (random moves in the same subspace), as an interval [low, high] with ``None`` for
    an open end; ``worst`` = attack radius / ||tuned - base||. No verdict rests on these two.
    """

    task: str
    tau: float
    t: float | None
    low: float
    high: float | None
    reach: float
    nodes: tuple[Node, ...]
    alpha: float
    subspace: SubspaceCard
    typical: tuple[float, float | None] | None = None
    worst: float | None = None
    barrier: Barrier | None = None
    level: float = 0.95
    note: str = ""


@dataclass(frozen=True)
class PlanePoint:
    """A model's place in a plane, in alpha units along its axes."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Plane:
    """Scores over a plane through the model. ``values[j][i]`` is the mean score at (xs[i], ys[j]) on ``items`` items,
    ``companions`` the continuous score (empty where there is none). ``cosine`` between the two axes as realised."""

    task: str
    axes: tuple[str, str]
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    companions: tuple[tuple[float, ...], ...]
    models: tuple[PlanePoint, ...]
    items: int
    cosine: float
    comparable: bool = True


@dataclass(frozen=True)
class Curvature:
    """Hessian of the mean answer loss (nats per token) over the subspace: ``top`` eigenvalues with the residual
    ||Hv - lambda v||, and the trace with its interval over probes. ``size`` is k."""

    loss: float
    gradient_norm: float
    top: tuple[float, ...]
    residuals: tuple[float, ...]
    trace: Interval
    size: int
    products: int
    items: int
    tokens: int


@dataclass(frozen=True)
class Share:
    """Of one tensor (or ``all``): share of the gradient's L2 norm and of its square in the ``top`` share of the
    entries, with indices chosen on this very batch (fresh) or on another one (static)."""

    name: str
    layer: int | None
    kind: str
    size: int
    top: float
    fresh: float
    fresh_squared: float
    static: float
    static_squared: float


@dataclass(frozen=True)
class Oscillation:
    """Loss along random and gradient directions: ``losses[d][i]`` at ``scales[i]`` of direction d. ``amplitude``:
    mean absolute second difference of the loss over its range of scales; ``rise``: mean loss at the ends over the
    loss at the centre, minus 1."""

    model: Literal["pretrained", "random"]
    direction: Literal["gaussian", "gradient"]
    scales: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    centre: float
    amplitude: float
    rise: float


@dataclass(frozen=True)
class Gradients:
    """The quasi-sparsity claim (arXiv 2312.11875): shares of the pre-trained model, of the same architecture at random
    initialisation, and of i.i.d. Gaussian entries; and the oscillation claim."""

    pretrained: tuple[Share, ...]
    random: tuple[Share, ...]
    gaussian: tuple[tuple[float, float, float], ...]
    oscillation: tuple[Oscillation, ...]
    items: int
    tokens: int


@dataclass(frozen=True)
class SelfCheck:
    """What proves that a scan moved what it says, where it says, and put it back.

    ``centre``: largest difference between a row at displacement 0 and the model's own row. ``realised``: RMS of the
    displacement after rounding over the intended one; ``off_axis``: share of the realised displacement that is not
    along the intended one. ``tied``: names that share a moved tensor. ``cosine``: between a plane's axes.
    """

    centre: float
    realised: float
    off_axis: float
    cosine: float | None
    tied: int
    hash_before: str
    hash_after: str
    mode: str
    ok: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One thing that a scan's budget may buy. ``price``: seconds it would take here, where it was not bought."""

    name: str
    title: str
    bought: bool
    seconds: float
    price: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Admission:
    """A task's own score, and whether the model is good enough at it to be scanned."""

    task: str
    n: int
    score: Interval
    chance: float
    admitted: bool
    reason: str
    companion: float | None = None
