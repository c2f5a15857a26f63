"""Tensors that a checkpoint holds and the model made of it does not use. Where it is known why they are not needed
they are told; all others are refused, because what is measured would not be the model that was trained."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catchment.errors import ModelError
from catchment.models.checkpoints import Shapes, shapes, stored
from catchment.models.families import current_name, family_of, locate

_HEADS = (
    "lm_head", "embed_out", "score", "classifier", "pre_classifier", "cls_classifier", "distillation_classifier",
    "classification_head", "qa_outputs", "multiple_choice_head", "pooler", "cls", "cls.predictions",
    "cls.seq_relationship", "vocab_transform", "vocab_layer_norm", "vocab_projector", "predictions", "sop_classifier",
    "lm_predictions", "mask_predictions", "generator_predictions", "generator_lm_head", "discriminator_predictions",
    "decoder", "embeddings.mask_token",
)  # fmt: skip
_VALUE_HEADS = ("v_head", "value_head", "critic_head", "reward_head")
_TOWERS = (
    "visual", "vision_tower", "vision_model", "vision_encoder", "vision_embed_tokens", "multi_modal_projector",
    "mm_projector", "image_newline", "audio_tower", "audio_encoder", "embed_vision", "embed_audio", "visual_projection",
    "text_projection", "logit_scale",
)  # fmt: skip
_ROTARY = ("inv_freq", "original_inv_freq", "cos_cached", "sin_cached")
_COUNTERS = ("position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked", "version")
_RUNTIME_SCALES = ("k_scale", "v_scale", "q_scale", "prob_scale", "input_scale", "output_scale")
_PACKING = ("weight_scale", "weight_scale_inv", "SCB", "qweight", "qzeros", "scales", "g_idx", "absmax", "quant_map")
# Parts that only those layers have which predict several tokens at once; some stand behind the ordinary layers.
_MULTI_TOKEN = re.compile(r"^(.*\.\d+\.)(?:eh_proj|enorm|hnorm|shared_head)\.")
# What transformers drops of every model, beside the patterns that an architecture lists.
_ALWAYS_IGNORED = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")


@dataclass(frozen=True)
class Unused:
    """Tensors that are not used although the files hold them, and the sentences that say so."""

    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Place:
    """Where a tensor of a file would stand in a model."""

    name: str
    shape: tuple[int, ...] | None
    model: Any
    ignored: bool
    quantised: bool
    multi_token: tuple[str, ...]

    @property
    def beyond(self) -> bool:
        """Whether it is of a layer that the config does not count."""
        block = locate(self.name, family_of(self.model))[0]
        layers = getattr(_text_config(self.model), "num_hidden_layers", None)
        return block is not None and layers is not None and block >= layers

    @property
    def parts(self) -> list[str]:
        return _plain(self.name, self.model).split(".")

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    def under(self, modules: Iterable[str]) -> bool:
        """Whether it belongs to one of these modules and the model has no such module."""
        names = [".".join(self.parts[:n]) for n in (1, 2)]
        return any(name in modules and not _has(self.model, name) for name in names)


def check_unused(
    spec: str,
    model: nn.Module,
    files: list[Path],
    unexpected: Iterable[str],
    missing: Iterable[str],
    quantised: bool = False,
) -> Unused:
    """Find out why tensors of weight files have no place in the model that was made of them.

    Args:
        spec: The model's name, for messages.
        model: The transformers model, without an adapter.
        files: The files that it was read from.
        unexpected, missing: What transformers says of the names.
        quantised: The config in the folder says how weights are packed; that of the model does no longer, where they
            were unpacked while they were read.

    Cost: the files' headers; values only of tensors that claim one place, of rotary frequencies and of masks.

    Raises:
        ModelError: A tensor for which no harmless reason is known; the first is named, with the likely cause.
    """
    sizes = shapes(files)
    _refuse_two_for_one(spec, model, files, sizes)
    ignored = _ignored(model, sizes)
    names = sorted({*unexpected, *ignored}, key=natural)
    several = tuple({match[1] for match in map(_MULTI_TOKEN.match, sizes) if match})
    places = [_Place(name, sizes.get(name), model, name in ignored, quantised, several) for name in names]
    reasons = {place.name: _reason(place) for place in places}
    foreign = [name for name in names if reasons[name] is None]
    if foreign:
        raise ModelError(_refusal(spec, model, foreign, set(missing), quantised))
    _refuse_other_rotations(spec, model, files, [place for place in places if place.leaf == "inv_freq"])
    _refuse_other_masks(spec, files, [place for place in places if place.leaf == "bias" and _is_mask(place)])
    return Unused(tuple(names), _notes({name: reason for name, reason in reasons.items() if reason}))


def refuse_shapes(spec: str, mismatched: Iterable[tuple[str, Any, Any]]) -> None:
    """Refuse tensors that transformers would replace by random ones, because the config gives them another shape.

    Raises:
        ModelError: There are such tensors; the first is named.
    """
    others = sorted(mismatched, key=lambda one: natural(one[0]))
    if others:
        name, held, expected = others[0]
        raise ModelError(
            f"cannot load {spec!r}: {len(others)} tensors have another shape in its files than config.json gives "
            f"(first: {name!r}, {tuple(held)} and {tuple(expected)}); take the config that belongs to the files."
        )


def natural(name: str) -> list[tuple[int, str]]:
    """Key for sorting names with numbers in them: layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _notes(reasons: dict[str, str]) -> tuple[str, ...]:
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name)
    return tuple(f"{_count(len(names))} not used (first: {names[0]!r}): {reason}" for reason, names in groups.items())


