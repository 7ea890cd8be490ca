"""What an sft stage does: a policy, an expert, or an expert for each domain imitates traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from models.prompts import render_prompt
from orchestra.config.experts import EACH
from orchestra.work.domains import domain_by_problem, traces_in, wanted
from orchestra.work.panels import in_panel, one_each
from orchestra.work.policies import start_policy, steps_on
from orchestra.work.preflight import run_preflight
from orchestra.work.preflighted import measured_by
from orchestra.work.starting import kept_moments, must_start_as_recorded
from orchestra.work.sweeping import kept, set_aside, sweep_of
from orchestra.work.traces import traces_of
from orchestra.work.training import trained
from settings import FrozenDict
from sft.mixing import mixed
from sft.train import train_sft

if TYPE_CHECKING:
    from peft import PeftModel

    from orchestra.config.imitating import ImitatingStage
    from orchestra.run.ledger import StageResult
    from orchestra.work.alignment import Preflight
    from orchestra.work.context import StageContext
    from sft.distill import Trace

Sources = Mapping[str, Sequence["Trace"]]


def imitate(context: StageContext, stage: ImitatingStage) -> StageResult:
    """Train what the stage trains."""
    found = {source: traces_of(context, source) for source in stage.data}
    traces = {source: ones for source, (ones, _) in found.items()}
    left_out = sum(gone for _, gone in found.values())
    if stage.expert is None or (stage.expert != EACH and stage.domains is None):
        result = imitated(context, stage, traces, left_out)
        return result if stage.expert is None else in_panel(context, result, tuple(stage.data))
    domain_of = domain_by_problem(context.resources, stage)
    there = [domain_of[trace.problem_id] for ones in traces.values() for trace in ones if trace.problem_id in domain_of]
    domains = wanted(there, stage.domains, context.stage.name)
    shares = isinstance(stage.data, FrozenDict)
    if stage.expert != EACH:
        result = imitated(context, stage, traces_in(traces, domain_of, domains, shares=shares), left_out)
        return in_panel(context, result, tuple(stage.data), domains)
    parts = {domain: traces_in(traces, domain_of, (domain,), shares=shares) for domain in domains}
    return one_each(
        context, domains, tuple(stage.data), lambda own, domain: imitated(own, stage, parts[domain], left_out)
    )


def imitated(context: StageContext, stage: ImitatingStage, sources: Sources, left_out: int) -> StageResult:
    """One policy, or one expert, trained on these traces and measured."""
    resources = context.resources
    tokenizer = resources.tokenizer()
    traces, taken = mixed(list(sources.items()), stage, context.seed)
    if len(taken) > 1 or taken[0].taken < taken[0].there:
        context.progress.say(f"    trains on {', '.join(map(str, taken))}")
    max_length = stage.longest(context.recipe)
    traces, texts = set_aside(context, traces, stage, max_length)
    policy = start_policy(context)
    moments = kept_moments(context, stage)
    start_tokens = must_start_as_recorded(context, policy)
    fit = _preflighted(context, stage, policy, sources)
    with context.progress.bar(f"{context.called}: imitate", stage.steps, "steps") as bar:
        outcome = train_sft(
            policy,
            tokenizer,
            [render_prompt(tokenizer, resources.format.messages(trace.question)) for trace in traces],
            [trace.completion for trace in traces],
            stage,
            context.folder,
            max_length=max_length,
            seed=context.seed,
            report_to=context.recipe.report_to,
            on_step=steps_on(bar, "loss"),
            sweep=sweep_of(context, policy, stage, texts),
            moments=moments,
        )
    swept = kept(context, policy, stage)
    passes = stage.steps * stage.batch_size / outcome.examples
    tokens = round(outcome.completion_tokens * passes)
    result = context.result(
        left_out=left_out,
        examples=outcome.examples,
        too_long=outcome.too_long,
        epochs=passes,
        base_sha256=outcome.base_sha256,
        **(fit.told() if fit is not None else {}),
        **swept.extra,
    )
    tokens += start_tokens + swept.tokens + (fit.tokens if fit is not None else 0)
    return trained(context, policy, result, steps=stage.steps, tokens=tokens)


def _preflighted(context: StageContext, stage: ImitatingStage, policy: PeftModel, sources: Sources) -> Preflight | None:
    """The preflight, unless it is left out or has been measured."""
    if stage.preflight is False:
        return None
    if (earlier := measured_by(context.recipe, stage)) is not None:
        context.progress.say(f"    preflight: {earlier!r} has measured the same")
        return None
    return run_preflight(context, policy, sources, stage.preflight, max_length=stage.longest(context.recipe))
