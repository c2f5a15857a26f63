"""Tasks: named items, prompt formats and a scorer. Every item scores in [0, 1]; the chance level is known."""

from __future__ import annotations

import hashlib
import json
import marshal
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from catchment.errors import InputError, TaskError, did_you_mean

SCORERS = (
    "choice",
    "choice_per_token",
    "choice_per_byte",
    "exact",
    "regex",
    "rouge_l",
    "refusal",
    "text",
    "agreement",
    "classify",
    "callable",
)
CHOICE_SCORERS = ("choice", "choice_per_token", "choice_per_byte")
JUDGED_SCORERS = ("exact", "regex", "refusal", "callable")
"""Generated answers that are right or wrong, so that a model that does the task gets at least half of them right."""
GENERATED_SCORERS = (*JUDGED_SCORERS, "rouge_l")


def _as_gold(value: Any) -> Any:
    """Numbers of numpy and torch as Python's, lists as tuples."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(value) if isinstance(value, list) else value


NAMED = re.compile(r"\{(\w+(?:\[\d+\])?)\}")
"""What a format names: the prompt, the choices, a column."""


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        prompt: The question or the text to continue; for ``text`` the passage itself.
        choices: Possible answers, for the choice scorers.
        gold: Index of the right choice; or the right answer(s) (``exact``, ``rouge_l``); or a pattern (``regex``);
            or ``"refuse"`` / ``"comply"`` (``refusal``); ``None`` for unlabelled prompts and text.
        id: Content hash; computed when empty. A classifier's second text, ``meta["pair"]``, is content too.
        meta: Free information kept with the item (e.g. a category); never part of the prompt.
        columns: Texts that formats may name beside the prompt: the parts of a pair, for formats that order them
            otherwise. Not part of the id, so that the item is one under all formats; part of the task's hash.
    """

    prompt: str
    choices: tuple[str, ...] = ()
    gold: int | str | tuple[str, ...] | None = None
    id: str = ""
    meta: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    columns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        object.__setattr__(self, "gold", _as_gold(self.gold))
        object.__setattr__(self, "choices", tuple(self.choices))
        if not self.id:
            pair = [self.meta["pair"]] if "pair" in self.meta else []
            content = json.dumps([self.prompt, self.choices, self.gold, *pair], ensure_ascii=False)
            object.__setattr__(self, "id", hashlib.sha256(content.encode()).hexdigest()[:16])


@dataclass(frozen=True)
class Format:
    """How a question is put. ``template`` contains ``{prompt}`` once, or names columns of the items instead, and may
    contain ``{choices}`` (lettered lines). ``separator`` stands between the filled template and the answer."""

    name: str
    template: str = "{prompt}"
    separator: str = " "

    def fill(self, item: Item) -> str:
        def value(name: re.Match[str]) -> str:
            if name[1] == "choices":
                return "\n".join(f"{chr(65 + i)}. {c}" for i, c in enumerate(item.choices))
            return item.prompt if name[1] == "prompt" else item.columns.get(name[1], name[0])

        return NAMED.sub(value, self.template)


CONTINUE = (
    Format("plain"),
    Format("quoted", "Text: {prompt}"),
    Format("instructed", "Continue the text.\n\n{prompt}"),
)
ASK = (
    Format("question", "Question: {prompt}\nAnswer:"),
    Format("bare", "{prompt}", "\n"),
    Format("instructed", "Answer the following question briefly.\n{prompt}\nThe answer is"),
)


def _code(function: Any) -> str | None:
    """What a scoring function does, as far as its compiled code says; its name where it has none."""
    if function is None:
        return None
    code = getattr(function, "__code__", None)
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    return name if code is None else f"{name}:{hashlib.sha256(marshal.dumps(code)).hexdigest()}"


def _columns_of(items: tuple[Item, ...]) -> list[list[dict[str, str]]]:
    """Columns are content where there are any."""
    columns = [dict(item.columns) for item in items]
    return [columns] if any(columns) else []


@dataclass(frozen=True)
class Task:
    """Items, formats and a scorer.

    Attributes:
        name: Shown in tables; unique within a comparison.
        items: What is scored. Order is kept; a ``limit`` takes a seeded sample.
        scorer: One of :data:`SCORERS`.
        formats: At least one; the first is the default, the others measure prompt-format sensitivity.
        style: ``"continue"``: the answer continues the text, a chat template is never applied.
            ``"ask"``: the prompt is a request; with ``chat_template="auto"`` it is wrapped in the
            tokenizer's own template when it has one.
        shots: Solved examples put before every item, the same for all. Never among the scored items.
        chance: Expected score of guessing. ``None``: derived (choice: mean of 1/len(choices); else 0).
        max_new_tokens, stop: Limits of a greedy generation.
        function: For scorer ``"callable"``: ``function(item, answer) -> float`` in [0, 1].
        system: System prompt of the items; one given where the model is asked takes its place.
        keeps_system: It does not, because the items belong with this one, as rows that were trained under it do.
        version: Raised when the items or their meaning change.
        notes: What a user is to know of how the items were read; a comparison gives them as warnings.
        pool: Solved items that other shots can be drawn from; see :func:`catchment.capabilities.variant`.
        shots_within: Shots that stand in the items and formats themselves, as in tasks of lm-eval.
    """

    name: str
    items: tuple[Item, ...]
    scorer: str
    formats: tuple[Format, ...] = ASK
    style: Literal["ask", "continue"] = "ask"
    shots: tuple[Item, ...] = ()
    chance: float | None = None
    max_new_tokens: int = 32
    stop: tuple[str, ...] = ("\n",)
    function: Any = None
    system: str | None = None
    description: str = ""
    version: int = 1
    keeps_system: bool = False
    notes: tuple[str, ...] = ()
    pool: tuple[Item, ...] = field(default=(), repr=False)
    shots_within: int = 0

    def __post_init__(self) -> None:
        if self.scorer not in SCORERS:
            raise InputError(
                f"task {self.name!r}: unknown scorer {self.scorer!r}; expected one of {', '.join(SCORERS)}."
                + did_you_mean(self.scorer, SCORERS)
            )
        if not self.items:
            raise TaskError(f"task {self.name!r} has no items; expected at least one. Is the file empty?")
        ids = [item.id for item in self.items]
        if len(set(ids)) != len(ids):
            double = next(i for i in ids if ids.count(i) > 1)
            raise TaskError(
                f"task {self.name!r} holds item {double!r} more than once; expected distinct ids. Remove the copies."
            )

    @property
    def chance_level(self) -> float:
        if self.chance is not None:
            return self.chance
        if self.scorer in CHOICE_SCORERS:
            return sum(1 / max(len(item.choices), 1) for item in self.items) / len(self.items)
        return 0.0

    def hash(self) -> str:
        """SHA-256 over everything that decides a score: items, formats, shots, scorer, limits, version."""
        if "_hash" not in self.__dict__:  # a grid asks for it once per cell
            object.__setattr__(self, "_hash", self._hashed())
        return str(self.__dict__["_hash"])

    def _hashed(self) -> str:
        content = [
            [[i.id, i.prompt, i.choices, i.gold] for i in self.items],
            [[f.name, f.template, f.separator] for f in self.formats],
            [[i.prompt, i.choices, i.gold] for i in self.shots],
            [self.scorer, self.style, self.max_new_tokens, self.stop, self.system, self.version],
            _code(self.function),
            *(["keeps system"] if self.keeps_system else []),
            *_columns_of((*self.items, *self.shots)),
        ]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()

    def with_items(self, items: tuple[Item, ...]) -> Task:
        """The same task on other items; the chance level is derived anew."""
        return replace(self, items=items)
