"""Settings of imitation: a teacher's traces, and training on them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from models.settings import TopK, TrainingSettings
from settings import SIZE, Count, Names, Node, Refers, Share, Shares, Temperature, Text, TopP, as_tuple, by_form


class Band(Node):
    """Problems of a difficulty."""

    pass_rate: Annotated[
        tuple[Share, Share],
        BeforeValidator(as_tuple),
        WithJsonSchema({"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}),
    ] = (0.0, 1.0)
    """Keep problems of which the teacher got a share between these two right, both inclusive."""

    @model_validator(mode="after")
    def _lower_first(self) -> Self:
        if self.pass_rate[0] > self.pass_rate[1]:
            raise PydanticCustomError("rule", "pass_rate: the lower bound comes first, as in [0.25, 0.75]")
        return self


class DistillSettings(TopK, Band):
    """A teacher's traces, sampled and verified (sft/distill.py)."""

    teacher: Annotated[Text, SIZE, Refers("model", also=("self",))]
    """Hub id (`name[@revision]`), local folder, `embedded/teacher`, or `self` for the parent's own policy."""
    problems: Annotated[Count | None, SIZE] = None
    """Number of training problems to ask. None: all."""
    samples: Annotated[Count, SIZE] = 4
    """Completions per problem."""
    temperature: Temperature = 0.6
    """Sampling temperature (0.6 is DeepSeek-R1's own advice)."""
    top_p: TopP = 0.95
    """Nucleus."""
    keep: Literal["correct", "all", "raw"] = "correct"
    """Keep traces whose answer equals the gold; or all that have an answer and are not cut off; or, without any check,
    the samples just as they are and as often as they were drawn, but for those that are empty, cut off or shorter than
    `min_tokens` (SSD, arXiv 2604.01193)."""
    max_per_problem: Annotated[Count | None, SIZE] = None
    """Keep at most this many traces per problem. None: all."""
    max_tokens: Annotated[Count, SIZE] = 2048
    """The teacher is cut off here, and what is cut off is dropped."""
    min_tokens: Annotated[int, Field(ge=0), SIZE] = 8
    """Shorter traces are dropped."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_tokens >= self.max_tokens:
            message = "min_tokens: {low} must be less than max_tokens ({high})"
            raise PydanticCustomError("rule", message, {"low": self.min_tokens, "high": self.max_tokens})
        return self


class SolutionsSettings(Node):
    """The training problems' own written solutions as traces (sft/distill.py, `traces_of_solutions`)."""

    same_problems_as: Annotated[Text | None, Refers("traces")] = None
    """An earlier stage that gives traces: only problems of which it has one, so that both have the same problems. None:
    all training problems."""


class SftSettings(TrainingSettings, Band):
    """The student imitates traces (TRL SFTTrainer; loss on the completion only)."""

    data: Annotated[by_form(Names, Shares), Refers("traces", file=True, keys=True)]
    """Name of an earlier stage that gives traces, or a .jsonl file (`question`, `answer`, `solution`); or a list, of
    which all is taken; or shares, `{traces: 0.5, teacher: 0.5}`: only their ratios count, and as many traces are taken
    as the source that has the fewest for its share allows (sft/mixing.py)."""
    at_most: Annotated[Count | None, SIZE] = None
    """At most this many traces, drawn by the stage's seed. None: all."""
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
    memorisation_above: Annotated[float, Field(ge=1)] = 1.25
    """With `evaluate_every`: warn where the perplexity of traces set aside (a tenth of the problems, at most 128) is
    more than this many times that of traces trained on, and the interval of that ratio is above 1. A bound of this
    project's, that of a preflight's `max_ratio`."""
