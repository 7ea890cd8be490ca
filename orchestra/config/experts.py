"""The experts of a panel as far as a recipe says which they are, before any of it has run: each kind of stage says what
it makes of those before it (`Stage.experts`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from settings import near

if TYPE_CHECKING:
    from orchestra.config.stage import Draft, Stage

EACH = "each"
"""One expert for each domain of the data."""


@dataclass(frozen=True)
class PlannedExpert:
    """An expert, or `several` of which only the data or the run says how many and which.

    Fields:
        name: of several, `each` or that of the stage that makes them.
        made_in: the stage that makes the adapter, or the one from whose expert it was copied.
        trained_in: the stages that train it, the last one last; under other names and before it was cloned, too.
    """

    name: str
    made_in: Stage
    trained_in: tuple[Stage, ...] = ()
    several: bool = False


@dataclass(frozen=True)
class PlannedPanel:
    """The experts in their order.

    Fields:
        routed: whether a router knows just these, and what the removal of each would cost is predicted.
        before: the panel to which `undo` goes back.
    """

    experts: tuple[PlannedExpert, ...] = ()
    routed: bool = False
    before: PlannedPanel | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are known."""
        return tuple(expert.name for expert in self.experts if not expert.several)

    @property
    def known(self) -> bool:
        """Whether there are no others."""
        return not any(expert.several for expert in self.experts)

    def get(self, name: str, *, several: bool = False) -> PlannedExpert | None:
        """The expert of that name, if it is known."""
        return next((one for one in self.experts if (one.name, one.several) == (name, several)), None)

    def unknown(self, name: str, *also: str) -> str | None:
        """What is wrong where a recipe names an expert that cannot be there. `also`: words that may stand for it."""
        if not self.known or name in self.names:
            return None
        listed = ", ".join(self.names) or "none"
        return f"{name!r} is no expert that is there by then (experts: {listed}){near(name, (*self.names, *also))}"

    def perhaps(self, names: Collection[str] | None) -> tuple[PlannedExpert, ...]:
        """The experts that may be of these names; None stands for any name."""
        return tuple(one for one in self.experts if names is None or one.name in (*names, EACH))

    def with_expert(self, expert: PlannedExpert) -> PlannedPanel:
        """With this one in its place or as the last, and no router; what was before can then not be brought back."""
        if self.get(expert.name, several=expert.several) is None:
            return PlannedPanel((*self.experts, expert))
        same = (expert.name, expert.several)
        return PlannedPanel(tuple(expert if (one.name, one.several) == same else one for one in self.experts))


def planned_panel(stages: Iterable[Stage]) -> PlannedPanel:
    """What these stages make, one after the other."""
    panel = PlannedPanel()
    for stage in stages:
        panel = stage.experts(panel)
    return panel


def panel_before(stage: Stage, draft: Draft) -> PlannedPanel:
    """What a stage of a recipe that is still being read takes up."""
    panel = planned_panel(draft.before(stage))
    if not may_give_panel(draft):
        return panel
    return replace(panel, experts=(*panel.experts, PlannedExpert("", stage, several=True)))


def may_give_panel(draft: Draft) -> bool:
    """Whether a stage that could not be read may."""
    read = {stage.name for stage in draft.stages}
    return any(kind is None or "panel" in kind.gives for name, kind in draft.kinds.items() if name not in read)
