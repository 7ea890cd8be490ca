"""Arms and seeds with stages that only pretend: what is run, what is shared, and what a change touches."""

import errno
import json
import os
import shutil
import sys

import pytest
from fake_stages import STAGES, Fake

from orchestra import cli
from orchestra.config.experiment import load_experiment
from orchestra.config.faults import UserError
from orchestra.plan.experiment import plan_experiment
from orchestra.plan.machine import Machine
from orchestra.run import experiment as experiments
from orchestra.run.folder import locked
from orchestra.run.ledger import Ledger, write_json
from orchestra.run.progress import Progress
from orchestra.run.runner import Run
from orchestra.run.siblings import finder
from settings.files import sha256_of

ARMS = """\
extends: 40d
name: arms
seeds: [1, 2]
arms:
  rising: {}
  flat: {stages: {consolidate: {beta: 0.0}, polish: {beta: 0.0}}}
  short: {stages: {imitate: {steps: 7}}}
"""


MACHINE = Machine(cores=2, memory=24 * 2**30, gpus=())


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(text, ...): (stages that were run by arm and seed, the folder)."""
    folder = tmp_path / "arms-none"

    def go(text=ARMS, restart=None, fail=None):
        (tmp_path / "arms.yaml").write_text(text)
        experiment = load_experiment(str(tmp_path / "arms.yaml"), "embedded")
        every = experiments.runs_of(experiment, folder)
        experiments.prepare(experiment, folder, {})
        again, ran = experiments.restarts(restart, every), {}
        go.calls = ran
        for one in every:
            fake = Fake(fail=fail.get((one.arm, one.seed), {}) if fail else {}).instead(monkeypatch)
            ran[one.arm, one.seed] = fake.calls
            shared = finder([other.run_dir for other in every], one.run_dir)
            Run(one.recipe, one.run_dir, progress=Progress(quiet=True), shared=shared, arm=one.arm).start(
                again.get(one)
            )
        return ran, folder

    return go


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "log.txt")
    }


def test_what_arms_have_in_common_is_run_once_for_each_seed(start):
    ran, folder = start()
    for seed in (1, 2):
        assert ran["rising", seed] == STAGES
        # they differ from `consolidate` on, and from `imitate` on
        assert ran["flat", seed] == ["consolidate", "polish", "release"]
        assert ran["short", seed] == ["imitate", "explore", "consolidate", "polish", "release"]
    flat, rising = (folder / arm / "seed-1" / "03-explore" / "adapter" for arm in ("flat", "rising"))
    file = "adapter_model.safetensors"
    assert (flat / file).read_bytes() == (rising / file).read_bytes()
    assert (flat / file).stat().st_ino == (rising / file).stat().st_ino, "on the disk once"
    for arm in ("rising", "flat", "short"):
        assert list(Ledger(folder / arm / "seed-2").entries) == STAGES, "each run is whole"


@pytest.mark.parametrize(
    "text",
    [
        ARMS,
        # one that evaluates on the way, one on other problems of which none is trained on, one that stops early
        """
extends: 40d
name: arms
seeds: [1, 2]
arms:
  first: {stages: {explore: {steps: 100}}}
  look: {stages: {look: {kind: evaluate, samples: 2, after: imitate}}}
  early: {stages: {consolidate: null, polish: null, release: null}}
  data: {stages: {traces: {temperature: 0.5}}}
  late: {stages: {explore: {steps: 100}, polish: {beta: 0.5}}}
  base: {model: {prompt: chat}}
  rollouts: {rollouts: {temperature: 0.9}}
