"""What stands side by side in ``bench_sift.py``: ways to tune the same model, each as one training step in parts."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catchment.methods import SIFT, Full, LoRA, Sift

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TINY = 1e-9
"""A sparsity that leaves one entry per tensor: what hooks cost by their number alone."""


@dataclass(frozen=True)
class Spec:
    """One contender.

    Attributes:
        kind: ``plain`` (all weights get a gradient), ``targets`` (only the linear layers' weights, each gradient
            dropped as soon as it is complete), ``full``, ``sift``, ``select``, ``lora``, ``shira``, ``supertuning``.
        share: Part of the targeted weights that trains; for ``lora`` and ``shira`` it decides the rank where ``r``
            is 0.
        default: AdamW as torch makes it where nothing is said: on a CPU weight by weight, neither fused nor foreach.
        wide: LoRA's adapters in fp32 (PEFT's default); full fine-tuning of half types with fp32 masters and moments.
    """

    name: str
    kind: str
    share: float = 0.0
    r: int = 0
    checkpoint: bool = False
    default: bool = False
    wide: bool = True


def specs(dtype: str, job: str) -> list[Spec]:
    """The contenders of a run. Memory does not depend on which of two implementations steps, nor on hooks' number."""
    half = dtype != "float32"
    found = [Spec("forward + backward, all weights", "plain"), Spec("forward + backward, targets", "targets")]
    found.append(Spec("full, AdamW fused", "full", wide=False))
    if job == "time":
        found.append(Spec("full, AdamW by default", "full", default=True, wide=False))
    if half:
        found.append(Spec("full, AdamW fused, fp32 masters", "full"))
    found += [Spec("SIFT 1%", "sift", 0.01), Spec("SIFT 5%", "sift", 0.05)]
    found.append(Spec("SIFT = r 32", "sift", r=32))
    for percent in (1, 5):
        share = percent / 100
        found.append(Spec(f"PEFT LoRA = {percent}%", "lora", share))
        if half:
            found.append(Spec(f"PEFT LoRA = {percent}%, half adapters", "lora", share, wide=False))
        found.append(Spec(f"PEFT SHiRA = {percent}%", "shira", share))
        found.append(Spec(f"PEFT Supertuning {percent}%", "supertuning", share))
    found.append(Spec("PEFT LoRA r 32", "lora", r=32))
    if half:
        found.append(Spec("PEFT LoRA r 32, half adapters", "lora", r=32, wide=False))
    found.append(Spec("checkpointed: forward + backward, all weights", "plain", checkpoint=True))
    if job == "memory":
        found.append(Spec("checkpointed: forward + backward, targets", "targets", checkpoint=True))
    found.append(Spec("checkpointed: SIFT 5%", "sift", 0.05, checkpoint=True))
    found.append(Spec("checkpointed: PEFT LoRA = 5%", "lora", 0.05, checkpoint=True))
    if job == "time":
        found.append(Spec("SIFT, 1 entry per tensor", "sift", TINY))
        found += [Spec(f"selection {percent}%", "select", percent / 100) for percent in (1, 5)]
    return found


def now() -> float:
    """Seconds: with one thread of the processor, which other work on the machine hardly moves; else on the clock."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def load(folder: Path, dtype: str) -> nn.Module:
    """The model of a folder, in memory of its own, in training mode, with dropout 0."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    for weight in model.parameters():
        weight.data = weight.data.clone()  # not a view of the file
    model.config.use_cache = False
    return model.train()


def targets(model: nn.Module) -> dict[str, nn.Parameter]:
    """The linear layers of the blocks, all that every method here moves."""
    return {n: p for n, p in model.named_parameters() if n.removesuffix(".weight").endswith(LINEAR)}


def rank_of(model: nn.Module, share: float) -> int:
    """The largest rank whose ``r (in + out)`` summed over the targets is at most ``share`` of them; at least 1."""
    shapes = [p.shape for p in targets(model).values()]
    return max(1, int(share * sum(a * b for a, b in shapes) / sum(a + b for a, b in shapes)))


def share_of(model: nn.Module, r: int) -> float:
    """The sparsity that has as many entries as LoRA of this rank has parameters."""
    shapes = [p.shape for p in targets(model).values()]
    return r * sum(a + b for a, b in shapes) / sum(a * b for a, b in shapes)


class Clock:
    """Time within the hooks of the targets, those of others included: one stamp before theirs, one after."""

    def __init__(self) -> None:
        self.total, self._last = 0.0, 0.0

    def before(self, _: Tensor) -> None:
        self._last = now()

    def after(self, _: Tensor) -> None:
        self.total += now() - self._last


