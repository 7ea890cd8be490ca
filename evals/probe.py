"""What training did to next-token distributions, place by place: at locks, where one token is all but decided, and at
forks, where several are open.

SSD (arXiv 2604.01193) trains a policy on its own answers, drawn hot and truncated, without any check, and claims that
this cuts the tails at locks and leaves the forks open. Each place is put into a class by the policy before training
alone, so that what training did cannot choose the class; then numbers of both policies stand side by side:

    top1               probability of the likeliest token
    kept               mass, at temperature 1, on the tokens that survive the truncation before training (SSD's set S)
    survivors          tokens that survive it, of each policy's own
    entropy            of the policy itself, at temperature 1
    drawn_entropy      of what is drawn from, that is after temperature and truncation
    pull               half the L1 distance from the policy to SSD's target: what was drawn from before training

The expected gradient of SSD's loss at a place, in the logits, is the policy minus the target; so `pull` is how strongly
SSD pulls there, nothing at temperature 1 without truncation, and it falls where training did what SSD is said to do.
Means are over places; intervals come from a bootstrap over carriers, since places of one answer resemble each other.
All tensors are places x vocabulary, computed in double precision; entropies are in nats.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from math import fsum, sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np

from evals.carriers import ProbeError
from evals.statistics import RESAMPLES

if TYPE_CHECKING:
    import torch

    from evals.carriers import Place
    from evals.settings import TokenClasses, Truncation

TokenClass = Literal["lock", "fork", "other"]
STRICT, SWAPPED, CORRECTION = "strict", "swapped", "self-correction"


@dataclass(frozen=True)
class View:
    """One policy at one place; see the module docstring. `token` is the likeliest one's id."""

    token: int
    top1: float
    kept: float
    survivors: int
    entropy: float
    drawn_entropy: float
    pull: float


NUMBERS = tuple(field.name for field in fields(View) if field.name != "token")


@dataclass(frozen=True)
class Reading:
    """Both policies at one place of one carrier.

    Fields:
        carrier: its number.
        token_class: by the policy before training alone.
    """

    carrier: int
    place: Place
    token_class: TokenClass
    before: View
    after: View

    @property
    def changed(self) -> bool:
        """Whether another token is the likeliest."""
        return self.before.token != self.after.token

    @property
    def lock(self) -> str | None:
        """Which lock it is: at a word of self-correction; else `swapped` where training put another token first, and
        `strict` where it did not. None where it is no lock.

        The last two are told apart by what training did. Their numbers describe it; they are not evidence for it.
        """
        if self.token_class != "lock":
            return None
        if "correction" in self.place.kinds:
            return CORRECTION
        return SWAPPED if self.changed else STRICT


@dataclass(frozen=True)
class Estimate:
    """A mean over places with its interval; `low` and `high` are None where carriers do not differ, or there is one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Change:
    """A number's means before and after, and after minus before with its interval."""

    before: float
    after: float
    difference: Estimate


@dataclass(frozen=True)
class Group:
    """The places of one class, or of one kind, in numbers.

    Fields:
        of: what the group is part of: `all`, a `class`, one of the `lock`s, a `kind` of place. A place may have several
            kinds.
        changed: share of places at which another token is the likeliest.
        numbers: by the names in `NUMBERS`.
    """

    name: str
    of: Literal["all", "class", "lock", "kind"]
    places: int
    carriers: int
    changed: Estimate
    numbers: dict[str, Change]


