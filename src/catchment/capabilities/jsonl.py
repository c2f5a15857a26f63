"""The project's own task file: one JSON object a line, documented in ``docs/tasks-format.md``.

What a line holds decides how it is scored; every mistake is named with file, line, field, value and what was expected.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from catchment.capabilities.prompts import expected_answer
from catchment.capabilities.tasks import ASK, CHOICE_SCORERS, CONTINUE, NAMED, Format, Item, Task
from catchment.errors import InputError, TaskError, did_you_mean

SUFFIXES = (".jsonl", ".jsonl.gz", ".json")
FIELDS = ("prompt", "choices", "gold", "answer", "pattern", "refuse", "text", "label", "pair", "id", "meta")
OPTIONS = (
    "name", "scorer", "style", "formats", "shots", "chance", "max_new_tokens", "stop", "system", "version",
    "description",
)  # fmt: skip
SCORERS_OF = {
    "choices": CHOICE_SCORERS,
    "pattern": ("regex",),
    "refuse": ("refusal",),
    "answer": ("exact", "rouge_l"),
    "text": ("text",),
    "label": ("classify",),
    "prompt": ("agreement",),
}
"""The field that decides what kind of item a line is, and the scorers for that kind; the first is the default."""

PLAIN = (Format("plain"),)


class DoubleKeyError(Exception):
    """A key that stands twice in a JSON object, where ``json`` would drop the first value without a word."""


def fail(where: str, message: str) -> NoReturn:
    raise TaskError(f"{where}: {message}")


def check_keys(entry: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Refuse unknown keys, with a suggestion."""
    for key in entry:
        if key not in known:
            fail(where, f"unknown field {key!r}; expected some of {', '.join(known)}.{did_you_mean(str(key), known)}")


def text_of(entry: Mapping[str, Any], key: str, where: str) -> str:
    """A required field that holds visible text."""
    if key not in entry:
        fail(where, f"field {key!r} is missing; this line has {', '.join(map(repr, entry)) or 'no fields'}.")
    value = entry[key]
    if not isinstance(value, str) or not value.strip():
        fail(where, f"field {key!r} is {value!r}; expected visible text.")
    return value


