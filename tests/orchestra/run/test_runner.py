"""The runner with stages that only pretend: skipping, resuming, changes, gates, and every way to end badly."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_stages import STAGES, Fake, FakeResources

from orchestra.config.faults import UserError
from orchestra.config.loading import load_recipe
from orchestra.run import runner
from orchestra.run.ledger import Ledger
from orchestra.run.progress import Progress
from orchestra.stages import all_kinds
from rewards.problems import ProblemError
from settings.hub import HubError


def test_runs_every_stage_once_and_skips_them_then(start):
    fake = Fake()
    outcome, _ = start(fake)
    assert fake.calls == STAGES
    assert [result.name for result in outcome.results] == STAGES
    folders = sorted(path.name for path in start.run_dir.glob("[0-9][0-9]-*"))
    assert folders == [f"{i:02}-{name}" for i, name in enumerate(STAGES)]
    assert not list(start.run_dir.glob("*/checkpoints"))
    again = Fake()
    outcome, said = start(again)
    assert again.calls == [] and said.count("finished before") == len(STAGES)
    assert [result.name for result in outcome.results] == STAGES


def test_a_token_that_is_missing_is_told_before_the_first_stage(start, monkeypatch):
    """Not after hours, by the stage that publishes."""
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    fake = Fake()
    with pytest.raises(HubError, match="hub:a/b: there is no Hub token here"):
        start(fake, ["stages.release.hub=a/b"])
    assert fake.calls == []


def test_a_training_row_that_cannot_be_used_is_told_before_the_first_stage(start, tmp_path):
    """Not after the base has been evaluated, by the stage that trains on it."""
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "1 + 1", "answer": "2"}\n{"question": "1 + 2", "answer": ""}\n')
    fake = Fake()
    with pytest.raises(ProblemError, match=r"mine.jsonl:2: key 'answer' is empty"):
        start(fake, [f"problems.train={file}"])
    assert fake.calls == []


def test_a_stage_sees_its_parent_and_the_earlier_folders(start):
    fake = Fake()
    start(fake)
    assert fake.contexts["imitate"].parent is None
    assert fake.contexts["explore"].parent == "imitate"
    assert fake.contexts["release"].parent == "polish"
    assert list(fake.contexts["explore"].earlier) == ["base", "traces", "imitate"]
    assert fake.contexts["explore"].earlier["imitate"].name == "02-imitate"


def test_chatter_goes_to_the_log(start, capfd):
    start(Fake())
    log = (start.run_dir / "03-explore" / "log.txt").read_text()
    assert "chatter of explore" in log and "chatter from C" in log
    assert "chatter" not in capfd.readouterr().out


def test_so_does_that_of_what_is_looked_at_before_the_first_stage(start, capfd, monkeypatch):
    monkeypatch.setattr(all_kinds()["sft"], "ready", lambda stage, recipe: print("chatter of", stage.name))
    start(Fake())
    assert "chatter of imitate" in (start.run_dir / "log.txt").read_text()
    assert "chatter" not in capfd.readouterr().out


def test_resources_are_made_once_and_closed(start):
    FakeResources.closed = 0
    fake = Fake()
    start(fake)
    assert len({id(context.resources) for context in fake.contexts.values()}) == 1
    assert FakeResources.closed == 1


@pytest.mark.parametrize(
    ("setting", "stage", "said"),
    [
        ("stages.polish.beta=0.02", "polish", "beta 0.01 -> 0.02"),
        ("stages.imitate.steps=7", "imitate", "steps 60 -> 7"),
        ("seed=3", "base", "seed 17 -> 3"),
        ("reward.format=0.2", "explore", "reward.format 0.1 -> 0.2"),
        ("stages.explore.temperature=0.9", "explore", "temperature null -> 0.9"),
    ],
)
def test_a_change_is_named_and_asks_for_a_restart(start, setting, stage, said):
    start(Fake())
    with pytest.raises(UserError) as error:
        start(Fake(), [setting])
    assert f"stage {stage!r} is finished" in str(error.value)
    assert said in str(error.value) and f"--restart-from {stage}" in str(error.value)


@pytest.mark.parametrize("setting", ["stages.polish.save_steps=3", "report_to=tensorboard", "stages.release.tag=v1"])
def test_what_does_not_matter_does_not_invalidate(start, setting):
    start(Fake())
    again = Fake()
    start(again, [setting])
    assert again.calls == []


def test_changed_code_is_named(start, monkeypatch):
    start(Fake())
    from orchestra.run import fingerprint

    real = fingerprint.closure

    def changed(module, domain):
        return real(module, domain) | ({"rl.kl": "another"} if "rl.kl" in real(module, domain) else {})

    monkeypatch.setattr(fingerprint, "closure", changed)
    with pytest.raises(UserError, match=r"stage 'explore' .* code rl\.kl"):
        start(Fake())


def test_a_refused_change_leaves_no_trace(start):
    """run.json tells what the run is; what was asked for and refused is not."""
    start(Fake())
    before = (start.run_dir / "run.json").read_bytes()
    for setting in ("model.quantize=none", "stages.polish.beta=0.02"):
        with pytest.raises(UserError, match="is finished, but since then changed"):
            start(Fake(), [setting])
        assert (start.run_dir / "run.json").read_bytes() == before


def test_a_change_to_a_begun_stage_leaves_no_trace(start):
    with pytest.raises(UserError):
        start(Fake(fail={"explore": ValueError("ended early")}))
    before = (start.run_dir / "run.json").read_bytes()
    with pytest.raises(UserError, match="stage 'explore' was begun, but since then changed: steps"):
        start(Fake(), ["stages.explore.steps=7"])
    assert (start.run_dir / "run.json").read_bytes() == before


def test_restart_sets_aside_and_loses_nothing(start):
    start(Fake())
    again = Fake()
    _, said = start(again, ["stages.polish.beta=0.02"], restart_from="polish")
    assert again.calls == ["polish", "release"]
    kept = start.run_dir / "discarded-1"
    assert (kept / "05-polish" / "adapter" / "adapter_model.safetensors").is_file()
    assert [row["name"] for row in json.loads((kept / "results.json").read_text())] == ["polish", "release"]
    assert "discarded-1" in said
    start(Fake(), ["stages.polish.beta=0.03"], restart_from="consolidate")
    assert (start.run_dir / "discarded-2" / "04-consolidate").is_dir()


def test_restart_from_an_unknown_stage(start):
    with pytest.raises(UserError, match="did you mean 'polish'"):
        start(Fake(), restart_from="polsh")


def test_a_child_of_a_changed_stage_must_run_again(start):
    start(Fake())
    with pytest.raises(UserError, match="stage 'traces' is finished"):
        start(Fake(), ["stages.traces.samples=3"])
    fake = Fake()
    start(fake, ["stages.traces.samples=3"], restart_from="traces")
    assert fake.calls == STAGES[1:]


def test_a_missing_or_altered_adapter_is_noticed(start):
    start(Fake())
    adapter = start.run_dir / "03-explore" / "adapter" / "adapter_model.safetensors"
    old = adapter.read_bytes()
    adapter.write_text("tampered")
    with pytest.raises(UserError, match=r"stage 'explore' .* is not what the stage wrote"):
        start(Fake())
    adapter.unlink()
    with pytest.raises(UserError, match=r"stage 'explore' .* is missing"):
        start(Fake())
    adapter.write_bytes(old)
    start(Fake())


def test_an_error_is_one_message_and_the_rerun_continues(start):
    with pytest.raises(runner.StageError) as error:
        start(Fake(fail={"explore": TypeError("odd\nshape")}))
    assert "stage 'explore' failed: TypeError: odd shape" in str(error.value)
    log = start.run_dir / "03-explore" / "log.txt"
    assert str(log) in str(error.value) and "Traceback" in log.read_text()
    again = Fake()
    start(again)
    assert again.calls == STAGES[3:]


def test_an_error_written_for_the_user_is_shown_as_it_is(start):
    class TeacherError(RuntimeError):
        user_message = True

    with pytest.raises(runner.StageError) as error:
        start(Fake(fail={"traces": TeacherError("the teacher got nothing right")}))
    assert str(error.value) == "stage 'traces': the teacher got nothing right"


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        RuntimeError("Error while serializing: IoError(Os { code: 28, message: No space left on device })"),
        caused(ValueError("the file could not be written"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
    ],
)
def test_a_full_disk(start, failure):
    with pytest.raises(runner.StageError, match="is full; make room and run the same command"):
        start(Fake(fail={"explore": failure}))


def test_ctrl_c(start):
    with pytest.raises(runner.StageError) as error:
        start(Fake(fail={"explore": KeyboardInterrupt()}))
    assert error.value.exit_code == 130
    assert "stopped in stage 'explore'; the same command goes on" in str(error.value)


def test_other_settings_for_a_stage_that_was_begun(start):
    with pytest.raises(runner.StageError):
        start(Fake(fail={"polish": KeyboardInterrupt()}))
    with pytest.raises(UserError, match=r"stage 'polish' was begun, .* beta 0.01 -> 0.02; .*--restart-from polish"):
        start(Fake(), ["stages.polish.beta=0.02"])
    fake = Fake()
    start(fake, ["stages.polish.beta=0.02"], restart_from="polish")
    assert fake.calls == ["polish", "release"]


def test_finished_but_not_recorded(start):
    """Killed between the stage's last file and the ledger."""
    start(Fake())
    ledger = Ledger(start.run_dir)
    ledger.forget(["release"])
    again = Fake()
    start(again)
    assert again.calls == [] and "release" in Ledger(start.run_dir).entries


