"""What watches and protects a tune: the room before it, the base's own text among its data, the fence while it runs."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import warnings
from typing import Any

import torch

from catchment.commands.tune.job import TuneJob
from catchment.commands.tune.setup import kept_warnings
from catchment.errors import InputError
from catchment.landscape import Batch, Subspace
from catchment.methods import LoRA, Tuning
from catchment.records import PilotSteps
from catchment.runs import processes, read_json, write_atomic
from catchment.statistics import ladder
from catchment.training import (
    CapabilityCallback,
    Collator,
    Fence,
    LineSearch,
    Replay,
    Sampling,
    answered,
    encode_rows,
    first_direction,
    pilot_room,
    read_rows,
    self_generated,
)

RUNGS = 8
"""Scales at which the room before training is measured."""
REPLAY_TOKENS, REPLAY_ROWS, REPLAY_BATCH, REPLAY_TEMPERATURE = 64, 64, 64, 0.7
"""Of the texts that the base writes by itself. Divergences are exact at every place, so texts may be drawn cooler than
the base is: at temperature 1 those of a small model are mostly noise."""
OPENING_TOKENS = 12
"""Of its answers to messages of its own: a tune that answers otherwise starts otherwise, and behind the first words of
the base's own answer both go on alike. A mean over a long answer hides that."""
ANSWER_TOKENS = 32
"""Of the base's answers to items of a protected task."""


