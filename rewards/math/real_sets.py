r"""Sets of real numbers: intervals, inequalities and unions in one form, so that x > 2 equals (2, \infty).

A set is a sorted tuple of pieces (low, high, low included, high included) that do not touch. Their ends are anything
that is ordered: `rewards.math.ends.End` for constants, floats for the infinities.
"""

from __future__ import annotations

import math

from rewards.math.arithmetics import Undecided
from rewards.math.ends import end_of, same_end
from rewards.math.inequalities import ORDER, Piece, links
from rewards.math.tokens import Unreadable
from rewards.math.values import Group, Leaf, Relation, Union, Value, read

Pieces = tuple[Piece, ...]
EVERYTHING: Pieces = ((-math.inf, math.inf, False, False),)
_MAX_PARTS = 60


def pieces(value: Value) -> Pieces | None:
    """The set of reals a value describes; None when it describes none, or none with numbers for ends."""
    try:
        found = _pieces(value)
        return None if found is None else _merged(found)
    except Undecided:
        return None


def is_set(value: Value) -> bool:
    """Whether a value can only be meant as a set of reals: an inequality, a union."""
    if isinstance(value, Relation):
        return bool(set(value.ops) & ORDER) or (value.ops == ("\\in",) and _set_after_in(value))
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
        found = links(value)
        if found is None:
            return None
        kept = found[0]
        for link in found[1:]:
            kept = _intersection(_merged(kept), _merged(link))
        return list(kept)
    if isinstance(value, Leaf):
        return list(EVERYTHING) if value.tokens == ("\\R",) else [] if value.words == "empty set" else None
    if isinstance(value, Union):
        if len(value.parts) + len(value.without) > _MAX_PARTS:
            return None
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
    if len(value.items) > _MAX_PARTS:
        return None
    if value.kind == "tuple" and len(value.items) == 2:
        low, high = (end_of(item) for item in value.items)
        if low is None or high is None or high < low:
            return None
        return [(low, high, value.opener == "[", value.closer == "]")]
    if value.kind == "set":
        points = [end_of(item) for item in value.items]
        return None if any(point is None for point in points) else [(point, point, True, True) for point in points]
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


def _merged(found) -> Pieces:
    merged: list = []
    for low, high, low_in, high_in in sorted(found, key=lambda piece: (piece[0], not piece[2])):
        if merged:
            before = merged[-1]
            if low < before[1] or (low == before[1] and (low_in or before[3])):
                if high > before[1] or (high == before[1] and high_in):
                    merged[-1] = (before[0], high, before[2], high_in)
                continue
        merged.append((low, high, low_in, high_in))
    return tuple(merged)


def _complement(found: Pieces) -> list:
    rest, low, low_in = [], -math.inf, False
    for piece in found:
        if piece[0] > low or (low_in and not piece[2] and piece[0] == low):
            rest.append((low, piece[0], low_in, not piece[2] and piece[0] != math.inf))
        low, low_in = piece[1], not piece[3]
    if low < math.inf:
        rest.append((low, math.inf, low_in, False))
    return rest


def _intersection(one: Pieces, two: Pieces) -> Pieces:
    return _merged(_complement(_merged([*_complement(one), *_complement(two)])))


def _without(one, two) -> list:
    return list(_intersection(_merged(one), _merged(_complement(_merged(two)))))


def same_set(one: Pieces, two: Pieces) -> bool:
    """Whether two sets have the same pieces."""
    return len(one) == len(two) and all(
        same_end(a[0], b[0]) and same_end(a[1], b[1]) and a[2:] == b[2:] for a, b in zip(one, two, strict=True)
    )
