"""Settings of evaluation."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from models.settings import Nucleus
from settings import SIZE, Count, Temperature, as_tuple


class Evaluate(Nucleus):
    """How every stage is evaluated, on the same held-out problems."""

    samples: Annotated[Count, Field(le=1024), SIZE] = 1
    """Completions per problem."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
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
