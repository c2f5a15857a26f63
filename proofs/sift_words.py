"""The tables of ``sift.py`` for people."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sift_tables as tables

from catchment.runs import write_atomic

Found = dict[str, Any]
Done = Mapping[str, Found]
DECODERS = (
    ("stories15M", "SST-2"), ("stories15M", "arithmetic"),
    *(("SmolLM2-135M-Instruct", name) for name in ("arithmetic", "RTE", "CoLA", "Alpaca")),
)  # fmt: skip
METHODS = ("SIFT", "random", "LoRA", "SHiRA", "full")

METHOD = """AdamW without weight decay, linear decay after 6% warm-up, batches of 16, clipping at 1, fp32, on a CPU; \
the same rows in the same order for every method of a seed. Answers end with a line break and not with the \
end token, which stories15M never saw: learning it (14 nats at first) took most of the gradient. Learning \
rates were chosen on rows and a seed of their own. SIFT and random: 1% of every matrix of attention and \
FFN (one micro-batch chooses); LoRA and SHiRA: as near as whole ranks come (LoRA on stories15M: rank 2, \
and 1 on q and k; SHiRA: rank 2, k left out); full: every weight. On SmolLM2-135M rates were not chosen but \
set to a third of those of stories15M or less, and Alpaca is put in the chat template with its end token. \
Gains: mean over seeds (smallest to largest); intervals in brackets are 95% over items, of the mean over \
seeds, and say nothing about other seeds. Verdicts: one per seed, margin 0.02, simultaneous over the tasks.
"""


def write(cells: Sequence[Any], done: Done, out: Path) -> None:
    """``sift-<date>.json`` and ``.md``."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(
        out / f"{tables.name()}.json", json.dumps(tables.result(cells, done), indent=1, ensure_ascii=False) + "\n"
    )
    write_atomic(out / f"{tables.name()}.md", markdown(cells, done))


def markdown(cells: Sequence[Any], done: Done) -> str:
    """All tables; what was not measured yet is left out or said to be missing."""
    parts = ["# SIFT beside random entries, LoRA, SHiRA and full fine-tuning", METHOD, *_findings(done)]
    parts += ["## Gain on what was tuned on", *_gain(done), "## Forgetting", *_forgetting(done)]
    parts += ["## Cost", *_cost(done), *_memory(done), "## Encoder: MiniLM on MRPC", *_encoder(done)]
    parts += ["## Flatness", *_flatness(done), "## Learning rates", *_rates(done), "## Price", *_price(cells, done)]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "Not measured yet."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def interval(values: Sequence[float]) -> str:
    return f"{values[0]:+.3f} [{values[1]:+.3f}, {values[2]:+.3f}]"


def _groups(done: Done) -> Iterator[tuple[str, str, Found, str, list[Found]]]:
    """Model, data, base, method, runs."""
    for model, data in DECODERS:
        base, runs = tables.base_of(done, model, data), tables.tuned(done, model, data)
        for method in METHODS:
            if base and method in runs:
                yield model, data, base, method, runs[method]


def _gain(done: Done) -> list[str]:
    rows = []
    for model, data, base, method, runs in _groups(done):
        g = tables.gain(base, runs)
        scored = ["-"] * 3
        if "scores" in g:
            scored = [f"{g['base_score']:.3f}", tables.span(g["scores"]), interval(g["score_change"])]
        rows.append([
            model, data, method, f"{runs[0]['trainable']:,}", str(len(runs)), f"{runs[0]['lr']:g}",
            f"{g['base_loss']:.3f}", tables.span(g["losses"]), interval(g["loss_change"]), *scored, str(g["n"]),
        ])  # fmt: skip
    return [table(["model", "data", "method", "trained", "seeds", "lr", "loss before", "after", "change",
                   "accuracy before", "after", "change", "items"], rows)]  # fmt: skip


def _forgetting(done: Done) -> list[str]:
    rows = []
    for model, data, base, method, runs in _groups(done):
        for task, f in tables.forgetting(base, runs).items():
            said = ", ".join(f"{v} {n}" for v, n in Counter[str](f["verdicts"]).most_common())
            change = tables.span(f["changes"], "{:+.3f}")
            rows.append([model, data, method, task, f"{f['base']:.3f}", change, said, str(f["n"])])
    return [table(["model", "tuned on", "method", "task", "before", "change", "verdicts by seed", "items"], rows)]


