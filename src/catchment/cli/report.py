"""``catchment report OUT``: the page again, from the record."""

from __future__ import annotations

from pathlib import Path

from catchment.cli.runner import carry_out
from catchment.cli.table import COMMANDS
from catchment.errors import CatchmentError, InputError


def main(arguments: list[str]) -> int:
    """Write the page of a finished OUT folder again, and print its table. Scores of others are a study's to report."""
    if any(word.partition("=")[0] in ("--csv", "--lm-eval") for word in arguments):
        return carry_out(COMMANDS["study"], ["report", *arguments])
    files = {command.part("record").FILE: command for command in COMMANDS.values()}
    if len(arguments) != 1 or arguments[0].startswith("-"):
        names = _listed([Path(file).stem for file in files])
        print(f"usage: catchment report OUT\n\nWrites OUT/report.html again from its {names}.json.")
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    out = Path(arguments[0])
    path = next((out / file for file in files if (out / file).is_file()), None)
    if path is None:
        raise InputError(f"{str(out)!r} holds no {_listed(list(files))}; expected a finished OUT folder.")
    command = files[path.name]
    from rich.console import Console

    from catchment.records import from_json

    try:
        record = from_json(getattr(command.part("record"), command.record), path.read_text(encoding="utf-8"))
        page = command.part("page").write_page(record, out / "report.html")
        command.part("table").print_record(record, Console(), page)
    except ValueError as error:
        if isinstance(error, CatchmentError):
            raise
        raise InputError(f"{str(path)!r} is not a record of ours ({str(error).splitlines()[0]}).") from error
    return 0


def _listed(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]])