def _count(n: int) -> str:
    return "1 tensor of its files is" if n == 1 else f"{n} tensors of its files are"


def _plain(name: str, model: Any) -> str:
    """A name without the prefix that the model with a head puts before the model without."""
    return name.removeprefix(f"{getattr(model, 'base_model_prefix', '') or ''}.")


def _has(model: Any, module: str) -> bool:
    names = {module, f"{getattr(model, 'base_model_prefix', '')}.{module}"}
    return any(name in names for name, _ in model.named_modules())


def _ignored(model: Any, sizes: Shapes) -> set[str]:
    """Names that transformers does not report, because the architecture lists them as not needed."""
    patterns = [*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), *_ALWAYS_IGNORED]
    listed = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    own = {_plain(name, model) for name in model.state_dict()}
    return {name for name in sizes if listed.search(name) and _plain(current_name(name), model) not in own}


def _reason(place: _Place) -> str | None:
    return next((reason for applies, reason in _HARMLESS if applies(place)), None)


def _is_mask(place: _Place) -> bool:
    """The causal mask of old GPT-2, GPT-J and GPT-NeoX files, ``(1, 1, n, n)``, and what it fills in."""
    if "attn" not in place.name and "attention" not in place.name:
        return False
    if place.leaf == "masked_bias":
        return True
    if place.shape is None:
        return False
    square = len(place.shape) >= 2 and place.shape[-1] == place.shape[-2]
    return place.leaf in ("bias", "causal_mask", "mask") and square and all(n == 1 for n in place.shape[:-2])


def _is_multi_token(place: _Place) -> bool:
    if any(part.startswith("mtp") for part in place.parts[:2]):
        return True
    return place.beyond and place.name.startswith(place.multi_token)


def _listed_by_transformers(place: _Place) -> bool:
    """Patterns like ``attn.bias`` are meant for masks and match trained biases (``attn.c_attn.bias``) too."""
    one_row = place.leaf == "bias" and place.shape is not None and len(place.shape) == 1
    return place.ignored and not one_row and not place.beyond


_HARMLESS: tuple[tuple[Callable[[_Place], bool], str], ...] = (
    (lambda place: place.leaf in _ROTARY, "rotary frequencies, which are computed from the config"),
    (lambda place: place.leaf in _COUNTERS, "position numbers and the like, which are computed"),
    (_is_mask, "attention masks, which are computed"),
    (_is_multi_token, "layers that predict several tokens at once, which are not run"),
    (lambda place: place.under(_VALUE_HEADS), "a value head of reinforcement learning, which is not run"),
    (lambda place: place.under(_HEADS), "a head for another purpose than the model was loaded for"),
    (lambda place: place.under(_TOWERS), "a part for images or sound, which the language model does without"),
    (
        lambda place: place.leaf in _RUNTIME_SCALES and place.quantised,
        "scales for quantised activations, which are not quantised here",
    ),
    (
        lambda place: not {"vera_A", "vera_B"}.isdisjoint(place.parts),
        "random projections of a VeRA adapter that was merged",
    ),
    (_listed_by_transformers, "transformers lists them as not needed by this architecture"),
)


def _text_config(model: Any) -> Any:
    return model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config


def _refusal(spec: str, model: Any, foreign: list[str], missing: set[str], quantised: bool) -> str:
    lacks = f" {len(missing)} of its weights are not in the files (first: {min(missing)!r})." if missing else ""
    verb = "tensor that has" if len(foreign) == 1 else "tensors that have"
    return (
        f"{spec!r}: its files hold {len(foreign)} {verb} no place in {type(model).__name__} (first: {foreign[0]!r}) "
        f"and would be dropped.{lacks} {_cause(model, foreign, missing, quantised)}"
    )


