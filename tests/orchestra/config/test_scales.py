"""Scales: what stands for a name of the Hub, what is said of one recipe, and what is not a scale's to change."""

import pytest

from orchestra.config.faults import RecipeError
from orchestra.config.loading import load_recipe

TEXT = """\
name: mine
model: {base: some/base}
problems: {train: openai/gsm8k, test: openai/gsm8k}
stages:
  - {name: traces, kind: distill, teacher: some/teacher}
  - {name: own, kind: distill, teacher: self}
  - {name: imitate, kind: sft, data: [traces, own], steps: 100, learning_rate: 1e-4}
  - {name: look, kind: evaluate, problems: {one: openai/gsm8k, two: some/math}}
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    """load(scale, recipe=TEXT, sets=()) -> the recipe at that scale."""
    monkeypatch.chdir(tmp_path)

    def at(scale, text=TEXT, sets=()):
        (tmp_path / "mine.yaml").write_text(text)
        (tmp_path / "tiny.yaml").write_text(scale)
        return load_recipe("./mine.yaml", "./tiny.yaml", sets)

    return at


def test_what_stands_for_a_name_stands_for_it_everywhere(load):
    recipe = load("instead: {openai/gsm8k: embedded, some/math: embedded:formal, some/teacher: embedded/teacher}\n")
    assert (recipe.problems.train, recipe.problems.test) == ("embedded", "embedded")
    assert recipe.stage("traces").teacher == "embedded/teacher"
    assert recipe.stage("look").problems == {"one": "embedded", "two": "embedded:formal"}
    assert recipe.model.base == "some/base"


def test_what_stands_for_a_name_goes_before_what_is_said_of_the_key(load):
    recipe = load("problems: {train: embedded, test: embedded}\ninstead: {openai/gsm8k: embedded:stories}\n")
    assert recipe.problems.train == "embedded:stories"
    other = TEXT.replace("train: openai/gsm8k", "train: other/set")
    assert load("problems: {train: embedded}\ninstead: {openai/gsm8k: embedded:stories}\n", other).problems.train == (
        "embedded"
    )


@pytest.mark.parametrize("own", ["self", "some/teacher"])
def test_a_word_of_the_project_is_what_is_learned(load, own):
    """Its own traces or a teacher's: another experiment, not another size."""
    recipe = load("kinds: {distill: {teacher: embedded/teacher}}", TEXT.replace("some/teacher", own))
    assert recipe.stage("traces").teacher == {"self": "self", "some/teacher": "embedded/teacher"}[own]
    assert recipe.stage("own").teacher == "self"


