"""Displacement: exact there, exact back, whatever happens inside."""

from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from catchment.errors import InputError, ModelError
from catchment.landscape import (
    Mover,
    Stored,
    Subspace,
    displaced,
    filter_normalised,
    gaussian,
    moved_subspace,
    towards,
)
from catchment.models import make_increment, named_weights, weights_hash
from tests.tiny import CAUSAL, tiny_llama
from tests.unit.landscape.oracles import peak_bytes

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
UP = "model.layers.0.mlp.up_proj.weight"


def bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(model: Any, before: dict[str, torch.Tensor]) -> bool:
    after = model.state_dict()
    return all(torch.equal(before[n].view(torch.uint8), after[n].view(torch.uint8)) for n in before)


def saved(model: Any, folder: Path) -> list[Path]:
    model.save_pretrained(folder)
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory", ["mapped", "copy", "low"])
def test_forty_points_and_back_bit_for_bit(dtype: torch.dtype, memory: Any, tmp_path: Path) -> None:
    model = tiny_llama().to(dtype)
    files, before = saved(model, tmp_path), bits(model)
    subspace = Subspace.all(model)
    with Mover(model, subspace, memory=memory, files=files) as mover:
        for i in range(40):
            mover.place((gaussian(subspace, 0, i % 3), (i - 20) * 5e-4))
    assert same(model, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_modes_stand_at_the_same_point(dtype: torch.dtype, tmp_path: Path) -> None:
    """theta + scale * delta, formed in fp32 from the clean weights and rounded once."""
    model = tiny_llama(tie_word_embeddings=True).to(dtype)
    files, subspace = saved(model, tmp_path), Subspace.all(model)
    direction = gaussian(subspace, 5, 2)
    clean = {n: w.detach().clone() for n, w in named_weights(model).items()}
    for memory in ("mapped", "copy", "low"):
        with Mover(model, subspace, memory=memory, files=files) as mover:
            assert mover.mode == memory
            mover.place((direction, 0.01))
            for name, weight in named_weights(model).items():
                delta = direction.delta(name).to(dtype).double().reshape(weight.shape)
                wanted = (clean[name].double() + 0.01 * delta).to(dtype)
                close = torch.finfo(dtype).eps * clean[name].double().abs().max()
                assert (weight.double() - wanted.double()).abs().max() <= close
            points = {n: w.detach().clone() for n, w in named_weights(model).items()}
        if memory == "mapped":
            first = points
        assert all(torch.equal(first[n], points[n]) for n in first), memory


@pytest.mark.parametrize("family", sorted(CAUSAL))
def test_every_family_moves_each_unique_weight_once(family: str) -> None:
    model = CAUSAL[family]()
    subspace, before = Subspace.all(model), bits(model)
    with Mover(model, subspace) as mover:
        mover.place((gaussian(subspace, 0), 0.02))
        size, off = mover.realised(gaussian(subspace, 0), 0.02)
        moved = sum(float((w.detach() - before[n]).double().square().sum()) for n, w in model.named_parameters())
    assert size == pytest.approx(1, abs=1e-4)
    assert off < 1e-3
    assert math.sqrt(moved / subspace.size) == pytest.approx(0.02, rel=4 / math.sqrt(2 * subspace.size))
    assert same(model, before)


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("memory", ["copy", "low"])
@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt, SystemExit])
def test_restored_after_an_exception(memory: Any, error: type[BaseException]) -> None:
    model = tiny_llama()
    before = bits(model)

    def inside() -> None:
        with displaced(model, gaussian(Subspace.all(model), 0), 0.1, memory=memory):
            assert not same(model, before)
            raise error

    with pytest.raises(error):
        inside()
    assert same(model, before)


