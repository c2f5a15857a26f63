"""The released scores of arXiv 2408.06663 give every number that was computed from them by other code, to the digit
that is printed. The expected values are typed from the note that publishes them, none is computed here."""

from __future__ import annotations

import time

import pytest

from catchment.commands.study.analysis.whole import analyse
from catchment.commands.study.foreign_table import TableSettings, read_scores
from catchment.commands.study.record import Flag
from tests.unit.commands.study.released import CONTRASTS, CSV, IN_DOMAIN, STEPS, contrast, printed, study


def test_table_6_mean_gain_per_checkpoint() -> None:
    learned, not_learned = contrast("learned"), contrast("not learned")
    assert tuple(revision for revision, _ in learned.by_checkpoint) == STEPS
    assert printed([v for _, v in learned.by_checkpoint], 4) == ".0478 .0479 .0041 .0096 .0297 .0267 .0211 -.0049"
    assert printed([v for _, v in learned.unique], 4) == ".0368 .0406 .0017 .0087 .0220 .0174 .0136 -.0019"
    assert printed([v for _, v in not_learned.by_checkpoint], 4) == ".0618 .1487 .2857 .2968 .3035 .2971 .2644 .2903"
    assert not_learned.unique == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("class->gen", "-.6146 1.0616 -.9857 -.6915 -.8011"),
        ("gen->class", ".0031 .0345 .0001 .0046 .0060"),
    ],
)
def test_headline_ratios(name: str, expected: str) -> None:
    ratio = contrast(name).ratio
    assert ratio is not None
    assert ratio.n == 32
    without = dict(ratio.leave_out)["424000"]
    assert printed([ratio.mean, ratio.sd, ratio.median, ratio.pooled, without], 4) == expected


def test_t_of_the_ratio_that_is_called_a_gain() -> None:
    ratio = contrast("gen->class").ratio
    assert ratio is not None
    assert printed([ratio.t], 2) == ".50"


def test_the_cell_that_governs_the_mean_ratio() -> None:
    c = contrast("class->gen")
    assert c.ratio is not None
    assert printed([v for _, v in c.ratio_by_checkpoint], 3) == "-.954 -.562 -.681 .691 -.764 -.750 -.955 -.943"
    assert c.ratio.largest == "paws -> xsum at 424000: base 0.0189, tuned 0.1117, ratio +4.91"
    assert c.ratio.without_what == "without checkpoint 424000"
    assert printed([c.ratio.without], 4) == "-.8011"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnli->rte", ".540 .182"), ("mnli->gpt3nli", ".906 .310"), ("paws->qqp", "-.140 -.139"),
        ("paws->stsb", "-.233 -.225"), ("xsum->cnn", "-.055 -.003"), ("socialiqa->sciq", ".233 -.028"),
        ("socialiqa->tweetqa", "1.238 .070"),
    ],
)  # fmt: skip
def test_out_of_domain_ratio_and_raw_change(name: str, expected: str) -> None:
    c = contrast(name)
    assert c.ratio is not None
    assert printed([c.ratio.mean, c.mean], 3) == expected
    assert c.ratio.raw == pytest.approx(c.mean, abs=1e-15)


@pytest.mark.parametrize(
    ("tuning", "task", "form", "expected"),
    [
        ("mnli", "mnli_matched", "instruct", ".000 .182 .103 .101 .039 .124 .151 .050"),
        ("mnli", "mnli_matched", "io", ".009 .201 .358 .365 .264 .335 .240 .181"),
        ("socialiqa", "socialiqa", "instruct", ".334 .193 .510 .124 .029 .014 -.041 -.035"),
        ("paws", "paws", "instruct", ".019 .210 .024 .067 .012 -.003 -.075 .016"),
        ("xsum", "xsum", "instruct", ".071 -.023 .074 .022 .137 .067 .069 .079"),
    ],
)
def test_format_sensitivity_in_domain(tuning: str, task: str, form: str, expected: str) -> None:
    rows = {s.revision: dict(s.differences) for s in study().sensitivities if (s.tuning, s.task) == (tuning, task)}
    assert printed([rows[step][form] for step in STEPS], 3) == expected


