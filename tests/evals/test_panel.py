"""A panel in numbers: what is chosen on one draw is scored on another, and the identities that must hold."""

import math
from dataclasses import replace

import numpy as np
import pytest

from evals.panel import (
    CHOICES,
    Draws,
    PanelEvaluation,
    answers_of,
    best_by_domain,
    best_by_problem,
    best_single,
    effective_experts,
    evaluate_panel,
    routing_entropy,
    share_recovered,
)
from evals.statistics import accuracy

ARMS = ("base", "sums", "rates")
NAN = float("nan")


def drawn(chance_AP, samples=4, seed=0, domains=None, generalist=None):
    """Both draws of arms that solve problems with these chances."""
    chance_AP = np.asarray(chance_AP, dtype=float)
    rng = np.random.default_rng(seed)

    def draw():
        return (rng.random((*chance_AP.shape, samples)) < chance_AP[..., None]).astype(float)

    arms = ARMS[: len(chance_AP)] if len(chance_AP) <= 3 else ("base", *(f"e{n}" for n in range(1, len(chance_AP))))
    return Draws(arms, domains or ("all",) * chance_AP.shape[1], draw(), draw(), generalist)


def sure(arm_P, arms=3):
    """Shares of a router that is never in doubt."""
    return np.eye(arms)[np.asarray(arm_P)]


def evaluated(draws, arm_P, shares_PA=None, **how):
    arm_P = np.asarray(arm_P)
    return evaluate_panel(draws, arm_P, sure(arm_P, len(draws.arms)) if shares_PA is None else shares_PA, 0.95, **how)


SKILLS = np.array([[0.3] * 60, [0.9] * 30 + [0.1] * 30, [0.2] * 30 + [0.8] * 30])
HALVES = ("sums",) * 30 + ("rates",) * 30


def worked():
    """Four problems, one sample each. On draw one: base right at 3, sums at 0 and 1, rates at 2.
    On draw two: base right at 3, sums at 0, rates at 1 and 2."""
    first = [[0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0]]
    second = [[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 1, 0]]
    as_draw = [np.array(draw, dtype=float)[..., None] for draw in (first, second)]
    return Draws(ARMS, ("a", "a", "b", "b"), *as_draw)


def test_a_worked_example():
    found = evaluated(worked(), [1, 1, 2, 2], table={"a": "rates", "b": "base"})
    estimates = {way.choice: way.accuracy.estimate for way in found.ways}
    assert estimates == {
        "routed": 0.5,  # sums is right at 0, wrong at 1; rates at 2, wrong at 3
        "best single": 0.25,  # sums, which had two right on draw one
        "random": 0.375,  # sums has 1/4, rates 2/4
        "domain table": 0.5,  # rates at 1, base at 3
        "task oracle": 0.5,  # a: sums, 1 of 2; b: base and rates had one each, the earlier is the base: 1 of 2
        "instance oracle": 0.75,  # sums at 0, sums at 1 (wrong now), rates at 2, base at 3
    }
    assert found.best_single == "sums"
    assert found.gap.difference == 0.25 and found.way("instance oracle").routed_minus.difference == -0.25
    assert found.way("best single").routed_minus.difference == 0.25 and found.way("routed").routed_minus is None
    assert [(arm.name, arm.load, arm.accuracy.estimate) for arm in found.arms] == [
        ("base", 0.0, 0.25), ("sums", 0.5, 0.25), ("rates", 0.5, 0.5),
    ]  # fmt: skip
    a, b = found.domains
    assert (a.name, a.problems, a.accuracy, a.load, a.table, a.oracle) == (
        "a", 2, (0.0, 0.5, 0.5), (0.0, 1.0, 0.0), "rates", "sums",
    )  # fmt: skip
    assert (b.accuracy, b.load, b.table, b.oracle) == ((0.5, 0.0, 0.5), (0.0, 0.0, 1.0), "base", "base")


