"""Whether a policy knows the texts that it was trained on better than others like them.

Both sets of texts were drawn from the same source, so before training they are equally likely but for the draw. The
ratio of their perplexities then says how much of what was learned is these texts alone. They are of different problems,
so nothing is paired: texts of each set are resampled whole, the two sets apart (scipy's BCa bootstrap for two samples),
at a level that is expanded for few texts as in evals/perplexity.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite
from typing import TYPE_CHECKING

import numpy as np

from evals.statistics import RESAMPLES

if TYPE_CHECKING:
    from evals.perplexity import Scored


@dataclass(frozen=True)
class Memorisation:
    """Texts trained on and texts held out under one policy.

    Fields:
        trained_nll, held_out_nll: mean over tokens, nats.
        ratio: perplexity of the held-out ones over that of those trained on; low, high: its interval, None where one
            of the sets has a single text.
        confidence: nominal coverage.
    """

    trained_nll: float
    held_out_nll: float
    ratio: float
    low: float | None
    high: float | None
    confidence: float

    def alarm(self, above: float) -> bool:
        """Whether the ratio is above this bound, and above 1 beyond what the draw of the texts explains."""
        return self.ratio > above and self.low is not None and self.low > 1


def memorisation(
    trained: Sequence[Scored], held_out: Sequence[Scored], *, confidence: float, seed: int = 0
) -> Memorisation:
    """Compare what `evals.perplexity.score` found of the two sets; every token weighs the same.

    Args:
        confidence: nominal coverage of the interval, in (0, 1).
        seed: of the bootstrap.

    Raises:
        ValueError: a set has no token at all.
    """
    sets = [np.array([(text.nats, text.tokens) for text in texts if text.tokens]) for texts in (trained, held_out)]
    if not all(map(len, sets)):
        raise ValueError("memorisation: no completion tokens to measure")
    nlls = [float(_nll(rows)) for rows in sets]
    log_ratio = nlls[1] - nlls[0]
    low, high = _interval(*sets, confidence, seed)
    return Memorisation(
        *nlls,
        exp(log_ratio),
        None if low is None else exp(min(low, log_ratio)),
        None if high is None else exp(max(high, log_ratio)),
        confidence,
    )


def _nll(rows: np.ndarray) -> np.ndarray:
    """Of ... x texts x (nats, tokens)."""
    return rows[..., 0].sum(-1) / rows[..., 1].sum(-1)


def _interval(
    trained: np.ndarray, held_out: np.ndarray, confidence: float, seed: int
) -> tuple[float | None, float | None]:
    """Of log perplexity, held out less trained on; None where a set has a single text."""
    from scipy.stats import bootstrap, norm, t

    fewest = min(len(trained), len(held_out))
    if fewest < 2:
        return None, None
    size = (fewest / (fewest - 1)) ** 0.5 * t.ppf((1 + confidence) / 2, fewest - 1)
    expanded = min(float(2 * norm.cdf(size) - 1), 1 - 1 / RESAMPLES)

    def difference(of_trained: np.ndarray, of_held_out: np.ndarray, axis: int = -1) -> np.ndarray:
        # the numbers of texts are resampled, so that a text's nats and tokens stay together
        return _nll(held_out[of_held_out.astype(int)]) - _nll(trained[of_trained.astype(int)])

    with warnings.catch_warnings():
        # BCa's acceleration is 0 / 0 where no text changes the statistic
        warnings.simplefilter("ignore", RuntimeWarning)
        found = bootstrap(
            (np.arange(len(trained)), np.arange(len(held_out))),
            difference,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=500,
            confidence_level=expanded,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    low, high = float(found.confidence_interval.low), float(found.confidence_interval.high)
    if isfinite(low) and isfinite(high):
        return low, high
    tails = np.quantile(found.bootstrap_distribution, [(1 - expanded) / 2, (1 + expanded) / 2])
    return float(tails[0]), float(tails[1])
