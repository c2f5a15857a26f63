"""A card is given only for the files it was made of, however their times look; and then without loading."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from catchment.errors import ModelError
from catchment.models import card_of, gguf, known, load, loading, make_increment, weights_hash
from catchment.records import ModelCard
from tests.unit.models.conftest import build
from tests.unit.models.test_weights import lora

CARD = ModelCard("a", "folder", "X", 1, "w", "c", "t", "p", "float32", "cpu", "sdpa")
DAY = 86_400 * 10**9


def see(file: Path) -> known.Seen:
    seen = known.look([file], {"dtype": "auto"})
    assert seen is not None
    return seen


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as large, and as changed a day ago."""
    monkeypatch.setattr(known, "SMALL", 0)
    monkeypatch.setattr(known, "time", SimpleNamespace(time_ns=lambda: time.time_ns() + DAY))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose content is read, in order."""
    names: list[str] = []
    digest, whole = known.hashlib.file_digest, known.file_hash

    def file_digest(file: Any, kind: str) -> Any:
        names.append(file.name)
        return digest(file, kind)

    def file_hash(path: Path) -> str:
        names.append(str(path))
        return whole(path)

    monkeypatch.setattr(known, "hashlib", SimpleNamespace(sha256=known.hashlib.sha256, file_digest=file_digest))
    monkeypatch.setattr(known, "file_hash", file_hash)
    return names


def in_place(file: Path, data: bytes) -> None:
    file.write_bytes(data)


def rename_over(file: Path, data: bytes) -> None:
    other = file.with_name("renamed")
    other.write_bytes(data)
    shutil.copystat(file, other)
    other.replace(file)


def another_target(file: Path, data: bytes) -> None:
    other = file.with_name("target")
    other.write_bytes(data)
    shutil.copystat(file, other)
    file.unlink()
    file.symlink_to(other)


def through_a_hard_link(file: Path, data: bytes) -> None:
    link = file.with_name("hard link")
    os.link(file, link)
    link.write_bytes(data)


CHANGES = [in_place, rename_over, another_target, through_a_hard_link]
Change = Callable[[Path, bytes], None]


def replaced(file: Path, change: Change = in_place, data: bytes | None = None) -> None:
    """Replace a file by other bytes of the same length and put its time back."""
    stat = file.stat()
    other = data or bytes(byte ^ 1 for byte in file.read_bytes())
    assert len(other) == stat.st_size
    while time.time_ns() < stat.st_ctime_ns + 20_000_000:  # the kernel's clock has ticked since the file was made
        pass
    change(file, other)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


@pytest.mark.parametrize("change", CHANGES)
def test_a_large_file_replaced_with_size_and_time_kept(change: Change, tmp_path: Path, later: None) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    see(file).remember(CARD)
    assert see(file).recall("other name") == dataclasses.replace(CARD, name="other name")
    replaced(file, change)
    assert see(file).recall("a") is None


def test_a_settled_large_file_is_not_read(tmp_path: Path, later: None, hashed: list[str]) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    see(file).remember(CARD)
    assert see(file).recall("a") == CARD
    assert hashed == []


def test_conditions_and_paths_are_apart(tmp_path: Path) -> None:
    file, link, copy = tmp_path / "weights", tmp_path / "linked" / "weights", tmp_path / "copy"
    file.write_bytes(b"one")
    link.parent.mkdir()
    link.symlink_to(file)
    shutil.copy2(file, copy)
    see(file).remember(CARD)
    assert see(link).recall("a") == CARD
    for files, conditions in (([copy], {"dtype": "auto"}), ([file, copy], {"dtype": "auto"}), ([file], {"dtype": "x"})):
        seen = known.look(files, conditions)
        assert seen is not None
        assert seen.recall("a") is None


def test_a_fresh_file_is_in_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str]) -> None:
    """A second change within one tick of the clock leaves all attributes as they were: only the content tells."""
    monkeypatch.setattr(known, "SMALL", 0)
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    seen = see(file)
    seen.remember(CARD)
    file.write_bytes(b"two")
    same_tick = known.Stamp(str(file), seen.stamps[0].attributes, known.file_hash(file))
    assert known.Seen(seen.key, (same_tick,)).recall("a") is None
    file.write_bytes(b"one")
    assert see(file).recall("a") == CARD
    hashed.clear()
    now = time.time_ns()
    monkeypatch.setattr(known, "time", SimpleNamespace(time_ns=lambda: now + DAY))
    assert see(file).recall("a") == CARD
    assert hashed == [str(file)], "once more, since it was in doubt when it was remembered"
    assert see(file).recall("a") == CARD
    assert hashed == [str(file)], "and never again"


@pytest.mark.parametrize(
    "doubt",
    [
        {"st_ino": 0},
        {"st_ctime_ns": 1_700_000_000_000_000_000},
        {"st_ctime_ns": 1_700_000_000_010_000_000},
        {"st_ctime_ns": 4_000_000_000_123_456_789},
        {"st_mtime_ns": 4_000_000_000_123_456_789},
    ],
    ids=["no inodes", "whole seconds", "hundredths", "changed in the future", "written in the future"],
)
def test_where_attributes_say_little_the_content_is_compared(
    doubt: dict[str, int], tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    attributes = {"st_ino": 7, "st_size": 3, "st_mtime_ns": 5, "st_ctime_ns": 1_700_000_000_123_456_789}
    monkeypatch.setattr(known, "os", SimpleNamespace(
        fstat=lambda number: SimpleNamespace(**attributes), path=os.path, name="posix",
    ))  # fmt: skip
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    see(file).remember(CARD)
    file.write_bytes(b"two")
    assert see(file).recall("a") == CARD, "what these attributes would say alone: the case is real"
    attributes.update(doubt)
    see(file).remember(CARD)
    assert see(file).recall("a") == CARD
    file.write_bytes(b"one")
    assert see(file).recall("a") is None


def test_on_windows_ctime_is_the_time_of_creation(monkeypatch: pytest.MonkeyPatch) -> None:
    stat: Any = SimpleNamespace(st_ino=7, st_mtime_ns=5, st_ctime_ns=123_456_789)
    assert not known._doubtful(stat, DAY)
    monkeypatch.setattr(known.os, "name", "nt")
    assert known._doubtful(stat, DAY)


def test_a_damaged_or_unwritable_cache_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    see(file).remember(CARD)
    entry = known._cache_file(see(file).key)
    for damage in ('{"files": [', "[]", '{"files": [[1]], "card": "{}"}', '{"files": [], "card": "{}"}'):
        entry.write_text(damage)
        assert see(file).recall("a") is None
    monkeypatch.setenv("CATCHMENT_HOME", str(file))
    see(file).remember(CARD)
    assert see(file).recall("a") is None
    assert known.look([tmp_path / "gone"], {}) is None


def _swap_weights(folder: Path, change: Change = in_place) -> None:
    replaced(folder / "model.safetensors", change, _bytes(build("Llama", seed=5), folder.parent))


def _bytes(model: Any, where: Path) -> bytes:
    model.save_pretrained(where / "other")
    return (where / "other" / "model.safetensors").read_bytes()


def _edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        assert len(old) == len(new)
        replaced(folder / name, data=text.replace(old, new, 1).encode())

    return edit


@pytest.mark.parametrize(
    ("part", "edit"),
    [
        ("weights_hash", _swap_weights),
        ("config_hash", _edit("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')),
        ("config_hash", _edit("generation_config.json", '"eos_token_id": 2', '"eos_token_id": 7')),
        ("tokenizer_hash", _edit("tokenizer.json", '"w3": 3', '"v3": 3')),
        ("template_hash", _edit("chat_template.jinja", "one", "two")),
        ("template_hash", _edit("additional_chat_templates/rag.jinja", "one", "two")),
    ],
    ids=["weights", "config", "end of answers", "tokenizer", "template", "second template"],
)
def test_a_model_whose_files_were_replaced(
    part: str, edit: Callable[[Path], None], saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved()
    (folder / "chat_template.jinja").write_text("one")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("one")
    before = load(str(folder), device="cpu").card
    assert card_of(str(folder), device="cpu") == before
    edit(folder)
    assert card_of(str(folder), device="cpu") is None
    after = load(str(folder), device="cpu").card
    assert [f.name for f in dataclasses.fields(after) if getattr(after, f.name) != getattr(before, f.name)] == [part]
    monkeypatch.setattr(loading, "open_source", None)
    assert card_of(str(folder), device="cpu") == after


def test_shards_adapter_and_base(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = saved(max_shard_size="4KB")
    shards = sorted(base.glob("*.safetensors"))
    assert len(shards) > 2
    lora(build("Llama")).save_pretrained(tmp_path / "adapter")
    spec = f"{base}+{tmp_path / 'adapter'}"
    for file in (shards[1], tmp_path / "adapter" / "adapter_model.safetensors"):
        card = load(spec, device="cpu").card
        assert card_of(spec, device="cpu") == card
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        replaced(file, data=bytes(data))
        assert card_of(spec, device="cpu") is None
        assert load(spec, device="cpu").card.weights_hash != card.weights_hash


def test_shards_in_a_folder_of_their_own(saved: Callable[..., Path]) -> None:
    folder = saved(max_shard_size="4KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    (folder / "parts").mkdir()
    for name in set(content["weight_map"].values()):
        (folder / name).rename(folder / "parts" / name)
    index.write_text(json.dumps({**content, "weight_map": {k: f"parts/{v}" for k, v in content["weight_map"].items()}}))
    files = loading.resolve(str(folder)).files()
    assert {f.name for f in files} >= set(content["weight_map"].values())


def test_weights_saved_by_torch(saved: Callable[..., Path]) -> None:
    folder = saved()
    model = build("Llama")
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    card = load(str(folder), device="cpu").card
    assert card.weights_hash == weights_hash(model)
    assert card_of(str(folder), device="cpu") == card
    torch.save(build("Llama", seed=5).state_dict(), folder.parent / "pytorch_model.bin")
    data = (folder.parent / "pytorch_model.bin").read_bytes()
    replaced(folder / "pytorch_model.bin", data=data)
    assert card_of(str(folder), device="cpu") is None
    assert load(str(folder), device="cpu").card.weights_hash == weights_hash(build("Llama", seed=5))


@pytest.mark.parametrize("change", [in_place, rename_over])
def test_files_replaced_while_they_are_loaded(
    change: Change, saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card is of what was loaded, and is not remembered for what lies there now."""
    folder = saved()
    opened = loading.processor_of

    def meanwhile(*args: Any) -> Any:
        _swap_weights(folder, change)
        return opened(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loading, "processor_of", meanwhile)
        loaded = load(str(folder), device="cpu")
    assert loaded.card.weights_hash == weights_hash(loaded.model)
    assert card_of(str(folder), device="cpu") is None
    assert load(str(folder), device="cpu").card.weights_hash == weights_hash(build("Llama", seed=5))


