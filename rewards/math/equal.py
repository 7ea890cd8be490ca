r"""When two values are the same answer: members, order, names, chains, signs.

Decided once, with reasons, tested in tests/rewards/math/test_verifier_policies.py:

- **Every value asked for, and no other.** A list or set equals another with the same members in any order, a tuple
  one in the same order; `1, 2` is not `1`, ``\pm 2`` is not 2, an interval around a number is not the number.
- **A chain must hold.** ``15 = 16`` and ``80 \approx 81`` contradict themselves: they equal nothing. Where a chain
  holds, any of its members may match. A link to a formula that is not read here, ``\lim ... = 1``, leaves what stands
  behind it, unless a symbolic worker refutes it; ``2x + 1 = 7`` is an equation for x and not 7.
- **Names are not graded**: x = 16 answers 16, f(x) = x answers f(z) = z. Values named alike are compared name by name.
- **Bound letters are not graded** either: a set given by a rule is its element and its conditions under any letters.
- **Infinitely many is \infty** where the gold counts; a gold \infty may be a limit, and is no count.
- **Exact means exact.** A decimal stands for an exact value from six significant digits on, if it is that value
  rounded or cut; fewer digits are another number.
- **Units are not graded unless both name one**: 5 cm answers 5 and 500 cm answers 5 m, but 5 cm does not answer 5 m.
  A percentage of the gold may be given as 25\%, 25 or 1/4; degrees as 45, 45^\circ or \pi/4.
"""

from __future__ import annotations

from rewards.math.equal_single import Outcome, same_leaf
from rewards.math.families import same_family
from rewards.math.inequalities import as_interval
from rewards.math.nodes import substitute
from rewards.math.real_sets import is_set, pieces, same_set
from rewards.math.relations import Stated, same_congruence, same_relation, solves, stated
from rewards.math.set_builder import Family
from rewards.math.tokens import Unreadable
from rewards.math.values import Grid, Group, Leaf, Relation, Union, Value, read, spelled

MAX_COMPARISONS = 20_000  # about a second; a list of 200 in another order takes some 10,000


class Overtime(ArithmeticError):
    """A comparison of more steps than it may take."""


