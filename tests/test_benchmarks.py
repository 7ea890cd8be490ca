"""What the benchmark of a step makes of its measurements: ratios by hand, and a table that says them."""

import pytest

from benchmarks.grpo_cases import CASES, our_settings, stock_settings
from benchmarks.grpo_step import KEYS, Step, ratios, report


def step(seconds, rollout, tokens, useful):
    return Step(dict.fromkeys(KEYS, 0.0) | {"step": seconds, "rollout": rollout}, tokens, 64, useful)


OURS = [step(2.0, 0.5, 1000, 60), step(4.0, 1.0, 1000, 30), step(2.0, 0.5, 500, 60)]
STOCK = [step(6.0, 4.0, 1000, 45), step(6.0, 4.0, 2000, 45), step(5.0, 4.0, 1000, 0)]


def test_ratios_by_hand():
    """Pairs of steps: 6/2, 6/4, 5/2 of time; 2000:250, 1000:500, 1000:250 tokens a second of rollouts; and useful
    samples a second 30:7.5, 7.5:7.5, 30:0.2 (where stock has none, it is counted as one)."""
    found = ratios(OURS, STOCK)
    assert found["step time"] == pytest.approx([2.5, 1.5, 3.0])
    assert found["rollout tokens/s"] == pytest.approx([4.0, 2.0, 8.0])
    assert found["useful samples/s"] == pytest.approx([4.0, 1.0, 150.0])


def test_every_pair_counts():
    with pytest.raises(ValueError, match="shorter"):
        ratios(OURS, STOCK[:2])


def test_the_table_says_settings_and_ratios():
    case = CASES["25m"]
    result = {
        "case": vars(case),
        "settings": {"ours": "A", "stock": "B"},
        "tried": {"ours": {"A": 2.0}, "stock": {"B": 5.0, "C": 7.0}},
        "steps": {"ours": [vars(s) for s in OURS], "stock": [vars(s) for s in STOCK]},
        "peak_gib": {"ours": 3.0, "stock": 2.0},
        "ratios": ratios(OURS, STOCK),
    }
    text = report([result])
    assert "25m: 8 prompts x 8, up to 256 tokens" in text and "its fastest of 2" in text
    assert "step time: 2.50 times (pairs from 1.50 to 3.00)" in text and "stock C: 7.00" in text


@pytest.mark.parametrize("cuda", [False, True])
def test_stock_is_tried_in_both_arithmetics_or_both_engines(cuda):
    """At its best means that it may choose."""
    settings = stock_settings(CASES["25m"], cuda)
    assert len({setting.vllm if cuda else setting.bf16 for setting in settings}) == 2
    assert {setting.sync for setting in our_settings(CASES["25m"], cuda)} == {"folded", "adapter"}
