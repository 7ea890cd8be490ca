"""Intervals and paired comparisons against numbers worked out by hand, and against their own promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, norm
from statsmodels.stats.proportion import proportion_confint

from evals import statistics
from evals.statistics import CLUSTERED, MCNEMAR, effective_size, pass_at_k

nan = math.nan


def accuracy(correct_PS, confidence=0.95):
    return statistics.accuracy(correct_PS, confidence)


def paired_difference(after_PS, before_PS, confidence=0.95, seed=0):
    return statistics.paired_difference(after_PS, before_PS, confidence, seed)


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def correlated(rng: np.random.Generator, problems: int, samples: int, shift: float = 0.0) -> np.ndarray:
    """Samples that share their problem's chance, drawn from Beta(0.5, 0.8)."""
    chance_P = np.clip(rng.beta(0.5, 0.8, size=problems) + shift, 0, 1)
    return (rng.random((problems, samples)) < chance_P[:, None]).astype(float)


def test_wilson_by_hand():
    # 8 of 10, z = 1.959964: centre (0.8 + z^2 / 20) / (1 + z^2 / 10) = 0.992073 / 1.384146 = 0.716740
    # half width z sqrt(0.8 * 0.2 / 10 + z^2 / 400) / 1.384146 = 1.959964 * 0.160011 / 1.384146 = 0.226577
    found = accuracy(column(*[1] * 8, *[0] * 2), 0.95)
    assert found.estimate == pytest.approx(0.8)
    assert (found.low, found.high) == pytest.approx((0.490163, 0.943317), abs=2e-6)
    assert found.confidence == 0.95


def test_effective_size_by_hand():
    # two samples each of four problems, p = 0.5, p (1 - p) = 0.25, Var(p) = var(means) / 4
    same = np.array([[1, 1], [1, 1], [0, 0], [0, 0]])  # means 1 1 0 0: var 1/3, Var(p) = 1/12, n_eff = 3
    mixed = np.array([[1, 1], [1, 0], [0, 1], [0, 0]])  # means 1 .5 .5 0: var 1/6, Var(p) = 1/24, n_eff = 6
    spread = np.array([[1, 0], [0, 1], [1, 0], [0, 1]])  # means all .5: var 0, no more than the 8 samples
    assert [effective_size(m) for m in (same, mixed, spread)] == pytest.approx([3, 6, 8])
    assert effective_size(column(1, 0, 1)) == 3
    # one of 40 problems right twice, the others once: p (1 - p) / Var(p) would be 1,599 samples' worth
    assert effective_size(np.array([[1, 1]] + [[1, 0]] * 39)) == 80


def test_samples_that_say_nothing_new_do_not_narrow_the_interval():
    rng = np.random.default_rng(0)
    once = (rng.random((400, 1)) < 0.4).astype(float)
    single, repeated = accuracy(once), accuracy(np.repeat(once, 8, axis=1))
    assert repeated.estimate == single.estimate
    assert repeated.high - repeated.low == pytest.approx(single.high - single.low, rel=0.01)


def test_independent_samples_narrow_it_as_more_problems_would():
    matrix = (np.random.default_rng(0).random((400, 4)) < 0.4).astype(float)
    clustered, flat = accuracy(matrix), accuracy(matrix.reshape(-1, 1))
    assert clustered.high - clustered.low == pytest.approx(flat.high - flat.low, rel=0.1)


def test_clustered_interval_covers_and_the_naive_one_does_not():
    rng, truth, runs = np.random.default_rng(5), 0.5 / 1.3, 600
    covered = naive = 0
    for _ in range(runs):
        matrix = correlated(rng, 60, 8)
        found = accuracy(matrix, 0.95)
        covered += found.low <= truth <= found.high
        low, high = proportion_confint(matrix.sum(), matrix.size, method="wilson")
        naive += low <= truth <= high
    assert covered / runs >= 0.93
    assert naive / runs < 0.75


@pytest.mark.parametrize("samples", [1, 4])
def test_all_right_and_all_wrong_still_have_an_interval(samples: int):
    right, wrong = accuracy(np.ones((50, samples))), accuracy(np.zeros((50, samples)))
    assert right.estimate == 1 and right.high == 1 and 0.9 < right.low < 1
    assert wrong.estimate == 0 and wrong.low == 0 and wrong.high == pytest.approx(1 - right.low)


