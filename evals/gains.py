"""Where a difference in accuracy comes from: from problems at which the policy before was cut off, wrong or right.

Training on its own samples may teach a policy something of its tokens, or just to come to an end where it thought too
long. So problems are told apart by the policy before, by its greedy answer: cut off at the limit, wrong, or right. What
is gained is counted in the sampled answers, other draws than the one that told the problems apart: counted on the same
draw, problems that were wrong by chance would seem to be gained, and those right by chance to be lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evals.seeds import half_width, spread
from evals.statistics import paired_difference

if TYPE_CHECKING:
    from evals.evaluate import Evaluation

CUT_OFF, WRONG, RIGHT, NOT_GRADED = "cut off", "wrong", "right", "not graded"
"""What the policy's greedy answer was before; a cut-off one is that whether right or wrong, and one that could not be
judged is not wrong."""


@dataclass(frozen=True)
class Gain:
    """What the problems of one sort add to a difference in sampled accuracy.

    Fields:
        before: `CUT_OFF`, `WRONG`, `RIGHT` or `NOT_GRADED`.
        share: of all problems.
        part: of the difference on all problems, to which the parts sum; low, high: its interval.
        longer: mean change of a completion's tokens on these problems.
    """

    before: str
    share: float
    part: float
    low: float
    high: float
    longer: float


def gains(pairs: Sequence[tuple[Evaluation, Evaluation]], confidence: float, seed: int = 0) -> tuple[Gain, ...]:
    """The sorts that there are, in the order above; nothing where a policy before has no greedy pass beside a sampled
    one, or an evaluation does not say how long its completions are.

    Args:
        pairs: (after, before), one for each training seed; with several of them problems and seeds are both taken as
            drawn at random (evals/seeds.py).
        confidence: nominal coverage of the intervals.
        seed: of the resampling, where there is one pair.

    Raises:
        ValueError: no pairs, or evaluations of different problems.
    """
    if not pairs:
        raise ValueError("gains: there is nothing to compare")
    ids = sorted(pairs[0][0].problem_ids)
    for one in (one for pair in pairs for one in pair):
        if sorted(one.problem_ids) != ids:
            raise ValueError("gains: the evaluations are of different problems; evaluate all on the same ones")
    if not all(_told(after, before) for after, before in pairs):
        return ()
    read = [_read(after, before, ids) for after, before in pairs]
    graded_P = np.logical_and.reduce([one.graded_P for one in read])
    return tuple(_found([one.of(graded_P) for one in read], confidence, seed))


@dataclass(frozen=True, eq=False)
class _Read:
    """A pair, problem by problem in one order; samples are those of sampled answers."""

    was_PS: np.ndarray
    now_PS: np.ndarray
    longer_P: np.ndarray
    sort_P: np.ndarray

    @property
    def graded_P(self) -> np.ndarray:
        return ~np.isnan(self.was_PS).all(axis=1) & ~np.isnan(self.now_PS).all(axis=1)

    def of(self, chosen_P: np.ndarray) -> _Read:
        return _Read(self.was_PS[chosen_P], self.now_PS[chosen_P], self.longer_P[chosen_P], self.sort_P[chosen_P])


def _told(after: Evaluation, before: Evaluation) -> bool:
    greedy, sampled = before.greedy, before.sampled
    lengths = greedy is not None and greedy.cut_off and sampled.lengths and after.sampled.lengths
    return greedy is not None and greedy != sampled and bool(lengths)


def _read(after: Evaluation, before: Evaluation, ids: Sequence[str]) -> _Read:
    def rows(of: Evaluation) -> list[int]:
        at = {id: row for row, id in enumerate(of.problem_ids)}
        return [at[id] for id in ids]

    now, was = rows(after), rows(before)
    cut_off_P = np.array(before.greedy.cut_off)[was, 0]
    correct_P = before.greedy.correct_PS[was, 0]
    longer_P = np.mean(after.sampled.lengths, axis=1)[now] - np.mean(before.sampled.lengths, axis=1)[was]
    sort_P = np.select([cut_off_P, correct_P == 1, correct_P == 0], [CUT_OFF, RIGHT, WRONG], NOT_GRADED)
    return _Read(before.sampled.correct_PS[was], after.sampled.correct_PS[now], longer_P, sort_P)


def _found(read: Sequence[_Read], confidence: float, seed: int) -> Iterator[Gain]:
    for name in (CUT_OFF, WRONG, RIGHT, NOT_GRADED):
        of_PR = np.stack([one.sort_P == name for one in read], axis=1)  # problems x runs
        if not of_PR.any():
            continue
        if len(read) == 1:
            # other problems add nothing
            of_P1 = of_PR[:, :1]
            one = paired_difference(read[0].now_PS * of_P1, read[0].was_PS * of_P1, confidence, seed)
            part, low, high = one.difference, one.low, one.high
        else:
            changes = [np.nanmean(one.now_PS, axis=1) - np.nanmean(one.was_PS, axis=1) for one in read]
            part_PR = np.stack(changes, axis=1) * of_PR
            half = float(half_width(spread(part_PR), 1 - confidence))
            part = float(part_PR.mean())
            low, high = part - half, part + half
        longer_PR = np.stack([one.longer_P for one in read], axis=1)
        yield Gain(name, float(of_PR.mean()), part, low, high, float(longer_PR[of_PR].mean()))
