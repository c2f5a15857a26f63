"""The data of ``sift.py``: film sentences, sums, entailment, acceptability and instructions as completions, sentence
pairs for the encoder, and questions of MMLU that are never trained on.

Every training list is a stream for one seed: shuffled whole passes, as many rows as the budget of tokens buys, in
batches whose rows have about the same length (the batches themselves are shuffled).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from catchment.capabilities import Item, Task
from catchment.training import Encoded, Rows, encode_rows, read_rows

Example = dict[str, Any]
DATA = Path(__file__).resolve().parent.parent.parent / "shared/data"
BATCH = 16
ENDING = "a line break, no end token"
MAX_LENGTH, LONG = 128, 256
VALID, TEST = 100, 250
LARGEST = 30
"""Sums of two numbers from 0 to this one: 961 questions, split into train, validation and test by question."""
BUCKET = 8
"""Batches whose rows are sorted by length together."""
PAIRS = 1000


@dataclass(frozen=True)
class Parts:
    """Rows to train on, to choose a learning rate with, and to report on; ``source`` says where they come from.

    Attributes:
        max_length: Tokens that a row is cut to.
        chat: The tokenizer's chat template and end token are used; otherwise neither is.
    """

    name: str
    train: Rows
    valid: Rows
    test: Rows
    source: str
    fingerprint: str
    max_length: int = MAX_LENGTH
    chat: bool = False


def absent(data: Path) -> str:
    """Why the data cannot be read here; "" when they can."""
    wanted = [data / "glue/SST-2/train.tsv", data / "glue/MRPC/train.tsv"]
    return "" if all(p.is_file() for p in wanted) else "there is no folder of GLUE files here; give --data"


def sst2(data: Path) -> Parts:
    """``Review: ... Sentiment:`` with `` positive`` or `` negative``: training phrases, dev sentences."""
    lines = {part: _table(data / f"glue/SST-2/{part}.tsv") for part in ("train", "dev")}
    drawn = random.Random(0).sample(lines["train"], 20_000 + VALID)
    tested = random.Random(0).sample(lines["dev"], TEST)

    def rows(found: Sequence[Sequence[str]]) -> Rows:
        return read_rows([
            {"prompt": f"Review: {text.strip()} Sentiment:", "completion": (" negative\n", " positive\n")[int(label)]}
            for text, label in found
        ])  # fmt: skip

    return Parts(
        "SST-2", rows(drawn[VALID:]), rows(drawn[:VALID]), rows(tested),
        f"GLUE SST-2: {len(drawn) - VALID} training phrases, {VALID} to choose learning rates, {TEST} of dev to test",
        fingerprint(data / "glue/SST-2/train.tsv", data / "glue/SST-2/dev.tsv"),
    )  # fmt: skip


def arithmetic() -> Parts:
    """``Question: What is a + b? Answer:``; test and validation questions are never trained on (b + a may be)."""
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    random.Random(0).shuffle(pairs)

    def rows(found: Sequence[tuple[int, int]]) -> Rows:
        return read_rows(
            [{"prompt": f"Question: What is {a} + {b}? Answer:", "completion": f" {a + b}\n"} for a, b in found]
        )

    test, valid, train = pairs[:TEST], pairs[TEST : TEST + VALID], pairs[TEST + VALID :]
    source = f"generated sums of numbers from 0 to {LARGEST}: {len(train)} questions to train on, {VALID} and {TEST}"
    digest = hashlib.sha256(repr(pairs).encode()).hexdigest()
    return Parts("arithmetic", rows(train), rows(valid), rows(test), source, digest)


def rte(data: Path) -> Parts:
    """Two texts, and whether the second follows: `` true`` or `` false``; pairs of at most 800 characters."""
    prompt = "{1}\nQuestion: {2} True or false?\nAnswer:"
    words = {"entailment": " true\n", "not_entailment": " false\n"}
    return _glue("RTE", data, lambda row: (prompt.format(*row), words[row[3]]), LONG)


def cola(data: Path) -> Parts:
    """A sentence, and whether it is good English: `` yes`` or `` no``; dev has no header."""
    prompt, words = "Sentence: {3}\nIs this good English?\nAnswer:", {"1": " yes\n", "0": " no\n"}
    return _glue("CoLA", data, lambda row: (prompt.format(*row), words[row[1]]), header=False)


def _glue(name: str, data: Path, put: Any, max_length: int = MAX_LENGTH, header: bool = True) -> Parts:
    files = [data / f"glue/{name}/{part}.tsv" for part in ("train", "dev")]
    train, dev = ([row for row in _table(path, header) if sum(map(len, row)) <= 800] for path in files)
    random.Random(0).shuffle(train)
    tested = random.Random(0).sample(dev, TEST)

    def rows(found: Sequence[Sequence[str]]) -> Rows:
        return read_rows([dict(zip(("prompt", "completion"), put(row), strict=True)) for row in found])

    source = f"GLUE {name}: {len(train) - VALID} training rows, {VALID} to choose with, {TEST} of dev to test"
    return Parts(name, rows(train[VALID:]), rows(train[:VALID]), rows(tested), source, fingerprint(*files), max_length)


def alpaca(data: Path) -> Parts:
    """999 instructions with their answers, in the model's chat template; 100 of them are held out."""
    path = data / "instruct/alpaca_en_demo.json"
    found = json.loads(path.read_text("utf-8"))
    random.Random(0).shuffle(found)

    def rows(some: Sequence[dict[str, str]]) -> Rows:
        asked = ["\n\n".join(filter(None, (row["instruction"], row["input"]))) for row in some]
        return read_rows([{"prompt": a, "completion": row["output"]} for a, row in zip(asked, some, strict=True)])

    test, valid, train = found[:100], found[100:150], found[150:]
    source = f"Alpaca-style instructions: {len(train)} rows to train on, {len(valid)} and {len(test)}"
    return Parts("Alpaca", rows(train), rows(valid), rows(test), source, fingerprint(path), LONG, chat=True)


