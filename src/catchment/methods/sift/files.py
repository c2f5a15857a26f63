"""A tuning on disk: the increment, and the state that resumes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from catchment.errors import ModelError
from catchment.methods.sift import sharing
from catchment.models import Increment, weights_hash, write_increment

if TYPE_CHECKING:
    from catchment.methods.sift.core import Sift

FILE = "increment.safetensors"
FORMAT = 1
Entry = tuple[str, tuple[int, ...], Tensor, Tensor]


def save(sift: Sift, folder: Path, base_hash: str | None, recipe: dict[str, Any]) -> Path:
    """Write the increment of a tuning; returns the folder."""
    if not sift.ready:
        raise ModelError("nothing to save: the entries are chosen by the first gradients, and none came yet.")
    if base_hash is None:
        with sift.unmerged() as base:
            base_hash = weights_hash(base)
    entries = [
        (t.name, t.shape, t.index.long().cpu() + t.offset, part.detach().to(sift.base.dtype).cpu())
        for t, part in sift._flat.parts(sift.values)
        if t.index is not None
    ]
    first = True
    if sift.sharded:
        entries = _joined(sharing.gather(entries))
        first = sharing.rank() == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        told = {"method": "sift", **sift.settings, **recipe}
        write_increment(folder / FILE, entries, base_hash=base_hash, recipe=told)
    if sift.sharded:
        sharing.barrier()
    return folder


def _joined(parts: list[list[Entry]]) -> list[Entry]:
    """The entries of all processes, tensor by tensor; rows are cut in order, so indices stay sorted."""
    names = list(dict.fromkeys(entry[0] for part in parts for entry in part))
    joined = []
    for name in names:
        mine = [entry for part in parts for entry in part if entry[0] == name]
        joined.append((name, mine[0][1], torch.cat([e[2] for e in mine]), torch.cat([e[3] for e in mine])))
    return joined


def load(sift: Sift, folder: Path) -> None:
    """Take up an increment; see :meth:`Sift.load_pretrained`."""
    if sift.sharded:
        raise ModelError("an increment is taken up before fully_shard: apply it to the model, or load the state_dict.")
    increment = Increment.read(folder / FILE if folder.is_dir() else folder)
    with sift.unmerged() as base:
        increment.verify(weights_hash(base))
        names = {target.name for target in sift.targets}
        foreign = [piece.name for piece in increment.pieces if piece.name not in names]
        if foreign:
            raise ModelError(f"{increment.path} moves {foreign[0]!r}, which is no target; add it to target_modules.")
        sift._choice.settle(increment.support())
    with torch.no_grad():
        for target, part in sift._flat.parts(sift.values):
            part.copy_(increment.values[target.name])
    sift._flat.write(sift.values)


def state(sift: Sift) -> dict[str, Any]:
    """See :meth:`Sift.state_dict`. ``chosen`` says of which targets the slots are in use."""
    targets = sift.targets
    return {
        "format": FORMAT,
        "names": [t.name for t in targets],
        "counts": [t.count for t in targets],
        "chosen": [t.index is not None for t in targets],
        "index": torch.cat([t.index for t in targets if t.index is not None] or [torch.zeros(0, dtype=torch.int32)]),
        "values": sift.values.detach().clone(),
        "base": sift.base.clone(),
        "steps": sift._choice.steps,
        "waiting": {t.name: [t.seen, t.scores, t.total] for t in targets if t.scores is not None},
    }


def load_state(sift: Sift, found: Mapping[str, Any]) -> None:
    """See :meth:`Sift.load_state_dict`."""
    targets = sift.targets
    names = [t.name for t in targets]
    if found.get("format") != FORMAT or found.get("names") != names:
        other = next((n for n in found.get("names", ()) if n not in names), None)
        what = f"; it has {other!r}, which is no target here" if other else ""
        raise ModelError(f"the saved tuning is not of these {len(names)} targets{what}. Use the settings it had.")
    flat, chosen = sift._flat, found["chosen"]
    flat.write(flat.base)
    flat.lay_out(dict(zip(names, found["counts"], strict=True)))
    device = flat.base.device
    if found["values"].numel() != flat.values.numel() or found["base"].dtype != flat.base.dtype:
        raise ModelError(
            f"the saved tuning has {found['values'].numel()} entries in {found['base'].dtype}, here are "
            f"{flat.values.numel()} in {flat.base.dtype}; load the base it began with, in its dtype."
        )
    index = found["index"].to(device)
    at = 0
    for target, is_chosen in zip(targets, chosen, strict=True):
        target.index = index[at : at + target.count].to(flat.index_dtype) if is_chosen else None
        at += target.count if is_chosen else 0
        target.seen, target.scores, target.total = found["waiting"].get(target.name, (0, None, None))
    flat.values.data.copy_(found["values"])
    flat.base.copy_(found["base"])
    sift._choice.steps = int(found["steps"])
    flat.write(flat.values)
