"""Whether a policy knows the texts that it was trained on better than others like them.

Both sets of texts were drawn from the same source, so before training they are equally likely but for the draw. The
ratio of their perplexities then says how much of what was learned is these texts alone.

They are of different problems, so nothing is paired. The unit that was drawn is the text: the variance of each set's
nats a token is the jackknife's over its texts, and the interval of the difference is Welch's, with his degrees of
freedom. For 20 texts a set it covers what it says where a BCa bootstrap of the two sets covers 86 % for 90 (a skewed
ratio of sums of few texts), and it takes no time, which counts where it is asked again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from sys import float_info
from typing import TYPE_CHECKING

import numpy as np

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


def memorisation(trained: Sequence[Scored], held_out: Sequence[Scored], *, confidence: float) -> Memorisation:
    """Compare what `evals.perplexity.score` found of the two sets; every token weighs the same.

    Args:
        confidence: nominal coverage of the interval, in (0, 1).

    Raises:
        ValueError: a set has no token at all.
    """
    sets = [np.array([(text.nats, text.tokens) for text in texts if text.tokens]) for texts in (trained, held_out)]
    if not all(map(len, sets)):
        raise ValueError("memorisation: no completion tokens to measure")
    nlls = [float(_nll(texts_N2)) for texts_N2 in sets]
    log_ratio, reach = nlls[1] - nlls[0], _reach(*sets, confidence)
    bounds = (None, None) if reach is None else (_exp(log_ratio - reach), _exp(log_ratio + reach))
    return Memorisation(*nlls, _exp(log_ratio), *bounds, confidence)


def _nll(texts_N2: np.ndarray) -> np.ndarray:
    """Nats a token of ... x texts x (nats, tokens)."""
    return texts_N2[..., 0].sum(-1) / texts_N2[..., 1].sum(-1)


def _reach(trained: np.ndarray, held_out: np.ndarray, confidence: float) -> float | None:
    """Half the interval of the difference of their nats a token; None where a set has a single text."""
    from scipy.stats import t

    degrees = [len(texts) - 1 for texts in (trained, held_out)]
    if not all(degrees):
        return None
    variances = [_variance(texts) for texts in (trained, held_out)]
    variance = sum(variances)
    if not variance:
        return 0.0
    freedom = variance**2 / sum(own**2 / degree for own, degree in zip(variances, degrees, strict=True))
    return float(t.ppf((1 + confidence) / 2, freedom)) * variance**0.5


def _variance(texts_N2: np.ndarray) -> float:
    """The jackknife's, of nats a token."""
    count = len(texts_N2)
    without_N2 = texts_N2.sum(0) - texts_N2
    return float((count - 1) * (without_N2[:, 0] / without_N2[:, 1]).var())


def _exp(nats: float) -> float:
    """The largest number there is in the place of a larger one."""
    return exp(min(nats, log(float_info.max)))
