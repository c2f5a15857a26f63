"""What a block of code may do to a model, and a comparison of the model before and after."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn.utils import parametrize, prune

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


ADDING: dict[str, tuple[Block, str]] = {  # weights that were not there, or of another shape; and a name as a pattern
    "lora": (lora, r"layers\.0\.mlp\.up_proj\.lora_A"),
    "weight_norm": (normed, r"layers\.0\.mlp\.up_proj\.weight_g"),
    "exchanged": (module_exchanged, r"layers\.0\.mlp\.up_proj\.weight"),
    "bias": (bias_added, r"layers\.0\.mlp\.up_proj\.bias"),
    "head": (head_added, r"score\.weight"),
    "resized": (lambda model: model.resize_token_embeddings(400, mean_resizing=False), r"embed_tokens\.weight"),
    "shape": (lambda model: setattr(up(model).weight, "data", torch.zeros(3)), r"up_proj\.weight"),
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
