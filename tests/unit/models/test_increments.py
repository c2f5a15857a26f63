from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from catchment.errors import CatchmentError, InputError, ModelError, StoreError
from catchment.models import Increment, load, make_increment, named_weights, swap, weights_hash, write_increment
from catchment.models import increment_codec as codec
from catchment.models import increments as module
from catchment.records import ModelCard
from tests.unit.models.conftest import build, word_tokenizer
from tests.unit.models.test_weights import lora


def bits(model: nn.Module) -> dict[str, bytes]:
    return {
        n: t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for n, t in named_weights(model).items()
    }


def sparse_move(base: Any, count: int = 50, seed: int = 3) -> Any:
    """Change ``count`` entries of every tensor; some to NaN, infinity and minus zero, which have their own bits."""
    tuned = copy.deepcopy(base)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in named_weights(tuned).values():
            where = torch.randperm(p.numel())[: min(count, p.numel())]
            p.view(-1)[where] += 1
            p.view(-1)[where[0]] = float("nan")
            p.view(-1)[where[1]] = -0.0
            p.view(-1)[where[2]] = float("inf")
    return tuned


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Any, Any, Increment]:
    base = build("Llama tied")
    tuned = sparse_move(base)
    return base, tuned, make_increment(base, tuned, tmp_path / "move.safetensors", recipe={"seed": 3, "note": "é"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["Llama", "Llama tied", "GPT-2", "BERT", "T5"])
def test_round_trip_bit_for_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = build(name, dtype=dtype)
    tuned = sparse_move(base)
    before, after = bits(base), bits(tuned)
    increment = make_increment(base, tuned, tmp_path / "move.safetensors")
    again = Increment.read(tmp_path / "move.safetensors")
    assert again.k == increment.k == sum(a != b for n in before for a, b in _entries(before[n], after[n], dtype))
    again.apply(base)
    assert bits(base) == after
    again.revert(base)
    assert bits(base) == before


def _entries(a: bytes, b: bytes, dtype: torch.dtype) -> list[tuple[bytes, bytes]]:
    size = dtype.itemsize
    return [(a[i : i + size], b[i : i + size]) for i in range(0, len(a), size)]


def test_tied_embeddings_once(pair: tuple[Any, Any, Increment]) -> None:
    base, _, increment = pair
    assert "lm_head.weight" not in {piece.name for piece in increment.pieces}
    with increment.applied(base):
        assert base.lm_head.weight is base.model.embed_tokens.weight


def test_mixed_dtypes(tmp_path: Path) -> None:
    base = build("Llama", dtype=torch.bfloat16)
    base.model.norm.float()
    base.model.layers[0].input_layernorm.float()
    tuned = sparse_move(base, count=5)
    after = bits(tuned)
    make_increment(base, tuned, tmp_path / "move.safetensors").apply(base)
    assert bits(base) == after


@settings(deadline=None, max_examples=40)
@given(st.sets(st.integers(0, 599), min_size=1, max_size=60))
def test_any_support(tmp_path_factory: pytest.TempPathFactory, support: set[int]) -> None:
    base = nn.Linear(20, 30, bias=False)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.weight.view(-1)[list(support)] += 1
    path = tmp_path_factory.mktemp("move") / "move.safetensors"
    increment = make_increment(base, tuned, path)
    assert increment.indices.tolist() == sorted(support)
    with increment.applied(base):
        assert torch.equal(base.weight, tuned.weight)


def test_what_is_inside(pair: tuple[Any, Any, Increment], tmp_path: Path) -> None:
    base, _, increment = pair
    assert increment.recipe == {"seed": 3, "note": "é"}
    assert increment.base_hash == weights_hash(base)
    assert increment.size_on_disk == os.path.getsize(tmp_path / "move.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["move.safetensors"]
    with safe_open(tmp_path / "move.safetensors", "pt") as file:
        metadata = file.metadata()
        assert sorted(file.keys()) == ["gaps", "values.float32"]
        assert file.get_slice("values.float32").get_shape() == [increment.k]
    assert metadata["format"] == "catchment-increment"
    assert metadata["version"] == "1"
    name, shape, dtype, count = json.loads(metadata["tensors"])[0]
    assert (name, shape, dtype, count) == ("model.embed_tokens.weight", [40, 16], "float32", 50)


def test_reverted_after_an_error(pair: tuple[Any, Any, Increment]) -> None:
    base, _, increment = pair
    before = bits(base)
    with pytest.raises(RuntimeError, match="inside"), increment.applied(base):
        raise RuntimeError("inside")
    assert bits(base) == before


def test_states(pair: tuple[Any, Any, Increment]) -> None:
    base, _, increment = pair
    with pytest.raises(ModelError, match="not applied to this model"):
        increment.revert(base)
    increment.apply(base)
    with pytest.raises(ModelError, match="already applied"):
        increment.apply(base)
    with pytest.raises(ModelError, match="not applied to this model"):
        increment.revert(copy.deepcopy(base))


def test_increments_are_not_stacked(pair: tuple[Any, Any, Increment], tmp_path: Path) -> None:
    """Out of order, each would put back what the other had written. A copy has the first one for good."""
    base, tuned, one = pair
    two = make_increment(base, sparse_move(base, seed=5), tmp_path / "two.safetensors")
    before = bits(base)
    one.apply(base)
    for other in (two, Increment.read(one.path)):
        with pytest.raises(ModelError, match=r"move\.safetensors is applied to .* swap, or .* add_increments"):
            other.apply(base)
    assert bits(base) == bits(tuned)
    with two.applied(copy.deepcopy(base)) as twin:
        assert bits(twin) not in (before, bits(tuned))
    assert bits(twin) == bits(tuned)
    swap(base, one, two)
    with pytest.raises(ModelError, match=r"two\.safetensors is applied to this model"):
        one.apply(base)
    two.revert(base)
    assert bits(base) == before


def test_another_base_is_refused(pair: tuple[Any, Any, Increment]) -> None:
    base, tuned, increment = pair
    increment.verify(weights_hash(base))
    with pytest.raises(ModelError, match=rf"{increment.base_hash[:12]}.*{weights_hash(tuned)[:12]}.*float32"):
        increment.verify(weights_hash(tuned))
    card = ModelCard("me", "folder", "X", 1, increment.base_hash, "", "", "", "float32", "cpu", "sdpa")
    increment.verify(card)


@pytest.mark.parametrize(("name", "dtype"), [("Llama", torch.bfloat16), ("GPT-2", torch.float32)])
def test_a_model_that_does_not_fit_is_left_alone(
    pair: tuple[Any, Any, Increment], name: str, dtype: torch.dtype
) -> None:
    other = build(name, seed=9, dtype=dtype)
    before = bits(other)
    with pytest.raises(ModelError, match=r"move\.safetensors moves '"):
        pair[2].apply(other)
    assert bits(other) == before


def test_the_last_tensor_is_checked_before_the_first_write(pair: tuple[Any, Any, Increment]) -> None:
    base, _, increment = pair
    base.model.norm.weight = nn.Parameter(torch.ones(7))
    before = bits(base)
    with pytest.raises(ModelError, match=r"'model.norm.weight' of shape \(16,\).*\(7,\)"):
        increment.apply(base)
    assert bits(base) == before


@pytest.mark.parametrize("where", [4, 60, 700, -300, -3])
def test_one_flipped_bit_is_found(pair: tuple[Any, Any, Increment], where: int) -> None:
    path = pair[2].path
    data = bytearray(path.read_bytes())
    data[where] ^= 0x04
    path.write_bytes(bytes(data))
    with pytest.raises(ModelError, match=r"move\.safetensors"):
        Increment.read(path)


@pytest.mark.parametrize("keep", [0, 5, 200, 0.5, 0.999])
def test_truncated(pair: tuple[Any, Any, Increment], keep: float) -> None:
    path = pair[2].path
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(ModelError, match=r"move\.safetensors .*(download it again, or make it again)"):
        Increment.read(path)


def test_other_files(tmp_path: Path, pair: tuple[Any, Any, Increment]) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        Increment.read(tmp_path / "nowhere.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(ModelError, match="not an increment"):
        Increment.read(tmp_path / "plain.safetensors")
    save_file(load_file(pair[2].path), tmp_path / "new.safetensors", {"format": "catchment-increment", "version": "2"})
    with pytest.raises(ModelError, match="format version 2"):
        Increment.read(tmp_path / "new.safetensors")
    save_file(load_file(pair[2].path), tmp_path / "bare.safetensors", {"format": "catchment-increment", "version": "1"})
    with pytest.raises(ModelError, match="damaged"):
        Increment.read(tmp_path / "bare.safetensors")


def test_making_refuses(tmp_path: Path) -> None:
    base = build("Llama")
    path = tmp_path / "move.safetensors"
    with pytest.raises(ModelError, match="same weights"):
        make_increment(base, copy.deepcopy(base), path)
    with pytest.raises(ModelError, match=r"'lm_head.weight' is not in the tuned model"):
        make_increment(base, build("Llama classifier"), path)
    with pytest.raises(ModelError, match=r"torch\.float32 in the base and torch\.bfloat16"):
        make_increment(base, build("Llama", dtype=torch.bfloat16), path)
    with pytest.raises(ModelError, match="merge the adapter"):
        make_increment(lora(build("Llama")), base, path)
    with pytest.raises(InputError, match="not plain JSON"):
        make_increment(base, build("Llama", 1), path, recipe={"f": len})
    norm = nn.BatchNorm1d(3)
    moved = copy.deepcopy(norm)
    moved.running_mean += 1  # type: ignore[operator]
    moved.weight.data += 1
    with pytest.raises(ModelError, match="'running_mean' differs"):
        make_increment(norm, moved, path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="cannot write"):
        make_increment(base, build("Llama", 1), tmp_path / "missing" / "move.safetensors")


def test_an_adapter_becomes_an_increment(tmp_path: Path) -> None:
    base = build("Llama")
    tuned = lora(copy.deepcopy(base))
    make_increment(base, tuned, tmp_path / "move.safetensors").apply(base)
    assert weights_hash(base) == weights_hash(tuned.merge_and_unload())


def test_size(tmp_path: Path) -> None:
    """A uniform support of 1 in 900 costs less than 2 bytes of index per entry."""
    base = nn.Linear(3000, 1500, bias=False)
    tuned = copy.deepcopy(base)
    k = base.weight.numel() // 900
    with torch.no_grad():
        tuned.weight.view(-1)[torch.randperm(base.weight.numel())[:k]] += 1
    increment = make_increment(base, tuned, tmp_path / "move.safetensors")
    assert increment.k == k
    assert increment.size_on_disk < 6 * k + 1000


def test_every_error_is_ours() -> None:
    assert issubclass(ModelError, CatchmentError)


HASH = "0" * 64


def random_entries(shapes: dict[str, tuple[int, ...]], density: float, dtype: torch.dtype, seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    entries = []
    for name, shape in shapes.items():
        index = torch.nonzero(torch.rand(shape, generator=generator).view(-1) < density).squeeze(1)
        entries.append((name, shape, index, torch.randn(len(index), generator=generator).to(dtype)))
    return entries


def test_written_from_entries_as_from_two_models(pair: tuple[Any, Any, Increment], tmp_path: Path) -> None:
    base, tuned, increment = pair
    flat = {name: t.detach().view(-1) for name, t in named_weights(tuned).items()}
    entries = [(p.name, p.shape, increment.index(p).int(), flat[p.name][increment.index(p)]) for p in increment.pieces]
    empty = ("model.norm.weight.never", (4,), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    path = tmp_path / "entries.safetensors"
    written = write_increment(path, [*entries, empty], base_hash=weights_hash(base), recipe=increment.recipe)
    assert path.read_bytes() == increment.path.read_bytes()
    assert written.pieces == increment.pieces


def test_one_percent_in_bfloat16_takes_at_most_4_2_bytes_per_entry(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {f"model.layers.{i}.mlp.up_proj.weight": (576, 576) for i in range(30)}
    entries = random_entries(shapes, 0.01, torch.bfloat16)
    increment = write_increment(tmp_path / "move.safetensors", entries, base_hash=HASH)
    assert increment.k == sum(len(index) for _, _, index, _ in entries) > 90_000
    assert os.path.getsize(increment.path) <= 4.2 * increment.k
    assert torch.equal(increment.indices, torch.cat([index for _, _, index, _ in entries]))


@pytest.mark.parametrize(
    ("index", "values", "match"),
    [
        ([3, 2], [1.0, 2.0], "do not increase strictly"),
        ([2, 2], [1.0, 2.0], "do not increase strictly"),
        ([0, 6], [1.0, 2.0], r"index 6 lies outside 'w' of shape \(2, 3\) \(6 entries\)"),
        ([-1, 3], [1.0, 2.0], "index -1 lies outside 'w'"),
        ([0, 1, 2], [1.0, 2.0], r"indices of shape \(3,\) and values of shape \(2,\)"),
        ([], [], "without entries"),
    ],
)
def test_entries_that_are_refused(tmp_path: Path, index: list[int], values: list[float], match: str) -> None:
    with pytest.raises(InputError, match=match):
        write_increment(tmp_path / "m.safetensors", [("w", (2, 3), index, torch.tensor(values))], base_hash=HASH)
    assert list(tmp_path.iterdir()) == []


def test_other_entries_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    one = ("w", (2, 3), [1], torch.ones(1))
    with pytest.raises(InputError, match="'w' was given twice"):
        write_increment(path, [one, one], base_hash=HASH)
    with pytest.raises(InputError, match=r"values of 'w' are torch\.int64"):
        write_increment(path, [("w", (2, 3), [1], torch.ones(1, dtype=torch.int64))], base_hash=HASH)
    with pytest.raises(InputError, match="hash of its base"):
        write_increment(path, [one], base_hash="")
    with pytest.raises(InputError, match="not plain JSON"):
        write_increment(path, [one], base_hash=HASH, recipe={"loss": float("nan")})


def test_a_file_whose_index_lies_outside(tmp_path: Path) -> None:
    """The checksum is right, so only the check of the indices can find it; nor may a huge gap wrap around."""
    path = tmp_path / "m.safetensors"
    for far in (6, 2**62, 1 - 2**63):
        piece = codec.Piece("w", (2, 3), "float32", 2, 0)
        content = codec.Content(HASH, (piece,), torch.tensor([1, far]), {"w": torch.ones(2)}, {})
        path.write_bytes(codec.encode(content))
        with pytest.raises(ModelError, match=r"m\.safetensors is damaged \(an index lies outside 'w'\)"):
            Increment.read(path)


def test_cut_or_damaged_anywhere(pair: tuple[Any, Any, Increment]) -> None:
    path = pair[2].path
    data = path.read_bytes()
    for cut in (*range(0, len(data), len(data) // 60), len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(ModelError, match=r"move\.safetensors"):
            Increment.read(path)
    path.write_bytes(data + b"x")
    with pytest.raises(ModelError, match=r"move\.safetensors"):
        Increment.read(path)
    for at in range(0, len(data), len(data) // 60):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])
        with pytest.raises(ModelError, match=r"move\.safetensors"):
            Increment.read(path)
    path.write_bytes(data)
    assert Increment.read(path).k == pair[2].k


def test_files_of_earlier_releases_are_read(tmp_path: Path) -> None:
    import catchment.demo

    folder = Path(catchment.demo.__file__).parent
    shipped = sorted(folder.glob("*.safetensors"))
    assert shipped
    for path in shipped:
        increment = Increment.read(path)
        content = codec.Content(
            increment.base_hash, increment.pieces, increment.indices, increment.values, increment.recipe
        )
        (tmp_path / path.name).write_bytes(codec.encode(content))
        again = Increment.read(tmp_path / path.name)
        assert (again.k, again.pieces, again.base_hash) == (increment.k, increment.pieces, increment.base_hash)
        assert torch.equal(again.indices, increment.indices)
        assert all(torch.equal(again.values[name], increment.values[name]) for name in increment.values)


def test_a_folder(pair: tuple[Any, Any, Increment], tmp_path: Path) -> None:
    base, tuned, increment = pair
    increment.recipe.update(method="sift", density=0.01, data_fingerprint="f00d")
    folder = increment.save_pretrained(tmp_path / "new" / "folder", base="org/name")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "increment.safetensors"]
    for where in (folder, str(folder / "increment.safetensors")):
        again = Increment.from_pretrained(where)
        assert again.recipe == increment.recipe
        with again.applied(base):
            assert bits(base) == bits(tuned)
    text = (folder / "README.md").read_text()
    assert "| density that was asked for | 0.01 |" in text
    for told in ("base_model: org/name", increment.base_hash, f"{increment.k:,}", "sift", "f00d", "| seed | 3 |"):
        assert told in text
    increment.recipe["sparsity"] = 2 * increment.recipe.pop("density")  # as SIFT calls it
    text = (increment.save_pretrained(folder) / "README.md").read_text()
    assert "base_model:" not in text
    assert "| density that was asked for | 0.02 |" in text
    card = ModelCard("me", "folder", "X", 1, HASH, "", "", "", "float32", "cpu", "sdpa")
    with pytest.raises(ModelError, match="was made for a base"):
        increment.save_pretrained(folder, base=card)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot make the folder"):
        increment.save_pretrained(tmp_path / "file")


def test_folders_without_an_increment(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no increment\.safetensors; give the folder"):
        Increment.from_pretrained(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "incremnt.safetensors")
    with pytest.raises(ModelError, match=r"Did you mean 'incremnt\.safetensors'"):
        Increment.from_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds a PEFT adapter"):
        Increment.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot read"):
        Increment.from_pretrained(tmp_path / "gone")


def test_load_base_plus_folder(saved: Callable[..., Path], pair: tuple[Any, Any, Increment], tmp_path: Path) -> None:
    base, tuned, increment = pair
    path = tmp_path / "base"
    base.save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    folder = increment.save_pretrained(tmp_path / "increment")
    loaded = load(f"{path}+{folder}", device="cpu")
    assert bits(loaded.model) == bits(tuned)
    assert loaded.card.source == "increment"
    further = make_increment(tuned, sparse_move(tuned, seed=5), tmp_path / "further.safetensors")
    for model in (loaded.model, copy.deepcopy(loaded.model)):  # a base for another increment
        with further.applied(model):
            assert bits(model) != bits(tuned)
    word_tokenizer().save_pretrained(folder, chat_template="x")
    with pytest.raises(ModelError, match=r"was made for a base with weights .* give its own base"):
        load(f"{saved('Llama tied', seed=5, folder='other')}+{folder}", device="cpu")


class FreshMemory(TorchDispatchMode):
    """Counts the elements of every tensor that an operation makes, views and writes in place left out."""

    made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
            self.made += 0 if result.untyped_storage().data_ptr() in known else result.numel()
        return result


def test_swap(pair: tuple[Any, Any, Increment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned, old = pair
    other = sparse_move(base, count=8, seed=4)
    new = make_increment(base, other, tmp_path / "new.safetensors")
    before = bits(base)

    def forbidden(*args: Any) -> str:
        raise AssertionError("the whole model was hashed")

    monkeypatch.setattr(module, "weights_hash", forbidden)
    old.apply(base)
    with FreshMemory() as memory:
        swap(base, old, new)
    size = sum(t.numel() for t in named_weights(base).values())
    assert memory.made <= 4 * (old.k + new.k) < size
    assert bits(base) == bits(other)
    swap(base, new, new)
    assert bits(base) == bits(other)
    swap(base, new, old)
    assert bits(base) == bits(tuned)
    old.revert(base)
    assert bits(base) == before
    with pytest.raises(ModelError, match="not applied to this model"):
        swap(base, old, new)


def test_a_swap_that_fails_leaves_the_old_one(pair: tuple[Any, Any, Increment], tmp_path: Path) -> None:
    base, tuned, old = pair
    stranger = write_increment(
        tmp_path / "s.safetensors", [("model.norm.weight", (16,), [1], torch.ones(1))], base_hash=HASH
    )
    misfit = write_increment(
        tmp_path / "m.safetensors", [("model.norm.weight", (7,), [1], torch.ones(1))], base_hash=old.base_hash
    )
    old.apply(base)
    for wrong, match in ((stranger, "only increments of one base"), (misfit, r"of shape \(7,\)")):
        with pytest.raises(ModelError, match=match):
            swap(base, old, wrong)
        assert old.is_applied(base)
        assert bits(base) == bits(tuned)


def test_a_failure_inside_apply_writes_nothing(pair: tuple[Any, Any, Increment]) -> None:
    base, _, increment = pair
    before = bits(base)
    last = increment.pieces[-1].name
    increment.values[last] = increment.values[last][:-1]  # memory that runs out would look the same
    with pytest.raises((RuntimeError, ModelError)):
        increment.apply(base)
    assert bits(base) == before
    Increment.read(increment.path).apply(base)  # nothing stands in its way
