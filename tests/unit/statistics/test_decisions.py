"""Verdicts: the rules, the reasons, and how often they are wrong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from catchment.errors import InputError
from catchment.statistics import Decision, decide, expected_half_width, paired_interval, required_n
from tests.unit.statistics import simulate
from tests.unit.statistics.simulate import decision


def _share(verdicts: set[str], n: int, p_lost: float, p_gained: float, family: int, repeats: int) -> float:
    """How often ``decide`` says one of these."""
    wrong = sum(
        times
        for (b, c, _), times in simulate.draw(n, p_lost, p_gained, repeats, seed=n + family)
        if decision(b, c, n, family=family).verdict in verdicts
    )
    return wrong / repeats


@pytest.mark.parametrize("n", [133, 200, 310, 800, 1600])
def test_a_true_drop_of_the_margin_is_rarely_called_kept(n: int) -> None:
    """True drop exactly 0.02, at gains from none to 5%: wrong in at most 5% (4,000 experiments, three standard
    errors allowed: 6.03%). 133 items without gains is where the score bound alone would fail (6.8%)."""
    for p_gained in (0.0, 0.005, 0.02, 0.05):
        wrong = _share({"kept", "gained"}, n, p_gained + 0.02, p_gained, 1, 4000)
        assert wrong <= simulate.above(0.05, 4000), f"gains {p_gained}"


def test_the_exact_error_of_kept_stays_below_alpha() -> None:
    """Summed over all outcomes, not simulated; over this grid the largest is 0.052 (310 items, no gains), because
    the score bound is not exact. The limit of 0.055 is what the documentation states."""
    worst = 0.0
    for n in (100, 133, 149, 200, 310):
        for p_gained in (0.0, 0.0025, 0.01):
            wrong = sum(
                p
                for (b, c, _), p in simulate.probabilities(n, p_gained + 0.02, p_gained)
                if p > 1e-6 and decision(b, c, n).verdict in {"kept", "gained"}
            )
            worst = max(worst, wrong)
    assert 0.03 < worst < 0.055


@pytest.mark.parametrize("n", [150, 400])
def test_a_rare_large_loss_of_fractional_scores_is_rarely_called_kept(n: int) -> None:
    """2.1% of the items lose 0.95, a true drop just below -0.0199: the case in which too few items hide the loss."""
    rng = np.random.default_rng(n)
    base = np.full(n, 0.97)
    verdicts = [
        decide(base, base - 0.95 * (rng.random(n) < 0.021), chance=0.0, margin=0.0199).verdict for _ in range(400)
    ]
    assert sum(v in {"kept", "gained"} for v in verdicts) / 400 <= simulate.above(0.05, 400)
    same = decide(base, base, chance=0.0).verdict
    assert same == ("kept" if n == 400 else "undecided")


@pytest.mark.parametrize("n", [50, 200, 800])
@pytest.mark.parametrize("flip_rate", [0.005, 0.02, 0.10, 0.30])
def test_no_true_change_is_rarely_called_one(n: int, flip_rate: float) -> None:
    wrong = _share({"lost", "gained"}, n, flip_rate / 2, flip_rate / 2, 1, 4000)
    assert wrong <= simulate.above(0.05, 4000)


def test_a_family_of_eight_is_rarely_wrong_anywhere() -> None:
    """Four tasks truly dropped by the margin and four did not change; any wrong verdict counts."""
    p_lost = np.array([0.02, 0.025, 0.04, 0.07, 0.01, 0.05, 0.10, 0.02])
    p_gained = np.array([0.0, 0.005, 0.02, 0.05, 0.01, 0.05, 0.10, 0.02])
    bad = [{"kept", "gained"}] * 4 + [{"lost", "gained"}] * 4
    repeats = 300
    flips = simulate.correlated_flips(8, 800, p_lost, p_gained, 0.5, repeats, seed=4)
    wrong = sum(
        any(decision(int(b), int(c), 800, family=8).verdict in w for (b, c), w in zip(run, bad, strict=True))
        for run in flips
    )
    assert wrong / repeats <= simulate.above(0.05, repeats)


@pytest.mark.parametrize(("flip_rate", "stated", "power"), [(0.02, 310, 0.66), (0.05, 770, 0.8), (0.10, 1550, 0.8)])
def test_required_n_matches_the_stated_sizes_and_buys_its_power(flip_rate: float, stated: int, power: float) -> None:
    """With that many items and no true drop, "kept" (or "gained") comes out as often as documented (simulated).
    At 2% the six flips expected are too few for the normal approximation behind the formula."""
    n = required_n(flip_rate, 0.02)
    assert n == pytest.approx(stated, rel=0.01)
    reached = _share({"kept", "gained"}, n, flip_rate / 2, flip_rate / 2, 1, 2000)
    assert reached == pytest.approx(power, abs=0.05)


def test_fewer_items_than_the_floor_never_keep() -> None:
    floor = required_n(0.0, 0.02)
    assert floor == 149  # 0.98^149 < 0.05 <= 0.98^148
    assert decision(0, 0, floor).verdict == "kept"
    assert decision(0, 0, floor - 1).verdict == "undecided"
    assert decision(0, 0, floor - 1).decide_n == floor


def test_the_four_verdicts() -> None:
    assert decision(2, 30, 400).verdict == "gained"
    assert decision(30, 2, 400).verdict == "lost"
    assert decision(1, 1, 400).verdict == "kept"
    assert decision(8, 5, 400).verdict == "undecided"
    assert decision(30, 2, 400).flips_lost == 30
    assert decision(30, 2, 400).flips_gained == 2


def test_a_measurable_drop_within_the_margin_is_kept_and_says_so() -> None:
    found = decision(60, 20, 8000)  # -0.005
    assert found.interval.high < 0
    assert found.verdict == "kept"
    assert "measurably lower, but within the margin" in found.reason
    assert decision(60, 20, 8000, margin=0.004).verdict == "lost"


def test_reasons_carry_numbers() -> None:
    assert decision(30, 2, 400).reason.startswith("-0.070 [-0.")
    assert "over 400 items (30 lost, 2 gained)" in decision(30, 2, 400).reason
    kept = decision(1, 1, 400).reason
    assert "a drop of 0.02 is excluded" in kept
    assert "at 0.95 confidence" in kept
    open_ = decision(8, 5, 400)
    assert f"About {open_.decide_n} items would decide." in open_.reason


def test_decide_n_takes_the_nearer_decision() -> None:
    """8 against 5 of 400: to show "kept" at 3.25% flips takes 503; to show the 0.0075 seen takes 4,500."""
    assert decision(8, 5, 400).decide_n == required_n(13 / 400, 0.02) == 503
    # 18 against 6 of 400 at a margin of 0.005: the difference of 0.03 is nearer than excluding so small a drop
    d = decision(18, 9, 400, margin=0.005).decide_n
    z = 1.959964 + 0.841621
    assert d == int(np.ceil(z**2 * (27 / 400 - (9 / 400) ** 2) / (9 / 400) ** 2))


def _binary(right: int, n: int) -> np.ndarray:
    return np.concatenate([np.ones(right), np.zeros(n - right)])


def test_a_base_at_chance_cannot_lose_or_keep() -> None:
    base, tuned = _binary(110, 400), _binary(40, 400)
    found = decide(base, tuned, chance=0.25)
    assert (found.verdict, found.admitted, found.decide_n) == ("not measurable", False, None)
    assert "scores 0.275" in found.reason
    assert "below the 0.400 needed" in found.reason
    assert decide(base, base, chance=0.25).verdict == "not measurable"


def test_a_base_at_chance_can_gain() -> None:
    assert decide(_binary(100, 400), _binary(300, 400), chance=0.25).verdict == "gained"
    # from far below chance up to chance is a change, but not a capability
    found = decide(_binary(20, 400), _binary(100, 400), chance=0.25)
    assert found.interval.low > 0
    assert found.verdict == "not measurable"


def test_admission_needs_the_interval_above_chance_too() -> None:
    few = decide(_binary(7, 15), _binary(7, 15), chance=0.25)
    assert not few.admitted
    assert "too few to be clearly above chance" in few.reason
    assert decide(_binary(160, 400), _binary(160, 400), chance=0.25).admitted  # exactly chance + 0.15


def test_generated_answers_need_half() -> None:
    base = _binary(190, 400)
    assert decide(base, base, chance=0.0).admitted
    found = decide(base, base, chance=0.0, generated=True)
    assert not found.admitted
    assert "0.500 needed (generated answers)" in found.reason


@pytest.mark.parametrize(
    ("right", "lost", "gained", "n", "chance", "generated"),
    [
        (67, 62, 1, 140, 0.0, True),  # 48% to 4%, generated: below the 50% that "kept" needs
        (595, 400, 0, 1319, 0.0, True),  # 45.1% to 14.8%, as on GSM8K
        (8, 8, 0, 400, 0.0, True),  # 2% to nothing
        (330, 60, 10, 1000, 0.25, False),  # 33% to 28% among four choices: above chance, below chance + 0.15
        (560, 60, 10, 1000, 0.5, False),  # 56% to 51% of two choices
        (560, 60, 10, 1000, 0.5, True),  # written yes or no, whose chance is known
        (180, 60, 0, 300, 0.5, True),  # 60%: above 50%, but not above chance + 0.15
    ],
)
def test_a_loss_that_is_shown_is_said_though_the_base_is_not_good_enough_to_keep(
    right: int, lost: int, gained: int, n: int, chance: float, generated: bool
) -> None:
    """Shown: McNemar's exact test refuses no change at 5%. Above chance: the exact binomial test does."""
    assert stats.binomtest(lost, lost + gained).pvalue < 0.05
    assert chance == 0 or stats.binomtest(right, n, chance).pvalue < 0.05
    base = _binary(right, n)
    tuned = np.concatenate(
        [np.zeros(lost), np.ones(right - lost), np.ones(gained), np.zeros(n - right - gained)]
    )  # fmt: skip
    result = decide(base, tuned, chance=chance, generated=generated)
    assert (result.verdict, result.admitted, result.can_lose) == ("lost", False, True)
    assert f"({lost} lost, {gained} gained)" in result.reason
    assert "enough to show a loss" in result.reason
    assert decide(base, base, chance=chance, generated=generated).verdict == "not measurable"  # and never "kept"


