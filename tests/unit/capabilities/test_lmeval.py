"""lm-eval's own tasks through our engine: the same requests, the same log-likelihoods, the same decisions."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from catchment.capabilities import evaluate, prompts
from catchment.capabilities.lmeval import task_from_lm_eval
from catchment.errors import GateError, InputError, MissingExtraError, TaskError, UnavailableError
from tests import tiny

pytest.importorskip("lm_eval", reason="needs the extra [lm-eval]")

# lm-eval and its dependencies warn about their own deprecations; that is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

CITIES = (("France", "Paris"), ("Italy", "Rome"), ("Peru", "Lima"), ("Cuba", "Havana"), ("Chad", "N'Djamena"))
COUNTRIES = (*(country for country, _ in CITIES), "Bolivia", "Ghana", "Nepal", "Malta")
GOLDS = (0, 1, 2, 3, 0, 1, 2, 3, 1)
OPTIONS = [[CITIES[(n + k) % 5][1] for k in range(4)] for n in range(9)]
ROWS: list[dict[str, Any]] = [
    {"id": n, "question": f"What is the capital of {country}?", "options": options, "gold": gold, "city": options[gold]}
    for n, (country, options, gold) in enumerate(zip(COUNTRIES, OPTIONS, GOLDS, strict=True))
]


def lm_eval_task(rows: list[dict] | None = None, **config: Any) -> Any:
    """A task object of lm-eval over rows in memory."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    rows = ROWS if rows is None else rows
    data = {"validation": datasets.Dataset.from_list(rows[3:]), "train": datasets.Dataset.from_list(rows[:3])}
    defaults = {
        "task": "capitals",
        "custom_dataset": lambda **_: data,
        "validation_split": "validation",
        "fewshot_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "options",
        "doc_to_target": "gold",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    }
    return ConfigurableTask(config={**defaults, **config})


