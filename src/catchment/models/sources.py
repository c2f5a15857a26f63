"""What a model's spelling means: a folder, a GGUF file, a package, a hub id, a base with an adapter or increment.

Nothing is loaded here; the answer is a :class:`Source` with the paths that loading needs.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from catchment.errors import InputError, ModelError, did_you_mean
from catchment.models.files import read_header
from catchment.models.increments import FILE_NAME as INCREMENT

Kind = Literal["hub", "folder", "gguf", "package", "adapter", "increment"]
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?$")
_INNER_FILES = ("*/*.jinja", "*/*.py")
_FORMS = "a Hugging Face id, a folder, a .gguf file, an installed package, BASE+ADAPTER or BASE+INCREMENT"


@dataclass(frozen=True)
class Source:
    """Where a model's bytes are.

    Attributes:
        spec: As it was written.
        kind: What it is, for the card.
        path: Folder with ``config.json``, GGUF file, adapter folder, increment file or folder.
        base: The model that an adapter or increment stands on.
        revision: Commit, for a hub id.
    """

    spec: str
    kind: Kind
    path: Path
    base: Source | None = None
    revision: str | None = None

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix.lower() == ".gguf"

    def order(self) -> list[tuple[str, str]]:
        """Kind and place of the base and what stands on it, the last first: the same files may be another model."""
        return [(self.kind, os.path.realpath(self.path)), *(self.base.order() if self.base else [])]

    def files(self) -> list[Path]:
        """Every file that may decide what is loaded, the base's included: a tokenizer's own files have any suffix."""
        own = [self.path] if self.path.is_file() else _files_in(self.path)
        return own + (self.base.files() if self.base else [])


def _files_in(folder: Path) -> list[Path]:
    """Visible files of a folder, templates and code one level down, and shards that an index finds elsewhere."""
    files = {file for pattern in ("*", *_INNER_FILES) for file in folder.glob(pattern)}
    for index in folder.glob("*.index.json"):
        try:
            files |= {folder / name for name in json.loads(index.read_text())["weight_map"].values()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            continue  # loading says what is wrong with it
    return [file for file in files if file.is_file() and not file.name.startswith(".")]


def resolve(spec: str, revision: str | None = None) -> Source:
    """Find out what a string means; the first that fits, in this order: ``package:`` prefix, existing path,
    ``BASE+MOVE``, path that does not exist, installed package, hub id (``org/name``, also ``org/name@revision``).

    Raises:
        InputError: The string is empty.
        ModelError: Nothing of that name, or something that is not a model.
    """
    spec = spec.strip()
    if not spec:
        raise InputError(f"an empty model name; expected {_FORMS}")
    if spec.startswith("package:") and "+" not in spec:
        return _package(spec, spec.removeprefix("package:"))
    path = Path(spec).expanduser()
    if path.exists():
        return _local(spec, path)
    if "+" in spec:
        return _sum(spec, revision)
    if _looks_like_path(spec):
        raise ModelError(f"no model at {spec!r}: {_nearest(path)}")
    name, _, inline = spec.partition("@")
    if inline and revision and inline != revision:
        raise InputError(f"{spec!r} names revision {inline!r}, but revision={revision!r} was given too; give one.")
    if "/" not in name and not inline and _package_folder(name):
        return _package(spec, name)
    if not _HUB_ID.match(name):
        raise ModelError(f"{spec!r} is no model; expected {_FORMS}")
    return _hub(spec, name, inline or revision)


def _looks_like_path(spec: str) -> bool:
    return (
        spec.startswith((".", "~", os.sep))
        or spec.count("/") > 1
        or spec.endswith((".gguf", ".safetensors", ".bin", "/"))
        or "\\" in spec
    )


def _nearest(path: Path) -> str:
    """Why a path does not exist, for people: which part is missing and what is there instead."""
    missing = path
    while not missing.parent.exists() and missing.parent != missing:
        missing = missing.parent
    if not missing.parent.is_dir():
        return f"{str(missing.parent)!r} is not a folder."
    try:
        names = [child.name for child in missing.parent.iterdir()]
    except OSError as error:
        return f"{str(missing.parent)!r} cannot be read ({error.strerror})."
    return f"{str(missing)!r} does not exist.{did_you_mean(missing.name, names)}"


def _local(spec: str, path: Path) -> Source:
    if path.is_file():
        return _file(spec, path)
    if (path / "adapter_config.json").is_file():
        return adapter(spec, path, None)
    if (path / "config.json").is_file():
        return Source(spec, "folder", path)
    if (path / INCREMENT).is_file():
        raise ModelError(f"{spec!r} is an increment and needs its base: write BASE+{spec}")
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return Source(spec, "gguf", ggufs[0])
    if ggufs:
        raise ModelError(f"{spec!r} holds {len(ggufs)} GGUF files; give one of them: {_listed(ggufs)}.")
    inner = sorted(child.parent.name for child in path.glob("*/config.json"))
    hint = f" Did you mean {str(path / inner[-1])!r}?" if inner else ""
    raise ModelError(f"{spec!r} has no config.json, adapter_config.json or .gguf file; give a model's folder.{hint}")


def _file(spec: str, path: Path) -> Source:
    if path.suffix.lower() == ".gguf":
        return Source(spec, "gguf", path)
    if path.suffix == ".safetensors":
        if read_header(path)[1].get("format", "").startswith("catchment"):
            raise ModelError(f"{spec!r} is an increment and needs its base: write BASE+{spec}")
        raise ModelError(f"{spec!r} holds weights only; give its folder, with config.json and tokenizer.")
    raise ModelError(f"{spec!r} is a file that is not a model; expected {_FORMS}")


def _listed(paths: list[Path]) -> str:
    return ", ".join(str(p) for p in paths[:5])


def _sum(spec: str, revision: str | None) -> Source:
    """``BASE+MOVE``: cut at the last plus sign whose right side exists, since a path may hold plus signs too."""
    cuts = [i for i, letter in enumerate(spec) if letter == "+"]
    for cut in reversed(cuts):
        left, right = spec[:cut], Path(spec[cut + 1 :]).expanduser()
        if left and spec[cut + 1 :] and right.exists():
            if right.is_file() or (right / INCREMENT).is_file():
                return _increment(spec, left, right, revision)
            return adapter(spec, right, resolve(left, revision))
    right = Path(spec[cuts[-1] + 1 :]).expanduser()
    raise ModelError(f"in {spec!r}: no adapter folder or increment at {str(right)!r}: {_nearest(right)}")


def _increment(spec: str, left: str, path: Path, revision: str | None) -> Source:
    if (path / INCREMENT).is_file() and (path / "adapter_config.json").is_file():
        raise ModelError(f"in {spec!r}: the folder holds an adapter and an increment; write BASE+{path / INCREMENT}")
    if path.is_file() and path.suffix != ".safetensors":
        raise ModelError(f"in {spec!r}: {str(path)!r} is not an increment (.safetensors) nor an adapter's folder.")
    return Source(spec, "increment", path, resolve(left, revision))


def adapter(spec: str, folder: Path, base: Source | None) -> Source:
    """A PEFT adapter on ``base``, or on the base that its config names (tried beside the adapter, too).

    Raises:
        ModelError: No adapter there, or its base cannot be found.
    """
    config = folder / "adapter_config.json"
    if not config.is_file():
        raise ModelError(
            f"in {spec!r}: {str(folder)!r} has no adapter_config.json and no {INCREMENT}; "
            "expected an adapter's or increment's folder."
        )
    if base is not None:
        return Source(spec, "adapter", folder, base)
    try:
        content = json.loads(config.read_text())
        name, revision = content.get("base_model_name_or_path"), content.get("revision")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{config} is not JSON ({error}); save the adapter again.") from error
    if not name:
        raise ModelError(f"the adapter {spec!r} does not name its base; write BASE+{spec}")
    beside = folder / name
    try:
        base = _local(name, beside) if beside.is_dir() and not Path(name).exists() else resolve(name, revision)
    except ModelError as error:
        reason = f"the adapter {spec!r} stands on {name!r}, which cannot be found; write BASE+{spec}"
        raise ModelError(f"{reason} ({error})") from error
    return Source(spec, "adapter", folder, base)


def _package_folder(name: str) -> Path | None:
    """Folder of an installed package, without running it; a distribution's dashes stand for underscores."""
    module = name.replace("-", "_")
    if not module.isidentifier():
        return None
    try:
        installed = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if installed is None or not installed.submodule_search_locations:
        return None
    return Path(next(iter(installed.submodule_search_locations)))


