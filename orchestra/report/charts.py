"""The charts of a run's report; see `drawing` for how they are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orchestra.report.drawing import MAIN, MUTED, PAGE, SECOND
from orchestra.report.drawing import figure as _figure
from orchestra.report.drawing import row_names as _row_names
from orchestra.report.drawing import short as _short
from orchestra.report.drawing import svg as _svg
from orchestra.report.drawing import write as _text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 320  # drawn per line; more cannot be told apart


@dataclass(frozen=True)
class Point:
    """A value with its interval; of an accuracy all are between 0 and 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Movement:
    """A number before and after, and the interval of after minus before; None where nothing is known of it."""

    name: str
    before: float
    after: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Segment:
    """The steps of one grpo stage, on a step axis that runs through all of them.

    Fields:
        name: the stage.
        first, last: global steps.
        steps_N, values_N: one metric; nan where a step lacks it.
        beta_N: the KL penalty's weight at those steps.
    """

    name: str
    first: float
    last: float
    steps_N: np.ndarray
    values_N: np.ndarray
    beta_N: np.ndarray


def accuracy_chart(names: Sequence[str], sampled: Sequence[Point | None], greedy: Sequence[Point | None]) -> str:
    """Accuracy per stage, a row each, sampled above greedy, with their intervals."""
    from matplotlib.ticker import PercentFormatter

    rows = np.arange(len(names))[::-1]
    figure, (axes,) = _figure(height=0.36 + 0.38 * len(names), left=1.05, bottom=0.25, top=0.06)
    axes.set_ylim(-0.6, len(names) - 0.4)
    for points, shift, color, filled in ((sampled, 0.13, MAIN, True), (greedy, -0.15, SECOND, False)):
        for row, point in zip(rows, points, strict=True):
            if point is None:
                continue
            y = row + shift
            axes.plot([point.low, point.high], [y, y], color=color, linewidth=2.2, solid_capstyle="round", alpha=0.45)
            face = color if filled else PAGE
            axes.plot(point.value, y, "o", ms=5, markerfacecolor=face, markeredgecolor=color, zorder=3, clip_on=False)
            if filled:
                _text(axes, point.high + 0.012, y, f"{100 * point.value:.1f} %", va="center")
    shown = [point for point in (*sampled, *greedy) if point is not None]
    top = max((point.high for point in shown), default=1.0)
    axes.set_xlim(max(0.0, min((point.low for point in shown), default=0.0) - 0.05), min(1.12, top + 0.12))
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= 1 and tick <= top + 0.12])
    _row_names(axes, rows, names)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="x")
    return _svg(figure, "accuracy", "Accuracy per stage with intervals, sampled and greedy")


def perplexity_chart(
    key: str, title: str, names: Sequence[str], points: Sequence[Point | None], marked: Sequence[bool]
) -> str:
    """Perplexity of one source of text, a row for each stage, with intervals.

    Args:
        marked: stages in which accuracy fell as well.
    """
    rows = np.arange(len(names))[::-1]
    figure, (axes,) = _figure(height=0.36 + 0.38 * len(names), left=1.05, bottom=0.25, top=0.06)
    axes.set_ylim(-0.6, len(names) - 0.4)
    for y, point, fell in zip(rows, points, marked, strict=True):
        if point is None:
            continue
        color = SECOND if fell else MAIN
        axes.plot([point.low, point.high], [y, y], color=color, linewidth=2.2, solid_capstyle="round", alpha=0.45)
        axes.plot(point.value, y, "o", markersize=5, color=color, zorder=3, clip_on=False)
        said = f"{point.value:.3g}{' ⚠' if fell else ''}"
        _text(axes, point.high, y, f"  {said}", va="center")
    shown = [point for point in points if point is not None]
    low, high = min(point.low for point in shown), max(point.high for point in shown)
    # policies before and after training may be far apart
    if low > 0 and high > 4 * low:
        axes.set_xscale("log")
        room = (high / low) ** 0.12
        axes.set_xlim(low / room, high * room**1.6)
    else:
        room = 0.12 * ((high - low) or high or 1.0)
        axes.set_xlim(low - room, high + 1.6 * room)
    _few_ticks(axes)
    _row_names(axes, rows, names)
    axes.grid(axis="x")
    return _svg(figure, key, title)