def generation(rows: list[dict] | None = None, **config: Any) -> Any:
    defaults = {
        "output_type": "generate_until",
        "doc_to_choice": None,
        "doc_to_target": "city",
        "generation_kwargs": {"until": ["\n", "?"], "max_gen_toks": 7, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    return lm_eval_task(rows, **{**defaults, **config})


def samples(task: Any, model: Any, tokenizer: Any, shots: int = 0, limit: int | None = None) -> list[dict]:
    """What lm-eval itself asks and finds, document by document."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "add_env_info", lambda results: None)  # runs pip, for seconds
        found = evaluator.simple_evaluate(
            lm, tasks=[task], num_fewshot=shots, limit=limit, bootstrap_iters=0, task_manager=manager()
        )
    return sorted(found["samples"]["capitals"], key=lambda s: s["doc_id"])


def manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=False)


def ours(task: Any, item: Any) -> list[tuple[str, str]]:
    """Context and continuation of each choice, as text."""
    form = task.formats[0]
    return [(form.fill(item), form.separator + choice) for choice in item.choices]


CASES = {
    "no shots": (0, {}),
    "shots drawn anew for each document": (2, {}),
    "the same shots for all": (2, {"fewshot_config": {"sampler": "first_n", "split": "train"}}),
    "letters": (0, {"doc_to_choice": ["A", "B", "C", "D"], "doc_to_text": "{{question}}\n{{options}}\nAnswer:"}),
    "line break before the answer": (0, {"doc_to_text": "{{question}}\n\n", "target_delimiter": ""}),
    "blank before the answer": (2, {"doc_to_text": "{{question}} ", "target_delimiter": ""}),
    "begun answer": (2, {"gen_prefix": "It is", "description": "Capitals.\n\n"}),
    "text as gold": (0, {"doc_to_target": "city"}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no bos"])
def test_choice_equals_lm_eval(case, bos, llama):
    shots, config = CASES[case]
    tokenizer = tiny.tiny_tokenizer(bos=bos)
    theirs = samples(lm_eval_task(**config), llama, tokenizer, shots)
    for metric in ("acc", "acc_norm"):
        task = task_from_lm_eval(lm_eval_task(**config), num_fewshot=shots, metric=metric)
        scores = evaluate(llama, task, tokenizer=tokenizer, batch_tokens=256)
        assert len(scores.rows) == len(theirs) == 6
        for item, row, sample in zip(task.items, scores.rows, theirs, strict=True):
            assert ours(task, item) == [tuple(pair) for pair in sample["arguments"]]
            assert row.logprobs == pytest.approx([float(r[0][0]) for r in sample["resps"]], abs=1e-4)
            assert row.score == sample[metric]


def test_decisions_differ_between_items(llama, tokenizer):
    """The comparison above would show nothing if every answer were right, or wrong, under every rule."""
    scored = {}
    for metric in ("acc", "acc_norm"):
        task = task_from_lm_eval(lm_eval_task(), metric=metric)
        scored[metric] = [row.score for row in evaluate(llama, task, tokenizer=tokenizer, batch_tokens=256).rows]
    assert {0.0, 1.0} == set(scored["acc"])
    assert scored["acc"] != scored["acc_norm"]


def test_shared_shots_stand_in_the_format(tokenizer):
    fixed = {"fewshot_config": {"sampler": "first_n", "split": "train"}, "description": "Answer briefly.\n\n"}
    task = task_from_lm_eval(lm_eval_task(**fixed), num_fewshot=2)
    assert [item.prompt for item in task.items] == [f"Question: {row['question']}\nAnswer:" for row in ROWS[3:]]
    assert task.formats[0].template.startswith("Answer briefly.\n\nQuestion: What is the capital of France?")
    encoded = prompts.encode(tokenizer, task, task.formats[0])
    head = len(tokenizer(task.formats[0].template.removesuffix("{prompt}"))["input_ids"])
    assert len({e.prompt[: head - 1] for e in encoded}) == 1
    assert "2 shots, acc" in task.description


def test_limit_takes_the_first_documents():
    task = task_from_lm_eval(lm_eval_task(), limit=2)
    assert [item.prompt for item in task.items] == [f"Question: {row['question']}\nAnswer:" for row in ROWS[3:5]]
    with pytest.raises(InputError, match="limit is 0; expected a whole number from 1"):
        task_from_lm_eval(lm_eval_task(), limit=0)


def test_unlabelled_documents_reach_the_gate(llama, tokenizer):
    rows = [{**row, "gold": -1} for row in ROWS]
    task = task_from_lm_eval(lm_eval_task(rows))
    with pytest.raises(GateError, match="6 of 6 items have no label"):
        evaluate(llama, task, tokenizer=tokenizer)


def test_lengths_that_cannot_be_reproduced_are_refused():
    rows = [{**row, "options": [o.replace("a", "ä") for o in row["options"]]} for row in ROWS]
    with pytest.raises(TaskError, match=r"acc_norm divides choice .* Use metric='acc_bytes'"):
        task_from_lm_eval(lm_eval_task(rows), metric="acc_norm")
    assert task_from_lm_eval(lm_eval_task(rows), metric="acc_bytes").scorer == "choice_per_byte"
    blank = [{**row, "options": [f" {o}" for o in row["options"]]} for row in ROWS]
    with pytest.raises(TaskError, match="Use metric='acc'"):
        task_from_lm_eval(lm_eval_task(blank, target_delimiter=""), metric="acc_norm")


@pytest.mark.parametrize("filters", [False, True], ids=["as it is", "filtered"])
def test_generation_equals_lm_eval(filters, llama, tokenizer):
    config: dict[str, Any] = {"doc_to_target": "{{'x'}}"}
    if filters:
        extract = {"function": "regex", "regex_pattern": "([a-z])"}
        config["filter_list"] = [
            {"name": "plain", "filter": [{"function": "take_first"}]},
            {"name": "letter", "filter": [extract, {"function": "take_first"}]},
        ]
    theirs = samples(generation(**config), llama, tokenizer)
    chosen = "letter" if filters else "none"
    theirs = [s for s in theirs if s["filter"] == chosen]
    # What the random model says becomes the right answer of every other document.
    said = {s["doc_id"]: s["filtered_resps"][0] for s in theirs}
    rows = [*ROWS[:3], *({**r, "city": said[n] if n % 2 else "no"} for n, r in enumerate(ROWS[3:]))]
    config = {**config, "doc_to_target": "city", "rows": rows}
    found = [s for s in samples(generation(**config), llama, tokenizer) if s["filter"] == chosen]
    task = task_from_lm_eval(generation(**config), metric="exact_match,letter" if filters else None)
    assert (task.max_new_tokens, task.stop, task.scorer) == (7, ("\n", "?"), "callable")
    scores = evaluate(llama, task, tokenizer=tokenizer, batch_tokens=256)
    assert [row.score for row in scores.rows] == [s["exact_match"] for s in found]
    assert {row.score for row in scores.rows} == {0.0, 1.0}


def test_an_answer_is_cut_where_lm_eval_cuts_it():
    rows = [{**row, "city": "Rome"} for row in ROWS]
    task = task_from_lm_eval(generation(rows=rows))
    item = task.items[0]
    assert [task.function(item, text) for text in ("Rome", "Rome\nand", "Rome? No", "\nRome", "Lima")] == [
        1,
        1,
        1,
        0,
        0,
    ]


def test_another_metric_is_another_task():
    filters = [{"name": n, "filter": [{"function": "take_first"}]} for n in ("one", "two")]
    first, second = (
        task_from_lm_eval(generation(filter_list=filters), metric=f"exact_match,{name}") for name in ("one", "two")
    )
    assert first.hash() != second.hash()
    assert first.hash() == task_from_lm_eval(generation(filter_list=filters)).hash()


def test_rolling_equals_lm_eval(llama):
    tokenizer = tiny.tiny_tokenizer(bos=False)
    config = {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "question", "doc_to_choice": None,
        "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
    }  # fmt: skip
    theirs = samples(lm_eval_task(**config), llama, tokenizer)
    task = task_from_lm_eval(lm_eval_task(**config))
    scores = evaluate(llama, task, tokenizer=tokenizer)
    assert [r.logprobs[0] for r in scores.rows] == pytest.approx([s["bits_per_byte"][0] for s in theirs], abs=1e-3)
    assert [len(i.prompt.encode()) for i in task.items] == [s["bits_per_byte"][1] for s in theirs]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: lm_eval_task(output_type="loglikelihood", doc_to_choice=None, doc_to_target="city", metric_list=None),
         {}, "output_type 'loglikelihood' is not supported"),
        (lambda: lm_eval_task(doc_to_target="{{[0, 1]}}"), {}, r"the right choices \[0, 1\]; expected exactly one"),
        (lambda: lm_eval_task(doc_to_text="{{gold}}", doc_to_target="city"), {}, "Winogrande"),
        (lambda: lm_eval_task(process_results=lambda doc, results: {"acc": 1.0}), {}, "a function of its own"),
        (lambda: lm_eval_task(), {"metric": "acc_nor"}, r"metric 'acc_nor'; .*Did you mean 'acc_norm'\?"),
        (lambda: lm_eval_task(num_fewshot=0), {"num_fewshot": 3}, "is defined without shots; got 3"),
        (lambda: lm_eval_task(), {"num_fewshot": 9}, "its requests cannot be built with 9 shots"),
        (lambda: lm_eval_task(), {"num_fewshot": "5"}, "num_fewshot is '5'"),
        (lambda: generation(), {"metric": "f2"}, "no metric 'f2'; it has exact_match"),
        (lambda: generation(), {"metric": "exact_match,strict"}, "no filter 'strict'; it has none"),
        (lambda: generation(repeats=4), {}, "it asks 4 times and votes"),
        (lambda: generation(generation_kwargs={"do_sample": True, "until": []}), {}, "it samples its answers"),
        (lambda: generation(unsafe_code=True), {}, "runs code that the model wrote"),
        (lambda: generation(process_results=lambda doc, results: {"bleu": ("a", "b")}), {}, "over all documents"),
        (lambda: generation(process_results=lambda doc, results: 1 / 0), {}, "fails on an empty answer .ZeroDivision"),
        (lambda: lm_eval_task(doc_to_image="id"), {}, "it needs images or audio"),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(make, options, message):
    with pytest.raises((InputError, TaskError), match=message):
        task_from_lm_eval(make(), **options)


def test_a_task_file_of_lm_eval(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    config = {
        "task": "from_file", "dataset_path": "json", "validation_split": "validation",
        "dataset_kwargs": {"data_files": {"validation": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "options",
        "doc_to_target": "gold", "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    path = tmp_path / "from_file.yaml"
    path.write_text(json.dumps(config), encoding="utf-8")
    task = task_from_lm_eval(str(path))
    assert (task.name, len(task.items), task.items[3].gold) == ("from_file", 9, 3)
    with pytest.raises(InputError, match="no lm-eval task file"):
        task_from_lm_eval(str(tmp_path / "gone.yaml"))


def test_names_that_lm_eval_does_not_know(monkeypatch):
    from catchment.capabilities import hub, lmeval

    class Index:
        all_tasks = ("arc_easy", "arc", "offline")

        def load(self, names):
            if names == ["offline"]:
                raise ConnectionError("no route to the hub")
            return {"tasks": {"arc_easy": lm_eval_task(), "arc_challenge": lm_eval_task()}}

    monkeypatch.setattr(lmeval, "_index", Index)
    monkeypatch.setattr(hub, "no_hub", lambda: "")
    monkeypatch.setattr(lmeval, "no_hub", lambda: "")
    with pytest.raises(InputError, match=r"lm-eval has no task 'arc_easi'; .*Did you mean 'arc_easy'\?"):
        task_from_lm_eval("arc_easi")
    with pytest.raises(InputError, match=r"lm-eval:arc is a group of 2 tasks; .*arc_easy, arc_challenge"):
        task_from_lm_eval("arc")
    with pytest.raises(TaskError, match=r"cannot be loaded .ConnectionError: no route"):
        task_from_lm_eval("offline")
    monkeypatch.setattr(lmeval, "no_hub", lambda: "the hub did not answer (ConnectError)")
    with pytest.raises(UnavailableError, match="its data set is not in the cache, and the hub did not answer"):
        task_from_lm_eval("offline")
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MissingExtraError, match=r"catchment\[lm-eval\]"):
        task_from_lm_eval("arc_easy")