def test_files_and_the_domains_own_problems_stay(load, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
    text = TEXT.replace("train: openai/gsm8k", "train: mine.jsonl").replace(
        "test: openai/gsm8k", "test: embedded:formal"
    )
    recipe = load("problems: {train: embedded, test: embedded}\n", text)
    assert (recipe.problems.train, recipe.problems.test) == ("mine.jsonl", "embedded:formal")


def test_a_command_line_has_the_last_word(load):
    scale = "instead: {openai/gsm8k: embedded}\n"
    assert load(scale, sets=["problems.train=embedded:stories"]).problems.train == "embedded:stories"


def test_what_is_said_of_one_recipe_goes_last_and_for_it_alone(load):
    scale = (
        "kinds: {sft: {steps: x 0.5}}\n"
        "instead: {openai/gsm8k: embedded}\n"
        "recipes:\n"
        "  mine: {kinds: {sft: {steps: x 0.1}}, instead: {openai/gsm8k: embedded:stories}}\n"
        "  yours: {kinds: {sft: {steps: 3}}}\n"
    )
    recipe = load(scale)
    # a tenth of the recipe's own 100, not of the half
    assert recipe.stage("imitate").steps == 10 and recipe.problems.train == "embedded:stories"
    other = load(scale, TEXT.replace("name: mine", "name: other"))
    assert other.stage("imitate").steps == 50 and other.problems.train == "embedded"


@pytest.mark.parametrize(
    ("own", "problems"), [("", 16), (", preflight: {max_ratio: 2.0}", 16), (", preflight: false", None)]
)
def test_what_may_be_off_is_cast_and_stays_off(load, own, problems):
    text = TEXT.replace("steps: 100", f"steps: 100{own}")
    found = load("kinds: {sft: {preflight: {problems: 16}}}\n", text).stage("imitate").preflight
    assert (found.problems if problems else found) == (problems or False)
    assert not problems or found.max_ratio == (2.0 if own else 1.25)


def test_a_part_of_a_number_that_the_recipe_does_not_have_is_none(load):
    scale = "kinds: {sft: {evaluate_every: x 0.1, steps: x 0.5}}\n"
    assert load(scale).stage("imitate").evaluate_every is None
    asked = TEXT.replace("steps: 100", "steps: 100, evaluate_every: 20").replace("gsm8k}", "gsm8k, validation: 5}", 1)
    assert load(scale, asked).stage("imitate").evaluate_every == 2


@pytest.mark.parametrize("meant", ["slef", "Self"])
def test_self_misspelt_is_no_model(load, meant):
    with pytest.raises(RecipeError, match="did you mean 'self'"):
        load("kinds: {sft: {steps: 3}}", TEXT.replace("teacher: self", f"teacher: {meant}"))


@pytest.mark.parametrize(("key", "remedy"), [("seeds=3", "--seeds says it"), ("arms.human.steps=3", "the file's own")])
def test_what_is_the_files_own_is_not_set(load, key, remedy):
    with pytest.raises(RecipeError, match=remedy):
        load("kinds: {sft: {steps: 3}}", sets=[key])


def test_a_number_where_text_is_meant(load):
    with pytest.raises(RecipeError, match='in quotes it is text: "21"'):
        load("kinds: {sft: {steps: 3}}", TEXT.replace("name: mine", "name: 21"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("instead: [1]", "instead: [1] is not a mapping"),
        ("instead: {openai/gsm8k: 3}", "instead.openai/gsm8k: 3 is not a name"),
        ("instead: {openai/gsm8k: embeded}", "tiny.yaml (instead.openai/gsm8k): problems.train: 'embeded' is neither"),
        ("kinds: {sft: {steps: x 1e400}}", "kinds.sft.steps: 'x 1e400' of 100 is no number that a computer has"),
        ("kinds: {sft: {steps: x 1.2.3}}", "steps: 'x 1.2.3' is text; a whole number is needed"),
        ("recipes: 3", "recipes: 3 is not a mapping"),
        ("recipes: {mine: 3}", "recipes.mine: 3 is not a mapping"),
        ("recipes: {mine: {recipes: {}}}", "recipes.mine.recipes: a scale has the sections"),
        ("recipes: {mine: {kinds: {sft: {dta: 3}}}}", "recipes.mine.kinds.sft.dta: unknown key"),
        ("recipes: {mine: {kinds: {sft: {data: x}}}}", "never what is learned"),
    ],
)
def test_faults(load, text, said):
    with pytest.raises(RecipeError) as error:
        load(text)
    assert any(said in str(fault) for fault in error.value.faults), [str(fault) for fault in error.value.faults]


def test_a_recipe_whose_name_is_a_number(load):
    """YAML reads `21:` as one."""
    text = TEXT.replace("name: mine", 'name: "21"')
    assert load("recipes: {21: {kinds: {sft: {steps: 7}}}}", text).stage("imitate").steps == 7


def test_a_name_at_a_revision_is_that_name(load):
    text = TEXT.replace("one: openai/gsm8k", "one: openai/gsm8k@0123abc").replace(
        "two: some/math", "two: some/math:hard"
    )
    found = load("instead: {openai/gsm8k: embedded, some/math: embedded:formal}", text).stage("look")
    assert found.problems == {"one": "embedded", "two": "some/math:hard"}, "another configuration is another set"


@pytest.mark.parametrize("wrong", ["lora: 16", "lora: [rank]", "lora: false"])
def test_a_scale_hides_no_fault_of_the_recipe(load, wrong):
    with pytest.raises(RecipeError, match=r"mine\.yaml:2: model\.lora: .* a mapping"):
        load("model: {lora: {rank: 4}}", TEXT.replace("base: some/base}", f"base: some/base, {wrong}}}"))


def test_a_number_that_is_no_float(load):
    with pytest.raises(RecipeError, match="is no number that a computer has"):
        load("kinds: {sft: {steps: x 0.5}}", TEXT.replace("steps: 100", "steps: 1" + "0" * 400))
