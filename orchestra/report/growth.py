"""What the report shows of a panel that grew: its windows, what was tried, and the audit of a controller's labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from orchestra.report.parts import Counts
from orchestra.text import percent, points

if TYPE_CHECKING:
    from orchestra.report.data import Tree


def growth_parts(name: str, found: Tree | None) -> Iterator[Counts]:
    """Tables; nothing where there is no growth.json yet.

    Args:
        name: of the stage; found: what is in its growth.json.
    """
    if not isinstance(found, Mapping):
        return
    if audit := found.get("audit"):
        yield Counts(f"{name}: audit of the controller's labels", {
            "verdict": audit["verdict"],
            "held-out AUC": f"{audit['auc']:.3f}",
            "shuffled, 5th percentile": f"{audit['shuffled_low']:.3f}",
            "shuffled, 95th percentile": f"{audit['shuffled_high']:.3f}",
            "p": f"{audit['p_value']:.3g}",
            "rows": audit["classes"],
        })  # fmt: skip
    if windows := found.get("windows"):
        yield Counts(f"{name}: windows", {
            f"{number}, {window['problems']} problems": {
                "no arm solves": percent(_unsolved(window)),
                "loss": f"{window['loss']:.3f}",
                "routing entropy": f"{window['entropy']:.3f}",
                "effective arms": f"{window['effective']:.2f} of {len(window['load'])}",
                "load": ", ".join(f"{arm} {percent(load)}" for arm, load in window["load"].items()),
            }
            for number, window in enumerate(windows, 1)
        })  # fmt: skip
    if changes := found.get("changes"):
        yield Counts(f"{name}: what was tried", {
            f"after window {change['window']}: {change['action']} {change['expert']}": {
                "done": "yes" if change["kept"] else "no",
                "points on problems set aside": _difference(change["difference"]),
                "why": change["reason"],
            }
            for change in changes
        })  # fmt: skip


def _unsolved(window: Mapping[str, Mapping[str, Mapping[str, int]]]) -> float:
    domains = window["domains"].values()
    known = sum(one["problems"] for one in domains)
    return sum(one["unsolved"] for one in domains) / known if known else 0.0


def _difference(one: Mapping[str, float]) -> str:
    return f"{points(one['difference'])} [{points(one['low'])}, {points(one['high'])}]"
