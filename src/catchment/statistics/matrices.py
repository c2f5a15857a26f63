"""The forgetting matrix of a study and what it averages to: transfer to tasks that were not trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from catchment.errors import InputError
from catchment.statistics.checks import Floats


@dataclass(frozen=True, eq=False)
class ForgettingMatrix:
    """``F[t, d] = P_t(d) - P_base(d)``: change of the score on eval set d by tuning on t. Negative: forgotten.

    Attributes:
        trains, evals: Names of the rows and of the columns.
        change: Shape (trains, evals); NaN where a score is missing.
        in_domain: Same shape; True where the eval set belongs to the training task.
        missing: The (train, eval) pairs without a change, row by row.
    """

    trains: tuple[str, ...]
    evals: tuple[str, ...]
    change: Floats
    in_domain: NDArray[np.bool_]
    missing: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Transfer:
    """Mean change over the eval sets outside the training task: ``mean`` of ``measured`` out of ``expected``."""

    train: str
    mean: float | None
    measured: int
    expected: int


def forgetting_matrix(
    tuned: Mapping[tuple[str, str], float],
    base: Mapping[str, float],
    *,
    trains: Sequence[str],
    evals: Sequence[str],
    in_domain: Mapping[str, Collection[str]] | None = None,
) -> ForgettingMatrix:
    """The forgetting matrix of one base model; a cell without its tuned or its base score is NaN and listed.

    Args:
        tuned: Score of (train, eval) pairs.
        base: Score of eval sets before tuning.
        trains, evals: Rows and columns, each name once.
        in_domain: Eval sets that belong to a training task, for each of them. Default: the one of the same name.

    Raises:
        InputError: No name or one twice, a score of a pair that is not in the matrix, an infinite score, a name in
            ``in_domain`` that is neither.

    >>> matrix = forgetting_matrix({("a", "a"): 0.75, ("a", "b"): 0.25}, {"a": 0.5, "b": 0.5},
    ...                            trains=["a"], evals=["a", "b", "c"])
    >>> matrix.change.tolist(), matrix.missing
    ([[0.25, -0.25, nan]], (('a', 'c'),))
    >>> transfer(matrix)
    (Transfer(train='a', mean=-0.25, measured=1, expected=2),)
    """
    rows, columns = _names(trains, "trains"), _names(evals, "evals")
    domain = {t: [t] for t in rows} if in_domain is None else in_domain
    _known([*(t for t, _ in tuned), *domain], rows, "train")
    _known([*(d for _, d in tuned), *(d for names in (in_domain or {}).values() for d in names)], columns, "eval")
    before = np.array([base.get(d, np.nan) for d in columns], dtype=np.float64)
    after = np.array([[tuned.get((t, d), np.nan) for d in columns] for t in rows], dtype=np.float64)
    if np.isinf(before).any() or np.isinf(after).any():
        raise InputError("a score is infinite; expected finite scores, and NaN or no score where a cell is missing.")
    change = after - before
    own = np.array([[d in domain.get(t, ()) for d in columns] for t in rows], dtype=np.bool_)
    missing = tuple((rows[i], columns[j]) for i, j in np.argwhere(np.isnan(change)))
    return ForgettingMatrix(rows, columns, change, own, missing)


def transfer(matrix: ForgettingMatrix) -> tuple[Transfer, ...]:
    """``mean over d not in the domain of t of F[t, d]``, for each training task; the in-domain cells are left out.

    Missing cells cannot enter the mean: how many were measured, of how many, stands beside it.
    """
    return tuple(_transfer(*row) for row in zip(matrix.trains, matrix.change, matrix.in_domain, strict=True))


def _transfer(train: str, change: Floats, in_domain: NDArray[np.bool_]) -> Transfer:
    outside = change[~in_domain]
    measured = outside[~np.isnan(outside)]
    return Transfer(train, float(measured.mean()) if measured.size else None, measured.size, outside.size)


def _names(names: Sequence[str], what: str) -> tuple[str, ...]:
    if not names:
        raise InputError(f"{what} is empty; expected at least one name.")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise InputError(f"{what} names {twice[0]!r} twice; expected each name once, because it would count twice.")
    return tuple(names)


def _known(names: Sequence[str], known: Sequence[str], what: str) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise InputError(f"{what} {unknown[0]!r} is not in the matrix; expected one of {', '.join(known)}.")
