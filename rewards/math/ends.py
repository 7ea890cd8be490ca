"""The ends of intervals: real constants that are ordered exactly, however close they lie."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import total_ordering

from rewards.math.arithmetics import Undecided
from rewards.math.equal_expression import order, real
from rewards.math.equal_single import same_leaf
from rewards.math.exact import rational
from rewards.math.nodes import letters_of
from rewards.math.values import Leaf, Value


@total_ordering
class End:
    """A real constant, as a node. Ordered among its kind and between the infinities, which are floats.

    Raises (on comparison):
        Undecided: which of two is greater would take more digits than are computed.
    """

    __slots__ = ("approximate", "exact", "node")

    def __init__(self, node: tuple):
        self.node = node
        self.exact = rational(node)
        self.approximate = real(node) if self.exact is None else None

    def __eq__(self, other) -> bool:
        return self._order(other) == 0

    def __lt__(self, other) -> bool:
        return self._order(other) < 0

    __hash__ = None

    def __bool__(self) -> bool:
        """Whether it is a real number at all."""
        return self.exact is not None or self.approximate is not None

    def _order(self, other: End | float) -> int:
        if not isinstance(other, End):
            return -1 if other > 0 else 1
        if self.exact is not None and other.exact is not None:
            return (self.exact > other.exact) - (self.exact < other.exact)
        if None not in (self.approximate, other.approximate) and (
            abs(self.approximate - other.approximate) > 1e-6 * max(abs(self.approximate), abs(other.approximate), 1e-6)
        ):
            return 1 if self.approximate > other.approximate else -1
        sign = order(self.node, other.node)
        if sign is None:
            raise Undecided("order")
        return sign


Bound = End | float


def end_of(value: Value) -> Bound | None:
    """The number that a leaf stands for, infinities included; None when it is no real constant."""
    node = share_of(value)
    if node is None:
        return None
    infinite = infinity(node)
    return infinite if infinite is not None else None if letters_of(node) else End(node) or None


def share_of(value: Value) -> tuple | None:
    """The expression of a leaf, a percentage as the share it is; None when it has none."""
    if not isinstance(value, Leaf) or value.node is None:
        return None
    return value.node if value.unit != "%" else ("/", value.node, ("n", Fraction(100)))


def infinity(node: tuple) -> float | None:
    """An infinite bound as a float; None for every other node."""
    sign = 1.0
    while node[0] == "neg":
        node, sign = node[1], -sign
    return sign * math.inf if node == ("oo",) else None


def same_end(one: Bound, two: Bound) -> bool:
    """Whether two ends are one: equal, or one the other written as a decimal with enough digits."""
    if isinstance(one, End) and isinstance(two, End):
        return same_leaf(Leaf((), one.node), Leaf((), two.node)) is True
    return one == two
