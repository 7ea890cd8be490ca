"""The embedded problems: families and difficulties, disjoint splits, right steps, questions told in several ways."""

import random
import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction

from rewards.generator.draw import NAMES, THINGS, draw_problem, generate
from rewards.generator.families import DIFFICULTIES, FAMILIES, OPERATIONS, Draw, Steps


def test_generator_covers_families_domains_and_difficulties():
    problems = generate("train", 2000, seed=3)
    assert len({p.family for p in problems}) == len(FAMILIES) >= 12
    assert len({p.domain for p in problems}) >= 4
    assert {p.difficulty for p in problems} == set(DIFFICULTIES)
    per_cell = Counter((p.family, p.difficulty) for p in problems)
    assert len(per_cell) == len(FAMILIES) * len(DIFFICULTIES)


def test_generator_is_deterministic_and_a_larger_count_extends_a_smaller_one():
    assert generate("test", 300, seed=5) == generate("test", 300, seed=5)
    assert generate("test", 300, seed=5)[:100] == generate("test", 100, seed=5)
    assert generate("test", 100, seed=5) != generate("test", 100, seed=6)


def test_train_and_test_are_disjoint_whatever_the_seed():
    def bare(problem):
        return re.sub("|".join(NAMES + THINGS), "_", problem.question)

    train = [p for seed in range(3) for p in generate("train", 3000, seed)]
    test = [p for seed in range(3) for p in generate("test", 800, seed)]
    assert {p.id for p in train}.isdisjoint(p.id for p in test)
    # other names and things do not make another problem
    assert {bare(p) for p in train}.isdisjoint(bare(p) for p in test)


def test_the_split_depends_on_the_numbers_alone():
    rng, splits = random.Random(0), {}
    for _ in range(3000):
        family, numbers = FAMILIES[0], Draw({"a": rng.randint(2, 9), "b": rng.randint(2, 9), "c": 3}, Steps(), 0)
        fixed = replace(family, draw=lambda _rng, _level, numbers=numbers: numbers)
        _, split = draw_problem(fixed, rng.choice(DIFFICULTIES), rng)
        splits.setdefault(tuple(numbers.numbers.values()), set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "test"}


def test_one_problem_in_five_is_a_test_problem():
    rng = random.Random(0)
    drawn = Counter(draw_problem(rng.choice(FAMILIES), rng.choice(DIFFICULTIES), rng)[1] for _ in range(5000))
    assert 0.17 < drawn["test"] / 5000 < 0.24


def test_every_step_of_every_solution_is_right_and_leads_to_the_gold():
    for problem in generate("train", 3000, seed=0) + generate("test", 500, seed=0):
        for step in problem.solution.split("\n"):
            left, sign, right, result = re.fullmatch(r"(-?\d+)([-+*/%])(-?\d+)=(-?\d+)", step).groups()
            assert OPERATIONS[sign](int(left), int(right)) == int(result), problem
            assert sign != "/" or int(left) % int(right) == 0, problem
        gold = Fraction(problem.gold)
        assert str(gold) == problem.gold, "golds are in lowest terms"
        if "/" in problem.gold:
            assert 0 < gold < 1
        elif problem.family != "common_divisor":
            assert problem.gold == problem.solution.rsplit("=")[-1]


def test_questions_are_unique_and_worded_in_several_ways():
    problems = generate("train", 2000, seed=1)
    assert len({p.question for p in problems}) == len({p.id for p in problems}) == len(problems)
    for family in FAMILIES:
        assert len(family.wordings) >= 2
