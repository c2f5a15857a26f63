from __future__ import annotations

from dataclasses import replace

import pytest

from catchment import pages
from catchment.commands.compare.words import headline_label
from catchment.errors import InputError
from catchment.measuring import verdict_sentence
from catchment.records import Interval, TaskResult, Verdict
from tests.samples import sample_comparison, task_result


def task(
    name: str, verdict: Verdict, difference: tuple[float, float, float] = (0.0, -0.01, 0.01), **changes
) -> TaskResult:  # type: ignore[no-untyped-def]
    made = task_result(name, "choice", 400, 0.25, 0.6, 0.05, 0.05, verdict)
    return replace(made, difference=Interval(*difference, 0.99, "score", 3), **changes)


GAIN = task("sums", "gained", (0.31, 0.27, 0.35))
LOSS = task("recall", "lost", (-0.12, -0.16, -0.08))
KEPT = task("language", "kept")
OPEN = task("format", "undecided", (-0.01, -0.05, 0.03), decide_n=1250)
BLIND = task("refusal", "not measurable")
FEW = task("code", "not measurable", note="too few items")


@pytest.mark.parametrize(
    ("tasks", "headline", "title"),
    [
        ([KEPT, BLIND], "clean", "Kept everything that could be measured"),
        ([LOSS, KEPT, OPEN], "loss", "Lost recall, format undecided"),
        ([GAIN, KEPT], "gain", "Gained sums, kept the rest"),
        ([GAIN, KEPT, OPEN], "gain", "Gained sums, format undecided"),
        ([GAIN, LOSS, KEPT], "trade", "Gained sums, lost recall"),
        ([KEPT, OPEN], "open", "Kept language, format undecided"),
        ([OPEN], "open", "Nothing decided yet"),
        ([BLIND], "open", "Nothing could be measured"),
        ([KEPT, FEW], "open", "Kept language, code with too few items"),
        ([KEPT, OPEN, FEW], "open", "Kept language, format undecided, code with too few items"),
        ([GAIN, KEPT, FEW], "gain", "Gained sums, code with too few items"),
        ([FEW, BLIND], "open", "Nothing could be measured"),
    ],
)
def test_headline_and_title(tasks, headline, title):
    assert verdict_sentence(tasks, 0.02, 0.05)[0] == headline
    assert headline_label(tasks) == title


def test_the_whole_sentence_of_a_trade():
    assert verdict_sentence([KEPT, OPEN, LOSS, GAIN], 0.02, 0.05) == (
        "trade",
        "This fine-tune gained sums (+31 points, 95% interval +27 to +35) and lost recall (-12 points, -16 to -8); "
        "it kept language (no drop of 2 points or more); format is undecided: about 1,250 items would decide "
        "(400 were used). The 95% intervals hold for all 3 tasks together; this is about these two models, not about "
        "the method.",
    )


def test_the_sample_carries_its_own_sentence():
    sample = sample_comparison()
    assert verdict_sentence(sample.tasks, sample.margin, sample.alpha) == (sample.headline, sample.verdict)


def test_undecided_is_never_called_kept():
    headline, sentence = verdict_sentence([OPEN, replace(OPEN, task="code", decide_n=None)], 0.02, 0.05)
    assert headline == "open"
    assert "kept format" not in sentence
    assert sentence.startswith("For this fine-tune neither a gain nor a loss was shown; format (about 1,250")
    assert "Undecided does not mean kept." in sentence


def test_a_kept_task_that_is_measurably_lower_is_said_to_be_lower():
    _, sentence = verdict_sentence([KEPT, task("code", "kept", (-0.01, -0.018, -0.002))], 0.02, 0.05)
    assert "kept language and code (no drop of 2 points or more; code measurably lower within that)" in sentence


def test_a_small_change_is_not_rounded_to_nothing():
    _, sentence = verdict_sentence([task("sums", "gained", (0.03, 0.002, 0.058))], 0.02, 0.05)
    assert "(+3.0 points, 95% interval +0.2 to +5.8)" in sentence


def test_one_task_claims_nothing_about_several():
    alone = replace(GAIN, difference=replace(GAIN.difference, family=1))
    assert "together" not in verdict_sentence([alone], 0.02, 0.05)[1]


def test_many_tasks_are_counted_not_listed():
    gains = [task(f"g{i}", "gained", (0.1 + i / 100, 0.05, 0.3)) for i in range(9)]
    _, sentence = verdict_sentence(gains, 0.02, 0.1)
    assert sentence.startswith("This fine-tune gained g8 (+18 points, 90% interval +5 to +30), g7 (+17 points, +5")
    assert "and 5 more" in sentence
    assert headline_label(gains) == "Gained 9 tasks"


def test_what_is_not_measurable_is_told_by_its_reason():
    blind = replace(BLIND, note="the base scores too low")
    few = replace(BLIND, task="sums", note="too few items")
    _, sentence = verdict_sentence([KEPT, blind, few, replace(blind, task="code")], 0.02, 0.05)
    assert "refusal and code are not measurable (the base scores too low); sums is not measurable (too few items)" in (
        sentence
    )


def test_no_results_is_an_error_that_says_so():
    with pytest.raises(InputError, match="got 0 tasks"):
        verdict_sentence([], 0.02, 0.05)


def test_clean_leaves_no_control_character_but_line_ends_and_tabs():
    text = pages.clean("a\x1b[2J\x07b\r\nc\td\x00\ud800\u202eé😀\u200d")
    assert text == "a\ufffd[2J\ufffdb\nc\td\ufffd\ufffd\ufffdé😀\u200d"
    assert text.encode("utf-8")


@pytest.mark.parametrize("width", [5, 20, 60])
@pytest.mark.parametrize("keep", ["start", "end"])
def test_one_line_fits(width, keep):
    text = "word " * 10 + "averyveryverylongwordwithoutanyspace" * 2
    line = pages.one_line(text, width, keep)
    assert len(line) <= width
    assert line.strip("…") in " ".join(text.split())
