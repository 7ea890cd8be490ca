"""One GRPO stage: a policy goes in, a policy trained for `steps` optimizer steps comes out."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.adapters import POLICY
from models.engines.serving import Served
from models.reference import Reference
from models.sizes import completion_tokens_at_once
from models.sweep import Sweep
from models.training import (
    MetricsFile,
    StepListener,
    TrainingError,
    learning_rate_course,
    per_process,
    reporting,
    trainer_arguments,
)
from rl.settings import GrpoSettings, Rollouts
from rl.trainer import PolicyTrainer

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase
    from trl import GRPOConfig

    from rewards.problems import Asked
    from rewards.scoring import RewardSet

# TRL's name -> name in metrics.jsonl
METRIC_NAMES = {"clip_ratio/region_mean": "clipped"}


@dataclass(frozen=True)
class GrpoOutcome:
    """What a stage reports beside its adapter: base hash (the same at start and end) and the engine's mismatch at the
    last step."""

    base_sha256: str
    engine_mismatch: float


def train_grpo(
    policy: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    asked: "Asked",
    rewards: "RewardSet",
    served: Served,
    settings: GrpoSettings,
    rollouts: Rollouts,
    folder: Path,
    *,
    reference: Reference,
    seed: int,
    report_to: str,
    on_step: StepListener | None = None,
    sweep: Sweep | None = None,
    moments: Path | None = None,
) -> GrpoOutcome:
    """Train the policy (the model's adapter `default`), resuming from the folder's last complete checkpoint.

    Args:
        served: the engine that samples, and the policy's way into it.
        rollouts: with the stage's own values in the place of the recipe's.
        folder: gets metrics.jsonl and checkpoints/.
        reference: what `settings.reference` names.
        report_to: see models/training.py, `reporting`.
        sweep: measures the policy on its way.
        moments: folder of an adapter whose optimizer this one goes on with; None: it begins anew.

    Raises:
        TrainingError: NaN, a changed base or reference, a checkpoint that is not what its record says.
        EngineError: the engine does not serve the policy.
    """
    if len(asked.problems) < rollouts.prompts_per_step:
        raise TrainingError(
            f"prompts_per_step is {rollouts.prompts_per_step}, "
            f"but there are only {len(asked.problems)} training problems"
        )
    policy.set_adapter(POLICY)
    trl_reports_to, callbacks = reporting(report_to, folder)
    longest = max(map(len, asked.tokens)) + rollouts.max_completion_tokens
    at_once = completion_tokens_at_once(settings.micro_batch_size, longest, cuda=torch.cuda.is_available())
    trainer = PolicyTrainer(
        policy,
        _arguments(settings, rollouts, policy, folder / "checkpoints", at_once, seed, trl_reports_to),
        settings,
        rollouts,
        reference=reference,
        rewards=rewards,
        served=served,
        dataset=_dataset(asked),
        tokens_at_once=at_once,
        tokenizer=tokenizer,
        callbacks=[
            MetricsFile(folder / "metrics.jsonl", METRIC_NAMES, {"beta": settings.beta}, on_step),
            *callbacks,
            *([sweep] if sweep else []),
        ],
    )
    trainer.moments = moments
    trainer.train_or_resume(settings.steps)
    trainer.check_frozen()
    return GrpoOutcome(trainer.base_hash, trainer.last_logged("engine_mismatch"))


def _dataset(asked: "Asked") -> "Dataset":
    """A row per problem: the prompt as text and as tokens, and the columns that reward functions get."""
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "prompt": list(asked.prompts),
            "prompt_ids": [list(tokens) for tokens in asked.tokens],
            "gold": [problem.gold for problem in asked.problems],
            "problem_id": [problem.id for problem in asked.problems],
            "domain": [problem.domain for problem in asked.problems],
            "difficulty": [problem.difficulty for problem in asked.problems],
        }
    )


def _arguments(
    settings: GrpoSettings,
    rollouts: Rollouts,
    policy: "PeftModel",
    checkpoints: Path,
    tokens_at_once: int,
    seed: int,
    report_to: str,
) -> "GRPOConfig":
    """What TRL's loop and loss take; sampling, rewards and advantages are not TRL's (rl/rollouts.py)."""
    from trl import GRPOConfig

    together = ", so that no group is split over two of them"
    rows = per_process(rollouts.prompts_per_step, "prompts_per_step", together) * rollouts.group_size
    common = trainer_arguments(
        settings,
        policy,
        checkpoints,
        # a step's rows are one batch to TRL; the trainer makes the passes
        rows=rows,
        rows_at_once=rows,
        tokens_at_once=tokens_at_once,
        # between two iterations over a batch there is no checkpoint: rollouts are not in it
        save_multiple=settings.num_iterations,
        seed=seed,
        report_to=report_to,
    )
    return GRPOConfig(
        **common,
        **learning_rate_course(settings.lr_scheduler_type, settings.warmup_ratio, settings.steps),
        beta=settings.beta,
        epsilon=settings.epsilon,
        epsilon_high=settings.epsilon_high,
        num_iterations=settings.num_iterations,
        loss_type=settings.loss_type,
        temperature=rollouts.temperature,
        num_generations=rollouts.group_size,
        max_completion_length=rollouts.max_completion_tokens,
        disable_dropout=False,
        remove_unused_columns=False,
        log_completions=False,
    )
