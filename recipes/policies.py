"""Policies as stages hand them on: loaded from a stage's folder, served by the engine, evaluated, compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evals.divergence import mean_kl
from evals.evaluate import Evaluation, EvaluationSettings, compare, evaluate
from models.adapters import load_adapter, new_adapter, read_adapter
from models.base import free_memory, load_base, trained_arithmetic
from models.engine import Engine, Sampling
from models.training import Probe, TrainingError
from recipes.context import StageContext
from recipes.ledger import StageResult
from recipes.resources import Asked, Resources, stage_seed
from recipes.schema import EvaluateStage, SftStage, Stage
from rl.freshness import Freshness
from rl.kl import Reference
from rl.rollouts import push_policy

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER, EVALUATION = "adapter", "evaluation.json"
KL_PROBLEMS = 32
LOGITS = 2**27  # at once, of each policy: half a GiB in float32


def resources_of(context: StageContext) -> Resources:
    """The context's resources, as what they are."""
    assert isinstance(context.resources, Resources)
    return context.resources


def start_policy(context: StageContext) -> PeftModel:
    """The parent's policy on a freshly loaded base, or a new adapter where the parent is the base."""
    model = context.recipe.model
    free_memory()
    base = load_base(model.base, model.quantize, model.dtype)
    if context.parent is not None:
        return load_adapter(base, context.earlier[context.parent] / ADAPTER)
    lora = model.lora
    return new_adapter(
        base, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets,
        seed=stage_seed(context.recipe, context.stage.name),
    )  # fmt: skip


def serve(context: StageContext, policy: PeftModel) -> Engine:
    """The run's engine, serving this policy (raises EngineError where it does not)."""
    resources = resources_of(context)
    engine = resources.engine()
    probe = Probe.of_prompts(resources.test().tokens)
    Freshness(engine, policy, probe).sync(lambda: push_policy(engine, policy, resources.sync))
    return engine


def evaluated(context: StageContext, engine: Engine, stage: Stage | None = None) -> tuple[Evaluation, Asked]:
    """Evaluate what the engine serves on the held-out problems and write evaluation.json."""
    resources, settings = resources_of(context), context.recipe.evaluate_of(stage or context.stage)
    asked = resources.test(stage if isinstance(stage, EvaluateStage) else None)
    if asked.left_out:
        context.progress.say(f"    {asked.left_out} test problems are too long for the model and left out")
    sampled = settings.samples if settings.temperature else 1
    passes = 2 if settings.greedy and settings.temperature else 1
    with context.progress.bar(f"{context.stage.name}: evaluate", passes * len(asked.problems), "problems") as bar:
        evaluation = evaluate(
            engine,
            asked.problems,
            asked.tokens,
            EvaluationSettings(
                samples=sampled,
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_completion_tokens=settings.max_completion_tokens,
                confidence=settings.confidence,
                pass_at_k=settings.pass_at_k,
                greedy=settings.greedy,
                seed=context.recipe.seed,
                stop_token_ids=(resources.tokenizer().eos_token_id,),
            ),
            resources.format,
            progress=bar.advance,
        )
    (context.folder / EVALUATION).write_text(evaluation.to_json())
    return evaluation, asked


def measured(context: StageContext, evaluation: Evaluation, result: StageResult) -> StageResult:
    """The result with the evaluation's numbers and the paired differences to the stage before and to the base."""
    sampled = evaluation.sampled
    result = replace(
        result,
        accuracy=sampled.accuracy.estimate,
        low=sampled.accuracy.low,
        high=sampled.accuracy.high,
        greedy_accuracy=evaluation.greedy.accuracy.estimate if evaluation.greedy else None,
        mean_length=sampled.mean_length,
        format_rate=sampled.format_rate,
        truncation_rate=sampled.truncation_rate,
        tokens=result.tokens + evaluation.tokens,
        extra=result.extra | {f"pass@{k}": value for k, value in evaluation.pass_at_k.items()},
    )
    before = _evaluations_before(context)
    comparable = [(name, other) for name, other in before if set(other.problem_ids) == set(evaluation.problem_ids)]
    if comparable:
        previous = compare(evaluation, comparable[-1][1], seed=context.recipe.seed)
        result = replace(
            result,
            difference=previous.difference,
            difference_low=previous.low,
            difference_high=previous.high,
            p_value=previous.p_value,
            extra=result.extra | {"compared_to": comparable[-1][0]},
        )
    base = dict(comparable).get("base")
    if base is not None:
        to_base = compare(evaluation, base, seed=context.recipe.seed)
        result = replace(result, base_difference=to_base.difference, base_p_value=to_base.p_value)
    return result


def _evaluations_before(context: StageContext) -> list[tuple[str, Evaluation]]:
    found = [(name, folder / EVALUATION) for name, folder in context.earlier.items()]
    return [(name, Evaluation.from_json(path.read_text())) for name, path in found if path.is_file()]


def divergences(context: StageContext, policy: PeftModel, engine: Engine, asked: Asked) -> dict[str, float]:
    """KL (nats a token, exact over the vocabulary) to the base and to the SFT policy, on the policy's own samples."""
    resources = resources_of(context)
    prompts = asked.tokens[:KL_PROBLEMS]
    sampling = Sampling(
        context.recipe.evaluate_of(context.stage).max_completion_tokens,
        stop_token_ids=(resources.tokenizer().eos_token_id,),
    )
    groups = engine.generate(prompts, sampling, [stage_seed(context.recipe, f"kl-{i}") for i in range(len(prompts))])
    sequences = [(prompt, group[0].token_ids) for prompt, group in zip(prompts, groups, strict=True)]
    found = {"kl_to_base": _kl(policy, Reference("base", None), sequences)}
    imitated = next(
        (s.name for s in context.recipe.stages if isinstance(s, SftStage) and s.name in context.earlier), None
    )
    if imitated is not None:
        tensors = read_adapter(context.earlier[imitated] / ADAPTER)
        reference = Reference(imitated, tensors)
        reference.replace(policy)
        found["kl_to_sft"] = _kl(policy, reference, sequences)
    return found


def _kl(policy: PeftModel, reference: Reference, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    policy.eval()

    def reference_logits(ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        with reference.active(policy):
            return policy(ids, attention_mask=attention_mask)

    longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
    rows = max(1, min(8, LOGITS // (longest * policy.config.vocab_size)))
    with trained_arithmetic(policy):
        return mean_kl(policy, reference_logits, sequences, batch_size=rows, device=policy.device).kl


def reference_of(context: StageContext, policy: PeftModel, name: str) -> Reference:
    """What `reference:` names: the base, this stage's start, or an earlier stage's policy."""
    from models.adapters import adapter_tensors

    if name == "base":
        return Reference(name, None)
    if name == "start":
        return Reference(name, adapter_tensors(policy))
    return Reference(name, read_adapter(context.earlier[name] / ADAPTER))


def last_quarter(path: Path, key: str) -> float | None:
    """Mean of a step metric over the last quarter of a stage's steps."""
    values = [json.loads(line).get(key) for line in path.read_text().splitlines()]
    values = [value for value in values if value is not None]
    tail = values[-max(1, len(values) // 4) :]
    return sum(tail) / len(tail) if tail else None


def check_start(context: StageContext, first_kl: float | None, reference: str) -> None:
    """With `start` as the reference, the first step's KL is 0 within rounding, or the reference is not the start."""
    if reference == "start" and first_kl is not None and abs(first_kl) > 1e-3:
        raise TrainingError(
            f"KL to the stage's own start is {first_kl:.2g} at the first step; it must be 0, so the reference is wrong"
        )
