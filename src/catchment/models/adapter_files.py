"""Putting a PEFT adapter on its base. PEFT drops without a word what finds no place in the base, and leaves untrained
what the adapter's file lacks; both are refused here."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from catchment.errors import ModelError
from catchment.models.adapters import adapted_layers, prefix
from catchment.models.checkpoints import shapes
from catchment.models.compat import quiet_peft
from catchment.models.families import family_of, locate
from catchment.models.sources import Source
from catchment.models.unused import natural

_FILES = ("adapter_model.safetensors", "adapter_model.bin")


def attach(spec: str, base: nn.Module, folder: Path) -> Any:
    """The base under the adapter of a folder, in evaluation mode, every tensor of the adapter's file in its place.

    Args:
        spec: The name of base and adapter, for messages.
        base: The transformers model; PEFT changes its layers.
        folder: With ``adapter_config.json`` and ``adapter_model.safetensors`` or ``adapter_model.bin``.

    Raises:
        ModelError: No weights, tensors that the base has no place for, or too few of them.
    """
    from peft import PeftModel, get_peft_model_state_dict

    names = set(shapes([weights_of(folder)]))
    reports: list[Any] = []
    # PEFT keeps to itself what torch says of the names; a hook on the base sees the same lists.
    hook = base.register_load_state_dict_post_hook(lambda _, keys: reports.append(keys))
    try:
        with quiet_peft(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
            model = PeftModel.from_pretrained(base, str(folder))
    except KeyError as error:
        if not str(error.args[0]).startswith("base_model."):
            raise
        raise ModelError(f"the adapter of {spec!r} lacks {error}, which its config says it trains: {_HALF}.") from error
    finally:
        hook.remove()
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    _refuse_unused(spec, model, (set(reports[-1].unexpected_keys) if reports else names) - expected)
    _refuse_half(spec, expected - names if not reports or reports[-1].missing_keys else set())
    return model.eval()


def refuse_second(source: Source) -> None:
    """Refuse an adapter on another one. Where both adapt a layer, PEFT puts the second in the place of the first, and
    the file of the second does not say whether the first was there, or active, when it was trained.

    Raises:
        ModelError: What the adapter stands on has an adapter already.
    """
    base = source.base
    while base is not None and base.kind != "adapter":
        base = base.base
    if base is not None:
        raise ModelError(
            f"{source.spec!r} puts the adapter {source.path.name!r} on another one, {base.path.name!r}, of which PEFT "
            "would drop the layers that both adapt; merge the first (merge_and_unload of PEFT), save that model with "
            "its tokenizer, and give the second adapter on it."
        )


def weights_of(folder: Path) -> Path:
    """The file that PEFT reads.

    Raises:
        ModelError: There is none.
    """
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise ModelError(f"{str(folder)!r} has no adapter_model.safetensors; save the adapter again.")
    return path


def trained_whole(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Those of the base's weights that belong to modules which the adapter brings along (``modules_to_save``)."""
    front = prefix(model)
    layers = adapted_layers(model).items()
    whole = tuple(f"{name.removeprefix(front)}." for name, layer in layers if getattr(layer, "modules_to_save", None))
    return {name for name in names if name.startswith(whole)}


_HALF = "it was cut, or saved by halves; save it again"


def _refuse_half(spec: str, missing: set[str]) -> None:
    if missing:
        raise ModelError(
            f"the adapter of {spec!r} lacks {len(missing)} tensors (first: {min(missing, key=natural)!r}), which "
            f"would stay untrained: {_HALF}, or give the base that it was trained on."
        )


def _refuse_unused(spec: str, model: Any, names: set[str]) -> None:
    if names:
        first = min(names, key=natural)
        raise ModelError(
            f"the adapter of {spec!r} holds {len(names)} tensors that find no place in the base (first: {first!r}) "
            f"and would be dropped. {_cause(model, first)}"
        )


def _cause(model: Any, first: str) -> str:
    config = next(iter(model.peft_config.values()))
    if not first.startswith("base_model."):
        return "PEFT's names begin with 'base_model.model.': save the adapter with PEFT's save_pretrained."
    base = model.get_base_model()
    block, layers = locate(first, family_of(base))[0], getattr(base.config, "num_hidden_layers", None)
    if block is not None and layers is not None and block >= layers:
        return f"The base has {layers} layers, and this is of layer {block}: give the base that it was trained on."
    if getattr(config, "ensure_weight_tying", False) and "lora_" in first:
        return (
            "adapter_config.json says ensure_weight_tying, which PEFT carries out while it trains but not while it "
            "loads; set it to false, and let target_modules name both ends, the embedding and the head."
        )
    if getattr(config, "task_type", None) == "SEQ_CLS" and not type(base).__name__.endswith("Classification"):
        return "It is a classifier's (task_type: SEQ_CLS): load it with head 'sequence-classification'."
    if "magnitude" in first:
        return f"adapter_config.json says use_dora: {getattr(config, 'use_dora', None)}: correct it."
    return (
        f"The base has no such module, or adapter_config.json (which names {config.base_model_name_or_path!r} as its "
        "base) does not adapt it: give the base that it was trained on, or the config that belongs to the file."
    )