def domain_chart(names: Sequence[str], before: Sequence[float], after: Sequence[float]) -> str:
    """Accuracy per domain, before and after, a row each."""
    from matplotlib.ticker import PercentFormatter

    rows = np.arange(len(names))[::-1]
    figure, (axes,) = _figure(height=0.36 + 0.38 * len(names), left=1.05, bottom=0.25, top=0.06)
    axes.set_ylim(-0.6, len(names) - 0.4)
    for row, low, high in zip(rows, before, after, strict=True):
        axes.plot([low, high], [row, row], color=MAIN, linewidth=2.2, alpha=0.35)
        axes.plot(low, row, "o", markersize=5, markerfacecolor=PAGE, markeredgecolor=MUTED, zorder=3)
        axes.plot(high, row, "o", markersize=5, color=MAIN, zorder=4)
        _text(axes, max(low, high) + 0.025, row, f"{100 * (high - low):+.0f}".replace("-", "−"), va="center")
    axes.set_xlim(-0.02, 1.12)
    axes.set_xticks(np.linspace(0, 1, 5))
    _row_names(axes, rows, names)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(axis="x")
    return _svg(figure, "domains", "Accuracy per domain, of the base and of the final policy")


def movement_chart(key: str, title: str, rows: Sequence[Movement]) -> str:
    """A number before (hollow) and after (filled), a row each, with the difference and its interval in words.

    The bar around the filled dot is the interval of the difference, so where it covers the hollow dot nothing is known.
    """
    from matplotlib.ticker import MaxNLocator

    places = np.arange(len(rows))[::-1]
    figure, (axes,) = _figure(height=0.36 + 0.38 * len(rows), left=1.05, bottom=0.25, top=0.06)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    for y, row in zip(places, rows, strict=True):
        axes.plot([row.before, row.after], [y, y], color=MAIN, linewidth=0.8, alpha=0.5)
        said = f"{row.after - row.before:+.2g}"
        if row.low is not None and row.high is not None:
            ends = [row.before + row.low, row.before + row.high]
            axes.plot(ends, [y, y], color=MAIN, linewidth=2.2, solid_capstyle="round", alpha=0.35)
            said += f" [{row.low:+.2g}, {row.high:+.2g}]"
        axes.plot(row.before, y, "o", markersize=5, markerfacecolor=PAGE, markeredgecolor=MUTED, zorder=3)
        axes.plot(row.after, y, "o", markersize=4, color=MAIN, zorder=4)
        _text(axes, 0.995, y, said.replace("-", "−"), transform=axes.get_yaxis_transform(), ha="right", va="center")
    shown = [
        x for row in rows for x in (row.before, row.after, row.before + (row.low or 0), row.before + (row.high or 0))
    ]
    low, high = min(shown), max(shown)
    room = (high - low) or abs(high) or 1.0
    # the words have the right half
    axes.set_xlim(low - 0.05 * room, high + 1.2 * room)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_xticks([tick for tick in axes.get_xticks() if low - 0.05 * room <= tick <= high + 0.05 * room])
    _row_names(axes, places, [row.name for row in rows])
    axes.grid(axis="x")
    return _svg(figure, key, title)


