"""export: a policy as files that stand alone, loaded again and compared with it before they count, and published; or
the panel, as a folder that its experts are served from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from orchestra.config.experts import may_give_panel, planned_panel
from orchestra.config.routed import NO_PANEL
from orchestra.config.stage import Draft, Stage, last_panel
from orchestra.work.settings import EXPORT, ExportSettings

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext


class ExportStage(Stage, ExportSettings):
    """The policy as a merged model or its adapter alone, loaded again and compared before it counts; or the panel."""

    outputs: ClassVar[tuple[str, ...]] = (f"{EXPORT}/export.json", f"{EXPORT}/panel.json")

    kind: Literal["export"]
    """export"""

    def panel(self, earlier: Sequence[Stage]) -> str | None:
        return last_panel(earlier) if self.what == "panel" else None

    def parents(self, earlier: Sequence[Stage]) -> tuple[str, ...]:
        return () if self.what == "panel" else super().parents(earlier)

    def faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        before = draft.before(self)
        if self.what == "panel":
            if self.parent is not None:
                yield "parent", f"`what: panel` exports the last panel before it, not {self.parent!r}; leave it out"
            if self.hub is not None:
                yield "hub", f"`what: panel` is a folder only; leave {self.hub!r} out and upload the folder yourself"
            if last_panel(before) is None and not may_give_panel(draft):
                yield "what", f"panel: {NO_PANEL}"
            return
        trained = any(kind is None or "policy" in kind.gives for kind in draft.kinds.values())
        if not trained or self.parent == "base":
            yield "kind", "there is nothing to export; put an sft or grpo stage before it"
        elif self.parent is None:
            yield from self._not_by_accident(before)

    def _not_by_accident(self, before: Sequence[Stage]) -> Iterator[tuple[str, str]]:
        """The nearest policy may be an expert, or older than the panel that the recipe is about."""
        names = [stage.name for stage in before]
        panel, nearest = last_panel(before), (*self.parents(before), None)[0]
        if panel is None or (nearest is not None and names.index(nearest) > names.index(panel)):
            return
        ways = "put a `merge` stage before it, or write `what: panel`"
        if nearest is None:
            yield "parent", f"{panel!r} gives a panel of experts, and no stage a single policy; {ways}"
            return
        experts = planned_panel(before)
        if not experts.known or len(experts.names) != 1 or nearest != panel:
            yield (
                "parent",
                f"not said, it would be {_called(before[names.index(nearest)])} alone, and not the panel of {panel!r}; "
                f"{ways}, or `parent: {nearest}` if that is meant",
            )

    def plan(self, estimator: Estimator) -> StagePlan:
        base = estimator.base
        if self.what == "panel":
            panel = estimator.recipe.panel_of(self.name)
            return estimator.row(self, (0, 0.0), estimator.serving(), parent=panel, data="panel")
        seconds = base.parameters * 8 / 200e6  # read, fold, write, read again
        tokens, answers = estimator.answers(self.check.problems)
        memory = estimator.serving() | estimator.reloaded() | {"parameters": estimator.frozen(4)}
        return estimator.row(self, (tokens, seconds + answers), memory, data=self.hub or "")

    def summary(self, recipe: Recipe) -> str:
        if self.what == "panel":
            return f"export the panel of {recipe.panel_of(self.name)}"
        (parent,) = recipe.parents_of(self.name)
        return f"export {_called(recipe.stage(parent))}, {self.dtype if self.what == 'merged' else 'its adapter'}"

    def ready(self, recipe: Recipe) -> None:
        if self.hub is not None:
            from orchestra.work.publishing import may_publish

            may_publish(self)

    def run(self, context: StageContext) -> StageResult:
        return _panel(context) if self.what == "panel" else self._policy(context)

    def _policy(self, context: StageContext) -> StageResult:
        from orchestra.work.exported import TrainedPolicy
        from orchestra.work.exporting import export_policy
        from orchestra.work.publishing import publish, write_card

        policy = TrainedPolicy.of(context.parent, context.earlier[context.parent], context.result_of(context.parent))
        folder, say = context.folder / EXPORT, context.progress.say
        record = context.once(lambda: export_policy(context.resources, policy, folder, self, context.progress))
        for line in record.lines():
            say(f"    {line}")
        context.once(lambda: write_card(folder, context.run_dir, context.recipe))
        if self.hub is not None:
            say(f"    {context.once(lambda: publish(folder, context.run_dir, context.recipe, self, say=say))}")
        else:
            say(f"    {folder}; to publish it: orchestra export {context.run_dir} --to hub:you/name")
        result = context.result(kl_to_policy=record.fidelity.kl, top1_agreement=record.fidelity.agreement)
        return replace(result, adapter_sha256=record.policies[policy.name])


def _panel(context: StageContext) -> StageResult:
    from orchestra.work.exporting_panel import export_panel

    panel, source = context.before
    folder = context.folder / EXPORT
    exported = context.once(lambda: export_panel(panel, source, folder, context.run_dir, context.recipe))
    context.progress.say(f"    {folder}: {', '.join(exported.names)}; README.md there says how to serve them")
    return context.result(experts=len(exported.experts))


def _called(stage: Stage) -> str:
    """A stage's policy, and which expert it is."""
    return stage.name if stage.trains is None else f"{stage.name}'s expert {stage.trains}"
