"""Arms beside one another: the runs of an experiment, or separate runs, on the problems that all were asked.

By which evaluation a run is compared is in `gathered`. Where a stage asks the same policy several sets of problems,
there is a second table: arms x sets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from evals.arms import Arm, Comparison, Difference, Row, Run, compare_arms, compare_sets
from evals.evaluate import Evaluation, Pass
from evals.statistics import Interval
from orchestra.config.arms import Reported
from orchestra.config.faults import UserError
from orchestra.report.gathered import Gathered, gather
from settings import near

Of = Literal["sampled", "greedy"]


@dataclass(frozen=True)
class Transfer:
    """What the arms come to on several sets of problems, each a comparison; corrected over all differences in them.

    Fields:
        stages: whose evaluations, by arm.
        sets: by the sets' names, in the first arm's order.
        refused: why a set could not be compared, by name.
    """

    stages: Mapping[str, str]
    sets: Mapping[str, Comparison]
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def differences(self) -> int:
        """How many are told, over which p-values are corrected."""
        return sum(row.difference is not None for one in self.sets.values() for row in one.rows)


@dataclass(frozen=True)
class Compared:
    """A comparison, and what it is of.

    Fields:
        stages: the stage whose evaluation was taken, by arm.
        unfinished: runs that have none yet.
        of: which pass.
        without: arms that have no stage of the name that was asked for.
        on: the set of problems; None: the first, or only one, of these stages.
        transfer: None where there are no several sets.
        reported: what others have reported.
    """

    comparison: Comparison
    stages: Mapping[str, str]
    unfinished: tuple[str, ...]
    of: Of
    without: tuple[str, ...] = ()
    on: str | None = None
    transfer: Transfer | None = None
    reported: tuple[Reported, ...] = ()


def compare_runs(
    folders: Sequence[Path], stage: str | None = None, of: Of = "sampled", on: str | None = None
) -> Compared:
    """Compare what the runs have come to.

    Args:
        folders: of experiments, whose arms are the arms, or of runs; those of one recipe, under several seeds, are one.
        stage: whose evaluation; None: the last one of the policy that a run ends with (see `gathered`).
        on: one of the sets of problems, where there are several.

    Raises:
        UserError: there is nothing to compare.
    """
    return compare(gather(folders, stage), of, on)


def compare(gathered: Gathered, of: Of = "sampled", on: str | None = None) -> Compared:
    """Set side by side what was gathered.

    Raises:
        UserError: there is nothing to compare.
    """
    if not gathered.answers:
        raise UserError(f"nothing to compare: no run has been evaluated yet ({', '.join(gathered.unfinished)})")
    transfer = _transfer(gathered, of)
    stages: Mapping[str, str] = gathered.stages
    if on is None:
        try:
            comparison = compare_arms(_arms(gathered.answers, of), gathered.confidence)
        except ValueError as error:
            raise UserError(str(error)) from error
    else:
        comparison, stages = _one_set(transfer, on), transfer.stages if transfer is not None else {}
    return Compared(
        comparison, stages, tuple(gathered.unfinished), of, tuple(gathered.without), on, transfer,
        tuple(gathered.reported),
    )  # fmt: skip


def _transfer(gathered: Gathered, of: Of) -> Transfer | None:
    """Every set that the first arm was asked, by the arms that were asked it as well."""
    first = next(iter(gathered.answers))
    refused = {name: f"arm {first!r} was not asked it" for name, arms in gathered.sets.items() if first not in arms}
    asked = {name: arms for name, arms in gathered.sets.items() if name not in refused}
    if not asked:
        return None
    ordered = {name: {arm: arms[arm] for arm in gathered.answers if arm in arms} for name, arms in asked.items()}
    found, more = compare_sets({name: _arms(arms, of) for name, arms in ordered.items()}, gathered.confidence)
    return Transfer(gathered.set_stages, found, refused | more)


def _one_set(transfer: Transfer | None, name: str) -> Comparison:
    sets = dict(transfer.sets) if transfer is not None else {}
    if name not in sets:
        if transfer is not None and name in transfer.refused:
            raise UserError(f"--set {name}: {transfer.refused[name]}")
        there = f"sets: {', '.join(sets)}" if sets else "no stage has asked all these runs several sets of problems"
        raise UserError(f"--set {name}: there is no such set ({there}){near(name, sets)}")
    return sets[name]


def _arms(evaluations: Mapping[str, Mapping[int, Evaluation]], of: Of) -> list[Arm]:
    return [
        Arm(arm, tuple(Run(seed, one.problem_ids, _pass(one, of, arm).correct_PS) for seed, one in runs.items()))
        for arm, runs in evaluations.items()
    ]


def _pass(evaluation: Evaluation, of: Of, arm: str) -> Pass:
    found = getattr(evaluation, of)
    if found is None:
        raise UserError(f"arm {arm!r} was not evaluated greedily; compare without --greedy")
    return found


# what is told of it


def as_json(compared: Compared) -> str:
    """For scripts."""
    told = {"of": compared.of, "set": compared.on, "stages": compared.stages, "unfinished": compared.unfinished,
            "without_the_stage": compared.without}  # fmt: skip
    transfer = compared.transfer
    more = {
        "transfer": transfer and {
            "stages": transfer.stages, "differences": transfer.differences, "refused": transfer.refused,
            "sets": {name: json.loads(one.to_json()) for name, one in transfer.sets.items()},
        },
        "reported": [one.model_dump(mode="json") for one in compared.reported],
    }  # fmt: skip
    return json.dumps(told | json.loads(compared.comparison.to_json()) | more, indent=1, allow_nan=False)


def table(compared: Compared) -> Table:
    """A row per arm; differences in points to the first arm."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    what = compared.of if compared.on is None else f"{compared.on}, {compared.of}"
    for column in ("arm", "stage", "seeds", f"{what} accuracy", "difference", "p (Holm)", "could have seen", ""):
        made.add_column(column, justify="left" if column in ("arm", "stage", "") else "right")
    for row in compared.comparison.rows:
        made.add_row(
            row.arm, compared.stages.get(row.arm, ""), str(len(row.seeds)), _accuracy(row.accuracy),
            *_difference(row.difference), row.verdict,
        )  # fmt: skip
    return made


