"""What a tune will train, before anything is."""

from __future__ import annotations

import dataclasses

from catchment.commands.tune.opening import open_tune
from catchment.commands.tune.settings import TuneSettings
from catchment.measuring import Progress


def plan(settings: TuneSettings, progress: Progress) -> list[str]:
    """What would be trained, and what it takes, in lines of text. Loads the base; trains nothing."""
    opened = open_tune(dataclasses.replace(settings, out=None), progress)
    s, card, encoded = opened.settings, opened.loaded.card, opened.encoded
    tuning = opened.method.attach(opened.loaded.model, seed=s.seed)
    trainable = sum(p.numel() for p in tuning.parameters())
    tuning.remove()
    runs = 2 if opened.protected and not s.no_plain else 1
    more = s.replay / (1 - s.replay)
    lines = [
        f"{card.name}: {card.parameters:,} weights in {card.dtype}; {opened.method.name} trains {trainable:,} of them "
        f"({100 * trainable / card.parameters:.3g}%)",
        f"data: {opened.train.name}, {len(opened.train):,} rows of {opened.train.kind} to train on, "
        f"{len(opened.held):,} held out; "
        f"{encoded.tokens:,} tokens, {encoded.trained_tokens:,} of them learned, {encoded.truncated:,} rows cut",
        f"{runs} training{'s' * (runs > 1)} of {opened.steps:,} steps x {opened.rows_per_step} "
        f"{'blocks' if s.packing else 'rows'}, about {opened.tokens:,.0f} tokens each; learning rate {opened.rate:g}"
        + (f"; the protected one replays {more:.0%} as many on top" if opened.protected and s.replay else ""),
    ]
    if opened.protected:
        counts = ", ".join(
            f"{p.guard.name} ({len(p.pilot.items)} + {len(p.guard.items)} + {len(p.judged.items)} items)"
            for p in opened.protected
        )
        lines.append(f"protected (room + fence + judged): {counts}; a drop of {s.max_drop:g} is the bound")
    return lines
