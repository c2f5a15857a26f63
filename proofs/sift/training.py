"""How the calls of the studies of SIFT train, and what a step of each method costs."""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from catchment.methods import SIFT, Full, LoRA, LoRATuning, MethodTrainer

WARM_UP, CLIP = 0.06, 1.0


class InOrder(MethodTrainer):
    """Reads the rows in the order that they are given in."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = train_dataset or self.train_dataset
        return SequentialSampler(rows)


class Checked(TrainerCallback):
    """Looks at the time after every step."""

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.check()


@dataclass(frozen=True)
class Ranked(LoRA):
    """LoRA whose rank is ``low`` on some targets; ``lora_alpha / rank`` is the same on all."""

    low: tuple[str, ...] = ()
    low_r: int = 1

    def attach(self, model: Any, *, seed: int = 0) -> LoRATuning:
        from peft import LoraConfig

        alphas = dict.fromkeys(self.low, self.lora_alpha * self.low_r / self.r)
        config = LoraConfig(
            r=self.r, lora_alpha=self.lora_alpha, target_modules=self._targets(model),  # type: ignore[arg-type]
            rank_pattern=dict.fromkeys(self.low, self.low_r), alpha_pattern=alphas,  # type: ignore[arg-type]
            modules_to_save=list(self.modules_to_save) or None,
        )  # fmt: skip
        return _wrapped(model, config, self, seed)


@dataclass(frozen=True)
class Shira:
    """PEFT's SHiRA: ``r (in + out)`` random entries of every target, copied into the weight in each forward pass."""

    name: ClassVar[str] = "shira"
    r: int = 2
    target_modules: tuple[str, ...] = ()

    def attach(self, model: Any, *, seed: int = 0) -> LoRATuning:
        from peft import ShiraConfig

        config = ShiraConfig(r=self.r, target_modules=list(self.target_modules), random_seed=seed)
        return _wrapped(model, config, self, seed)


def _wrapped(model: Any, config: Any, method: Any, seed: int) -> LoRATuning:
    from peft import get_peft_model

    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return LoRATuning(get_peft_model(model, config), method, flags)


@dataclass
class Tuned:
    """What a training cost.

    Attributes:
        seconds: Of the training loop, evaluation left out.
        tokens: Trained on, padding left out.
    """

    trainable: int
    seconds: float
    tokens: int
    steps: int


def train(
    base: Any, method: Any, rows: Sequence[Any], collator: Callable[..., Any], lr: float, seed: int, batch: int,
    check: Callable[[], None],
) -> tuple[Any, Tuned]:  # fmt: skip
    """Train a copy of ``base`` by AdamW with linear decay; returns the tuning at work and what it cost. ``check`` may
    end it after any step."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuning = method.attach(copy.deepcopy(base), seed=seed)
        arguments = TrainingArguments(
            folder, num_train_epochs=1, per_device_train_batch_size=batch, learning_rate=lr, lr_scheduler_type="linear",
            warmup_steps=int(WARM_UP * len(rows) / batch), max_grad_norm=CLIP, weight_decay=0.0, report_to=[],
            save_strategy="no", logging_strategy="no", use_cpu=True, seed=seed, disable_tqdm=True,
            remove_unused_columns=False, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = InOrder(tuning, arguments, train_dataset=list(rows), data_collator=collator)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Checked(check))
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    trainable = sum(p.numel() for p in tuning.parameters())
    tokens = sum(len(row["input_ids"]) for row in rows)
    tuning.model.eval()
    return tuning, Tuned(trainable, seconds, tokens, trainer.state.global_step)


def peak(base: Any, method: Any, rows: Sequence[Any], collator: Callable[..., Any], batch: int, steps: int = 3) -> int:
    """Most bytes that torch's CPU allocator held at once beyond the loaded model, over attaching and the first steps.

    From the profiler's record of every allocation, so that it is exact and does not depend on the system.
    """
    from torch.profiler import ProfilerActivity, profile

    model = copy.deepcopy(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            tuning = method.attach(model, seed=0)
            tuning.model.train()
            optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-5)
            for at in range(0, steps * batch, batch):
                tuning.model(**collator(rows[at : at + batch])).loss.backward()
                tuning.clip_grad_norm_(CLIP)
                optimizer.step()
                tuning.zero_grad()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def speed(base: Any, chosen: dict[str, Any], batch: Any, rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """CPU seconds of each step on one batch, all methods in turn, so that other work on the machine meets all alike.

    ``forward and backward``: a plain model whose matrices of attention and FFN require gradients, and no step.
    """
    steps: dict[str, Callable[[], None]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = copy.deepcopy(base).train()
        targets = list(Full(target_modules="all-linear").attach(plain).parameters())

        def bare() -> None:
            plain(**batch).loss.backward()
            for parameter in targets:
                parameter.grad = None

        steps["forward and backward"] = bare
        for name, method in chosen.items():
            steps[name] = _step(method.attach(copy.deepcopy(base), seed=0), batch)
        found: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(warm + rounds):
            for name, step in steps.items():
                began = time.process_time()
                step()
                if number >= warm:
                    found[name].append(time.process_time() - began)
    return found


def _step(tuning: Any, batch: Any) -> Callable[[], None]:
    tuning.model.train()
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-5)

    def step() -> None:
        tuning.model(**batch).loss.backward()
        tuning.clip_grad_norm_(CLIP)
        optimizer.step()
        tuning.zero_grad()

    return step


def methods() -> dict[str, Any]:
    """The five ways, on stories15M at about the same number of trained numbers but for ``full``."""
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return {
        "SIFT": SIFT(sparsity=0.01, rule="gradient"),
        "random": SIFT(sparsity=0.01, rule="random"),
        "LoRA": Ranked(r=2, low=("q_proj", "k_proj"), low_r=1),
        "SHiRA": Shira(r=2, target_modules=tuple(name for name in every if name != "k_proj")),
        "full": Full(),
    }
