"""Policies as stages hand them on: loaded from a stage's folder, served by the engine, evaluated, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from evals.divergence import mean_kl
from evals.evaluate import Evaluation, compare, evaluate
from models.adapters import load_adapter, new_adapter
from models.base import free_memory, load_base, trained_arithmetic
from models.engines.protocol import Sampling
from models.reference import Reference
from models.settings import PromptFormat
from models.training import StepListener
from orchestra.config.experts import planned_panel
from orchestra.work.context import StageContext
from orchestra.work.resources import stage_seed

if TYPE_CHECKING:
    from peft import PeftModel

    from evals.settings import Evaluate
    from models.engines.protocol import Generator
    from models.engines.serving import Served
    from models.processes import Processes
    from orchestra.run.ledger import StageResult
    from orchestra.run.progress import Bar
    from rewards.domain import Judge
    from rewards.problems import Asked
    from rewards.verdict import Judgement

EVALUATION = "evaluation.json"
KL_PROBLEMS = 32
LOGITS = 2**27  # at once, of each policy: half a GiB in float32


@dataclass(frozen=True)
class SharedJudge:
    """A domain that judges a part of the completions on each process."""

    domain: Judge
    processes: Processes

    def judge(self, completions: Sequence[str], golds: Sequence[str]) -> list[Judgement]:
        """See `Domain.judge`."""
        return self.processes.shared(
            len(completions),
            lambda own: self.domain.judge([completions[i] for i in own], [golds[i] for i in own]),
        )


def start_policy(context: StageContext) -> PeftModel:
    """The parent's policy on a freshly loaded base, or a new adapter where the parent is the base."""
    model = context.recipe.model
    free_memory()
    base = load_base(model.base, model.quantize, model.dtype)
    if (start := context.start) is not None:
        return load_adapter(base, start.folder)
    return new_adapter(base, context.stage.adapter(context.recipe), seed=context.seed)


def serve(context: StageContext, policy: PeftModel) -> Served:
    """The run's engine, serving this policy (raises EngineError where it does not)."""
    served = context.resources.served()
    served.push(policy)
    return served


def evaluated(
    context: StageContext, prompt: PromptFormat | None = None, file: str = EVALUATION, of: str | None = None
) -> tuple[Evaluation, Asked]:
    """Evaluate what the engine serves on the stage's held-out problems and write evaluation.json.

    Args:
        prompt: another format than the recipe's, in which the problems are asked.
        of: one of the stage's sets of problems, by name; None: the first.
    """
    asked = context.resources.test(context.stage, prompt, of)
    if asked.left_out:
        context.progress.say(f"    {asked.left_out} test problems are too long for the model and left out")
    evaluation = answered(context, asked, f"evaluate{f' on {of}' if of else ''}", prompt)
    context.once(lambda: (context.folder / file).write_text(evaluation.to_json()))
    return evaluation, asked


def answered(
    context: StageContext,
    asked: Asked,
    doing: str,
    prompt: PromptFormat | None = None,
    *,
    engine: Generator | None = None,
    settings: Evaluate | None = None,
    seed: int | None = None,
) -> Evaluation:
    """What the engine's policy does on problems, asked as the stage is evaluated.

    Args:
        doing: in a word, for the bar.
        prompt: the format that they are asked in, if it is another than the recipe's.
        engine: that answers, if it is another than the run's own; settings, seed: the same of those.
    """
    resources = context.resources
    settings = settings or context.stage.evaluation(context.recipe)
    passes = 2 if settings.greedy and settings.temperature else 1
    with context.progress.bar(f"{context.called}: {doing}", passes * len(asked.problems), "problems") as bar:
        return evaluate(
            engine or resources.engine(),
            asked,
            settings,
            SharedJudge(resources.domain, context.processes),
            resources.format,
            seed=context.recipe.seed if seed is None else seed,
            stop_token_ids=resources.stops(prompt),
            progress=bar.advance,
        )


