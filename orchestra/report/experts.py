"""What the report shows of the experts that a stage has trained one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from orchestra.report.modelled import read_modelled
from orchestra.report.parts import Counts, Notice
from orchestra.text import p_value, percent, points
from orchestra.work.settings import EXPERTS

if TYPE_CHECKING:
    from orchestra.report.data import StageRecord


def experts_parts(record: StageRecord) -> Iterator[Counts | Notice]:
    """Accuracy and perplexities of each expert side by side, and a warning where text is modelled better and problems
    are solved worse; nothing of a stage that trains one policy."""
    found = record.outputs.get(EXPERTS)
    if not isinstance(found, Mapping) or not found:
        return
    tree: dict[str, dict[str, str]] = {}
    for name, told in found.items():
        row = {"accuracy on all problems": f"{percent(told['accuracy'])} [{_bare(told['low'])}, {_bare(told['high'])}]"}
        if told["base_difference"] is not None:
            row["points against the base"] = f"{points(told['base_difference'])}, {p_value(told['base_p_value'])}"
        modelled = read_modelled(told["modelled"])
        for source, one in modelled.sources.items() if modelled is not None else ():
            row[f"perplexity of {source}"] = f"{one.before.perplexity:.4g} → {one.after.perplexity:.4g}"
        tree[name] = row
        for warning in modelled.warnings().values() if modelled is not None else ():
            yield Notice(f"{record.name}, expert {name}, from {modelled.start}", warning)
    yield Counts(f"Experts of {record.name}", tree)


def _bare(share: float) -> str:
    return f"{100 * share:.1f}"
