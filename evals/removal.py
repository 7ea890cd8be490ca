"""What removing an expert will cost, told before it is done; and whether a panel starts where its record says it does.

Removed, an expert leaves its problems to the arms that remain, chosen by the router's own chances as it would choose
them then: a router's rows do not depend on each other. Every other problem stays where it is. So on held-out problems,
each arm having answered all of them, the accuracy without the expert is known and paired with the one with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import hypot
from typing import Protocol

import numpy as np
from pydantic import TypeAdapter

from evals.statistics import Interval, PairedDifference, checked, paired_difference
from settings import near


class RemovalError(ValueError):
    """An expert that cannot be removed; the message says which and why."""

    user_message = True


@dataclass(frozen=True)
class RemovalCost:
    """What is predicted of a panel without one of its experts.

    Fields:
        expert: that would be removed.
        load: share of the problems that is routed to it.
        goes_to: share of all problems that each remaining arm takes over; they sum to `load`.
        difference: accuracy without it minus accuracy with it, paired; below 0 it is missed.
    """

    expert: str
    load: float
    goes_to: dict[str, float]
    difference: PairedDifference

    def to_json(self) -> str:
        """JSON text; `from_json` reads it back to an equal prediction."""
        return _adapter().dump_json(self).decode()

    @staticmethod
    def from_json(text: str | bytes) -> RemovalCost:
        """Read what `to_json` wrote.

        Raises:
            ValueError: not such a prediction.
        """
        return _adapter().validate_json(text)


@cache
def _adapter() -> TypeAdapter[RemovalCost]:
    return TypeAdapter(RemovalCost)


def removal_cost(
    expert: str,
    names: Sequence[str],
    correct_APS: np.ndarray,
    chance_PA: np.ndarray,
    route_P: np.ndarray,
    *,
    threshold: float,
    confidence: float,
    seed: int = 0,
) -> RemovalCost:
    """Predict it from problems on which the router was not trained.

    Args:
        names: of the arms, the base first.
        correct_APS: arms x problems x samples of 0, 1 and nan (ungradable).
        chance_PA: problems x arms, the router's chances that an arm solves a problem.
        route_P: index of the arm that each problem is routed to now.
        threshold: the router's: an expert that is left takes a problem over only where its chance exceeds the base's by
            at least so much. Ties go to the earlier arm.
        confidence: nominal coverage of the interval.
        seed: of the resampling.

    Raises:
        RemovalError: no such expert, or it is the base.
        ValueError: shapes that do not fit, chances that are no numbers, no problem graded both with and without it.
    """
    if expert not in names:
        raise RemovalError(f"there is no expert {expert!r} (there are {', '.join(names[1:]) or 'none'})"
                           f"{near(expert, names[1:])}")  # fmt: skip
    gone = list(names).index(expert)
    if gone == 0:
        raise RemovalError(f"{expert!r} is the base, on which every expert stands; only experts can be removed")
    correct_APS, chance_PA = np.asarray(correct_APS, dtype=float), np.asarray(chance_PA, dtype=float)
    route_P = np.asarray(route_P)
    _check(names, correct_APS, chance_PA, route_P)
    moved_P = route_P == gone
    instead_P = np.where(moved_P, _best_left(chance_PA, gone, threshold), route_P)
    rows = np.arange(len(route_P))
    with_PS, without_PS = correct_APS[route_P, rows], correct_APS[instead_P, rows]
    return RemovalCost(
        expert=expert,
        load=float(moved_P.mean()),
        goes_to={
            name: float((moved_P & (instead_P == arm)).mean()) for arm, name in enumerate(names) if name != expert
        },
        difference=paired_difference(without_PS, with_PS, confidence, seed),
    )


def _best_left(chance_PA: np.ndarray, gone: int, threshold: float) -> np.ndarray:
    """The arm that a router without this one would choose."""
    left_PA = chance_PA.copy()
    left_PA[:, gone] = -np.inf
    best_P = left_PA.argmax(axis=1)
    ahead_P = left_PA.max(axis=1) - left_PA[:, 0]
    return np.where(ahead_P < threshold, 0, best_P)


def _check(names: Sequence[str], correct_APS: np.ndarray, chance_PA: np.ndarray, route_P: np.ndarray) -> None:
    arms, problems = len(names), len(route_P)
    if len(set(names)) < arms:
        raise ValueError(f"a panel's arms have different names, not {list(names)}")
    shapes = (correct_APS.shape[:2], chance_PA.shape, route_P.shape)
    if shapes != ((arms, problems), (problems, arms), (problems,)) or correct_APS.ndim != 3 or not problems:
        raise ValueError(f"{arms} arms and {problems} problems cannot have correct, chances, routes of shapes "
                         f"{correct_APS.shape}, {chance_PA.shape}, {route_P.shape}")  # fmt: skip
    checked(correct_APS.reshape(arms * problems, -1))
    if not np.isfinite(chance_PA).all():
        raise ValueError("a router's chances are numbers")
    if not np.issubdtype(route_P.dtype, np.integer) or route_P.min() < 0 or route_P.max() >= arms:
        raise ValueError(f"a route is the index of one of {arms} arms")


class Estimated(Protocol):
    """A share with its interval, such as `evals.statistics.Interval`."""

    @property
    def estimate(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def start_record_fault(
    measured: Interval,
    recorded: Estimated,
    name: str,
    slack: float = 0.01,
    *,
    paired: PairedDifference | None = None,
) -> str | None:
    """Why training must not start: the panel as it was loaded is worse than the one that was recorded.

    That is more than `slack` worse, and beyond the interval of the difference: of `paired` where the same problems were
    answered both times; otherwise the upper end that the two intervals give, d + sqrt((high - m)^2 + (r - low)^2)
    (Newcombe 1998, method 10), which is below 0 only where `measured` is below the recorded interval too.

    Args:
        measured: accuracy at the start.
        recorded: the panel's own record of it.
        name: of the panel, for the sentence.
        slack: share of the problems, 0.01 is one point.
        paired: measured minus recorded.

    Returns:
        None, or a sentence that says what differs and what to do.

    Raises:
        ValueError: `measured` is no interval of a share.
    """
    if not _is_share(measured):
        raise ValueError(f"{measured} is no interval of a share")
    if not _is_share(recorded):
        return (
            f"panel {name!r}: its record says accuracy {recorded.estimate} ({recorded.low} to {recorded.high}), which "
            "is no share between 0 and 1 with its interval: restore the record, or evaluate the panel anew"
        )
    change = measured.estimate - recorded.estimate if paired is None else paired.difference
    reach = hypot(measured.high - measured.estimate, recorded.estimate - recorded.low)
    high = change + reach if paired is None else paired.high
    # 1e-9: a change of exactly the slack is allowed
    if change >= -slack - 1e-9 or high >= 0:
        return None
    return (
        f"panel {name!r} starts at an accuracy of {_percent(measured)}, and its record says {_percent(recorded)}: "
        f"{-100 * change:.2f} points lower, of which {100 * slack:g} may be lost and {-100 * high:.2f} at least are no "
        "chance. What was loaded is not what was recorded: compare its files with the run that made it, or evaluate "
        "the panel anew if they are right"
    )


def _is_share(one: Estimated) -> bool:
    return 0 <= one.low <= one.estimate <= one.high <= 1


def _percent(one: Estimated) -> str:
    return f"{100 * one.estimate:.2f} % ({100 * one.low:.2f} to {100 * one.high:.2f})"
