"""The stage table, and the stage in progress: for people, and as JSON for scripts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from orchestra.run.ledger import Ledger, StageResult
from orchestra.run.state import Current, current_stage
from orchestra.text import clock

WIDE = 96
"""Columns from which on the table shows the kinds too."""


def results_of(run_dir: Path) -> list[StageResult]:
    """The results of a run's finished stages, in the order of their folders."""
    entries = sorted(Ledger(run_dir).entries.values(), key=lambda entry: entry.folder)
    return [entry.result for entry in entries]


def current_of(run_dir: Path, results: Iterable[StageResult]) -> Current | None:
    """The stage in which a run is, or was stopped."""
    return current_stage(run_dir, frozenset(result.name for result in results))


def rows_of(results: Iterable[StageResult], current: Current | None = None) -> list[dict[str, Any]]:
    """Keys as in StageResult. A stage that has begun and is not finished comes last, with two more that finished ones
    do not have: `status` (`in progress` or `stopped`), and `progress`."""
    rows = [result.to_json() for result in results]
    if current is not None:
        begun = StageResult(current.name, current.kind, seconds=seconds_in(current)).to_json()
        rows.append(begun | {"status": current.status, "progress": current.to_json()})
    return rows


def as_json(results: Iterable[StageResult], current: Current | None = None) -> str:
    """A list of stages; see `rows_of`."""
    return json.dumps(rows_of(results, current), indent=1, allow_nan=False)


def seconds_in(current: Current) -> float:
    """For how long a process has been in the stage; 0 where none is."""
    return max(0.0, time.time() - current.began) if current.running else 0.0


def sentences(current: Current, stages: int | None) -> list[str]:
    """`in progress: explore (grpo), stage 4 of 7, for 4:12`, and how far it is, a line each."""
    of = f", stage {current.number + 1} of {stages}" if stages else ""
    if not current.running:
        at = f", at {current.last_step[0]}" if current.step is not None else ""
        return [f"stopped in {current.name} ({current.kind}){of}{at}; the same command goes on"]
    lines = [f"in progress: {current.name} ({current.kind}){of}, for {clock(seconds_in(current))}"]
    lines += [f"  {text}" for text in current.doing]
    return lines + [f"  {', '.join(current.last_step)}"] * bool(current.last_step)


def table(results: Iterable[StageResult], width: int = WIDE) -> Table:
    """One row per finished stage. Differences are to the evaluated stage before, in points; `width`: of the console."""
    columns = ("stage", "kind", "accuracy", "interval", "points", "p", "greedy", "beta", "KL", "steps", "time", "gate")
    rows = [
        (
            result.name,
            result.kind,
            _number(result.accuracy, ".3f"),
            f"{result.low:.3f}-{result.high:.3f}" if None not in (result.low, result.high) else "",
            _number(None if result.difference is None else 100 * result.difference, "+.1f"),
            _number(result.p_value, ".2g"),
            _number(result.greedy_accuracy, ".3f"),
            _number(result.beta, "g"),
            _number(result.kl, ".2g"),
            _number(result.steps, "d"),
            clock(result.seconds),
            result.gate or "",
        )
        for result in results
    ]
    left_out = {"gate"} if not any(row[-1] for row in rows) else set()
    if width < WIDE:
        left_out |= {"kind"}
    made = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown = [at for at, column in enumerate(columns) if column not in left_out]
    for at in shown:
        size = max(len(columns[at]), *(len(row[at]) for row in rows)) if rows else None
        made.add_column(columns[at], justify="left" if at < 2 else "right", no_wrap=True, min_width=size)
    for row in rows:
        made.add_row(*(row[at] for at in shown))
    return made


def _number(value: float | None, how: str) -> str:
    return "" if value is None else format(value, how)
