"""Validation problems are neither trained on nor tested, the same for every seed, and count where they matter."""

import json
import random

import pytest
import tiny

from orchestra.config.faults import RecipeError, UserError
from orchestra.config.loading import load_recipe
from orchestra.config.recipe import Recipe
from orchestra.run.fingerprint import fingerprint, known_beforehand
from orchestra.run.ledger import Fingerprint, LedgerEntry, StageResult
from orchestra.work.held_out import validation, validation_digest
from orchestra.work.resources import Resources

SWEPT = {"evaluate_every": 1, "steps": 2, "learning_rate": 1e-3}
QUESTIONS = [f"How many legs have {n} cows?" for n in range(30)]
LONG = "Count the birds that sit on the old fence near the river bank every single morning. "


def write(path, questions):
    rows = [{"question": question, "answer": str(i), "solution": "so"} for i, question in enumerate(questions)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def recipe(tmp_path, tiny_path):
    def make(validation, train=QUESTIONS, test=("What is a test?",), seed=17, every=None, further=(), **problems):
        explore = {"name": "explore", "kind": "grpo", "steps": 2, "learning_rate": 1e-3, "evaluate_every": every}
        return Recipe.model_validate(
            {
                "name": "small",
                "seed": seed,
                "model": {"base": str(tiny_path)},
                "problems": {
                    "train": write(tmp_path / "train.jsonl", train) if not isinstance(train, str) else train,
                    "test": write(tmp_path / "test.jsonl", test) if not isinstance(test, str) else test,
                    "validation": validation,
                }
                | problems,
                "rollouts": {"max_completion_tokens": 16, "max_prompt_tokens": 90},
                "stages": [
                    {"name": "traces", "kind": "distill", "teacher": "embedded/teacher", "max_tokens": 20},
                    {"name": "imitate", "kind": "sft", "data": ["traces", str(tmp_path / "train.jsonl")], "steps": 2,
                     "learning_rate": 1e-3},
                    explore,
                    *further,
                ],
            }
        )  # fmt: skip

    return make


def questions(problems):
    return {problem.question for problem in problems}


def test_a_number_of_training_problems_is_kept_out_of_training(recipe):
    resources = Resources(recipe(5, every=1))
    chosen = questions(resources.validation().problems)
    assert len(chosen) == 5 and chosen < set(QUESTIONS)
    asked = resources.train()
    assert questions(asked.problems) == set(QUESTIONS) - chosen and asked.left_out == 5
    # written solutions that an sft stage imitates, too
    written = resources.problems(resources.recipe.stages[1].data[1], "train")
    assert questions(resources.apart(written)) == set(QUESTIONS) - chosen
    assert len(Resources(recipe(None)).train().problems) == 30


def test_it_is_the_same_whatever_seed_order_and_limit(recipe):
    found = questions(validation(recipe(5)))
    shuffled = random.Random(1).sample(QUESTIONS, 30)
    assert questions(validation(recipe(5, train=shuffled))) == found
    assert questions(validation(recipe(5, seed=3, train_limit=7))) == found
    assert found < questions(validation(recipe(6)))
    generated = [recipe(20, train="embedded", test="embedded", seed=seed, train_limit=300) for seed in (1, 2)]
    assert questions(validation(generated[0])) == questions(validation(generated[1]))


def test_no_test_problem_is_among_them(recipe):
    chosen = sorted(questions(validation(recipe(5))))
    other = validation(recipe(5, test=chosen[:2]))
    assert not questions(other) & set(chosen[:2]) and questions(other) >= set(chosen[2:]) and len(other) == 5


def test_a_source_that_overlaps_with_the_test_is_one_message(recipe, tmp_path):
    own = write(tmp_path / "own.jsonl", ["What is new?", LONG + "What is their number?", "What is a test?"])
    made = recipe(own, test=["What is a test?", LONG + "How many birds are there?"], every=1)
    with pytest.raises(UserError) as told:
        made.stage("explore").ready(made)
    assert "\n" not in str(told.value)
    for said in ("problems.validation: 2 of the 3 problems of", "own.jsonl overlap with test problems", "write a num"):
        assert said in str(told.value)
    # an evaluate stage's are test problems as well
    write(tmp_path / "own.jsonl", ["What is new?"])
    look = {"name": "look", "kind": "evaluate", "problems": write(tmp_path / "look.jsonl", ["What is new?"])}
    with pytest.raises(UserError, match="1 of the 1 problems"):
        validation(recipe(own, further=[look]))
    assert questions(validation(recipe(own))) == {"What is new?"}


@pytest.mark.parametrize("number", [30, 31, 10**6])
def test_a_number_that_leaves_nothing_is_told(recipe, number):
    with pytest.raises(UserError, match=rf"validation: {number} of the 30 training problems .* leave nothing"):
        validation(recipe(number))
    assert len(Resources(recipe(29)).train().problems) == 1


def test_a_source_that_holds_all_training_problems_is_told(recipe, tmp_path):
    with pytest.raises(UserError, match=r"all 30 training problems .* overlap with test or validation problems"):
        Resources(recipe(write(tmp_path / "own.jsonl", QUESTIONS))).train()


# in fingerprints


def prints(recipe):
    outputs = {"adapter/adapter_model.safetensors": "a", "traces.jsonl": "t"}
    entries = {
        stage.name: LedgerEntry(stage.name, Fingerprint({}, {}, {}), outputs, StageResult(stage.name, stage.kind))
        for stage in recipe.all_stages
    }
    return {stage.name: fingerprint(recipe, stage, entries) for stage in recipe.all_stages}


def changed(before, after):
    found = {name: after[name].changes_since(before[name]) for name in before}
    return {name: changes for name, changes in found.items() if changes}


def test_what_is_not_trained_on_any_more_counts_where_it_was(recipe, tmp_path):
    """Not in the evaluation of the base, and not where a source takes nothing away."""
    before = prints(recipe(None))
    lost = "training problems left out because they are validation problems"
    assert changed(before, prints(recipe(5))) == {name: [lost] for name in ("traces", "imitate", "explore")}
    assert changed(before, prints(recipe(write(tmp_path / "own.jsonl", ["What is new?"])))) == {}
    assert not any("validation" in key for made in before.values() for key in (*made.config, *made.inputs))


def test_whoever_asks_them_depends_on_them(recipe, tmp_path):
    own = write(tmp_path / "own.jsonl", ["What is new?"])
    before = prints(recipe(own, every=1))
    assert "validation problems" in before["explore"].inputs and "validation problems" not in before["imitate"].inputs
    # another place and another name of the file are no difference, another problem is
    (tmp_path / "moved").mkdir()
    moved = write(tmp_path / "moved" / "same.jsonl", ["What is new?"])
    assert changed(before, prints(recipe(moved, every=1))) == {}
    write(tmp_path / "own.jsonl", ["What is new?", "What else is new?"])
    assert changed(before, prints(recipe(own, every=1))) == {"explore": ["validation problems is another"]}
    assert validation_digest(recipe(own)) != validation_digest(recipe(moved))


def test_a_plan_tells_arms_with_other_validation_problems_apart(recipe):
    """Where it is shared is told without reading problems."""

    def known(number):
        made = recipe(number, every=1 if number else None)
        return {stage.name: known_beforehand(made, stage) for stage in made.all_stages}

    (one, other), alone = (known(5), known(6)), known(None)
    assert [name for name in one if one[name] != other[name]] == ["traces", "imitate", "explore"]
    assert one["base"] == alone["base"]


# in a recipe

TEXT = """\
name: each
model: {base: embedded/student}
problems: {train: embedded, test: embedded%s}
stages:
  - {name: imitate, kind: sft, data: own.jsonl, steps: 4, learning_rate: 1e-3%s}
"""


@pytest.mark.parametrize(
    "problems, stage, said",
    [
        ("", ", evaluate_every: 2", "evaluate_every: 2 needs problems that are neither trained on nor tested; write"),
        (", validation: 9", ", evaluate_every: 5", "evaluate_every: 5 is more than the stage's 4 steps"),
        (", validation: 9", ", keep: best", "'best' is chosen among evaluations on the way; say how often with"),
        (", validation: embedded", ", evaluate_every: 2", "validation: 'embedded' is what `test` names"),
        (", validation: 0", "", "0 must be more than 0"),
        (", validation: true", "", "True is a truth value; a whole number is needed"),
        (", validation: [9]", "", "a list; text is needed"),
        (", validation: embeded", "", "did you mean 'embedded'?"),
        (", validation: gone.jsonl", "", "'gone.jsonl': no such file"),
    ],
    ids=["none", "steps", "best", "test", "zero", "truth", "list", "word", "file"],
)
def test_bad_input_is_one_message(tmp_path, problems, stage, said):
    write(tmp_path / "own.jsonl", tiny.QUESTIONS)
    (tmp_path / "each.yaml").write_text(TEXT % (problems, stage))
    with pytest.raises(RecipeError) as told:
        load_recipe(str(tmp_path / "each.yaml"), None)
    lines = str(told.value).strip().splitlines()
    assert said in lines[-1] and len(lines) == 1, told.value
