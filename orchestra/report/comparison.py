"""`report.html` of an experiment: the question, what each arm changes, the tables of `arms`, and every run.

Derived from the experiment's folder alone, self-contained like the report of a run, and written after every run, so
that it says what is known so far.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evals.arms import Row
from evals.gains import Gain, gains
from orchestra.config.arms import Figure
from orchestra.config.changes import Change
from orchestra.config.faults import UserError
from orchestra.report import arm_charts
from orchestra.report.arms import Compared, Of, Transfer, cautions, compare
from orchestra.report.data import RunRecord
from orchestra.report.gathered import Gathered, gather
from orchestra.report.html import PAGE, rendered, write_page
from orchestra.report.page import write_report
from orchestra.report.parts import Chart
from orchestra.run import experiment as experiments
from orchestra.run import gates
from orchestra.run.experiment import FILE

LEGEND = "points; grey: could not have been seen; hollow: not resolved"
PASSES: tuple[Of, ...] = ("sampled", "greedy")


@dataclass(frozen=True)
class RunCell:
    """One run in the table of runs.

    Fields:
        status: in words; done: whether nothing is to come.
        accuracy: in the first table, on the problems that are compared; None: not yet.
        link: its own report, from the experiment's folder; None where it has none.
    """

    seed: int
    status: str
    done: bool
    accuracy: float | None
    link: str | None


@dataclass(frozen=True)
class ArmEntry:
    """An arm: what it has otherwise than the first one, and its runs."""

    name: str
    changes: tuple[Change, ...]
    runs: tuple[RunCell, ...]


@dataclass(frozen=True)
class Theirs:
    """A number that others have reported, and the row of the arm that it belongs to, if it does to one."""

    figure: Figure
    ours: Row | None


def write_any(folder: Path) -> Path:
    """Write report.html of an experiment's folder, or of a run's, and return its path.

    Raises:
        FileNotFoundError: it is neither.
    """
    return write_comparison(folder) if (folder / FILE).is_file() else write_report(folder)


def write_comparison(folder: Path) -> Path:
    """Write `folder/report.html` from the files in an experiment's folder and return its path."""
    return write_page(folder, render(folder))


def render(folder: Path) -> str:
    """The page as HTML text."""
    about, gathered = experiments.read(folder), gather([folder])
    compared, notes = _compared(gathered)
    transfers = {of: one.transfer for of, one in compared.items() if one.transfer is not None}
    rows = {row.arm: row for one in list(compared.values())[:1] for row in one.comparison.rows}
    arms = _arms(folder, about, gathered, rows)
    runs = [run for arm in arms for run in arm.runs]
    return rendered(
        "comparison.html.j2",
        name=str(about.get("name") or folder.name),
        folder=folder.name,
        scale=str(about.get("scale") or ""),
        ran_on=_ran_on(about, gathered.runs.values()),
        seeds=about["seeds"],
        arms=arms,
        runs=runs,
        done=sum(run.done for run in runs),
        compared=compared,
        compared_with=next(iter(gathered.answers), None),
        notes=notes,
        charts=_charts(compared),
        gained=_gained(gathered),
        transfers=transfers,
        transfer_charts=_transfer_charts(transfers),
        reported=[(one.source, [Theirs(each, rows.get(each.arm)) for each in one.figures])
                  for one in gathered.reported],
        confidence=gathered.confidence if gathered.answers else None,
    )  # fmt: skip


def _compared(gathered: Gathered) -> tuple[dict[Of, Compared], list[str]]:
    """Both passes, as far as they can be compared, and what is to be known of that."""
    found: dict[Of, Compared] = {}
    notes: dict[str, None] = {}
    for of in PASSES:
        has = [getattr(one, of) is not None for runs in gathered.answers.values() for one in runs.values()]
        if any(has) and not all(has):
            notes[f"Not all runs were evaluated {of}."] = None
        if not has or not all(has):
            continue
        try:
            found[of] = compare(gathered, of)
        except UserError as error:
            notes[str(error)] = None
            continue
        notes |= dict.fromkeys(f"{line[0].upper()}{line[1:]}." for line in cautions(found[of].comparison))
    return found, list(notes)


