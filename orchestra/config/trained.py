"""What the kinds that train have in common: a single policy, or experts of a panel (`expert:`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from models.experts import BASE, name_fault
from models.settings import TrainsExpert
from orchestra.config.experts import EACH, PlannedExpert, PlannedPanel, panel_before, planned_panel
from orchestra.config.stage import Draft, Gives, Stage, last_panel
from orchestra.work.domains import expert_name
from rl.settings import GrpoSettings

if TYPE_CHECKING:
    from models.settings import Lora
    from orchestra.config.recipe import Recipe


class TrainingStage(Stage, TrainsExpert):
    """A stage that trains a policy or experts; see the module docstring."""

    gives: ClassVar[frozenset[Gives]] = frozenset({"policy", "evaluation", "panel"})

    @property
    def given(self) -> frozenset[Gives]:
        """`expert: each` gives no single policy, and a single policy is no panel."""
        if self.expert is None:
            return self.gives - {"panel"}
        return self.gives - {"policy", "imitation"} if self.expert == EACH else self.gives

    @property
    def trains(self) -> str | None:
        return self.expert

    def adapter(self, recipe: Recipe) -> Lora:
        return recipe.model.lora if self.lora is None else recipe.model.lora.overridden_by(self.lora)

    def panel(self, earlier: Sequence[Stage]) -> str | None:
        return last_panel(earlier) if self.expert is not None else None

    def experts(self, before: PlannedPanel) -> PlannedPanel:
        if self.expert is None:
            return before
        start = before.meant(self.starts_from) if self.starts_from != BASE else None
        made_in = self if start is None else start.made_in
        new = self.lora is not None or getattr(self, "from") is not None
        panel, find = before, before.get if new else before.meant
        for name in self.names or (EACH,):
            several = name == EACH
            there = before.get(EACH, several=True) if several else find(name)
            there = there or PlannedExpert(name, made_in, several=several)
            panel = panel.with_expert(replace(there, trained_in=(*there.trained_in, self), sure=True))
        return panel

    def parents(self, earlier: Sequence[Stage]) -> tuple[str, ...]:
        """Of an expert: the last stage that trained it alone, or else the one that it starts from. Of a single policy,
        where nothing is said: the last single policy, which no expert is."""
        if self.expert is None:
            return super().parents([stage for stage in earlier if stage.trains is None])
        if self.expert == EACH:
            return ()
        panel = planned_panel(earlier)
        found = panel.get(self.expert) or panel.get(self.starts_from)
        alone = [stage.name for stage in found.trained_in if "policy" in stage.given] if found is not None else []
        return tuple(alone[-1:])

    @property
    def starts_from(self) -> str:
        """What a new expert starts from."""
        return getattr(self, "from") or BASE

    def said_of_experts(self) -> str:
        """Which expert it trains, for the end of its summary."""
        if self.expert is None:
            return ""
        of = f" of {', '.join(self.domains)}" if self.domains is not None else ""
        return f", an expert for each domain{of}" if self.expert == EACH else f", expert {self.expert}{of}"

    @property
    def names(self) -> tuple[str, ...] | None:
        """The experts that it trains; None where the data says which."""
        if self.expert != EACH:
            return (self.expert,)
        return None if self.domains is None else tuple(dict.fromkeys(map(expert_name, self.domains)))

    def ready(self, recipe: Recipe) -> None:
        from orchestra.work.domains import must_have_problems

        super().ready(recipe)
        if self.expert == EACH or self.domains is not None:
            must_have_problems(recipe, self)

    def faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        before = draft.before(self)
        if self.expert is None:
            for key in ("from", "domains"):
                if getattr(self, key) is not None:
                    yield key, "only of an expert: say which one with `expert: name`"
            if self.optimizer != "fresh":
                yield "optimizer", "only of an expert is it kept: say which one with `expert: name`"
            if self.lora is not None and (goes_on := self.parents(before)):
                yield "lora", f"only of a new adapter, and this stage goes on with that of {goes_on[0]!r}"
            return
        if self.parent is not None:
            yield (
                "parent",
                f"an expert does not take up a stage's policy; write `from: expert` instead of {self.parent!r}",
            )
        if self.expert != EACH and (fault := name_fault(self.expert)):
            yield "expert", fault
        panel = panel_before(self, draft)
        if self.expert != EACH and panel.surely(self.expert):
            for key in ("from", "lora"):
                if getattr(self, key) is not None:
                    yield key, f"only of a new expert; {self.expert!r} is there already"
        elif self.starts_from != BASE and self.lora is not None:
            yield "lora", f"an expert from {self.starts_from!r} has that one's adapter; leave `lora` out, or `from`"
        elif self.starts_from != BASE and (fault := panel.unknown(self.starts_from, BASE)):
            yield "from", fault


class OptimisingStage(TrainingStage, GrpoSettings):
    """A stage that optimises a policy or experts for the reward."""