def texts_of(value: Any, key: str, where: str, least: int = 1) -> tuple[str, ...]:
    """A list of at least ``least`` texts."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
        fail(where, f"field {key!r} is {value!r}; expected a list of texts.")
    if len(value) < least:
        fail(where, f"field {key!r} is {value!r}; expected at least {least} texts.")
    return tuple(value)


def _kind(entry: Mapping[str, Any], where: str) -> str:
    found = [key for key in SCORERS_OF if key in entry and key != "prompt"]
    if found in (["pattern", "answer"], ["refuse", "answer"]):
        found = found[:1]  # the answer is what a shot shows and what the companion is computed from
    if len(found) > 1:
        fail(where, f"fields {found[0]!r} and {found[1]!r} exclude each other; expected one kind of item.")
    kind = found[0] if found else "prompt"
    for key, owner in (("gold", "choices"), ("pair", "label")):
        if key in entry and kind != owner:
            fail(where, f"field {key!r} is {entry[key]!r} but there is no {owner!r}; expected both or neither.")
    return kind


def _choice(entry: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], int]:
    choices = texts_of(entry["choices"], "choices", where, least=2)
    if len(set(choices)) < len(choices) or not all(c.strip() for c in choices):
        fail(where, f"field 'choices' is {list(choices)!r}; expected distinct, visible texts.")
    if "gold" not in entry:
        fail(where, "field 'gold' is missing; expected the index or the text of the right choice.")
    gold = entry["gold"]
    expected = f"expected an index from 0 to {len(choices) - 1} or the text of a choice"
    if isinstance(gold, str):
        if gold not in choices:
            fail(where, f"field 'gold' is {gold!r}; {expected}.{did_you_mean(gold, choices)}")
        return choices, choices.index(gold)
    if isinstance(gold, bool) or not isinstance(gold, int):
        fail(where, f"field 'gold' is {gold!r}; {expected}.")
    if not 0 <= gold < len(choices):
        fail(where, f"field 'gold' is {gold}, outside the {len(choices)} choices; {expected}.")
    return choices, gold


def _answers(entry: Mapping[str, Any], where: str) -> str | tuple[str, ...]:
    value = entry["answer"]
    return text_of(entry, "answer", where) if isinstance(value, str) else texts_of(value, "answer", where)


def _pattern(entry: Mapping[str, Any], where: str) -> str:
    pattern = text_of(entry, "pattern", where)
    try:
        re.compile(pattern)
    except re.error as error:
        fail(where, f"field 'pattern' is {pattern!r}; expected a regular expression ({error}).")
    return pattern


def _refuse(entry: Mapping[str, Any], where: str) -> str:
    if not isinstance(entry["refuse"], bool):
        fail(where, f"field 'refuse' is {entry['refuse']!r}; expected true (should refuse) or false (should answer).")
    return "refuse" if entry["refuse"] else "comply"


def _label(entry: Mapping[str, Any], where: str) -> int:
    label = entry["label"]
    if isinstance(label, bool) or not isinstance(label, int) or label < 0:
        fail(where, f"field 'label' is {label!r}; expected the number of the class, from 0.")
    return label


_GOLDS: dict[str, Callable[[Mapping[str, Any], str], int | str | tuple[str, ...]]] = {
    "answer": _answers,
    "pattern": _pattern,
    "refuse": _refuse,
    "label": _label,
}


def parse_item(entry: Any, where: str) -> tuple[str, Item]:
    """The kind of an item (the field that decides it) and the item.

    >>> kind, item = parse_item({"prompt": "2 + 2?", "choices": ["3", "4"], "gold": "4"}, "here")
    >>> kind, item.gold
    ('choices', 1)
    """
    if not isinstance(entry, Mapping):
        fail(where, f"{entry!r}; expected an object such as {{'prompt': ..., 'answer': ...}}.")
    check_keys(entry, FIELDS, where)
    kind = _kind(entry, where)
    prompt = text_of(entry, "text" if kind == "text" else "prompt", where)
    choices: tuple[str, ...] = ()
    gold: int | str | tuple[str, ...] | None = None
    if kind == "choices":
        choices, gold = _choice(entry, where)
    elif kind in _GOLDS:
        gold = _GOLDS[kind](entry, where)
    meta = entry.get("meta", {})
    if not isinstance(meta, Mapping):
        fail(where, f"field 'meta' is {meta!r}; expected an object.")
    meta = dict(meta)
    if kind in ("pattern", "refuse") and "answer" in entry:
        meta["answer"] = text_of(entry, "answer", where)
    if "pair" in entry:
        meta["pair"] = text_of(entry, "pair", where)
    return kind, Item(prompt, choices, gold, id=text_of(entry, "id", where) if "id" in entry else "", meta=meta)


def parse_formats(value: Any, where: str, columns: Collection[str] = ()) -> tuple[Format, ...]:
    """Formats from a list of :class:`Format`, objects (name, template, separator) or template strings.

    Args:
        columns: Of the items, which a template may name instead of the prompt.
    """
    if not isinstance(value, list | tuple) or not value:
        fail(where, f"'formats' is {value!r}; expected a list of templates.")
    formats = []
    for number, form in enumerate(value, 1):
        if isinstance(form, str):
            form = {"name": f"format {number}", "template": form}
        if isinstance(form, Mapping):
            check_keys(form, ("name", "template", "separator"), f"{where}, format {number}")
            text_of(form, "name", f"{where}, format {number}")
            if not all(isinstance(v, str) for v in form.values()):
                fail(where, f"format {number} is {dict(form)!r}; expected texts only.")
            form = Format(**form)
        if not isinstance(form, Format):
            fail(where, f"format {number} is {form!r}; expected a template or an object with name and template.")
        named = NAMED.findall(form.template)
        if named.count("prompt") != 1 and ("prompt" in named or not set(named) & set(columns)):
            beside = f", or some of {', '.join(columns)}" if columns else ""
            fail(where, f"format {form.name!r} has the template {form.template!r}; expected '{{prompt}}' exactly once"
                 f"{beside}.")  # fmt: skip
        formats.append(form)
    names = [form.name for form in formats]
    if len(set(names)) < len(names):
        fail(where, f"formats are named {names}; expected distinct names.")
    return tuple(formats)


def _shots(value: Any, where: str) -> tuple[Item, ...]:
    if not isinstance(value, list | tuple):
        fail(where, f"'shots' is {value!r}; expected a list of items.")
    return tuple(
        shot if isinstance(shot, Item) else parse_item(shot, f"{where}, shot {number}")[1]
        for number, shot in enumerate(value, 1)
    )


def _number(value: Any, kinds: tuple[type, ...], low: float, high: float) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and bool(low <= value <= high)  # type: ignore


def parse_options(options: Mapping[str, Any], where: str, columns: Collection[str] = ()) -> dict[str, Any]:
    """Options of a task, checked; what comes out are arguments of :class:`Task`. Formats may name ``columns``.

    >>> parse_options({"stop": "###"}, "here")
    {'stop': ('###',)}
    """
    check_keys(options, OPTIONS, where)
    checked = dict(options)
    for key in ("name", "scorer", "style", "system", "description"):
        if key in options:
            text_of(options, key, where)
    if checked.get("style", "ask") not in ("ask", "continue"):
        fail(where, f"'style' is {checked['style']!r}; expected 'ask' or 'continue'.")
    if "chance" in checked and not _number(checked["chance"], (int, float), 0, 1):
        fail(where, f"'chance' is {checked['chance']!r}; expected the score of guessing, from 0 to 1.")
    if "max_new_tokens" in checked and not _number(checked["max_new_tokens"], (int,), 1, 1_000_000):
        fail(where, f"'max_new_tokens' is {checked['max_new_tokens']!r}; expected a whole number from 1.")
    if "version" in checked and not _number(checked["version"], (int,), 1, 1_000_000):
        fail(where, f"'version' is {checked['version']!r}; expected a whole number from 1.")
    if "stop" in checked:
        stop = checked["stop"]
        checked["stop"] = (stop,) if isinstance(stop, str) else texts_of(stop, "stop", where, least=0)
        if "" in checked["stop"]:
            fail(where, f"'stop' is {stop!r}; expected texts that are not empty.")
    if "formats" in checked:
        checked["formats"] = parse_formats(checked["formats"], where, columns)
    if "shots" in checked:
        checked["shots"] = _shots(checked["shots"], where)
    return checked


def build_task(kind: str, items: Sequence[Item], options: Mapping[str, Any], where: str, name: str) -> Task:
    """A task of checked items and options, with the defaults of its kind."""
    options = complete_options(kind, options, where, items[0].columns if items else ())
    for number, shot in enumerate(options.get("shots", ()), 1):
        if expected_answer(shot, options["scorer"]) is None:
            fail(where, f"shot {number} has no answer to show for scorer {options['scorer']!r}; expected a solved "
                 "example.")  # fmt: skip
    options.setdefault("name", name)
    return Task(items=tuple(items), **options)


def complete_options(
    kind: str, options: Mapping[str, Any], where: str, columns: Collection[str] = ()
) -> dict[str, Any]:
    """Checked options with the defaults of a kind of item: scorer, style, formats and limits."""
    options = parse_options(options, where, columns)
    allowed = SCORERS_OF[kind]
    scorer = options.setdefault("scorer", allowed[0])
    if scorer not in allowed:
        known = [s for scorers in SCORERS_OF.values() for s in scorers]
        fail(where, f"'scorer' is {scorer!r}; items with {kind!r} take {' or '.join(allowed)}."
             + (did_you_mean(scorer, known) if scorer not in known else ""))  # fmt: skip
    style = options.setdefault("style", "continue" if kind == "text" else "ask")
    if kind in ("text", "prompt", "label", "refuse"):
        options.setdefault("formats", PLAIN)
    options.setdefault("formats", ASK if style == "ask" else CONTINUE)
    if kind == "refuse":
        options.setdefault("max_new_tokens", 48)
        options.setdefault("stop", ())
    if scorer == "rouge_l":
        options.setdefault("max_new_tokens", 60)
        options.setdefault("stop", ())
    return options


def read_text(path: str | Path) -> str:
    """The text of a file, plain or ``.gz``.

    Raises:
        InputError: no such file, or not to be read.
        TaskError: not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"no task file {str(path)!r}; expected a file.{did_you_mean(path.name, beside)}")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        fail(f"{path}, line {line}", f"byte {error.start} is not UTF-8; expected text in UTF-8. Is it compressed?")
    except (OSError, EOFError) as error:
        raise InputError(f"task file {str(path)!r} cannot be read: {error}.") from error


