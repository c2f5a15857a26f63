"""Steps and arguments of a training; what cannot work is said before a folder is claimed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from catchment.commands.tune.settings import TuneSettings
from catchment.commands.tune.setup import protected_method, training_arguments, try_set_up
from catchment.errors import InputError
from catchment.methods import METHODS, SIFT, make_trainer
from catchment.models import weights_hash
from catchment.options import parse_pairs
from catchment.runs import processes
from tests import tiny
from tests.unit.commands.tune.test_opening import SUMS, opened, preferred

REFUSED = [
    ("report_to=tensorbord", "tensorbord"),
    ("weight_decay=-1", "weight_decay"),
    ("adam_beta1=2", "beta"),
    ("optim=adamw_bnb_8bit", "--training-args optim=adamw_bnb_8bit: "),
    ("eval_on_start=true", "give it as --eval-steps"),
    ("do_eval=true", "give it as --eval-steps"),
    ("resume_from_checkpoint=/nowhere", "goes on from its last checkpoint"),
    ("lr_scheduler_kwargs={a: 1}", "unexpected keyword argument 'a'"),
]


@pytest.mark.parametrize(("pair", "said"), REFUSED, ids=[pair for pair, _ in REFUSED])
def test_arguments_that_cannot_work_are_refused_and_the_base_is_as_it_was(tmp_path: Path, pair: str, said: str) -> None:
    job = opened(out=tmp_path / "out", training_args=(pair,))
    before = weights_hash(job.loaded.model)
    with pytest.raises(InputError) as caught:
        try_set_up(job)
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert weights_hash(job.loaded.model) == before
    assert all(p.requires_grad for p in job.loaded.model.parameters())


@pytest.mark.parametrize("options", [{"protect": "echo"}, {"eval_steps": 2, "tasks": "echo"}], ids=lambda o: min(o))
def test_what_needs_whole_weights_is_refused_where_they_are_cut(tmp_path: Path, options: dict[str, Any]) -> None:
    tiny.tiny_llama().save_pretrained(tmp_path / "base")
    task = preferred("echo", 240)
    given = {name: (task,) if value == "echo" else value for name, value in options.items()}
    job = opened(model=tmp_path / "base", method="full", training_args=("fsdp=true",), **given)
    with pytest.raises(InputError, match=r"with --(protect|eval-steps): tasks are measured on whole weights"):
        try_set_up(job)


def test_a_set_up_that_works_leaves_no_trace(tmp_path: Path) -> None:
    job = opened(out=tmp_path / "out")
    try_set_up(job)
    assert not (tmp_path / "out").exists()
    assert not any(p.grad is not None or p._post_accumulate_grad_hooks for p in job.loaded.model.parameters())


def test_entries_that_would_never_be_chosen(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"selection_batches 1000: this tune has 5 batches"):
        try_set_up(opened(method_args=("selection_batches=1000",)))


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True])
def test_seeds(seed: Any) -> None:
    with pytest.raises(InputError, match="seed"):
        TuneSettings("base", "rows.jsonl", seed=seed)


def test_a_pull_and_a_decay_of_ones_own() -> None:
    given: dict[str, Any] = {"pull": 0.1, "training_args": ("weight_decay=0.5",), "protect": (preferred("echo", 240),)}
    with pytest.raises(InputError, match=r"--pull 0\.1 is the weight decay"):
        try_set_up(opened(**given))
    try_set_up(opened(method="full", **given))  # its pull is a term of its own


@pytest.mark.parametrize(
    ("text", "value"),
    [("modules_to_save=lm_head", ("lm_head",)), ("modules_to_save=a,b", ("a", "b")), ("modules_to_save=[a]", ["a"])],
)
def test_one_name_where_several_may_stand(text: str, value: Any) -> None:
    assert parse_pairs((text,), SIFT, "method-args", "of sift") == {"modules_to_save": value}


@pytest.mark.parametrize("text", ["modules_to_save=5", "target_modules=[5]", "selection_batches=2.5", "seed=x"])
def test_values_of_another_kind(text: str) -> None:
    with pytest.raises(InputError, match="--method-args"):
        parse_pairs((text,), SIFT, "method-args", "of sift")


def test_the_modes_of_all_modules_are_given_back(tmp_path: Path) -> None:
    from catchment import measuring
    from catchment.commands.tune.run import run

    model = tiny.tiny_llama().train()
    model.model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    settings = TuneSettings(
        model,
        SUMS,
        out=tmp_path / "out",
        max_steps=1,
        tasks=("none",),
        held_out=0.0,
        max_length=64,  # type: ignore[arg-type]
    )
    run(settings, measuring.Progress(), tiny.tiny_tokenizer())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not any(torch.is_tensor(p.grad) for p in model.parameters())


# ------------------------------------------------------------------------------------------------- steps and arguments


@pytest.mark.parametrize(
    ("options", "steps"),
    [({}, 5), ({"batch_size": 7}, 6), ({"batch_size": 7, "accumulation": 2}, 3), ({"epochs": 2.5}, 13),
     ({"max_steps": 3, "epochs": 9.0}, 3), ({"epochs": 0.01}, 1)],
)  # fmt: skip
def test_steps_are_those_that_the_trainer_makes(tmp_path: Path, options: dict[str, Any], steps: int) -> None:
    job = opened(**options, out=tmp_path / "out")
    args = training_arguments(job, "plain")
    tuning = job.method.attach(job.loaded.model, seed=0)
    trainer = make_trainer(job.loaded, tuning, args, job.examples)
    loader = trainer.get_train_dataloader()
    per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    made = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    tuning.remove()
    assert job.steps == made == steps


def test_tokens_are_counted_for_what_a_batch_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch trains on every token once, in rows or in packed blocks; with twice the processes a step does twice."""
    rows, packed = opened(), opened(packing=True, max_length=64)
    assert len(packed.examples) < len(rows.examples)
    for job in (rows, packed):
        assert job.tokens_per_row * len(job.examples) == job.encoded.tokens
    assert packed.tokens_per_row > 2 * rows.tokens_per_row
    long = opened(max_steps=6, batch_size=4, accumulation=2)
    alone = long.tokens
    assert alone == pytest.approx(6 * 8 * long.tokens_per_row)
    monkeypatch.setattr(processes, "count", lambda: 2)
    assert long.tokens == 2 * alone


