r"""Are two expressions equal? Exactly where they are rational, to many digits at chosen points where they are not.

1. *Rational functions* (sums, products, whole powers, also of i) are evaluated modulo a 61-bit prime at two points
   that depend on the variables' names only. Two different ones agree by chance about once in 10^30; two equal ones
   always (the Schwartz-Zippel lemma). No size of number costs more than another.
2. *Everything else* (roots, logarithms, angles, variable exponents) is evaluated in double precision first, which
   settles most inequalities, then by mpmath with fifty digits; every point at which both sides are real must agree to
   all but the last fourteen. Variables are positive, so that the square root of x^2 is x, unless an absolute value is
   about.
3. *Where digits could hide beyond the fiftieth*, since a sum, an exponent or an argument is very large or very small
   (2^{1/2^{1000}} is not 1), as many digits more are taken as that reaches, twice; beyond a cap it is undecided.

Sizes are capped before anything is computed: an expression beyond the caps is undecided, not slow.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from fractions import Fraction

from rewards.math.arithmetics import Double, Precise, Undecided, is_real
from rewards.math.exact import Irrational, determinant, exact, rational
from rewards.math.nodes import contains, letters_of

MAX_POWER = 10_000_000
MAX_REACH = 700
_DIGITS = 50
_DOUBTFUL_DIGITS = 14


def _prime_with_i() -> tuple[int, int]:
    """A fixed 61-bit prime with a square root of -1, found once (deterministic Miller-Rabin)."""
    candidate = 2**61 + 1
    while True:
        candidate += 4
        if candidate % 4 == 1 and all(
            _witness(candidate, base) for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
        ):
            break
    for base in range(2, 100):
        root = pow(base, (candidate - 1) // 4, candidate)
        if root * root % candidate == candidate - 1:
            return candidate, root
    raise AssertionError("unreachable: half of all bases give a root")


def _witness(number: int, base: int) -> bool:
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    value = pow(base, odd, number)
    if value in (1, number - 1):
        return True
    return any((value := value * value % number) == number - 1 for _ in range(twos - 1))


PRIME, ROOT_OF_MINUS_ONE = _prime_with_i()
_DOUBLE = Double()


def same(left: tuple, right: tuple) -> bool | None:
    """Whether two expressions are equal; None when undecided."""
    if left == right:
        return True
    if left[0] == "n" and right[0] == "n":
        return left[1] == right[1]
    try:
        agree = all(_modular(left, seed) == _modular(right, seed) for seed in (1, 2))
        # constants are the same at every point, so that a multiple of the prime could be added to one
        return agree and (bool(letters_of(left)) or rational(left) == rational(right))
    except Irrational:
        pass
    except (Undecided, ZeroDivisionError):
        return None
    return _same_numerically(left, right)


def real(node: tuple) -> float | None:
    """A constant expression in double precision; None when it is no finite real number."""
    try:
        value = _double(node, 0)
    except (ArithmeticError, ValueError, Undecided):
        return None
    if value.__class__ is complex:
        if abs(value.imag) > 1e-12 * max(1.0, abs(value)):
            return None
        value = value.real
    return value if math.isfinite(value) else None


def at_points(node: tuple, points: int = 4) -> list[complex | float | None]:
    """Values at the standard points in double precision, None where undefined."""
    values: list = []
    for seed in range(points):
        try:
            values.append(_double(node, seed))
        except (ArithmeticError, ValueError, Undecided):
            values.append(None)
    return values


def _modular(node: tuple, seed: int) -> int:
    kind = node[0]
    if kind == "n":
        value = node[1]
        return value.numerator % PRIME * pow(value.denominator, -1, PRIME) % PRIME if value.denominator != 1 else int(
            value
        ) % PRIME  # fmt: skip
    if kind == "v":
        return _hash(node[1], seed)
    if kind == "+":
        return (_modular(node[1], seed) + _modular(node[2], seed)) % PRIME
    if kind == "-":
        return (_modular(node[1], seed) - _modular(node[2], seed)) % PRIME
    if kind == "*":
        return _modular(node[1], seed) * _modular(node[2], seed) % PRIME
    if kind == "neg":
        return -_modular(node[1], seed) % PRIME
    if kind == "/":
        under = _modular(node[2], seed)
        if under == 0:
            raise ZeroDivisionError
        return _modular(node[1], seed) * pow(under, -1, PRIME) % PRIME
    if kind == "^":
        exponent = exact(node[2])
        if exponent.denominator != 1:
            raise Irrational("power")
        if abs(exponent) > MAX_POWER:
            raise Undecided("power too large")
        base = _modular(node[1], seed)
        if base == 0 and exponent <= 0:
            raise ZeroDivisionError
        return pow(base, int(exponent), PRIME)
    if kind == "i":
        return ROOT_OF_MINUS_ONE
    if kind == "det":
        return determinant([_modular(cell, seed) for cell in node[1]]) % PRIME
    if kind in ("!", "C", "abs", "root", "mod", "gcd", "lcm"):
        value = exact(node)
        return value.numerator % PRIME * pow(value.denominator, -1, PRIME) % PRIME
    raise Irrational(kind)


def _hash(name: str, seed: int) -> int:
    return (zlib.crc32(f"{seed}{name}".encode()) << 29 ^ zlib.crc32(f"{name}{seed}!".encode())) % PRIME


def _point(name: str, seed: int) -> float:
    """Where a variable is evaluated: positive, of another size for each seed, negative for seed 4 and above."""
    unit = (zlib.crc32(f"{name}/{seed}".encode()) % 100_003 + 1) / 100_019
    low, high = ((0.4, 1.9), (0.03, 0.3), (2.1, 7.3), (0.2, 1.1), (-3.1, -0.2), (-0.9, 0.9))[seed % 6]
    return low + (high - low) * unit


def _same_numerically(left: tuple, right: tuple) -> bool | None:
    names = letters_of(left) | letters_of(right)
    seeds = (0, 1, 2) if names else (0,)
    if names and (contains(left, "abs") or contains(right, "abs")):
        seeds = (0, 1, 2, 4, 5)
    for seed in seeds:
        try:
            one, two = _double(left, seed), _double(right, seed)
        except (ArithmeticError, ValueError):
            continue
        size = max(abs(one), abs(two))
        if math.isfinite(size) and abs(one - two) > 1e-5 * size and size > 1e-9 and is_real(one) and is_real(two):
            return False
    return _same_precisely(left, right, seeds)


def order(left: tuple, right: tuple) -> int | None:
    """-1, 0 or 1 as one constant is less than, equal to or greater than another; None when undecided or not real."""
    exact_ends = rational(left), rational(right)
    if None not in exact_ends:
        return (exact_ends[0] > exact_ends[1]) - (exact_ends[0] < exact_ends[1])
    one, two = real(left), real(right)
    if one is None or two is None:
        return None
    if abs(one - two) > 1e-6 * max(abs(one), abs(two)) > 1e-9:
        return 1 if one > two else -1
    values = _precise_pair(left, right, 0)
    if values is None:
        return None
    if values.agree():
        return 0
    return None if not values.are_real() else 1 if values.one.real > values.two.real else -1


def _same_precisely(left: tuple, right: tuple, seeds: tuple[int, ...]) -> bool | None:
    pairs = [pair for pair in (_precise_pair(left, right, seed) for seed in seeds) if pair is not None]
    judged = [pair for pair in pairs if pair.are_real()] or pairs
    return all(pair.agree() for pair in judged) if judged else None


@dataclass(frozen=True, slots=True)
class _PrecisePair:
    """Two values in mpmath, and the size of what is nothing beside them: rounding."""

    one: object
    two: object
    rounding: object

    def agree(self) -> bool:
        return abs(self.one - self.two) <= self.rounding

    def are_real(self) -> bool:
        return max(abs(self.one.imag), abs(self.two.imag)) < self.rounding * 10**6


def _precise_pair(left: tuple, right: tuple, seed: int) -> _PrecisePair | None:
    """Both values at a point, with as many digits as their difference may need; None when undecided."""
    import mpmath

    context = mpmath.mp.clone()
    context.dps = _DIGITS
    field = Precise(context)
    try:
        one, two = _evaluate(left, seed, field), _evaluate(right, seed, field)
        field.reaches(*(value for value in (one, two) if abs(value) < 1))
        if field.reach > _DOUBTFUL_DIGITS // 2:
            if field.reach > MAX_REACH:
                return None
            context.dps = _DIGITS + 2 * field.reach
            field = Precise(context)
            one, two = _evaluate(left, seed, field), _evaluate(right, seed, field)
    except (ArithmeticError, ValueError, TypeError):
        return None
    # nothing is less than rounding beside a common number, such as 0
    size = max(abs(one), abs(two), context.mpf(10) ** -12)
    return _PrecisePair(context.mpmathify(one), context.mpmathify(two), size / 10 ** (context.dps - _DOUBTFUL_DIGITS))


def _double(node: tuple, seed: int):
    return _evaluate(node, seed, _DOUBLE)


def _evaluate(node: tuple, seed: int, field):
    kind = node[0]
    if kind == "n":
        return field.number(node[1])
    if kind == "v":
        return field.number(Fraction(_point(node[1], seed)))
    if kind in ("+", "-", "*", "/"):
        left, right = _evaluate(node[1], seed, field), _evaluate(node[2], seed, field)
        if kind in "+-":
            field.reaches(left, right)
        return (
            left + right
            if kind == "+"
            else left - right
            if kind == "-"
            else left * right
            if kind == "*"
            else left / right
        )
    if kind == "^":
        return field.power(_evaluate(node[1], seed, field), _evaluate(node[2], seed, field))
    if kind == "neg":
        return -_evaluate(node[1], seed, field)
    if kind == "pi":
        return field.pi
    if kind == "e":
        return field.e
    if kind == "i":
        return field.i
    if kind == "deg":
        return _evaluate(node[1], seed, field) * field.pi / 180
    if kind == "root":
        return field.root(_evaluate(node[1], seed, field), _evaluate(node[2], seed, field))
    if kind == "abs":
        return abs(_evaluate(node[1], seed, field))
    if kind == "log":
        inside = field.function("\\ln", _evaluate(node[2], seed, field))
        # log without a base is natural; the caller tries base ten as well
        return inside / field.function("\\ln", _evaluate(node[1], seed, field)) if node[1] else inside
    if kind == "fn":
        return field.function(node[1], _evaluate(node[2], seed, field))
    if kind == "!":
        return field.factorial(_evaluate(node[1], seed, field))
    if kind == "C":
        above, below = _evaluate(node[1], seed, field), _evaluate(node[2], seed, field)
        return field.factorial(above) / field.factorial(below) / field.factorial(above - below)
    if kind == "det":
        return determinant([_evaluate(cell, seed, field) for cell in node[1]])
    if kind in ("mod", "gcd", "lcm"):
        return field.number(exact(node))
    if kind == "max" or kind == "min":
        values = [_evaluate(item, seed, field) for item in node[1]]
        return max(values) if kind == "max" else min(values)
    if kind == "call":
        # an unknown function is a smooth one that its name chooses
        value = field.number(Fraction(_point(node[1], seed)))
        for place, item in enumerate(node[2]):
            value = value + field.function("\\sin", _evaluate(item, seed, field) * (place + 1) + value)
        return value
    raise Undecided(kind)
