"""Numbers and names in plain words, the same in the terminal, on the page and in the record."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from catchment.records import Interval, Ruler

NAMED_AT_MOST = 4
LONGEST_PARTIAL_WORD = 20
UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def percent(value: float) -> str:
    """A score in [0, 1] as percent.

    >>> percent(0.4375)
    '43.8%'
    """
    return f"{100 * value:.1f}%"


def times(value: float) -> str:
    """A ratio with three significant digits, without powers of ten up to a million.

    >>> times(0.02141), times(1.5), times(44.93), times(1234.0)
    ('0.0214', '1.5', '44.9', '1230')
    """
    return f"{float(f'{value:.3g}'):g}"


def points(value: float, digits: int = 1) -> str:
    """A difference of scores in percentage points, with its sign; zero has none.

    >>> points(0.31), points(-0.0004), points(-0.118, digits=0)
    ('+31.0', '0.0', '-12')
    """
    scaled = round(100 * value, digits)
    return f"{scaled:+.{digits}f}" if scaled else f"{0:.{digits}f}"


def interval_points(interval: Interval, digits: int = 1) -> str:
    """``low to high`` in percentage points.

    >>> interval_points(Interval(0.31, 0.27, 0.35, 0.95, "score"))
    '+27.0 to +35.0'
    """
    return f"{points(interval.low, digits)} to {points(interval.high, digits)}"


def level(alpha: float) -> str:
    """The confidence that belongs to an error rate.

    >>> level(0.05)
    '95%'
    """
    return f"{100 * (1 - alpha):.4g}%"


def join(names: Sequence[str]) -> str:
    """Names as a person lists them.

    >>> join(["a"]), join(["a", "b"]), join(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def named(names: Sequence[str]) -> str:
    """Names as a person lists them, the first few and the number of the rest where they are many."""
    shown = list(names) if len(names) <= NAMED_AT_MOST + 2 else [*names[:NAMED_AT_MOST], f"{len(names) - 4} more"]
    return join(shown)


def clean(text: str) -> str:
    """Text of a prompt or an answer, safe to print: control characters (terminal escapes among them),
    direction overrides and lone surrogates become ``U+FFFD``; line ends and tabs stay.

    >>> clean("a\\x1b[31mb")
    'a\\ufffd[31mb'
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return UNSAFE.sub("\ufffd", text)


def one_line(text: str, width: int, keep: Literal["start", "end"] = "start") -> str:
    """Text on one line of at most ``width`` characters, cut with an ellipsis.

    Prompts are kept from the end, where the question stands; there the cut falls between words.

    >>> one_line("one two three", 8), one_line("one two three", 8, keep="end")
    ('one two…', '…three')
    """
    line = " ".join(clean(text).split())
    if len(line) <= width:
        return line
    if keep == "start":
        return line[: width - 1].rstrip() + "…"
    tail = line[len(line) - width + 1 :]
    word = tail.find(" ") if line[len(line) - width] != " " else -1
    return "…" + (tail[word + 1 :] if 0 <= word < min(len(tail) - 1, LONGEST_PARTIAL_WORD) else tail.lstrip())


def ruler_name(ruler: Ruler) -> str:
    """What percentages of a scale are percentages of.

    >>> ruler_name(Ruler(0.04, "matrices", 1.0))
    'RMS of the matrices'
    """
    return "RMS of the matrices" if ruler.of == "matrices" else "RMS of these vectors; not comparable with matrices"


def ruler_note(ruler: Ruler | None) -> str:
    """What a reader must know of the ruler: what it is taken over, and what was left out, by name.

    >>> ruler_note(Ruler(0.04, "matrices", 0.75, ("embedding",)))
    'Percentages are of the RMS of the matrices (0.04), over 75% of the weights; left out for its size: embedding.'
    """
    if ruler is None:
        return "This record was written without the RMS of the matrices, so scales have no percentages."
    over = f"{float(f'{100 * ruler.share:.3g}'):g}%"
    name, _, caution = ruler_name(ruler).partition("; ")
    names = list(ruler.left_out)
    if len(names) > NAMED_AT_MOST + 2:
        names = [*names[:NAMED_AT_MOST], f"{len(names) - NAMED_AT_MOST} more"]
    out = f"; left out for {'its' if len(names) == 1 else 'their'} size: {join(names)}"
    return (
        f"Percentages are of the {name} ({times(ruler.rms)}), over {over} of the weights"
        f"{f'; {caution}' if caution else ''}{out if names else ''}."
    )


def sigma(value: float) -> str:
    """A scale with two significant digits, short where it is small.

    >>> sigma(0.00123), sigma(0.0001), sigma(3.14e-5), sigma(0.0)
    ('0.0012', '1e-4', '3.1e-5', '0')
    """
    if value == 0:
        return "0"
    if abs(value) >= 1e-3:
        return f"{float(f'{value:.2g}'):g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def duration(seconds: float) -> str:
    """A time as a person says it.

    >>> duration(42), duration(200), duration(5400)
    ('42 s', '3 min', '1.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
