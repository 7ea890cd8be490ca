"""The experts of a panel as far as a recipe says which they are, before any of it has run: each kind of stage says what
it makes of those before it (`Stage.experts`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
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
        trained_in: the stages that train it, the last one last; before it was cloned or got another name, too.
        called: its earlier names, the last one last; of a clone also those of the expert that it was cloned from.
        sure: whether no run can have removed it by then.
    """

    name: str
    made_in: Stage
    trained_in: tuple[Stage, ...] = ()
    called: tuple[str, ...] = ()
    several: bool = False
    sure: bool = True

    def renamed(self, name: str) -> PlannedExpert:
        """The same under another name."""
        return replace(self, name=name, called=(*self.called, self.name))

    def goes_back_to(self, other: PlannedExpert) -> bool:
        """Whether it was the other one at an earlier time."""
        trained = self.trained_in[: len(other.trained_in)]
        return (self.made_in, trained) == (other.made_in, other.trained_in)


@dataclass(frozen=True)
class PlannedPanel:
    """The experts in their order.

    Fields:
        routed: whether a router knows just these, and what the removal of each would cost is predicted.
        before: the panel to which `undo` goes back.
        unsure: whether a stage with a fault in it may have made anything of it.
    """

    experts: tuple[PlannedExpert, ...] = ()
    routed: bool = False
    before: PlannedPanel | None = None
    unsure: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are known."""
        return tuple(expert.name for expert in self.experts if not expert.several)

    @property
    def known(self) -> bool:
        """Whether these are all, and there is no doubt about any."""
        return not self.unsure and all(expert.sure and not expert.several for expert in self.experts)

    def get(self, name: str, *, several: bool = False) -> PlannedExpert | None:
        """The expert of that name, if it is known."""
        return next((one for one in self.experts if (one.name, one.several) == (name, several)), None)

    def meant(self, name: str) -> PlannedExpert | None:
        """The expert of that name, or one of several that may have it."""
        several = (replace(one, name=name, several=False) for one in self.experts if one.several)
        return self.get(name) or next(several, None)

    def surely(self, name: str) -> bool:
        """Whether it is there whatever the run does."""
        found = self.get(name)
        return not self.unsure and found is not None and found.sure

    def unknown(self, name: str, *also: str) -> str | None:
        """What is wrong where a recipe names an expert that cannot be there. `also`: words that may stand for it."""
        if not self.known or name in self.names:
            return None
        listed = ", ".join(self.names) or "none"
        return f"{name!r} is no expert that is there by then (experts: {listed}){near(name, (*self.names, *also))}"

    def perhaps(self, names: Collection[str] | None) -> tuple[PlannedExpert, ...]:
        """The experts that may be of these names; None stands for any name."""
        return tuple(one for one in self.experts if names is None or one.name in ((EACH,) if one.several else names))

    def with_expert(self, expert: PlannedExpert) -> PlannedPanel:
        """With this one in its place or as the last, and no router; what was before can then not be brought back."""
        same = (expert.name, expert.several)
        experts = tuple(expert if (one.name, one.several) == same else one for one in self.experts)
        return PlannedPanel(experts if expert in experts else (*experts, expert), unsure=self.unsure)


def planned_panel(stages: Iterable[Stage]) -> PlannedPanel:
    """What these stages make, one after the other."""
    panel = PlannedPanel()
    for stage in stages:
        panel = stage.experts(panel)
    return panel


def panel_before(stage: Stage, draft: Draft) -> PlannedPanel:
    """What a stage of a recipe that is still being read takes up."""
    panel = planned_panel(draft.before(stage))
    return replace(panel, unsure=True) if may_give_panel(draft) else panel


def may_give_panel(draft: Draft) -> bool:
    """Whether a stage that could not be read may."""
    return any(kind is None or "panel" in kind.gives for kind in draft.unread)


def called_in(stages: Sequence[Stage], expert: str, earlier: str) -> tuple[str, ...]:
    """What an expert of the panel that these stages make was called after an earlier one of them; where only the run
    says that, the names that it may have had, the likeliest first. None where it was not there, whoever had its name.
    """
    found = planned_panel(stages).meant(expert)
    if found is None:
        return (expert,)
    there = planned_panel(stages[: [stage.name for stage in stages].index(earlier) + 1])
    names = (found.name, *reversed(found.called))
    known = [name for name in names if (one := there.get(name)) is not None and found.goes_back_to(one)]
    perhaps = there.unsure or any(one.several and found.goes_back_to(one) for one in there.experts)
    return tuple(known[:1]) or (names if perhaps else ())