@pytest.mark.parametrize("matrix", [column(1), np.array([[1, 0, 1]])])
def test_one_problem_says_little(matrix: np.ndarray):
    found = accuracy(matrix)
    assert found.low < found.estimate <= found.high and found.high - found.low > 0.7


def test_one_problem_is_no_comparison():
    for samples in (1, 3):
        found = paired_difference(np.ones((1, samples)), np.zeros((1, samples)))
        assert (found.difference, found.p_value) == (1, 1) and found.low < 0


def test_ungradable_samples_are_left_out():
    assert accuracy(column(1, 0, nan, 1)) == accuracy(column(1, 0, 1))
    uneven = np.array([[1, nan], [1, 0], [nan, nan]])
    assert accuracy(uneven).estimate == pytest.approx(0.75)  # problem means 1 and 0.5
    pair = paired_difference(column(1, nan, 1, 0), column(0, 1, nan, 0))
    assert (pair.n, pair.difference) == (2, 0.5)


def test_exact_mcnemar_by_hand():
    # 8 gained, 1 lost: 2 * (C(9,0) + C(9,1)) / 2^9 = 20 / 512
    before = column(*[0] * 8, 1, *[1] * 6, *[0] * 5)
    after = column(*[1] * 8, 0, *[1] * 6, *[0] * 5)
    found = paired_difference(after, before)
    assert found.p_value == pytest.approx(20 / 512)
    assert (found.method, found.n, found.difference) == (MCNEMAR, 20, 0.35)
    # Bonett and Price: p12 = 9/22, p21 = 2/22; centre 7/22 = 0.318182,
    # half width 1.959964 sqrt((11/22 - (7/22)^2) / 22) = 1.959964 * 0.134631 = 0.263871
    assert (found.low, found.high) == pytest.approx((0.054311, 0.582053), abs=2e-6)


def test_the_interval_of_a_skewed_difference_is_bca():
    """3 of 40 problems gained all their samples, the rest stayed. A resampled mean is then k / 40 with k binomial
    (40, 0.075), so that every quantile is known. Efron (1987), with z0 = 0.0775 from P(k < 3) + P(k = 3) / 2 = 0.531
    and a = sum d^3 / (6 (sum d^2)^1.5) = 0.0850: the quantiles at 0.0612 and 0.9945, 1 / 40 and 8 / 40. Percentiles
    would be 0 and 7 / 40, and the basic bootstrap -1 / 40 and 6 / 40."""
    before, after = np.zeros((40, 4)), np.zeros((40, 4))
    after[[4, 17, 30]] = 1
    chance, deviations_P = 3 / 40, np.array([1.0] * 3 + [0.0] * 37) - 3 / 40
    z0 = norm.ppf(binom.cdf(2, 40, chance) + binom.pmf(3, 40, chance) / 2)
    a = (deviations_P**3).sum() / (6 * (deviations_P**2).sum() ** 1.5)
    levels = [norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))) for z in norm.ppf((0.025, 0.975))]
    assert [z0, a, *levels] == pytest.approx([0.0775, 0.0850, 0.0612, 0.9945], abs=1e-4)
    wanted = binom.ppf(levels, 40, chance) / 40
    assert wanted.tolist() == [0.025, 0.2] and (binom.ppf((0.025, 0.975), 40, chance) / 40).tolist() == [0, 0.175]
    for seed in (0, 1):
        found = paired_difference(after, before, seed=seed)
        assert (found.difference, found.low, found.high) == pytest.approx((0.075, 0.025, 0.2))
    lost = paired_difference(before, after)
    assert (lost.low, lost.high) == pytest.approx((-0.2, -0.025)), "a loss is a gain seen from the other side"


