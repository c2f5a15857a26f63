"""What ends a command, as an exit code and a line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from catchment.errors import CatchmentError

INTERRUPTED = 130


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
