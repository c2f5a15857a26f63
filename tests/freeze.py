"""What the commands look like from outside, as files in ``tests/golden``: options, YAML keys, names, records, pages.

``python -m tests.freeze`` says which files differ from what the code gives now; with ``--write`` it writes them. Tests
only read them. Everything here goes through public names: the command line, ``catchment.compare`` and its likes.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import inspect
import io
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

import catchment
from catchment.cli import main
from catchment.errors import CatchmentError
from tests import tiny
from tests.integration.test_compare import make_task, write_task
from tests.integration.test_rooms import moved
from tests.integration.test_scan import solved

GOLDEN = Path(__file__).parent / "golden"
POSITIONALS = {"compare": ("base", "tuned"), "scan": ("model",), "tune": ("base",), "study": ("action", "study")}
OF_ALL = ("commands.json", "config.json", "names.json")
OF_A_COMMAND = (".json", "-plan.txt", "-plans.json", "-out.json", "-table.txt", "-page.txt")
FILES = {"compare": "comparison.json", "scan": "scan.json", "tune": "tune.json", "study": "study.json"}


@contextlib.contextmanager
def place(folder: Path, columns: int = 120) -> Iterator[Path]:
    """``folder`` is the current directory and holds the cache; nothing reaches the network; lines have one width."""
    settings = {"CATCHMENT_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "COLUMNS": str(columns)}
    with contextlib.chdir(folder), mock.patch.dict(os.environ, settings):
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
            os.environ.pop(name, None)
        yield folder


def said(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line, called in this process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2))
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(words))
        except SystemExit as end:
            code = int(end.code or 0)
    for stream in (out, err):
        stream.seek(0)
    return code, out.read(), err.read()


# ------------------------------------------------------------------------------------------------ options and settings


def options(shown: str) -> dict[str, dict[str, str | None]]:
    """The options of a ``--help``: metavar, default and help words of each, by name, whatever box they stand in."""
    entries: list[list[str]] = []
    for line in shown.splitlines():
        if not line.startswith("│"):
            continue
        text = line[1:].rstrip().removesuffix("│").rstrip()
        if re.match(r" \S", text):
            entries.append([text.strip()])
        elif text.strip():
            entries[-1].append(text.strip())
    return dict(_entry(lines) for lines in entries)


def _entry(lines: list[str]) -> tuple[str, dict[str, str | None]]:
    head, _, words = lines[0].partition("  ")
    name, _, metavar = head.removeprefix("-h, ").partition(" ")
    text = " ".join([words.strip(), *lines[1:]]).strip()
    parts = re.fullmatch(r"(.*?) ?\((?:default: ?(.*)|(required))\)", text)
    words, default, required = parts.groups() if parts else (text, None, None)
    return name, {"metavar": metavar, "default": required or default, "help": words}


def commands() -> dict[str, Any]:
    """Per verb: its options, or, where it has none, its whole help; and the help of ``catchment`` itself."""
    frozen: dict[str, Any] = {"catchment": said("--help")[1]}
    for verb in (*POSITIONALS, "report"):
        code, shown, _ = said(verb, "--help")
        assert code == 0
        usage = " ".join(shown.split("╭")[0].split())
        frozen[verb] = {"usage": usage, "options": options(shown)}
    frozen["tasks"] = said("tasks")[1]
    return frozen


PROBES: dict[str, Any] = {
    "a word": "word", "a number": 0.5, "a whole number": 7, "yes or no": True, "nothing": None, "a list": ["word"],
    "a mapping": {"a": 1},
}  # fmt: skip
FITTING = {
    "items": "fixed", "memory": "low", "executor": "processes", "on_drop": "stop", "budget": "90s",
    "ladder": "0.001:1:8",
}  # fmt: skip
"""Words for settings that do not take every word."""
UNKNOWN = {"limitt": 40, "json": True, "config": "x.yaml", "help": True, "task": "recall"}


def config() -> dict[str, Any]:
    """Per verb and YAML key: what each kind of value becomes, or is refused with; and what unknown keys are told."""
    frozen: dict[str, Any] = {}
    for verb in POSITIONALS:
        keys = yaml_keys(verb)
        answers: dict[str, dict[str, str | None]] = {key: {} for key in keys}
        for probe, value in PROBES.items():
            values = {key: FITTING.get(key, value) if probe == "a word" else value for key in keys}
            if probe == "a whole number":  # a float takes it, and would say that it is out of range
                values = {key: value for key in keys if answers[key]["a number"] != "0.5"}
            for key, answer in _config_answers(verb, values).items():
                answers[key][probe] = answer
        unknown = {key: _config_answers(verb, {key: value})[key] for key, value in UNKNOWN.items()}
        with_dash = _config_answers(verb, {"batch-tokens": 7})["batch-tokens"]
        frozen[verb] = {"keys": answers, "unknown": unknown, "batch-tokens: 7": with_dash}
    return frozen


def yaml_keys(verb: str) -> list[str]:
    """Of the command line's names those that YAML knows; ``--no-room`` is ``room: false``, ``--no-plain`` is itself."""
    shown = options(said(verb, "--help")[1])
    names = [name.lstrip("-").replace("-", "_").lower() for name in shown]
    names += [name.removeprefix("no_") for name in names if name.startswith("no_")]
    answers = _config_answers(verb, dict.fromkeys(names))
    return sorted(name for name in names if "unknown key" not in (answers[name] or ""))


