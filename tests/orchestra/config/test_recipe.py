"""The schema: shipped recipes hold, keys are documented, bad states cannot be made."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel, ValidationError

from orchestra import RECIPES
from orchestra.config.loading import load_recipe
from orchestra.config.recipe import Recipe
from orchestra.config.schema import json_schema
from orchestra.config.yamlfile import read_mapping
from orchestra.stages import kinds
from rewards.settings import Reward
from settings import FREE, SIZE, marked

FILES = sorted(RECIPES.glob("*.yaml"))
SMALL = {
    "name": "small",
    "model": {"base": "embedded/student"},
    "problems": {"train": "embedded", "test": "embedded"},
    "stages": [
        {"name": "traces", "kind": "distill", "teacher": "embedded/teacher"},
        {"name": "imitate", "kind": "sft", "data": "traces", "steps": 3, "learning_rate": 1e-3},
        {"name": "explore", "kind": "grpo", "steps": 3, "learning_rate": 1e-4},
        {"name": "polish", "kind": "grpo", "steps": 3, "learning_rate": 1e-4, "beta": 0.01},
        {"name": "release", "kind": "export"},
    ],
}


def small(**stages: dict[str, Any]) -> dict[str, Any]:
    """The small recipe with keys of stages changed."""
    return {**SMALL, "stages": [{**stage, **stages.get(stage["name"], {})} for stage in SMALL["stages"]]}


def models() -> list[type[BaseModel]]:
    found, todo = [], [Recipe, *kinds().values()]
    while todo:
        model = todo.pop()
        if model in found:
            continue
        found.append(model)
        for field in model.model_fields.values():
            for option in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if isinstance(option, type) and issubclass(option, BaseModel):
                    todo.append(option)
    return found


def test_every_key_is_documented():
    missing = [f"{model.__name__}.{name}" for model in models() for name, field in model.model_fields.items()
               if not field.description]  # fmt: skip
    assert missing == []


def test_a_scale_may_not_change_what_is_learned():
    sized = {name for model in models() for name in marked(model, SIZE)}
    learned = {
        "beta",
        "reference",
        "epsilon",
        "loss_type",
        "keep",
        "data",
        "parent",
        "correct",
        "format",
        "name",
        "kind",
    }
    assert not sized & learned
    assert {"base", "steps", "learning_rate", "teacher", "group_size", "samples"} <= sized


def test_what_is_free_is_only_bookkeeping():
    free = {name for model in models() for name in marked(model, FREE)}
    assert free == {
        "gate", "private", "tag", "save_steps", "report_to", "gpu_memory_utilization", "gradient_checkpointing",
        "may_cost", "min_load",
    }  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("scale", ["none", "embedded", "gpu"])
def test_every_shipped_recipe_is_right_at_every_scale(path, scale):
    recipe = load_recipe(str(path), scale)
    assert recipe.name == path.stem
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_recipe_names_its_schema_and_fits_it(path):
    assert "# yaml-language-server: $schema=recipe.schema.json" in path.read_text().splitlines()[0]
    jsonschema.validate(read_mapping(path), json.loads((RECIPES / "recipe.schema.json").read_text()))


def test_the_json_schema_is_up_to_date():
    assert (RECIPES / "recipe.schema.json").read_text() == json_schema(), "run `orchestra schema`"


def test_the_json_schema_catches_a_typo():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(small(polish={"betaa": 1}), json.loads(json_schema()))


@pytest.mark.parametrize(
    "text, right",
    [
        ({"extends": "40d", "name": "mine", "problems": {"train_limit": 5}}, True),
        ({"extends": "40d", "name": "mine", "stages": {"polish": None, "explore": {"steps": 5}}}, True),
        ({"extends": "40d", "name": "mine", "arms": {"a": {}}, "seeds": 3}, True),
        ({"extends": "40d", "name": "mine", "problems": {"train_limt": 5}}, False),
        ({"extends": "40d", "problems": {"train_limit": 5}}, False),
        ({"name": "mine", "problems": {"train_limit": 5}}, False),
        ({"extends": "40d", "name": "mine", "rollouts": None, "reward": {"format": None}}, True),
        ({"extends": "40d", "name": None}, False),
        ({"extends": "40d", "name": "mine", "arms": {"a": None}, "seeds": [0, 2]}, True),
        ({"extends": "40d", "name": "mine", "arms": {"A b": {}}}, False),
        ({"extends": "40d", "name": "mine", "seeds": [2, 2]}, False),
        ({"extends": "40d", "name": "mine", "seeds": [-1]}, False),
        ({"extends": "40d", "name": "mine", "seeds": 1001}, False),
    ],
)
def test_the_json_schema_of_a_file_that_extends_another(text, right):
    """Such a file need say only what is different, but nothing misspelt, and a name of its own."""
    found = list(jsonschema.Draft202012Validator(json.loads(json_schema())).iter_errors(text))
    assert (not found) == right


def test_the_main_recipe_is_what_it_says():
    recipe = load_recipe("40d", "gpu")
    assert recipe.model.quantize == "nf4" and recipe.model.base == "Qwen/Qwen2.5-3B"
    betas = [stage.beta for stage in recipe.stages if stage.kind == "grpo"]
    assert len(betas) == 3 and betas == sorted(betas) and betas[0] < betas[-1]


def test_a_recipe_is_frozen_and_hashable():
    recipe = Recipe.model_validate(SMALL)
    with pytest.raises(ValidationError):
        recipe.stages[2].beta = 1.0
    assert hash(recipe.stages) == hash(Recipe.model_validate(SMALL).stages)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"polish": {"beta": 0.01}, "explore": {"beta": 0.02}}, "beta: 0.01 is less than 0.02 in stage 'explore'"),
        ({"explore": {"reference": "polish"}}, "reference: 'polish' is not an earlier stage"),
        ({"explore": {"reference": "imitat"}}, "did you mean 'imitate'?"),
        ({"explore": {"reference": "traces"}}, "'traces' is a stage of kind distill"),
        ({"explore": {"name": "imitate"}}, "'imitate' is already the name of an earlier stage"),
        ({"explore": {"name": "base"}}, "has a meaning of its own"),
        ({"explore": {"name": "start"}}, "has a meaning of its own"),
        ({"explore": {"name": "previous"}}, "has a meaning of its own"),
        ({"explore": {"name": "self"}}, "has a meaning of its own"),
        ({"explore": {"name": "discarded"}}, "has a meaning of its own"),
        ({"explore": {"parent": "traces"}}, "parent: 'traces' is a stage of kind distill"),
        ({"imitate": {"data": "trace"}}, "did you mean 'traces'?"),
        (
            {"release": {"kind": "sft", "data": ["traces", "explore"], "steps": 1, "learning_rate": 1e-3}},
            "'explore' is a stage of kind grpo, which gives no traces (possible: traces, .jsonl file)",
        ),
        ({"polish": {"gate": {"against": "traces"}}}, "gate.against: 'traces' is a stage of kind distill"),
        ({"traces": {"teacher": "embedded/student"}}, "'embedded/student' is the base itself; write `teacher: self`"),
        ({"traces": {"gate": {}}}, "a distill stage is not evaluated"),
        ({"imitate": {"batch_size": 8, "micro_batch_size": 3}}, "3 does not divide batch_size (8)"),
    ],
)
def test_stages_must_fit_together(change, message):
    with pytest.raises(ValidationError) as error:
        Recipe.model_validate(small(**change))
    assert message in str(error.value)


def test_beta_may_start_again_on_another_arm():
    arm = {"name": "arm", "kind": "grpo", "steps": 1, "learning_rate": 1e-4, "beta": 0.0, "parent": "imitate"}
    recipe = Recipe.model_validate({**SMALL, "stages": [*SMALL["stages"], arm]})
    assert recipe.parents_of("arm") == ("imitate",)
    with pytest.raises(ValidationError, match="beta must not fall"):
        Recipe.model_validate({**SMALL, "stages": [*SMALL["stages"], {**arm, "parent": "polish"}]})


def test_beta_may_stay_and_may_not_fall_behind_another_kind():
    more = [
        {"name": "again", "kind": "sft", "data": "traces", "steps": 1, "learning_rate": 1e-3},
        {"name": "late", "kind": "grpo", "steps": 1, "learning_rate": 1e-4, "beta": 0.01},
    ]
    recipe = Recipe.model_validate({**SMALL, "stages": [*SMALL["stages"], *more]})
    assert recipe.parents_of("again") == ("polish",) and recipe.parents_of("late") == ("again",)
    more[1]["beta"] = 0.005
    with pytest.raises(ValidationError, match=r"beta: 0\.005 is less than 0\.01 in stage 'polish'"):
        Recipe.model_validate({**SMALL, "stages": [*SMALL["stages"], *more]})


def test_whose_policy_a_stage_takes_up():
    """The nearest trained one before it, what it names, or the base's own with a fresh adapter."""
    recipe = Recipe.model_validate(small(polish={"parent": "imitate"}))
    parents = {stage.name: recipe.parents_of(stage.name) for stage in recipe.all_stages}
    assert parents == {"base": (), "traces": (), "imitate": (), "explore": ("imitate",), "polish": ("imitate",),
                       "release": ("polish",)}  # fmt: skip
    assert Recipe.model_validate(small(polish={"parent": "base"})).parents_of("polish") == ()
    assert [stage.name for stage in recipe.before("explore")] == ["base", "traces", "imitate"]
    assert recipe.before("base") == ()


