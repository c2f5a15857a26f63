"""GGUF files: unpacked once to an ordinary model folder in the cache, and read from there ever after.

Unpacking takes 15 to 30 s for 135M weights, reading the folder under one. Both the first and every later load
read the folder, so that they see the same bytes.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from catchment.errors import CatchmentError, ModelError, StoreError
from catchment.models.compat import dense_gguf
from catchment.models.files import file_hash
from catchment.settings import cache_dir

CONVERSION = 1
_MAGIC = b"GGUF"


def unpacked(path: Path) -> Path:
    """Folder with the file's model in float32 and its tokenizer; made when it is not in the cache.

    The folder is keyed by the content of the file, written beside and renamed: a process that is killed, or two
    that unpack at once, leave no half model.

    Raises:
        ModelError: Not a GGUF file, cut short, or of an architecture that transformers cannot unpack.
        StoreError: The cache folder cannot be written.
    """
    _check_magic(path)
    target = cache_dir() / "gguf" / f"{file_hash(path)}-{CONVERSION}"
    if target.is_dir():
        return target
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpacking-"))
        _unpack(path, temporary)
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
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    try:
        with redirect_stderr(io.StringIO()):  # its progress bar cannot be switched off
            model = AutoModelForCausalLM.from_pretrained(str(path.parent), dtype=torch.float32, **where, **dense_gguf())
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **where)
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(f"cannot unpack {path}: {reason} (cut short, damaged, or an unknown architecture).") from error
    _forget_packing(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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