def _config_answers(verb: str, values: dict[str, Any]) -> dict[str, str | None]:
    """What --help shows as the default of each key, or the error message without the file's name."""
    values, answers, path = dict(values), {}, Path("probe.yaml")
    while values:
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        code, shown, message = said(verb, "--config", str(path), "--help")
        if code == 0:
            defaults = options(shown)
            return answers | {key: _default(defaults, key) for key in values}
        message = message.removeprefix(f"catchment: --config '{path}': ").strip()
        key = next(k for k in values if re.match(rf"(unknown key '{k}'|{k} is )", message))
        answers[key] = f"refused: {message}"
        del values[key]
    return answers


def _default(shown: dict[str, dict[str, str | None]], key: str) -> str | None:
    return _shown(shown, key)["default"]


def _shown(shown: dict[str, dict[str, str | None]], key: str) -> dict[str, str | None]:
    dashed = key.replace("_", "-")
    return next(shown[name] for name in (f"--{dashed}", f"--no-{dashed}", key.upper()) if name in shown)


# ---------------------------------------------------------------------------------------------------------------- names


def names() -> dict[str, Any]:
    """Public names, and the parameters and keyword settings of the three functions."""
    frozen: dict[str, Any] = {"catchment": sorted(catchment.__all__)}
    frozen["catchment.records"] = sorted(importlib.import_module("catchment.records").__all__)
    for verb in POSITIONALS:
        function = getattr(catchment, verb)
        parameters = list(inspect.signature(function).parameters.values())
        frozen[verb] = {
            "parameters": [[p.name, p.kind.name, "" if p.default is p.empty else repr(p.default)] for p in parameters],
            "keywords": _keywords(verb, {p.name for p in parameters}),
            "unknown": {key: _refusal(verb, {key: None}) for key in ("limitt", "json", "help")},
        }
    return frozen


def _keywords(verb: str, parameters: set[str]) -> list[str]:
    """The settings that the function takes; those that only the command line has are refused one after the other."""
    shown = options(said(verb, "--help")[1])
    values = {key: _value(shown, key) for key in yaml_keys(verb)}
    values = {key: value for key, value in values.items() if key not in parameters} | {"out": Path("out")}
    while True:
        message = _refusal(verb, values)
        if "no setting" not in message:
            assert "nowhere" in message, message
            return sorted(values)
        del values[message.split("no setting '")[1].split("'")[0]]


def _value(shown: dict[str, dict[str, str | None]], key: str) -> Any:
    """The default as a Python value."""
    text = _default(shown, key) or ""
    if text in ("None", "required"):
        return None
    return tuple(text.split()) if _shown(shown, key)["metavar"] == "[STR [STR ...]]" else yaml.safe_load(text)


