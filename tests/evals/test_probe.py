"""The probe's numbers by hand on a vocabulary of four, what they do not depend on, and the engines' own truncation."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from evals.carriers import Place
from evals.probe import (
    NUMBERS,
    Reading,
    View,
    classify,
    clustered_means,
    drawn_from,
    read_places,
    summarise,
)
from evals.settings import TokenClasses, Truncation

OFF = Truncation(temperature=1.0, min_p=0.0, top_k=0, top_p=1.0)
# of a vocabulary of four the tail is what is behind the third
FOUR = TokenClasses(tail_beyond=3)


def logits(*rows):
    """Logits whose softmax at temperature 1 is each row; none of them sums to 0 itself."""
    return torch.tensor(rows, dtype=torch.float64).log() + 3.0


def cut(**settings):
    return OFF.model_copy(update=settings)


def one(before, after, truncation=OFF, classes=FOUR, kinds=("regular",)):
    (reading,) = read_places(0, [Place(0, kinds)], logits(before), logits(after), classes, truncation)
    return reading


# what is drawn from


@pytest.mark.parametrize(
    ("truncation", "expected"),
    [
        (OFF, [0.4, 0.3, 0.2, 0.1]),
        (cut(top_k=2), [4 / 7, 3 / 7, 0, 0]),
        # the least likely together: 0.1, 0.3, 0.6, 1.0; cut is what does not get above 1 - p
        (cut(top_p=0.75), [4 / 9, 3 / 9, 2 / 9, 0]),
        (cut(top_p=0.65), [4 / 7, 3 / 7, 0, 0]),
        (cut(top_p=0.01), [1, 0, 0, 0]),
        (cut(min_p=0.6), [4 / 7, 3 / 7, 0, 0]),
        # renormalised behind top-k: 4/9, 3/9, 2/9, of which the first two have 7/9; of the whole they have but 0.7
        (cut(top_k=3, top_p=0.75), [4 / 7, 3 / 7, 0, 0]),
        # behind min-p 4/7, 3/7: the second is cut where 3/7 is not above 1 - p
        (cut(min_p=0.6, top_p=0.55), [1, 0, 0, 0]),
        # temperature 1/2 squares: 16, 9, 4, 1 of 30; min-p and top-p are of what the temperature left
        (cut(temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        (cut(temperature=0.5, top_p=0.8), [16 / 25, 9 / 25, 0, 0]),
        (cut(temperature=0.5, min_p=0.6), [1, 0, 0, 0]),
    ],
)
def test_what_is_drawn_from_by_hand(truncation, expected):
    drawn = drawn_from(logits([0.4, 0.3, 0.2, 0.1]), truncation).exp()
    assert drawn[0].tolist() == pytest.approx(expected, abs=1e-12)


TRUNCATIONS = [
    Truncation(temperature=t, min_p=m, top_k=k, top_p=p)
    for t, m, k, p in product((0.7, 1.6), (0.0, 0.05), (0, 20), (0.8, 1.0))
]


@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
def test_as_vllms_sampler_cuts(truncation):
    """The order of vllm/v1/sample/sampler.py, with its own top-k and top-p."""
    ops = pytest.importorskip("vllm.v1.sample.ops.topk_topp_sampler", reason="vLLM is not installed here")
    drawn_NV = 3 * torch.randn(200, 97, generator=torch.Generator().manual_seed(3))
    p_NV = (drawn_NV / truncation.temperature).softmax(-1)
    theirs_NV = (drawn_NV / truncation.temperature).masked_fill(
        p_NV < truncation.min_p * p_NV.amax(-1, keepdim=True), -torch.inf
    )
    k = torch.full((200,), truncation.top_k) if truncation.top_k else None
    p = torch.full((200,), truncation.top_p) if truncation.top_p < 1 else None
    theirs_NV = ops.apply_top_k_top_p_pytorch(theirs_NV, k, p).softmax(-1)
    torch.testing.assert_close(drawn_from(drawn_NV, truncation).exp().float(), theirs_NV)


def test_what_is_drawn_does_not_know_the_tokens_numbers_or_the_logits_level():
    rows = torch.randn(50, 31, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = torch.randperm(31, generator=torch.Generator().manual_seed(2))
    truncation = Truncation(top_k=9, min_p=0.02)
    drawn = drawn_from(rows, truncation)
    torch.testing.assert_close(drawn_from(rows[:, order], truncation), drawn[:, order])
    torch.testing.assert_close(drawn_from(rows + 100, truncation), drawn)
    assert drawn.exp().sum(-1).tolist() == pytest.approx([1.0] * 50)


def test_a_truncation_only_cuts_and_keeps_the_likeliest():
    rows = torch.randn(50, 31, generator=torch.Generator().manual_seed(1))
    for truncation in TRUNCATIONS:
        kept = drawn_from(rows, truncation) > -torch.inf
        assert kept[torch.arange(50), rows.argmax(-1)].all() and (kept.sum(-1) <= (truncation.top_k or 31)).all()


# locks and forks


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([0.97, 0.0294, 0.0003, 0.0003], "lock"),
        ([0.91, 0.0894, 0.0003, 0.0003], "lock"),
        ([0.9001, 0.0497, 0.0497, 0.0005], "other"),  # two have but 0.9498
        ([0.89, 0.1094, 0.0003, 0.0003], "other"),  # not likely enough
        ([0.97, 0.02, 0.0085, 0.0015], "other"),  # a tail of 0.0015
        ([0.55, 0.44, 0.005, 0.005], "fork"),
        ([0.59, 0.2, 0.205, 0.005], "fork"),
        ([0.65, 0.3, 0.045, 0.005], "other"),  # too likely for a fork
        ([0.59, 0.14, 0.135, 0.135], "other"),  # none has a quarter of 0.59, which is 0.1475
        ([0.5, 0.3, 0.18, 0.02], "other"),  # a tail of 0.02
    ],
)
def test_classes_by_hand(probabilities, expected):
    assert classify(logits(probabilities), FOUR) == [expected]
    assert classify(logits(probabilities[::-1]), FOUR) == [expected]


@pytest.mark.parametrize(
    ("key", "value", "probabilities", "then"),
    [
        ("nucleus", 0.999, [0.97, 0.0284, 0.0013, 0.0003], "other"),
        ("tail_beyond", 2, [0.97, 0.0284, 0.0013, 0.0003], "other"),
        ("lock_top1", 0.98, [0.97, 0.0284, 0.0013, 0.0003], "other"),
        ("lock_nucleus", 1, [0.91, 0.0894, 0.0003, 0.0003], "other"),
        ("lock_tail", 1e-4, [0.97, 0.0284, 0.0013, 0.0003], "other"),
        ("fork_top1", 0.5, [0.55, 0.44, 0.005, 0.005], "other"),
        ("fork_ratio", 0.9, [0.55, 0.44, 0.005, 0.005], "other"),
        ("fork_tokens", 3, [0.55, 0.44, 0.005, 0.005], "other"),
        ("fork_tail", 0.001, [0.55, 0.44, 0.005, 0.005], "other"),
    ],
)
def test_every_threshold_decides(key, value, probabilities, then):
    rows = logits(probabilities)
    assert classify(rows, FOUR) != [then]
    assert classify(rows, FOUR.model_copy(update={key: value})) == [then]


def test_no_token_is_a_lock_and_a_fork():
    with pytest.raises(ValidationError, match=r"lock_top1 \(0.5\) must be above fork_top1 \(0.6\)"):
        TokenClasses(lock_top1=0.5)


# both policies at one place


def test_a_place_by_hand():
    """Before 0.4, 0.3, 0.2, 0.1, of which top-k 2 keeps 0.7; after 0.2, 0.5, 0.2, 0.1, of which the same have 0.7."""
    reading = one([0.4, 0.3, 0.2, 0.1], [0.2, 0.5, 0.25, 0.05], cut(top_k=2))
    before, after = reading.before, reading.after
    assert (before.token, after.token, reading.changed) == (0, 1, True)
    assert (before.top1, after.top1) == pytest.approx((0.4, 0.5))
    # on the tokens 0 and 1, which survive before; after it is 1 and 2 that do
    assert (before.kept, after.kept) == pytest.approx((0.7, 0.7))
    assert (before.survivors, after.survivors) == (2, 2)
    assert before.entropy == pytest.approx(-sum(p * math.log(p) for p in (0.4, 0.3, 0.2, 0.1)))
    assert after.entropy == pytest.approx(-sum(p * math.log(p) for p in (0.2, 0.5, 0.25, 0.05)))
    assert before.drawn_entropy == pytest.approx(-sum(p * math.log(p) for p in (4 / 7, 3 / 7)))
    assert after.drawn_entropy == pytest.approx(-sum(p * math.log(p) for p in (2 / 3, 1 / 3)))
    # the target is 4/7, 3/7, 0, 0: half of what is cut and half of what is added, which are 0.3 each
    assert before.pull == pytest.approx(0.3)
    assert after.pull == pytest.approx((4 / 7 - 0.2 + 0.5 - 3 / 7 + 0.25 + 0.05) / 2)


def test_the_class_is_that_of_the_policy_before():
    lock, fork = [0.97, 0.0294, 0.0003, 0.0003], [0.55, 0.44, 0.005, 0.005]
    assert (one(lock, fork).token_class, one(fork, lock).token_class) == ("lock", "fork")


def test_sorts_of_locks():
    lock, other = [0.97, 0.0294, 0.0003, 0.0003], [0.0294, 0.97, 0.0003, 0.0003]
    assert [one(lock, lock).lock, one(lock, other).lock] == ["strict", "swapped"]
    assert one(lock, other, kinds=("regular", "correction")).lock == "self-correction"
    assert one([0.55, 0.44, 0.005, 0.005], other).lock is None


def test_a_policy_against_itself_has_not_moved():
    rows = torch.randn(40, 30, generator=torch.Generator().manual_seed(5))
    places = [Place(at, ("regular",)) for at in range(40)]
    readings = read_places(0, places, rows, rows.clone(), TokenClasses(), Truncation())
    assert all(reading.before == reading.after and not reading.changed for reading in readings)


def test_the_target_itself_is_not_pulled_and_keeps_everything():
    """A policy that has become SSD's target."""
    truncation = Truncation(top_k=3)
    before = logits([0.4, 0.3, 0.2, 0.1])
    (reading,) = read_places(0, [Place(0, ())], before, drawn_from(before, truncation), FOUR, truncation)
    assert (reading.after.pull, reading.after.kept) == (pytest.approx(0, abs=1e-12), pytest.approx(1))
    assert reading.before.pull > 0.09


