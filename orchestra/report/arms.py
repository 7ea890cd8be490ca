"""Arms beside one another: the runs of an experiment, or separate runs, on the problems that all were asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from evals.arms import Arm, Comparison, Difference, Run, compare_arms
from evals.evaluate import Evaluation
from orchestra.config.faults import UserError
from orchestra.report.data import RunRecord, StageRecord, read_run
from orchestra.run.experiment import FILE
from orchestra.run.folder import read_json

Of = Literal["sampled", "greedy"]


@dataclass(frozen=True)
class Compared:
    """A comparison, and what it is of.

    Fields:
        stages: the stage whose evaluation was taken, by arm.
        unfinished: runs that have none yet.
        of: which pass.
    """

    comparison: Comparison
    stages: dict[str, str]
    unfinished: tuple[str, ...]
    of: Of


def compare_runs(folders: Sequence[Path], stage: str | None = None, of: Of = "sampled") -> Compared:
    """Compare what the runs have come to.

    Args:
        folders: of experiments, whose arms are the arms, or of runs; those of one recipe, under several seeds, are one.
        stage: whose evaluation; None: of each run's last trained policy.

    Raises:
        UserError: there is nothing to compare.
    """
    evaluations: dict[str, dict[int, Evaluation]] = {}
    stages: dict[str, str] = {}
    unfinished = []
    confidence = 0.0
    for arm, seed, run_dir in _runs(folders):
        record = _evaluated(read_run(run_dir), stage) if run_dir.is_dir() else None
        if record is None or record.evaluation is None:
            unfinished.append(f"{arm}, seed {seed}")
            continue
        if seed in evaluations.setdefault(arm, {}):
            raise UserError(f"two runs of arm {arm!r} have the seed {seed}; compare one of them")
        evaluations[arm][seed] = record.evaluation
        stages[arm] = record.name
        confidence = record.evaluation.sampled.accuracy.confidence
    arms = [
        Arm(arm, tuple(Run(seed, one.problem_ids, _pass(one, of, arm).correct_PS) for seed, one in runs.items()))
        for arm, runs in evaluations.items()
        if runs
    ]
    if not arms:
        raise UserError(f"nothing to compare: no run has been evaluated yet ({', '.join(unfinished)})")
    try:
        comparison = compare_arms(arms, confidence)
    except ValueError as error:
        raise UserError(str(error)) from error
    return Compared(comparison, stages, tuple(unfinished), of)


def _runs(folders: Sequence[Path]) -> list[tuple[str, int, Path]]:
    """(arm, seed, folder) of each."""
    found = []
    for folder in folders:
        if (folder / FILE).is_file():
            about = read_json(folder / FILE)
            found += [(arm, seed, folder / arm / f"seed-{seed}") for arm in about["arms"] for seed in about["seeds"]]
            continue
        recipe = read_json(folder / "run.json").get("recipe", {})
        found.append((_name(folder, folders), int(recipe.get("seed", 0)), folder))
    return found


def _name(folder: Path, folders: Sequence[Path]) -> str:
    """Of the arm that a single run belongs to: runs that differ in their seeds alone are one, by the first's name."""

    def without_seed(one: Path) -> str:
        recipe = read_json(one / "run.json").get("recipe", {})
        return json.dumps({key: value for key, value in recipe.items() if key != "seed"}, sort_keys=True)

    own = without_seed(folder)
    return next(one.name for one in folders if not (one / FILE).is_file() and without_seed(one) == own)


def _evaluated(run: RunRecord, stage: str | None) -> StageRecord | None:
    if stage is not None:
        return next((one for one in run.stages if one.name == stage and one.evaluation is not None), None)
    trained = [one for one in run.stages if one.gives("policy")]
    # the last one of the recipe, not the last that happens to be finished
    return trained[-1] if trained and trained[-1].evaluation is not None else None


def _pass(evaluation: Evaluation, of: Of, arm: str):
    found = getattr(evaluation, of)
    if found is None:
        raise UserError(f"arm {arm!r} was not evaluated greedily; compare without --greedy")
    return found


def as_json(compared: Compared) -> str:
    """For scripts."""
    found = json.loads(compared.comparison.to_json())
    told = {"of": compared.of, "stages": compared.stages, "unfinished": list(compared.unfinished)}
    return json.dumps(told | found, indent=1, allow_nan=False)


def table(compared: Compared) -> Table:
    """A row per arm; differences in points to the first arm."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("arm", "stage", "seeds", f"{compared.of} accuracy", "difference", "p (Holm)", "could have seen", ""):
        made.add_column(column, justify="left" if column in ("arm", "stage", "") else "right")
    for row in compared.comparison.rows:
        found = row.accuracy
        made.add_row(
            row.arm, compared.stages.get(row.arm, ""), str(len(row.seeds)),
            f"{100 * found.estimate:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]",
            *_difference(row.difference), row.verdict,
        )  # fmt: skip
    return made


def _difference(one: Difference | None) -> tuple[str, str, str]:
    if one is None:
        return "", "", ""
    least = one.smallest_detectable
    return (
        f"{100 * one.difference:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]",
        f"{one.p_value:.2g} ({one.p_holm:.2g})",
        "nothing" if least is None else f"{100 * least:.1f}",
    )


def notes(compared: Compared) -> list[str]:
    """What is to be known of the comparison."""
    found = compared.comparison
    lines = [f"{found.problems} problems, the same for all"]
    if found.not_common:
        lines.append(f"{found.not_common} problems were not asked in all runs and are left out")
    if found.ungraded:
        lines.append(f"{found.ungraded} problems could not be graded in a run and are left out")
    if compared.unfinished:
        lines.append(f"not finished: {'; '.join(compared.unfinished)}")
    return lines
