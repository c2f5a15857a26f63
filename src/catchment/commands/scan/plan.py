"""What a scan will measure, before anything is."""

from __future__ import annotations

import dataclasses

from catchment.capabilities import measure_speed, sample
from catchment.commands.scan.job import open_scan, scan_ladder
from catchment.commands.scan.settings import ScanSettings
from catchment.measuring import Progress


def plan(settings: ScanSettings, progress: Progress) -> list[str]:
    """What a scan would measure, its cost and memory, in lines of text. Loads the model and measures its speed."""
    job = open_scan(dataclasses.replace(settings, out=None), progress, None)
    engine = job.side.engine(job.batch_tokens)
    speed = measure_speed(engine).tokens_per_second
    lines = [
        f"{job.side.card.name}: {job.card.size:,} of {job.side.card.parameters:,} weights may move ({job.card.what}), "
        f"RMS of the {job.ruler.of} {job.ruler.rms:.4g}; about {speed:,.0f} tokens a second here",
    ]
    rungs, below = scan_ladder(settings, job.ruler, job.subspace.spread)
    lines.append(f"ladder: {len(rungs)} scales from {rungs[0]:.3g} to {rungs[-1]:.3g}, depth {settings.depth}")
    if below:
        lines.append(
            f"below it: {len(below)} more down to {below[0]:.3g}, where {job.ruler.dtype} ends, if nothing is inside"
        )
    whole = 0.0
    for task in job.tasks:
        items = sample(task.items, settings.limit, settings.seed)
        tokens = job.side.prepare(task, task.formats[0].name, items[:32]).tokens / min(len(items), 32)
        whole += tokens * len(items)
        lines.append(f"{task.name}: {len(items):,} items of about {tokens:.0f} tokens")
    copies = "no copy" if job.subspace.kind == "sparse" else "1 copy of the moved weights, or 2 without their files"
    lines.append(f"own scores: about {whole / speed:,.0f} s of the budget of {settings.seconds:,.0f} s")
    lines.append(f"memory beside the model: {copies} ({4 * job.card.size / 1e6:,.0f} MB each in float32)")
    return lines
