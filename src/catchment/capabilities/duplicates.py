"""Which items are (nearly) the same question, and which of them stand in the rows that a model is trained on."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

from catchment.capabilities.prompts import expected_answer
from catchment.capabilities.tasks import Item, Task

NEAR = 0.9
"""Two items whose word 3-grams overlap by more (Jaccard) are near-duplicates; an item stands in a row that holds more
of its 3-grams."""
LONG = 12
"""Words from which two items are compared by their 3-grams."""
ENOUGH = 6
"""3-grams from which an item is looked for by them; one with fewer has to stand in a row as it is."""
WORDS = 3
"""Words from which an item may be a part of a text; one with fewer has to be the first text of the row."""
FRAME = 10
"""Items from which it can be told what all of them share, which is a template and no question."""

Gram = tuple[str, str, str]

_PUNCTUATION = re.compile(r"[.,;:!?\"'`\u2018\u2019\u201c\u201d](?!\d)")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_PARTS = re.compile(r"\n+|(?<=[.!?])\s+")
_LABEL = re.compile(r"^[\s#*>-]*\w[\w ]{0,30}:(?=\s|$)")
"""A label in front of a line: ``Question:``, ``### Input_1:``."""
_KEYS_ASIDE = ("role", "label", "id", "type", "dataset")


def plain(text: str) -> str:
    """Words, numbers and operators (``7 - 2`` is not ``7 + 2``); case, blanks, punctuation, invisible characters and
    Unicode's spellings of one character aside. Powers, indices and fractions stay apart from plain digits.

    >>> plain("\\uff37hat is  7 - 2\\u200b ?"), plain("cafe\\u0301") == plain("caf\\u00e9")
    ('what is 7 - 2', True)
    """
    if not text.isascii():
        text = "".join(map(_compatible, unicodedata.normalize("NFC", text.translate(_INVISIBLE))))
    return " ".join(_PUNCTUATION.sub(" ", text.lower()).split())


def _compatible(character: str) -> str:
    meant = unicodedata.decomposition(character).startswith(("<super>", "<sub>", "<fraction>"))
    return character if meant else unicodedata.normalize("NFKC", character)


def normalised(item: Item) -> str:
    """What makes an item the same question: the prompt, the choices and the second text of a pair."""
    return plain(" ".join([item.prompt, *item.choices, str(item.meta.get("pair") or "")]))


def question(item: Item) -> str:
    """As :func:`normalised`, with the choices in any order: a shot gives the answer away either way."""
    choices = sorted(plain(choice) for choice in item.choices)
    return normalised(Item(item.prompt, tuple(choices), id="question", meta=item.meta))


def _grams(words: Sequence[str]) -> frozenset[Gram]:
    return frozenset(zip(words, words[1:], words[2:], strict=False))


def _rare(group: Iterable[Gram], counts: Mapping[Gram, int], size: int) -> list[Gram]:
    """A set with more than NEAR of ``group`` in it holds one of these."""
    return sorted(group, key=lambda gram: (counts[gram], gram))[: int((1 - NEAR) * size) + 1]


def near_duplicates(items: Sequence[Item]) -> list[tuple[str, str]]:
    """Pairs of near-duplicate items: equal after normalisation, or word 3-grams overlapping by more than NEAR.

    Compares only items that share their rarest 3-gram's bucket, so the cost is near linear in the items.
    """
    pairs: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    shingles: dict[str, frozenset[Gram]] = {}
    for item in items:
        if "image" in item.meta:
            continue  # what is asked is in the picture
        text = normalised(item)
        if text in seen:
            pairs.append((seen[text], item.id))
            continue
        seen[text] = item.id
        words = text.split()
        if len(words) >= LONG:
            shingles[item.id] = _grams(words)
    counts = Counter(s for group in shingles.values() for s in group)
    buckets: dict[Gram, list[str]] = defaultdict(list)
    for name, group in shingles.items():
        rare = _rare(group, counts, len(group))
        near = {other for s in rare for other in buckets[s][:50]}
        for other in near:
            if _alike(group, shingles[other]):
                pairs.append((other, name))
                break
        for s in rare:
            buckets[s].append(name)
    return pairs


def _alike(one: frozenset[Gram], other: frozenset[Gram]) -> bool:
    both = len(one & other)
    return both > NEAR * (len(one) + len(other) - both)


