"""``tune`` end to end on tiny models: every kind of data and method, what is left on disk, protection."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import catchment
from catchment import models
from catchment.capabilities import Task, resolve_tasks
from catchment.commands.tune.record import Tune
from catchment.errors import StoreError
from catchment.methods import METHODS, MethodTrainer
from catchment.records import from_json
from catchment.training import Collator, encode_rows, pack, read_rows
from tests import tiny
from tests.integration.stored import store_rows
from tests.integration.test_compare import Cli, home, make_task, run_cli, write_task
from tests.integration.test_scan import solved

__all__ = ["home", "run_cli"]
torch.set_num_threads(1)

SUMS = [
    {"prompt": f"Question: What is {a} + {b}? Answer:", "completion": f" {a + b}"} for a in range(8) for b in range(6)
]
CHATS = [
    {"messages": [{"role": "user", "content": f"{a} + {b}?"}, {"role": "assistant", "content": f"{a + b}"}]}
    for a in range(6)
    for b in range(4)
]
TEXTS = [{"text": f"{text} {k}"} for k in range(4) for text in tiny.TEXT]
CLASSES = [
    {"text": f"the {what} {k} is {'warm' if k % 2 else 'cold'}", "label": "warm" if k % 2 else "cold"}
    for k in range(12)
    for what in ("dog", "cat")
]
KINDS: dict[str, list[dict[str, Any]]] = {"prompt": SUMS, "messages": CHATS, "text": TEXTS, "classification": CLASSES}
QUICK: dict[str, Any] = {"max_steps": 4, "tasks": ["none"], "held_out": 0.0, "max_length": 64}


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def tiny_bert() -> Any:
    """A masked language model: its checkpoint has neither pooler nor classifier."""
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    return tf.BertForMaskedLM(config).eval()


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases, data of every kind, and a task that the base answers without a mistake."""
    root = tmp_path_factory.mktemp("tunes")
    base = tiny.tiny_llama()
    for name, model, tokenizer in (
        ("base", base, tiny.tiny_tokenizer()),
        ("chat", base, tiny.tiny_tokenizer(chat=True)),
        ("bert", tiny_bert(), tiny.tiny_tokenizer()),
        ("wide", tiny.tiny_llama(intermediate_size=64), tiny.tiny_tokenizer()),
    ):
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    for kind, rows in KINDS.items():
        lines(root / f"{kind}.jsonl", rows)
    task = solved(base, make_task(n=240))
    write_task(root / "echo.jsonl", task)
    wrong = tuple(dataclasses.replace(i, gold=(i.gold + 1) % 3) for i in task.items if isinstance(i.gold, int))
    write_task(root / "wrong.jsonl", Task("wrong", wrong, "choice", task.formats, style="continue"))
    return root


def tune(room: Path, out: Path, kind: str = "prompt", base: str = "base", **options: Any) -> Tune:
    return catchment.tune(str(room / base), str(room / f"{kind}.jsonl"), out=out, **{**QUICK, **options})


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def same(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def delivered(room: Path, out: Path, base: str, **options: Any) -> Any:
    """What the record's folder loads as, spelled as the documentation spells it."""
    whole = (out / "config.json").is_file()
    model = models.load(str(out) if whole else f"{room / base}+{out}", **options).model
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def trained(room: Path, folder: Path, kind: str, base: str, method: str, rate: float) -> Any:
    """The same tune by the Trainer alone, without anything of the verb."""
    head = "sequence-classification" if kind == "classification" else "causal-lm"
    found = models.load(str(room / base), head=head)
    encoded = encode_rows(read_rows(str(room / f"{kind}.jsonl")), found.tokenizer, max_length=1024)
    settings = METHODS[method]()
    new = tuple(dict.fromkeys(name.rpartition(".")[0] for name in found.newly_initialised))
    if new and method != "full":
        settings = dataclasses.replace(settings, modules_to_save=new)
    tuning = settings.attach(found.model, seed=0)
    args = tf.TrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=8, learning_rate=rate, warmup_steps=0,
        lr_scheduler_type="linear", weight_decay=0.0, seed=0, data_seed=0, remove_unused_columns=False, report_to=[],
        disable_tqdm=True, use_cpu=True, save_strategy="no", dataloader_pin_memory=False, logging_strategy="no",
    )  # fmt: skip
    MethodTrainer(
        tuning, args, train_dataset=encoded.examples, data_collator=Collator(found.tokenizer),
        processing_class=found.tokenizer,
    ).train()  # fmt: skip
    return tuning.merge()


