"""Arms of an experiment in one table: accuracy, paired difference to the first arm, and what could have been seen.

A row claims something of the recipe where its runs allow it: problems and training seeds both drawn at random (see
`evals.seeds`). With one training run the claim is about that run, the problems alone drawn (see `evals.statistics`),
and the row's scope says so:

    accuracy, several seeds        Wilson at the n_eff whose plain interval is as wide as `seeds.half_width`
    difference, the same seeds     differences problem by problem and seed by seed; where one arm has but some of the
                                   other's seeds (the rest may be to come), under those
    difference, other seeds        problem by problem; each arm's seeds vary on their own
    difference, one run each       `statistics.paired_difference`
    difference, one run to several problem by problem, of these runs, where they have no seed in common

All rows are about the same problems: those of every run, graded in every run. The arms' p-values are Holm-corrected
(statsmodels), and a verdict goes by these; the intervals are each on its own. Where arms are compared on several sets
of problems, each set is a table of its own, and the correction is over the differences of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from pydantic import TypeAdapter

from evals import statistics
from evals.seeds import Spread, half_width, p_value, smallest_detectable, spread, spread_unpaired
from evals.statistics import Interval

Scope = Literal["recipe", "runs"]


@dataclass(frozen=True, eq=False)
class Run:
    """One training run of an arm, evaluated.

    Fields:
        seed: that it was trained under.
        problem_ids: unique, one a row of `correct_PS`.
        correct_PS: problems x samples of 1 (correct), 0 (wrong) and nan (ungradable).
    """

    seed: int
    problem_ids: Sequence[str]
    correct_PS: np.ndarray


@dataclass(frozen=True, eq=False)
class Arm:
    """A named overlay of a recipe and its runs, each under another seed."""

    name: str
    runs: Sequence[Run]


@dataclass(frozen=True)
class Difference:
    """An arm minus the first arm.

    Fields:
        difference: of accuracies, between -1 and 1.
        low, high: its interval, not corrected for the number of arms.
        p_value: two-sided, of no difference.
        p_holm: the same, corrected for all differences that are told together: of all arms, on all sets of problems.
        smallest_detectable: the true difference that this design sees with a power of 80 % at the level that one
            must pass on its own, (1 - confidence) / differences told; None where even 1 could not be seen.
        scope: what it is a claim about; "runs" are these very training runs.
        by_seed: whether runs of the same seed were paired.
    """

    difference: float
    low: float
    high: float
    confidence: float
    p_value: float
    p_holm: float
    smallest_detectable: float | None
    scope: Scope
    by_seed: bool


@dataclass(frozen=True)
class Row:
    """An arm. `scope` is of its accuracy; `difference` is None in the first row; `problems` is how many counted.

    `by_seed` has the accuracy of each run, in the order of `seeds`, on these very problems.
    """

    arm: str
    seeds: tuple[int, ...]
    problems: int
    accuracy: Interval
    by_seed: tuple[float, ...]
    scope: Scope
    difference: Difference | None
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """Arms side by side.

    Fields:
        rows: in the order of the arms; the first is what the others are compared to.
        problems: compared; in every run, and graded in every run.
        not_common: left out because some run was not asked them.
        ungraded: left out because some run has no graded sample of them.
    """

    rows: tuple[Row, ...]
    problems: int
    not_common: int
    ungraded: int

    def to_json(self) -> str:
        """JSON text, no number in it infinite or nan; `from_json` reads it back to an equal comparison."""
        return _adapter().dump_json(self).decode()

    @staticmethod
    def from_json(text: str | bytes) -> Comparison:
        """Read what `to_json` wrote.

        Raises:
            ValueError: not a comparison.
        """
        return _adapter().validate_json(text)


@cache
def _adapter() -> TypeAdapter[Comparison]:
    return TypeAdapter(Comparison)


def compare_arms(arms: Sequence[Arm], confidence: float, seed: int = 0) -> Comparison:
    """Set the arms side by side. Neither the order of problems nor that of runs matters.

    Args:
        arms: the first is what the others are compared to; one alone has an accuracy.
        confidence: nominal coverage of the intervals; 1 - confidence is the level of the verdicts.
        seed: of the resampling where single runs of several samples are compared.

    Raises:
        ValueError: no arms, an arm without runs, a name, a seed or a problem twice, matrices that are none, or no
            problem that every run was asked and is graded in.
    """
    return _corrected({"": _compared(_selected(arms), confidence, max(1, len(arms) - 1), seed)}, confidence)[""]


def compare_sets(
    sets: Mapping[str, Sequence[Arm]], confidence: float, seed: int = 0
) -> tuple[dict[str, Comparison], dict[str, str]]:
    """The same of several sets of problems at once: p-values and verdicts are corrected over all of their differences.

    Args:
        sets: by name, the arms as they did on these problems; an arm that was not asked them is not among them.

    Returns:
        The comparisons by set, and why a set could not be compared.
    """
    selected, refused = {}, {}
    for name, arms in sets.items():
        try:
            selected[name] = _selected(arms)
        except ValueError as error:
            refused[name] = str(error)
    claims = max(1, sum(len(one.arms) - 1 for one in selected.values()))
    found = {name: _compared(one, confidence, claims, seed) for name, one in selected.items()}
    return _corrected(found, confidence), refused


@dataclass(frozen=True, eq=False)
class _Selected:
    """Arms on the problems that count.

    Fields:
        arms: name -> seeds in order, and their runs' problems x samples.
        asked: problems of any run; common: of every run; problems: of these, graded in every run.
    """

    arms: Mapping[str, tuple[tuple[int, ...], list[np.ndarray]]]
    asked: int
    common: int
    problems: int


def _selected(arms: Sequence[Arm]) -> _Selected:
    _check(arms)
    common, asked = _common(arms)
    ordered = {arm.name: sorted(arm.runs, key=lambda run: run.seed) for arm in arms}
    rows = {name: [(run.seed, _rows(run, common)) for run in runs] for name, runs in ordered.items()}
    graded_P = np.ones(len(common), dtype=bool)
    for name, runs in rows.items():
        for seed, matrix_PS in runs:
            graded_P &= ~np.isnan(matrix_PS).all(axis=1)
            if not graded_P.any():
                where = f"arm {name!r}, seed {seed} leaves none"
                raise ValueError(f"compare: none of {len(common)} problems has a graded sample in every run: {where}")
    kept = {
        name: (tuple(seed for seed, _ in runs), [matrix_PS[graded_P] for _, matrix_PS in runs])
        for name, runs in rows.items()
    }
    return _Selected(kept, len(asked), len(common), int(graded_P.sum()))


def _compared(of: _Selected, confidence: float, claims: int, seed: int) -> Comparison:
    """As if each difference were the only one; the smallest that could have been seen is at the level of `claims`."""
    statistics.check_confidence(confidence)
    first_seeds, first = next(iter(of.arms.values()))
    rows = []
    for at, (name, (seeds, runs)) in enumerate(of.arms.items()):
        level = (1 - confidence) / claims
        pair = _pair((seeds, runs), (first_seeds, first))
        one = _difference(*pair, confidence, level, seed) if at else None
        rows.append(
            Row(
                arm=name,
                seeds=seeds,
                problems=of.problems,
                accuracy=_accuracy(runs, confidence),
                by_seed=tuple(float(mean) for mean in _means(runs).mean(axis=0)),
                scope="recipe" if len(runs) > 1 else "runs",
                difference=one,
                verdict=_verdict(one),
            )
        )
    return Comparison(tuple(rows), of.problems, of.asked - of.common, of.common - of.problems)


def _pair(
    own: tuple[tuple[int, ...], list[np.ndarray]], other: tuple[tuple[int, ...], list[np.ndarray]]
) -> tuple[list[np.ndarray], list[np.ndarray], bool]:
    """The runs of two arms that are compared, and whether seed by seed: those of the seeds that one of them has no
    others than, or all."""
    common = set(own[0]) & set(other[0])
    if common not in (set(own[0]), set(other[0])):
        return own[1], other[1], False
    chosen = [[run for seed, run in zip(*one, strict=True) if seed in common] for one in (own, other)]
    return chosen[0], chosen[1], True


def _corrected(sets: Mapping[str, Comparison], confidence: float) -> dict[str, Comparison]:
    """With p-values and verdicts corrected over the differences of all sets."""
    told = [row.difference for one in sets.values() for row in one.rows if row.difference is not None]
    corrected = iter(_holm([one.p_value for one in told], 1 - confidence))

    def row(old: Row) -> Row:
        if old.difference is None:
            return old
        one = replace(old.difference, p_holm=next(corrected))
        return replace(old, difference=one, verdict=_verdict(one))

    return {name: replace(one, rows=tuple(row(old) for old in one.rows)) for name, one in sets.items()}


def _check(arms: Sequence[Arm]) -> None:
    if not arms:
        raise ValueError("compare: there are no arms")
    names = [arm.name for arm in arms]
    if len(set(names)) != len(names):
        raise ValueError(f"compare: two arms are called {next(name for name in names if names.count(name) > 1)!r}")
    for arm in arms:
        seeds = [run.seed for run in arm.runs]
        if not seeds:
            raise ValueError(f"compare: arm {arm.name!r} has no runs")
        if len(set(seeds)) != len(seeds):
            twice = next(seed for seed in seeds if seeds.count(seed) > 1)
            raise ValueError(f"compare: arm {arm.name!r} has two runs of seed {twice}")
        for run in arm.runs:
            where = f"compare: arm {arm.name!r}, seed {run.seed}"
            if len(set(run.problem_ids)) != len(run.problem_ids):
                raise ValueError(f"{where}: a problem id is repeated; results are paired by id")
            if len(run.problem_ids) != len(run.correct_PS):
                raise ValueError(f"{where}: {len(run.correct_PS)} rows for {len(run.problem_ids)} problems")


def _common(arms: Sequence[Arm]) -> tuple[list[str], set[str]]:
    """Problems of every run, sorted, and those of any."""
    sets = [set(run.problem_ids) for arm in arms for run in arm.runs]
    common, asked = set.intersection(*sets), set.union(*sets)
    if not common:
        raise ValueError(f"compare: the runs have none of their {len(asked)} problems in common")
    return sorted(common), asked


def _rows(run: Run, ids: list[str]) -> np.ndarray:
    row = {id: at for at, id in enumerate(run.problem_ids)}
    return statistics.checked(run.correct_PS)[[row[id] for id in ids]]


def _means(runs: list[np.ndarray]) -> np.ndarray:
    """Mean of the graded samples, problems x seeds."""
    return np.stack([np.nanmean(matrix_PS, axis=1) for matrix_PS in runs], axis=1)


def _accuracy(runs: list[np.ndarray], confidence: float) -> Interval:
    from scipy.stats import norm
    from statsmodels.stats.proportion import proportion_confint

    problems, graded = len(runs[0]), sum(int((~np.isnan(matrix_PS)).sum()) for matrix_PS in runs)
    if len(runs) == 1:
        return statistics.accuracy(runs[0], confidence)
    mean_PS = _means(runs)
    estimate, half = float(mean_PS.mean()), 0.0
    if problems > 1:
        half = float(half_width(spread(mean_PS), 1 - confidence))
    # where nothing varies, or there is one problem, the cautious end: the number of problems
    n_eff = float(problems)
    if half > 1e-12 and 0 < estimate < 1:
        n_eff = min(estimate * (1 - estimate) * (float(norm.isf((1 - confidence) / 2)) / half) ** 2, float(graded))
    low, high = proportion_confint(estimate * n_eff, n_eff, alpha=1 - confidence, method="wilson")
    return Interval(estimate, max(0.0, min(float(low), estimate)), min(1.0, max(float(high), estimate)), confidence)


def _difference(
    after: list[np.ndarray], before: list[np.ndarray], same_seeds: bool, confidence: float, level: float, seed: int
) -> Difference:
    """Arm `after` minus arm `before`, matrices of the same problems; `p_holm` is still to be corrected."""
    after_PS, before_PS = _means(after), _means(before)
    several = min(len(after), len(before)) > 1
    by_seed = several and same_seeds
    difference_P = after_PS.mean(axis=1) - before_PS.mean(axis=1)
    difference = float(difference_P.mean())
    found = None
    if len(difference_P) > 1:
        found = spread(after_PS - before_PS) if by_seed else spread_unpaired(after_PS, before_PS)
    varies = found is not None and bool(half_width(found, 0.5) > 1e-12)
    if len(after) == len(before) == 1:
        one = statistics.paired_difference(after[0], before[0], confidence, seed)
        low, high, p = one.low, one.high, one.p_value
    elif varies:
        half = float(half_width(found, 1 - confidence))
        low, high, p = difference - half, difference + half, p_value(found)
    else:
        # every problem says the same: as `statistics` has it where nothing changed, or everything did
        low, high = statistics.bonett_price(difference_P, confidence)
        p = 1.0 if abs(difference) < 1e-12 else 2.0 ** (1 - len(difference_P))
    seen = smallest_detectable(found if varies else _padded(difference_P), level)
    return Difference(
        difference=difference,
        low=max(-1.0, min(low, difference)),
        high=min(1.0, max(high, difference)),
        confidence=confidence,
        p_value=p,
        p_holm=p,
        smallest_detectable=seen if seen <= 1 else None,
        scope="recipe" if several else "runs",
        by_seed=by_seed,
    )


def _padded(difference_P: np.ndarray) -> Spread:
    """Where nothing varies: one problem gained and one lost, as Bonett and Price have it."""
    return spread(np.append(difference_P, (1.0, -1.0))[:, None])


def _holm(p_values: list[float], level: float) -> list[float]:
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, alpha=level, method="holm")[1]] if p_values else []


def _verdict(one: Difference | None) -> str:
    if one is None:
        return "the first arm"
    if one.p_holm < 1 - one.confidence:
        word = "better" if one.difference > 0 else "worse"
        return word if one.scope == "recipe" else f"{word}, of these training runs alone"
    if one.smallest_detectable is None:
        return "not resolved: no difference could have been seen"
    return f"not resolved: differences below {100 * one.smallest_detectable:.1f} points could not have been seen"
