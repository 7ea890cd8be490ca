"""An experiment's plan: what arms share, the time with it and without, and whether each arm fits. That runs share just
so is shown in tests/orchestra/run/test_experiment.py."""

import json
import sys
import time

import pytest
from rich.console import Console

from orchestra import cli
from orchestra.config.experiment import load_experiment
from orchestra.config.loading import available
from orchestra.plan.devices import GIB
from orchestra.plan.experiment import plan_experiment
from orchestra.plan.machine import Gpu, Machine
from orchestra.plan.table import show_experiment

LAPTOP = Machine(cores=2, memory=24 * GIB, gpus=())
ARMS = """\
extends: 40d
name: asked
seeds: 3
arms:
  rising: {}
  flat: {stages: {consolidate: {beta: 0.0}, polish: {beta: 0.0}}}
  later: {stages: {consolidate: {beta: 0.0}}}
"""


@pytest.fixture
def planned(tmp_path):
    def plan(text=ARMS, machine=LAPTOP):
        (tmp_path / "asked.yaml").write_text(text)
        return plan_experiment(load_experiment(str(tmp_path / "asked.yaml"), "embedded"), machine, "embedded")

    return plan


def test_who_takes_over_what(planned):
    """`flat` is `rising` up to `explore`; `later` is `flat` up to `consolidate`, and `rising` before that."""
    rising, flat, later = planned().arms
    common = dict.fromkeys(("base", "traces", "imitate", "explore"), "rising")
    assert dict(rising.taken_over) == {} and dict(flat.taken_over) == common
    assert dict(later.taken_over) == common | {"consolidate": "flat"}
    assert flat.changes == ("stages.consolidate.beta: 0.001 -> 0.0", "stages.polish.beta: 0.01 -> 0.0")


def test_time_by_hand(planned):
    """Of 3 seeds each: all of rising, what is flat's own, and of the third what comes after `consolidate`."""
    found = planned()
    seconds = [{stage.name: stage.seconds for stage in arm.plan.stages} for arm in found.arms]
    own = sum(seconds[0].values()) + sum(seconds[1][name] for name in ("consolidate", "polish", "release"))
    own += seconds[2]["polish"] + seconds[2]["release"]
    assert found.seconds == pytest.approx(3 * own) and found.runs == 9
    assert found.seconds_apart == pytest.approx(3 * sum(sum(one.values()) for one in seconds))


def test_files_count_by_what_is_in_them(planned, tmp_path):
    for name, text in (("one", "1"), ("two", "1"), ("three", "3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "d.jsonl").write_text(json.dumps({"question": "1 + 0", "answer": text, "solution": text}))
    arms = "".join(f"  {name}: {{stages: {{imitate: {{data: {name}/d.jsonl}}}}}}\n" for name in ("one", "two", "three"))
    _, two, three = planned("extends: 40d\nname: asked\narms:\n" + arms).arms
    assert "imitate" in two.taken_over and "release" in two.taken_over and "imitate" not in three.taken_over


def test_any_arm_may_not_fit(planned):
    """4 GiB hold the student, but not 256 completions in a pass; the reason is that arm's."""
    text = ARMS + "  wide: {stages: {explore: {micro_batch_size: 256}}}\n"
    small = Machine(cores=2, memory=4 * GIB, gpus=())
    found = planned(text, small)
    fits = {arm.arm: arm.plan.fits for arm in found.arms}
    assert fits == {"rising": True, "flat": True, "later": True, "wide": False}, fits
    assert not found.fits and found.reason.startswith("arm 'wide': ") and "arm 'flat'" not in found.reason
    console = Console(record=True, width=200)
    show_experiment(found, console)
    text = console.export_text()
    assert "does not fit this machine: arm 'wide'" in text
    # the first arm's memory, and that of the one that does not fit
    assert text.count("memory in GiB") == 2
    assert planned(ARMS, LAPTOP).fits


def test_an_unknown_model_in_one_arm(planned, tmp_path):
    text = ARMS + "  other: {stages: {traces: {teacher: someone/unknown-70b}}}\n"
    (tmp_path / "asked.yaml").write_text(text)
    found = plan_experiment(load_experiment(str(tmp_path / "asked.yaml"), None), LAPTOP)
    assert not found.fits and "arm 'other': " in found.reason and "someone/unknown-70b" in found.reason
    console = Console(record=True, width=200)
    show_experiment(found, console)
    assert "time about" not in console.export_text()


def test_it_is_printed(planned):
    console = Console(record=True, width=200)
    show_experiment(planned(), console)
    text = console.export_text()
    for words in (
        "arm flat\n  stages.consolidate.beta: 0.001 -> 0.0",
        "base to explore (rising); consolidate (flat)",
        "3 arms x 3 seeds: 9 runs; seeds 1, 2, 3 have nothing in common",
        "if every run ran all of its stages)",
        "fits this machine: arm 'rising'",
    ):
        assert words in text, text
    # base's evaluation is run by the first arm alone
    assert text.count("embedded (500)") == 1 and text.count("memory in GiB") == 1


def test_seeds_alone(planned):
    found = planned("extends: 40d\nname: asked\nseeds: [4]\n")
    console = Console(record=True, width=200)
    show_experiment(found, console)
    text = console.export_text()
    assert "1 arm x 1 seed: 1 run; seed 4" in text and "ran all of its stages" not in text and "taken over" not in text


def test_evaluations_that_only_some_arms_have(planned):
    """What is trained on may be asked there, which is known when the problems are read."""
    arms = ARMS + "  more: {stages: {look: {kind: evaluate, limit: 10, after: polish}}}\n"
    assert planned(arms).extra_sets and not planned().extra_sets
    console = Console(record=True, width=200)
    show_experiment(planned(arms), console)
    assert "if none of their problems is lost to the evaluation" in console.export_text()


def test_the_command_line(tmp_path, monkeypatch, capfd):
    """In less than a second of processor time, with seeds from the command line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asked.yaml").write_text(ARMS)
    monkeypatch.setattr(
        sys, "argv", ["orchestra", "plan", "./asked.yaml", "--scale", "embedded", "--seeds", "2", "--json"]
    )
    start = time.process_time()
    assert cli.main() == 0
    assert time.process_time() - start < 1.0
    told = json.loads(capfd.readouterr().out)
    assert (told["runs"], told["seeds"], told["fits"]) == (6, [1, 2], told["fits"])
    assert [arm["arm"] for arm in told["arms"]] == ["rising", "flat", "later"]
    assert told["arms"][1]["taken_over"]["explore"] == "rising"
    assert told["arms"][1]["plan"]["stages"][0]["name"] == "base"
    assert told["seconds"] < told["seconds_without_sharing"]


@pytest.mark.parametrize("name", sorted(available()))
def test_every_shipped_recipe_fits_one_gpu(name):
    """On real data and Qwen2.5-3B, as the gpu scale has it."""
    machine = Machine(16, 128 * GIB, (Gpu("NVIDIA H100 80GB HBM3", 80 * GIB),))
    plan = plan_experiment(load_experiment(name, "gpu"), machine, "gpu")
    assert all(arm.plan.stages and arm.plan.fits for arm in plan.arms), [arm.plan.reason for arm in plan.arms]
