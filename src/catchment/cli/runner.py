"""Runs any command of the table: settings, plan or record, table or JSON, exit code."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catchment.cli.guard import guarded
from catchment.cli.table import COMMANDS, OTHERS, Command
from catchment.errors import InputError, did_you_mean


def run(verb: str, arguments: Sequence[str]) -> int:
    """Run a verb and return its exit code."""
    return guarded(lambda: _run(verb, list(arguments)))


def _run(verb: str, arguments: list[str]) -> int:
    tuned = _models(arguments)[1:]
    if verb == "compare" and len(tuned) > 1:
        return _compare_many(arguments, tuned)
    if verb in COMMANDS:
        return carry_out(COMMANDS[verb], arguments)
    if verb in OTHERS:
        return importlib.import_module(f"catchment.cli.{verb}").main(arguments)
    verbs = (*COMMANDS, *OTHERS)
    raise InputError(f"no verb {verb!r}; expected one of {', '.join(verbs)}.{did_you_mean(verb, verbs)}")


def _models(arguments: list[str]) -> list[str]:
    """The words before the first option."""
    return list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))


def _compare_many(arguments: list[str], tuned: list[str]) -> int:
    """A comparison of one base with several tuned models, which is a study."""
    from catchment.cli.arguments import default_out, given_options, read, settings_of
    from catchment.commands.study import many

    rest = arguments[1 + len(tuned) :]
    asked = read(COMMANDS["compare"], [arguments[0], tuned[0], *rest])
    settings = many.settings_of(settings_of(COMMANDS["compare"], asked), tuned, given_options(rest))
    if "out" not in given_options(rest):
        settings = dataclasses.replace(settings, out=default_out(arguments[0], *tuned, suffix="compare"))
    return carry_out(COMMANDS["study"], settings, asked.line.json)


def carry_out(command: Command, arguments: list[str] | Any, json: bool = False) -> int:
    """Run a command, or print its plan. Of several processes only the first one prints.

    Args:
        arguments: As typed; or settings that are made.

    Returns:
        1 where a bound that was asked for is broken, else 0.
    """
    started = time.perf_counter()
    from catchment.cli.arguments import read, settings_of

    if isinstance(arguments, list):
        asked = read(command, arguments)
        settings, json = settings_of(command, asked), asked.line.json
    else:
        settings = arguments
    from rich.console import Console

    from catchment.cli.live import LiveProgress

    if not settings.foreign:
        quiet()
    from catchment.runs import processes

    processes.join(settings.device)
    console = Console(stderr=json, quiet=not processes.is_main())
    with LiveProgress(console) as progress:
        if settings.planned:
            result = command.part("plan").plan(settings, progress)
        else:
            result = command.part("run").run(settings, progress, **_clock(settings, started))
    if settings.planned:
        command.part("table").print_plan(result, console)
    if settings.planned or not processes.is_main():
        return 0
    _show(command, result, json, console, settings.out / "report.html" if settings.writes else None)
    return exit_code(command, result, settings)


def _show(command: Command, record: Any, json: bool, console: Any, page: Path | None) -> None:
    if json:
        from catchment.records import to_json

        print(to_json(record))
    else:
        command.part("table").print_record(record, console, page)


def _clock(settings: Any, started: float) -> dict[str, Any]:
    """A command with a budget is told when it began, on ``time.perf_counter``."""
    from catchment.options import BudgetOption

    return {"started": started} if isinstance(settings, BudgetOption) else {}


def exit_code(command: Command, record: Any, settings: Any) -> int:
    """1 where a bound is broken; which one, and what a gate that passes does not say, goes to stderr."""
    work = command.part("run")
    broken = work.broken(record, settings)
    unproven = getattr(work, "unproven", None)
    for line in broken or (unproven(record, settings) if unproven else []):
        print(f"catchment: {line}", file=sys.stderr)
    return 1 if broken else 0


def quiet() -> None:
    """No progress bars and no advice from the libraries below: ours stand for them."""
    import logging
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="transformers|torch|peft|huggingface_hub")
