r"""Names of quantities, the left side of an answer such as x = 5, f(x) = ..., |AB| = ..., (x, y) = ..."""

from __future__ import annotations

from itertools import pairwise

from rewards.math.nodes import letters_of
from rewards.math.parser import parse
from rewards.math.set_builder import letters
from rewards.math.tokens import Unreadable, closes_at, is_word, split_top
from rewards.math.vocabulary import ONE_ARGUMENT

# of letters these name a quantity, \\det A, \\gcd(a, b); of numbers they have a value
_OF_SOMETHING = frozenset(["\\det", "\\gcd", "\\lcm", "\\arg", "\\dim", "\\deg", "\\|"])
_RANGES = frozenset(["\\sum", "\\prod", "\\lim", "\\int"])


def is_label(tokens: tuple) -> bool:
    """Whether tokens name a quantity (x, a_3, f(x), T(10), |AB|, (x, y), NO/BO, words) rather than state one."""
    if not tokens or any(token.__class__ is not str for token in tokens):
        return False
    if all(is_word(token) for token in tokens):
        return True
    if tokens[0] in ("(", "[") and closes_at(tokens, 0) == len(tokens) - 1:
        return all(is_label(part) for part in split_top(tokens[1:-1], (",", ";")))
    if any(token in ("\\angle", "\\triangle", "\\overline", "\\Pr", "\\partial") for token in tokens[:2]):
        return True
    if tokens[0] == "{" and tokens[2:3] == ("}",):
        tokens = tokens[1:2] + tokens[3:]
    letters = [token for token in tokens if token.isalpha() and len(token) == 1]
    if tokens[0] in _OF_SOMETHING and letters:
        return True
    if (
        tokens[0] in ("\\frac", "|")
        or ":" in tokens
        or (len(letters) > 1 and letters[0].isupper() and len(tokens) == len(letters))
    ):
        stated = any(token[0].isdigit() or token in "+-*^" for token in _outside_scripts(tokens))
        named = letters and (letters[0].isupper() or letters[0] == "d" or tokens[0] == "|" or ":" in tokens)
        return bool(named) and not stated
    if tokens[0] == "\\Delta" and len(tokens) > 1:
        tokens = tokens[1:]
    name = tokens[0]
    if not (len(name) == 1 and name.isalpha()) and not (name[0] == "\\" and _names_variable(tokens[:1])):
        return False
    rest = tokens[1:]
    while rest:
        if rest[0] == "'":
            rest = rest[1:]
        elif rest[0] in ("_", "^") and len(rest) > 1:
            if rest[0] == "^" and "".join(rest[1:5])[:4] not in ("{-1}", "{(-1"):
                return False
            end = closes_at(rest, 1) if rest[1] == "{" else 1
            rest = rest[end + 1 :] if end > 0 else ()
        elif rest[0] in ("(", "["):
            end = closes_at(rest, 0)
            return end == len(rest) - 1 and not _is_product(name, rest)
        else:
            return False
    return True


def _is_product(name: str, rest: tuple) -> bool:
    """Whether x(x+1) is meant, not f(x)."""
    return name in rest or (name.islower() and name in "abcnmxyz" and any(token in "+-" for token in rest))


def _outside_scripts(tokens: tuple) -> list[str]:
    kept, index = [], 0
    while index < len(tokens):
        if tokens[index] == "_" and index + 1 < len(tokens):
            index = max(closes_at(tokens, index + 1), index + 1) if tokens[index + 1] == "{" else index + 1
        else:
            kept.append(tokens[index])
        index += 1
    return kept


def _names_variable(tokens: tuple) -> bool:
    try:
        return bool(letters_of(parse(tokens)))
    except Unreadable:
        return False


def names_ratio(tokens: tuple) -> bool:
    r"""Whether tokens are a function of an angle that is named: \tan \theta, \sin^2 2A."""
    if tokens[0] not in ONE_ARGUMENT:
        return False
    try:
        node = parse(tokens)
    except (Unreadable, RecursionError):
        return False
    if node[0] == "^" and not letters_of(node[2]):
        node = node[1]
    return node[0] == "fn" and bool(letters_of(node[2]))


def free_letters(tokens: tuple) -> set[str]:
    r"""Letters in a formula with sums, limits, integrals or bounds, [x^2]_0^1, that these do not range over."""
    found = letters(tokens) - {"e", "i", "d"}
    for at, (before, token) in enumerate(pairwise(tokens)):
        if before == "d":
            found.discard(token)
        elif before in ("]", "|") and token == "_":
            found -= letters(tokens[:at])
    for at, token in enumerate(tokens):
        if token in _RANGES and tokens[at + 1 : at + 3] == ("_", "{") and at + 3 < len(tokens):
            found.discard(tokens[at + 3])
    return found
