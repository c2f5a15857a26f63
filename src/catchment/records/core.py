"""What every record is made of: rows, intervals, the card of a model, and JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCHEMA_VERSION = 1

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One scored item.

    Attributes:
        item: Content hash of the item.
        score: In [0, 1].
        prediction: Text of the chosen option, or the generated answer.
        logprobs: Natural-log probability of each choice, summed over its tokens; empty for generations.
        companion: The continuous companion of the score: probability of the right choice among the choices,
            probability of the right answer (generation), or bits per byte (text). ``None`` where it has no meaning.
        flags: What a reader must know about this row: ``tie``, ``truncated``, ``cut`` (the answer hit the
            token limit), ``incoherent``, ``non-finite`` (the model's outputs for this item are no numbers).
    """

    item: str
    score: float
    prediction: str
    logprobs: tuple[float, ...] = ()
    companion: float | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interval:
    """A confidence interval. ``level`` is what this single interval claims (after the correction for
    ``family`` simultaneous intervals); ``method`` names how it was computed."""

    estimate: float
    low: float
    high: float
    level: float
    method: str
    family: int = 1


@dataclass(frozen=True)
class ModelCard:
    """Which model was measured, and how it stood in memory. Hashes are hex SHA-256.

    ``notes`` say what of its files was not used, or used otherwise than its config says; every record warns of them.
    """

    name: str
    source: Literal["hub", "folder", "gguf", "package", "adapter", "increment", "memory"]
    architecture: str
    parameters: int
    weights_hash: str
    config_hash: str
    tokenizer_hash: str
    template_hash: str
    dtype: str
    device: str
    attention: str
    revision: str | None = None
    quantization: str | None = None
    base: str | None = None
    notes: tuple[str, ...] = ()


def to_json(record: Any) -> str:
    """Serialise a record; NaN and infinities are refused, because JSON has none.

    >>> to_json(Interval(0.1, 0.0, 0.2, 0.95, "score"))[:16]
    '{"estimate": 0.1'
    """
    return json.dumps(dataclasses.asdict(record), ensure_ascii=False, allow_nan=False)


def from_json(kind: type[T], text: str) -> T:
    """Read a record back, checked field by field. Raises ``pydantic.ValidationError`` on a foreign file."""
    adapter: TypeAdapter[T] = _adapter(cast(Any, kind))
    return adapter.validate_json(text)


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """What checks a kind of record; making it takes longer than reading one."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
