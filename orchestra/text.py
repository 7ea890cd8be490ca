"""Values as people read them, on the terminal and in the report: the one set of formatters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.experts import RemovalRecord

TEXT_LIMIT = 2_400  # characters shown of a question or completion
NBSP = "\u00a0"


def percent(value: float | None, digits: int = 1) -> str:
    """0.4215 -> 42.1 %."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}{NBSP}%"


def points(value: float | None) -> str:
    """0.0132 -> +1.3, in percentage points."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:+.1f}".replace("-", "−")


def p_value(value: float | None) -> str:
    """What a p-value says at the precision it has."""
    if value is None or math.isnan(value):
        return "–"
    text = "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"
    return text.replace(" ", NBSP)


def clock(seconds: float) -> str:
    """`65` -> `1:05`, `3725` -> `1:02:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s" if seconds >= 10 else f"{seconds:.1f} s"


def number(value: object, digits: int = 4) -> str:
    """Any value of a table: whole numbers with thin spaces, others with so many significant digits."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return readable(value)
    if not math.isfinite(value):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace(",", "\u202f").replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def compact(count: float) -> str:
    """310220 -> 310k."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return number(count)


def gib(size: float | None) -> str:
    """Bytes as GiB."""
    return "–" if size is None else f"{size / 2**30:.1f}{NBSP}GiB"


def size(count: float) -> str:
    """Bytes in the unit in which they are few: 4.6 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def removal_line(name: str, cost: RemovalRecord) -> str:
    """What the removal of an expert is predicted to cost."""
    interval = f"[{points(cost.low)}, {points(cost.high)}]"
    return f"without {name} (load {cost.load:.0%}): {points(cost.difference)} points {interval} predicted"


def readable(text: object) -> str:
    """Text without the control characters that HTML cannot hold."""
    return "".join(char if char >= " " or char in "\n\t" else "\ufffd" for char in str(text))


def shortened(text: str) -> str:
    """At most TEXT_LIMIT characters: the beginning and the end, where the answer is."""
    if len(text) <= TEXT_LIMIT:
        return text
    head, tail = 2 * TEXT_LIMIT // 3, TEXT_LIMIT // 3
    return f"{text[:head]}\n[... {len(text) - head - tail:,} characters left out ...]\n{text[-tail:]}"


def total(values: Iterable[float | None]) -> float:
    """The sum of those that are there."""
    return sum(value for value in values if value is not None)


FILTERS: dict[str, Callable[..., object]] = {
    "percent": percent,
    "points": points,
    "p_value": p_value,
    "duration": duration,
    "compact": compact,
    "gib": gib,
    "number": number,
    "readable": readable,
    "shortened": shortened,
    "total": total,
}
