"""Validity gates on what is trained on; those on what is measured are :mod:`catchment.capabilities.gates`."""

from __future__ import annotations

from catchment.errors import GateError
from catchment.training.encoding import IGNORE, Encoded


def check_completions(encoded: Encoded) -> list[str]:
    """Refuse rows of which no token is learned, because the prompt alone fills ``max_length``; warn of completions
    that were cut: a model that never sees their end does not learn to stop.

    Raises:
        GateError: In a row every label is -100; names how many, and the first.

    >>> check_completions(Encoded([{"input_ids": [5, 6], "labels": [-100, 6]}], 2, 1, 0, "prompt"))
    []
    """
    if encoded.kind == "classification":
        return [f"{encoded.truncated} of {len(encoded)} texts were cut at max_length"] if encoded.truncated else []
    empty = [row for row, example in enumerate(encoded.examples, 1) if set(example["labels"]) <= {IGNORE}]
    if empty:
        raise GateError(
            f"{len(empty)} of {len(encoded)} rows to train on (first: row {empty[0]}) have no token left to learn: the "
            f"prompt alone fills max_length, or the completion is empty. Raise max_length, or shorten or remove them."
        )
    if not encoded.truncated:
        return []
    whole = encoded.trained_tokens + encoded.cut_tokens
    return [
        f"{encoded.truncated} of {len(encoded)} rows to train on were cut at max_length: {encoded.cut_tokens} of "
        f"{whole} tokens to learn are lost, and these rows do not teach where to stop"
    ]
