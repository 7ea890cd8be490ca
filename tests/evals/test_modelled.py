"""Text modelled beside problems solved: the rule on numbers worked out by hand, the sentence, and from real pairs."""

import numpy as np
import pytest

from evals.modelled import Change, Modelled, modelled_better_solved_worse
from evals.perplexity import PerplexityRatio, Scored, perplexity, perplexity_ratio
from evals.statistics import PairedDifference, paired_difference


def ratio(value, low, high):
    return PerplexityRatio(value, low, high, 0.95, 256)


def accuracy(value, low, high):
    return PairedDifference(value, low, high, 0.5, "", 1319, 0.95)


@pytest.mark.parametrize(
    ("text", "problems", "warns"),
    [
        # experiment 18's math expert: perplexity -10.5 %, GSM8K -8.6 points; a standard error is 1.2
        (ratio(0.895, 0.87, 0.92), accuracy(-0.086, -0.110, -0.062), True),
        # experiment 21's cure: text is modelled better and nothing is lost
        (ratio(0.895, 0.87, 0.92), accuracy(0.011, -0.013, 0.035), False),
        # either may be chance
        (ratio(0.98, 0.95, 1.01), accuracy(-0.086, -0.110, -0.062), False),
        (ratio(0.895, 0.87, 0.92), accuracy(-0.02, -0.045, 0.005), False),
        # "no change" is in an interval that it bounds
        (ratio(0.9, 0.8, 1.0), accuracy(-0.086, -0.110, -0.062), False),
        (ratio(0.895, 0.87, 0.92), accuracy(-0.02, -0.04, 0.0), False),
        # worse at both, better at both, and what is no trap at all
        (ratio(1.2, 1.1, 1.3), accuracy(-0.086, -0.110, -0.062), False),
        (ratio(0.895, 0.87, 0.92), accuracy(0.086, 0.062, 0.110), False),
        (ratio(1.2, 1.1, 1.3), accuracy(0.086, 0.062, 0.110), False),
        # one text has no interval
        (ratio(0.5, None, None), accuracy(-0.086, -0.110, -0.062), False),
        (ratio(0.895, 0.87, 0.92), accuracy(-0.086, float("nan"), float("nan")), False),
    ],
)
def test_both_must_have_fallen(text, problems, warns):
    assert modelled_better_solved_worse(text, problems) is warns


def measured(factor, lost):
    """60 texts of 10 tokens with 8 to 12 nats, times `factor` afterwards; of 60 problems solved, `lost` are no more."""
    before = [Scored(8 + at % 5, 10, 0) for at in range(60)]
    after = [Scored(factor * text.nats, 10, 0) for text in before]
    (one, other) = (perplexity(texts, confidence=0.95) for texts in (before, after))
    right = np.ones((60, 1))
    wrong = right.copy()
    wrong[:lost] = 0
    change = Change("0", one, other, perplexity_ratio(other, one, confidence=0.95))
    return Modelled("expert", "base", {"raw": change}, paired_difference(wrong, right, 0.95, 0))


def test_from_pairs_of_texts_and_problems():
    """Mean 1 nat a token before, so the ratio is exp(0.9 - 1) = 0.905; 12 of 60 problems lost are 20 points."""
    found = measured(0.9, 12)
    (warning,) = found.warnings().values()
    change = found.sources["raw"].ratio
    assert change.ratio == pytest.approx(np.exp(-0.1)) and found.accuracy.difference == pytest.approx(-0.2)
    assert warning.startswith(f"perplexity of raw fell to 0.905 [{change.low:.3g}, {change.high:.3g}] of what it was")
    bounds = f"[{-100 * found.accuracy.high:.1f}, {-100 * found.accuracy.low:.1f}]"
    assert f"accuracy fell by 20.0 points {bounds}: text is modelled better, problems are solved worse" in warning
    assert found.line() == "perplexity: raw 2.46 (from 2.718)"


@pytest.mark.parametrize(("factor", "lost"), [(0.9, 1), (1.0, 12), (1.1, 12), (0.9, 0)])
def test_silent_otherwise(factor, lost):
    assert measured(factor, lost).warnings() == {}


def test_no_accuracy_to_compare_with():
    found = measured(0.9, 12)
    assert Modelled(found.policy, found.start, found.sources, None).warnings() == {}


def test_json_gives_it_back():
    found = measured(0.9, 12)
    assert Modelled.from_json(found.to_json()) == found
    with pytest.raises(ValueError):
        Modelled.from_json('{"policy": "x"}')
