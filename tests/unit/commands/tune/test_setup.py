"""What cannot work is said before a folder is claimed; what watches and protects a tune sees no judged item."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from catchment.commands.tune.job import _fingerprint, settings_told
from catchment.commands.tune.protect import _replayed, make_replay, watch_of
from catchment.commands.tune.settings import TuneSettings
from catchment.commands.tune.setup import try_set_up
from catchment.errors import InputError
from catchment.methods import SIFT
from catchment.models import weights_hash
from catchment.options import parse_pairs
from tests import tiny
from tests.unit.commands.tune.test_job import SUMS, opened, preferred

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


def test_the_watch_sees_no_judged_item() -> None:
    task = preferred("echo", 240)
    job = opened(protect=(task,), tasks=(task,), eval_steps=1, limit=None)
    watch = watch_of(job, "protected")
    assert watch is not None
    seen = {item.id for watched in watch.tasks for item in watched.items}
    assert seen == {item.id for item in job.protected[0].guard.items}
    assert not seen & {item.id for item in job.protected[0].judged.items}


def test_what_stops_a_tune_is_part_of_what_it_is() -> None:
    task = preferred("echo", 240)
    stops = _fingerprint(opened(tasks=(task,), eval_steps=1, on_drop="stop", eval_limit=50))
    assert (stops["eval_limit"], stops["tasks"], stops["margin"]) == (50, ["echo"], 0.02)
    assert "eval_limit" not in _fingerprint(opened(tasks=(task,), eval_steps=1))
    assert _fingerprint(opened(protect=(task,), alpha=0.1))["alpha"] == 0.1
    assert "alpha" not in _fingerprint(opened(alpha=0.1))


def test_what_a_record_tells_of_a_protection() -> None:
    told = settings_told(opened(protect=(preferred("echo", 240),), pull=0.1, training_args=("adam_beta1=0.8",)))
    assert (told["pull"], told["replay"], told["training_args"]) == (0.1, 0.25, ["adam_beta1=0.8"])
    assert "pull" not in settings_told(opened())


# ------------------------------------------------------------------------------------------------------------- replay


def chats(*questions: str) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "Rome"}], "cut": False}
        for q in questions
    ]


def test_texts_of_the_base_that_do_not_fit_are_left_out() -> None:
    job = opened(tokenizer=tiny.tiny_tokenizer(chat=True), max_length=64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        replay = _replayed(job, chats("hello", "Paris and " * 60, "and"))
    assert [str(w.message) for w in caught] == [
        "1 of 3 texts of the base are not replayed: their prompts fill max-length 64"
    ]
    assert len(replay) == 2
    assert all(len(e["input_ids"]) == len(e["labels"]) <= 64 for e in replay)


@pytest.mark.parametrize("rows", [[], chats("Paris and " * 60)], ids=["none", "too long"])
def test_a_base_without_a_text_that_fits(rows: list[dict[str, Any]]) -> None:
    job = opened(tokenizer=tiny.tiny_tokenizer(chat=True), max_length=64)
    with pytest.raises(InputError, match=r"none of the base's \d texts leaves a token .* or use --replay 0"):
        _replayed(job, rows)


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


def test_what_is_replayed_is_from_items_that_nothing_else_uses(tmp_path: Path) -> None:
    job = opened(
        tokenizer=tiny.tiny_tokenizer(chat=True), max_length=128, out=tmp_path, protect=(preferred("echo", 240),),
        replay=0.5, replay_weight=3.0, batch_size=4, max_steps=3,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as first:
        warnings.simplefilter("always")
        replay = make_replay(job)
    assert any("are not replayed" in str(w.message) for w in first)  # some texts of a tiny model are too long
    (kept,) = job.protected
    used = {item.id for part in (kept.guard, kept.judged) for item in part.items}
    assert not used & {item.id for item in kept.replayed.items}
    assert {item.id for item in kept.pilot.items} <= {item.id for item in kept.replayed.items}
    rows = [json.loads(line) for line in (tmp_path / "replay.jsonl").read_text(encoding="utf-8").splitlines()]
    answers = [row for row in rows if row["task"] == "echo"]
    assert len(answers) == 3 * len(kept.replayed.items)  # three choices each
    assert len(rows) > len(answers)
    assert (replay.per_batch, replay.weight, len(replay.examples)) == (4, 3.0, len(rows))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again = make_replay(job)  # from the file
    assert sorted(str(w.message) for w in caught) == sorted(str(w.message) for w in first)
    assert again.examples == replay.examples
    for ours, theirs in zip(replay._base, again._base, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
