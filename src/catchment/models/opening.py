"""A source read by transformers: the model with its head and the tokenizer, and what a library raises in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from catchment.errors import CatchmentError, MissingExtraError, ModelError
from catchment.models import adapter_files, identity
from catchment.models.checkpoints import check_weights, unread, weight_files
from catchment.models.gguf import gguf_notes, unpacked
from catchment.models.increments import Increment
from catchment.models.options import DTYPES, HEADS, Options
from catchment.models.sources import Source, offline, resolve
from catchment.models.unused import check_unused, refuse_shapes, untied


@contextmanager
def quiet() -> Iterator[None]:
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
class Opened:
    model: Any
    head: str
    missing: set[str] = field(default_factory=set)
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def open_source(source: Source, options: Options, dtype: str | None = None) -> Opened:
    if source.kind == "increment":
        return _open_increment(source, options)
    if source.kind == "adapter":
        return _open_adapter(source, options, dtype)
    return _open_plain(source, options, dtype or options.dtype)


def _open_plain(source: Source, options: Options, dtype: str) -> Opened:
    folder = folder_of(source)
    config = read_config(folder)
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
    return Opened(model, head, missing, left.names, notes)


def _open_adapter(source: Source, options: Options, dtype: str | None) -> Opened:
    assert source.base is not None
    adapter_files.weights_of(source.path)
    adapter_files.refuse_second(source)
    opened = open_source(source.base, options, dtype)
    with _translated(source.spec, None):
        opened.model = adapter_files.attach(source.spec, opened.model, source.path)
    opened.missing -= adapter_files.trained_whole(opened.model, opened.missing)
    return opened


def _open_increment(source: Source, options: Options) -> Opened:
    assert source.base is not None
    increment = Increment.from_pretrained(source.path)
    own = str(increment.dtype).removeprefix("torch.")
    opened = open_source(source.base, options, own if own in DTYPES else "auto")
    if getattr(opened.model.config, "quantization_config", None) is not None:
        raise ModelError(f"{source.spec!r}: an increment needs an unquantised base.")
    increment.verify(identity.weights_hash(opened.model))
    increment.apply(opened.model)
    if options.dtype not in ("auto", own):
        opened.model.to(getattr(torch, options.dtype))
    return opened


def folder_of(source: Source) -> Path:
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


def read_config(folder: Path) -> dict[str, Any]:
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
    return next((known for suffix, known in suffixes.items() if architecture.endswith(suffix)), "causal-lm")


@contextmanager
def _translated(spec: str, config: Mapping[str, Any] | None) -> Iterator[None]:
    """Turn whatever a library raises while it reads files into one line that a user can act on."""
    try:
        yield
    except CatchmentError:
        raise
    except ImportError as error:
        packing = quantization((config or {}).get("quantization_config"))
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


def processor_of(source: Source, options: Options, head: str) -> Any:
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
        return auto.from_pretrained(**_where(source, folder_of(source), options))
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


def quantization(settings: Any) -> str | None:
    """``bitsandbytes-4bit``, ``bitsandbytes-8bit``, ``gptq``, ``awq`` ... or ``None`` for plain weights.

    >>> quantization(None), quantization({"quant_method": "gptq"}), quantization({"load_in_4bit": True})
    (None, 'gptq', 'bitsandbytes-4bit')
    """
    if settings is None:
        return None
    told = settings if isinstance(settings, Mapping) else settings.to_dict()
    method = told.get("quant_method")
    method = str(getattr(method, "value", method) or "")
    bits = next((bits for bits in (4, 8) if told.get(f"load_in_{bits}bit") or told.get(f"_load_in_{bits}bit")), None)
    if bits or "bitsandbytes" in method:
        return f"bitsandbytes-{bits or 8}bit"
    return method or "unknown"
