"""One function per stage kind: from a context to a result. Here the siblings sft, rl and evals meet."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from models.adapters import save_adapter
from models.engine import Sampling
from models.prompts import opening_of, render_prompt
from models.training import StepListener
from recipes.context import StageContext
from recipes.exporting import export_policy, export_run
from recipes.ledger import StageResult
from recipes.machine import peak_memory
from recipes.policies import (
    ADAPTER,
    check_start,
    divergences,
    evaluated,
    last_quarter,
    measured,
    reference_of,
    resources_of,
    serve,
    start_policy,
)
from recipes.progress import Bar
from recipes.resources import make_resources, stage_seed
from recipes.schema import DistillStage, EvaluateStage, ExportStage, GrpoStage, SftStage, Stage
from rewards.problems import load_problems
from sft.distill import KeepPolicy, Trace, choose_traces, read_traces, sample_traces, traces_of_solutions

if TYPE_CHECKING:
    from peft import PeftModel

S = TypeVar("S", bound=Stage)
__all__ = ["STAGE_FUNCTIONS", "export_run", "make_resources"]


def base_stage(context: StageContext) -> StageResult:
    """Evaluate the untrained base, as it is trained on: quantised."""
    engine = serve(context, start_policy(context))
    if engine.kind != "vllm":
        context.progress.say("    vLLM is not used here: completions come from transformers' generate, which is slower")
    evaluation, asked = evaluated(context, engine)
    return measured(context, evaluation, _result(context, left_out=asked.left_out))


def distill_stage(context: StageContext) -> StageResult:
    """Sample a teacher's traces, verify and filter them."""
    stage, resources = _of(context, DistillStage), resources_of(context)
    itself = stage.teacher == "self"
    teacher = context.recipe.model.base if itself else stage.teacher
    asked = resources.train(teacher, stage.problems)
    engine = serve(context, start_policy(context)) if itself else resources.engine(teacher)
    seed = stage_seed(context.recipe, stage.name)
    with context.progress.bar(f"{stage.name}: sample", len(asked.problems), "problems") as bar:
        first = True

        def progress(count: int) -> None:
            nonlocal first
            bar.resume_at(count) if first else bar.advance(count)
            first = False

        sample_traces(
            engine,
            asked.problems,
            asked.tokens,
            Sampling(stage.max_tokens, stage.temperature, stage.top_p, stage.top_k, n=stage.samples),
            context.folder,
            [seed + 1000 * i for i in range(len(asked.problems))],
            progress,
            opening_of(asked.prompts[0]),
        )
    later = context.recipe.stages[context.index :]
    if not any(isinstance(other, DistillStage) and other.teacher == teacher for other in later):
        resources.release(teacher)
    policy = KeepPolicy(stage.keep, stage.max_per_problem, stage.pass_rate, stage.min_tokens, stage.max_tokens)
    statistics = choose_traces(asked.problems, context.folder, policy, resources.format, resources.tokenizer())
    correct = statistics.correct / max(statistics.sampled, 1)
    dropped = ", ".join(f"{reason} {count}" for reason, count in statistics.dropped.items()) or "none"
    context.progress.say(
        f"    {statistics.sampled:,} sampled, {correct:.1%} correct, {statistics.kept:,} kept (dropped: {dropped})"
    )
    result = _result(context, left_out=asked.left_out, kept=statistics.kept, teacher_accuracy=correct)
    return replace(result, tokens=statistics.sampled_tokens)


def sft_stage(context: StageContext) -> StageResult:
    """Imitate traces."""
    from sft.train import SftSettings, train_sft

    stage, recipe, resources = _of(context, SftStage), context.recipe, resources_of(context)
    tokenizer, contract = resources.tokenizer(), resources.format
    traces = [trace for source in stage.data for trace in _traces(context, source)]
    policy = start_policy(context)
    longest = recipe.rollouts.max_prompt_tokens + recipe.rollouts.max_completion_tokens
    with context.progress.bar(f"{stage.name}: imitate", stage.steps, "steps") as bar:
        outcome = train_sft(
            policy,
            tokenizer,
            [render_prompt(tokenizer, contract.messages(trace.question)) for trace in traces],
            [trace.completion for trace in traces],
            SftSettings(
                steps=stage.steps,
                learning_rate=stage.learning_rate,
                batch_size=stage.batch_size,
                micro_batch_size=stage.micro_batch_size,
                gradient_checkpointing=stage.gradient_checkpointing,
                max_length=stage.max_length or longest,
                lr_scheduler_type=stage.lr_scheduler_type,
                warmup_ratio=stage.warmup_ratio,
                weight_decay=stage.weight_decay,
                max_grad_norm=stage.max_grad_norm,
                packing=stage.packing,
                save_steps=stage.save_steps,
                seed=stage_seed(recipe, stage.name),
                report_to=recipe.report_to,
            ),
            context.folder,
            _steps(bar, "loss"),
        )
    passes = stage.steps * stage.batch_size / outcome.examples
    tokens = round(outcome.completion_tokens * passes)
    return _trained(context, policy, tokens, examples=outcome.examples, too_long=outcome.too_long, epochs=passes)