# ------------------------------------------------------------------------------------------- kinds of data, methods


@pytest.mark.parametrize("method", ["sift", "lora", "full"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_saved_is_what_was_trained(room: Path, tmp_path: Path, kind: str, method: str) -> None:
    base = {"messages": "chat", "classification": "bert"}.get(kind, "base")
    rate = {"sift": 1e-3, "lora": 2e-4, "full": 2e-5}[method]
    found = tune(room, tmp_path / "out", kind, base, method=method)
    assert from_json(Tune, (tmp_path / "out/tune.json").read_text()) == found
    (run,) = found.runs
    assert (run.name, run.steps, Path(run.path)) == ("plain", 4, tmp_path / "out/plain")
    assert found.settings["learning_rate"] == rate
    assert found.data["kind"] == kind
    assert found.data["rows"] == len(KINDS[kind])
    page = (tmp_path / "out/report.html").read_text()
    assert not re.search(r"https?://(?!www\.w3\.org)|(src|href)=[\"']?//", page)
    head = "sequence-classification" if kind == "classification" else "causal-lm"
    options: dict[str, Any] = {"head": head, "tokenizer": tiny.tiny_tokenizer()}
    loaded = weights(delivered(room, tmp_path / "out/plain", base, **options))
    start = weights(models.load(str(room / base), head=head).model)
    moved = sum(int((loaded[name] != start[name]).sum()) for name in start)
    if method == "sift":
        assert 0 < moved <= run.trainable
    else:
        assert moved > run.trainable / 2 if method == "full" else moved > 0
    expected = weights(trained(room, tmp_path / "alone", kind, base, method, rate))
    assert all(torch.allclose(loaded[name], expected[name], rtol=0, atol=1e-7) for name in expected)
    if method != "lora":  # PEFT adds the product to the weights in its own order
        assert same(loaded, expected)


def test_a_dense_tune_by_the_books_alone(room: Path, tmp_path: Path) -> None:
    """Every step sees all eight rows, so the order is no matter: AdamW and the linear schedule, up for a tenth of the
    steps and down for the rest."""
    data = lines(tmp_path / "eight.jsonl", SUMS[:8])
    options: dict[str, Any] = {**QUICK, "max_steps": 6, "learning_rate": 1e-3}
    found = catchment.tune(str(room / "base"), str(data), out=tmp_path / "out", method="full", **options)
    loaded = models.load(str(room / "base"))
    model = loaded.model.train()
    examples = encode_rows(read_rows(str(data)), loaded.tokenizer, max_length=1024).examples
    batch = Collator(loaded.tokenizer)(examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (0 if step < 1 else (6 - step) / 5)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert found.runs[0].loss == pytest.approx((losses[0], losses[-1]), abs=1e-4)
    assert losses[-1] < losses[0]
    tuned = delivered(room, tmp_path / "out/plain", "base", tokenizer=loaded.tokenizer).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.allclose(tuned[name], weight, atol=2e-5), name


def test_one_step_moves_something(room: Path, tmp_path: Path) -> None:
    tune(room, tmp_path / "out", method="full", max_steps=1)
    tuned = weights(delivered(room, tmp_path / "out/plain", "base", tokenizer=tiny.tiny_tokenizer()))
    assert not same(tuned, weights(tiny.tiny_llama()))


def test_a_tune_that_hardly_moves_is_not_harmful(room: Path, tmp_path: Path) -> None:
    found = tune(room, tmp_path / "out", learning_rate=1e-7, max_steps=6)
    assert found.headline != "harmful"


def test_a_whole_model_loads_by_its_folder_alone(room: Path, tmp_path: Path) -> None:
    tune(room, tmp_path / "out", method="full")
    alone = models.load(str(tmp_path / "out/plain"))
    assert alone.tokenizer is not None


def test_a_whole_model_is_compared_with_its_base(room: Path, tmp_path: Path) -> None:
    found = tune(room, tmp_path / "out", method="full", tasks=[str(room / "echo.jsonl")], limit=40)
    assert found.comparison is not None
    assert found.comparison["echo"].n == 40


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's, on loading
@pytest.mark.parametrize("method", ["sift", "lora", "full"])
def test_a_base_in_memory_is_given_back(room: Path, tmp_path: Path, method: str) -> None:
    model = tiny.tiny_llama()
    model.model.norm.weight.requires_grad_(False)
    before, flags = weights(model), {name: p.requires_grad for name, p in model.named_parameters()}
    found = catchment.tune(
        model, SUMS, tokenizer=tiny.tiny_tokenizer(), out=tmp_path / "out", method=method,
        **{**QUICK, "tasks": solved(tiny.tiny_llama(), make_task(n=40))},
    )  # fmt: skip
    assert same(weights(model), before)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(p.grad is None for p in model.parameters())
    assert type(model).__name__ == "LlamaForCausalLM"
    assert found.comparison is not None
    assert {task.task for task in found.comparison.tasks} >= {"echo"}
    again = catchment.tune(str(room / "base"), SUMS, out=tmp_path / "path", method=method, **QUICK)
    tokenizer = tiny.tiny_tokenizer()
    one, two = (delivered(room, tmp_path / name / "plain", "base", tokenizer=tokenizer) for name in ("out", "path"))
    assert same(weights(one), weights(two))
    assert again.runs[0].loss == found.runs[0].loss


@pytest.mark.parametrize("training", [False])
def test_the_mode_of_a_base_in_memory_is_given_back(tmp_path: Path, training: bool) -> None:
    model = tiny.tiny_llama().train(training)
    catchment.tune(model, SUMS, tokenizer=tiny.tiny_tokenizer(), out=tmp_path / "out", **{**QUICK, "max_steps": 1})
    assert model.training == training


def test_a_failed_tune_gives_the_base_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("catchment.methods.Fitted.save", broken)
    model = tiny.tiny_llama()
    before = weights(model)
    with pytest.raises(KeyboardInterrupt):
        catchment.tune(model, SUMS, tokenizer=tiny.tiny_tokenizer(), out=tmp_path / "out", **QUICK)
    assert same(weights(model), before)
    assert all(p.requires_grad for p in model.parameters())


def test_packing_learns_from_the_same_tokens(room: Path, tmp_path: Path) -> None:
    """One packed sequence of all rows has the loss of one batch of all rows."""
    wide = tune(room, tmp_path / "wide", batch_size=48)
    packed = tune(room, tmp_path / "packed", batch_size=48, packing=True, max_length=256)
    assert wide.runs[0].loss is not None
    assert packed.runs[0].loss == pytest.approx(wide.runs[0].loss, rel=1e-4)
    assert wide.data["tokens"] == packed.data["tokens"]
    examples = encode_rows(read_rows(SUMS), tiny.tiny_tokenizer(), max_length=256).examples
    assert len(pack(examples, 256)) < len(examples) / 4


# ------------------------------------------------------------------------------------------------------- protection


@dataclasses.dataclass(frozen=True)
class Guarded:
    found: Tune
    out: Path
    store: Path


FENCED: dict[str, Any] = {
    "max_drop": 0.05, "held_out": 0.2, "method": "sift", "learning_rate": 0.3, "fence_steps": 3, "max_steps": 6
}  # fmt: skip


def protected(room: Path, out: Path, **options: Any) -> Tune:
    echo = [str(room / "echo.jsonl")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the fence may stop the training, and says so
        return tune(room, out, **{"protect": echo, "tasks": echo, **FENCED, **options})


@pytest.fixture(scope="module")
def guarded(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    """A tune that loses the task without a fence, and its record."""
    root = tmp_path_factory.mktemp("guarded")
    return Guarded(protected(room, root / "out", store=root / "store"), root / "out", root / "store")


def test_a_fence_keeps_what_the_plain_tune_loses(guarded: Guarded) -> None:
    found = guarded.found
    assert [run.name for run in found.runs] == ["protected", "plain"]
    fenced, plain = found.runs
    assert found.protected == ("echo",)
    assert fenced.looks[-1].step == fenced.steps
    assert any(look.outcome == "broken" and look.factor < 1 for look in fenced.looks)
    assert all(look.after is None or look.after <= 0.05 for look in fenced.looks)
    assert plain.looks == ()
    assert [(r.task, r.items) for r in found.rooms] == [("echo", 24)]
    echo, beside = (next(t for t in run.tasks if t.task == "echo") for run in (fenced, plain))
    assert echo.n == beside.n == 120
    assert echo.base == beside.base
    assert echo.tuned > beside.tuned
    row = next(row for row in found.against if row.task == "echo")
    assert row.n == 120
    assert (row.plain, row.protected) == (beside.tuned, echo.tuned)
    assert row.difference.estimate == pytest.approx(echo.tuned - beside.tuned)
    assert row.difference.low > 0
    assert "the protection saved echo" in found.sentence


def test_judged_items_are_none_that_the_fence_saw(room: Path, guarded: Guarded) -> None:
    fence = set(json.loads((guarded.out / "fence/protected/fence-base.json").read_text())["scores"]["echo"])
    (echo,) = resolve_tasks((str(room / "echo.jsonl"),))
    judged = {item for _, item in store_rows(guarded.store)} & {item.id for item in echo.items}
    assert 48 <= len(fence) <= 96
    assert len(judged) == 120
    assert not fence & judged


def test_the_page_of_a_protected_tune(room: Path, guarded: Guarded, run_cli: Cli) -> None:
    page = (guarded.out / "report.html").read_text()
    for words in ("Protected against plain", "What the fence saw", "The room before training"):
        assert words in page
    (guarded.out / "report.html").unlink()
    again = run_cli("report", guarded.out)
    assert again.returncode == 0, again.stderr
    assert (guarded.out / "report.html").read_text() == page
    assert guarded.found.sentence.split()[0] in again.stdout


def test_a_second_run_trains_nothing(room: Path, guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a method was put on the model again")

    monkeypatch.setattr(METHODS["sift"], "attach", refuse)
    again = protected(room, guarded.out, store=guarded.store)
    assert (again.runs, again.against, again.rooms) == (guarded.found.runs, guarded.found.against, guarded.found.rooms)


@pytest.mark.parametrize("name", ["rooms.json", "replay.jsonl", "fence/protected/fence-base.json"])
def test_a_file_of_a_protected_tune_that_was_cut_short(room: Path, guarded: Guarded, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(guarded.out, out)
    for path in (out / "tune.json", out / "protected/run.json"):
        path.unlink()
    cut = out / name
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(StoreError, match=f"{name} is damaged"):
        protected(room, out, store=guarded.store)


def test_a_pull_holds_the_move_back(room: Path, tmp_path: Path) -> None:
    """In the protected tune, and not in the plain one beside it."""
    moved = {}
    for pull in (0.0, 5.0):
        out = tmp_path / f"pull {pull}"
        protected(room, out, pull=pull, learning_rate=0.02, fence_steps=6, max_drop=0.9, replay=0.0)
        base = models.named_weights(models.load(room / "base").model)
        for name in ("protected", "plain"):
            tuned = models.load(f"{room / 'base'}+{out / name}").model
            moved[name, pull] = sum(
                float((p - base[n]).detach().norm()) for n, p in models.named_weights(tuned).items()
            )
    assert moved["plain", 5.0] == moved["plain", 0.0]
    assert moved["protected", 5.0] < 0.9 * moved["protected", 0.0]


def test_capabilities_reach_the_integrations(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, float]] = []

    class Recorder(tf.TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
            logged.append(dict(logs))

    monkeypatch.setattr("transformers.trainer.get_reporting_integration_callbacks", lambda _: [Recorder])
    echo = str(room / "echo.jsonl")
    found = tune(room, tmp_path / "out", tasks=[echo], eval_steps=2, eval_limit=60, method="sift", limit=60)
    scores = [entry["capability/echo"] for entry in logged if "capability/echo" in entry]
    assert len(scores) == 3  # before, at step 2, at step 4
    assert scores[0] == 1.0
    assert len(list((tmp_path / "out/watch/plain").glob("capabilities-*.json"))) == 3
    watched = found.runs[0].watched
    assert [(w.step, w.task, w.n, w.score) for w in watched] == [
        (step, "echo", 60, score) for step, score in zip((0, 2, 4), scores, strict=True)
    ]
    assert watched[0].difference is None
    assert watched[2].difference is not None
    assert watched[2].difference.estimate == pytest.approx(scores[2] - scores[0])
    assert "While it trained" in (tmp_path / "out/report.html").read_text()


def test_the_plain_tune_beside_it_is_the_tune_alone(room: Path, guarded: Guarded, tmp_path: Path) -> None:
    tune(room, tmp_path / "out", **{k: v for k, v in FENCED.items() if k not in ("max_drop", "fence_steps")})
    tokenizer = tiny.tiny_tokenizer()
    one, two = (delivered(room, out / "plain", "base", tokenizer=tokenizer) for out in (guarded.out, tmp_path / "out"))
    assert same(weights(one), weights(two))


def test_without_a_plain_tune_beside_it(room: Path, tmp_path: Path) -> None:
    found = protected(room, tmp_path / "out", no_plain=True, max_steps=1, limit=60)
    assert [run.name for run in found.runs] == ["protected"]
    assert found.against == ()
    assert not (tmp_path / "out/plain").exists()
