"""The same items through the lm-evaluation-harness: its tasks, its prompts, its HF backend. Only the last step, from
log-likelihoods and answers to 0/1 scores, is written here, and shares no code with ``catchment.capabilities``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from catchment.capabilities import CHOICE_SCORERS, Item, Task

CHUNK = 100
"""Items between two looks at the clock; each chunk is kept."""


def export(task: Task, items: list[Item], path: Path) -> None:
    """The items as the JSONL that lm-eval reads."""
    lines = []
    for item in items:
        line: dict[str, Any] = {"id": item.id, "prompt": item.prompt}
        if task.scorer in CHOICE_SCORERS:
            line |= {"choices": list(item.choices), "gold": item.gold}
        else:
            golds = item.gold if isinstance(item.gold, tuple) else (item.gold,)
            line |= {"golds": [str(g) for g in golds], "answer": str(golds[0])}
        lines.append(json.dumps(line, ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def shown(shot: Item) -> str:
    """The answer of a solved example; a pattern comes with one that it matches."""
    gold = shot.gold[0] if isinstance(shot.gold, tuple) else shot.gold
    return str(shot.meta.get("answer", gold))


def config(task: Task, path: Path) -> dict[str, Any]:
    """An lm-eval task over that file.

    Generation only stops at the end token or the limit, and is cut at the stop strings when it is scored: lm-eval
    lets a stop string end an answer that has not begun, where a model starts with a line break.
    """
    form = task.formats[0]
    settings: dict[str, Any] = {
        "task": task.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(path.parent / "datasets")},
        "test_split": "test",
        "doc_to_text": form.template.replace("{prompt}", "{{prompt}}"),
        "target_delimiter": form.separator,
        "fewshot_delimiter": "\n\n",
        "num_fewshot": len(task.shots),
        "metadata": {"version": task.version},
    }
    if task.scorer in CHOICE_SCORERS:
        if task.shots:
            raise NotImplementedError(f"{task.name}: no built-in choice task has shots")
        return {**settings, "output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
    shots = [{"id": "shot", "prompt": s.prompt, "golds": [], "answer": shown(s)} for s in task.shots]
    if shots:
        settings["fewshot_config"] = {"sampler": "first_n", "samples": shots}
    return {
        **settings,
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": [], "max_gen_toks": task.max_new_tokens, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }


def evaluate(lm: Any, task: Task, items: list[Item], path: Path) -> dict[str, dict[str, Any]]:
    """Per item what lm-eval asked and what came back: context, continuations, log-likelihoods or the answer."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate as run

    export(task, items, path)
    chat = task.style == "ask" and bool(lm.tokenizer.chat_template)
    ready = ConfigurableTask(config=config(task, path))
    found = run(
        lm, {task.name: ready}, apply_chat_template=chat, fewshot_as_multiturn=chat, bootstrap_iters=0, log_samples=True
    )
    rows = {}
    for sample in found["samples"][task.name]:
        arguments = [(a["arg_0"], a.get("arg_1")) for _, a in sorted(_arguments(sample).items())]
        row: dict[str, Any] = {"context": arguments[0][0]}
        if task.scorer in CHOICE_SCORERS:
            row["continuations"] = [c for _, c in arguments]
            row["logprobs"] = [float(r[0][0]) for r in sample["resps"]]
        else:
            row["text"] = sample["resps"][0][0]
        rows[sample["doc"]["id"]] = row
    return rows


def _arguments(sample: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """lm-eval's log of a request, by number."""
    found = sample["arguments"]
    if isinstance(found, dict):
        return {int(k.rsplit("_", 1)[1]): v for k, v in found.items()}
    return {k: {"arg_0": v[0], "arg_1": v[1]} for k, v in enumerate(found)}


def same_tokens(lm: Any, task: Task, row: dict[str, Any], encoded: Any) -> bool:
    """Whether lm-eval gave its model the token ids that ours got: prompt and every answer."""
    if task.scorer in CHOICE_SCORERS:
        pairs = [lm._encode_pair(row["context"], c) for c in row["continuations"]]
        return all(tuple(p) == encoded.prompt and tuple(c) in encoded.answers for p, c in pairs) and len(pairs) == len(
            encoded.answers
        )
    return tuple(lm.tok_batch_encode([row["context"]])[0][0].tolist()) == encoded.prompt


def values(scorer: str, row: dict[str, Any], item: Item) -> list[float]:
    """What is compared between the choices."""
    if scorer == "choice_per_byte":
        return [v / len(c.encode()) for v, c in zip(row["logprobs"], item.choices, strict=True)]
    return list(row["logprobs"])


def answer_of(task: Task, text: str) -> str:
    """The answer up to its first stop string, blanks and line breaks before it left out."""
    text = text.lstrip()
    return re.split("|".join(map(re.escape, task.stop)), text, maxsplit=1)[0] if task.stop else text


def right(task: Task, row: dict[str, Any], item: Item) -> int:
    """1 where the answer is right."""
    if task.scorer in CHOICE_SCORERS:
        found = values(task.scorer, row, item)
        return int(found.index(max(found)) == item.gold)
    answer = answer_of(task, row["text"])
    if task.scorer == "regex":
        return int(bool(re.match(rf"(?is)(?:{item.gold})\Z", answer.strip())))
    golds = item.gold if isinstance(item.gold, tuple) else (item.gold,)
    return int(_plain(answer) in [_plain(str(g)) for g in golds])


def _plain(text: str) -> str:
    """Lower case, single blanks, no quotes around it, no closing punctuation."""
    text = " ".join(text.lower().replace("’", "'").replace("“", '"').replace("”", '"').split())
    return text.strip(" \"'`*").rstrip(".!?,;: \"'`*")