def test_an_oracle_that_is_scored_on_the_draw_that_chose_it_is_inflated():
    """All pairs of single samples of two arms: the better one is right in 3 of 4, though each is in 1 of 2. Scored on
    another draw, of which all pairs go with each of these, it is right in exactly half."""
    pairs = np.array([[0, 0, 1, 1], [0, 1, 0, 1]], dtype=float)
    first_APS, second_APS = np.repeat(pairs, 4, axis=1)[..., None], np.tile(pairs, 4)[..., None]
    chosen_P = best_by_problem(first_APS)
    assert answers_of(first_APS, chosen_P).mean() == 0.75
    assert answers_of(second_APS, chosen_P).mean() == 0.5


def test_arms_of_pure_noise_have_no_oracle():
    """Five arms, right half of the time: 20,000 problems of 4 samples. On its own draw the oracle seems to have 80 %;
    on the other it has 50 % within 4 standard errors, as has the best of a domain and the best single expert."""
    draws = drawn(np.full((5, 20_000), 0.5), domains=tuple(f"d{n % 40}" for n in range(20_000)))
    chosen_P = best_by_problem(draws.first_APS)
    error = 4 * 0.5 / math.sqrt(20_000 * 4)
    assert answers_of(draws.first_APS, chosen_P).mean() > 0.75
    assert abs(answers_of(draws.second_APS, chosen_P).mean() - 0.5) < error
    oracle_of = best_by_domain(draws)
    by_domain_P = np.array([oracle_of[domain] for domain in draws.domains])
    assert answers_of(draws.first_APS, by_domain_P).mean() > 0.5 + error
    assert abs(answers_of(draws.second_APS, by_domain_P).mean() - 0.5) < error
    assert abs(draws.second_APS[best_single(draws)].mean() - 0.5) < error


def test_nothing_is_chosen_on_the_draw_that_scores():
    """A second draw turned upside down changes no choice."""
    draws = drawn(SKILLS, domains=HALVES)
    turned = replace(draws, second_APS=1 - draws.second_APS)
    one, other = (evaluated(of, [0] * 60) for of in (draws, turned))
    assert one.best_single == other.best_single
    assert [(domain.table, domain.oracle) for domain in one.domains] == [(d.table, d.oracle) for d in other.domains]
    for choice in CHOICES:
        if way := one.way(choice):
            assert way.accuracy.estimate == pytest.approx(1 - other.way(choice).accuracy.estimate)


def test_a_constant_router_is_that_arm():
    draws = drawn(SKILLS, domains=HALVES)
    best = best_single(draws)
    found = evaluated(draws, [best] * 60)
    single = found.way("best single")
    assert single.accuracy == found.way("routed").accuracy == found.arms[best].accuracy
    assert single.routed_minus.difference == 0 and single.routed_minus.p_value == 1
    assert found.recovered.share == 0 and found.recovered.low == found.recovered.high == 0
    assert found.effective_experts == 1 and found.entropy == 0 and [arm.load for arm in found.arms].count(1.0) == 1


def test_a_router_that_routes_as_the_oracle_recovers_everything():
    draws = drawn(SKILLS, domains=HALVES)
    found = evaluated(draws, best_by_problem(draws.first_APS))
    assert found.gap.difference == 0
    assert (found.recovered.share, found.recovered.low, found.recovered.high) == (1, 1, 1)
    assert found.recovered.unknown == ""
    by_domain = [draws.arms.index(domain) for domain in HALVES]
    assert best_by_domain(draws) == {"rates": 2, "sums": 1}
    assert evaluated(draws, by_domain).way("task oracle").routed_minus.difference == 0


def test_two_equal_arms_have_no_gap():
    one = drawn(np.full((2, 40), 0.5))
    twice = replace(one, first_APS=one.first_APS[[0, 0]], second_APS=one.second_APS[[0, 0]])
    found = evaluated(twice, np.arange(40) % 2)
    assert found.gap.difference == 0 and len({way.accuracy for way in found.ways}) == 1
    assert found.recovered.share is None and found.recovered.headroom == 0
    assert found.recovered.unknown == (
        "the oracle is not known to be better than the best single expert ([0.0, 0.0] points)"
    )


