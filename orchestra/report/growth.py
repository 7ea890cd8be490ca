"""What the report shows of a panel that grew: its windows, what was tried, and the audit of a controller's labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from orchestra.report.growth_charts import WindowRow, window_map
from orchestra.report.parts import Chart, Counts
from orchestra.text import points

if TYPE_CHECKING:
    from orchestra.report.data import Tree

    Window = Mapping[str, Mapping[str, Mapping[str, int]]]


def growth_parts(name: str, found: Tree | None) -> Iterator[Chart | Counts]:
    """A chart and tables; nothing where there is no growth.json yet.

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
    changes = found.get("changes") or ()
    if windows := found.get("windows"):
        title = f"{name}: windows"
        note = (
            "Per cent of the problems that no arm solves, loss and routing entropy (0 decided, 100 undecided); below, "
            "whom the problems are routed to. + and −: an expert was tried, or its removal; grey where it was not done."
        )
        yield Chart(title, note, window_map(f"windows-{name}", title, list(_rows(windows)), _marks(changes)))
    if changes:
        yield Counts(f"{name}: what was tried", {
            f"after window {change['window']}: {change['action']} {change['expert']}": {
                "done": "yes" if change["kept"] else "no",
                "points on problems set aside": _difference(change["difference"]),
                "why": change["reason"],
            }
            for change in changes
        })  # fmt: skip


def _rows(windows: Sequence[Window]) -> Iterator[WindowRow]:
    yield WindowRow("no arm solves", [_unsolved(one) for one in windows])
    yield WindowRow("loss", [one["loss"] for one in windows])
    yield WindowRow("routing entropy", [one["entropy"] for one in windows])
    for arm in dict.fromkeys(arm for one in windows for arm in one["load"]):
        yield WindowRow(arm, [one["load"].get(arm) for one in windows], load=True)


def _marks(changes: Sequence[Mapping[str, object]]) -> dict[int, list[tuple[str, bool]]]:
    found: dict[int, list[tuple[str, bool]]] = {}
    for one in changes:
        found.setdefault(one["window"], []).append(("+" if one["action"] == "grow" else "−", bool(one["kept"])))
    return found


def _unsolved(window: Window) -> float:
    domains = window["domains"].values()
    known = sum(one["problems"] for one in domains)
    return sum(one["unsolved"] for one in domains) / known if known else 0.0


def _difference(one: Mapping[str, float]) -> str:
    return f"{points(one['difference'])} [{points(one['low'])}, {points(one['high'])}]"