def test_restored_when_ctrl_c_comes_while_restoring(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    before = bits(model)
    mover = Mover(model, Subspace.all(model))
    real = mover._write_clean

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        real()

    mover.place((gaussian(mover.subspace, 0), 0.1))
    monkeypatch.setattr(mover, "_write_clean", interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell's children ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            mover.restore()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert same(model, before)


def test_no_trace_is_left() -> None:
    model = tiny_llama().train()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    flags = [p.requires_grad for p in model.parameters()]
    state, before = torch.get_rng_state(), bits(model)
    objects = [id(p) for p in model.parameters()]
    with displaced(model, gaussian(Subspace.all(model), 0), 0.1):
        pass
    assert same(model, before)
    assert flags == [p.requires_grad for p in model.parameters()]
    assert objects == [id(p) for p in model.parameters()]
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(grads[n], p.grad) for n, p in model.named_parameters() if p.grad is not None)


def test_the_way_to_another_model_ends_exactly_there() -> None:
    base = tiny_llama()
    for dtype in DTYPES:
        model = copy.deepcopy(base).to(dtype)
        tuned = copy.deepcopy(model)
        with torch.no_grad():
            for p in tuned.parameters():
                p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        goal, way = weights_hash(tuned), towards(model, tuned)
        with Mover(model, way.subspace) as mover:
            mover.place((way, way.alpha))
            assert weights_hash(model) == goal
            mover.place((way, 0.0))
            assert weights_hash(model) != goal
        delta = torch.cat([way.delta(n) for n in way.subspace.shapes]).double()
        assert float(delta.square().mean().sqrt()) == pytest.approx(1, abs=1e-6)
        distance = math.sqrt(
            sum(float((a.detach().double() - b.detach().double()).square().sum()) for a, b in zip(
                named_weights(model).values(), named_weights(tuned).values(), strict=True))
        )  # fmt: skip
        assert way.distance == pytest.approx(distance, rel=1e-9)


def test_a_sparse_move_copies_its_own_entries_only(tmp_path: Path) -> None:
    model = tiny_llama()
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.model.layers[0].mlp.up_proj.weight.view(-1)[[3, 700, 1200]] += 0.5
        tuned.model.layers[1].self_attn.q_proj.weight.view(-1)[[9]] -= 0.25
    way = towards(model, tuned)
    assert way.subspace.kind == "sparse"
    assert way.subspace.size == 4
    assert way.alpha == pytest.approx(math.sqrt((3 * 0.25 + 0.0625) / 4), rel=1e-6)
    before, goal = bits(model), weights_hash(tuned)
    with Mover(model, way.subspace) as mover:
        assert mover.mode == "support"
        assert sum(part.clean.numel() for part in mover._parts) == 4
        mover.place((way, way.alpha))
        assert weights_hash(model) == goal
        mover.place((gaussian(way.subspace, 0), 0.1))
        changed = sum(int((w.detach() != before[n]).sum()) for n, w in named_weights(model).items())
        assert changed == 4
    assert same(model, before)
    file = tmp_path / "i.safetensors"
    make_increment(model, tuned, file)
    assert Subspace.parse(model, f"sparse:{file}").hash == way.subspace.hash


def test_many_changed_entries_give_whole_tensors() -> None:
    model = tiny_llama()
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.model.embed_tokens.weight += 0.1
        tuned.lm_head.weight += 0.1
    subspace = moved_subspace(model, tuned)
    assert subspace.kind == "glob"
    assert set(subspace.shapes) == {"model.embed_tokens.weight", "lm_head.weight"}
    with pytest.raises(ModelError, match="equal weights"):
        moved_subspace(model, copy.deepcopy(model))


@pytest.mark.parametrize("memory", ["copy", "low"])
def test_two_directions_at_once(memory: Any) -> None:
    model = tiny_llama()
    subspace, clean = Subspace.all(model), model.model.layers[0].mlp.up_proj.weight.detach().clone()
    a, b = gaussian(subspace, 0, 0), gaussian(subspace, 0, 1)
    with Mover(model, subspace, memory=memory) as mover:
        mover.place((a, 0.3), (b, -0.2))
        wanted = clean + 0.3 * a.delta(UP).reshape(clean.shape) - 0.2 * b.delta(UP).reshape(clean.shape)
        assert torch.allclose(model.model.layers[0].mlp.up_proj.weight, wanted, atol=1e-6)


def test_frames_and_filters_move_too() -> None:
    model = tiny_llama()
    before = bits(model)
    frame = Subspace.frame(model, 2)
    for memory in ("copy", "low"):
        with displaced(model, gaussian(frame, 0), 0.1, memory=memory):
            moved = model.model.layers[0].mlp.up_proj.weight.detach() - before[UP]
            assert torch.linalg.matrix_rank(moved, rtol=1e-4) == 2
        subspace = Subspace.all(model)
        direction = filter_normalised(model, gaussian(subspace, 0))
        assert not direction.comparable
        with displaced(model, direction, 1.0, memory=memory):
            moved = model.model.layers[0].mlp.up_proj.weight.detach() - before[UP]
            assert torch.allclose(moved.norm(dim=1), before[UP].norm(dim=1), rtol=1e-4)
            assert torch.equal(model.model.norm.weight, before["model.norm.weight"])
    assert same(model, before)


def test_stored_directions() -> None:
    model = tiny_llama()
    subspace = Subspace.glob(model, "*.up_proj.weight")
    kept = {n: torch.ones(subspace.coordinates(n)) for n in subspace.shapes}
    clean = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    with displaced(model, Stored(subspace, kept, {"attack": 1}), 0.5, memory="low"):
        assert torch.allclose(model.model.layers[0].mlp.up_proj.weight, clean + 0.5)


def test_a_stored_direction_stays_what_it_is_when_others_are_held() -> None:
    """Noise is drawn into memory of the mover's own, which it keeps from one noise to the next."""
    model = tiny_llama()
    subspace = Subspace.glob(model, "*.up_proj.weight")
    kept = {n: torch.ones(subspace.coordinates(n)) for n in subspace.shapes}
    stored, noise = Stored(subspace, kept, {"attack": 1}), [gaussian(subspace, 0, i) for i in range(2)]
    with Mover(model, subspace, memory="copy") as mover:
        mover.place((noise[0], 0.5))
        there = bits(model)
        mover.place((stored, 0.5))
        mover.place((noise[0], 0.5))
        assert same(model, there)
        assert all(torch.equal(ones, torch.ones_like(ones)) for ones in kept.values())
        memory = [part.delta.data_ptr() for part in mover._parts if part.delta is not None]
        mover.place((noise[1], 0.5))
        assert [part.delta.data_ptr() for part in mover._parts if part.delta is not None] == memory


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapter_only_unless_asked() -> None:
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    base = {n: w.detach().clone() for n, w in named_weights(model, "base").items()}
    with displaced(model, gaussian(Subspace.all(model), 0), 0.1):
        assert all(torch.equal(base[n], w) for n, w in named_weights(model, "base").items())
    asked = Subspace.glob(model, "model.layers.0.self_attn.q_proj.weight")
    with displaced(model, gaussian(asked, 0), 0.1):
        moved = [n for n, w in named_weights(model, "base").items() if not torch.equal(base[n], w)]
    assert moved == ["model.layers.0.self_attn.q_proj.weight"]


def test_a_device_map_on_one_device_works() -> None:
    from accelerate import dispatch_model

    model = tiny_llama()
    before = bits(model)
    plain = model(input_ids=torch.tensor([[1, 5, 9]])).logits.detach()
    parts = ("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head")
    dispatched = dispatch_model(model, dict.fromkeys(parts, "cpu"), main_device="cpu", force_hooks=True)
    with displaced(dispatched, gaussian(Subspace.all(dispatched), 0), 0.1):
        assert not torch.allclose(dispatched(input_ids=torch.tensor([[1, 5, 9]])).logits, plain, atol=1e-2)
    assert same(dispatched, before)


def test_low_memory_spills_to_a_file_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATCHMENT_HOME", str(tmp_path))
    model = tiny_llama()
    mover = Mover(model, Subspace.all(model), memory="low")
    assert list((tmp_path / "spill").iterdir())
    mover.close()
    assert not list((tmp_path / "spill").iterdir())


def test_spills_of_processes_that_are_gone_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATCHMENT_HOME", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    model = tiny_llama()
    with Mover(model, Subspace.all(model), memory="low"):
        (own,) = (tmp_path / "spill").iterdir()
        dead, other = (
            own.with_name(own.name.replace(f".{os.getpid()}.", f".{gone.pid}.")),
            own.with_name(f"another-machine.{gone.pid}.x.safetensors"),
        )
        for path in (dead, other):
            path.write_bytes(b"")
        with Mover(model, Subspace.all(model), memory="low"):
            assert own.exists(), "of a process that lives"
            assert other.exists(), "nothing is known of its processes"
            assert not dead.exists()
    assert list((tmp_path / "spill").iterdir()) == [other]


def test_a_dropped_direction_is_drawn_again() -> None:
    model = tiny_llama()
    subspace = Subspace.all(model)
    direction = gaussian(subspace, 0)
    with Mover(model, subspace, memory="copy") as mover:
        mover.place((direction, 0.1))
        there = bits(model)
        mover.drop()
        assert same(model, there), "the model stays where it stands"
        assert all(part.delta is None for part in mover._parts)
        mover.place((direction, 0.2))
        mover.place((direction, 0.1))
        assert same(model, there)


def test_a_tensor_of_which_nothing_is_here() -> None:
    """As on a process that holds no row of a cut matrix."""
    model = tiny_llama()
    frame = Subspace.frame(model, 2)
    a, b = gaussian(frame, 0, 0), gaussian(frame, 0, 1)
    with Mover(model, frame, memory="copy") as mover:
        part = mover._parts[0]
        part.weight, part.clean = part.weight[:0], part.clean[:0]
        mover.place((a, 0.1), (b, 0.1))
        mover.place((a, 0.1))
        assert mover.realised(a, 0.1)[0] == pytest.approx(1, abs=1e-4)


class Large(torch.nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(count // 64, 64, generator=torch.Generator().manual_seed(0)))


def test_the_realised_move_is_measured_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catchment.landscape.displace._MEASURED", 1 << 16)
    model = Large(1 << 21)
    subspace = Subspace.all(model)
    for direction in (gaussian(subspace, 0), filter_normalised(model, gaussian(subspace, 0))):
        with Mover(model, subspace, memory="copy") as mover:
            mover.place((direction, 0.01))
            done = (model.weight.detach() - mover._parts[0].clean.reshape(-1, 64)).double().reshape(-1)
            intended = 0.01 * direction.delta("weight").double()
            found: list[float] = []
            used = peak_bytes(lambda: found.extend(mover.realised(direction, 0.01)))  # noqa: B023
            assert found[0] == pytest.approx(float(done.norm() / intended.norm()), rel=1e-9)
            cosine = float(done @ intended / done.norm() / intended.norm())
            assert found[1] == pytest.approx(math.sqrt(max(1 - cosine**2, 0)), abs=1e-5)
        assert used < (8 << 20 if direction.cuttable else 40 << 20), f"{used / (4 << 21):.2f} copies"


@pytest.mark.parametrize("share", [0.0005, 0.05, 0.19, 0.21, 0.6])
def test_the_entries_that_moved_are_found_piece_by_piece(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catchment.landscape.directions.PIECE", 777)
    model = tiny_llama()
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    wanted: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            mask = torch.rand(weight.shape, generator=generator) < share
            weight[mask] += 1.0
            if mask.any():
                wanted[name] = mask.reshape(-1).nonzero().reshape(-1)
    found = moved_subspace(model, tuned)
    assert set(found.shapes) == set(wanted)
    assert found.kind == ("sparse" if share < 0.2 else "glob")
    if found.kind == "sparse":
        assert all(torch.equal(found.support[name], index) for name, index in wanted.items())


def test_what_a_dense_tune_moved_is_found_within_half_a_copy() -> None:
    model, tuned = Large(1 << 23).bfloat16(), Large(1 << 23).bfloat16()
    with torch.no_grad():
        tuned.weight += 0.5
    assert moved_subspace(model, tuned).kind == "glob"
    used = peak_bytes(lambda: moved_subspace(model, tuned))
    indices = (1 << 22) * 8  # of one piece, before they are made int32; and its mask
    assert used < 0.2 * (1 << 23) * 4 + 1.8 * indices, f"{used / (2 << 23):.2f} copies"


def test_files_that_differ_are_not_trusted(tmp_path: Path) -> None:
    model = tiny_llama()
    files = saved(model, tmp_path)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.view(-1)[0] += 1e-3
    before = bits(model)
    with Mover(model, Subspace.all(model), memory="mapped", files=files) as mover:
        mover.place((gaussian(mover.subspace, 0), 0.1))
    assert same(model, before)


def test_wrong_arguments() -> None:
    model = tiny_llama()
    with pytest.raises(InputError, match="expected one of auto"):
        Mover(model, Subspace.all(model), memory="fast")  # type: ignore[arg-type]
    with Mover(model, Subspace.all(model)) as mover:
        with pytest.raises(ModelError, match="another subspace"):
            mover.place((gaussian(Subspace.glob(model, UP), 0), 0.1))
        with pytest.raises(InputError, match="finite"):
            mover.place((gaussian(mover.subspace, 0), float("nan")))
