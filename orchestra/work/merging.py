"""What a merge stage does: one adapter of a panel's experts, evaluated, and the merge gap told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from evals.evaluate import Evaluation
from evals.panel import PanelEvaluation
from models.experts import PanelError
from models.mixing import blend, merged_model
from orchestra.text import p_value, percent, points
from orchestra.work.panels import RoutedPanel, panel_base
from orchestra.work.policies import EVALUATION
from orchestra.work.settings import PANEL_EVALUATION
from orchestra.work.training import trained

if TYPE_CHECKING:
    from models.settings import MergeSettings
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext


def merge_panel(context: StageContext, settings: MergeSettings) -> StageResult:
    """Merge, save, evaluate, and say what it loses against the routed panel.

    Raises:
        PanelError: the panel has not what the rule needs, or was not evaluated routed.
    """
    panel, folder = context.before
    routed = RoutedPanel.before(context)
    parts = blend(panel, settings, routed.load, _best_on_another_draw(context))
    base, sha256 = panel_base(context, panel)
    policy = merged_model(base, panel, folder, parts, settings, seed=context.seed)
    rank = policy.peft_config[policy.active_adapter].r
    _must_be_served(context, rank)
    told = ", ".join(f"{weight:.3g} {name}" for name, weight in parts.weights.items())
    context.progress.say(f"    {settings.merge}: {told}; rank {rank}")
    result = context.result(
        base_sha256=sha256,
        experts=len(panel.experts),
        rank=rank,
        **{f"weight_{n}": w for n, w in parts.weights.items()},
    )
    result = trained(context, policy, result, steps=0, tokens=0)
    merged = Evaluation.from_json(context.once((context.folder / EVALUATION).read_text))
    gap = routed.compared(merged, context)
    accuracies = (routed.evaluation.sampled.accuracy.estimate, merged.sampled.accuracy.estimate)
    context.progress.say(
        f"    merge gap: {percent(accuracies[0])} routed less {percent(accuracies[1])} merged is "
        f"{points(gap.difference)} points [{points(gap.low)}, {points(gap.high)}], paired over {gap.n} problems, "
        f"{p_value(gap.p_value)}"
    )
    told = {"merge_gap": gap.difference, "merge_gap_low": gap.low, "merge_gap_high": gap.high}
    return replace(result, extra=result.extra | told | {"routed_accuracy": accuracies[0]})


def _best_on_another_draw(context: StageContext) -> str | None:
    """The best single expert as the router's stage chose it, which is not by the answers that it is then scored on;
    None where no router was trained."""
    path = context.earlier[context.panel] / PANEL_EVALUATION
    found = context.once(lambda: path.read_text(encoding="utf-8") if path.is_file() else None)
    return None if found is None else PanelEvaluation.from_json(found).best_single


def _must_be_served(context: StageContext, rank: int) -> None:
    """Where the engine takes adapters, it has room for the rank with which it was started. Raises PanelError."""
    room = context.resources.lora_rank
    if context.resources.served().sync == "adapter" and rank > room:
        raise PanelError(
            f"the merged adapter has rank {rank}, and the engine serves adapters of up to rank {room}, the highest of "
            f"the recipe; write `rank: {room}`, or `sync: folded` under `rollouts`"
        )
