"""grow: the panel gets experts where problems stay unsolved, and loses those that nothing is routed to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from orchestra.config.experts import PlannedExpert, PlannedPanel
from orchestra.config.imitating import GrowingStage
from orchestra.config.routed import RoutingStage
from orchestra.config.stage import Draft, Gives, Verdict, last_panel
from orchestra.work.settings import GROWTH, PANEL_EVALUATION

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.report.data import StageRecord
    from orchestra.report.parts import Part
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext


class GrowStage(RoutingStage, GrowingStage):
    """Experts come and go by what windows of problems show; a new one imitates its domain's traces as in `sft`."""

    reads: ClassVar[tuple[str, ...]] = (*RoutingStage.reads, "rollouts.max_completion_tokens")
    outputs: ClassVar[tuple[str, ...]] = (PANEL_EVALUATION, GROWTH)

    kind: Literal["grow"]
    """grow"""

    def faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        if last_panel(draft.before(self)) is None:
            yield "kind", "there is no panel to grow; an sft or grpo stage before it must train an `expert`"
        for key in ("expert", "domains", "parent", "from"):
            if getattr(self, key) is not None:
                yield key, "a panel grows where its windows say so, each new expert from the base; leave it out"
        if self.optimizer != "fresh":
            yield "optimizer", "a panel grows by new experts, whose optimizers are fresh; leave it out"
        if self.labels == "random" and self.controller == "signals":
            yield "labels", "'random' is of a controller that learns from labels; write `controller: learned`"
        yield from self.training_faults(draft)

    @property
    def given(self) -> frozenset[Gives]:
        """All of it, though it names no expert, as other stages that train must for a panel."""
        return self.gives

    def experts(self, before: PlannedPanel) -> PlannedPanel:
        panel = super().experts(before)
        # it may remove any of them
        there = (replace(one, sure=False) for one in panel.experts)
        return replace(panel, experts=(*there, PlannedExpert(self.name, self, (self,), several=True)))

    def trains_on(self, recipe: Recipe) -> tuple[tuple[str, int | None], ...]:
        return (*super().trains_on(recipe), (recipe.problems.train, recipe.problems.train_limit))

    def plan(self, estimator: Estimator) -> StagePlan:
        from orchestra.plan.panels import arms_asked, experts_before, experts_grown, experts_kept, growing_memory

        row, there = super().plan(estimator), len(experts_before(estimator.recipe, self))
        grown = experts_grown(self, there)
        kept = experts_kept(self, there, grown)
        # a learned controller reads its windows and asks nobody
        windows = self.rounds * self.window if self.controller == "signals" else 0
        proving = self.learn + (self.gain if grown else 0)
        tokens, seconds = arms_asked(
            estimator, self, self.samples * (proving + windows), self.oracle_samples, more=kept
        )
        tried = estimator.generate(
            estimator.base,
            (grown - kept) * self.samples * proving,
            self.evaluation(estimator.recipe).max_completion_tokens,
        )
        return replace(
            row,
            tokens=tokens + tried[0] + grown * row.tokens,
            seconds=seconds + tried[1] + grown * row.seconds,
            steps=grown * self.steps,
            data=f"{row.data}, {grown} new experts assumed",
            memory=growing_memory(estimator, self, row.memory),
        )

    def summary(self, recipe: Recipe) -> str:
        by = "" if self.controller == "signals" else f", by a controller that learned from {self.labels} labels"
        start = f"grow the panel of {recipe.panel_of(self.name)}, {self.rounds} windows of {self.window:,} problems"
        return f"{start}, at most {self.growth.at_most} experts{by}"

    def verdict(self, result: StageResult) -> Verdict | None:
        if result.extra.get("audit_verdict") != "NO-GO":
            return None
        return Verdict(False, f"the controller's labels say nothing: held-out AUC {result.extra['audit_auc']:.3f}, "
                              f"p = {result.extra['audit_p_value']:.2g} against shuffled labels")  # fmt: skip

    @classmethod
    def report(cls, record: StageRecord) -> Iterator[Part]:
        from orchestra.report.growth import growth_parts

        yield from super().report(record)
        yield from growth_parts(record.name, record.outputs.get(GROWTH))

    def run(self, context: StageContext) -> StageResult:
        from orchestra.work.growing import grow

        return grow(context, self)
