"""Realistic sample records, so that what reads records is tested without a model."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any, Literal

from catchment.commands.compare.record import Comparison
from catchment.commands.scan.record import Scan
from catchment.records import (
    Admission,
    AgreementResult,
    Barrier,
    Basin,
    Companion,
    Curvature,
    Drift,
    DriftRow,
    Flip,
    FormatResult,
    Gradients,
    Interval,
    ModelCard,
    Node,
    Oscillation,
    Outcome,
    Panel,
    Plane,
    PlanePoint,
    Profile,
    ProfilePoint,
    Recovered,
    Room,
    Ruler,
    SelfCheck,
    Share,
    Strict,
    SubspaceCard,
    TaskResult,
    TextResult,
    Verdict,
    Worst,
)

MARGIN, ALPHA, LAYERS, WIDTH = 0.02, 0.05, 30, 576
HOSTILE = "<script>document.title = 'broken out'</script><img src=x onerror=alert(1)> & \"quotes\" 'too'"
VERDICT = (
    "This fine-tune gained arithmetic (+31 points, 95% interval +28 to +34) and lost recall (-12 points, -14 to -10); "
    "it kept language and knowledge (no drop of 2 points or more); format (about 1,250 items would decide, 400 used) "
    "and code (about 2,100 items would decide, 800 used) are undecided; refusal is not measurable (the base scores too "
    "low). The 95% intervals hold for all 6 tasks together; this is about these two models, not about the method."
)
KINDS = {
    "attention.q": WIDTH * WIDTH,
    "attention.k": WIDTH * 192,
    "attention.v": WIDTH * 192,
    "attention.o": WIDTH * WIDTH,
    "ffn.gate": WIDTH * 1536,
    "ffn.up": WIDTH * 1536,
    "ffn.down": WIDTH * 1536,
    "norm": 2 * WIDTH,
}
# task, scorer, n, chance, base, share of items lost, share gained, verdict
TASKS: tuple[tuple[str, str, int, float, float, float, float, Verdict], ...] = (
    ("arithmetic", "exact", 1600, 0.0, 0.334, 0.021, 0.331, "gained"),
    ("recall", "exact", 1600, 0.0, 0.871, 0.139, 0.019, "lost"),
    ("language", "choice", 1600, 0.5, 0.802, 0.012, 0.014, "kept"),
    ("knowledge", "choice", 1200, 0.25, 0.463, 0.011, 0.010, "kept"),
    ("format", "regex", 400, 0.0, 0.585, 0.06, 0.0525, "undecided"),
    ("code", "choice_per_byte", 800, 0.25, 0.511, 0.031, 0.025, "undecided"),
    ("refusal", "refusal", 400, 0.0, 0.042, 0.01, 0.004, "not measurable"),
)

RULER = Ruler(0.11, "matrices", 0.999, dtype="float32")


def interval(lost: float, gained: float, n: int, tasks: int = 6) -> Interval:
    """A Wald interval of a paired difference, Bonferroni over ``tasks``; good enough for a sample."""
    estimate = gained - lost
    half = 2.638 * math.sqrt(max(gained + lost - estimate**2, 1e-4) / n)
    return Interval(estimate, max(-1.0, estimate - half), min(1.0, estimate + half), 1 - ALPHA / tasks, "wald", tasks)


def model_card(name: str = "HuggingFaceTB/SmolLM2-135M-Instruct", **changes: Any) -> ModelCard:
    card = ModelCard(
        name=name,
        source="hub",
        architecture="LlamaForCausalLM",
        parameters=134_515_008,
        weights_hash="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
        config_hash="8eb740e8bbe4cff95ea7b4588d17a2432deb16e8075bc5828ff7ba9be94d982a",
        tokenizer_hash="9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c",
        template_hash="4f2bc49ab1e5ad8c0a0ad5f3ab5a61d4a77c92df0f56fd5e5a2c11f6e83c1d0e",
        dtype="float32",
        device="cpu",
        attention="sdpa",
        revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
    )
    return replace(card, **changes)


def task_result(
    name: str, scorer: str, n: int, chance: float, base: float, lost: float, gained: float, verdict: Verdict
) -> TaskResult:
    difference = interval(lost, gained, n)
    reasons = {
        "gained": "+0.310 [+0.277, +0.343] over 1600 items (34 lost, 530 gained): the whole interval is above 0.",
        "lost": "the whole interval is below 0, and a drop of 0.02 is not excluded.",
        "kept": "a drop of 0.02 is excluded (at most 0.009 at 0.9917 confidence).",
        "undecided": "neither a change nor a drop of 0.02 is excluded.",
        "not measurable": "neither a gain nor a loss is shown, and the base scores 0.042 [0.026, 0.067] on 400 items, "
        "below the 0.500 needed (generated answers), so that it cannot be called kept.",
    }
    return TaskResult(
        task=name,
        scorer=scorer,
        n=n,
        chance=chance,
        base=base,
        tuned=base + gained - lost,
        difference=difference,
        verdict=verdict,
        reason=reasons[verdict],
        admitted=verdict != "not measurable",
        flips_lost=round(lost * n),
        flips_gained=round(gained * n),
        decide_n={"format": 1250, "code": 2100}.get(name),
        companion=Companion("probability of the right answer", base - 0.04, base + 0.8 * (gained - lost), difference),
        formats=tuple(
            FormatResult(
                style, 400, base * shift, (base - lost) * shift + more * gained, interval(lost, more * gained, 400)
            )
            for style, shift, more in (("question", 1.0, 1.0), ("bare", 0.93, 0.9), ("instructed", 0.97, 0.7))
        ),
        warnings=("3 items have near-duplicates (similarity above 0.9)",) if name == "code" else (),
        note="the base scores too low" if verdict == "not measurable" else "",
    )


def flips(count: int = 64, seed: int = 0) -> tuple[Flip, ...]:
    """Lost recalls and gained sums, one of them with hostile markup."""
    rng = random.Random(seed)
    names = ["Mara", "Otis", "Ines", "Tomas", "Ayla", "Bruno", "Keiko", "Lena"]
    things = ["red lantern", "brass key", "green notebook", "silver whistle", "blue kite", "old compass"]
    made = [Flip("recall", "hostile", "lost", HOSTILE, "brass key", HOSTILE, "the key", 0.999)]
    for index in range(count - 1):
        if rng.random() < 0.45:
            held = dict(zip(rng.sample(names, 4), rng.sample(things, 4), strict=True))
            who = rng.choice(list(held))
            story = " ".join(f"{name} has the {thing}." for name, thing in held.items())
            other = rng.choice([thing for name, thing in held.items() if name != who])
            prompt = f"{story}\nQuestion: What does {who} have?\nAnswer:"
            made.append(Flip("recall", f"r{index:04x}", "lost", prompt, held[who], held[who], other, rng.random()))
        else:
            a, b = rng.randint(11, 99), rng.randint(11, 99)
            lost = rng.random() < 0.07
            answers = (str(a + b), str(a + b + rng.choice([-10, 1, 10])))
            base, tuned = answers if lost else answers[::-1]
            prompt = f"Question: What is {a} + {b}?\nAnswer:"
            direction: Literal["lost", "gained"] = "lost" if lost else "gained"
            made.append(Flip("arithmetic", f"a{index:04x}", direction, prompt, answers[0], base, tuned, rng.random()))
    return tuple(made)


def drift(seed: int = 0) -> Drift:
    """A sparse move that touches the attention and FFN of the middle layers; norms stay."""
    rng = random.Random(seed)
    rows = [DriftRow("model.embed_tokens.weight", None, "embedding", 49152 * WIDTH, 700.0, 0.0, 0, True)]
    for layer in range(LAYERS):
        bell = math.exp(-(((layer - 17) / 7) ** 2))
        for kind, size in KINDS.items():
            norm = 0.06 * math.sqrt(size)
            strength = {"norm": 0.0, "ffn.down": 1.0, "attention.v": 0.8}.get(kind, 0.35)
            distance = 0.05 * norm * bell * strength * rng.uniform(0.7, 1.2)
            changed = round(0.02 * size * bell * strength)
            name = f"model.layers.{layer}.{kind}"
            rows.append(DriftRow(name, layer, kind, size, norm, distance, changed, kind != "norm"))
    rows.append(DriftRow("model.norm.weight", None, "final norm", WIDTH, 40.0, 0.02, 12, False))
    size = sum(row.size for row in rows)
    norm = math.sqrt(sum(row.norm**2 for row in rows))
    distance = math.sqrt(sum(row.distance**2 for row in rows))
    changed = sum(row.changed for row in rows)
    return Drift(size, norm, distance, distance / math.sqrt(size), changed, tuple(rows), RULER)


def recovered() -> Recovered:
    rows = (
        ("arithmetic", "exact", 800, 0.0, 0.331, 0.024, 0.301, "gained"),
        ("recall", "exact", 800, 0.0, 0.869, 0.013, 0.011, "kept"),
        ("language", "choice", 800, 0.5, 0.803, 0.01, 0.012, "kept"),
    )
    return Recovered(
        path="out/recovered",
        recipe="interpolation between base and tuned",
        strength=0.65,
        tasks=tuple(task_result(*row) for row in rows),  # type: ignore[arg-type]
        candidates=tuple(
            {"recipe": "interpolation", "strength": s / 10, "gain": 0.31 * s / 10, "loss": 0.12 * (s / 10) ** 3}
            for s in range(1, 10)
        ),
    )


def sample_comparison(seed: int = 0, flip_count: int = 64, **changes: Any) -> Comparison:
    """A comparison with everything in it: a gain, a loss, two kept, two undecided and one not measurable task."""
    comparison = Comparison(
        base=model_card(),
        tuned=model_card(
            "out/arithmetic-tune",
            source="increment",
            weights_hash="d43fe87b10f8cd2f3ed43e8c9d6ac1c0a1f9ad9d5e8f2e0b1f6f7b5f2d6f3a91",
            revision=None,
            base="HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        tasks=tuple(task_result(*row) for row in TASKS),
        verdict=VERDICT,
        headline="trade",
        margin=MARGIN,
        alpha=ALPHA,
        flips=flips(flip_count, seed),
        texts=(
            TextResult("stories", 120, 0.8123, 0.8311, Interval(0.0188, 0.0102, 0.0274, 0.99, "t", 2)),
            TextResult("encyclopedia", 120, 0.9764, 0.9759, Interval(-0.0005, -0.0061, 0.0051, 0.99, "t", 2)),
        ),
        agreements=(AgreementResult("own prompts", 200, Interval(0.931, 0.918, 0.944, 0.95, "t"), 0.184),),
        drift=drift(seed),
        recovered=recovered(),
        conditions={
            "versions": {"catchment": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.12.4"},
            "chat_template": "auto",
            "system": None,
            "batch": {"policy": "length-sorted", "size": 32},
            "seeds": [0],
            "tasks": {"arithmetic": "81fe0c1b44aa", "recall": "c2a4e1fd0091"},
        },
        plan={"budget_seconds": 240, "items": {name: n for name, _, n, *_ in TASKS}, "tokens_per_second": 412.5},
        warnings=("2 of 1,600 prompts of recall were truncated to the context of 2,048 tokens",),
        created="2025-03-04T10:12:00Z",
    )
    return replace(comparison, **changes)


# What follows is a scan and the rooms of a tune. Curves are logistic in the logarithm of the scale.

RUNGS = (0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128)
# task, chance, base, low, high, estimate, place
BASINS: tuple[tuple[str, float, float, float, float | None, float | None, Literal["prompt", "inside", "outside"]], ...]
BASINS = (
    ("recall", 0.0, 0.871, 0.0011, 0.0016, 0.00131, "inside"),
    ("knowledge", 0.25, 0.463, 0.0008, 0.0032, 0.0021, "outside"),
    ("arithmetic", 0.0, 0.584, 0.0, 0.0006, 0.00041, "outside"),
    ("language", 0.5, 0.802, 0.0064, None, None, "prompt"),
)


def subspace_card(**changes: Any) -> SubspaceCard:
    card = SubspaceCard("all", "all weights", 134_515_008, 272, 1276.0, 0.11, "9c1f0e5ab42d7788", RULER)
    return replace(card, **changes)


def _node(scale: float, outcome: Outcome, tau: float, units: int = 24) -> Node:
    drop = {"inside": 0.3 * tau, "undecided": 1.05 * tau, "outside": 2.4 * tau}[outcome]
    return Node(
        scale, outcome, Interval(drop, drop - 0.4 * tau, drop + 0.4 * tau, 0.9958, "betting"), units, 40 * units
    )


def basin(
    task: str,
    chance: float,
    base: float,
    low: float,
    high: float | None,
    estimate: float | None,
    place: Literal["prompt", "inside", "outside"],
) -> Basin:
    tau = 0.1 * (base - chance)
    scales = sorted({*RUNGS, *(end for end in (low, high) if end)})
    nodes = tuple(
        _node(s, "inside" if s <= low else "outside" if high is not None and s >= high else "undecided", tau)
        for s in scales
    )
    return Basin(
        task=task,
        base=base,
        chance=chance,
        tau=tau,
        low=low,
        high=high,
        estimate=Interval(estimate, 0.85 * estimate, 1.2 * estimate, 0.95, "bootstrap") if estimate else None,
        nodes=nodes,
        earlier="not looked" if task == "arithmetic" else "no",
        level=0.9875,
        sampling="items and directions",
        evaluations=sum(node.evaluations for node in nodes),
        tokens=61_000,
        strict=(Strict(0.0004, 40, 33, 50, Interval(0.825, 0.672, 0.927, 0.95, "clopper-pearson")),),
        place=place,
        note="the model was good enough on 400 of 400 items" if task == "recall" else "",
    )


def profile(
    task: str, chance: float, base: float, edge: float, direction: Literal["gaussian", "filter", "towards"] = "gaussian"
) -> Profile:
    """A curve that falls from the base to chance around three times ``edge``; towards a model on both sides."""
    sizes = [0.0001 * 2**step for step in range(9)]
    scales = [-s for s in reversed(sizes)] + sizes if direction == "towards" else sizes

    def point(scale: float) -> ProfilePoint:
        left = 1 / (1 + (abs(scale) / (3 * edge)) ** 2.5)
        score, companion = chance + left * (base - chance), 0.1 + left * (base - 0.2)
        half = 0.015 + 0.05 * left * (1 - left)
        return ProfilePoint(
            scale,
            Interval(score, score - half, score + half, 0.95, "t"),
            24,
            960,
            Interval(companion, companion - half / 2, companion + half / 2, 0.95, "t"),
        )

    points = tuple(point(scale) for scale in scales)
    return Profile(task, direction, base, chance, points, base - 0.1, direction != "filter")


def worst_case(task: str, tau: float, radius: float | None, survived: float | None) -> Worst:
    nodes = tuple(
        _node(s, "outside" if radius is not None and s >= radius else "inside", tau, 200)
        for s in sorted({survived or 1e-5, radius or 2e-4})
    )
    return Worst(task, tau, radius, survived, nodes, 3, 20, 64, 200, 1.84, (2.1, 2.9, 3.3))


def plane(count: int = 15) -> Plane:
    axis = tuple(round(-0.006 + 0.012 * i / (count - 1), 6) for i in range(count))

    def height(x: float, y: float) -> float:
        return 0.02 + 0.85 / (1 + ((x / 0.003) ** 2 + (y / 0.0045) ** 2) ** 1.5)

    values = tuple(tuple(height(x, y) for x in axis) for y in axis)
    companions = tuple(tuple(0.05 + 0.8 * value for value in row) for row in values)
    models = (PlanePoint("base", 0.0, 0.0), PlanePoint("out/arithmetic-tune", 0.0041, 0.0))
    return Plane(
        "recall",
        ("towards out/arithmetic-tune", "gaussian, seed 7"),
        axis,
        axis,
        values,
        companions,
        models,
        100,
        0.0004,
    )


def gradients() -> Gradients:
    def shares(strength: float) -> tuple[Share, ...]:
        rows = []
        for name, layer, kind in (
            ("all", None, ""),
            ("layers.0.q", 0, "attention.q"),
            ("layers.9.down", 9, "ffn.down"),
        ):
            for top in (0.001, 0.01, 0.05, 0.1):
                fresh = top**strength
                rows.append(Share(name, layer, kind, 331_776, top, fresh, fresh**2, 0.7 * fresh, 0.49 * fresh**2))
        return tuple(rows)

    scales = tuple(round(-0.004 + 0.0005 * i, 6) for i in range(17))

    def waves(model: Literal["pretrained", "random"], direction: Literal["gaussian", "gradient"]) -> Oscillation:
        strong = 3e4 if model == "pretrained" else 2e3
        losses = tuple(
            tuple(2.1 + strong * s * s + 0.01 * math.sin(9 * d + 4000 * s) for s in scales) for d in range(3)
        )
        return Oscillation(model, direction, scales, losses, 2.1, 0.012, 0.23 if model == "pretrained" else 0.02)

    return Gradients(
        shares(0.2),
        shares(0.35),
        ((0.001, 0.012, 0.00014), (0.01, 0.26, 0.07), (0.05, 0.47, 0.22), (0.1, 0.6, 0.36)),
        tuple(waves(m, d) for m in ("pretrained", "random") for d in ("gaussian", "gradient")),  # type: ignore[arg-type]
        64,
        9_200,
    )


def self_check(**changes: Any) -> SelfCheck:
    same = "5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c"
    check = SelfCheck(
        0.0, 0.99997, 0.0021, 0.0004, 1, same, same, "float32", True, ("lm_head.weight shares embed_tokens.weight",)
    )
    return replace(check, **changes)


def sample_scan(**changes: Any) -> Scan:
    """A scan with one bracket of each kind, a task that is not admitted, and panels that were not bought."""
    basins = tuple(basin(*row) for row in BASINS)
    tau = {found.task: found.tau for found in basins}
    admissions = (
        *(
            Admission(task, 400, Interval(base, base - 0.03, base + 0.03, 0.95, "wilson"), chance, True, "", base - 0.1)
            for task, chance, base, *_ in BASINS
        ),
        Admission(
            "refusal",
            400,
            Interval(0.042, 0.026, 0.067, 0.95, "wilson"),
            0.0,
            False,
            "scores 0.042, needs 0.5 at least",
        ),
    )
    scan = Scan(
        model=model_card(),
        subspace=subspace_card(),
        admissions=admissions,
        basins=basins,
        profiles=(
            *(profile(task, chance, base, estimate or 0.0065) for task, chance, base, _, _, estimate, _ in BASINS),
            profile("recall", 0.0, 0.871, 0.0009, "towards"),
            profile("recall", 0.0, 0.871, 0.0009, "filter"),
        ),
        worst=(
            worst_case("recall", tau["recall"], 3.1e-5, 1.6e-5),
            worst_case("arithmetic", tau["arithmetic"], 1.2e-5, None),
            worst_case("language", tau["language"], None, 2e-4),
        ),
        sentence="Under random moves arithmetic has the narrowest of 4 basins.",
        check=self_check(),
        panels=(
            Panel("basins", "Basins", True, 212.0),
            Panel("profiles", "Profiles", True, 41.0),
            Panel("worst", "Worst case", True, 95.0),
            Panel("plane", "Plane", True, 160.0),
            Panel("curvature", "Curvature", False, 0.0, 178.0),
            Panel("gradients", "Gradients", False, 0.0, 400.0, "needs a second model at random initialisation"),
            Panel("more directions", "More directions for knowledge", False, 0.0, None),
        ),
        plane=plane(),
        conditions={"versions": {"catchment": "0.2.0", "torch": "2.13.0"}, "seed": 0, "batch": {"size": 32}},
        plan={"budget_seconds": 600, "rungs": list(RUNGS)},
        warnings=("3 of 400 prompts of knowledge were truncated to the context of 2,048 tokens",),
        created="2025-03-04T10:12:00Z",
    )
    return replace(scan, **changes)


def curvature() -> Curvature:
    return Curvature(
        2.134, 0.81, (4210.0, 1330.0, 912.0), (0.4, 0.7, 1.9), Interval(91_000.0, 84_000.0, 98_000.0, 0.95, "t"),
        134_515_008, 96, 64, 9_100,
    )  # fmt: skip


def rooms() -> tuple[Room, ...]:
    """A tune that used up its room on recall, stands inside on language, is undecided on knowledge."""
    rows: tuple[tuple[str, float, float | None, float, float | None], ...] = (
        ("recall", 0.087, 0.42, 0.375, 0.5),
        ("language", 0.03, None, 3.0, None),
        ("knowledge", 0.021, 1.07, 0.75, 1.25),
        ("arithmetic", 0.058, 1.6, 1.5, 1.75),
    )
    beside: dict[str, Any] = {
        "recall": {
            "typical": (4.1, 6.0),
            "worst": 0.11,
            "barrier": Barrier("recall", Interval(0.01, -0.012, 0.03, 0.95, "t"), 0.5, 7),
        },
        "language": {"typical": (24.0, None)},
        "arithmetic": {"barrier": Barrier("arithmetic", Interval(0.094, 0.051, 0.137, 0.95, "t"), 0.625, 7)},
    }
    return tuple(
        Room(
            task, tau, t, low, high, 3.0,
            tuple(_node(s, "inside" if s <= low else "outside", tau, 800) for s in (low, high or 3.0)),
            0.00027, subspace_card(), level=0.9875, **beside.get(task, {}),
        )
        for task, tau, t, low, high in rows
    )  # fmt: skip