def test_an_evaluate_stages_own_settings():
    look = {"name": "look", "kind": "evaluate", "problems": "other/set", "limit": 7, "samples": 4, "pass_at_k": [4]}
    recipe = Recipe.model_validate({**SMALL, "problems": SMALL["problems"] | {"test_limit": 9}, "evaluate":
                                    {"temperature": 0.5}, "stages": [*SMALL["stages"], look]})  # fmt: skip
    stage, plain = recipe.stage("look"), recipe.stage("explore")
    assert stage.held_out(recipe) == ("other/set", 7) and plain.held_out(recipe) == ("embedded", 9)
    own = stage.evaluation(recipe)
    assert (own.samples, own.pass_at_k, own.temperature, own.greedy) == (4, (4,), 0.5, True)
    assert plain.evaluation(recipe).samples == 1
    bare = Recipe.model_validate({**SMALL, "stages": [*SMALL["stages"], {"name": "look", "kind": "evaluate"}]})
    assert bare.stage("look").held_out(bare) == ("embedded", None)
    with pytest.raises(ValidationError, match=r"k = 5 needs at least 5 samples \(samples: 4\)"):
        Recipe.model_validate({**SMALL, "stages": [*SMALL["stages"], look | {"pass_at_k": [1, 5]}]})


def test_nothing_to_export():
    stages = [{"name": "release", "kind": "export"}]
    with pytest.raises(ValidationError, match="nothing to export"):
        Recipe.model_validate({**SMALL, "stages": stages})


