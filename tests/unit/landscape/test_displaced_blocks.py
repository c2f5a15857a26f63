"""What a block inside ``displaced`` may do to the model: afterwards every weight is what it was, bit for bit, under its
own name, in the same Parameter; or an error names the tensors."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from catchment.errors import ModelError
from catchment.landscape import Mover, Subspace, displaced, gaussian
from tests import blocks
from tests.blocks import ADDING, UP, WRITTEN, Before, build, lora, other_weights, up


def nested(model: Any) -> None:
    with displaced(model, gaussian(Subspace.all(model), 9), 0.3):
        model.double()
        with displaced(model, gaussian(Subspace.glob(model, "*.up_proj.weight"), 8), 0.3):
            model.load_state_dict(other_weights(model), assign=True)
        assert up(model).weight.dtype == torch.float64
    model.half()


REPLACED = {**blocks.REPLACED, "nested": nested}
EVERY = {**REPLACED, **WRITTEN, "memory given up": blocks.memory_given_up}
SPACES: dict[str, Callable[[Any], Subspace]] = {
    "all": Subspace.all,
    "glob": lambda model: Subspace.glob(model, UP),
    "sparse": lambda model: Subspace.sparse(model, {UP: torch.arange(0, 1536, 7)}),
    "frame": lambda model: Subspace.frame(model, 2, patterns=[UP]),
}


@pytest.mark.parametrize("memory", ["mapped", "copy", "low"])
@pytest.mark.parametrize("block", sorted(EVERY))
@pytest.mark.parametrize(
    ("tie", "dtype"), [(False, torch.float32), (True, torch.bfloat16)], ids=["untied", "tied-bf16"]
)
def test_whatever_is_done_to_all_weights(
    block: str, memory: Any, tie: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = build(tie, dtype)
    files = []
    if memory == "mapped":
        model.save_pretrained(tmp_path)
        files = sorted(tmp_path.glob("*.safetensors"))
    before = Before(model)
    with displaced(model, gaussian(Subspace.all(model), 0), 0.1, memory=memory, files=files):
        assert not torch.equal(up(model).weight, before.values[UP])
        EVERY[block](model)
    before.check()


@pytest.mark.parametrize("space", ["glob", "sparse", "frame"])
@pytest.mark.parametrize("block", sorted(REPLACED))
def test_replaced_weights_of_a_part_of_the_model(block: str, space: str) -> None:
    model = build()
    before = Before(model)

    def inside() -> None:
        with displaced(model, gaussian(SPACES[space](model), 0), 0.1):
            REPLACED[block](model)

    if block == "share_memory" and space == "sparse":  # and written to, beyond the entries that are kept
        with pytest.raises(ModelError, match=re.escape(UP)):
            inside()
    else:
        inside()
        before.check()


@pytest.mark.parametrize("space", ["glob", "sparse", "frame"])
@pytest.mark.parametrize("block", sorted(WRITTEN))
def test_weights_outside_the_subspace_that_were_written_to_are_named(block: str, space: str) -> None:
    """There is no copy of them; those of the subspace are restored, and all are Parameters as before."""
    model = build()
    before, space_of = Before(model), SPACES[space]
    with (
        pytest.raises(ModelError, match=r"not what they were before the block.*model\.layers|embed_tokens") as told,
        displaced(model, gaussian(space_of(model), 0), 0.1),
    ):
        WRITTEN[block](model)
    now = dict(model.named_parameters())
    assert all(now[name] is p for name, p in before.objects.items())
    assert {name: p.dtype for name, p in now.items()} == {name: p.dtype for name, p in before.values.items()}
    index = torch.arange(0, 1536, 7) if space == "sparse" else torch.arange(1536)
    assert torch.equal(now[UP].view(-1)[index], before.values[UP].view(-1)[index])
    assert space == "sparse" or UP not in str(told.value)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("block", sorted(ADDING))
def test_what_the_block_added_is_taken_out_and_named(block: str, raises: bool) -> None:
    model, (change, names) = build(), ADDING[block]
    before, flags = Before(model), [p.requires_grad for p in model.parameters()]

    def inside() -> None:
        with displaced(model, gaussian(Subspace.all(model), 0), 0.1):
            change(model)
            if raises:
                raise KeyError("the block's own")

    if raises:
        with pytest.raises(KeyError, match="the block's own") as own:
            inside()
        assert any(re.search(names, note) for note in own.value.__notes__)
    else:
        with pytest.raises(ModelError, match=names):
            inside()
    before.check()
    assert flags == [p.requires_grad for p in model.parameters()]


@pytest.mark.parametrize("block", ["double", "assign", "trained", "removed"])
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit])
def test_the_blocks_own_exception_comes_out(block: str, error: type[BaseException]) -> None:
    model = build()
    before = Before(model)

    def inside() -> None:
        with displaced(model, gaussian(Subspace.all(model), 0), 0.1):
            EVERY[block](model)
            raise error("own")

    with pytest.raises(error, match="own") as told:
        inside()
    assert not hasattr(told.value, "__notes__")
    before.check()


def test_an_optimizer_goes_on_with_the_restored_weights() -> None:
    """It holds the Parameters themselves."""
    model = build()
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.5, momentum=0.9) for m in (model, twin)]
    ids = torch.tensor([[1, 5, 9, 30]])
    for turn in range(2):
        for one, optimizer in zip((model, twin), optimizers, strict=True):
            one(input_ids=ids, labels=ids).loss.backward()
            if one is model and turn:
                with displaced(model, gaussian(Subspace.all(model), 0), 0.1):
                    model.half()
                with displaced(model, gaussian(Subspace.all(model), 0), 0.1):
                    model.load_state_dict(other_weights(model), assign=True)
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_gradients_follow_the_weights() -> None:
    """One that was cast along has its own bits again, also those that the cast lost; a new one is kept."""
    model = build()
    weight = up(model).weight
    weight.grad = torch.full_like(weight, 1e-9)
    old, held = weight.grad.clone(), weight.grad
    with displaced(model, gaussian(Subspace.all(model), 0), 0.1):
        model.half()
        assert not weight.grad.any()
    assert weight.grad is held
    assert torch.equal(weight.grad, old)
    with displaced(model, gaussian(Subspace.all(model), 0), 0.1):
        model.double()
        weight.grad = None
        weight.grad = torch.full_like(weight, 0.25)
    assert torch.equal(weight.grad, torch.full_like(weight, 0.25).float())


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x))


@pytest.mark.parametrize("block", ["train", "double", "assign", "load"])
def test_saved_buffers_are_put_back(block: str) -> None:
    model = Normed()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with displaced(model, gaussian(Subspace.all(model), 0), 0.1):
        if block == "train":
            model.train()(torch.randn(8, 4))
        elif block == "double":
            model.double()
        else:
            model.load_state_dict(other_weights(model), assign=block == "assign")
    after = model.state_dict()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )


@pytest.mark.parametrize("memory", ["copy", "low"])
def test_between_two_points_of_a_mover(memory: Any) -> None:
    """The next point is the one that was asked for, in the model that was given."""
    model = build()
    before, subspace = Before(model), Subspace.all(model)
    with Mover(model, subspace, memory=memory) as mover:
        mover.place((gaussian(subspace, 1), 0.1))
        wanted = {name: p.detach().clone() for name, p in model.named_parameters()}
        for block in ("double", "assign", "removed", "to meta and back", "untied"):
            mover.place((gaussian(subspace, 0), 0.2))
            REPLACED[block](model)
            mover.place((gaussian(subspace, 1), 0.1))
            assert all(torch.equal(wanted[name], p) for name, p in model.named_parameters()), block
        model.half()
        mover.restore()
        before.check()
        mover.place((gaussian(subspace, 1), 0.1))
        lora(model)
        with pytest.raises(ModelError, match="lora_A"):
            mover.place((gaussian(subspace, 0), 0.1))
    before.check()


@pytest.mark.parametrize("block", ["double", "assign", "new data"])
def test_a_mover_whose_weights_were_replaced_refuses(block: str) -> None:
    """It would write to memory that the model no longer has, and measure a model that does not move."""
    model = build()
    with Mover(model, Subspace.all(model)) as mover:
        REPLACED[block](model)
        with pytest.raises(ModelError, match=r"embed_tokens.weight' was replaced since the mover was made"):
            mover.place((gaussian(mover.subspace, 0), 0.1))
        assert not mover.displaced


def step(weight: torch.Tensor) -> None:
    weight[0] += 0.5


def past_the_version_counter(weight: torch.Tensor) -> None:
    weight.data[0] += 0.5


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("memory", ["copy", "low"])
@pytest.mark.parametrize("write", [step, past_the_version_counter])
def test_a_mover_whose_weights_were_trained_refuses(write: Any, memory: Any, space: str) -> None:
    """One mover over a whole training would take every step back at its next point."""
    model = build()
    subspace = SPACES[space](model)
    with Mover(model, subspace, memory=memory) as mover:
        with mover.at((gaussian(subspace, 0), 0.1)):
            pass
        with torch.no_grad():
            write(up(model).weight)
        trained = Before(model)
        with pytest.raises(ModelError, match=r"written to since the mover was made.*up_proj"):
            mover.place((gaussian(subspace, 0), 0.1))
    trained.check()
    with displaced(model, gaussian(subspace, 0), 0.1):
        pass
    trained.check()


def test_weights_that_are_no_numbers_are_what_they_were() -> None:
    model = build()
    with torch.no_grad():
        up(model).weight[0] = float("nan")
    before = Before(model)
    with Mover(model, Subspace.all(model)) as mover:
        for seed in range(2):
            with mover.at((gaussian(mover.subspace, seed), 0.1)):
                pass
    assert up(model).weight[0].isnan().all()
    assert torch.equal(up(model).weight[1:], before.values[UP][1:])


def test_weights_outside_the_subspace_may_be_trained_between_two_points() -> None:
    model = build()
    with Mover(model, Subspace.glob(model, UP)) as mover:
        for seed in range(2):
            with torch.no_grad():
                model.lm_head.weight.add_(0.5)
            before = Before(model)
            with mover.at((gaussian(mover.subspace, seed), 0.1)):
                pass
            before.check()


@pytest.mark.parametrize("time_kept", [False, True])
def test_files_that_are_written_to_meanwhile(tmp_path: Path, time_kept: bool) -> None:
    """Clean weights are read from them: afterwards they may hold the displaced ones."""
    model = build()
    model.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    before = Before(model)
    with displaced(model, gaussian(Subspace.all(model), 0), 0.1, memory="mapped", files=[file]):
        model.save_pretrained(tmp_path)  # transformers replaces the file: the old one is still mapped
    before.check()
    model.save_pretrained(tmp_path)
    content = file.read_bytes()
    os.utime(file, (0, 0))
    mover = Mover(model, Subspace.all(model), memory="mapped", files=[file])
    mover.place((gaussian(mover.subspace, 0), 0.1))
    with file.open("r+b") as stream:
        stream.seek(len(content) - 4)
        stream.write(b"\x00\x00\x80\x3f")
    if time_kept:
        os.utime(file, (0, 0))
    with pytest.raises(ModelError, match="written to; make a new mover"):
        mover.place((gaussian(mover.subspace, 1), 0.1))
    with pytest.raises(ModelError, match=r"was written to while the model was displaced.*embed_tokens"):
        mover.close()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_movers_end_at_home_in_whatever_order(order: tuple[int, int]) -> None:
    """The clean weights of the second are the displaced ones of the first."""
    model = build()
    before, space = Before(model), Subspace.all(model)
    movers = [Mover(model, space)]
    movers[0].place((gaussian(space, 0), 0.1))
    movers.append(Mover(model, space))
    movers[1].place((gaussian(space, 1), 0.1))
    with pytest.raises(ModelError, match="another mover has displaced the model since"):
        movers[0].place((gaussian(space, 2), 0.1))
    for index in order:
        movers[index].restore()
    before.check()
    with pytest.raises(ModelError, match="make a new mover"):
        movers[1].place((gaussian(space, 1), 0.1))
    movers[0].place((gaussian(space, 1), 0.1))
    for mover in movers:
        mover.close()
    before.check()


def test_a_mover_made_at_a_displaced_point_is_of_use_there_only() -> None:
    model = build()
    space = Subspace.all(model)
    with Mover(model, space) as first:
        first.place((gaussian(space, 0), 0.1))
        second = Mover(model, space)
        first.place((gaussian(space, 0), 0.2))
        with pytest.raises(ModelError, match="make a new mover"):
            second.place((gaussian(space, 1), 0.1))
