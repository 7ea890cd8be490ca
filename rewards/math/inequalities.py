r"""What an inequality says of the one quantity in it: an interval whose ends may hold letters, or pieces of the line.

Solved are sums, differences and multiples of a letter and of absolute values of such: |x - 3| \leq 2 is the union of
two cases, in each of which every absolute value is its argument or the negative of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

from rewards.math.arithmetics import Undecided
from rewards.math.ends import Bound, End, infinity, share_of
from rewards.math.equal_expression import order, same
from rewards.math.nodes import letters_of, parts, replaced, substitute
from rewards.math.parser import parse
from rewards.math.quantity_names import is_label
from rewards.math.tokens import Unreadable
from rewards.math.values import Group, Leaf, Relation, read, spelled

MIRROR = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq"}
ORDER = frozenset(MIRROR)
_LESS = frozenset(["<", "\\leq"])
_MAX_ABSOLUTES = 4
_MAX_LINKS = 8
_ZERO = ("n", Fraction(0))

Piece = tuple[Bound, Bound, bool, bool]


def as_interval(relation: Relation) -> Group | None:
    """An inequality for one named quantity as an interval whose ends are values, letters and all; None for no such."""
    sides, ops = relation.parts, relation.ops
    if not set(ops) <= ORDER or not all(sides):
        return None
    if len(ops) == 2 and _is_name(sides[1]):
        if (ops[0] in _LESS) != (ops[1] in _LESS):
            return None
        low, high, first, second = sides[0], sides[2], ops[0], ops[1]
        if first not in _LESS:
            low, high, first, second = high, low, MIRROR[second], MIRROR[first]
        return _group(low, high, first == "\\leq", second == "\\leq")
    if len(ops) != 1:
        return None
    left, right, op = sides[0], sides[1], ops[0]
    if _is_name(right) and not _is_name(left):
        left, right, op = right, left, MIRROR[op]
    if not _is_name(left) or _is_name(right):
        return None
    included = op in ("\\leq", "\\geq")
    if op in _LESS:
        return _group(("-", "\\infty"), right, False, included)
    return _group(right, ("\\infty",), included, False)


def _group(low: tuple, high: tuple, low_in: bool, high_in: bool) -> Group | None:
    try:
        items = (read(low), read(high))
    except Unreadable:
        return None
    if not all(isinstance(item, Leaf) for item in items):
        return None
    return Group("tuple", items, "[" if low_in else "(", "]" if high_in else ")")


def _is_name(tokens: tuple) -> bool:
    return is_label(tokens) and not _is_absolute(tokens)


def _is_absolute(tokens: tuple) -> bool:
    """Whether bars mean the absolute value of a number, |x|, and not the length of a segment, |AB|, or a set's size."""
    if tokens[0] != "|":
        return False
    try:
        names = letters_of(parse(tokens))
    except (Unreadable, RecursionError):
        return False
    return len(names) == 1 and not next(iter(names))[0].isupper()


def links(relation: Relation) -> list[list[Piece]] | None:
    r"""For each link of a chain of inequalities (or x \neq ...) in one letter, where it holds; None when not solved.

    Raises:
        Undecided: an end cannot be told from another.
    """
    ops = relation.ops
    if not (set(ops) <= ORDER or ops == ("\\neq",)) or not all(relation.parts):
        return None
    if len({op in _LESS for op in ops}) > 1 or len(ops) > _MAX_LINKS:
        return None
    sides = [_side(part) for part in relation.parts]
    if None in sides:
        return None
    names = set().union(*map(letters_of, sides))
    if len(names) != 1:
        return None
    found = [_link(sides[at], op, sides[at + 1], next(iter(names))) for at, op in enumerate(ops)]
    return None if None in found else found


def _side(tokens: tuple) -> tuple | None:
    if is_label(tokens) and not _is_absolute(tokens):
        return ("v", spelled(tokens))
    try:
        value = read(tokens)
    except Unreadable:
        return None
    return share_of(value)


