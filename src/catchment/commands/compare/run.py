"""``catchment.compare``: what a fine-tune gained, lost and kept, from two models to one record."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from catchment import models
from catchment.capabilities import GENERATED_SCORERS, PromptOptions, gates
from catchment.commands.compare import rounds
from catchment.commands.compare.extras import Extras, measure_extras, said
from catchment.commands.compare.job import Job, open_job
from catchment.commands.compare.page import write_page
from catchment.commands.compare.record import Comparison
from catchment.commands.compare.recover import check_recover, recover
from catchment.commands.compare.room import rooms
from catchment.commands.compare.settings import CompareSettings
from catchment.errors import ModelError
from catchment.measuring import POLICY, Progress, environment, verdict_sentence, verdicts
from catchment.options import as_settings
from catchment.records import Drift, Flip, Room, from_json, to_json
from catchment.runs import Store, write_atomic


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
    """:func:`compare` with checked settings. ``asked`` stands in place of their chat template and system prompt;
    ``started``: when the command began, on ``time.perf_counter``."""
    job = open_job(settings, progress, tokenizer, asked, started)
    if settings.out is None:
        return _work(job)
    with Store(job.out).lock("compare"):
        return _work(job)


def _work(job: Job) -> Comparison:
    if job.settings.recover is not None:
        check_recover(job)
    state = rounds.open_plan(job)
    drift = _drift(job)
    rounds.pilot(job, state)
    extras = measure_extras(job) if job.plan.budget is not None else None
    rounds.settle(job, state)
    rounds.rounds(job, state)
    rounds.formats(job, state)
    extras = extras or measure_extras(job)
    ways = rooms(job, state)
    comparison = _record(job, drift, ways, extras)
    if job.settings.recover is not None:
        job.progress.status("looking for the best point between base and tuned")
        job.clock.later = 0.0
        recovered, notes = recover(job, state)
        warnings = (*comparison.warnings, *notes)
        comparison = dataclasses.replace(comparison, recovered=recovered, warnings=warnings)
    if job.settings.out is not None:
        write_atomic(job.out / "comparison.json", to_json(comparison))
        write_page(comparison, job.out / "report.html")
    return comparison


def _drift(job: Job) -> Drift | None:
    path = job.out / "drift.json"
    if job.settings.out is not None and path.is_file():
        with suppress(ValueError):
            earlier = from_json(Drift, path.read_text(encoding="utf-8"))
            if earlier.ruler is not None:  # what an older version wrote is measured again
                return earlier
    if job.base.card.quantization or job.tuned.card.quantization:
        return None
    job.progress.status("drift of the weights")
    base, tuned = (side.loaded.model for side in job.sides)
    try:
        drift = models.drift(base, tuned)
    except ModelError as error:
        job.warnings.append(f"no drift: {error}")
        return None
    if job.settings.out is not None:
        write_atomic(path, to_json(drift))
    return drift


def _record(job: Job, drift: Drift | None, ways: tuple[Room, ...], extras: Extras) -> Comparison:
    s = job.settings
    tasks = tuple(dataclasses.replace(job.result(task), formats=job.format_results(task)) for task in job.measured)
    _twins(job, drift)
    flips: list[Flip] = []
    for task in job.measured:
        tables = [job.table(side, task, task.formats[0].name) for side in job.sides]
        flips += verdicts.flips(task, task.formats[0], *tables)
    missing = tuple(rounds.unmeasured(job))
    headline, verdict = verdict_sentence(tasks, s.margin, s.alpha, unmeasured=missing)
    warnings = [*job.warnings, *rounds.said(job), *said(job), *job.base.notes, *job.tuned.notes]
    return Comparison(
        base=job.base.card,
        tuned=job.tuned.card,
        tasks=tasks,
        verdict=verdict,
        headline=headline,
        margin=s.margin,
        alpha=s.alpha,
        flips=tuple(flips),
        texts=extras.texts,
        agreements=extras.agreements,
        drift=drift,
        rooms=ways,
        unmeasured=missing,
        conditions=_conditions(job),
        plan={**json.loads(job.plan.to_json()), "sentence": job.plan.sentence()},
        warnings=tuple(dict.fromkeys(warnings)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _twins(job: Job, drift: Drift | None) -> None:
    tables = [
        {task.name: list(job.table(side, task, task.formats[0].name).values()) for task in job.tasks}
        for side in job.sides
    ]
    gates.check_twins(tables[0], tables[1], same_weights=_same_weights(job, drift))


def _same_weights(job: Job, drift: Drift | None) -> bool:
    """Equal hashes, or two plain models that differ in nothing but in what they tie. An adapter that moves nothing is
    perhaps not at work, so its base is another model."""
    if job.base.card.weights_hash == job.tuned.card.weights_hash:
        return True
    if drift is None or drift.changed:
        return False
    return not any(models.named_weights(side.loaded.model, "adapter") for side in job.sides)


def _conditions(job: Job) -> dict[str, Any]:
    s = job.settings
    return {
        "sampling": "items are a sample of a population; the statement is about these two models",
        "intervals": f"paired over items, simultaneous over {len(job.tasks)} tasks (Bonferroni)",
        "chat_template": job.base.asked.chat_template,
        "system": job.base.asked.system,
        "seed": s.seed,
        "dtype": job.base.card.dtype,
        "attention": job.base.card.attention,
        "batch_policy": f"{POLICY}, {job.plan.batch_tokens} padded tokens",
        "generated_tasks": [t.name for t in job.tasks if t.scorer in GENERATED_SCORERS],
        "task_hashes": {t.name: t.hash() for t in job.tasks},
        **environment(job.base.card),
    }


def broken_bounds(comparison: Comparison, bound: float) -> list[str]:
    """What breaks ``--fail-if-drop``: drops (see :func:`~catchment.measuring.verdicts.shown_drops`), and tasks of which
    nothing was measured that could. One sentence each."""
    unknown = [
        f"{name} was not measured within the budget, so --fail-if-drop {bound:g} is not shown to hold"
        for name in comparison.unmeasured
    ]
    return unknown + verdicts.shown_drops(comparison.tasks, bound, "--fail-if-drop")


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
