r"""Sets of real numbers: intervals, inequalities and unions in one form, so that x > 2 equals (2, \infty).

A set is a sorted tuple of pieces (low, high, low included, high included) that do not touch, in double precision.
"""

from __future__ import annotations

import math

from rewards.math.equal_expression import real
from rewards.math.nodes import letters_of, substitute
from rewards.math.parser import parse
from rewards.math.quantity_names import is_label
from rewards.math.tokens import Unreadable
from rewards.math.values import Group, Leaf, Relation, Union, Value, read

Pieces = tuple[tuple[float, float, bool, bool], ...]
EVERYTHING: Pieces = ((-math.inf, math.inf, False, False),)
_MIRROR = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq"}
_ORDER = frozenset(_MIRROR)


def as_interval(relation: Relation) -> Group | None:
    """An inequality for one named quantity as an interval whose ends are values; None when it is none.

    The ends may contain variables; a single inequality that is linear in one variable is solved.
    """
    parts, ops = relation.parts, relation.ops
    if not set(ops) <= _ORDER or not all(parts):
        return None
    if len(ops) == 2 and is_label(parts[1]):
        if {_MIRROR[ops[0]], ops[1]} & _ORDER and (ops[0] in ("<", "\\leq")) != (ops[1] in ("<", "\\leq")):
            return None
        low, high, first, second = parts[0], parts[2], ops[0], ops[1]
        if first in (">", "\\geq"):
            low, high, first, second = high, low, _MIRROR[second], _MIRROR[first]
        return _group(low, high, first == "\\leq", second == "\\leq")
    if len(ops) != 1:
        return None
    left, right, op = parts[0], parts[1], ops[0]
    if is_label(right) and not is_label(left):
        left, right, op = right, left, _MIRROR[op]
    if not is_label(left) or is_label(right):
        return _solved(left, right, op)
    included = op in ("\\leq", "\\geq")
    if op in ("<", "\\leq"):
        return _group(("-", "\\infty"), right, False, included)
    return _group(left=right, right=("\\infty",), low_in=included, high_in=False)


def _group(left: tuple, right: tuple, low_in: bool, high_in: bool) -> Group | None:
    try:
        items = (read(left), read(right))
    except Unreadable:
        return None
    if not all(isinstance(item, Leaf) for item in items):
        return None
    return Group("tuple", items, "[" if low_in else "(", "]" if high_in else ")")


def _solved(left: tuple, right: tuple, op: str) -> Group | None:
    try:
        difference = ("-", parse(left), parse(right))
    except Unreadable:
        return None
    names = letters_of(difference)
    if len(names) != 1:
        return None
    name = next(iter(names))
    at = [real(substitute(difference, name, ("n", value))) for value in (0, 1, 2)]
    if None in at or abs(at[0] - 2 * at[1] + at[2]) > 1e-9 * (1 + max(map(abs, at))) or abs(at[1] - at[0]) < 1e-12:
        return None
    slope = at[1] - at[0]
    bound = ("/", ("neg", substitute(difference, name, ("n", 0))), ("-", substitute(difference, name, ("n", 1)),
             substitute(difference, name, ("n", 0))))  # fmt: skip
    op = op if slope > 0 else _MIRROR[op]
    included = op in ("\\leq", "\\geq")
    end, plus, minus = Leaf((), bound), Leaf((), ("oo",)), Leaf((), ("neg", ("oo",)))
    if op in ("<", "\\leq"):
        return Group("tuple", (minus, end), "(", "]" if included else ")")
    return Group("tuple", (end, plus), "[" if included else "(", ")")


def pieces(value: Value) -> Pieces | None:
    """The set of reals a value describes; None when it describes none, or none with numbers for ends."""
    found = _pieces(value)
    return None if found is None else _merged(found)


def is_set(value: Value) -> bool:
    """Whether a value can only be meant as a set of reals: an inequality, a union."""
    if isinstance(value, Relation):
        return bool(set(value.ops) & _ORDER) or (value.ops == ("\\in",) and _set_after_in(value))
    if isinstance(value, Group) and value.kind == "list":
        return any(isinstance(item, (Relation, Union)) and is_set(item) for item in value.items)
    return isinstance(value, Union) or (isinstance(value, Leaf) and value.tokens == ("\\R",))


