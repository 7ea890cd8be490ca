"""How likely a policy finds given text: negative log-likelihood per answer token, and perplexity with its interval.

Exact over the vocabulary and on the tokens of the answers alone, so that a data source, a stage's traces and held-out
text compare. Perplexity says how well text is modelled, not whether problems are solved: it may fall while accuracy
falls, which is why the two stand beside each other.

The unit that was drawn at random is the text (of which a source has one per problem), never the token: tokens of one
text resemble each other, so texts are resampled whole (scipy's BCa bootstrap, at a level that is expanded for few texts
as Hesterberg does, arXiv 1411.5279, section 6).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import fsum, isfinite, log
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from evals.divergence import CHUNK, logits_of, padded
from evals.statistics import RESAMPLES

if TYPE_CHECKING:
    import torch

    from evals.divergence import Logits


@dataclass(frozen=True)
class Scored:
    """One text under a policy: the nats and the number of its tokens, and how many of them are rare."""

    nats: float
    tokens: int
    rare: int


@dataclass(frozen=True)
class Perplexity:
    """Texts under a policy.

    Fields:
        nll: mean over tokens, nats.
        perplexity: exp(nll); low, high: its interval over texts drawn like these, None where there is only one.
        confidence: nominal coverage.
        rare: share of tokens that the policy gives less than a bound (see `score`).
        tokens: counted.
        nats_by_text, tokens_by_text: in the order of the texts, 0 where one is empty; what comparisons are paired by.
    """

    nll: float
    perplexity: float
    low: float | None
    high: float | None
    confidence: float
    rare: float
    tokens: int
    nats_by_text: tuple[float, ...]
    tokens_by_text: tuple[int, ...]

    def to_json(self) -> str:
        """JSON text; `from_json` reads it back to an equal one."""
        return _adapter().dump_json(self).decode()

    @staticmethod
    def from_json(text: str | bytes) -> Perplexity:
        """Read what `to_json` wrote; fields of later versions are ignored.

        Raises:
            ValueError: not a perplexity.
        """
        return _adapter().validate_json(text)


@cache
def _adapter() -> TypeAdapter[Perplexity]:
    return TypeAdapter(Perplexity)


@dataclass(frozen=True)
class PerplexityRatio:
    """Perplexity of one set of texts over that of another on the same problems.

    Fields:
        ratio: 1 where the policy finds both equally likely; low, high: its interval, None for one pair.
        pairs: problems with a text in both that is not empty; only these count.
    """

    ratio: float
    low: float | None
    high: float | None
    confidence: float
    pairs: int


def score(
    policy: Logits,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    rare_below: float,
    rows: int = 8,
    device: str | torch.device = "cpu",
    pad_token_id: int = 0,
) -> list[Scored]:
    """-log p of every completion token given what stands before it, summed per sequence.

    Args:
        policy: called as f(input_ids, attention_mask=mask), both B x T and right-padded; gives logits B x T x V or an
            object that has them as `.logits`. A transformers model in eval mode does.
        sequences: (prompt, completion) token ids. An empty completion has no tokens and no nats.
        rare_below: a token of less probability is rare.
        rows: sequences per call.
        device: where the inputs are put.
        pad_token_id: any valid id; padding is masked.

    Raises:
        ValueError: an empty prompt before a completion, or a token of which the policy gives no finite log-probability.
    """
    import torch

    found = [Scored(0.0, 0, 0)] * len(sequences)
    kept = [at for at, (_, completion) in enumerate(sequences) if len(completion)]
    if not all(len(sequences[at][0]) for at in kept):
        raise ValueError("perplexity: a prompt is empty, so nothing predicts its completion's first token")
    with torch.inference_mode():
        for start in range(0, len(kept), rows):
            batch = kept[start : start + rows]
            ids, mask = padded([sequences[at] for at in batch], pad_token_id, device)
            logits_BTV = logits_of(policy, ids, mask)
            for row, at in enumerate(batch):
                prompt, completion = sequences[at]
                first, end = len(prompt), len(prompt) + len(completion)
                # position t predicts token t + 1
                nats_N = _nats(logits_BTV[row, first - 1 : end - 1], ids[row, first:end])
                total = float(nats_N.sum())
                if not isfinite(total):
                    raise ValueError("perplexity: the policy has no finite log-probability (nan, or p = 0) of a token")
                found[at] = Scored(total, len(completion), int((nats_N > -log(rare_below)).sum()))
    return found


def _nats(logits_NV: torch.Tensor, tokens_N: torch.Tensor) -> torch.Tensor:
    """-log softmax at the tokens, N, in double precision; so many rows at a time as memory has room for."""
    import torch

    size = max(1, CHUNK // logits_NV.shape[-1])
    parts = [
        logits_NV[at : at + size].double().log_softmax(-1).gather(-1, tokens_N[at : at + size, None])[:, 0]
        for at in range(0, len(tokens_N), size)
    ]
    return -torch.cat(parts)


def perplexity(texts: Sequence[Scored], *, confidence: float, seed: int = 0) -> Perplexity:
    """Put together what `score` found; every token weighs the same. The order of the texts does not matter.

    Args:
        confidence: nominal coverage of the interval, in (0, 1).
        seed: of the bootstrap.

    Raises:
        ValueError: there is no token at all.
    """
    tokens = sum(text.tokens for text in texts)
    if not tokens:
        raise ValueError("perplexity: no completion tokens to measure")
    nll = fsum(text.nats for text in texts) / tokens
    counted = np.array([(text.nats, text.tokens) for text in texts if text.tokens])
    low, high = _interval(counted, _nll, confidence, seed)
    return Perplexity(
        nll=nll,
        perplexity=_exp(nll),
        low=None if low is None else _exp(min(low, nll)),
        high=None if high is None else _exp(max(high, nll)),
        confidence=confidence,
        rare=sum(text.rare for text in texts) / tokens,
        tokens=tokens,
        nats_by_text=tuple(text.nats for text in texts),
        tokens_by_text=tuple(text.tokens for text in texts),
    )


def perplexity_ratio(text: Perplexity, other: Perplexity, *, confidence: float, seed: int = 0) -> PerplexityRatio:
    """Perplexity of `text` over that of `other`, text for text of the same problem: pairs are resampled together, since
    a hard problem makes both unlikely.

    Raises:
        ValueError: different numbers of texts, or no pair of which neither is empty.
    """
    if len(text.tokens_by_text) != len(other.tokens_by_text):
        counts = f"{len(text.tokens_by_text)} and {len(other.tokens_by_text)}"
        raise ValueError(f"perplexity: a paired ratio needs as many texts of both, not {counts}")
    columns = (text.nats_by_text, text.tokens_by_text, other.nats_by_text, other.tokens_by_text)
    pairs = np.array([row for row in zip(*columns, strict=True) if row[1] and row[3]])
    if not len(pairs):
        raise ValueError("perplexity: no problem has a text on both sides")
    # the same draws whichever side is called which, so that exchanging them gives the reciprocal
    a, b = _nll(*pairs[:, :2].T), _nll(*pairs[:, 2:].T)
    swapped = a < b
    log_ratio = float(abs(a - b))
    low, high = _interval(np.roll(pairs, 2 if swapped else 0, axis=1), _log_ratio, confidence, seed)
    bounds = (None, None) if low is None or high is None else (min(low, log_ratio), max(high, log_ratio))
    if swapped:
        log_ratio = -log_ratio
        bounds = tuple(None if bound is None else -bound for bound in reversed(bounds))
    low, high = (None if bound is None else _exp(bound) for bound in bounds)
    return PerplexityRatio(_exp(log_ratio), low, high, confidence, len(pairs))


def _nll(nats: np.ndarray, tokens: np.ndarray, axis: int = -1) -> np.ndarray:
    return nats.sum(axis=axis) / tokens.sum(axis=axis)


def _log_ratio(
    nats: np.ndarray, tokens: np.ndarray, other_nats: np.ndarray, other_tokens: np.ndarray, axis: int = -1
) -> np.ndarray:
    return _nll(nats, tokens, axis) - _nll(other_nats, other_tokens, axis)


def _interval(
    rows: np.ndarray, statistic: Callable[..., np.ndarray], confidence: float, seed: int
) -> tuple[float | None, float | None]:
    """BCa interval of a statistic of the columns, rows resampled; None for a single row. Where nothing varies between
    the rows it is the statistic itself. Computed on the logarithm: BCa is the same after any monotone transformation.
    """
    from scipy.stats import bootstrap, norm, t

    if len(rows) < 2:
        return None, None
    # resamples of n rows vary by n - 1 in n of what samples do, and their variance is itself estimated
    sizes = (len(rows) / (len(rows) - 1)) ** 0.5 * t.ppf((1 + confidence) / 2, len(rows) - 1)
    expanded = min(float(2 * norm.cdf(sizes) - 1), 1 - 1 / RESAMPLES)
    columns = tuple(rows[np.lexsort(rows.T)].T)
    with warnings.catch_warnings():
        # BCa's acceleration is 0 / 0 where no row changes the statistic
        warnings.simplefilter("ignore", RuntimeWarning)
        found = bootstrap(
            columns,
            statistic,
            paired=True,
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


def _exp(nats: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(nats))