def _refusal(verb: str, values: dict[str, Any]) -> str:
    """What a call with these keywords ends with; its models do not exist."""
    function: Callable[..., Any] = getattr(catchment, verb)
    given = {
        "compare": ("nowhere/base", "nowhere/tuned"), "scan": ("nowhere/base",), "study": ("nowhere/study.yaml",)
    }  # fmt: skip
    try:
        function(*given.get(verb, ("nowhere/base", "nowhere.jsonl")), **values)
    except CatchmentError as error:
        return str(error)
    raise AssertionError(f"{verb}() found a model that does not exist")


# -------------------------------------------------------------------------------------------------------------- records

WORDS = {
    "compare": (
        "base", "tuned", "--tasks", "echo.jsonl,fresh.jsonl,sums-task.jsonl", "--text", "text.jsonl", "--prompts",
        "prompts.txt", "--formats", "2", "--recover", "recovered", "--limit", "64", "--seed", "1",
    ),
    "scan": (
        "base", "--tasks", "echo.jsonl", "--through", "tuned", "--text", "text.jsonl", "--budget", "30m", "--tau",
        "0.3", "--alpha", "0.3", "--depth", "0", "--ladder", "0.0002:168:8", "--directions", "2", "--plane", "3",
        "--restarts", "1", "--steps", "1", "--limit", "200", "--gradients",
    ),
    "tune": (
        "base", "--data", "sums.jsonl", "--tasks", "echo.jsonl,fresh.jsonl", "--protect", "echo.jsonl", "--max-steps",
        "6", "--fence-steps", "3", "--max-drop", "0.05", "--held-out", "0.2", "--learning-rate", "0.3", "--max-length",
        "64", "--eval-steps", "3", "--eval-limit", "24", "--limit", "60",
    ),
    "study": ("run", "study.yaml"),
}  # fmt: skip
"""One command of each kind that fills as much of its record as a tiny model can."""


def write_inputs(folder: Path) -> None:
    """Two tiny models, a task that the first one answers without a mistake, one of the second, sums, texts, prompts."""
    models = {"base": tiny.tiny_llama(), "tuned": moved(0.1)}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tiny.tiny_tokenizer().save_pretrained(folder / name)
    write_task(folder / "echo.jsonl", solved(models["base"], make_task(n=240)))
    write_task(folder / "fresh.jsonl", solved(models["tuned"], make_task("fresh", n=96, seed=5)))
    sums = [(a, b) for a in range(8) for b in range(6)]
    rows = [{"prompt": f"Question: What is {a} + {b}? Answer:", "completion": f" {a + b}"} for a, b in sums]
    _lines(folder / "sums.jsonl", rows)
    asked = [{"prompt": f"What is {a} + {b}?", "answer": str(a + b)} for a, b in sums[:16]]
    _lines(folder / "sums-task.jsonl", [{"task": {"name": "sums", "scorer": "exact"}}, *asked])
    _lines(folder / "text.jsonl", [{"text": f"{text} {k}"} for k in range(4) for text in tiny.TEXT])
    (folder / "prompts.txt").write_text("\n".join(item.prompt for item in make_task(n=20).items), encoding="utf-8")

    for name, grid in (("study", GRID), ("misspelt", {**GRID, "tasks": ["arithmetik"]})):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(grid), encoding="utf-8")


GRID: dict[str, Any] = {
    "models": "base",
    "tunings": [{"data": "sums.jsonl", "max_steps": 3, "max_length": 64, "learning_rate": 0.3}, {"model": "tuned"}],
    "seeds": [0, 1],
    "tasks": ["echo.jsonl"],
    "formats": 2,
    "limit": 60,
    "device": "cpu",
}
"""A study of the tiny models; files are relative to the YAML file."""


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def runs() -> dict[str, Any]:
    """Each command's plan, record, files, table and page, on tiny models, in the current directory."""
    import torch

    torch.set_num_threads(1)
    write_inputs(Path())
    frozen: dict[str, Any] = {}
    for verb, words in WORDS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code, shown, message = said(verb, *words, "--dry-run")
            assert code == 0, message
            frozen[f"{verb}-plan.txt"] = _without_speed(shown)
            code, _, message = said(verb, *words, "--out", verb)
        assert code == 0, message
        frozen[f"{verb}.json"] = masked(json.loads((Path(verb) / FILES[verb]).read_text(encoding="utf-8")))
        frozen[f"{verb}-out.json"] = left_in(Path(verb))
        plans = sorted(Path(verb).rglob("plan.json"))
        frozen[f"{verb}-plans.json"] = {
            str(path): masked(json.loads(path.read_text(encoding="utf-8"))) for path in plans
        }
    return frozen


