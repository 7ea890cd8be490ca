"""Runs beside one another: what is compared with what, and what is said of it. The numbers are evals/arms.py's."""

import json

import numpy as np
import pytest
from rich.console import Console

from evals.evaluate import Evaluation, Pass
from evals.statistics import accuracy
from orchestra.config.faults import UserError
from orchestra.report.arms import as_json, compare_runs, notes, table
from orchestra.run.folder import find_run

STAGES = [
    {"name": "imitate", "kind": "sft", "data": ["x.jsonl"], "steps": 1, "learning_rate": 1e-3},
    {"name": "polish", "kind": "grpo", "steps": 1, "learning_rate": 1e-3},
]


def evaluation(chance, seed, problems=200, first=0):
    """Each problem right with this chance, twice."""
    correct = (np.random.default_rng(seed).random((problems, 2)) < chance).astype(int)

    def one(temperature, correct):
        rows = tuple(map(tuple, correct.tolist()))
        return Pass(temperature, rows, accuracy(correct, 0.95), 9.0, 0.0, 1.0, 0, 9, 1.0)

    ids = tuple(f"p{first + i}" for i in range(problems))
    return Evaluation(ids, ("x",) * problems, one(1.0, correct), one(0.0, correct[:, :1]), {}, (), 0)


def write_run(run, seed, chance, *, finished=True, **more):
    for i, name in enumerate(("imitate", "polish"), 1):
        folder = run / f"{i:02}-{name}"
        folder.mkdir(parents=True)
        if finished or name == "imitate":
            found = evaluation(chance if name == "polish" else 0.1, seed, **more)
            (folder / "evaluation.json").write_text(found.to_json())
    recipe = {"name": "r", "seed": seed, "model": {"base": "embedded/student"}, "stages": STAGES,
              "problems": {"train": "embedded", "test": "embedded"}, "chance": chance}  # fmt: skip
    (run / "run.json").write_text(json.dumps({"recipe": recipe}))
    return run


@pytest.fixture
def experiment(tmp_path):
    """Two arms, 0.4 and 0.7, of three seeds; the last run of the second is not finished."""
    folder = tmp_path / "asked-embedded"
    for arm, chance in (("plain", 0.4), ("better", 0.7)):
        for seed in (1, 2, 3):
            write_run(folder / arm / f"seed-{seed}", seed, chance, finished=(arm, seed) != ("better", 3))
    (folder / "experiment.json").write_text(json.dumps({"arms": ["plain", "better"], "seeds": [1, 2, 3]}))
    return folder


def test_an_experiments_arms(experiment):
    found = compare_runs([experiment])
    plain, better = found.comparison.rows
    assert (plain.arm, better.arm) == ("plain", "better")
    assert (plain.seeds, better.seeds) == ((1, 2, 3), (1, 2))
    assert plain.accuracy.estimate == pytest.approx(0.4, abs=0.05)
    assert better.difference.difference == pytest.approx(0.3, abs=0.06)
    assert found.stages == {"plain": "polish", "better": "polish"} and found.unfinished == ("better, seed 3",)
    assert "not finished: better, seed 3" in notes(found)
    told = json.loads(as_json(found))
    assert told["rows"][1]["difference"]["p_holm"] == better.difference.p_holm and told["of"] == "sampled"
    console = Console(record=True, width=200)
    console.print(table(found))
    assert better.verdict in console.export_text()


def test_another_stage_and_the_greedy_pass(experiment):
    assert compare_runs([experiment], "imitate").comparison.rows[0].accuracy.estimate < 0.2
    assert compare_runs([experiment], of="greedy").comparison.rows[0].accuracy.estimate == pytest.approx(0.4, abs=0.1)


def test_separate_runs_of_one_recipe_are_one_arm(tmp_path):
    runs = [write_run(tmp_path / f"a{seed}", seed, 0.5) for seed in (1, 2)] + [write_run(tmp_path / "b", 1, 0.5001)]
    rows = compare_runs(runs).comparison.rows
    assert [(row.arm, row.seeds) for row in rows] == [("a1", (1, 2)), ("b", (1,))]
    again = write_run(tmp_path / "c", 1, 0.5)
    with pytest.raises(UserError, match="two runs of arm 'a1' have the seed 1"):
        compare_runs([*runs, again])


def test_other_problems(tmp_path):
    """Only the common ones, and it is said; none: refused."""
    one, other = write_run(tmp_path / "one", 1, 0.5), write_run(tmp_path / "other", 1, 0.6, first=50)
    found = compare_runs([one, other])
    assert found.comparison.problems == 150 and "100 problems were not asked in all runs and are left out" in notes(
        found
    )
    with pytest.raises(UserError, match="problem"):
        compare_runs([one, write_run(tmp_path / "third", 1, 0.7, first=1000)])


def test_nothing_to_compare(tmp_path):
    with pytest.raises(UserError, match="no run has been evaluated yet"):
        compare_runs([write_run(tmp_path / "one", 1, 0.5, finished=False)])


def test_an_experiment_is_no_run(experiment):
    with pytest.raises(UserError, match=r"holds an experiment; `orchestra compare .*better/seed-1"):
        find_run(str(experiment))
    assert find_run(str(experiment / "plain" / "seed-1"))
