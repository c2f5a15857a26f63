"""What a tune did, in words and in the terminal."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from catchment.commands.tune.record import Tune
from catchment.commands.tune.table import print_record as print_tune
from catchment.commands.tune.words import tune_sentence
from catchment.measuring import headline_of, verdict_sentence
from catchment.records import Against, Companion, FenceLook, Interval, TaskResult, TuneRun
from catchment.statistics import decide
from tests.samples import HOSTILE, interval, sample_comparison, task_result

LOST, GAINED, KEPT, OPEN = (
    task_result("recall", "exact", 1600, 0.0, 0.871, 0.139, 0.019, "lost"),
    task_result("arithmetic", "exact", 1600, 0.0, 0.334, 0.021, 0.331, "gained"),
    task_result("language", "choice", 1600, 0.5, 0.802, 0.012, 0.014, "kept"),
    task_result("format", "regex", 400, 0.0, 0.585, 0.06, 0.0525, "undecided"),
)
BLIND = task_result("refusal", "refusal", 400, 0.0, 0.042, 0.01, 0.004, "not measurable")
SMALL = replace(LOST, task="knowledge", difference=Interval(-0.05, -0.07, -0.03, 0.95, "wald"))


def held_out(estimate: float, half: float = 0.1) -> Companion:
    interval = Interval(estimate, estimate - half, estimate + half, 0.95, "t")
    return Companion("nats per token on held-out rows", 2.0, 2.0 + estimate, interval)


def tune_run(**changes: Any) -> TuneRun:
    run = TuneRun(
        name="plain", path="out/plain", trainable=1_345_150, share=0.01, steps=120, tokens=84_000, seconds=61.4,
        bytes=2_690_300, loss=(2.1, 1.4), held_out=None, logged=60,
    )  # fmt: skip
    return replace(run, **changes)


def said(tasks: list[TaskResult], against: tuple[Against, ...] = (), **changes: Any) -> tuple[str, str]:
    return tune_sentence([tune_run(tasks=tuple(tasks), **changes)], against, ["recall"])


def against(task: str, estimate: float, half: float = 0.02, **changes: Any) -> Against:
    found = Interval(estimate, estimate - half, estimate + half, 0.95, "wald")
    return Against(task, 400, 0.5, 0.5 + estimate, found)


@pytest.mark.parametrize(
    ("tasks", "changes", "headline"),
    [
        ([LOST], {}, "harmful"),
        ([LOST, KEPT, OPEN], {"held_out": held_out(-0.5)}, "harmful"),  # lost, and no task gained
        ([replace(GAINED, difference=interval(0.0, 0.06, 400)), LOST], {}, "harmful"),  # more lost than gained
        ([GAINED], {"loss": (1.0, 1.06)}, "harmful"),  # it did not converge
        ([KEPT], {"held_out": held_out(0.3)}, "harmful"),
        ([], {"held_out": held_out(0.3)}, "harmful"),
        ([GAINED, SMALL], {}, "trade"),
        ([GAINED, KEPT], {}, "gain"),
        ([GAINED], {"held_out": held_out(0.3)}, "gain"),
        ([KEPT, OPEN], {}, "open"),  # what is undecided is not shown to be kept
        ([KEPT, BLIND], {}, "clean"),
        ([GAINED, OPEN], {}, "gain"),
        ([OPEN], {}, "open"),
        ([KEPT], {"loss": (1.0, 1.05)}, "clean"),
        ([KEPT], {"held_out": held_out(0.05)}, "clean"),  # its interval holds 0
        ([], {"held_out": held_out(-0.3)}, "unmeasured"),
        ([], {}, "unmeasured"),
        ([], {"loss": None}, "unmeasured"),
    ],
)
def test_the_headline(tasks: list[TaskResult], changes: dict[str, Any], headline: str) -> None:
    assert said(tasks, **changes)[0] == headline


def test_a_diverged_tune_without_tasks_is_harmful() -> None:
    assert said([], loss=(1.0, 3.0))[0] == "harmful"


def test_a_harmful_training_that_the_fence_took_back() -> None:
    look = FenceLook(5, "recall", 64, 0.4, 0.2, 0.6, "broken", "shown", factor=0.0, after=0.0)
    for how in ({"loss": (1.0, 3.0)}, {"logged": 7, "stopped": "step 7: only a factor of 0 is inside"}):
        headline, text = said([KEPT], looks=(look,), **how)
        assert headline == "harmful"
        assert text.startswith("This training is harmful; what is delivered was pulled back by the fence.")
    assert said([KEPT], looks=(look,), stopped=None)[0] == "clean"


def test_what_is_harmful_names_what_was_lost_with_its_interval() -> None:
    _, text = said([LOST, KEPT])
    assert text.startswith("This tune is harmful. It lost recall (-12 points, 95% interval -14 to -10); it kept lang")
    _, text = said([GAINED, replace(LOST, difference=Interval(-0.5, -0.55, -0.45, 0.95, "wald"))])
    assert text.startswith("This tune is harmful. It gained arithmetic (+31 points, 95% interval +28 to +34) and lost ")


def test_the_other_openings() -> None:
    assert said([GAINED, SMALL])[1].startswith(
        "This tune is a trade. It gained arithmetic (+31 points, 95% interval +28 to +34) and lost knowledge (-5 "
    )
    assert said([GAINED])[1].startswith("This tune gained arithmetic (+31 points, 95% interval +28 to +34). The 95%")
    assert said([KEPT])[1].startswith("This tune kept language (no drop of 2 points or more). The 95%")
    assert said([])[1] == "No task was compared."
    assert said([KEPT], held_out=held_out(0.3))[1].startswith("This tune is harmful. It kept language")


def test_the_tasks_are_told_by_the_sentence_of_a_comparison() -> None:
    """At the margin and the error that the tasks were judged by."""
    tasks = [GAINED, KEPT, OPEN, BLIND]
    told = verdict_sentence(tasks, 0.08, 0.1, "This tune")[1]
    assert tune_sentence([tune_run(tasks=tuple(tasks))], margin=0.08, alpha=0.1)[1] == told
    assert "no drop of 8 points or more" in told


def test_two_undecided_tasks_at_minus_nine_are_not_passed_over() -> None:
    """1,200 items that did not change, and twice 100 of which 12 and 11 were lost and 3 and 2 gained: nothing is shown,
    and nothing is shown to be kept, for the two."""

    def result(name: str, right: int, n: int, lost: int, gained: int) -> TaskResult:
        base = np.r_[np.ones(right), np.zeros(n - right)]
        tuned = np.r_[np.zeros(lost), np.ones(right - lost), np.ones(gained), np.zeros(n - right - gained)]
        d = decide(base, tuned, chance=0.25, family=4)
        return replace(
            task_result(name, "choice", n, 0.25, right / n, lost / n, gained / n, d.verdict),
            difference=d.interval, decide_n=d.decide_n,
        )  # fmt: skip

    tasks = [result("a", 1100, 1200, 0, 0), result("b", 90, 100, 12, 3), result("c", 90, 100, 11, 2)]
    assert [task.verdict for task in tasks] == ["kept", "undecided", "undecided"]
    headline, text = said(tasks)
    assert headline == headline_of(tasks) == "open"
    assert "kept a" in text
    assert "b (about" in text
    assert "c (about" in text
    assert "are undecided" in text
    assert "Undecided does not mean kept." in text
    assert "No task was shown to be lost" not in text


@pytest.mark.parametrize(("estimate", "way"), [(-0.3, "fell"), (0.3, "rose"), (0.05, "went")])
def test_the_loss_on_held_out_rows(estimate: float, way: str) -> None:
    _, text = said([KEPT], held_out=held_out(estimate))
    low, high = estimate - 0.1, estimate + 0.1
    assert f"{way} from 2.000 to {2 + estimate:.3f} ({estimate:+.3f}, 95% interval {low:+.3f} to {high:+.3f})." in text
    assert "On held-out rows nats per token" in text


def test_the_answers_of_a_classifier() -> None:
    found = Companion("accuracy on held-out rows", 0.5, 0.9, Interval(0.4, 0.3, 0.5, 0.95, "t"))
    headline, text = said([], accuracy=found)
    assert headline == "unmeasured"
    assert text.endswith("On held-out rows accuracy rose from 0.500 to 0.900 (+0.400, 95% interval +0.300 to +0.500).")


def test_a_loss_that_rose_and_a_training_that_was_stopped() -> None:
    _, text = said([GAINED], loss=(1.0, 2.5), stopped="3 pulls, and recall is shown to be broken again.")
    assert "The training loss rose from 1.000 to 2.500: the learning rate is too high." in text
    assert "The training was stopped: 3 pulls, and recall is shown to be broken again." in text
    assert ".." not in text


OTHER = "no cost on the other tasks was shown"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([against("recall", 0.12)], f"the protection saved recall by 12 points; {OTHER}."),
        ([against("recall", 0.12), against("arithmetic", -0.1)],
         "the protection saved recall by 12 points; it cost arithmetic (-10 points)."),
        ([against("recall", 0.01), against("arithmetic", -0.1)],
         "no saving of a protected task was shown; it cost arithmetic (-10 points)."),
        ([against("recall", 0.01), against("arithmetic", 0.1)], f"no saving of a protected task was shown; {OTHER}."),
    ],
)  # fmt: skip
def test_what_the_protection_did(rows: list[Against], words: str) -> None:
    _, text = said([KEPT], tuple(rows))
    assert text.endswith(f"Against the plain tune of the same settings {words}")


def test_two_protected_tasks_and_two_costs() -> None:
    rows = [against(name, 0.1) for name in ("recall", "language")] + [against(n, -0.1) for n in ("code", "format")]
    _, text = tune_sentence([tune_run(tasks=(KEPT,))], rows, ["recall", "language"])
    assert "saved recall by 10 points and language by 10 points; it cost code (-10 points) and format (-10" in text


def test_a_protection_that_did_harm_says_so() -> None:
    _, text = said([KEPT], (against("recall", -0.12),))
    assert "-12 points" in text


def test_the_words_have_no_markup_of_their_own() -> None:
    _, text = said([replace(LOST, task=HOSTILE)])
    assert HOSTILE in text  # as text; whoever draws it escapes it


# ------------------------------------------------------------------------------------------------------ the terminal


def sample_tune(**changes: Any) -> Tune:
    comparison = sample_comparison(recovered=None, rooms=())
    runs = (tune_run(name="protected", path="out/protected", tasks=comparison.tasks), tune_run())
    rows = (against("recall", 0.12), against("arithmetic", -0.1))
    headline, sentence = tune_sentence(runs, rows, ["recall"])
    tune = Tune(
        base="org/base", method="sift", settings={"sparsity": 0.01}, data={"name": "sums.jsonl", "rows": 900,
        "held_out": 100, "kind": "prompt"}, runs=runs, headline=headline, sentence=sentence, max_drop=0.02,
        protected=("recall",), against=rows, comparison=comparison, warnings=("12 rows were cut",),
    )  # fmt: skip
    return replace(tune, **changes)


def printed(tune: Tune, page: str | None = "out/report.html", width: int = 100) -> str:
    file = io.StringIO()
    print_tune(tune, Console(file=file, width=width), page)
    return file.getvalue()


def test_everything_is_printed() -> None:
    text = printed(sample_tune())
    assert "org/base, sift: 1,345,150 weights (1.0%)" in text
    assert re.search(r"recall, protected +400 +87\.1% +50\.0% +62\.0% +\+12\.0 \[\+10\.0 to \+14\.0\]", text)
    assert re.search(r"arithmetic +400", text)
    assert "warning: 12 rows were cut" in text
    for line in ("protected: out/protected (2,690,300 bytes)", "plain: out/plain (2,690,300 bytes)", "page: out/rep"):
        assert line in text


def test_without_a_comparison_there_is_no_table() -> None:
    text = printed(sample_tune(comparison=None, against=(), sentence="Nothing was compared."), page=None)
    assert "task" not in text
    assert "Nothing was compared." in text
    assert "page:" not in text


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal(width: int) -> None:
    assert all(len(line) <= width for line in printed(sample_tune(), width=width).splitlines() if "out/" not in line)


def test_markup_of_rich_is_text() -> None:
    text = printed(sample_tune(base="[bold red]x[/]", sentence="[link=evil]y[/link]", warnings=("[blink]z",)))
    for words in ("[bold red]x[/]", "[link=evil]y[/link]", "[blink]z"):
        assert words in text
