"""When a panel of experts grows or is pruned, decided from numbers alone; nothing here touches a model or a file.

What a run saw is told in windows, one after another. A panel grows where problems stay unsolved by every arm, or where
the router hesitates and the loss is high as well: high entropy alone may just say that several experts are equally
good. An expert is pruned where next to nothing is routed to it. Either has to hold in several windows in a row, all of
them seen since the panel last changed, for a window of another panel says nothing about this one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import fsum, log
from sys import float_info
from typing import Literal

import numpy as np
from pydantic import TypeAdapter

from models.settings import GrowthSettings

Action = Literal["grow", "prune", "stay"]


class PopulationError(ValueError):
    """Windows that say nothing about this panel; the message says which and what to do."""

    user_message = True


@dataclass(frozen=True)
class Unsolved:
    """Of one domain's problems in a window.

    Fields:
        problems: of which it is known whether an arm solves them.
        unsolved: those that none solves.
    """

    problems: int
    unsolved: int


@dataclass(frozen=True)
class Window:
    """What one window of problems says about a panel.

    Fields:
        problems: asked.
        domains: of each domain, how many problems no arm solves.
        load: share of the problems that is routed to each arm, the base included; they sum to 1.
        entropy: of the routing, mean over problems, divided by log(arms): 0 is decided, 1 is uniform.
        loss: mean over problems of 1 - accuracy of the arm that a problem is routed to, or another one in [0, inf).
        effective: effective number of arms, exp of the entropy of the mean routing; 1 to the number of arms.

    Raises:
        ValueError: a share outside [0, 1], loads that do not sum to 1, more unsolved problems than there are.
    """

    problems: int
    domains: dict[str, Unsolved]
    load: dict[str, float]
    entropy: float
    loss: float
    effective: float

    def __post_init__(self) -> None:
        # written so that nan fails
        bounds = {f"load of {name!r}": (share, 1.0) for name, share in self.load.items()}
        bounds |= {"entropy": (self.entropy, 1.0), "loss": (self.loss, float_info.max)}
        wrong = [f"{name} is {value}" for name, (value, most) in bounds.items() if not 0 <= value <= most + 1e-9]
        if not abs(fsum(self.load.values()) - 1) <= 1e-6:
            wrong.append(f"the loads sum to {fsum(self.load.values())}")
        if not 1 - 1e-6 <= self.effective <= len(self.load) + 1e-6:
            wrong.append(f"{self.effective} effective arms of {len(self.load)}")
        wrong += [
            f"domain {name!r} has {one.unsolved} unsolved problems of {one.problems}"
            for name, one in self.domains.items()
            if not 0 <= one.unsolved <= one.problems
        ]
        known = sum(one.problems for one in self.domains.values())
        if self.problems < 1 or known > self.problems:
            wrong.append(f"{known} problems are known of {self.problems} asked")
        if wrong:
            raise ValueError(f"not a window of a panel: {'; '.join(wrong)}")

    @property
    def unsolved(self) -> float:
        """Share of the problems that no arm solves, of those of which it is known; 0 where it is of none."""
        known = sum(one.problems for one in self.domains.values())
        return sum(one.unsolved for one in self.domains.values()) / known if known else 0.0

    def to_json(self) -> str:
        """JSON text; `from_json` reads it back to an equal window."""
        return _window().dump_json(self).decode()

    @staticmethod
    def from_json(text: str | bytes) -> Window:
        """Read what `to_json` wrote.

        Raises:
            ValueError: not a window.
        """
        return _window().validate_json(text)


@cache
def _window() -> TypeAdapter[Window]:
    return TypeAdapter(Window)


def window(
    names: Sequence[str],
    domains: Sequence[str],
    solved_AP: np.ndarray,
    route_P: np.ndarray,
    shares_PA: np.ndarray,
    loss: float | None = None,
) -> Window:
    """Sum up what was asked in a window.

    A problem is solved where an arm has any sample right. It is unsolved only where every arm was graded and has none
    right: ungradable is not wrong, and a problem of which it is not known is left out.

    Args:
        names: of the arms, the base among them.
        domains: of the problems.
        solved_AP: arms x problems, share of the samples that were right, nan where none could be graded.
        route_P: index of the arm that each problem is routed to.
        shares_PA: problems x arms, the routing's distribution over arms; rows sum to 1.
        loss: None: mean of 1 - solved over the routed problems that were graded.

    Raises:
        ValueError: shapes that do not fit, no problems, values outside [0, 1], nothing graded and no `loss`.
    """
    solved_AP, shares_PA = np.asarray(solved_AP, dtype=float), np.asarray(shares_PA, dtype=float)
    route_P = np.asarray(route_P)
    _check(names, domains, solved_AP, route_P, shares_PA)
    routed_P = solved_AP[route_P, np.arange(len(domains))]
    if loss is None:
        if np.isnan(routed_P).all():
            raise ValueError(f"a window in which none of {len(domains)} routed answers could be graded has no loss")
        loss = 1 - fsum(routed_P[~np.isnan(routed_P)]) / int((~np.isnan(routed_P)).sum())
    solved_P = (solved_AP > 0).any(axis=0)
    known_P = solved_P | ~np.isnan(solved_AP).any(axis=0)
    domain_P = np.array(domains, dtype=object)
    entropy_P = _entropy(shares_PA)
    return Window(
        problems=len(domains),
        domains={
            name: Unsolved(int((of_P := known_P & (domain_P == name)).sum()), int((of_P & ~solved_P).sum()))
            for name in sorted(set(domains))
        },
        load={name: float((route_P == arm).mean()) for arm, name in enumerate(names)},
        entropy=min(1.0, fsum(entropy_P) / len(entropy_P) / log(len(names))) if len(names) > 1 else 0.0,
        loss=float(loss),
        effective=float(np.exp(_entropy(shares_PA.mean(axis=0)))),
    )


def _check(
    names: Sequence[str], domains: Sequence[str], solved_AP: np.ndarray, route_P: np.ndarray, shares_PA: np.ndarray
) -> None:
    arms, problems = len(names), len(domains)
    shapes = (solved_AP.shape, route_P.shape, shares_PA.shape)
    if not arms or not problems or shapes != ((arms, problems), (problems,), (problems, arms)):
        raise ValueError(
            f"a window of {arms} arms and {problems} problems cannot have solved, route, shares of {shapes}"
        )
    if len(set(names)) < arms:
        raise ValueError(f"a window's arms have different names, not {list(names)}")
    if not np.issubdtype(route_P.dtype, np.integer) or route_P.min() < 0 or route_P.max() >= arms:
        raise ValueError(f"a route is the index of one of {arms} arms")
    if not (np.isnan(solved_AP) | ((solved_AP >= 0) & (solved_AP <= 1))).all():
        raise ValueError("what an arm solves is a share between 0 and 1, or nan")
    if not (shares_PA >= 0).all() or not np.allclose(shares_PA.sum(axis=1), 1, atol=1e-4):
        raise ValueError("each problem's routing shares are not negative and sum to 1")


def _entropy(shares: np.ndarray) -> np.ndarray:
    """Nats, along the last axis; 0 log 0 is 0."""
    shares = shares / shares.sum(axis=-1, keepdims=True)
    return np.maximum(0.0, -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=-1))


@dataclass(frozen=True)
class Decision:
    """What is to become of a panel.

    Fields:
        action: add an expert, remove one, or neither.
        expert: that is removed.
        domain: that the new expert is for.
        reason: a sentence with the numbers.
    """

    action: Action
    reason: str
    expert: str | None = None
    domain: str | None = None


def decide(
    windows: Sequence[Window],
    changes_at: Sequence[int],
    experts: Sequence[str],
    settings: GrowthSettings,
    given_up: Collection[str] = (),
    needed: Collection[str] = (),
) -> Decision:
    """What the last `settings.windows` windows say; earlier ones have no part in it.

    An expert without load goes before another one comes, so that a full panel gets room first. Of several the one with
    the least load over these windows goes, and a new one is for the domain with the most unsolved problems in them;
    ties go by name.

    Args:
        windows: in the order in which they were seen.
        changes_at: of each change of the panel, how many windows had been seen before it.
        experts: that the panel has now, the base not among them.
        given_up: domains in which a further expert has gained nothing; none is made for them again.
        needed: experts whose removal would cost too much; they are not pruned, and none has to go before another comes.

    Raises:
        PopulationError: a window since the last change knows nothing of one of the experts.
        ValueError: a change that is not at one of the windows.
    """
    if any(not 0 <= change <= len(windows) for change in changes_at):
        raise ValueError(f"changes at {list(changes_at)} cannot have been among {len(windows)} windows")
    in_a_row, last = settings.windows, max(changes_at, default=0)
    since = len(windows) - last
    if changes_at and since <= settings.cooldown:
        return Decision("stay", f"windows since the last change: {since}, within the cooldown of {settings.cooldown}")
    if since < in_a_row:
        return Decision("stay", f"windows of this panel: {since}, and {in_a_row} in a row are needed")
    recent = windows[-in_a_row:]
    _all_known(recent, experts, first=len(windows) - in_a_row)
    return _pruned(recent, experts, settings, needed) or _grown(recent, experts, settings, given_up)


def _all_known(recent: Sequence[Window], experts: Sequence[str], first: int) -> None:
    for number, one in enumerate(recent, first):
        for expert in experts:
            if expert not in one.load:
                raise PopulationError(
                    f"window {number} has no load of expert {expert!r}, only of {', '.join(sorted(one.load))}: it is "
                    "of another panel; say when this one changed, or begin with new windows"
                )


def _pruned(
    recent: Sequence[Window], experts: Sequence[str], settings: GrowthSettings, needed: Collection[str]
) -> Decision | None:
    if len(experts) <= settings.at_least:
        return None
    mean = {
        name: fsum(one.load[name] for one in recent) / len(recent)
        for name in experts
        if name not in needed and all(one.load[name] < settings.load_below for one in recent)
    }
    if not mean:
        return None
    least = min(mean, key=lambda name: (mean[name], name))
    told = f"{least!r} had {_each(one.load[least] for one in recent)} of the problems, below {settings.load_below:g}"
    return Decision("prune", f"{told} in {_in_a_row(recent)}", expert=least)


def _grown(
    recent: Sequence[Window], experts: Sequence[str], settings: GrowthSettings, given_up: Collection[str]
) -> Decision:
    unsolved = all(one.unsolved > settings.unsolved_above for one in recent)
    unsure = all(one.entropy > settings.entropy_above and one.loss > settings.loss_above for one in recent)
    told = [
        f"no arm solves {_each(one.unsolved for one in recent)} of the problems (limit {settings.unsolved_above:g})",
        f"routing entropy is {_each(one.entropy for one in recent)} (limit {settings.entropy_above:g})",
        f"loss is {_each(one.loss for one in recent)} (limit {settings.loss_above:g})",
    ]
    shown = told if unsolved == unsure else told[:1] if unsolved else told[1:]
    reason = f"{', '.join(shown)} in {_in_a_row(recent)}"
    if not unsolved and not unsure:
        return Decision("stay", reason)
    if len(experts) >= settings.at_most:
        return Decision("stay", f"{reason}, but there are {len(experts)} experts, at most {settings.at_most}")
    mass = {
        name: sum(one.domains[name].unsolved for one in recent if name in one.domains)
        for name in {name for one in recent for name in one.domains}
    }
    if not any(mass.values()):
        return Decision("stay", f"{reason}, but no problem is without an arm that solves it: the router is at fault")
    most = min((name for name in mass if name not in given_up), key=lambda name: (-mass[name], name), default=None)
    if most is None or not mass[most]:
        return Decision("stay", f"{reason}, but where problems are unsolved a further expert has gained nothing before")
    share = f"{mass[most]} of the {sum(mass.values())} unsolved problems are in {most!r}"
    return Decision("grow", f"{reason}; {share}", domain=most)


def _in_a_row(recent: Sequence[Window]) -> str:
    return f"{len(recent)} windows in a row" if len(recent) > 1 else "one window"


def _each(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


@dataclass(frozen=True)
class ExpertShape:
    """What an expert is built of: rank, alpha and the names of the layers that it adapts."""

    rank: int
    alpha: float
    targets: tuple[str, ...]


def structure_hash(base: str, experts: Mapping[str, ExpertShape], arms: Sequence[str]) -> str:
    """SHA-256 of what a panel is built of, not of its weights: the same after any training, another one as soon as
    anything was added, removed or renamed.

    Args:
        base: its hash (`models.base.base_sha256`) or its name.
        experts: by name; neither their order nor that of their targets counts.
        arms: of the router; their order counts, for a route is an index.
    """
    shapes = {
        name: asdict(one) | {"alpha": float(one.alpha), "targets": sorted(set(one.targets))}
        for name, one in experts.items()
    }
    text = json.dumps({"base": base, "experts": shapes, "arms": list(arms)}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
