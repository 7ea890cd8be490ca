r"""Sets that are given by a rule: \{2k + 1 \mid k \in \Z\}, or the same without braces, 2k + 1, k \in \Z.

The letters a rule ranges over are bound: any others would do. Which letters those are, and what is said of them, is
read off the tokens here; rewards.math.families compares.
"""

from __future__ import annotations

from dataclasses import dataclass

from rewards.math.tokens import CLOSERS, OPENERS, Table, split_top
from rewards.math.vocabulary import GREEK

_BETWEEN = (",", ";", '"and', "\\land")


@dataclass(frozen=True, slots=True)
class Family:
    """All values of an element (tokens) for the bound letters that meet the conditions (tokens each)."""

    element: tuple
    conditions: tuple[tuple, ...]
    bound: tuple[str, ...]


def letters(tokens: tuple) -> set[str]:
    """Tokens that are a letter, also in the cells of tables."""
    found: set[str] = set()
    for token in tokens:
        if token.__class__ is Table:
            found.update(*(letters(cell) for row in token.rows for cell in row))
        elif token.__class__ is str and (is_letter(token) or token in GREEK):
            found.add(token)
    return found


def renamed(tokens: tuple, names: dict[str, str]) -> tuple:
    """Tokens with other letters."""
    return tuple(
        Table(tuple(tuple(renamed(cell, names) for cell in row) for row in token.rows), token.kind)
        if token.__class__ is Table
        else names.get(token, token)
        if token.__class__ is str
        else token
        for token in tokens
    )


def is_letter(token) -> bool:
    """Whether a token is a Latin letter."""
    return token.__class__ is str and len(token) == 1 and token.isalpha()


def split_rule(content: tuple) -> tuple[tuple, tuple] | None:
    r"""Element and conditions in what stands between braces; None where no rule stands there.

    A bar divides them where the bars on either side are pairs: \{|x| \mid ...\} may be written with bars alone.
    """
    for sign in ("\\mid", ":"):
        parts = split_top(content, (sign,))
        if len(parts) == 2 and all(parts):
            return parts[0], parts[1]
    parts = split_top(content, ("|",))
    if len(parts) % 2 == 0:
        at = 0
        for index, part in enumerate(parts[:-1]):
            at += len(part) + 1
            if index % 2 == 0 and at > 1:
                return (content[: at - 1], content[at:]) if content[at:] else None
    return None


def ruled(element: tuple, rule: tuple) -> Family | None:
    r"""The family of an element under a rule; None for \{x \mid x < 3\}, whose rule alone says what it holds."""
    conditions = _conditions(rule)
    told = split_top(element, ("\\in",))
    if len(told) == 2:
        # that x is real is nothing that its rule does not say
        conditions = conditions if told[1] == ("\\R",) else [element, *conditions]
        element = told[0]
    if len(element) == 1 and is_letter(element[0]) and (len(told) == 1 or told[1] == ("\\R",)):
        return None
    named = set().union(*(letters(condition) for condition in conditions))
    bound = (letters(element) & named) | _declared(conditions)
    return Family(element, tuple(conditions), tuple(sorted(bound)))


def beside(tokens: tuple) -> Family | None:
    r"""The family in a list whose last or first members say of what kind the letters of the others are.

    What stands last may stand in parentheses: 2k (k \in \Z).
    """
    start = _last_group(tokens)
    if start and tokens[start] == "(" and _declares(tokens[start + 1 : -1]):
        tokens = (*tokens[:start], ",", *tokens[start + 1 : -1])
    parts = split_top(tokens, _BETWEEN)
    first, last = 0, len(parts)
    while last > 1 and _declares(parts[last - 1]):
        last -= 1
    while first < last - 1 and _declares(parts[first]):
        first += 1
    kinds = [*parts[:first], *parts[last:]]
    if not kinds:
        return None
    start = sum(len(part) + 1 for part in parts[:first])
    stop = len(tokens) - sum(len(part) + 1 for part in parts[last:])
    element, bound = tokens[start:stop], _declared(kinds)
    if not element or not (bound <= letters(element) or all(map(is_number_set, kinds))):
        return None
    return Family(element, tuple(kinds), tuple(sorted(bound)))


def _last_group(tokens: tuple) -> int:
    """Where the bracket opens that the last token closes; 0 when there is none, or it holds everything."""
    level = 0
    for at in range(len(tokens) - 1, 0, -1):
        if tokens[at].__class__ is str:
            level += (tokens[at] in CLOSERS) - (tokens[at] in OPENERS)
        if level <= 0:
            return at if at < len(tokens) - 1 else 0
    return 0


def _declares(tokens: tuple) -> bool:
    return len(tokens) > 2 and tokens[1] == "\\in" and bool(letters(tokens[:1]))


def _declared(conditions: list[tuple]) -> set[str]:
    return set().union(*(letters(part[: part.index("\\in")]) for part in conditions if "\\in" in part))


def _conditions(rule: tuple) -> list[tuple]:
    r"""What a rule says, one thing each: x, y \in \R is said of x and of y."""
    conditions: list[tuple] = []
    waiting: list[tuple] = []
    for part in split_top(rule, _BETWEEN):
        if len(part) == 1 and is_letter(part[0]):
            waiting.append(part)
            continue
        if "\\in" in part:
            conditions.extend((*name, *part[part.index("\\in") :]) for name in waiting)
            waiting = []
        if part:
            conditions.append(part)
    return [*conditions, *waiting]


def is_number_set(condition: tuple) -> bool:
    r"""Whether a condition only says of what kind a letter is: k \in \Z."""
    return len(condition) == 3 and condition[1] == "\\in" and condition[2] in ("\\Z", "\\N", "\\R", "\\Q", "\\C")