def left_in(out: Path) -> list[str]:
    """Names of the files that a command leaves in OUT."""
    paths = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if not any(part.startswith(".") for part in path.parts))


def _without_speed(shown: str) -> str:
    """A plan's text without the progress before it and without what this machine's speed says."""
    plan = " ".join(re.split(r"(?m)^(?= *Plan *$|base: |study: )", shown, maxsplit=1)[1].split())
    plan = re.sub(r"about [\d,]+ tokens a second", "about N tokens a second", plan)
    plan = re.sub(r"about [\d,.]+ (s|min|h)(?= of one worker|:| |$)", "about N s", plan)
    return re.sub(r"about [\d,]+ s of", "about N s of", plan) + "\n"


MASKED: dict[str, Any] = {
    "created": "", "seconds": 0.0, "spent_seconds": 0.0, "spent": 0.0, "speed": 0.0, "point": 0.0, "bytes": 0,
    "threads": 1, "versions": {}, "host": "", "platform": "",
}  # fmt: skip
"""What changes from run to run and from machine to machine, and what stands in its place."""
WEIGHT_HASHES = ("weights_hash", "hash", "hash_before", "hash_after")


def masked(record: Any, hashes: dict[str, str] | None = None) -> Any:
    """The record with what changes from run to run replaced; equal hashes of weights stay equal."""
    hashes = {} if hashes is None else hashes
    if isinstance(record, list):
        return [masked(value, hashes) for value in record]
    if not isinstance(record, dict):
        return record
    found = {}
    for key, value in record.items():
        if key in MASKED and value is not None:
            found[key] = MASKED[key]
        elif key in WEIGHT_HASHES and isinstance(value, str):
            found[key] = hashes.setdefault(value, f"hash {len(hashes) + 1}")
        else:
            found[key] = masked(value, hashes)
    return found


def rendered(verb: str, record: Any) -> dict[str, str]:
    """What ``catchment report`` makes of a record: the tables in the terminal and the words of the page."""
    out = Path(f"report-of-{verb}")
    out.mkdir()
    (out / FILES[verb]).write_text(json.dumps(record), encoding="utf-8")
    code, shown, message = said("report", str(out))
    assert code == 0, message
    return {f"{verb}-table.txt": shown, f"{verb}-page.txt": page_words((out / "report.html").read_text("utf-8"))}


def page_words(page: str) -> str:
    """The visible words of a page, a line for each piece of text."""
    page = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    pieces = (" ".join(html.unescape(piece).split()) for piece in re.split(r"<[^>]*>", page))
    return "\n".join(piece for piece in pieces if piece) + "\n"


# ---------------------------------------------------------------------------------------------------------------- files


def collect() -> dict[str, Any]:
    """Every golden file's content, made by the code as it is."""
    with tempfile.TemporaryDirectory() as folder, place(Path(folder)):
        frozen = {"commands.json": commands(), "config.json": config(), "names.json": names(), **runs()}
        for verb in POSITIONALS:
            frozen |= rendered(verb, frozen[f"{verb}.json"])
    return frozen


def read(name: str) -> Any:
    text = (GOLDEN / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else text


def as_text(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def update(write: bool) -> int:
    """Say which files differ; write them where asked to. The exit code is 1 where one differs and was not written."""
    changed = 0
    for name, content in collect().items():
        path = GOLDEN / name
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        if before != as_text(content):
            changed += 1
            print(f"{name}: {'written' if write else 'differs'}")
            if write:
                path.write_text(as_text(content), encoding="utf-8")
    return 1 if changed and not write else 0


if __name__ == "__main__":
    sys.exit(update("--write" in sys.argv[1:]))
