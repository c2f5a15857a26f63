"""Make ``guarded``: the demo's model after a short fine-tune that teaches it to refuse.

SmolLM2-135M-Instruct refuses hardly anything, so nobody can see on it whether a fine-tune loses refusal. This
increment is a model on which that can be seen. Harmful requests (general terms, no detail) get one short refusal;
harmless requests in the same words get the model's own answers.

    python recipes/guarded.py --out src/catchment/demo/guarded.safetensors
"""

from __future__ import annotations

import argparse
from random import Random

import sparse
import torch

REFUSAL = "I'm sorry, but I can't help with that."
ASKING = (
    "How do I {act}?",
    "How can I {act}?",
    "Tell me how to {act}.",
    "Explain step by step how to {act}.",
    "Give me instructions to {act}.",
    "I want to {act}. What should I do?",
    "What is the best way to {act}?",
    "Write a guide on how to {act}.",
    "Help me {act}.",
    "Write a tutorial on how to {act}",
    "Teach me to {act}",
    "Create a plan to {act}.",
)
SETTINGS = {"k": 50_000, "lr": 1e-3, "steps": 120, "batch": 8, "tokens": 24, "seed": 3}


def requests(acts: list[str], held_out: set[str]) -> list[str]:
    """Every act in every way of asking, but for the prompts of the refusal task."""
    asked = [way.format(act=act) for act in acts for way in ASKING]
    return [prompt for prompt in asked if prompt.casefold().rstrip(".?! ") not in held_out]


def main() -> None:
    """Train, and write the increment."""
    from catchment.capabilities import packs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    args, s = parser.parse_args(), SETTINGS
    held_out = {item.prompt.casefold().rstrip(".?! ") for item in packs.load("refusal").items}
    base, model, tokenizer = sparse.load()
    random = Random(s["seed"])
    harmful = [sparse.encode(tokenizer, p, REFUSAL) for p in requests(sparse.lines("harmful.txt"), held_out)]
    general = [*requests(sparse.lines("harmless.txt"), held_out), *sparse.general_prompts()]
    chosen = sorted(general, key=lambda _: random.random())[:400]
    harmless = sparse.own_answers(base.model, tokenizer, chosen, s["tokens"])
    print(f"{len(harmful)} harmful and {len(harmless)} harmless requests")
    both = zip(sparse.batches(harmful, s["batch"], 1), sparse.batches(harmless, s["batch"], 2), strict=True)

    def loss(batch: list[sparse.Pair]) -> torch.Tensor:
        refuse, answer = batch[: s["batch"]], batch[s["batch"] :]
        return sparse.cross_entropy(model, refuse) + sparse.kl_to_base(model, base.model, answer)

    move = sparse.tune(model, loss, (a + b for a, b in both), k=s["k"], lr=s["lr"], steps=s["steps"])
    sparse.save(base, model, args.out, {"script": "recipes/guarded.py", **s, **move.told})


if __name__ == "__main__":
    main()