def test_a_small_drop_of_a_weak_base_is_lost_and_never_kept() -> None:
    """20% of 20,000 generated answers to 19.5%: a drop of 2 points is excluded, but "kept" is not to be had."""
    base = _binary(4000, 20_000)
    tuned = np.concatenate([np.zeros(100), base[100:]])
    assert decide(base, tuned, chance=0.0).verdict == "kept"  # chance + 0.15 is reached
    assert decide(base, tuned, chance=0.0, generated=True).verdict == "lost"


def test_a_drop_from_chance_is_no_loss_but_its_interval_is_given() -> None:
    result = decide(_binary(110, 400), _binary(40, 400), chance=0.25)
    assert (result.verdict, result.can_lose) == ("not measurable", False)
    assert result.interval.high < 0
    assert result.reason.startswith("-0.175 [")
    assert "no capability was lost" in result.reason
    assert not decide(_binary(0, 400), _binary(0, 400), chance=0.0, generated=True).can_lose


def test_a_weak_base_is_rarely_said_to_have_lost_what_it_did_not() -> None:
    """30% generated, no true change: wrong in at most 5% of 2,000 experiments, three standard errors allowed."""
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(2000):
        base = rng.random(200) < 0.3
        flipped = rng.random(200) < np.where(base, 0.1, 0.3 * 0.1 / 0.7)  # as many one way as the other
        tuned = np.where(flipped, ~base, base)
        wrong += decide(base, tuned, chance=0.0, generated=True).verdict in {"lost", "gained"}
    assert wrong / 2000 <= simulate.above(0.05, 2000)


