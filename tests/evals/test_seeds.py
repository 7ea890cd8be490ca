"""Variance over problems and training seeds: worked out by hand, and 500 simulated experiments each keep what is said.

Coverage and false positives of 500 experiments scatter by 1 point about their true value (standard error), so that the
2 points allowed are asked of the mean of several settings, and 3.5 points of each on its own.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import nct, t
from statsmodels.stats.contingency_tables import mcnemar

from evals.seeds import Spread, half_width, p_value, smallest_detectable, spread, spread_unpaired

SIMULATED = 500
SLOPE = 0.155
"""Points of accuracy a logit is worth where problems' logits have sd 1.5."""


def simulate(rng, problems, samples, *arms, middle=0.0, experiments=SIMULATED) -> list[np.ndarray]:
    """Arms of equal worth on the same problems: accuracies, experiments x problems x seeds.

    Logits: problem sd 1.5; by arm and problem 0.3; by problem and run 0.3. An arm is (seeds, sd of a run's accuracy).
    """
    normal = rng.standard_normal
    problem = middle + 1.5 * normal((experiments, problems, 1), dtype=np.float32)
    found = []
    for seeds, seed_sd in arms:
        logits = problem + 0.3 * normal((experiments, problems, 1), dtype=np.float32)
        logits = logits + seed_sd / SLOPE * normal((experiments, 1, seeds), dtype=np.float32)
        logits += 0.3 * normal((experiments, problems, seeds), dtype=np.float32)
        found.append(rng.binomial(samples, expit(logits)) / samples)
    return found


def misses(found: Spread, truth: float = 0.0) -> float:
    """Share of experiments whose 95 % interval does not hold the truth; of 0, the false-positive rate."""
    return float(np.mean(np.abs(found.estimate - truth) > half_width(found, 0.05)))