def fence_of(job: TuneJob, name: str, tuning: Tuning) -> Fence | None:
    if not job.protected:
        return None
    s = job.settings
    return Fence(
        [item.guard for item in job.protected], max_drop=s.max_drop, move=tuning,
        eval_steps=s.fence_steps or max(1, job.steps // 8), tokenizer=job.loaded.tokenizer,
        prompt_options=job.asked, alpha=s.alpha, seed=s.seed, output_dir=job.out / "fence" / name,
        batch_tokens=job.batch_tokens,
    )  # fmt: skip


def watch_of(job: TuneJob, name: str) -> CapabilityCallback | None:
    """What measures the tasks while the model is trained; of protected ones items that the fence sees too, since the
    others judge the end."""
    s = job.settings
    if s.eval_steps is None or not job.tasks:
        return None
    seen = {item.guard.name: item.guard for item in job.protected}
    return CapabilityCallback(
        [seen.get(task.name, task) for task in job.tasks], eval_steps=s.eval_steps, limit=s.eval_limit, seed=s.seed,
        margin=s.margin, alpha=s.alpha,
        tokenizer=job.loaded.tokenizer, on_drop=s.on_drop, table=False, output_dir=job.out / "watch" / name,  # type: ignore[arg-type]
        batch_tokens=job.batch_tokens, prompt_options=job.asked,
    )  # fmt: skip


def make_replay(job: TuneJob) -> Replay:
    """What holds the tuned model to the base: texts that it writes by itself, and its answers to items of the protected
    tasks that neither fence nor judgement uses; written once, to OUT/replay.jsonl. The model has to be the base now."""
    s, collate = job.settings, Collator(job.loaded.tokenizer)
    per_batch = s.batch_size * s.replay / (1 - s.replay)
    path, notes = job.out / "replay.jsonl", job.out / "replay-warnings.json"
    if path.is_file():
        rows = read_json(path, lines=True)
        said = read_json(notes) if notes.is_file() else []
    else:
        with kept_warnings() as said:
            rows = _base_texts(job, per_batch)
        if processes.is_main():
            write_atomic(notes, json.dumps(said))
            write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for text in said:  # in every run's record, not only where the texts were written
        warnings.warn(text, stacklevel=2)
    examples = [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
    job.progress.status("the base's next-token probabilities on what is replayed")
    return Replay(job.loaded.model, examples, collate, per_batch=per_batch, weight=s.replay_weight, seed=s.seed)


def _base_texts(job: TuneJob, per_batch: float) -> list[dict[str, Any]]:
    """Each text with where it is from, its words, token ids and labels."""
    s, tokenizer, model = job.settings, job.loaded.tokenizer, job.loaded.model
    found: list[tuple[str, Any]] = []
    for item in job.protected:
        job.progress.status(f"the base answers what is replayed · {item.guard.name}")
        answers = answered(model, tokenizer, item.replayed, max_new_tokens=ANSWER_TOKENS, prompt_options=job.asked)
        short = [example for example in answers if len(example["input_ids"]) <= job.max_length]
        if len(short) < len(answers):
            warnings.warn(
                f"{len(answers) - len(short)} of {len(answers)} answers to {item.guard.name} are not replayed: with "
                f"their prompts they are longer than max-length {job.max_length}",
                stacklevel=2,
            )
        found += [(item.guard.name, example) for example in short]
    job.progress.status("the base writes what is replayed")
    wanted = math.ceil(per_batch * job.steps * s.accumulation * processes.count())
    sampling = Sampling(
        max_new_tokens=min(REPLAY_TOKENS, job.max_length // 2),
        max_answer_tokens=OPENING_TOKENS,
        temperature=REPLAY_TEMPERATURE,
        seed=s.seed,
        batch_size=REPLAY_BATCH,
    )
    own = self_generated(model, tokenizer, max(8, min(wanted, REPLAY_ROWS)), sampling, prompt_options=job.asked)
    found += [("", example) for example in _replayed(job, own, needed=not found)]
    return [
        {
            "task": task,
            "text": tokenizer.decode(example["input_ids"]),
            **{n: example[n] for n in ("input_ids", "labels")},
        }
        for task, example in found
    ]


def _replayed(job: TuneJob, rows: list[dict[str, Any]], *, needed: bool = True) -> list[Any]:
    """The base's texts as examples; those whose prompt fills ``max_length`` are left out, with one warning."""
    cut = [bool(row.pop("cut", False)) for row in rows]
    tokenizer, most = job.loaded.tokenizer, job.max_length
    examples = []
    if rows:
        asked = dataclasses.replace(job.asked, system=None)  # it stands in the rows, where they are conversations
        examples = encode_rows(read_rows(rows), tokenizer, max_length=sys.maxsize, prompt_options=asked).examples
    ends = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    whole = [_without_end(e, ends) if was else e for e, was in zip(examples, cut, strict=True)]
    short = [{name: values[:most] for name, values in example.items()} for example in whole]
    found = [example for example in short if any(label != -100 for label in example["labels"])]
    if not found and needed:
        raise InputError(
            f"--replay {job.settings.replay:g}: none of the base's {len(rows)} texts leaves a token to learn within "
            f"max-length {most}; raise --max-length, or use --replay 0."
        )
    if len(found) < len(rows):
        warnings.warn(
            f"{len(rows) - len(found)} of {len(rows)} texts of the base are not replayed: their prompts fill "
            f"max-length {most}",
            stacklevel=2,
        )
    return found


def _without_end(example: dict[str, Any], ends: set[int]) -> dict[str, Any]:
    """A text that was cut did not end where it ends: what the template or the encoding put behind it is not learned."""
    labels = list(example["labels"])
    at = len(labels)
    while at > 1 and (example["input_ids"][at - 1] in ends or labels[at - 1] == -100):
        at -= 1
    return {**example, "labels": labels[:at] + [-100] * (len(labels) - at)}


def measure_rooms(job: TuneJob) -> tuple[PilotSteps, ...]:
    """How far the protected tasks let the weights go along the first gradient, before anything is trained: in entries
    chosen as SIFT chooses them, but by the first rows of the data where the training takes a drawn batch; or in the
    weights that a dense method trains. An adapter's first steps are no direction of the weights, so for LoRA there are
    none."""
    if not job.protected or isinstance(job.method, LoRA):
        return ()
    path = job.out / "rooms.json"
    if path.is_file():
        return tuple(PilotSteps(**entry) for entry in read_json(path))
    job.progress.status("the room before training")
    model = job.loaded.model
    batches = _first_batches(job)
    tuning = job.method.attach(model, seed=job.settings.seed)
    support: dict[str, Any] | None = None
    try:
        if hasattr(tuning, "support"):
            for _ in range(job.method.selection_batches):  # type: ignore[attr-defined]
                _loss(model, batches[0]).backward()
            support = tuning.support()
        elif getattr(job.method, "target_modules", None):
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            support = {name: torch.arange(p.numel(), device=p.device) for name, p in trained.items()}
    finally:
        tuning.remove()
    way = first_direction(model, batches, support)
    search = LineSearch(job.settings.max_drop, _scales(job), directions=1, seed=job.settings.seed)
    found = pilot_room(
        model, job.loaded.tokenizer, [item.pilot for item in job.protected], way, search,
        prompt_options=job.asked, batch_tokens=job.batch_tokens, files=job.loaded.files,
    )  # fmt: skip
    rooms = tuple(
        PilotSteps(
            task=name, items=room.items, scale=room.way.estimate, steps=room.steps(job.rate)[0],
            random_scale=None if room.random is None else room.random.estimate, reach=room.way.reach,
            warning=room.warning(job.rate, job.steps), below=room.way.below,
            random_below=None if room.random is None else room.random.below,
        )
        for name, room in found.items()
    )  # fmt: skip
    if processes.is_main():
        write_atomic(path, json.dumps([dataclasses.asdict(room) for room in rooms]))
    return rooms


def _scales(job: TuneJob) -> tuple[float, ...]:
    """From one step of the learning rate to as many as the tune has, and no further than random moves are tolerated."""
    most = min(job.rate * job.steps, 2 * Subspace.all(job.loaded.model).ruler(job.loaded.model).rms)
    return ladder(job.rate, max(most, 2 * job.rate), RUNGS)


def _loss(model: Any, batch: Batch) -> Any:
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss


def _first_batches(job: TuneJob, count: int = 2) -> list[Batch]:
    collate, size = Collator(job.loaded.tokenizer), job.settings.batch_size
    device = next(job.loaded.model.parameters()).device
    batches = []
    for at in range(0, min(count * size, len(job.encoded.examples)), size):
        part = {k: v.to(device) for k, v in collate(job.encoded.examples[at : at + size]).items()}
        labels = part["labels"]
        rows = tuple(f"row {at + i}" for i in range(len(labels)))
        batches.append(Batch(part["input_ids"], part["attention_mask"], labels, int((labels != -100).sum()), rows))
    return batches
