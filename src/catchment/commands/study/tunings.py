"""Tuned models of studies, beside the rows of the store: which are there, their identity, and what making them took.

``STORE/tunings/<key>/`` holds ``tuning.json`` and the smallest artefact of the move. The key is that of everything that
decides the weights, so every study on the store shares them. Artefacts may be dropped; the identity stays.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from catchment import models
from catchment.capabilities import PromptOptions
from catchment.commands.study.design import Unit, rate_of
from catchment.commands.study.fetched import size_of
from catchment.commands.tune.warned import kept_warnings
from catchment.errors import CatchmentError, StoreError
from catchment.methods import FitOptions, Tuning, fit
from catchment.models import LoadedModel
from catchment.records import SCHEMA_VERSION, ModelCard, from_json, to_json
from catchment.runs import Store, cell_key, write_atomic
from catchment.training import Rows

VERSION = 1
"""Raised when the same settings would train other weights."""
FILE = "tuning.json"
NEVER = 2**31 - 1
"""Steps between checkpoints of the Trainer's own: the worker asks for them by the clock."""


@dataclass(frozen=True)
class Tuned:
    """What is left of a training: ``tuning.json``.

    Attributes:
        card: Of the tuned model: the address of its rows.
        loss: First and last logged training loss, in nats per token; empty where nothing was logged.
        bytes: Of the artefact.
        seconds, tokens: That the training took.
    """

    card: ModelCard
    conditions: dict[str, Any]
    steps: int
    tokens: int
    seconds: float
    trainable: int
    bytes: int
    loss: tuple[float, ...] = ()
    warnings: tuple[str, ...] = field(default=())
    schema_version: int = SCHEMA_VERSION


def folder_of(store: Store, key: str) -> Path:
    return store.root / "tunings" / key[:2] / key


