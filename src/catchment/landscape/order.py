"""Who displaced a model, and in which order: a mover's clean weights are what the movers before it left."""

from __future__ import annotations

import weakref
from typing import Protocol

from torch import nn


class Moving(Protocol):
    """What is asked of a mover.

    Attributes:
        model: What it moves.
        points: How often it has moved the model so far, the way back included.
    """

    model: nn.Module
    points: int

    def restore(self) -> None: ...


_DISPLACED: weakref.WeakKeyDictionary[nn.Module, list[weakref.ref[Moving]]] = weakref.WeakKeyDictionary()


def standing(model: nn.Module) -> list[Moving]:
    """Movers by which a model is displaced now, the first one first."""
    movers = [ref() for ref in _DISPLACED.get(model, [])]
    return [mover for mover in movers if mover is not None]


def after(mover: Moving) -> list[Moving]:
    """Movers that displaced the model after this one, and still do."""
    movers = standing(mover.model)
    return movers[movers.index(mover) + 1 :] if mover in movers else []


def enter(mover: Moving) -> None:
    _DISPLACED[mover.model] = [*map(weakref.ref, standing(mover.model)), weakref.ref(mover)]


def leave(mover: Moving) -> None:
    left = [weakref.ref(other) for other in standing(mover.model) if other is not mover]
    if left:
        _DISPLACED[mover.model] = left
    else:
        _DISPLACED.pop(mover.model, None)


def seen(model: nn.Module) -> list[tuple[weakref.ref[Moving], int]]:
    """The point at which a model stands: who displaced it, and how often by now."""
    return [(weakref.ref(mover), mover.points) for mover in standing(model)]


def still(model: nn.Module, before: list[tuple[weakref.ref[Moving], int]]) -> bool:
    """Whether the model stands where it stood."""
    return seen(model) == before
