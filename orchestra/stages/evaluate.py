"""evaluate: a further evaluation of an earlier stage's policy, on other problems or with other sampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from evals.settings import Evaluate
from orchestra.config.checks import single_policy_faults
from orchestra.config.stage import Draft, Gives, Stage
from orchestra.text import percent
from settings import SIZE, Count, FrozenSequence, Refers, Sources, Text, by_form, optional

if TYPE_CHECKING:
    from evals.evaluate import Evaluation
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.report.data import StageRecord
    from orchestra.report.parts import Part
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext


class EvaluateStage(
    Stage,
    optional(
        Evaluate, "samples", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty",
        "greedy", "pass_at_k", "max_completion_tokens",
        otherwise="None: as in `evaluate`.",
    ),
):  # fmt: skip
    """A further evaluation of the parent's policy; what is not said is as in `evaluate`."""

    gives: ClassVar[frozenset[Gives]] = frozenset({"evaluation"})

    kind: Literal["evaluate"]
    """evaluate"""
    problems: Annotated[by_form(Text, Sources) | None, SIZE, Refers("problems")] = None
    """Other held-out problems; or several sets of them, `{gsm8k: openai/gsm8k, own: own.jsonl}`, evaluated one by one:
    the first counts where stages are compared. None: `problems.test`."""
    limit: Annotated[Count | None, SIZE] = None
    """At most this many problems (of each set). None: `problems.test_limit`."""

    def faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        yield from single_policy_faults(self, draft)
        if (settings := draft.sections.get("evaluate")) is not None:
            own = settings.overridden_by(self)
            most = max(own.pass_at_k, default=0)
            if most > own.samples:
                yield "pass_at_k", f"k = {most} needs at least {most} samples (samples: {own.samples})"

    def evaluation(self, recipe: Recipe) -> Evaluate:
        return super().evaluation(recipe).overridden_by(self)

    def held_out(self, recipe: Recipe) -> tuple[str, int | None]:
        return next(iter(self.held_out_sets(recipe).values()))

    def held_out_sets(self, recipe: Recipe) -> Mapping[str, tuple[str, int | None]]:
        source, limit = super().held_out(recipe)
        sources = self.problems if isinstance(self.problems, FrozenSequence) else {"": self.problems or source}
        return {name: (one, self.limit or limit) for name, one in sources.items()}

    def plan(self, estimator: Estimator) -> StagePlan:
        return estimator.row(
            self, estimator.evaluation(self), estimator.serving(), data=self._asked_for(estimator.recipe)
        )

    def summary(self, recipe: Recipe) -> str:
        (parent,) = recipe.parents_of(self.name) or ("base",)
        return f"evaluate {parent} on {self._asked_for(recipe)}"

    def _asked_for(self, recipe: Recipe) -> str:
        """Its problems in a few words: the names of the sets, or the one source."""
        return ", ".join(name or source for name, (source, _) in self.held_out_sets(recipe).items())

    @classmethod
    def report(cls, record: StageRecord) -> Iterator[Part]:
        from orchestra.report.parts import Counts

        if record.sets:
            yield Counts(
                f"{record.name}: accuracy by held-out problems",
                {name: {"problems": len(one.problem_ids)} | _told(one) for name, one in record.sets.items()},
            )

    def run(self, context: StageContext) -> StageResult:
        from orchestra.work.policies import EVALUATION, evaluated, measured, serve, start_policy

        serve(context, start_policy(context))
        found: dict[str, Evaluation] = {}
        left_out = 0
        for name in self.held_out_sets(context.recipe):
            file = f"evaluation-{name}.json" if found else EVALUATION
            found[name], asked = evaluated(context, file=file, of=name)
            left_out += asked.left_out
        first, *others = found.values()
        told: dict[str, float] = {}
        for name, one in found.items() if others else ():
            context.progress.say(f"    {name}: " + ", ".join(f"{key} {text}" for key, text in _told(one).items()))
            told[f"accuracy_{name}"] = one.sampled.accuracy.estimate
        result = replace(context.result(left_out=left_out, **told), tokens=sum(one.tokens for one in others))
        return measured(context, first, result)


def _told(evaluation: Evaluation) -> dict[str, str]:
    """Accuracies with their intervals, for people."""
    passes = {"accuracy": evaluation.sampled, "greedy": evaluation.greedy}
    intervals = {name: one.accuracy for name, one in passes.items() if one is not None}
    return {
        name: f"{percent(one.estimate)} [{percent(one.low)}, {percent(one.high)}]" for name, one in intervals.items()
    }
