"""How the report's charts are drawn: matplotlib as inline SVG whose colours and font come from the page's style sheet.

Colours are drawn as stand-ins (`#000001` ...) and exchanged for CSS variables afterwards, so that one drawing serves
light and dark; text stays text, so that it can be read aloud, searched and copied.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, MAIN, SECOND, BAND, PAGE = (f"#00000{number}" for number in range(1, 8))
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", MAIN: "main", SECOND: "second", BAND: "band", PAGE: "card"}

WIDTH = 4.6  # inches; on the page a chart is as wide as its column

STYLE = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
}


def write(axes: Axes, x: float, y: float, text: str, color: str = INK, fontsize: float = 8, **where: object) -> None:
    """Text at a place: plain, never mathtext."""
    axes.text(x, y, text, color=color, fontsize=fontsize, parse_math=False, **where)


def row_names(axes: Axes, rows: Sequence[float], names: Sequence[str], room: int = 16) -> None:
    """Names of rows, left of the axis, with room for so many letters."""
    axes.set_yticks(rows, [""] * len(names))
    for row, name in zip(rows, names, strict=True):
        write(axes, -0.02, row, short(name, room), transform=axes.get_yaxis_transform(), ha="right", va="center")


def figure(
    height: float, left: float, bottom: float, top: float = 0.2, ratios: tuple[float, ...] = (1,)
) -> tuple[Figure, Sequence[Axes]]:
    """A figure of a chart's width, and its panels from top to bottom; margins in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        made = Figure(figsize=(WIDTH, height), facecolor="none")
        made.subplots_adjust(left=left / WIDTH, right=1 - 0.12 / WIDTH, bottom=bottom / height, top=1 - top / height)
        grid = made.subplots(len(ratios), 1, height_ratios=ratios, gridspec_kw={"hspace": 0.12}, squeeze=False)
        return made, grid[:, 0]


def svg(of: Figure, key: str, title: str) -> str:
    """The figure as an SVG element: no prolog, no metadata, ids of its own, CSS variables for colours."""
    import matplotlib

    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": key}):
        of.savefig(out, format="svg", metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{key}-", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--font)", text)
    for color, name in VARIABLES.items():
        text = text.replace(color, f"var(--{name})")
    # two decimals are a hundredth of a point; only inside attributes, for text has numbers of its own
    text = re.sub(r'="[^"]*"', lambda m: re.sub(r"-?\d+\.\d{3,}", lambda n: f"{float(n[0]):.2f}", m[0]), text)
    text = re.sub(r"\n\s*", "\n", text)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups()
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    return re.sub(r"<svg[^>]*>", lambda m: head, text, count=1)


def short(name: str, room: int) -> str:
    """A name cut to so many letters."""
    return name if len(name) <= room else name[: max(1, room - 1)] + "…"
