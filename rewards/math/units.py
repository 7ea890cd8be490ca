"""Units that answers carry: which words are units, and what one is in another."""

from __future__ import annotations

import re
from fractions import Fraction

# dimension -> spelling -> how many of the first unit
_TABLE = {
    "length": "m meter meters metre metres:1 km kilometer kilometers kilometre kilometres:1000 "
    "cm centimeter centimeters centimetre centimetres:1/100"
    " mm millimeter millimeters:1/1000 ft foot feet:381/1250 in inch inches:127/5000 "
    "yd yard yards:1143/1250 mi mile miles:201168/125",
    "time": "s sec secs second seconds:1 min mins minute minutes:60 h hr hrs hour hours:3600 day days:86400 "
    "week weeks:604800 ms millisecond milliseconds:1/1000",
    "years": "year years yr yrs:1 month months:1/12 decade decades:10 century centuries:100",
    "mass": "g gram grams:1 kg kilogram kilograms:1000 mg milligram milligrams:1/1000 ton tons tonne tonnes:1000000",
    "pounds": "lb lbs pound pounds:1 oz ounce ounces:1/16",
    "volume": "L l liter liters litre litres:1 mL ml milliliter milliliters:1/1000",
    "gallons": "gallon gallons gal:1 quart quarts:1/4 pint pints:1/8 cup cups:1/16",
    "money": "dollar dollars usd:1 cent cents:1/100",
    "energy": "J joule joules:1 kJ:1000",
    "force": "N newton newtons:1",
    "power": "W watt watts:1 kW:1000",
    "voltage": "V volt volts:1",
    "current": "A ampere amperes amps:1",
    "speed": "mph:1",
    "angle": "rad radian radians:1",
}
_SIZES: dict[str, tuple[str, Fraction]] = {}
for _dimension, _text in _TABLE.items():
    for _match in re.finditer(r"((?:[A-Za-z]+ ?)+):([\d/]+)", _text):
        for _name in _match.group(1).split():
            _SIZES[_name] = (_dimension, Fraction(_match.group(2)))


def is_unit(words: str) -> bool:
    """Whether words are a unit of the table, with its power or not."""
    return _factored(words) is not None


def convert(one: str, two: str) -> Fraction | None:
    """How many ``two`` make ``one``; 1 when either is not a known unit, None when they measure different things."""
    first, second = _factored(one), _factored(two)
    if first is None or second is None:
        return Fraction(1)
    return first[1] / second[1] if first[0] == second[0] else None


def _factored(words: str) -> tuple[tuple, Fraction] | None:
    """Dimensions with their powers, and the size, of words such as "square feet", "cm ^ 2", "km / h"."""
    words = words.strip(" .")
    words = re.sub(r"[{}()]", " ", words)
    powers: dict[str, int] = {}
    size = Fraction(1)
    sign = 1
    wide = 1
    pieces = re.findall(r"[A-Za-z]+|\^|\d+|/|-", words)
    index = 0
    while index < len(pieces):
        piece = pieces[index]
        lower = piece.lower()
        if piece == "/" or lower == "per":
            sign = -1
        elif lower in ("square", "sq", "squared"):
            wide = 2
        elif lower in ("cubic", "cu", "cubed"):
            wide = 3
        elif piece in ("-", "cdot"):
            pass
        else:
            known = _SIZES.get(piece) or _SIZES.get(lower)
            if known is None:
                return None
            power = wide
            if pieces[index + 1 : index + 2] == ["^"] and index + 2 < len(pieces) and pieces[index + 2].isdigit():
                power, index = int(pieces[index + 2]), index + 2
            elif pieces[index + 1 : index + 2] and pieces[index + 1].lower() in ("squared", "cubed"):
                power, index = (2 if pieces[index + 1].lower() == "squared" else 3), index + 1
            if power > 6:
                return None
            powers[known[0]] = powers.get(known[0], 0) + sign * power
            size *= known[1] ** (sign * power)
            wide = 1
        index += 1
    return (tuple(sorted(powers.items())), size) if powers else None
