"""The chart of a panel that grows: what each window said of it, who was asked, and when something was tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestra.report.drawing import MAIN, MUTED, SECOND, WIDTH, figure, short, svg, write

LEFT = 1.3  # inches for the names of rows
PALEST, DARKEST = 0.04, 0.55  # of a cell: words stay readable on it, in light and dark
WIDE = 0.2  # inches that a cell needs for per cent
LONGEST = 18  # letters of a name that are drawn


@dataclass(frozen=True)
class WindowRow:
    """A share between 0 and 1 in each window; None where there was none, of an arm that was not there.

    Fields:
        load: whether it is an arm's share of the problems, drawn apart from what is said of all.
    """

    name: str
    values: Sequence[float | None]
    load: bool = False


def window_map(key: str, title: str, rows: Sequence[WindowRow], marks: Mapping[int, Sequence[tuple[str, bool]]]) -> str:
    """Rows x windows, each share written in its cell, where that is wide enough, and as its shade.

    Args:
        marks: by window (1 is the first), what was tried behind it: a sign, and whether it was kept.
    """
    from matplotlib.patches import Rectangle

    windows = len(rows[0].values)
    width = (WIDTH - LEFT - 0.12) / windows
    panel, (axes,) = figure(height=0.5 + 0.24 * (len(rows) + 1), left=LEFT, bottom=0.06, top=0.22)
    gap = 0.35  # between what is said of all and the arms' loads
    places = np.arange(len(rows), dtype=float)[::-1]
    places[[not row.load for row in rows]] += gap
    for y, row in zip(places, rows, strict=True):
        for x, value in enumerate(row.values):
            if value is None:
                continue
            shade, color = PALEST + (DARKEST - PALEST) * min(value, 1.0), MAIN if row.load else SECOND
            axes.add_patch(Rectangle((x + 0.03, y - 0.46), 0.94, 0.92, facecolor=color, alpha=shade, linewidth=0))
            if width >= WIDE:
                write(axes, x + 0.5, y, f"{100 * value:.0f}", fontsize=7, ha="center", va="center")
        write(axes, -0.02, y, short(row.name, LONGEST), transform=axes.get_yaxis_transform(), ha="right", va="center")
    top = places[0] + 0.5
    for x in range(windows):
        if width >= WIDE or (x + 1) % 10 == 0:
            write(axes, x + 0.5, top + 0.3, str(x + 1), MUTED, 7, ha="center", va="center")
        for sign, kept in marks.get(x + 1, ()):
            # behind the window, on its edge
            axes.plot([x + 1, x + 1], [-0.5, top], color=SECOND if kept else MUTED, linewidth=1.1, clip_on=False)
            color = SECOND if kept else MUTED
            write(axes, x + 1, top + 0.95, sign, color, 8, ha="center", va="center", clip_on=False)
    write(axes, -0.02, top + 0.3, "window", MUTED, 7, transform=axes.get_yaxis_transform(), ha="right", va="center")
    axes.set_xlim(0, windows)
    axes.set_ylim(-0.5, top + 1.2)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines.bottom.set_visible(False)
    return svg(panel, key, title)
