"""Equations and inequalities: what they say of a named quantity, and when two of them say the same."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from rewards.math.equal_expression import at_points, real, same
from rewards.math.exact import rational
from rewards.math.nodes import letters_of, substitute
from rewards.math.parser import parse
from rewards.math.quantity_names import is_label
from rewards.math.tokens import Unreadable
from rewards.math.values import Leaf, Relation, Value, read

_ORDER = {"<": 1, "\\leq": 1, ">": -1, "\\geq": -1}


def bare_values(value: Value, equal: Callable) -> list[tuple[str, Value]] | None:
    """The values a relation gives the quantity it names, each with the name of a function's argument or "".

    An empty list: it gives none (an inequality, an equation that is not solved). None: it contradicts itself.
    """
    if not isinstance(value, Relation):
        return [("", value)]
    parts, ops = value.parts, value.ops
    if not set(ops) <= {"=", "\\approx", "\\in", "\\equiv", "\\sim"} or not all(parts):
        return []
    first = 0
    while first < len(parts) - 1 and is_label(parts[first]):
        first += 1
    try:
        values = [read(part) for part in parts[first:]]
    except Unreadable:
        return []
    for index, op in enumerate(ops[first:]):
        one, two = values[index], values[index + 1]
        if op in ("\\in", "\\equiv"):
            return []
        holds = _rounds_to(one, two) if op in ("\\approx", "\\sim") else equal(one, two)
        if holds is not True:
            free = any(isinstance(side, Leaf) and side.node and letters_of(side.node) for side in (one, two))
            return [] if free or holds is not False else None
    argument = _argument(parts[0]) if first else ""
    return [(argument, value) for value in values]


def _argument(label: tuple) -> str:
    """x in the label f(x)."""
    if len(label) >= 4 and label[-3] == "(" and label[-1] == ")" and label[-2].isalpha() and len(label[-2]) == 1:
        return label[-2]
    return ""


def _rounds_to(exact: Value, rounded: Value) -> bool:
    """Whether a value is the other's rounding, to the digits it shows."""
    if not isinstance(exact, Leaf) or not isinstance(rounded, Leaf) or exact.node is None or rounded.node is None:
        return False
    if letters_of(exact.node) or letters_of(rounded.node):
        return same(exact.node, rounded.node) is True
    one, two = real(exact.node), real(rounded.node)
    if one is None or two is None:
        return False
    text = next((t for t in rounded.tokens if t.__class__ is str and t[:1].isdigit()), "")
    digits = len(text.partition(".")[2]) if "." in text else 0
    scale = abs(two) / float(text) if text and float(text) else 1.0
    return abs(one - two) <= 0.51 * 10.0**-digits * max(scale, 1e-12) or abs(one - two) < 1e-9 * max(abs(one), abs(two))


def same_relation(gold: Relation, answer: Relation) -> bool:
    """Whether two equations or inequalities hold for the same values: their differences are proportional."""
    if len(gold.ops) != len(answer.ops):
        return False
    pairs = list(zip(_links(gold), _links(answer), strict=True))
    straight = all(_same_link(one, two) for one, two in pairs)
    if straight or len(gold.ops) == 1:
        return straight
    backward = zip(_links(gold), reversed(_links(answer)), strict=True)
    return all(_same_link(one, two) for one, two in backward)


def _links(relation: Relation) -> list[tuple[tuple, str, tuple]]:
    return [(relation.parts[i], op, relation.parts[i + 1]) for i, op in enumerate(relation.ops)]


def _same_link(one, two) -> bool:
    if not all((one[0], one[2], two[0], two[2])):
        return one == two
    if (one[0], one[2]) == (two[0], two[2]):
        return one[1] == two[1]
    order = _ORDER.get(one[1]), _ORDER.get(two[1])
    strict = (one[1] in ("<", ">"), two[1] in ("<", ">"))
    if (order[0] is None) != (order[1] is None) or strict[0] != strict[1]:
        return False
    if order[0] is None and one[1] != two[1]:
        return False
    try:
        left = ("-", parse(one[0]), parse(one[2]))
        right = ("-", parse(two[0]), parse(two[2]))
    except (Unreadable, RecursionError):
        return False
    if letters_of(left) != letters_of(right):
        return False
    ratio = _constant_ratio(left, right)
    if ratio is None:
        return False
    if order[0] is None:
        return True
    return (ratio > 0) == (order[0] == order[1])


def _constant_ratio(left: tuple, right: tuple) -> float | None:
    """left / right where that is the same real number everywhere, and neither vanishes."""
    ratios = []
    for one, two in zip(at_points(left, 6), at_points(right, 6), strict=True):
        if one is None or two is None or abs(two) < 1e-12 or abs(one) < 1e-12:
            continue
        ratio = one / two
        if ratio.__class__ is complex:
            if abs(ratio.imag) > 1e-9 * abs(ratio):
                return None
            ratio = ratio.real
        ratios.append(ratio)
    if len(ratios) < 2 or max(ratios) - min(ratios) > 1e-9 * max(map(abs, ratios)):
        return None
    exact = Fraction(ratios[0]).limit_denominator(10_000)
    if abs(float(exact) - ratios[0]) < 1e-9 * abs(ratios[0]) and same(left, ("*", ("n", exact), right)) is False:
        return None
    return ratios[0]


def solves(equation: Relation, answer: Leaf) -> bool:
    """Whether an expression is the one solution of an equation for one of its variables, in which it is linear."""
    if equation.ops != ("=",) or answer.node is None or not all(equation.parts):
        return False
    try:
        left, right = (parse(part) for part in equation.parts)
    except (Unreadable, RecursionError):
        return False
    used = letters_of(answer.node)
    names = letters_of(left) | letters_of(right)
    missing = names - used
    if len(missing) != 1 or not used <= names or not used:
        return False
    name = missing.pop()
    difference = ("-", left, right)
    at = [substitute(difference, name, ("n", Fraction(number))) for number in (0, 1, 2)]
    bend = ("+", ("-", at[0], ("*", ("n", Fraction(2)), at[1])), at[2])
    flat = same(bend, ("n", Fraction(0)))
    slope = same(at[0], at[1])
    if flat is not True or slope is not False or rational(bend) not in (None, 0):
        return False
    return same(substitute(left, name, answer.node), substitute(right, name, answer.node)) is True
