"""mixture: the experts of a panel act together inside the network, token by token; what that costs and gains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from models.settings import MixtureSettings
from orchestra.config.routed import OfPanelStage
from orchestra.config.stage import Gives

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.report.data import StageRecord
    from orchestra.report.parts import Part
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext


class MixtureStage(OfPanelStage, MixtureSettings):
    """The last panel as a mixture inside the network (PEFT's Arrow), evaluated with transformers' generate."""

    gives: ClassVar[frozenset[Gives]] = frozenset({"evaluation"})

    kind: Literal["mixture"]
    """mixture"""

    def plan(self, estimator: Estimator) -> StagePlan:
        from orchestra.plan.estimate import GENERATE
        from orchestra.plan.panels import panel_memory

        tokens, seconds = estimator.evaluation(self)
        memory = panel_memory(estimator, self) | {"activations": estimator.generated_at_once()}
        panel = estimator.recipe.panel_of(self.name)
        return estimator.row(self, (tokens, GENERATE * seconds), memory, parent=panel, data=f"{self.layers} layers")

    def summary(self, recipe: Recipe) -> str:
        most = "all" if self.top_k is None else self.top_k
        return f"mix {most} experts of {recipe.panel_of(self.name)} in {self.layers} layers"

    @classmethod
    def report(cls, record: StageRecord) -> Iterator[Part]:
        from orchestra.report.of_panel import mixture_gain

        yield from mixture_gain(record)

    def run(self, context: StageContext) -> StageResult:
        from orchestra.work.mixture import mix_panel

        return mix_panel(context, self)
