"""Are two single answers the same: numbers with units, percentages, angles, bases; formulas; words."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import NamedTuple

from rewards.math.equal_expression import real, same
from rewards.math.exact import rational
from rewards.math.nodes import contains, letters_of, substitute
from rewards.math.tokens import Based
from rewards.math.units import convert, is_unit
from rewards.math.values import Leaf, latex, spelled
from rewards.math.vocabulary import HEDGES, NUMBER_WORDS

SIGNIFICANT = 6
_COUNTERS = frozenset("klmn")
_INFINITE = {"infinity": ("oo",), "negative infinity": ("neg", ("oo",)), "minus infinity": ("neg", ("oo",))}
# how many, when there is no end of them: infinitely many, or infinitely many points; but no infinite discontinuity
_COUNTLESS = re.compile(
    r"(?:there (?:are|exist) )?(?:an )?"
    r"(?:infinitely many|infinite (?:number|amount) of|infinite(?= solutions$| answers$| values$|$))(?: ([a-z ]+))?"
)
Outcome = "bool | tuple[tuple[str, str], ...]"


class Doubt(NamedTuple):
    """Two formulas that an answer says are equal on its way to its value: wrong only where they are shown to differ."""

    one: str
    other: str


def same_leaf(gold: Leaf, answer: Leaf):
    """True, False, or the pair of formulas to be compared symbolically."""
    if gold.words or answer.words:
        return _same_words(gold, answer)
    if gold.tokens and answer.tokens and spelled(gold.tokens) == spelled(answer.tokens):
        return True
    if gold.node is None or answer.node is None:
        if _plain_letters(gold) and _plain_letters(gold) == _plain_letters(answer):
            return True
        # a symbolic worker is asked only about what is well-formed but unknown here
        known = all(leaf.node is not None or leaf.foreign for leaf in (gold, answer))
        if not known or _has_words(gold) or _has_words(answer) or not _bearable(gold) or not _bearable(answer):
            return False
        return ((latex(gold.tokens), latex(answer.tokens)),)
    based = _same_digits(gold, answer)
    if based is not None:
        return based
    if _same_with_units(gold, answer):
        return True
    word = _plain_letters(gold)
    return len(word) > 1 and word == _plain_letters(answer)


def _has_words(leaf: Leaf) -> bool:
    return any(token.__class__ is str and token[0] == '"' for token in leaf.tokens)


def _bearable(leaf: Leaf) -> bool:
    """Whether a formula may be shown to a symbolic worker: no towers, no factorials of large numbers."""
    return bool(leaf.tokens) and (leaf.node is None or not _towering(leaf.node, 0))


def _towering(node: tuple, depth: int) -> bool:
    if node[0] == "^":
        exponent = real(node[2]) if not letters_of(node[2]) else 1.0
        if exponent is None or abs(exponent) > 10_000 or depth > 2:
            return True
        return _towering(node[1], depth) or _towering(node[2], depth + 1)
    if node[0] in ("!", "C"):
        size = real(node[1]) if not letters_of(node[1]) else 1.0
        return size is None or abs(size) > 3_000
    return any(
        _towering(part, depth) for part in node[1:] if part.__class__ is tuple and part and part[0].__class__ is str
    )


def _same_with_units(gold: Leaf, answer: Leaf) -> bool:
    one, two = gold.unit, answer.unit
    if one == two:
        return _same_value(gold.node, answer.node) or (not one and _unit_as_letter(gold, answer))
    if "%" in (one, two):
        return _same_percent(gold, answer)
    if "deg" in (one, two):
        other = two if one == "deg" else one
        turned = [("deg", leaf.node) if leaf.unit == "deg" else leaf.node for leaf in (gold, answer)]
        return (not other or not is_unit(other)) and (
            _same_value(gold.node, answer.node) or _same_value(turned[0], turned[1])
        )
    if one and two:
        factor = convert(one, two)
        if factor is None:
            return False
        return _same_value(("*", gold.node, ("n", factor)), answer.node)
    if _same_value(gold.node, answer.node):
        return True
    return _unit_as_letter(gold, answer)


def _unit_as_letter(gold: Leaf, answer: Leaf) -> bool:
    """10 and 10m, where the letter can only be a unit: one side is a number, the other that number and the letter."""
    for number, lettered in ((gold, answer), (answer, gold)):
        node = lettered.node
        if node[0] == "^" and node[1][0] == "*" and node[2][0] == "n":
            node = node[1]
        if (
            (lettered is answer or is_unit(number.unit))
            and node[0] == "*"
            and node[1][0] == "n"
            and node[2][0] == "v"
            and is_unit(node[2][1])
            and lettered.tokens[-1] == node[2][1]
            and number.node[0] in ("n", "neg", "/")
            and (factor := convert(number.unit, node[2][1]) if is_unit(number.unit) else Fraction(1)) is not None
            and same(("*", number.node, ("n", factor)), node[1])
        ):
            return True
    return False


def _same_percent(gold: Leaf, answer: Leaf) -> bool:
    if gold.unit == "%":
        if answer.unit and answer.unit != "deg" and is_unit(answer.unit):
            return False
        return _same_value(gold.node, answer.node) or _same_value(("/", gold.node, ("n", Fraction(100))), answer.node)
    if _same_value(gold.node, ("/", answer.node, ("n", Fraction(100)))):
        return True
    # a percentage whose sign the gold leaves out; below 1 it could be the share itself
    size = rational(gold.node)
    return size is not None and abs(size) > 1 and not gold.unit and _same_value(gold.node, answer.node)


def _same_value(one: tuple, two: tuple) -> bool:
    outcome = same(one, two)
    if outcome is True:
        return True
    if contains(one, "deg") != contains(two, "deg"):
        # cos 13 for the cosine of 13 degrees: the sign left out inside
        return same(_without_degrees(one), _without_degrees(two)) is True
    if ("oo",) in (one, two) or ("neg", ("oo",)) in (one, two):
        return one == two
    if _has_bare_log(one) or _has_bare_log(two):
        return same(_log_ten(one), _log_ten(two)) is True or _same_rounded(one, two)
    return outcome is False and (_same_rounded(one, two) or _same_but_for_a_name(one, two))


def _same_but_for_a_name(one: tuple, two: tuple) -> bool:
    """Equal up to the name of one free letter: + C and + c, or the k and n that count solutions of an angle."""
    ours, theirs = letters_of(one), letters_of(two)
    left, right = ours - theirs, theirs - ours
    if len(left) != 1 or len(right) != 1:
        return False
    name, other = left.pop(), right.pop()
    counting = contains(one, "pi") and name in _COUNTERS and other in _COUNTERS
    if name.lower() != other.lower() and not counting:
        return False
    return same(one, substitute(two, other, ("v", name))) is True


def _has_bare_log(node: tuple) -> bool:
    if node[0] == "log" and node[1] is None:
        return True
    return any(
        _has_bare_log(part) for part in node[1:] if part.__class__ is tuple and part and part[0].__class__ is str
    )


def _without_degrees(node: tuple) -> tuple:
    if node[0] == "deg":
        return _without_degrees(node[1])
    return tuple(
        _without_degrees(part) if part.__class__ is tuple and part and part[0].__class__ is str else part
        for part in node
    )


def _log_ten(node: tuple) -> tuple:
    if node[0] == "log" and node[1] is None:
        return ("log", ("n", Fraction(10)), _log_ten(node[2]))
    return tuple(
        _log_ten(part) if part.__class__ is tuple and part and part[0].__class__ is str else part for part in node
    )


def _same_rounded(one: tuple, two: tuple) -> bool:
    """Whether one is written as a decimal with enough digits and the other is what it was rounded or cut from."""
    if letters_of(one) or letters_of(two):
        return False
    return _rounds(one, two) or _rounds(two, one)


def _shown_places(node: tuple) -> int | None:
    """Decimal places of 2.50, -2.50, 2.50 times a power of ten, 2.50 percent or degrees; None for no decimal."""
    if node[0] in ("neg", "deg"):
        return _shown_places(node[1])
    inner = _shown_places(node[1]) if node[0] in ("*", "/") else None
    if inner is not None and node[0] == "/":
        return inner + 2 if node[2] == ("n", Fraction(100)) else None
    if inner is not None and node[2][0] == "^" and node[2][1] == ("n", Fraction(10)):
        power = rational(node[2][2])
        return inner - int(power) if power is not None and abs(power) < 100 else None
    return node[2] if node[0] == "n" and len(node) == 3 else None


def _rounds(decimal: tuple, exact: tuple) -> bool:
    places, value = _shown_places(decimal), rational(decimal)
    if places is None or value is None or not 0 < places < 100:
        return False
    written = abs(value) * 10**places
    if len(str(int(written))) < SIGNIFICANT:
        return False
    others, precise = _shown_places(exact), rational(exact)
    if precise is None:
        approximate = real(exact)
        if approximate is None:
            return False
        precise = Fraction(approximate)
    ends = _places(precise) if others is None else others
    if ends is not None and ends <= places:
        return False  # the other has no more digits to be rounded away
    scaled = abs(precise) * 10**places
    return (value < 0) == (precise < 0) and written in (math.floor(scaled), math.floor(scaled + Fraction(1, 2)))


def _places(value: Fraction) -> int | None:
    """Decimal places of a fraction whose decimal ends within 30; None otherwise."""
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    return max(twos, fives) if rest == 1 and max(twos, fives) <= 30 else None


def _same_digits(gold: Leaf, answer: Leaf) -> bool | None:
    """Numbers written in a base: 204_5 equals 204_5 and 204, not the 54 it stands for."""
    ours = gold.tokens[0] if len(gold.tokens) == 1 and isinstance(gold.tokens[0], Based) else None
    theirs = answer.tokens[0] if len(answer.tokens) == 1 and isinstance(answer.tokens[0], Based) else None
    if ours is None and theirs is None:
        return None
    if ours is not None and theirs is not None:
        return ours.base == theirs.base and same(gold.node, answer.node) is True
    digits, other = (ours.digits, answer) if ours is not None else (theirs.digits, gold)
    plain = "".join(str(token) for token in other.tokens).upper()
    return plain == digits


def _plain_letters(leaf: Leaf) -> str:
    """A leaf that is letters only, as a word."""
    text = "".join(token.strip('"') if token.__class__ is str else "?" for token in leaf.tokens)
    return text.lower() if text.isalpha() else ""


def _same_words(gold: Leaf, answer: Leaf) -> bool:
    one, two = (leaf.words or _plain_letters(leaf) for leaf in (gold, answer))
    counted = _countless(one)
    if counted is not None:
        return _is_countless(counted, answer)
    if one and two:
        return _normal(one) == _normal(two)
    for worded, other in ((gold, answer), (answer, gold)):
        if worded.words in NUMBER_WORDS and other.node is not None:
            return same(("n", Fraction(NUMBER_WORDS[worded.words])), other.node) is True
        if worded.words in _INFINITE:
            return other.node == _INFINITE[worded.words] and not other.unit
    return False


def _countless(words: str) -> str | None:
    """What there are infinitely many of, "" where that is not said; None for all other words."""
    found = _COUNTLESS.fullmatch(words)
    return None if found is None or HEDGES & set(words.split()) else found.group(1) or ""


def _is_countless(things: str, answer: Leaf) -> bool:
    r"""Whether an answer is the count of infinitely many things, as \infty is.

    A gold \infty may be a limit, and is no count: only the gold says which is meant.
    """
    others = answer.unit if answer.node == ("oo",) else "" if answer.words == "infinity" else _countless(answer.words)
    return others is not None and (not things or not others or things == others)


def _normal(words: str) -> str:
    words = re.sub(r"\s+", " ", words).strip(" .'")
    return re.sub(r"^(?:option|choice|answer) (?=[a-z]$)", "", words)
