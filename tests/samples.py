"""Realistic sample records, so that what reads records is tested without a model."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any, Literal

from catchment.records import (
    AgreementResult,
    Companion,
    Comparison,
    Drift,
    DriftRow,
    Flip,
    FormatResult,
    Interval,
    ModelCard,
    Recovered,
    TaskResult,
    TextResult,
    Verdict,
)

MARGIN, ALPHA, LAYERS, WIDTH = 0.02, 0.05, 30, 576
HOSTILE = "<script>document.title = 'broken out'</script><img src=x onerror=alert(1)> & \"quotes\" 'too'"
VERDICT = (
    "This fine-tune gained arithmetic (+31 points, 95% interval +28 to +34) and lost recall (-12 points, -14 to -10); "
    "it kept language and knowledge (no drop of 2 points or more); format (about 1,250 items would decide, 400 used) "
    "and code (about 2,100 items would decide, 800 used) are undecided; refusal is not measurable on this base model. "
    "The 95% intervals hold for all 6 tasks together; this is about these two models, not about the method."
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
        "not measurable": "Nothing to lose that could be seen: the base scores 0.042 [0.026, 0.067] on 400 items.",
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
    rows = [DriftRow("model.embed_tokens.weight", None, "embedding", 49152 * WIDTH, 700.0, 0.0, 0)]
    for layer in range(LAYERS):
        bell = math.exp(-(((layer - 17) / 7) ** 2))
        for kind, size in KINDS.items():
            norm = 0.06 * math.sqrt(size)
            strength = {"norm": 0.0, "ffn.down": 1.0, "attention.v": 0.8}.get(kind, 0.35)
            distance = 0.05 * norm * bell * strength * rng.uniform(0.7, 1.2)
            changed = round(0.02 * size * bell * strength)
            rows.append(DriftRow(f"model.layers.{layer}.{kind}", layer, kind, size, norm, distance, changed))
    rows.append(DriftRow("model.norm.weight", None, "final norm", WIDTH, 40.0, 0.02, 12))
    size = sum(row.size for row in rows)
    norm = math.sqrt(sum(row.norm**2 for row in rows))
    distance = math.sqrt(sum(row.distance**2 for row in rows))
    return Drift(size, norm, distance, distance / math.sqrt(size), sum(row.changed for row in rows), tuple(rows))


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