def _package(spec: str, name: str) -> Source:
    name, _, inner = name.partition("/")
    folder = _package_folder(name)
    if folder is None:
        raise ModelError(f"no package {name!r} is installed: pip install {name}{_close_package(name)}")
    if inner:
        if not (folder / inner).exists():
            raise ModelError(f"the package {name!r} has no {inner!r}: {_nearest(folder / inner)}")
        return Source(spec, "package", _local(spec, folder / inner).path)
    folders = (config.parent for config in folder.rglob("config.json"))
    carried = sorted(folder.rglob("*.gguf")) + sorted(inner for inner in folders if _has_weights(inner))
    if not carried:
        raise ModelError(f"the package {name!r} carries no model (no .gguf, no config.json with weights beside it).")
    if len(carried) > 1:
        choices = ", ".join(f"package:{name}/{p.relative_to(folder)}" for p in carried[:5])
        raise ModelError(f"the package {name!r} carries {len(carried)} models; give one of: {choices}.")
    return Source(spec, "package", carried[0])


def _close_package(name: str) -> str:
    from importlib.metadata import packages_distributions

    close = difflib.get_close_matches(name.replace("-", "_"), packages_distributions(), n=1, cutoff=0.8)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _has_weights(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in ("*.safetensors", "pytorch_model*.bin"))


