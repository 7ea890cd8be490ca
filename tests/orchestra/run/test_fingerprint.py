"""Whatever could change a stage's outcome is in its fingerprint: files, models, stages, settings, code, each alone."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import pytest

from orchestra.config.loading import load_recipe
from orchestra.config.stage import OUTPUTS
from orchestra.run import fingerprint as module
from orchestra.run.fingerprint import fingerprint, hashed_outputs, reads
from orchestra.run.ledger import Fingerprint, LedgerEntry, StageResult

RECIPE = """\
name: each
model: {{base: {0}/student}}
problems: {{train: {0}/train.jsonl, test: {0}/test.jsonl}}
reward: {{file: {0}/mine.py, politeness: 0.1}}
stages:
  - {{name: traces, kind: distill, teacher: {0}/teacher}}
  - {{name: imitate, kind: sft, data: [traces, {0}/written.jsonl], steps: 3, learning_rate: 1e-3}}
  - {{name: explore, kind: grpo, steps: 3, learning_rate: 1e-4}}
  - {{name: polish, kind: grpo, steps: 3, learning_rate: 1e-4, beta: 0.01, reference: imitate,
     gate: {{against: imitate}}}}
  - {{name: look, kind: evaluate, problems: {0}/other.jsonl, parent: explore}}
  - {{name: release, kind: export}}
