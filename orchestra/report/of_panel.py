"""What the report shows of stages that make one policy of a panel: what was lost or gained against routing, and at what
cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from orchestra.report.parts import Counts
from orchestra.text import percent, points

if TYPE_CHECKING:
    from orchestra.report.data import StageRecord


def merge_gap(record: StageRecord) -> Iterator[Counts]:
    """Of a merge: accuracies, the gap with its interval, and the weights of the experts."""
    told = _told(record)
    if "merge_gap" not in told:
        return
    tree = {
        "routed": percent(told["routed_accuracy"]),
        "merged": percent(record.result.accuracy),
        "merge gap, points": _interval(told, "merge_gap"),
        "rank": told["rank"],
        "weights": {name.removeprefix("weight_"): value for name, value in told.items() if name.startswith("weight_")},
    }
    yield Counts(f"{record.name}: what merging loses against routing", tree)


def mixture_gain(record: StageRecord) -> Iterator[Counts]:
    """Of a mixture: the gain with its interval, and seconds per 1,000 tokens."""
    told = _told(record)
    if "mixture_gain" not in told:
        return
    seconds = {
        "the mixture": told["seconds_per_1000_tokens"],
        "one expert, same engine": told["seconds_of_one_expert"],
        f"the routed panel, {told['engine_of_panel']}": told["seconds_of_panel"],
    }
    tree = {
        "accuracy": percent(record.result.accuracy),
        "gain against routing, points": _interval(told, "mixture_gain"),
        "seconds per 1,000 tokens": seconds,
    }
    yield Counts(f"{record.name}: a mixture inside the network against routing", tree)


def _told(record: StageRecord) -> Mapping[str, float | str]:
    return record.result.extra if record.result is not None else {}


def _interval(told: Mapping[str, float | str], name: str) -> str:
    low, high = points(told[f"{name}_low"]), points(told[f"{name}_high"])
    return f"{points(told[name])} [{low}, {high}]"
