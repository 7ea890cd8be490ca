"""What the runs of an experiment, or separate runs, have come to: the evaluations by which they are compared.

A run is compared by one evaluation: the last one, on `problems.test`, of the policy that it ends with. That policy is
the one of the last stage that trains, or the base where none does; its evaluation is that stage's own, or that of a
later stage which asks the same policy these problems alone once more (with other decoding, say). So an arm may train
nothing, or only decode otherwise. Tables name the stage. A later stage that asks it several sets of problems is for the
table of sets.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evals.evaluate import Evaluation
from orchestra.config.arms import Reported
from orchestra.config.faults import UserError
from orchestra.config.recipe import Recipe
from orchestra.config.stage import Stage
from orchestra.report.data import RunRecord, StageRecord, read_run
from orchestra.run import experiment as experiments
from orchestra.run.experiment import FILE
from orchestra.run.folder import read_json
from settings import near


@dataclass
class Gathered:
    """Evaluations as the runs have them.

    Fields:
        runs: (arm, seed) -> its record, None where it has not begun.
        answers: arm -> seed -> the evaluation by which the run is compared.
        sets: set -> arm -> seed -> the evaluation on it.
        stages, set_stages: the stages that they are of, by arm.
        unfinished, without, reported: as in `Compared`.
    """

    runs: dict[tuple[str, int], RunRecord | None] = field(default_factory=dict)
    answers: dict[str, dict[int, Evaluation]] = field(default_factory=dict)
    sets: dict[str, dict[str, dict[int, Evaluation]]] = field(default_factory=dict)
    stages: dict[str, str] = field(default_factory=dict)
    set_stages: dict[str, str] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    reported: list[Reported] = field(default_factory=list)

    @property
    def confidence(self) -> float:
        """Of the intervals: the last evaluation's."""
        return [one for runs in self.answers.values() for one in runs.values()][-1].sampled.accuracy.confidence


def gather(folders: Sequence[Path], stage: str | None = None) -> Gathered:
    """Read the evaluations of runs.

    Raises:
        UserError: two runs of an arm have the same seed, or no arm has a stage of that name.
    """
    found, names = Gathered(), set()
    for folder in folders:
        told = experiments.read(folder).get("reported") if (folder / FILE).is_file() else None
        if told:
            found.reported.append(Reported.model_validate_json(json.dumps(told)))
    for arm, seed, run_dir in _runs_of(folders):
        found.runs[arm, seed] = run = _begun(run_dir)
        if run is not None:
            names |= {one.name for one in run.stages}
            if stage is not None and stage not in {one.name for one in run.stages}:
                found.without += [arm] if arm not in found.without else []
                continue
        answer, wide = (_record(run, name) for name in _compared_by(run, stage))
        if answer is None or answer.evaluation is None:
            found.unfinished.append(f"{arm}, seed {seed}")
        else:
            if seed in found.answers.setdefault(arm, {}):
                raise UserError(f"two runs of arm {arm!r} have the seed {seed}; compare one of them")
            found.answers[arm][seed] = answer.evaluation
            found.stages[arm] = answer.name
        for name, evaluation in wide.sets.items() if wide is not None else ():
            found.sets.setdefault(name, {}).setdefault(arm, {})[seed] = evaluation
            found.set_stages[arm] = wide.name
    if stage is not None and names and stage not in names:
        raise UserError(f"no run has a stage {stage!r} (stages: {', '.join(sorted(names))}){near(stage, names)}")
    return found


def _runs_of(folders: Sequence[Path]) -> list[tuple[str, int, Path]]:
    """(arm, seed, folder) of each run, begun or not."""
    found = []
    for folder in folders:
        if (folder / FILE).is_file():
            about = experiments.read(folder)
            found += [(arm, seed, folder / arm / f"seed-{seed}") for arm in about["arms"] for seed in about["seeds"]]
            continue
        recipe = read_json(folder / "run.json").get("recipe", {})
        found.append((_name(folder, folders), int(recipe.get("seed", 0)), folder))
    return found


def _name(folder: Path, folders: Sequence[Path]) -> str:
    """Of the arm that a single run belongs to: runs that differ in their seeds alone are one, by the first's name (of a
    run of an experiment the arm's)."""

    def without_seed(one: Path) -> str:
        recipe = read_json(one / "run.json").get("recipe", {})
        return json.dumps({key: value for key, value in recipe.items() if key != "seed"}, sort_keys=True)

    own = without_seed(folder)
    alike = next(one for one in folders if not (one / FILE).is_file() and without_seed(one) == own).absolute()
    return alike.parent.name if (alike.parent.parent / FILE).is_file() else alike.name


def _begun(run_dir: Path) -> RunRecord | None:
    """A run's record; None where it has not come so far as to say what it is."""
    return read_run(run_dir) if (run_dir / "run.json").is_file() else None


def _compared_by(run: RunRecord | None, stage: str | None) -> tuple[str | None, str | None]:
    """The names of the stage whose evaluation counts, and of the one that asked several sets of problems.

    They are those of the recipe, not the last that happen to be finished.
    """
    if run is None:
        return None, None
    recipe = run.resolved
    if stage is not None:
        known = recipe is not None and stage in {one.name for one in recipe.all_stages}
        return stage, stage if known and len(recipe.stage(stage).held_out_sets(recipe)) > 1 else None
    if recipe is None:  # of another version: what is known without its recipe
        trained = [one.name for one in run.stages if one.gives("policy")]
        return (trained[-1] if trained else None), None
    test = recipe.all_stages[0].held_out(recipe)
    asked = {one.name: tuple(one.held_out_sets(recipe).values()) for one in _of_the_last_policy(recipe)}
    counting = [name for name, sets in asked.items() if sets == (test,)]
    several = [name for name, sets in asked.items() if len(sets) > 1]
    return (counting[-1] if counting else None), (several[-1] if several else None)


def _of_the_last_policy(recipe: Recipe) -> list[Stage]:
    """The stages that evaluate the policy, or the panel, which a run of the recipe ends with."""
    made = [stage.name for stage in recipe.all_stages if stage.given & {"policy", "panel"}]
    own, parents = (made[-1], (made[-1],)) if made else (None, ())

    def of_the_last(stage: Stage) -> bool:
        if stage.name == own:
            return True
        taken_up = recipe.parents_of(stage.name) == parents or recipe.panel_of(stage.name) in parents
        return not stage.given & {"policy", "panel"} and taken_up

    return [stage for stage in recipe.all_stages if "evaluation" in stage.gives and of_the_last(stage)]


def _record(run: RunRecord | None, name: str | None) -> StageRecord | None:
    return next((one for one in run.stages if one.name == name), None) if run is not None else None