""",
    ],
    ids=["changes", "stages"],
)
def test_a_plan_says_what_is_run(start, tmp_path, text):
    """Stage for stage, of every arm and seed; nothing is taken over from another seed."""
    ran, _ = start(text)
    planned = plan_experiment(load_experiment(str(tmp_path / "arms.yaml"), "embedded"), MACHINE, "embedded")
    assert planned.runs == len(ran)
    for arm in planned.arms:
        for seed in planned.seeds:
            assert [stage.name for stage in arm.own] == ran[arm.arm, seed], (arm.arm, seed)


def test_again_nothing_is_run_and_nothing_changes(start):
    _, folder = start()
    before = contents(folder)
    ran, _ = start()
    assert not any(ran.values())
    after = contents(folder)
    assert {name for name in before if before[name] != after[name]} <= {
        name for name in before if name.endswith("run.json")
    }


def test_editing_one_arm_touches_no_other(start):
    """Also where the one that is run again has files that others share."""
    _, folder = start()
    before = {arm: contents(folder / arm) for arm in ("flat", "short")}
    edited = ARMS.replace("rising: {}", "rising: {stages: {explore: {steps: 9}}}")
    with pytest.raises(UserError, match="--restart-from rising/explore"):
        start(edited)
    ran, _ = start(edited, "rising/explore")
    assert ran["rising", 1] == ["explore", "consolidate", "polish", "release"]
    assert not any(ran[arm, seed] for arm in ("flat", "short") for seed in (1, 2))
    for arm, files in before.items():
        now = contents(folder / arm)
        assert {name for name in files if files[name] != now[name]} <= {n for n in files if n.endswith("run.json")}


def test_killed_in_one_arm_the_same_command_ends_with_the_same_files(start, tmp_path):
    _, whole = start()
    wanted = {name: data for name, data in contents(whole).items() if name.endswith(("safetensors", "traces.jsonl"))}
    whole.rename(tmp_path / "before")
    with pytest.raises(UserError):
        start(fail={("flat", 1): {"polish": RuntimeError("killed")}})
    ran, folder = start()
    assert ran["rising", 1] == [] and ran["flat", 1] == ["polish", "release"]
    assert {name: contents(folder)[name] for name in wanted} == wanted


def test_a_stage_that_was_begun_is_not_exchanged_for_anothers(start):
    """What a killed run has of it goes on."""
    _, folder = start()
    flat = folder / "flat" / "seed-1"
    ledger = Ledger(flat)
    ledger.forget(["explore", "consolidate", "polish", "release"])
    (flat / "03-explore" / "result.json").unlink()
    ran, _ = start()
    assert ran["flat", 1] == ["explore"], "those after it were finished, though not recorded"


def test_restarts_by_arm_and_stage(tmp_path):
    (tmp_path / "arms.yaml").write_text(ARMS)
    every = experiments.runs_of(load_experiment(str(tmp_path / "arms.yaml"), "embedded"), tmp_path)
    assert {str(one) for one in experiments.restarts("flat/polish", every)} == {"flat, seed 1", "flat, seed 2"}
    assert len(experiments.restarts("polish", every)) == 6
    with pytest.raises(UserError, match=r"no such arm .*did you mean 'flat'"):
        experiments.restarts("flatt/polish", every)
    with pytest.raises(UserError, match=r"no such stage .*did you mean 'polish'"):
        experiments.restarts("polsh", every)


def test_a_folder_is_one_run_or_an_experiment(start, tmp_path):
    _, folder = start()
    with pytest.raises(UserError, match="holds an experiment"):
        experiments.must_be_for(folder, single=True)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "ledger.json").write_text("{}")
    with pytest.raises(UserError, match="holds a single run"):
        experiments.must_be_for(tmp_path / "one", single=False)
    assert json.loads((folder / "experiment.json").read_text())["arms"] == ["rising", "flat", "short"]


def test_one_command_at_a_time_works_in_a_folder(tmp_path, monkeypatch, capfd):
    """A second one would say in experiment.json what it is about, and the first one's tables would be of that."""
    (tmp_path / "arms.yaml").write_text(ARMS)
    monkeypatch.chdir(tmp_path)
    Fake().instead(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["orchestra", "run", "./arms.yaml", "--scale", "embedded", "--seeds", "1"])
    folder = tmp_path / "runs" / "arms-embedded"
    experiments.prepare(load_experiment("./arms.yaml", "embedded"), folder, {})
    before = (folder / "experiment.json").read_bytes()
    with locked(folder):
        assert cli.main() == 1
    assert "another run (process" in capfd.readouterr().err
    assert (folder / "experiment.json").read_bytes() == before
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []


def test_a_disk_that_is_full_is_one_line_also_between_runs(tmp_path, monkeypatch, capfd):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "arms.yaml").write_text(ARMS)
    monkeypatch.chdir(tmp_path)
    Fake().instead(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["orchestra", "run", "./arms.yaml", "--scale", "embedded"])
    for what in ("prepare", "share_commits", "keep_commits"):
        with monkeypatch.context() as patched:
            patched.setattr(experiments, what, full)
            assert cli.main() == 1
        assert "is full; make room and run the same command" in capfd.readouterr().err


def test_commits_are_shared_whole_or_not_at_all(tmp_path, monkeypatch):
    """A part of the file would be a damaged one to the next command."""
    write_json(tmp_path / "hub.json", {"openai/gsm8k": "0" * 40})

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            experiments.share_commits(tmp_path, tmp_path / "a" / "seed-1")
    assert list((tmp_path / "a" / "seed-1").iterdir()) == []
    experiments.share_commits(tmp_path, tmp_path / "a" / "seed-1")
    assert (tmp_path / "a" / "seed-1" / "hub.json").read_bytes() == (tmp_path / "hub.json").read_bytes()


@pytest.mark.parametrize("how", ["other", "no folder"])
def test_what_is_not_what_a_stage_wrote_is_not_taken_over(start, how):
    """Of a run that comes later, which nobody has looked at yet."""
    _, folder = start()
    place = folder / "rising" / "seed-1" / "01-traces"
    if how == "no folder":
        shutil.rmtree(place)
    else:
        write_json(place / "traces.jsonl", "other traces")
    shutil.rmtree(folder / "flat"), shutil.rmtree(folder / "short")
    text = ARMS.replace("arms:\n", "arms:\n  early: {stages: {polish: null, release: null}}\n")
    with pytest.raises(UserError, match="stage 'traces' is finished, but"):  # `rising`, when it is its turn
        start(text)
    told = json.loads((folder / "early" / "seed-1" / "ledger.json").read_text())["stages"][1]["outputs"]
    path = folder / "early" / "seed-1" / "01-traces" / "traces.jsonl"
    assert sha256_of(path) == told["traces.jsonl"]
    # what is whole still is: the traces came out the same again
    assert start.calls["early", 1] == ["traces"]
