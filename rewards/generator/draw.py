"""The embedded problem source: generated school problems, small enough for a tiny model and never exhausted.

Every family draws its numbers at a difficulty of 1 to 4 and words them in one of several ways. What decides the
split is a hash of the family and the numbers alone, so a test problem is never a reworded train problem:
disjoint by construction, whatever the seeds and counts.

A solution is a chain of single steps, one a line: `6*7=42`, then `42+5=47`. `told` puts it as people would.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence

from rewards.generator.families import DIFFICULTIES, FAMILIES, STEP, Family
from rewards.problems import Problem, ProblemError, Split

TEST_SHARE = 5  # one problem in five belongs to the test split
MAX_REPEATS = 5000

DOMAINS = tuple(dict.fromkeys(family.domain for family in FAMILIES))

NAMES = ("Tom", "Ann", "Ben", "Mia", "Sam", "Eva", "Leo", "Zoe")
WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by", "%": "modulo"}
THINGS = ("apples", "books", "coins", "cards", "eggs", "pens", "shells", "cakes")


def draw_problem(family: Family, difficulty: int, rng: random.Random) -> tuple[Problem, Split]:
    """Draw one problem and say which split it belongs to. Names, things and wording do not enter the split."""
    draw = family.draw(rng, difficulty)
    who, other = rng.sample(NAMES, 2)
    question = rng.choice(family.wordings).format(**draw.numbers, who=who, other=other, things=rng.choice(THINGS))
    key = f"{family.name}:{','.join(map(str, draw.numbers.values()))}"
    split: Split = "test" if hashlib.sha256(key.encode()).digest()[0] % TEST_SHARE == 0 else "train"
    problem = Problem(
        id=f"{family.name}-{hashlib.sha256(question.encode()).hexdigest()[:10]}",
        question=question,
        gold=str(draw.gold),
        solution="\n".join(draw.steps),
        domain=family.domain,
        difficulty=difficulty,
        family=family.name,
    )
    return problem, split


def stream(split: Split, seed: int, domains: Sequence[str] = DOMAINS) -> Iterator[Problem]:
    """Endless problems of a split; every block holds each family of these domains at each difficulty once, shuffled."""
    rng = random.Random(f"{split}/{seed}")
    families = [family for family in FAMILIES if family.domain in domains]
    block = [(family, difficulty) for family in families for difficulty in DIFFICULTIES]
    while True:
        rng.shuffle(block)
        for family, difficulty in block:
            problem, drawn = draw_problem(family, difficulty, rng)
            while drawn != split:
                problem, drawn = draw_problem(family, difficulty, rng)
            yield problem


def generate(split: Split, count: int, seed: int, domains: Sequence[str] = DOMAINS) -> list[Problem]:
    """Generate `count` problems of a split, no question twice.

    The same seed gives the same problems, and a larger count the same ones and more behind them.

    Raises:
        ProblemError: the generator has no more different questions.
    """
    problems: dict[str, Problem] = {}
    repeats = 0
    for problem in stream(split, seed, domains):
        if problem.id in problems:
            repeats += 1
            if repeats > MAX_REPEATS + count:
                of = "" if domains == DOMAINS else f" of {', '.join(domains)}"
                raise ProblemError(
                    f"problems: the generator has no {count} different {split} questions{of}; ask for fewer"
                )
            continue
        problems[problem.id] = problem
        if len(problems) == count:
            break
    return list(problems.values())


def told(solution: str) -> str:
    """A chain of steps in words, as a person writes a solution down and no model here does.

    >>> told("6*7=42\\n42+5=47")
    'First we see that 6 times 7 is 42.\\nSo in the end 42 plus 5 is 47.'
    """
    steps = [STEP.fullmatch(step).groups() for step in solution.split("\n")]
    openings = ["First we see that", *["Then"] * (len(steps) - 2), "So in the end"][-len(steps) :]
    return "\n".join(
        f"{opening} {left} {WORDS[sign]} {right} is {result}."
        for opening, (left, sign, right, result) in zip(openings, steps, strict=True)
    )