def _cause(model: Any, foreign: list[str], missing: set[str], quantised: bool) -> str:
    """The likely cause and what to do about it, from the first name."""
    first = foreign[0]
    prefix = _wrapper(first, missing)
    if prefix:
        return f"The names carry the prefix {prefix!r} of a wrapper: save the unwrapped model, or remove the prefix."
    if "lora_" in first or ".base_layer." in first:
        return "They are an adapter's, saved with the base: merge the adapter, or save it by itself."
    if first.rpartition(".")[2] in _PACKING and not quantised:
        return "The weights are quantised, but config.json has no quantization_config: add it, or download it again."
    layers = getattr(_text_config(model), "num_hidden_layers", None)
    block = locate(first, family_of(model))[0]
    if block is not None and layers is not None and block >= layers:
        return f"config.json says num_hidden_layers: {layers}, but the files hold layer {block}: set the number."
    if first.endswith("bias"):
        flags = [f"{key}: false" for key, value in _text_config(model).to_dict().items() if _is_off(key, value)]
        says = f"config.json says {', '.join(flags)}" if flags else "the architecture in config.json has no such bias"
        return f"{says}, but the files hold trained biases: correct config.json, or save the model again."
    return "config.json describes another model than the files hold: take the config that belongs to them."


def _is_off(key: str, value: object) -> bool:
    return key.endswith("bias") and value is False


def _wrapper(name: str, missing: set[str]) -> str:
    parts = name.split(".")
    return next((".".join(parts[:n]) + "." for n in range(1, len(parts)) if ".".join(parts[n:]) in missing), "")


def _refuse_two_for_one(spec: str, model: Any, files: list[Path], sizes: Shapes) -> None:
    """Two names for one weight (with and without the prefix, an old and a new one): the last would win."""
    own, owners = set(model.state_dict()), dict[str, str]()
    for name in sizes:
        first = owners.setdefault(_plain(current_name(name), model), name)
        if first == name or (first in own and name in own):
            continue
        one, two = stored(files, first), stored(files, name)
        if one is None or two is None or not torch.equal(one, two):
            raise ModelError(
                f"{spec!r}: its files hold different values for one weight under two names, {first!r} and {name!r}; "
                "remove the one that does not belong to the model."
            )


def _refuse_other_rotations(spec: str, model: Any, files: list[Path], places: list[_Place]) -> None:
    """Frequencies in an old file must be those that plain rotary embeddings have by the config."""
    rope = getattr(_text_config(model), "rope_parameters", None) or {}
    if rope.get("rope_type") != "default":
        return
    buffers = [buffer for name, buffer in model.named_buffers() if name.endswith("rotary_emb.inv_freq")]
    for place in places:
        saved = stored(files, place.name)
        if saved is None or len(buffers) != 1 or buffers[0].is_meta or _close(saved, buffers[0]):
            continue
        raise ModelError(
            f"{spec!r}: {place.name!r} in its files differs from the rotary frequencies that config.json gives "
            f"(rope_theta: {rope.get('rope_theta')}); take the config that belongs to the files."
        )


def _refuse_other_masks(spec: str, files: list[Path], places: list[_Place]) -> None:
    """What looks like a causal mask must be one: zeros and ones, and no ones above the diagonal."""
    for place in places:
        saved = stored(files, place.name)
        if saved is None:
            continue
        mask = saved.flatten(0, -2).float()
        if not bool(((mask == 0) | (mask == 1)).all()) or bool(mask.triu(1).any()):
            raise ModelError(
                f"{spec!r}: {place.name!r} in its files has the name and the shape of a causal mask but not its zeros "
                "and ones, and would be dropped; take the config that belongs to the files."
            )


def _close(saved: Tensor, computed: Tensor) -> bool:
    """Equal to within half precision, in which old files may hold the frequencies."""
    same = saved.shape == computed.shape
    return same and torch.allclose(saved.double(), computed.detach().cpu().double(), rtol=1e-2, atol=1e-6)


def untied(model: Any) -> tuple[str, ...]:
    """Say which tied weights have values of their own in the files. transformers then leaves them apart, but ties them
    whenever it is asked to again, as accelerate does; the config in memory is corrected so that it does not."""
    asked = getattr(model, "get_expanded_tied_weights_keys", None)
    pairs = asked(all_submodels=True) if asked is not None else {}
    apart = [(target, source) for target, source in pairs.items() if _differ(model, target, source)]
    if apart and len(apart) == len(pairs):
        for config in (model.config, _text_config(model)):
            config.tie_word_embeddings = False
    return tuple(
        f"config.json ties {target!r} to {source!r}, but the files hold other values for it, and those are used"
        for target, source in apart
    )


def _differ(model: Any, target: str, source: str) -> bool:
    one, two = model.get_parameter(target), model.get_parameter(source)
    return one is not two and not one.is_meta and not two.is_meta and not torch.equal(one.cpu(), two.cpu())
