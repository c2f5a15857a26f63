"""Any task of the lm-evaluation-harness, through its own task objects (extra ``[lm-eval]``).

Contexts, continuations, filters and metrics are what lm-eval itself builds for the task; only the forward passes are
ours. Where both can score a task, log-likelihoods agree within rounding and decisions are equal, except:

- ``bits_per_byte``: lm-eval counts the BOS that the tokenizer writes as a predicted token; we score the text alone.
  Bytes are those of the scored text, where some tasks count those of another version of it.
- generation: lm-eval keeps blanks at the end of a prompt; we leave them to the model's answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from catchment.capabilities.columns import UNLABELLED
from catchment.capabilities.hub import cache_alone
from catchment.capabilities.tables import distinct
from catchment.capabilities.tasks import Format, Item, Task
from catchment.errors import CatchmentError, InputError, MissingExtraError, TaskError, UnavailableError, did_you_mean
from catchment.models import no_hub

CHOICE_METRICS = {"acc": "choice", "acc_norm": "choice_per_byte", "acc_bytes": "choice_per_byte"}
DEFAULT_MAX_TOKENS = 256
"""lm-eval's own, for tasks that do not say."""
MAX_TOKENS_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class _Question:
    """One document and the requests that lm-eval makes of it."""

    doc: Any
    requests: tuple[Any, ...]

    @property
    def context(self) -> str:
        return self.requests[0].args[0]


@dataclass(frozen=True)
class LmEvalScore:
    """``function(item, answer)`` that cuts, filters and scores an answer as lm-eval does."""

    task: Any
    docs: Mapping[str, Any]
    metric: str
    filter: str
    until: tuple[str, ...]

    def __call__(self, item: Item, answer: str) -> float:
        return float(self.results(self.docs[item.id], answer)[self.metric])

    def results(self, doc: Any, answer: str) -> Mapping[str, Any]:
        """All metrics of one answer."""
        from lm_eval.api.instance import Instance

        for stop in self.until:
            answer = answer.split(stop)[0]
        request = Instance("generate_until", doc, (), 0, resps=[answer])
        ensemble = next(f for f in self.task._filters if f.name == self.filter)
        ensemble.apply([request])
        return self.task.process_results(doc, [request.filtered_resps[self.filter]])


def _refuse(name: str, reason: str) -> NoReturn:
    raise TaskError(f"lm-eval task {name!r}: {reason}")


@lru_cache(maxsize=1)
def _index() -> Any:
    """lm-eval's index of all its tasks: some ten thousand files are read, once."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _load(name: str) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise MissingExtraError("lm-eval", "lm-eval", f"task 'lm-eval:{name}'") from error
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"no lm-eval task file {name!r}; expected a YAML file or the name of a task.")
        manager = TaskManager(include_defaults=False)
    else:
        manager = _index()
        if name not in manager.all_tasks:
            raise InputError(
                f"lm-eval has no task {name!r}; see 'lm-eval ls tasks'.{did_you_mean(name, manager.all_tasks)}"
            )
    try:
        with cache_alone():
            tasks = manager.load([name])["tasks"]
    except Exception as error:  # task files, the hub and data set builders each raise their own
        if isinstance(error, ConnectionError) and (why := no_hub()):
            raise UnavailableError(f"lm-eval task {name!r}", f"its data set is not in the cache, and {why}") from error
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        _refuse(name, f"it cannot be loaded ({detail}); expected its data set on this machine or a network.")
    if len(tasks) != 1:
        few = ", ".join([*list(tasks)[:8], *(["..."] if len(tasks) > 8 else [])])
        raise InputError(f"lm-eval:{name} is a group of {len(tasks)} tasks; name them one by one: {few}.")
    return next(iter(tasks.values()))


def _shots(task: Any, name: str, num_fewshot: int | None) -> int:
    """lm-eval's rule: the argument wins, unless the task itself says 0."""
    configured = task.get_config("num_fewshot")
    if num_fewshot is None:
        return configured or 0
    if isinstance(num_fewshot, bool) or not isinstance(num_fewshot, int) or num_fewshot < 0:
        raise InputError(f"num_fewshot is {num_fewshot!r}; expected a whole number from 0.")
    if configured == 0 and num_fewshot:
        raise InputError(f"lm-eval task {name!r} is defined without shots; got {num_fewshot}. Leave them out.")
    return num_fewshot


