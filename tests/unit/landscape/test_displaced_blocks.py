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
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn.utils import parametrize, prune

from catchment.errors import CatchmentError, ModelError
from catchment.landscape import Mover, Subspace, displaced, gaussian
from tests.tiny import tiny_llama

UP = "model.layers.0.mlp.up_proj.weight"
Block = Callable[[Any], object]


def up(model: Any) -> Any:
    return model.model.layers[0].mlp.up_proj


def everywhere(change: Callable[[nn.Parameter], object]) -> Block:
    def block(model: Any) -> None:
        with torch.no_grad():
            for parameter in list(model.parameters()):
                change(parameter)

    return block


def other_weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in model.state_dict().items()}


def meta_and_back(model: Any) -> None:
    model.to("meta")
    model.to_empty(device="cpu")


def new_parameter(model: Any) -> None:
    up(model).weight = nn.Parameter(torch.zeros_like(up(model).weight))


def removed(model: Any) -> None:
    del up(model).weight


def module_removed(model: Any) -> None:
    del model.model.layers[0].mlp.up_proj


def module_ablated(model: Any) -> None:
    model.model.layers[0].mlp = nn.Identity()


class Wrapped(nn.Module):
    """As ``torch.compile`` wraps a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


def wrapped(model: Any) -> None:
    model.model.layers[0] = Wrapped(model.model.layers[0])


class Half(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def parametrized(model: Any) -> None:
    parametrize.register_parametrization(up(model), "weight", Half())
    model(input_ids=torch.tensor([[1, 2]]))


def pruned(model: Any) -> None:
    prune.l1_unstructured(up(model), "weight", 0.5)


def tied(model: Any) -> None:
    model.lm_head.weight = model.model.embed_tokens.weight


def untied(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone() + 1)


def trained(model: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with torch.enable_grad():
        model(input_ids=torch.tensor([[1, 5, 9]]), labels=torch.tensor([[1, 5, 9]])).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def shared_memory(model: Any) -> None:
    with torch.no_grad():
        up(model).weight.share_memory_().add_(1)


def views_of_one(model: Any) -> None:
    parameters = list(model.parameters())
    big = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype)
    for parameter, piece in zip(parameters, big.split([p.numel() for p in parameters]), strict=True):
        parameter.data = piece.view(parameter.shape)


def memory_given_up(model: Any) -> None:
    for parameter in model.parameters():
        parameter.untyped_storage().resize_(0)


def swapped(model: Any) -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to("meta")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        up(model).weight.data = up(model).weight * 2
        model.lm_head.weight = nn.Parameter(model.lm_head.weight * 2, requires_grad=False)


def copied(model: Any) -> None:
    copy.deepcopy(model).double()


def switched(model: Any) -> None:
    model.train()
    model.requires_grad_(False)
    model.requires_grad_(True)
    up(model).weight.grad = torch.ones_like(up(model).weight)


def nested(model: Any) -> None:
    with displaced(model, gaussian(Subspace.all(model), 9), 0.3):
        model.double()
        with displaced(model, gaussian(Subspace.glob(model, "*.up_proj.weight"), 8), 0.3):
            model.load_state_dict(other_weights(model), assign=True)
        assert up(model).weight.dtype == torch.float64
    model.half()


ONLY_THE_WEIGHT: dict[str, Block] = {  # touch nothing but what the subspace of one tensor holds
    "new Parameter": new_parameter,
    "removed": removed,
    "module removed": module_removed,
    "module ablated": module_ablated,
    "parametrized": parametrized,
    "pruned": pruned,
    "share_memory": shared_memory,
    "data of another dtype": lambda model: setattr(up(model).weight, "data", up(model).weight.data.double()),
    "deepcopy": copied,
    "switched": switched,
}
REPLACED: dict[str, Block] = {  # whatever the subspace is, no weight's own memory is written to
    **ONLY_THE_WEIGHT,
    "double": lambda model: model.double(),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "float": lambda model: model.float(),
    "to dtype": lambda model: model.to(torch.float64),
    "to meta": lambda model: model.to("meta"),
    "to meta and back": meta_and_back,
    "assign": lambda model: model.load_state_dict(other_weights(model), assign=True),
    "new data": everywhere(lambda p: setattr(p, "data", torch.zeros_like(p))),
    "views of one tensor": views_of_one,
    "wrapped": wrapped,
    "tied": tied,
    "untied": untied,
    "swapped": swapped,
    "inference mode": in_inference_mode,
    "nested": nested,
    "cast, then trained": lambda model: (model.double(), trained(model)),
}
WRITTEN: dict[str, Block] = {  # weights are written to where they lie
    "load_state_dict": lambda model: model.load_state_dict(other_weights(model)),
    "trained": trained,
    "in place": everywhere(lambda p: p.mul_(2)),
    "through data": everywhere(lambda p: p.data.add_(1)),
    "signs turned": everywhere(lambda p: p.data.neg_()),
    "order turned": everywhere(lambda p: p.data.copy_(p.data.flip(0).roll(1, -1))),
    "written, then cast": lambda model: (trained(model), model.double()),
    "numpy": everywhere(lambda p: p.data.view(-1).view(torch.uint8).numpy().__setitem__(slice(None), 7)),
}
EVERY = {**REPLACED, **WRITTEN, "memory given up": memory_given_up}
SPACES: dict[str, Callable[[Any], Subspace]] = {
    "all": Subspace.all,
    "glob": lambda model: Subspace.glob(model, UP),
    "sparse": lambda model: Subspace.sparse(model, {UP: torch.arange(0, 1536, 7)}),
    "frame": lambda model: Subspace.frame(model, 2, patterns=[UP]),
}


class Before:
    """Everything of a model that is compared, cloned."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.objects = dict(model.named_parameters(remove_duplicate=False))
        self.values = {name: p.detach().clone() for name, p in self.objects.items()}
        self.buffers = {name: (b.dtype, b.device, b.clone()) for name, b in model.named_buffers()}
        self.memory = {name: p.data_ptr() for name, p in self.objects.items()}
        self.logits = model(input_ids=torch.tensor([[1, 5, 9]])).logits.detach()

    def check(self, *, outputs: bool = True) -> None:
        now = dict(self.model.named_parameters(remove_duplicate=False))
        assert list(now) == list(self.values)
        for name, value in self.values.items():
            assert now[name] is self.objects[name], name
            assert (now[name].dtype, now[name].device) == (value.dtype, value.device), name
            assert torch.equal(now[name].detach().view(torch.uint8), value.view(torch.uint8)), name
            assert now[name].grad is None or now[name].grad.dtype == value.dtype, name
        assert {n: (b.dtype, b.device) for n, b in self.model.named_buffers()} == {
            n: b[:2] for n, b in self.buffers.items()
        }
        assert all(torch.equal(b, self.buffers[n][2]) for n, b in self.model.named_buffers())
        if outputs:
            self.model.eval()
            assert torch.equal(self.model(input_ids=torch.tensor([[1, 5, 9]])).logits, self.logits)


