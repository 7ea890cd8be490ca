"""The charts of a comparison of arms; see `drawing` for how they are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from orchestra.report.drawing import MAIN, MUTED, PAGE, SECOND, figure, row_names, svg, write

LETTER = 0.066  # inches, of an arm's name
LONGEST = 26  # letters of a name that are drawn


@dataclass(frozen=True)
class Effect:
    """A difference of accuracies with its interval, between -1 and 1.

    Fields:
        detectable: the smallest that could have been seen; None where none could.
        resolved: whether it is told from no difference.
    """

    name: str
    difference: float
    low: float
    high: float
    detectable: float | None
    resolved: bool


def forest_chart(key: str, title: str, effects: Sequence[Effect], *, second: bool = False) -> str:
    """Differences in points, a row each, the line of no difference, and around it what could not have been seen.

    Args:
        key: unique on the page.
        title: what assistive technology reads.
        effects: at least one.
        second: in the second colour.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    color, rows = SECOND if second else MAIN, np.arange(len(effects))[::-1]
    panel, (axes,) = figure(height=0.5 + 0.42 * len(effects), left=_left(one.name for one in effects), bottom=0.38,
                            top=0.06)  # fmt: skip
    ends = [x for one in effects for x in (one.low, one.high)]
    # a design that could have seen next to nothing does not make the intervals invisible
    widest = 1.3 * max(abs(x) for x in ends)
    shown = [*ends, *(sign * min(one.detectable or 1.0, widest) for one in effects for sign in (-1, 1))]
    room = max(max(shown) - min(shown), 0.02)
    low, high = min(shown) - 0.06 * room, max(shown) + 0.06 * room
    for row, one in zip(rows, effects, strict=True):
        # what could not have been seen at all is as wide as the panel
        least = one.detectable if one.detectable is not None else 1.0
        band = [max(-least, low), min(least, high)]
        axes.fill_betweenx([row - 0.36, row + 0.36], *band, color=MUTED, alpha=0.16, linewidth=0, zorder=1)
        axes.plot([one.low, one.high], [row, row], color=color, linewidth=2.2, solid_capstyle="round", alpha=0.55)
        face = color if one.resolved else PAGE
        axes.plot(one.difference, row, "o", markersize=5.5, markerfacecolor=face, markeredgecolor=color, zorder=4)
        said = f"{100 * one.difference:+.1f}".replace("-", "−")
        write(axes, 1.0, row, said, transform=axes.get_yaxis_transform(), ha="right", va="center")
    axes.axvline(0, color=MUTED, linewidth=1.1, zorder=2)
    axes.set_ylim(-0.6, len(effects) - 0.4)
    # the words have the right
    axes.set_xlim(low, high + 0.16 * (high - low))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= high])
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * value:+.3g}".replace("-", "−") if value else "0")
    )
    axes.set_xlabel("points", labelpad=1)
    row_names(axes, rows, [one.name for one in effects], LONGEST)
    axes.grid(axis="x")
    return svg(panel, key, title)


def seeds_chart(key: str, title: str, arms: Mapping[str, Mapping[int, float]], *, second: bool = False) -> str:
    """Accuracy of every run, a row per arm: a dot each, their mean, and lines that join runs of the same seed.

    Args:
        arms: by name, at least one, the accuracies by seed.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    color, rows = SECOND if second else MAIN, np.arange(len(arms))[::-1]
    panel, (axes,) = figure(height=0.36 + 0.46 * len(arms), left=_left(arms), bottom=0.25, top=0.06)
    for (row, above), (next_row, below) in pairwise(zip(rows, arms.values(), strict=True)):
        for seed in above.keys() & below.keys():
            axes.plot([above[seed], below[seed]], [row, next_row], color=MUTED, linewidth=0.8, alpha=0.7, zorder=2)
    for row, of in zip(rows, arms.values(), strict=True):
        values = list(of.values())
        axes.plot([np.mean(values)] * 2, [row - 0.24, row + 0.24], color=color, linewidth=2.2, zorder=3)
        axes.plot(values, [row] * len(values), "o", markersize=5, markerfacecolor=PAGE, markeredgecolor=color, zorder=4)
        said = f"{100 * np.mean(values):.1f} %"
        write(axes, 1.0, row, said, transform=axes.get_yaxis_transform(), ha="right", va="center")
    shown = [value for of in arms.values() for value in of.values()]
    room = max(max(shown) - min(shown), 0.02)
    low, high = min(shown) - 0.08 * room, max(shown) + 0.08 * room
    axes.set_ylim(-0.6, len(arms) - 0.4)
    axes.set_xlim(low, high + 0.2 * (high - low))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
    axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    row_names(axes, rows, list(arms), LONGEST)
    axes.grid(axis="x")
    return svg(panel, key, title)


def _left(names: Iterable[str]) -> float:
    """Inches that the longest name takes."""
    return 0.2 + LETTER * min(LONGEST, max(len(name) for name in names))
