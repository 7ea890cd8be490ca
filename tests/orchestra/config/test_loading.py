"""Loading: files, scales and overrides, and what is said about every mistake."""

import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra.config import loading as load
from orchestra.config.faults import RecipeError, UserError
from orchestra.config.loading import choose_scale, load_recipe, unknown_in_scales
from orchestra.config.recipe import Recipe
from orchestra.config.yamlfile import parse
from orchestra.plan import machine

TEXT = """\
name: mine
model: {base: embedded/student}
problems: {train: embedded, test: embedded}
stages:
  - {name: traces, kind: distill, teacher: embedded/teacher}
  - {name: imitate, kind: sft, data: traces, steps: 100, learning_rate: 1e-4}
  - {name: explore, kind: grpo, steps: 200, learning_rate: 1e-5}
"""
BOMB = "a0: &a0 [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9)
)


@pytest.fixture
def written(tmp_path, monkeypatch):
    """written(text) -> path, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="mine.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"./{name}"

    return write


def faults(name, scale=None, sets=()):
    with pytest.raises(RecipeError) as error:
        load_recipe(name, scale, sets)
    return str(error.value).splitlines()


def test_exponents_are_numbers(written):
    assert load_recipe(written(TEXT), None).stages[1].learning_rate == 1e-4


def test_every_mistake_at_once_with_file_line_stage_key_and_remedy(written):
    text = TEXT.replace("steps: 200", "stps: 200, reference: imitat").replace("name: mine", "name: mine\nsed: 4")
    lines = faults(written(text + "rollouts: {group_size: 1}\n"))
    assert lines == [
        "mine.yaml:2: sed: unknown key; did you mean 'seed'?",
        "mine.yaml:9: rollouts.group_size: 1 must be at least 2",
        "mine.yaml:8: stage 'explore': reference: 'imitat' is not an earlier stage (earlier: traces, imitate); "
        "did you mean 'imitate'?",
        "mine.yaml:8: stage 'explore': steps: missing; optimizer steps",
        "mine.yaml:8: stage 'explore': stps: unknown key; did you mean 'steps'?",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("# only a comment", "is empty"),
        ("- a\n- b", "holds a list; a mapping"),
        ("just text", "holds a text"),
        ("name: a\nname: b", 'bad.yaml:2: found duplicate key "name"; keep one of the two'),
        ("name: [1, 2", "bad.yaml:1: not YAML"),
        ("name: a\n\tseed: 1", "bad.yaml:2: "),
        ("name: a\n---\nname: b", "a second document"),
        ("name: !!python/object:os.system x", "bad.yaml:1: a tag"),
        ("name: !!timestamp x", "bad.yaml"),
        ("name: 'open", "not YAML"),
        ("name: *nowhere", "not YAML"),
        ("? [a, b]\n: 1", "is not a possible key"),
        ("name: 2020-01-01", "is a date or binary"),
        ("name: &a [*a]", "an alias"),
        (b"name: \xff\xfe", "byte 6 is not UTF-8"),
        (b"name: a\x00b", "is not YAML"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested"),
        ("x: " + "y" * 1_000_000, "is 1,000,003 bytes; a recipe has at most 262,144"),
        ("a: {<<: [{b: 1}], <<: 3}", "bad.yaml"),
        (BOMB, "holds more than 20,000 values"),
    ],
)  # fmt: skip
def test_what_is_not_a_recipe_is_one_message(written, text, said):
    lines = faults(written(text, "bad.yaml"))
    assert len(lines) == 1 and lines[0].startswith("bad.yaml") and said in lines[0], lines


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps: 200", "steps: '200'", "'200' is text; a whole number is needed; remove the quotes"),
        ("steps: 200", "steps: 200.0", "200.0 is a decimal number; a whole number is needed"),
        ("steps: 200", "steps: yes", "'yes' is text; a whole number is needed"),
        ("steps: 200", "steps: true", "True is a truth value; a whole number is needed"),
        ("steps: 200", "steps: null", "has no value; a whole number is needed"),
        ("steps: 200", "steps: 0", "0 must be more than 0"),
        ("steps: 200", "steps: [200]", "[200] is a list; a whole number is needed"),
        ("steps: 200", "steps: 99999999999999999999", "must be at most"),
        ("kind: grpo", "kind: gpro", "'gpro' is not one of distill, evaluate, export, grow, grpo, merge, "
                                     "mixture, panel, preflight, probe, route, sft, solutions; did you mean 'grpo'?"),
        ("kind: grpo, ", "", "kind: missing; one of"),
        ("kind: grpo", "kind: [grpo]", "is not one of distill"),
        ("name: explore", "name: Explore", "use lower-case letters"),
        ("name: explore", "name: 'größe'", "use lower-case letters"),
        ("name: explore, ", "", "stage number 3: name: missing"),
        ("1e-5", ".nan", "nan is not a finite number"),
        ("model: {base: embedded/student}", "model: embedded/student", "a mapping (`key: value`) is needed with base"),
        ("model: {base: embedded/student}", "model: {}", "model.base: missing; hub id"),
        ("model: {base: embedded/student}", "model: {base: ''}", "model.base: must not be empty"),
        ("  - {name: traces", "  - 5\n  - {name: traces", "stage number 1: 5 is a whole number; a mapping"),
        ("train: embedded", "train: nowhere.jsonl", "problems.train: 'nowhere.jsonl': no such file"),
        ("train: embedded", "train: embeded", "problems.train: 'embeded' is neither embedded nor embedded:stories"),
        ("test: embedded", "test: embedded, format: think-boxd", "is not a format (known: think-boxed"),
        ("base: embedded/student", "base: embedded/studnt", "did you mean 'embedded/student'?"),
        ("base: embedded/student", "base: /nowhere/at/all", "is not a folder with a model"),
        ("teacher: embedded/teacher", "teacher: embedded/theacher", "teacher: 'embedded/theacher' is not shipped"),
        ("train: embedded", "train: .", "problems.train: '.': is a folder"),
        ("data: traces", "data: more/traces.jsonl", "stage 'imitate': data: 'more/traces.jsonl': no such file"),
        ("data: traces", "data: {traces: 0}", "stage 'imitate': data.traces: 0 must be more than 0"),
        ("data: traces", "data: {traces: half}", "data.traces: 'half' is text; a number is needed"),
        ("data: traces", "data: {}", "data: must not be empty"),
        ("data: traces", "data: 5", "data: 5 is a whole number; a list is needed"),
        ("data: traces", "data: {traces: 1, trace: 1}", "data: 'trace' is neither an earlier stage"),
        ("data: traces", "data: {traces: 1, a/b.jsonl: 1}", "data: 'a/b.jsonl': no such file"),
        ("data: traces", "data: traces, at_most: 0", "at_most: 0 must be more than 0"),
        ("data: traces", "data: traces, pass_rate: [0.75, 0.25]", "pass_rate: the lower bound comes first"),
        ("data: traces", "data: more/traces", "stage 'imitate': data: 'more/traces': no such file"),
        ("name: mine", "name: mine\nreward: {file: mine.py}", "reward.file: 'mine.py': no such file"),
    ],
)  # fmt: skip
def test_messages(written, old, new, said):
    assert old in TEXT
    lines = faults(written(TEXT.replace(old, new)))
    assert any(said in line for line in lines), lines
    assert all(line.startswith("mine.yaml") for line in lines)


def test_local_files_are_found_beside_the_recipe_too(written, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "train.jsonl").write_text("{}")
    recipe = load_recipe(written(TEXT.replace("train: embedded", "train: train.jsonl"), "sub/mine.yaml"), None)
    assert os.path.samefile(recipe.problems.train, tmp_path / "sub" / "train.jsonl")


def test_sources_with_shares_are_found_like_others(written, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.jsonl").write_text("{}")
    text = TEXT.replace("data: traces", "data: {traces: 3, mine.jsonl: 1}, at_most: {n}, pass_rate: {band}")
    recipe = load_recipe(written(text.replace("{n}", "2").replace("{band}", "[0, 1]"), "sub/mine.yaml"), None)
    data = recipe.stage("imitate").data
    assert dict(data) == {"traces": 3, data_file(data): 1} and os.path.samefile(data_file(data), "sub/mine.jsonl")
    assert recipe.stage("imitate").summary(recipe) == "sft on 75% traces, 25% mine.jsonl (at most 2), 100 steps"
    assert hash(recipe.stages) and Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    with pytest.raises(TypeError):
        data["traces"] = 5
    lines = faults(written(text.replace("{n}", "1").replace("{band}", "[0.25, 0.75]"), "sub/mine.yaml"))
    assert any("at_most: 1 is less than one trace of each of the 2 sources" in line for line in lines)
    assert any("mine.jsonl': written solutions have no pass rate; only traces do" in line for line in lines)


@pytest.mark.parametrize(
    ("problems", "said"),
    [
        ("{gsm8k: embeded}", "problems.gsm8k: 'embeded' is neither embedded nor embedded:stories"),
        ("{gsm8k: nowhere.jsonl}", "problems: 'nowhere.jsonl': no such file"),
        ("{GSM 8K: embedded}", "'GSM 8K': use lower-case letters"),
        ("{gsm8k: 5}", "problems.gsm8k: 5 is a whole number; text is needed"),
        ("{}", "problems: must not be empty"),
        ("[embedded]", "problems: ['embedded'] is a list; text is needed"),
    ],
)  # fmt: skip
def test_held_out_sets_that_are_none(written, problems, said):
    text = TEXT + f"  - {{name: look, kind: evaluate, problems: {problems}}}\n"
    lines = faults(written(text))
    assert any("stage 'look'" in line and said in line for line in lines), lines


def test_two_files_of_one_name_could_not_be_told_apart(written, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_text("{}")
    for data in ("[a/x.jsonl, b/x.jsonl]", "{a/x.jsonl: 1, b/x.jsonl: 2}"):
        (line,) = faults(written(TEXT.replace("data: traces", f"data: {data}")))
        assert "stage 'imitate': data: two files are called 'x.jsonl'; rename one" in line


def data_file(data):
    return next(name for name in data if name.endswith(".jsonl"))


def test_a_band_that_the_traces_have_not_is_a_fault(written):
    text = TEXT.replace("data: traces", "data: traces, pass_rate: [0, 0.25]")
    assert load_recipe(written(text), None)
    (line,) = faults(written(text.replace("kind: distill", "kind: distill, pass_rate: [0.5, 1]")))
    assert "pass_rate: [0.0, 0.25] leaves nothing of 'traces', which keeps [0.5, 1.0]" in line


def test_a_file_beside_the_recipe_comes_before_one_in_the_working_directory(written, tmp_path):
    """But what the command line names is what lies where the user is."""
    text = TEXT + "reward: {file: mine.py, mine: 0.2}\n"
    path = written(text, "sub/mine.yaml")
    for folder in (tmp_path, tmp_path / "sub"):
        (folder / "mine.py").write_text("def mine(): ...\n")
    assert os.path.samefile(load_recipe(path, None).reward.file, tmp_path / "sub" / "mine.py")
    for override in ("reward.file=mine.py", "reward={file: mine.py, mine: 0.2}"):
        assert os.path.samefile(load_recipe(path, None, [override]).reward.file, tmp_path / "mine.py")
    (tmp_path / "sub" / "mine.py").unlink()
    assert os.path.samefile(load_recipe(path, None).reward.file, tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("source", "reward", "said"),
    [
        ("def mine(): ...", "{file: mine.py, mine: 0.5}", "reward: a wrong answer could beat a right one"),
        ("def mine(): ...", "{file: mine.py, mine: -0.1}", "reward.mine: -0.1 must be at least 0"),
        ("def mein(): ...", "{file: mine.py, mine: 0.1}", "reward.mine: mine.py does not define a function of this"),
        ("def mine(:", "{file: mine.py, mine: 0.1}", "reward.file: mine.py is not Python"),
    ],
)
def test_rewards_that_could_not_be_built(written, tmp_path, source, reward, said):
    (tmp_path / "mine.py").write_text(source)
    (line,) = faults(written(TEXT + f"reward: {reward}\n"))
    assert line.startswith("mine.yaml:8") and said in line


def test_files_need_not_be_there_where_only_the_recipe_is_read(written):
    path = written(TEXT.replace("train: embedded", "train: nowhere.jsonl"))
    assert load_recipe(path, None, files=False).problems.train == "nowhere.jsonl"
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(path, None)


def test_ones_own_recipe_comes_before_the_shipped_one(written):
    written(TEXT, "recipes/40d.yaml")
    assert load_recipe("40d", None).name == "mine"


def test_which_recipe(written, tmp_path):
    (tmp_path / "recipes").mkdir()
    written(TEXT, "recipes/mine.yaml")
    assert load_recipe("mine", None).name == "mine"
    with pytest.raises(UserError, match="did you mean 'mine'"):
        load_recipe("mien", None)
    with pytest.raises(UserError, match="there is no such file"):
        load_recipe("./nothing.yaml", None)
    with pytest.raises(UserError, match="is a folder"):
        load_recipe("./recipes/", None)
    with pytest.raises(UserError, match="did you mean 'embedded'"):
        load_recipe("mine", "embeded")


# the base, as far as its config.json is at hand


@pytest.mark.parametrize(
    ("config", "targets", "said"),
    [
        (
            '{"model_type": "phi3"}', "targets: [qkv_proj, q_proj]",
            "mine.yaml:2: model.lora.targets: 'q_proj' is no linear layer of phi3; it has qkv_proj, o_proj, "
            "gate_up_proj, down_proj, and all-linear means all of them; did you mean 'qkv_proj'?",
        ),
        ('{"model_type": "llama"}', "targets: all_linear", "all-linear means all of them"),
        (
            '{"model_type": "mixtral", "num_local_experts": 8}', "targets: o_proj",
            "mine.yaml:2: model.base: './here' is a mixture of experts (mixtral, 8 of them), whose experts neither NF4 "
            "nor an adapter reaches; take a dense base (such a model may teach)",
        ),
        ('{"model_type": "gemma3", "vision_config": {}}', "rank: 4", "base: './here' is not a model of text alone"),
    ],
)  # fmt: skip
def test_what_the_base_cannot_do_is_one_line(written, config, targets, said):
    written(config, "here/config.json")
    text = TEXT.replace("{base: embedded/student}", f"{{base: ./here, lora: {{{targets}}}}}")
    (line,) = faults(written(text))
    assert said in line
    # another model may be whatever it is: it only writes traces
    other = TEXT.replace("teacher: embedded/teacher", "teacher: ./here")
    assert load_recipe(written(other), None).stages[0].teacher == "./here"


@pytest.mark.parametrize(
    ("config", "lora"),
    [
        ('{"model_type": "phi3"}', "{targets: [qkv_proj, layers.1.self_attn.o_proj]}"),
        ('{"model_type": "phi3"}', "{targets: all-linear}"),
        ('{"model_type": "phi3"}', "{}"),
        ('{"model_type": "never_heard_of"}', "{targets: [q_proj]}"),
        ("not json", "{targets: [anything]}"),
    ],
)
def test_what_the_base_can_do_or_nobody_knows_yet_is_valid(written, config, lora):
    written(config, "here/config.json")
    load_recipe(written(TEXT.replace("{base: embedded/student}", f"{{base: ./here, lora: {lora}}}")), None)


# overrides


@pytest.mark.parametrize(
    ("sets", "get", "value"),
    [
        (["seed=2"], lambda recipe: recipe.seed, 2),
        (["stages.explore.beta=1e-3"], lambda recipe: recipe.stages[2].beta, 1e-3),
        (["model.lora.rank=8"], lambda recipe: recipe.model.lora.rank, 8),
        (["stages.*.steps=3"], lambda recipe: [stage.steps for stage in recipe.stages[1:]], [3, 3]),
        (["stages.explore.gate.min_difference=-0.5"], lambda recipe: recipe.stages[2].gate.min_difference, -0.5),
        (["model.lora.targets=[q_proj]"], lambda recipe: recipe.model.lora.targets, ("q_proj",)),
        (["evaluate.samples=2", "evaluate.pass_at_k=[1, 2]"], lambda recipe: recipe.evaluate.pass_at_k, (1, 2)),
        (["stages.explore.steps=1", "stages.explore.steps=2"], lambda recipe: recipe.stages[2].steps, 2),
        (["problems.train_limit="], lambda recipe: recipe.problems.train_limit, None),
        (["model.lora=", "model.lora.rank=8"], lambda recipe: recipe.model.lora.rank, 8),
    ],
)
def test_set(written, sets, get, value):
    assert get(load_recipe(written(TEXT), None, sets)) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("stages..beta=3", "write it as key=value"),
        ("seed=x", "--set seed=x: seed: 'x' is text; a whole number is needed"),
        ("sed=2", "sed: unknown key; did you mean 'seed'?"),
        ("seed.x=2", "seed is 17, which has no keys"),
        (
            "stages.explor.beta=0",
            "no stage is called 'explor' (stages: traces, imitate, explore); did you mean 'explore'?",
        ),
        ("stages.explore=3", "name a key of the stage too"),
        ("stages.*.stepz=3", "no such stage has the key 'stepz'; did you mean 'steps'?"),
        ("stages.explore.betta=3", "stage 'explore': betta: unknown key; did you mean 'beta'?"),
        ("stages.explore.beta=[", "not YAML"),
        ("stages.explore.beta=!mine 3", "a tag"),
        ("stages=3", "3 is a whole number; a list is needed"),
        ("stages.explore.gate={mind_difference: 3}", "gate.mind_difference: unknown key; did you mean"),
        ("model=3", "a mapping (`key: value`) is needed"),
        ("[=", "[: unknown key"),
        ("stages.explore.[names]=3", "stage 'explore': [names]: unknown key"),
        ("=:²", "write it as key=value"),
        ("problems.train=/nowhere/x.jsonl", "problems.train: '/nowhere/x.jsonl': no such file"),
    ],
)
def test_wrong_set(written, text, said):
    lines = faults(written(TEXT + "seed: 17\n"), None, [text])
    assert len(lines) == 1 and lines[0].startswith("--set") and said in lines[0], lines


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40), st.text(max_size=30))
def test_no_override_ends_in_anything_but_a_message(key, value):
    try:
        load_recipe("40d", "embedded", [f"{key}={value}", f"stages.explore.{key}={value}"])
    except UserError as error:
        assert str(error)


@pytest.mark.parametrize("key", ["[x", "[mapping]", "problems.[x]", "stages.imitate.[x"])
def test_an_unknown_key_may_be_called_anything(key):
    with pytest.raises(UserError, match=re.escape(key.rpartition(".")[2]) + ".*unknown key"):
        load_recipe("40d", "embedded", [f"{key}=1"])


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from(list("ab:-[]{}&*!#|>'\"%@`,? \n\t0é🙂")), max_size=60))
def test_no_text_ends_in_anything_but_a_message(text):
    try:
        parse(text, "here")
    except RecipeError as error:
        assert str(error).startswith("here")


# scales


def scale_of(written, text):
    return written(text, "scales/tiny.yaml")


def test_a_scale_casts_the_recipe(written):
    path = scale_of(written, "kinds: {grpo: {steps: x 0.15, learning_rate: x 30}}\nstages: {imitate: {steps: 7}}\n"
                             "model: {base: other/base, lora: {rank: 8}}\n")  # fmt: skip
    recipe = load_recipe(written(TEXT), path)
    assert (recipe.stages[2].steps, recipe.stages[2].learning_rate, recipe.stages[1].steps) == (30, 3e-4, 7)
    assert (recipe.model.base, recipe.model.lora.rank) == ("other/base", 8)
    assert load_recipe(written(TEXT), path, ["stages.explore.steps=4"]).stages[2].steps == 4


@pytest.mark.parametrize(
    ("scale", "steps"),
    [
        ("kinds: {grpo: {steps: x 0.5}}", 100),
        ("kinds: {grpo: {steps: x 0.5}}\nstages: {explore: {steps: x 0.1}}", 20),  # of the recipe's own 200, not of 100
        ("stages: {explore: {steps: 7}}\nkinds: {grpo: {steps: 9}}", 7),  # what is said of one stage counts, wherever
        ("kinds: {grpo: {steps: x 0.148}}", 30),  # 29.6
        ("kinds: {grpo: {steps: x 1e-4}}", 1),  # not 0
    ],
)
def test_parts_of_the_recipes_own_number(written, scale, steps):
    assert load_recipe(written(TEXT), scale_of(written, scale)).stages[2].steps == steps


def test_a_part_of_a_number_keeps_six_digits(written):
    path = scale_of(written, "kinds: {grpo: {learning_rate: x 0.1234567}}")
    assert load_recipe(written(TEXT), path).stages[2].learning_rate == 1.23457e-06


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kinds: {grpo: {beta: 0.1}}", "tiny.yaml:1: kinds.grpo.beta: a scale says how big, never what is learned"),
        ("kinds: {grpo: {bta: 0.1}}", "kinds.grpo.bta: unknown key"),
        ("kinds: {gpro: {steps: 1}}", "kinds.gpro: not a kind of stage; one of distill, evaluate, export, grow, grpo, "
                                      "merge, mixture, panel, preflight, probe, route, sft, solutions; did you mean "),
        ("reward: {format: 0.5}", "a scale has the sections model, problems, rollouts, evaluate, kinds, stages"),
        ("seed: 3", "a scale has the sections"),
        ("problems: {format: boxed}", "never what is learned"),
        ("model: {lora: {dropout: 0.1}}", "never what is learned"),
        ("model: 3", "3 is not a mapping"),
        ("kinds: [1]", "[1] is not a mapping"),
        ("stages: {explore: 3}", "3 is not a mapping"),
        ("rollouts: {group_size: 1}", "tiny.yaml (rollouts.group_size): rollouts.group_size: 1 must be at least 2"),
        ("kinds: {sft: {steps: x y}}", "'x y' is text; a whole number is needed"),
    ],
)  # fmt: skip
def test_a_scale_says_how_big_never_what_is_learned(written, text, said):
    lines = faults(written(TEXT), scale_of(written, text))
    assert any(said in line for line in lines), lines


def test_scale_auto(monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: ())
    assert choose_scale("auto").name == "embedded" and "no CUDA device" in choose_scale("auto").why
    monkeypatch.setattr(machine, "gpus", lambda: (machine.Gpu("H100", 2**36),))
    assert choose_scale("auto").name == "gpu" and "1 x H100" in choose_scale("auto").why


def test_no_gpu_where_none_is_visible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    machine.gpus.cache_clear()
    assert machine.gpus() == ()
    machine.gpus.cache_clear()


def test_shipped_scales_name_only_stages_that_exist(written):
    assert unknown_in_scales() == []
    written("stages: {nowhere: {steps: 3}}", "recipes/x.yaml")
    (load.Path.cwd() / "recipes" / "scales").mkdir()
    written("stages: {explor: {steps: 3}}", "recipes/scales/odd.yaml")
    (load.Path.cwd() / "recipes" / "x.yaml").write_text(TEXT)
    assert any("stages.explor: no recipe has a stage of that name" in line for line in unknown_in_scales())
    written("recipes: {y: {}, x: {stages: {explor: {steps: 3}}}}", "recipes/scales/odd.yaml")
    assert any("recipes.y: no recipe has that name" in line for line in unknown_in_scales())
    assert any("recipes.x.stages.explor: no recipe has a stage" in line for line in unknown_in_scales())


def test_stages_that_a_recipe_adds_are_stages(written):
    """In a mapping, to another recipe's; or in an arm. What cannot be read hides nothing."""
    for folder in ("recipes", "recipes/scales"):
        (load.Path.cwd() / folder).mkdir(exist_ok=True)
    more = "stages: {look: {kind: evaluate, after: polish}}\narms: {a: {stages: {see: {}}}, b: }\n"
    written(f"extends: 40d\nname: x\n{more}", "recipes/x.yaml")
    written("stages: {look: {samples: 2}, see: {samples: 2}, lok: {}}", "recipes/scales/odd.yaml")
    written("name: [", "recipes/damaged.yaml")
    written("[", "recipes/scales/damaged.yaml")
    assert [line.rpartition(": ")[0] for line in unknown_in_scales()] == ["recipes/scales/odd.yaml: stages.lok"]
