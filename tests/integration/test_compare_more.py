"""``compare`` end to end, further: kinds of models and tasks beside the ordinary pair, cut budgets, precedence."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import catchment
from catchment.capabilities import Item, Pace, Task, scorers
from catchment.cli.arguments import parse
from catchment.cli.runner import run
from catchment.cli.table import COMMANDS
from catchment.commands.compare import items as measuring
from catchment.commands.compare import prices as timing
from catchment.commands.compare.plan import plan as plan_only
from catchment.commands.compare.recover import halves
from catchment.commands.compare.settings import CompareSettings
from catchment.errors import CatchmentError, InputError, ModelError, StoreError, TaskError
from catchment.measuring import Progress
from catchment.measuring.clock import OutOfTimeError
from catchment.models import known
from catchment.options import read_config
from tests import tiny
from tests.integration.test_compare import compare, folder, home, make_task, numbers, write_task

__all__ = ["folder", "home"]
torch.set_num_threads(1)


def shake(model: Any, scale: float = 0.3) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(scale * weight.std().nan_to_num(0.1) * torch.randn(weight.shape, generator=generator))
    return model


def solved(folder: Path, n: int) -> Task:
    """A task that the base answers by construction, so that a budget gives it items."""
    task = make_task(n=n)
    rows = catchment.evaluate(catchment.load(str(folder / "base")), task, batch_tokens=1024).rows
    answers = {r.item: r.prediction for r in rows}
    return task.with_items(tuple(Item(i.prompt, i.choices, i.choices.index(answers[i.id])) for i in task.items))


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with three classes, a copy that moved, and a labelled file that the base answers half the time."""
    root = tmp_path_factory.mktemp("classifiers")
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=320, max_position_embeddings=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, initializer_range=0.5, num_labels=3,
    )  # fmt: skip
    model, tokenizer = tf.BertForSequenceClassification(config).eval(), tiny.tiny_tokenizer()
    model.save_pretrained(root / "base")
    shake(model).save_pretrained(root / "tuned")
    for name in ("base", "tuned"):
        tokenizer.save_pretrained(root / name)
    lines = [json.dumps({"prompt": item.prompt, "label": k % 3}) for k, item in enumerate(make_task(n=100).items)]
    (root / "labels.jsonl").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize("text", ["none", "text"])
def test_classifiers(classifiers: Path, text: str) -> None:
    pair = str(classifiers / "base"), str(classifiers / "tuned")
    comparison = catchment.compare(*pair, tasks=classifiers / "labels.jsonl", head="auto", text=text, limit=70)
    result = comparison["labels"]
    assert (result.n, result.scorer, comparison.texts) == (70, "classify", ())
    assert result.chance == pytest.approx(1 / 3)
    assert result.verdict == "not measurable"  # random weights are at chance, and chance is not 0
    assert result.flips_lost + result.flips_gained > 0
    assert comparison.drift is not None


def test_classifiers_with_a_budget(classifiers: Path) -> None:
    pair = str(classifiers / "base"), str(classifiers / "tuned")
    task = str(classifiers / "labels.jsonl")
    assert catchment.compare(*pair, tasks=task, head="auto", budget="60s")["labels"].n >= 64
    with pytest.raises(InputError, match="--recover is for language models"):
        catchment.compare(*pair, tasks=task, head="auto", recover="nowhere")