def test_a_share_is_given_only_where_there_is_something_to_recover():
    """Arms of pure noise: there is a number that could be divided by, but it is not known to be above nothing."""
    found = evaluated(drawn(np.full((3, 80), 0.5)), np.arange(80) % 3).recovered
    assert (found.share, found.low, found.high) == (None, None, None)
    assert found.headroom_low <= 0 and found.headroom_low <= found.headroom <= found.headroom_high


def test_the_share_recovered_is_the_ratio_of_the_gains_with_an_interval_around_it():
    """40 problems that only the base's rival solves, 40 that both do: the router finds 20 of the 40."""
    single = np.repeat([[0.0], [1.0]], 40, axis=0)
    oracle = np.ones((80, 1))
    routed = single.copy()
    routed[:20] = 1
    found = share_recovered(routed, single, oracle, 0.95)
    assert (found.share, found.headroom) == (0.5, 0.5)
    assert found.low < 0.5 < found.high
    # of about 40 resampled problems each is found with 1/2: a standard error of 0.5 / sqrt(40) = 0.079
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.079, rel=0.15)
    order = np.random.default_rng(0).permutation(80)
    assert share_recovered(routed[order], single[order], oracle[order], 0.95) == found
    assert share_recovered(routed, single, oracle, 0.99).low < found.low


def test_random_is_the_mean_over_the_experts_without_the_base():
    draws = drawn(SKILLS, domains=HALVES)
    found = evaluated(draws, [0] * 60)
    experts = [arm.accuracy.estimate for arm in found.arms[1:]]
    assert found.way("random").accuracy.estimate == pytest.approx(np.mean(experts), abs=1e-12)


def test_loads_sum_to_one_and_are_those_of_the_routes():
    rng = np.random.default_rng(1)
    arm_P = rng.integers(3, size=60)
    found = evaluated(drawn(SKILLS, domains=HALVES), arm_P)
    assert sum(arm.load for arm in found.arms) == pytest.approx(1)
    assert [round(60 * arm.load) for arm in found.arms] == np.bincount(arm_P).tolist()
    for domain in found.domains:
        assert sum(domain.load) == pytest.approx(1)
    overall = np.average([domain.load for domain in found.domains], axis=0, weights=[d.problems for d in found.domains])
    np.testing.assert_allclose(overall, [arm.load for arm in found.arms])


def test_what_the_router_is_sure_of():
    """Of four arms: no doubt is 0, equal shares are 1. Half of the problems wholly to one arm and half to another use
    two arms, and no problem is in doubt; two arms in doubt everywhere use as many, with log 2 / log 4 = 1/2."""
    split = np.repeat(np.eye(4)[:2], 5, axis=0)
    equal = np.full((10, 4), 0.25)
    torn = np.tile([0.5, 0.5, 0.0, 0.0], (10, 1))
    assert [routing_entropy(shares) for shares in (split, equal, torn)] == pytest.approx([0, 1, 0.5])
    assert [effective_experts(shares) for shares in (split, equal, torn)] == pytest.approx([2, 4, 2])


def test_a_generalist_is_compared_where_there_is_one():
    rival = (np.random.default_rng(9).random((60, 4)) < 0.5).astype(float)
    draws = drawn(SKILLS, domains=HALVES, generalist=rival)
    found = evaluated(draws, [1] * 30 + [2] * 30)
    assert tuple(way.choice for way in found.ways) == CHOICES
    assert found.way("generalist").accuracy == accuracy(rival, 0.95)
    assert found.way("generalist").routed_minus.low > 0, "85 % against 50 %"
    without = evaluated(replace(draws, generalist_PS=None), [1] * 30 + [2] * 30)
    assert without.way("generalist") is None and without.ways == tuple(
        w for w in found.ways if w.choice != "generalist"
    )


