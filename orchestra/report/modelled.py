"""What stages measured of text, for the report and for trace cards: preflights, and perplexity beside accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evals.modelled import Modelled
from orchestra.config.recipe import BASE
from orchestra.report import charts
from orchestra.report.parts import Chart, Notice
from orchestra.run.folder import read_json
from orchestra.work.alignment import Preflight
from orchestra.work.settings import PERPLEXITY, PREFLIGHT

if TYPE_CHECKING:
    from orchestra.report.data import StageRecord, Tree


def read_preflight(tree: Tree | None) -> Preflight | None:
    """From what is in preflight.json; None where there is none, or another version's."""
    try:
        return Preflight.from_tree(tree) if tree else None
    except ValueError:
        return None


def read_modelled(tree: Tree | None) -> Modelled | None:
    """From what is in perplexity.json; None where there is none, or another version's."""
    try:
        return Modelled.from_tree(tree) if tree else None
    except ValueError:
        return None


def notices_of(record: StageRecord) -> Iterator[Notice]:
    """A stage's warnings that text is modelled better and problems are solved worse."""
    found = read_modelled(record.outputs.get(PERPLEXITY))
    for warning in found.warnings().values() if found is not None else ():
        yield Notice(f"{record.name}, from {found.start}", warning)


def perplexity_charts(stages: Sequence[StageRecord], names: Sequence[str]) -> Iterator[Chart]:
    """Perplexity of each source per stage, a row for each of the names, as accuracy is drawn."""
    found = [(stage, read_modelled(stage.outputs.get(PERPLEXITY))) for stage in stages]
    measured = {stage.name: one for stage, one in found if one is not None}
    for number, source in enumerate(dict.fromkeys(source for one in measured.values() for source in one.sources)):
        # a source may have had other texts in an earlier stage; those are other numbers
        last = [one.sources[source].texts for one in measured.values() if source in one.sources][-1]
        points, marked = {}, set()
        for stage, one in measured.items():
            if source not in one.sources or (change := one.sources[source]).texts != last:
                continue
            for name, value in ((one.start, change.before), (stage, change.after)):
                bounds = (value.perplexity if bound is None else bound for bound in (value.low, value.high))
                points[name] = charts.Point(value.perplexity, *bounds)
            if source in one.warnings():
                marked.add(stage)
        rows = [points.get(name) for name in names]
        if any(rows):
            svg = charts.perplexity_chart(f"perplexity-{number}", f"Perplexity of {source} per stage", names, rows,
                                          [name in marked for name in names])  # fmt: skip
            note = "per answer token; lower is likelier" + ("; ⚠ while accuracy fell" if marked else "")
            yield Chart(f"Perplexity of {source}", note, svg)


def perplexity_of_traces(folder: Path) -> float | None:
    """Perplexity of a stage's traces under the base of its run, where a stage of that run has measured it.

    Args:
        folder: the stage's.
    """
    name = folder.name.partition("-")[2]
    for stage in sorted(folder.parent.glob("[0-9][0-9]-*")):
        fit = read_preflight(read_json(stage / PREFLIGHT))
        if fit is not None and fit.policy == BASE:
            for one in fit.sources:
                if one.source == name:
                    return one.text.perplexity
        modelled = read_modelled(read_json(stage / PERPLEXITY))
        if modelled is not None and modelled.start == BASE and name in modelled.sources:
            return modelled.sources[name].before.perplexity
    return None
