"""The tables of scanned models for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import results

STORED = {
    "SmolLM2-135M-Instruct": "de-quantised from Q4_1 and Q8_0 blocks of a GGUF file, so that its weights lie on a grid "
    "and are not the published ones",
    "stories15M": "full precision, as published",
}
V, PARABOLA = 0.2, math.sqrt(0.2)
"""The shape number of a loss that rises as s, and as s^2."""
ROOM = 0.3
"""Above chance: with less, the noise of a few items is a large loss, and crossings come too early."""
LEAST = 10
"""Pairs at every scale, for a shape to be named."""
PAPER = {
    "Llama-3.1-8B": {
        "safety": {0.1: (0.0023, 0.0016), 0.5: (0.0024, 0.0022), 0.9: (0.0027, 0.0027)},
        "math": {0.1: (0.0012, 0.0010), 0.5: (0.0022, 0.0022), 0.9: (0.0027, 0.0027)},
        "basic": {0.1: (0.0019, 0.0016), 0.5: (0.0026, 0.0024), 0.9: (0.0032, 0.0029)},
        "coding": {0.1: (0.0002, 0.0011), 0.5: (0.0022, 0.0021), 0.9: (0.0025, 0.0025)},
    },
    "Qwen2.5-7B": {
        "safety": {0.1: (0.0051, 0.0039), 0.5: (0.0059, 0.0054), 0.9: (0.007, 0.0062)},
        "math": {0.1: (0.0030, 0.0032), 0.5: (0.0045, 0.0045), 0.9: (0.0062, 0.0053)},
        "basic": {0.1: (0.0043, 0.0037), 0.5: (0.0052, 0.0047), 0.9: (0.0066, 0.0060)},
        "coding": {0.1: (0.0009, 0.0016), 0.5: (0.0039, 0.0043), 0.9: (0.0053, 0.0054)},
    },
    "Ministral-8B": {
        "safety": {0.5: (0.0012, 0.0011)},
        "math": {0.5: (0.0012, 0.0010)},
        "basic": {0.5: (0.0015, 0.0013)},
        "coding": {0.5: (0.0011, 0.0011)},
    },
}
"""|alpha| at the first crossing of each loss, negative and positive side, read off the figures of v1 of the paper
(ranges at their middle)."""

METHOD = """Loss is raw: (base - score)/(base - chance); 0 is the model itself, 1 is guessing. Scales are standard \
deviations of Gaussian noise on every weight (`sigma`, equal to the paper's alpha), also as a share of RMS(W). A pair \
is an antithetic pair of random directions with its own fresh items; all tasks of a model share the directions. \
Intervals in brackets: 95%, bootstrap over pairs, scale by scale. Brackets: drop(low) <= tau < drop(high), both \
decided by an anytime-valid sequence at 95% over all tasks of the model together, tau = 0.1 of what is above chance, \
on directions and items of their own. `companion`: probability of the right choice among the choices, or of the right \
answer; `nats`: its logarithm, where 1 is the logarithm of chance.

Shape number r = sigma(0.1)/sigma(0.5): 0.20 for a straight V, 0.45 for a parabola, towards 1 for a flat basin with a \
cliff. Straight lines join the scales, which bends r by up to 5% between scales a factor of 2 apart.
"""


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def unit(model: Mapping[str, Any]) -> float:
    """RMS(W) over the matrices; over all weights in results of versions that had no other."""
    return float(model["ruler"]["rms"] if "ruler" in model else model["rms"])


def interval(found: Mapping[str, Any] | None, by: float = 1.0, digits: int = 2) -> str:
    """``estimate [low, high]``, divided by ``by``; ">" where an end lies beyond the ladder."""
    if not found or found["estimate"] is None:
        return "not reached"
    low, high = (None if found[k] is None else found[k] / by for k in ("low", "high"))
    return f"{number(found['estimate'] / by, digits)} [{number(low, digits)}, {number(high, digits) if high else '>'}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [*results.table(head, rows).splitlines(), ""]


def markdown(content: Mapping[str, Any]) -> str:
    """All tables."""
    lines = [f"## Scans of small models, {content['date']}", "", "Reproduce: `make proofs NAME=scans BUDGET=60m`.", ""]
    lines += [METHOD]
    for name, model in content["models"].items():
        lines += [f"### {name}", ""]
        lines += [f"Left out: {model['left_out']}.", ""] if "left_out" in model else _model(model)
    lines += ["### The paper's, beside ours", "", *_paper(content["models"])]
    return "\n".join(lines).rstrip() + "\n"


def _model(model: Mapping[str, Any]) -> list[str]:
    c = model["conditions"]
    lines = [
        f"{model['parameters']:,} weights, {model['dtype']}, {model['stored_as']}; all of them move; RMS(W) "
        f"{unit(model):.5g} over {'the matrices' if 'ruler' in model else 'all weights'}; weights "
        f"{model['weights'][:12]}. {c['cpu']}, torch "
        f"{c['versions']['torch']}, transformers {c['versions']['transformers']}.",
        "",
    ]
    return [
        *lines, *_own(model), *_basins(model), *_shapes(model), *_profiles(model), *_gradients(model), *_cells(model)
    ]  # fmt: skip


def _own(model: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            a["task"], str(a["n"]), interval(a["score"], digits=3), f"{a['chance']:.2f}", number(a["companion"], 3),
            "yes" if a["admitted"] else f"no: {a['reason']}",
        ]
        for a in model["admissions"]
    ]  # fmt: skip
    return table(["task", "items", "own score", "chance", "companion", "admitted"], rows)


def _basins(model: Mapping[str, Any]) -> list[str]:
    rms, rows = unit(model), []
    for name, t in model["tasks"].items():
        basin, worst = t["basin"], t["worst"]
        bracket, units = "not looked for", ""
        if basin:
            end = number(basin["high"]) if basin["high"] else "none"
            bracket = f"{number(basin['low'])} to {end} ({number(basin['low'] / rms)} to "
            bracket += f"{number(basin['high'] / rms) if basin['high'] else 'none'})"
            units = f"{sum(n['units'] for n in basin['nodes'])} pairs at {len(basin['nodes'])} scales"
        if t["units_needed"] > t["units_there"]:
            units += f"; inside takes {t['units_needed']}, items for {t['units_there']}"
        rows.append([
            name, f"{t['base']:.3f}", f"{t['tau']:.3f}", bracket, units, interval(t["sigma"]),
            interval(t["sigma"], rms), *_worst(t["sigma"], worst),
        ])  # fmt: skip
    return table(
        [
            "task", "base", "tau", "bracket, sigma (/RMS)", "decided on", "sigma estimate", "/RMS(W)",
            "worst-case radius at most", "worst/most",
        ],
        rows,
    )  # fmt: skip


def _worst(sigma: Mapping[str, Any] | None, worst: Mapping[str, Any] | None) -> list[str]:
    if worst is None:
        return ["not looked for", ""]
    n = f"{worst['restarts']} starts of {worst['steps']} steps on {worst['ascent_items']} items, judged on "
    n += str(worst["scored_items"])
    if worst["radius"] is None:
        return [f"none found up to {number(worst['survived'])} ({n})", ""]
    ratio = worst["radius"] / sigma["estimate"] if sigma and sigma["estimate"] else None
    return [f"{worst['radius']:.2g} ({n})", f"1/{1 / ratio:.0f}" if ratio else ""]


def _shapes(model: Mapping[str, Any]) -> list[str]:
    rms, rows = unit(model), []
    for name, t in model["tasks"].items():
        for kind in ("score", "companion", "nats"):
            found = t["shape"].get(kind)
            if not found:
                rows.append([name, kind, "none known", "", "", "", "", ""])
                continue
            points = t["losses"][kind]
            n = f"{min(p['pairs'] for p in points)} x {t['items_each']} x {len(points)}"
            rows.append([
                name, kind, n, *(interval(found[level], rms) for level in ("0.1", "0.5", "0.9")), interval(found["r"]),
                word(t, kind),
            ])  # fmt: skip
        gap = t["shape"].get("r_score_minus_companion")
        if gap:
            rows.append([name, "r of score - r of companion", "", "", "", "", interval(gap), ""])
    head = [
        "task",
        "of",
        "pairs x items x scales",
        "loss 0.1, /RMS(W)",
        "loss 0.5, /RMS(W)",
        "loss 0.9, /RMS(W)",
        "r",
        "shape",
    ]
    return table(head, rows)


def word(task: Mapping[str, Any], kind: str) -> str:
    """What the shape number allows to say, if anything."""
    found = task["shape"][kind]
    if task["base"] - task["chance"] <= ROOM:
        return "too near chance"
    if few(task):
        return "too few pairs"
    return verdict(found["r"], found["0.1"], found["first_scale"])


def few(task: Mapping[str, Any]) -> bool:
    return min(p["pairs"] for p in task["losses"]["score"]) < LEAST


def verdict(r: Mapping[str, Any], first: Mapping[str, Any], begin: float) -> str:
    """What the interval of r leaves over."""
    if r["estimate"] is None or r["low"] is None or r["high"] is None:
        return "not reached"
    note = " (first crossing below the ladder)" if first["estimate"] < begin else ""
    if r["low"] > PARABOLA:
        return "flatter than a parabola" + note
    if r["high"] < V:
        return "sharper than a V" + note
    if r["low"] <= V:
        return ("V or parabola" if r["high"] >= PARABOLA else "V") + " not excluded" + note
    return ("like a parabola" if r["high"] >= PARABOLA else "between V and parabola") + ", V excluded" + note


def _profiles(model: Mapping[str, Any]) -> list[str]:
    tasks = list(model["tasks"])
    scales = sorted({p["scale"] for t in model["tasks"].values() for p in t["profile"]["points"]})
    rows = []
    for scale in scales:
        row = [f"{scale:.3g}", f"{scale / unit(model):.3g}"]
        for t in model["tasks"].values():
            at = next((p for p in t["profile"]["points"] if p["scale"] == scale), None)
            row.append(
                f"{interval(at['score'], digits=3)}, {number((at['companion'] or {}).get('estimate'), 3)}" if at else ""
            )
        rows.append(row)
    return ["Mean score with its band, and companion:", "", *table(["sigma", "/RMS(W)", *tasks], rows)]


def _gradients(model: Mapping[str, Any]) -> list[str]:
    if not model["gradients"]:
        return []
    lines = [
        "Share of the gradient in its largest entries, L2 norm (square). Per tensor: median (smallest to largest).",
        "",
    ]
    rows, waves = [], []
    for task, found in model["gradients"].items():
        for top in (0.01, 0.05):
            rows += [
                [task, f"{top:.0%}", kind, *_shares(next(s for s in found[kind] if s["top"] == top))]
                for kind in ("pretrained", "random")
            ]
            norm, square = next(tuple(g[1:]) for g in found["gaussian"] if g[0] == top)
            rows.append([task, f"{top:.0%}", "Gaussian", f"{norm:.2f} ({square:.2f})", *[""] * 4])
        for o in found["oscillation"]:
            reach = f"{max(o['scales']) / unit(model):.2g}" if o["model"] == "pretrained" else "the same"
            waves.append([
                task, o["model"], o["direction"], str(len(o["losses"])), reach, f"{o['centre']:.3f}",
                f"{o['amplitude']:.3g}", f"{o['amplitude'] / o['centre']:.2g}", f"{o['rise']:+.2g}",
            ])  # fmt: skip
    lines += table(
        [
            "task",
            "top",
            "weights",
            "all, fresh",
            "all, static",
            "per tensor, fresh L2",
            "per tensor, static L2",
            "medians of fresh L2 by kind",
        ],
        rows,
    )
    lines += [
        "Loss (nats per token) along directions, to both sides: mean absolute second difference, and mean rise at "
        "the ends relative to the centre.", "",
        *table(["task", "weights", "direction", "directions", "reach, /RMS(W)", "loss at 0", "amplitude",
                "amplitude/loss", "rise"], waves),
    ]  # fmt: skip
    return lines


def _shares(whole: Mapping[str, Any]) -> list[str]:
    found = [f"{whole[how]:.2f} ({whole[how + '_squared']:.2f})" for how in ("fresh", "static")]
    for how in ("fresh", "static"):
        median, low, high = whole["tensors"]["any"][how]
        found.append(f"{median:.2f} ({low:.2f} to {high:.2f})")
    medians = (f"{k} {v['fresh'][0]:.2f}" for k, v in whole["tensors"].items() if k != "any")
    return [*found, ", ".join(medians)]


def _cells(model: Mapping[str, Any]) -> list[str]:
    rows = [
        [c["cell"], f"{c['cap_tokens']:,.0f}" if c["cap_tokens"] else "by design", f"{c['tokens']:,}",
         f"{c['evaluations']:,}", c["note"] or "complete"]
        for c in model["cells"]
    ]  # fmt: skip
    lines = ["Cells, in the order measured; tokens and evaluations at displaced points, without the ascent's own.", ""]
    return [*lines, *table(["cell", "budget, tokens", "tokens", "item evaluations", "state"], rows)]


def _paper(models: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, tasks in PAPER.items():
        for task, at in tasks.items():
            cells = ["/".join(f"{side:g}" for side in at[level]) if level in at else "-" for level in (0.1, 0.5, 0.9)]
            r = "/".join(f"{a / b:.2f}" for a, b in zip(at[0.1], at[0.5], strict=True)) if 0.1 in at else "-"
            rows.append([f"{name} (paper)", task, *cells, r])
    for name, model in models.items():
        for task, t in model.get("tasks", {}).items():
            found = t["shape"].get("score")
            if found and not few(t) and t["base"] - t["chance"] > ROOM:
                rows.append([name, task, *(interval(found[k]) for k in ("0.1", "0.5", "0.9")), interval(found["r"])])
    lines = [
        "Paper: first crossing on the negative/positive side of one direction, read off v1's figures, loss normalised "
        "per curve; absolute scales, RMS(W) not known. Ours: mean over pairs, raw loss.",
        "",
    ]
    return lines + table(["model", "task", "loss 0.1", "loss 0.5", "loss 0.9", "r"], rows)
