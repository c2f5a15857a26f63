"""The command line: parses, calls a workflow, prints. Exit code 0: fine; 1: a bound is broken; 2: error."""

from __future__ import annotations

import sys

HELP = """\
catchment: what did my fine-tune lose, and how far can this model move?

usage: catchment VERB ...

  compare BASE TUNED    gained, lost, kept, undecided; the items that flipped
  scan    MODEL         basins, worst case, profiles: how far it can move
  tune    BASE --data D fine-tune, protected on request, and see what it cost
  report  OUT           the page again, from the record
  tasks                 the built-in tasks

catchment VERB --help explains a verb; catchment --version prints the version.
Exit code 0: fine; 1: a bound that was asked for is broken; 2: error.
"""
VERBS = ("compare", "scan", "tune", "report", "tasks")


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the ``catchment`` command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        sys.exit(0 if arguments else 2)
    if arguments[0] in ("-V", "--version"):
        from catchment import __version__

        print(f"catchment {__version__}")
        sys.exit(0)
    from catchment.cli.verbs import run

    sys.exit(run(arguments[0], arguments[1:]))