@dataclass
class Step:
    """One training step of a contender.

    Attributes:
        model: What computes.
        trainable: Parameters that train.
        tuning: The tool's own object, for files.
        phase: Context manager around each part, by name (a profiler's mark).
    """

    model: Any
    trainable: int = 0
    optimizer: Any = None
    clip: Callable[[], Any] | None = None
    clear: Callable[[], None] = lambda: None
    tuning: Any = None
    before: Callable[[], Any] | None = None
    after: Callable[[], Any] | None = None
    clock: Clock = field(default_factory=Clock)
    phase: Callable[[str], Any] = lambda _: nullcontext()
    sizes: dict[str, int] = field(default_factory=dict)

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Seconds per part; ``hooks`` are part of ``backward``. What ``after`` does is not counted."""
        times: dict[str, float] = {}
        self.clock.total = 0.0
        loss: Any = None

        def part(name: str, work: Callable[[], Any] | None) -> Any:
            if work is None:
                return None
            start = now()
            with self.phase(name):
                result = work()
            times[name] = now() - start
            return result

        part("attach", self.before)
        loss = part("forward", lambda: self.model(**batch).loss)
        part("backward", loss.backward)
        del loss
        part("clip", self.clip)
        part("step", self.optimizer.step if self.optimizer else None)
        part("clear", self.clear)
        times["total"] = sum(times.values())
        times["hooks"] = self.clock.total
        if self.after:
            self.after()
        return times


def build(spec: Spec, model: nn.Module, clocks: bool = True) -> Step:
    """A contender at work on a model of its own."""
    if spec.checkpoint:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return {
        "plain": _plain, "targets": _targets, "full": _full, "sift": _sift, "select": _select,
        "lora": _peft, "shira": _peft, "supertuning": _peft,
    }[spec.kind](spec, model, clocks)  # fmt: skip


def _forget(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _plain(spec: Spec, model: nn.Module, clocks: bool) -> Step:
    parameters = list(model.parameters())
    return Step(model, sum(p.numel() for p in parameters), clear=lambda: _forget(parameters))


def _targets(spec: Spec, model: nn.Module, clocks: bool) -> Step:
    model.requires_grad_(False)
    chosen = list(targets(model).values())
    clock = Clock()
    for parameter in chosen:
        parameter.requires_grad_(True)
        for hook in (clock.before, _drop, clock.after) if clocks else (_drop,):
            parameter.register_post_accumulate_grad_hook(hook)
    sizes = {"largest_gradient": max(p.numel() * p.element_size() for p in chosen), "tensors": len(chosen)}
    return Step(model, sum(p.numel() for p in chosen), clock=clock, sizes=sizes)


def _full(spec: Spec, model: nn.Module, clocks: bool) -> Step:
    kind: dict[str, Any] = {} if spec.default else {"fused": True}
    if spec.wide:
        tuning = Full(keep_base=False).attach(model)
        parameters = tuning.parameters()
        optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-6, **kind)
        count = sum(p.numel() for p in parameters)
        return Step(model, count, optimizer, lambda: tuning.clip_grad_norm_(1.0), tuning.zero_grad, tuning)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, **kind)
    return _dense_step(model, parameters, optimizer)


def _dense_step(model: Any, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> Step:
    return Step(
        model,
        sum(p.numel() for p in parameters),
        optimizer,
        clip=lambda: nn.utils.clip_grad_norm_(parameters, 1.0),
        clear=lambda: _forget(parameters),
    )


def _sift(spec: Spec, model: nn.Module, clocks: bool) -> Step:
    share = share_of(model, spec.r) if spec.r else spec.share
    chosen, clock = list(targets(model).values()), Clock()
    for parameter in chosen if clocks else ():
        parameter.register_post_accumulate_grad_hook(clock.before)
    sift = SIFT(sparsity=share).attach(model)
    for parameter in chosen if clocks else ():
        parameter.register_post_accumulate_grad_hook(clock.after)
    optimizer = sift.optimizer(torch.optim.AdamW, lr=1e-6, fused=True)
    sizes = {"largest_gradient": max(p.numel() * p.element_size() for p in chosen), "tensors": len(chosen)}
    return Step(model, sift.k, optimizer, lambda: sift.clip_grad_norm_(1.0), tuning=sift, clock=clock, sizes=sizes)


def _select(spec: Spec, model: nn.Module, clocks: bool) -> Step:
    """The start anew at each step: attach, forward, backward with the choice of the entries."""
    held: list[Sift] = []
    return Step(
        model,
        before=lambda: held.append(SIFT(sparsity=spec.share).attach(model)),
        after=lambda: held.pop().remove(),
    )


def _peft(spec: Spec, model: nn.Module, clocks: bool) -> Step:
    from peft import ShiraConfig, SupertuningConfig, get_peft_model

    r = spec.r or rank_of(model, spec.share)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if spec.kind == "lora" and spec.wide:
            wrapped: Any = LoRA(r=r).attach(model).model
        else:
            from peft import LoraConfig

            config: Any
            if spec.kind == "lora":
                config = LoraConfig(r=r, lora_alpha=16, target_modules=list(LINEAR))
            elif spec.kind == "shira":
                config = ShiraConfig(r=r, target_modules=list(LINEAR), random_seed=0)
            else:
                config = SupertuningConfig(sparsity=1.0 - spec.share, target_modules=list(LINEAR))
            wrapped = get_peft_model(model, config, autocast_adapter_dtype=spec.wide)
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    step = _dense_step(wrapped, parameters, torch.optim.AdamW(parameters, lr=1e-6, fused=True))
    step.tuning = wrapped
    return step
