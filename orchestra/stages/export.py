"""export: adapter and merged model as files, reloaded and compared with the policy before they count as done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from orchestra.config.stage import OUTPUTS, Draft, Stage
from settings import FREE, Text

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext


class ExportStage(Stage):
    """Adapter and merged model in safetensors, reloaded and compared with the policy before they count as done."""

    outputs: ClassVar[tuple[str, ...]] = OUTPUTS["policy"]

    kind: Literal["export"]
    """export"""
    hub: Annotated[Text | None, FREE] = None
    """Hub repository `name/model` for the upload. None: the stage's folder only."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the merged model."""

    def faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        trained = any(kind is None or "policy" in kind.gives for kind in draft.kinds.values())
        if not trained or self.parent == "base":
            yield "kind", "there is nothing to export; put an sft or grpo stage before it"

    def plan(self, estimator: Estimator) -> StagePlan:
        base = estimator.base
        seconds = base.parameters * 8 / 200e6  # read, fold, write, read again
        # written from main memory; what is compared with the policy lies where the policy does
        memory = estimator.serving() | {
            "merged model": (1 if estimator.device.cuda else 2) * base.parameters * 4,
            "parameters": estimator.frozen(4),
        }
        return estimator.row(self, (0, seconds), memory, data=self.hub or "")

    def summary(self, recipe: Recipe) -> str:
        (parent,) = recipe.parents_of(self.name)
        return f"export {parent}, {self.dtype}"

    def run(self, context: StageContext) -> StageResult:
        from orchestra.work.exporting import export_policy

        adapter = context.adapter_of(context.parent)
        trained_on = context.result_of(context.parent).extra.get("base_sha256")
        report = context.once(
            lambda: export_policy(context.resources, adapter, context.folder, self.dtype, trained_on)
        )
        merged = context.folder / "merged"
        context.progress.say(f"    {merged}: KL to the trained policy {report.kl:.1e}, top-1 {report.agreement:.1%}")
        if self.hub:
            context.progress.say(f"    to upload it: hf upload {self.hub} {merged}")
        result = context.result(kl_to_policy=report.kl, top1_agreement=report.agreement)
        return replace(result, adapter_sha256=report.adapter_sha256)
