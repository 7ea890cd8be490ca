"""The mini recipe on two CPU processes is the run of one; and however a run ends, one process says so.

What is equal and how far: prompts, seeds and shares of a batch are exactly those of one process, so samples, verdicts,
accuracies and counts are equal to the last digit. The gradient is a sum over a step's tokens; two processes add two
half-sums, so weights differ by float32 rounding (of about 1e-7 of a gradient), which AdamW, dividing by the gradient's
own size, can make 1e-5 of an adapter's 0.1. Everything computed from weights (KL, mismatch) follows within that.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import test_end_to_end as one
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
EXACT = (
    *("accuracy", "low", "high", "greedy_accuracy", "difference", "difference_low", "difference_high", "p_value"),
    *("base_difference", "base_p_value", "beta", "steps", "tokens", "mean_length", "format_rate", "truncation_rate"),
)
EXACT_EXTRA = ("kept", "teacher_accuracy", "left_out", "examples", "epochs", "base_sha256", "pass@1", "pass@2")


def start(folder, command):
    """The launcher, with all that it prints in one file."""
    with open(folder / "out.txt", "w", encoding="utf-8") as out:
        return subprocess.Popen(
            [*LAUNCHER, *command], stdout=out, stderr=out, env=one.environment() | {"OMP_NUM_THREADS": "1"}
        )


def workers(launcher):
    return psutil.Process(launcher.pid).children()


def end(launcher, reached, how, seconds=400):
    """Once `reached()`, do `how(launcher)`; returns the launcher's exit code."""
    deadline = time.monotonic() + seconds
    while not reached() and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert launcher.poll() is None, "over before it could be ended"
    how(launcher)
    return launcher.wait(120)


def kill_all(launcher):
    """At once, as when a machine goes down: nobody can clean up after another."""
    for process in [*workers(launcher), launcher]:
        process.kill()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(folder of one process, folder of two that were killed in the second GRPO stage and went on)."""
    alone, both = (one.write(tmp_path_factory.mktemp(name)) for name in ("one", "two"))
    done = one.orchestra(alone)
    assert done.returncode == 0, done.stderr[-3000:]
    command = one.command(both)[1:]
    polish = both / "runs" / "mini-none" / "04-polish"

    def two_steps():
        path = polish / "metrics.jsonl"
        return path.exists() and path.read_text().count("\n") >= 2

    assert end(start(both, command), two_steps, kill_all) == -signal.SIGKILL
    assert not (polish / "result.json").exists()
    again = start(both, command)
    assert again.wait(500) == 0, (both / "out.txt").read_text()[-3000:]
    return alone, both


def results(folder):
    return {name: one.result(folder, name) for name in one.STAGES}


def test_the_ledger_and_all_accuracies_are_those_of_one_process(runs):
    alone, both = (results(folder) for folder in runs)
    for name in one.STAGES:
        assert [alone[name][key] for key in EXACT] == [both[name][key] for key in EXACT], name
        extras = [{k: v for k, v in of[name]["extra"].items() if k in EXACT_EXTRA} for of in (alone, both)]
        assert extras[0] == extras[1], name
    ledgers = [json.loads((folder / "runs" / "mini-none" / "ledger.json").read_text())["stages"] for folder in runs]
    assert [stage["folder"] for stage in ledgers[0]] == [stage["folder"] for stage in ledgers[1]]
    assert [stage["fingerprint"]["config"] for stage in ledgers[0]] == [
        stage["fingerprint"]["config"] for stage in ledgers[1]
    ]


def test_every_sample_and_verdict_is_that_of_one_process(runs):
    alone, both = (folder / "runs" / "mini-none" for folder in runs)
    for name in ("samples.jsonl", "traces.jsonl", "statistics.json"):
        assert (both / "01-traces" / name).read_bytes() == (alone / "01-traces" / name).read_bytes()
    for path in sorted(alone.glob("*/evaluation.json")):
        a, b = (json.loads((run / path.parent.name / path.name).read_text()) for run in (alone, both))
        for decoding in ("sampled", "greedy"):
            if a[decoding] is not None:
                assert a[decoding]["correct"] == b[decoding]["correct"], path
        assert a["samples"] == b["samples"], path


def test_policies_differ_by_the_order_of_a_sum(runs):
    """The traces are no multiple of the batch: an epoch's last examples count once, though accelerate repeats some."""
    alone, both = (folder / "runs" / "mini-none" for folder in runs)
    kept = one.result(runs[0], "traces")["extra"]["kept"]
    assert kept % 8 and kept < 6 * 8
    for place in ("02-imitate", "03-explore", "04-polish"):
        a, b = (load_file(run / place / "adapter" / "adapter_model.safetensors") for run in (alone, both))
        assert max((a[name] - b[name]).abs().max().item() for name in a) < 1e-4, place
    a, b = (one.result(folder, "polish") for folder in runs)
    assert b["kl"] == pytest.approx(a["kl"], rel=0.02)


