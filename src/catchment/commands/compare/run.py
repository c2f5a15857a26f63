"""``catchment.compare``: what a fine-tune gained, lost and kept, from two models to one record."""

from __future__ import annotations

import dataclasses
from typing import Any

from catchment.capabilities import PromptOptions
from catchment.commands.compare.extras import measure_drift, measure_extras
from catchment.commands.compare.page import write_page
from catchment.commands.compare.pair import open_pair
from catchment.commands.compare.pilot import begin, pilot
from catchment.commands.compare.record import FILE, Comparison
from catchment.commands.compare.recover import check_recover, recover, seconds_to_keep
from catchment.commands.compare.results import comparison_of
from catchment.commands.compare.room import measure_rooms
from catchment.commands.compare.rounds import measure_formats, measure_rounds, settle
from catchment.commands.compare.settings import CompareSettings
from catchment.commands.compare.state import following_plan
from catchment.measuring import Progress, shown_drops
from catchment.options import as_settings
from catchment.records import to_json
from catchment.runs import write_atomic


def compare(
    base: Any, tuned: Any, *, progress: Progress | None = None, tokenizer: Any = None, **options: Any
) -> Comparison:
    """What did the fine-tune lose? Compare two models, task by task, on the same items and prompts.

    Per task: *gained*, *lost*, *kept* (no drop of ``margin`` or more), *undecided* with the number of items that
    would decide, or *not measurable* where neither gain nor loss is shown and the base cannot do the task. Intervals
    are paired over items and simultaneous over tasks; the flipped items, bits per byte, prompt formats and the drift of
    the weights come with them.

    Args:
        base, tuned: a hub id, a folder, a GGUF file or a package that carries one, ``BASE+ADAPTER``,
            ``BASE+INCREMENT.safetensors``, or models in memory (then give ``tokenizer``).
        progress: told what goes on.
        **options: the fields of :class:`~catchment.commands.compare.settings.CompareSettings`: ``tasks``, ``limit``,
            ``budget``, ``margin``, ``out``, ``recover``, ``chat_template``, ``seed`` ...

    Returns:
        The record; also written to ``out/comparison.json``, with the page in ``out/report.html``. Without ``out``
        nothing is written but the measured rows, in the cache folder.

    Raises:
        CatchmentError: bad input; the message names the value, what was expected and the fix.

    Cost: two evaluations of every item, under one prompt format; a quarter of that for each further format.

    Example:
        >>> comparison = compare("base", "tuned", tasks=["recall"], budget="4m")  # doctest: +SKIP
        >>> comparison["recall"].verdict  # doctest: +SKIP
        'lost'
    """
    closed = {"base", "tuned", "dry_run", "fail_if_drop"}
    settings = as_settings(CompareSettings, base, tuned, options=options, caller="compare()", closed=closed)
    return run(settings, progress or Progress(), tokenizer)


def run(
    settings: CompareSettings,
    progress: Progress,
    tokenizer: Any = None,
    asked: PromptOptions | None = None,
    started: float | None = None,
) -> Comparison:
    """:func:`compare` with checked settings. Every step takes the state and returns the next.

    Args:
        asked: Stands in place of their chat template and system prompt.
        started: When the command began, on ``time.perf_counter``.
    """
    pair = open_pair(settings, progress, tokenizer, asked, started)
    with pair.locked(), following_plan(pair) as frozen:
        if settings.recover is not None:
            check_recover(pair)
        state = begin(pair, frozen)
        drift, notes = measure_drift(pair)
        state, extras = pilot(pair, state), None
        if state.plan.budget is not None:  # before the items, which take the time that is left
            state, extras = measure_extras(pair, state)
        with pair.clock.keeping(seconds_to_keep(pair)):
            state = settle(pair, state)
            state = measure_rounds(pair, state)
            state = measure_formats(pair, state)
            if extras is None:
                state, extras = measure_extras(pair, state)
            state, rooms, said = measure_rooms(pair, state)
        comparison = comparison_of(pair, state, drift, extras, rooms, [*notes, *said])
        if settings.recover is not None:
            recovered, said = recover(pair, state)
            warnings = (*comparison.warnings, *said)
            comparison = dataclasses.replace(comparison, recovered=recovered, warnings=warnings)
        if pair.out is not None:
            write_atomic(pair.out / FILE, to_json(comparison))
            write_page(comparison, pair.out / "report.html")
        pair.store.compact_used()
        return comparison


def broken_bounds(comparison: Comparison, bound: float) -> list[str]:
    """What breaks ``--fail-if-drop``: drops (see :func:`~catchment.measuring.verdicts.shown_drops`), and tasks of which
    nothing was measured that could. One sentence each."""
    unknown = [
        f"{name} was not measured within the budget, so --fail-if-drop {bound:g} is not shown to hold"
        for name in comparison.unmeasured
    ]
    return unknown + shown_drops(comparison.tasks, bound, "--fail-if-drop")


def broken(record: Comparison, settings: CompareSettings) -> list[str]:
    """What breaks a bound that was asked for; none without ``--fail-if-drop``."""
    return [] if settings.fail_if_drop is None else broken_bounds(record, settings.fail_if_drop)


def unproven(record: Comparison, settings: CompareSettings) -> list[str]:
    """What a gate that passes does not say."""
    names = [task.task for task in record.tasks if task.verdict in ("undecided", "not measurable")]
    if settings.fail_if_drop is None or not names:
        return []
    bound = f"--fail-if-drop {settings.fail_if_drop:g}"
    return [f"no drop beyond {bound} was shown, and {', '.join(names)} not shown to be kept"]