def _questions(task: Any, name: str, shots: int, limit: int | None, seed: int) -> list[_Question]:
    """The requests of the first ``limit`` documents, shots drawn as lm-eval draws them."""
    task.set_fewshot_seed(seed=seed)
    found = []
    try:
        for number, doc in task.doc_iterator(limit=limit):
            context = task.fewshot_context(doc, num_fewshot=shots, gen_prefix=task.doc_to_prefix(doc))
            made = task.construct_requests(doc=doc, ctx=context, metadata=(name, number, 1))
            found.append(_Question(doc, tuple(made) if isinstance(made, list) else (made,)))
    except Exception as error:  # a task's own code and templates
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        _refuse(name, f"document {len(found)}: its requests cannot be built with {shots} shots ({detail}).")
    if not found:
        _refuse(name, "it has no documents to score; expected at least one.")
    return found


def _gold(task: Any, name: str, doc: Any, choices: Sequence[str]) -> int:
    gold = task.doc_to_target(doc)
    if isinstance(gold, list):
        if len(gold) != 1:
            _refuse(name, f"an item has the right choices {gold}; expected exactly one. Several are not supported.")
        gold = gold[0]
    if isinstance(gold, str):
        return list(choices).index(gold) if gold in choices else UNLABELLED
    return int(gold) if 0 <= int(gold) < len(choices) else UNLABELLED


def _shared_head(contexts: Sequence[str], delimiter: str) -> str:
    """What all contexts begin with, up to the last delimiter between shots: description and fixed shots.

    >>> _shared_head(["Q: 1\\n\\nQ: 2", "Q: 1\\n\\nQ: 3"], "\\n\\n")
    'Q: 1\\n\\n'
    """
    if len(contexts) < 2 or not delimiter:
        return ""
    first, last = min(contexts), max(contexts)
    same = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    head = first[: first.rfind(delimiter, 0, same) + len(delimiter)] if delimiter in first[:same] else ""
    if "{prompt}" in head or "{choices}" in head or any(not c[len(head) :].strip() for c in contexts):
        return ""
    return head


def _choices(conts: Sequence[Sequence[str]], delimiter: str) -> tuple[list[list[str]], str]:
    """Continuations as choices behind a separator: lm-eval's target delimiter, where all begin with it."""
    separator = delimiter if all(c.startswith(delimiter) for group in conts for c in group) else ""
    return [[c[len(separator) :] for c in group] for group in conts], separator


def _check_lengths(name: str, metric: str, written: str, scored: str) -> None:
    """``acc_norm`` divides by the characters of a choice, ``acc_bytes`` by its bytes; ours divides by the bytes of the
    stripped continuation. Where these differ the metric cannot be reproduced, and is refused."""
    theirs = {"acc_norm": len(written), "acc_bytes": len(written.encode())}.get(metric)
    ours = len(scored.strip().encode())
    if theirs is not None and theirs != ours:
        other = "acc_bytes" if metric == "acc_norm" and len(written.encode()) == ours else "acc"
        _refuse(name, f"{metric} divides choice {written!r} by {theirs}, its bytes are {ours}; expected choices in "
                f"ASCII without outer blanks. Use metric={other!r}.")  # fmt: skip