def test_what_was_not_graded_is_left_out():
    """A problem that no arm's first sample could be graded at, an arm ungraded in a domain, and single samples."""
    draws = drawn(SKILLS, domains=HALVES)
    first_APS, second_APS = draws.first_APS.copy(), draws.second_APS.copy()
    first_APS[:, 5] = NAN
    first_APS[1, :30] = NAN
    second_APS[2, 30:] = NAN
    second_APS[0, ::7, 0] = NAN
    holes = replace(draws, first_APS=first_APS, second_APS=second_APS)
    assert best_by_problem(first_APS)[5] == 0, "the earliest, where nothing is known"
    assert best_by_domain(holes)["sums"] != 1
    found = evaluated(holes, [1] * 30 + [2] * 30)
    rates, sums = found.domains
    assert rates.accuracy[2] is None and None not in sums.accuracy
    assert found.way("routed").accuracy.estimate == pytest.approx(np.nanmean(second_APS[1, :30]))
    assert PanelEvaluation.from_json(found.to_json()) == found


def test_the_order_of_the_problems_does_not_show():
    draws = drawn(SKILLS, domains=HALVES)
    arm_P = np.random.default_rng(2).integers(3, size=60)
    order = np.random.default_rng(3).permutation(60)
    domains = tuple(draws.domains[at] for at in order)
    shuffled = Draws(ARMS, domains, draws.first_APS[:, order], draws.second_APS[:, order])
    one, other = evaluated(draws, arm_P), evaluated(shuffled, arm_P[order])
    assert (one.gap, one.recovered, one.domains) == (other.gap, other.recovered, other.domains)
    assert [way.routed_minus for way in one.ways] == [way.routed_minus for way in other.ways]
    assert [way.accuracy.estimate for way in one.ways] == [way.accuracy.estimate for way in other.ways]


def test_it_is_read_as_it_was_written():
    found = evaluated(drawn(SKILLS, domains=HALVES), [1] * 60)
    assert PanelEvaluation.from_json(found.to_json()) == found
    with pytest.raises(ValueError):
        PanelEvaluation.from_json("{}")


def test_what_does_not_fit_is_refused():
    draws = drawn(SKILLS, domains=HALVES)
    with pytest.raises(ValueError, match="the base and at least one expert, each once, not base"):
        Draws(("base",), draws.domains, draws.first_APS[:1], draws.second_APS[:1])
    with pytest.raises(ValueError, match="each once, not base, sums, sums"):
        replace(draws, arms=("base", "sums", "sums"))
    with pytest.raises(ValueError, match=r"the second draw is \(3, 59, 4\), not 3 arms x 60 x samples"):
        replace(draws, second_APS=draws.second_APS[:, 1:])
    with pytest.raises(ValueError, match="expected 1"):
        replace(draws, first_APS=draws.first_APS * 2)
    with pytest.raises(ValueError, match="the generalist has 3 problems, the panel 60"):
        replace(draws, generalist_PS=np.ones((3, 1)))
    for arm_P in ([3] * 60, [-1] * 60, [0] * 59, [0.5] * 60):
        with pytest.raises(ValueError, match="routes are one of 3 arms for each of 60 problems"):
            evaluate_panel(draws, np.array(arm_P), sure([0] * 60), 0.95)
    for shares_PA in (sure([0] * 59), sure([0] * 60) / 2, sure([0] * 60, 4)):
        with pytest.raises(ValueError, match="routing shares are 60 problems x 3 arms, and sum to 1"):
            evaluated(draws, [0] * 60, shares_PA)
    with pytest.raises(ValueError, match="the domain table gives no arm for rates"):
        evaluated(draws, [0] * 60, table={"sums": "sums"})
    with pytest.raises(ValueError, match="the domain table names rate; the arms are base, sums, rates"):
        evaluated(draws, [0] * 60, table={"sums": "sums", "rates": "rate"})
    with pytest.raises(ValueError, match="no problem was graded under"):
        share_recovered(np.full((3, 1), NAN), np.ones((3, 1)), np.ones((3, 1)), 0.95)
