"""What the kinds have in common that make one policy of a panel, and compare it with the panel itself, routed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestra.config.stage import Draft, Stage, last_panel
from orchestra.config.trained import EACH

NO_PANEL = "there is no panel before it; train experts first (`expert:` of an sft or grpo stage)"


class OfPanelStage(Stage):
    """A stage that takes up the last panel before it, whose own evaluation is that of the routed panel."""

    def panel(self, earlier: Sequence[Stage]) -> str | None:
        return last_panel(earlier)

    def parents(self, earlier: Sequence[Stage]) -> tuple[str, ...]:
        return ()

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


def may_give_panel(draft: Draft) -> bool:
    """Whether a stage that could not be read may."""
    read = {stage.name for stage in draft.stages}
    return any(kind is None or "panel" in kind.gives for name, kind in draft.kinds.items() if name not in read)
