"""What an sft stage trains on: the traces of its sources, those in the band of pass rates, in their shares, at most n.

Shares hold but for rounding to whole traces: where a source has too few for its share, fewer are taken of the others
too. Which traces are taken follows from the stage's seed and from the traces themselves, not from the order in which
sources are named nor from where their files lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from settings import FrozenDict
from sft.distill import DistillError, Trace

if TYPE_CHECKING:
    from sft.settings import SftSettings


@dataclass(frozen=True)
class Taken:
    """Of one source: how many traces are trained on, how many there are, and how many of these are outside the band."""

    source: str
    taken: int
    there: int
    outside: int

    def __str__(self) -> str:
        beside = f" ({self.outside:,} outside the band of pass rates)" if self.outside else ""
        return f"{self.taken:,} of {self.there:,} traces of {self.source}{beside}"


def mixed(
    sources: Sequence[tuple[str, Sequence[Trace]]], settings: SftSettings, seed: int
) -> tuple[list[Trace], tuple[Taken, ...]]:
    """The traces to train on, and what was taken of each source, by name.

    One source of which all is taken keeps its order; otherwise the order is a shuffle by the seed.

    Args:
        sources: (name, its traces) of each in `settings.data`, in any order.

    Raises:
        DistillError: a band is asked of traces without pass rates, or nothing is left of a source that has a share.
    """
    named = sorted(sources, key=lambda one: one[0])
    inside = [_in_band(name, traces, settings.pass_rate) for name, traces in named]
    if not any(inside):
        there = ", ".join(f"{len(traces):,} traces of {name}" for name, traces in named)
        raise DistillError(f"data: none of {there} is in the band of pass rates {list(settings.pass_rate)}")
    pooled = [(at, trace) for at, traces in enumerate(inside) for trace in traces]
    if len(named) > 1 or (settings.at_most is not None and len(pooled) > settings.at_most):
        pooled.sort(key=lambda one: _place(one[1], seed))
        if isinstance(settings.data, FrozenDict):
            there = {name: len(traces) for (name, _), traces in zip(named, inside, strict=True)}
            counts = shared_out(there, settings.data, settings.at_most)
            pooled = _first_of_each(pooled, [counts[name] for name, _ in named])
        pooled = pooled[: settings.at_most]
    taken = [sum(at == own for own, _ in pooled) for at in range(len(named))]
    told = tuple(
        Taken(name, count, len(traces), len(traces) - len(own))
        for (name, traces), own, count in zip(named, inside, taken, strict=True)
    )
    return [trace for _, trace in pooled], told


def shared_out(there: Mapping[str, int], shares: Mapping[str, float], at_most: int | None) -> dict[str, int]:
    """How many to take of each source: as many as the one that has the fewest for its share allows.

    What is lost by rounding down goes to the largest remainders, of equal ones to the first by name; a source whose
    share rounds to nothing gives one trace all the same, which the largest one gives less.

    Args:
        there: what each source has.
        shares: positive; only their ratios count.

    Raises:
        DistillError: a source would give nothing.
    """
    # as they are written: 0.1, 0.2 and 0.7 are 1 together
    written = {name: Fraction(str(share)) for name, share in shares.items()}
    parts = {name: share / sum(written.values()) for name, share in written.items()}
    rows = int(min(there[name] / part for name, part in parts.items()))
    rows = rows if at_most is None else min(rows, at_most)
    counts = {name: int(rows * part) for name, part in parts.items()}
    by_remainder = sorted(parts, key=lambda name: (counts[name] - rows * parts[name], name))
    for name in by_remainder[: rows - sum(counts.values())]:
        counts[name] += 1
    for name in sorted(name for name, count in counts.items() if not count and there[name]):
        largest = max(counts, key=lambda other: (counts[other], other))
        if counts[largest] > 1:
            counts[largest] -= 1
            counts[name] = 1
    if empty := sorted(name for name, count in counts.items() if not count):
        had = ", ".join(f"{there[name]:,} traces of {name} (share {float(parts[name]):.3g})" for name in sorted(parts))
        limit = "" if at_most is None else f", at most {at_most:,} in all"
        raise DistillError(f"data: nothing would be taken of {', '.join(empty)}: there are {had}{limit}")
    return counts


def _in_band(name: str, traces: Sequence[Trace], band: tuple[float, float]) -> list[Trace]:
    low, high = band
    if (low, high) == (0, 1):
        return list(traces)
    if without := sum(trace.pass_rate is None for trace in traces):
        raise DistillError(f"pass_rate: {without:,} of {len(traces):,} traces of {name} have no pass rate")
    return [trace for trace in traces if low <= trace.pass_rate <= high]


def _first_of_each(pooled: Sequence[tuple[int, Trace]], counts: list[int]) -> list[tuple[int, Trace]]:
    """Of each source so many, the first ones."""
    left, chosen = list(counts), []
    for at, trace in pooled:
        if left[at]:
            left[at] -= 1
            chosen.append((at, trace))
    return chosen


def _place(trace: Trace, seed: int) -> str:
    """Where a trace stands in the shuffle: equal ones stand together, whatever file they are in."""
    return hashlib.sha256(f"{seed}\n{trace.problem_id}\n{trace.completion}".encode("utf-8", "replace")).hexdigest()