class Comparison:
    """One comparison, of so many steps: lists of hundreds of roots are not worth a training step.

    Steps and not seconds, not even the thread's own: a slow or busy machine must not change a verdict.
    """

    def __init__(self, most: int = MAX_COMPARISONS):
        self.left = most

    def equal(self, gold: Value, answer: Value) -> Outcome:
        """True, False, or the pairs of expressions on which it depends.

        Raises:
            Overtime: the comparison's steps are used up.
        """
        self.left -= 1
        if self.left < 0:
            raise Overtime
        if (
            isinstance(gold, Leaf)
            and isinstance(answer, Leaf)
            and not _has_sign_choice(gold)
            and not _has_sign_choice(answer)
        ):
            return same_leaf(gold, answer)
        if isinstance(gold, Family) or isinstance(answer, Family):
            return same_family(gold, answer, self.equal)
        if is_set(gold) or is_set(answer):
            as_sets = self._equal_sets(gold, answer)
            if as_sets is not None:
                return as_sets
        if isinstance(gold, Relation) or isinstance(answer, Relation):
            return self._equal_relations(gold, answer)
        if isinstance(gold, Union) or isinstance(answer, Union):
            return self._equal_unions(gold, answer)
        return self._equal_groups(_expanded(gold), _expanded(answer))

    def _equal_sets(self, gold: Value, answer: Value) -> Outcome | None:
        one, two = pieces(gold), pieces(answer)
        if one is not None and two is not None:
            return same_set(one, two)
        intervals = [_interval_of(value) for value in (gold, answer)]
        if all(interval is not None for interval in intervals):
            return self._equal_groups(*intervals)
        return None

    def _equal_relations(self, gold: Value, answer: Value) -> Outcome:
        related = isinstance(gold, Relation), isinstance(answer, Relation)
        if related[0] and "\\equiv" in gold.ops:
            return related[1] and same_congruence(gold, answer, self.equal)
        golds = stated(gold, self.equal, alone=not related[1])
        answers = stated(answer, self.equal, alone=not related[0])
        if golds is None or answers is None:
            return False
        best: Outcome = False
        # the values of a chain that holds are alternatives; a gold's is taken to hold
        for one in golds:
            for two in answers:
                outcome = _both(self.equal(*_renamed(one, two)), two.open or True)
                if outcome is True:
                    return True
                best = best or outcome
        if all(related):
            return same_relation(gold, answer) or best
        if related[0] and isinstance(answer, Leaf) and solves(gold, answer):
            return True
        return best

    def _equal_unions(self, gold: Value, answer: Value) -> Outcome:
        if not (isinstance(gold, Union) and isinstance(answer, Union)) or len(gold.without) != len(answer.without):
            return False
        parts = self._matched(gold.parts, answer.parts)
        without = self._matched(gold.without, answer.without) if gold.without else True
        return _both(parts, without)

    def _equal_groups(self, gold: Value, answer: Value) -> Outcome:
        if isinstance(gold, Grid) and isinstance(answer, Grid):
            if [len(row) for row in gold.rows] != [len(row) for row in answer.rows]:
                return False
            return self._in_order(sum(gold.rows, ()), sum(answer.rows, ()))
        for one, two in ((gold, answer), (answer, gold)):
            if isinstance(one, Grid):
                cells = sum(one.rows, ())
                vector = min(len(one.rows), len(one.rows[0]) if one.rows else 0) == 1
                if not vector or not isinstance(two, Group) or two.kind == "set" or len(cells) != len(two.items):
                    return False
                return self._in_order(cells, two.items) if one is gold else self._in_order(two.items, cells)
        if not isinstance(gold, Group) or not isinstance(answer, Group):
            return self._equal_single(gold, answer)
        return self._equal_members(gold, answer)

    def _equal_single(self, gold: Value, answer: Value) -> Outcome:
        """A group against something that is no group."""
        for one, two in ((gold, answer), (answer, gold)):
            if isinstance(one, Group):
                if one.kind == "ratio":
                    quotient = _quotient(one)
                    if quotient is not None and isinstance(two, Leaf):
                        return self.equal(quotient, two) if one is gold else self.equal(two, quotient)
                    return False
                if one.kind == "set" and len(one.items) == 1:
                    return self.equal(one.items[0], two) if one is gold else self.equal(two, one.items[0])
                return False
        return same_leaf(gold, answer) if isinstance(gold, Leaf) and isinstance(answer, Leaf) else False

    def _equal_members(self, gold: Group, answer: Group) -> Outcome:
        kinds = {gold.kind, answer.kind}
        if "ratio" in kinds:
            if kinds != {"ratio"} or len(gold.items) != len(answer.items):
                return False
            return all(
                same_leaf(_share(gold, index), _share(answer, index)) is True for index in range(1, len(gold.items))
            )
        if "tuple" in kinds:
            if "set" in kinds or len(gold.items) != len(answer.items):
                return False
            # an interval's ends belong to it
            brackets = (gold.opener, gold.closer), (answer.opener, answer.closer)
            if kinds == {"tuple"} and len(gold.items) == 2 and brackets[0] != brackets[1]:
                return False
            return self._in_order(gold.items, answer.items)
        named = _by_name(gold), _by_name(answer)
        if all(named) and set(named[0]) == set(named[1]) and len(named[0]) == len(gold.items) == len(answer.items):
            return self._in_order(list(named[0].values()), [named[1][name] for name in named[0]])
        if "set" in kinds or len(gold.items) < len(answer.items):
            # a value given twice is given once
            return self._matched(self._distinct(gold.items), self._distinct(answer.items))
        return self._matched(gold.items, answer.items)

    def _distinct(self, items) -> tuple:
        kept: list = []
        for item in items:
            if len(items) > 60 or not any(self.equal(item, other) is True for other in kept):
                kept.append(item)
        return tuple(kept)

    def _in_order(self, golds, answers) -> Outcome:
        outcome: Outcome = True
        for one, two in zip(golds, answers, strict=True):
            outcome = _both(outcome, self.equal(one, two))
            if outcome is False:
                return False
        return outcome

    def _matched(self, golds, answers) -> Outcome:
        """Every member of one has its own equal in the other."""
        if len(golds) != len(answers):
            return False
        left = list(answers)
        open_golds = []
        for gold in golds:
            for index, answer in enumerate(left):
                if self.equal(gold, answer) is True:
                    del left[index]
                    break
            else:
                open_golds.append(gold)
        if not open_golds:
            return True
        # what is undecided is matched in the order given
        return self._in_order(open_golds, left)