def transfer_table(compared: Compared) -> Table | None:
    """Arms x sets of problems: accuracy, difference to the first arm, and whether it is resolved."""
    transfer = compared.transfer
    if transfer is None or compared.on is not None:
        return None
    made = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_lines=False)
    made.add_column("arm")
    made.add_column("stage")
    for name, one in transfer.sets.items():
        made.add_column(f"{name} ({one.problems} problems), {compared.of}", justify="right")
    cells = {(row.arm, name): row for name, one in transfer.sets.items() for row in one.rows}
    for arm in dict.fromkeys(arm for arm, _ in cells):
        rows = [cells.get((arm, name)) for name in transfer.sets]
        made.add_row(arm, transfer.stages[arm], *("" if row is None else _cell(row) for row in rows))
    return made


def _cell(row: Row) -> str:
    if row.difference is None:
        return _accuracy(row.accuracy)
    difference, p, _ = _difference(row.difference)
    # what could not have been seen is said in the table of that set alone
    return f"{_accuracy(row.accuracy)}\n{difference}\np {p}: {row.verdict.partition(':')[0]}"


def _accuracy(one: Interval) -> str:
    return f"{100 * one.estimate:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"


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
    lines = [f"{compared.comparison.problems} problems, the same for all", *cautions(compared.comparison)]
    if compared.on is not None:
        lines.append(f"p (Holm) is over the {compared.transfer.differences} differences on all sets")
    if compared.unfinished:
        lines.append(f"not finished: {'; '.join(compared.unfinished)}")
    if compared.without:
        lines.append(f"without such a stage: {', '.join(compared.without)}")
    return lines


def transfer_notes(transfer: Transfer) -> list[str]:
    """What is to be known of the table of sets."""
    lines = [f"p (Holm) is over all {transfer.differences} differences of this table; --set NAME has one set in full"]
    lines += [f"{name}: {line}" for name, one in transfer.sets.items() for line in left_out(one)]
    return [*lines, *(f"{name} is not compared: {why}" for name, why in transfer.refused.items())]


def cautions(comparison: Comparison) -> list[str]:
    """Which problems do not count, and whether there are too few seeds."""
    few = any(len(row.seeds) == 2 for row in comparison.rows)
    told = "two training seeds tell little of how much a seed matters, and intervals are wide: take three"
    return [*left_out(comparison), *([told] if few else [])]


def left_out(comparison: Comparison) -> list[str]:
    """Which problems do not count, and why."""
    lines = []
    if comparison.not_common:
        lines.append(f"{comparison.not_common} problems were not asked in all runs and are left out")
    if comparison.ungraded:
        lines.append(f"{comparison.ungraded} problems could not be graded in a run and are left out")
    return lines


def reported_lines(reported: Sequence[Reported]) -> list[str]:
    """What others have reported, and that it is theirs."""
    lines = []
    for one in reported:
        lines.append(f"reported by others, at another scale, so not to be set against the above: {one.source}")
        lines += [f"  {each.what}: {each.value:g}" + (f" (arm {each.arm})" if each.arm else "") for each in one.figures]
    return lines


def show(compared: Compared, console: Console) -> None:
    """Print all of it."""
    say = partial(console.print, highlight=False, markup=False)
    console.print(table(compared))
    for line in notes(compared):
        say(line)
    if (wide := transfer_table(compared)) is not None:
        console.print(wide)
        for line in transfer_notes(compared.transfer):
            say(line)
    for line in reported_lines(compared.reported):
        say(line)
