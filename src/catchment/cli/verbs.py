"""The verbs: settings from YAML and arguments, one workflow each, and what is printed."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import docstring_parser
import tyro

from catchment.cli import VERBS
from catchment.commands.compare.settings import CompareSettings
from catchment.commands.scan.settings import ScanSettings
from catchment.commands.tune.settings import TuneSettings
from catchment.errors import CatchmentError, InputError, did_you_mean
from catchment.options import COMMAS, Options, marked, read_config

if TYPE_CHECKING:
    from catchment.commands.compare.record import Comparison

INTERRUPTED = 130


def run(verb: str, arguments: Sequence[str]) -> int:
    """Run a verb and return its exit code."""
    return guarded(lambda: _run(verb, list(arguments)))


def _run(verb: str, arguments: list[str]) -> int:
    if verb == "compare":
        return _compare(arguments)
    if verb == "scan":
        return _scan(arguments)
    if verb == "tune":
        return _tune(arguments)
    if verb == "report":
        return _report(arguments)
    if verb == "tasks":
        return _tasks()
    raise InputError(f"no verb {verb!r}; expected one of {', '.join(VERBS)}.{did_you_mean(verb, VERBS)}")


def guarded(work: Callable[[], int]) -> int:
    """Run; errors become one line and an exit code."""
    try:
        return work()
    except SystemExit as exit:  # the parser's own: --help, or a message that it has printed
        return int(exit.code or 0)
    except CatchmentError as error:
        print(f"catchment: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("catchment: interrupted; what was measured is kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("CATCHMENT_DEBUG"):
            raise
        print(
            f"catchment: unexpected {type(error).__name__}: {str(error).strip()[:500] or 'no message'}\n"
            "This is a defect of catchment; CATCHMENT_DEBUG=1 shows where. What was measured is kept.",
            file=sys.stderr,
        )
    return 2


def parse_compare(arguments: list[str]) -> Any:
    """Settings of ``compare`` from the arguments and, below them, from ``--config``."""
    command = _parse(CompareSettings, "compare", arguments)
    return dataclasses.replace(command, out=command.out or default_out(command.base, command.tuned))


def parse_scan(arguments: list[str]) -> Any:
    """Settings of ``scan``, likewise."""
    command = _parse(ScanSettings, "scan", arguments)
    return dataclasses.replace(command, out=command.out or default_out(command.model))


def parse_tune(arguments: list[str]) -> Any:
    """Settings of ``tune``, likewise."""
    command = _parse(TuneSettings, "tune", arguments)
    return dataclasses.replace(command, out=command.out or default_out(command.base, suffix="tune"))


def _parse(kind: type[Options], verb: str, arguments: list[str]) -> Any:
    config = _option(arguments, "--config")
    values = read_config(Path(config), kind) if config else {}
    command = command_of(kind)
    missing = {f.name: tyro.MISSING for f in dataclasses.fields(command) if f.default is dataclasses.MISSING}
    found: Any = tyro.cli(
        command,
        prog=f"catchment {verb}",
        args=arguments,
        default=command(**{**missing, **values}) if values else None,
        config=(tyro.conf.PositionalRequiredArgs, tyro.conf.FlagCreatePairsOff),
    )
    hints = get_type_hints(kind, include_extras=True)
    lists = {name: _split(getattr(found, name)) for name in hints if marked(hints[name], COMMAS)}
    return dataclasses.replace(found, **lists)


def command_of(kind: Any) -> Any:
    """A dataclass of what a command line may say: all settings, the command's own first, and ``--json`` and
    ``--config``. Values are checked when they become settings: an error in here the parser would draw in a frame."""
    fields, types, told = {f.name: f for f in dataclasses.fields(kind)}, get_type_hints(kind), texts(kind)
    names = [name for cls in kind.__mro__ for name in inspect.get_annotations(cls) if name in fields]
    rows: list[Any] = []
    for name in dict.fromkeys(names):
        marks = [tyro.conf.arg(help=told[name])]
        if fields[name].default is dataclasses.MISSING:
            marks = [tyro.conf.arg(help=told[name], metavar=name.upper()), tyro.conf.Positional]
        rows.append((name, Annotated[types[name], *marks], dataclasses.field(default=fields[name].default)))
    for name, given, text in (
        ("json", bool, f"Print the record as JSON instead of {kind.shown}."),
        ("config", Path | None, "YAML file of settings; the command line wins."),
    ):
        default = False if given is bool else None
        rows.append((name, Annotated[given, tyro.conf.arg(help=text)], dataclasses.field(default=default)))
    command = dataclasses.make_dataclass(f"{kind.__name__}Command", rows, frozen=True)
    command.__doc__ = str(kind.__doc__).partition("\n\n")[0]
    return command


def texts(kind: type) -> dict[str, str]:
    """What the docstrings of settings and of their groups say of each field; a command's own words win."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        for told in docstring_parser.parse(cls.__dict__.get("__doc__") or "").params:
            found[told.arg_name] = " ".join((told.description or "").split())
    return found


def _split(words: Sequence[str]) -> tuple[str, ...]:
    """Names given apart or with commas between them; a path may contain commas."""
    names = (name for word in words for name in ([word] if Path(word).exists() else word.split(",")))
    return tuple(name for name in names if name)


def default_out(*specs: str, suffix: str = "scan") -> Path:
    """``catchment-out/<base>-vs-<tuned>``, or ``catchment-out/<model>-<suffix>``, from the last parts of the names."""
    names = [re.sub(r"[^\w.-]+", "-", Path(str(s)).name or "model").strip("-.") for s in specs]
    return Path("catchment-out") / ("-vs-".join(names) if len(names) > 1 else f"{names[0]}-{suffix}")


