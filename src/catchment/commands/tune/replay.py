"""What holds the tuned model to the base: the base's own texts among the data."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import warnings
from typing import Any

from catchment.commands.tune.opened import Opened
from catchment.commands.tune.warned import kept_warnings
from catchment.errors import InputError
from catchment.runs import processes, read_json, write_atomic
from catchment.training import Collator, Replay, Sampling, answered, encode_rows, read_rows, self_generated

REPLAY_TOKENS, REPLAY_ROWS, REPLAY_BATCH, REPLAY_TEMPERATURE = 64, 64, 64, 0.7
"""Of the texts that the base writes by itself. Divergences are exact at every place, so texts may be drawn cooler than
the base is: at temperature 1 those of a small model are mostly noise."""
OPENING_TOKENS = 12
"""Of its answers to messages of its own: a tune that answers otherwise starts otherwise, and behind the first words of
the base's own answer both go on alike. A mean over a long answer hides that."""
ANSWER_TOKENS = 32
"""Of the base's answers to items of a protected task."""


def make_replay(opened: Opened) -> Replay:
    """What holds the tuned model to the base: texts that it writes by itself, and its answers to items of the protected
    tasks that neither fence nor judgement uses; written once, to OUT/replay.jsonl. The model has to be the base now."""
    s, collate = opened.settings, Collator(opened.loaded.tokenizer)
    per_batch = s.batch_size * s.replay / (1 - s.replay)
    path, notes = opened.out / "replay.jsonl", opened.out / "replay-warnings.json"
    if path.is_file():
        rows = read_json(path, lines=True)
        texts = read_json(notes) if notes.is_file() else []
    else:
        with kept_warnings() as texts:
            rows = _base_texts(opened, per_batch)
        if processes.is_main():
            write_atomic(notes, json.dumps(texts))
            write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for text in texts:  # in every run's record, not only where the texts were written
        warnings.warn(text, stacklevel=2)
    examples = [{name: row[name] for name in ("input_ids", "labels")} for row in rows]
    opened.progress.status("the base's next-token probabilities on what is replayed")
    return Replay(opened.loaded.model, examples, collate, per_batch=per_batch, weight=s.replay_weight, seed=s.seed)


def _base_texts(opened: Opened, per_batch: float) -> list[dict[str, Any]]:
    """Each text with where it is from, its words, token ids and labels."""
    s, tokenizer, model = opened.settings, opened.loaded.tokenizer, opened.loaded.model
    written: list[tuple[str, Any]] = []
    for item in opened.protected:
        opened.progress.status(f"the base answers what is replayed · {item.guard.name}")
        answers = answered(model, tokenizer, item.replayed, max_new_tokens=ANSWER_TOKENS, prompt_options=opened.asked)
        short = [example for example in answers if len(example["input_ids"]) <= opened.max_length]
        if len(short) < len(answers):
            warnings.warn(
                f"{len(answers) - len(short)} of {len(answers)} answers to {item.guard.name} are not replayed: with "
                f"their prompts they are longer than max-length {opened.max_length}",
                stacklevel=2,
            )
        written += [(item.guard.name, example) for example in short]
    opened.progress.status("the base writes what is replayed")
    wanted = math.ceil(per_batch * opened.steps * s.accumulation * processes.count())
    sampling = Sampling(
        max_new_tokens=min(REPLAY_TOKENS, opened.max_length // 2),
        max_answer_tokens=OPENING_TOKENS,
        temperature=REPLAY_TEMPERATURE,
        seed=s.seed,
        batch_size=REPLAY_BATCH,
    )
    own = self_generated(model, tokenizer, max(8, min(wanted, REPLAY_ROWS)), sampling, prompt_options=opened.asked)
    written += [("", example) for example in fitting(opened, own, needed=not written)]
    return [
        {
            "task": task,
            "text": tokenizer.decode(example["input_ids"]),
            **{n: example[n] for n in ("input_ids", "labels")},
        }
        for task, example in written
    ]


def fitting(opened: Opened, rows: list[dict[str, Any]], *, needed: bool = True) -> list[Any]:
    """The base's texts as examples; those whose prompt fills ``max_length`` are left out, with one warning."""
    cut = [bool(row.pop("cut", False)) for row in rows]
    tokenizer, most = opened.loaded.tokenizer, opened.max_length
    examples = []
    if rows:
        asked = dataclasses.replace(opened.asked, system=None)  # it stands in the rows, where they are conversations
        examples = encode_rows(read_rows(rows), tokenizer, max_length=sys.maxsize, prompt_options=asked).examples
    ends = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    whole = [_without_end(e, ends) if was else e for e, was in zip(examples, cut, strict=True)]
    short = [{name: values[:most] for name, values in example.items()} for example in whole]
    learnable = [example for example in short if any(label != -100 for label in example["labels"])]
    if not learnable and needed:
        raise InputError(
            f"--replay {opened.settings.replay:g}: none of the base's {len(rows)} texts leaves a token to learn within "
            f"max-length {most}; raise --max-length, or use --replay 0."
        )
    if len(learnable) < len(rows):
        warnings.warn(
            f"{len(rows) - len(learnable)} of {len(rows)} texts of the base are not replayed: their prompts fill "
            f"max-length {most}",
            stacklevel=2,
        )
    return learnable


def _without_end(example: dict[str, Any], ends: set[int]) -> dict[str, Any]:
    """A text that was cut did not end where it ends: what the template or the encoding put behind it is not learned."""
    labels = list(example["labels"])
    at = len(labels)
    while at > 1 and (example["input_ids"][at - 1] in ends or labels[at - 1] == -100):
        at -= 1
    return {**example, "labels": labels[:at] + [-100] * (len(labels) - at)}