def expected_gradient(rows_NV, truncation):
    """E over y drawn from what `truncation` leaves, every y of the vocabulary by its own probability, of
    d log p(y) / d logits, each by torch's autograd: the negative gradient that SSD follows in expectation."""
    drawn_NV = drawn_from(rows_NV, truncation).exp()
    total_NV = torch.zeros_like(rows_NV)
    for token in range(rows_NV.shape[-1]):
        free_NV = rows_NV.clone().requires_grad_()
        free_NV.log_softmax(-1)[:, token].sum().backward()
        total_NV += drawn_NV[:, token, None] * free_NV.grad
    return total_NV


ROWS = torch.randn(20, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 2


def test_at_temperature_1_without_truncation_self_distillation_has_no_expected_gradient():
    assert expected_gradient(ROWS, OFF).abs().max() < 1e-15


@pytest.mark.parametrize("truncation", [cut(temperature=1.1), cut(top_k=3), cut(top_p=0.9), cut(min_p=0.2)], ids=str)
def test_otherwise_it_has_one_and_pull_is_its_size(truncation):
    gradient = expected_gradient(ROWS, truncation)
    assert gradient.abs().max() > 0.01
    places = [Place(at, ("regular",)) for at in range(len(ROWS))]
    readings = read_places(0, places, ROWS, ROWS, TokenClasses(), truncation)
    assert [one.before.pull for one in readings] == pytest.approx((gradient.abs().sum(-1) / 2).tolist())


def test_what_cannot_be_compared():
    rows, places = logits([0.4, 0.3, 0.2, 0.1]), [Place(0, ())]
    with pytest.raises(ValueError, match=r"logits of shapes \(1, 4\) and \(1, 3\) for 1 places"):
        read_places(0, places, rows, rows[:, :3], FOUR, OFF)
    with pytest.raises(ValueError, match="for 2 places"):
        read_places(0, places * 2, rows, rows, FOUR, OFF)
    with pytest.raises(ValueError, match="not numbers"):
        read_places(0, places, rows, rows * math.nan, FOUR, OFF)
    with pytest.raises(ValueError, match="no places"):
        summarise([], 0.95, 0)


# summaries


def view(token=0, **numbers):
    return View(**{"token": token, **dict.fromkeys(NUMBERS, 1.0), **numbers})


def reading(carrier, token_class="lock", kinds=("regular",), token=0, **after):
    return Reading(carrier, Place(0, kinds), token_class, view(), view(token, **after))


def test_groups_by_hand():
    readings = [
        reading(0, kept=1.5), reading(0, token=1, kept=0.5), reading(1, "fork", ("boxed", "regular"), kept=2.0),
        reading(2, "lock", ("correction",), kept=1.6),
    ]  # fmt: skip
    found = {group.name: group for group in summarise(readings, 0.95, 0)}
    assert {name: (group.of, group.places, group.carriers) for name, group in found.items()} == {
        "all": ("all", 4, 3), "lock": ("class", 3, 2), "strict": ("lock", 1, 1), "swapped": ("lock", 1, 1),
        "self-correction": ("lock", 1, 1), "fork": ("class", 1, 1), "regular": ("kind", 3, 2),
        "boxed": ("kind", 1, 1), "correction": ("kind", 1, 1),
    }  # fmt: skip
    kept = found["all"].numbers["kept"]
    assert (kept.before, kept.after, kept.difference.value) == pytest.approx((1.0, 1.4, 0.4))
    assert kept.difference.low < 0.4 < kept.difference.high
    assert found["all"].changed.value == 0.25 and found["swapped"].changed.value == 1.0
    assert found["lock"].numbers["kept"].after == pytest.approx(1.2), "a mean over places, not over carriers"
    assert found["fork"].numbers["kept"].difference.low is None, "of one carrier nothing is known"
    assert set(found["all"].numbers) == set(NUMBERS)
    still = found["all"].numbers["entropy"].difference
    assert (still.value, still.low, still.high) == (0.0, None, None)


def test_the_order_of_rows_and_the_names_of_clusters_are_nothing():
    random = np.random.default_rng(0)
    values, clusters = random.normal(size=(60, 3)), random.integers(0, 9, 60)
    order = random.permutation(60)
    first = clustered_means(values, clusters, 0.9, seed=4)
    again = clustered_means(values[order], 7 - 3 * clusters[order], 0.9, seed=4)
    for a, b in zip(first, again, strict=True):
        assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high))


