"""How good a panel is: what its router wins, beside every other way of choosing who answers.

A way of choosing (the router, the best single expert, the best arm of each problem) is an arm for each problem. Where
it looks at answers, it looks at those of a first draw; all are scored on a second, independent one. Chosen and scored
on the same draw, the best of several arms would be the luckiest: of two that are right half of the time, 75 % and not
50 %. So an oracle here is what can be had from knowing the first draw, at most what the true oracle has, and the less
the fewer samples that draw has: of few, a router that knows the domains may be ahead of the instance oracle.

The unit is the problem, and all ways are compared on the same problems, as everywhere (evals/statistics.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import exp, log
from typing import Literal, get_args

import numpy as np
from pydantic import TypeAdapter

from evals.statistics import RESAMPLES, Interval, PairedDifference, accuracy, checked, paired_difference

Choice = Literal["routed", "best single", "generalist", "random", "domain table", "task oracle", "instance oracle"]
CHOICES: tuple[Choice, ...] = get_args(Choice)


@dataclass(frozen=True, eq=False)
class Draws:
    """What the arms of a panel answered.

    Fields:
        arms: `base` first, then the experts.
        domains: of each problem.
        first_APS, second_APS: arms x problems x samples of 1 (correct), 0 (wrong) and nan (ungradable), drawn
            independently of each other; the numbers of samples may differ.
        generalist_PS: a rival that is no arm, drawn as the second; None where there is none.
    """

    arms: tuple[str, ...]
    domains: tuple[str, ...]
    first_APS: np.ndarray
    second_APS: np.ndarray
    generalist_PS: np.ndarray | None = None

    def __post_init__(self) -> None:
        if len(self.arms) < 2 or len(set(self.arms)) < len(self.arms):
            raise ValueError(
                f"panel: the base and at least one expert, each once, not {', '.join(self.arms) or 'none'}"
            )
        wanted = (len(self.arms), len(self.domains))
        for name, draw_APS in (("first", self.first_APS), ("second", self.second_APS)):
            if draw_APS.ndim != 3 or draw_APS.shape[:2] != wanted:
                raise ValueError(
                    f"panel: the {name} draw is {draw_APS.shape}, not {wanted[0]} arms x {wanted[1]} x samples"
                )
            for matrix_PS in draw_APS:
                checked(matrix_PS)
        if self.generalist_PS is not None and len(checked(self.generalist_PS)) != len(self.domains):
            raise ValueError(
                f"panel: the generalist has {len(self.generalist_PS)} problems, the panel {len(self.domains)}"
            )


@dataclass(frozen=True)
class Way:
    """A way of choosing who answers.

    Fields:
        choice: `random` is the mean over the experts; `best single` the expert that is best on the first draw;
            `domain table` an arm for each domain; `task oracle` and `instance oracle` the arm, base included, that is
            best on the first draw in the domain and at the problem, of equal ones the earlier.
        routed_minus: the routed panel minus this way, paired; None for the router itself.
    """

    choice: Choice
    accuracy: Interval
    routed_minus: PairedDifference | None


@dataclass(frozen=True)
class Recovered:
    """(routed - best single) / (instance oracle - best single), with percentile bootstrap intervals over problems.

    Fields:
        share: 1 where the router is as good as the oracle, 0 where it is no better than one expert; low, high: its
            interval. All None where it is not known that the oracle is better than the best single expert.
        headroom: instance oracle minus best single; headroom_low, headroom_high: its interval.
    """

    share: float | None
    low: float | None
    high: float | None
    headroom: float
    headroom_low: float
    headroom_high: float

    @property
    def unknown(self) -> str:
        """Why there is no share, in words; empty where there is one."""
        if self.share is not None:
            return ""
        interval = f"[{100 * self.headroom_low:.1f}, {100 * self.headroom_high:.1f}] points"
        return f"the oracle is not known to be better than the best single expert ({interval})"


@dataclass(frozen=True)
class Arm:
    """One arm alone: its accuracy on the second draw, and its load, the share of problems that are routed to it."""

    name: str
    accuracy: Interval
    load: float


@dataclass(frozen=True)
class Domain:
    """The problems of one domain.

    Fields:
        accuracy: of each arm on the second draw; None where nothing was graded.
        load: share of these problems routed to each arm.
        table: the arm that the domain table gives them to; oracle: the task oracle's.
    """

    name: str
    problems: int
    accuracy: tuple[float | None, ...]
    load: tuple[float, ...]
    table: str
    oracle: str


@dataclass(frozen=True)
class PanelEvaluation:
    """What a panel with a router does on held-out problems.

    Fields:
        ways: in the order of `CHOICES`; without a generalist where there is none.
        arms: base first.
        best_single: the expert that is best on the first draw.
        gap: instance oracle minus routed, paired.
        entropy: mean over problems of the entropy of the routing shares, over log(arms): 0 decided, 1 undecided.
        effective_experts: exp of the entropy of the mean shares, base included: 1 where one arm has it all.
        domains: by name.
    """

    problems: int
    ways: tuple[Way, ...]
    arms: tuple[Arm, ...]
    best_single: str
    gap: PairedDifference
    recovered: Recovered
    entropy: float
    effective_experts: float
    domains: tuple[Domain, ...]

    def way(self, choice: Choice) -> Way | None:
        """By its name; None where it was not measured."""
        return next((way for way in self.ways if way.choice == choice), None)

    def to_json(self) -> str:
        """JSON text; `from_json` reads it back to an equal one."""
        return _adapter().dump_json(self).decode()

    @staticmethod
    def from_json(text: str | bytes) -> PanelEvaluation:
        """Read what `to_json` wrote; fields of later versions are ignored.

        Raises:
            ValueError: not a panel's evaluation.
        """
        return _adapter().validate_json(text)

    @staticmethod
    def from_tree(tree: object) -> PanelEvaluation:
        """The same of JSON that is already read."""
        return _adapter().validate_python(tree)


@cache
def _adapter() -> TypeAdapter[PanelEvaluation]:
    return TypeAdapter(PanelEvaluation)


def evaluate_panel(
    draws: Draws,
    arm_P: np.ndarray,
    shares_PA: np.ndarray,
    confidence: float,
    *,
    table: Mapping[str, str] | None = None,
    seed: int = 0,
) -> PanelEvaluation:
    """The numbers of a panel, everything scored on the second draw.

    Args:
        arm_P, shares_PA: the routes (`models.router.Routes`).
        confidence: nominal coverage of the intervals.
        table: domain -> arm, of the domain table. None: chosen on the first draw, as the task oracle is.
        seed: of the resampling.

    Raises:
        ValueError: routes of other problems or arms, a domain that the table lacks, an arm in it that there is not, or
            an arm of which nothing was graded.
    """
    arm_P, shares_PA = np.asarray(arm_P), np.asarray(shares_PA, dtype=float)
    _check_routes(draws, arm_P, shares_PA)
    best = best_single(draws)
    oracle_of = best_by_domain(draws)
    table_of = oracle_of if table is None else _numbers(draws, table)
    second_APS = draws.second_APS
    answers: dict[Choice, np.ndarray | None] = {
        "routed": answers_of(second_APS, arm_P),
        "best single": second_APS[best],
        "generalist": draws.generalist_PS,
        # every expert's samples as samples of one: problem by problem their mean
        "random": np.concatenate(second_APS[1:], axis=1),
        "domain table": answers_of(second_APS, np.array([table_of[domain] for domain in draws.domains])),
        "task oracle": answers_of(second_APS, np.array([oracle_of[domain] for domain in draws.domains])),
        "instance oracle": answers_of(second_APS, best_by_problem(draws.first_APS)),
    }
    routed_PS, oracle_PS = answers["routed"], answers["instance oracle"]
    ways = tuple(
        Way(
            choice,
            accuracy(other_PS, confidence),
            None if choice == "routed" else paired_difference(routed_PS, other_PS, confidence, seed),
        )
        for choice, other_PS in answers.items()
        if other_PS is not None
    )
    loads_A = np.bincount(arm_P, minlength=len(draws.arms)) / len(arm_P)
    return PanelEvaluation(
        problems=len(draws.domains),
        ways=ways,
        arms=tuple(
            Arm(name, accuracy(answers_PS, confidence), float(load))
            for name, answers_PS, load in zip(draws.arms, second_APS, loads_A, strict=True)
        ),
        best_single=draws.arms[best],
        gap=paired_difference(oracle_PS, routed_PS, confidence, seed),
        recovered=share_recovered(routed_PS, answers["best single"], oracle_PS, confidence, seed),
        entropy=routing_entropy(shares_PA),
        effective_experts=effective_experts(shares_PA),
        domains=tuple(_by_domain(draws, arm_P, table_of, oracle_of)),
    )


def answers_of(draw_APS: np.ndarray, arm_P: np.ndarray) -> np.ndarray:
    """Problems x samples: what each problem's arm answered in a draw."""
    return draw_APS[arm_P, np.arange(draw_APS.shape[1])]