def _option(arguments: Sequence[str], name: str) -> str | None:
    for place, word in enumerate(arguments):
        if word == name and place + 1 < len(arguments):
            return arguments[place + 1]
        if word.startswith(f"{name}="):
            return word.split("=", 1)[1]
    return None


def _compare(arguments: list[str]) -> int:
    started = time.perf_counter()
    command = parse_compare(arguments)
    settings = CompareSettings(**{f.name: getattr(command, f.name) for f in dataclasses.fields(CompareSettings)})
    from rich.console import Console

    from catchment.cli.live import LiveProgress

    console = Console(stderr=command.json)
    quiet()
    from catchment.commands.compare.plan import plan as planned
    from catchment.commands.compare.run import broken, run
    from catchment.commands.compare.table import print_plan, print_record
    from catchment.records import to_json

    with LiveProgress(console) as progress:
        if settings.dry_run:
            plan = planned(settings, progress)
        else:
            comparison = run(settings, progress, started=started)
    if settings.dry_run:
        print_plan(plan, console)
        return 0
    assert settings.out is not None
    if command.json:
        print(to_json(comparison))
    else:
        print_record(comparison, console, settings.out / "report.html")
    if settings.fail_if_drop is None:
        return 0
    lines = broken(comparison, settings)
    for line in lines or _unproven(comparison, settings.fail_if_drop):
        print(f"catchment: {line}", file=sys.stderr)
    return 1 if lines else 0


def _unproven(comparison: Comparison, bound: float) -> list[str]:
    """What a gate that passes does not say."""
    names = [task.task for task in comparison.tasks if task.verdict in ("undecided", "not measurable")]
    said = f"no drop beyond --fail-if-drop {bound:g} was shown, and {', '.join(names)} not shown to be kept"
    return [said] if names else []


def _carried_out(verb: str, command: Any, settings: Any, started: float) -> tuple[Any, Any]:
    """Run ``scan`` or ``tune``, or print its plan: the console, and the record, which a plan has none of. Of several
    processes only the first one prints. ``started``: when the command began, on ``time.monotonic``."""
    from rich.console import Console

    from catchment.cli.live import LiveProgress

    quiet()
    from catchment.workflows.distributed import first

    at = f"catchment.commands.{verb}"
    console = Console(stderr=command.json, quiet=not first())
    with LiveProgress(console) as progress:
        if settings.dry_run:
            found = importlib.import_module(f"{at}.plan").plan(settings, progress)
        elif verb == "scan":
            found = importlib.import_module(f"{at}.run").run(settings, progress, started=started)
        else:
            found = importlib.import_module(f"{at}.run").run(settings, progress)
    if settings.dry_run:
        for line in found:
            console.print(line, highlight=False)
        return console, None
    if command.json and first():
        from catchment.records import to_json

        print(to_json(found))
    return console, found


def _scan(arguments: list[str]) -> int:
    started = time.monotonic()
    command = parse_scan(arguments)
    settings = ScanSettings(**{f.name: getattr(command, f.name) for f in dataclasses.fields(ScanSettings)})
    console, found = _carried_out("scan", command, settings, started)
    if found is not None and not command.json:
        from catchment.commands.scan.table import print_record

        assert settings.out is not None
        print_record(found, console, settings.out / "report.html")
    return 0


def _tune(arguments: list[str]) -> int:
    command = parse_tune(arguments)
    settings = TuneSettings(**{f.name: getattr(command, f.name) for f in dataclasses.fields(TuneSettings)})
    console, found = _carried_out("tune", command, settings, time.monotonic())
    if found is None:
        return 0
    from catchment.commands.tune.run import broken
    from catchment.commands.tune.table import print_record
    from catchment.workflows.distributed import first

    if not first():
        return 0
    if not command.json:
        assert settings.out is not None
        print_record(found, console, settings.out / "report.html")
    lines = broken(found, settings)
    for line in lines:
        print(f"catchment: {line}", file=sys.stderr)
    return 1 if lines else 0


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


def _report(arguments: list[str]) -> int:
    from rich.console import Console

    from catchment.records import from_json

    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: catchment report OUT\n\nWrites OUT/report.html again from its comparison, scan or tune.json.")
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    out = Path(arguments[0])
    path = next((out / name for name in ("comparison.json", "scan.json", "tune.json") if (out / name).is_file()), None)
    if path is None:
        raise InputError(
            f"{str(out)!r} holds no comparison.json, scan.json or tune.json; expected a finished OUT folder."
        )
    text = path.read_text(encoding="utf-8")
    at = f"catchment.commands.{ {'tune.json': 'tune', 'scan.json': 'scan', 'comparison.json': 'compare'}[path.name] }"
    kind = {"tune.json": "Tune", "scan.json": "Scan", "comparison.json": "Comparison"}[path.name]
    try:
        record = from_json(getattr(importlib.import_module(f"{at}.record"), kind), text)
        page = importlib.import_module(f"{at}.page").write_page(record, out / "report.html")
        importlib.import_module(f"{at}.table").print_record(record, Console(), page)
    except ValueError as error:
        if isinstance(error, CatchmentError):
            raise
        raise InputError(f"{str(path)!r} is not a record of ours ({str(error).splitlines()[0]}).") from error
    return 0


def _tasks() -> int:
    from rich.console import Console
    from rich.table import Table

    from catchment.capabilities import packs

    table = Table()
    for name in ("task", "items", "scorer", "chance", "what it asks"):
        table.add_column(name, justify="right" if name in ("items", "chance") else "left")
    for name in packs.NAMES:
        task = packs.load(name)
        table.add_row(name, f"{len(task.items):,}", task.scorer, f"{task.chance_level:.2f}", task.description)
    Console().print(table)
    return 0