def test_sign_flips_by_hand():
    """Two samples each, so that the permutation test is taken; below 2^13 sign patterns it is exact.

    Six problems all gained: one pattern of 64 reaches the sum, one the opposite: 2 / 64. Five gained and one lost, sum
    4: reached with no or one minus sign, 7 of 64, and as many on the other side: 14 / 64. Differences 1, 1, 1/2, sum
    5/2: 1 of 8 and 1 of 8. Unchanged problems change nothing.
    """

    def p_value(*differences):
        halves = {1: ([1, 1], [0, 0]), 0.5: ([1, 0], [0, 0]), 0: ([1, 0], [1, 0]), -1: ([0, 0], [1, 1])}
        after, before = zip(*(halves[difference] for difference in differences), strict=True)
        return paired_difference(np.array(after), np.array(before)).p_value

    assert p_value(*[1] * 6) == p_value(*[-1] * 6) == pytest.approx(2 / 64)
    assert p_value(*[1] * 5, -1) == p_value(*[-1] * 5, 1) == pytest.approx(14 / 64)
    assert p_value(1, 1, 0.5) == p_value(1, 0, 1, 0, 0.5) == pytest.approx(2 / 8)
    assert p_value(1, -1) == 1, "no more than 1 where the two sides overlap"


def test_each_problem_weighs_the_same_however_many_samples_could_be_graded():
    """Means 1, 1/2 and 0: 1/2, where the five graded samples would give 3/5."""
    matrix = np.array([[1, 1], [1, 0], [0, nan]])
    assert accuracy(matrix).estimate == 0.5 and pass_at_k(matrix, 1) == 0.5
    other = paired_difference(matrix, np.array([[0, nan], [1, nan], [0, nan]]))
    assert (other.n, other.difference) == (3, pytest.approx((1 - 0.5 + 0) / 3))


def test_the_small_sample_factor_by_hand():
    """The matrix of means 1 1 0 0 above has n_eff = 3. Var(p) is estimated from 4 problems: at 95 %
    (1.959964 / 3.182446)^2 = 0.379294 of it, 1.137881, is left, and Wilson of 0.568941 in 1.137881 is wide:
    0.5 +- sqrt(n z^2 / 4 + z^4 / 4) / (n + z^2) with n = 1.137881 and z^2 = 3.841459, which is 0.439 .."""
    found = accuracy(np.array([[1, 1], [1, 1], [0, 0], [0, 0]]))
    n, z2 = 3 * (1.959964 / 3.182446) ** 2, 1.959964**2
    half = math.sqrt(n * z2 / 4 + z2**2 / 4) / (n + z2)
    assert half == pytest.approx(0.439166, abs=1e-5)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_nothing_changed():
    for samples in (1, 4):
        matrix = correlated(np.random.default_rng(1), 40, samples)
        found = paired_difference(matrix, matrix)
        assert found.difference == 0 and found.p_value == 1 and -0.1 < found.low < 0 < found.high < 0.1


def test_everything_changed():
    for samples in (1, 3):
        found = paired_difference(np.ones((30, samples)), np.zeros((30, samples)))
        assert found.difference == found.high == 1 and 0.8 < found.low < 1 and found.p_value < 0.001
        lost = paired_difference(np.zeros((30, samples)), np.ones((30, samples)))
        assert lost.difference == lost.low == -1 and -1 < lost.high < -0.8
        # at 50 % the padded interval alone would leave the estimate out
        assert paired_difference(np.ones((30, samples)), np.zeros((30, samples)), 0.5).high == 1
        assert paired_difference(np.zeros((30, samples)), np.ones((30, samples)), 0.5).low == -1


def test_paired_difference_covers_and_keeps_its_size():
    rng, runs = np.random.default_rng(8), 100
    covered = rejected = 0
    for run in range(runs):
        chance_P = rng.beta(0.5, 0.8, size=60)
        before, after = ((rng.random((60, 4)) < chance_P[:, None]).astype(float) for _ in range(2))
        found = paired_difference(after, before, seed=run)
        covered += found.low <= 0 <= found.high
        rejected += found.p_value < 0.05
    assert covered / runs >= 0.9 and rejected / runs <= 0.1


def test_pairing_finds_what_the_two_intervals_hide():
    rng = np.random.default_rng(2)
    chance_P = rng.beta(0.2, 0.2, size=300)
    before = (rng.random((300, 8)) < chance_P[:, None]).astype(float)
    after = (rng.random((300, 8)) < np.clip(chance_P + 0.04, 0, 1)[:, None]).astype(float)
    found = paired_difference(after, before)
    assert found.method == CLUSTERED and found.p_value < 0.01 and found.low > 0
    assert accuracy(after).low < accuracy(before).high  # the unpaired intervals overlap


