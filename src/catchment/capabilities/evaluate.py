"""``evaluate(model, task) -> Scores``: a model scored on a task."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from catchment.capabilities import classifiers, gates, speed
from catchment.capabilities.engine import Engine, context_length
from catchment.capabilities.order import sample
from catchment.capabilities.prepared import Prepared, prepare
from catchment.capabilities.prompts import PromptOptions
from catchment.capabilities.rows import run
from catchment.capabilities.scores import OnRows, Scores
from catchment.capabilities.tasks import Task
from catchment.errors import InputError, ModelError, TaskError


def make_engine(model: Any, tokenizer: Any, batch_tokens: int | None = None) -> Engine:
    """An engine for this model; ``batch_tokens=None`` measures the best size on this machine.

    Raises:
        TaskError: not a causal language model.
        ModelError: an adapter of virtual tokens, which has no place for shared prompts.
    """
    check_causal(model)
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ModelError(
            f"{type(model).__name__}: its adapter puts virtual tokens before the text; expected an adapter that "
            f"changes weights (LoRA and its kin)."
        )
    engine = Engine(model, tokenizer)
    engine.batch_tokens = batch_tokens or speed.measure_speed(engine).batch_tokens
    return engine


def check_causal(model: Any) -> None:
    """Refuse what does not predict the next token.

    Raises:
        TaskError: an encoder-decoder, a masked language model or a classifier.
    """
    inner = getattr(model, "get_base_model", lambda: model)()
    if getattr(inner.config, "is_encoder_decoder", False) or not inner.can_generate():
        raise TaskError(
            f"{type(inner).__name__} cannot be scored by its next-token probabilities; expected a causal language "
            f"model (...ForCausalLM). Classifiers take tasks with scorer 'classify'."
        )


def unwrap(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """The model and tokenizer of a :class:`~catchment.models.LoadedModel`, or what was given.

    Raises:
        GateError: Weights of a loaded model are not in its files and were initialised at random.
    """
    if hasattr(model, "card"):
        gates.check_model(model.card.name, model.newly_initialised, ())
        return model.model, tokenizer if tokenizer is not None else model.tokenizer
    return model, tokenizer


# long: signature and docstring describe every option of a public function
def evaluate(
    model: Any,
    task: Task,
    *,
    tokenizer: Any = None,
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
    """Score a model on a task: one row per item.

    Prompts are computed once for all choices of an item and a prefix that all items share once for all; batches are
    sorted by length; an item's log-probabilities do not depend on its batch (1e-4 in fp32). Leaves no trace: training
    mode and random states are restored. Cost: about one forward pass over the prompts' own tokens and the answers.

    Args:
        model: a :class:`~catchment.models.LoadedModel`, or a transformers model (then give ``tokenizer``).
        task: what to measure; see :class:`~catchment.capabilities.Task`.
        format: name of one of the task's formats; the first by default.
        chat_template, system: how the model is asked; see :class:`~catchment.capabilities.PromptOptions`.
        prompt_options: the two in one object, instead of them.
        limit: score a seeded random subset of this many items.
        batch_tokens: padded tokens per forward pass; measured when ``None``.
        drop_long: leave out items that do not fit into the context (they are named in the warnings).
        done: ids of items not to score again; with ``batch_tokens`` given, the rows that are left are bit for bit
            those of one run without pause.
        on_rows: called after every batch.

    Raises:
        GateError: the measurement would look like a result and be none (see :mod:`catchment.capabilities.gates`).
        TaskError: the task cannot be encoded or scored, or the model is of the wrong kind.
        InputError: no tokenizer, an unknown format, a limit below 1.

    Example:
        >>> scores = evaluate(model, task, tokenizer=tokenizer, limit=200)  # doctest: +SKIP
        >>> scores.mean  # doctest: +SKIP
        0.71
    """
    model, tokenizer = unwrap(model, tokenizer)
    asked = PromptOptions.of(prompt_options, chat_template, system)
    warnings = gates.check_task(task)
    items = sample(task.items, limit, seed)
    if task.scorer == "classify":
        return classifiers.evaluate(model, tokenizer, task, items, on_rows=on_rows, done=done)
    if task.scorer == "agreement":
        raise TaskError(
            f"task {task.name!r}: agreement is between two models; use capabilities.agreement(base, tuned, task)."
        )
    if tokenizer is None:
        raise InputError(f"evaluate({type(model).__name__}, ...): expected tokenizer=..., because the model has none.")
    check_causal(model)
    prepared = prepare(
        tokenizer, task, format=format, items=items, prompt_options=asked,
        context=context_length(model), drop_long=drop_long,
    )  # fmt: skip
    engine = make_engine(model, tokenizer, batch_tokens)
    rows = {row.item: row for row in run(engine, prepared, done=done, on_rows=on_rows)}
    ordered = tuple(rows[item.id] for item in items if item.id in rows)
    if prepared.dropped:
        names = ", ".join(prepared.dropped[:3]) + (", ..." if len(prepared.dropped) > 3 else "")
        warnings.append(f"{len(prepared.dropped)} items longer than the context were left out ({names})")
    note = asked.note_for(tokenizer, task)
    warnings += gates.check_rows(task, ordered) + engine.notes + ([note] if note else [])
    under = conditions(engine, prepared, asked, seed, limit)
    return Scores(task.name, prepared.form.name, ordered, task.chance_level, under, tuple(warnings))


def conditions(
    engine: Engine, prepared: Prepared, asked: PromptOptions, seed: int, limit: int | None
) -> dict[str, Any]:
    """What decided the rows beside model and task, after they were measured."""
    return {
        "format": prepared.form.name,
        "chat_template": asked.chat_template,
        "system": asked.system_for(prepared.task),
        "batch_tokens": engine.batch_tokens,
        "packed": engine.packed,
        "shared_prefix": prepared.prefix,
        "seed": seed,
        "limit": limit,
    }