@pytest.mark.parametrize(
    ("tuning", "task", "expected"),
    [
        ("mnli", "mnli_matched",
         ".354/.354 .335/.557 .343/.787 .344/.784 .352/.792 .338/.799 .328/.798 .327/.790"),
        ("paws", "paws", ".558/.581 .558/.805 .540/.874 .558/.868 .476/.911 .544/.905 .558/.732 .558/.878"),
        ("xsum", "xsum", ".079/.094 .119/.120 .106/.170 .019/.092 .108/.185 .115/.192 .088/.182 .071/.183"),
        ("socialiqa", "socialiqa",
         ".018/.380 .077/.471 .044/.566 .056/.667 .056/.662 .064/.654 .101/.640 .069/.659"),
        ("tulu", "hellaswag_mc", ".253/.254 .420/.438 .599/.624 .608/.624 .610/.631 .622/.627 .628/.629 .628/.629"),
        ("tulu", "boolq_mc", ".537/.521 .620/.576 .512/.677 .482/.679 .579/.699 .586/.699 .617/.698 .617/.687"),
        ("tulu", "arc_easy_mc", ".272/.295 .442/.514 .600/.591 .579/.602 .574/.607 .570/.581 .575/.579 .565/.570"),
    ],
)  # fmt: skip
def test_base_and_tuned_scores(tuning: str, task: str, expected: str) -> None:
    rows = {c.revision: c for c in study().changes if (c.tuning, c.task) == (tuning, task)}
    assert " ".join(printed([rows[s].base, rows[s].tuned], 3).replace(" ", "/") for s in STEPS) == expected


def test_what_the_table_holds_and_lacks() -> None:
    s = study()
    assert s.counts == {"cells": 2160, "done": 636, "missing": 1524, "failed": 0, "refused": 0}
    assert s.headline == "incomplete"
    assert sum(gap.cells for gap in s.gaps) == 1524
    default = [gap for gap in s.gaps if "format default" in gap.what and "tulu" not in gap.what]
    assert sum(gap.cells for gap in default) == 216  # of 416 tuned cells; the 104 of the base are all there
    assert not any("tuning base" in gap.what for gap in default)
    assert s.warnings == (f"{CSV.name}: column source is not used",)


def _flags(gate: str) -> list[Flag]:
    return [flag for flag in study().flags if flag.gate == gate]


def test_unlabelled_tests_are_refused_and_leave_what_concludes() -> None:
    flags = _flags("unlabelled or constant gold")
    assert [(flag.task, flag.refused) for flag in flags] == [("qqp", True), ("stsb", True)]
    assert all("1000" in flag.sentence for flag in flags)
    s = study()
    assert all(c.refused == (c.task in ("qqp", "stsb")) for c in s.changes)
    assert {c.interval.family for c in s.changes if c.interval.method != "unknown"} == {248 - 16}
    assert not any({"qqp", "stsb"} & set(m.tasks) for m in s.matrices)
    assert not {"qqp", "stsb"} & {n.task for n in s.noise}
    assert contrast("paws->qqp").refused == ("qqp",)


def test_the_pair_that_counts_twice() -> None:
    assert [(flag.where, flag.sentence[:31]) for flag in _flags("duplicate pair")] == [
        ("contrast learned", "tulu -> sciq_mc stands 2 times ")
    ]


def test_near_zero_denominators() -> None:
    c = contrast("class->gen")
    assert c.ratio is not None
    assert "paws -> xsum at 424000: base 0.0189, tuned 0.1117, ratio +4.91" in c.ratio.near_zero
    raised = {flag.where for flag in _flags("near-zero denominator")}
    assert "contrast class->gen" in raised
    assert "contrast gen->class" not in raised


def test_rows_without_spread() -> None:
    assert sum(int(flag.sentence.split()[0]) for flag in _flags("degenerate")) == 22


def test_noise_of_training_between_the_last_two_checkpoints() -> None:
    (flag,) = (flag for flag in _flags("training noise") if flag.tuning == "paws")
    for text in ("paws 0.732 at 738000, 0.878 at main", "qqp 0.485 at 738000, 0.908", "stsb 0.338 at 738000, 0.744"):
        assert text in flag.sentence
    noise = next(n for n in study().noise if n.task == "paws")
    assert noise.checkpoints is not None
    assert noise.items is not None
    assert noise.checkpoints > noise.items


def test_majority_class_baseline() -> None:
    assert "paws" in {flag.task for flag in _flags("constant predictor")}


def test_no_checkpoint_is_taken_for_another() -> None:
    assert _flags("identical outputs") == []


def test_within_five_seconds() -> None:
    start = time.process_time()
    analyse(read_scores(CSV, settings=TableSettings(contrasts=CONTRASTS, in_domain=IN_DOMAIN)))
    assert time.process_time() - start < 5
