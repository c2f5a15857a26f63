"""What a scan will measure, before anything is."""

from __future__ import annotations

import dataclasses

from catchment.capabilities import measure_speed, sample
from catchment.commands.scan.design import scan_ladder
from catchment.commands.scan.opened import open_scan
from catchment.commands.scan.settings import ScanSettings
from catchment.measuring import Progress


def plan(settings: ScanSettings, progress: Progress) -> list[str]:
    """What a scan would measure, its cost and memory, in lines of text. Loads the model and measures its speed."""
    opened = open_scan(dataclasses.replace(settings, out=None), progress, None)
    subject, card, ruler = opened.subject, opened.card, opened.ruler
    speed = measure_speed(subject.engine(opened.batch_tokens)).tokens_per_second
    lines = [
        f"{subject.card.name}: {card.size:,} of {subject.card.parameters:,} weights may move ({card.what}), "
        f"RMS of the {ruler.of} {ruler.rms:.4g}; about {speed:,.0f} tokens a second here",
    ]
    rungs, below = scan_ladder(settings, ruler, opened.subspace.spread)
    lines.append(f"ladder: {len(rungs)} scales from {rungs[0]:.3g} to {rungs[-1]:.3g}, depth {settings.depth}")
    if below:
        lines.append(
            f"below it: {len(below)} more down to {below[0]:.3g}, where {ruler.dtype} ends, if nothing is inside"
        )
    whole = 0.0
    for task in opened.tasks:
        items = sample(task.items, settings.limit, settings.seed)
        tokens = subject.prepare(task, task.formats[0].name, items[:32]).tokens / min(len(items), 32)
        whole += tokens * len(items)
        lines.append(f"{task.name}: {len(items):,} items of about {tokens:.0f} tokens")
    copies = "no copy" if opened.subspace.kind == "sparse" else "1 copy of the moved weights, or 2 without their files"
    lines.append(f"own scores: about {whole / speed:,.0f} s of the budget of {settings.seconds:,.0f} s")
    lines.append(f"memory beside the model: {copies} ({4 * card.size / 1e6:,.0f} MB each in float32)")
    return lines
