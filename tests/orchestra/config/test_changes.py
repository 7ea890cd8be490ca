"""What one recipe has otherwise than another, key by key."""

from orchestra.config.changes import changes, of_the_scale
from orchestra.config.experiment import load_experiment
from orchestra.config.loading import load_recipe
from orchestra.config.recipe import Recipe


def told(change):
    first = load_recipe("40d", None)
    raw = first.model_dump(mode="json")
    change(raw, {stage["name"]: stage for stage in raw["stages"]})
    return [str(one) for one in changes(Recipe.model_validate(raw), first)]


def test_nothing():
    assert told(lambda raw, stages: raw.update(name="other", seed=3)) == [], "these are no arm's"


def test_keys_of_parts_and_of_stages():
    def change(raw, stages):
        raw["model"]["lora"]["rank"] = 8
        raw["problems"]["test_limit"] = 7
        stages["traces"]["teacher"] = "Qwen/Qwen2.5-7B"
        stages["polish"]["gate"] = {"metric": "accuracy", "against": "base"}

    assert told(change) == [
        "model.lora.rank: 32 -> 8",
        "problems.test_limit: null -> 7",
        "stages.traces.teacher: deepseek-ai/DeepSeek-R1-Distill-Qwen-7B -> Qwen/Qwen2.5-7B",
        'stages.polish.gate: null -> {"against": "base"}',
    ]


def test_stages_that_come_and_go():
    def change(raw, stages):
        raw["stages"] = [one for one in raw["stages"] if one["name"] not in ("polish", "release")]
        raw["stages"].append({"name": "look", "kind": "evaluate", "problems": {"b": "embedded", "a": "embedded"}})

    first = {stage.name: stage for stage in load_recipe("40d", None).stages}
    found = told(change)
    assert found[0] == "stages.polish: taken out" and first["polish"].steps == 100
    assert found[1:] == (["stages.release: taken out"] if "release" in first else []) + [
        'stages.look: put in: evaluate, problems {"b": "embedded", "a": "embedded"}'
    ]


def test_another_kind_under_the_same_name():
    def change(raw, stages):
        at = raw["stages"].index(stages["polish"])
        raw["stages"][at] = {"name": "polish", "kind": "evaluate", "samples": 3}

    found = told(change)
    assert (
        len(found) == 1
        and found[0].startswith("stages.polish: grpo, steps 100")
        and "-> evaluate, samples 3" in found[0]
    )


def test_what_a_scale_sets_is_told(tmp_path, monkeypatch):
    """What the file says and the scale replaces, and what it adds; not what the command line says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nmodel: {base: embedded/student}\nproblems: {train: embedded, test: embedded, test_limit: 60}\n"
        "stages: [{name: own, kind: distill, teacher: self, problems: 30}]\n"
    )
    (tmp_path / "tiny.yaml").write_text("problems: {test_limit: 500}\nkinds: {distill: {problems: 7, samples: 2}}\n")
    sets = ["stages.own.samples=3"]
    experiment = load_experiment("./mine.yaml", "./tiny.yaml", sets)
    assert of_the_scale("./mine.yaml", experiment, sets) == (
        "problems.test_limit: 60 -> 500, stages.own.problems: 30 -> 7"
    )
    assert of_the_scale("./mine.yaml", load_experiment("./mine.yaml", None), ()) == ""