def evaluated_in_both_formats(context: StageContext, other: PromptFormat) -> tuple[Evaluation, Asked, dict[str, float]]:
    """Evaluate as the recipe asks and in another prompt format, and write the better as evaluation.json, so that no
    later stage seems to gain what the format alone gives: the better sampled pass and the better greedy one.

    Returns:
        the better, its problems as the recipe asks them, and what is to be told of both.
    """
    own = context.resources.conversation.format
    found: dict[str, Evaluation] = {}
    for prompt in (own, other):
        context.progress.say(f"    {prompt} prompts:")
        found[prompt], _ = evaluated(context, prompt, f"evaluation-{prompt}.json")
    best = max(found, key=lambda prompt: found[prompt].sampled.accuracy.estimate)
    greedy = [one.greedy for one in found.values() if one.greedy is not None]
    better = replace(found[best], greedy=max(greedy, key=lambda one: one.accuracy.estimate, default=None))
    context.once(lambda: (context.folder / EVALUATION).write_text(better.to_json()))
    # the better's own are counted as every evaluation's are
    told: dict[str, float] = {"other_format_tokens": sum(one.tokens for one in found.values()) - better.tokens}
    for prompt, one in found.items():
        told[f"accuracy_{prompt}"] = one.sampled.accuracy.estimate
        if one.greedy is not None:
            told[f"greedy_accuracy_{prompt}"] = one.greedy.accuracy.estimate
    context.progress.say(
        "    accuracy: " + ", ".join(f"{told[f'accuracy_{prompt}']:.1%} with {prompt} prompts" for prompt in found)
        + f"; the recipe asks with {own} prompts, the better counts"
    )  # fmt: skip
    return better, context.resources.test(context.stage), told


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
    return [(name, Evaluation.read(path)) for name, path in found if path.is_file()]


def divergences(context: StageContext, policy: PeftModel, asked: Asked) -> dict[str, float]:
    """KL (nats a token, exact over the vocabulary) to the base and to the SFT policy, on the policy's own samples."""
    resources, recipe = context.resources, context.recipe
    prompts = asked.tokens[:KL_PROBLEMS]
    sampling = Sampling(
        context.stage.evaluation(recipe).max_completion_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        stop_token_ids=resources.stops(),
    )
    seeds = [stage_seed(recipe, f"kl-{i}") for i in range(len(prompts))]
    groups = resources.engine().generate(prompts, sampling, seeds)
    sequences = [(prompt, group[0].token_ids) for prompt, group in zip(prompts, groups, strict=True)]
    found = {"kl_to_base": _kl(policy, Reference("base", None), sequences)}
    if (imitated := _imitated(context)) is not None:
        reference = Reference.saved(imitated, context.adapter_of(imitated))
        reference.replace(policy)
        found["kl_to_sft"] = _kl(policy, reference, sequences)
    return found


def _imitated(context: StageContext) -> str | None:
    """The first stage that has trained the policy, or the expert under whatever name, by imitation alone."""
    stages = context.recipe.before(context.stage.name)
    if context.expert is not None:
        known = planned_panel(stages).get(context.expert)
        stages = known.trained_in if known is not None else ()
    own = (stage.name for stage in stages if "imitation" in stage.given and (context.expert or stage.trains is None))
    return next(own, None)


def _kl(policy: PeftModel, reference: Reference, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    policy.eval()

    def reference_logits(ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        with reference.active(policy):
            return policy(ids, attention_mask=attention_mask)

    with trained_arithmetic(policy):
        rows = rows_at_once(policy, sequences)
        return mean_kl(policy, reference_logits, sequences, rows=rows, device=policy.device).kl


def rows_at_once(policy: PeftModel, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> int:
    """So many (prompt, completion) sequences that their logits fit into memory."""
    longest = max((len(prompt) + len(completion) for prompt, completion in sequences), default=1)
    return max(1, min(8, LOGITS // (longest * policy.config.vocab_size)))


def steps_on(bar: Bar, shown: str) -> StepListener:
    """Keeps a bar at the trainer's step and shows one of its metrics."""

    class Listener(StepListener):
        def __call__(self, step: int, line: Mapping[str, float] | None) -> None:
            bar.at(step, f"{shown} {line[shown]:.3f}" if line is not None and shown in line else None)

    return Listener()
