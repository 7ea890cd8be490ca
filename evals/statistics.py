"""Accuracy with intervals and paired comparisons; the inference is statsmodels' and scipy's.

The unit that was drawn at random is the problem: several samples of one problem resemble each other and count as
a cluster, never as so many independent problems. Which method answers which question:

    accuracy, one sample each      Wilson interval (statsmodels)
    accuracy, several samples      Wilson at the effective sample size n_eff = p (1 - p) / Var(p), which is N over
                                   the cluster design effect, with the small-sample factor of Korn and Graubard (1998)
    difference, one sample each    exact McNemar p-value (statsmodels); Bonett and Price (2012) interval, which
                                   neither library has
    difference, several samples    BCa bootstrap over problems for the interval, sign-flip permutation test over the
                                   per-problem differences for the p-value (both scipy)

A matrix `correct_PS` is problems x samples of 1 (correct), 0 (wrong) and nan (ungradable). Ungradable samples are
left out; a problem without a graded sample is left out whole. Every problem weighs the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import fsum, isfinite, sqrt

import numpy as np

RESAMPLES = 9_999

MCNEMAR = "exact McNemar"
CLUSTERED = "bootstrap clustered by problem, sign-flip permutation"


@dataclass(frozen=True)
class Interval:
    """An estimate between 0 and 1 with its confidence interval; `confidence` is the nominal coverage, 0.95 say."""

    estimate: float
    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class PairedDifference:
    """After minus before on the same problems.

    Fields:
        difference: mean over problems, between -1 and 1.
        low, high: confidence interval of `difference`.
        p_value: two-sided, of no difference.
        method: what gave the p-value (`MCNEMAR` or `CLUSTERED`).
        n: problems compared.
    """

    difference: float
    low: float
    high: float
    p_value: float
    method: str
    n: int
    confidence: float


def accuracy(correct_PS: np.ndarray, confidence: float) -> Interval:
    """Share of correct samples, averaged over problems, with its interval over problems drawn like these.

    Where nothing varies (all right, all wrong) no design effect can be estimated; n_eff is then the number of
    problems, the cautious end.

    Args:
        correct_PS: problems x samples of 0, 1 and nan.
        confidence: nominal coverage, in (0, 1).

    Raises:
        ValueError: not a matrix of 0, 1 and nan, or nothing in it was graded.
    """
    from statsmodels.stats.proportion import proportion_confint

    check_confidence(confidence)
    correct_PS = checked(correct_PS)
    means_P, counts_P = _per_problem(correct_PS)
    estimate = _mean(means_P)
    n_eff = _effective_size(means_P, int(counts_P.sum()), confidence)
    low, high = proportion_confint(estimate * n_eff, n_eff, alpha=1 - confidence, method="wilson")
    # at 0 and 1 a bound may miss the estimate by rounding
    return Interval(estimate, max(0.0, min(float(low), estimate)), min(1.0, max(float(high), estimate)), confidence)


def effective_size(correct_PS: np.ndarray) -> float:
    """How many independent samples `correct_PS` is worth: p (1 - p) / Var(p), at most the graded samples."""
    means_P, counts_P = _per_problem(checked(correct_PS))
    return _effective_size(means_P, int(counts_P.sum()), None)


def paired_difference(
    after_PS: np.ndarray, before_PS: np.ndarray, confidence: float, seed: int = 0
) -> PairedDifference:
    """How much better `after` does than `before` on the same problems, row for row.

    With one sample each, the discordant pairs decide. Otherwise each problem gives the difference of its two
    means, and problems are resampled. The result does not depend on the order of the problems, and exchanging
    `after` and `before` negates it.

    Args:
        after_PS, before_PS: problems x samples of 0, 1 and nan; the sample counts may differ.
        confidence: nominal coverage of the interval.
        seed: of the bootstrap and the permutations.

    Raises:
        ValueError: different numbers of problems, or no problem graded in both.
    """
    check_confidence(confidence)
    after_PS, before_PS = checked(after_PS), checked(before_PS)
    if len(after_PS) != len(before_PS):
        raise ValueError(f"paired comparison needs the same problems: {len(after_PS)} after, {len(before_PS)} before")
    both_P = ~np.isnan(after_PS).all(axis=1) & ~np.isnan(before_PS).all(axis=1)
    if not both_P.any():
        raise ValueError("paired comparison: no problem was graded both before and after")
    after_P, _ = _per_problem(after_PS[both_P])
    before_P, _ = _per_problem(before_PS[both_P])
    difference_P = after_P - before_P
    single = after_PS.shape[1] == before_PS.shape[1] == 1
    low, high, p_value = _mcnemar(difference_P, confidence) if single else _clustered(difference_P, confidence, seed)
    difference = _mean(difference_P)
    return PairedDifference(
        difference=difference,
        low=min(low, difference),
        high=max(high, difference),
        p_value=p_value,
        method=MCNEMAR if single else CLUSTERED,
        n=len(difference_P),
        confidence=confidence,
    )


def pass_at_k(correct_PS: np.ndarray, k: int) -> float:
    """Unbiased chance that at least one of k samples is correct (Chen et al. 2021, arXiv 2107.03374).

    Per problem 1 - C(n - c, k) / C(n, k), the hypergeometric chance of drawing no correct one of n, of which c are
    correct; averaged over the problems with at least k graded samples.

    Raises:
        ValueError: k below 1, or above the graded samples of every problem.
    """
    from scipy.stats import hypergeom

    if k < 1:
        raise ValueError(f"pass@k: k must be at least 1, got {k}")
    correct_PS = checked(correct_PS)
    graded_P = (~np.isnan(correct_PS)).sum(axis=1)
    enough_P = graded_P >= k
    if not enough_P.any():
        raise ValueError(f"pass@{k}: no problem has {k} graded samples (at most {int(graded_P.max(initial=0))})")
    right_P = np.nansum(correct_PS, axis=1)
    return 1.0 - _mean(hypergeom.pmf(0, graded_P[enough_P], right_P[enough_P], k))


def _mcnemar(difference_P: np.ndarray, confidence: float) -> tuple[float, float, float]:
    from statsmodels.stats.contingency_tables import mcnemar

    gained, lost = int((difference_P > 0).sum()), int((difference_P < 0).sum())
    p_value = float(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue)
    return *bonett_price(difference_P, confidence), min(1.0, p_value)


def bonett_price(difference_P: np.ndarray, confidence: float) -> tuple[float, float]:
    """Wald interval after adding one problem gained and one lost (Bonett and Price 2012, recommended by Fagerland,
    Lydersen and Laake 2014): still an interval where nothing changed, or everything did."""
    from scipy.stats import norm

    padded = np.append(difference_P, (1.0, -1.0))
    half = float(norm.ppf((1 + confidence) / 2)) * float(padded.std()) / sqrt(len(padded))
    centre = _mean(padded)
    return max(-1.0, centre - half), min(1.0, centre + half)


def _clustered(difference_P: np.ndarray, confidence: float, seed: int) -> tuple[float, float, float]:
    from scipy.stats import bootstrap

    # one order and one sign for the random draws, so that neither the order of the problems nor which side is
    # called "after" shows in the result
    sign = -1.0 if _mean(difference_P) < 0 else 1.0
    canonical_P = np.sort(sign * difference_P)
    if canonical_P[0] == canonical_P[-1]:
        low, high = bonett_price(canonical_P, confidence)
    else:
        interval = bootstrap(
            (canonical_P,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=500,
            confidence_level=confidence,
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    # of one problem, either sign is as large
    p_value = 1.0 if len(canonical_P) == 1 else _sign_flips(canonical_P, seed)
    return *((low, high) if sign > 0 else (-high, -low)), min(1.0, p_value)


def _sign_flips(difference_P: np.ndarray, seed: int) -> float:
    from scipy.stats import permutation_test

    found = permutation_test(
        (difference_P,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=500,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _effective_size(means_P: np.ndarray, graded: int, confidence: float | None) -> float:
    """n_eff; with `confidence`, shrunk by (z / t)^2 for a variance estimated from few problems."""
    from scipy.stats import norm, t

    problems = len(means_P)
    if graded == problems:
        return float(problems)
    estimate = _mean(means_P)
    if problems == 1 or estimate in (0.0, 1.0):
        return float(problems)
    variance = float(means_P.var(ddof=1)) / problems
    size = estimate * (1 - estimate) / variance if variance > 0 else float(graded)
    if confidence is not None:
        tail = (1 + confidence) / 2
        size *= float(norm.ppf(tail) / t.ppf(tail, problems - 1)) ** 2
    return min(size, float(graded))


def _per_problem(correct_PS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and number of graded samples of every problem that has one."""
    counts_P = (~np.isnan(correct_PS)).sum(axis=1)
    kept_P = counts_P > 0
    if not kept_P.any():
        raise ValueError(f"none of {correct_PS.size} samples could be graded: the verifier fails, or there are none")
    return np.nansum(correct_PS[kept_P], axis=1) / counts_P[kept_P], counts_P[kept_P]


def _mean(values_P: np.ndarray) -> float:
    # fsum is exact, so the order of the problems does not reach the last digit
    return fsum(values_P) / len(values_P)


def checked(correct_PS: np.ndarray) -> np.ndarray:
    """`correct_PS` as floats.

    Raises:
        ValueError: not a matrix of 0, 1 and nan.
    """
    matrix = np.asarray(correct_PS, dtype=float)
    if matrix.ndim != 2:
        raise ValueError(f"expected a problems x samples matrix, got shape {matrix.shape}")
    if not (np.isnan(matrix) | (matrix == 0) | (matrix == 1)).all():
        raise ValueError("expected 1 (correct), 0 (wrong) or nan (ungradable) in every cell")
    return matrix


def check_confidence(confidence: float) -> None:
    """Raise ValueError unless it lies in (0, 1)."""
    if not (isfinite(confidence) and 0 < confidence < 1):
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
