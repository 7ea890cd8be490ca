"""Charts of a stage that was asked on its way: accuracy with its interval, and two lines, over some of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestra.report.charts import Point
from orchestra.report.drawing import MAIN, PAGE, SECOND, WIDTH, figure, svg, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def sweep_chart(
    key: str, title: str, steps: Sequence[float], points: Sequence[Point], kept: float | None = None
) -> str:
    """Accuracy with its interval at some steps of one stage; the step that is kept is filled and written out."""
    from matplotlib.ticker import PercentFormatter

    made, axes = _over_steps(steps)
    axes.plot(steps, [point.value for point in points], color=MAIN, linewidth=1.2, alpha=0.5)
    for step, point in zip(steps, points, strict=True):
        chosen = step == kept
        axes.plot([step, step], [point.low, point.high], color=MAIN, linewidth=2.2, solid_capstyle="round", alpha=0.35)
        face = MAIN if chosen else PAGE
        axes.plot(step, point.value, "o", markersize=5, markerfacecolor=face, markeredgecolor=MAIN, zorder=3)
        if chosen:
            write(axes, step, point.high, f"{100 * point.value:.1f} %", ha="center", va="bottom")
    axes.margins(y=0.12)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return svg(made, key, title)


def lines_chart(key: str, title: str, steps: Sequence[float], lines: Mapping[str, Sequence[float]]) -> str:
    """Two lines over some steps of one stage, each with its name at its end, the upper one's above the lower one's."""
    made, axes = _over_steps(steps, right=0.75)
    for values, color in zip(lines.values(), (SECOND, MAIN), strict=True):
        axes.plot(steps, values, color=color, linewidth=1.5, marker="o", markersize=4)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    lower, upper = sorted(
        (values[-1], color, name) for (name, values), color in zip(lines.items(), (SECOND, MAIN), strict=True)
    )
    # of the height, so that two names never touch
    missing = max(0.0, 0.09 - (upper[0] - lower[0]) / (high - low)) * (high - low)
    for (value, color, name), shift in ((lower, -missing / 2), (upper, missing / 2)):
        write(axes, 1.02, value + shift, name, color=color, transform=axes.get_yaxis_transform(), va="center")
    return svg(made, key, title)


def _over_steps(steps: Sequence[float], right: float = 0.0) -> tuple[Figure, Axes]:
    """Axes of one stage, `right` inches of room for words."""
    from matplotlib.ticker import MaxNLocator

    made, (axes,) = figure(height=2.4, left=0.5, bottom=0.34)
    if right:
        made.subplots_adjust(right=1 - right / WIDTH)
    axes.grid(axis="y")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("step", labelpad=1)
    axes.set_xlim(0, 1.05 * steps[-1])
    return made, axes
