"""Which model is this? Hashes of weights, config, tokenizer and chat template.

The weights hash is ``SHA-256`` over lines ``name, dtype, shape, SHA-256(bytes)``, sorted by name, of the unique
tensors: parameters (ties once) and saved buffers. It does not depend on how a model is cut into files, nor on
the order of its tensors, and is the same for a model in memory and for the safetensors that it was saved to. Two equal
tensors that are not tied count twice: a move of one is another move there than where they are tied.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catchment.errors import ModelError
from catchment.models import adapters
from catchment.models.families import FAMILIES, current_name
from catchment.models.files import DTYPES, Entry, mapped_tensors, read_header
from catchment.models.weights import named_weights, persistent_buffers
from catchment.records import ModelCard

_PIECE = 1 << 24
# Fields of a config that say how it was saved or is run, not which function the model computes.
_VOLATILE = {
    "_name_or_path",
    "_model_name_or_path",
    "_commit_hash",
    "_attn_implementation",
    "_attn_implementation_internal",
    "_experts_implementation",
    "name_or_path",
    "transformers_version",
    "peft_version",
    "architectures",
    "auto_map",
    "auto_mapping",
    "dtype",
    "torch_dtype",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "gradient_checkpointing",
    "base_model_name_or_path",
    "inference_mode",
    "revision",
}
_DTYPES = {dtype: name for name, dtype in DTYPES.items()}
_TIES: dict[str, set[str]] = {}
for _family in FAMILIES:
    for _later, _first in _family.ties:
        _TIES.setdefault(_later, set()).add(_first)
_Line = tuple[str, str, tuple[int, ...], str]


def weights_hash(model_or_files: nn.Module | str | Path | Sequence[Path]) -> str:
    """Identity of the weights: hex SHA-256, streaming (one piece of 16 MB per thread at a time).

    For a PEFT model it combines the hash of the base (the same as without the adapter) and of the adapter.
    Names that a family of the table had in older versions of transformers (which it still writes to files) count
    as the names of today; a file with any other names has another hash than the model that is made of it.

    Args:
        model_or_files: A model, a folder with safetensors, one safetensors file, or several.

    Raises:
        ModelError: No safetensors there, a damaged file, or offloaded weights that cannot be read.
    """
    if not isinstance(model_or_files, nn.Module):
        files = _weight_files(model_or_files)
        lines = _map(_entry_line, [entry for path in files for entry in read_header(path)[0]])
        return _combine(lines if _says_untied(files) else _without_ties(lines))
    if adapters.is_peft(model_or_files):
        base, adapter = peft_hashes(model_or_files)
        return hashlib.sha256(f"peft {base} {adapter}{_at_work(model_or_files)}".encode()).hexdigest()
    tensors = {**named_weights(model_or_files), **persistent_buffers(model_or_files)}
    return _hash_tensors(tensors, _offloaded(model_or_files))


def peft_hashes(model: nn.Module) -> tuple[str, str]:
    """Hash of the base's weights (as if there were no adapter) and hash of the adapter's own, its saved buffers too."""
    base = {**named_weights(model, "base"), **persistent_buffers(model)}
    return _hash_tensors(base), _hash_tensors({**named_weights(model, "adapter"), **_adapter_buffers(model)})


def _adapter_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Saved tensors of an adapter that are no parameters: VeRA's projections, for example."""
    others = {id(t) for t in (*model.parameters(), *adapters.base_buffers(model).values())}
    state = model.state_dict(keep_vars=True)
    return {name: t for name, t in state.items() if isinstance(t, Tensor) and id(t) not in others}


def _at_work(model: nn.Module) -> str:
    """What part of a PEFT model computes; empty for the usual one, whose only adapter is active."""
    names = adapters.adapter_names(model)
    states = {name: adapters.state(layer) for name, layer in adapters.adapted_layers(model).items()}
    usual = len(names) == 1 and all(state == (names, False) for state in states.values())
    return "" if usual else f" {_sha(states)}"


def _hash_tensors(tensors: Mapping[str, Tensor], offloaded: Mapping[str, Callable[[], Tensor]] | None = None) -> str:
    read = offloaded or {}
    values = [(name, read.get(name, lambda t=t: t) if t.device.type == "meta" else t) for name, t in tensors.items()]
    if any(hasattr(t, "full_tensor") for t in tensors.values()):  # gathered over processes, all in one order
        return _combine([_tensor_line((name, getattr(t, "full_tensor", lambda t=t: t)())) for name, t in values])
    lines = _map(_tensor_line, values)
    return _combine(_without_ties(lines) if read else lines)  # of an offloaded tensor only the values tell


def _offloaded(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """How to read the weights that accelerate keeps outside the model (``device_map`` with offload)."""
    readers: dict[str, Callable[[], Tensor]] = {}
    for prefix, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            weights = getattr(one, "weights_map", None)
            if weights is not None:
                for name, _ in module.named_parameters(recurse=False):
                    readers[f"{prefix}.{name}" if prefix else name] = functools.partial(weights.__getitem__, name)
    return readers


def _map(function: Callable[[Any], _Line], values: list[Any]) -> list[_Line]:
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, values))


def _combine(lines: Iterable[_Line]) -> str:
    by_name = {(name := current_name(line[0])): (name, *line[1:]) for line in lines}
    total = hashlib.sha256()
    for name in sorted(by_name):
        total.update(json.dumps(by_name[name]).encode())
    return total.hexdigest()