def best_by_problem(draw_APS: np.ndarray) -> np.ndarray:
    """The arm that is best at each problem in a draw, of equal ones the earlier. To be scored on another draw."""
    return _first_best(_means(draw_APS))


def best_by_domain(draws: Draws) -> dict[str, int]:
    """The arm that is best in each domain on the first draw, of equal ones the earlier; domains by name."""
    domains_P = np.array(draws.domains)
    parts = {domain: draws.first_APS[:, domains_P == domain] for domain in sorted(set(draws.domains))}
    return {domain: int(_first_best(_means(_means(part_APS)[:, None]))[0]) for domain, part_APS in parts.items()}


def best_single(draws: Draws) -> int:
    """The expert (1 or higher) that is best on the first draw, of equal ones the earlier."""
    return 1 + int(_first_best(_means(_means(draws.first_APS[1:])[:, None]))[0])


def routing_entropy(shares_PA: np.ndarray) -> float:
    """Mean over problems of the entropy of the shares over log(arms), between 0 and 1."""
    from scipy.special import entr

    return float(entr(shares_PA).sum(axis=1).mean() / log(shares_PA.shape[1]))


def effective_experts(shares_PA: np.ndarray) -> float:
    """exp of the entropy of the mean shares, between 1 and the number of arms."""
    from scipy.special import entr

    return exp(float(entr(shares_PA.mean(axis=0)).sum()))


