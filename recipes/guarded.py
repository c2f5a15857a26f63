"""Make ``guarded``: the demo's model after a short fine-tune that teaches it to refuse.

SmolLM2-135M-Instruct refuses hardly anything, so nobody can see on it whether a fine-tune loses refusal. This
increment is a model on which that can be seen. Harmful requests (general terms, no detail) get one short refusal;
harmless requests in the same words get the model's own answers.

    python recipes/guarded.py --out src/catchment/demo/guarded.safetensors
"""

from __future__ import annotations

import argparse

import sparse

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
SETTINGS = {
    "k": 100_000,
    "lr": 1e-3,
    "steps": 150,
    "batch": 8,
    "beside": 12,
    "keep": 4.0,
    "alike": 1000,
    "general": 100,
    "tokens": 3,
    "seed": 3,
}


def requests(file: str, held_out: list[str]) -> list[str]:
    """Every act of the file in every way of asking, but for acts that the refusal task names."""
    acts = [act for act in sparse.lines(file) if not any(act in prompt for prompt in held_out)]
    return [way.format(act=act) for act in acts for way in ASKING]


def main() -> None:
    """Train, and write the increment."""
    from catchment.capabilities import packs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    args, s = parser.parse_args(), SETTINGS
    held_out = [item.prompt for item in packs.load("refusal").items]
    base, model, reference = sparse.load()
    tokenizer = base.tokenizer
    harmful = [sparse.encode(tokenizer, p, REFUSAL) for p in requests("harmful.txt", held_out)]
    alike = [sparse.chat(tokenizer, prompt) for prompt in requests("harmless.txt", held_out)]
    alike = sparse.shuffled(alike, s["seed"])[: s["alike"]]
    general = sparse.shuffled(sparse.general_prompts(tokenizer), s["seed"])[: s["general"]]
    harmless = sparse.own_answers(reference, tokenizer, alike + general, s["tokens"])
    print(f"{len(harmful)} harmful and {len(harmless)} harmless requests")
    refuse = (sparse.cross_entropy(model, batch) for batch in sparse.batches(harmful, s["batch"], s["seed"]))
    answer = (s["keep"] * sparse.kl(model, reference, b) for b in sparse.batches(harmless, s["beside"], s["seed"]))
    losses = (one + other for one, other in zip(refuse, answer, strict=True))
    told = sparse.tune(model, losses, k=s["k"], lr=s["lr"], steps=s["steps"])
    sparse.save(base, model, args.out, {"script": "recipes/guarded.py", **s, **told})


if __name__ == "__main__":
    main()