def test_a_stage_taken_out_of_the_recipe(start, tmp_path, monkeypatch):
    start(Fake())
    shorter = tmp_path / "40d.yaml"
    lines = Path("recipes/40d.yaml").read_text().splitlines()
    shorter.write_text("\n".join(line for line in lines if "release" not in line))
    recipe = load_recipe(str(shorter), "embedded")
    fake = Fake().instead(monkeypatch)
    runner.Run(recipe, start.run_dir, progress=Progress(quiet=True)).start()
    assert fake.calls == [] and (start.run_dir / "discarded-1" / "06-release").is_dir()


GATE = "stages.explore.gate={against: imitate, min_difference: -0.01}"


def test_a_gate_that_passes(start):
    outcome, said = start(Fake(accuracy={"imitate": 0.5, "explore": 0.495}), [GATE])
    assert outcome.verdict == "GO" and "gate: GO: accuracy 0.4950 against 0.5000 of 'imitate'" in said
    assert {result.name: result.gate for result in outcome.results}["explore"] == "GO"


def test_a_gate_that_fails_stops_and_keeps_the_best(start):
    fake = Fake(accuracy={"imitate": 0.6, "explore": 0.5})
    outcome, said = start(fake, [GATE])
    assert outcome.verdict == "NO-GO" and fake.calls == STAGES[:4]
    assert "NO-GO" in said and "difference -0.1000 < -0.0100" in said
    assert "best so far: 'imitate' with accuracy 0.6000" in said and "02-imitate/adapter" in said
    again = Fake()
    outcome, _ = start(again, [GATE])
    assert outcome.verdict == "NO-GO" and again.calls == []
    looser = Fake()
    outcome, _ = start(looser, ["stages.explore.gate={against: imitate, min_difference: -0.2}"])
    assert outcome.verdict == "GO" and looser.calls == STAGES[4:]


