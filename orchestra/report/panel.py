"""What the report shows of a panel of experts: what the router wins, who is asked what, and the numbers of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from evals.panel import PanelEvaluation
from orchestra.report.charts import Point
from orchestra.report.panel_charts import MapRow, WayRow, panel_map, ways_chart
from orchestra.report.parts import Chart, Counts
from orchestra.text import p_value, percent, points
from orchestra.work.settings import PANEL_EVALUATION

if TYPE_CHECKING:
    from evals.panel import Way
    from evals.statistics import PairedDifference
    from orchestra.report.data import StageRecord


def routed_parts(record: StageRecord) -> Iterator[Chart | Counts]:
    """All of a stage that routes: what its panel is built of, and what the router wins there."""
    yield from structure_parts(record)
    if (found := record.outputs.get(PANEL_EVALUATION)) is not None:
        yield from panel_parts(record.name, PanelEvaluation.from_tree(found))


def panel_parts(name: str, found: PanelEvaluation) -> Iterator[Chart | Counts]:
    """Two charts and a table.

    Args:
        name: of the stage that evaluated the panel.
    """
    arms = [arm.name for arm in found.arms]
    yield Chart(
        f"{name}: who should answer",
        f"accuracy on {found.problems:,} problems, with intervals; chosen on one draw, scored on another",
        ways_chart(f"{name}-ways", f"Accuracy of {name} under each way of choosing who answers",
                   [_way_row(way, found) for way in found.ways]),
    )  # fmt: skip
    # the base is an arm like the others here: the frame is the task oracle's choice
    rows = [MapRow(one.name, one.problems, one.accuracy, one.load, arms.index(one.oracle)) for one in found.domains]
    whole = MapRow(
        "all", found.problems, [arm.accuracy.estimate for arm in found.arms], [arm.load for arm in found.arms]
    )
    yield Chart(
        f"{name}: domains and arms",
        "accuracy, and → the share of the domain's problems routed there; framed: best on the other draw",
        panel_map(f"{name}-map", f"Accuracy of each arm of {name} in each domain, and what is routed to it", arms,
                  [*rows, whole]),
    )  # fmt: skip
    yield Counts(f"Panel of {name}", {
        "accuracy": {_named(way, found): _accuracy(way) for way in found.ways},
        "the router is ahead by, in points": {
            _named(way, found): _difference(way.routed_minus) for way in found.ways if way.routed_minus is not None
        },
        "oracle gap, in points": _difference(found.gap),
        "share recovered of what the oracle adds to the best single expert": _recovered(found),
        "load": {arm.name: percent(arm.load) for arm in found.arms},
        "routing entropy (0 decided, 1 undecided)": f"{found.entropy:.3f}",
        "effective number of experts": f"{found.effective_experts:.2f} of {len(arms)}",
    })  # fmt: skip


def structure_parts(record: StageRecord) -> Iterator[Counts]:
    """What the panel that a stage gives is built of; nothing where it gives none, or is not finished."""
    told = record.result.extra if record.result is not None else {}
    if "structure" not in told:
        return
    since = told.get("structure_since")
    yield Counts(f"{record.name}: what its panel is built of", {
        "base": told["panel_base"],
        "experts": told["experts"],
        "structure (base, ranks, alphas, targets and the router's arms)": told["structure"],
        "compared with earlier stages": f"the same as in {since}" if since else "new",
    })  # fmt: skip


def said(found: PanelEvaluation) -> str:
    """One line for the terminal."""
    routed, single = found.way("routed"), found.way("best single")
    return (
        f"routed {percent(routed.accuracy.estimate)}, {points(single.routed_minus.difference)} points to "
        f"{found.best_single}, the best single expert; oracle gap {points(found.gap.difference)}"
    )


def _way_row(way: Way, found: PanelEvaluation) -> WayRow:
    one, ahead = way.accuracy, way.routed_minus
    interval = "" if ahead is None else f"{points(ahead.difference)} [{points(ahead.low)}, {points(ahead.high)}]"
    return WayRow(way.choice, Point(one.estimate, one.low, one.high), interval, routed=ahead is None)


def _named(way: Way, found: PanelEvaluation) -> str:
    return f"{way.choice} ({found.best_single})" if way.choice == "best single" else way.choice


def _accuracy(way: Way) -> str:
    one = way.accuracy
    return f"{percent(one.estimate)} [{100 * one.low:.1f}, {100 * one.high:.1f}]"


def _difference(one: PairedDifference) -> str:
    return f"{points(one.difference)} [{points(one.low)}, {points(one.high)}], {p_value(one.p_value)}"


def _recovered(found: PanelEvaluation) -> str:
    one = found.recovered
    if one.share is None:
        return f"unknown: {one.unknown}"
    return f"{percent(one.share, 0)} [{100 * one.low:.0f}, {100 * one.high:.0f}]".replace("-", "−")
