"""Settings of evaluation."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from models.settings import Nucleus, TopK
from settings import SIZE, Count, Names, Node, NotNegative, Positive, Share, Temperature, TopP, as_tuple


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
    perplexity: Annotated[int, Field(ge=0, le=10**6), SIZE] = 256
    """Texts, one of each problem, of which perplexity is measured after training: of each source that was trained on,
    and of the held-out problems' written solutions; 0 is off."""
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


class Truncation(Node):
    """How a distribution is cut before a token is drawn from it, in vLLM's order: temperature, min-p, top-k, and top-p
    of what is left, renormalised. Defaults: as SSD samples from a thinking 4B model (arXiv 2604.01193)."""

    temperature: Annotated[float, Field(gt=0, le=5)] = 1.1
    """Divides the logits."""
    min_p: Share = 0.0
    """Tokens below this share of the likeliest one's probability are cut; 0 is off."""
    top_k: Annotated[int, Field(ge=0)] = 20
    """The k likeliest tokens stay; 0 is off."""
    top_p: TopP = 0.95
    """Nucleus of what is left; 1 is off."""


class TokenClasses(Node):
    """Where a next token is all but decided (a lock), and where several are open (a fork), by the probabilities of the
    policy before training at temperature 1. The notions are SSD's (arXiv 2604.01193), which gives no thresholds; these
    are this project's."""

    nucleus: TopP = 0.95
    """The fewest tokens that have this mass together are the nucleus."""
    tail_beyond: Count = 20
    """What is behind so many likeliest tokens is the tail."""
    lock_top1: Share = 0.9
    """Lock: the likeliest token has at least this probability."""
    lock_nucleus: Count = 2
    """Lock: the nucleus has at most so many tokens."""
    lock_tail: Share = 1e-3
    """Lock: the tail has at most this mass."""
    fork_top1: Share = 0.6
    """Fork: the likeliest token has at most this probability."""
    fork_ratio: Share = 0.25
    """Fork: a token is open that has at least this share of the likeliest one's probability."""
    fork_tokens: Annotated[Count, Field(ge=2)] = 2
    """Fork: at least so many tokens are open, the likeliest one included."""
    fork_tail: Share = 0.01
    """Fork: the tail has at most this mass; with more the policy is uncertain rather than at a fork."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.lock_top1 <= self.fork_top1:
            message = "lock_top1 ({lock}) must be above fork_top1 ({fork}), or a token is both"
            raise PydanticCustomError("rule", message, {"lock": self.lock_top1, "fork": self.fork_top1})
        return self


class Places(Node):
    """At which tokens of an answer two policies are compared (evals/carriers.py); the kinds of places are those of
    flf.dev, "Self-distillation on math: probing"."""

    every: Annotated[Count, SIZE] = 16
    """Tokens from one regular place to the next."""
    near_box: Annotated[int, Field(ge=0, le=1000)] = 2
    r"""Tokens to either side of a `\boxed` that count as near it."""
    corrections: Names = ("wait", "but")
    """Words with which an answer turns round; case does not matter. The place is where the word begins."""
    declarations: Names = ("let",)
    """Words with which it sets something down, likewise."""
    random: Annotated[int, Field(ge=0, le=10**6), SIZE] = 4
    """Places drawn from the remaining tokens."""


class ProbeSettings(Node):
    """Two policies' next-token distributions at the same places of the same answers (evals/probe.py)."""

    problems: Annotated[Count, SIZE] = 64
    """Held-out problems that each policy answers once, sampled as in `evaluate`."""
    carriers: Annotated[Count, SIZE] = 4
    """Answers taken of each stratum: who wrote it, whether it is right, how long it is."""
    length_bands: Annotated[Count, Field(le=10)] = 2
    """Strata of length, with equally many answers."""
    places: Places = Places()
    """At which of their tokens."""
    classes: TokenClasses = TokenClasses()
    """What is a lock, and what is a fork."""
    truncation: Truncation = Truncation()
    """Under which survivors, kept mass and the drawn distribution's entropy are measured."""


class AuditSettings(Node):
    """Whether a learned controller's labels can be learned at all (evals/audit.py)."""

    folds: Annotated[int, Field(ge=2, le=100)] = 5
    """Of the cross-validation, each with its share of every class; every class needs at least so many rows."""
    l2: Positive = 0.1
    """Added to the diagonal of the covariance within classes; features are standardised, so 1 is as much as a feature's
    own variance."""
    permutations: Annotated[Count, Field(le=10**6)] = 200
    """Times that the labels are shuffled and everything is done again."""
    significance: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """GO takes a p-value below this."""

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if 1 / (1 + self.permutations) >= self.significance:
            message = "{permutations} permutations give no p-value below {least}, and `significance` is {significance}"
            values = {"permutations": self.permutations, "least": f"{1 / (1 + self.permutations):.3g}"}
            raise PydanticCustomError("rule", message, values | {"significance": self.significance})
        return self