def test_two_runs_in_one_folder(start):
    from orchestra.run.folder import locked

    with locked(start.run_dir), pytest.raises(UserError, match=f"another run .process {os.getpid()}. works in"):
        start(Fake())
    start(Fake())


def test_a_damaged_ledger(start):
    start(Fake())
    (start.run_dir / "ledger.json").write_text('{"version": 1, "stages": [{"fol')
    with pytest.raises(UserError, match=r"ledger.json is damaged"):
        start(Fake())


def test_an_unwritable_place(start, tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"Not a directory|File exists"):
        start(Fake())


KILLED = """
import signal, sys, time, os
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
sys.path[:0] = [{tests!r}]
from pathlib import Path
import pytest
from fake_stages import Fake
from orchestra.config.loading import load_recipe
from orchestra.run.progress import Progress
from orchestra.run.runner import Run
class Slow(Fake):
    def __call__(self, context):
        result = super().__call__(context)
        if context.stage.name == "explore":
            Path({flag!r}).touch()
            time.sleep(60)
        return result
try:
    Slow().instead(pytest.MonkeyPatch())
    Run(load_recipe("40d", "embedded"), Path({run_dir!r}), progress=Progress(quiet=True)).start()
except Exception as error:
    print(error); sys.exit(getattr(error, "exit_code", 1))
"""


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 130), (signal.SIGINT, 130)])
def test_killed_then_continued(start, tmp_path, sign, code):
    flag = tmp_path / "reached"
    text = KILLED.format(tests=str(Path(__file__).parents[2]), flag=str(flag), run_dir=str(start.run_dir))
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not flag.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sign)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == code
    assert ("stopped in stage 'explore'" in out) == (code == 130)
    fake = Fake()
    start(fake)
    assert fake.calls == STAGES[3:]
