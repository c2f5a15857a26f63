"""The command line: parses, runs a command, prints. Exit code 0: fine; 1: a bound is broken; 2: error."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from catchment.cli.guard import guarded
from catchment.cli.table import COMMANDS, OTHERS

VERBS = (*COMMANDS, *OTHERS)
LINES = [(c.name, c.subject, c.does) for c in COMMANDS.values()] + [(name, *told) for name, told in OTHERS.items()]
HELP = f"""\
catchment: what did my fine-tune lose, and how far can this model move?

usage: catchment VERB ...

{"".join(f"  {name:<7} {subject:<13} {does}" + chr(10) for name, subject, does in LINES)}
catchment VERB --help explains a verb; catchment --version prints the version.
Exit code 0: fine; 1: a bound that was asked for is broken; 2: error.
"""

__all__ = ["VERBS", "guarded", "main", "run"]


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
    sys.exit(run(arguments[0], arguments[1:]))


def run(verb: str, arguments: Sequence[str]) -> int:
    """Run ``catchment VERB ...`` and return its exit code."""
    from catchment.cli import runner

    return runner.run(verb, arguments)
