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
        ("a: {seed: 5}", "mine.yaml:10: arm 'a': seed: is not an arm's to change"),
        ("a: {name: other}", "arm 'a': name: is not an arm's to change"),
        ("a: {stages: {imitate: {after: polish, steps: 7}}}", "stages.imitate.after: the recipe has this stage"),
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
        ("seeds: 0", "seeds: 0: from 1 to 1000, or a list of seeds"),
        ("seeds: 1001", "seeds: 1001: from 1 to 1000"),
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


def test_an_override_is_for_the_arms_that_have_what_it_names(written):
    """An arm without a stage is not a reason to leave the stage as it is in the others."""
    more = "arms:\n  a: {}\n  b: {stages: {polish: null}}\n  c: {stages: {look: {kind: evaluate, after: polish}}}\n"
    name = written(RECIPE + more)
    found = load_experiment(name, None, ["stages.polish.steps=3", "stages.look.samples=2", "stages.l*.limit=5"])
    assert [found.arms[arm].stage("polish").steps for arm in "ac"] == [3, 3]
    assert (found.arms["c"].stage("look").samples, found.arms["c"].stage("look").limit) == (2, 5)
    assert [stage.name for stage in found.arms["b"].stages] == ["traces", "imitate", "explore"]
    assert faults(name, None, ["stages.polsh.steps=3"])[0].endswith("did you mean 'polish'?")
    assert "no such stage has the key 'beat'" in faults(name, None, ["stages.*.beat=3"])[0]


def test_a_seed_beside_seeds_would_do_nothing(written):
    name = written(RECIPE + "seeds: [4, 5]\n")
    assert faults(name, None, ["seed=2"]) == [
        "--set seed=2: does nothing: the recipe is run under the seeds 4, 5; say how many with --seeds"
    ]
    assert load_experiment(written(RECIPE), None, ["seed=2"]).recipe.seed == 2


def test_a_recipe_that_extends_another_is_cast_as_that_one(written):
    """What a scale says of a recipe holds for what is made of that: `ssd` has its 64 steps, not 0.12 of them."""
    said = "mine: {kinds: {sft: {steps: 60}}}, c: {stages: {explore: {steps: 9}}}"
    written(f"kinds: {{sft: {{steps: x 0.1}}}}\nrecipes: {{{said}}}\n", "tiny.yaml")
    written(RECIPE)
    written("extends: mine.yaml\nname: b\n", "b.yaml")
    found = load_experiment(written("extends: ./b.yaml\nname: c\n", "c.yaml"), "./tiny.yaml").recipe
    assert (found.stage("imitate").steps, found.stage("explore").steps) == (60, 9)
    assert load_experiment("./b.yaml", "./tiny.yaml").recipe.stage("explore").steps == 200
    for scale in ("embedded", "gpu", None):
        mine = load_experiment(written("extends: ssd\nname: my-ssd\n", "my.yaml"), scale).recipe
        assert mine.model_copy(update={"name": "ssd"}) == load_experiment("ssd", scale).recipe


def test_a_recipe_in_another_folder_is_extended(written, tmp_path):
    """It is found beside the file that names it, and what it names beside itself."""
    (tmp_path / "deep").mkdir()
    for folder, answer in (("deep", 2), (".", 3)):
        (tmp_path / folder / "p.jsonl").write_text(f'{{"question": "1 + 1", "answer": "{answer}"}}\n')
    written(RECIPE.replace("train: embedded", "train: p.jsonl"), "deep/root.yaml")
    written("extends: root.yaml\nname: middle\n", "deep/middle.yaml")
    found = load_experiment(written("extends: deep/middle.yaml\nname: own\n"), None).recipe
    assert found.problems.train == str(tmp_path / "deep" / "p.jsonl")
    found = load_experiment(written("extends: deep/root.yaml\nname: own\nproblems: {train: p.jsonl}\n"), None).recipe
    assert found.problems.train == "p.jsonl"


@pytest.mark.parametrize(
    ("root", "own", "said"),
    [
        ("", "extends: mine\nname: a", "b.yaml: extends: no recipe is called 'mine'"),
        ("", "extends: ./mine.yaml\nname: mine", "b.yaml:2: name: 'mine' is that recipe's own; a recipe that extends"),
        ("", "extends: ./mine.yaml\nname:", "b.yaml:2: name: is missing; a recipe that extends"),
        ("", "extends: ./mine.yaml\nname: a\nstages: [{name: a, kind: evaluate, limit: -1}]",
         "b.yaml:3: stage 'a': limit: -1"),
        ("extends: 3\n", "extends: ./mine.yaml\nname: a", "mine.yaml:1: extends: 3 is no recipe's name"),
        ("extends: [a]\n", "extends: ./mine.yaml\nname: a", "mine.yaml:1: extends: ['a'] is no recipe's name"),
        ("sed: 3\n", "extends: ./mine.yaml\nname: a", "mine.yaml, which b.yaml extends: sed: unknown key"),
        ("", "extends: ./mine.yaml\nname: a\nstages: {traces: null}",
         "mine.yaml, which b.yaml extends: stage 'imitate': data: 'traces' is neither"),
        ("", "extends: ./mine.yaml\nname: a\nstages: {traces: null, imitate: null,\n  polish: {steps: -1}}",
         "b.yaml:4: stage 'polish': steps: -1"),
        ("", "extends: ./mine.yaml\nname: a\nstages: {1: {kind: evaluate, after: polish, limit: -1}}",
         "b.yaml:3: stage '1': limit: -1"),
    ],
)  # fmt: skip
def test_faults_of_files_that_extend_others_say_which_file(written, root, own, said):
    written(root + RECIPE)
    with pytest.raises(UserError) as error:
        load_experiment(written(own + "\n", "b.yaml"), None)
    assert any(line.startswith(said) for line in str(error.value).splitlines()), str(error.value)


def test_a_fault_of_a_stage_that_has_moved_has_no_other_stages_line(written):
    lines = faults(written(RECIPE + "arms:\n  a: {stages: {traces: null}}\n"))
    assert [line for line in lines if line.startswith("mine.yaml: arm 'a': stage 'imitate': data: 'traces' is")], lines
