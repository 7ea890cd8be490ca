"""`report.html`: one run on one page, derived from the run folder alone.

The page is self-contained: style sheet and charts are inlined, there is no script, and its content security policy
forbids the browser to load anything. A run that is still going gives a page that says so, reloads itself, and has one
script of a few lines that tells its age (orchestra/report/live.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from evals.evaluate import Evaluation, Pass, Sample, compare
from evals.gains import Gain, gains
from evals.statistics import PairedDifference
from orchestra.report import charts
from orchestra.report.data import RunRecord, StageRecord, compared, read_run
from orchestra.report.html import rendered, write_page
from orchestra.report.live import Live, live_of, settled_notes
from orchestra.report.modelled import perplexity_charts
from orchestra.report.parts import Chart, Counts, Course, Notice
from orchestra.run.live import PAGE_SECONDS
from orchestra.stages import all_kinds
from orchestra.text import points

SHOWN_LAST, SHOWN_OTHER = 3, 1  # samples of each kind, of the last stage and of the others
SIDE_BY_SIDE = 2  # problems followed through the stages


@dataclass(frozen=True)
class Headline:
    """The base against the last evaluated policy on the same problems, or the best one where a gate stopped the run."""

    first: StageRecord
    last: StageRecord
    before: Pass
    after: Pass
    difference: PairedDifference


@dataclass(frozen=True)
class CountRow:
    """A row of a table of counts; `value` None is a heading, `bar` the bar's width in per cent."""

    depth: int
    name: str
    value: object
    bar: float | None = None

    @property
    def is_count(self) -> bool:
        """Whether it counts problems, samples or the like."""
        number = isinstance(self.value, int) and not isinstance(self.value, bool) and self.value >= 0
        return number and "token" not in self.name


@dataclass(frozen=True)
class Gate:
    """A stage's pass condition and what became of it."""

    stage: str
    condition: str
    verdict: str
    measured: str


def write_report(run_dir: Path, next_in: float = PAGE_SECONDS) -> Path:
    """Write `run_dir/report.html` from the files in the run folder and return its path.

    Args:
        next_in: seconds until the next page, where the run goes on.

    Raises:
        FileNotFoundError: `run_dir` is not a run folder.
    """
    run_dir = Path(run_dir)
    run = read_run(run_dir)
    return write_page(run_dir, render(run, live_of(run, next_in)))


def render(run: RunRecord, live: Live | None = None) -> str:
    """The page as HTML text; of a run that goes on with what it is doing."""
    evaluated = run.evaluated
    headline = _headline(evaluated)
    return rendered(
        "report.html.j2",
        run=replace(run, notes=settled_notes(run.notes, live)),
        live=live,
        headline=headline,
        tiles=[tile for kind in all_kinds().values() for tile in kind.headline(evaluated)],
        differences=_differences(evaluated),
        notices=[part for stage in run.stages for part in stage.parts if isinstance(part, Notice)],
        results=_accuracy_charts(evaluated, headline),
        perplexities=list(perplexity_charts(run.stages, [stage.name for stage in evaluated])),
        gained=_gained(headline),
        courses=_joined_courses(run.stages),
        charts=_own_charts(run.stages),
        counts=_counts(run.stages),
        gates=_gates(run.stages),
        planned=_planned(run),
        extras=[
            (stage, stage.result.extra)
            for stage in run.stages
            if stage.result and (stage.result.extra or stage.result.adapter_sha256)
        ],
        side_by_side=_side_by_side(evaluated),
        samples=_samples(evaluated),
        pass_at_k=sorted({k for stage in evaluated for k in stage.evaluation.pass_at_k}),
    )


def _headline(evaluated: Sequence[StageRecord]) -> Headline | None:
    if len(evaluated) < 2:
        return None
    first = evaluated[0]
    later = [stage for stage in evaluated[1:] if stage.same_problems_as(first)]
    if not later:
        return None
    last = later[-1]
    if last.result is not None and last.result.gate == "NO-GO":  # the runner keeps the best stage so far
        last = max(later, key=lambda stage: stage.evaluation.sampled.accuracy.estimate)
    difference = compare(last.evaluation, first.evaluation, seed=last.evaluation.seed)
    return Headline(first, last, first.evaluation.sampled, last.evaluation.sampled, difference)


