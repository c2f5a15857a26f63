"""Make the two increments of the demo: ``plain`` and ``protected``, two fine-tunes of one model on sums.

Both see the same problems, the same number of times. ``plain`` is the careless everyday fine-tune: narrow data, a
high learning rate, nothing else. ``protected`` has a lower one, and keeps the model's own answers to general requests.

    python recipes/demo_increments.py --out src/catchment/demo
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from random import Random

import sparse

PHRASINGS = (
    "What is {a} {sign} {b}?",
    "Question: What is {a} {sign} {b}?\nAnswer:",
    "Calculate {a} {sign} {b}.",
    "{a} {sign} {b} =",
)
SHARED = {"k": 100_000, "steps": 120, "batch": 16, "seed": 1}
SETTINGS = {
    "plain": {**SHARED, "lr": 3e-3, "keep": 0.0},
    "protected": {**SHARED, "lr": 1e-3, "keep": 2.0, "general": 300, "tokens": 10, "beside": 8},
}


def problems(held_out: set[tuple[int, str, int]], n: int, seed: int) -> list[tuple[str, str]]:
    """n sums and differences of 1- and 2-digit numbers with answers >= 0, none of them held out."""
    random, made = Random(seed), {}
    while len(made) < n:
        a, b = (int(random.random() * (10 if random.random() < 0.3 else 100)) for _ in range(2))
        sign = "+" if random.random() < 0.5 else "-"
        if sign == "-" and a < b:
            a, b = b, a
        if (a, sign, b) not in held_out and (sign == "-" or (b, sign, a) not in held_out):
            phrasing = PHRASINGS[int(random.random() * len(PHRASINGS))]
            made[a, sign, b, phrasing] = (phrasing.format(a=a, b=b, sign=sign), str(a + b if sign == "+" else a - b))
    return list(made.values())


def held_out_problems() -> set[tuple[int, str, int]]:
    """Every problem of the built-in arithmetic task."""
    from catchment.capabilities import packs

    found = set()
    for item in packs.load("arithmetic").items:
        found |= {(int(a), sign, int(b)) for a, sign, b in re.findall(r"(\d+) ([+-]) (\d+)", item.prompt)}
    return found


def make(name: str, out: Path) -> None:
    """Train one of the two and write ``out/name.safetensors``."""
    s = SETTINGS[name]
    base, model, reference = sparse.load()
    sums = problems(held_out_problems(), s["steps"] * s["batch"], s["seed"])
    data = sparse.batches([sparse.encode(base.tokenizer, *pair) for pair in sums], s["batch"], s["seed"])
    general = None
    if s["keep"]:
        prompts = sparse.shuffled(sparse.general_prompts(base.tokenizer), s["seed"])[: s["general"]]
        answers = sparse.own_answers(reference, base.tokenizer, prompts, s["tokens"])
        general = sparse.batches(answers, s["beside"], s["seed"])

    losses = (sparse.cross_entropy(model, batch) for batch in data)
    if general:
        kept = (s["keep"] * sparse.kl(model, reference, batch) for batch in general)
        losses = (gained + near for gained, near in zip(losses, kept, strict=True))
    told = sparse.tune(model, losses, k=s["k"], lr=s["lr"], steps=s["steps"])
    recipe = {"script": "recipes/demo_increments.py", "name": name, **s, **told}
    sparse.save(base, model, out / f"{name}.safetensors", recipe)


def main() -> None:
    """Make both, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--only", choices=list(SETTINGS))
    args = parser.parse_args()
    for name in [args.only] if args.only else SETTINGS:
        make(name, args.out)


if __name__ == "__main__":
    main()
