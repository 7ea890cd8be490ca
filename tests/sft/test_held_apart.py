"""Traces set aside: by problem, a tenth of them and no more than 128, whatever the order."""

import random
from dataclasses import replace

import pytest

from rewards.verdict import Verdict
from sft.distill import Trace
from sft.held_apart import held_apart


def traces(problems, each=1):
    return [
        Trace(f"p{i}", f"Question {i}?", "1", f"answer {i}-{k}", Verdict.CORRECT, 3)
        for k in range(each)
        for i in range(problems)
    ]


@pytest.mark.parametrize("problems, aside", [(1, 0), (9, 0), (10, 1), (19, 1), (20, 2), (1279, 127), (1300, 128)])
def test_a_tenth_of_the_problems_and_no_more_than_128(problems, aside):
    found = held_apart(traces(problems))
    assert (len(found.aside), len(found.beside), found.gone) == (aside, aside, aside)
    assert len(found.trained) == problems - aside


def test_no_trace_of_a_problem_set_aside_is_trained_on():
    """Three traces of each of 40 problems, some of them under another id: a problem is its text."""
    given = traces(40, each=3)
    given = [replace(trace, problem_id=f"other-{at}") if at >= 80 else trace for at, trace in enumerate(given)]
    found = held_apart(given)
    away, trained = ({trace.question for trace in some} for some in (found.aside, found.trained))
    assert len(away) == 4 and len(trained) == 36 and not away & trained
    assert found.gone == 12 and len(found.trained) == 108
    assert list(found.trained) == [trace for trace in given if trace.question in trained], "in their order"
    # what is compared with is trained on, one text of a problem, as of those set aside
    assert {trace.question for trace in found.beside} <= trained and len(found.beside) == 4
    assert all(trace.completion.endswith("-0") for trace in (*found.aside, *found.beside))


def test_neither_order_nor_seed_has_a_part_in_it():
    given = traces(200)
    shuffled = random.Random(1).sample(given, len(given))
    found, other = held_apart(given), held_apart(shuffled)
    assert (found.aside, found.beside) == (other.aside, other.beside)
    # a problem stays where it is when others come
    more = held_apart([*given, *[replace(trace, question=trace.question + " More?") for trace in given]])
    assert {trace.question for trace in found.aside} & {trace.question for trace in more.aside}
