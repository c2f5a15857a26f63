"""A tuning on disk: the increment, and the state that resumes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from catchment.errors import ModelError
from catchment.methods.sift import sharing
from catchment.methods.sift.choice import Choice
from catchment.methods.sift.layout import Flat, Target
from catchment.models import Increment, write_increment
from catchment.runs import make_folder

FILE = "increment.safetensors"
FORMAT = 1
Entry = tuple[str, tuple[int, ...], Tensor, Tensor]


def save(flat: Flat, folder: Path, base_hash: str, recipe: Mapping[str, Any]) -> Path:
    """Write the chosen entries' values as an increment; returns the folder."""
    entries = [
        (t.name, t.shape, t.index.long().cpu() + t.offset, part.detach().to(flat.base.dtype).cpu())
        for t, part in flat.parts(flat.values)
        if t.index is not None
    ]
    sharded = sharing.is_sharded(flat.targets)
    if sharded:
        entries = _joined(sharing.gather(entries))
    if not sharded or dist.get_rank() == 0:
        make_folder(folder)
        write_increment(folder / FILE, entries, base_hash=base_hash, recipe=dict(recipe))
    if sharded:
        dist.barrier()
    return folder


def _joined(parts: list[list[Entry]]) -> list[Entry]:
    """The entries of all processes, tensor by tensor; rows are cut in order, so indices stay sorted."""
    names = list(dict.fromkeys(entry[0] for part in parts for entry in part))
    joined = []
    for name in names:
        mine = [entry for part in parts for entry in part if entry[0] == name]
        joined.append((name, mine[0][1], torch.cat([e[2] for e in mine]), torch.cat([e[3] for e in mine])))
    return joined


def read(folder: Path) -> Increment:
    """The increment in a folder, or the file itself."""
    return Increment.read(folder / FILE if folder.is_dir() else folder)


def load(increment: Increment, flat: Flat, choice: Choice) -> None:
    """Take up an increment of this base; see :meth:`Sift.load_pretrained`."""
    moved = increment.support()
    names = {target.name for target in flat.targets}
    foreign = next((name for name in moved if name not in names), None)
    if foreign is not None:
        raise ModelError(f"{increment.path} moves {foreign!r}, which is no target; add it to target_modules.")
    for target in flat.targets:
        if target.dense and len(moved.get(target.name, ())) != target.parameter.numel():
            raise ModelError(f"{increment.path} does not hold all of {target.name!r}; leave it out of modules_to_save.")
    flat.write(flat.base)
    choice.settle({t.name: moved[t.name] for t in flat.targets if t.name in moved and not t.dense})
    with torch.no_grad():
        for target, part in flat.parts(flat.values):
            part.copy_(increment.values[target.name])
    flat.write(flat.values)


def state(flat: Flat, choice: Choice) -> dict[str, Any]:
    """See :meth:`Sift.state_dict`. ``chosen`` says of which targets the slots are in use."""
    targets = flat.targets
    return {
        "format": FORMAT,
        "names": [t.name for t in targets],
        "counts": [t.count for t in targets],
        "chosen": [t.index is not None for t in targets],
        "index": torch.cat([t.index for t in targets if t.index is not None] or [torch.zeros(0, dtype=torch.int32)]),
        "values": flat.values.detach().clone(),
        "base": flat.base.clone(),
        "settled": choice.settled,
        "steps": choice.steps,
        "passes": choice.passes,
        "waiting": {t.name: [t.scores, t.total] for t in targets if t.total is not None},
    }


def load_state(flat: Flat, choice: Choice, saved: Mapping[str, Any]) -> None:
    """See :meth:`Sift.load_state_dict`."""
    targets = flat.targets
    names = [t.name for t in targets]
    if saved.get("format") != FORMAT or saved.get("names") != names:
        other = next((n for n in saved.get("names", ()) if n not in names), None)
        what = f"; it has {other!r}, which is no target here" if other else ""
        raise ModelError(f"the saved tuning is not of these {len(names)} targets{what}. Use the settings it had.")
    counts = dict(zip(names, saved["counts"], strict=True))
    total = sum(counts.values())
    if not total == saved["values"].numel() == saved["base"].numel() or saved["base"].dtype != flat.base.dtype:
        raise ModelError(
            f"the saved tuning has {saved['values'].numel()} entries in {saved['base'].dtype}, here are "
            f"{flat.values.numel()} in {flat.base.dtype}; load the base it began with, in its dtype."
        )
    flat.write(flat.base)
    indices = _checked_indices(targets, saved, counts)
    flat.lay_out(counts)
    for target in targets:
        index = indices.get(target.name)
        target.index = None if index is None else index.to(flat.index_dtype)
        scores, gradients = saved["waiting"].get(target.name, (None, None))
        device = flat.base.device
        target.scores = None if scores is None else scores.to(device)
        target.total = None if gradients is None else gradients.to(device)
    flat.values.data.copy_(saved["values"])
    flat.base.copy_(saved["base"])
    choice.settled, choice.steps = bool(saved["settled"]), int(saved["steps"])
    choice.passes = choice.counted = int(saved["passes"])
    flat.write(flat.values)


def _checked_indices(targets: list[Target], saved: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """The saved indices per target, when the weights at them are those of the saved base, or the tuned ones."""
    indices: dict[str, Tensor] = {}
    at = start = 0
    for target, chosen in zip(targets, saved["chosen"], strict=True):
        count, local = counts[target.name], target.local
        if chosen:
            index = saved["index"][at : at + count].to(local.device)
            at += count
            base, tuned = (saved[name][start : start + count].to(local.device) for name in ("base", "values"))
            inside = index.numel() == count and (not count or 0 <= int(index.min()) <= int(index.max()) < local.numel())
            here = local[index.long()] if inside else None
            if here is None or not bool(((here == base) | (here == tuned.to(local.dtype))).all()):
                raise ModelError(
                    f"the saved tuning is of another base: {target.name!r} differs. Load the base it began with."
                )
            indices[target.name] = index
        start += count
    return indices
