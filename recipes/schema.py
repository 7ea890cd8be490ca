"""The recipe: what may stand in the YAML file, with unit, range and source of every key.

Strict and frozen: an unknown key, text where a number belongs, or a beta that falls is an error before anything runs.
Two marks on the fields say what else the project needs to know about a key: `SIZE` keys may be set by a scale,
`FREE` keys do not change what a stage computes, so changing them does not invalidate a finished stage.
What concerns several stages at once (names, references, rising beta) is in `checks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from recipes.checks import faults_between_stages
from recipes.errors import near

SLUG = r"^[a-z0-9][a-z0-9_-]*$"


class Mark:
    """A word attached to a field's annotation; see the module docstring."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


SIZE = Mark("SIZE")
FREE = Mark("FREE")


def _as_tuple(value: object) -> object:
    """YAML lists become tuples, so that the recipe is hashable and frozen all the way down."""
    return tuple(value) if isinstance(value, list) else value


def _one_or_many(value: object) -> object:
    return (value,) if isinstance(value, str) else _as_tuple(value)


Slug = Annotated[str, Field(pattern=SLUG, max_length=40)]
Count = Annotated[int, Field(gt=0, le=10**9)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
TopP = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=5)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
Names = Annotated[
    tuple[Text, ...],
    Field(min_length=1),
    BeforeValidator(_one_or_many),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]


class Node(BaseModel):
    """A mapping in the YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True,
                              allow_inf_nan=False)  # fmt: skip


class Lora(Node):
    """The adapter: W + (alpha / rank) B A, the only thing that is trained (arXiv 2106.09685)."""

    rank: Annotated[Count, Field(le=512), SIZE] = 32
    """Rank of the update; vLLM serves up to 512."""
    alpha: Annotated[Positive, SIZE] = 64.0
    """Scale of the update; alpha / rank multiplies B A."""
    dropout: Share = 0.0
    """Dropout on the adapter's input. 0 keeps rollouts and training the same policy."""
    targets: Names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers that get an adapter."""


class Model(Node):
    """The frozen base and the adapter on it."""

    base: Annotated[Text, SIZE]
    """Hub id, local folder, or `embedded/student`, which ships with the package."""
    quantize: Literal["nf4", "none"] = "nf4"
    """4-bit NF4 with double quantisation (arXiv 2305.14314), or none."""
    dtype: Annotated[Literal["auto", "bfloat16", "float32"], SIZE] = "auto"
    """Arithmetic of the trainer. auto: bfloat16 on a GPU, float32 on a CPU."""
    lora: Lora = Lora()
    """The adapter."""


class Problems(Node):
    """Where problems come from."""

    train: Annotated[Text, SIZE]
    """`embedded` (the generator), a .jsonl file (`question`, `answer`, optional `solution`), or a Hub dataset."""
    test: Annotated[Text, SIZE]
    """The held-out problems of every evaluation; same sources as `train`."""
    format: Text = "think-boxed"
    """Prompt and answer contract, see rewards/formats.py. think-boxed: <think>...</think>, then a box."""
    train_limit: Annotated[Count | None, SIZE] = None
    """Use at most this many training problems. None: all (of the generator: 4,000)."""
    test_limit: Annotated[Count | None, SIZE] = None
    """Evaluate on at most this many problems. None: all (of the generator: 500)."""


class Reward(Node):
    """Weights of the reward's components; other names are functions in `file`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Annotated[float, Field(allow_inf_nan=False)]]

    correct: NotNegative = 1.0
    """1 for a completion whose answer equals the gold, 0 otherwise."""
    format: NotNegative = 0.1
    """1 for a completion that keeps to the format, 0 otherwise."""
    length: NotNegative = 0.0
    """Overlong penalty, 0 to -1 (DAPO, arXiv 2503.14476)."""
    repetition: NotNegative = 0.0
    """Penalty for repeated n-grams, 0 to -1."""
    file: Text | None = None
    """Python file with reward functions in TRL's signature, named here with their weights. It is executed."""
    ungradable_limit: Share = 0.05
    """A step stops the run when a larger share of its completions cannot be graded."""

    @property
    def weights(self) -> dict[str, float]:
        """Component or function name -> weight; components of weight 0 are left out."""
        own = {name: getattr(self, name) for name in ("correct", "format", "length", "repetition")}
        return {name: weight for name, weight in (own | (self.__pydantic_extra__ or {})).items() if weight != 0}

    @model_validator(mode="after")
    def _right_beats_wrong(self) -> Self:
        others = self.format + self.length + self.repetition
        unknown = list(self.__pydantic_extra__ or {})
        if unknown and self.file is None:
            hint = near(unknown[0], type(self).model_fields)
            message = "{name}: unknown component{hint} (functions of your own need `file:`)"
            raise PydanticCustomError("rule", message, {"name": unknown[0], "hint": hint})
        if self.correct == 0 and not self.__pydantic_extra__:
            raise PydanticCustomError("rule", "correct: 0 leaves nothing to learn; give it a weight, such as 1.0")
        if 0 < self.correct <= others:
            message = (
                "correct: {correct} must be more than format + length + repetition ({others}), "
                "or a well-formed wrong answer beats a right one"
            )
            raise PydanticCustomError("rule", message, {"correct": f"{self.correct:g}", "others": f"{others:g}"})
        return self


class DynamicSampling(Node):
    """Groups that are all right or all wrong are replaced by fresh problems (DAPO, arXiv 2503.14476)."""

    max_resamples: Annotated[int, Field(ge=0, le=100)] = 0
    """Further rounds of sampling that a step may take to fill its batch. 0: off."""


