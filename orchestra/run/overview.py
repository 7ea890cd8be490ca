"""Where each run of an experiment is: for people, and as JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from orchestra.run import experiment as experiments
from orchestra.run import gates, show
from orchestra.run.folder import in_progress
from orchestra.run.ledger import StageResult
from orchestra.run.state import Current, stages_of
from orchestra.text import clock


@dataclass(frozen=True)
class RunState:
    """One run of an experiment.

    Fields:
        results: of its finished stages; stages: how many it has, None where it has not begun.
        current: the stage in which it is, or was stopped.
    """

    arm: str
    seed: int
    run_dir: Path
    results: tuple[StageResult, ...]
    stages: int | None
    current: Current | None

    @property
    def status(self) -> str:
        """`finished`, `no-go` (a gate stopped it), `in progress`, `stopped` or `to do`."""
        if any(result.gate == gates.NO_GO for result in self.results):
            return "no-go"
        if self.current is not None:
            return self.current.status
        if self.stages is not None and len(self.results) == self.stages:
            return "finished"
        return "in progress" if in_progress(self.run_dir) else "stopped" if self.results else "to do"

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.status in ("finished", "no-go")

    @property
    def evaluated(self) -> StageResult | None:
        """Its last stage with an accuracy."""
        return next((result for result in reversed(self.results) if result.accuracy is not None), None)

    @property
    def words(self) -> str:
        """`in progress: explore, step 12 of 40`."""
        if self.current is None or self.over:
            return self.status
        bar = self.current.bar
        far = f", {bar.done:,}/{bar.total:,} {bar.unit}" if bar is not None else ""
        left = f", {clock(bar.left)} left" if bar is not None and bar.left is not None else ""
        return f"{self.status}: {self.current.name}{far}{left}"


def overview_of(folder: Path) -> list[RunState]:
    """Every run of an experiment, in the order in which they are made. Raises UserError where a file is damaged."""
    about = experiments.read(folder)
    runs = [(arm, seed, folder / arm / f"seed-{seed}") for seed in about["seeds"] for arm in about["arms"]]
    found = []
    for arm, seed, run_dir in runs:
        results = tuple(show.results_of(run_dir))
        found.append(RunState(arm, seed, run_dir, results, stages_of(run_dir), show.current_of(run_dir, results)))
    return found


def table(runs: Sequence[RunState]) -> Table:
    """A row for each run."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("arm", "seed", "state", "stages", "accuracy", "interval", "after", "time"):
        made.add_column(column, justify="left" if column in ("arm", "state", "after") else "right", no_wrap=True)
    for run in runs:
        last = run.evaluated
        known = last is not None and None not in (last.low, last.high)
        made.add_row(
            run.arm,
            str(run.seed),
            run.words,
            f"{len(run.results)}/{run.stages}" if run.stages else "",
            f"{last.accuracy:.3f}" if last is not None else "",
            f"{last.low:.3f}-{last.high:.3f}" if known else "",
            last.name if last is not None else "",
            clock(sum(result.seconds for result in run.results)) if run.results else "",
        )
    return made


def sentences(runs: Sequence[RunState]) -> list[str]:
    """How many are finished, and more of the one that is in progress."""
    lines = [f"{sum(run.over for run in runs)} of {len(runs)} runs finished"]
    for run in runs:
        if run.current is not None and run.current.running:
            first, *more = show.sentences(run.current, run.stages)
            lines += [f"{run.arm}, seed {run.seed}: {first}", *more]
    return lines


def as_json(runs: Sequence[RunState]) -> str:
    """A list of runs, each with its stages as `orchestra show --json` of that run gives them."""
    rows: list[dict[str, Any]] = [
        {
            "arm": run.arm,
            "seed": run.seed,
            "run": str(run.run_dir),
            "status": run.status,
            "stages": run.stages,
            "finished_stages": len(run.results),
            "accuracy": run.evaluated.accuracy if run.evaluated is not None else None,
            "results": show.rows_of(run.results, run.current),
        }
        for run in runs
    ]
    return json.dumps(rows, indent=1, allow_nan=False)