"""
STAGES = ["base", "traces", "imitate", "explore", "polish", "look", "release"]
CLOSURE = cache(module.closure)


@pytest.fixture(autouse=True)
def code(monkeypatch):
    """The code does not change here, and it takes long to walk."""
    monkeypatch.setattr(module, "closure", CLOSURE)


@pytest.fixture
def folder(tmp_path):
    """The recipe and everything that it names, all of it local."""
    for name in ("train", "test", "other", "written"):
        row = {"question": f"Which of {name}?", "answer": "1", "solution": "one"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "mine.py").write_text("def politeness(completions, **columns):\n    return [1]\n")
    for model in ("student", "teacher"):
        (tmp_path / model).mkdir()
        for name in ("config.json", "model.safetensors", "chat_template.jinja", "README.md"):
            (tmp_path / model / name).write_text(f'"1 {name} of {model}"')
    (tmp_path / "each.yaml").write_text(RECIPE.format(tmp_path))
    return tmp_path


@pytest.fixture
def recipe(folder):
    return load_recipe(str(folder / "each.yaml"), None)


@pytest.fixture
def entries(recipe):
    """As if every stage was finished."""
    made = {}
    for stage in recipe.all_stages:
        outputs = {name: f"{name} of {stage.name}" for given in stage.gives for name in OUTPUTS.get(given, ())}
        made[stage.name] = LedgerEntry(
            stage.name, Fingerprint({}, {}, {}), outputs, StageResult(stage.name, stage.kind)
        )
    return made


def prints(recipe, entries):
    module._local_model.cache_clear()  # within a run a model does not change
    return {stage.name: fingerprint(recipe, stage, entries) for stage in recipe.all_stages}


@pytest.mark.parametrize(
    ("file", "stages", "said"),
    [
        ("train.jsonl", ["traces", "explore", "polish"], "problems.train (train.jsonl)"),
        ("test.jsonl", STAGES[:-1], "problems.test (test.jsonl)"),
        ("other.jsonl", ["look"], "problems (other.jsonl)"),
        ("written.jsonl", ["imitate"], "data (written.jsonl)"),
        ("mine.py", ["explore", "polish"], "reward.file (mine.py)"),
        ("student/model.safetensors", STAGES, "model.base {0}/student"),
        ("student/config.json", STAGES, "model.base {0}/student"),
        ("student/chat_template.jinja", STAGES, "model.base {0}/student"),
        ("teacher/model.safetensors", ["traces"], "teacher {0}/teacher"),
        ("student/README.md", [], ""),
    ],
)
def test_a_files_content_counts_where_it_is_used(folder, recipe, entries, file, stages, said):
    """The bytes change and the size does not: neither name nor length would tell."""
    before = prints(recipe, entries)
    (folder / file).write_bytes((folder / file).read_bytes().replace(b"1", b"2"))
    after = prints(recipe, entries)
    assert [name for name in STAGES if after[name].digest != before[name].digest] == stages
    for name in stages:
        assert after[name].changes_since(before[name]) == [f"{said.format(folder)} is another"]


@pytest.mark.parametrize(
    ("stage", "output", "stages"),
    [
        ("traces", "traces.jsonl", ["imitate"]),
        ("imitate", "adapter/adapter_model.safetensors", ["explore", "polish"]),  # its parent's; its reference's
        ("explore", "adapter/adapter_model.safetensors", ["polish", "look"]),
        ("polish", "adapter/adapter_model.safetensors", ["release"]),
        ("imitate", "evaluation.json", []),  # a gate looks at it, and computes nothing
    ],
)
def test_what_earlier_stages_gave_counts_where_it_is_taken(recipe, entries, stage, output, stages):
    before = prints(recipe, entries)
    outputs = entries[stage].outputs | {output: "another"}
    after = prints(recipe, entries | {stage: dataclasses.replace(entries[stage], outputs=outputs)})
    assert [name for name in STAGES if after[name].digest != before[name].digest] == stages


def test_inputs_are_named_for_people(folder, recipe, entries):
    student, teacher = f"model.base {folder}/student", f"teacher {folder}/teacher"
    test, train, adapter = "problems.test (test.jsonl)", "problems.train (train.jsonl)", "adapter of stage {}".format
    assert {name: set(made.inputs) for name, made in prints(recipe, entries).items()} == {
        "base": {student, test},
        "traces": {student, test, train, teacher},
        "imitate": {student, test, "data (written.jsonl)", "traces.jsonl of stage traces"},
        "explore": {student, test, train, "reward.file (mine.py)", adapter("imitate")},
        "polish": {student, test, train, "reward.file (mine.py)", adapter("imitate"), adapter("explore")},
        "look": {student, test, "problems (other.jsonl)", adapter("explore")},
        "release": {student, adapter("polish")},
    }


def test_shares_count_and_the_order_of_sources_and_their_place_do_not(folder, entries):
    def imitated(data):
        (folder / "each.yaml").write_text(RECIPE.format(folder).replace(f"[traces, {folder}/written.jsonl]", data))
        recipe = load_recipe(str(folder / "each.yaml"), None)
        return fingerprint(recipe, recipe.stage("imitate"), entries)

    (folder / "moved").mkdir()
    (folder / "moved" / "written.jsonl").write_bytes((folder / "written.jsonl").read_bytes())
    made = imitated("{traces: 1, written.jsonl: 3}")
    assert made == imitated("{written.jsonl: 3, traces: 1}") == imitated("{traces: 1, moved/written.jsonl: 3}")
    assert made.config["stage.data"] == {"traces": 1, "written.jsonl": 3}
    assert made.digest != imitated("{traces: 1, written.jsonl: 2}").digest
    assert set(made.inputs) >= {"data (written.jsonl)", "traces.jsonl of stage traces"}


def test_each_of_several_sets_counts_and_so_does_which_is_first(folder, entries):
    def looked(problems):
        text = RECIPE.format(folder).replace(f"problems: {folder}/other.jsonl", f"problems: {problems}")
        (folder / "each.yaml").write_text(text)
        recipe = load_recipe(str(folder / "each.yaml"), None)
        return fingerprint(recipe, recipe.stage("look"), entries)

    (folder / "moved").mkdir()
    (folder / "moved" / "other.jsonl").write_text((folder / "train.jsonl").read_text())
    made = looked("{a: other.jsonl, b: moved/other.jsonl}")
    # two files of one name, each under its own
    assert set(made.inputs) >= {"problems.a (other.jsonl)", "problems.b (other.jsonl)"}
    assert made.config["stage.problems"] == [["a", "other.jsonl"], ["b", "other.jsonl"]]
    assert looked("{b: moved/other.jsonl, a: other.jsonl}").digest != made.digest
    assert looked("{a: moved/other.jsonl, b: other.jsonl}").digest != made.digest


def test_a_models_files_count_in_whatever_order_they_are_listed(recipe, entries, monkeypatch):
    before = prints(recipe, entries)
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(listed(self), reverse=True)))
    assert prints(recipe, entries) == before


def test_what_is_missing_is_an_error(folder, recipe, entries):
    (folder / "mine.py").unlink()
    with pytest.raises(FileNotFoundError, match=r"mine\.py"):
        fingerprint(recipe, recipe.stage("explore"), entries)
    fingerprint(recipe, recipe.stage("imitate"), entries)
    without = {name: entry for name, entry in entries.items() if name != "imitate"}
    with pytest.raises(KeyError, match="imitate"):
        fingerprint(recipe, recipe.stage("look").model_copy(update={"parent": "imitate"}), without)


def test_a_large_models_files_count_by_name_and_size(folder, recipe, entries, monkeypatch):
    """The three files hold 26, 32 and 34 bytes: hashed whole up to 92, by name and size above."""
    weights = folder / "student" / "model.safetensors"
    assert sum(path.stat().st_size for path in (folder / "student").iterdir() if path.suffix != ".md") == 92

    def differ(limit, content):
        monkeypatch.setattr(module, "WEIGHTS_LIMIT", limit)
        old = weights.read_bytes()
        before = prints(recipe, entries)["base"].digest
        weights.write_bytes(content(old))
        after = prints(recipe, entries)["base"].digest
        weights.write_bytes(old)
        return after != before

    same_size, longer = (lambda old: old.replace(b"1", b"2")), (lambda old: old + b"2")
    assert [differ(92, same_size), differ(91, same_size), differ(91, longer)] == [True, False, True]
    weights.rename(weights.with_name("other.safetensors"))
    renamed = prints(recipe, entries)["base"].digest
    weights.with_name("other.safetensors").rename(weights)
    assert renamed != prints(recipe, entries)["base"].digest


def test_a_shipped_model_counts_by_its_files(entries):
    recipe = load_recipe("40d", "embedded")
    made = fingerprint(recipe, recipe.stage("traces"), entries)
    assert {"model.base embedded/student", "teacher embedded/teacher"} <= set(made.inputs)
    hub = load_recipe("40d", "gpu")
    assert not any("model" in name for name in fingerprint(hub, hub.stage("traces"), entries).inputs)


def test_settings_are_there_once_with_their_values(recipe, entries):
    """Whole and resolved; without what changes nothing, nor the folder that a file lies in."""
    made = prints(recipe, entries)
    polish = made["polish"].config
    assert (polish["seed"], polish["stage.beta"], polish["stage.reference"]) == (17, 0.01, "imitate")
    assert (polish["reward.politeness"], polish["reward.file"], polish["problems.test"]) == (
        0.1,
        "mine.py",
        "test.jsonl",
    )
    assert polish["evaluate.max_completion_tokens"] == recipe.rollouts.max_completion_tokens
    assert made["imitate"].config["stage.data"] == ["traces", "written.jsonl"]
    assert "evaluate.samples" not in made["traces"].config and "evaluate.samples" not in made["release"].config
    assert "reward.correct" not in made["imitate"].config and "rollouts.group_size" not in made["imitate"].config
    free = {"stage.gate", "stage.save_steps", "stage.gradient_checkpointing", "rollouts.gpu_memory_utilization"}
    assert not free & set(polish) and "report_to" not in polish and "stage.tag" not in made["release"].config
    assert json.loads(json.dumps(polish)) == polish


def test_what_a_stage_reads_holds_its_evaluations_part(recipe):
    for stage in recipe.all_stages:
        assert ("problems.test" in reads(stage)) == ("evaluation" in stage.gives), stage.name


def test_each_part_counts_for_the_digest_and_their_order_does_not():
    whole = Fingerprint({"a": 1, "b": [2]}, {"adapter": "x"}, {"rl.kl": "y"})
    parts = ({"config": {"a": 2, "b": [2]}}, {"inputs": {"adapter": "z"}}, {"code": {"rl.kl": "z"}})
    digests = {dataclasses.replace(whole, **part).digest for part in parts} | {whole.digest}
    assert len(digests) == 4
    assert Fingerprint({"b": [2], "a": 1}, {"adapter": "x"}, {"rl.kl": "y"}).digest == whole.digest
    assert Fingerprint({"b": (2,), "a": 1}, {"adapter": "x"}, {"rl.kl": "y"}).digest == whole.digest, "as read again"
    assert Fingerprint({"a": "half a pair: \ud83d"}, {}, {}).digest, "no UTF-8, and a text all the same"
    # the same words in another part are another fingerprint
    assert Fingerprint({}, {"k": "v"}, {}).digest != Fingerprint({}, {}, {"k": "v"}).digest


def test_outputs_are_hashed_by_their_bytes(recipe, tmp_path):
    stage = recipe.stage("explore")
    (tmp_path / "adapter").mkdir()
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "evaluation.json", "log.txt"):
        (tmp_path / name).write_text("1")
    # printf 1 | sha256sum
    one = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    assert hashed_outputs(stage, tmp_path) == {
        "evaluation.json": one, "adapter/adapter_model.safetensors": one, "adapter/adapter_config.json": one
    }  # fmt: skip
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "export.json").write_text("1")
    assert hashed_outputs(recipe.stage("release"), tmp_path) == {"model/export.json": one}
    (tmp_path / "evaluation.json").unlink()
    (tmp_path / "evaluation.json").mkdir()
    assert "evaluation.json" not in hashed_outputs(stage, tmp_path), "a folder is no file"
