"""The kinds of stages. A new kind is one class here and one function in `stages.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from settings import (
    FREE,
    SIZE,
    Count,
    Names,
    Node,
    NotNegative,
    Positive,
    Share,
    Slug,
    Temperature,
    Text,
    TopP,
    as_tuple,
)


class Gate(Node):
    """A stage's pass condition; a stage that misses it stops the recipe."""

    metric: Literal["accuracy", "greedy_accuracy", "format_rate"] = "accuracy"
    """What is compared."""
    against: Text = "previous"
    """`base`, `previous` (the evaluated stage before this one) or the name of an earlier stage."""
    min_difference: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """The metric may not be less than the other's plus this; -0.01 allows a loss of one point."""


class Stage(Node):
    """What all kinds of stages have."""

    evaluated: ClassVar[bool] = True
    """Whether the stage ends with an evaluation, so that gates can look at it."""

    name: Slug
    """Lower-case letters, digits, '-' and '_'; unique in the recipe; names the stage's folder."""
    parent: Text | None = None
    """The earlier stage whose policy this one takes up, or `base`. None: the nearest sft or grpo stage before it."""
    gate: Annotated[Gate | None, FREE] = None
    """Pass condition, judged after the stage."""


class BaseStage(Stage):
    """Stage 00 of every run: the evaluation of the untrained base. Not written in a recipe."""

    kind: Literal["base"] = "base"
    name: Slug = "base"


