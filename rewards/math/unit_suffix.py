r"""What stands behind a number: a percent sign, degrees, units in words or letters, "million"."""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.math.tokens import is_word
from rewards.math.vocabulary import CHANGES, DEGREES, HEDGES, ONE_ARGUMENT, PERCENT, SCALES

_UNIT_SIGNS = frozenset(["^", "/", "{", "}", "(", ")", "-", "\\cdot", "*"])


def measured(tokens: tuple) -> tuple[tuple, str, int]:
    """The tokens before their unit, the unit ("", "%", "deg" or words), and what a word such as million multiplies by.

    Words that change the value, take it back or name another one are no unit: the tokens come back as they were.
    """
    if len(tokens) > 1 and tokens[-1] == "%":
        return tokens[:-1], "%", 1
    ends = tokens[:-1] if len(tokens) > 3 and tokens[-1] in ("C", "F") and tokens[-2] == "\\circ" else tokens
    if len(ends) > 2 and ends[-2:] == ("^", "\\circ") and not any(token in ONE_ARGUMENT for token in ends):
        return ends[:-2], "deg", 1
    index = next((index for index, token in enumerate(tokens) if index and is_word(token)), 0)
    if not index or not _is_unit_like(tokens[index:]):
        return tokens, "", 1
    body, tail = tokens[:index], tokens[index:]
    if body[-2:] == ("^", "{") and tail[-1] == "}":
        body, tail = body[:-2], tail[:-1]
    if body and body[-1] in ("/", "\\cdot", "-"):
        body = body[:-1]
    words = " ".join(token.strip('"') for token in tail).strip().lower().rstrip(".")
    first, _, rest = words.partition(" ")
    if first in SCALES:
        return body, rest, SCALES[first]
    if words in PERCENT:
        return body, "%", 1
    return body, "deg" if words in DEGREES else words, 1


def _is_unit_like(tail: tuple) -> bool:
    if set(tail[0][1:].lower().split()[:1]) & CHANGES or any(is_word(token) and _hedges(token) for token in tail):
        return False
    for before, token in zip(("", *tail), tail, strict=False):
        if token.__class__ is not str:
            return False
        # a digit among units is a power
        if token.isdigit() and before not in ("^", "{", "-"):
            return False
        if not (is_word(token) or token in _UNIT_SIGNS or (len(token) == 1 and token.isalnum())):
            return False
    return True


def _hedges(token: str) -> bool:
    """Whether words after a number say something of it that no unit would: alternatives, doubts, further numbers."""
    numbers = re.sub(r"\^\s*\{?\s*-?\d\s*\}?", "", token)
    return takes_back(token) or any(sign.isdigit() for sign in numbers)


def takes_back(token: str) -> bool:
    """Whether words doubt or deny what stands beside them."""
    return bool(HEDGES & set(re.findall(r"[a-z']+", token.lower())))


def angle(tokens: tuple) -> tuple | None:
    """Degrees and minutes, 60^\\circ 42', in degrees."""
    if len(tokens) < 5 or tokens[1:3] != ("^", "\\circ"):
        return None
    numbers = [tokens[0], tokens[3], *(tokens[5:6] if tokens[5:] and tokens[6:] == ("'", "'") else ())]
    signs = tokens[4:5]
    if signs != ("'",) or len(tokens) not in (5, 8) or not all(t.__class__ is str and t.isdigit() for t in numbers):
        return None
    return ("n", sum(Fraction(int(number), 60**place) for place, number in enumerate(numbers)))
