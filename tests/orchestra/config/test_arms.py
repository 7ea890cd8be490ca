"""Arms: overlays of a recipe by name, each an ordinary recipe; and what is said of those that cannot be right."""

import pytest

from orchestra.config.experiment import load_experiment
from orchestra.config.faults import RecipeError, UserError
from orchestra.config.loading import load_recipe

RECIPE = """\
name: mine
model: {base: embedded/student}
problems: {train: embedded, test: embedded}
stages:
  - {name: traces, kind: distill, teacher: embedded/teacher}
  - {name: imitate, kind: sft, data: traces, steps: 100, learning_rate: 1e-4}
  - {name: explore, kind: grpo, steps: 200, learning_rate: 1e-5}
  - {name: polish, kind: grpo, steps: 100, learning_rate: 1e-5, beta: 0.01}
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text, name="mine.yaml"):
        (tmp_path / name).write_text(text)
        return f"./{name}"

    return write


def faults(name, scale=None, sets=()):
    with pytest.raises(RecipeError) as error:
        load_experiment(name, scale, sets)
    return str(error.value).splitlines()


def test_a_recipe_without_arms_is_one_run(written):
    found = load_experiment(written(RECIPE), None)
    assert found.single and found.recipe == load_recipe("./mine.yaml", None)
    assert list(found.runs()) == [("mine", 17)]


def test_an_overlay_changes_keys_and_stages_takes_out_and_puts_in(written):
    arms = """
seeds: [3, 5]
arms:
  plain: {}
  other:
    model: {lora: {rank: 8}}
    stages:
      imitate: {steps: 300}
      polish: null
      look: {kind: evaluate, samples: 2, after: imitate}
"""
    found = load_experiment(written(RECIPE + arms), None)
    plain, other = found.arms["plain"], found.arms["other"]
    assert plain == found.recipe and not found.single
    assert [stage.name for stage in other.stages] == ["traces", "imitate", "look", "explore"]
    assert other.stage("imitate").steps == 300 and other.stage("imitate").learning_rate == 1e-4
    assert other.model.lora.rank == 8 and other.model.lora.alpha == plain.model.lora.alpha
    assert other.model_copy(update={"model": plain.model, "stages": plain.stages}) == plain, "and nothing else"
    # seed by seed
    assert list(found.runs()) == [("plain", 3), ("other", 3), ("plain", 5), ("other", 5)]
    assert found.runs()["other", 5].seed == 5


def test_a_scale_and_overrides_come_after_an_arm(written):
    """`x 0.12` of the embedded scale is that part of what the arm says."""
    name = written(RECIPE + "arms:\n  plain: {}\n  long: {stages: {imitate: {steps: 200}}}\n")
    found = load_experiment(name, "embedded", ["stages.polish.beta=0.5"])
    assert [arm.stage("imitate").steps for arm in found.arms.values()] == [12, 24]
    assert {arm.stage("polish").beta for arm in found.arms.values()} == {0.5}


@pytest.mark.parametrize(("seeds", "wanted"), [("3", (1, 2, 3)), ("[7]", (7,))])
def test_seeds(written, seeds, wanted):
    assert load_experiment(written(f"{RECIPE}seeds: {seeds}\n"), None).seeds == wanted
    assert load_experiment("./mine.yaml", None, (), (9,)).seeds == (9,)


def test_a_file_may_extend_another(written):
    written(RECIPE + "seeds: 2\narms: {plain: {}}\n")
    longer = "extends: ./mine.yaml\nname: longer\nstages: {imitate: {steps: 7}}\n"
    found = load_experiment(written(longer, "b.yaml"), None)
    assert found.recipe.name == "longer" and found.recipe.stage("imitate").steps == 7
    assert found.single, "arms and seeds are not taken over"
    written("extends: ./b.yaml\nname: c\n", "c.yaml")
    assert load_experiment("./c.yaml", None).recipe.stage("imitate").steps == 7
    written("extends: ./c.yaml\nname: b\n", "b.yaml")
    with pytest.raises(UserError, match="extends this file, too"):
        load_experiment("./b.yaml", None)


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ("same: {stages: {imitate: {steps: 100}}}", "arms.same: changes nothing: the recipe has these values already"),
        ("a: {stages: {imitate: {steps: 7}}}\n  b: {stages: {imitate: {steps: 7}}}", "arms.b: is the same as arm 'a'"),
        ("a: {}\n  b: {}", "arms.b: is the same as arm 'a'"),
        ("a: {stages: {imitat: {steps: 7}}}", "arm 'a': stages.imitat: the recipe has no such stage"),
        ("a: {stages: {imitat: {steps: 7}}}", "did you mean 'imitate'?"),
        ("a: {stages: {imitat: null}}", "there is no stage 'imitat' to take out"),
        ("a: {stages: {look: {kind: evaluate}}}", "a stage that is added stands `after` or `before` another"),
        ("a: {stages: {look: {kind: evaluate, after: imitat}}}", "there is no stage 'imitat' for it to stand after"),
        ("a: {stages: {imitate: {stps: 7}}}", "arm 'a': stage 'imitate': stps: unknown key; did you mean 'steps'?"),
        ("a: {stages: {traces: null}}", "arm 'a': stage 'imitate': data: 'traces' is neither an earlier stage"),
        ("a: {stages: {explore: {beta: 0.5}}}", "arm 'a': stage 'polish': beta:"),
        ("a: 3", "arms.a: is not a mapping"),
    ],
)  # fmt: skip
def test_what_an_arm_cannot_be(written, arms, said):
    lines = faults(written(f"{RECIPE}arms:\n  {arms}\n"))
    assert any(said in line for line in lines), lines
    assert all(line.startswith("mine.yaml") for line in lines)


def test_every_fault_of_every_arm_at_once(written):
    arms = "arms:\n  a: {stages: {imitate: {stps: 7}}}\n  b: {modle: {}}\n  c: {seed: x}\n"
    lines = faults(written(RECIPE + arms))
    assert [any(f"arm '{arm}'" in line for line in lines) for arm in "abc"] == [True] * 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("seeds: [1, 1]", "seeds: 1 is there twice"),
        ("seeds: 0", "seeds"),
        (
            "arms: {a: {}}\nreported: {source: x, figures: [{what: y, value: 1.0, arm: b}]}",
            "'b' is no arm of this",
        ),
    ],
)
def test_what_cannot_stand_beside_a_recipe(written, more, said):
    assert any(said in line for line in faults(written(f"{RECIPE}{more}\n")))


def test_the_recipes_own_faults_are_told_once(written):
    text = RECIPE.replace("steps: 200", "stps: 200") + "arms: {a: {}, b: {seed: 3}}\n"
    assert len(faults(written(text))) == 2  # the unknown key, and the missing one
