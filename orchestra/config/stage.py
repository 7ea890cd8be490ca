"""What every kind of stage is: the base class of the files in `orchestra/stages/`.

A kind is one class in one file there. Its fields are what may stand in the recipe; the rest says what the program has
to know of it, and has a default where most kinds agree: what it gives to later stages, whose policies it takes up, what
must hold between it and earlier stages, which parts of the recipe and which files decide its outcome, what it will
take, what is said of it in a line and shown of it in the report, and how it is run. Nothing else knows the kinds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from settings import FREE, Node, Refers, Slug, Text

if TYPE_CHECKING:
    from evals.settings import Evaluate
    from models.settings import Lora
    from orchestra.config.experts import PlannedPanel
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.report.data import StageRecord
    from orchestra.report.parts import Part, Tile
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext
    from orchestra.work.preflighted import Preflighted

Gives = Literal["policy", "imitation", "traces", "evaluation", "panel"]
ROUTES = "routes.json"
"""Who answered each held-out problem of a panel's evaluation, in their order: names of experts, or `base`."""
OUTPUTS: Mapping[Gives, tuple[str, ...]] = {
    "policy": ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"),
    "traces": ("traces.jsonl",),
    "evaluation": ("evaluation.json",),
    "panel": ("panel/panel.json", ROUTES),
}
"""The files by which a stage gives something to later ones; hashed when it is finished."""

EVALUATION = (
    *("problems.domain", "problems.test", "problems.format", "problems.test_limit"),
    *("rollouts.engine", "rollouts.sync", "rollouts.dtype", "rollouts.max_prompt_tokens"),
)
"""The parts of a recipe that decide an evaluation, besides the policy and how the stage is evaluated."""


class Gate(Node):
    """A stage's pass condition; a stage that misses it stops the recipe."""

    metric: Literal["accuracy", "greedy_accuracy", "format_rate"] = "accuracy"
    """What is compared."""
    against: Annotated[Text, Refers("evaluation", also=("base", "previous"))] = "previous"
    """`base`, `previous` (the evaluated stage before this one) or the name of an earlier stage."""
    min_difference: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """The metric may not be less than the other's plus this; -0.01 allows a loss of one point."""


@dataclass(frozen=True)
class Verdict:
    """What a kind itself says of a finished stage, whatever gate stands on it; the reason has the numbers."""

    go: bool
    reason: str


