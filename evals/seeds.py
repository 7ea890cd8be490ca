"""What may be claimed of a recipe from few training seeds: variance over problems and seeds, interval, p-value, power.

A mean over problems and training seeds, both drawn at random, has the variance s_p^2/P + s_s^2/S + s_ps^2/(P S) of
crossed random effects (problem, seed, problem by seed). Its unbiased estimate is A + m: the variance over problems of
these very runs less the part of the interaction (A), and the variance over seeds (m, which holds the interaction
once). A has P - 1 degrees of freedom, m with 2 to 5 seeds only 1 to 4, and these decide:

    half width = (t_{P-1} A + t_{S-1} m) / sqrt(A + m)      (Cochran and Cox's t of two variances)

but at least half of what the problems alone give (`FLOOR`): the means of two seeds may be equal by chance. The p-value
inverts it. Arms under other seeds have their own m each, and m is their sum with Welch's degrees of freedom.

Chosen by simulation. Coverage of nominal 95 % for P -> infinity, lowest and highest where problems and seeds add from 0
to 10 and 30 times what the interaction gives (the first two lines: to 30 and 100 times):

                              2 seeds        3 seeds        5 seeds
    this                      93.9 - 97.8    95.0 - 97.1    95.0 - 96.4
    FLOOR 1 instead of 1/2    94.0 - 99.3    95.0 - 98.7    95.0 - 97.9
    Satterthwaite's t         87.2 - 95.1    92.2 - 95.0    94.1 - 95.0
    t_{S-1} throughout        99.6 - 100     96.1 - 100     95.0 - 99.6

So the false-positive rate is 2 to 6 % with two seeds and 3 to 5 % with more (the rest, and binary samples of 100 to 500
problems, in the tests). With FLOOR 1 the interval would never be shorter than that of the runs alone, at the price of
finding 1 to 2 % where runs do not vary. Under other seeds, an arm of two has 1 to 6 %, more have 2 to 6 %.

Not taken: the percentile bootstrap over problems and seeds counts the interaction twice and the seeds too little: of
500 experiments without a difference (100 problems, 4 samples, 3 seeds) it found 1 % where runs do not vary and 8 % with
a seed sd of 3 points, more with more problems. statsmodels' MixedLM, REML with both effects crossed: 73 of 240 fits (50
problems, 3 and 5 seeds) did not converge, a fit takes a fifth of a second to seconds, and its test is a z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FLOOR = 0.5
POWER = 0.8
LEAST = 1e-30  # no p-value below this is told from it


@dataclass(frozen=True)
class Spread:
    """A mean over problems and training runs and where its variance comes from; floats, or arrays of many experiments.

    Fields:
        estimate: the mean.
        problems: its variance over problems drawn anew for the same runs.
        seeds: over runs trained anew for the same problems; 0 where there is one run.
        interaction: what `problems` and `seeds` both hold, s_ps^2/(P S).
        df_problems, df_seeds: degrees of freedom of the two; `df_seeds` is None where there is one run, and the claim
            is about that run.
    """

    estimate: np.ndarray | float
    problems: np.ndarray | float
    seeds: np.ndarray | float
    interaction: np.ndarray | float
    df_problems: int
    df_seeds: np.ndarray | float | None


def spread(mean_PS: np.ndarray) -> Spread:
    """Of an arm's accuracies, or of the differences of two arms under the same seeds.

    Args:
        mean_PS: [...] x problems x seeds, no nan; at least two problems.
    """
    problems, seeds = mean_PS.shape[-2:]
    mean_P, mean_S = mean_PS.mean(axis=-1), mean_PS.mean(axis=-2)
    mean = mean_P.mean(axis=-1)
    over_problems = mean_P.var(axis=-1, ddof=1) / problems
    if seeds == 1:
        return Spread(mean, over_problems, 0.0, 0.0, problems - 1, None)
    rest_PS = mean_PS - mean_P[..., :, None] - mean_S[..., None, :] + mean[..., None, None]
    # mean square of the interaction over P S
    interaction = (rest_PS**2).sum(axis=(-2, -1)) / ((problems - 1) * (seeds - 1) * problems * seeds)
    return Spread(mean, over_problems, mean_S.var(axis=-1, ddof=1) / seeds, interaction, problems - 1, seeds - 1)


def spread_unpaired(after_PS: np.ndarray, before_PS: np.ndarray) -> Spread:
    """Of after minus before on the same problems, the training seeds having nothing to do with each other.

    Where one of the two is a single run, the claim is about these very runs.

    Args:
        after_PS, before_PS: [...] x problems x seeds, no nan; as many problems, any numbers of seeds.
    """
    sides = spread(after_PS), spread(before_PS)
    runs = spread((after_PS.mean(axis=-1) - before_PS.mean(axis=-1))[..., None])
    if sides[0].df_seeds is None or sides[1].df_seeds is None:
        return runs
    seeds = sides[0].seeds + sides[1].seeds
    # Welch's, but no more than twice the lesser: two seeds that agree by chance would lend their arm the other's many
    squares = sum(np.square(side.seeds) / side.df_seeds for side in sides)
    least = min(side.df_seeds for side in sides)
    welch = np.divide(np.square(seeds), squares, out=np.full_like(squares, least), where=squares > 0)
    df = np.clip(welch, least, 2 * least)
    interaction = sides[0].interaction + sides[1].interaction
    return Spread(runs.estimate, runs.problems, seeds, interaction, runs.df_problems, df)


def half_width(of: Spread, alpha: float) -> np.ndarray | float:
    """Half the width of the interval that fails to hold with probability `alpha`; 0 where nothing varies."""
    from scipy.special import stdtrit  # t's quantiles, a hundred times as fast as scipy.stats

    t_problems = -stdtrit(of.df_problems, alpha / 2)
    alone = t_problems * np.sqrt(of.problems)
    if of.df_seeds is None:
        return alone
    problems = np.maximum(of.problems - of.interaction, 0.0)
    variance = problems + of.seeds
    both = t_problems * problems - stdtrit(of.df_seeds, alpha / 2) * of.seeds
    return np.maximum(both / np.sqrt(np.where(variance > 0, variance, 1.0)), FLOOR * alone)


def p_value(of: Spread) -> float:
    """Two-sided, of a mean of 0: the largest `alpha` whose interval holds 0, or `LEAST`. Something must vary."""
    from scipy.optimize import brentq

    size = abs(float(of.estimate))

    def short(log_alpha: float) -> float:
        return float(half_width(of, np.exp(log_alpha))) - size

    if size == 0:
        return 1.0
    return LEAST if short(np.log(LEAST)) <= 0 else float(np.exp(brentq(short, np.log(LEAST), 0.0, xtol=1e-10)))


def smallest_detectable(of: Spread, alpha: float, power: float = POWER) -> float:
    """The true mean that is told from 0 with probability `power` at level `alpha`, were the variance as estimated.

    As uncertain as the variance is: from 3 seeds, it may be wrong by a factor of two. The interval's width is drawn
    with the variance over seeds, chi-square distributed about its estimate, which is taken as no less than the
    interaction alone gives.
    """
    from scipy.optimize import brentq
    from scipy.special import gammaincinv, ndtr

    seeds_U, deviation = 0.0, np.sqrt(of.problems)
    if of.df_seeds is not None:
        seeds = np.maximum(of.seeds, of.interaction)
        deviation = np.sqrt(np.maximum(of.problems - of.interaction, 0.0) + seeds)
        # quantiles of chi-square over its degrees of freedom
        seeds_U = seeds * gammaincinv(of.df_seeds / 2, (np.arange(500) + 0.5) / 500) * 2 / of.df_seeds
    half_U = half_width(Spread(0.0, of.problems, seeds_U, of.interaction, of.df_problems, of.df_seeds), alpha)

    def short(mean: float) -> float:
        seen_U = ndtr((mean - half_U) / deviation) + ndtr((-half_U - mean) / deviation)
        return float(np.mean(seen_U)) - power

    return float(brentq(short, 0.0, float(np.max(half_U) + 10 * deviation)))
