"""The released scores of arXiv 2408.06663, and the contrasts of the paper over them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from catchment.commands.study.analysis.whole import analyse
from catchment.commands.study.foreign_table import TableSettings, read_scores
from catchment.commands.study.record import Contrast, Study
from catchment.commands.study.scores import Pairs

CSV = Path(__file__).parents[3] / "data" / "amuro_char" / "amuro_char_released_scores.csv"
STEPS = ("1000", "18000", "342000", "424000", "505000", "592000", "738000", "main")
CHOICE = ("sciq_mc", "hellaswag_mc", "arc_challenge_mc", "arc_easy_mc", "openbookqa_mc", "sciq_mc")
SINGLE = (
    ("mnli", "rte"), ("mnli", "gpt3nli"), ("paws", "qqp"), ("paws", "stsb"), ("xsum", "cnn"), ("socialiqa", "sciq"),
    ("socialiqa", "tweetqa"),
)  # fmt: skip
NOT_LEARNED = (
    ("mnli", "mnli_matched"), ("mnli", "mnli_mismatched"), ("paws", "paws"), ("xsum", "xsum"), ("xsum", "xlsum"),
    ("socialiqa", "socialiqa"), ("tulu", "boolq_mc"),
)  # fmt: skip
CONTRASTS = (
    Pairs("learned", tuple(("tulu", task) for task in CHOICE)),
    Pairs("not learned", NOT_LEARNED),
    Pairs("class->gen", tuple((t, d) for t in ("mnli", "paws") for d in ("xsum", "socialiqa"))),
    Pairs("gen->class", tuple((t, d) for t in ("xsum", "socialiqa") for d in ("paws", "mnli_matched"))),
    *(Pairs(f"{t}->{d}", ((t, d),)) for t, d in SINGLE),
)
IN_DOMAIN = {
    "mnli": ("mnli_matched", "mnli_mismatched"), "paws": ("paws",), "xsum": ("xsum", "xlsum"),
    "socialiqa": ("socialiqa",),
}  # fmt: skip


@cache
def study() -> Study:
    return analyse(read_scores(CSV, settings=TableSettings(contrasts=CONTRASTS, in_domain=IN_DOMAIN)))


def contrast(name: str) -> Contrast:
    return next(c for c in study().contrasts if c.name == name)


def printed(values: list[float | None], digits: int) -> str:
    """Numbers as the paper's tables print them: ``.048 -.005``."""
    texts = ("none" if value is None else f"{value:.{digits}f}" for value in values)
    return " ".join(text.replace("0.", ".", 1).replace(f"-.{'0' * digits}", f".{'0' * digits}") for text in texts)
