"""``MethodTrainer`` beside ``transformers.Trainer``, resumed, killed, and with a loss that is not finite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from catchment.errors import InputError, ModelError, NonFiniteError, StoreError
from catchment.methods.dense import L2SP, SAM, Full, WiSEFT
from catchment.methods.lora import LoRA
from catchment.methods.sift import SIFT
from catchment.methods.trainer import MethodTrainer, whole_checkpoint
from catchment.models import effective_weights, load, named_weights
from tests.gloo import Gloo
from tests.tiny import CAUSAL, VOCABULARY, tiny_llama, tiny_tokenizer

torch.set_num_threads(1)
TOKENIZER = tiny_tokenizer()


def examples(count: int = 24) -> list[dict[str, Any]]:
    ids = torch.randint(3, VOCABULARY, (count, 8), generator=torch.Generator().manual_seed(5)).tolist()
    return [{"input_ids": row, "labels": row} for row in ids]


def arguments(folder: Path, **settings: Any) -> tf.TrainingArguments:
    given: dict[str, Any] = {
        "max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 3e-3, "logging_steps": 1, "report_to": [],
        "save_strategy": "no", "use_cpu": True, "seed": 7, "disable_tqdm": True, "dataloader_pin_memory": False,
        "weight_decay": 0.1,
    }  # fmt: skip
    return tf.TrainingArguments(str(folder), **{**given, **settings})


def trainer_of(method: Any, folder: Path, *, model: Any = None, options: Any = None, **settings: Any) -> MethodTrainer:
    model = model if model is not None else tiny_llama(attention_dropout=0.1)
    given = {"train_dataset": examples(), **(options or {})}
    trainer = MethodTrainer(method.attach(model, seed=1), arguments(folder, **settings), **given)
    trainer.remove_callback(tf.PrinterCallback)
    return trainer


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in effective_weights(model).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def logged(trainer: tf.Trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize("max_grad_norm", [0.5, 0.0])
def test_full_equals_the_plain_trainer(tmp_path: Path, max_grad_norm: float) -> None:
    """Weights, losses and gradient norms, bit for bit: clipping, decay, accumulation and dropout included."""
    settings: dict[str, Any] = {"gradient_accumulation_steps": 2, "max_grad_norm": max_grad_norm}
    ours = trainer_of(Full(), tmp_path, **settings)
    ours.train()
    model = tiny_llama(attention_dropout=0.1)
    plain = tf.Trainer(model, arguments(tmp_path, **settings), train_dataset=examples())
    plain.remove_callback(tf.PrinterCallback)
    plain.train()
    assert same(weights(ours.tuning.model), weights(model))
    assert logged(ours, "loss") == logged(plain, "loss")
    assert logged(ours, "grad_norm") == logged(plain, "grad_norm")
    assert min(logged(ours, "grad_norm")) > 0.5


RESUMED = {
    "full": (Full(), torch.float32),
    "full-bf16": (Full(), torch.bfloat16),
    "l2-sp": (L2SP(strength=0.5), torch.float32),
    "lora": (LoRA(lora_dropout=0.1), torch.float32),
    "wise-ft": (WiSEFT(), torch.bfloat16),
}


class Kill(tf.TrainerCallback):
    """Ends the process, as far as the trainer can tell, in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_run_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Killed within step 5, after a checkpoint at 3; the data order, dropout and schedule go on as if nothing was."""
    method, dtype = RESUMED[name]

    def make() -> Any:
        return tiny_llama(attention_dropout=0.1).to(dtype)

    straight = trainer_of(method, tmp_path / "a", model=make())
    straight.train()
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    killed = trainer_of(method, tmp_path / "b", model=make(), options={"callbacks": [Kill(4)]}, **saving)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    torch.manual_seed(99)
    resumed = trainer_of(method, tmp_path / "b", model=make(), **saving)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert same(weights(resumed.tuning.model), weights(straight.tuning.model))
    assert logged(resumed, "loss") == logged(straight, "loss")
    for ours, theirs in zip(resumed.tuning.parameters(), straight.tuning.parameters(), strict=True):
        assert torch.equal(ours, theirs)  # fp32 masters too


class KillAfterSave(Kill):
    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None: ...

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def entries(trainer: tf.Trainer) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if "train_runtime" not in entry]


LAST = {
    "sift": SIFT(sparsity=0.05),
    "lora": LoRA(lora_dropout=0.1),
    "full": Full(),
    "wise-ft": WiSEFT(alpha=0.5),
}


@pytest.mark.parametrize("length", [{"max_steps": 4}, {"max_steps": -1, "num_train_epochs": 1 / 3}], ids=str)
@pytest.mark.parametrize("name", LAST)
def test_killed_after_any_checkpoint_the_last_one_too(name: str, length: dict[str, Any], tmp_path: Path) -> None:
    """After the last one no step is left to take; at a constant rate one more would move the weights."""
    settings: dict[str, Any] = {
        "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant", **length,
    }  # fmt: skip
    straight = trainer_of(LAST[name], tmp_path / "a", **settings)
    straight.train()
    assert straight.state.global_step == 4
    for step in (2, 4):
        folder = tmp_path / str(step)
        with pytest.raises(KeyboardInterrupt):
            trainer_of(LAST[name], folder, options={"callbacks": [KillAfterSave(step)]}, **settings).train()
        torch.manual_seed(99)
        ends = Ends()
        resumed = trainer_of(LAST[name], folder, options={"callbacks": [ends]}, **settings)
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == 4
        assert entries(resumed) == entries(straight)
        assert same(weights(resumed.tuning.model), weights(straight.tuning.model))
        assert same(ends.weights, weights(straight.tuning.model))
        for ours, theirs in zip(resumed.tuning.parameters(), straight.tuning.parameters(), strict=True):
            assert torch.equal(ours, theirs)


class StopsWhenItBegins(tf.TrainerCallback):
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


def test_a_training_that_a_callback_ends_when_it_resumes_takes_no_step(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        trainer_of(Full(), tmp_path, options={"callbacks": [KillAfterSave(2)]}, **settings).train()
    kept = weights(load(str(tmp_path / "checkpoint-2"), tokenizer=TOKENIZER).model)
    resumed = trainer_of(Full(), tmp_path, options={"callbacks": [StopsWhenItBegins()]}, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 2
    assert same(weights(resumed.tuning.model), kept)


@pytest.mark.parametrize(
    ("method", "file"),
    [
        (Full(), "optimizer.pt"),
        (Full(), "scheduler.pt"),
        (Full(), "rng_state.pth"),
        (Full(), "model.safetensors"),
        (SIFT(sparsity=0.05), "increment.safetensors"),
        (LoRA(), "adapter_model.safetensors"),
    ],
    ids=str,
)
def test_a_damaged_checkpoint_is_named(method: Any, file: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer_of(method, tmp_path, **settings).train()
    (damaged,) = (tmp_path / "checkpoint-1").rglob(file)
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    resumed = trainer_of(method, tmp_path, **{**settings, "max_steps": 2})
    with pytest.raises(StoreError, match=r"checkpoint-1' cannot be taken up .* damaged.* Delete that folder"):
        resumed.train(resume_from_checkpoint=True)


def test_a_folder_that_is_no_checkpoint_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match=r"holds no trainer_state\.json; expected a Trainer's checkpoint"):
        trainer_of(Full(), tmp_path).train(resume_from_checkpoint=str(tmp_path / "model"))


def test_a_checkpoint_of_another_base_keeps_its_error(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer_of(Full(), tmp_path, model=tiny_llama(), **settings).train()
    other = trainer_of(Full(), tmp_path, model=tiny_llama(intermediate_size=24), **settings)
    with pytest.raises(ModelError, match="expected the same model"):
        other.train(resume_from_checkpoint=True)


def test_the_last_whole_checkpoint(tmp_path: Path) -> None:
    assert whole_checkpoint(tmp_path / "nowhere") is None
    for step, state in ((2, "{}"), (10, None), (9, '{"half')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").touch()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    with pytest.warns(UserWarning, match="not written to its end") as warned:
        assert whole_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert len(warned) == 2
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.warns(UserWarning, match="has no optimizer.pt|not written to its end"):
        assert whole_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    with pytest.warns(UserWarning, match="not written to its end"):
        assert whole_checkpoint(str(tmp_path)) is None


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    straight = trainer_of(Full(), tmp_path, **saving)
    with pytest.raises(ModelError, match="no whole checkpoint"):
        straight.train(resume_from_checkpoint=True)
    straight.train()
    for step, left in ((4, '{"half'), (6, None)):
        state = tmp_path / f"checkpoint-{step}" / "trainer_state.json"
        state.unlink() if left is None else state.write_text(left)
    resumed = trainer_of(Full(), tmp_path, **saving)
    with pytest.warns(UserWarning, match=r"checkpoint-[46].*not written to its end") as warned:
        resumed.train(resume_from_checkpoint=True)
    assert len(warned) == 2
    assert len(logged(resumed, "loss")) == 6
    assert same(weights(resumed.tuning.model), weights(straight.tuning.model))


def test_a_checkpoint_is_an_artefact_with_its_tokenizer(tmp_path: Path) -> None:
    trainer = trainer_of(
        Full(), tmp_path, model=CAUSAL["gpt2"](), options={"processing_class": TOKENIZER}, max_steps=1,
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    trainer.train()
    loaded = load(str(tmp_path / "checkpoint-1"))
    assert same(weights(loaded.model), weights(trainer.tuning.model))
    assert loaded.tokenizer("dog") == TOKENIZER("dog")
    with pytest.raises(ModelError, match="no checkpoint folder"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "nowhere"))


class Breaks:
    """A loss that is not finite, or whose gradient is not, in one micro-batch."""

    def __init__(self, call: int, how: str) -> None:
        self.call, self.how, self.calls = call, how, 0

    def __call__(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        self.calls += 1
        loss = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
        if self.calls != self.call:
            return loss
        return loss * math.nan if self.how == "loss" else loss + torch.sqrt((0 * outputs.logits).sum())


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_ends_the_training_before_the_step(how: str, tmp_path: Path) -> None:
    def run(steps: int, call: int) -> MethodTrainer:
        options = {"compute_loss_func": Breaks(call, how), "processing_class": TOKENIZER}
        options["data_collator"] = tf.default_data_collator
        return trainer_of(
            Full(), tmp_path, options=options, max_steps=steps, gradient_accumulation_steps=2,
            lr_scheduler_type="constant",
        )  # fmt: skip

    good = run(2, 0)
    good.train()
    broken = run(6, 5)  # made here: a trainer seeds dropout when it is made
    # The fifth micro-batch is the first of step 3; its gradient is known to be broken at the end of that step.
    where = r"loss is nan at step 3, micro-batch 1, whose first example begins '.+'" if how == "loss" else "norm is nan"
    with pytest.raises(NonFiniteError, match=where + r".*the weights are those of step 2"):
        broken.train()
    assert same(weights(broken.tuning.model), weights(good.tuning.model))
    assert all(p.grad is None for p in broken.tuning.parameters())
    assert broken.state.global_step == 2


def _breaks_on_one_process(rank: int, folder: str) -> None:
    """The second process's first micro-batch of step 2; no gradient is shared before the second one."""
    options = {"compute_loss_func": Breaks(3 if rank == 1 else 0, "loss"), "data_collator": tf.default_data_collator}
    trainer = trainer_of(
        Full(), Path(folder), model=tiny_llama(), options=options, gradient_accumulation_steps=2, ddp_backend="gloo"
    )
    try:
        trainer.train()
    except NonFiniteError as error:
        (Path(folder) / str(rank)).write_text(str(error))