@pytest.mark.parametrize(
    ("right", "n", "chance", "generated", "note"),
    [
        (1, 1, 0.25, False, "too few items"),
        (0, 1, 0.25, False, "too few items"),
        (0, 1, 0.0, True, "too few items"),
        (7, 15, 0.25, False, "too few items"),
        (48, 100, 0.0, True, "too few items"),
        (480, 2000, 0.0, True, "the base scores too low"),
        (110, 400, 0.25, False, "the base scores too low"),
    ],
)
def test_too_few_items_are_told_from_a_base_that_scores_low(
    right: int, n: int, chance: float, generated: bool, note: str
) -> None:
    """Low: the exact interval of the base's score (Clopper and Pearson) ends below what is needed."""
    needed = max(chance + 0.15, 0.5 if generated else 0.0)
    low = stats.binomtest(right, n).proportion_ci(0.95).high < needed
    assert low == note.startswith("the base scores too low")
    result = decide(_binary(right, n), _binary(right, n), chance=chance, generated=generated)
    assert (result.verdict, result.note) == ("not measurable", note)
    assert ("too few" in result.reason) != low
    assert f"on {n} item{'s' if n > 1 else ''}" in result.reason


def test_graded_scores_move_and_do_not_flip() -> None:
    """Four hundred overlaps of which 300 fell from 0.9 to 0.7 and 50 rose: none crosses a half."""
    base = np.full(400, 0.9)
    tuned = np.concatenate([np.full(300, 0.7), np.full(50, 0.95), np.full(50, 0.9)])
    result = decide(base, tuned, chance=0.0)
    assert result.verdict == "lost"
    assert "(300 lower, 50 higher)" in result.reason
    assert "0 lost" not in result.reason