def course_chart(key: str, title: str, segments: Sequence[Segment], *, share: bool = False) -> str:
    """A metric over the steps of all grpo stages, their boundaries, and beta as a step line below.

    Args:
        key: unique on the page.
        title: what assistive technology reads.
        segments: the stages in order.
        share: whether the values are shares, to be written in per cent.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure, (axes, strip) = _figure(height=2.4, left=0.5, bottom=0.34, ratios=(4.4, 1))
    span = _span(segments)
    for number, segment in enumerate(segments):
        for panel in (axes, strip):
            if number:
                panel.axvline(segment.first - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
        _line(axes, segment.steps_N, segment.values_N)
        room = int(60 * (segment.last - segment.first + 1) / span)
        if room >= 3:
            at = axes.get_xaxis_transform()
            _text(
                axes,
                segment.first + 0.008 * span,
                1.03,
                _short(segment.name, room),
                color=MUTED,
                fontsize=7.5,
                transform=at,
            )
    _beta(strip, segments)
    for panel in (axes, strip):
        panel.set_xlim(segments[0].first - 0.5, max(segments[-1].last, segments[0].first + 1) + 0.5)
    axes.grid(axis="y")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    if share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]) if axes.get_ylim()[0] < 0.05 else None)
    axes.tick_params(labelbottom=False)
    axes.spines.bottom.set_visible(False)
    strip.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    strip.set_xlabel("step", labelpad=1)
    return _svg(figure, key, title)


def loss_chart(key: str, title: str, steps_N: np.ndarray, values_N: np.ndarray) -> str:
    """One line over the steps of one stage."""
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = _figure(height=2.4, left=0.5, bottom=0.34)
    _line(axes, steps_N, values_N)
    axes.grid(axis="y")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("step", labelpad=1)
    return _svg(figure, key, title)


def _few_ticks(axes: Axes) -> None:
    """Plain numbers below, also on a logarithmic scale."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    if axes.get_xscale() == "log":
        low, high = axes.get_xlim()
        # over several powers of ten there is room for some of these alone
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,), numticks=6))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _line(axes: Axes, steps_N: np.ndarray, values_N: np.ndarray) -> None:
    """The values, thin, and their running mean over a tenth of the steps."""
    from scipy.ndimage import uniform_filter1d

    known_N = np.isfinite(values_N)
    steps_N, values_N = steps_N[known_N], values_N[known_N]
    if not len(steps_N):
        return
    window = max(1, round(len(steps_N) / 10))
    smooth_N = uniform_filter1d(values_N, window, mode="nearest")
    shown_N = np.unique(np.linspace(0, len(steps_N) - 1, min(POINTS, len(steps_N))).astype(int))
    marker = "o" if len(steps_N) == 1 else ""
    if window > 1:
        axes.plot(steps_N[shown_N], values_N[shown_N], color=MAIN, linewidth=0.8, alpha=0.35)
    axes.plot(steps_N[shown_N], smooth_N[shown_N], color=MAIN, linewidth=1.7, marker=marker, markersize=3)


def _beta(strip: Axes, segments: Sequence[Segment]) -> None:
    """beta as a step line, on a scale that shows 0, 0.001 and 0.01 apart, its values written out."""
    steps_N = np.concatenate([[*segment.steps_N, segment.last + 1] for segment in segments]) - 0.5
    beta_N = np.concatenate([[*segment.beta_N, segment.beta_N[-1]] for segment in segments])
    positive_N = beta_N[beta_N > 0]
    smallest = float(positive_N.min()) if len(positive_N) else 1.0
    height_N = np.where(beta_N > 0, 1 + np.log10(np.maximum(beta_N, smallest) / smallest), 0.0)
    strip.fill_between(steps_N, height_N, step="post", color=SECOND, alpha=0.22, linewidth=0)
    strip.step(steps_N, height_N, where="post", color=SECOND, linewidth=1.4)
    top = max(float(height_N.max()), 1.0)
    strip.set_ylim(-0.08 * top, top * 1.9)
    strip.set_yticks([])
    span, told = _span(segments), ""
    for segment in segments:
        label = f"β {segment.beta_N[0]:g}"
        room = int(64 * (segment.last - segment.first + 1) / span)
        if label == told or room < len(label):
            continue
        told = label
        _text(
            strip,
            segment.first + 0.008 * span,
            top * 1.88,
            f"β {segment.beta_N[0]:g}",
            va="top",
            color=SECOND,
            fontsize=7.5,
        )


def _span(segments: Sequence[Segment]) -> float:
    return max(segments[-1].last - segments[0].first, 1.0)