def test_a_cut_comparison_is_read_back_as_it_was(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine stands still after the pilot and one round: what was reached is the plan of a second run."""
    task = solved(folder, 600)
    with monkeypatch.context() as patch:
        real = measuring.fill

        def fill(side: Any, store: Any, task: Task, form: str, items: Any, *rest: Any) -> Any:
            if len(side.cell(store, task, form).rows()) >= 320:
                raise OutOfTimeError("the budget ended before this was measured.")
            return real(side, store, task, form, items, *rest)

        patch.setattr(measuring, "fill", fill)
        first = compare(folder, out=tmp_path / "out", budget="10m", tasks=[task])
    assert first["echo"].n == 320
    assert first.plan["cut"]
    assert any("fewer items than planned" in line for line in first.warnings)
    again = compare(folder, out=tmp_path / "out", budget="10m", tasks=[task])
    assert numbers(again) == numbers(first)
    assert again.warnings == first.warnings


def test_a_renamed_task_in_an_old_folder(folder: Path, tmp_path: Path) -> None:
    compare(folder, out=tmp_path / "out", formats=1)
    renamed = dataclasses.replace(make_task(), name="other")
    assert compare(folder, out=tmp_path / "out", formats=1, tasks=[renamed])["other"].n == 120


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models are timed at 100 tokens a second together."""
    monkeypatch.setattr(timing, "measure_pace", lambda engine, patience: Pace(0.005))


def test_rows_that_were_measured_say_nothing_of_what_others_cost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pilot's rows lie in the store and take no time; the plan after it still reckons with the speed."""
    said: list[str] = []

    class Said(Progress):
        def plan(self, sentence: str) -> None:
            said.append(sentence)

    task = solved(folder, 400)
    compare(folder, tasks=[task], formats=1, limit=64)
    slow(monkeypatch)
    compare(folder, tasks=[task], formats=1, budget="60s", progress=Said())
    assert all(64 <= int(sentence.split(" items")[0]) < 400 for sentence in said[:2])


def test_a_dry_run_with_a_budget_says_what_it_buys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    settings = CompareSettings(
        str(folder / "base"), str(folder / "tuned"), tasks=(str(folder / "echo.jsonl"),), text="none", budget="20s"
    )
    plan = plan_only(settings, Progress())
    assert plan.frozen
    assert plan.tasks[0].items < 120
    assert plan.half_width > 0


def test_adapter_and_recover(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = tf.AutoModelForCausalLM.from_pretrained(folder / "base")
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    tuned = f"{folder / 'base'}+{tmp_path / 'adapter'}"
    options: dict[str, Any] = {"tasks": [make_task()], "text": "none", "formats": 1}
    comparison = catchment.compare(str(folder / "base"), tuned, recover=tmp_path / "out", **options)
    assert comparison.tuned.source == "adapter"
    assert comparison.drift is not None
    assert comparison.drift.distance > 0
    assert comparison.recovered is not None
    judged = comparison.recovered.tasks[0]
    scores = catchment.evaluate(catchment.load(str(tmp_path / "out")), make_task())
    rows = {r.item: r for r in scores.rows}
    half = halves(make_task(), rows, 0)[1]
    assert judged.n == len(half) < 120
    assert judged.tuned == pytest.approx(sum(rows[i.id].score for i in half) / len(half))  # the saved model's own
    both = catchment.compare(tuned, str(folder / "tuned"), recover=tmp_path / "two", **options)
    assert both.recovered is not None
    assert (tmp_path / "two" / "model.safetensors").is_file()


def test_a_candidate_with_outputs_that_are_not_finite(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The item counts as 0 for the candidates, base and tuned being whole, and notes say where."""
    task, asked, score = make_task(), Counter[str](), scorers.score_choice
    choosing, judging = ([i.id for i in half] for half in halves(task, dict.fromkeys(i.id for i in task.items), 0))  # type: ignore[arg-type]

    def spoiled(encoded: Any, logprobs: Any, scorer: str) -> Any:
        asked[encoded.item.id] += 1
        sick = encoded.item.id in (choosing[0], judging[0]) and asked[encoded.item.id] > 2
        return score(encoded, [float("nan")] * len(logprobs) if sick else logprobs, scorer)

    monkeypatch.setattr(scorers, "score_choice", spoiled)
    comparison = compare(folder, tasks=[task], recover=tmp_path / "out", formats=1, room=False)
    assert comparison.recovered is not None
    notes = [w for w in comparison.warnings if "not finite" in w]
    share = f"1 of {len(choosing)} outputs are not finite; they count as 0"
    assert sum(share in note and "items to choose on" in note for note in notes) == 6
    assert f"items to judge on: 1 of {len(judging)} outputs are not finite" in notes[-1]
    assert comparison.recovered.tasks[0].n == len(judging)


def test_recover_is_refused_before_anything_is_measured(folder: Path, tmp_path: Path, home: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(StoreError, match="not empty"):
        compare(folder, recover=tmp_path)
    assert not (home / "store").exists()


def test_prompts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(item.prompt for item in make_task(n=20).items))
    comparison = compare(folder, prompts=tmp_path / "prompts.txt", formats=1)
    result = comparison.agreements[0]
    assert result.n == 20
    assert 0 < result.agreement.estimate < 1
    assert result.kl is not None
    with pytest.raises(InputError, match="--prompts"):
        compare(folder, tasks=[tmp_path / "prompts.txt"])
    with pytest.raises(InputError, match="--text"):
        compare(folder, text=tmp_path / "prompts.txt")
    with pytest.raises(InputError, match="--text"):
        compare(folder, tasks=["text"])


def test_tokenizers_that_differ(folder: Path, tmp_path: Path, home: Path) -> None:
    tf.AutoModelForCausalLM.from_pretrained(folder / "tuned").save_pretrained(tmp_path / "tuned")
    tiny.tiny_tokenizer(bos=False).save_pretrained(tmp_path / "tuned")
    pair = str(folder / "base"), str(tmp_path / "tuned")
    comparison = catchment.compare(*pair, tasks=[make_task()], text="none", formats=1)
    assert any("tokenizers differ" in w for w in comparison.warnings)
    assert comparison["echo"].n == 120
    (tmp_path / "prompts.txt").write_text("one\ntwo")
    with pytest.raises(TaskError, match="one tokenizer"):
        catchment.compare(*pair, tasks=[make_task(seed=9)], text="none", prompts=tmp_path / "prompts.txt")


def test_a_tokenizer_of_ones_own_counts_for_named_models(folder: Path) -> None:
    plain = compare(folder, formats=1)
    other = compare(folder, formats=1, tokenizer=tiny.tiny_tokenizer(bos=False))
    assert other.base.tokenizer_hash != plain.base.tokenizer_hash
    assert (other["echo"].base, other["echo"].companion) != (plain["echo"].base, plain["echo"].companion)


def test_loaded_models_and_a_template_as_a_path(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(tiny.CHAT)
    task = dataclasses.replace(make_task(n=40), style="ask")
    pair = catchment.load(str(folder / "base")), catchment.load(str(folder / "tuned"))
    options: dict[str, Any] = {"tasks": [task], "text": "none", "formats": 1}
    asked = catchment.compare(*pair, chat_template=tmp_path / "chat.jinja", out=tmp_path / "out", **options)
    plain = catchment.compare(*pair, **options)
    assert asked["echo"].companion != plain["echo"].companion


def test_a_task_with_one_format(folder: Path) -> None:
    task = make_task()
    assert compare(folder, tasks=[dataclasses.replace(task, formats=task.formats[:1])])["echo"].formats == ()


def test_the_command_line_wins_over_yaml(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("base: a\ntuned: b\nlimit: 40\nmargin: 0.1\ntasks: [recall]\nbudget: 90\n")
    found = parse(COMMANDS["compare"], ["--config", str(path), "--limit", "7", "--tasks", "language,arithmetic"])
    assert (found.base, found.tuned, found.limit, found.margin) == ("a", "b", 7, 0.1)
    assert found.tasks == ("language", "arithmetic")
    found = parse(COMMANDS["compare"], ["--config", str(path), "x", "y"])
    assert (found.base, found.tuned, found.tasks, found.budget) == ("x", "y", ("recall",), "90")


@pytest.mark.parametrize("line", ["limit: many", "margin: 2%", "tasks: 5", "drop_long: perhaps"])
def test_a_wrong_type_in_yaml_is_one_clear_line(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(line)
    with pytest.raises(InputError, match=line.split(":")[0]):
        read_config(path, CompareSettings)
    assert run("compare", ["a", "b", "--config", str(path)]) == 2
    assert "defect" not in capsys.readouterr().err


def test_settings_that_mean_nothing_in_python(folder: Path) -> None:
    for wrong in ({"limit": "40"}, {"margin": "2%"}, {"dry_run": True}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            compare(folder, **wrong)


def test_a_quantised_base_is_measured_without_drift(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards alone say that a model is quantised; tiny weights in 4 bits need a GPU."""
    base = catchment.load(str(folder / "base"), dtype="float32")
    base.card = dataclasses.replace(base.card, quantization="bitsandbytes-4bit", dtype="bfloat16")
    options: dict[str, Any] = {"tasks": [make_task(n=40)], "text": "none", "formats": 1}
    comparison = catchment.compare(base, str(folder / "tuned"), **options)
    assert comparison.drift is None
    assert any("precision differs" in w for w in comparison.warnings)
    with pytest.raises(ModelError, match="quantised"):
        catchment.compare(base, str(folder / "tuned"), recover="nowhere", **options)


def test_tasks_of_one_file_written_twice_are_refused(folder: Path, tmp_path: Path) -> None:
    path = write_task(tmp_path / "echo.jsonl", make_task())
    with pytest.raises(CatchmentError, match="two tasks are called 'echo'"):
        compare(folder, tasks=[str(path), make_task()])


def test_classify_task_on_language_models_is_said_before_measuring(folder: Path, home: Path) -> None:
    task = Task("label", tuple(Item(f"a {k}", gold=k % 2) for k in range(8)), "classify")
    with pytest.raises(TaskError, match="classification head"):
        compare(folder, tasks=[task])


def plain_accuracy(where: Path, task: Task) -> float:
    """Share of items whose right choice has the greatest log-probability, with nothing but transformers."""
    model = tf.AutoModelForCausalLM.from_pretrained(where).eval()
    tokenizer = tf.AutoTokenizer.from_pretrained(where)

    def score(prompt: str, choice: str) -> float:
        start = len(tokenizer(prompt).input_ids)
        ids = torch.tensor([tokenizer(f"{prompt} {choice}").input_ids])
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].log_softmax(-1)
        return float(logs.gather(1, ids[0, 1:, None])[start - 1 :].sum())

    right = 0
    for item in task.items:
        scores = [score(item.prompt, choice) for choice in item.choices]
        right += max(range(len(scores)), key=scores.__getitem__) == item.gold
    return right / len(task.items)


def replace_keeping_times(target: Path, source: Path) -> None:
    """Other weights of equal size, with the modification time of the old ones put back, as ``cp -p`` would."""
    stat = target.stat()
    target.write_bytes(source.read_bytes())
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (target.stat().st_size, target.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


@pytest.mark.parametrize("small", [1 << 24, 0], ids=["by content", "by attributes"])
def test_weights_replaced_with_size_and_time_kept(
    small: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comparison is of what lies there now: the base's weights, which answer every item of this task."""
    monkeypatch.setattr(known, "SMALL", small)
    task = solved(folder, 30)
    shutil.copytree(folder / "tuned", tmp_path / "tuned")
    for other in ("tuned", "base"):
        replace_keeping_times(tmp_path / "tuned/model.safetensors", folder / other / "model.safetensors")
        result = catchment.compare(str(folder / "base"), str(tmp_path / "tuned"), tasks=[task], text="none", formats=1)[
            "echo"
        ]
        assert result.tuned == pytest.approx(plain_accuracy(folder / other, task))
    assert plain_accuracy(folder / "tuned", task) < 0.9 < result.tuned == 1


def test_weights_replaced_between_the_card_and_the_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is stored under the hash of weights that were not the measured ones."""
    tuned, real = tmp_path / "tuned", catchment.models.load
    shutil.copytree(folder / "tuned", tuned)
    catchment.compare(str(folder / "base"), str(tuned), tasks=[make_task()], text="none")

    def load(spec: Any, **options: Any) -> Any:
        replace_keeping_times(tuned / "model.safetensors", folder / "base/model.safetensors")
        return real(spec, **options)

    monkeypatch.setattr("catchment.models.load", load)
    with pytest.raises(ModelError, match=r"changed after the run began.*the weights as loaded"):
        catchment.compare(str(folder / "base"), str(tuned), tasks=[make_task("other")], text="none")


def test_weights_that_are_written_to_while_they_are_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = importlib.import_module("catchment.measuring.fill")
    tuned, real = tmp_path / "tuned", measure.run
    shutil.copytree(folder / "tuned", tuned)

    def run_then_write(engine: Any, prepared: Any, **options: Any) -> Any:
        replace_keeping_times(tuned / "model.safetensors", folder / "base/model.safetensors")
        engine.model.load_state_dict(tf.AutoModelForCausalLM.from_pretrained(folder / "base").state_dict())
        return real(engine, prepared, **options)

    monkeypatch.setattr(measure, "run", run_then_write)
    with pytest.raises(ModelError, match="changed after they were loaded"):
        catchment.compare(str(tuned), str(folder / "base"), tasks=[make_task()], text="none", store=tmp_path / "store")
    rows = [line for file in (tmp_path / "store").rglob("*") if file.is_file() for line in file.read_text().split("\n")]
    assert not any('"item"' in line for line in rows)