def _gained(gathered: Gathered) -> dict[str, tuple[Gain, ...]]:
    """Where each arm's difference to the first one comes from, under the seeds that both have."""
    first = next(iter(gathered.answers), None)
    found = {}
    for arm, runs in gathered.answers.items():
        pairs = [(runs[seed], gathered.answers[first][seed]) for seed in runs if seed in gathered.answers[first]]
        asked = {frozenset(one.problem_ids) for pair in pairs for one in pair}
        if arm != first and len(asked) == 1 and (parts := gains(pairs, gathered.confidence)):
            found[arm] = parts
    return found


def _arms(folder: Path, about: Mapping[str, object], gathered: Gathered, rows: Mapping[str, Row]) -> list[ArmEntry]:
    told = about.get("changes") or {}
    accuracies = {arm: dict(zip(row.seeds, row.by_seed, strict=True)) for arm, row in rows.items()}
    return [
        ArmEntry(
            arm,
            tuple(Change(**one) for one in told.get(arm, ())),
            tuple(
                _run(folder, arm, seed, gathered.runs.get((arm, seed)), accuracies.get(arm, {}).get(seed))
                for seed in about["seeds"]
            ),
        )
        for arm in about["arms"]
    ]


def _run(folder: Path, arm: str, seed: int, run: RunRecord | None, accuracy: float | None) -> RunCell:
    link = f"{arm}/seed-{seed}/{PAGE}"
    status, done = _status(run)
    return RunCell(seed, status, done, accuracy, link if (folder / link).is_file() else None)


def _status(run: RunRecord | None) -> tuple[str, bool]:
    if run is None:
        return "to do", False
    stopped = [one.name for one in run.stages if one.result is not None and one.result.gate == gates.NO_GO]
    if stopped:
        return f"{gates.NO_GO} at {stopped[0]}", True
    finished = sum(stage.status == "finished" for stage in run.stages)
    return ("finished", True) if run.finished else (f"{finished} of {len(run.stages)} stages", False)


def _ran_on(about: Mapping[str, object], runs: Iterable[RunRecord | None]) -> dict[str, str]:
    """Where all of it comes from; machines and versions of all runs, as they may have moved in between."""
    changes = about.get("set") or ()
    found = {"recipe file": {str(about.get("source") or "")}, "set on the command line": {", ".join(map(str, changes))}}
    for run in runs:
        for key, value in run.ran_on.items() if run is not None else ():
            if key not in ("seed", *found):
                found.setdefault(key, set()).add(value)
    return {key: "; ".join(sorted(values)) for key, values in found.items() if values != {""}}


def _charts(compared: Mapping[Of, Compared]) -> list[Chart]:
    made = []
    for of, one in compared.items():
        rows, second = one.comparison.rows, of == "greedy"
        effects = _effects((row.arm, row) for row in rows)
        if effects:
            title = f"Difference to {rows[0].arm}, {of}"
            svg = arm_charts.forest_chart(f"forest-{of}", title, effects, second=second)
            made.append(Chart(title, LEGEND, svg))
        if sum(len(row.seeds) for row in rows) < 2:
            continue
        by_seed = {row.arm: dict(zip(row.seeds, row.by_seed, strict=True)) for row in rows}
        svg = arm_charts.seeds_chart(f"seeds-{of}", f"Accuracy of every run, {of}", by_seed, second=second)
        made.append(Chart(f"Accuracy by seed, {of}", "a dot is a run, lines join the same seed, bars are means", svg))
    return made


def _transfer_charts(transfers: Mapping[Of, Transfer]) -> list[Chart]:
    made = []
    for of, transfer in transfers.items():
        effects = _effects((f"{name}: {row.arm}", row) for name, one in transfer.sets.items() for row in one.rows)
        if effects:
            title = f"Differences on every set, {of}"
            svg = arm_charts.forest_chart(f"transfer-{of}", title, effects, second=of == "greedy")
            made.append(Chart(title, LEGEND, svg))
    return made


def _effects(rows: Iterable[tuple[str, Row]]) -> list[arm_charts.Effect]:
    return [
        arm_charts.Effect(
            name, row.difference.difference, row.difference.low, row.difference.high,
            row.difference.smallest_detectable, row.difference.p_holm < 1 - row.difference.confidence,
        )
        for name, row in rows
        if row.difference is not None
    ]  # fmt: skip