def grpo_stage(context: StageContext) -> StageResult:
    """Optimise the reward under the KL penalty."""
    from rewards.scoring import build_rewards
    from rl.train import GrpoSettings, train_grpo
    from rl.trainer import Objective

    stage, recipe, resources = _of(context, GrpoStage), context.recipe, resources_of(context)
    rollouts = recipe.rollouts_of(stage)
    asked = resources.train()
    policy = start_policy(context)
    rewards = build_rewards(
        recipe.reward.weights,
        file=Path(recipe.reward.file) if recipe.reward.file else None,
        max_completion_tokens=rollouts.max_completion_tokens,
        format=recipe.problems.format,
        ungradable_limit=recipe.reward.ungradable_limit,
    )
    with context.progress.bar(f"{stage.name}: optimise", stage.steps, "steps") as bar:
        outcome = train_grpo(
            policy,
            resources.tokenizer(),
            resources.engine(),
            asked.problems,
            asked.prompts,
            rewards,
            Objective(
                stage.beta,
                reference_of(context, policy, stage.reference),
                stage.mask_zero_variance_kl,
                rollouts.dynamic_sampling.max_resamples,
            ),
            GrpoSettings(
                steps=stage.steps,
                learning_rate=stage.learning_rate,
                prompts_per_step=rollouts.prompts_per_step,
                group_size=rollouts.group_size,
                max_completion_tokens=rollouts.max_completion_tokens,
                temperature=rollouts.temperature,
                top_p=rollouts.top_p,
                sync=resources.sync,
                epsilon=stage.epsilon,
                epsilon_high=stage.epsilon_high,
                num_iterations=stage.num_iterations,
                loss_type=stage.loss_type,
                scale_rewards=stage.scale_rewards,
                mask_truncated_completions=stage.mask_truncated_completions,
                lr_scheduler_type=stage.lr_scheduler_type,
                warmup_ratio=stage.warmup_ratio,
                weight_decay=stage.weight_decay,
                max_grad_norm=stage.max_grad_norm,
                micro_batch_size=stage.micro_batch_size,
                gradient_checkpointing=stage.gradient_checkpointing,
                save_steps=stage.save_steps,
                seed=stage_seed(recipe, stage.name),
                report_to=recipe.report_to,
            ),
            context.folder,
            _steps(bar, "reward"),
        )
    lines = [json.loads(line) for line in (context.folder / "metrics.jsonl").read_text().splitlines()]
    if stage.beta:
        check_start(context, lines[0].get("kl"), stage.reference)
    result = _trained(
        context,
        policy,
        # a further iteration over the same rollouts has no tokens of its own
        int(max(line.get("num_tokens", 0) for line in lines)),
        engine_mismatch=outcome.engine_mismatch,
        base_sha256=outcome.base_sha256,
    )
    return replace(
        result,
        beta=stage.beta,
        kl=last_quarter(context.folder / "metrics.jsonl", "kl") if stage.beta else None,
    )


def evaluate_stage(context: StageContext) -> StageResult:
    """A further evaluation of the parent's policy."""
    stage = _of(context, EvaluateStage)
    engine = serve(context, start_policy(context))
    evaluation, asked = evaluated(context, engine, stage)
    return measured(context, evaluation, _result(context, left_out=asked.left_out))


def export_stage(context: StageContext) -> StageResult:
    """Merge, write, reload, compare."""
    stage = _of(context, ExportStage)
    assert context.parent is not None  # the schema allows no export without a trained policy before it
    adapter = context.earlier[context.parent] / ADAPTER
    report = export_policy(context.recipe, adapter, context.folder, stage.dtype)
    context.progress.say(
        f"    {context.folder / 'merged'}: KL to the trained policy {report.kl:.1e}, top-1 {report.agreement:.1%}"
    )
    if stage.hub:
        context.progress.say(f"    to upload it: hf upload {stage.hub} {context.folder / 'merged'}")
    return replace(
        _result(context, kl_to_policy=report.kl, top1_agreement=report.agreement), adapter_sha256=report.adapter_sha256
    )


STAGE_FUNCTIONS: Mapping[str, Callable[[StageContext], StageResult]] = {
    "base": base_stage,
    "distill": distill_stage,
    "sft": sft_stage,
    "grpo": grpo_stage,
    "evaluate": evaluate_stage,
    "export": export_stage,
}


def _of(context: StageContext, kind: type[S]) -> S:
    assert isinstance(context.stage, kind)
    return context.stage


def _traces(context: StageContext, source: str) -> list[Trace]:
    if source in context.earlier:
        return read_traces(context.earlier[source] / "traces.jsonl")
    resources = resources_of(context)
    return traces_of_solutions(load_problems(source, "train"), resources.format, resources.tokenizer(), source)


def _trained(context: StageContext, policy: PeftModel, tokens: int, **extra: float | str) -> StageResult:
    """Save what was trained, evaluate it and say how far it went from base and SFT policy."""
    sha256 = save_adapter(policy, context.folder / ADAPTER)
    engine = serve(context, policy)
    evaluation, asked = evaluated(context, engine)
    kl = divergences(context, policy, engine, asked)
    result = replace(_result(context, **extra, **kl), steps=context.stage.steps, tokens=tokens, adapter_sha256=sha256)
    return measured(context, evaluation, result)


def _result(context: StageContext, **extra: float | str) -> StageResult:
    return StageResult(
        name=context.stage.name, kind=context.stage.kind, extra={**extra, "peak_memory_bytes": float(peak_memory())}
    )


def _steps(bar: Bar, shown: str) -> StepListener:
    """Keeps a bar at the trainer's step and shows one of its metrics."""

    class Listener(StepListener):
        def __call__(self, step: int, line: Mapping[str, float] | None) -> None:
            if line is None:
                bar.resume_at(step)
            else:
                bar.advance(step - bar.done, f"{shown} {line[shown]:.3f}" if shown in line else None)

    return Listener()