def _cost(done: Done) -> list[str]:
    rows = []
    for model, data, _, method, runs in _groups(done):
        rows.append([
            model, data, method, tables.span([r["seconds"] for r in runs], "{:.0f}"), f"{runs[0]['trained_tokens']:,}",
            tables.span([r["bytes"]["fp32"] / 1e3 for r in runs], "{:,.0f}"),
            tables.span([r["bytes"]["bf16"] / 1e3 for r in runs], "{:,.0f}"),
            tables.span([r["bytes"]["fp32"] / r["trainable"] for r in runs[:1]], "{:.1f}"),
            tables.span([1e4 * r["moved"]["rms"] for r in runs], "{:.2f}"),
            tables.span([1e4 * r["moved"]["rms_changed"] for r in runs], "{:.2f}"),
        ])  # fmt: skip
    note = (
        "Seconds of the training loop on a machine that others used too: compare with care. kB of what the method "
        "writes, as it is and cast to bf16 (indices stay). Displacement: RMS over all weights, and over those that "
        "changed, times 10,000."
    )
    return [note, table(["model", "data", "method", "seconds", "tokens", "kB fp32", "kB bf16", "bytes per number",
                         "RMS", "RMS of changed"], rows)]  # fmt: skip


def _memory(done: Done) -> list[str]:
    rows = []
    for method in METHODS:
        cell = done.get(f"stories15M/memory/{method}")
        if cell and "peak" in cell["result"]:
            r = cell["result"]
            rows.append([method, f"{r['model'] / 1e6:.1f}", f"{r['peak'] / 1e6:.1f}"])
    note = (
        "Most bytes that torch's allocator held at once beyond the model (MB; stories15M, batch 16 of sums, three "
        "steps of AdamW), from the record of every allocation. Activations and logits are in it; full keeps no base."
    )
    return [note, table(["method", "model", "peak beyond it"], rows), *_speed(done)]


def _speed(done: Done) -> list[str]:
    cell = done.get("stories15M/speed")
    if not cell or "speed" not in cell["result"]:
        return []
    found = {method: statistics.median(x) for method, x in cell["result"]["speed"].items()}
    plain = found["forward and backward"]
    rows = [[method, f"{1e3 * x:.0f}", f"{x / plain:.2f}"] for method, x in found.items()]
    note = (
        "CPU time of a step (milliseconds, median of interleaved steps on the same batch, one thread): forward, "
        "backward, clipping, AdamW. First row: a plain model whose attention and FFN matrices have gradients, "
        "without a step."
    )
    return [note, table(["method", "ms", "of forward and backward"], rows)]


def _encoder(done: Done) -> list[str]:
    found = tables.encoder(done)
    budgets = sorted({budget for _, budget in found if budget})
    rows = []
    for (method, budget), runs in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
        rows.append([
            method, f"{budget:,}" if budget else "-", f"{runs[0]['trainable']:,}", str(len(runs)), f"{runs[0]['lr']:g}",
            tables.span([r["accuracy"] for r in runs]), tables.span([r["loss"] for r in runs]),
        ])  # fmt: skip
    parts = [table(["choice", "budget", "trained with the head", "seeds", "lr", "accuracy", "loss"], rows)]
    compared = []
    for budget in budgets:
        for rule in ("random", "magnitude"):
            d = tables.difference(found.get(("gradient", budget), []), found.get((rule, budget), []))
            if d:
                what = f"gradient - {rule}"
                compared.append([f"{budget:,}", what, interval(d["difference"]), str(d["seeds"]), str(d["n"])])
    if compared:
        parts.append(table(["budget", "difference in accuracy", "", "seeds", "items"], compared))
    if found:
        majority = next(iter(found.values()))[0]["majority"]
        parts.append(f"Always answering the more frequent label scores {majority:.3f} on the 408 dev pairs.")
    parts.append(
        "The pooler is the checkpoint's own and the head is new; the head trains in every row. Rates were chosen at a "
        "budget of 10,000, by a whole run of another seed, and used for the others; magnitude took the one of random. "
        "Where only one seed is there, a difference says nothing about seeds."
    )
    return parts


