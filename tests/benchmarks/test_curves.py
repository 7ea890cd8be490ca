"""Minutes to the same accuracy: times, targets and ratios by hand."""

from dataclasses import replace

import pytest

from benchmarks.curves import Checkpoint, SeedCurves, curve, draw, minutes_to, pooled, seed_curves, spread, table
from evals.evaluate import Evaluation, Pass
from evals.statistics import Interval, PairedDifference


def points(*given):
    return [Checkpoint(step, minutes, accuracy) for step, minutes, accuracy in given]


# from 0.60: 0.04 a minute to 0.68 at 2 minutes, back to 0.66, then 0.72
OURS = points((0, 0.0, 0.60), (10, 2.0, 0.68), (20, 4.0, 0.66), (30, 6.0, 0.72))
# half as fast: 0.02 a minute to 0.68
STOCK = points((0, 0.0, 0.60), (10, 3.0, 0.66), (20, 4.0, 0.68), (30, 5.0, 0.68))


def difference(by, low, high):
    return PairedDifference(by, low, high, 0.01, "", 500, 0.95)


def seed(ours=OURS, stock=STOCK, gain=None):
    gain = gain or difference(stock[-1].accuracy - stock[0].accuracy, 0.05, 0.11)
    return SeedCurves(
        1, {"ours": ours, "stock": stock}, gain, difference(0.04, 0.01, 0.07), {"ours": 9.0, "stock": 5.0}
    )


def evaluation(*rows):
    """What was right, problems x samples."""
    share = sum(map(sum, rows)) / sum(map(len, rows))
    sampled = Pass(1.0, rows, Interval(share, 0.0, 1.0, 0.95), 9.0, 0.0, 1.0, 0, 9, 1.0)
    ids = tuple(f"p{i}" for i in range(len(rows)))
    return Evaluation(ids, ids, sampled, None, {}, (), 0)


def test_minutes_are_those_of_the_steps_before():
    """Steps of 30, 60, 90 and 120 s: 0.5 minutes after one, 3 after three, 5 after four."""
    found = curve([30.0, 60.0, 90.0, 120.0], {4: 0.7, 0: 0.5, 1: 0.6, 3: 0.65})
    assert found == points((0, 0.0, 0.5), (1, 0.5, 0.6), (3, 3.0, 0.65), (4, 5.0, 0.7))


@pytest.mark.parametrize(
    ("target", "minutes"),
    [
        (0.55, 0.0),  # there already
        (0.60, 0.0),
        (0.64, 1.0),  # half of the first way of 2 minutes
        (0.68, 2.0),  # at a checkpoint
        (0.67, 1.75),  # the first crossing, though it falls below again
        (0.70, 4.0 + 2.0 * 0.04 / 0.06),  # from 0.66 at 4 minutes to 0.72 at 6
        (0.73, None),
    ],
)
def test_the_first_crossing_counts(target, minutes):
    assert minutes_to(target, OURS) == (None if minutes is None else pytest.approx(minutes))


def test_three_quarters_of_what_stock_gains():
    """0.60 + 3/4 of 0.08 is 0.66: ours crosses it at 1.5 of 2 minutes, stock is there after 3; to half of the gain,
    0.64, 1 minute against 2; to all of it, 0.68, 2 against 4."""
    found = seed()
    assert found.target() == pytest.approx(0.66)
    assert found.minutes("ours") == pytest.approx(1.5) and found.minutes("stock") == pytest.approx(3.0)
    assert [found.ratio(share) for share in (0.5, 0.75, 1.0)] == pytest.approx([2.0, 2.0, 2.0])
    assert all(found.checks().values())


def test_the_target_is_stocks_and_ours_may_miss_it():
    """Exchanged: the target is 0.60 + 3/4 of 0.12 = 0.69, which the slower curve never reaches."""
    found = seed(ours=STOCK, stock=OURS)
    assert found.target() == pytest.approx(0.69)
    assert found.minutes("ours") is None and found.minutes("stock") == pytest.approx(5.0)
    assert found.ratio() is None and not found.checks()["ours is sooner at the target"]


def test_slower_is_not_said_to_be_sooner():
    slow = [replace(one, minutes=2 * one.minutes) for one in STOCK]
    assert seed(ours=slow).ratio() == pytest.approx(0.5)
    assert not seed(ours=slow).checks()["ours is sooner at the target"]


def test_where_stock_gains_nothing_there_is_no_target():
    """A gain of chance: any point of its noise could be called the target."""
    found = seed(gain=difference(0.02, -0.01, 0.05))
    assert found.target() is None and found.minutes("stock") is None and found.ratio() is None
    assert not found.checks()["stock TRL gains on SFT"]


def test_less_accurate_after_as_many_steps_is_said():
    assert not replace(seed(), final=difference(-0.04, -0.06, -0.01)).checks()[
        "ours is not below stock after as many steps"
    ]


def test_a_seed_from_steps_and_evaluations():
    """Two problems, two samples each: SFT has 1 of 4 right, stock 2 then 3, ours 3 then 4; differences at the end."""
    sft = evaluation((0, 0), (1, 0))
    two, three, four = evaluation((0, 0), (1, 1)), evaluation((1, 0), (1, 1)), evaluation((1, 1), (1, 1))
    evaluations = {"ours": {0: sft, 1: three, 2: four}, "stock": {0: sft, 1: two, 2: three}}
    seconds = {"ours": [60.0, 60.0], "stock": [120.0, 120.0]}
    found = seed_curves(7, seconds, evaluations, {"ours": 1.0, "stock": 1.0})
    assert found.curves["ours"] == points((0, 0.0, 0.25), (1, 1.0, 0.75), (2, 2.0, 1.0))
    assert found.curves["stock"] == points((0, 0.0, 0.25), (1, 2.0, 0.5), (2, 4.0, 0.75))
    assert found.sft == 0.25 and found.stock_gain.difference == pytest.approx(0.5)
    assert found.final.difference == pytest.approx(0.25)


def test_seeds_are_pooled_by_problem():
    """Ours - stock of problem 1: 1 in one seed, 0 in the other, on average 1/2; of problem 2: 0 and 1/2, so 1/4. The
    problems, not the seeds, are what is counted."""
    first = evaluation((1, 1), (1, 0)), evaluation((0, 0), (0, 1))
    second = evaluation((1, 1), (1, 1)), evaluation((1, 1), (1, 0))
    found = pooled([first, second])
    assert found.difference == pytest.approx((1 / 2 + 1 / 4) / 2) and found.n == 2
    with pytest.raises(ValueError, match="different problems"):
        pooled([first, (evaluation((1, 1)), evaluation((0, 1)))])


def test_a_missing_ratio_is_not_left_out_silently():
    assert spread([1.5, 2.0, 1.25]) == "1.50 (1.25 to 2.00)"
    assert spread([1.5, None, 2.5]) == "2.00 (1.50 to 2.50; none in 1 of 3 seeds)"
    assert spread([None, None]) == "none"


def test_the_table_and_the_drawing(tmp_path):
    found = [seed(), seed(ours=STOCK, stock=OURS)]
    rows = table(found).splitlines()
    assert rows[2].startswith(
        "| 1 | 0.600 | 0.680 | 0.720 | +4.0 [+1.0, +7.0], p = 0.01 | 0.660 | 1.50 | 3.00 | 2.00 |"
    )
    assert rows[3].endswith("| 0.690 | - | 5.00 | - |")
    draw(found, tmp_path / "one.svg")
    draw(found, tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
