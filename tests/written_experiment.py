"""An experiment's folder as runs leave it: real recipes and evaluations, of answers that are drawn."""

import json
import zlib
from collections.abc import Callable, Container
from pathlib import Path

import numpy as np

from evals.evaluate import Evaluation, Pass
from evals.statistics import accuracy
from orchestra.config.experiment import Experiment, load_experiment
from orchestra.run import experiment as experiments

RECIPE = """\
name: asked
model: {base: embedded/student}
problems: {train: embedded, test: embedded}
stages:
  - {name: imitate, kind: sft, data: DATA, steps: 10, learning_rate: 1e-4}
  - {name: explore, kind: grpo, steps: 10, learning_rate: 1e-5}
  - {name: polish, kind: grpo, steps: 10, learning_rate: 1e-5, beta: 0.01}
"""
SETS = "  - {name: wide, kind: evaluate, problems: {easy: embedded, hard: DATA}}\n"
SCALE = "none"
Answers = Callable[[str, int, str, str], Evaluation]
"""Of (arm, seed, stage, set), what the policy did on the set."""


def load(folder: Path, more: str, recipe: str = RECIPE) -> Experiment:
    """An experiment from a recipe's text, beside which its data lie."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data.jsonl"
    data.write_text(json.dumps({"question": "1 + 1", "answer": "2", "solution": "2"}) + "\n")
    (folder / "asked.yaml").write_text((recipe + more).replace("DATA", str(data)))
    return load_experiment(str(folder / "asked.yaml"), SCALE)


def evaluation(correct_PS: object, greedy_P: object = None, set_name: str = "", first: int = 0) -> Evaluation:
    """Of these answers, right where they are 1; problems are called by their set and number."""

    def one(temperature: float, correct_PS: np.ndarray) -> Pass:
        rows = tuple(tuple(map(int, row)) for row in correct_PS)
        return Pass(temperature, rows, accuracy(correct_PS.astype(float), 0.95), 9.0, 0.0, 1.0, 0, 9, 1.0)

    correct_PS = np.array(correct_PS)
    ids = tuple(f"{set_name}{first + i}" for i in range(len(correct_PS)))
    greedy = None if greedy_P is None else one(0.0, np.array(greedy_P)[:, None])
    return Evaluation(ids, ("x",) * len(ids), one(1.0, correct_PS), greedy, {}, (), 0)


def drawn(
    chances: dict[str, float], problems: int = 80, samples: int = 2, first: Callable[[str], int] = lambda arm: 0
) -> Answers:
    """Answers drawn anew in each run, right about as often as the arm's chance says.

    Problems are as hard in all arms, easier or harder by their set; `first` is the number of an arm's first problem.
    """

    def answers(arm: str, seed: int, stage: str, set_name: str) -> Evaluation:
        hardness_P = np.random.default_rng(zlib.crc32(set_name.encode())).normal(size=problems) * 1.5
        rng = np.random.default_rng([seed, zlib.crc32(f"{arm} {stage} {set_name}".encode())])
        skill = np.log(chances[arm] / (1 - chances[arm])) * 1.3 + {"easy": 1.0, "hard": -1.0}.get(set_name, 0.0)
        chance_P = 1 / (1 + np.exp(hardness_P - skill - 0.02 * rng.normal()))
        return evaluation(rng.random((problems, samples)) < chance_P[:, None], rng.random(problems) < chance_P,
                          set_name, first(arm))  # fmt: skip

    return answers


def write(
    experiment: Experiment, folder: Path, answers: Answers, *, unfinished: Container[tuple[str, int]] = (),
    to_come: Container[tuple[str, int]] = (), **about: object,
) -> Path:  # fmt: skip
    """The experiment's folder.

    Args:
        unfinished: (arm, seed) of runs whose last two stages are to come; to_come: of those that have not begun.
        about: what experiment.json says besides.
    """
    experiments.prepare(experiment, folder, {"name": experiment.recipe.name, "scale": SCALE, "source": "asked.yaml",
                                             "set": [], **about})  # fmt: skip
    for one in experiments.runs_of(experiment, folder):
        if (one.arm, one.seed) in to_come:
            continue
        one.run_dir.mkdir(parents=True)
        recipe = one.recipe.model_dump(mode="json")
        told = {"recipe": recipe, "scale": SCALE, "seed": one.seed, "machine": "2 cores, 24 GiB"}
        (one.run_dir / "run.json").write_text(json.dumps(told))
        stages = one.recipe.all_stages[: -2 if (one.arm, one.seed) in unfinished else None]
        for index, stage in enumerate(stages):
            place = one.run_dir / f"{index:02}-{stage.name}"
            place.mkdir()
            (place / "config.json").write_text(json.dumps({"stage": stage.model_dump(mode="json")}))
            (place / "result.json").write_text(json.dumps({"name": stage.name, "kind": stage.kind, "seconds": 1.0}))
            sets = stage.held_out_sets(one.recipe) if "evaluation" in stage.gives else {}
            for at, name in enumerate(sets):
                found = answers(one.arm, one.seed, stage.name, name)
                (place / (f"evaluation-{name}.json" if at else "evaluation.json")).write_text(found.to_json())
    return folder
