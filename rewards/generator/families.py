"""The families of the embedded problem source: how each draws its numbers, solves them and words them.

The numbers are kept small on purpose: a model of a million parameters has to learn this arithmetic in minutes.
"""

from __future__ import annotations

import operator
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import gcd

DIFFICULTIES = (1, 2, 3, 4)
STEP = re.compile(r"(-?\d+)([-+*/%])(-?\d+)=(-?\d+)")
OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
    "%": operator.mod,
}


class Steps(list[str]):
    """A solution being written: each call of `do` adds a step and returns its result."""

    def do(self, left: int, sign: str, right: int) -> int:
        result = OPERATIONS[sign](left, right)
        self.append(f"{left}{sign}{right}={result}")
        return result


@dataclass(frozen=True)
class Draw:
    """What a family makes: the numbers that a wording names, the steps, the gold."""

    numbers: dict[str, int | str]
    steps: Steps
    gold: int | str


@dataclass(frozen=True)
class Family:
    """A kind of problem: `draw(rng, difficulty)` makes one, told in one of `wordings`."""

    name: str
    domain: str
    wordings: tuple[str, ...]
    draw: Callable[[random.Random, int], Draw]


FAMILIES: list[Family] = []


def _family(domain: str, *wordings: str) -> Callable:
    def register(draw: Callable[[random.Random, int], Draw]) -> Callable:
        FAMILIES.append(Family(draw.__name__.strip("_"), domain, wordings, draw))
        return draw

    return register


# --- arithmetic: one or two steps, told as a story


@_family(
    "arithmetic",
    "{who} buys {a} boxes of {things} for {b} dollars each and a bag for {c} dollars. What is the total cost?",
    "A box of {things} costs {b} dollars. {who} buys {a} boxes and a bag for {c} dollars. How much does {who} pay?",
    "{who} pays {c} dollars for a bag and {b} dollars for each of {a} boxes. How many dollars in total?",
)
def _shopping(rng: random.Random, level: int) -> Draw:
    a, b, c = rng.randint(2, 2 + 2 * level), rng.randint(2, 4 + 4 * level), rng.randint(2, 12 * level)
    steps = Steps()
    return Draw({"a": a, "b": b, "c": c}, steps, steps.do(steps.do(a, "*", b), "+", c))


@_family(
    "arithmetic",
    "{who} has {a} {things}, gets {b} more and gives {c} to {other}. How many {things} does {who} have now?",
    "{who} finds {b} {things} and has {a} at home. Then {who} loses {c}. How many {things} are left?",
    "There are {a} {things} in a box. {who} adds {b} and {other} takes {c}. How many are in the box now?",
)
def _gifts(rng: random.Random, level: int) -> Draw:
    a, b = rng.randint(3, 15 * level), rng.randint(3, 12 * level)
    c = rng.randint(2, a + b - 1)
    steps = Steps()
    return Draw({"a": a, "b": b, "c": c}, steps, steps.do(steps.do(a, "+", b), "-", c))


@_family(
    "arithmetic",
    "{a} {things} are shared by {b} friends. Then {who}, one of them, gets {c} more. How many does {who} have now?",
    "{who} puts {a} {things} into {b} equal bags and adds {c} to one bag. How many {things} are in that bag?",
)
def _sharing(rng: random.Random, level: int) -> Draw:
    b, each, c = rng.randint(2, 2 + 2 * level), rng.randint(2, 5 + 4 * level), rng.randint(2, 12 * level)
    steps = Steps()
    return Draw({"a": b * each, "b": b, "c": c}, steps, steps.do(steps.do(b * each, "/", b), "+", c))


@_family(
    "arithmetic",
    "{who} has {a} {things}. {other} has {b} {sign}. How many {things} do they have together?",
    "{who} has {a} {things} and {other} has {b} {sign} than {who}. How many in total?",
)
def _together(rng: random.Random, level: int) -> Draw:
    a, more = rng.randint(4, 18 * level), rng.random() < 0.5
    b = rng.randint(2, 12 * level) if more else rng.randint(1, a - 2)
    steps = Steps()
    total = steps.do(steps.do(a, "+" if more else "-", b), "+", a)
    return Draw({"a": a, "b": b, "sign": "more" if more else "fewer"}, steps, total)


# --- multi-step: three or four steps


@_family(
    "multi-step",
    "{who} makes {a} {things} each day for {b} days, sells {c} and gives away {d}. How many are left?",
    "For {b} days {who} makes {a} {things} each day. {other} takes {c} and loses {d}. How many {things} are left?",
)
def _workshop(rng: random.Random, level: int) -> Draw:
    a, b = rng.randint(3, 4 + 3 * level), rng.randint(2, 2 + level)
    c = rng.randint(1, a * b - 2)
    d = rng.randint(1, a * b - c)
    steps = Steps()
    gold = steps.do(steps.do(steps.do(a, "*", b), "-", c), "-", d)
    return Draw({"a": a, "b": b, "c": c, "d": d}, steps, gold)