def _gained(headline: Headline | None) -> dict[str, tuple[Gain, ...]]:
    """Where the headline's difference comes from."""
    if headline is None:
        return {}
    after, before = headline.last.evaluation, headline.first.evaluation
    found = gains([(after, before)], after.sampled.accuracy.confidence, after.seed)
    return {headline.last.name: found} if found else {}


def _differences(evaluated: Sequence[StageRecord]) -> dict[str, PairedDifference]:
    """Stage -> difference to the evaluated stage before it: from the ledger's numbers, worked out where they lack."""
    found = {}
    for before, after in pairwise(evaluated):
        result = after.result
        if result is not None and result.difference is not None:
            low = math.nan if result.difference_low is None else result.difference_low
            high = math.nan if result.difference_high is None else result.difference_high
            p_value = math.nan if result.p_value is None else result.p_value
            confidence = after.evaluation.sampled.accuracy.confidence
            found[after.name] = PairedDifference(result.difference, low, high, p_value, "", 0, confidence)
        elif (difference := compared(after, before)) is not None:
            found[after.name] = difference
    return found


def _accuracy_charts(evaluated: Sequence[StageRecord], headline: Headline | None) -> list[Chart]:
    if not evaluated:
        return []
    points = [[_point(stage.evaluation.sampled), _point(stage.evaluation.greedy)] for stage in evaluated]
    sampled, greedy = zip(*points, strict=True)
    names = [stage.name for stage in evaluated]
    made = [Chart("Accuracy per stage", "", charts.accuracy_chart(names, sampled, greedy))]
    if headline is not None:
        before, after = (_by_domain(stage.evaluation) for stage in (headline.first, headline.last))
        domains = sorted(before.keys() & after.keys())
        if len(domains) > 1:
            svg = charts.domain_chart(domains, [before[d] for d in domains], [after[d] for d in domains])
            made.append(Chart("Accuracy per domain", "", svg))
    return made


def _point(one: Pass | None) -> charts.Point | None:
    return one and charts.Point(one.accuracy.estimate, one.accuracy.low, one.accuracy.high)


def _by_domain(evaluation: Evaluation) -> dict[str, float]:
    correct_PS, domains_P = evaluation.sampled.correct_PS, np.array(evaluation.domains)
    parts = {domain: correct_PS[domains_P == domain] for domain in set(evaluation.domains)}
    return {domain: float(np.nanmean(part)) for domain, part in parts.items() if not np.isnan(part).all()}


def _joined_courses(stages: Sequence[StageRecord]) -> list[Chart]:
    """A chart for every course that stages share, over all of their steps."""
    courses = dict.fromkeys(part for stage in stages for part in _courses(stage) if part.joined)
    made = []
    for course in courses:
        having = [stage for stage in stages if course in stage.parts and stage.metrics]
        if not any(course.key in row for stage in having for row in stage.metrics):
            continue
        segments, start = [], 0.0
        for stage in having:
            steps_N = start + np.array([row["step"] for row in stage.metrics])
            values_N = np.array([row.get(course.key, math.nan) for row in stage.metrics])
            beta_N = np.array([row.get("beta", stage.beta or 0.0) for row in stage.metrics])
            segments.append(
                charts.Segment(stage.name, float(steps_N[0]), float(steps_N[-1]), steps_N, values_N, beta_N)
            )
            start = float(steps_N[-1])
        share = course.share and all(np.nanmax(s.values_N, initial=0.0) <= 1 for s in segments)
        svg = charts.course_chart(course.key.replace("_", "-"), course.title, segments, share=share)
        made.append(Chart(course.title, course.note, svg))
    return made


def _own_charts(stages: Sequence[StageRecord]) -> list[Chart]:
    """What stages draw for themselves."""
    made = []
    for number, stage in enumerate(stages):
        for part in stage.parts:
            if isinstance(part, Chart):
                made.append(part)
            elif isinstance(part, Course) and not part.joined:
                rows = [row for row in stage.metrics if part.key in row]
                if rows:
                    steps_N, values_N = (np.array([row[key] for row in rows]) for key in ("step", part.key))
                    svg = charts.loss_chart(f"{part.key}-{number}", part.title, steps_N, values_N)
                    made.append(Chart(part.title, part.note, svg))
    return made