def _flatness(done: Done) -> list[str]:
    rows = []
    for cell in done.values():
        r = cell["result"]
        if cell["part"] == "flatness" and "trace" in r:
            s = cell["settings"]
            width = "-" if r["width"] is None else f"{r['width']:.2g}"
            relative = "-" if r["width"] is None else f"{r['width'] / r['rms']:.2g}"
            trace = f"{r['trace']:.3g} [{r['trace_low']:.3g}, {r['trace_high']:.3g}]"
            rows.append([s["start"], s["method"], f"{r['loss']:.3f}", trace, f"{r['top']:.3g}", width, relative])
    note = (
        "On 32 fixed training rows, over the weights of attention and FFN. Width: standard deviation of a random move "
        "at which the mean loss of 8 directions has risen by 0.1 nats per token; also as a share of RMS(W)."
    )
    head = ["start", "tuned by", "loss", "trace of the Hessian", "largest eigenvalue", "width", "of RMS(W)"]
    return [note, table(head, rows)]


def _rates(done: Done) -> list[str]:
    grids: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for cell in done.values():
        s, r = cell["settings"], cell["result"]
        if "/lr " in cell["name"] and "loss" in r:
            grids.setdefault((s["model"], s["data"], s["method"]), []).append((s["lr"], r["loss"]))
    rows = []
    for (model, data, method), tried in grids.items():
        best = min(tried, key=lambda pair: pair[1])[0]
        edge = best in (min(lr for lr, _ in tried), max(lr for lr, _ in tried))
        shown = ", ".join(f"{lr:g}: {loss:.3f}" for lr, loss in sorted(tried))
        rows.append([model, data, method, shown, f"{best:g}{' (at the edge)' if edge else ''}"])
    head = ["model", "data", "method", "learning rate: loss", "chosen"]
    return ["Validation loss after a short run.", table(head, rows)]


def _price(cells: Sequence[Any], done: Done) -> list[str]:
    parts: dict[str, list[Any]] = {}
    for cell in cells:
        parts.setdefault(f"{cell.part}{', learning rates' if '/lr ' in cell.name else ''}", []).append(cell)
    rows = []
    for part, some in parts.items():
        there = [c for c in some if c.name in done]
        most = max(c.tokens for c in some)
        whole, seconds = sum(c.tokens for c in some), sum(done[c.name]["wall_seconds"] for c in there)
        rows.append([part, str(len(some)), str(len(there)), f"{most:,}", f"{whole:,}", f"{seconds:,.0f}"])
    return [table(["part", "cells", "done", "training tokens each", "in all", "seconds so far"], rows)]


def _findings(done: Done) -> list[str]:
    """What the numbers say, in sentences that are made of them."""
    said: list[str] = []
    for model, data in DECODERS:
        base, runs = tables.base_of(done, model, data), tables.tuned(done, model, data)
        if base and {"SIFT", "random"} <= runs.keys():
            said += _found(f"{model} on {data}", base, runs)
    said.append(
        "Learning rates were chosen for the loss after a quarter of the training, where sums were hardly learnt, not "
        "for what is forgotten: a method whose best rate is larger also moves further. One seed decides no order."
    )
    return ["## What came out", "\n".join(f"- {s}" for s in said)]


def _found(what: str, base: Found, runs: Mapping[str, list[Found]]) -> Iterator[str]:
    there = [m for m in METHODS if m in runs]
    seeds = min(len(found) for found in runs.values())
    losses = {m: tables.gain(base, runs[m][:seeds])["losses"] for m in there}
    order = sorted(there, key=lambda m: statistics.fmean(losses[m]))
    ranked = ", ".join(f"{m} {statistics.fmean(losses[m]):.3f}" for m in order)
    yield f"{what}, seeds that these methods all have: {seeds}. Held-out loss, lowest first: {ranked}."
    verdicts = {m: [v for f in tables.forgetting(base, runs[m][:seeds]).values() for v in f["verdicts"]] for m in there}
    lost = ", ".join(f"{m} {verdicts[m].count('lost')}" for m in there)
    kept = ", ".join(f"{m} {verdicts[m].count('kept')}" for m in there)
    yield f"Of {len(verdicts['SIFT'])} verdicts on other tasks: lost by {lost}; kept by {kept}."
    better = sum(a < b for a, b in zip(losses["SIFT"], losses["random"], strict=True))
    yield f"Entries chosen by gradients had a lower held-out loss than random ones in {better} of {seeds} seeds."