def drawn_from(logits_NV: torch.Tensor, truncation: Truncation) -> torch.Tensor:
    """Log-probabilities that a token is drawn from, -inf where it is cut: what vLLM's sampler does.

    Temperature, then min-p against the likeliest token, then top-k (ties with the k-th stay), then the tokens whose
    mass together with all less likely ones is above 1 - top_p; the likeliest stays anyway.
    """
    import torch

    scaled_NV = logits_NV.double() / truncation.temperature
    if truncation.min_p:
        p_NV = scaled_NV.softmax(-1)
        scaled_NV = scaled_NV.masked_fill(p_NV < truncation.min_p * p_NV.amax(-1, keepdim=True), -torch.inf)
    if 0 < truncation.top_k < scaled_NV.shape[-1]:
        kth_N1 = scaled_NV.topk(truncation.top_k).values[..., -1:]
        scaled_NV = scaled_NV.masked_fill(scaled_NV < kth_N1, -torch.inf)
    if truncation.top_p < 1:
        ascending_NV, order_NV = scaled_NV.sort(dim=-1, stable=True)
        cut_NV = ascending_NV.softmax(-1).cumsum(-1) <= 1 - truncation.top_p
        cut_NV[..., -1] = False
        scaled_NV = scaled_NV.masked_fill(cut_NV.gather(-1, order_NV.argsort(-1)), -torch.inf)
    return scaled_NV.log_softmax(-1)


def classify(logits_NV: torch.Tensor, classes: TokenClasses) -> list[TokenClass]:
    """The class of each place by this policy's probabilities at temperature 1."""
    p_NV = logits_NV.double().softmax(-1).sort(-1, descending=True).values
    top1_N = p_NV[:, 0]
    nucleus_N = (p_NV.cumsum(-1) < classes.nucleus).sum(-1) + 1
    tail_N = p_NV[:, classes.tail_beyond :].sum(-1)
    open_N = (p_NV >= classes.fork_ratio * top1_N[:, None]).sum(-1)
    lock_N = (top1_N >= classes.lock_top1) & (nucleus_N <= classes.lock_nucleus) & (tail_N <= classes.lock_tail)
    fork_N = (top1_N <= classes.fork_top1) & (open_N >= classes.fork_tokens) & (tail_N <= classes.fork_tail)
    return ["lock" if lock else "fork" if fork else "other" for lock, fork in zip(lock_N, fork_N, strict=True)]


def read_places(
    carrier: int,
    places: Sequence[Place],
    before_NV: torch.Tensor,
    after_NV: torch.Tensor,
    classes: TokenClasses,
    truncation: Truncation,
) -> list[Reading]:
    """Both policies at the places of one carrier.

    Args:
        carrier: its number.
        before_NV, after_NV: next-token logits, a row for each place.

    Raises:
        ValueError: unequal shapes, not one row for each place, or logits that are not numbers.
    """
    if before_NV.shape != after_NV.shape or len(before_NV) != len(places):
        shapes = f"{tuple(before_NV.shape)} and {tuple(after_NV.shape)}"
        raise ValueError(f"probe: logits of shapes {shapes} for {len(places)} places")
    if before_NV.isnan().any() or after_NV.isnan().any():
        raise ValueError("probe: the logits of a policy are not numbers (nan)")
    target_NV = drawn_from(before_NV, truncation)
    before, after = (_views(logits_NV, target_NV, truncation) for logits_NV in (before_NV, after_NV))
    found = zip(places, classify(before_NV, classes), before, after, strict=True)
    return [Reading(carrier, *one) for one in found]