def test_all_processes_end_where_one_has_a_loss_that_is_not_finite(tmp_path: Path, gloo: Gloo) -> None:
    gloo.run(_breaks_on_one_process, str(tmp_path))  # fails where a process waits for one that is done
    said = [(tmp_path / str(rank)).read_text() for rank in (0, 1)]
    assert "the loss or gradient is not finite on another process, at step 2, micro-batch 1" in said[0]
    assert "the loss is nan at step 2, micro-batch 1" in said[1]


def test_sam_with_accumulation_equals_two_passes_by_hand(tmp_path: Path) -> None:
    """One SGD step of two micro-batches: the mean of the gradients at each one's own point of ascent."""
    rho, lr, data = 0.5, 0.1, examples(4)
    trainer = trainer_of(
        SAM(rho=rho), tmp_path, model=tiny_llama(), options={"train_dataset": data}, max_steps=1, optim="sgd",
        learning_rate=lr, lr_scheduler_type="constant", gradient_accumulation_steps=2, max_grad_norm=0, weight_decay=0,
    )  # fmt: skip
    batches = list(trainer.get_train_dataloader())  # seeded: the order of the run
    trainer.train()
    model = tiny_llama()
    base, total = weights(model), {name: torch.zeros_like(p) for name, p in named_weights(model).items()}
    for batch in batches:
        for climbs in (True, False):
            model.zero_grad()
            (model(**batch).loss / 2).backward()
            norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
            with torch.no_grad():
                for name, p in named_weights(model).items():
                    if climbs:
                        p.add_(rho * p.grad / norm)
                    else:
                        total[name] += p.grad
                        p.copy_(base[name])
    for name, value in weights(trainer.tuning.model).items():
        torch.testing.assert_close(value, base[name] - lr * total[name], rtol=1e-4, atol=1e-6)


