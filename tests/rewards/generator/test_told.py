"""Parts of the generator, and its solutions in words."""

import re

import pytest

from rewards.domain import get_domain
from rewards.generator.draw import generate, told
from rewards.generator.families import OPERATIONS
from rewards.problems import ProblemError

MATH = get_domain("math")


def test_by_hand():
    assert told("6*7=42") == "So in the end 6 times 7 is 42."
    assert told("6*7=42\n42+5=47\n47%3=2") == (
        "First we see that 6 times 7 is 42.\nThen 42 plus 5 is 47.\nSo in the end 47 modulo 3 is 2."
    )


def test_the_words_say_what_the_steps_said():
    signs = {"plus": "+", "minus": "-", "times": "*", "divided by": "/", "modulo": "%"}
    for plain in generate("train", 300, seed=3):
        steps = plain.solution.split("\n")
        for step, line in zip(steps, told(plain.solution).split("\n"), strict=True):
            left, sign, right, result = re.fullmatch(r"\D*?(-?\d+) (\D+) (-?\d+) is (-?\d+)\.", line).groups()
            assert f"{left}{signs[sign]}{right}={result}" == step
            assert OPERATIONS[signs[sign]](int(left), int(right)) == int(result)


def test_the_domains_problems_are_the_generators_with_other_solutions():
    plain, worded = generate("test", 50, 0), MATH.problems("embedded", "test", limit=50, seed=0)
    assert [(one.id, one.gold, told(one.solution)) for one in plain] == [(p.id, p.gold, p.solution) for p in worded]


def test_stories_and_formal_problems_are_apart_and_together_all():
    parts = {
        name: {one.domain for one in MATH.problems(f"embedded:{name}", "train", limit=400, seed=0)}
        for name in ("stories", "formal")
    }
    assert parts["stories"] == {"arithmetic", "multi-step"}
    assert parts["formal"] == {"equations", "number theory", "sequences", "fractions"}
    assert parts["stories"] | parts["formal"] == {one.domain for one in generate("train", 400, 0)}
    assert len(MATH.problems("embedded:formal", "train", limit=None, seed=0)) == 4000


@pytest.mark.slow
def test_more_than_there_is():
    with pytest.raises(ProblemError, match="no 100000 different test questions of fractions"):
        generate("test", 100_000, 0, ("fractions",))
