"""What a grpo stage does: a policy, an expert, or an expert for each domain is optimised for the reward."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from models.adapters import adapter_tensors
from models.reference import Reference
from orchestra.config.experts import EACH
from orchestra.work.domains import asked_in, wanted
from orchestra.work.panels import in_panel, one_each
from orchestra.work.policies import start_policy, steps_on
from orchestra.work.starting import kept_moments, must_start_as_recorded
from orchestra.work.sweeping import kept, sweep_of
from orchestra.work.training import trained
from rl.train import train_grpo

if TYPE_CHECKING:
    from peft import PeftModel

    from orchestra.config.trained import OptimisingStage
    from orchestra.run.ledger import StageResult
    from orchestra.work.context import StageContext
    from rewards.problems import Asked


def optimise(context: StageContext, stage: OptimisingStage) -> StageResult:
    """Train what the stage trains."""
    asked = context.resources.train()
    data = (context.recipe.problems.train,)
    if stage.expert is None:
        return _optimised(context, stage, asked)
    if stage.expert != EACH and stage.domains is None:
        return in_panel(context, _optimised(context, stage, asked), data)
    domains = wanted((problem.domain for problem in asked.problems), stage.domains, context.stage.name)
    if stage.expert != EACH:
        return in_panel(context, _optimised(context, stage, asked_in(asked, domains)), data, domains)
    return one_each(context, domains, data, lambda own, domain: _optimised(own, stage, asked_in(asked, (domain,))))


def _optimised(context: StageContext, stage: OptimisingStage, asked: Asked) -> StageResult:
    """One policy, or one expert, optimised on these problems and measured; rollouts are its own."""
    recipe, resources = context.recipe, context.resources
    rollouts = recipe.rollouts.overridden_by(stage)
    policy = start_policy(context)
    moments = kept_moments(context, stage)
    start_tokens = must_start_as_recorded(context, policy)
    with context.progress.bar(f"{context.called}: optimise", stage.steps, "steps") as bar:
        outcome = train_grpo(
            policy,
            resources.tokenizer(),
            asked,
            resources.domain.rewards(recipe.reward, resources.format, rollouts.max_completion_tokens),
            resources.served(),
            stage,
            rollouts,
            context.folder,
            reference=_reference(context, stage, policy),
            seed=context.seed,
            report_to=recipe.report_to,
            on_step=steps_on(bar, "reward"),
            sweep=sweep_of(context, policy, stage),
            moments=moments,
        )
    swept = kept(context, policy, stage)
    course = context.once(lambda: read_steps(context.folder / "metrics.jsonl"))
    result = context.result(engine_mismatch=outcome.engine_mismatch, base_sha256=outcome.base_sha256, **swept.extra)
    # a further iteration over the same rollouts has no tokens of its own
    tokens = int(max(line.get("num_tokens", 0) for line in course))
    kept_step = swept.extra.get("kept_step", stage.steps)
    result = replace(result, beta=stage.beta, kl=last_quarter(course, "kl", kept_step) if stage.beta else None)
    return trained(context, policy, result, steps=stage.steps, tokens=tokens + start_tokens + swept.tokens)


def _reference(context: StageContext, stage: OptimisingStage, policy: PeftModel) -> Reference:
    """What `reference:` names: the base, this stage's start, or an earlier stage's policy."""
    if stage.reference == "base":
        return Reference(stage.reference, None)
    if stage.reference == "start":
        return Reference(stage.reference, adapter_tensors(policy))
    return Reference.saved(stage.reference, context.adapter_of(stage.reference))


def read_steps(path: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def last_quarter(steps: Sequence[Mapping[str, float]], key: str, until: float) -> float | None:
    """Mean of a metric over the last quarter of the steps that have it, of those up to this one."""
    values = [line[key] for line in steps if line["step"] <= until and line.get(key) is not None]
    tail = values[-max(1, len(values) // 4) :]
    return sum(tail) / len(tail) if tail else None
