"""The ratio of perplexities by hand, its interval by simulation, and when the alarm rings."""

import math

import numpy as np
import pytest
from scipy.stats import t

from evals.memorisation import Memorisation, memorisation
from evals.perplexity import Scored


def texts(nlls, tokens=10):
    return [Scored(nll * tokens, tokens, 0) for nll in nlls]


def test_the_ratio_by_hand():
    """(2 + 9) / (2 + 6) nats a token held out, (1 + 3) / (4 + 4) trained on: exp(11 / 8 - 4 / 8)."""
    found = memorisation([Scored(1.0, 4, 0), Scored(3.0, 4, 0)], [Scored(2.0, 2, 0), Scored(9.0, 6, 0)], confidence=0.9)
    assert (found.trained_nll, found.held_out_nll) == (0.5, 1.375)
    assert found.ratio == pytest.approx(math.exp(0.875))
    assert found.low <= found.ratio <= found.high and found.confidence == 0.9


def test_the_interval_by_hand():
    """Texts of one token each, so that nats a token are means: Welch's of (1, 2, 3) and (2, 4). The variances of the
    means are 1 / 3 and 2 / 2, so s^2 = 4 / 3 with (4/3)^2 / ((1/3)^2 / 2 + 1^2 / 1) = 32 / 19 degrees of freedom."""
    found = memorisation(texts([1.0, 2.0, 3.0], 1), texts([2.0, 4.0], 1), confidence=0.9)
    reach = t.ppf(0.95, 32 / 19) * math.sqrt(4 / 3)
    assert (math.log(found.low), math.log(found.high)) == pytest.approx((1 - reach, 1 + reach))


def test_texts_without_tokens_do_not_count_and_their_order_does_not_matter():
    trained, held_out = texts([0.1, 0.3, 0.2, 0.4]), texts([0.5, 0.2, 0.7])
    found = memorisation(trained, held_out, confidence=0.9)
    empty = Scored(0.0, 0, 0)
    assert memorisation([*trained, empty], [empty, *held_out], confidence=0.9) == found
    swapped = memorisation(held_out, trained, confidence=0.9)
    assert swapped.ratio == pytest.approx(1 / found.ratio)
    with pytest.raises(ValueError, match="no completion tokens"):
        memorisation(trained, [empty], confidence=0.9)


def test_sets_that_do_not_vary_and_sets_of_one():
    same = memorisation(texts([0.2] * 5), texts([0.5] * 5), confidence=0.95)
    assert (same.low, same.high) == pytest.approx((math.exp(0.3), math.exp(0.3)))
    same = memorisation(texts([0.0] * 5), texts([0.0] * 5), confidence=0.95)
    assert (same.low, same.ratio, same.high) == (1, 1, 1), "all known by heart"
    assert memorisation(texts([0.2]), texts([0.5, 0.6]), confidence=0.95).low is None


def test_a_policy_that_is_far_gone_still_has_numbers():
    found = memorisation(texts([0.1, 0.2]), texts([900.0, 1900.0]), confidence=0.95)
    assert math.isfinite(found.ratio) and math.isfinite(found.high) and found.low == 0.0


@pytest.mark.parametrize(
    "ratio, low, rings",
    [(1.3, 1.1, True), (1.3, 0.99, False), (1.2, 1.1, False), (1.25, 1.1, False), (9.0, None, False)],
    ids=["known by heart", "by chance", "a little", "at the bound", "of one text"],
)
def test_the_alarm_needs_both(ratio, low, rings):
    assert Memorisation(0.1, 0.4, ratio, low, 2.0, 0.95).alarm(1.25) is rings


def covered(simulations, trained, held_out, gap, seed):
    """Share of intervals that hold the true ratio, and of alarms. Texts of 5 to 40 tokens, whose nats a token vary."""
    rng = np.random.default_rng(seed)
    hits = alarms = 0
    for _ in range(simulations):
        sets = []
        for count, mean in ((trained, 0.3), (held_out, 0.3 + gap)):
            tokens_N = rng.integers(5, 41, count)
            sets.append([Scored(float(n * rng.gamma(4.0, mean / 4)), int(n), 0) for n in tokens_N])
        found = memorisation(*sets, confidence=0.9)
        hits += found.low <= math.exp(gap) <= found.high
        alarms += found.alarm(1.25)
    return hits / simulations, alarms / simulations


@pytest.mark.parametrize("trained, held_out", [(20, 20), (60, 60), (128, 40)])
def test_the_interval_covers_what_it_says(trained, held_out):
    """Of 1500 experiments 90 % within 2 points (and the simulation's own error); and of policies that know nothing
    by heart the alarm rings in next to none, of those whose ratio is 1.49 in nearly all."""
    share, alarms = covered(1500, trained, held_out, 0.0, seed=trained)
    assert abs(share - 0.9) < 0.028 and alarms < 0.002
    share, alarms = covered(1500, trained, held_out, 0.4, seed=held_out)
    assert abs(share - 0.9) < 0.028 and alarms > 0.8
