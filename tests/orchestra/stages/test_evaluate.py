"""Several held-out sets at once: one evaluation file each, the first one counts, all of them are told and held out."""

import json

import pytest
import tiny
from rich.console import Console

from evals.evaluate import Evaluation, compare
from models.engines.protocol import Completion
from orchestra.config.recipe import Recipe
from orchestra.report.data import read_run
from orchestra.run.progress import Progress
from orchestra.stages import all_kinds
from orchestra.work import policies
from orchestra.work.context import StageContext
from orchestra.work.held_out import held_out
from orchestra.work.resources import Resources

LEAKED = "A farmer walks to the market with nine red apples and sells four of them before noon today."


class One:
    """Says 1 to everything, cut off by nothing."""

    kind = "one"

    def generate(self, prompts, sampling, seeds=None, progress=None):
        return [[Completion([1, 2], "<think>\nso\n</think>\n\\boxed{1}", "stop")] * sampling.n for _ in prompts]


def write(path, golds):
    """Problems with these answers, the first of which is LEAKED where there are more than two."""
    rows = [
        {"id": f"{path.stem}{i}", "question": f"{path.stem}: {tiny.QUESTIONS[i]}", "answer": gold}
        for i, gold in enumerate(golds)
    ]
    if len(golds) > 2:
        rows[0]["question"] = LEAKED
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def recipe(tiny_path, tmp_path):
    (tmp_path / "math").mkdir()
    sets = {"gsm8k": write(tmp_path / "test.jsonl", "11"), "math": write(tmp_path / "math" / "test.jsonl", "1223")}
    return Recipe.model_validate(
        {
            "name": "small",
            "model": {"base": str(tiny_path)},
            "problems": {"train": write(tmp_path / "train.jsonl", "122"), "test": sets["gsm8k"]},
            "rollouts": {"max_completion_tokens": 16, "max_prompt_tokens": 10, "engine": "transformers"},
            "stages": [{"name": "look", "kind": "evaluate", "problems": sets, "samples": 2}],
        }
    )


@pytest.fixture
def looked(recipe, tmp_path, monkeypatch):
    """(the result, what was said, the stage's folder)"""
    resources = Resources(recipe)
    monkeypatch.setattr(policies, "start_policy", lambda context: None)
    monkeypatch.setattr(policies, "serve", lambda context, policy: None)
    monkeypatch.setattr(resources, "engine", lambda *model: One())
    folder, console = tmp_path / "run" / "01-look", Console(record=True, width=200)
    folder.mkdir(parents=True)
    (stage,) = recipe.stages
    context = StageContext(recipe, stage, folder, folder.parent, {}, (), resources, Progress(console))
    return stage.run(context), console.export_text(), folder


def test_each_set_has_a_file_and_the_first_one_counts(looked):
    """Two of two are right, and one of four."""
    result, said, folder = looked
    assert {path.name for path in folder.glob("*.json")} == {"evaluation.json", "evaluation-math.json"}
    first, second = (Evaluation.from_json((folder / name).read_bytes())
                     for name in ("evaluation.json", "evaluation-math.json"))  # fmt: skip
    assert (first.problem_ids, len(second.problem_ids)) == (("test0", "test1"), 4)
    assert (first.sampled.accuracy.estimate, second.sampled.accuracy.estimate) == (1.0, 0.25)
    assert compare(second, second).difference == 0, "as any evaluation can be paired later"
    assert (result.accuracy, result.extra["accuracy_gsm8k"], result.extra["accuracy_math"]) == (1.0, 1.0, 0.25)
    # two samples and a greedy one of six problems, two tokens each
    assert result.tokens == first.tokens + second.tokens == 3 * 6 * 2
    assert "gsm8k: accuracy 100.0" in said and "math: accuracy 25.0" in said


def test_the_report_has_a_row_for_each_set(looked, recipe):
    result, _, folder = looked
    (folder.parent / "run.json").write_text(json.dumps({"recipe": recipe.model_dump(mode="json")}))
    (folder / "result.json").write_text(json.dumps(result.to_json()))
    (record,) = read_run(folder.parent).stages
    assert list(record.sets) == ["gsm8k", "math"] and record.sets["gsm8k"] == record.evaluation
    (part,) = record.parts
    assert part.title == "look: accuracy by held-out problems"
    assert [part.tree[name]["problems"] for name in ("gsm8k", "math")] == [2, 4]
    assert part.tree["math"]["accuracy"].startswith("25.0") and "[" in part.tree["math"]["accuracy"]
    (folder / "evaluation-math.json").write_text("{")
    run = read_run(folder.parent)
    assert list(run.stages[0].sets) == ["gsm8k"] and "01-look/evaluation-math.json could not be read" in run.notes[0]


def test_none_of_the_sets_is_trained_on(recipe):
    """A training problem stands in the second set only; the engine has room for the prompts of all sets."""
    sources = [source for source, _ in held_out(recipe)]
    assert sources == [recipe.problems.test, recipe.stages[0].problems["math"]]
    resources = Resources(recipe)
    problems = resources.problems(recipe.problems.train, "train")
    assert [problem.id for problem in problems if problem not in resources.apart(problems)] == ["train0"]
    longest = max(len(ids) for ids in resources.test(recipe.stages[0], of="math").tokens)
    assert resources._prompt_budget(recipe.model.base) == longest > 10


def test_what_is_said_of_several_sets(recipe):
    (stage,) = recipe.stages
    assert stage.summary(recipe) == "evaluate base on gsm8k, math"
    assert Recipe.model_validate(json.loads(recipe.model_dump_json())) == recipe
    swapped = dict(reversed(stage.problems.items()))
    other = all_kinds()["evaluate"].model_validate(stage.model_dump(mode="json") | {"problems": swapped})
    assert other != stage and hash(other) != hash(stage), "which one comes first is a part of what it says"
