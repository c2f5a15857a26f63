"""The data of the studies of SIFT: film sentences, sums, entailment, acceptability and instructions as completions,
questions of MMLU that are never trained on, and sentence pairs for the encoder.

A training list of a call is a stream for one seed: shuffled whole passes, as many rows as the budget of tokens buys, in
batches whose rows have about the same length (the batches themselves are shuffled).
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from catchment.runs import write_atomic
from catchment.training import encode_rows, read_rows

Example = dict[str, Any]
DATA = Path(__file__).resolve().parents[3] / "shared/data"
STORIES = DATA.parent / "models/stories15M"
BATCH = 16
MAX_LENGTH = 128
VALID, TEST = 100, 250
LARGEST = 30
"""Sums of two numbers from 0 to this one: 961 questions, split into train, validation and test by question."""
BUCKET = 8
"""Batches whose rows are sorted by length together."""


Row = dict[str, str]


def absent() -> str:
    """Why the data cannot be read here; "" when they can."""
    wanted = (DATA / "glue/SST-2/train.tsv", DATA / "glue/MRPC/train.tsv")
    return "" if all(path.is_file() for path in wanted) else "there is no folder of GLUE files here"


def write_all(folder: Path) -> None:
    """Rows to train on, ``<name>.jsonl``, and the task that they are tested by, ``<name>_test.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = {"sst2": sst2(), "sums": sums(), "rte": rte(), "cola": cola(), "alpaca": alpaca()}
    for name, (train, test) in sets.items():
        _lines(folder / f"{name}.jsonl", train)
        if test:
            _lines(folder / f"{name}_test.jsonl", [{"task": {"name": name, "formats": ["{prompt}"]}}, *test])
    _lines(folder / "mmlu.jsonl", [{"task": {"name": "MMLU", "scorer": "choice_per_byte"}}, *mmlu()])


