"""What the runner says and keeps: of errors, changes, times, versions and gates, to the last digit."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest
from fake_stages import STAGES, Fake

from orchestra.config.faults import UserError
from orchestra.config.loading import load_recipe
from orchestra.run import runner
from orchestra.run.ledger import Ledger
from orchestra.run.progress import Progress


def test_a_long_error_is_cut(start):
    """At 300 characters; what is that long is whole."""
    for length, shown in ((300, "x" * 300), (301, "x" * 297 + "...")):
        with pytest.raises(runner.StageError) as error:
            start(Fake(fail={"explore": ValueError("x" * length)}))
        assert str(error.value).splitlines()[0] == f"stage 'explore' failed: ValueError: {shown}"


def test_many_changes_are_counted(start):
    start(Fake())
    more = [f"stages.polish.{key}" for key in (
        "steps=7", "learning_rate=0.5", "beta=0.5", "epsilon=0.5", "epsilon_high=0.5", "group_size=64",
        "temperature=0.5", "weight_decay=0.5", "max_grad_norm=0.5", "num_iterations=2")]  # fmt: skip
    for number, rest in ((8, ";"), (9, " and 1 more;"), (10, " and 2 more;")):
        with pytest.raises(UserError) as error:
            start(Fake(), more[:number])
        listed = str(error.value).partition("changed: ")[2].partition(" run again")[0]
        assert listed.count("->") == 8 and listed.endswith(rest), listed


def test_a_stage_that_moved_in_the_recipe(start, tmp_path, monkeypatch):
    """The same stages in another order: the folder's number says where it stood."""
    start(Fake())
    other = tmp_path / "40d.yaml"
    text = Path("recipes/40d.yaml").read_text()
    other.write_text(text + "  - {name: look, kind: evaluate, parent: imitate}\n")
    lines = other.read_text().splitlines()
    look = lines.pop()
    at = next(number for number, line in enumerate(lines) if "name: explore" in line)
    other.write_text("\n".join([*lines[:at], look, *lines[at:]]))
    Fake().instead(monkeypatch)
    run = runner.Run(load_recipe(str(other), "embedded"), start.run_dir, progress=Progress(quiet=True))
    with pytest.raises(UserError, match=r"stage 'explore' is finished, but .* its place in the recipe 03 -> 04"):
        run.start()


def test_the_time_is_the_stages_own_where_it_has_one(start, monkeypatch):
    now = iter(range(0, 10_000, 5))
    monkeypatch.setattr(runner.time, "monotonic", lambda: float(next(now)))

    class Timed(Fake):
        def __call__(self, context):
            result = super().__call__(context)
            return dataclasses.replace(result, seconds=1.5) if result.name == "explore" else result

    outcome, _ = start(Timed())
    seconds = {result.name: result.seconds for result in outcome.results}
    assert seconds == dict.fromkeys(STAGES, 5.0) | {"explore": 1.5}
    assert all(result.extra["peak_memory_bytes"] > 2**20 for result in outcome.results)


def test_other_versions_are_told_and_kept(start):
    start(Fake())
    path = start.run_dir / "run.json"
    about = json.loads(path.read_text())
    torch = about["versions"]["torch"]
    about["versions"] = {"torch": "1.0", "python": about["versions"]["python"]}
    path.write_text(json.dumps(about))
    _, said = start(Fake())
    (line,) = [line for line in said.splitlines() if "other versions" in line]
    assert line == f"other versions than this run began with: torch 1.0 -> {torch}", "what is new is no change"
    assert json.loads(path.read_text())["versions"]["torch"] == torch
    assert "other versions" not in start(Fake())[1]


def test_a_signal_is_the_programs_again_after_the_run(start):
    before = signal.getsignal(signal.SIGTERM)
    start(Fake())
    assert signal.getsignal(signal.SIGTERM) is before


def test_finished_with_other_settings_is_not_taken_for_finished(start):
    """The ledger is lost, the folders are not: what they say is looked at before they count."""
    start(Fake())
    (start.run_dir / "ledger.json").unlink()
    again = Fake()
    with pytest.raises(UserError, match=r"stage 'polish' was begun, .* beta 0.01 -> 0.02; .*--restart-from polish"):
        start(again, ["stages.polish.beta=0.02"])
    assert again.calls == [] and list(Ledger(start.run_dir).entries) == STAGES[:5]
    outcome, _ = start(again)
    assert again.calls == [] and [result.name for result in outcome.results] == STAGES


@pytest.mark.parametrize("missing", ["config.json", "result.json"])
def test_what_does_not_say_how_it_was_made_is_run_again(start, missing):
    start(Fake())
    Ledger(start.run_dir).forget(["release"])
    (start.run_dir / "06-release" / missing).unlink()
    again = Fake()
    start(again)
    assert again.calls == ["release"]


def test_a_gate_that_is_taken_away_is_gone(start):
    """The verdict is of this run's gate, in every file that tells of it."""
    start(
        Fake(accuracy={"imitate": 0.6, "explore": 0.595}),
        ["stages.explore.gate={against: imitate, min_difference: -0.01}"],
    )
    outcome, said = start(Fake(accuracy={"consolidate": 0.5}))
    assert "gate" not in said and {result.gate for result in outcome.results} == {None}
    told = json.loads((start.run_dir / "03-explore" / "result.json").read_text())
    assert told["gate"] is None and Ledger(start.run_dir).entries["explore"].result.gate is None