def _choice_task(task: Any, name: str, questions: list[_Question], metric: str) -> dict[str, Any]:
    if metric not in CHOICE_METRICS:
        raise InputError(
            f"lm-eval task {name!r}: metric {metric!r}; multiple choice has {', '.join(CHOICE_METRICS)}."
            + did_you_mean(metric, CHOICE_METRICS)
        )
    if getattr(task, "multiple_input", 0):
        _refuse(name, "each choice is a context of its own (as in Winogrande) and the same ending is scored after "
                "each; expected one context with several endings. This kind is not supported.")  # fmt: skip
    if callable(getattr(task.config, "process_results", None)):
        _refuse(name, "it scores log-likelihoods by a function of its own; expected acc, acc_norm or acc_bytes.")
    written = [[str(c) for c in task.doc_to_choice(q.doc)] for q in questions]
    conts = [
        [request.args[1] for request in q.requests[: len(group)]] for q, group in zip(questions, written, strict=True)
    ]
    contexts = [q.context for q in questions]
    choices, separator = _choices(conts, task.config.target_delimiter)
    for group, scored in zip(written, choices, strict=True):
        for one, other in zip(group, scored, strict=True):
            _check_lengths(name, metric, one, separator + other)
    head = _shared_head(contexts, task.config.fewshot_delimiter)
    items = [
        Item(context[len(head) :], tuple(scored), _gold(task, name, q.doc, group))
        for q, context, group, scored in zip(questions, contexts, written, choices, strict=True)
    ]
    return {
        "items": distinct(items),
        "scorer": CHOICE_METRICS[metric],
        "formats": (Format("plain", head + "{prompt}", separator),),
    }


