"""sft: the student imitates traces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from orchestra.config.imitating import ImitatingStage
from orchestra.config.stage import Draft, Gives
from orchestra.work.settings import EXPERTS, PERPLEXITY, PREFLIGHT

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.report.data import StageRecord
    from orchestra.report.parts import Part
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext


class SftStage(ImitatingStage):
    """The student imitates traces (TRL SFTTrainer; loss on the completion only)."""

    gives: ClassVar[frozenset[Gives]] = frozenset({"policy", "imitation", "evaluation", "panel"})
    reads: ClassVar[tuple[str, ...]] = ("model", "rollouts.max_completion_tokens")
    outputs: ClassVar[tuple[str, ...]] = (PREFLIGHT, PERPLEXITY, EXPERTS)

    kind: Literal["sft"]
    """sft"""

    def faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        yield from super().faults(draft)
        yield from self.training_faults(draft)

    def summary(self, recipe: Recipe) -> str:
        limit = f" (at most {self.at_most:,})" if self.at_most is not None else ""
        return f"sft on {', '.join(map(self.named, self.data))}{limit}, {self.steps} steps{self.said_of_experts()}"

    @classmethod
    def report(cls, record: StageRecord) -> Iterator[Part]:
        from orchestra.report.experts import experts_parts
        from orchestra.report.modelled import notices_of, read_preflight
        from orchestra.report.panel import structure_parts
        from orchestra.report.parts import Counts, Course
        from orchestra.report.sweep import sweep_parts

        yield Course("loss", f"Loss of {record.name}", "nats per token", joined=False)
        if (found := read_preflight(record.outputs.get(PREFLIGHT))) is not None:
            yield Counts(f"{record.name}: preflight under {found.policy}", found.numbers())
        yield from notices_of(record)
        yield from structure_parts(record)
        yield from experts_parts(record)
        yield from sweep_parts(record)

    def run(self, context: StageContext) -> StageResult:
        from orchestra.work.imitating import imitate

        return imitate(context, self)
