"""What depends on the version of transformers or PEFT, all of it here.

- *The cache's name*: ``past_key_values`` until transformers 5.23, ``cache`` from 5.24 (Mamba: ``cache_params``); in the
  forward pass and in its output. Probe: :func:`calls_of`.
- *Logits of some positions only*: ``num_logits_to_keep``, a number, until transformers 4.49; ``logits_to_keep``, a
  number or positions, since; models with code of their own have either or none. Probe: :func:`calls_of`.
- *The head*: most models make the logits of each position by the module that ``get_output_embeddings`` names, called
  once; some multiply by its weights in another way. Probe: :func:`calls_of`.
- *Which arguments a forward pass takes*: ``position_ids`` and ``use_cache`` are missing in some models, and others take
  every keyword and ignore it. Probe: :func:`calls_of`.
- *GGUF files*: some releases of transformers keep the weights packed unless ``GgufConfig`` says otherwise.
  Probe: whether there is a ``GgufConfig``. Until 5.23 tensors that find no place are passed over without a report;
  :func:`names_in_gguf` lists those that do.
- *PEFT's old names*: PEFT until 0.21 reads ``is_gradient_checkpointing``, which transformers 5 has renamed.
  :func:`quiet_peft` keeps the warning off the screen; without the warning it does nothing.
- *The Trainer's own methods*: ``MethodTrainer`` replaces some that are private. Probe: :func:`check_trainer`.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catchment.errors import ModelError
from catchment.models.traces import without_trace

_CACHES = ("cache", "past_key_values", "cache_params")
_SOME_LOGITS = ("logits_to_keep", "num_logits_to_keep")
TRAINER_METHODS = (
    "_run_epoch", "_clip_grad_norm", "_get_grad_norm", "_save", "_load_from_checkpoint", "_load_best_model",
    "_load_optimizer_and_scheduler", "_load_scaler", "_load_rng_state", "get_optimizer_cls_and_kwargs",
)  # fmt: skip
"""Methods of ``transformers.Trainer`` that it calls itself and that ours replace."""
_SHARED, _OWN = 4, 2
"""Tokens of a trial that come from the cache, and tokens after them."""
_REFUSALS = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError, NotImplementedError)


@dataclass(frozen=True)
class Calls:
    """How a causal language model is called, as its answers to a few tokens show.

    Attributes:
        cache: Keyword that takes the keys and values of earlier tokens; ``None`` where none of them works.
        returned: Field of the output that holds them.
        some_logits: Keyword that takes how many of the last positions get logits; ``None``: all of them always do.
        columns: That keyword takes a tensor of positions as well.
        head: Logits of chosen positions can be had by :func:`picking`.
        position_ids: The model takes this argument (whether it heeds it, the comparison of the two paths shows).
        use_cache: The model takes this argument.
        no_cache: Why ``cache`` is ``None``.
    """

    cache: str | None = None
    returned: str = ""
    some_logits: str | None = None
    columns: bool = False
    head: bool = False
    position_ids: bool = False
    use_cache: bool = False
    no_cache: str = ""


_TRIED: weakref.WeakKeyDictionary[nn.Module, tuple[object, Calls]] = weakref.WeakKeyDictionary()


def calls_of(model: nn.Module) -> Calls:
    """Try how this model is called. A keyword counts when logits made with it equal those of the whole text, and a
    cache when it can be copied for several rows, cut down to one of them and be added to without a change to the first.

    Kept for each model object as long as its forward function and attention stay: one class can stand for several
    architectures (a wrapper), and adapters or hooks change what a model takes. Leaves no trace. Cost: 7 forward passes
    over at most 6 tokens, once for each object; some more where the cache has another name than any known.
    """
    inner = getattr(model, "get_base_model", lambda: model)()
    config = getattr(inner, "config", None)
    state = id(getattr(inner.forward, "__func__", inner.forward)), getattr(config, "_attn_implementation", None)
    tried = _TRIED.get(model)
    if tried is not None and tried[0] == state:
        return tried[1]
    with without_trace(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a candidate may be an old name
        trial = _Trial(model, inspect.signature(inner.forward).parameters)
        calls = trial.calls()
    if not trial.broken:  # weights that are not finite say nothing about the model
        _TRIED[model] = state, calls
    return calls


def expanded(cache: Any, rows: int) -> Any:
    """A cache for ``rows`` rows that shares the storage of a batch-1 cache; appending to it copies, never writes."""
    new = copy.copy(cache)
    new.layers = []
    for layer in cache.layers:
        twin = copy.copy(layer)
        twin.keys = layer.keys.expand(rows, -1, -1, -1)
        twin.values = layer.values.expand(rows, -1, -1, -1)
        new.layers.append(twin)
    return new


@contextmanager
def picking(model: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Meanwhile the logits of a model are those of n positions (row, column), as [1, n, V]: its head gets no others.

    Only where :attr:`Calls.head` says so. Rows and columns are of what the head would be given, from either end.
    """
    inner: Any = getattr(model, "get_base_model", lambda: model)()
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if not isinstance(head, nn.Module):
        yield
        return

    def pick(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = inputs
        return hidden[rows.to(hidden.device), columns.to(hidden.device)][None], *rest

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


class _Trial:
    """A random text, its logits in one plain pass, and the same logits asked for in other ways."""

    def __init__(self, model: Any, parameters: Mapping[str, inspect.Parameter]) -> None:
        self.model, self.parameters = model, parameters
        weight = model.get_input_embeddings().weight
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(weight.shape[0], (1, _SHARED + _OWN), generator=generator).to(weight.device)
        self.failure = ""
        self.logits = self._plain()
        self.broken = bool(self.logits.isnan().any())

    def _plain(self) -> Tensor:
        """Of the whole text without any keyword; NaN where even that fails, as on the plain path it then will."""
        try:
            return self.model(input_ids=self.ids).logits
        except torch.OutOfMemoryError:
            raise
        except _REFUSALS as error:
            self.failure = f"{self.ids.shape[1]} tokens without a mask fail ({type(error).__name__}: {error})"[:200]
            return self.ids.new_full((1,), math.nan, dtype=torch.float32)

    def calls(self) -> Calls:
        if self.failure:
            return Calls(no_cache=self.failure)
        self.taken, first = self._arguments()
        some = next((keyword for keyword in _SOME_LOGITS if self._keeps(keyword, _OWN, slice(-_OWN, None))), None)
        places = torch.tensor([1, 3], device=self.ids.device)
        columns = some is not None and self._keeps(some, places, places)
        cache, returned, why = self._cache(_fields(first))
        taken = ("position_ids" in self.taken, "use_cache" in self.taken)
        return Calls(cache, returned, some, columns, self._picks(places), *taken, why)

    def _arguments(self) -> tuple[tuple[str, ...], Any]:
        """Which of the two optional arguments the model takes, and its output with them."""
        for taken in (("position_ids", "use_cache"), ("use_cache",), ("position_ids",)):
            output = self._run(0, _SHARED, taken)
            if output is not None:
                return taken, output
        return (), self._run(0, _SHARED, ())

    def _run(self, start: int, end: int, taken: tuple[str, ...], **given: Any) -> Any:
        """The output for a part of the text; ``None`` where the model refuses."""
        here = torch.arange(start, end, device=self.ids.device)[None]
        options = {"position_ids": here, "use_cache": True}
        given |= {name: options[name] for name in taken}
        try:
            return self.model(input_ids=self.ids[:, start:end], **given)
        except torch.OutOfMemoryError:
            raise
        except _REFUSALS:
            return None

    def _keeps(self, keyword: str, asked: int | Tensor, places: slice | Tensor) -> bool:
        output = self._run(0, _SHARED + _OWN, (), **{keyword: asked})
        return output is not None and self._same(output.logits, self.logits[:, places])

    def _picks(self, columns: Tensor) -> bool:
        with picking(self.model, torch.zeros_like(columns), columns):
            output = self._run(0, _SHARED + _OWN, ())
        return output is not None and self._same(output.logits, self.logits[:, columns])

    def _cache(self, fields: dict[str, Any]) -> tuple[str | None, str, str]:
        """Keyword, field of the output, and why there is none of them."""
        if not fields:
            return None, "", "it returns no cache of keys and values"
        for field, value in fields.items():
            if not _splits(value):
                continue
            for keyword in self._keywords(field):
                if self._goes_on(keyword, field):
                    return keyword, field, ""
        kinds = ", ".join(f"{field!r}, a {type(value).__name__}" for field, value in fields.items())
        return None, "", f"no argument of it goes on from the cache that it returns ({kinds})"

    def _keywords(self, field: str) -> dict[str, None]:
        """Candidates, the likeliest first: in every version so far a cache went in as it came out."""
        others = (name for name, p in self.parameters.items() if p.default is None)
        known = {"input_ids", "inputs_embeds", "attention_mask", "labels", "position_ids", "use_cache", *_SOME_LOGITS}
        return {name: None for name in (field, *_CACHES, *others) if name not in known}

    def _goes_on(self, keyword: str, field: str) -> bool:
        """Whether the logits after a cache are those of the whole text, on one of two rows that share the cache."""
        first = _fields(self._run(0, _SHARED, self.taken))[field]
        try:
            rows = expanded(first, 2)
            rows.batch_select_indices(torch.tensor([1], device=self.ids.device))
            output = self._run(_SHARED, _SHARED + _OWN, self.taken, **{keyword: rows})
            lengths = [int(cache.get_seq_length()) for cache in (first, _fields(output)[field])]
        except _REFUSALS:
            return False
        return lengths == [_SHARED, _SHARED + _OWN] and self._same(output.logits, self.logits[:, _SHARED:])

    def _same(self, logits: Tensor, expected: Tensor) -> bool:
        """Equal within what rounding in the model's type allows; logits that rule a token out do not count."""
        if logits.shape != expected.shape:
            return False
        usual = expected.abs() < torch.finfo(expected.dtype).max / 2
        if not usual.any():
            return False
        gap = (logits - expected).float()[usual].abs().max() / expected.float()[usual].abs().max()
        return float(gap) <= math.sqrt(torch.finfo(self._dtype()).eps)

    def _dtype(self) -> torch.dtype:
        dtype = self.model.get_input_embeddings().weight.dtype
        return dtype if dtype.is_floating_point else torch.bfloat16


def _fields(output: Any) -> dict[str, Any]:
    """What an output holds beside tensors and tuples of tensors: its cache, under whatever name."""
    held = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
    return {
        name: value
        for name, value in held.items()
        if value is not None
        and not isinstance(value, Tensor)
        and not (isinstance(value, tuple | list) and all(isinstance(part, Tensor) for part in value))
    }


def _splits(cache: Any) -> bool:
    """Whether it holds one tensor of keys and one of values per layer, and rows of it can be chosen."""
    layers = getattr(cache, "layers", None)
    if not layers or not callable(getattr(cache, "batch_select_indices", None)):
        return False
    held = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    return all(isinstance(tensor, Tensor) and tensor.ndim == 4 for tensor in held)


def dense_gguf() -> dict[str, Any]:
    """Arguments of ``from_pretrained`` under which the weights of a GGUF file are unpacked."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def names_in_gguf(model: Any, architecture: str) -> set[str] | None:
    """Names of the tensors that transformers reads from a GGUF file of this architecture; ``None`` where it reports
    those that it does not read itself, as newer versions do."""
    try:
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
        )
    except ImportError:
        return None
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    return set(get_gguf_hf_weights_map(model, processor))


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT reads an attribute that transformers has renamed; its warning is nothing that a user can act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def check_trainer(trainer: type) -> None:
    """Make sure that the Trainer still has every private method that ours replaces.

    One that is gone would never be called: its part (clipping what trains, ending at a loss that is not finite, what a
    checkpoint holds) would be left out without a word.

    Raises:
        ModelError: One is missing.
    """
    gone = [name for name in TRAINER_METHODS if not hasattr(trainer, name)]
    if gone:
        import transformers

        raise ModelError(
            f"transformers {transformers.__version__}: its Trainer has no {', '.join(gone)}, which training here "
            f"replaces; expected a version that was tested. Install transformers==5.23.0, or report this."
        )
