"""The two arithmetics in which expressions are evaluated: double precision, and mpmath with many digits.

Both refuse, with an ArithmeticError or ValueError, what is too large for them, before computing it.
"""

from __future__ import annotations

import cmath
import math
from fractions import Fraction
from typing import ClassVar

_LARGE = 1e8  # largest exponent or function argument an arithmetic is asked to bear


class Undecided(ArithmeticError):
    """An expression that these rules do not evaluate: too large, or a function they do not know."""


def is_real(value) -> bool:
    """Whether a double is real up to rounding."""
    return value.__class__ is not complex or abs(value.imag) <= 1e-12 * abs(value)


def _bearable(value) -> None:
    if abs(value) > _LARGE:
        raise OverflowError


class Double:
    pi, e, i = math.pi, math.e, 1j
    _functions: ClassVar = {
        "\\sin": cmath.sin, "\\cos": cmath.cos, "\\tan": cmath.tan, "\\arcsin": cmath.asin, "\\arccos": cmath.acos,
        "\\arctan": cmath.atan, "\\sinh": cmath.sinh, "\\cosh": cmath.cosh, "\\tanh": cmath.tanh, "\\exp": cmath.exp,
        "\\ln": cmath.log,
    }  # fmt: skip
    _inverse: ClassVar = {"\\cot": "\\tan", "\\sec": "\\cos", "\\csc": "\\sin", "\\coth": "\\tanh"}

    def number(self, value: Fraction) -> float:
        return float(value)

    def reaches(self, *values) -> None:
        """Doubles only tell what differs clearly."""

    def power(self, base, exponent):
        _bearable(exponent)
        if base == 0:
            return 0.0 if is_real(exponent) and exponent.real > 0 else 1 / 0
        return base**exponent

    def root(self, degree, inside):
        if inside.__class__ is not complex and inside < 0 and degree.real % 2 == 1:
            return -((-inside) ** (1 / degree))
        return inside ** (1 / degree) if inside else 0.0

    def factorial(self, value):
        if value.__class__ is complex or value > 170:
            raise OverflowError
        return math.gamma(value + 1)

    def function(self, name: str, value):
        _bearable(value)
        if name == "\\floor" or name == "\\ceil":
            if value.__class__ is complex:
                raise Undecided(name)
            return float(math.floor(value) if name == "\\floor" else math.ceil(value))
        if name in self._inverse:
            return 1 / self.function(self._inverse[name], value)
        if name == "\\arccot":
            return math.pi / 2 - self.function("\\arctan", value)
        if name not in self._functions:
            raise Undecided(name)
        result = self._functions[name](value)
        return result.real if value.__class__ is not complex and result.imag == 0 else result


class Precise:
    """reach: decimal digits by which a sum's terms, an exponent or an argument are larger or smaller than 1."""

    _names: ClassVar = {
        "\\sin": "sin", "\\cos": "cos", "\\tan": "tan", "\\cot": "cot", "\\sec": "sec", "\\csc": "csc",
        "\\arcsin": "asin", "\\arccos": "acos", "\\arctan": "atan",
        "\\sinh": "sinh", "\\cosh": "cosh", "\\tanh": "tanh", "\\coth": "coth",
        "\\exp": "exp", "\\ln": "log", "\\floor": "floor", "\\ceil": "ceil",
    }  # fmt: skip

    def __init__(self, context):
        self.context, self.reach = context, 0
        self.pi, self.e, self.i = +context.pi, +context.e, context.j

    def number(self, value: Fraction):
        return self.context.mpf(value.numerator) / value.denominator

    def reaches(self, *values) -> None:
        for value in values:
            if value:
                self.reach = max(self.reach, int(abs(self.context.mag(value)) * 0.30103))

    def power(self, base, exponent):
        _bearable(exponent)
        self.reaches(exponent)
        if base == 0 and self.context.re(exponent) <= 0:
            raise ZeroDivisionError
        return base**exponent

    def root(self, degree, inside):
        self.reaches(degree)
        if self.context.im(inside) == 0 and self.context.re(inside) < 0 and degree % 2 == 1:
            return -((-inside) ** (1 / degree))
        return inside ** (1 / degree)

    def factorial(self, value):
        _bearable(value)
        return self.context.gamma(value + 1)

    def function(self, name: str, value):
        _bearable(value)
        self.reaches(value)
        if name == "\\arccot":
            return self.context.pi / 2 - self.context.atan(value)
        if name not in self._names:
            raise Undecided(name)
        return getattr(self.context, self._names[name])(value)