class DistillStage(Stage):
    """A teacher's traces, sampled and verified (sft/distill.py)."""

    evaluated: ClassVar[bool] = False

    kind: Literal["distill"]
    """distill"""
    teacher: Annotated[Text, SIZE]
    """Hub id, local folder, `embedded/teacher`, or `self` for the parent's own policy."""
    problems: Annotated[Count | None, SIZE] = None
    """Number of training problems to ask. None: all."""
    samples: Annotated[Count, SIZE] = 4
    """Completions per problem."""
    temperature: Temperature = 0.6
    """Sampling temperature (0.6 is DeepSeek-R1's own advice)."""
    top_p: TopP = 0.95
    """Nucleus."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample among the k likeliest tokens; 0 is off."""
    keep: Literal["correct", "all"] = "correct"
    """Keep traces whose answer equals the gold, or all that are not cut off."""
    max_per_problem: Annotated[Count | None, SIZE] = None
    """Keep at most this many traces per problem. None: all."""
    pass_rate: Annotated[
        tuple[Share, Share],
        BeforeValidator(as_tuple),
        WithJsonSchema({"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}),
    ] = (0.0, 1.0)
    """Keep problems of which the teacher got a share between these two right."""
    max_tokens: Annotated[Count, SIZE] = 2048
    """The teacher is cut off here, and what is cut off is dropped."""
    min_tokens: Annotated[int, Field(ge=0), SIZE] = 8
    """Shorter traces are dropped."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.pass_rate[0] > self.pass_rate[1]:
            raise PydanticCustomError("rule", "pass_rate: the lower bound comes first, as in [0.25, 0.75]")
        if self.min_tokens >= self.max_tokens:
            message = "min_tokens: {low} must be less than max_tokens ({high})"
            raise PydanticCustomError("rule", message, {"low": self.min_tokens, "high": self.max_tokens})
        return self


class Training(Stage):
    """What sft and grpo have in common."""

    steps: Annotated[Count, SIZE]
    """Optimizer steps."""
    learning_rate: Annotated[Positive, Field(le=1), SIZE]
    """Peak learning rate of AdamW."""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay."""
    max_grad_norm: Positive = 1.0
    """The gradient's norm is clipped to this."""
    micro_batch_size: Annotated[Count | None, SIZE] = None
    """Completions per forward pass; must divide the batch. None: chosen by the stage."""
    gradient_checkpointing: Annotated[bool | None, SIZE, FREE] = None
    """Compute activations again instead of keeping them: slower, less memory. None: where a GPU has too little."""
    save_steps: Annotated[Count, SIZE, FREE] = 20
    """Steps between checkpoints, from which a killed run goes on."""


class SftStage(Training):
    """The student imitates traces (TRL SFTTrainer; loss on the completion only)."""

    kind: Literal["sft"]
    """sft"""
    data: Names
    """Name of an earlier distill stage, or a .jsonl file (`question`, `answer`, `solution`), or a list of them."""
    batch_size: Annotated[Count, SIZE] = 32
    """Traces per optimizer step, over all processes."""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Course of the learning rate after warm-up."""
    warmup_ratio: Share = 0.05
    """Share of the steps in which the learning rate rises to its peak."""
    max_length: Annotated[Count | None, SIZE] = None
    """Longer examples (prompt and completion, tokens) are left out. None: what rollouts allow."""
    packing: Annotated[bool, SIZE] = False
    """Several traces in one row; saves padding where lengths differ much."""


class GrpoStage(Training):
    """The policy is optimised for the reward (TRL GRPOTrainer; arXiv 2402.03300)."""

    kind: Literal["grpo"]
    """grpo"""
    beta: NotNegative = 0.0
    """Weight of the KL penalty (k3 estimator). Never falls from one grpo stage to the next."""
    reference: Text = "start"
    """The KL penalty pulls to: `base` (adapters off), `start` (this stage's own start) or an earlier stage."""
    epsilon: Positive = 0.2
    """The ratio is clipped at 1 - epsilon."""
    epsilon_high: Positive = 0.28
    """The ratio is clipped at 1 + epsilon_high (clip-higher, DAPO)."""
    num_iterations: Annotated[int, Field(ge=1, le=16)] = 1
    """Optimizer passes over each batch of rollouts."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    """How token losses are averaged; see TRL."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """What divides the centred reward: the group's standard deviation, the batch's, or nothing."""
    mask_truncated_completions: bool = True
    """Completions that were cut off give no gradient."""
    mask_zero_variance_kl: bool = True
    """Groups that are all right or all wrong give no KL gradient either; their advantage is zero anyway."""
    lr_scheduler_type: Literal["constant", "cosine", "linear", "constant_with_warmup"] = "constant"
    """Course of the learning rate after warm-up."""
    warmup_ratio: Share = 0.0
    """Share of the steps in which the learning rate rises to its peak."""
    group_size: Annotated[Annotated[Count, Field(ge=2)] | None, SIZE] = None
    """None: as in rollouts."""
    prompts_per_step: Annotated[Count | None, SIZE] = None
    """None: as in rollouts."""
    temperature: Annotated[float, Field(gt=0, le=5)] | None = None
    """None: as in rollouts."""
    max_completion_tokens: Annotated[Count | None, SIZE] = None
    """None: as in rollouts."""


class EvaluateStage(Stage):
    """A further evaluation of the parent's policy; what is not said is as in `evaluate`."""

    kind: Literal["evaluate"]
    """evaluate"""
    problems: Annotated[Text | None, SIZE] = None
    """Other held-out problems. None: `problems.test`."""
    limit: Annotated[Count | None, SIZE] = None
    """At most this many problems. None: `problems.test_limit`."""
    samples: Annotated[Count | None, SIZE] = None
    """Completions per problem."""
    temperature: Temperature | None = None
    """Sampling temperature."""
    top_p: TopP | None = None
    """Nucleus."""
    greedy: bool | None = None
    """Also evaluate with temperature 0."""
    pass_at_k: Annotated[tuple[Count, ...] | None, BeforeValidator(as_tuple)] = None
    """Report pass@k for these k."""
    max_completion_tokens: Annotated[Count | None, SIZE] = None
    """A completion is cut off here."""


class ExportStage(Stage):
    """Adapter and merged model in safetensors, reloaded and compared with the policy before they count as done."""

    evaluated: ClassVar[bool] = False

    kind: Literal["export"]
    """export"""
    hub: Annotated[Text | None, FREE] = None
    """Hub repository `name/model` for the upload. None: the stage's folder only."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of the merged model."""


AnyStage = Annotated[
    DistillStage | SftStage | GrpoStage | EvaluateStage | ExportStage, Field(discriminator="kind")
]  # fmt: skip
KINDS: Mapping[str, type[Stage]] = {
    "distill": DistillStage,
    "sft": SftStage,
    "grpo": GrpoStage,
    "evaluate": EvaluateStage,
    "export": ExportStage,
}
