"""The recipe: what may stand in the YAML file, with unit, range and source of every key.

Strict and frozen: an unknown key, text where a number belongs, or a beta that falls is an error before anything runs.
The kinds of stages are in `schema_stages.py`, what concerns several stages at once (names, references, rising beta)
in `checks.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from recipes.checks import faults_between_stages
from recipes.errors import near
from recipes.schema_base import (
    FREE,
    SIZE,
    Count,
    Mark,
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
    marked,
)
from recipes.schema_stages import (
    KINDS,
    AnyStage,
    BaseStage,
    DistillStage,
    EvaluateStage,
    ExportStage,
    Gate,
    GrpoStage,
    SftStage,
    Stage,
    Training,
)

__all__ = [
    "FREE", "KINDS", "SIZE", "AnyStage", "BaseStage", "DistillStage", "DynamicSampling", "Evaluate", "EvaluateStage",
    "ExportStage", "Gate", "GrpoStage", "Lora", "Mark", "Model", "Node", "Problems", "Recipe", "Reward", "Rollouts",
    "SftStage", "Stage", "Training", "marked",
]  # fmt: skip


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
    cosine: NotNegative = 0.0
    """A right answer pays more the shorter it is, a wrong one costs less the longer (arXiv 2502.03373)."""
    repetition: NotNegative = 0.0
    """Penalty for repeated n-grams, 0 to -1."""
    file: Text | None = None
    """Python file with reward functions in TRL's signature, named here with their weights. It is executed."""
    ungradable_limit: Share = 0.05
    """A step stops the run when a larger share of its completions cannot be graded."""

    @property
    def weights(self) -> dict[str, float]:
        """Component or function name -> weight; components of weight 0 are left out."""
        own = {name: getattr(self, name) for name in ("correct", "format", "length", "cosine", "repetition")}
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
    """What the engine gets after a step: the adapter, or folded weights. auto: folded, but the adapter where
    vLLM serves an unquantised base in bfloat16, in whose rounding a folded update could be lost."""
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
    pass_at_k: Annotated[tuple[Count, ...], BeforeValidator(as_tuple)] = ()
    """Report pass@k for these k, each at most `samples` (unbiased, arXiv 2107.03374)."""
    max_completion_tokens: Annotated[Count | None, SIZE] = None
    """None: as in rollouts."""

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if self.pass_at_k and max(self.pass_at_k) > self.samples:
            message = "pass_at_k: k = {k} needs at least {k} samples per problem, and `samples` is {samples}"
            raise PydanticCustomError("rule", message, {"k": max(self.pass_at_k), "samples": self.samples})
        return self


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
    stages: Annotated[tuple[AnyStage, ...], Field(min_length=1, max_length=90), BeforeValidator(as_tuple)]
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
