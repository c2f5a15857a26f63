"""Sequence and image classifiers through the same door: the score is whether the largest logit is the label."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from catchment.capabilities import engine as engines
from catchment.capabilities import gates
from catchment.capabilities.scorers import check_finite
from catchment.capabilities.scores import OnRows, Scores
from catchment.capabilities.tasks import Item, Task
from catchment.errors import InputError, MissingExtraError, TaskError
from catchment.models import without_trace
from catchment.records import Row

BATCH = 16
"""Items per forward pass. Fixed, so that a resumed run forms the same batches."""


def evaluate(
    model: Any,
    processor: Any,
    task: Task,
    items: Sequence[Item],
    *,
    on_rows: OnRows | None = None,
    done: Collection[str] = (),
) -> Scores:
    """Score a classifier. Text: ``item.prompt`` (and ``item.meta["pair"]``); images: the path in ``item.prompt`` or an
    array in ``item.meta["image"]``. The companion is the softmax probability of the label.

    Returns:
        :class:`~catchment.capabilities.Scores` of the items that are not in ``done``. Cost: one forward pass.

    Raises:
        TaskError: a label outside the model's classes, a model without a classification head, a picture that cannot
            be read, only some items with a second text.
        GateError: a text longer than the model takes.
        InputError: no tokenizer or image processor.
    """
    classes = _classes(model, processor, task, items)
    names = getattr(model.config, "id2label", None) or {}
    images = _takes_images(processor)
    if not images:
        _check_texts(model, processor, task, items)
    # Without a padding token a text classifier finds the end of a text only when it stands alone.
    size = BATCH if images or (processor.pad_token_id is not None and _pads(model)) else 1
    order = sorted(items, key=lambda item: len(item.prompt))
    rows: dict[str, Row] = {}
    with without_trace(model):
        for at in range(0, len(order), size):
            batch = order[at : at + size]
            if all(item.id in done for item in batch):
                continue
            inputs = _inputs(processor, batch).to(next(model.parameters()).device)
            logits = model(**inputs).logits.float()
            if logits.shape != (len(batch), classes):
                raise _no_head(model, task)
            found = [_row(item, p, names) for item, p in zip(batch, logits.log_softmax(-1), strict=True)]
            fresh = [row for row in found if row.item not in done]
            rows |= {row.item: row for row in fresh}
            if on_rows is not None:
                on_rows(fresh, sum(v.numel() for v in inputs.values()))
    ordered = tuple(rows[item.id] for item in items if item.id in rows)
    chance = task.chance if task.chance is not None else 1 / classes
    return Scores(task.name, "classify", ordered, chance, {"batch": size})


def _classes(model: Any, processor: Any, task: Task, items: Sequence[Item]) -> int:
    name = type(getattr(model, "get_base_model", lambda: model)()).__name__
    if not name.endswith("Classification"):
        raise _no_head(model, task)
    if processor is None:
        raise InputError(f"evaluate({name}, ...): expected tokenizer=..., its tokenizer or image processor.")
    classes = int(model.config.num_labels)
    wrong = [item for item in items if not (isinstance(item.gold, int) and 0 <= item.gold < classes)]
    if wrong:
        raise TaskError(
            f"task {task.name!r}, item {wrong[0].id}: label {wrong[0].gold!r}; expected 0 to {classes - 1}, the "
            f"classes of {name}. Is this the model that was tuned on these labels?"
        )
    return classes


def _no_head(model: Any, task: Task) -> TaskError:
    return TaskError(
        f"task {task.name!r} (scorer 'classify') needs a model with a classification head; got {type(model).__name__}. "
        f"Load it as a sequence or image classifier, or use a choice scorer with a language model."
    )


def _row(item: Item, logprobs: torch.Tensor, names: Any) -> Row:
    best = int(logprobs.argmax())
    assert isinstance(item.gold, int)
    values = tuple(logprobs.tolist())
    check_finite(item, values)
    return Row(item.id, float(best == item.gold), str(names.get(best, best)), values, float(logprobs[item.gold].exp()))


def _takes_images(processor: Any) -> bool:
    return hasattr(processor, "image_processor") or "ImageProcessor" in type(processor).__name__


def _pads(model: Any) -> bool:
    """Bidirectional encoders read the attention mask; decoders with a head look for the configured padding token."""
    return model.config.pad_token_id is not None


def _check_texts(model: Any, tokenizer: Any, task: Task, items: Sequence[Item]) -> None:
    """Nothing is cut silently: every text fits, and all items have a second text or none."""
    pairs = sum(item.meta.get("pair") is not None for item in items)
    if pairs not in (0, len(items)):
        raise TaskError(
            f"task {task.name!r}: {pairs} of {len(items)} items have a second text (meta 'pair'); expected all or none."
        )
    texts = [[item.prompt for item in items]] + ([[item.meta["pair"] for item in items]] if pairs else [])
    encoded = tokenizer(*texts, truncation=False, verbose=False)["input_ids"]
    limits = [engines.context_length(model), tokenizer.model_max_length]
    limit = min(n for n in limits if n is not None)
    gates.check_lengths(task, {item.id: len(ids) for item, ids in zip(items, encoded, strict=True)}, limit)


def _inputs(processor: Any, batch: Sequence[Item]) -> Any:
    if _takes_images(processor):
        images = [item.meta["image"] if "image" in item.meta else _open(item.prompt) for item in batch]
        return processor(images=images, return_tensors="pt")
    texts = [[item.prompt for item in batch]]
    if batch[0].meta.get("pair") is not None:
        texts.append([item.meta["pair"] for item in batch])
    return processor(*texts, padding=len(batch) > 1, truncation=False, return_tensors="pt")


def _open(path: str) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "vision", "reading images from files") from error
    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise TaskError(f"image {path!r} cannot be read ({error}); expected a picture file.") from error
