"""Which entries move: scores of entries, the best ``k`` of a tensor, and the best ``k`` of all tensors together.

Rules (arXiv 2312.11875 uses the first, on one micro-batch; sums run over the selection batches ``b``):

- ``gradient``: ``sum_b |g_b|``;
- ``fisher``: ``sum_b g_b^2``, the diagonal of the empirical Fisher matrix;
- ``saliency``: ``sum_b |g_b * w|``, first-order change of the loss when the entry is set to zero;
- ``random`` and ``magnitude`` (``|w|``): the baselines, which look at no data.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

RULES = ("gradient", "fisher", "saliency", "random", "magnitude")
SCOPES = ("tensor", "global")
_LARGE, _SAMPLE = 1 << 16, 1 << 13


def budget(size: int, sparsity: float) -> int:
    """``k = min(int(x * n) + 1, n)`` entries of ``n``: at least one (arXiv 2312.11875, section 4).

    >>> budget(1000, 0.01), budget(1, 0.01)
    (11, 1)
    """
    return min(int(sparsity * size) + 1, size)


def score(rule: str, gradient: Tensor, weight: Tensor) -> Tensor:
    """What one batch says of every entry; fp32, shape of ``gradient``.

    >>> score("saliency", torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5])).tolist()
    [3.0, 1.0]
    """
    if rule == "gradient":
        return gradient.abs().float()
    if rule == "fisher":
        return gradient.float().square()
    return (gradient.float() * weight.float()).abs()


def top(scores: Tensor, k: int) -> Tensor:
    """Sorted indices of the ``k`` largest of ``(n,)``; of equal ones the first. Deterministic on every device.

    Where ``k`` is small a threshold guessed from a sample leaves few to sort; the result is exact in any case.
    Cost: two passes; on a CPU 2 (1M, 5%) to 10 times (3.5M, 1%) faster than ``topk`` alone.

    >>> top(torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0]), 2).tolist()
    [1, 2]
    """
    n = scores.numel()
    if k >= n:
        return torch.arange(n, device=scores.device)
    if n > _LARGE and k < n // 4:
        sample = scores[:: n // _SAMPLE]
        rank = min(int(1.2 * k / n * sample.numel()) + 16, sample.numel())
        few = _where(scores >= torch.topk(sample, rank).values[-1])
        if few.numel() >= k:
            return few[_top(scores[few], k)]
    return _top(scores, k)


def _top(scores: Tensor, k: int) -> Tensor:
    if scores.device.type == "cpu":  # numpy's partial sort is ten times faster than topk there
        least = torch.from_numpy(np.partition(scores.detach().numpy(), -k))[-k]
    else:
        least = torch.topk(scores, k, sorted=False).values.min()
    index = _where(scores >= least)
    if index.numel() > k:  # more are equal to the least than there is room for
        kept = scores[index] > least
        equal = _where(~kept)
        kept[equal[: k - int(kept.sum())]] = True
        index = index[kept]
    return index


def _where(mask: Tensor) -> Tensor:
    """Sorted indices of what is true in ``(n,)``; numpy is several times faster at it on a CPU."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return torch.nonzero(mask).squeeze(1)


def draw(size: int, k: int, seed: int, name: str) -> Tensor:
    """``k`` of ``size`` indices at random, sorted; decided by the seed and the tensor's name.

    >>> draw(1000, 3, seed=0, name="w").tolist() == draw(1000, 3, seed=0, name="w").tolist()
    True
    """
    stream = int.from_bytes(hashlib.sha256(f"sift:{seed}:{name}".encode()).digest()[:8], "little")
    chosen = np.random.default_rng(stream).choice(size, k, replace=False, shuffle=False)
    return torch.from_numpy(np.sort(chosen))


def draw_shares(sizes: list[int], k: int, seed: int) -> list[int]:
    """How many fall into each tensor when ``k`` entries are drawn from all tensors together, every set of ``k`` being
    equally likely; decided by the seed. With :func:`draw` in each tensor that is such a set.

    Every entry is drawn with probability ``k / n`` at first; then entries too many or too few, about ``sqrt(k)``, are
    taken away or added one at a time (numpy's hypergeometric numbers end at ``1e9``).

    >>> draw_shares([1000, 10, 1000], 2010, 0), sum(draw_shares([1000, 10, 1000], 20, 0))
    ([1000, 10, 1000], 20)
    """
    room = np.array(sizes, dtype=np.int64)
    if not k:
        return [0] * len(sizes)
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(f"sift:{seed}".encode()).digest()[:8], "little"))
    counts = generator.binomial(room, min(k / room.sum(), 1.0))
    while missing := k - int(counts.sum()):
        among = room - counts if missing > 0 else counts
        counts[generator.choice(len(sizes), p=among / among.sum())] += np.sign(missing)
    return counts.tolist()


@dataclass
class Candidates:
    """Entries of one tensor that may be chosen: their scores (inf: certain), sorted indices and gradients."""

    scores: Tensor
    index: Tensor
    gradient: Tensor

    def keep(self, mask: Tensor) -> None:
        self.scores, self.index, self.gradient = self.scores[mask], self.index[mask], self.gradient[mask]


def candidates(scores: Tensor, gradient: Tensor, k: int, certain: int = 0, above: float = -1.0) -> Candidates:
    """The best ``k`` of a tensor, those above a threshold only; the best ``certain`` of them whatever happens.

    >>> best = candidates(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([1.0, -5.0, 3.0]), k=2)
    >>> best.index.tolist(), best.gradient.tolist()
    ([1, 2], [-5.0, 3.0])
    """
    marked = scores.clone() if certain else scores
    if certain:
        marked[top(scores, certain)] = torch.inf
    open_ = _where(marked > above)
    best = open_ if open_.numel() <= k else open_[top(marked[open_], k)]
    return Candidates(marked[best], best, gradient[best].float())


class Pool:
    """The best ``k`` entries of all tensors, met one tensor at a time: memory is ``O(k)`` and one tensor.

    >>> pool = Pool(2)
    >>> for name, scores in (("a", [1.0, 5.0]), ("b", [4.0, 3.0])):
    ...     pool.add(name, torch.tensor(scores), torch.zeros(2))
    >>> {name: best.index.tolist() for name, best in pool.chosen().items()}
    {'a': [1], 'b': [0]}
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.least = -1.0
        self._tensors: dict[str, Candidates] = {}

    def add(self, name: str, scores: Tensor, gradient: Tensor, certain: int = 0) -> None:
        """Let the entries of a tensor compete."""
        self._tensors[name] = candidates(scores, gradient, self.k, certain, self.least)
        if sum(c.index.numel() for c in self._tensors.values()) > 2 * self.k:
            self._prune()

    def _prune(self) -> None:
        """Only the best ``k`` stay; of equal ones those that come first in order of names, then of indices."""
        if not self._tensors:
            return
        names = sorted(self._tensors)
        scores = torch.cat([self._tensors[name].scores for name in names])
        mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
        mask[top(scores, self.k)] = True
        least = float(scores[mask].min())
        if scores.numel() > self.k and least < torch.inf:
            self.least = least
        for name, part in zip(names, mask.split([self._tensors[n].scores.numel() for n in names]), strict=True):
            self._tensors[name].keep(part)

    def chosen(self) -> dict[str, Candidates]:
        """What won, per tensor; tensors without a winner are left out."""
        self._prune()
        return {name: best for name, best in self._tensors.items() if best.index.numel()}
