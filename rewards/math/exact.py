"""Constant expressions in exact arithmetic: fractions, as far as they are small enough to write down."""

from __future__ import annotations

import math
from fractions import Fraction

from rewards.math.arithmetics import Undecided

MAX_FACTORIAL = 2_500
MAX_BITS_OF_SEVERAL = 10_000


class Irrational(Undecided):
    """Not a rational function of its variables."""


def rational(node: tuple) -> Fraction | None:
    """The value of a constant expression, when it is rational and small enough to write down."""
    try:
        return exact(node)
    except (Undecided, ZeroDivisionError):
        return None


def exact(node: tuple) -> Fraction:
    """The value of a constant expression that is rational.

    Raises:
        Irrational: it is not, or holds a variable.
        Undecided: it is too large to write down.
        ZeroDivisionError: it divides by zero.
    """
    kind = node[0]
    if kind == "n":
        return node[1]
    if kind in ("+", "-", "*", "/", "^"):
        left, right = exact(node[1]), exact(node[2])
        if kind == "^":
            return _power(left, right)
        value = (
            left + right
            if kind == "+"
            else left - right
            if kind == "-"
            else left * right
            if kind == "*"
            else left / right
        )
        _bounded(value)
        return value
    if kind == "neg":
        return -exact(node[1])
    if kind == "abs":
        return abs(exact(node[1]))
    if kind == "!":
        number = exact(node[1])
        if number.denominator != 1 or not 0 <= number <= MAX_FACTORIAL:
            raise Undecided("factorial")
        return Fraction(math.factorial(int(number)))
    if kind == "C":
        above, below = exact(node[1]), exact(node[2])
        if above.denominator != 1 or below.denominator != 1 or not 0 <= below <= above <= MAX_FACTORIAL:
            raise Undecided("binomial")
        return Fraction(math.comb(int(above), int(below)))
    if kind == "det":
        cells = [exact(cell) for cell in node[1]]
        value = determinant(cells)
        _bounded(value)
        return value
    if kind == "gcd" or kind == "lcm":
        value = 0 if kind == "gcd" else 1
        for item in node[1]:
            value = (math.gcd if kind == "gcd" else math.lcm)(value, _whole(exact(item)))
            if value.bit_length() > MAX_BITS_OF_SEVERAL:
                raise Undecided("number too large")
        return Fraction(value)
    if kind == "mod":
        modulus = _whole(exact(node[2]))
        if modulus < 1:
            raise Undecided("no modulus")
        return Fraction(_residue(node[1], modulus))
    if kind == "root":
        degree, inside = exact(node[1]), exact(node[2])
        return _exact_root(degree, inside)
    raise Irrational(kind)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise Irrational("power")
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * size > 60_000:
        raise Undecided("power too large")
    return base ** int(exponent)


def _bounded(value: Fraction) -> None:
    if value.numerator.bit_length() > 100_000 or value.denominator.bit_length() > 100_000:
        raise Undecided("number too large")


def _exact_root(degree: Fraction, inside: Fraction) -> Fraction:
    if degree != 2 or inside < 0:
        raise Irrational("root")
    over, under = math.isqrt(inside.numerator), math.isqrt(inside.denominator)
    if over * over != inside.numerator or under * under != inside.denominator:
        raise Irrational("root")
    return Fraction(over, under)


def _whole(value: Fraction) -> int:
    if value.denominator != 1:
        raise Undecided("not a whole number")
    return int(value)


def _residue(node: tuple, modulus: int) -> int:
    """What is left of a whole number on division, however many digits it has: 7^{10^{50}}, 2024!."""
    kind = node[0]
    if kind in ("+", "-", "*"):
        left, right = _residue(node[1], modulus), _residue(node[2], modulus)
        return (left + right if kind == "+" else left - right if kind == "-" else left * right) % modulus
    if kind == "neg":
        return -_residue(node[1], modulus) % modulus
    if kind == "^":
        exponent = _whole(exact(node[2]))
        if exponent >= 0:
            return pow(_residue(node[1], modulus), exponent, modulus)
    if kind == "!" and _whole(exact(node[1])) >= modulus:
        return 0
    return _whole(exact(node)) % modulus


def determinant(cells: list):
    """Of a square of numbers of any kind, row by row: row after row is added, for each choice of columns (n 2^n)."""
    size = math.isqrt(len(cells))
    minors = {0: 1}
    for row in range(size):
        grown: dict = {}
        for columns, minor in minors.items():
            sign = 1
            for column in reversed(range(size)):
                if columns >> column & 1:
                    sign = -sign
                    continue
                value = sign * minor * cells[row * size + column]
                chosen = columns | 1 << column
                grown[chosen] = grown[chosen] + value if chosen in grown else value
        minors = grown
    return minors[(1 << size) - 1]
