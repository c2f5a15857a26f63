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
from catchment.methods.sift.selection import Candidates, Pool, candidates, draw, draw_shares, score, top


class Choice:
    """Which entries of the targets train; gives them to a :class:`Flat` as soon as they are known.

    One batch, scope ``tensor``, whole tensors: a target's entries are chosen when its own gradient comes, so that a
    dense gradient lives no longer than that. Otherwise scores and gradients are summed, and all is settled when the
    last of the backward passes has ended. A tensor that had no gradient until then (an expert without tokens, all
    zeros) keeps its slots with scope ``tensor`` and whole tensors, and chooses by its first one.

    Args:
        flat: Gets what is chosen.
        rule, scope, batches, seed: As of :class:`~catchment.methods.sift.Sift`.
        sharded: Whether each process holds a part of every target.
    """

    def __init__(self, flat: Flat, rule: str, scope: str, batches: int, seed: int, sharded: bool) -> None:
        self.flat, self.rule, self.scope, self.batches, self.seed = flat, rule, scope, batches, seed
        self.sharded = sharded
        self.movable = sharded or scope == "global"
        """Whether the number of entries of a target is known only when all have been looked at."""
        self.together = self.movable or batches > 1
        self.passes = 0
        """Backward passes whose gradients took part."""
        self.counted = 0
        """Those of them that earlier optimizer steps have ended."""
        self.steps = 0
        """Optimizer steps whose gradients took part before there were entries to step; the first gradient is a mean
        over them and its own."""
        self.settled = False
        self.broken = False
        """Whether a gradient that was not finite came to the choice since the last optimizer step."""
        self._k = sum(t.budget for t in flat.targets if not t.dense)
        self._pool = Pool(self._k)
        self._overflow = self._entered = False
        """What this backward pass has brought."""

    @property
    def done(self) -> bool:
        """Whether there are entries to step."""
        return self.settled or any(target.index is not None for target in self.flat.targets)

    @property
    def share(self) -> float:
        """What a gradient counts for in the first step, which covers the steps that went by before it."""
        return 1 / (self.steps + 1)

    @property
    def lost(self) -> bool:
        """Whether the flat gradient is of a step that has overflowed while entries were chosen. Who skipped that step
        (a scaler) and cleared the gradient has begun another one."""
        gradient = self.flat.values.grad
        return self.broken and gradient is not None and not bool(gradient.isfinite().all())

    def step_begins(self) -> bool:
        """Whether the flat gradient is one to step by. Otherwise this step goes by, and counts in the first one's mean
        if its gradients took part."""
        good = self.done and not self.lost
        self.steps = 0 if self.done else self.steps + (self.passes > self.counted)
        self.counted, self.broken = self.passes, False
        return good

    def waits(self, target: Target) -> bool:
        """Whether this target's next gradient still has something to decide."""
        return target.index is None and not (self.settled and (self.movable or target.count == 0))

    def without_data(self, support: Mapping[str, Tensor] | None) -> None:
        """Choose at once what needs no gradient."""
        if support is not None:
            self.settle({name: _checked(name, index, self.flat) for name, index in support.items()})
        elif self.rule == "random":
            self.settle(self._drawn())
        elif self.rule == "magnitude":
            for target in self._open():
                scores = target.local.abs().float()
                self._enter(target, scores, scores.new_zeros(()).expand_as(scores))
            self._settle_all()
        elif not self._open():
            self.settle({})
        elif not self.together:
            for target in self.flat.targets:
                if target.dense:
                    self.flat.settle(target, torch.arange(target.count, device=target.local.device))
        self.flat.values.grad = None

    def _drawn(self) -> dict[str, Tensor]:
        """Entries at random, the same for every number of processes: each tensor's own share, or ``k`` of all together
        beyond what tensors are certain of."""
        targets = self._open()
        counts = [t.budget for t in targets]
        if self.scope == "global":
            certain = [t.certain for t in targets]
            rooms = [t.parameter.numel() - t.certain for t in targets]
            shares = draw_shares(rooms, self._k - sum(certain), self.seed)
            counts = [sure + share for sure, share in zip(certain, shares, strict=True)]
        indices = {}
        for target, count in zip(targets, counts, strict=True):
            whole = draw(target.parameter.numel(), count, self.seed, target.name)
            indices[target.name] = _here(whole.to(target.local.device), target)
        return indices

    def _open(self) -> list[Target]:
        return [target for target in self.flat.targets if not target.dense]

    def offer(self, target: Target, gradient: Tensor) -> None:
        """Let one backward pass's dense gradient ``(n,)`` take part."""
        scores = gradient.abs().float() if target.dense else score(self.rule, gradient, target.local)
        size = float(scores.sum())
        if not math.isfinite(size):  # nothing may be chosen by it, and who looks for overflows must see it
            self._overflow = True
            self._mark(target.start if target.count else 0)
        elif size == 0:
            return
        elif not self.together or self.settled:
            index = top(scores, target.count)
            self.flat.settle(target, index, gradient[index].float() * self.share)
        elif self.batches == 1 and not target.dense:
            self._entered = True
            self._enter(target, scores, gradient)
        else:
            self._entered = True
            if not target.dense:
                target.scores = scores if target.scores is None else target.scores.add_(scores)
            target.total = gradient.float() if target.total is None else target.total.add_(gradient)

    def _mark(self, at: int = 0) -> None:
        """Let this step's gradient be seen not to be finite."""
        self.broken = True
        self.flat.gradient()[at : at + 1] = torch.inf

    def _enter(self, target: Target, scores: Tensor, gradient: Tensor) -> None:
        if self.scope == "tensor":
            target.waiting = candidates(scores, gradient, target.budget)
        else:
            self._pool.add(target.name, scores, gradient, target.certain)

    def backward_ended(self) -> None:
        """Settle what had to wait for other tensors, batches or processes. Every process calls it after every backward
        pass until entries are chosen."""
        if self.settled or not self.together:
            return
        told = torch.tensor([float(self._overflow), float(self._entered)], device=self.flat.base.device)
        overflow, entered = (sharing.sum_(told) if self.sharded else told).tolist()
        self._overflow = self._entered = False
        if overflow:
            self.forget()
            self._mark()
        elif self.lost:  # the step as a whole takes no part
            self.forget()
        elif entered:
            self.passes += 1
            if self.passes >= self.batches:
                self._settle_all()

    def forget(self) -> None:
        """Begin anew: what has been summed is of no use."""
        self.steps = 0
        self._clear()

    def _clear(self) -> None:
        self._pool, self.passes, self.counted = Pool(self._k), 0, 0
        self._overflow = self._entered = False
        for target in self.flat.targets:
            target.waiting = target.scores = target.total = target.held = None

    def _settle_all(self) -> None:
        """The best of all tensors, of all parts of each tensor, or of all batches."""
        for target in self._open():
            if target.scores is not None:
                assert target.total is not None
                self._enter(target, target.scores, target.total)
                target.scores = target.total = None
        if self.scope == "global":
            chosen = self._pool.chosen()
            if self.sharded:
                self._cut(chosen)
        elif self.sharded:
            chosen = {target.name: self._of_all_parts(target) for target in self._open()}
        else:
            chosen = {target.name: target.waiting for target in self._open() if target.waiting is not None}
        gradients = {name: c.gradient for name, c in chosen.items()}
        gradients |= {t.name: t.total for t in self.flat.targets if t.dense and t.total is not None}
        self.settle({name: c.index for name, c in chosen.items()}, gradients)

    def _of_all_parts(self, target: Target) -> Candidates:
        device = self.flat.base.device
        nothing = (torch.zeros(0, device=device, dtype=d) for d in (torch.float, torch.long, torch.float))
        best, target.waiting = target.waiting or Candidates(*nothing), None
        mask, total = sharing.best_of_all(best.scores, target.budget)
        if not total:
            warnings.warn(f"{target.name} had no gradient when entries were chosen: it stays as it is", stacklevel=2)
        best.keep(mask)
        return best

    def _cut(self, chosen: dict[str, Candidates]) -> None:
        """Of this process's best, those that are among the best of all processes."""
        names = sorted(chosen)
        empty = torch.zeros(0, device=self.flat.base.device)
        scores = torch.cat([chosen[name].scores for name in names]) if names else empty
        mask, _ = sharing.best_of_all(scores, self._k)
        for name, part in zip(names, mask.split([chosen[n].scores.numel() for n in names]), strict=True):
            chosen[name].keep(part)

    def settle(self, indices: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None = None) -> None:
        """These entries train, and all of the dense targets; their gradients count for the first step. The flat vectors
        are laid out anew, but slots are kept for tensors that may still choose."""
        dense = {t.name: torch.arange(t.local.numel(), device=t.local.device) for t in self.flat.targets if t.dense}
        chosen = {**indices, **dense}
        kept = gradients is not None and not self.movable
        counts = {t.name: t.count for t in self.flat.targets} if kept else {n: i.numel() for n, i in chosen.items()}
        self.flat.lay_out(counts)
        for target in self.flat.targets:
            if not kept:
                target.index = None  # of an earlier choice, whose slots are gone
            if target.name in chosen and target.count:
                gradient = (gradients or {}).get(target.name)
                self.flat.settle(target, chosen[target.name], None if gradient is None else gradient * self.share)
        self._clear()
        self.settled = True


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
