"""Are two expressions equal? Exactly where they are rational, to forty digits at chosen points where they are not.

1. *Rational functions* (sums, products, whole powers, also of i) are evaluated modulo a 61-bit prime at two points
   that depend on the variables' names only. Two different ones agree by chance about once in 10^30; two equal ones
   always (the Schwartz-Zippel lemma). No size of number costs more than another.
2. *Everything else* (roots, logarithms, angles, variable exponents) is evaluated in double precision first, which
   settles most inequalities, then by mpmath with fifty digits; every point at which both sides are real must agree to
   forty. Variables are positive, so that the square root of x^2 is x, unless an absolute value is about.

Sizes are capped before anything is computed: an expression beyond the caps is undecided, not slow.
"""

from __future__ import annotations

import math
import zlib
from fractions import Fraction

from rewards.math.arithmetics import Double, Precise, Undecided, is_real
from rewards.math.exact import Irrational, exact
from rewards.math.nodes import contains, letters_of

MAX_POWER = 10_000_000
_DIGITS = 50


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
        return all(_modular(left, seed) == _modular(right, seed) for seed in (1, 2))
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
    if kind in ("!", "C", "abs", "root"):
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


def _same_precisely(left: tuple, right: tuple, seeds: tuple[int, ...]) -> bool | None:
    import mpmath

    context = mpmath.mp.clone()
    context.dps = _DIGITS
    verdicts = []
    for seed in seeds:
        try:
            one, two = _precise(left, seed, context), _precise(right, seed, context)
        except (ArithmeticError, ValueError, Undecided, TypeError):
            continue
        size = max(abs(one), abs(two), context.mpf(10) ** -12)
        both_real = (
            abs(context.im(one)) < size * context.mpf(10) ** -30
            and abs(context.im(two)) < size * context.mpf(10) ** -30
        )
        verdicts.append((both_real, abs(one - two) <= size * context.mpf(10) ** -36))
    judged = [agree for both_real, agree in verdicts if both_real] or [agree for _, agree in verdicts]
    return all(judged) if judged else None


def _double(node: tuple, seed: int):
    return _evaluate(node, seed, _DOUBLE)


def _precise(node: tuple, seed: int, context):
    return _evaluate(node, seed, Precise(context))


def _evaluate(node: tuple, seed: int, field):
    kind = node[0]
    if kind == "n":
        return field.number(node[1])
    if kind == "v":
        return field.number(Fraction(_point(node[1], seed)))
    if kind in ("+", "-", "*", "/"):
        left, right = _evaluate(node[1], seed, field), _evaluate(node[2], seed, field)
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
