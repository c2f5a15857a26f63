"""GGUF files: unpacked once to an ordinary model folder in the cache, and read from there ever after.

Unpacking takes 15 to 30 s for 135M weights, reading the folder under one. Both the first and every later load
read the folder, so that they see the same bytes.
"""

from __future__ import annotations

import copy
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from catchment.errors import CatchmentError, ModelError, StoreError
from catchment.models.compat import dense_gguf, names_in_gguf
from catchment.models.files import file_hash
from catchment.models.unused import natural
from catchment.options import cache_dir

CONVERSION = 3
_MAGIC = b"GGUF"
_NOTES = "unused-tensors.json"
_ROTARY = "rope_freqs.weight"
# Tensors that transformers cuts or joins by code of their own, so that its table of names does not list them.
_OWN_WAY = re.compile(r"_(?:exps|projs)\.(?:weight|bias)$|^output\.weight$")


def unpacked(path: Path) -> Path:
    """Folder with the file's model in float32 and its tokenizer; made when it is not in the cache.

    The folder is keyed by the content of the file, written beside and renamed: a process that is killed, or two
    that unpack at once, leave no half model.

    Raises:
        ModelError: Not a GGUF file, cut short, changed meanwhile, or an architecture that transformers cannot unpack.
        StoreError: The cache folder cannot be written.
    """
    _check_magic(path)
    content = file_hash(path)
    target = cache_dir() / "gguf" / f"{content}-{CONVERSION}"
    if target.is_dir():
        return target
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpacking-"))
        _unpack(path, temporary)
        if file_hash(path) != content:  # else the folder would hold another model than its name says
            raise ModelError(f"{path} was changed while it was unpacked; load it again when nothing writes to it.")
        if not target.is_dir():
            os.replace(temporary, target)
        return target
    except CatchmentError:
        raise
    except OSError as error:
        if target.is_dir():  # another process was faster
            return target
        raise StoreError(f"cannot write {target.parent}: {error}; set CATCHMENT_HOME to a folder with room.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_magic(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}.") from error
    if magic != _MAGIC:
        raise ModelError(f"{path} is not a GGUF file: it begins with {magic!r}, not {_MAGIC!r}; download it again.")


def _unpack(path: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    auto: Any = AutoModelForCausalLM
    where: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    try:
        with redirect_stderr(io.StringIO()):  # its progress bar cannot be switched off
            model, info = auto.from_pretrained(
                str(path.parent), dtype=torch.float32, output_loading_info=True, **where, **dense_gguf()
            )
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **where)
            notes = _check_names(path, model, info)
    except CatchmentError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(f"cannot unpack {path}: {reason} (cut short, damaged, or an unknown architecture).") from error
    _forget_packing(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / _NOTES).write_text(json.dumps(notes), encoding="utf-8")


def gguf_notes(folder: Path) -> tuple[str, ...]:
    """What was said when the GGUF file was unpacked into this folder; empty for other folders."""
    path = folder / _NOTES
    return tuple(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else ()


def _check_names(path: Path, model: Any, info: Mapping[str, Any]) -> list[str]:
    """Refuse a file that lacks weights of its model (they would be random) or holds others; tell of harmless ones."""
    from gguf import GGUFReader

    if info["missing_keys"]:
        raise ModelError(
            f"{path} lacks {len(info['missing_keys'])} weights of {type(model).__name__} (first: "
            f"{min(info['missing_keys'], key=natural)!r}), which would be random; download it again."
        )
    reader = GGUFReader(path)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    architecture = str(_value(reader.fields["general.architecture"]))
    front = f"{architecture}.rope.scal"
    told = {key.partition(".")[2]: _value(reader.fields[key]) for key in reader.fields if key.startswith(front)}
    _refuse_scaling(path, model, told)
    left = sorted({*info["unexpected_keys"], *_without_place(model, architecture, tensors)}, key=natural)
    ones = [name for name in left if name == _ROTARY and bool((tensors[name] == 1).all())]
    blocks = tuple(name.partition("nextn.")[0] for name in left if ".nextn." in name)
    several = [name for name in left if name.startswith(blocks)]
    scaled = [n for n in left if n == _ROTARY and n not in ones and _take_llama3(model, torch.tensor(tensors[n]))]
    foreign = [name for name in left if name not in (*ones, *several, *scaled)]
    if foreign:
        raise ModelError(
            f"{path} holds {len(foreign)} tensors that have no place in {type(model).__name__} (first: {foreign[0]!r}) "
            f"and would be dropped. {_cause(foreign[0])} Give the model's safetensors instead."
        )
    reasons = ((ones, "rotary factors of 1"), (several, "layers that predict several tokens at once, not run"))
    return [f"{len(names)} of its tensors are not used (first: {names[0]!r}): {why}" for names, why in reasons if names]


def _value(field: Any) -> Any:
    part = field.parts[field.data[0]]
    return bytes(part).decode() if field.types[0].name == "STRING" else part[0]


def _refuse_scaling(path: Path, model: Any, told: Mapping[str, Any]) -> None:
    """Refuse a scaling of rotary frequencies in the metadata, which transformers reads of few architectures only."""
    factor = told.get("rope.scaling.factor", told.get("rope.scale_linear", 1.0))
    kind = told.get("rope.scaling.type", "linear")
    rope = getattr(model.config, "rope_parameters", None) or {}
    if kind != "none" and factor not in (0, 1) and rope.get("rope_type", "default") == "default":
        raise ModelError(
            f"{path} scales its rotary frequencies ({kind}, factor {factor:g}), which transformers does not read from "
            "its metadata: the model would compute something else. Give the model's safetensors instead."
        )


def _take_llama3(model: Any, factors: Tensor) -> bool:
    """Put Llama 3's scaling of rotary frequencies into the config, where the file's factors are just those.

    llama.cpp writes only the factors, ``frequency / scaled frequency``; its numbers but the largest are constants
    (``low_freq_factor`` 1, ``high_freq_factor`` 4, ``original_max_position_embeddings`` 8192 in all releases).
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    plain = next((b for name, b in model.named_buffers() if name.endswith("rotary_emb.inv_freq")), None)
    given = getattr(model.config, "rope_parameters", None) or {}
    if plain is None or plain.shape != factors.shape or given.get("rope_type") != "default":
        return False
    constants = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = copy.deepcopy(model.config)
    config.rope_parameters = {**given, "rope_type": "llama3", "factor": float(factors.max()), **constants}
    expected = plain / ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]
    if not torch.allclose(expected, factors.to(expected.dtype), rtol=1e-4):
        return False
    model.config.rope_parameters = config.rope_parameters
    return True


def _cause(first: str) -> str:
    if first.startswith("rope_"):
        return "They scale the rotary frequencies, which transformers does not read from GGUF files."
    return "transformers has no place for them, or the file's metadata describes another model."


def _without_place(model: Any, architecture: str, names: Iterable[str]) -> set[str]:
    """Tensors that transformers passes over without reporting them."""
    known = names_in_gguf(model, architecture)
    return set() if known is None else {name for name in names if name not in known and not _OWN_WAY.search(name)}


def _forget_packing(model: Any) -> None:
    """The weights are dense, but transformers refuses to save what was read from a quantised file."""
    for owner, name in (
        (model, "hf_quantizer"),
        (model, "is_quantized"),
        (model, "quantization_method"),
        (model.config, "quantization_config"),
    ):
        if name in vars(owner):
            delattr(owner, name)
