r"""When two sets given by a rule are one: their elements and conditions agree under a renaming of the bound letters.

\{t^2 : t \in \Z\} is \{x^2 : x \in \Z\}, but neither \{x^2 : x \in \N\} nor \{x^3 : x \in \Z\}. A side that gives no
rule, 2k + 1 for the odd numbers, is compared with the element, as long as the other's rule only says of what kind its
letters are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations

from rewards.math.set_builder import Family, is_letter, is_number_set, letters, renamed
from rewards.math.tokens import Unreadable
from rewards.math.values import Grid, Group, Leaf, Relation, Union, Value, read, spelled

_MAX_BOUND = 4
_COUNTERS = frozenset("klmn")


def same_family(gold: Value, answer: Value, equal: Callable) -> bool:
    """Whether two values, at least one of them a family, hold the same."""
    try:
        if isinstance(gold, Family) and isinstance(answer, Family):
            return _same_rule(gold, answer, equal)
        if isinstance(gold, Family):
            return _fits(gold, answer, lambda element: equal(element, answer) is True, anything=True)
        return _fits(answer, gold, lambda element: equal(gold, element) is True, anything=False)
    except Unreadable:
        return False


def _same_rule(gold: Family, answer: Family, equal: Callable) -> bool:
    if len(gold.bound) != len(answer.bound) or len(gold.conditions) != len(answer.conditions):
        return False
    if len(gold.bound) > _MAX_BOUND or _free(answer) & set(gold.bound) or _free(gold) & set(answer.bound):
        return False
    wanted, conditions = read(gold.element), [read(condition) for condition in gold.conditions]
    for names in permutations(gold.bound):
        renaming = dict(zip(answer.bound, names, strict=True))
        if equal(wanted, read(renamed(answer.element, renaming))) is not True:
            continue
        left = [read(renamed(condition, renaming)) for condition in answer.conditions]
        if all(_taken(condition, left, equal) for condition in conditions):
            return True
    return False


def _taken(condition: Value, left: list[Value], equal: Callable) -> bool:
    """Whether a condition is among those left, which then holds one less."""
    for index, other in enumerate(left):
        if _same_condition(condition, other, equal):
            del left[index]
            return True
    return False


def _same_condition(one: Value, two: Value, equal: Callable) -> bool:
    """As two answers are the same, and of the same letters, which an answer's name need not be."""
    if isinstance(one, Relation) and isinstance(two, Relation) and "\\in" in (*one.ops, *two.ops):
        return (
            one.ops == two.ops == ("\\in",)
            and spelled(one.parts[0]) == spelled(two.parts[0])
            and equal(read(one.parts[1]), read(two.parts[1])) is True
        )
    return _letters_in(one) == _letters_in(two) and equal(one, two) is True


def _fits(family: Family, other: Value, equals: Callable, anything: bool) -> bool:
    """Whether a family's element is the other value; a letter of the other's may only be another than the family's if
    it counts, or the family, as the gold, says so."""
    if len(family.element) == 1 and is_letter(family.element[0]):
        said = [condition for condition in family.conditions if not is_number_set(condition)]
        return isinstance(other, Relation) and len(said) == 1 and equals(read(said[0]))
    if not all(is_number_set(condition) for condition in family.conditions):
        return False
    if equals(read(family.element)):
        return True
    used = tuple(sorted(letters(family.element) & set(family.bound)))
    others = _letters_in(other) - _free(family)
    if not used or len(used) > _MAX_BOUND or len(others) > _MAX_BOUND:
        return False
    return any(
        equals(read(renamed(family.element, dict(zip(used, names, strict=True)))))
        for names in permutations(sorted(others), len(used))
        if anything or set(used) | set(names) <= _COUNTERS
    )


def _free(family: Family) -> set[str]:
    return letters(sum(family.conditions, family.element)) - set(family.bound)


def _letters_in(value: Value) -> set[str]:
    return set().union(*map(letters, _tokens_in(value)))


def _tokens_in(value: Value) -> Iterator[tuple]:
    if isinstance(value, Leaf):
        yield value.tokens
    elif isinstance(value, Relation):
        yield from value.parts
    elif isinstance(value, Family):
        yield sum(value.conditions, value.element)
    else:
        inside = {Group: "items", Grid: "rows", Union: "parts"}[type(value)]
        for item in getattr(value, inside):
            for part in item if isinstance(value, Grid) else (item,):
                yield from _tokens_in(part)
