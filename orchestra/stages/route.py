"""route: which expert of the panel, or the base, answers which problem; decided from the prompt alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from models.experts import BASE
from orchestra.config.routed import RoutingStage
from orchestra.config.stage import Draft, Verdict, last_panel
from orchestra.work.settings import LOAD, PANEL_EVALUATION, RouteSettings

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext


class RouteStage(RoutingStage, RouteSettings):
    """A router for the panel's experts, learned from which of them solves which problem, and what it wins."""

    outputs: ClassVar[tuple[str, ...]] = (PANEL_EVALUATION,)

    kind: Literal["route"]
    """route"""

    def faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        # a stage that could not be read may train one
        if last_panel(draft.before(self)) is None and not draft.unread:
            yield "kind", "there are no experts to route between; an sft or grpo stage before it must train an `expert`"
        if self.parent is not None:
            yield "parent", f"a router is that of the panel before it and takes up no policy; leave {self.parent!r} out"

    def trains_on(self, recipe: Recipe) -> tuple[tuple[str, int | None], ...]:
        return ((recipe.problems.train, recipe.problems.train_limit),)

    def plan(self, estimator: Estimator) -> StagePlan:
        from orchestra.plan.panels import arms_asked, panel_memory

        work = arms_asked(estimator, self, self.problems * self.samples, self.oracle_samples)
        return estimator.row(self, work, panel_memory(estimator, self), data=estimator.recipe.problems.train)

    def verdict(self, result: StageResult) -> Verdict | None:
        loads = {key.removeprefix(LOAD): load for key, load in result.extra.items() if key.startswith(LOAD)}
        idle = {name: load for name, load in loads.items() if load < self.min_load and name != BASE}
        if not idle:
            return None
        told = ", ".join(f"{name} {load:.1%}" for name, load in idle.items())
        return Verdict(False, f"experts with less than {self.min_load:.1%} of the problems (min_load): {told}")

    def summary(self, recipe: Recipe) -> str:
        return (
            f"route in the panel of {recipe.panel_of(self.name)}, {self.problems:,} problems x {self.samples} samples"
        )

    def run(self, context: StageContext) -> StageResult:
        from orchestra.work.routing import route

        return route(context, self)