def _set_after_in(value: Relation) -> bool:
    try:
        return is_set(read(value.parts[1]))
    except Unreadable:
        return False


def _pieces(value: Value) -> list | None:
    if isinstance(value, Relation):
        if value.ops == ("\\in",):
            try:
                return _pieces(read(value.parts[1]))
            except Unreadable:
                return None
        if value.ops == ("\\neq",) and is_label(value.parts[0]):
            point = real_end(read(value.parts[1])) if value.parts[1] else None
            return None if point is None else _without(EVERYTHING, [(point, point, True, True)])
        interval = as_interval(value)
        return None if interval is None else _pieces(interval)
    if isinstance(value, Leaf):
        return list(EVERYTHING) if value.tokens == ("\\R",) else [] if value.words == "empty set" else None
    if isinstance(value, Union):
        together: list = []
        for part in value.parts:
            found = _pieces(part)
            if found is None:
                return None
            together.extend(found)
        for part in value.without:
            found = _pieces(part)
            if found is None:
                return None
            together = _without(_merged(together), found)
        return together
    if isinstance(value, Group):
        return _group_pieces(value)
    return None


def _group_pieces(value: Group) -> list | None:
    if value.kind == "tuple" and len(value.items) == 2:
        low, high = (real_end(item) for item in value.items)
        if low is None or high is None or low > high:
            return None
        return [(low, high, value.opener == "[", value.closer == "]")]
    if value.kind == "set":
        points = [real_end(item) for item in value.items]
        return None if None in points else [(point, point, True, True) for point in points]
    if value.kind == "list":
        found = [_pieces(item) for item in value.items]
        if any(item is None for item in found):
            return None
        if value.joined == "and":
            kept = _merged(found[0])
            for other in found[1:]:
                kept = _intersection(kept, _merged(other))
            if kept:
                return list(kept)
        return [piece for item in found for piece in item]
    return None


def real_end(value: Value) -> float | None:
    """The number that a leaf stands for, infinities included."""
    if not isinstance(value, Leaf) or value.node is None:
        return None
    node, sign = value.node, 1.0
    while node[0] == "neg":
        node, sign = node[1], -sign
    if node == ("oo",):
        return sign * math.inf
    number = None if letters_of(value.node) else real(value.node)
    return number if number is None or value.unit != "%" else number / 100


def _merged(found) -> Pieces:
    merged: list = []
    for low, high, low_in, high_in in sorted(found, key=lambda piece: (piece[0], not piece[2])):
        if merged:
            before = merged[-1]
            if low < before[1] or (_near(low, before[1]) and (low_in or before[3])):
                if high > before[1] or (_near(high, before[1]) and high_in):
                    merged[-1] = (before[0], high, before[2], high_in)
                continue
        merged.append((low, high, low_in, high_in))
    return tuple(merged)


def _complement(found: Pieces) -> list:
    rest, low, low_in = [], -math.inf, False
    for piece in found:
        if piece[0] > low or (low_in and not piece[2] and piece[0] == low):
            rest.append((low, piece[0], low_in, not piece[2] and math.isfinite(piece[0])))
        low, low_in = piece[1], not piece[3]
    if low < math.inf:
        rest.append((low, math.inf, low_in, False))
    return rest


def _intersection(one: Pieces, two: Pieces) -> Pieces:
    return _merged(_complement(_merged([*_complement(one), *_complement(two)])))


def _without(one, two) -> list:
    return list(_intersection(_merged(one), _merged(_complement(_merged(two)))))


def _near(one: float, two: float) -> bool:
    return one == two or (math.isfinite(one - two) and abs(one - two) <= 1e-9 * max(abs(one), abs(two), 1e-6))


def same_set(one: Pieces, two: Pieces) -> bool:
    """Whether two sets have the same pieces."""
    return len(one) == len(two) and all(
        _near(a[0], b[0]) and _near(a[1], b[1]) and a[2:] == b[2:] for a, b in zip(one, two, strict=True)
    )