def offline() -> bool:
    """Whether the hub must not be asked (``HF_HUB_OFFLINE``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


def no_hub() -> str:
    """Why the hub cannot be asked now; empty where it answers. It is asked once in a process, for 3 s at most: its
    client repeats a request that fails, which takes half a minute for every name."""
    return "HF_HUB_OFFLINE=1 forbids asking the hub" if offline() else _silence()


@lru_cache(maxsize=1)
def _silence() -> str:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=3)
    except Exception as error:  # whatever the network raises
        return f"the hub did not answer ({type(error).__name__})"
    return ""


def _hub(spec: str, name: str, revision: str | None) -> Source:
    """The snapshot of a hub id: its config is fetched (or found in the hub's cache), the weights come later."""
    for config in ("config.json", "adapter_config.json"):
        path = _hub_file(spec, name, config, revision)
        if path is None:
            continue
        commit = path.parent.name
        if config == "config.json":
            return Source(name, "hub", path.parent, revision=commit)
        for weights in ("adapter_model.safetensors", "adapter_model.bin"):
            if _hub_file(spec, name, weights, commit) is not None:
                break
        return adapter(name, path.parent, None)
    raise ModelError(f"{spec!r} on the Hugging Face hub has neither config.json nor adapter_config.json: not a model.")


def _hub_file(spec: str, name: str, file: str, revision: str | None) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    local = offline()
    try:
        return Path(hf_hub_download(name, file, revision=revision, local_files_only=local))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if local and file == "config.json" and _cached_adapter(name, revision):
            return None
        why = "HF_HUB_OFFLINE=1 forbids asking the hub" if local else "the Hugging Face hub cannot be reached"
        raise ModelError(
            f"{spec!r} is no local folder, file or installed package, is not in the hub's cache, and {why}."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{name!r} has no revision {revision!r}; look at its branches and tags on the hub.") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"{spec!r} is no local folder or package, and not on the hub (or private).") from error
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelError(f"{spec!r} is no model; expected {_FORMS}") from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"cannot get {spec!r} from the Hugging Face hub: {error}") from error


def _cached_adapter(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "adapter_config.json", revision=revision), str)
