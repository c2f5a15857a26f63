"""The data of ``sift.py``: film sentences and sums as completions, sentence pairs for the encoder.

Every training list is a stream for one seed: shuffled whole passes, as many rows as the budget of tokens buys, in
batches whose rows have about the same length (the batches themselves are shuffled).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from catchment.training import Encoded, Rows, encode_rows, read_rows

Example = dict[str, Any]
DATA = Path(__file__).resolve().parent.parent.parent / "shared/data"
BATCH = 16
ENDING = "a line break, no end token"
MAX_LENGTH = 128
VALID, TEST = 100, 250
LARGEST = 30
"""Sums of two numbers from 0 to this one: 961 questions, split into train, validation and test by question."""
BUCKET = 8
"""Batches whose rows are sorted by length together."""
PAIRS = 1000


@dataclass(frozen=True)
class Parts:
    """Rows to train on, to choose a learning rate with, and to report on; ``source`` says where they come from."""

    name: str
    train: Rows
    valid: Rows
    test: Rows
    source: str
    fingerprint: str


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


def _table(path: Path) -> list[list[str]]:
    lines = path.read_text("utf-8").splitlines()[1:]
    return [line.split("\t") for line in lines]


def encoded(rows: Rows, tokenizer: Any) -> Encoded:
    """Token ids without the end token: stories15M never saw one, and to learn it (a loss of 14 nats at first) would
    take most of the gradient. The answers end with a line break, which it knows."""
    found = encode_rows(rows, tokenizer, max_length=MAX_LENGTH, chat_template="none")
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
        keep = max(sum(label != -100 for label in e["labels"]) for e in examples) + 1
        mask = torch.tensor([[0] * (width - len(e["input_ids"])) + [1] * len(e["input_ids"]) for e in examples])
        return {
            "input_ids": torch.tensor([[self.pad] * (width - len(e["input_ids"])) + e["input_ids"] for e in examples]),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
            "labels": torch.tensor([([-100] * width + e["labels"])[-keep:] for e in examples]),
            "logits_to_keep": torch.arange(width - keep, width),  # a slice is not contiguous: slow with a frozen head
            "use_cache": False,
        }