def _without_ties(lines: Iterable[_Line]) -> list[_Line]:
    """Leave out what some writers store twice: a tied tensor under its later name."""
    by_name = {current_name(line[0]): line for line in lines}
    return [
        line
        for name, line in by_name.items()
        if not any(by_name[first][1:] == line[1:] for first in _TIES.get(name, ()) if first in by_name)
    ]


def _says_untied(files: Sequence[Path]) -> bool:
    """Whether the config beside the files says that embeddings and head are two tensors."""
    try:
        config = json.loads((files[0].parent / "config.json").read_text(encoding="utf-8"))
        return config.get("tie_word_embeddings") is False
    except (OSError, ValueError, AttributeError, IndexError):
        return False


def _tensor_line(named: tuple[str, Tensor | Callable[[], Tensor]]) -> _Line:
    name, given = named
    tensor = given if isinstance(given, Tensor) else given()
    if tensor.device.type == "meta":
        raise ModelError(f"weight {name!r} is offloaded where it cannot be read; load without offload.")
    digest = hashlib.sha256()
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for piece in flat.split(_PIECE):
        digest.update(piece.cpu().numpy().data)
    return name, _DTYPES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), digest.hexdigest()


def _entry_line(entry: Entry) -> _Line:
    digest = hashlib.sha256()
    with entry.path.open("rb") as file:
        file.seek(entry.start)
        left = entry.stop - entry.start
        while left > 0:
            piece = file.read(min(_PIECE, left))
            if not piece:
                raise ModelError(f"{entry.path} became shorter while it was read; nothing may write to it meanwhile.")
            digest.update(piece)
            left -= len(piece)
    return entry.name, entry.dtype, entry.shape, digest.hexdigest()


def mapped_weights(files: Iterable[Path]) -> dict[str, Tensor]:
    """Weights by the names they have in a model of today, mapped from safetensors files and not read; others of
    ``files`` are passed over."""
    tensors = mapped_tensors(path for path in files if path.suffix == ".safetensors")
    return {current_name(name): tensor for name, tensor in tensors.items()}


def _weight_files(where: str | Path | Sequence[Path]) -> list[Path]:
    if not isinstance(where, str | Path):
        return [Path(path) for path in where]
    where = Path(where)
    if not where.is_dir():
        return [where]
    index = where / "model.safetensors.index.json"
    if index.is_file() and not (where / "model.safetensors").is_file():  # transformers looks for the whole file first
        try:
            return sorted({where / name for name in json.loads(index.read_text())["weight_map"].values()})
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{index} is damaged; download or save the model again.") from error
    files = [path for path in (where / "model.safetensors",) if path.is_file()] or sorted(where.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{where} holds no safetensors file; save the model with save_pretrained.")
    return files


def _sha(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _steady(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _steady(v) for k, v in value.items() if str(k) not in _VOLATILE}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return [_steady(v) for v in value] if isinstance(value, list | tuple) else value


def config_hash(model_or_config: Any) -> str:
    """Hash of what the config says about the function: without versions, paths, dtype and run-time switches.

    A PEFT model's adapter settings (rank, alpha, targets) belong to it; and the tokens that end an answer, where the
    generation config names others than the config.

    >>> config_hash({"hidden_size": 4}) == config_hash({"hidden_size": 4, "transformers_version": "5"})
    True
    """
    config = getattr(model_or_config, "config", model_or_config)
    content = [_steady(config if isinstance(config, dict) else config.to_dict())]
    ends = _ends(getattr(model_or_config, "generation_config", None))
    if ends and ends != _ends(config):
        content.append({"ends": ends})
    if isinstance(model_or_config, nn.Module) and adapters.is_peft(model_or_config):
        peft_configs: Any = model_or_config.peft_config
        content.append({name: _steady(c.to_dict()) for name, c in peft_configs.items()})
    return _sha(content)


def _ends(config: Any) -> list[int]:
    ids = getattr(config, "eos_token_id", None)
    return sorted({int(i) for i in (ids if isinstance(ids, list) else [ids]) if i is not None})


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of how text becomes tokens (or, for an image processor, of its settings); empty input gives ``""``.

    Padding and truncation, which change while a tokenizer is used, do not belong to it; nor does the template.
    """
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        content = {k: v for k, v in content.items() if k not in ("truncation", "padding")}
    elif hasattr(tokenizer, "get_vocab"):
        content = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    else:
        return _sha(_steady(tokenizer.to_dict()))
    special = {k: str(v) for k, v in sorted(tokenizer.special_tokens_map.items())}
    return _sha([content, special])


def template_hash(tokenizer: Any) -> str:
    """Hash of the chat template's text; of the empty text when there is none."""
    template = getattr(tokenizer, "chat_template", None)
    return _sha(template or "")


def aliases(cards: Iterable[ModelCard]) -> list[list[str]]:
    """Groups of at least two names whose weights are the same bytes.

    Two cards with one name and one hash are one model, not an alias.
    """
    groups: dict[str, list[str]] = {}
    for card in cards:
        names = groups.setdefault(card.weights_hash, [])
        if card.name not in names:
            names.append(card.name)
    return [names for names in groups.values() if len(names) > 1]