def true_accuracy(seed_sd: float, middle: float) -> float:
    # E of the logistic of a normal, by Gauss and Hermite
    deviation = math.sqrt(1.5**2 + 2 * 0.3**2 + (seed_sd / SLOPE) ** 2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    return float(weights @ expit(middle + deviation * nodes) / weights.sum())


def test_two_problems_and_two_seeds_by_hand():
    """seed 1   seed 2   mean
        problem 1      1       .5     .75      overall mean .375
        problem 2      0        0      0
        mean          .5      .25

    Problems: variance of .75 and 0 is .28125, over 2 problems .140625. Seeds: of .5 and .25 .03125, over 2 seeds
    .015625. Interaction: 1 - .75 - .5 + .375 = .125 in every cell but for its sign: mean square .0625 with 1 degree of
    freedom, over 4 cells .015625. A = .140625 - .015625 = .125, m = .015625, and both t have 1 degree of freedom, so
    the half width is 12.7062 sqrt(.140625) = 12.7062 * .375 = 4.764826.
    """
    found = spread(np.array([[1, 0.5], [0, 0]]))
    assert (found.estimate, found.problems, found.seeds, found.interaction) == (0.375, 0.140625, 0.015625, 0.015625)
    assert (found.df_problems, found.df_seeds) == (1, 1)
    assert half_width(found, 0.05) == pytest.approx(4.764826, abs=1e-5)
    # t with 1 degree of freedom is Cauchy: P(|T| > .375 / .375) = 1/2
    assert p_value(found) == pytest.approx(0.5)


def test_the_two_degrees_of_freedom_by_hand():
    """A = 4 - 1 = 3 with t_10 = 2.228139 at 5 %, m = 6 with t_2 = 4.302653: (6.684417 + 25.815918) / sqrt(9)."""
    found = Spread(0.0, 4.0, 6.0, 1.0, 10, 2)
    assert half_width(found, 0.05) == pytest.approx(10.833445, abs=1e-5)


def test_runs_that_agree_by_chance_give_no_certainty():
    """Seed means equal, and no more variance over problems than the interaction gives: A = m = 0. Half of the problems'
    own t_10 * sqrt(4) is left. No variance over seeds but over problems: t_10 sqrt(A), where that is more."""
    assert half_width(Spread(0.0, 4.0, 0.0, 4.0, 10, 2), 0.05) == pytest.approx(2.228139, abs=1e-5)
    assert half_width(Spread(0.0, 4.0, 0.0, 1.0, 10, 2), 0.05) == pytest.approx(2.228139 * math.sqrt(3), abs=1e-5)


def test_one_run_is_the_t_interval_over_problems():
    values_P = np.random.default_rng(0).random(30)
    found = spread(values_P[:, None])
    low, high = t.interval(0.95, 29, values_P.mean(), values_P.std(ddof=1) / math.sqrt(30))
    assert found.df_seeds is None
    assert (found.estimate - half_width(found, 0.05), found.estimate + half_width(found, 0.05)) == pytest.approx(
        (low, high)
    )


def test_other_seeds_by_hand():
    """Arm one's seed means .75, .25: variance .125, over 2 seeds .0625; arm two's 0, .5, 1: .25, over 3 .083333.
    Welch: .145833^2 / (.0625^2 / 1 + .083333^2 / 2) = .021267 / .007378 = 2.8824, cut to twice the lesser, 2."""
    one, two = np.array([[1, 0], [0.5, 0.5]]), np.array([[0, 1, 1], [0, 0, 1]])
    found = spread_unpaired(one, two)
    assert found.seeds == pytest.approx(0.0625 + 0.25 / 3)
    assert found.df_seeds == 2
    assert found.interaction == pytest.approx(spread(one).interaction + spread(two).interaction)
    # one's problems .5, .5, two's 2/3, 1/3: the differences' variance is 1/18, over two problems 1/36
    assert (found.estimate, found.problems) == (pytest.approx(0), pytest.approx(1 / 36))
    # 1/4 and 1/4 of two seeds each: Welch's is 1 + 1
    assert spread_unpaired(one, one).df_seeds == pytest.approx(2)
    # all of the variance in the arm of two seeds: 1
    assert spread_unpaired(one, np.full((2, 3), 0.5)).df_seeds == pytest.approx(1)


def test_the_p_value_and_the_interval_agree():
    rng = np.random.default_rng(1)
    for seeds in (2, 3, 5):
        after, before = simulate(rng, 60, 1, (seeds, 0.02), (seeds, 0.02), experiments=20)
        for one, two in zip(after, before, strict=True):
            for found in (spread(one - two), spread_unpaired(one, two)):
                alpha = p_value(found)
                if alpha < 1:
                    assert half_width(found, alpha) == pytest.approx(abs(found.estimate), rel=1e-6)


def test_order_sign_and_scale():
    rng = np.random.default_rng(2)
    cells_PS, other_PS = rng.random((20, 4)), rng.random((20, 3))
    found, mixed = spread(cells_PS), spread(cells_PS[rng.permutation(20)][:, rng.permutation(4)])
    assert half_width(mixed, 0.05) == pytest.approx(half_width(found, 0.05))
    assert half_width(spread(-2 * cells_PS), 0.05) == pytest.approx(2 * half_width(found, 0.05))
    there, back = spread_unpaired(cells_PS, other_PS), spread_unpaired(other_PS, cells_PS)
    assert back.estimate == -there.estimate and half_width(back, 0.05) == pytest.approx(half_width(there, 0.05))


SETTINGS = list(product((100, 300), (1, 4), (0.0, 0.01, 0.03)))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_no_difference_is_found_in_5_of_100_experiments(seeds: int):
    rng = np.random.default_rng(seeds)
    rates = []
    for problems, samples, seed_sd in SETTINGS:
        after, before = simulate(rng, problems, samples, (seeds, seed_sd), (seeds, seed_sd))
        rates.append(misses(spread(after - before)))
    assert 0.03 <= np.mean(rates) <= 0.07, rates
    assert max(rates) <= 0.085 and min(rates) >= 0.015, rates


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_no_difference_at_any_size(seeds: int):
    """2,000 experiments of each size, so that the standard error is half a point; with two seeds it is cautious."""
    rng = np.random.default_rng(40 + seeds)
    for problems, samples, seed_sd in product((100, 500), (1, 2, 4), (0.0, 0.01, 0.03)):
        after, before = simulate(rng, problems, samples, (seeds, seed_sd), (seeds, seed_sd), experiments=2000)
        rate = misses(spread(after - before))
        assert (0.02 if seeds == 2 else 0.03) - 0.01 <= rate <= 0.07 + 0.01, (problems, samples, seed_sd)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_accuracy_of_the_recipe_is_covered(seeds: int):
    rng = np.random.default_rng(10 + seeds)
    rates = []
    for middle, (problems, samples, seed_sd) in zip((-1.1, 0.0, 1.1) * 4, SETTINGS, strict=True):
        (arm,) = simulate(rng, problems, samples, (seeds, seed_sd), middle=middle)
        truth = true_accuracy(seed_sd, middle)
        assert 0.27 < truth < 0.73
        rates.append(misses(spread(arm), truth))
    assert 0.02 <= np.mean(rates) <= 0.07, rates
    assert max(rates) <= 0.085, rates


@pytest.mark.parametrize(("one", "two"), [(3, 3), (3, 5), (2, 5), (5, 2)])
def test_other_seeds_find_no_difference_either(one: int, two: int):
    """With two seeds the rate is 1 to 6 %: Welch's degrees of freedom are cut there, without which an arm of two very
    different seeds against one of five alike would be found different in 9 %."""
    rng = np.random.default_rng(20)
    rates = []
    for problems, sds in product((100, 300), ((0.0, 0.0), (0.03, 0.03), (0.03, 0.005))):
        after, before = simulate(rng, problems, 4, (one, sds[0]), (two, sds[1]))
        rates.append(misses(spread_unpaired(after, before)))
    assert np.mean(rates) <= 0.07 and max(rates) <= 0.085, rates
    assert np.mean(rates) >= (0.01 if 2 in (one, two) else 0.03), rates


def test_problems_alone_would_claim_what_is_not_so():
    """Why seeds are a level of their own: three runs each, taken for the recipe, find a difference in one experiment of
    three where runs vary by 3 points; and the percentile bootstrap over problems and seeds in one of eight."""
    rng = np.random.default_rng(4)
    after, before = simulate(rng, 300, 4, (3, 0.03), (3, 0.03))
    cells = after - before
    assert misses(spread(cells.mean(axis=-1, keepdims=True))) > 0.3
    assert misses(spread(cells)) < 0.08
    outside = 0
    for cells_PS in cells[:200]:
        problems_R, seeds_R = rng.integers(300, size=(400, 300, 1)), rng.integers(3, size=(400, 1, 3))
        low, high = np.quantile(cells_PS[problems_R, seeds_R].mean(axis=(1, 2)), (0.025, 0.975))
        outside += not low <= 0 <= high
    assert outside / 200 > 0.12


def test_one_run_against_one_run():
    """Of these runs alone: the chances of both are held while problems and samples are drawn."""
    rng = np.random.default_rng(5)
    after, before = simulate(rng, 200, 4, (1, 0.0), (1, 0.0))
    assert 0.03 <= misses(spread(after - before)) <= 0.07


def test_detectable_by_hand():
    """Two seeds' worth of degrees of freedom and nothing else (A = 0): a t test, whose power is noncentral t's. With
    df 4, 5 % and a standard error of 1: the noncentrality at which P(|T| > 2.776445) = 0.8."""
    found = Spread(0.0, 1.0, 1.0, 1.0, 100_000, 4)
    at = smallest_detectable(found, 0.05)
    crossing = t.isf(0.025, 4)
    # the floor does not matter at 1 standard error here
    assert nct.sf(crossing, 4, at) + nct.cdf(-crossing, 4, at) == pytest.approx(0.8, abs=0.002)
    # one run, many problems: 1.959964 + 0.841621 standard errors
    assert smallest_detectable(Spread(0.0, 1.0, 0.0, 0.0, 10**6, None), 0.05) == pytest.approx(2.801585, abs=1e-3)


@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0.0), *product((2, 3, 5), (0.0, 0.03))])
def test_the_detectable_difference_is_seen_in_80_of_100_experiments(seeds: int, seed_sd: float):
    """At what the mean of the estimated variances gives; a single experiment's own estimate scatters about that."""
    rng = np.random.default_rng(6)
    after, before = simulate(rng, 200, 4, (seeds, seed_sd), (seeds, seed_sd))
    found = spread(after - before)
    parts = [float(np.mean(part)) for part in (found.problems, found.seeds, found.interaction)]
    true_difference = smallest_detectable(Spread(0.0, *parts, found.df_problems, found.df_seeds), 0.05)
    shifted = found.estimate + true_difference
    assert 0.75 <= np.mean(np.abs(shifted) > half_width(found, 0.05)) <= 0.85


def test_mcnemar_of_one_run_keeps_its_size():
    rng = np.random.default_rng(7)
    after, before = simulate(rng, 200, 1, (1, 0.0), (1, 0.0))
    gained, lost = ((after > before).sum(axis=(1, 2)), (after < before).sum(axis=(1, 2)))
    p = [mcnemar([[0, g], [b, 0]], exact=True).pvalue for g, b in zip(gained, lost, strict=True)]
    assert np.mean(np.array(p) < 0.05) <= 0.07  # exact: below 5 %, never much above