def mmlu(data: Path, count: int) -> Task:
    """Questions of all subjects of MMLU's test files, scored by the likelihood of each answer."""
    found = []
    for path in sorted((data / "mmlu").glob("*.test.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found += [json.loads(line) for line in file]
    drawn = random.Random(0).sample(found, count)
    items = (Item(row["question"], tuple(map(str, row["choices"])), int(row["answer"])) for row in drawn)
    return Task("MMLU", tuple({item.id: item for item in items}.values()), "choice_per_byte")


def mrpc(data: Path) -> dict[str, list[tuple[str, str, int]]]:
    """Sentence pairs of MRPC as ``(first, second, label)``: ``train`` and ``dev``."""
    found = {}
    for part in ("train", "dev"):
        lines = (data / f"glue/MRPC/{part}.tsv").read_text("utf-8-sig").splitlines()[1:]
        cells = [line.split("\t") for line in lines]
        found[part] = [(c[3], c[4], int(c[0])) for c in cells]
    return found


def fingerprint(*paths: Path) -> str:
    """SHA-256 over the files' bytes."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _table(path: Path, header: bool = True) -> list[list[str]]:
    lines = path.read_text("utf-8").splitlines()[header:]
    return [line.split("\t") for line in lines]


def encoded(rows: Rows, tokenizer: Any, max_length: int = MAX_LENGTH, chat: bool = False) -> Encoded:
    """Token ids; without a chat template also without the end token: stories15M never saw one, and to learn it (a loss
    of 14 nats at first) would take most of the gradient. The answers end with a line break, which it knows."""
    if chat:
        return encode_rows(rows, tokenizer, max_length=max_length)
    found = encode_rows(rows, tokenizer, max_length=max_length, chat_template="none")
    end = tokenizer.eos_token_id
    cut = [{k: v[:-1] if e["input_ids"][-1] == end else v for k, v in e.items()} for e in found.examples]
    learned = sum(label != -100 for e in cut for label in e["labels"])
    return replace(found, examples=cut, tokens=sum(len(e["input_ids"]) for e in cut), trained_tokens=learned)


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
