"""Choosing the entries, while the first gradients come in."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from catchment.errors import InputError
from catchment.methods.sift import sharing
from catchment.methods.sift.layout import Flat, Target
from catchment.methods.sift.selection import Candidates, Pool, candidates, draw, score, top


class Choice:
    """Which entries of the targets train; gives them to a :class:`Flat` as soon as they are known.

    Within one process and with scope ``tensor`` a target's entries are chosen when its own gradient comes, so that a
    dense gradient lives no longer than that; a tensor that gets none (an expert without tokens, all zeros) waits for
    its first. Scope ``global``, and shards of tensors, are settled when the backward pass has ended.

    Args:
        flat: Gets what is chosen.
        rule, scope, batches, seed: As of :class:`~catchment.methods.sift.Sift`.
        sharded: Whether each process holds a part of every target.
    """

    def __init__(self, flat: Flat, rule: str, scope: str, batches: int, seed: int, sharded: bool) -> None:
        self.flat, self.rule, self.scope, self.batches, self.seed = flat, rule, scope, batches, seed
        self.sharded = sharded
        self.together = sharded or scope == "global"
        self.steps = 0
        """Optimizer steps that went by before anything was chosen."""
        self._k = sum(t.budget for t in flat.targets if not t.dense)
        self._pool = Pool(self._k)
        self._overflow = False
        self._settled = not self._open()

    @property
    def done(self) -> bool:
        """Whether there are entries to step."""
        return self._settled or any(t.index is not None for t in self._open())

    def without_data(self, support: Mapping[str, Tensor] | None) -> None:
        """Choose at once what needs no gradient."""
        if support is not None:
            self.settle({name: _checked(name, index, self.flat) for name, index in support.items()})
        elif self.rule == "random":
            whole = {t.name: draw(t.parameter.numel(), t.budget, self.seed, t.name) for t in self._open()}
            self.settle({t.name: _here(whole[t.name].to(t.local.device), t) for t in self._open()})
        else:
            for target in self.flat.targets:
                if target.dense and not self.together:
                    self.flat.settle(target, torch.arange(target.count, device=target.local.device))
                elif self.rule == "magnitude" and not target.dense:
                    self._enter(target, target.local.abs().float(), torch.zeros_like(target.local))
            if self.rule == "magnitude" and self.together:
                self._agree()
        self.flat.values.grad = None

    def _open(self) -> list[Target]:
        return [target for target in self.flat.targets if not target.dense]

    def offer(self, target: Target, gradient: Tensor) -> None:
        """Let one batch's dense gradient ``(n,)`` take part; chooses when it was the last one needed."""
        if target.dense:
            return
        scores = score(self.rule, gradient, target.local)
        size = float(scores.sum())
        if not math.isfinite(size):  # a scaler must see it, and nothing may be chosen by it
            self._overflow = True
            if not self.done:
                self.flat.gradient()[:1] = torch.inf
            return
        if size == 0:
            return
        target.seen += 1
        if self.batches > 1:
            target.scores = scores if target.scores is None else target.scores.add_(scores)
            target.total = gradient.float() if target.total is None else target.total.add_(gradient)
            if target.seen < self.batches:
                return
            scores, gradient = target.scores, target.total / (self.steps + 1)
            target.scores = target.total = None
        self._enter(target, scores, gradient)

    def _enter(self, target: Target, scores: Tensor, gradient: Tensor) -> None:
        if not self.together:
            index = top(scores, target.count)
            self.flat.settle(target, index, gradient[index])
        elif self.scope == "tensor":
            target.waiting = candidates(scores, gradient, target.budget)
        else:
            self._pool.add(target.name, scores, gradient, target.certain)

    def backward_ended(self) -> None:
        """Settle what had to wait for other tensors or processes. Every process calls it after every backward pass
        until entries are chosen."""
        if self.done or not self.together:
            return
        entered = any(t.waiting for t in self._open()) or not self._pool.empty
        if self.sharded:
            told = torch.tensor([float(self._overflow), float(entered)], device=self.flat.base.device)
            overflow, some = sharing.sum_(told).tolist()
        else:
            overflow, some = float(self._overflow), float(entered)
        self._overflow = False
        if overflow:
            self._forget()
            self.flat.gradient()[:1] = torch.inf
        elif some:
            self._agree()

    def _forget(self) -> None:
        self._pool = Pool(self._k)
        for target in self._open():
            target.waiting = target.scores = target.total = None
            target.seen = 0

    def _agree(self) -> None:
        """The best of all tensors, or of all parts of each tensor."""
        if self.scope == "global":
            found = self._pool.chosen()
            if self.sharded:
                self._cut(found)
        else:
            found = {target.name: self._of_all_parts(target) for target in self._open()}
        self.settle({n: c.index for n, c in found.items()}, {n: c.gradient for n, c in found.items()})

    def _of_all_parts(self, target: Target) -> Candidates:
        device = self.flat.base.device
        nothing = (torch.zeros(0, device=device, dtype=d) for d in (torch.float, torch.long, torch.float))
        found, target.waiting = target.waiting or Candidates(*nothing), None
        mask, total = sharing.best_of_all(found.scores, target.budget)
        if not total:
            warnings.warn(f"{target.name} had no gradient when entries were chosen: it stays as it is", stacklevel=2)
        found.keep(mask)
        return found

    def _cut(self, found: dict[str, Candidates]) -> None:
        """Of this process's best, those that are among the best of all processes."""
        names = sorted(found)
        empty = torch.zeros(0, device=self.flat.base.device)
        scores = torch.cat([found[name].scores for name in names]) if names else empty
        mask, _ = sharing.best_of_all(scores, self._k)
        for name, part in zip(names, mask.split([found[n].scores.numel() for n in names]), strict=True):
            found[name].keep(part)

    def settle(self, indices: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None = None) -> None:
        """Lay the flat vectors out for these entries; dense targets get all of theirs."""
        dense = {t.name: torch.arange(t.local.numel(), device=t.local.device) for t in self.flat.targets if t.dense}
        chosen = {**indices, **dense}
        self.flat.lay_out({name: index.numel() for name, index in chosen.items()})
        for target in self.flat.targets:
            if target.count:
                self.flat.settle(target, chosen[target.name], (gradients or {}).get(target.name))
        self._pool = Pool(self._k)
        self._settled = True


def _checked(name: str, index: Tensor, flat: Flat) -> Tensor:
    """A given support, sorted; refuses what lies outside."""
    target = next(t for t in flat.targets if t.name == name)
    index = index.to(target.local.device).long().sort().values
    size = target.parameter.numel()
    if not index.numel() or int(index[0]) < 0 or int(index[-1]) >= size or bool((index.diff() == 0).any()):
        raise InputError(f"support of {name!r}: expected distinct flat indices from 0 to {size - 1}, at least one.")
    return _here(index, target)


def _here(index: Tensor, target: Target) -> Tensor:
    """Of flat indices of a whole tensor those that lie in this process's part, counted from its start."""
    first = target.offset
    return index[(index >= first) & (index < first + target.local.numel())] - first