def test_every_file_had_one_writer(runs):
    _, both = runs
    for name in ("imitate", "explore", "polish"):
        steps = [line["step"] for line in one.metrics(both, name)]
        assert steps == list(range(1, len(steps) + 1)), name
    release = one.result(both, "release")
    assert release["extra"]["kl_to_policy"] < 1e-5
    assert release["adapter_sha256"] == one.result(both, "polish")["adapter_sha256"]


def test_again_does_nothing(runs):
    _, both = runs
    again = start(both, one.command(both)[1:])
    assert again.wait(200) == 0
    assert (both / "out.txt").read_text().count("finished before") == len(one.STAGES)


# however it ends, one of them says so

FAKED = """
import os, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
import pytest
from fake_stages import Fake
rank, how, folder = os.environ["RANK"], sys.argv[1], Path(sys.argv[2])
class Slow(Fake):
    def __call__(self, context):
        result = super().__call__(context)
        if context.stage.name == "explore":
            (folder / f"reached-{{rank}}").touch()
            if how == "error" and rank == "1":
                raise RuntimeError("odd shape")
            if how == "both":
                raise RuntimeError("odd shape")
            if rank == "1":
                time.sleep(100)
        return result
Slow().instead(pytest.MonkeyPatch())
sys.argv = ["orchestra", "run", "40d", "--scale", "embedded", "--force", "--runs", str(folder / "runs")]
import runpy
runpy.run_module("orchestra", run_name="__main__")
"""


def faked(folder, how):
    (folder / "faked.py").write_text(FAKED.format(root=str(ROOT), tests=str(ROOT / "tests")))
    return start(folder, [str(folder / "faked.py"), how, str(folder)])


def told(folder):
    return [line for line in (folder / "out.txt").read_text().splitlines() if line.startswith("orchestra: ")]


@pytest.mark.parametrize("how", ["error", "both"])
def test_an_error_is_one_message(tmp_path, how):
    """On one process while the other waits, or on both at once."""
    assert faked(tmp_path, how).wait(200) == 1
    (line,) = told(tmp_path)
    assert line.startswith("orchestra: stage 'explore' failed: RuntimeError: odd shape")


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_hand_is_one_message(tmp_path, sign):
    """One process works, the other waits for it."""
    launcher = faked(tmp_path, "sleep")
    reached = [tmp_path / "reached-0", tmp_path / "reached-1"]
    assert end(launcher, lambda: all(path.exists() for path in reached), lambda p: p.send_signal(sign)) != 0
    assert told(tmp_path) == [
        "orchestra: stopped in stage 'explore'; the same command goes on from its last checkpoint"
    ]


def test_a_process_that_dies_takes_the_others_along(tmp_path):
    launcher = faked(tmp_path, "sleep")
    reached = [tmp_path / "reached-0", tmp_path / "reached-1"]

    def kill_the_second(launcher):
        by_rank = {process.environ()["RANK"]: process for process in workers(launcher)}
        by_rank["1"].kill()

    assert end(launcher, lambda: all(path.exists() for path in reached), kill_the_second) != 0
    assert len(told(tmp_path)) == 1


def test_a_batch_that_cannot_be_shared_is_one_message(tmp_path):
    launcher = start(
        tmp_path, ["-m", "orchestra", "run", "40d", "--scale", "embedded", "--set", "stages.imitate.batch_size=5"]
    )
    assert launcher.wait(100) == 1
    (line,) = told(tmp_path)
    assert "batch_size: 5 cannot be shared out evenly over 2 processes; 4 and 6 can" in line
