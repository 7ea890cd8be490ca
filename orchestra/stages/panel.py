"""panel: one change of the panel by hand: an expert is added, cloned, removed or renamed, or that is undone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from models.experts import RemovalRecord, name_fault
from models.settings import PanelChange
from orchestra.config.experts import PlannedExpert, PlannedPanel, panel_before
from orchestra.config.routed import NO_PANEL, PanelStage
from orchestra.config.stage import Draft, Gives, Verdict
from orchestra.text import removal_line
from orchestra.work.settings import REMOVAL

if TYPE_CHECKING:
    from models.settings import Lora
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.report.data import StageRecord
    from orchestra.report.parts import Part
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext

NEEDED: Mapping[str, tuple[str, ...]] = {
    "add": ("expert", "folder"),
    "clone": ("expert", "to"),
    "remove": ("expert",),
    "rename": ("expert", "to"),
    "undo": (),
}
POSSIBLE: Mapping[str, tuple[str, ...]] = {"add": ("domains",), "remove": ("may_cost",)}
KEYS = tuple(key for key in PanelChange.model_fields if key != "change")


class ChangeStage(PanelStage, PanelChange):
    """The last panel with one expert more, less, or under another name; every other one stays as it is, byte for byte,
    and a later stage of this kind can undo it."""

    gives: ClassVar[frozenset[Gives]] = frozenset({"panel"})
    reads: ClassVar[tuple[str, ...]] = ("model.base",)

    kind: Literal["panel"]
    """panel"""

    def faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        if self.parent is not None:
            yield "parent", f"it changes the last panel before it and takes up no policy; leave {self.parent!r} out"
        misused = list(self._misused())
        yield from misused
        panel = panel_before(self, draft)
        if not misused and not panel.unsure:
            yield from self._against(panel)

    def _misused(self) -> Iterator[tuple[str, str]]:
        needed = NEEDED[self.change]
        for key in KEYS:
            given = getattr(self, key) is not None
            if key in needed and not given:
                yield key, f"`change: {self.change}` needs it"
            elif given and key not in (*needed, *POSSIBLE.get(self.change, ())):
                changes = [one for one in NEEDED if key in (*NEEDED[one], *POSSIBLE.get(one, ()))]
                yield key, f"only of `change: {'`, `'.join(changes)}`, and this is `{self.change}`; leave it out"

    def _against(self, panel: PlannedPanel) -> Iterator[tuple[str, str]]:
        """What does not fit the experts that there will be."""
        listed = ", ".join(panel.names)
        if self.change != "add" and not panel.experts:
            yield "kind", NO_PANEL
            return
        if self.change in ("clone", "remove", "rename") and (fault := panel.unknown(self.expert)):
            yield "expert", fault
        key, new = ("expert", self.expert) if self.change == "add" else ("to", self.to)
        if new is not None and (fault := name_fault(new)):
            yield key, fault
        elif new is not None and panel.surely(new):
            yield key, f"there is an expert {new!r} already (experts: {listed}); choose another name"
        if self.change == "remove" and not panel.routed:
            yield (
                "change",
                "what a removal will cost is predicted by a stage that routes, and none has looked at this panel since "
                "its experts were last changed; put a `route` stage before it",
            )
        elif self.change == "remove" and panel.known and panel.names == (self.expert,):
            yield "expert", f"{self.expert!r} is the last expert there is, and a panel has one; leave the stage out"
        if self.change == "undo" and panel.before is None:
            yield "change", "there is nothing to undo: no stage of this kind is the last that changed the panel"
        elif self.change == "undo" and not panel.before.experts:
            yield "change", f"without {listed!r}, which was added first, there is no panel; leave both stages out"

    def experts(self, before: PlannedPanel) -> PlannedPanel:
        if before.unsure or any(self._misused()):
            return replace(before, unsure=True)
        if self.change == "undo":
            return before.before or before
        old, there = before.meant(self.expert), before.experts
        if self.change == "add":
            there = (*there, PlannedExpert(self.expert, self))
        elif self.change == "remove":
            there = tuple(one for one in there if one is not old)
        elif old is not None:
            new = old.renamed(self.to)
            renames = self.change == "rename" and old in there
            there = tuple(new if one is old else one for one in there) if renames else (*there, new)
        return PlannedPanel(there, routed=before.routed and self.change == "rename", before=before)

    def adapter(self, recipe: Recipe) -> Lora:
        """That of the folder, where it is one; `ready` says what is wrong with it."""
        from models.expert_files import PanelError, adapter_config

        try:
            rank = adapter_config(Path(self.folder))["r"] if self.folder is not None else recipe.model.lora.rank
        except PanelError:
            rank = recipe.model.lora.rank
        return recipe.model.lora.model_copy(update={"rank": rank})

    def plan(self, estimator: Estimator) -> StagePlan:
        panel = estimator.recipe.panel_of(self.name)
        # what is added is tried on the base
        memory = estimator.panel((self.adapter(estimator.recipe),)) if self.change == "add" else estimator.serving()
        return estimator.row(self, (0, 0.0), memory, parent=panel, data=self.told)

    @property
    def told(self) -> str:
        """The change in words."""
        name = "" if self.expert is None else f" {self.expert}"
        return {
            "add": f"add{name} from {self.folder}",
            "clone": f"clone{name} as {self.to}",
            "remove": f"remove{name}",
            "rename": f"rename{name} to {self.to}",
            "undo": "undo",
        }[self.change]

    def summary(self, recipe: Recipe) -> str:
        panel = recipe.panel_of(self.name)
        return f"{self.told}, in {'a new panel' if panel is None else f'the panel of {panel}'}"

    def ready(self, recipe: Recipe) -> None:
        from models.panel_changes import outside_expert

        super().ready(recipe)
        if self.change == "add":
            outside_expert(self.expert, Path(self.folder), self.domains or (), recipe.model.base)

    def verdict(self, result: StageResult) -> Verdict | None:
        cost = _predicted(result)
        if self.may_cost is None or cost is None or cost.low >= -self.may_cost:
            return None
        return Verdict(False, f"{removal_line(self.expert, cost)}, and it may cost {100 * self.may_cost:g} (may_cost)")

    @classmethod
    def report(cls, record: StageRecord) -> Iterator[Part]:
        from orchestra.report.parts import Counts

        if record.result is None:
            return
        cost = _predicted(record.result)
        predicted = {} if cost is None else {"predicted beforehand": removal_line(record.config["expert"], cost)}
        yield Counts(f"{record.name}: the panel changed by hand", {"change": record.result.extra["change"]} | predicted)

    def run(self, context: StageContext) -> StageResult:
        from orchestra.work.changing import change_panel

        return change_panel(context, self)


def _predicted(result: StageResult) -> RemovalRecord | None:
    """What a removal was predicted to cost before it was done."""
    told = {name.removeprefix(REMOVAL): value for name, value in result.extra.items() if name.startswith(REMOVAL)}
    return RemovalRecord(**told) if told else None
