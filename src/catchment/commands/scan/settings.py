"""What a user of ``scan`` may choose."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from pydantic import Field

from catchment.errors import InputError
from catchment.options import (
    LARGEST,
    WHOLE,
    AskOptions,
    BudgetOption,
    Check,
    ContentOptions,
    Count,
    DeviceMapOption,
    Duration,
    ExecutorOptions,
    Integer,
    MeasureOptions,
    ModelOptions,
    Object,
    OutputOptions,
    Share,
    Texts,
    checked,
    one_of,
    parse_seconds,
)


def _plane(points: int) -> bool:
    return points == 0 or (points >= 3 and points % 2 == 1)


ODD = Check("{name} {value!r}: expected an odd number of points per side, e.g. 11, or 0 for none.", _plane)


@checked
class ScanSettings(
    BudgetOption,
    MeasureOptions,
    ContentOptions,
    AskOptions,
    ModelOptions,
    DeviceMapOption,
    ExecutorOptions,
    OutputOptions,
):
    """How far can this model move before it loses what it can do?

    Attributes:
        model: Hub id, folder, GGUF file or package; or a model in memory (Python).
        budget: Time to spend; buys base scores, brackets, worst case, profiles, plane and curvature, in this order.
        subspace: What may move: "all", patterns of names ("*.mlp.*"), "sparse:INCREMENT.safetensors", "frame:RANK".
        tau: Tolerated drop, as a share of what the model has above chance.
        tau_absolute: Tolerated drop in score, instead of --tau.
        directions: Antithetic pairs of random directions per scale of a profile.
        ladder: Scales as LOW:HIGH:RUNGS, RMS displacement per weight. Default: from 1/256 to 1/2 of the RMS of the
            matrices that may move, 15 rungs; further down where nothing is shown to be inside, as far as the number
            format goes.
        depth: Bisections after the rungs.
        items: "fresh": a statement about the population of the items; "fixed": about these items.
        restarts: Starts of the worst-case ascent per radius.
        steps: Steps of the ascent.
        plane: Points per side of the plane, odd; 0 leaves it out.
        through: Up to two models that the plane goes through.
        filter_normalised: Filter-normalised axes for the plane; its scales compare with nothing else.
        gradients: Also ask how few weights hold the gradient, and how rough the landscape is, against random weights.
        workers: Processes that measure directions; each loads the model. GPUs are given out in turns.
        executor: Where they are: "processes" of this machine, "ray" or "ray://HOST:PORT".
        memory: Clean weights from "mapped" files, a "copy", or "low" memory; "auto" chooses.
        alpha: Error rate of all brackets together.
        text: Built-in text, or a file, as one more capability; "none" to leave out.
        seed: Chooses items and directions.
        store: Folder of measured rows, shared with comparisons. Default: in the cache folder.
        dry_run: Print what would be measured, and its cost, and stop.
    """

    model: Object = field(kw_only=False)
    limit: Count | None = 256
    budget: Duration = "10m"
    subspace: str = "all"
    tau: Share = 0.1
    tau_absolute: Share | None = None
    directions: Annotated[Integer, Field(ge=2), WHOLE] = 20
    ladder: str | None = None
    depth: Annotated[Integer, Field(ge=0), WHOLE] = 2
    items: Annotated[str, one_of("fresh", "fixed")] = "fresh"
    restarts: Count = 2
    steps: Count = 6
    plane: Annotated[Integer, ODD] = 11
    through: Texts = ()
    filter_normalised: bool = False
    gradients: bool = False
    memory: Annotated[str, one_of("auto", "mapped", "copy", "low")] = "auto"

    def __post_init__(self) -> None:
        if len(self.through) > 2:
            raise InputError(
                f"through names {len(self.through)} models; a plane goes through this one and at most two."
            )
        if self.through and (self.filter_normalised or not self.plane):
            raise InputError("through draws the plane; expected a plane above 0, and no filter-normalised axes.")
        if self.workers == 1 and self.executor != "processes":
            raise InputError(
                f"executor is {self.executor!r} and workers is 1; expected 2 or more workers, which share the "
                "directions of the profiles."
            )
        self.scales(1.0)

    @property
    def seconds(self) -> float:
        return parse_seconds(self.budget) or 600.0

    def scales(self, rms: float) -> tuple[float, float, int]:
        """(lowest, highest, rungs) of the ladder, for weights whose ruler is this."""
        if self.ladder is None:
            return rms / 256, rms / 2, 15
        try:
            low, high, rungs = self.ladder.split(":")
            scales = float(low), float(high), int(rungs)
        except ValueError:
            raise InputError(f"ladder {self.ladder!r}: expected LOW:HIGH:RUNGS, e.g. 0.0005:0.05:15.") from None
        if not 0 < scales[0] < scales[1] <= LARGEST or not 8 <= scales[2] <= 1000:
            raise InputError(
                f"ladder {self.ladder!r}: expected 0 < LOW < HIGH <= {LARGEST:g} and 8 to 1000 rungs, e.g. "
                "0.0005:0.05:15."
            )
        return scales
