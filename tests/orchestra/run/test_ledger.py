"""The ledger: whole or not at all, whatever happens; fingerprints: what counts and what does not."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestra.config.faults import UserError
from orchestra.config.loading import load_recipe
from orchestra.config.recipe import Recipe
from orchestra.run import code as codes
from orchestra.run.fingerprint import fingerprint, hashed_outputs
from orchestra.run.ledger import Fingerprint, Ledger, LedgerEntry, StageResult, write_json


def entry(name="explore", **values):
    print_ = Fingerprint({"stage.beta": 0.1, "stage.data": ["a"]}, {"adapter": "f"}, {"rl/kl.py": "c"})
    return LedgerEntry(f"03-{name}", print_, {"adapter": "d"}, StageResult(name=name, kind="grpo", **values))


def test_round_trip(tmp_path):
    one = entry(accuracy=0.5, extra={"a": 1.0, "b": "c"})
    Ledger(tmp_path).record(one)
    again = Ledger(tmp_path).entries
    assert again == {"explore": one}
    assert again["explore"].fingerprint.digest == one.fingerprint.digest
    Ledger(tmp_path).forget(["explore"])
    assert Ledger(tmp_path).entries == {}


def test_what_is_no_number_is_none_in_json(tmp_path):
    """NaN is no JSON: readers of other languages stop at it."""

    def refused(word):
        raise AssertionError(word)

    nan, infinity = float("nan"), float("inf")
    one = entry(accuracy=nan, kl=infinity, extra={"engine_mismatch": nan, "left": 1.0})
    ledger = Ledger(tmp_path)
    ledger.record(one)
    write_json(tmp_path / "other.json", {"a": [nan, 1.5, (infinity,)], "b": {"c": -infinity}})
    write_json(tmp_path / "result.json", one.result.to_json())
    for name in ("ledger.json", "other.json", "result.json"):
        json.loads((tmp_path / name).read_text(), parse_constant=refused)
    assert json.loads((tmp_path / "other.json").read_text()) == {"a": [None, 1.5, [None]], "b": {"c": None}}
    result = Ledger(tmp_path).entries["explore"].result
    assert (result.accuracy, result.kl, result.extra) == (None, None, {"left": 1.0})
    assert result == StageResult.from_json(json.loads((tmp_path / "result.json").read_text()))


def test_results_of_a_newer_version_can_be_read():
    assert StageResult.from_json({"name": "a", "kind": "sft", "invented": 3}).name == "a"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 9, "stages": []}', '{"version": 1}', "\x00\x01"])
def test_damage_is_one_message(tmp_path, text):
    (tmp_path / "ledger.json").write_text(text)
    with pytest.raises(UserError, match=r"ledger\.json"):
        Ledger(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path)
    ledger.record(entry())
    before = ledger.path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        ledger.record(entry("polish"))
    assert ledger.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.json"]


def test_who_reads_the_old_file_reads_it_to_its_end(tmp_path):
    """The new one takes its place; it is not written over."""
    path = tmp_path / "file.json"
    write_json(path, {"n": 1})
    with open(path, encoding="utf-8") as old:
        write_json(path, {"n": 2})
        assert json.load(old) == {"n": 1} and json.loads(path.read_text()) == {"n": 2}


def test_killed_at_any_moment_a_file_is_whole(tmp_path):
    path = tmp_path / "file.json"
    text = (
        "import sys, itertools; from pathlib import Path; from orchestra.run.ledger import write_json\n"
        f"for i in itertools.count(): write_json(Path({str(path)!r}), {{'n': i, 'fill': 'x' * 50000}})"
    )
    write_json(path, {"n": -1, "fill": ""})
    for wait in (0.3, 0.35, 0.4, 0.47, 0.53):
        process = subprocess.Popen([sys.executable, "-c", text])
        time.sleep(wait)
        process.kill()
        process.wait()
        assert set(json.loads(path.read_text())) == {"n", "fill"}


def test_changes_are_named():
    old = entry().fingerprint
    new = Fingerprint(
        {"stage.beta": 0.2, "seed": 1}, {"adapter": "g", "traces": "h"}, {"rl/kl.py": "d", "rl/new.py": "e"}
    )
    assert new.changes_since(old) == [
        "seed (not set) -> 1",
        "beta 0.1 -> 0.2",
        'data ["a"] -> (not set)',
        "adapter is another",
        "traces",
        "code rl/kl.py",
        "code rl/new.py",
    ]
    assert old.changes_since(old) == []
    bare = Fingerprint({"stage.beta": 0.1}, {}, {})
    assert bare.changes_since(old) == ['data ["a"] -> (not set)', "adapter", "code rl/kl.py"], "what is gone"
    assert old.changes_since(bare) == ['data (not set) -> ["a"]', "adapter", "code rl/kl.py"]


@pytest.fixture
def finished(tmp_path):
    """Ledger entries of a finished 40d, made up."""
    made = {}
    recipe = load_recipe("40d", "embedded")
    for stage in recipe.all_stages:
        outputs = {"traces.jsonl": "t", "adapter/adapter_model.safetensors": f"adapter {stage.name}"}
        made[stage.name] = LedgerEntry(
            stage.name, Fingerprint({}, {}, {}), outputs, StageResult(stage.name, stage.kind)
        )
    return made


def digest(finished, name, sets=(), scale="embedded"):
    recipe = load_recipe("40d", scale, sets)
    return fingerprint(recipe, recipe.stage(name), finished).digest


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("seed=1", ["base", "traces", "imitate", "explore", "consolidate", "polish", "release"]),
        ("evaluate.samples=2", ["base", "imitate", "explore", "consolidate", "polish"]),
        ("stages.traces.samples=1", ["traces"]),
        ("reward.format=0.2", ["explore", "consolidate", "polish"]),
        ("rollouts.group_size=4", ["explore", "consolidate", "polish"]),
        ("stages.polish.reference=base", ["polish"]),
        ("model.lora.rank=8", ["traces", "imitate", "explore", "consolidate", "polish", "release"]),
        ("rollouts.gpu_memory_utilization=0.5", []),
        ("report_to=wandb", []),
        ("stages.polish.gate.min_difference=0.1", []),
    ],
)
def test_what_a_setting_invalidates(finished, setting, changed):
    names = list(finished)
    assert [name for name in names if digest(finished, name) != digest(finished, name, [setting])] == changed


def test_inputs_count(finished):
    before = {name: digest(finished, name) for name in finished}
    outputs = finished["imitate"].outputs | {"adapter/adapter_model.safetensors": "another"}
    finished["imitate"] = LedgerEntry("x", Fingerprint({}, {}, {}), outputs, finished["imitate"].result)
    assert [name for name in finished if digest(finished, name) != before[name]] == ["explore"]


def test_files_count_by_content_and_not_by_place(finished, tmp_path):
    for folder, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_text(text)
    a, b, c = (digest(finished, "explore", [f"problems.train={tmp_path}/{one}/train.jsonl"]) for one in "abc")
    assert a == b != c


def test_an_evaluation_counts_where_it_takes_problems_from_training(finished, tmp_path):
    """That of other problems may be added to a finished run."""
    asks = "Count the birds that sit on the old fence near the river bank every single morning."
    rows = [{"question": question, "answer": "4", "solution": "four"} for question in (asks, "2 + 2?")]
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    other, same = tmp_path / "other.jsonl", tmp_path / "same.jsonl"
    other.write_text(json.dumps({"question": "3 + 3?", "answer": "6"}))
    same.write_text(json.dumps({"question": f"{asks} How many?", "answer": "4"}))

    def digests(*evaluations):
        looks = [{"name": f"look-{i}", "kind": "evaluate", "problems": str(p)} for i, p in enumerate(evaluations)]
        recipe = load_recipe("40d", "embedded", [f"problems.train={train}", f"stages.imitate.data={train}"])
        stages = [*recipe.model_dump()["stages"], *looks]
        recipe = Recipe.model_validate({**recipe.model_dump(), "stages": stages})
        return {name: fingerprint(recipe, recipe.stage(name), finished).digest for name in finished}

    before = digests()
    assert digests(other) == before
    changed = digests(other, same)
    assert [name for name in finished if changed[name] != before[name]] == [
        "traces", "imitate", "explore", "consolidate", "polish"
    ]  # fmt: skip


def test_what_a_users_rewards_import_counts(finished, tmp_path):
    files = {
        "mine.py": "import json, torch\nimport near\nfrom package.deep import thing\ndef mine(): ...\n",
        "near.py": "def late():\n    import further\n",
        "further.py": "X = 1\n",
        "package/__init__.py": "from . import of_package\n",
        "package/of_package.py": "X = 1\n",
        "package/deep.py": "thing = 1\n",
        "unused.py": "X = 1\n",
    }
    (tmp_path / "package").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    def now():
        codes._digest.cache_clear()
        return digest(finished, "explore", [f"reward={{file: {tmp_path}/mine.py, mine: 0.1}}"])

    before = now()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "ADDED = 1\n")
        assert (now() != before) == (name != "unused.py"), name
        (tmp_path / name).write_text(text + "# a remark\n")
        assert (now() != before) == (name == "mine.py"), name
        (tmp_path / name).write_text(text)
    assert set(codes.imported_by(tmp_path / "mine.py")) == {
        "near", "further", "package", "package.of_package", "package.deep"
    }  # fmt: skip


def test_comments_and_docstrings_do_not_count(tmp_path):
    def source_digest(text, name):
        path = tmp_path / name
        path.write_text(text)
        return codes._digest(path)

    first = source_digest('"""Doc."""\ndef f(x):\n    """Doc."""\n    return x + 1\n', "a.py")
    assert source_digest('"""Other."""\n\n# why\ndef f(x):\n    return x + 1  # what\n', "b.py") == first
    assert source_digest("def f(x):\n    return x + 2\n", "c.py") != first


def test_outputs_are_what_the_kind_gives(tmp_path):
    recipe = load_recipe("40d", "embedded")
    assert hashed_outputs(recipe.stage("traces"), tmp_path) == {}
    (tmp_path / "traces.jsonl").write_text("x")
    assert list(hashed_outputs(recipe.stage("traces"), tmp_path)) == ["traces.jsonl"]
    assert hashed_outputs(recipe.stage("explore"), tmp_path) == {}


def test_nothing_is_left_beside_the_ledger(tmp_path):
    Ledger(tmp_path).record(entry())
    assert [path.name for path in Path(tmp_path).iterdir()] == ["ledger.json"]
