from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from catchment.errors import InputError, ModelError
from catchment.models import make_increment, resolve
from tests.unit.models.conftest import build


def write_package(root: Path, name: str, files: dict[str, str]) -> Path:
    folder = root / name
    for file, text in {"__init__.py": "raise RuntimeError('must not be run')", **files}.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "packages"
    root.mkdir()
    monkeypatch.setattr(sys, "path", [str(root), *sys.path])
    return root


def test_folder_and_files(saved: Callable[..., Path]) -> None:
    folder = saved()
    source = resolve(str(folder))
    assert (source.kind, source.path, source.base) == ("folder", folder, None)
    assert folder / "model.safetensors" in source.files()
    with pytest.raises(ModelError, match="give its folder"):
        resolve(str(folder / "model.safetensors"))
    with pytest.raises(ModelError, match="is a file that is not a model"):
        resolve(str(folder / "config.json"))


@pytest.mark.parametrize("spec", ["", "  "])
def test_empty(spec: str) -> None:
    with pytest.raises(InputError, match="empty model name"):
        resolve(spec)


def test_missing_folder(saved: Callable[..., Path]) -> None:
    folder = saved(folder="my-model")
    wrong = folder.parent / "my_model"
    with pytest.raises(ModelError, match=r"does not exist\. Did you mean 'my-model'\?"):
        resolve(str(wrong))
    with pytest.raises(ModelError, match=r"'.*/nope' does not exist"):
        resolve(str(folder.parent / "nope" / "deeper" / "model.gguf"))
    with pytest.raises(ModelError, match="is not a folder"):
        resolve(str(folder / "config.json" / "x"))


def test_folder_without_config(saved: Callable[..., Path]) -> None:
    folder = saved(folder="checkpoint-10")
    with pytest.raises(ModelError, match=r"no config\.json.*Did you mean '.*checkpoint-10'"):
        resolve(str(folder.parent))


def test_folder_with_ggufs(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert resolve(str(tmp_path)).path.name == "a.gguf"
    assert resolve(str(tmp_path / "a.gguf")).kind == "gguf"
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"2 GGUF files.*a\.gguf.*b\.gguf"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    "spec", ["my_model_gguf", "my-model-gguf", "package:my-model-gguf", "package:my_model_gguf/m.gguf"]
)
def test_package_with_a_gguf(packages: Path, spec: str) -> None:
    folder = write_package(packages, "my_model_gguf", {"m.gguf": "GGUF"})
    source = resolve(spec)
    assert (source.kind, source.path) == ("package", folder / "m.gguf")


def test_package_with_a_folder(packages: Path) -> None:
    files = {"model/config.json": "{}", "model/model.safetensors": "", "model/1_Pooling/config.json": "{}"}
    folder = write_package(packages, "my_encoder", files)
    assert resolve("my-encoder").path == folder / "model"


def test_package_with_two_models(packages: Path) -> None:
    folder = write_package(packages, "two_models", {"a.gguf": "GGUF", "b/b.gguf": "GGUF"})
    with pytest.raises(ModelError, match=r"2 models.*package:two_models/a\.gguf, package:two_models/b/b\.gguf"):
        resolve("package:two_models")
    assert resolve("package:two_models/b").path == folder / "b" / "b.gguf"
    with pytest.raises(ModelError, match="has no 'c'"):
        resolve("package:two_models/c")


def test_package_without_model(packages: Path) -> None:
    write_package(packages, "no_model", {"config.json": "{}"})
    for spec in ("no-model", "package:no_model"):
        with pytest.raises(ModelError, match="carries no model"):
            resolve(spec)


def test_package_that_is_not_installed(packages: Path) -> None:
    for spec in ("package:not_there_at_all", "package:", "package:not a name"):
        with pytest.raises(ModelError, match="no package"):
            resolve(spec)


