"""Agreement with the base: what two models say to the same prompts, for people who have no labels.

Per prompt the base answers greedily; then both models read prompt and answer, and their next-token distributions are
compared at every answer position (teacher forcing, so that one other word early on does not decide the rest).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from catchment.capabilities import engine as engines
from catchment.capabilities import gates, scorers, speed
from catchment.capabilities.engine import Engine, Prefix
from catchment.capabilities.evaluate import conditions, make_engine, unwrap
from catchment.capabilities.generation import Answer, generate
from catchment.capabilities.order import sample
from catchment.capabilities.prepared import Prepared, batches, cost_tokens, prepare
from catchment.capabilities.prompts import Encoded, PromptOptions
from catchment.capabilities.rows import settle_path
from catchment.capabilities.scores import OnRows, Scores
from catchment.capabilities.tasks import Item, Task
from catchment.errors import InputError, TaskError
from catchment.models import without_trace
from catchment.records import Row

LOGITS = 32_000_000
"""Most logits of one model that exist at a time: 128 MB in fp32."""


# long: signature and docstring describe every option of a public function
def agreement(
    base: Any,
    tuned: Any,
    task: Task | Sequence[str],
    *,
    tokenizer: Any = None,
    max_new_tokens: int = 32,
    format: str | None = None,
    chat_template: str = "auto",
    system: str | None = None,
    prompt_options: PromptOptions | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_tokens: int | None = None,
    drop_long: bool = False,
    done: Collection[str] = (),
    on_rows: OnRows | None = None,
) -> Scores:
    """How far a tuned model says the same as its base, on prompts without labels.

    With p_t and q_t the next-token distributions of base and tuned at position t of the base's greedy answer:

    - score: 1 - mean_t TV(p_t, q_t), TV(p, q) = 1/2 sum |p - q|; in [0, 1], and 1 for equal models;
    - companion: mean_t KL(p_t || q_t) in bits per token;
    - prediction: the base's answer.

    Positions are those of the answer's tokens, and that of the end token where the base ended its answer; so an empty
    answer has one. Cost: the base's generation and one forward pass of each model over prompts and answers. Both
    models are in memory; at most about 0.5 GB of distributions exist at a time.

    Args:
        base, tuned: :class:`~catchment.models.LoadedModel`, or transformers models (then give ``tokenizer``).
        task: a task with scorer ``"agreement"``, or just the prompts.
        max_new_tokens: of the base's answer, where prompts are given; a task has its own.

    The other arguments are those of :func:`~catchment.capabilities.evaluate`.

    Raises:
        TaskError: the two models have different tokenizers or vocabularies, or no prompt is left.
        GateError: prompts longer than the context, or many near-duplicates.

    Example:
        >>> scores = agreement(base, tuned, ["Who wrote Faust?", "Name a fish."], tokenizer=tok)  # doctest: +SKIP
        >>> scores.mean  # doctest: +SKIP
        0.93
    """
    task = task if isinstance(task, Task) else _task_of(task, max_new_tokens)
    if task.scorer != "agreement":
        raise InputError(f"task {task.name!r} has scorer {task.scorer!r}; expected 'agreement', or a list of prompts.")
    base, base_tokenizer = unwrap(base, tokenizer)
    tuned, tuned_tokenizer = unwrap(tuned, tokenizer)
    asked = PromptOptions.of(prompt_options, chat_template, system)
    if base_tokenizer is None or tuned_tokenizer is None:
        raise InputError("agreement(base, tuned, ...): expected tokenizer=..., because a model has none.")
    warnings = gates.check_task(task)
    items = sample(task.items, limit, seed)
    contexts = [n for n in map(engines.context_length, (base, tuned)) if n is not None]
    prepared = prepare(
        base_tokenizer, task, format=format, items=items, prompt_options=asked,
        context=min(contexts, default=None), drop_long=drop_long,
    )  # fmt: skip
    one = make_engine(base, base_tokenizer, batch_tokens)
    two = make_engine(tuned, tuned_tokenizer, one.batch_tokens)
    found = {row.item: row for row in agreement_rows(one, two, prepared, done=done, on_rows=on_rows)}
    rows = tuple(found[item.id] for item in items if item.id in found)
    if prepared.dropped:
        warnings.append(f"{len(prepared.dropped)} prompts longer than the context were left out")
    note = asked.note_for(base_tokenizer, task)
    warnings += [note] if note else []
    under = conditions(one, prepared, asked, seed, limit)
    return Scores(task.name, prepared.form.name, rows, 0.0, under, (*warnings, *one.notes))


def _task_of(prompts: Sequence[str], max_new_tokens: int) -> Task:
    if isinstance(prompts, str):
        raise InputError(f"agreement prompts {prompts[:40]!r}: expected a list of texts, got one text.")
    items = tuple(Item(prompt) for prompt in dict.fromkeys(prompts))
    return Task("agreement", items, "agreement", max_new_tokens=max_new_tokens, stop=())


def agreement_rows(
    base: Engine,
    tuned: Engine,
    prepared: Prepared,
    *,
    done: Collection[str] = (),
    on_rows: OnRows | None = None,
) -> list[Row]:
    """The rows of :func:`agreement` for the items that are not in ``done``, batch by batch as in
    :func:`~catchment.capabilities.run`: a resumed run gives the same bits.

    Raises:
        TaskError: the two models have different tokenizers or vocabularies.
    """
    task, encoded = prepared.task, prepared.encoded
    check_same_vocabulary(base, tuned, prepared)
    rows: list[Row] = []
    settle_path(base, prepared)
    with ExitStack() as stack:
        for model in (base.model, tuned.model):
            stack.enter_context(without_trace(model))
        usable = prepared.prefix if base.packed else 0
        prefix = engines.make_prefix(base, encoded[0].prompt[:usable]) if usable else Prefix(0)

        def score(indices: list[int]) -> list[Row]:
            return _score_batch(base, tuned, prefix, task, [encoded[i] for i in indices])

        for group in batches(encoded, prepared.prefix, base.batch_tokens):
            if all(encoded[i].item.id in done for i in group):
                continue
            fresh = [row for row in speed.halving_on_oom(score, group, base.notes) if row.item not in done]
            rows += fresh
            if on_rows is not None:
                part = [encoded[i] for i in group]
                read = sum(len(e.prompt) + task.max_new_tokens for e in part)
                on_rows(fresh, cost_tokens(task, part, prepared.prefix) - prepared.prefix + 2 * read)
    return rows


def check_same_vocabulary(base: Engine, tuned: Engine, prepared: Prepared) -> None:
    """Refuse models whose next-token distributions are over different tokens.

    Raises:
        TaskError: sizes or tokens differ.
    """
    sizes = [engine.model.get_output_embeddings().weight.shape[0] for engine in (base, tuned)]
    if sizes[0] != sizes[1]:
        raise TaskError(
            f"task {prepared.task.name!r}: the base has {sizes[0]} tokens and the tuned model {sizes[1]}; expected "
            f"equal vocabularies, because next-token distributions are compared. Use tasks with answers instead."
        )
    if base.tokenizer is tuned.tokenizer:
        return
    texts = [e.text for e in prepared.encoded[:20]]
    same = base.tokenizer.get_vocab() == tuned.tokenizer.get_vocab() and (
        base.tokenizer(texts, add_special_tokens=False)["input_ids"]
        == tuned.tokenizer(texts, add_special_tokens=False)["input_ids"]
    )
    if not same:
        raise TaskError(
            f"task {prepared.task.name!r}: the two models have different tokenizers; expected the same one, because "
            f"next-token distributions are compared. Use tasks with answers instead."
        )


def _score_batch(base: Engine, tuned: Engine, prefix: Prefix, task: Task, batch: list[Encoded]) -> list[Row]:
    prompts = [e.prompt for e in batch]
    answers = generate(base, prefix, prompts, max_new_tokens=task.max_new_tokens, stop=task.stop)
    for e, answer in zip(batch, answers, strict=True):
        scorers.check_generated(e.item, answer.finite)
    rows = []
    for at, size in _parts(base, prompts, answers):
        rows += _compare(base, tuned, batch[at : at + size], answers[at : at + size])
    return rows


def _parts(engine: Engine, prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> list[tuple[int, int]]:
    """(start, rows) of passes that each make at most LOGITS logits."""
    vocabulary = engine.model.get_output_embeddings().weight.shape[0]
    width = max(len(p) + len(a.ids) for p, a in zip(prompts, answers, strict=True))
    size = max(1, LOGITS // (width * vocabulary))
    return [(at, min(size, len(prompts) - at)) for at in range(0, len(prompts), size)]


def _compare(base: Engine, tuned: Engine, batch: Sequence[Encoded], answers: Sequence[Answer]) -> list[Row]:
    texts = [[*e.prompt, *a.ids] for e, a in zip(batch, answers, strict=True)]
    first = min(len(e.prompt) for e in batch) - 1
    logits = [_logits(engine, texts, first) for engine in (base, tuned)]
    rows = []
    for k, (e, answer) in enumerate(zip(batch, answers, strict=True)):
        start = len(e.prompt) - 1 - first
        steps = slice(start, start + len(answer.ids) + answer.ended)
        p, q = (x[k, steps] for x in logits)
        variation, bits = distances(p, q.to(p.device))
        scorers.check_finite(e.item, (variation, bits))
        rows.append(Row(e.item.id, 1.0 - variation, answer.text.strip(), (), bits))
    return rows


def _logits(engine: Engine, texts: Sequence[Sequence[int]], first: int) -> Tensor:
    """Logits [rows, width - first, vocabulary] of right-padded texts from column ``first`` on."""
    width = max(map(len, texts))
    ids = torch.full((len(texts), width), engine.pad)
    mask = torch.zeros((len(texts), width), dtype=torch.long)
    for k, text in enumerate(texts):
        ids[k, : len(text)] = torch.tensor(text)
        mask[k, : len(text)] = 1
    inputs = {"input_ids": ids.to(engine.device), "attention_mask": mask.to(engine.device)}
    return engines.last_logits(engine, width - first, **inputs)[0]


def distances(p: Tensor, q: Tensor, block: int = 64) -> tuple[float, float]:
    """Mean total variation in [0, 1], and mean KL(p || q) in bits, of softmax distributions given as logits.

    Args:
        p, q: Shape [positions, vocabulary], at least one position.
        block: positions in fp32 at a time.

    >>> zero = torch.zeros(1, 2)
    >>> distances(zero, zero)
    (0.0, 0.0)
    >>> distances(torch.tensor([[30.0, 0.0]]), torch.tensor([[0.0, 30.0]]))[0]
    1.0
    """
    variation, divergence = 0.0, 0.0
    for at in range(0, len(p), block):
        a, b = (x[at : at + block].float().log_softmax(-1) for x in (p, q))
        weight = a.exp()
        variation += 0.5 * float((weight - b.exp()).abs().sum(dtype=torch.float64))
        divergence += float(torch.where(weight > 0, weight * (a - b), 0.0).sum(dtype=torch.float64))
    return min(1.0, variation / len(p)), max(0.0, divergence / len(p) / math.log(2))