def _interval_of(value: Value) -> Value | None:
    if isinstance(value, Relation):
        if value.ops == ("\\in",):
            try:
                return _interval_of(read(value.parts[1]))
            except Unreadable:
                return None
        return as_interval(value)
    return value if isinstance(value, Group) and value.kind == "tuple" else None


def _renamed(one: Stated, two: Stated) -> tuple[Value, Value]:
    """Values of two functions, f(x) = ... and f(m) = ..., with one argument's name."""
    value = two.value
    if one.argument and two.argument not in ("", one.argument) and isinstance(value, Leaf) and value.node is not None:
        node = substitute(value.node, two.argument, ("v", one.argument))
        value = Leaf(value.tokens, node, value.unit, value.words)
    return one.value, value


def _share(ratio: Group, index: int) -> Leaf:
    return Leaf((), ("/", ratio.items[0].node, ratio.items[index].node))


def _quotient(ratio: Group) -> Leaf | None:
    if len(ratio.items) != 2:
        return None
    return Leaf((), ("/", ratio.items[0].node, ratio.items[1].node))


def _by_name(group: Group) -> dict[str, Value]:
    return {spelled(item.parts[0]): item for item in group.items if isinstance(item, Relation) and item.ops == ("=",)}


def _both(one: Outcome, two: Outcome) -> Outcome:
    if one is False or two is False:
        return False
    if one is True:
        return two
    return one if two is True else one + two


def _has_sign_choice(leaf: Leaf) -> bool:
    return "\\pm" in leaf.tokens or "\\mp" in leaf.tokens


def _expanded(value: Value) -> Value:
    r"""Each \pm written out: 1 \pm x as two values, (\pm 1, \pm 2) as four pairs."""
    if isinstance(value, Leaf):
        both = _signs(value)
        return Group("list", both) if len(both) > 1 else both[0]
    if isinstance(value, Group) and value.kind in ("list", "set"):
        items = []
        for item in value.items:
            wide = _expanded(item) if not isinstance(item, Relation) else _relation_signs(item)
            items.extend(wide.items if isinstance(wide, Group) and wide.kind == "list" and wide is not item else [wide])
        return value if len(items) == len(value.items) else Group(value.kind, tuple(items), value.opener, value.closer)
    if isinstance(value, Group) and value.kind == "tuple":
        rows: list[tuple] = [()]
        for item in value.items:
            choices = _signs(item) if isinstance(item, Leaf) else (item,)
            rows = [(*row, choice) for row in rows for choice in choices]
            if len(rows) > 64:
                return value
        if len(rows) > 1:
            return Group("list", tuple(Group("tuple", row, value.opener, value.closer) for row in rows))
    return value


def _relation_signs(relation: Relation) -> Value:
    last = relation.parts[-1]
    if relation.ops != ("=",) or not ("\\pm" in last or "\\mp" in last):
        return relation
    try:
        value = read(last)
    except Unreadable:
        return relation
    return _expanded(value) if isinstance(value, Leaf) else relation


def _signs(leaf: Leaf) -> tuple[Leaf, ...]:
    """The two readings of a leaf with a choice of sign; one when it is the same number twice."""
    if not _has_sign_choice(leaf) or leaf.node is None:
        return (leaf,)
    upper, lower = (Leaf((), _chosen(leaf.node, sign), leaf.unit) for sign in "+-")
    return (upper,) if same_leaf(upper, lower) is True else (upper, lower)


def _chosen(node: tuple, sign: str) -> tuple:
    if node[0] in ("pm", "mp"):
        first, second = _chosen(node[1], sign), _chosen(node[2], sign)
        added = (node[0] == "pm") == (sign == "+")
        if first == ("n", 0):
            return second if added else ("neg", second)
        return ("+" if added else "-", first, second)
    return tuple(
        _chosen(part, sign) if part.__class__ is tuple and part and part[0].__class__ is str else part for part in node
    )