def test_adapter_on_its_base(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = saved(folder="base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = adapter / "adapter_config.json"
    for name in (str(base), "../base"):
        config.write_text(json.dumps({"base_model_name_or_path": name}))
        source = resolve(str(adapter))
        assert source.kind == "adapter"
        assert source.base is not None
        assert source.base.path.resolve() == base
    config.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(ModelError, match=r"stands on '.*gone', which cannot be found; write BASE\+.*adapter"):
        resolve(str(adapter))
    explicit = resolve(f"{base}+{adapter}")
    assert explicit.base is not None
    assert explicit.base.path == base
    config.write_text("{}")
    with pytest.raises(ModelError, match=r"does not name its base; write BASE\+"):
        resolve(str(adapter))
    config.write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        resolve(str(adapter))


def test_increment_on_its_base(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = saved(folder="with+plus")
    move = tmp_path / "a+move.safetensors"
    make_increment(build("Llama"), build("Llama", 1), move)
    source = resolve(f"{base}+{move}")
    assert (source.kind, source.path) == ("increment", move)
    assert source.base is not None
    assert source.base.path == base
    with pytest.raises(ModelError, match=r"needs its base: write BASE\+.*move\.safetensors"):
        resolve(str(move))
    with pytest.raises(ModelError, match=r"Did you mean 'a\+move\.safetensors'"):
        resolve(f"{base}+{tmp_path / 'a_move.safetensors'}")
    with pytest.raises(ModelError, match="no model at"):
        resolve(f"{tmp_path / 'gone'}+{move}")
    with pytest.raises(ModelError, match="is not an increment"):
        resolve(f"{base}+{base / 'config.json'}")
    with pytest.raises(ModelError, match=r"has no adapter_config\.json"):
        resolve(f"{base}+{base}")


def test_increment_folder_on_its_base(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = saved(folder="base")
    folder = make_increment(build("Llama"), build("Llama", 1), tmp_path / "m.safetensors").save_pretrained(
        tmp_path / "move+1"
    )
    source = resolve(f"{base}+{folder}")
    assert (source.kind, source.path) == ("increment", folder)
    assert source.base is not None
    assert source.base.path == base
    assert folder / "increment.safetensors" in source.files()
    stacked = resolve(f"{base}+{folder}+{tmp_path / 'm.safetensors'}")
    assert stacked.base is not None
    assert stacked.base.path == folder
    with pytest.raises(ModelError, match=r"needs its base: write BASE\+.*move\+1"):
        resolve(str(folder))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"an adapter and an increment; write BASE\+.*increment\.safetensors"):
        resolve(f"{base}+{folder}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no adapter_config\.json and no increment\.safetensors"):
        resolve(f"{base}+{tmp_path / 'empty'}")


def test_damaged_increment_alone(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"123")
    with pytest.raises(ModelError, match="not a safetensors file"):
        resolve(str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("spec", ["no-such-org/no-such-model", "no-such-model", "org/name@main"])
def test_hub_id_offline(spec: str) -> None:
    with pytest.raises(ModelError, match=r"is no local folder.*HF_HUB_OFFLINE=1") as raised:
        resolve(spec)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("spec", ["what is this?", "a b/c d", "org/--x--"])
def test_no_model_at_all(spec: str) -> None:
    with pytest.raises(ModelError, match="is no model; expected a Hugging Face id"):
        resolve(spec)


def test_two_revisions() -> None:
    with pytest.raises(InputError, match=r"'v1'.*'v2'"):
        resolve("org/name@v1", revision="v2")


def test_hub_id_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789012345678901234567890123456789"
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    source = resolve("org/name")
    assert (source.kind, source.spec, source.revision, source.path) == ("hub", "org/name", commit, snapshot)
    assert resolve(f"org/name@{commit}").path == snapshot
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        resolve("org/name@other-branch")


def test_a_plain_safetensors_is_no_increment(saved: Callable[..., Path], tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "plain.safetensors")
    source = resolve(f"{saved()}+{tmp_path / 'plain.safetensors'}")
    assert source.kind == "increment"  # whether it is one is found out when it is read