@_family(
    "multi-step",
    "{who} buys {a} {things} for {b} dollars each and {c} bags for {d} dollars each. How much does {who} pay?",
    "{a} {things} cost {b} dollars each and {c} boxes cost {d} dollars each. What is the total cost?",
)
def _two_purchases(rng: random.Random, level: int) -> Draw:
    a, c = rng.randint(2, 4 + level), rng.randint(2, 3 + level)
    b, d = rng.randint(2, 4 + 3 * level), rng.randint(2, 4 + 2 * level)
    steps = Steps()
    gold = steps.do(steps.do(a, "*", b), "+", steps.do(c, "*", d))
    return Draw({"a": a, "b": b, "c": c, "d": d}, steps, gold)


@_family(
    "multi-step",
    "{who} has {e} dollars and buys {a} {things} for {b} dollars each and a bag for {c}. How many dollars are left?",
    "{who} buys {a} {things} for {b} dollars each and a box for {c}. How much is left of {e} dollars?",
)
def _change(rng: random.Random, level: int) -> Draw:
    a, b, c = rng.randint(2, 2 + level), rng.randint(2, 4 + 3 * level), rng.randint(2, 6 * level)
    e = a * b + c + rng.randint(1, 10 * level)
    steps = Steps()
    gold = steps.do(e, "-", steps.do(steps.do(a, "*", b), "+", c))
    return Draw({"a": a, "b": b, "c": c, "e": e}, steps, gold)


