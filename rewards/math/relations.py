"""Equations and inequalities: what they say of a named quantity, and when two of them say the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from rewards.math.equal_expression import at_points, real, same
from rewards.math.equal_single import Doubt
from rewards.math.exact import rational
from rewards.math.nodes import letters_of, substitute
from rewards.math.parser import parse
from rewards.math.quantity_names import free_letters, is_label, names_ratio
from rewards.math.tokens import Unreadable, is_word
from rewards.math.unit_suffix import takes_back
from rewards.math.values import Leaf, Relation, Value, read, spelled

MAX_PAIRS = 2
_ORDER = {"<": 1, "\\leq": 1, ">": -1, "\\geq": -1}


@dataclass(frozen=True, slots=True)
class Stated:
    """A value that a relation states, and what it rests on.

    argument: of the function that is named, x in f(x) = ..., else "".
    open: pairs of formulas that must be equal for it, and doubts.
    """

    argument: str
    value: Value
    open: tuple[tuple[str, str], ...] = ()


def stated(value: Value, equal: Callable, alone: bool = False) -> list[Stated] | None:
    r"""The values that a relation states.

    A chain states all its values where its links are shown to hold, and those behind a link that cannot be shown here
    (\lim ... = 1 says 1). An equation with free letters, 2x + 1 = 7, states none, and neither does an inequality.

    Args:
        alone: the other side is no relation, so that a value may also be that of an angle's function, \tan A = 1.

    Returns:
        None where it contradicts itself.
    """
    if not isinstance(value, Relation):
        return [Stated("", value)]
    parts, ops = value.parts, value.ops
    if not set(ops) <= {"=", "\\approx", "\\in", "\\equiv", "\\sim"} or not all(parts):
        return []
    first = 0
    while first < len(parts) - 1 and (is_label(parts[first]) or (alone and names_ratio(parts[first]))):
        first += 1
    try:
        values = [read(part) for part in parts[first:]]
    except Unreadable:
        return []
    modulus = None
    if "\\equiv" in ops:
        values[-1], modulus = _congruent(values[-1])
    start, open_pairs = 0, ()
    for index, op in enumerate(ops[first:]):
        if op == "\\in" or (op == "\\equiv" and modulus is None):
            return []
        one, two = values[index], values[index + 1]
        link = _link(one, op, two, modulus, equal)
        if link is True and op != "\\equiv":
            continue
        if link is False:
            return [] if _is_free(one) or _is_free(two) else None
        if link is None:
            return []
        start = index + 1
        open_pairs += link if link is not True else ()
    argument = _argument(parts[0]) if first else ""
    needed = tuple(pair for pair in open_pairs if not isinstance(pair, Doubt))
    if len(needed) > MAX_PAIRS:
        return []
    # a doubt more would only cost time
    doubts = tuple(pair for pair in open_pairs if isinstance(pair, Doubt))[: MAX_PAIRS - len(needed)]
    return [Stated(argument, value, needed + doubts) for value in values[start:]]


def _link(one: Value, op: str, two: Value, modulus: tuple | None, equal: Callable) -> bool | tuple | None:
    """Whether one link of a chain holds: yes, no, or the pairs on which it depends; None where it says nothing."""
    sides = [side for side in (one, two) if _is_unread(side)]
    if op == "\\equiv":
        leaves = isinstance(one, Leaf) and isinstance(two, Leaf) and one.node and two.node
        return () if sides else bool(leaves) and same(("mod", one.node, modulus), ("mod", two.node, modulus)) is True
    if op != "=":
        return () if sides and not any(map(_is_free, sides)) else _rounds_to(one, two)
    if any(map(_has_no_one_value, sides)):
        return ()
    outcome = equal(one, two)
    if outcome is True or (outcome is False and not sides):
        return outcome
    if any(map(_is_free, sides)):
        # an identity, or an equation for a letter
        return outcome or None
    return tuple(Doubt(*pair) for pair in outcome or ())


def _is_unread(value: Value) -> bool:
    """Whether a value is a formula that is not read here, or a quantity described in words."""
    if not isinstance(value, Leaf) or value.node is not None:
        return False
    words = [token for token in value.tokens if is_word(token)]
    return value.foreign or (bool(words) and not any(map(takes_back, words)))


def _has_no_one_value(value: Leaf) -> bool:
    r"""Whether nobody can tell a formula's value: it calls a function that is not known, or is a + b \bmod c."""
    called = any(name in ("f", "g", "h") and then == "(" for name, then in pairwise(value.tokens))
    return called or ("\\mod" in value.tokens and not free_letters(value.tokens))


def _is_free(value: Value) -> bool:
    """Whether letters are left in an expression that may be anything, so that an equation says something of them."""
    if not isinstance(value, Leaf):
        return False
    if value.node is not None:
        return bool(letters_of(value.node))
    return value.foreign and bool(free_letters(value.tokens))


def _congruent(value: Value) -> tuple[Value, tuple | None]:
    """The representative and the modulus of 2 mod 5."""
    if not isinstance(value, Leaf) or value.node is None or value.node[0] != "mod":
        return value, None
    return Leaf(value.tokens[: value.tokens.index("\\mod")], value.node[1]), value.node[2]


def same_congruence(gold: Relation, answer: Relation, equal: Callable) -> bool:
    """Whether two congruences of a named quantity, or of the same one, say the same."""
    try:
        classes = [read(relation.parts[-1]) for relation in (gold, answer)]
    except Unreadable:
        return False
    moduli = [_congruent(value)[1] for value in classes]
    if None in moduli or gold.ops != answer.ops or same(*moduli) is not True or equal(*classes) is not True:
        return False
    return all(
        (is_label(one) and is_label(two)) or spelled(one) == spelled(two)
        for one, two in zip(gold.parts[:-1], answer.parts[:-1], strict=True)
    )


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