class Asked:
    """The questions of a task, among which another item can be looked up. Cost: near linear in the items, once; then
    linear in the words of the item."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._same = {question(item): item.id for item in reversed(items)}
        self._grams = {name: _grams(words) for text, name in self._same.items() if len(words := text.split()) >= LONG}
        counts = Counter(gram for group in self._grams.values() for gram in group)
        self._index: dict[Gram, list[str]] = defaultdict(list)
        for name, group in self._grams.items():
            for gram in _rare(group, counts, len(group)):
                self._index[gram].append(name)

    def same(self, item: Item) -> str | None:
        """The id of an item that asks the same, choices in any order; pictures are never the same."""
        return None if "image" in item.meta else self._same.get(question(item))

    def near(self, item: Item) -> str | None:
        """The id of an item that asks the same or nearly so."""
        if "image" in item.meta:
            return None
        found = self.same(item)
        words = question(item).split()
        if found is not None or len(words) < LONG:
            return found
        group = _grams(words)
        names = sorted({name for gram in self._index.keys() & group for name in self._index[gram]})
        return next((name for name in names if _alike(group, self._grams[name])), None)


@dataclass(frozen=True)
class Overlap:
    """Items of a task that stand in rows to train on.

    Attributes:
        n: Items that were looked for.
        rows: Of each item that was met, by its id and in the task's order, the first row that holds it, from 0.
        exact: Ids of those that stand there word for word; the others nearly so.
    """

    n: int
    rows: Mapping[str, int]
    exact: frozenset[str]

    @property
    def share(self) -> float:
        """Of the items."""
        return len(self.rows) / self.n if self.n else 0.0

    @property
    def sentence(self) -> str:
        """The counts and the first item."""
        if not self.rows:
            return f"none of {self.n} items stands in the rows to train on"
        first, row = next(iter(self.rows.items()))
        return (
            f"{len(self.rows)} of {self.n} items stand in the rows to train on ({len(self.exact)} word for word, "
            f"{len(self.rows) - len(self.exact)} nearly; first: item {first} in row {row + 1})"
        )


def overlap(train: Iterable[Any], task: Task) -> Overlap:
    """The items of a task whose question stands in a training row, also within another template or beside its answer.

    An item with at least 6 word 3-grams of its own stands in a row that holds more than 90% of them, and more than half
    of those of each of its sentences, but for one in twenty: another question about the same passage is another item.
    What most items of the task share (a template) does not count. A shorter item stands in a row of which a text, a
    line or a sentence equals it, labels in front such as ``Question:`` aside, with or without its answer behind it.

    Args:
        train: Rows: texts; objects such as ``{"prompt", "completion"}``, ``{"messages"}`` or ``{"text"}``; or lists.
        task: Items with pictures are left out.

    Cost: linear in the words of rows and items; an item is compared with the rows that hold one of its rarest 3-grams.

    >>> items = (Item("What is 7 - 2?", gold="5"), Item("What is 7 + 2?", gold="9"))
    >>> found = overlap([{"prompt": "Q: what is 7 - 2 ?", "completion": " 5"}], Task("sums", items, "exact"))
    >>> found.sentence.split(" (")[0]
    '1 of 2 items stand in the rows to train on'
    """
    items = [item for item in task.items if "image" not in item.meta]
    wanted = _Wanted(items, task.scorer)
    for number, row in enumerate(train):
        wanted.read(number, list(texts_of_row(row)))
    rows = {item.id: wanted.rows[item.id] for item in items if item.id in wanted.rows}
    return Overlap(len(items), rows, frozenset(wanted.exact))


def texts_of_row(row: Any) -> Iterator[str]:
    """All texts of a training row; roles, labels and ids aside."""
    if isinstance(row, str):
        yield row
    elif isinstance(row, Mapping):
        for key, value in row.items():
            if key not in _KEYS_ASIDE:
                yield from texts_of_row(value)
    elif isinstance(row, Sequence):
        for value in row:
            yield from texts_of_row(value)


def _parts(text: str) -> list[str]:
    """Its lines and sentences as plain words, labels in front aside, without those that are then empty."""
    return [part for raw in _PARTS.split(text) if (part := plain(_LABEL.sub(" ", raw)))]


@dataclass(frozen=True)
class _Long:
    """An item as the 3-grams of its sentences."""

    parts: tuple[frozenset[Gram], ...]
    grams: frozenset[Gram]

    def within(self, row: frozenset[Gram]) -> bool:
        if len(self.grams & row) <= NEAR * len(self.grams):
            return False
        lacking = sum(len(part & row) * 2 <= len(part) for part in self.parts)
        return lacking * 20 <= len(self.parts)


class _Wanted:
    """Items that are looked for, and the rows in which they were met."""

    def __init__(self, items: Sequence[Item], scorer: str) -> None:
        self.rows: dict[str, int] = {}
        self.exact: set[str] = set()
        self._whole = {item.id: plain(_asked(item)) for item in items}
        self._long: dict[str, _Long] = {}
        self._short: dict[str, list[str]] = defaultdict(list)
        self._index: dict[Gram, list[str]] = defaultdict(list)
        parts = {item.id: _parts(_asked(item)) for item in items}
        frames = _frames(list(parts.values()))
        for item in items:
            self._add(item, parts[item.id], frames, scorer)
        counts = Counter(gram for long in self._long.values() for gram in long.grams)
        for name, long in self._long.items():
            for gram in _rare(long.grams, counts, len(long.grams)):
                self._index[gram].append(name)

    def _add(self, item: Item, parts: Sequence[str], frames: set[tuple[str, str]], scorer: str) -> None:
        runs = [list(_runs(part.split(), frames)) for part in parts]
        grams = [frozenset(gram for run in part for gram in _grams(run)) for part in runs]
        own = frozenset[Gram]().union(*grams)
        if len(own) >= ENOUGH:
            self._long[item.id] = _Long(tuple(part for part in grams if part), own)
            return
        answer = plain(expected_answer(item, scorer) or "")
        content = " ".join(word for part in runs for run in part for word in run)
        for text in {self._whole[item.id], " ".join(parts), content} - {""}:
            self._short[text].append(item.id)
            if answer:
                self._short[f"{text} {answer}"].append(item.id)

    def read(self, number: int, texts: Sequence[str]) -> None:
        """Note the items that stand in one row."""
        whole = [plain(text) for text in texts]
        split = [_parts(text) for text in texts]
        first = {*whole[:1], *(" ".join(parts) for parts in split[:1])}
        said = {*whole, *(" ".join(parts) for parts in split), *(part for parts in split for part in parts)}
        for text in (said | first) & self._short.keys():
            if text in first or text.count(" ") + 1 >= WORDS:
                for name in self._short[text]:
                    self._met(name, number, True)
        grams = frozenset(gram for text in whole for gram in _grams(text.split()))
        near = {name for gram in self._index.keys() & grams for name in self._index[gram]} - self.rows.keys()
        for name in near:
            if self._long[name].within(grams):
                self._met(name, number, any(f" {self._whole[name]} " in f" {text} " for text in whole))

    def _met(self, name: str, number: int, exact: bool) -> None:
        if name not in self.rows:
            self.rows[name] = number
            self.exact |= {name} if exact else set()


def _asked(item: Item) -> str:
    pair = item.meta.get("pair")
    return item.prompt if pair is None else f"{item.prompt}\n{pair}"


def _frames(items: Sequence[Sequence[str]]) -> set[tuple[str, str]]:
    """Pairs of words that stand in more than half of the items, and the words that most parts begin and end with."""
    if len(items) < FRAME:
        return set()
    counts: Counter[tuple[str, str]] = Counter()
    for parts in items:
        framed = [["", *part.split(), ""] for part in parts]
        counts.update({pair for words in framed for pair in pairwise(words)})
    return {pair for pair, count in counts.items() if count > len(items) / 2}


def _runs(words: Sequence[str], frames: set[tuple[str, str]]) -> Iterator[list[str]]:
    """The stretches of words that no frame covers."""
    covered = [False] * (len(words) + 2)
    for place, pair in enumerate(pairwise(["", *words, ""])):
        if pair in frames:
            covered[place] = covered[place + 1] = True
    for inside, stretch in groupby(zip(words, covered[1:], strict=False), key=itemgetter(1)):
        if not inside:
            yield [word for word, _ in stretch]
