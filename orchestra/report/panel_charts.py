"""The charts of a panel of experts: accuracy under each way of choosing who answers, and a map of domains x arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestra.report.arm_charts import LETTER
from orchestra.report.charts import Point
from orchestra.report.drawing import INK, MAIN, MUTED, PAGE, SECOND, WIDTH, figure, row_names, short, svg, write

LEFT = 1.3  # inches for the names of domains
PALEST, DARKEST = 0.04, 0.5  # of a cell: words stay readable on it, in light and dark
LONGEST = 18  # letters of an arm's name that are drawn
WIDE = 0.5  # inches that a cell needs for per cent with a decimal


@dataclass(frozen=True)
class WayRow:
    """A way of choosing: its accuracy, and in words what the router is ahead of it."""

    name: str
    accuracy: Point
    ahead: str
    routed: bool = False


@dataclass(frozen=True)
class MapRow:
    """A domain (or all of them): accuracy and load of each arm, between 0 and 1; None where nothing was graded.

    Fields:
        best: the arm that is marked; None for none.
    """

    name: str
    problems: int
    accuracy: Sequence[float | None]
    load: Sequence[float]
    best: int | None = None


def ways_chart(key: str, title: str, rows: Sequence[WayRow]) -> str:
    """Accuracy with its interval, a row each, the router's filled, and how far the router is ahead of each."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    places = np.arange(len(rows))[::-1]
    panel, (axes,) = figure(height=0.5 + 0.34 * len(rows), left=1.05, bottom=0.25, top=0.24)
    for y, row in zip(places, rows, strict=True):
        color, point = SECOND if row.routed else MAIN, row.accuracy
        axes.plot([point.low, point.high], [y, y], color=color, linewidth=2.2, solid_capstyle="round", alpha=0.45)
        face = color if row.routed else PAGE
        axes.plot(point.value, y, "o", markersize=5, markerfacecolor=face, markeredgecolor=color, zorder=3)
        for x, said in ((0.59, f"{100 * point.value:.1f} %"), (1.0, row.ahead)):
            write(axes, x, y, said, transform=axes.get_yaxis_transform(), ha="right", va="center")
    for x, said in ((0.59, "accuracy"), (1.0, "router ahead by")):
        write(axes, x, len(rows) - 0.35, said, MUTED, 7.5, transform=axes.get_yaxis_transform(), ha="right")
    low, high = min(row.accuracy.low for row in rows), max(row.accuracy.high for row in rows)
    room = max(high - low, 0.02)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    # the words have the right half
    axes.set_xlim(low - 0.05 * room, high + 1.45 * room)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.set_xticks([tick for tick in axes.get_xticks() if low - 0.05 * room <= tick <= high + 0.05 * room])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    row_names(axes, places, [row.name for row in rows])
    axes.grid(axis="x")
    return svg(panel, key, title)


def panel_map(key: str, title: str, arms: Sequence[str], rows: Sequence[MapRow]) -> str:
    """Domains x arms: accuracy written in each cell and as its shade (of one colour, darker is better), below it the
    share of the domain's problems that are routed there; the marked arm of a row has a frame."""
    from matplotlib.patches import Rectangle

    width = (WIDTH - LEFT - 0.12) / len(arms)
    room = int(width / LETTER)
    # names that are longer than a cell is wide stand upright
    letters = max(len(short(arm, LONGEST)) for arm in arms)
    top = 0.26 if letters <= room else 0.16 + LETTER * letters
    panel, (axes,) = figure(height=0.04 + top + 0.4 * len(rows), left=LEFT, bottom=0.04, top=top)
    known = [value for row in rows for value in row.accuracy if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    digits, unit = (1, " %") if width >= WIDE else (0, "")
    for y, row in zip(np.arange(len(rows))[::-1], rows, strict=True):
        for x, (value, load) in enumerate(zip(row.accuracy, row.load, strict=True)):
            shade = 0.0 if value is None else PALEST + (DARKEST - PALEST) * (value - low) / ((high - low) or 1.0)
            axes.add_patch(Rectangle((x + 0.03, y - 0.46), 0.94, 0.92, facecolor=MAIN, alpha=shade, linewidth=0))
            said = "–" if value is None else f"{100 * value:.{digits}f}{unit}"
            write(axes, x + 0.5, y + 0.14, said, ha="center", va="center")
            write(
                axes,
                x + 0.5,
                y - 0.24,
                f"→ {100 * load:.0f}{unit}",
                INK if load else MUTED,
                6.5,
                ha="center",
                va="center",
            )
            if x == row.best:
                axes.add_patch(Rectangle((x + 0.03, y - 0.46), 0.94, 0.92, fill=False, edgecolor=SECOND, linewidth=1.4))
        for shift, said, color, size in (
            (0.14, short(row.name, 18), INK, 8),
            (-0.24, f"n = {row.problems:,}", MUTED, 6.5),
        ):
            write(
                axes, -0.02, y + shift, said, color, size, transform=axes.get_yaxis_transform(), ha="right", va="center"
            )
    for x, name in enumerate(arms):
        upright = 0 if letters <= room else 90
        write(axes, x + 0.5, len(rows) - 0.4, short(name, LONGEST), ha="center", va="bottom", rotation=upright)
    axes.set_xlim(0, len(arms))
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines.bottom.set_visible(False)
    return svg(panel, key, title)
