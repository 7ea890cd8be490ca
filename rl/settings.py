"""Settings of reinforcement learning: how completions are sampled, and what is optimised."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from models.settings import Nucleus, Serving, TrainingSettings
from settings import SIZE, Count, Node, NotNegative, Positive, Refers, Share, Text, optional


class DynamicSampling(Node):
    """Groups that are all right or all wrong are replaced by fresh problems (DAPO, arXiv 2503.14476), be they mixed in
    format or not."""

    max_resamples: Annotated[int, Field(ge=0, le=100)] = 0
    """Further rounds of sampling that a step may take to fill its batch. 0: off."""


class Rollouts(Serving, Nucleus):
    """How completions are sampled while training."""

    group_size: Annotated[Count, Field(ge=2), SIZE] = 16
    """Completions per problem (TRL: num_generations); the advantage is relative to their mean."""
    prompts_per_step: Annotated[Count, SIZE] = 32
    """Problems per optimizer step, over all processes."""
    temperature: Annotated[float, Field(gt=0, le=5)] = 1.0
    """Sampling temperature; 1 samples the policy that is trained."""
    max_completion_tokens: Annotated[Count, SIZE] = 2048
    """A completion is cut off here (TRL: max_completion_length)."""
    max_prompt_tokens: Annotated[Count, SIZE] = 512
    """Problems with a longer prompt are left out."""
    dynamic_sampling: DynamicSampling = DynamicSampling()
    """Replacement of groups that teach nothing."""


class GrpoSettings(
    TrainingSettings,
    optional(
        Rollouts, "group_size", "prompts_per_step", "temperature", "max_completion_tokens",
        otherwise="None: as in rollouts.",
    ),
):  # fmt: skip
    """The policy is optimised for the reward under a KL penalty (TRL GRPOTrainer; arXiv 2402.03300)."""

    beta: NotNegative = 0.0
    """Weight of the KL penalty (k3 estimator). Never falls from one grpo stage to the next."""
    reference: Annotated[Text, Refers("policy", also=("base", "start"))] = "start"
    """The KL penalty pulls to: `base` (adapters off), `start` (this stage's own start) or an earlier stage."""
    epsilon: Positive = 0.2
    """The ratio is clipped at 1 - epsilon."""
    epsilon_high: Positive = 0.28
    """The ratio is clipped at 1 + epsilon_high (clip-higher, DAPO)."""
    num_iterations: Annotated[int, Field(ge=1, le=16)] = 1
    """Optimizer passes over each batch of rollouts."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    """How token losses are averaged; see TRL. A mean over a batch is one over the process's part of the step."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What divides the centred reward: the group's standard deviation, the batch's, or nothing. In groups that are all
    right or all wrong it is the weight of `correct` instead of a deviation (rl/advantages.py)."""
    mask_truncated_completions: bool = True
    """Completions that were cut off give no gradient."""
    mask_zero_variance_kl: bool = True
    """Completions that have no advantage because their group is all right or all wrong give no KL gradient either."""
    lr_scheduler_type: Literal["constant", "cosine", "linear", "constant_with_warmup"] = "constant"
    """Course of the learning rate after warm-up; a constant one warms up where warmup_ratio says so."""
    warmup_ratio: Share = 0.0
    """Share of the steps in which the learning rate rises to its peak."""