def read_entries(path: str | Path) -> list[tuple[str, Any]]:
    """All objects of a file with where each stands: a JSON array, or one JSON value a line."""
    text = read_text(path)
    if str(path).endswith(".json") and text.lstrip().startswith("["):
        values = _loads(text, str(path))
        return [(f"{path}, entry {number}", value) for number, value in enumerate(values, 1)]
    lines: Iterable[tuple[int, str]] = enumerate(text.split("\n"), 1)
    return [
        (f"{path}, line {number}", _loads(line, f"{path}, line {number}")) for number, line in lines if line.strip()
    ]


def distinct_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of which no value is lost: for ``json.loads(..., object_pairs_hook=distinct_keys)``.

    Raises:
        DoubleKeyError: a key stands twice.
    """
    entry = dict(pairs)
    if len(entry) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DoubleKeyError(next(key for key in keys if keys.count(key) > 1))
    return entry


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=distinct_keys)
    except DoubleKeyError as error:
        fail(where, f"field {error.args[0]!r} stands twice in one object; expected each once.")
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if "\n" in text.strip() else ""
        fail(where, f"not JSON at {place}column {error.colno} ({error.msg}): {text.strip()[:60]!r}.")


def _default_name(path: str | Path) -> str:
    return Path(path).name.removesuffix(".gz").rsplit(".", 1)[0]


def task_from_jsonl(path: str | Path, name: str | None = None, **options: Any) -> Task:
    """A task from a file with one JSON object a line (``.jsonl``, ``.jsonl.gz``; ``.json`` may hold an array).

    Args:
        path: the file. An optional first line ``{"task": {...}}`` sets options for all items.
        name: shown in tables; default: the one in the file, else the file's name.
        **options: override options of the file: scorer, style, formats, shots, chance, max_new_tokens, stop, system,
            version, description.

    Raises:
        InputError: the file is missing or cannot be read.
        TaskError: its content is wrong; the message names line, field, value and what was expected.

    Example:
        A line ``{"prompt": "The capital of Peru is", "choices": ["Lima", "Quito"], "gold": 0}`` is scored by
        log-likelihood, ``{"prompt": "3 + 4 =", "answer": "7"}`` by exact match of a greedy answer.
    """
    entries = read_entries(path)
    if entries and isinstance(entries[0][1], Mapping) and "task" in entries[0][1]:
        where, head = entries.pop(0)
        check_keys(head, ("task",), where)
        if not isinstance(head["task"], Mapping):
            fail(where, f"'task' is {head['task']!r}; expected an object with options such as name and scorer.")
        options = {**parse_options(head["task"], where), **options}
    if not entries:
        fail(str(path), "holds no items; expected one JSON object a line. Is the file empty?")
    if name is not None:
        options["name"] = name
    kinds: dict[str, str] = {}
    places: dict[str, str] = {}
    items = []
    for where, entry in entries:
        kind, item = parse_item(entry, where)
        first = next(iter(kinds), kind)
        if kind != first:
            fail(where, f"an item with {kind!r} among items with {first!r} ({kinds[first]}); expected one kind in a "
                 "file. Split the file.")  # fmt: skip
        kinds.setdefault(kind, where)
        if item.id in places:
            fail(where, f"the same item (id {item.id!r}) stands in {places[item.id]}; expected distinct items. "
                 "Remove the copy.")  # fmt: skip
        places[item.id] = where
        items.append(item)
    return build_task(first, items, options, str(path), _default_name(path))


def task_from_lines(path: str | Path, name: str | None = None, **options: Any) -> Task:
    """A task of unlabelled prompts from a text file, one a line. It measures agreement with the base.

    Blank lines are skipped; how many repeats were left out stands in the description.
    """
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    prompts = list(dict.fromkeys(lines))
    if not prompts:
        fail(str(path), "holds no prompts; expected one a line. Is the file empty?")
    items = [Item(prompt) for prompt in prompts]
    if len(lines) > len(prompts):
        options.setdefault("description", f"{len(lines) - len(prompts)} repeated prompts left out")
    return build_task("prompt", items, options, str(path), name or _default_name(path))
