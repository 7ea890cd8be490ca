r"""What the embedded models read: the same problems, written down in two different habits.

teacher   <think>\n6*7=42\n42+5=47\n</think>\n\boxed{47}, without a slip, but more often without every other step
student   6*7=42;42+5=47\n\boxed{47}, or just \boxed{47}, seldom in the teacher's way; every step may slip

A step that is left out is done in the head, which the teacher mostly can and the student mostly cannot: the gap between
strong and weak reasoners of arXiv 2502.12143. Imitation passes the habit on; reinforcement finds that writing every
step down pays, so what it gains is a change of behaviour that one can read, and completions grow longer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from rewards.formats import FORMATS
from rewards.generator.families import OPERATIONS, STEP
from rewards.problems import Problem

Writer = Callable[[Problem, random.Random], str]


@dataclass(frozen=True)
class Habits:
    """How a corpus is written. Shares of all texts; what is left is terse steps.

    Fields:
        direct: share that names an answer without any step.
        thinks: share in the teacher's format.
        slip: chance that a step's result is off; later steps go on from the wrong number.
        skips: share that leaves out every other step.
    """

    direct: float
    thinks: float
    slip: float
    skips: float


def writer(habits: Habits) -> Writer:
    """A writer with these habits."""

    def write(problem: Problem, rng: random.Random) -> str:
        solution, answer = slip(problem.solution, problem.gold, habits.slip, rng)
        if rng.random() < habits.skips:
            solution = skip(solution)
        way = rng.random()
        if way < habits.direct:
            return FORMATS["boxed"].completion("", answer)
        if way < habits.direct + habits.thinks:
            return FORMATS["think-boxed"].completion(solution, answer)
        return FORMATS["boxed"].completion(solution.replace("\n", ";"), answer)

    return write


def slip(solution: str, gold: str, rate: float, rng: random.Random) -> tuple[str, str]:
    """Make each step wrong with chance `rate` and carry the wrong number on. Returns (solution, answer)."""
    renamed: dict[str, str] = {}
    steps = []
    for step in solution.split("\n"):
        left, sign, right, result = STEP.fullmatch(step).groups()
        left, right = renamed.get(left, left), renamed.get(right, right)
        if renamed:
            divides_by_zero = sign in ("/", "%") and int(right) == 0
            new = str(0 if divides_by_zero else OPERATIONS[sign](int(left), int(right)))
        else:
            new = result
        if rng.random() < rate:
            new = _off(new, rng)
        if new != result:
            renamed[result] = new
        steps.append(f"{left}{sign}{right}={new}")
    answer = re.sub(r"-?\d+", lambda number: renamed.get(number[0], number[0]), gold)
    return "\n".join(steps), answer


def skip(solution: str) -> str:
    """The same solution without every other step, counted from the last: its result is found in the head.

    `6*7=42`, `42+5=47` becomes `42+5=47`.
    """
    steps = solution.split("\n")
    return "\n".join(steps[1 - len(steps) % 2 :: 2])


def _off(number: str, rng: random.Random) -> str:
    """Change one digit of a number by one or two."""
    at = rng.choice([index for index, char in enumerate(number) if char.isdigit()])
    digit = (int(number[at]) + rng.choice((-2, -1, 1, 2))) % 10
    return str(int(f"{number[:at]}{digit}{number[at + 1 :]}"))