def _link(left: tuple, op: str, right: tuple, name: str) -> list[Piece] | None:
    if op == "\\neq":
        below, above = _link(left, "<", right, name), _link(left, ">", right, name)
        return None if below is None or above is None else [*below, *above]
    if op not in _LESS:
        left, right, op = right, left, MIRROR[op]
    low, high = infinity(left), infinity(right)
    if low is not None or high is not None:
        bounded = (low is None or low < 0) and (high is None or high > 0)
        return [(-math.inf, math.inf, False, False)] if bounded else None
    included = op == "\\leq"
    if left == ("v", name) and not letters_of(right):
        return [(-math.inf, End(right), False, included)]
    if right == ("v", name) and not letters_of(left):
        return [(End(left), math.inf, included, False)]
    if not (letters_of(left) or letters_of(right)):
        return None
    found: list[Piece] = []
    for low, high, line in _cases(("-", left, right), name, -math.inf, math.inf, _MAX_ABSOLUTES):
        piece = _below_zero(line, name, included)
        if piece is None:
            return None
        kept = _cut(piece, low, high)
        if kept is not None:
            found.append(kept)
    return found


def _cases(node: tuple, name: str, low: Bound, high: Bound, left: int) -> Iterator[tuple[Bound, Bound, tuple]]:
    """An expression without its absolute values, on each stretch of the line between the zeros of their arguments."""
    inner = _innermost(node)
    if inner is None:
        yield low, high, node
        return
    argument = inner[1]
    negative = ("neg", argument)
    sides = (negative, argument)
    line = _line(argument, name) if name in letters_of(argument) else (0, End(argument))
    if line is None or left == 0:
        raise Undecided("no line")
    slope, zero = line
    if slope == 0:
        yield from _cases(replaced(node, inner, sides[zero >= End(_ZERO)]), name, low, high, left - 1)
        return
    before, after = sides if slope > 0 else sides[::-1]
    if low < zero:
        yield from _cases(replaced(node, inner, before), name, low, min(high, zero), left - 1)
    if zero < high:
        yield from _cases(replaced(node, inner, after), name, max(low, zero), high, left - 1)


def _innermost(node: tuple) -> tuple | None:
    """An absolute value that holds no other."""
    for part in parts(node):
        found = _innermost(part)
        if found is not None:
            return found
    return node if node[0] == "abs" else None


def _line(node: tuple, name: str) -> tuple[int, End] | None:
    """The sign of a line's slope and where it is zero; where the sign is 0, its height instead; None for no line."""
    start = substitute(node, name, _ZERO)
    slope = ("-", substitute(node, name, ("n", Fraction(1))), start)
    if same(node, ("+", start, ("*", slope, ("v", name)))) is not True:
        return None
    sign = order(slope, _ZERO)
    if sign is None:
        return None
    return sign, End(("/", ("neg", start), slope) if sign else start)


def _below_zero(node: tuple, name: str, included: bool) -> Piece | tuple[()] | None:
    """Where a line is below zero, or at most zero: a half-line, everything or (); None when it is no line."""
    line = _line(node, name)
    if line is None:
        return None
    sign, end = line
    if sign == 0:
        zero = End(_ZERO)
        return (-math.inf, math.inf, False, False) if end < zero or (included and end == zero) else ()
    return (-math.inf, end, False, included) if sign > 0 else (end, math.inf, included, False)


def _cut(piece: Piece | tuple[()], low: Bound, high: Bound) -> Piece | None:
    """A piece within the closed stretch from low to high."""
    if not piece:
        return None
    start, stop, start_in, stop_in = piece
    if start < low:
        start, start_in = low, True
    if high < stop:
        stop, stop_in = high, True
    return (start, stop, start_in, stop_in) if start < stop or (start == stop and start_in and stop_in) else None