def test_checkpointing_is_not_reentrant_and_changes_nothing(tmp_path: Path) -> None:
    plain = trainer_of(LoRA(), tmp_path, model=tiny_llama(), max_steps=2)
    plain.train()
    with pytest.warns(UserWarning, match="use_reentrant=True is set to False"):
        saved = trainer_of(
            LoRA(), tmp_path, model=tiny_llama(), max_steps=2, activation_checkpointing=True,
            activation_checkpointing_kwargs={"use_reentrant": True},
        )  # fmt: skip
    assert saved.args.activation_checkpointing_kwargs == {"use_reentrant": False}
    saved.train()
    assert same(weights(saved.tuning.model), weights(plain.tuning.model))


class Ends(tf.TrainerCallback):
    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights = weights(kwargs["model"])


def test_finish_comes_before_the_callbacks_and_the_best_model_is_taken_up(tmp_path: Path) -> None:
    """WiSE-FT with alpha 0 is the base at the end, whatever the best model was; with alpha 1 it is the best model."""
    base, ends = weights(tiny_llama(attention_dropout=0.1)), Ends()
    best: dict[str, Any] = {
        "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 3,
        "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True,
    }  # fmt: skip
    options = {"callbacks": [ends], "eval_dataset": examples(4)}
    trainer_of(WiSEFT(alpha=0.0), tmp_path / "0", options=options, **best).train()
    assert same(ends.weights, base)
    trainer = trainer_of(WiSEFT(alpha=1.0), tmp_path / "1", options=options, **best)
    trainer.train()
    chosen = trainer.state.best_model_checkpoint
    assert chosen is not None
    assert not chosen.endswith("checkpoint-3")  # the loss falls, and the highest one was asked for
    assert same(ends.weights, weights(load(chosen, tokenizer=TOKENIZER).model))


def test_gradients_of_masters_are_forgotten_after_each_step(tmp_path: Path) -> None:
    trainer = trainer_of(Full(), tmp_path, model=tiny_llama().to(torch.bfloat16), max_steps=2)
    trainer.train()
    assert all(p.grad is None for p in trainer.tuning.parameters())
    assert len(set(logged(trainer, "grad_norm"))) == 2
    assert min(logged(trainer, "grad_norm")) > 0


def test_refuses(tmp_path: Path) -> None:
    tuning = Full().attach(tiny_llama())
    for name in ("model", "model_init", "optimizers"):
        with pytest.raises(InputError, match=f"takes no {name}="):
            MethodTrainer(tuning, arguments(tmp_path), **{name: None})
    layered = (torch.optim.SGD, {"params": []})
    trainer = MethodTrainer(tuning, arguments(tmp_path), optimizer_cls_and_kwargs=layered)
    with pytest.raises(InputError, match="chooses its own weights"):
        trainer.create_optimizer()
