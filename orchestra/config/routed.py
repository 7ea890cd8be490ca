"""What the kinds have in common that take up a panel: those that say who answers what in it, and those that make one
policy of it, and compare it with the panel itself, routed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from orchestra.config.experts import EACH, may_give_panel
from orchestra.config.stage import Draft, Gives, Stage, last_panel

if TYPE_CHECKING:
    from orchestra.config.experts import PlannedPanel
    from orchestra.report.data import StageRecord
    from orchestra.report.parts import Part

NO_PANEL = "there is no panel before it; train experts first (`expert:` of an sft or grpo stage)"


class PanelStage(Stage):
    """A stage that takes up the last panel before it, and no policy."""

    def panel(self, earlier: Sequence[Stage]) -> str | None:
        return last_panel(earlier)

    def parents(self, earlier: Sequence[Stage]) -> tuple[str, ...]:
        return ()


class RoutingStage(PanelStage):
    """One that asks the panel's experts, trains their router, and hands the panel on with it."""

    gives: ClassVar[frozenset[Gives]] = frozenset({"panel", "evaluation"})
    reads: ClassVar[tuple[str, ...]] = (
        *("model", "problems.domain", "problems.train", "problems.train_limit", "problems.format"),
        *("rollouts.engine", "rollouts.sync", "rollouts.dtype", "rollouts.max_prompt_tokens"),
    )

    def experts(self, before: PlannedPanel) -> PlannedPanel:
        return replace(before, routed=True, before=None)

    def traces_seen(self, earlier: Sequence[Stage]) -> tuple[str, ...]:
        """Problems of which there are none are asked first."""
        return tuple(stage.name for stage in earlier if "traces" in stage.given)

    @classmethod
    def report(cls, record: StageRecord) -> Iterator[Part]:
        from orchestra.report.panel import routed_parts

        yield from routed_parts(record)


class OfPanelStage(PanelStage):
    """One whose own evaluation is compared with that of the routed panel."""

    def faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        if self.parent is not None:
            yield "parent", f"a {self.kind} stage takes the last panel before it, not {self.parent!r}; leave it out"
        before = draft.before(self)
        name = last_panel(before)
        if name is None:
            if not may_give_panel(draft):
                yield "kind", NO_PANEL
            return
        giver = next(stage for stage in before if stage.name == name)
        if giver.trains not in (None, EACH) or "evaluation" not in giver.given:
            told = f"is evaluated with its expert {giver.trains!r} alone" if giver.trains else "is not evaluated"
            yield (
                "kind",
                f"it is compared with the routed panel, but {name!r}, which gives the last panel before it, {told}; "
                "put a stage between them that routes",
            )
