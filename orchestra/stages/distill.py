"""distill: a teacher's traces, sampled, verified and filtered, for sft stages to imitate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from orchestra.config.checks import single_policy_faults
from orchestra.config.stage import Draft, Gives, Stage
from sft.settings import DistillSettings

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.report.data import StageRecord
    from orchestra.report.parts import Part
    from orchestra.run.ledger import StageResult
    from orchestra.run.progress import Bar
    from orchestra.work.context import StageContext
    from rewards.problems import Asked

SELF = "self"


class DistillStage(Stage, DistillSettings):
    """A teacher's traces, sampled and verified (sft/distill.py)."""

    gives: ClassVar[frozenset[Gives]] = frozenset({"traces"})
    reads: ClassVar[tuple[str, ...]] = (
        "model", "problems", "rollouts.engine", "rollouts.dtype", "rollouts.max_prompt_tokens",
    )  # fmt: skip

    kind: Literal["distill"]
    """distill"""

    def parents(self, earlier: Sequence[Stage]) -> tuple[str, ...]:
        """Only its own policy, asked as the teacher, is taken up."""
        return super().parents(earlier) if self.teacher == SELF else ()

    def faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        if self.teacher == SELF:
            yield from single_policy_faults(self, draft)
        # the base has one engine, and that serves whatever policy was trained last
        model = draft.sections.get("model")
        if model is not None and self.teacher == model.base:
            yield (
                "teacher",
                (f"{self.teacher!r} is the base itself; write `teacher: self` and `parent: base` to sample from it"),
            )

    def other_models(self) -> tuple[str, ...]:
        return () if self.teacher == SELF else (self.teacher,)

    def trains_on(self, recipe: Recipe) -> tuple[tuple[str, int | None], ...]:
        return ((recipe.problems.train, recipe.problems.train_limit),)

    def longest_completion(self, recipe: Recipe) -> int:
        return self.max_tokens

    def plan(self, estimator: Estimator) -> StagePlan:
        own = self.teacher == SELF
        teacher = None if own else estimator.shape(self.teacher)
        asked = estimator.training_problems(self.problems)
        work = estimator.generate(teacher or estimator.base, asked * self.samples, self.max_tokens)
        data = f"{estimator.recipe.problems.train} ({asked:,})"
        parent = None if own else self.teacher
        return estimator.row(self, work, estimator.serving(teacher), data=data, parent=parent)

    def summary(self, recipe: Recipe) -> str:
        problems = f"{self.problems:,}" if self.problems else "all"
        return f"distill, {self.samples} samples for {problems} problems from {self.teacher}"

    @classmethod
    def report(cls, record: StageRecord) -> Iterator[Part]:
        from orchestra.report.parts import Counts

        if record.statistics:
            yield Counts(record.name, record.statistics)

    def run(self, context: StageContext) -> StageResult:
        from models.base import spoken_to
        from models.prompts import missing_opening, render_prompt
        from orchestra.work.policies import serve, start_policy
        from sft.distill import sample_traces

        resources = context.resources
        own = self.teacher == SELF
        teacher = context.recipe.model.base if own else self.teacher
        if not own:
            spoken = spoken_to(teacher, None)
            if spoken.other is not None:
                context.progress.say(f"    {teacher} is asked in {spoken.format} prompts: {spoken.why}")
        asked = resources.train(teacher, self.problems)
        # of the same problem as training will ask it
        trained = render_prompt(resources.tokenizer(), resources.format.messages(asked.problems[0].question))
        engine = serve(context, start_policy(context)).engine if own else resources.engine(teacher)
        with context.progress.bar(f"{self.name}: sample", len(asked.problems), "problems") as bar:
            sample_traces(
                engine,
                asked,
                self,
                context.folder,
                seeds=[context.seed + 1000 * i for i in range(len(asked.problems))],
                progress=_reached(bar),
                opening=missing_opening(asked.prompts[0], trained),
                processes=context.processes,
            )
        self._release_teacher(context)
        return self._chosen(context, asked)

    def _release_teacher(self, context: StageContext) -> None:
        """Its engine's memory is taken back unless a later stage asks the same teacher."""
        stages = context.recipe.stages
        later = {model for stage in stages[stages.index(self) + 1 :] for model in stage.other_models()}
        for model in self.other_models():
            if model not in later:
                context.resources.release(model)

    def _chosen(self, context: StageContext, asked: Asked) -> StageResult:
        from sft.distill import choose_traces

        resources = context.resources
        found = context.once(
            lambda: choose_traces(
                asked.problems, context.folder, self, resources.domain, resources.format, resources.tokenizer()
            )
        )
        correct = found.correct / max(found.sampled, 1)
        dropped = ", ".join(f"{reason} {count}" for reason, count in found.dropped.items()) or "none"
        context.progress.say(
            f"    {found.sampled:,} sampled, {correct:.1%} correct, {found.kept:,} kept (dropped: {dropped})"
        )
        result = context.result(left_out=asked.left_out, kept=found.kept, teacher_accuracy=correct)
        return replace(result, tokens=found.sampled_tokens)


def _reached(bar: Bar) -> Callable[[int], None]:
    """From counts of problems to the bar's place; the first count is of what an earlier process did."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        bar.at(done)

    return count
