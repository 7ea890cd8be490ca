"""evals/removal.py: what a panel loses with an expert, and a panel that starts where it should not."""

import math
from dataclasses import replace

import numpy as np
import pytest

from evals.removal import RemovalCost, RemovalError, removal_cost, start_record_fault
from evals.statistics import Interval, accuracy, paired_difference

NAMES = ("base", "add", "mul")
nan = math.nan


def cost(expert, correct_APS, chance_PA, route_P, threshold=0.0, names=NAMES):
    return removal_cost(expert, names, correct_APS, chance_PA, route_P, threshold=threshold, confidence=0.95)


# right: base on problem 3, add on 0 and 1, mul on 1, 2 and 3
CORRECT = np.array([[0, 0, 0, 1], [1, 1, 0, 0], [0, 1, 1, 1]])[..., None]
CHANCE = np.array([[0.1, 0.9, 0.2], [0.1, 0.8, 0.7], [0.1, 0.2, 0.6], [0.5, 0.1, 0.4]])
ROUTE = np.array([1, 1, 2, 0])


def test_a_removal_by_hand():
    found = cost("add", CORRECT, CHANCE, ROUTE)
    # problems 0 and 1 go to mul, which solves 1 alone: 1 of 4 is lost, the others stay where they are
    assert (found.expert, found.load, found.goes_to) == ("add", 0.5, {"base": 0.0, "mul": 0.5})
    assert (found.difference.difference, found.difference.n) == (-0.25, 4)
    assert found.difference.low < -0.25 < found.difference.high
    assert RemovalCost.from_json(found.to_json()) == found
    # mul is ahead of the base by 0.1 at problem 0, and by 0.6 at problem 1
    timid = cost("add", CORRECT, CHANCE, ROUTE, threshold=0.2)
    assert timid.goes_to == {"base": 0.25, "mul": 0.25} and timid.difference.difference == -0.25
    assert cost("add", CORRECT, CHANCE, ROUTE, threshold=0.7).difference.difference == -0.5
    # ahead by exactly the threshold is enough
    even = np.array([[0.25, 0.9, 0.5]] * 4)
    assert cost("add", CORRECT, even, ROUTE, threshold=0.25).goes_to == {"base": 0.0, "mul": 0.5}


def test_ties_go_to_the_earlier_arm():
    level = np.full((4, 3), 0.5)
    assert cost("mul", CORRECT, level, ROUTE).goes_to == {"base": 0.25, "add": 0.0}


def test_a_better_arm_that_the_router_did_not_see_is_a_gain():
    found = cost("add", CORRECT, CHANCE, np.array([1, 1, 1, 1]))
    # with add alone 2 of 4; without it 1, 2 (mul) and 3 (base)
    assert found.load == 1 and found.difference.difference == 0.25


@pytest.mark.parametrize("samples", [1, 3])
def test_what_nobody_uses_costs_nothing(samples):
    correct_APS = np.random.default_rng(0).integers(0, 2, (3, 50, samples))
    found = cost("mul", correct_APS, np.random.default_rng(1).random((50, 3)), np.arange(50) % 2)
    assert (found.load, found.difference.difference, found.difference.p_value) == (0, 0, 1)
    assert sum(found.goes_to.values()) == 0 and found.difference.low < 0 < found.difference.high


def test_identities_on_random_panels():
    draw = np.random.default_rng(3)
    for samples in (1, 4):
        correct_APS = draw.integers(0, 2, (4, 80, samples)).astype(float)
        correct_APS[draw.random(correct_APS.shape) < 0.1] = nan
        chance_PA = draw.random((80, 4))
        names = ("base", "a", "b", "c")
        route_P = chance_PA.argmax(axis=1)
        found = cost("b", correct_APS, chance_PA, route_P, names=names)
        assert sum(found.goes_to.values()) == pytest.approx(found.load)
        # the panel without b, routed anew from the start, is the same
        left = [0, 1, 3]
        anew_P = np.array(left)[chance_PA[:, left].argmax(axis=1)]
        rows = np.arange(80)
        assert found.difference == paired_difference(correct_APS[anew_P, rows], correct_APS[route_P, rows], 0.95)
        # a clone of b loses nothing, whatever else there is
        twin_APS = np.concatenate([correct_APS, correct_APS[2:3]])
        twins = cost("b", twin_APS, np.column_stack([chance_PA, chance_PA[:, 2]]), route_P, names=(*names, "twin"))
        assert twins.difference.difference == 0 and twins.goes_to["twin"] == twins.load


def test_an_ungraded_answer_is_not_wrong():
    correct_APS = CORRECT.astype(float)
    correct_APS[2, 0] = nan
    # problem 0 would go to mul, whose answer nobody judged; of the other three nothing is lost
    found = cost("add", correct_APS, CHANCE, ROUTE)
    assert (found.difference.n, found.difference.difference) == (3, 0)
    assert found.load == 0.5


