"""Whether exported files are the policy that was trained: its distributions token by token, and its answers.

Two questions, since either alone can be fooled. The divergence is exact and needs few tokens, but compares a model that
transformers holds in memory. The answers come from the files as a user will load them, in each engine that can, on the
very problems and under the very random numbers that the policy was evaluated with, so that the two are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evals.divergence import Divergence
from evals.evaluate import Evaluation, compare
from evals.settings import FidelityLimits
from evals.statistics import Interval, PairedDifference


@dataclass(frozen=True)
class Reloaded:
    """Exported files in one engine, beside the policy's own evaluation.

    Fields:
        engine: which; of: the pass that is compared (`sampled` or `greedy`).
        accuracy: of the export; difference: export minus policy, paired by problem.
        changed: problems that are not answered exactly as the policy did, sample by sample.
    """

    engine: str
    of: str
    accuracy: Interval
    difference: PairedDifference
    changed: int


@dataclass(frozen=True)
class Fidelity:
    """How an export compares with the policy that was trained.

    Fields:
        kl: KL(policy || export), nats a token, exact over the vocabulary; agreement: share of tokens at which both put
            the same one first; tokens: completion tokens that both are taken over.
        merge_kl: KL from the adapter, unmerged, on the base that it was merged into; None where that is the base that
            it was trained on, of which `kl` is.
        reloaded: by engine and pass.
    """

    kl: float
    agreement: float
    tokens: int
    merge_kl: float | None
    reloaded: tuple[Reloaded, ...]

    def misses(self, limits: FidelityLimits, *, usual_kl: float, rounding: float) -> tuple[str, ...]:
        """What is beyond the limits, and by how much; nothing where the export may be called the policy.

        Args:
            usual_kl: what `limits.max_kl: null` means for this kind of export.
            rounding: KL that the export's dtype may cost; what a merge costs beyond that is a mistake in it.
        """
        most = limits.max_kl if limits.max_kl is not None else usual_kl
        missed = []
        # a NaN is within no limit
        if not self.kl <= most:
            missed.append(f"KL to the trained policy is {self.kl:.2g} nats a token, {most:g} is allowed")
        if self.merge_kl is not None and not self.merge_kl <= rounding:
            missed.append(
                f"KL to the adapter on the base that it was merged into is {self.merge_kl:.2g} nats a token, which "
                f"rounding does not explain ({rounding:g})"
            )
        if not self.agreement >= limits.min_agreement:
            missed.append(
                f"the likeliest token is the same in {self.agreement:.1%} of all places, "
                f"{limits.min_agreement:.1%} is asked for"
            )
        for one in self.reloaded:
            lost = one.difference
            if lost.difference < -limits.max_accuracy_loss and lost.high < 0:
                missed.append(
                    f"reloaded by {one.engine}, {one.of} accuracy is {100 * lost.difference:+.1f} points "
                    f"[{100 * lost.low:+.1f}, {100 * lost.high:+.1f}] to the policy's on the same {lost.n} problems, "
                    f"a loss of {100 * limits.max_accuracy_loss:g} is allowed"
                )
        return tuple(missed)


def fidelity(
    divergence: Divergence, merge_kl: float | None, policy: Evaluation, exported: Sequence[tuple[str, Evaluation]]
) -> Fidelity:
    """Put together what was measured.

    Args:
        policy: its own evaluation.
        exported: (engine, evaluation of the reloaded files on all or some of the policy's problems). A pass at the
            temperature of one of the policy's is compared with that one.

    Raises:
        ValueError: an evaluation has problems that the policy's does not have.
    """
    reloaded = tuple(
        _beside(policy, engine, evaluation, of) for engine, evaluation in exported for of in _passes(policy, evaluation)
    )
    return Fidelity(divergence.kl, divergence.agreement, divergence.tokens, merge_kl, reloaded)


def _passes(policy: Evaluation, exported: Evaluation) -> list[str]:
    """The passes that both have: a greedy one is only ever compared with a greedy one."""
    found = []
    if exported.sampled.temperature == policy.sampled.temperature:
        found.append("sampled")
    if exported.greedy is not None and policy.greedy is not None and policy.sampled.temperature:
        found.append("greedy")
    return found


def _beside(policy: Evaluation, engine: str, exported: Evaluation, of: str) -> Reloaded:
    difference = compare(exported, policy, of=of, some=True)
    own, other = getattr(exported, of), getattr(policy, of)
    answers = dict(zip(policy.problem_ids, other.correct, strict=True))
    changed = sum(answers[id] != row for id, row in zip(exported.problem_ids, own.correct, strict=True))
    return Reloaded(engine, of, own.accuracy, difference, changed)