def test_fractional_scores() -> None:
    """Agreement-like scores: the base agrees with itself fully."""
    rng = np.random.default_rng(2)
    ones = np.ones(600)
    assert decide(ones, ones - rng.uniform(0, 0.01, 600), chance=0.0).verdict == "kept"
    lost = decide(ones, ones - rng.uniform(0, 0.4, 600), chance=0.0)
    assert lost.verdict == "lost"
    assert lost.interval.method == "betting"
    open_: Decision = decide(ones[:100], ones[:100] - rng.uniform(0, 0.01, 100), chance=0.0)
    assert open_.verdict == "undecided"
    assert open_.decide_n is not None
    assert open_.decide_n > 100
    assert decide(ones[:1], np.array([0.9]), chance=0.0).verdict in {"undecided", "not measurable"}


def test_expected_half_width_is_the_width_of_the_interval() -> None:
    for lost, n in ((0, 300), (5, 400), (50, 1000)):
        found = paired_interval(*simulate.scores(lost, lost, n), family=3)
        half = expected_half_width(n, 2 * lost / n, 0.95, 3)
        assert half == pytest.approx((found.high - found.low) / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"chance": 1.0}, "chance is 1.0"),
        ({"chance": float("nan")}, "chance is nan"),
        ({"margin": 0.0}, "margin is 0.0"),
        ({"alpha": 5}, "alpha is 5"),
        ({"family": 0}, "family is 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        decide([1, 0], [1, 0], **{"chance": 0.25, **settings})


def test_sizes_refuse_nonsense() -> None:
    with pytest.raises(InputError, match=r"flip_rate is 1\.5"):
        required_n(1.5)
    with pytest.raises(InputError, match="n is 0"):
        expected_half_width(0, 0.1)


@pytest.mark.parametrize(("n", "family"), [(1, 1), (2, 1), (3, 1), (1, 6)])
def test_few_items_that_were_all_lost_need_few_more(n: int, family: int) -> None:
    """Not the thousands that would be needed to show a task as kept at this rate of flips."""
    open_ = decide([1] * n, [0] * n, chance=0.0, family=family)
    assert open_.verdict == "undecided"
    assert open_.decide_n is not None
    assert n < open_.decide_n <= 9
    more = [1] * open_.decide_n, [0] * open_.decide_n
    assert decide(*more, chance=0.0, family=family).verdict == "lost"
