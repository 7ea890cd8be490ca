"""What a kind of stage may add to the report: courses of its metrics, charts, tables of counts, tiles at the top."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestra.report.data import StageRecord


@dataclass(frozen=True)
class Course:
    """A step metric drawn over the steps, if the stage has it.

    Fields:
        key: in metrics.jsonl.
        title, note: above the chart; the note says the unit.
        share: whether the values are shares, to be written in per cent.
        joined: in one chart with the same course of other stages, one behind the other; else in a chart of its own.
    """

    key: str
    title: str
    note: str
    share: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Counts:
    """Numbers by name, nested, as a table with bars."""

    title: str
    tree: Mapping[str, object]


@dataclass(frozen=True)
class Chart:
    """A drawing with what stands around it."""

    title: str
    note: str
    svg: str


@dataclass(frozen=True)
class Tile:
    """A number for the top of the page, and what it is."""

    value: str
    text: str


@dataclass(frozen=True)
class Notice:
    """A warning, for the top of the page."""

    title: str
    text: str


Part = Course | Counts | Chart | Notice


def tile_of_gain(what: str, before: StageRecord, after: StageRecord) -> Iterator[Tile]:
    """What `what` added from one evaluated stage to another, paired; nothing where the problems differ."""
    from orchestra.report.data import compared
    from orchestra.text import p_value, points

    difference = compared(after, before)
    if difference is not None:
        text = f"points by {what}: {before.name} to {after.name}, {p_value(difference.p_value)}"
        yield Tile(points(difference.difference), text)
