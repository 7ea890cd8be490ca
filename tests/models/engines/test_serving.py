"""Has the engine gone the policy's way? By hand, with rounding, and where nothing moved."""

import math

import numpy as np
import pytest

from rl.freshness import Way


def test_by_hand():
    """The way is (3, 4), 5 long, so 5 / sqrt(2) a token. An engine at (0, 5) has gone <(0, 5), (3, 4)> / 25 = 20 / 25
    of it, and lies (0, 5) - 0.8 (3, 4) = (-2.4, 1.8), 3 long, beside it."""
    way = Way.of([[0.0], [5.0]], [[0.0, 0.0]], [[3.0], [4.0]])
    assert (way.length, way.share, way.beside) == pytest.approx((5 / math.sqrt(2), 0.8, 3 / math.sqrt(2)))


def test_nowhere_to_go():
    way = Way.of([[1.0, 2.0]], [[3.0, 4.0]], [[3.0, 4.0]])
    assert way.length == 0.0 and math.isnan(way.share) and way.beside == 2.0


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("faithful", [True, False])
def test_what_is_resolved_is_judged_rightly(seed, faithful):
    """Rounding of 0.03 a token in each of three passes, 40 tokens, and a policy that goes further and further: the
    engine is judged from some point on, and rightly wherever it is."""
    draw = np.random.default_rng(seed)
    before = -draw.exponential(2.0, 40)
    direction = draw.standard_normal(40)
    judged = 0
    for size in (0.0, 0.01, 0.03, 0.15, 0.2, 0.3):
        policy = before + size * direction + 0.03 * draw.standard_normal(40)
        served = before + faithful * size * direction + 0.03 * draw.standard_normal(40)
        way = Way.of([served], [before], [policy])
        if way.resolved(0.03):
            judged += 1
            assert way.missed(0.03) != faithful, (size, way)
    assert judged >= 2
