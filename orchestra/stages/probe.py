"""probe: what training did to a policy's next-token distributions, at locks and at forks, against another policy's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from evals.settings import ProbeSettings
from models.experts import BASE
from orchestra.config.checks import single_policy_faults
from orchestra.config.stage import EVALUATION, Draft, Stage
from settings import Refers, Text

if TYPE_CHECKING:
    from evals.probe import Group
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.report.data import StageRecord
    from orchestra.report.parts import Part
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext

FILE = "probe.json"
# (number, title, unit) of the charts
CHARTS = (
    ("kept", "Kept mass", "mass at temperature 1 on the tokens that survived truncation before"),
    ("survivors", "Survivors", "tokens that survive truncation"),
    ("entropy", "Entropy", "nats, at temperature 1"),
    ("drawn_entropy", "Entropy of what is drawn", "nats, after temperature and truncation"),
    ("pull", "Pull of self-distillation", "half the L1 distance to what was drawn from before"),
)


class ProbeStage(Stage, ProbeSettings):
    """The parent's next-token distributions against another policy's, on both policies' answers."""

    # an evaluation's samplings, but it is none
    reads: ClassVar[tuple[str, ...]] = (
        "model", *EVALUATION, "rollouts.max_completion_tokens", "evaluate.temperature", "evaluate.top_p",
        "evaluate.confidence", "evaluate.max_completion_tokens",
    )  # fmt: skip
    outputs: ClassVar[tuple[str, ...]] = (FILE,)

    kind: Literal["probe"]
    """probe"""
    against: Annotated[Text, Refers("policy", also=(BASE,))] = BASE
    """The policy before: `base`, or an earlier stage. It alone decides what is a lock and what a fork."""

    def faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        yield from single_policy_faults(self, draft)
        # a stage that could not be read may be the parent
        if self.parent is not None or not draft.unread:
            (parent,) = self.parents(draft.before(self)) or (BASE,)
            if parent == self.against:
                yield "against", f"{parent!r} is what is probed; name another stage, or put one that trains before it"

    def longest_completion(self, recipe: Recipe) -> int:
        return self.evaluation(recipe).max_completion_tokens

    def plan(self, estimator: Estimator) -> StagePlan:
        from orchestra.plan.estimate import FLOPS_FORWARD

        limit = self.longest_completion(estimator.recipe)
        tokens, answering = estimator.generate(estimator.base, 2 * self.problems, limit)
        # who wrote it, whether it is right, how long it is
        carriers = min(4 * self.length_bands * self.carriers, 2 * self.problems)
        length = int(estimator.prompt + limit * estimator.length_share)
        reading = estimator.train(2 * carriers * length, 2 * carriers, FLOPS_FORWARD)
        memory = estimator.serving() | {"parameters": estimator.frozen(4)}
        return estimator.row(self, (tokens, answering + reading), memory, data=f"against {self.against}")

    def summary(self, recipe: Recipe) -> str:
        (parent,) = recipe.parents_of(self.name) or (BASE,)
        return f"probe {parent} against {self.against}"

    @classmethod
    def report(cls, record: StageRecord) -> Iterator[Part]:
        from pydantic import TypeAdapter, ValidationError

        from evals.probe import Group
        from orchestra.report.charts import Movement, movement_chart
        from orchestra.report.parts import Chart, Counts

        found = record.outputs.get(FILE, {})
        try:
            groups = TypeAdapter(dict[str, Group]).validate_python(found.get("groups", {}))
        except ValidationError:  # of another version
            return
        if not groups:
            return
        before, after = found.get("before", "?"), found.get("after", "?")
        shown = [group for group in groups.values() if group.of != "kind"]
        for number, title, unit in CHARTS:
            changes = [(group.name, group.numbers[number]) for group in shown]
            rows = [Movement(name, c.before, c.after, c.difference.low, c.difference.high) for name, c in changes]
            svg = movement_chart(f"{record.name}-{number}".replace("_", "-"), title, rows)
            yield Chart(f"{record.name}: {title.lower()}", f"{unit}; hollow {before}, filled {after}", svg)
        yield Counts(f"Places of {record.name}", {
            "places": {group.name: group.places for group in groups.values()},
            "share where another token is the likeliest": {
                group.name: f"{group.changed.value:.1%}{_interval(group.changed.low, group.changed.high, 100)}"
                for group in groups.values()
            },
        })  # fmt: skip

    def run(self, context: StageContext) -> StageResult:
        from orchestra.run.ledger import write_json
        from orchestra.work.probing import as_json, probe

        found = probe(context, self.against, self)
        tokenizer = context.resources.tokenizer()
        written = as_json(found, (self.against, context.parent or BASE), lambda token: tokenizer.decode([token]))
        context.once(lambda: write_json(context.folder / FILE, written))
        groups = {group.name: group for group in found.groups}
        context.progress.say(f"    {said(groups)}")
        return replace(context.result(**_numbers(groups)), tokens=found.tokens)


def said(groups: Mapping[str, Group]) -> str:
    """One line: how many places, and what is known of locks and forks."""
    whole, parts = groups["all"], []
    for name in ("lock", "fork"):
        if (group := groups.get(name)) is None:
            parts.append(f"no {name}s")
            continue
        kept, entropy = group.numbers["kept"].difference, group.numbers["entropy"].difference
        parts.append(
            f"{group.places} {name}s (top-1 changed {group.changed.value:.1%}, "
            f"kept mass {kept.value:+.3f}{_interval(kept.low, kept.high)}, "
            f"entropy {entropy.value:+.3f}{_interval(entropy.low, entropy.high)})"
        )
    return f"{whole.places} places in {whole.carriers} carriers: {', '.join(parts)}"


def _numbers(groups: Mapping[str, Group]) -> dict[str, float]:
    """What the result says; all the rest is in probe.json."""
    whole = groups["all"]
    told: dict[str, float] = {"carriers": whole.carriers, "places": whole.places, "top1_changed": whole.changed.value}
    for name in ("lock", "fork"):
        told[f"{name}_places"] = groups[name].places if name in groups else 0
        if name in groups:
            told[f"{name}_top1_changed"] = groups[name].changed.value
            changes = {number: groups[name].numbers[number].difference.value for number in ("kept", "entropy", "pull")}
            told |= {f"{name}_{number}_change": change for number, change in changes.items()}
    return told


def _interval(low: float | None, high: float | None, scale: float = 1) -> str:
    if low is None or high is None:
        return ""
    return f" [{scale * low:.1f}, {scale * high:.1f}]" if scale != 1 else f" [{low:+.3f}, {high:+.3f}]"