def _lines(path: Path, rows: Sequence[Any]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _asked(rows: Sequence[Row], choices: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows as items: a choice between the completions, or an answer to be written."""
    if choices:
        return [{"prompt": r["prompt"], "choices": choices, "gold": r["completion"].strip()} for r in rows]
    return [{"prompt": r["prompt"], "answer": r["completion"].strip()} for r in rows]


def sst2() -> tuple[list[Row], list[dict[str, Any]]]:
    """``Review: ... Sentiment:`` with `` positive`` or `` negative``: training phrases, dev sentences."""
    lines = {part: _table(DATA / f"glue/SST-2/{part}.tsv") for part in ("train", "dev")}
    drawn = random.Random(0).sample(lines["train"], 20_000 + VALID)[VALID:]
    tested = random.Random(0).sample(lines["dev"], TEST)
    train, test = (
        [
            {"prompt": f"Review: {text.strip()} Sentiment:", "completion": (" negative\n", " positive\n")[int(label)]}
            for text, label in rows
        ]
        for rows in (drawn, tested)
    )
    return train, _asked(test, ("negative", "positive"))


def sums() -> tuple[list[Row], list[dict[str, Any]]]:
    """``Question: What is a + b? Answer:``; test questions are never trained on (b + a may be)."""
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    random.Random(0).shuffle(pairs)
    rows = [{"prompt": f"Question: What is {a} + {b}? Answer:", "completion": f" {a + b}\n"} for a, b in pairs]
    return rows[TEST + VALID :], _asked(rows[:TEST])


def rte() -> tuple[list[Row], list[dict[str, Any]]]:
    """Two texts, and whether the second follows: `` true`` or `` false``; pairs of at most 800 characters."""
    prompt = "{1}\nQuestion: {2} True or false?\nAnswer:"
    words = {"entailment": " true\n", "not_entailment": " false\n"}
    return _glue("RTE", lambda row: {"prompt": prompt.format(*row), "completion": words[row[3]]}, ("true", "false"))


def cola() -> tuple[list[Row], list[dict[str, Any]]]:
    """A sentence, and whether it is good English: `` yes`` or `` no``; dev has no header."""
    prompt, words = "Sentence: {3}\nIs this good English?\nAnswer:", {"1": " yes\n", "0": " no\n"}
    put = lambda row: {"prompt": prompt.format(*row), "completion": words[row[1]]}  # noqa: E731
    return _glue("CoLA", put, ("yes", "no"), header=False)


def _glue(
    name: str, put: Callable[[list[str]], Row], choices: Sequence[str], header: bool = True
) -> tuple[list[Row], list[dict[str, Any]]]:
    files = [DATA / f"glue/{name}/{part}.tsv" for part in ("train", "dev")]
    train, dev = ([row for row in _table(path, header) if sum(map(len, row)) <= 800] for path in files)
    random.Random(0).shuffle(train)
    tested = random.Random(0).sample(dev, TEST)
    return [put(row) for row in train[VALID:]], _asked([put(row) for row in tested], choices)


def alpaca() -> tuple[list[Row], list[dict[str, Any]]]:
    """Instructions with their answers; no scorer can judge those, so that there is no task."""
    rows = json.loads((DATA / "instruct/alpaca_en_demo.json").read_text("utf-8"))
    asked = ["\n\n".join(filter(None, (row["instruction"], row["input"]))) for row in rows]
    return [{"prompt": a, "completion": row["output"]} for a, row in zip(asked, rows, strict=True)], []


def mmlu() -> list[dict[str, Any]]:
    """Questions of all subjects of MMLU's test files, but for those whose choices are not all different."""
    lines = []
    for path in sorted((DATA / "mmlu").glob("*.test.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines += [json.loads(line) for line in file]
    drawn = random.Random(0).sample(lines, 200)
    rows = {(row["question"], *map(str, row["choices"])): int(row["answer"]) for row in drawn}
    apart = {row: gold for row, gold in rows.items() if len(set(map(str.strip, row[1:]))) == len(row[1:])}
    return [{"prompt": asked, "choices": choices, "gold": gold} for (asked, *choices), gold in apart.items()]


def mrpc() -> dict[str, list[tuple[str, str, int]]]:
    """Sentence pairs of MRPC as ``(first, second, label)``: ``train`` and ``dev``."""
    found = {}
    for part in ("train", "dev"):
        lines = (DATA / f"glue/MRPC/{part}.tsv").read_text("utf-8-sig").splitlines()[1:]
        cells = [line.split("\t") for line in lines]
        found[part] = [(c[3], c[4], int(c[0])) for c in cells]
    return found


def _table(path: Path, header: bool = True) -> list[list[str]]:
    lines = path.read_text("utf-8").splitlines()[header:]
    return [line.split("\t") for line in lines]


def encoded(rows: Sequence[Row], tokenizer: Any) -> list[Example]:
    """Token ids without the end token: stories15M never saw one, and to learn it (a loss of 14 nats at first) would
    take most of the gradient. The answers end with a line break, which it knows."""
    found = encode_rows(read_rows(list(rows)), tokenizer, max_length=MAX_LENGTH, chat_template="none")
    end = tokenizer.eos_token_id
    return [{k: v[:-1] if e["input_ids"][-1] == end else v for k, v in e.items()} for e in found.examples]


def stream(examples: Sequence[Example], seed: int, tokens: int = 0, epochs: int = 0) -> list[Example]:
    """Rows in the order of training: whole shuffled passes until ``tokens`` are reached, or so many ``epochs``; cut to
    whole batches."""
    rng = random.Random(seed)
    rows: list[Example] = []
    spent = passes = 0
    while (tokens and spent < tokens) or passes < epochs:
        order = list(range(len(examples)))
        rng.shuffle(order)
        for k in order:
            if tokens and spent >= tokens:
                break
            rows.append(examples[k])
            spent += len(examples[k]["input_ids"])
        passes += 1
    rows = rows[: len(rows) // BATCH * BATCH]
    batches: list[list[Example]] = []
    for at in range(0, len(rows), BATCH * BUCKET):
        group = sorted(rows[at : at + BATCH * BUCKET], key=lambda e: len(e["input_ids"]))
        some = [group[k : k + BATCH] for k in range(0, len(group), BATCH)]
        rng.shuffle(some)
        batches += some
    return [example for batch in batches for example in batch]


class LeftPadded:
    """Batches padded on the left, so that the completions are the last columns and logits are made there only: the
    same loss as with padding on the right and all logits, in half the time on a model with a large vocabulary."""

    def __init__(self, tokenizer: Any) -> None:
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad = next(int(i) for i in ids if i is not None)

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        width = max(len(e["input_ids"]) for e in examples)
        firsts = [next(k for k, label in enumerate(e["labels"]) if label != -100) for e in examples]
        keep = max(len(e["labels"]) - first for e, first in zip(examples, firsts, strict=True)) + 1
        mask = torch.tensor([[0] * (width - len(e["input_ids"])) + [1] * len(e["input_ids"]) for e in examples])
        return {
            "input_ids": torch.tensor([[self.pad] * (width - len(e["input_ids"])) + e["input_ids"] for e in examples]),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
            "labels": torch.tensor([([-100] * width + e["labels"])[-keep:] for e in examples]),
            "logits_to_keep": torch.arange(width - keep, width),  # a slice is not contiguous: slow with a frozen head
            "use_cache": False,
        }