def test_weights_that_change_after_they_were_loaded(saved: Callable[..., Path]) -> None:
    """Renaming over a file leaves the mapped one as it was; writing into it does not."""
    folder = saved()
    loaded = load(str(folder), device="cpu")
    loaded.unchanged()
    _swap_weights(folder, rename_over)
    loaded.unchanged()
    again = load(str(folder), device="cpu")
    os.utime(folder / "model.safetensors", (1, 1))
    again.unchanged()
    with torch.no_grad():
        again.model.model.norm.weight += 1  # as mapped weights look when something writes into their file
    again.unchanged()
    os.utime(folder / "model.safetensors", (2, 2))
    with pytest.raises(ModelError, match=r"changed after they were loaded: something writes into its files"):
        again.unchanged()


def test_gguf_replaced_while_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF one")

    def unpack(path: Path, folder: Path) -> None:
        path.write_bytes(b"GGUF two")

    monkeypatch.setattr(gguf, "_unpack", unpack)
    with pytest.raises(ModelError, match=r"a\.gguf was changed while it was unpacked; load it again"):
        gguf.unpacked(file)
    assert not list(known.cache_dir().rglob("*-1"))


def test_a_link_that_leads_to_another_file_of_the_folder(saved: Callable[..., Path]) -> None:
    folder, other = saved(), saved(seed=5, folder="other")
    (folder / "model.safetensors").rename(folder / "step100.safetensors")
    shutil.copy(other / "model.safetensors", folder / "step200.safetensors")
    (folder / "model.safetensors").symlink_to("step100.safetensors")
    first = load(str(folder), device="cpu").card
    assert card_of(str(folder), device="cpu") == first
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("step200.safetensors")
    assert card_of(str(folder), device="cpu") is None
    assert (
        load(str(folder), device="cpu").card.weights_hash == weights_hash(build("Llama", seed=5)) != first.weights_hash
    )


def test_the_same_files_in_another_order_are_another_model(saved: Callable[..., Path], tmp_path: Path) -> None:
    base, tune, move = saved(), tmp_path / "tune", tmp_path / "move.safetensors"
    lora(build("Llama"), 0).save_pretrained(tune)
    moved = build("Llama")
    moved.model.layers[0].mlp.up_proj.weight.data.add_(0.1)
    make_increment(build("Llama"), moved, move)
    assert load(f"{base}+{move}+{tune}", device="cpu").card == card_of(f"{base}+{move}+{tune}", device="cpu")
    assert card_of(f"{base}+{tune}+{move}", device="cpu") is None
    with pytest.raises(ModelError, match="was made for a base with weights"):
        load(f"{base}+{tune}+{move}", device="cpu")
