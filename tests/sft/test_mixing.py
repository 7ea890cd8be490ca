"""Which traces are trained on: shares that hold, bands of pass rates, at most n, whatever the order of the sources."""

import itertools
import random
from collections import Counter

import pytest

from rewards.verdict import Verdict
from sft.distill import DistillError, Trace
from sft.mixing import mixed, shared_out
from sft.settings import SftSettings


def traces(source, count, rate=None):
    return [
        Trace(f"p{i}", "?", "4", f"{source} says {i}", Verdict.CORRECT, 5, rate[i] if rate else None)
        for i in range(count)
    ]


def settings(data, **values):
    return SftSettings.model_validate({"data": data, "steps": 1, "learning_rate": 0.1, **values})


def of(chosen):
    return Counter(trace.completion.split()[0] for trace in chosen)


def test_shares_hold_and_the_scarcest_source_decides():
    # 30 of a are three quarters of 40, but b has only 6 for its quarter: 24 in all
    assert shared_out({"a": 30, "b": 6}, {"a": 0.75, "b": 0.25}, None) == {"a": 18, "b": 6}
    assert shared_out({"a": 30, "b": 6}, {"a": 3, "b": 1}, 16) == {"a": 12, "b": 4}, "only their ratio counts"
    # 3 / 0.1 is 30.000000000000004 and 0.1 + 0.2 is no 0.3; as they are written, it comes out even
    assert shared_out({"a": 3, "b": 6, "c": 21}, {"a": 0.1, "b": 0.2, "c": 0.7}, None) == {"a": 3, "b": 6, "c": 21}
    # ten thirds each: the one that is left over goes to the first by name
    assert shared_out(dict.fromkeys("cab", 9), dict.fromkeys("cab", 1 / 3), 10) == {"a": 4, "b": 3, "c": 3}


def test_no_source_is_asked_for_more_than_it_has():
    draw = random.Random(5)
    for _ in range(500):
        names = "abcd"[: draw.randint(1, 4)]
        there = {name: draw.randint(20, 60) for name in names}
        shares = {name: round(draw.uniform(0.2, 1), 3) for name in names}
        counts = shared_out(there, shares, draw.choice([None, 12]))
        rows = sum(counts.values())
        for name in names:
            assert counts[name] <= there[name]
            assert abs(counts[name] - rows * shares[name] / sum(shares.values())) < 1


def test_a_share_that_rounds_to_nothing_gives_one():
    # 21 / 0.988 = 21.2 rows, of which b's share is a quarter of a trace
    assert shared_out({"a": 21, "b": 12}, {"a": 7473, "b": 89}, None) == {"a": 20, "b": 1}
    assert shared_out({"a": 30, "b": 6, "c": 5}, {"a": 98, "b": 1, "c": 1}, 20) == {"a": 18, "b": 1, "c": 1}


def test_what_a_share_would_leave_empty_is_told_with_numbers():
    had = r"there are 1 traces of a \(share 0.99\), 6 traces of b \(share 0.01\)"
    with pytest.raises(DistillError, match=f"^data: nothing would be taken of b: {had}$"):
        shared_out({"a": 1, "b": 6}, {"a": 99, "b": 1}, None)
    with pytest.raises(DistillError, match=r"nothing would be taken of a, b: there are 30 traces of a.* 0 traces of b"):
        shared_out({"a": 30, "b": 0}, {"a": 1, "b": 1}, None)


def test_neither_order_nor_place_of_the_sources_matters():
    sources = {"a": traces("a", 30), "b": traces("b", 20), "c": traces("c", 10)}
    made = [
        mixed([(name, sources[name]) for name in order], settings({name: 1.0 for name in order}, at_most=24), seed=3)
        for order in itertools.permutations(sources)
    ]
    assert all(one == made[0] for one in made) and of(made[0][0]) == {"a": 8, "b": 8, "c": 8}
    assert [str(one) for one in made[0][1]] == ["8 of 30 traces of a", "8 of 20 traces of b", "8 of 10 traces of c"]
    listed = [mixed([(name, sources[name]) for name in order], settings(list(order)), 3)[0] for order in ("abc", "cba")]
    assert listed[0] == listed[1] and of(listed[0]) == {"a": 30, "b": 20, "c": 10}
    # the rows of a source in another order, and under another name, are the same rows
    again, _ = mixed([("z", sources["b"][::-1]), ("a", sources["a"])], settings({"z": 1.0, "a": 1.0}), 3)
    plain, _ = mixed([("b", sources["b"]), ("a", sources["a"])], settings({"b": 1.0, "a": 1.0}), 3)
    assert again == plain


def test_the_seed_decides_which():
    sources = [("a", traces("a", 100))]
    chosen = [[t.problem_id for t in mixed(sources, settings("a", at_most=20), seed)[0]] for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2] and len({*chosen[0]}) == 20
    # 20 of 100 twice by chance have 4 in common; all 20, and the seed would not be heard
    assert len({*chosen[0]} & {*chosen[2]}) < 12


def test_one_source_of_which_all_is_taken_stays_as_it_is():
    rows = traces("a", 9)
    for one in (settings("a"), settings(["a"], at_most=9), settings("a", at_most=50)):
        assert mixed([("a", rows)], one, 1)[0] == rows


def test_a_band_keeps_its_bounds():
    rows = traces("a", 5, rate=[0.0, 0.25, 0.5, 0.75, 1.0])
    chosen, (taken,) = mixed([("a", rows)], settings("a", pass_rate=[0.25, 0.75]), 1)
    assert [trace.pass_rate for trace in chosen] == [0.25, 0.5, 0.75]
    assert str(taken) == "3 of 5 traces of a (2 outside the band of pass rates)"
    # shares are of what is in the band: 3 of a, so 3 of b
    halves = settings({"a": 0.5, "b": 0.5}, pass_rate=[0.25, 0.75])
    assert of(mixed([("a", rows), ("b", traces("b", 9, [0.5] * 9))], halves, 1)[0]) == {"a": 3, "b": 3}


def test_a_band_without_pass_rates_or_without_traces_is_one_line():
    with pytest.raises(DistillError, match=r"^pass_rate: 4 of 4 traces of a have no pass rate$"):
        mixed([("a", traces("a", 4))], settings("a", pass_rate=[0.25, 0.75]), 1)
    with pytest.raises(DistillError, match=r"none of 2 traces of a is in the band of pass rates \[0.25, 0.75\]"):
        mixed([("a", traces("a", 2, [0.0, 1.0]))], settings("a", pass_rate=[0.25, 0.75]), 1)
