"""One GRPO stage: a policy goes in, a policy trained for `steps` optimizer steps comes out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from models.adapters import POLICY
from models.base import arithmetic_of
from models.engine import Engine, Sampling
from models.prompts import prompt_tokens
from models.sizes import completions_at_once
from models.training import MetricsFile, Probe, StepListener, TrainingError, checkpoints_activations, reporting
from rl.rollouts import Rollouts
from rl.trainer import Objective, PolicyTrainer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase, TrainerCallback

    from rewards.problems import Problem
    from rewards.scoring import RewardSet

# TRL's name -> name in metrics.jsonl
METRIC_NAMES = {
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "truncated",
    "frac_reward_zero_std": "zero_variance_samples",
    "clip_ratio/region_mean": "clipped",
}


@dataclass(frozen=True)
class GrpoSettings:
    """Plain arguments of a GRPO stage; names are TRL's where a value goes straight into TRL.

    Fields:
        steps: optimizer steps.
        prompts_per_step, group_size: problems per step over all processes, completions per problem.
        micro_batch_size: completions per forward pass on one process; None: see models/sizes.py.
        gradient_checkpointing: None: where a GPU's memory asks for it (models/training.py).
    """

    steps: int
    learning_rate: float
    prompts_per_step: int
    group_size: int
    max_completion_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    sync: Literal["folded", "adapter"] = "folded"
    epsilon: float = 0.2
    epsilon_high: float = 0.28
    num_iterations: int = 1
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    mask_truncated_completions: bool = True
    lr_scheduler_type: str = "constant"
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    micro_batch_size: int | None = None
    gradient_checkpointing: bool | None = None
    save_steps: int = 20
    seed: int = 0
    report_to: str = "none"


@dataclass(frozen=True)
class GrpoOutcome:
    """What a stage reports beside its adapter: base hash (the same at start and end) and the engine's mismatch."""

    base_sha256: str
    engine_mismatch: float


def train_grpo(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    engine: Engine,
    problems: Sequence["Problem"],
    prompts: Sequence[str],
    rewards: "RewardSet",
    objective: Objective,
    settings: GrpoSettings,
    folder: Path,
    on_step: StepListener | None = None,
) -> GrpoOutcome:
    """Train the policy in `model` (its adapter `default`), resuming from the folder's last complete checkpoint.

    Args:
        prompts: one rendered prompt per problem.
        folder: gets metrics.jsonl and checkpoints/.

    Raises:
        TrainingError: NaN, a changed base or reference, a checkpoint that is not what its record says.
        EngineError: the engine does not serve the policy.
    """
    metrics = MetricsFile(
        folder / "metrics.jsonl", METRIC_NAMES | _reward_names(rewards), {"beta": objective.beta}, on_step
    )
    trainer = build_trainer(
        model, tokenizer, engine, problems, prompts, rewards, objective, settings, folder, [metrics]
    )
    trainer.train_or_resume(settings.steps)
    trainer.check_frozen()
    return GrpoOutcome(trainer.base_hash, trainer.rollouts.mismatch)


def build_trainer(
    model: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    engine: Engine,
    problems: Sequence["Problem"],
    prompts: Sequence[str],
    rewards: "RewardSet",
    objective: Objective,
    settings: GrpoSettings,
    folder: Path,
    callbacks: "list[TrainerCallback]",
) -> PolicyTrainer:
    """The trainer of `train_grpo`, not yet started."""
    from datasets import Dataset

    if len(problems) < settings.prompts_per_step:
        raise TrainingError(
            f"prompts_per_step is {settings.prompts_per_step}, but there are only {len(problems)} training problems"
        )
    dataset = Dataset.from_dict(
        {
            "prompt": list(prompts),
            "gold": [problem.gold for problem in problems],
            "problem_id": [problem.id for problem in problems],
            "domain": [problem.domain for problem in problems],
            "difficulty": [problem.difficulty for problem in problems],
        }
    )
    asked = [prompt_tokens(tokenizer, prompt) for prompt in prompts]
    probe = Probe.of_prompts(asked[:4])
    rollouts = Rollouts(
        engine=engine,
        model=model,
        sampling=Sampling(
            settings.max_completion_tokens,
            settings.temperature,
            settings.top_p,
            stop_token_ids=_stop_tokens(model, tokenizer),
        ),
        sync=settings.sync,
        seed=settings.seed,
        probe=probe,
    )
    model.set_adapter(POLICY)
    report_to, more = reporting(settings.report_to, folder)
    return PolicyTrainer(
        model=model,
        args=_arguments(settings, rewards, model, max(map(len, asked)), report_to, folder / "checkpoints"),
        objective=objective,
        rewards=rewards,
        rollouts=rollouts,
        dataset=dataset,
        tokenizer=tokenizer,
        probe=probe,
        callbacks=[*callbacks, *more],
    )


def _reward_names(rewards: "RewardSet") -> dict[str, str]:
    # TRL names a reward by its function
    own = (getattr(function, "__name__", str(function)) for function in rewards.functions)
    return {f"rewards/{trl}/mean": f"rewards/{name}" for trl, name in zip(own, rewards.names, strict=True)}


def _stop_tokens(model: "PeftModel", tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    declared = model.generation_config.eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    return tuple(sorted({tokenizer.eos_token_id, *declared} - {None}))


def _arguments(
    settings: GrpoSettings, rewards: "RewardSet", model: "PeftModel", longest: int, report_to: str, checkpoints: Path
):
    from trl import GRPOConfig

    cuda = torch.cuda.is_available()
    world = _world_size()
    batch = settings.prompts_per_step * settings.group_size
    if settings.prompts_per_step % world:
        raise TrainingError(
            f"prompts_per_step ({settings.prompts_per_step}) must be a multiple of the number of processes ({world}), "
            "so that no group is split over two of them"
        )
    local = batch // world
    micro = completions_at_once(settings.micro_batch_size, local, settings.max_completion_tokens, cuda=cuda)
    return GRPOConfig(
        output_dir=str(checkpoints),
        max_steps=settings.steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=local // micro,
        num_generations=settings.group_size,
        num_iterations=settings.num_iterations,
        max_completion_length=settings.max_completion_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        epsilon=settings.epsilon,
        epsilon_high=settings.epsilon_high,
        loss_type=settings.loss_type,
        scale_rewards=settings.scale_rewards,
        mask_truncated_completions=settings.mask_truncated_completions,
        reward_weights=list(rewards.weights),
        vllm_importance_sampling_mode="token_truncate",
        beta=0.0,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=arithmetic_of(model) == torch.bfloat16,
        gradient_checkpointing=checkpoints_activations(
            settings.gradient_checkpointing, model, micro * (longest + settings.max_completion_tokens)
        ),
        disable_dropout=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        # between two iterations over a batch there is no checkpoint: rollouts are not in it
        save_steps=math.ceil(settings.save_steps / settings.num_iterations) * settings.num_iterations,
        save_total_limit=2,
        report_to=report_to,
        disable_tqdm=True,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        log_completions=False,
    )


def _world_size() -> int:
    from accelerate import PartialState

    return PartialState().num_processes