def test_a_protected_training_takes_the_same_steps(tmp_path: Path) -> None:
    job = opened(max_steps=6, out=tmp_path / "out", protect=(preferred("echo", 240),))
    assert training_arguments(job, "plain").max_steps == training_arguments(job, "protected").max_steps == 6


def test_given_arguments_win(tmp_path: Path) -> None:
    pairs = ("warmup_steps=0", "lr_scheduler_type=constant", "save_total_limit=3")
    args = training_arguments(opened(out=tmp_path / "out", training_args=pairs), "plain")
    assert (args.warmup_steps, args.lr_scheduler_type, args.save_total_limit) == (0, "constant", 3)


def test_fsdp_with_sift_names_what_to_use(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"with sift: only full and lora .* torchrun"):
        training_arguments(opened(out=tmp_path / "out", training_args=("fsdp=true",)), "plain")


def test_fsdp_with_a_base_in_memory_names_what_to_use(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a model in memory cannot be given back .* by its name or folder"):
        training_arguments(opened(out=tmp_path / "out", method="full", training_args=("fsdp=true",)), "plain")


def pulled(method: str) -> Any:
    return opened(method=method, pull=0.1, protect=(preferred("echo", 240),))


@pytest.mark.parametrize(("method", "name"), [("sift", "sift"), ("full", "l2-sp")])
def test_a_pull_towards_the_base(method: str, name: str) -> None:
    chosen = protected_method(pulled(method))
    assert chosen.name == name
    if method == "sift":
        assert chosen.decay == "base"  # type: ignore[attr-defined]
    else:
        assert chosen.strength == 0.1  # type: ignore[attr-defined]
    assert protected_method(opened(method=method)) == METHODS[method]()
    with pytest.raises(InputError, match="only sift and full"):
        protected_method(pulled("lora"))
