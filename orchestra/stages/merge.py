"""merge: the experts of a panel become one adapter, and what that loses against routing between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from models.settings import MergeSettings
from orchestra.config.routed import OfPanelStage
from orchestra.config.stage import Draft, Gives
from orchestra.work.settings import PERPLEXITY

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.report.data import StageRecord
    from orchestra.report.parts import Part
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext


class MergeStage(OfPanelStage, MergeSettings):
    """The experts of the last panel as one adapter (PEFT's add_weighted_adapter), and the merge gap."""

    gives: ClassVar[frozenset[Gives]] = frozenset({"policy", "evaluation"})
    outputs: ClassVar[tuple[str, ...]] = (PERPLEXITY,)

    kind: Literal["merge"]
    """merge"""

    def faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        yield from super().faults(draft)
        if self.merge == "best" and self.rank is not None:
            yield "rank", f"{self.rank} does not apply: `merge: best` takes an expert as it is; leave it out"
        dropping = self.merge in ("ties", "dare_ties")
        if not dropping and self.density != type(self).model_fields["density"].default:
            yield "density", f"{self.density} does not apply: `merge: {self.merge}` drops nothing; leave it out"

    def plan(self, estimator: Estimator) -> StagePlan:
        from orchestra.plan.panels import experts_before, panel_memory

        experts = experts_before(estimator.recipe, self)
        ranks = [expert.rank for expert in experts] or [0]
        rank = self.rank or (sum(ranks) if self.merge in ("by-load", "linear") else max(ranks))
        work = estimator.with_evaluation(self, 0, estimator.base.parameters * 8 / 200e6)
        merged = {
            "adapter and gradient": estimator.experts([one.model_copy(update={"rank": rank}) for one in experts[:1]])
        }
        memory = panel_memory(estimator, self) | merged
        return estimator.row(self, work, memory, parent=estimator.recipe.panel_of(self.name), data=self.merge)

    def summary(self, recipe: Recipe) -> str:
        rank = f" at rank {self.rank}" if self.rank is not None else ""
        return f"merge the experts of {recipe.panel_of(self.name)}, {self.merge}{rank}"

    @classmethod
    def report(cls, record: StageRecord) -> Iterator[Part]:
        from orchestra.report.modelled import notices_of
        from orchestra.report.of_panel import merge_gap

        yield from merge_gap(record)
        yield from notices_of(record)

    def run(self, context: StageContext) -> StageResult:
        from orchestra.work.merging import merge_panel

        return merge_panel(context, self)
