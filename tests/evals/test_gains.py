"""evals/gains.py: a difference told apart by what the policy's greedy answer was before."""

import dataclasses

import numpy as np
import pytest

from evals.evaluate import Evaluation, Pass
from evals.gains import CUT_OFF, NOT_GRADED, RIGHT, WRONG, gains
from evals.statistics import accuracy


def one(correct, lengths=None, cut_off=None, temperature=1.0):
    correct_PS = np.array(correct, dtype=float)
    lengths = lengths if lengths is not None else np.full(correct_PS.shape, 10)
    cut_off = cut_off if cut_off is not None else np.zeros(correct_PS.shape, dtype=bool)
    rows = tuple(tuple(None if np.isnan(cell) else int(cell) for cell in row) for row in correct_PS)
    return Pass(
        temperature, rows, accuracy(correct_PS, 0.95), 10.0, 0.0, 1.0, 0, 10, 1.0,
        tuple(tuple(map(int, row)) for row in lengths), tuple(tuple(map(bool, row)) for row in cut_off),
    )  # fmt: skip


def evaluation(sampled, greedy, ids=None):
    ids = ids or tuple(f"p{i}" for i in range(len(sampled.correct)))
    return Evaluation(ids, ("math",) * len(ids), sampled, greedy, {}, (), 0)


def test_parts_by_hand():
    # greedy before: problem 0 cut off (though right), 1 and 2 wrong, 3 right
    before = evaluation(
        one([[0, 0], [0, 0], [1, 0], [1, 1]], lengths=[[90, 96], [20, 20], [20, 20], [20, 20]]),
        one([[1], [0], [0], [1]], cut_off=[[1], [0], [0], [0]], temperature=0.0),
    )
    after = evaluation(
        one([[1, 1], [0, 0], [1, 1], [1, 0]], lengths=[[30, 36], [20, 22], [24, 22], [20, 20]]),
        one([[1], [0], [1], [1]], temperature=0.0),
    )
    found = {gain.before: gain for gain in gains([(after, before)], 0.95)}
    # means before 0, 0, .5, 1; after 1, 0, 1, .5
    # 1 / 4, (0 + .5) / 4 and -.5 / 4; together 0.25, the whole difference: 2.5 / 4 against 1.5 / 4
    assert [found[name].part for name in (CUT_OFF, WRONG, RIGHT)] == pytest.approx([0.25, 0.125, -0.125])
    assert [found[name].share for name in (CUT_OFF, WRONG, RIGHT)] == [0.25, 0.5, 0.25]
    assert all(gain.low <= gain.part <= gain.high for gain in found.values())
    # (30 + 36) / 2 - (90 + 96) / 2 = -60; (21 + 23) / 2 - 20 = 2
    assert found[CUT_OFF].longer == pytest.approx(-60)
    assert found[WRONG].longer == pytest.approx(2)


def test_parts_sum_to_the_difference_whatever_the_order_and_what_is_ungraded():
    draw = np.random.default_rng(5)
    was, now = draw.integers(0, 2, (200, 4)).astype(float), draw.integers(0, 2, (200, 4)).astype(float)
    was[7] = np.nan
    now[9] = np.nan
    greedy = one(draw.integers(0, 2, (200, 1)), cut_off=draw.random((200, 1)) < 0.2, temperature=0.0)
    before, after = evaluation(one(was), greedy), evaluation(one(now), greedy)
    kept = [i for i in range(200) if i not in (7, 9)]
    whole = np.mean([now[i].mean() - was[i].mean() for i in kept])
    assert sum(gain.part for gain in gains([(after, before)], 0.95)) == pytest.approx(whole)
    order = draw.permutation(200)
    turned = evaluation(one(now[order]), greedy, tuple(after.problem_ids[i] for i in order))
    for one_gain, other in zip(gains([(after, before)], 0.95), gains([(turned, before)], 0.95), strict=True):
        assert (one_gain.share, one_gain.part) == pytest.approx((other.share, other.part))


def test_a_greedy_answer_that_could_not_be_judged_was_not_wrong():
    """Of problems 0 and 1 it could not; the first was cut off besides, and is told by that."""
    greedy = one([[np.nan], [np.nan], [0], [1]], cut_off=[[1], [0], [0], [0]], temperature=0.0)
    before, after = evaluation(one([[0]] * 4), greedy), evaluation(one([[1]] * 4), greedy)
    found = {gain.before: gain for gain in gains([(after, before)], 0.95)}
    assert list(found) == [CUT_OFF, WRONG, RIGHT, NOT_GRADED]
    assert all((gain.share, gain.part) == (0.25, 0.25) for gain in found.values())


def test_a_policy_that_did_not_change_gains_nothing_where_it_was_wrong():
    """The same policy asked twice: told apart and counted on one draw, wrong problems would gain some 15 points."""
    draw = np.random.default_rng(11)
    chance = draw.beta(2, 2, 4000)
    greedy = one((draw.random(4000) < chance)[:, None], temperature=0.0)
    before, after = (evaluation(one(draw.random((4000, 1)) < chance[:, None]), greedy) for _ in range(2))
    for gain in gains([(after, before)], 0.95):
        assert abs(gain.part / gain.share) < 0.04 and gain.low < 0 < gain.high
    same_draw = before.sampled.correct_PS[:, 0] == 0
    regressed = after.sampled.correct_PS[same_draw, 0].mean()
    assert regressed > 0.3  # of problems wrong in that draw, which a table made of one draw would call gained


def test_nothing_is_told_apart_by_the_draw_that_is_counted():
    greedy = one([[1], [0]], temperature=0.0)
    assert gains([(evaluation(greedy, greedy), evaluation(greedy, greedy))], 0.95) == ()
    assert gains([(evaluation(greedy, None), evaluation(greedy, None))], 0.95) == ()


def test_evaluations_without_lengths_say_nothing():
    full = evaluation(one([[1, 0], [0, 0]]), one([[1], [0]], temperature=0.0))
    old = dataclasses.replace(full, greedy=dataclasses.replace(full.greedy, cut_off=(), lengths=()))
    assert gains([(full, old)], 0.95) == ()
    assert gains([(full, full)], 0.95) != ()


def test_other_problems_are_refused():
    full = evaluation(one([[1, 0]]), one([[1]], temperature=0.0))
    other = evaluation(one([[1, 0]]), one([[1]], temperature=0.0), ("q",))
    with pytest.raises(ValueError, match="different problems"):
        gains([(full, other)], 0.95)
    with pytest.raises(ValueError, match="different problems"):
        gains([(full, full), (other, other)], 0.95)
    with pytest.raises(ValueError, match="nothing"):
        gains([], 0.95)


def test_several_seeds_by_hand():
    """Under seed 1 problem 0 was wrong and is gained, under seed 2 it was right and stays so; 1 was always right."""
    right, wrong = [[1, 1], [1, 1]], [[0, 0], [1, 1]]
    first = evaluation(one(right), one([[1], [1]])), evaluation(one(wrong), one([[0], [1]], temperature=0.0))
    second = evaluation(one(right), one([[1], [1]])), evaluation(one(right), one([[1], [1]], temperature=0.0))
    found = {gain.before: gain for gain in gains([first, second], 0.95)}
    # one of four (problem, seed) was wrong before, and gained 1
    assert (found[WRONG].share, found[WRONG].part) == (0.25, 0.25)
    assert (found[RIGHT].share, found[RIGHT].part) == (0.75, 0.0)
    assert found[WRONG].low < 0.25 < found[WRONG].high and found[RIGHT].low == found[RIGHT].high == 0
