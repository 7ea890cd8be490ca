"""A trace set as a thing one can compare: its card, and what differs between two.

Everything is read from the traces themselves, but for the number of problems that were asked, which a distill stage
leaves beside them, and the perplexity, which whoever has measured it gives.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rewards.verdict import Verdict
from sft.distill import STATISTICS, TRACES, DistillError, Trace, read_traces

QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Spread:
    """Mean, smallest, quantiles at `QUANTILES` (linear interpolation) and largest of some numbers."""

    mean: float
    least: float
    quantiles: tuple[float, ...]
    most: float

    @staticmethod
    def of(numbers: Sequence[float]) -> Spread:
        """Raises ValueError where there are none."""
        return Spread(
            float(np.mean(numbers)),
            float(min(numbers)),
            tuple(float(one) for one in np.quantile(numbers, QUANTILES)),
            float(max(numbers)),
        )


@dataclass(frozen=True)
class Card:
    """What a trace set is.

    Fields:
        source: the file.
        traces, problems: how many of each.
        asked: problems that the teacher was asked; None where nothing says it.
        covered: share of these that have a trace.
        correct: share of traces with the right answer.
        tokens: of the completions.
        pass_rates: of the problems, each once: the share of the teacher's samples that was right; None where the traces
            do not say it.
        perplexity: of one text per problem under the run's base; None where the run has not measured it.
    """

    source: str
    traces: int
    problems: int
    asked: int | None
    covered: float | None
    correct: float
    tokens: Spread
    pass_rates: Spread | None
    perplexity: float | None = None


@dataclass(frozen=True)
class Overlap:
    """What two trace sets share.

    Fields:
        problems, only_first, only_second: problems of both, and of one alone, by id.
        traces: distinct (problem, completion) that are in both.
        longer: mean over the problems of both of the second's mean tokens a trace minus the first's; None without any.
        other_gold: problems of both whose gold answers differ.
    """

    problems: int
    only_first: int
    only_second: int
    traces: int
    longer: float | None
    other_gold: int


def trace_file(place: Path) -> Path:
    """The file of a trace set named by that file or by its stage's folder. Raises DistillError."""
    if not place.is_dir():
        return place
    if not (place / TRACES).is_file():
        raise DistillError(f"{place}: there is no {TRACES} in this folder")
    return place / TRACES


def card(path: Path, traces: Sequence[Trace]) -> Card:
    """The card of what was read from this file.

    Raises:
        DistillError: the statistics beside it cannot be read.
    """
    rates = {trace.problem_id: trace.pass_rate for trace in traces if trace.pass_rate is not None}
    problems = {trace.problem_id for trace in traces}
    asked = _asked(path.with_name(STATISTICS))
    return Card(
        source=str(path),
        traces=len(traces),
        problems=len(problems),
        asked=asked,
        covered=len(problems) / asked if asked else None,
        correct=sum(trace.verdict is Verdict.CORRECT for trace in traces) / len(traces),
        tokens=Spread.of([trace.tokens for trace in traces]),
        pass_rates=Spread.of(list(rates.values())) if rates else None,
    )


def overlap(first: Sequence[Trace], second: Sequence[Trace]) -> Overlap:
    """What two trace sets share, problems told apart by their ids."""
    one, other = (_by_problem(traces) for traces in (first, second))
    both = sorted(one.keys() & other.keys())
    lengths = [[np.mean([trace.tokens for trace in of[problem]]) for problem in both] for of in (one, other)]
    written = [{(trace.problem_id, trace.completion) for trace in traces} for traces in (first, second)]
    return Overlap(
        problems=len(both),
        only_first=len(one.keys() - other.keys()),
        only_second=len(other.keys() - one.keys()),
        traces=len(written[0] & written[1]),
        longer=float(np.mean(np.subtract(lengths[1], lengths[0]))) if both else None,
        other_gold=sum({t.gold for t in one[problem]} != {t.gold for t in other[problem]} for problem in both),
    )


def read_set(place: Path) -> tuple[Card, list[Trace]]:
    """The card and the traces of a set named by its file or its stage's folder. Raises DistillError."""
    path = trace_file(place)
    traces = read_traces(path)
    return card(path, traces), traces


def _asked(path: Path) -> int | None:
    if not path.is_file():
        return None
    try:
        asked = json.loads(path.read_text(encoding="utf-8"))["problems"]
    except (ValueError, KeyError, TypeError) as error:
        raise DistillError(f"{path}: not the statistics of a distill stage") from error
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 0:
        raise DistillError(f"{path}: 'problems' is not a number of problems")
    return asked


def _by_problem(traces: Sequence[Trace]) -> dict[str, list[Trace]]:
    found: dict[str, list[Trace]] = {}
    for trace in traces:
        found.setdefault(trace.problem_id, []).append(trace)
    return found