def test_copies_of_a_carriers_places_add_no_knowledge():
    """Eight copies of each place are eight times as many rows and the same clusters."""
    values = np.random.default_rng(1).normal(size=(12, 1))
    (alone,) = clustered_means(values, range(12), 0.95, seed=0)
    (copied,) = clustered_means(np.repeat(values, 8, axis=0), np.repeat(range(12), 8), 0.95, seed=0)
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    (taken_apart,) = clustered_means(np.repeat(values, 8, axis=0), range(96), 0.95, seed=0)
    assert taken_apart.high - taken_apart.low < 0.5 * (alone.high - alone.low)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    """16 carriers of 1 to 6 places with an effect of their own, 600 times: 95 % within 2 points. Taken for places that
    have nothing to do with each other they would not be."""
    random, covered, naive = np.random.default_rng(2), [], []
    for seed in range(10):
        sizes = random.integers(1, 7, 16)
        clusters = np.repeat(range(16), sizes)
        effect = np.repeat(random.normal(size=(16, 60)), sizes, axis=0)
        values = 0.3 + effect + random.normal(size=(len(clusters), 60))
        covered += [one.low <= 0.3 <= one.high for one in clustered_means(values, clusters, 0.95, seed)]
        if not seed:
            naive = [one.low <= 0.3 <= one.high for one in clustered_means(values, range(len(values)), 0.95, seed)]
    assert abs(np.mean(covered) - 0.95) <= 0.02 and np.mean(naive) < 0.88
