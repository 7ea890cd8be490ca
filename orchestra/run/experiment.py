"""An experiment's folder: a run for each arm and seed, what they have in common once, and what it is about.

runs/<recipe>-<scale>/
  experiment.json       arms, what each changes, seeds, others' numbers
  hub.json              the commits of the Hub, one for all runs
  <arm>/seed-<n>/       a run like any other
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.sizes import arithmetic_name
from orchestra.config.changes import Change, changes
from orchestra.config.experiment import Experiment
from orchestra.config.faults import UserError
from orchestra.config.recipe import Recipe
from orchestra.run import commits
from orchestra.run.folder import read_json
from orchestra.run.ledger import write_json
from settings import near

FILE = "experiment.json"


@dataclass(frozen=True)
class ArmRun:
    """One run of an experiment."""

    arm: str
    seed: int
    recipe: Recipe
    run_dir: Path

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def runs_of(experiment: Experiment, folder: Path) -> tuple[ArmRun, ...]:
    """The runs in the order in which they are made."""
    return tuple(
        ArmRun(arm, seed, recipe, folder / arm / f"seed-{seed}") for (arm, seed), recipe in experiment.runs().items()
    )


def prepare(experiment: Experiment, folder: Path, about: Mapping[str, object]) -> None:
    """Write what the experiment is.

    Raises:
        UserError: the folder is that of a single run.
    """
    must_be_for(folder, single=False)
    folder.mkdir(parents=True, exist_ok=True)
    runs = experiment.runs()
    write_json(
        folder / FILE,
        {
            **about,
            "arms": list(dict.fromkeys(arm for arm, _ in runs)),
            "seeds": list(dict.fromkeys(seed for _, seed in runs)),
            "changes": {arm: [asdict(one) for one in found] for arm, found in changes_of(experiment).items()},
            "reported": experiment.reported.model_dump(mode="json") if experiment.reported is not None else None,
        },
    )


def changes_of(experiment: Experiment) -> dict[str, tuple[Change, ...]]:
    """What each arm has otherwise than the first one."""
    first = next(iter(experiment.named.values()))
    return {arm: changes(recipe, first) for arm, recipe in experiment.named.items()}


def read(folder: Path) -> dict[str, Any]:
    """What an experiment is, by its folder.

    Raises:
        UserError: the file cannot be read, or does not say it.
    """
    told = read_json(folder / FILE)
    for key, of in (("arms", str), ("seeds", int)):
        if not isinstance(told.get(key), list) or not all(isinstance(one, of) for one in told[key]):
            raise UserError(f"{folder / FILE} is damaged (no {key}); move it away and run the same command")
    return told


def must_be_for(folder: Path, *, single: bool) -> None:
    """A folder holds one run or an experiment.

    Raises:
        UserError: it holds the other.
    """
    holds_single, holds_several = (folder / "ledger.json").is_file(), (folder / FILE).is_file()
    if single and holds_several:
        raise UserError(f"{folder} holds an experiment with arms or seeds; move it away, or run with other --runs")
    if not single and holds_single:
        raise UserError(f"{folder} holds a single run; move it away, or run the arms with other --runs")


def find_experiment(name: str) -> Path | None:
    """An experiment's folder from its path, or its name below runs/; None where it is none."""
    places = (Path(name), Path("runs") / name)
    return next((place for place in places if (place / FILE).is_file()), None)


def share_commits(folder: Path, run_dir: Path) -> None:
    """What a name on the Hub means is asked once for all runs."""
    ours, theirs = folder / commits.FILE, run_dir / commits.FILE
    if ours.is_file() and not theirs.is_file():
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(theirs, read_json(ours))


def keep_commits(folder: Path, run_dir: Path) -> None:
    """The other way round, after a run has begun."""
    known = {**read_json(folder / commits.FILE), **read_json(run_dir / commits.FILE)}
    if known:
        write_json(folder / commits.FILE, known)


def restarts(restart_from: str | None, runs: tuple[ArmRun, ...]) -> dict[ArmRun, str]:
    """Which runs are to be restarted, and from which stage.

    Args:
        restart_from: `stage`, in all arms that have it, or `arm/stage`.

    Raises:
        UserError: no arm has it.
    """
    if restart_from is None:
        return {}
    arm, _, stage = restart_from.rpartition("/")
    arms = list(dict.fromkeys(one.arm for one in runs))
    if arm and arm not in arms:
        raise UserError(f"--restart-from {restart_from}: no such arm (arms: {', '.join(arms)}){near(arm, arms)}")
    having = {one: stage for one in runs if arm in ("", one.arm) and stage in {s.name for s in one.recipe.all_stages}}
    if not having:
        names = list(dict.fromkeys(s.name for one in runs if arm in ("", one.arm) for s in one.recipe.all_stages))
        raise UserError(
            f"--restart-from {restart_from}: no such stage (stages: {', '.join(names)}){near(stage, names)}"
        )
    return having


def settled(recipe: Recipe, cuda: bool) -> Recipe:
    """With `dtype: auto` replaced by what it means here. A base cast to another arithmetic quantises to other codes, so
    a run that goes on, or is exported, on another machine must know what it was trained in."""
    settled = {
        name: node.model_copy(update={"dtype": arithmetic_name(node.dtype, cuda=cuda)})
        for name, node in (("model", recipe.model), ("rollouts", recipe.rollouts))
    }
    return recipe.model_copy(update=settled)
