"""ROUGE-L (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3) of answers and references."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> list[str]:
    """What ROUGE reads: runs of ASCII letters and digits, case aside, without stemming, as the ``rouge_score`` library
    splits. A reference without any can never be met."""
    return _WORD.findall(text.lower())


def rouge_l(references: Sequence[str], answer: str) -> float:
    """F1 of the longest common subsequence of words, against the best of the references, in [0, 1].

    With L the length of the longest common subsequence of an answer of a words and a reference of r words,
    P = L / a, R = L / r and F1 = 2 P R / (P + R) = 2 L / (a + r); 0 where L is 0.

    Cost: a operations on integers of r bits for each reference.

    >>> rouge_l(["the cat sat on the mat"], "The cat on a mat.")  # L = 4, a = 5, r = 6
    0.7272727272727273
    """
    said = words(answer)
    return max((_f1(words(reference), said) for reference in references), default=0.0)


def _f1(reference: Sequence[str], answer: Sequence[str]) -> float:
    common = longest_common(reference, answer)
    return 2 * common / (len(reference) + len(answer)) if common else 0.0


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the usual table as the bits of one integer (Hyyro 2004,
    "Bit-parallel LCS-length computation revisited").

    >>> longest_common("abcbdab", "bdcaba")
    4
    """
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        met = row & places.get(word, 0)
        row = ((row + met) | (row - met)) & full
    return len(one) - row.bit_count()