def _until(task: Any, name: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The stop strings; refuses what greedy decoding cannot reproduce."""
    sampled = settings.get("do_sample")
    if sampled or (sampled is None and float(settings.get("temperature") or 0) > 0):
        _refuse(name, f"it samples its answers ({dict(settings)}); expected greedy generation.")
    if (task.get_config("repeats") or 1) > 1:
        _refuse(name, f"it asks {task.get_config('repeats')} times and votes; expected one greedy answer.")
    until = settings.get("until") or []
    return tuple(s for s in ([until] if isinstance(until, str) else until) if s)


def _metric(score: LmEvalScore, name: str, wanted: str | None, doc: Any) -> str:
    """The metric to report, checked on an empty answer: a number for each item, higher is better."""
    try:
        results = score.results(doc, "")
    except Exception as error:  # a task's own code
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        _refuse(name, f"its own scoring fails on an empty answer ({detail}).")
    metric = wanted or next(iter(results), "")
    if metric not in results:
        raise InputError(
            f"lm-eval task {name!r} has no metric {metric!r}; it has {', '.join(results)}."
            + did_you_mean(metric, results)
        )
    if isinstance(results[metric], tuple | list | dict | str) or results[metric] is None:
        _refuse(name, f"{metric} is computed over all documents at once ({results[metric]!r:.60}); expected a score "
                "for each item.")  # fmt: skip
    if score.task.higher_is_better().get(metric) is False:
        _refuse(name, f"a lower {metric} is better; expected a score where 1 is right.")
    return metric


def _filter(task: Any, name: str, wanted: str | None) -> str:
    names = [ensemble.name for ensemble in task._filters]
    if wanted is not None and wanted not in names:
        raise InputError(
            f"lm-eval task {name!r} has no filter {wanted!r}; it has {', '.join(names)}.{did_you_mean(wanted, names)}"
        )
    return wanted if wanted is not None else names[0]


def _target(task: Any, doc: Any) -> str | None:
    """The right answer as text where it is one: shown beside flips, and the companion is its probability."""
    target = task.doc_to_target(doc)
    if isinstance(target, list):
        target = target[0] if target else None
    if isinstance(target, int) and task.get_config("doc_to_choice") is not None:
        target = task.doc_to_choice(doc)[target]
    return str(target) if target is not None and str(target).strip() else None


def _generated_task(task: Any, name: str, questions: list[_Question], metric: str | None) -> dict[str, Any]:
    if task.get_config("unsafe_code"):
        _refuse(name, "scoring it runs code that the model wrote; expected a task that is safe to score.")
    settings = questions[0].requests[0].args[1]
    until = _until(task, name, settings)
    limits = [settings[key] for key in MAX_TOKENS_KEYS if settings.get(key) is not None]
    wanted, _, wanted_filter = (metric or "").partition(",")
    chosen = _filter(task, name, wanted_filter or None)
    found = _metric(LmEvalScore(task, {}, "", chosen, until), name, wanted or None, questions[0].doc)
    contexts = [q.context for q in questions]
    head = _shared_head(contexts, task.config.fewshot_delimiter)
    delimiter = task.config.target_delimiter
    separator = delimiter if not delimiter.strip(" ") else ""
    items = []
    for q, context in zip(questions, contexts, strict=True):
        answer = _target(task, q.doc)
        meta = {} if answer is None else {"answer": (delimiter if not separator else "") + answer}
        scoring = [context, answer, name, found, chosen, str(task.VERSION)]
        key = hashlib.sha256(json.dumps(scoring, ensure_ascii=False).encode()).hexdigest()[:16]
        items.append(Item(context[len(head) :], gold=answer, id=key, meta=meta))
    unique = distinct(items)
    docs = {item.id: q.doc for item, q in zip(unique, questions, strict=True)}
    return {
        "items": unique,
        "scorer": "callable",
        "formats": (Format("plain", head + "{prompt}", separator),),
        "function": LmEvalScore(task, docs, found, chosen, until),
        "stop": until,
        "max_new_tokens": int(limits[0]) if limits else DEFAULT_MAX_TOKENS,
    }


def _text_task(questions: list[_Question]) -> dict[str, Any]:
    return {
        "items": distinct([Item(q.context) for q in questions]),
        "scorer": "text",
        "formats": (Format("plain"),),
    }


def task_from_lm_eval(
    task: Any,
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    seed: int = 1234,
    metric: str | None = None,
) -> Task:
    """A task of the lm-evaluation-harness, with the prompts, answers and scoring that lm-eval itself builds.

    ``multiple_choice`` becomes a choice task: ``acc`` compares summed log-likelihoods, ``acc_norm`` divides them by the
    characters of the choice and ``acc_bytes`` by its bytes (refused where ours, bytes of the stripped continuation,
    differ). ``generate_until`` becomes a greedy generation scored by lm-eval's own filters and metric;
    ``loglikelihood_rolling`` becomes bits per byte. Description and shots that are the same for all items stand in the
    format, so that an item is its own question.

    Args:
        task: the name of a task, the path of a task's YAML file, or an lm-eval task object.
        num_fewshot: shots; default: what the task says, else 0. Drawn by lm-eval.
        limit: the first documents only, as lm-eval's ``--limit``.
        seed: of the shots; the default is lm-eval's own.
        metric: default ``acc`` (choice), else the task's first; ``"exact_match,flexible-extract"`` also names the
            filter.

    Raises:
        MissingExtraError: lm-eval is not installed.
        InputError: no such task, a group of tasks, or no such metric.
        TaskError: a kind of task that we cannot score as lm-eval does; the message says why.

    Example:
        >>> task_from_lm_eval("arc_easy", num_fewshot=5)  # doctest: +SKIP
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit is {limit!r}; expected a whole number from 1, or None for all documents.")
    loaded = _load(task) if isinstance(task, str) else task
    name = str(getattr(loaded, "task_name", None) or task)
    kind = getattr(loaded, "OUTPUT_TYPE", None)
    if getattr(loaded, "MULTIMODAL", False):
        _refuse(name, "it needs images or audio; expected text alone.")
    if kind not in ("multiple_choice", "generate_until", "loglikelihood_rolling"):
        _refuse(name, f"output_type {kind!r} is not supported; expected multiple_choice, generate_until or "
                "loglikelihood_rolling.")  # fmt: skip
    shots = _shots(loaded, name, num_fewshot)
    questions = _questions(loaded, name, shots, limit, seed)
    try:
        if kind == "multiple_choice":
            metric = metric or "acc"
            parts = _choice_task(loaded, name, questions, metric)
        elif kind == "generate_until":
            parts = _generated_task(loaded, name, questions, metric)
            metric = f"{parts['function'].metric},{parts['function'].filter}"
        else:
            parts, metric = _text_task(questions), "bits_per_byte"
    except CatchmentError:
        raise
    except Exception as error:  # a task's own code and templates
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        _refuse(name, f"its items cannot be read ({detail}).")
    described = f"lm-eval {_version()}: {name} version {loaded.VERSION}, {shots} shots, {metric}"
    return Task(name=name, style="continue", description=described, shots_within=shots, **parts)


def _version() -> str:
    from importlib.metadata import version

    return version("lm-eval")