def read_tuned(store: Store, key: str) -> Tuned | None:
    """What is known of a training that has ended; ``None`` where it has not. A damaged file counts as none."""
    try:
        return from_json(Tuned, (folder_of(store, key) / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        store.warn(str(folder_of(store, key) / FILE), "it is no record of a training")
        return None


def artefact(store: Store, key: str) -> Path | None:
    """The tuned weights, where they were not dropped."""
    folder = folder_of(store, key) / "model"
    return folder if any(folder.glob("*.safetensors")) else None


def is_whole(store: Store, key: str) -> bool:
    """Whether a training came to its end and its weights were not dropped."""
    return artefact(store, key) is not None and read_tuned(store, key) is not None


def conditions_of(unit: Unit, base: ModelCard, rows: Rows, asked: PromptOptions) -> dict[str, Any]:
    """Everything that decides the tuned weights: the address of a training."""
    recipe = unit.recipe
    assert recipe is not None
    assert recipe.method is not None
    template = base.template_hash if asked.chat_template == "auto" else asked.key
    return {
        "kind": "tuning", "version": VERSION, "weights": base.weights_hash, "config": base.config_hash,
        "tokenizer": base.tokenizer_hash, "template": template,
        "system": asked.system, "dtype": base.dtype, "attention": base.attention, "device": base.device.split(":")[0],
        "data": rows.fingerprint, "method": recipe.method.name, "args": _plain(recipe.method), "seed": unit.seed,
        "options": {**dict(recipe.options or {}), "learning_rate": rate_of(recipe)},
    }  # fmt: skip


def key_of(unit: Unit, base: ModelCard, rows: Rows, asked: PromptOptions) -> str:
    return cell_key(conditions_of(unit, base, rows, asked))


def _plain(method: Any) -> dict[str, Any]:
    """Settings of a method as JSON."""
    return {f.name: _json(getattr(method, f.name)) for f in dataclasses.fields(method)}


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_json(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def fit_options(store: Store, key: str, unit: Unit, asked: PromptOptions) -> FitOptions:
    """How a unit is trained."""
    recipe = unit.recipe
    assert recipe is not None
    assert unit.seed is not None
    options = {name: value for name, value in dict(recipe.options or {}).items() if name != "learning_rate"}
    folder = folder_of(store, key)
    return FitOptions(
        output_dir=folder / "model", checkpoints=folder / "checkpoints", learning_rate=rate_of(recipe), seed=unit.seed,
        prompt_options=asked, save_steps=NEVER, **options,
    )  # fmt: skip


@contextmanager
def standing_tuned(
    store: Store, key: str, unit: Unit, base: LoadedModel, rows: Rows, asked: PromptOptions, watch: Any = None
) -> Iterator[tuple[LoadedModel, bool]]:
    """Inside, the base stands at the tuned weights: taken up from the artefact, or trained now where there is none or
    it is damaged. Afterwards it is the base again, bit for bit.

    Args:
        watch: Makes the Trainer's callbacks, as :func:`~catchment.methods.fit` takes them.

    Yields:
        The model, and whether it was trained now.
    """
    recipe = unit.recipe
    assert recipe is not None
    assert recipe.method is not None
    if is_whole(store, key):
        tuning = recipe.method.attach(base.model, seed=unit.seed or 0)
        try:
            taken = _take_up(store, key, tuning, base, unit)
            if taken is not None:
                _drop_checkpoints(store, key)  # a worker was killed before it could
                yield taken, False
                return
        finally:
            tuning.remove()
    options = fit_options(store, key, unit, asked)
    shutil.rmtree(options.output_dir, ignore_errors=True)
    with kept_warnings() as texts, fit(base, rows, recipe.method, options, callbacks=watch) as fitted:
        fitted.save()
        loaded = _named(fitted.model, base, unit)
        losses = fitted.losses
        tuned = Tuned(
            card=loaded.card,
            conditions=conditions_of(unit, base.card, rows, asked),
            steps=fitted.steps,
            tokens=fitted.tokens,
            seconds=round(fitted.seconds, 3),
            trainable=fitted.trainable,
            bytes=size_of(options.output_dir),
            loss=(losses[0], losses[-1]) if losses else (),
            warnings=tuple(texts),
        )
        write_atomic(folder_of(store, key) / FILE, to_json(tuned))
        _drop_checkpoints(store, key)
        yield loaded, True


def _drop_checkpoints(store: Store, key: str) -> None:
    shutil.rmtree(folder_of(store, key) / "checkpoints", ignore_errors=True)


def _take_up(store: Store, key: str, tuning: Tuning, base: LoadedModel, unit: Unit) -> LoadedModel | None:
    """The tuned model from its artefact; ``None``, with a warning, where it cannot be read or its weights are not those
    of which rows are kept."""
    path, tuned = folder_of(store, key) / "model", read_tuned(store, key)
    assert tuned is not None
    try:
        tuning.load_pretrained(path)
        loaded = _named(tuning.model, base, unit)
    except (CatchmentError, SafetensorError, OSError, ValueError, KeyError, EOFError) as error:
        store.warn(str(path), f"it cannot be read ({type(error).__name__})")
        return None
    if loaded.card.weights_hash != tuned.card.weights_hash:
        store.warn(str(path), f"its weights are not those of {FILE}")
        return None
    os.utime(path)
    return loaded


def _named(model: Any, base: LoadedModel, unit: Unit) -> LoadedModel:
    """The model as it stands, under the unit's name."""
    loaded = models.load(model, tokenizer=base.tokenizer)
    card = dataclasses.replace(loaded.card, name=unit.name, base=base.card.name)
    return dataclasses.replace(loaded, card=card, spec=unit.name)


def check_room(store: Store, needed: float) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        StoreError: Less is free than ``needed`` bytes.
    """
    folder = store.root
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            f"{store.root} has {free / 1e6:,.1f} MB of free space and the next tuned model needs about "
            f"{needed / 1e6:,.1f} MB; free some space, or give another --store."
        )
