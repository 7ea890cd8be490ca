"""Settings of evaluation."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from models.settings import Nucleus, TopK
from settings import SIZE, Count, Node, NotNegative, Positive, Share, Temperature, as_tuple


class Evaluate(Nucleus, TopK):
    """How every stage is evaluated, on the same held-out problems."""

    samples: Annotated[Count, Field(le=1024), SIZE] = 1
    """Completions per problem."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
    min_p: Share = 0.0
    """Sample among the tokens at least this many times as likely as the likeliest one, at the sampling temperature
    (arXiv 2407.01082); 0 is off."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken off the logit of each token that the completion holds already, greedily too; 0 is off."""
    repetition_penalty: Annotated[Positive, Field(le=10)] = 1.0
    """Divides the logit of each token that prompt or completion hold already, and multiplies one below 0, greedily too
    (arXiv 1909.05858); 1 is off."""
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


class FidelityLimits(Node):
    """How far an export may be from the policy that was trained before it is refused (evals/fidelity.py)."""

    problems: Annotated[Count, SIZE] = 200
    """Held-out problems that the exported files answer, reloaded by each engine; the policy's answers are there."""
    max_kl: NotNegative | None = None
    """KL(policy || export), nats a token. None: what rounding to the export's dtype costs, with room; 0.2 on the
    original base."""
    min_agreement: Share = 0.9
    """Share of tokens at which policy and export put the same one first."""
    max_accuracy_loss: Share = 0.02
    """Points (0.02 is two) of accuracy that may be lost, where the paired interval says that some are."""
