"""The one way to move weights: from clean weights every time, and back to them bit for bit.

A displaced weight is always ``cast(theta + scale * delta)``, formed from the clean ``theta``; nothing is ever added
and subtracted again, which would change most weights in the last bit. With weights of a half type ``delta`` itself is
rounded to that type first; the product and the sum are in fp32.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from catchment.errors import InputError, ModelError, finish
from catchment.landscape import memory as clean_memory
from catchment.landscape import noise, order, parts, sharding
from catchment.landscape.directions import Direction, Gaussian, Towards, dot
from catchment.landscape.parts import Part
from catchment.landscape.subspace import Subspace
from catchment.models import Damage, ModelLayout, listed, mapped_weights, reshard

Memory = Literal["auto", "mapped", "copy", "low"]
MODES = ("auto", "mapped", "copy", "low")
_PIECE = 1 << 20
_MEASURED = 1 << 22


class Mover:
    """Moves a model within a subspace, point after point, and puts it back. Use it as a context manager.

    Args:
        model: Its parameters are written in place. Buffers never are; tied weights move once.
        subspace: What may move.
        memory: Where the clean weights are read back from. ``mapped``: the safetensors file they came from (extra
            memory: the direction, 1 copy of the weights); ``copy``: a copy in memory (2 copies); ``low``: the file, or
            a temporary one, with the direction drawn anew, block by block, for every point (extra: a few blocks).
            ``auto``: ``mapped`` where files hold the weights bit for bit, else ``copy``, and ``low`` where that would
            not fit. A sparse subspace always copies its own entries and nothing else.
        files: Safetensors files that may hold the weights (``LoadedModel.files``). Checked bit for bit; a tensor that
            differs is copied.

    Attributes:
        mode: What was chosen: ``mapped``, ``copy``, ``low`` or ``support``.
        points: How often it has moved the model so far, the way back included.

    Cost of a point: one read of the clean weights, one of the direction, one write (about 1 axpy); a new direction
    costs its generation once, for all scales. Leaving the clean weights costs one read of all weights more, and so does
    coming back where the subspace is not the whole model.

    Raises:
        ModelError: The subspace does not fit the model, or weights cannot be moved (packed, offloaded).
        InputError: An unknown ``memory``.
    """

    def __init__(
        self, model: nn.Module, subspace: Subspace, *, memory: Memory = "auto", files: Sequence[Path] = ()
    ) -> None:
        if memory not in MODES:
            raise InputError(f"memory {memory!r}; expected one of {', '.join(MODES)}.")
        reshard(model)
        self.model = model
        self.subspace = subspace
        self.displaced = False
        self._held: Direction | None = None
        self._spill: Path | None = None
        self._layout: ModelLayout | None = None
        self.points = 0
        self._below = order.seen(model)
        self._stamps: dict[Path, tuple[int, ...]] = {}
        self._weights = weights = subspace.weights(model)
        self._devices = {name: str(sharding.local(tensor).device) for name, tensor in weights.items()}
        if subspace.kind == "sparse":
            self.mode: str = "support"
            self._parts = [self._sparse_part(name, tensor) for name, tensor in weights.items()]
            return
        mapped = clean_memory.matching(weights, files) if memory != "copy" else {}
        self._stamps = {path: clean_memory.stamp(path) for path in files} if mapped else {}
        self.mode = clean_memory.choose(memory, weights, mapped)
        missing = {n: w for n, w in weights.items() if n not in mapped}
        if self.mode == "low" and missing:
            self._spill = clean_memory.spill(missing)
            mapped |= mapped_weights([self._spill])
        self._parts = [self._part(name, tensor, mapped.get(name)) for name, tensor in weights.items()]

    def _sparse_part(self, name: str, tensor: Tensor) -> Part:
        flat, offset = parts.flat(name, tensor), sharding.flat_start(name, tensor)
        support = self.subspace.support[name]
        first, last = torch.searchsorted(support, torch.tensor([offset, offset + flat.numel()])).tolist()
        index = (support[first:last] - offset).to(flat.device)
        return Part(name, flat, flat[index].clone(), index, first)

    def _part(self, name: str, tensor: Tensor, mapped: Tensor | None) -> Part:
        flat = parts.flat(name, tensor)
        clean = flat.clone() if mapped is None else mapped.reshape(-1)
        return Part(name, flat, clean, None, sharding.flat_start(name, tensor), mapped is not None)

    def place(self, *moves: tuple[Direction, float]) -> None:
        """Put the model at ``theta + sum_i scale_i * delta_i``. What was replaced since the last point is put back
        first (see :meth:`restore`).

        Raises:
            ModelError: A direction of another subspace; weights that were replaced or written to since the mover was
                made; another mover that moved the model meanwhile; what :meth:`restore` would raise.
        """
        for direction, scale in moves:
            if direction.subspace.hash != self.subspace.hash:
                raise ModelError("a direction of another subspace; expected one made with the mover's own.")
            if not abs(scale) < float("inf"):
                raise InputError(f"scale {scale}; expected a finite number.")
        self._begin()
        with torch.no_grad():
            self._write(tuple(move for move in moves if move[1] != 0))

    def _begin(self) -> None:
        """Remember how the model is made up before it leaves its own weights; later, put that back."""
        altered = self._altered_files()
        if altered:
            raise ModelError(f"{altered}, from which clean weights are read, was written to; make a new mover.")
        if self._layout is None:
            layout = ModelLayout(self.model)
            self._refuse_replaced(layout)
            layout.seal(part.weight for part in self._parts if part.index is None)
            order.enter(self)
            self._layout, self.displaced = layout, True
        elif order.after(self):
            raise ModelError("another mover has displaced the model since; restore that one first.")
        else:
            self._layout.put_back().raise_if_any()
        self.points += 1

    def _refuse_replaced(self, layout: ModelLayout) -> None:
        """A mover writes to the memory, and from the clean weights, that it knows."""
        if not order.still(self.model, self._below):
            raise ModelError(
                "the model was displaced by another mover, or came back, since this mover was made, whose clean "
                "weights are those of then; make a new mover."
            )
        for part in self._parts:
            parameter = self._weights[part.name]
            here = sharding.local(parameter)
            moved = part.weight.numel() > 0 and here.data_ptr() != part.weight.data_ptr()
            if moved or here.dtype != part.weight.dtype or not layout.holds(parameter):
                raise ModelError(
                    f"weight {part.name!r} was replaced since the mover was made (by a cast, a new Parameter, or "
                    "load_state_dict with assign=True), and would not move; make a new mover."
                )
        written = listed(part.name for part in self._parts if not parts.is_clean(part))
        if written:
            raise ModelError(
                f"weights were written to since the mover was made, and would go back to what they were then: "
                f"{written}. Make a new mover after a training step, a merge or load_state_dict."
            )

    def _write(self, moves: Sequence[tuple[Direction, float]]) -> None:
        if not moves:
            self._write_clean()
        elif len(moves) > 1 or isinstance(moves[0][0], Towards) or (self.mode == "low" and not moves[0][0].cuttable):
            self._place_sum(moves)
        elif self.mode == "low":
            self._place_blocks(*moves[0])
        else:
            self._place_held(*moves[0])

    def _place_held(self, direction: Direction, scale: float) -> None:
        """The usual path: the direction is kept, so that its other scales cost one pass each."""
        if self._held is not direction:
            self.hold(direction)
        for part in self._parts:
            assert part.delta is not None
            if part.index is not None:
                part.write(parts.added(part.clean, part.delta, scale))
            elif part.clean.dtype in (torch.float32, torch.float64):
                torch.add(part.clean, part.delta, alpha=scale, out=part.weight)
            else:
                pieces = zip(*(t.split(_PIECE) for t in (part.weight, part.clean, part.delta)), strict=True)
                for weight, clean, delta in pieces:
                    weight.copy_(parts.added(clean, delta, scale))

    def device(self, name: str) -> str:
        """Where the directions of a tensor are drawn: with its weights. A CPU and a GPU draw different numbers."""
        return self._devices.get(name, "cpu")

    def drop(self) -> None:
        """Forget the direction that is held, and free it; the model stays where it stands."""
        self._held = None
        for part in self._parts:
            part.delta = None

    def hold(self, direction: Direction) -> None:
        """Draw a direction into memory: what :meth:`place` does when it meets a new one."""
        ours = isinstance(self._held, Gaussian)  # else the tensors may be the caller's: a stored direction's own
        self._held = None
        for part in self._parts:
            if isinstance(direction, Gaussian) and direction.cuttable and parts.plain(part):
                part.delta = part.delta if ours and part.delta is not None else torch.empty_like(part.clean)
                noise.fill(part.delta, direction.stream, part.name, self.subspace.coordinates(part.name), part.start)
            else:
                drawn = direction.delta(part.name, part.start, part.stop, str(part.weight.device))
                part.delta = drawn.to(part.clean.dtype)
        self._held = direction

    def _place_blocks(self, direction: Direction, scale: float) -> None:
        """Block by block, each drawn, added and forgotten; on several threads where that helps."""
        pieces = [
            (part, at, min(at + noise.BLOCK, part.clean.numel()))
            for part in self._parts
            for at in parts.edges(part.start, part.clean.numel())
        ]

        def one(piece: tuple[Part, int, int]) -> None:
            part, low, high = piece
            high = min(high, low + noise.BLOCK - (part.start + low) % noise.BLOCK)
            drawn = direction.delta(part.name, part.start + low, part.start + high, str(part.weight.device))
            with torch.no_grad():
                clean, weight = part.clean[low:high], part.weight[low:high]
                if clean.dtype == weight.dtype == torch.float32 and clean.device == weight.device:
                    torch.add(clean, drawn, alpha=scale, out=weight)
                else:
                    weight.copy_(parts.added(clean.to(weight.device), drawn.to(clean.dtype), scale))

        noise.spread(one, pieces, self._parts[0].weight.device)

    def _place_sum(self, moves: Iterable[tuple[Direction, float]]) -> None:
        """Several directions, or the way to another model: summed in fp32, piece by piece, rounded once."""
        moves = list(moves)
        for part in self._parts:
            wide = torch.promote_types(part.clean.dtype, torch.float32)
            whole = part.index is not None or not all(direction.cuttable for direction, _ in moves)
            step = max(part.clean.numel(), 1) if whole else _PIECE  # of a cut tensor nothing may be here
            for low in range(0, part.clean.numel(), step):
                high = min(low + step, part.clean.numel())
                clean = part.clean[low:high].to(part.weight.device, wide)
                values = clean if len(moves) == 1 else clean.clone()
                for direction, scale in moves:
                    moved = parts.moved(direction, part, clean, scale, low, high)
                    values = moved if len(moves) == 1 else values.add_(moved.sub_(clean))
                if part.index is None:
                    part.weight[low:high].copy_(values)
                else:
                    part.write(values)

    def _write_clean(self) -> None:
        for part in self._parts:
            part.write(part.clean)

    def restore(self) -> None:
        """Back to the clean weights, bit for bit; Ctrl-C waits until it is done.

        First the model is made up again as it was before its first point: the same Parameters under the same names, in
        the same memory, dtype and device, whatever replaced them (a cast, a new Parameter, ``load_state_dict`` with
        ``assign=True``, an adapter). Buffers that were cast, and saved ones, are put back as well. Movers that
        displaced the model later go back before. Weights outside the subspace have no copy: they are compared with a
        checksum.

        Raises:
            ModelError: Weights that could not be restored, or that were put into the model meanwhile, by name. All
                others are restored.
        """
        if not self.displaced:
            return
        for other in reversed(order.after(self)):
            other.restore()
        damage = Damage()
        with _uninterrupted(), torch.no_grad():
            try:
                if self._layout is not None:
                    damage = self._layout.put_back()
            finally:
                self._write_clean()
            if self._layout is not None:
                damage.changed += self._layout.changed()
            order.leave(self)
            self._layout, self.displaced = None, False
            self.points += 1
        altered = self._altered_files()
        if altered:
            raise ModelError(
                f"{altered}, from which clean weights are read, was written to while the model was displaced; these "
                f"weights may not be what they were: {listed(p.name for p in self._parts if p.from_file)}. Load the "
                "model again."
            )
        damage.raise_if_any()

    def _altered_files(self) -> str:
        """Names of the files of clean weights that were written to in place; one that was replaced is still mapped."""
        return listed(str(path) for path, stamp in self._stamps.items() if clean_memory.altered(path, stamp))

    def realised(self, direction: Direction, scale: float) -> tuple[float, float]:
        """``(size, off_axis)`` of the displacement as it stands after rounding, against the one intended:
        size = ||d|| / ||scale delta||, off_axis = ||d - projection|| / ||d||. The model must stand there. Memory: a
        few pieces of a tensor; a direction that cannot be cut is drawn tensor by tensor."""
        dd = dt = tt = 0.0
        for part in self._parts:
            device = self.device(part.name)
            drawn = None if direction.cuttable else direction.delta(part.name, part.start, part.stop, device)
            for low in range(0, part.clean.numel(), _MEASURED):
                here = slice(low, min(low + _MEASURED, part.clean.numel()))
                there = part.weight[here] if part.index is None else part.weight[part.index[here]]
                clean = part.clean[here].to(device).double()
                done = there.double().sub_(clean)
                intended = parts.intended(direction, part, here, clean, drawn).mul_(scale)
                dd, dt, tt = dd + dot(done, done), dt + dot(done, intended), tt + dot(intended, intended)
        if tt == 0 or dd == 0:
            return (1.0 if tt == dd else 0.0), 0.0
        return (dd / tt) ** 0.5, max(1 - dt * dt / (dd * tt), 0.0) ** 0.5

    def close(self) -> None:
        """Restore, and drop what was held.

        Raises:
            ModelError: As :meth:`restore`.
        """
        try:
            self.restore()
        finally:
            self._parts, self._held = [], None
            if self._spill is not None:
                clean_memory.remove(self._spill)
                self._spill = None

    @contextmanager
    def at(self, *moves: tuple[Direction, float]) -> Iterator[nn.Module]:
        """Inside, the model stands there; outside it is what it was.

        Raises:
            ModelError: As :meth:`place`, and on exit as :meth:`restore`; of a block that raised, the latter is a note
                of its own exception.
        """
        raised: BaseException | None = None
        try:
            self.place(*moves)
            yield self.model
        except BaseException as error:
            raised = error
            raise
        finally:
            finish(self.restore, raised)

    def __enter__(self) -> Mover:
        return self

    def __exit__(self, kind: object, raised: BaseException | None, trace: object) -> None:
        finish(self.close, raised)

    def __del__(self) -> None:
        if getattr(self, "_spill", None) is not None or getattr(self, "displaced", False):
            with suppress(Exception):
                self.close()


@contextmanager
def displaced(
    model: nn.Module, direction: Direction, scale: float, *, memory: Memory = "auto", files: Sequence[Path] = ()
) -> Iterator[nn.Module]:
    """Inside, the model stands at ``theta + scale * delta``; outside its weights are bit for bit what they were,
    whatever happened inside: also where the block replaced them (``model.double()``, a new Parameter, an adapter put
    in). For many points use one :class:`Mover`, which reads the clean weights once.

    Example::

        everything = Subspace.all(model)
        with displaced(model, gaussian(everything, seed=0), 0.002):
            evaluate(model, task)

    Raises:
        ModelError: As :class:`Mover`; on exit, by name, weights outside the direction's subspace that the block wrote
            to, and weights that it added to the model. Everything else is restored then.
    """
    with Mover(model, direction.subspace, memory=memory, files=files) as mover, mover.at((direction, scale)):
        yield model


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done; only the main thread gets it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *arguments: came.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came and callable(before):
        before(*came[0])
