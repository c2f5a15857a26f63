"""Make the tuned half of the stories pair: a careless fine-tune of stories15M on Shakespeare, all weights, fp32.

It learns the plays (its loss on the held-out end of the text falls by a lot) and forgets some of what the stories
taught it. Nothing keeps it near the base: a constant learning rate, narrow data, no stories mixed in. Seeded; a minute
or two on two cores. The result is an ordinary Hugging Face folder.

    python recipes/stories_pair.py --out /tmp/stories-tuned
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT.parent / "shared/models/stories15M"
TEXT = ROOT.parent / "shared/data/corpora/tinyshakespeare.txt"
HELD_OUT = 0.1  # share of the text, its end, that is only looked at
SETTINGS = {"lr": 3e-4, "steps": 120, "batch": 8, "length": 64, "seed": 1}


def windows(ids: Tensor, batch: int, length: int, generator: torch.Generator) -> Tensor:
    """``[batch, length]``: windows of the text at random places."""
    starts = torch.randint(len(ids) - length, (batch,), generator=generator)
    return torch.stack([ids[s : s + length] for s in starts])


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, ids: Tensor, batch: int, length: int) -> float:
    """Mean loss in nats per token on fixed windows of the held-out end."""
    generator = torch.Generator().manual_seed(0)
    model.eval()
    losses = [model(input_ids=(x := windows(ids, batch, length, generator)), labels=x).loss for _ in range(8)]
    model.train()
    return float(torch.stack(losses).mean())


def tune(base: Path, text: Path, out: Path, lr: float, steps: int, batch: int, length: int, seed: int) -> dict:
    """Train, save to ``out``, and return the recipe with what came out."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor(tokenizer(text.read_text(encoding="utf-8"), verbose=False)["input_ids"])
    cut = int(len(ids) * (1 - HELD_OUT))
    told = {"held_out_loss_before": held_out_loss(model, ids[cut:], batch, length)}
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        x = windows(ids[:cut], batch, length, generator)
        model(input_ids=x, labels=x).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    told["held_out_loss_after"] = held_out_loss(model, ids[cut:], batch, length)
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    told |= {"lr": lr, "steps": steps, "batch": batch, "length": length, "seed": seed}
    told |= {"threads": torch.get_num_threads(), "seconds": round(time.perf_counter() - started, 1)}
    recipe = {"script": "recipes/stories_pair.py", "text": text.name, **told}
    (out / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
    return recipe


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=MODEL, help="the stories15M folder")
    parser.add_argument("--text", type=Path, default=TEXT, help="plain text to tune on")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tuned model")
    for name, value in SETTINGS.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    print(json.dumps(tune(**vars(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