@pytest.mark.parametrize(
    "change, error, told",
    [
        ({"expert": "mull"}, RemovalError, r"no expert 'mull' \(there are add, mul\); did you mean 'mul'"),
        ({"expert": "base"}, RemovalError, "'base' is the base"),
        ({"names": ("base", "add", "add")}, ValueError, "different names"),
        ({"names": ("base", "add")}, ValueError, "2 arms and 4 problems"),
        ({"route_P": np.array([0, 1, 2, 3])}, ValueError, "index of one of 3 arms"),
        ({"route_P": ROUTE[:3]}, ValueError, "3 arms and 3 problems"),
        ({"chance_PA": np.full((4, 3), nan)}, ValueError, "are numbers"),
        ({"correct_APS": CORRECT * 2}, ValueError, "1 \\(correct\\)"),
        ({"correct_APS": CORRECT[..., 0]}, ValueError, "shapes"),
        ({"correct_APS": np.full((3, 4, 1), nan)}, ValueError, "no problem was graded"),
    ],
)
def test_what_cannot_be_predicted(change, error, told):
    sound = {"expert": "add", "names": NAMES, "correct_APS": CORRECT, "chance_PA": CHANCE, "route_P": ROUTE}
    cost(**sound)
    with pytest.raises(error, match=told):
        cost(**(sound | change))


def share(right, of):
    return accuracy(np.repeat([1.0, 0.0], [right, of - right])[:, None], 0.95)


def test_a_panel_that_starts_far_off_its_record_does_not_train():
    """Experiment 7b-2: 8.95 where the record said 70."""
    told = start_record_fault(share(179, 2000), share(1400, 2000), "tutors")
    assert "panel 'tutors'" in told and "8.95 %" in told and "70.00 %" in told and "61.05 points lower" in told
    assert start_record_fault(share(1400, 2000), share(179, 2000), "tutors") is None
    assert start_record_fault(share(1400, 2000), share(1400, 2000), "tutors") is None


def test_it_takes_the_slack_and_the_interval():
    record = Interval(0.70, 0.69, 0.71, 0.95)

    def sharp(estimate, reach=0.001):
        return Interval(estimate, estimate - reach, estimate + reach, 0.95)

    assert start_record_fault(sharp(0.685), record, "p") is not None
    # more than a point below, but sqrt(0.01^2 + 0.02^2) = 0.0224 is not less than 0.015
    assert start_record_fault(sharp(0.685, 0.02), record, "p") is None
    # below the interval of a sharp record, but by a point only
    assert start_record_fault(sharp(0.69), replace(record, low=0.699, high=0.701), "p") is None
    assert start_record_fault(sharp(0.6899), replace(record, low=0.699, high=0.701), "p") is not None
    assert start_record_fault(sharp(0.6899), replace(record, low=0.699, high=0.701), "p", slack=0.02) is None


def test_a_refusal_is_below_the_recorded_interval_too():
    draw = np.random.default_rng(0)
    for now, was in draw.integers(0, 201, (300, 2)):
        measured, record = share(int(now), 200), share(int(was), 200)
        if start_record_fault(measured, record, "p"):
            assert measured.estimate < min(record.low, record.estimate - 0.01)


def test_other_problems_than_those_of_the_record_do_not_refuse_a_sound_panel():
    """300 panels of accuracy 0.7, each measured and recorded on 200 problems of its own: against the record's interval
    alone some 8 in 100 would be refused."""
    draw = np.random.default_rng(1)
    pairs = [(share(int(a), 200), share(int(b), 200)) for a, b in draw.binomial(200, 0.7, (300, 2))]
    assert sum(start_record_fault(a, b, "p") is not None for a, b in pairs) <= 15
    assert sum(a.estimate < b.low for a, b in pairs) > 15


def test_the_same_problems_see_what_two_intervals_cannot():
    before_PS = np.repeat([1.0, 0.0], [140, 60])[:, None]
    after_PS = before_PS.copy()
    after_PS[:8] = 0
    measured, record = accuracy(after_PS, 0.95), accuracy(before_PS, 0.95)
    assert start_record_fault(measured, record, "p") is None
    told = start_record_fault(measured, record, "p", paired=paired_difference(after_PS, before_PS, 0.95))
    assert "4.00 points lower" in told
    # the very same answers
    same = paired_difference(before_PS, before_PS, 0.95)
    assert start_record_fault(record, record, "p", paired=same) is None


@pytest.mark.parametrize("record", [(70.0, 68.0, 72.0), (nan, nan, nan), (0.7, 0.8, 0.9), (0.7, 0.6, nan)])
def test_a_record_that_says_nothing_refuses_too(record):
    assert "is no share" in start_record_fault(share(140, 200), Interval(*record, 0.95), "p")
    with pytest.raises(ValueError, match="no interval"):
        start_record_fault(Interval(*record, 0.95), share(140, 200), "p")