class Stage(Node):
    """One stage of a recipe; see the module docstring."""

    gives: ClassVar[frozenset[Gives]] = frozenset()
    """What later stages may take from it. A `policy` is an adapter, an `imitation` the policy that KL is also measured
    to, `traces` are data to imitate, an `evaluation` is what gates and comparisons look at, a `panel` is experts."""
    reads: ClassVar[tuple[str, ...]] = ("model",)
    """The parts of the recipe, besides the stage itself and its evaluation (`EVALUATION`), that decide its outcome."""
    outputs: ClassVar[tuple[str, ...]] = ()
    """Further files that are hashed when the stage is finished; those by which it gives something are anyway."""

    written: ClassVar[bool] = True
    """Whether it stands in recipes; the base's evaluation, stage 00 of every run, does not."""

    kind: str
    name: Slug
    """Lower-case letters, digits, '-' and '_'; unique in the recipe; names the stage's folder."""
    parent: Annotated[Text | None, Refers("policy", also=("base",))] = None
    """The earlier stage whose policy this one takes up, or `base`. None: the nearest stage before it that gives one
    (sft, grpo, merge)."""
    gate: Annotated[Gate | None, FREE] = None
    """Pass condition, judged after the stage."""

    # between stages

    @property
    def given(self) -> frozenset[Gives]:
        """What this stage gives, as it is written: of a kind's `gives` all, or those that its settings make it give."""
        return self.gives

    @property
    def trains(self) -> str | None:
        """The expert that it trains, if it trains one."""
        return None

    def adapter(self, recipe: Recipe) -> Lora:
        """A new adapter, where it makes one."""
        return recipe.model.lora

    def panel(self, earlier: Sequence[Stage]) -> str | None:
        """The earlier stage whose panel of experts this one takes up; None: it has nothing to do with any."""
        return None

    def experts(self, before: PlannedPanel) -> PlannedPanel:
        """The panel's experts after it, as far as that is known beforehand."""
        return before

    def traces_seen(self, earlier: Sequence[Stage]) -> tuple[str, ...]:
        """The earlier stages whose traces it looks at without naming them."""
        return ()

    def parents(self, earlier: Sequence[Stage]) -> tuple[str, ...]:
        """The earlier stages whose policies this one takes up; none is the base with a fresh adapter."""
        if self.parent is not None:
            return () if self.parent == "base" else (self.parent,)
        trained = [stage.name for stage in earlier if "policy" in stage.given]
        return tuple(trained[-1:])

    def faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        """(key, message) for what is wrong between this stage, those before it and the rest of the recipe.

        That names of models, files and stages mean something is judged by the fields' `Refers`.
        """
        return iter(())

    # what it works with

    def evaluation(self, recipe: Recipe) -> Evaluate:
        """How it is evaluated, `max_completion_tokens` filled in."""
        limit = recipe.evaluate.max_completion_tokens or recipe.rollouts.max_completion_tokens
        return recipe.evaluate.model_copy(update={"max_completion_tokens": limit})

    def held_out(self, recipe: Recipe) -> tuple[str, int | None]:
        """The problems it is evaluated on: their source, and how many at most."""
        return recipe.problems.test, recipe.problems.test_limit

    def held_out_sets(self, recipe: Recipe) -> Mapping[str, tuple[str, int | None]]:
        """All problems that it is evaluated on, by name where there are several sets: those of `held_out` come first,
        in evaluation.json, any other set is in evaluation-<name>.json."""
        return {"": self.held_out(recipe)}

    def trains_on(self, recipe: Recipe) -> tuple[tuple[str, int | None], ...]:
        """The problems that it trains on, or has traces made of: (source, how many at most)."""
        return ()

    def asks_validation(self) -> bool:
        """Whether it is asked the problems of `problems.validation` on the way."""
        return False

    def imitates(self, recipe: Recipe) -> Mapping[str, int]:
        """The texts that it trains on: by source (an earlier stage's name, or a file) the longest example, in tokens
        with its prompt."""
        return {}

    def preflights(self, recipe: Recipe) -> Preflighted | None:
        """What it reads under the policy that it starts from, before it does anything else."""
        return None

    def other_models(self) -> tuple[str, ...]:
        """Models besides the base that it asks, each through an engine of its own."""
        return ()

    def longest_completion(self, recipe: Recipe) -> int:
        """Tokens of the longest completion that it asks the base's engine (or another model's) for."""
        return self.evaluation(recipe).max_completion_tokens if "evaluation" in self.gives else 0

    # what is said of it

    def plan(self, estimator: Estimator) -> StagePlan:
        """What it will take: here, its evaluation beside the engine."""
        return estimator.row(self, estimator.evaluation(self), estimator.serving())

    def summary(self, recipe: Recipe) -> str:
        """What it is about to do, in a few words."""
        parents = ", ".join(recipe.parents_of(self.name)) or "base"
        return f"{self.kind} {parents}"

    @classmethod
    def report(cls, record: StageRecord) -> Iterator[Part]:
        """What the report shows of a stage of this kind beside its row in the tables."""
        return iter(())

    @classmethod
    def headline(cls, evaluated: Sequence[StageRecord]) -> Iterator[Tile]:
        """Numbers for the top of the report, from the evaluated stages of a run in their order."""
        return iter(())

    def verdict(self, result: StageResult) -> Verdict | None:
        """Whether the recipe may go on after this result; None where the kind has nothing to say of that."""
        return None

    # the work

    def ready(self, recipe: Recipe) -> None:
        """What can be known before a run, which takes hours, of whether the stage can do its work then.

        Raises:
            UserError: it cannot.
        """
        if self.asks_validation():
            from orchestra.work.held_out import validation

            validation(recipe)

    def run(self, context: StageContext) -> StageResult:
        """Do it."""
        raise TypeError(f"{type(self).__name__} says nothing of how it is run")


def last_panel(earlier: Sequence[Stage]) -> str | None:
    """The last of these stages that gives a panel."""
    return next((stage.name for stage in reversed(earlier) if "panel" in stage.given), None)


@dataclass(frozen=True)
class Draft:
    """A recipe as far as it could be read, seen from one of its stages.

    Fields:
        sections: the recipe's parts other than its stages; one with a fault in it is missing.
        stages: those before this one that could be read.
        kinds: of every named stage before this one, readable or not; None where the kind is unknown.
        unread: the kinds of those that could not be read, named or not.
        processes: that a run now would have.
    """

    sections: Mapping[str, Node]
    stages: tuple[Stage, ...] = ()
    kinds: Mapping[str, type[Stage] | None] = field(default_factory=dict)
    unread: tuple[type[Stage] | None, ...] = ()
    processes: int = 1

    def parent_of(self, stage: Stage) -> Stage | None:
        """The first of the stages that this one takes its policy from, if it could be read."""
        names = stage.parents(self.before(stage))
        return next((other for other in self.stages if other.name in names[:1]), None)

    def before(self, stage: Stage) -> tuple[Stage, ...]:
        """The readable stages before this one."""
        return self.stages[: self.stages.index(stage)] if stage in self.stages else self.stages
