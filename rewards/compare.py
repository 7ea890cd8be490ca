"""Are two answers the same? Decided by structure; what remains open is left to the symbolic workers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_OPEN = 600
_PLAIN = re.compile(r"-?\d{1,300}")


@dataclass(frozen=True, slots=True)
class Decision:
    """equal: the verdict, unless ``open`` holds pairs (gold, answer) that must all be symbolically equal for it."""

    equal: bool
    rule: str
    open: tuple[tuple[str, str], ...] = ()


def readable(gold: str) -> bool:
    """Whether a gold can be graded against at all."""
    return isinstance(gold, str) and bool(gold.strip().strip("$"))


def decide(gold: str, answer: str) -> Decision:
    """Compare a gold with an extracted answer."""
    gold, answer = _clean(gold), _clean(answer)
    if gold == answer:
        return Decision(True, "same text")
    try:
        return Decision(Fraction(gold.replace(",", "")) == Fraction(answer.replace(",", "")), "rational numbers")
    except (ValueError, ZeroDivisionError):
        pass
    if len(gold) + len(answer) > MAX_OPEN:
        return Decision(False, "too long")
    return Decision(False, "", ((gold, answer),))


def _clean(text: str) -> str:
    return text.replace("$", "").strip().rstrip(".").strip()
