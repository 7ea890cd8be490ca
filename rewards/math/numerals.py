"""Numbers as written, and their values: decimals, digits in a base, fractions."""

from __future__ import annotations

from fractions import Fraction

from rewards.math.tokens import Based, Unreadable


def is_number(token) -> bool:
    """Whether a token is a number written in digits."""
    return token.__class__ is Fraction or (token.__class__ is str and (token[0].isdigit() or token[0] == "."))


def shown_places(token: str) -> int:
    """Decimal places of a number as written: 2 of 0.50, 4 of 1.25e-2."""
    mantissa, _, exponent = token.lower().partition("e")
    return len(mantissa.partition(".")[2]) - int(exponent or 0)


def fraction_of(token) -> Fraction:
    """The value of a token that is a number."""
    return token if token.__class__ is Fraction else Fraction(token)


def based_value(token: Based) -> Fraction:
    """The number that digits in a base stand for."""
    if not 2 <= token.base <= 36:
        raise Unreadable("no such base")
    try:
        return Fraction(int(token.digits, token.base))
    except ValueError as error:
        raise Unreadable("digits beyond the base") from error


def plain_fraction(node: tuple) -> Fraction | None:
    """The value of a number, or of one number over another; None for every other node."""
    if node[0] == "n":
        return node[1]
    if node[0] == "/" and node[1][0] == "n" and node[2][0] == "n" and node[2][1]:
        return node[1][1] / node[2][1]
    return None
