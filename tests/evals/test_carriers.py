r"""Which answers carry a comparison, and where in them: strata, kinds of places, and what the draws depend on."""

from collections import Counter

import pytest

from evals.carriers import Answer, Place, choose_carriers, choose_places
from evals.settings import Places, ProbeSettings


def answer(number, writer="before", correct=True, length=5):
    return Answer(writer, f"p{number:02}", (1, 2), tuple(range(length)), correct)


# 40 answers: of each policy 10 short right ones, 6 long right ones, 3 long wrong ones, 1 short wrong one
ANSWERS = [
    answer(number, writer, correct=number < 16, length=4 if number < 10 or number == 19 else 9)
    for writer in ("before", "after")
    for number in range(20)
]
SETTINGS = ProbeSettings(carriers=4, length_bands=2)


def strata(carriers):
    return Counter((one.answer.writer, one.answer.correct, one.band) for one in carriers)


def test_so_many_of_each_stratum_or_all_that_there_are():
    for writer in ("before", "after"):
        found = {
            key[1:]: count for key, count in strata(choose_carriers(ANSWERS, SETTINGS, 0)).items() if key[0] == writer
        }
        assert found == {(True, 0): 4, (True, 1): 4, (False, 0): 1, (False, 1): 3}


def test_the_bands_are_those_of_both_policies_together():
    """Lengths 1 to 4 by one policy, 5 to 8 by the other: half of all are short, and those are one policy's."""
    answers = [answer(n, "before", length=n + 1) for n in range(4)] + [
        answer(n, "after", length=n + 5) for n in range(4)
    ]
    assert strata(choose_carriers(answers, SETTINGS, 0)) == {("before", True, 0): 4, ("after", True, 1): 4}
    thirds = choose_carriers(answers, SETTINGS.model_copy(update={"length_bands": 4}), 0)
    assert [(len(one.answer.tokens), one.band) for one in thirds] == [
        (5, 2), (6, 2), (7, 3), (8, 3), (1, 0), (2, 0), (3, 1), (4, 1)
    ]  # fmt: skip
    assert {one.band for one in choose_carriers(answers, SETTINGS.model_copy(update={"length_bands": 1}), 0)} == {0}


def test_equal_lengths_share_a_band():
    answers = [answer(n, length=7) for n in range(9)]
    assert {one.band for one in choose_carriers(answers, SETTINGS, 0)} == {0}


def test_the_draw_knows_the_seed_and_not_the_order():
    first = choose_carriers(ANSWERS, SETTINGS, 1)
    assert choose_carriers(ANSWERS[::-1], SETTINGS, 1) == first
    assert choose_carriers(ANSWERS, SETTINGS, 2) != first


def test_what_is_not_judged_or_empty_is_left_out():
    answers = [answer(0, correct=None), answer(1, length=0), answer(2)]
    assert [one.answer.problem_id for one in choose_carriers(answers, SETTINGS, 0)] == ["p02"]
    with pytest.raises(ValueError, match="none of 2 answers was judged"):
        choose_carriers(answers[:2], SETTINGS, 0)
    with pytest.raises(ValueError, match="answered a problem twice"):
        choose_carriers([answer(2), answer(2, length=6)], SETTINGS, 0)


# places

PIECES = ["Let", " x", " =", " 2", ".", " Wa", "it", ",", " but", " butter", "\n", "\\", "boxed", "{", "2", "}", ""]
NONE = Places(every=100, near_box=0, random=0)


def kinds(pieces=PIECES, seed=0, **settings):
    return {one.at: one.kinds for one in choose_places(pieces, NONE.model_copy(update=settings), seed)}


def test_places_by_hand():
    """`every: 100` puts a regular place at 50, which this answer has not. A word is where its first letter is, a box
    where its backslash is; `butter` is not `but`."""
    assert kinds() == {0: ("declaration",), 5: ("correction",), 8: ("correction",), 11: ("boxed",)}
    assert kinds(near_box=2)[9] == kinds(near_box=2)[13] == ("boxed",) and 8 + 6 not in kinds(near_box=2)
    assert set(kinds(every=6)) == {0, 5, 8, 11} | {3, 9, 15}
    assert kinds(every=10)[5] == ("regular", "correction"), "a place of two kinds is one place"
    assert set(kinds(near_box=99)) == set(range(17)), "and not beyond the answer"


def test_words_are_those_of_the_settings():
    assert kinds(corrections=("butter",)).get(9) == ("correction",) and 8 not in kinds(corrections=("butter",))
    assert kinds(declarations=("=",))[2] == ("declaration",), "no pattern"
    assert kinds(["WAIT", " let"]) == {0: ("correction",), 1: ("declaration",)}


def test_random_places_are_of_the_rest_and_known_by_their_seed():
    found = kinds(random=5)
    drawn = {at for at, kind in found.items() if kind == ("random",)}
    assert len(drawn) == 5 and drawn.isdisjoint(kinds())
    assert found == kinds(random=5) and found != kinds(random=5, seed=1)
    assert set(kinds(random=500)) == set(range(17))


def test_an_answer_of_nothing():
    assert choose_places([], Places(), 0) == () and choose_places(["7"], NONE, 0) == ()
    assert choose_places(["7"], Places(every=1), 0) == (Place(0, ("regular",)),)