class Rollouts(Node):
    """How completions are sampled while training."""

    engine: Annotated[Literal["auto", "vllm", "transformers"], SIZE] = "auto"
    """auto: vllm where it is installed, else transformers."""
    sync: Annotated[Literal["auto", "folded", "adapter"], SIZE] = "auto"
    """What the engine gets after a step: the adapter, or folded weights. auto: folded on a CPU, adapter elsewhere."""
    dtype: Annotated[Literal["auto", "bfloat16", "float32"], SIZE] = "auto"
    """Arithmetic of the engine. auto: bfloat16 on a GPU, float32 on a CPU."""
    gpu_memory_utilization: Annotated[TopP, SIZE, FREE] = 0.35
    """Share of the GPU's memory that the vLLM engine takes, weights and KV cache together."""
    group_size: Annotated[Count, Field(ge=2), SIZE] = 16
    """Completions per problem (TRL: num_generations); the advantage is relative to their mean."""
    prompts_per_step: Annotated[Count, SIZE] = 32
    """Problems per optimizer step, over all processes."""
    temperature: Annotated[float, Field(gt=0, le=5)] = 1.0
    """Sampling temperature; 1 samples the policy that is trained."""
    top_p: TopP = 1.0
    """Nucleus; 1 is off."""
    max_completion_tokens: Annotated[Count, SIZE] = 2048
    """A completion is cut off here (TRL: max_completion_length)."""
    max_prompt_tokens: Annotated[Count, SIZE] = 512
    """Problems with a longer prompt are left out."""
    dynamic_sampling: DynamicSampling = DynamicSampling()
    """Replacement of groups that teach nothing."""


class Evaluate(Node):
    """How every stage is evaluated, on the same held-out problems."""

    samples: Annotated[Count, Field(le=1024), SIZE] = 1
    """Completions per problem."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
    top_p: TopP = 1.0
    """Nucleus; 1 is off."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """Of the intervals."""
    greedy: bool = True
    """Also evaluate with temperature 0, one completion per problem."""
    pass_at_k: Annotated[tuple[Count, ...], BeforeValidator(_as_tuple)] = ()
    """Report pass@k for these k, each at most `samples` (unbiased, arXiv 2107.03374)."""
    max_completion_tokens: Annotated[Count | None, SIZE] = None
    """None: as in rollouts."""

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if self.pass_at_k and max(self.pass_at_k) > self.samples:
            message = "pass_at_k: k = {k} needs at least {k} samples per problem, and `samples` is {samples}"
            raise PydanticCustomError("rule", message, {"k": max(self.pass_at_k), "samples": self.samples})
        return self


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
        BeforeValidator(_as_tuple),
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
    pass_at_k: Annotated[tuple[Count, ...] | None, BeforeValidator(_as_tuple)] = None
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


class Recipe(Node):
    """A recipe: which base, which problems, which stages in which order."""

    name: Slug
    """Names the run's folder."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 17
    """Of everything that is random."""
    model: Model
    """The frozen base and the adapter."""
    problems: Problems
    """Training problems and held-out problems."""
    reward: Reward = Reward()
    """What grpo optimises."""
    rollouts: Rollouts = Rollouts()
    """How completions are sampled while training."""
    evaluate: Evaluate = Evaluate()
    """How every stage is evaluated."""
    report_to: Annotated[Literal["none", "tensorboard", "trackio", "wandb"], FREE] = "none"
    """Where step metrics go besides metrics.jsonl."""
    stages: Annotated[tuple[AnyStage, ...], Field(min_length=1, max_length=90), BeforeValidator(_as_tuple)]
    """What happens, in this order."""

    @model_validator(mode="before")
    @classmethod
    def _stages_fit_together(cls, data: Any, info: ValidationInfo) -> Any:
        checked = (info.context or {}).get("between_stages") == "checked"
        faults = faults_between_stages(data) if isinstance(data, Mapping) and not checked else []
        if faults:
            raise PydanticCustomError("between_stages", "{text}", {"text": "\n".join(map(str, faults))})
        return data

    def stage(self, name: str) -> Stage:
        """The stage of that name; `base` is the pseudo stage 00. Raises KeyError."""
        found = next((stage for stage in (BaseStage(), *self.stages) if stage.name == name), None)
        if found is None:
            raise KeyError(name)
        return found

    def parent_of(self, name: str) -> str | None:
        """The earlier stage whose policy this stage takes up; None for the base."""
        before: str | None = None
        for stage in self.stages:
            if stage.name == name:
                return before if stage.parent is None else (None if stage.parent == "base" else stage.parent)
            if isinstance(stage, SftStage | GrpoStage):
                before = stage.name
        return None

    def rollouts_of(self, stage: GrpoStage) -> Rollouts:
        """The rollout settings of a grpo stage, its own overrides included."""
        own = {key: getattr(stage, key) for key in
               ("group_size", "prompts_per_step", "temperature", "max_completion_tokens")}  # fmt: skip
        return self.rollouts.model_copy(update={key: value for key, value in own.items() if value is not None})

    def evaluate_of(self, stage: Stage) -> Evaluate:
        """The evaluation settings of a stage, its own overrides included and `max_completion_tokens` filled in."""
        keys = ("samples", "temperature", "top_p", "greedy", "pass_at_k", "max_completion_tokens")
        own = {key: getattr(stage, key) for key in keys} if isinstance(stage, EvaluateStage) else {}
        update = {key: value for key, value in own.items() if value is not None}
        update.setdefault(
            "max_completion_tokens", self.evaluate.max_completion_tokens or self.rollouts.max_completion_tokens
        )
        return self.evaluate.model_copy(update=update)


def marked(model: type[BaseModel], mark: Mark) -> frozenset[str]:
    """The fields of a model that carry the mark."""
    return frozenset(name for name, field in model.model_fields.items() if mark in field.metadata)