@pytest.mark.parametrize("samples", [1, 3, 4])  # thirds are not exact, so that their sum has a last digit to lose
def test_order_of_problems_does_not_matter(samples: int):
    rng = np.random.default_rng(3)
    before, after = correlated(rng, 90, samples), correlated(rng, 90, samples, shift=0.1)
    order = rng.permutation(90)
    assert accuracy(after[order]) == accuracy(after)
    assert paired_difference(after[order], before[order], seed=4) == paired_difference(after, before, seed=4)


@pytest.mark.parametrize("samples", [1, 4])
def test_exchanging_before_and_after_negates(samples: int):
    rng = np.random.default_rng(3)
    before, after = correlated(rng, 90, samples), correlated(rng, 90, samples, shift=0.1)
    there, back = paired_difference(after, before), paired_difference(before, after)
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert back.p_value == there.p_value


def test_the_seed_decides_the_resampling():
    rng = np.random.default_rng(3)
    before, after = correlated(rng, 90, 4), correlated(rng, 90, 4)
    assert paired_difference(after, before, seed=1) == paired_difference(after, before, seed=1)
    one, other = (paired_difference(after, before, seed=seed) for seed in (1, 2))
    assert one.p_value != other.p_value and (one.low, one.high) != (other.low, other.high), "of both"
    assert one.p_value == pytest.approx(other.p_value, abs=0.03)
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.01)


def test_a_higher_confidence_is_wider():
    rng = np.random.default_rng(3)
    for samples in (1, 4):
        before, after = correlated(rng, 60, samples), correlated(rng, 60, samples)
        narrow, wide = accuracy(after, 0.8), accuracy(after, 0.99)
        assert wide.low < narrow.low < narrow.high < wide.high
        narrow, wide = (paired_difference(after, before, confidence) for confidence in (0.8, 0.99))
        assert wide.low < narrow.low < narrow.high < wide.high


def test_pass_at_k_by_hand():
    # n = 4, k = 2: c = 1 gives 1 - C(3,2) / C(4,2) = 1 - 3/6; c = 0 gives 0; c = 3 gives 1 (C(1,2) = 0)
    matrix = np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1]])
    assert pass_at_k(matrix, 2) == pytest.approx((0.5 + 0 + 1) / 3)
    assert pass_at_k(matrix, 1) == pytest.approx(matrix.mean())
    assert pass_at_k(matrix, 4) == pytest.approx(2 / 3)
    # n = 3 graded, c = 1, k = 2: 1 - C(2,2) / C(3,2) = 2/3
    assert pass_at_k(np.array([[1, nan, 0, 0]]), 2) == pytest.approx(2 / 3)


def test_one_sample_against_several_is_a_comparison_of_means():
    """Differences of 1/2 are no gained or lost problems: McNemar counts those of one sample on both sides only."""
    several = np.array([[1, 0], [1, 1], [0, 0]])
    for after, before, difference in ((column(1, 1, 0), several, 1 / 6), (several, column(1, 1, 0), -1 / 6)):
        found = paired_difference(after, before)
        assert (found.method, found.difference) == (CLUSTERED, pytest.approx(difference))
    assert paired_difference(column(1, 1, 0), column(1, 0, 0)).method == MCNEMAR


def test_what_cannot_be_answered_is_an_error():
    with pytest.raises(ValueError, match="none of 2 samples could be graded"):
        accuracy(column(nan, nan))
    with pytest.raises(ValueError, match="0 \\(wrong\\)"):
        accuracy(column(0.5))
    with pytest.raises(ValueError, match="matrix"):
        accuracy(np.ones(3))
    with pytest.raises(ValueError, match="confidence"):
        accuracy(column(1, 0), 95)
    for confidence in (0.0, 1.0, nan):
        with pytest.raises(ValueError, match="confidence"):
            paired_difference(column(1, 0), column(0, 0), confidence)
    with pytest.raises(ValueError, match="3 after, 2 before"):
        paired_difference(column(1, 0, 1), column(1, 0))
    with pytest.raises(ValueError, match="both before and after"):
        paired_difference(column(1, nan), column(nan, 1))
    with pytest.raises(ValueError, match="pass@5"):
        pass_at_k(np.ones((2, 4)), 5)
    with pytest.raises(ValueError, match="at least 1"):
        pass_at_k(np.ones((2, 4)), 0)
