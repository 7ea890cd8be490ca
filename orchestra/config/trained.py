"""What the kinds that train have in common: a single policy, or experts of a panel (`expert:`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from models.experts import BASE, name_fault
from models.settings import TrainsExpert
from orchestra.config.stage import Draft, Gives, Stage, last_panel
from orchestra.work.domains import expert_name
from rl.settings import GrpoSettings
from settings import near

if TYPE_CHECKING:
    from models.settings import Lora
    from orchestra.config.recipe import Recipe

EACH = "each"


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

    def parents(self, earlier: Sequence[Stage]) -> tuple[str, ...]:
        """Of an expert: the last stage that trained it alone, or else the one that it starts from. Of a single policy,
        where nothing is said: the last single policy, which no expert is."""
        if self.expert is None:
            return super().parents([stage for stage in earlier if stage.trains is None])
        experts = {stage.expert: stage.name for stage in earlier if isinstance(stage, TrainingStage)}
        found = experts.get(self.expert, experts.get(self.starts_from)) if self.expert != EACH else None
        return (found,) if found is not None else ()

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

    def trains_same(self, other: Stage) -> bool:
        """Whether an earlier stage has trained the expert that this one trains, or may have trained one of those."""
        if not isinstance(other, TrainingStage) or None in (self.expert, other.expert):
            return False
        own, others = self._names(), other._names()
        return own is None or others is None or not own.isdisjoint(others)

    def _names(self) -> frozenset[str] | None:
        """The experts that it trains; None where the data says which."""
        if self.expert != EACH:
            return frozenset({self.expert})
        return None if self.domains is None else frozenset(map(expert_name, self.domains))

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
        known = known_experts(before)
        if self.expert != EACH and any(self.trains_same(stage) and stage.expert == self.expert for stage in before):
            for key in ("from", "lora"):
                if getattr(self, key) is not None:
                    yield key, f"only of a new expert; {self.expert!r} is there already"
        elif self.starts_from != BASE and self.lora is not None:
            yield "lora", f"an expert from {self.starts_from!r} has that one's adapter; leave `lora` out, or `from`"
        elif self.starts_from != BASE and known is not None and self.starts_from not in known:
            listed = ", ".join(known) or "none"
            start = self.starts_from
            yield (
                "from",
                f"{start!r} is no expert that is there by then (experts: {listed}){near(start, (*known, BASE))}",
            )


class OptimisingStage(TrainingStage, GrpoSettings):
    """A stage that optimises a policy or experts for the reward."""


def known_experts(earlier: Sequence[Stage]) -> tuple[str, ...] | None:
    """The experts that these stages make, where that can be known before they have run."""
    makers = [stage for stage in earlier if isinstance(stage, TrainingStage) and "panel" in stage.given]
    if any(stage.trains in (None, EACH) for stage in makers):
        return None
    return tuple(dict.fromkeys(stage.trains for stage in makers))