def share_recovered(
    routed_PS: np.ndarray, single_PS: np.ndarray, oracle_PS: np.ndarray, confidence: float, seed: int = 0
) -> Recovered:
    """What part of what the oracle adds to the best single expert the router adds; on the problems graded in all three.

    The order of the problems does not change it.

    Raises:
        ValueError: no problem is graded in all three.
    """
    means_3P = np.stack([_means(matrix_PS) for matrix_PS in (routed_PS, single_PS, oracle_PS)])
    means_3P = means_3P[:, ~np.isnan(means_3P).any(axis=0)]
    problems = means_3P.shape[1]
    if not problems:
        raise ValueError("panel: no problem was graded under the router, the best single expert and the oracle")
    routed_P, single_P, oracle_P = means_3P[:, np.lexsort(means_3P)]
    gained_headroom_2P = np.stack([routed_P - single_P, oracle_P - single_P])
    rng = np.random.default_rng(seed)
    drawn_R2 = np.concatenate([
        gained_headroom_2P[:, rng.integers(problems, size=(min(500, RESAMPLES - start), problems))].mean(axis=2).T
        for start in range(0, RESAMPLES, 500)
    ])  # fmt: skip
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    gained, headroom = gained_headroom_2P.mean(axis=1)
    low, high = np.quantile(drawn_R2[:, 1], tails)
    known = low > 0
    shares = (None, None)
    if known:
        # where the headroom may be as small as nothing the ratio is anything: infinite in some resamples, never nan
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.quantile(np.nan_to_num(drawn_R2[:, 0] / drawn_R2[:, 1]), tails)
    return Recovered(
        float(gained / headroom) if known else None,
        *(None if share is None else float(share) for share in shares),
        float(headroom),
        float(low),
        float(high),
    )


def _by_domain(
    draws: Draws, arm_P: np.ndarray, table_of: Mapping[str, int], oracle_of: Mapping[str, int]
) -> list[Domain]:
    domains_P, made = np.array(draws.domains), []
    for name in sorted(set(draws.domains)):
        of_P = domains_P == name
        means_A = _means(_means(draws.second_APS[:, of_P]))
        made.append(Domain(
            name=name,
            problems=int(of_P.sum()),
            accuracy=tuple(None if np.isnan(mean) else float(mean) for mean in means_A),
            load=tuple((np.bincount(arm_P[of_P], minlength=len(draws.arms)) / of_P.sum()).tolist()),
            table=draws.arms[table_of[name]],
            oracle=draws.arms[oracle_of[name]],
        ))  # fmt: skip
    return made


def _means(graded: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is graded; nan where nothing is."""
    count = (~np.isnan(graded)).sum(axis=-1)
    return np.where(count > 0, np.nansum(graded, axis=-1) / np.maximum(count, 1), np.nan)


def _first_best(means_AP: np.ndarray) -> np.ndarray:
    """Of each column, the earliest row with the highest value; what was not graded is below everything."""
    return np.where(np.isnan(means_AP), -1.0, means_AP).argmax(axis=0)


def _numbers(draws: Draws, table: Mapping[str, str]) -> dict[str, int]:
    if lacking := sorted(set(draws.domains) - table.keys()):
        raise ValueError(f"panel: the domain table gives no arm for {', '.join(lacking)}")
    if unknown := sorted(set(table.values()) - set(draws.arms)):
        raise ValueError(f"panel: the domain table names {', '.join(unknown)}; the arms are {', '.join(draws.arms)}")
    return {domain: draws.arms.index(table[domain]) for domain in sorted(set(draws.domains))}


def _check_routes(draws: Draws, arm_P: np.ndarray, shares_PA: np.ndarray) -> None:
    arms, problems = len(draws.arms), len(draws.domains)
    if arm_P.shape != (problems,) or not np.isin(arm_P, np.arange(arms)).all():
        raise ValueError(f"panel: routes are one of {arms} arms for each of {problems} problems, not {arm_P.shape}")
    if shares_PA.shape != (problems, arms) or not np.allclose(shares_PA.sum(axis=1), 1) or (shares_PA < 0).any():
        raise ValueError(f"panel: routing shares are {problems} problems x {arms} arms, and sum to 1 at each problem")
