"""Make the two increments of the demo: ``plain`` and ``protected``, two fine-tunes of one model on sums.

Both see the same problems, the same number of times. ``plain`` is the careless everyday fine-tune: narrow data, a
high learning rate, nothing else. ``protected`` also keeps the model's own answers to general requests.

    python recipes/demo_increments.py --out src/catchment/demo
"""

from __future__ import annotations

import re
from random import Random

PHRASINGS = (
    "What is {a} {sign} {b}?",
    "Question: What is {a} {sign} {b}?\nAnswer:",
    "Calculate {a} {sign} {b}.",
    "{a} {sign} {b} =",
)


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
    import catchment.capabilities.packs as packs

    found = set()
    for item in packs.load("arithmetic").items:
        found |= {(int(a), sign, int(b)) for a, sign, b in re.findall(r"(\d+) ([+-]) (\d+)", item.prompt)}
    return found


def main() -> None:
    """Train both, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for plain.safetensors and protected.safetensors")
    parser.add_argument("--only", choices=["plain", "protected"])
    args, s = parser.parse_args(), SETTINGS
    made = problems(held_out_problems(), s["steps"] * s["batch"], s["seed"])
    for name in [args.only] if args.only else ["plain", "protected"]:
        base, model, tokenizer = sparse.load()
        sums = sparse.batches([sparse.encode(tokenizer, *made_of) for made_of in made], s["batch"], s["seed"])
        if name == "plain":
            move = sparse.tune(model, lambda b: sparse.cross_entropy(model, b), sums, ...)
