"""What an experiment would do, take and need: every arm's own plan, and what arms have in common and run once.

By the rule of orchestra/run/siblings.py: a run takes over the stages up to which another run is the same. The seed is
part of every stage's fingerprint (it samples the evaluation's answers, too, also those of the base), so runs under two
seeds have nothing in common and a seed takes as long as any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from orchestra.config.experiment import Experiment
from orchestra.plan.estimate import Plan, StagePlan, estimate
from orchestra.plan.machine import Machine
from orchestra.run.experiment import changes_of
from orchestra.run.fingerprint import known_beforehand
from orchestra.work.held_out import held_out


@dataclass(frozen=True)
class ArmPlan:
    """One arm's run under any of the seeds.

    Fields:
        changes: what it has otherwise than the first arm, a phrase each.
        taken_over: stage -> the arm, planned before this one, whose run of it is taken over.
    """

    arm: str
    plan: Plan
    changes: tuple[str, ...]
    taken_over: Mapping[str, str]

    @property
    def own(self) -> tuple[StagePlan, ...]:
        """The stages that its run runs."""
        return tuple(stage for stage in self.plan.stages if stage.name not in self.taken_over)

    @property
    def seconds(self) -> float:
        """Of these."""
        return sum(stage.seconds for stage in self.own)


@dataclass(frozen=True)
class ExperimentPlan:
    """All runs of an experiment.

    Fields:
        arms: in their order, the first being what the others are compared with.
        seeds: each arm has a run under each.
        extra_sets: whether some arms evaluate on other problems than others do; then a stage that trains is in common
            only if none of its problems is lost to them.
    """

    arms: tuple[ArmPlan, ...]
    seeds: tuple[int, ...]
    extra_sets: bool

    @property
    def runs(self) -> int:
        """How many."""
        return len(self.arms) * len(self.seeds)

    @property
    def seconds(self) -> float:
        """In all."""
        return len(self.seeds) * sum(arm.seconds for arm in self.arms)

    @property
    def seconds_apart(self) -> float:
        """In all, if every run ran all of its stages."""
        return len(self.seeds) * sum(arm.plan.seconds for arm in self.arms)

    @property
    def peak(self) -> int:
        """Bytes in the stage that needs most."""
        return max(arm.plan.peak for arm in self.arms)

    @property
    def fits(self) -> bool:
        """Whether every arm does."""
        return all(arm.plan.fits for arm in self.arms)

    @property
    def reason(self) -> str:
        """Of each arm that does not fit; else of the one that needs most."""
        if self.fits:
            most = max(self.arms, key=lambda arm: arm.plan.peak)
            return f"arm {most.arm!r}: {most.plan.reason}" if len(self.arms) > 1 else most.plan.reason
        return "; ".join(f"arm {arm.arm!r}: {arm.plan.reason}" for arm in self.arms if not arm.plan.fits)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `arms` is a list with `arm`, `changes`, `seconds`, `taken_over` and the arm's whole `plan`."""
        first = self.arms[0].plan
        return {
            "recipe": first.recipe, "scale": first.scale, "machine": first.machine, "device": first.device,
            "fits": self.fits, "reason": self.reason, "runs": self.runs, "seeds": list(self.seeds),
            "seconds": round(self.seconds, 1), "seconds_without_sharing": round(self.seconds_apart, 1),
            "peak_bytes": self.peak,
            "arms": [
                {"arm": arm.arm, "changes": list(arm.changes), "seconds": round(arm.seconds, 1),
                 "taken_over": dict(arm.taken_over), "plan": arm.plan.to_json()}
                for arm in self.arms
            ],
        }  # fmt: skip


def plan_experiment(experiment: Experiment, machine: Machine, scale: str = "none") -> ExperimentPlan:
    """Plan every arm.

    Raises:
        OSError: an input is missing.
    """
    first_to_run: dict[tuple[str, ...], str] = {}
    arms, told = [], changes_of(experiment)
    for arm, recipe in experiment.named.items():
        digests = [known_beforehand(recipe, stage) for stage in recipe.all_stages]
        taken_over = {}
        for stage, so_far in zip(recipe.all_stages, accumulate((one,) for one in digests), strict=True):
            owner = first_to_run.setdefault(so_far, arm)
            if owner != arm:
                taken_over[stage.name] = owner
        plan = estimate(recipe, machine, scale)
        arms.append(ArmPlan(arm, plan, tuple(map(str, told[arm])), taken_over))
    sets = {frozenset(held_out(recipe)) for recipe in experiment.named.values()}
    return ExperimentPlan(tuple(arms), experiment.seeds or (experiment.recipe.seed,), len(sets) > 1)