def _courses(stage: StageRecord) -> list[Course]:
    return [part for part in stage.parts if isinstance(part, Course)]


def _counts(stages: Sequence[StageRecord]) -> list[tuple[str, list[CountRow]]]:
    parts = [part for stage in stages for part in stage.parts if isinstance(part, Counts)]
    return [(part.title, _count_rows(part.tree)) for part in parts]


def _count_rows(tree: Mapping[str, object]) -> list[CountRow]:
    """Nested numbers as rows; lists are left to the file."""
    rows = list(_flattened(tree))
    # tokens are another unit than problems and samples: on one scale they would flatten everything else
    largest = max([row.value for row in rows if row.is_count], default=0) or 1
    return [replace(row, bar=100 * row.value / largest) if row.is_count else row for row in rows]


def _flattened(tree: Mapping[str, object], depth: int = 0) -> Iterator[CountRow]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield CountRow(depth, str(key), None)
            yield from _flattened(value, depth + 1)
        elif isinstance(value, int | float | str):
            yield CountRow(depth, str(key), value)


def _gates(stages: Sequence[StageRecord]) -> list[Gate]:
    found = []
    for at, stage in enumerate(stages):
        spec = stage.config.get("gate")
        verdict = stage.result.gate if stage.result is not None else None
        if not isinstance(spec, Mapping):
            if verdict is not None:
                found.append(Gate(stage.name, "", verdict, ""))
            continue
        metric, against = str(spec.get("metric", "accuracy")), str(spec.get("against", "previous"))
        limit = spec.get("min_difference", 0.0)
        limit = points(limit) if isinstance(limit, int | float) else str(limit)
        condition = f"{metric.replace('_', ' ')} against {against}: at least {limit} points"
        own = _metric(stage, metric)
        others = [_metric(other, metric) for other in stages[:at] if against in ("previous", other.name)]
        others = [value for value in others if value is not None]
        measured = points(own - others[-1]) if own is not None and others else ""
        found.append(Gate(stage.name, condition, verdict or "open", measured))
    return found


def _metric(stage: StageRecord, name: str) -> float | None:
    value = getattr(stage.result, name, None)
    return value if isinstance(value, int | float) else None


def _planned(run: RunRecord) -> list[tuple[str, list[tuple[str, float | None, float | None]]]]:
    """Stage -> (kind of number, planned, measured), for the stages of a plan."""
    rows = []
    for stage in run.stages:
        plan, result = run.plan.get(stage.name), stage.result
        if plan is not None:
            measured = (result.seconds, result.tokens, result.extra.get("peak_memory_bytes")) if result else (None,) * 3
            known = [value if isinstance(value, int | float) else None for value in measured]
            names = ("seconds", "tokens", "peak_bytes")
            rows.append((stage.name, [(key, plan.get(key), got) for key, got in zip(names, known, strict=True)]))
    return rows


def _samples(evaluated: Sequence[StageRecord]) -> list[tuple[StageRecord, list[Sample]]]:
    """The last stage first, with more of each kind than the others."""
    shown = []
    for stage in reversed(evaluated):
        limit = SHOWN_LAST if stage is evaluated[-1] else SHOWN_OTHER
        kinds = ("right", "wrong", "truncated")
        kept = [s for kind in kinds for s in [s for s in stage.evaluation.samples if s.kind == kind][:limit]]
        if kept:
            shown.append((stage, kept))
    return shown


def _side_by_side(evaluated: Sequence[StageRecord]) -> list[list[tuple[StageRecord, Sample]]]:
    """The same problem at every stage that kept a completion of it, problems with the most stages first."""
    by_problem: dict[str, list[tuple[StageRecord, Sample]]] = {}
    for stage in evaluated:
        for sample in stage.evaluation.samples:
            by_problem.setdefault(sample.problem_id, []).append((stage, sample))
    followed = sorted((rows for rows in by_problem.values() if len(rows) > 1), key=len, reverse=True)
    # a problem that was learned or lost tells more than one that stayed
    followed.sort(key=lambda rows: len({sample.kind for _, sample in rows}) == 1)
    return followed[:SIDE_BY_SIDE]