@pytest.mark.parametrize(
    "wrong",
    [
        {"correct": 0.1, "format": 0.2},
        {"correct": 0},
        {"corect": 1.0},
        {"correct": True},
        {"mine": "1", "file": "rewards.py"},
        {"ungradable_limit": 2.0},
        {"length": -1.0},
        {"correct": 1.0, "brevity": 0.5, "file": "rewards.py"},
        {"correct": 1.0, "brevity": -0.1, "file": "rewards.py"},
        {"brevity": 0.0, "correct": 0.0, "file": "rewards.py"},
    ],
)
def test_wrong_rewards(wrong):
    with pytest.raises(ValidationError):
        Reward.model_validate(wrong)


def test_rewards_of_ones_own():
    reward = Reward.model_validate({"file": "mine.py", "brevity": 0.4, "format": 0})
    assert reward.weights == {"correct": 1.0, "brevity": 0.4}


def test_settings_of_a_stage_override_the_recipes():
    recipe = Recipe.model_validate(small(explore={"group_size": 4, "temperature": 0.7}))
    explore = recipe.stage("explore")
    own = recipe.rollouts.overridden_by(explore)
    assert (own.group_size, own.temperature, own.prompts_per_step) == (4, 0.7, 32)
    assert explore.evaluation(recipe).max_completion_tokens == recipe.rollouts.max_completion_tokens
    with pytest.raises(KeyError):
        recipe.stage("nowhere")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.1", True, -0.1, None, [0.1]])
def test_beta_is_a_number_from_zero(value):
    with pytest.raises(ValidationError):
        Recipe.model_validate(small(polish={"beta": value}))


@pytest.mark.parametrize("name", ["Ünïcode", "with space", "../up", "", "a" * 41, "UPPER", "-x", 5])
def test_names_can_be_folders(name):
    with pytest.raises(ValidationError):
        Recipe.model_validate({**SMALL, "name": name})


def test_no_recipe_without_the_language_server_line():
    assert Path(RECIPES / "recipe.schema.json").is_file() and FILES