@_family(
    "multi-step",
    "{who} is {a} years old and {other} is {b} times as old. How old are they together in {c} years?",
    "{other} is {b} times as old as {who}, who is {a}. What is the total of the two in {c} years?",
)
def _ages(rng: random.Random, level: int) -> Draw:
    a, b, c = rng.randint(2, 6 + 4 * level), rng.randint(2, 3 + level // 3), rng.randint(2, 3 + 2 * level)
    steps = Steps()
    total = steps.do(steps.do(a, "*", b), "+", a)
    return Draw({"a": a, "b": b, "c": c}, steps, steps.do(total, "+", steps.do(2, "*", c)))


# --- equations


@_family(
    "equations",
    "Solve {a}x{sign}{b}={c}. What is x?",
    "Find x if {a}x{sign}{b}={c}.",
    "What is the number x with {a}x{sign}{b}={c}?",
)
def _linear(rng: random.Random, level: int) -> Draw:
    a, b, x = rng.randint(2, 2 + 2 * level), rng.randint(2, 10 * level), rng.randint(2, 4 + 4 * level)
    if level > 2 and rng.random() < 0.4:
        x = -x
    plus = rng.random() < 0.5
    c = a * x + b if plus else a * x - b
    steps = Steps()
    gold = steps.do(steps.do(c, "-" if plus else "+", b), "/", a)
    return Draw({"a": a, "sign": "+" if plus else "-", "b": b, "c": c}, steps, gold)


@_family(
    "equations",
    "Solve {a}x+{b}={c}x+{d}. What is x?",
    "Find x if {a}x+{b}={c}x+{d}.",
)
def _two_sided(rng: random.Random, level: int) -> Draw:
    c, extra, x = rng.randint(2, 3 + 2 * level), rng.randint(2, 2 + 2 * level), rng.randint(2, 4 + 4 * level)
    a, b = c + extra, rng.randint(2, 12 * level)
    d = extra * x + b
    steps = Steps()
    divisor = steps.do(a, "-", c)
    return Draw({"a": a, "b": b, "c": c, "d": d}, steps, steps.do(steps.do(d, "-", b), "/", divisor))


@_family(
    "equations",
    "{who} thinks of a number. {a} times the number and {b} more is {c}. What is the number?",
    "A number times {a} is {b} less than {c}. What is the number?",
    "{c} is {b} more than {a} times a number. Find the number.",
)
def _think_of(rng: random.Random, level: int) -> Draw:
    a, b, x = rng.randint(2, 2 + 2 * level), rng.randint(2, 10 * level), rng.randint(2, 4 + 4 * level)
    steps = Steps()
    gold = steps.do(steps.do(a * x + b, "-", b), "/", a)
    return Draw({"a": a, "b": b, "c": a * x + b}, steps, gold)


@_family(
    "equations",
    "Two numbers have the sum {a} and the difference {b}. What is the {side} number?",
    "The sum of two numbers is {a}, the difference is {b}. Find the {side} one.",
)
def _sum_difference(rng: random.Random, level: int) -> Draw:
    small, gap, larger = rng.randint(2, 10 * level), rng.randint(2, 8 * level), rng.random() < 0.5
    steps = Steps()
    gold = steps.do(steps.do(2 * small + gap, "+" if larger else "-", gap), "/", 2)
    return Draw({"a": 2 * small + gap, "b": gap, "side": "larger" if larger else "smaller"}, steps, gold)


# --- number theory


@_family(
    "number theory",
    "What is the remainder when {a} is divided by {b}?",
    "{who} puts {a} {things} into bags of {b}. How many {things} are left?",
    "Find {a} mod {b}.",
)
def _remainder(rng: random.Random, level: int) -> Draw:
    b = rng.randint(3, 4 + 2 * level)
    a = b * rng.randint(2, 3 + 3 * level) + rng.randint(0, b - 1)
    steps = Steps()
    return Draw({"a": a, "b": b}, steps, steps.do(a, "-", steps.do(a // b, "*", b)))


@_family(
    "number theory",
    "What is the greatest common divisor of {a} and {b}?",
    "Find the largest number that divides {a} and {b}.",
)
def _common_divisor(rng: random.Random, level: int) -> Draw:
    g = rng.randint(2, 3 + 2 * level)
    b = g * rng.randint(2, 3 + level)
    a = b + g * rng.randint(1, 3 + level)
    steps, left, right = Steps(), a, b
    while right:
        left, right = right, steps.do(left, "%", right)
    return Draw({"a": a, "b": b}, steps, left)


@_family(
    "number theory",
    "What is the least common multiple of {a} and {b}?",
    "Find the smallest number that {a} and {b} both divide.",
)
def _common_multiple(rng: random.Random, level: int) -> Draw:
    g = rng.randint(1, 3 + level)
    a, b = g * rng.randint(2, 4 + level), g * rng.randint(2, 3 + level)
    steps, divisor = Steps(), gcd(a, b)
    return Draw({"a": a, "b": b}, steps, steps.do(a, "*", steps.do(b, "/", divisor)))


@_family(
    "number theory",
    "What is the sum of the digits of {a} times {b}?",
    "Find the sum of the digits of {a}*{b}.",
)
def _digit_sum(rng: random.Random, level: int) -> Draw:
    a, b = rng.randint(4, 8 + 8 * level), rng.randint(3, 4 + level)
    steps = Steps()
    digits = [int(digit) for digit in str(steps.do(a, "*", b))]
    total = digits[0]
    for digit in digits[1:]:
        total = steps.do(total, "+", digit)
    return Draw({"a": a, "b": b}, steps, total)


# --- sequences


@_family(
    "sequences",
    "What is the next number: {a}, {b}, {c}, {d}?",
    "{a}, {b}, {c}, {d}, and so on. Which number is next?",
)
def _next_term(rng: random.Random, level: int) -> Draw:
    start, step = rng.randint(1, 15 * level), rng.choice((-1, 1)) * rng.randint(2, 4 * level)
    a, b, c, d = (start + index * step for index in range(4))
    steps = Steps()
    return Draw({"a": a, "b": b, "c": c, "d": d}, steps, steps.do(d, "+", steps.do(d, "-", c)))


@_family(
    "sequences",
    "A sequence starts with {a} and grows by {b} each time. What is term {c}?",
    "What is term {c} of {a}, {second}, {third}, and so on?",
)
def _far_term(rng: random.Random, level: int) -> Draw:
    a, b, c = rng.randint(1, 10 * level), rng.randint(2, 3 + 2 * level), rng.randint(4, 5 + 3 * level)
    steps = Steps()
    gold = steps.do(steps.do(steps.do(c, "-", 1), "*", b), "+", a)
    return Draw({"a": a, "b": b, "c": c, "second": a + b, "third": a + 2 * b}, steps, gold)


@_family(
    "sequences",
    "Start with {a}. Each step is times {b} and then plus {c}. What is the number after {d} steps?",
    "The first number is {a}. The next is {b} times it plus {c}, and so on. What is the number after {d} steps?",
)
def _repeated(rng: random.Random, level: int) -> Draw:
    count = 2 if level < 4 else 3
    a, b, c = rng.randint(1, 3 + 2 * level), rng.randint(2, 3), rng.randint(1, 3 + 2 * level)
    steps, value = Steps(), a
    for _ in range(count):
        value = steps.do(steps.do(value, "*", b), "+", c)
    return Draw({"a": a, "b": b, "c": c, "d": count}, steps, value)


# --- fractions


@_family(
    "fractions",
    "What is {a}/{b} of {c}?",
    "{who} has {c} {things} and gives {a}/{b} of them to {other}. How many does {other} get?",
    "{a}/{b} of the {c} {things} are old. How many {things} are old?",
)
def _fraction_of(rng: random.Random, level: int) -> Draw:
    b = rng.randint(3, 4 + level)
    a, c = rng.randint(2, b - 1), b * rng.randint(2, 3 + 3 * level)
    steps = Steps()
    return Draw({"a": a, "b": b, "c": c}, steps, steps.do(steps.do(c, "/", b), "*", a))


@_family(
    "fractions",
    "What is 1/{a} + {c}/{b}?",
    "{who} eats 1/{a} of a cake and {other} eats {c}/{b}. Which fraction is that in total?",
)
def _fraction_sum(rng: random.Random, level: int) -> Draw:
    while True:
        a, b, c = rng.randint(2, 4 + 2 * level), rng.randint(3, 5 + 2 * level), rng.randint(1, 2 + level)
        top, bottom = b + a * c, a * b
        # lowest terms already, and below 1, so that one form of the answer is enough
        if c < b and top < bottom and gcd(top, bottom) == 1:
            break
    steps = Steps()
    bottom = steps.do(a, "*", b)
    top = steps.do(b, "+", steps.do(a, "*", c))
    return Draw({"a": a, "b": b, "c": c}, steps, f"{top}/{bottom}")
