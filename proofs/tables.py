"""Two judgements of the same pairs side by side: the table, the items that are decided differently, the files."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import harness
import torch
import verdicts

from catchment.capabilities import CHOICE_SCORERS, JUDGED_SCORERS, Item, Task
from catchment.commands.compare.record import Comparison
from catchment.records import Row

NEAR = 1e-3
"""Two choices whose (normalised) log-probabilities are this close in either evaluation: rounding may decide them."""


def task_row(task: Task, items: list[Item], tables: list[dict[str, Any]], result: Any, margin: float) -> dict[str, Any]:
    """One line of the table: our numbers, theirs, and whether the verdicts agree.

    tables: our rows for base and tuned, then lm-eval's for base and tuned, each by item id.
    """
    theirs = [[harness.right(task, table[i.id], i) for i in items] for table in tables[2:]]
    chance = sum(1 / len(i.choices) for i in items) / len(items) if task.scorer in CHOICE_SCORERS else 0.0
    interval = result.difference
    opinion = verdicts.opinion(
        *theirs, chance=chance, generated=task.scorer in JUDGED_SCORERS, margin=margin,
        alpha=(1 - interval.level) * interval.family, family=interval.family,
    )  # fmt: skip
    differing = [
        differing_item(task, item, role, tables[k][item.id], tables[k + 2][item.id])
        for k, role in enumerate(("base", "tuned"))
        for item, score in zip(items, theirs[k], strict=True)
        if int(tables[k][item.id].score) != score
    ]
    return {
        "task": task.name,
        "scorer": task.scorer,
        "n": len(items),
        "ours": {"base": result.base, "tuned": result.tuned, "interval": [interval.low, interval.high],
                 "lost": result.flips_lost, "gained": result.flips_gained, "verdict": result.verdict},
        "independent": dataclasses.asdict(opinion),
        "level": interval.level,
        "decided_differently": differing,
        "largest_logprob_gap": largest_gap(task, items, tables),
        "answers_with_other_text": other_texts(task, items, tables),
        "agree": result.verdict == opinion.verdict,
    }  # fmt: skip


def largest_gap(task: Task, items: list[Item], tables: list[dict[str, Any]]) -> float | None:
    """Largest difference of a summed log-likelihood between the two evaluations, in nats."""
    if task.scorer not in CHOICE_SCORERS:
        return None
    return max(
        abs(a - b)
        for k in (0, 1)
        for i in items
        for a, b in zip(tables[k][i.id].logprobs, tables[k + 2][i.id]["logprobs"], strict=True)
    )


def other_texts(task: Task, items: list[Item], tables: list[dict[str, Any]]) -> int | None:
    """Generated answers, of both models, that are not the same text."""
    if task.scorer in CHOICE_SCORERS:
        return None
    return sum(
        tables[k][i.id].prediction.strip() != harness.answer_of(task, tables[k + 2][i.id]["text"]).strip()
        for k in (0, 1)
        for i in items
    )


def differing_item(task: Task, item: Item, role: str, ours: Row, theirs: dict[str, Any]) -> dict[str, Any]:
    """An item that the two evaluations score differently, and why."""
    found: dict[str, Any] = {"item": item.id, "model": role, "ours": ours.score, "prompt": item.prompt}
    if task.scorer in CHOICE_SCORERS:
        mine = harness.values(task.scorer, {"logprobs": ours.logprobs}, item)
        other = harness.values(task.scorer, theirs, item)
        gap = min(_lead(mine), _lead(other))
        return {**found, "our_values": mine, "their_values": other, "cause": "tie" if gap < NEAR else "log-likelihood"}
    text = harness.answer_of(task, theirs["text"]).strip()
    cause = "scorer" if text == ours.prediction.strip() else "generation"
    return {**found, "our_answer": ours.prediction, "their_answer": text, "gold": item.gold, "cause": cause}


def _lead(values: list[float]) -> float:
    first, second = sorted(values, reverse=True)[:2]
    return first - second


def conditions(comparison: Comparison) -> dict[str, Any]:
    """Versions and machine."""
    names = ("catchment", "torch", "transformers", "lm-eval", "datasets", "scipy", "numpy")
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "versions": {n: importlib.metadata.version(n) for n in names} | {"python": platform.python_version()},
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "dtype": comparison.base.dtype,
        "attention": comparison.base.attention,
        "weights": [comparison.base.weights_hash, comparison.tuned.weights_hash],
        "margin": comparison.margin,
        "alpha": comparison.alpha,
        "resamples": verdicts.RESAMPLES,
    }


def markdown(results: list[dict[str, Any]]) -> str:
    """The tables, for people."""
    lines = []
    for pair in results:
        lines += [f"### {pair['pair']}: {pair['base']} against {pair['tuned']}", ""]
        lines += [
            "| task | n | base/tuned ours | base/tuned lm-eval | items decided differently | our interval "
            "| bootstrap interval | McNemar p | our verdict | independent verdict | agree |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for r in pair["tasks"]:
            o, t = r["ours"], r["independent"]
            low, high = o["interval"]
            causes = sorted({d["cause"] for d in r["decided_differently"]})
            differ = f"{len(r['decided_differently'])} of {2 * r['n']}" + (f" ({', '.join(causes)})" if causes else "")
            lines.append(
                f"| {r['task']} | {r['n']} | {o['base']:.3f}/{o['tuned']:.3f} | {t['base']:.3f}/{t['tuned']:.3f} "
                f"| {differ} | [{low:+.3f}, {high:+.3f}] | [{t['low']:+.3f}, {t['high']:+.3f}] "
                f"| {t['p']:.2g} | {o['verdict']} | {t['verdict']} | {'yes' if r['agree'] else 'NO'} |"
            )
        for name, reached in pair["open"].items():
            lines.append(f"| {name} | not reached: {reached} items |" + " |" * 9)
        c = pair.get("conditions")
        if c:
            same, asked = pair["same_tokens"]
            lines += [
                "",
                f"Prompts and answers with equal token ids: {same} of {asked}. {c['dtype']}, {c['threads']} threads, "
                f"{c['cpu']}; lm-eval {c['versions']['lm-eval']}, transformers {c['versions']['transformers']}, torch "
                f"{c['versions']['torch']}. {_cost(pair)}",
            ]
        lines.append("")
    return "\n".join(lines)


def _cost(pair: dict[str, Any]) -> str:
    ours, theirs = pair["cost"]["ours"], pair["cost"]["lm-eval"]
    seconds = f"{ours['seconds']:.0f} s" if ours else "from the store"
    return f"catchment: {seconds}; lm-eval: {theirs['seconds']:.0f} s, {theirs['tokens']:,} tokens of prompts."


def write(results: list[dict[str, Any]], out: Path, items: int) -> None:
    """``<date>-independent.json`` and ``.md``, and the tables on the terminal."""
    out.mkdir(parents=True, exist_ok=True)
    date = datetime.now(UTC).date().isoformat()
    name = f"{date}-independent" + (f"-{'-'.join(p['pair'] for p in results)}" if len(results) < 3 else "")
    agree = [r["agree"] for pair in results for r in pair["tasks"]]
    content = {"date": date, "items_asked": items, "agree": sum(agree), "verdicts": len(agree), "pairs": results}
    (out / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    text = (
        f"## Verdicts against an independent evaluation, {date}\n\n{sum(agree)} of {len(agree)} verdicts agree. "
        "Same items, same prompts, lm-eval's HF backend; exact McNemar and a paired bootstrap at the same Bonferroni "
        f"level.\nReproduce: `python proofs/independent.py --items {items}`.\n\n{markdown(results)}"
    )
    (out / f"{name}.md").write_text(text, "utf-8")
    print(text)