def build(tie: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    return tiny_llama(tie_word_embeddings=tie).to(dtype).eval()


@pytest.mark.parametrize("memory", ["mapped", "copy", "low"])
@pytest.mark.parametrize("block", sorted(EVERY))
@pytest.mark.parametrize(("tie", "dtype"), [(False, torch.float32), (True, torch.bfloat16)], ids=["untied", "tied-bf16"])
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
    harmless = block != "share_memory" or space != "sparse"
    try:
        with displaced(model, gaussian(SPACES[space](model), 0), 0.1):
            REPLACED[block](model)
    except CatchmentError as error:
        assert not harmless, error
        assert UP in str(error)
    else:
        assert harmless
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


def lora(model: Any) -> None:
    inject_adapter_in_model(LoraConfig(target_modules=["up_proj"], r=2), model)


def normed(model: Any) -> None:
    nn.utils.weight_norm(up(model), "weight")


def module_exchanged(model: Any) -> None:
    model.model.layers[0].mlp.up_proj = nn.Linear(32, 48, bias=False)


def bias_added(model: Any) -> None:
    up(model).bias = nn.Parameter(torch.ones(48))


def head_added(model: Any) -> None:
    model.score = nn.Linear(32, 2)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize(
    ("block", "names"),
    [
        (lora, r"layers\.0\.mlp\.up_proj\.lora_A"),
        (normed, r"layers\.0\.mlp\.up_proj\.weight_g"),
        (module_exchanged, r"layers\.0\.mlp\.up_proj\.weight"),
        (bias_added, r"layers\.0\.mlp\.up_proj\.bias"),
        (head_added, r"score\.weight"),
        (lambda model: model.resize_token_embeddings(400, mean_resizing=False), r"embed_tokens\.weight"),
        (lambda model: setattr(up(model).weight, "data", torch.zeros(3)), r"up_proj\.weight"),
    ],
    ids=["lora", "weight_norm", "exchanged", "bias", "head", "resized", "shape"],
)
def test_what_the_block_added_is_taken_out_and_named(block: Block, names: str, raises: bool) -> None:
    model = build()
    before, flags = Before(model), [p.requires_grad for p in model.parameters()]

    def inside() -> None:
        with displaced(model, gaussian(Subspace.all(model), 0), 0.1):
            block(model)
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
    assert all(torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items())


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


def test_files_that_are_written_to_meanwhile(tmp_path: Path) -> None:
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
    with (
        pytest.raises(ModelError, match=r"was written to while the model was displaced.*embed_tokens"),
        displaced(model, gaussian(Subspace.all(model), 0), 0.1, memory="mapped", files=[file]),
    ):
        with file.open("r+b") as stream:
            stream.seek(len(content) - 4)
            stream.write(b"\x00\x00\x80\x3f")


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
