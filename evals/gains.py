"""Where a difference in accuracy comes from: from problems at which the policy before was cut off, wrong or right.

Training on its own samples may teach a policy something of its tokens, or just to come to an end where it thought too
long. So problems are told apart by the policy before, by its greedy answer: cut off at the limit, wrong, or right. What
is gained is counted in the sampled answers, other draws than the one that told the problems apart: counted on the same
draw, problems that were wrong by chance would seem to be gained, and those right by chance to be lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evals.statistics import PairedDifference, paired_difference

if TYPE_CHECKING:
    from evals.evaluate import Evaluation

CUT_OFF, WRONG, RIGHT = "cut off", "wrong", "right"
"""What the policy's greedy answer was before; a cut-off one is that whether right or wrong."""


@dataclass(frozen=True)
class Gain:
    """What became of the problems of one sort.

    Fields:
        before: `CUT_OFF`, `WRONG` or `RIGHT`.
        share: of all problems.
        difference: of sampled accuracy on these problems, paired, with its interval.
        part: what they add to the difference on all problems; the parts sum to it.
        longer: mean change of a completion's tokens.
    """

    before: str
    share: float
    difference: PairedDifference
    part: float
    longer: float


def gains(after: Evaluation, before: Evaluation, seed: int = 0) -> tuple[Gain, ...]:
    """The sorts that there are, in the order above; nothing where `before` has no greedy pass beside a sampled one, or
    an evaluation does not say how long its completions are.

    Raises:
        ValueError: the evaluations are of different problems.
    """
    row = {id: at for at, id in enumerate(before.problem_ids)}
    if row.keys() != set(after.problem_ids):
        raise ValueError("gains: the evaluations are of different problems; evaluate both on the same ones")
    greedy, sampled = before.greedy, before.sampled
    if greedy is None or greedy == sampled or not (greedy.cut_off and sampled.lengths and after.sampled.lengths):
        return ()
    order = [row[id] for id in after.problem_ids]
    was_PS, now_PS = sampled.correct_PS[order], after.sampled.correct_PS
    graded_P = ~np.isnan(was_PS).all(axis=1) & ~np.isnan(now_PS).all(axis=1)
    right_P = np.nan_to_num(greedy.correct_PS[order, 0]) == 1
    cut_off_P = np.array(greedy.cut_off)[order, 0]
    longer_P = np.mean(after.sampled.lengths, axis=1) - np.mean(np.array(sampled.lengths)[order], axis=1)
    sorts = {CUT_OFF: cut_off_P, WRONG: ~cut_off_P & ~right_P, RIGHT: ~cut_off_P & right_P}

    def found() -> Iterator[Gain]:
        for name, of_P in sorts.items():
            chosen_P = of_P & graded_P
            if not chosen_P.any():
                continue
            confidence = after.sampled.accuracy.confidence
            difference = paired_difference(now_PS[chosen_P], was_PS[chosen_P], confidence, seed)
            share = float(chosen_P.sum() / graded_P.sum())
            yield Gain(name, share, difference, share * difference.difference, float(longer_P[chosen_P].mean()))

    return tuple(found())