def _views(logits_NV: torch.Tensor, target_NV: torch.Tensor, truncation: Truncation) -> list[View]:
    """A policy against the target, which is given in log-probabilities."""
    import torch

    p_NV, drawn_NV = logits_NV.double().softmax(-1), drawn_from(logits_NV, truncation)
    top1_N, token_N = p_NV.max(-1)
    columns = (
        token_N,
        top1_N,
        torch.where(target_NV > -torch.inf, p_NV, 0.0).sum(-1),
        (drawn_NV > -torch.inf).sum(-1),
        torch.special.entr(p_NV).sum(-1),
        torch.special.entr(drawn_NV.exp()).sum(-1),
        (p_NV - target_NV.exp()).abs().sum(-1) / 2,
    )
    return [View(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def summarise(readings: Sequence[Reading], confidence: float, seed: int) -> tuple[Group, ...]:
    """All places, those of each class, of each sort of lock, and of each kind; groups without a place are left out.

    Raises:
        ProbeError: there are no places.
    """
    if not readings:
        raise ProbeError(
            "probe: there are no places to compare policies at; lower places.every, or raise places.random"
        )
    return tuple(_group(name, of, members, confidence, seed) for name, of, members in _groups(readings) if members)


def _groups(readings: Sequence[Reading]) -> Iterator[tuple[str, Literal["all", "class", "lock", "kind"], list]]:
    yield "all", "all", list(readings)
    for name in ("lock", "fork", "other"):
        yield name, "class", [one for one in readings if one.token_class == name]
        if name == "lock":
            for sort in (STRICT, SWAPPED, CORRECTION):
                yield sort, "lock", [one for one in readings if one.lock == sort]
    for kind in ("regular", "boxed", "correction", "declaration", "random"):
        yield kind, "kind", [one for one in readings if kind in one.place.kinds]


def _group(
    name: str, of: Literal["all", "class", "lock", "kind"], members: Sequence[Reading], confidence: float, seed: int
) -> Group:
    before_NM, after_NM = (
        np.array([[getattr(view, number) for number in NUMBERS] for view in views], dtype=float)
        for views in ([one.before for one in members], [one.after for one in members])
    )
    changed_N1 = np.array([[one.changed] for one in members], dtype=float)
    carriers_N = [one.carrier for one in members]
    changed, *moved = clustered_means(np.hstack([changed_N1, after_NM - before_NM]), carriers_N, confidence, seed)
    means = zip(NUMBERS, before_NM.mean(0).tolist(), after_NM.mean(0).tolist(), moved, strict=True)
    numbers = {number: Change(before, after, difference) for number, before, after, difference in means}
    return Group(name, of, len(members), len(set(carriers_N)), changed, numbers)


def clustered_means(values_NM: np.ndarray, clusters_N: Sequence[int], confidence: float, seed: int) -> list[Estimate]:
    """Means over rows with BCa bootstrap intervals over whole clusters (scipy), as wide as so few clusters ask for
    (Hesterberg 2015, section 5: Student's t and n - 1 in place of the normal quantile and n). A cluster weighs as many
    rows as it has. Neither the order of the rows nor the clusters' names change the result.

    Args:
        values_NM: rows x numbers; an estimate for each column.
        clusters_N: of each row.
        confidence: nominal coverage, in (0, 1).
    """
    from scipy.stats import DegenerateDataWarning, bootstrap, norm, t

    rows: dict[int, list[np.ndarray]] = {}
    for cluster, values_M in zip(clusters_N, values_NM, strict=True):
        rows.setdefault(cluster, []).append(values_M)
    # exact sums, and sorted as a whole, so that the draws know no order
    sums_CM = sorted((len(own), *map(fsum, zip(*own, strict=True))) for own in rows.values())
    counts_C, *sums_MC = (np.array(column, dtype=float) for column in zip(*sums_CM, strict=True))
    sums_MC, clusters = np.array(sums_MC), len(counts_C)
    means_M = sums_MC.sum(-1) / counts_C.sum()
    if clusters == 1:
        return [Estimate(float(mean), None, None) for mean in means_M]
    quantile = sqrt(clusters / (clusters - 1)) * t.ppf((1 + confidence) / 2, clusters - 1)
    with warnings.catch_warnings():
        # of numbers in which carriers do not differ
        warnings.simplefilter("ignore", DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = bootstrap(
            (sums_MC, np.broadcast_to(counts_C, sums_MC.shape)),
            lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
            paired=True,
            vectorized=True,
            axis=-1,
            n_resamples=RESAMPLES,
            batch=500,
            confidence_level=1 - 2 * norm.sf(quantile),
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return [_estimate(*one) for one in zip(means_M, interval.low, interval.high, strict=True)]


def _estimate(mean: float, low: float, high: float) -> Estimate:
    known = np.isfinite(low) and np.isfinite(high) and low < high
    return Estimate(float(mean), *((float(min(low, mean)), float(max(high, mean))) if known else (None, None)))
