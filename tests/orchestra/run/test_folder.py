"""A run's folder: found by name, worked in by one run at a time, and set aside without a loss."""

import json
import os

import pytest

from orchestra.config.faults import UserError
from orchestra.config.loading import load_recipe
from orchestra.run.folder import about, find_run, locked, read_json, set_aside, stage_folder, versions
from orchestra.run.ledger import Fingerprint, Ledger, LedgerEntry, StageResult

NAMES = ("base", "traces", "imitate", "explore")


@pytest.fixture
def run_dir(tmp_path):
    """Four finished stages and a folder of one that was begun."""
    ledger = Ledger(tmp_path)
    for index, name in enumerate(NAMES):
        folder = stage_folder(tmp_path, index, name)
        folder.mkdir()
        (folder / "file").write_text(name)
        ledger.record(
            LedgerEntry(folder.name, Fingerprint({}, {}, {}), {}, StageResult(name, "grpo", accuracy=index / 8))
        )
    (tmp_path / "04-polish").mkdir()
    return tmp_path


def folders(place):
    return sorted(path.name for path in place.iterdir() if path.is_dir())


def test_set_aside_from_a_stage_on(run_dir):
    """The stage itself goes with those after it, begun or finished; those before it stay."""
    target = set_aside(run_dir, Ledger(run_dir), 2)
    assert target == run_dir / "discarded-1" and folders(target) == ["02-imitate", "03-explore", "04-polish"]
    assert folders(run_dir) == ["00-base", "01-traces", "discarded-1"]
    assert list(Ledger(run_dir).entries) == ["base", "traces"], "on disk too"
    results = json.loads((target / "results.json").read_text())
    assert [(row["name"], row["accuracy"]) for row in results] == [("imitate", 2 / 8), ("explore", 3 / 8)]
    assert (target / "02-imitate" / "file").read_text() == "imitate"


def test_set_aside_by_name(run_dir):
    target = set_aside(run_dir, Ledger(run_dir), 100, frozenset({"traces", "polish"}))
    assert folders(target) == ["01-traces", "04-polish"] and folders(run_dir)[:3] == [
        "00-base",
        "02-imitate",
        "03-explore",
    ]
    assert list(Ledger(run_dir).entries) == ["base", "imitate", "explore"]


def test_set_aside_what_is_only_in_the_ledger_or_only_in_a_folder(run_dir):
    ledger = Ledger(run_dir)
    (run_dir / "03-explore" / "file").unlink()
    (run_dir / "03-explore").rmdir()
    target = set_aside(run_dir, ledger, 3)
    assert folders(target) == ["04-polish"] and "explore" not in Ledger(run_dir).entries
    (run_dir / "05-more").mkdir()
    again = set_aside(run_dir, ledger, 4)
    assert folders(again) == ["05-more"] and not (again / "results.json").exists()


def test_nothing_to_set_aside_leaves_nothing(run_dir):
    assert set_aside(run_dir, Ledger(run_dir), 5) is None
    assert "discarded-1" not in folders(run_dir)


def test_each_time_has_a_folder_of_its_own(run_dir):
    """One more than the largest number there is, as a number: 11 follows 10, and gaps are not filled."""
    for name in ("discarded-2", "discarded-10", "discarded-notes"):
        (run_dir / name).mkdir()
    assert set_aside(run_dir, Ledger(run_dir), 3).name == "discarded-11"


def test_find_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("40d-embedded", "40d-gpu", "40days-embedded", "mini-embedded"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "ledger.json").write_text("{}")
    assert find_run("40d-gpu").samefile(tmp_path / "runs" / "40d-gpu")
    assert find_run(str(tmp_path / "runs" / "40d-gpu")).samefile(tmp_path / "runs" / "40d-gpu")
    assert find_run("elsewhere").samefile(tmp_path / "elsewhere"), "the ledger alone is enough"
    assert find_run("mini").name == "mini-embedded", "a recipe's only run"
    assert find_run("40days").name == "40days-embedded"
    with pytest.raises(
        UserError, match=r"no run '40d' \(runs: 40d-embedded, 40d-gpu, 40days-embedded, mini-embedded\)"
    ):
        find_run("40d")  # there are two
    with pytest.raises(UserError, match="did you mean '40d-embedded'"):
        find_run("40d-embeded")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="none yet"):
        find_run("40d")


def test_the_lock_names_its_owner_and_goes_with_it(tmp_path):
    place = tmp_path / "runs" / "new"
    for _ in range(2):
        with locked(place):
            assert (place / ".lock").read_text() == f"{os.getpid()}\n", "the owner's number alone"
            with (
                pytest.raises(UserError, match=f"process {os.getpid()}.* works in .*wait for it or stop it"),
                locked(place),
            ):
                pass
    with pytest.raises(KeyError), locked(place):
        raise KeyError
    with locked(place):
        pass


def test_a_json_file_is_an_object_or_one_message(tmp_path):
    path = tmp_path / "file.json"
    assert read_json(path) == {}
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
    for text in ("", "{", "[1]", "3", "null"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"file\.json is damaged .*; move it away"):
            read_json(path)


def test_what_a_run_says_of_itself():
    recipe = load_recipe("40d", "embedded", ["seed=5"])
    told = about(recipe, "embedded", "recipes/40d.yaml", ("seed=5",))
    assert (told["name"], told["scale"], told["seed"], told["set"]) == ("40d", "embedded", 5, ["seed=5"])
    assert told["source"] == "recipes/40d.yaml" and told["recipe"]["stages"][0]["name"] == "traces"
    assert type(recipe).model_validate(told["recipe"]) == recipe
    assert {"python", "torch", "trl", "transformers"} <= set(versions()) and "nothing-of-that-name" not in versions()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
