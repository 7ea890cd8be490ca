"""The command line as a user meets it: exit codes, messages, JSON."""

import ast
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from fake_stages import STAGES, Fake

from orchestra import cli, cli_export
from orchestra.plan.machine import Gpu, Machine, why_unusable
from orchestra.run.ledger import Ledger

ROOT = Path(__file__).parents[2]


@pytest.fixture
def orchestra(tmp_path, monkeypatch, capfd):
    """orchestra("check") -> (exit code, standard output, standard error), in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["orchestra", *arguments])
        code = cli.main()
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def fake(monkeypatch):
    """Stages that pretend."""
    one = Fake().instead(monkeypatch)

    def export_run(run_dir, to, stage, options, **flags):
        told = {**options, **{key: value or None for key, value in flags.items()}, "stage": stage}
        said = {key: value for key, value in told.items() if value is not None}
        return f"{run_dir} exported to {to} {said}"

    monkeypatch.setattr(cli_export, "export_run", export_run)
    return one


def test_check(orchestra):
    code, out, _ = orchestra("check")
    assert code == 0 and "40d at scale embedded: 6 stages, valid" in out


def test_check_reports_everything_once(orchestra, tmp_path):
    (tmp_path / "bad.yaml").write_text("name: bad\nsed: 1\n")
    code, out, err = orchestra("check", "./bad.yaml", "40d")
    assert code == 1 and "40d at scale gpu" in out
    assert err.startswith("orchestra: bad.yaml:2: sed: unknown key; did you mean 'seed'?")
    assert err.count("bad.yaml:2: sed") == 1 and "stages: missing" in err and "Traceback" not in err


def test_check_takes_less_than_a_second():
    """Of processor time, which other work on the machine does not lengthen."""
    text = (
        "import sys, time; from orchestra.cli import main; sys.argv = ['orchestra', 'check']; code = main()\n"
        "print(time.process_time(), file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0 and float(done.stderr.split()[-1]) < 1.0


def test_plan(orchestra):
    code, out, _ = orchestra("plan", "40d", "--scale", "embedded")
    assert code == 0 and "consolidate" in out and "memory in GiB" in out and "fits this machine" in out
    code, out, _ = orchestra("plan", "40d", "--scale", "gpu", "--json")
    assert [stage["name"] for stage in json.loads(out)["stages"]] == STAGES


def test_run_show_report_export(orchestra, fake, tmp_path):
    code, out, err = orchestra("run", "40d", "--scale", "embedded", "--set", "seed=3")
    assert code == 0, err
    assert fake.calls == STAGES
    run_dir = tmp_path / "runs" / "40d-embedded"
    assert "[3/6] explore: grpo from imitate, 30 steps, beta 0, reference start" in out
    assert "time: planned" in out and "report" in out
    about = json.loads((run_dir / "run.json").read_text())
    assert about["seed"] == 3 and about["scale"] == "embedded" and about["versions"]["python"]
    assert about["set"] == ["seed=3"]
    code, out, _ = orchestra("show", "40d-embedded", "--json")
    rows = json.loads(out)
    assert [row["name"] for row in rows] == STAGES
    keys = {"name", "kind", "accuracy", "low", "high", "difference", "p_value", "beta", "kl", "steps", "seconds",
            "adapter_sha256"}  # fmt: skip
    assert all(keys <= set(row) for row in rows)
    for name in ("40d-embedded", "runs/40d-embedded", "40d", str(run_dir)):
        code, out, _ = orchestra("show", name)
        assert code == 0 and "consolidate" in out and "best:" in out
    code, out, _ = orchestra("export", "40d-embedded", "--to", "there")
    assert code == 0 and "exported to there {}" in out
    options = (
        "--stage",
        "explore",
        "--what",
        "adapter",
        "--public",
        "--tag",
        "v1",
        "--dry-run",
        "--force",
        "--replace",
    )
    code, out, _ = orchestra("export", "40d-embedded", "--to", "hub:ann/model@v2", *options)
    assert code == 0 and "exported to hub:ann/model@v2" in out
    told = ast.literal_eval(out.partition("@v2 ")[2])
    flags = dict.fromkeys(("dry_run", "force", "replace"), True)
    assert told == {"what": "adapter", "private": False, "tag": "v1", "stage": "explore"} | flags
    start = time.monotonic()
    code, out, _ = orchestra("run", "40d", "--scale", "embedded", "--set", "seed=3")
    assert code == 0 and out.count("finished before") == len(STAGES) and fake.calls == STAGES
    assert time.monotonic() - start < 10


def test_what_does_not_fit_is_refused_before_anything_runs(orchestra, fake, monkeypatch):
    """With what takes most and what would fit; --force goes on all the same."""
    small = Machine(2, 2 * 2**30, ())
    monkeypatch.setattr("orchestra.cli_run.this_machine", lambda: small)
    code, _, err = orchestra("run", "40d", "--scale", "embedded")
    assert code == 1 and fake.calls == [] and not Path("runs").exists()
    assert err.startswith("orchestra: 40d at scale embedded does not fit this machine: 3.4 of 2 GiB in stage 'explore'")
    assert "a smaller model does, or 3.4 GiB" in err and "--force" in err and "Traceback" not in err
    code, out, err = orchestra("run", "40d", "--scale", "embedded", "--force")
    assert code == 0 and fake.calls == STAGES and "not known to fit this machine: 3.4 of 2 GiB" in out, err


def test_a_gpu_recipe_without_a_gpu_is_refused(orchestra, fake):
    code, _, err = orchestra("run", "40d", "--scale", "gpu")
    assert code == 1 and "no CUDA device here" in err and fake.calls == []
    assert "; at scale embedded it fits (" in err


@pytest.mark.parametrize(
    ("built", "warned", "said"),
    [
        ("13.0", "CUDA initialization: The NVIDIA driver on your system is too old (found version 12020).",
         "(CUDA 13.0) cannot use: CUDA initialization: The NVIDIA driver on your system is too old (found version"),
        ("13.0", None, "(CUDA 13.0) cannot use: torch.cuda.is_available() is false"),
        (None, None, "there is a GPU, but torch is a build for CPUs: `make setup` anew"),
    ],
    ids=["driver", "unknown", "cpu build"],
)  # fmt: skip
def test_a_gpu_that_torch_cannot_use_is_told_of_before_anything_is_loaded(
    orchestra, fake, monkeypatch, built, warned, said
):
    import torch

    def available():
        if warned:
            warnings.warn(warned, stacklevel=2)
        return False

    monkeypatch.setattr("orchestra.cli_run.this_machine", lambda: Machine(8, 2**36, (Gpu("NVIDIA H100", 2**36),)))
    monkeypatch.setattr(torch.cuda, "is_available", available)
    monkeypatch.setattr(torch.version, "cuda", built)
    code, _, err = orchestra("run", "40d", "--scale", "embedded")
    assert code == 1 and fake.calls == [] and not Path("runs").exists()
    assert said in err and "CUDA_VISIBLE_DEVICES=" in err and err.count("\n") == 1, err


def test_more_processes_than_gpus_are_refused(orchestra, fake, monkeypatch):
    monkeypatch.setattr("orchestra.cli_run.this_machine", lambda: Machine(8, 2**36, (Gpu("NVIDIA H100", 2**36),)))
    monkeypatch.setattr("orchestra.cli_run.why_unusable", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)  # vLLM sets both
    code, _, err = orchestra("run", "40d", "--scale", "embedded")
    assert code == 1 and fake.calls == [] and "2 processes for 1 GPUs; each needs one of its own" in err


def test_a_gpu_that_torch_can_use_is_not_complained_of(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert why_unusable() is None


@pytest.mark.parametrize("command", ["check", "plan", "run"])
def test_a_batch_that_the_processes_cannot_share_is_found_before_anything_runs(orchestra, fake, monkeypatch, command):
    """Every stage's, with the nearest that can: 3 processes, 32 problems and 16 traces a step."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    code, _, err = orchestra(command, "40d", "--scale", "embedded")
    assert code == 1 and fake.calls == [] and len(err.splitlines()) == 4
    assert "stage 'imitate': batch_size: 16 cannot be shared out evenly over 3 processes; 15 and 18 can" in err
    for stage in ("explore", "consolidate", "polish"):
        assert (
            f"stage '{stage}': prompts_per_step: 32 cannot be shared out evenly over 3 processes; 30 and 33 can" in err
        )
    sets = ("--set", "rollouts.prompts_per_step=33", "--set", "stages.imitate.batch_size=18")
    assert orchestra("check", "40d", "--scale", "embedded", *sets)[0] == 0
    monkeypatch.setenv("WORLD_SIZE", "64")
    _, _, err = orchestra("check", "40d", "--scale", "embedded")
    assert "16 cannot be shared out evenly over 64 processes; 64 can" in err


def test_a_gate_has_an_exit_code_of_its_own(orchestra, fake):
    fake.accuracy = {"imitate": 0.9, "explore": 0.1}
    code, out, _ = orchestra("run", "40d", "--scale", "embedded", "--set", "stages.explore.gate.against=imitate")
    assert code == 3 and "NO-GO" in out and "best so far: 'imitate'" in out


def test_a_failing_stage_is_one_message(orchestra, fake):
    fake.fail = {"explore": ValueError("nan loss")}
    code, _, err = orchestra("run", "40d", "--scale", "embedded")
    assert code == 1 and "Traceback" not in err
    assert err.startswith("orchestra: stage 'explore' failed: ValueError: nan loss\nthe whole story is in")
    assert "explore" not in Ledger(Path("runs/40d-embedded")).entries


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "40e"], "did you mean '40d'?"),
        (["run", "40d", "--scale", "gpuu"], "did you mean 'gpu'?"),
        (["run", "40d", "--scale", "embedded", "--set", "stages.polsh.beta=1"], "did you mean 'polish'?"),
        (["run", "40d", "--scale", "embedded", "--restart-from", "polsh"], "did you mean 'polish'?"),
        (["show", "nothing"], "there is no run 'nothing'"),
        (["report", "nothing"], "there is no run 'nothing'"),
        (["plan", "40d", "--set", "seed"], "write it as key=value"),
        (["run", "/dev/null"], "/dev/null"),
    ],
)
def test_wrong_arguments_are_one_message(orchestra, fake, arguments, said):
    code, _, err = orchestra(*arguments)
    assert code == 1 and said in err and "Traceback" not in err and fake.calls == []


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["run", "40d", "--nonsense"]])
def test_wrong_usage(orchestra, arguments):
    code, _, err = orchestra(*arguments)
    assert code == 2 and "Traceback" not in err


def test_schema(orchestra, tmp_path):
    code, _, _ = orchestra("schema", "--to", "here.json")
    assert code == 0 and json.loads((tmp_path / "here.json").read_text())["title"] == "Recipe"


def test_help_names_every_command(orchestra):
    code, out, _ = orchestra("--help")
    assert code == 0 and all(word in out for word in ("check", "plan", "run", "show", "export", "panel", "schema"))


# arithmetic


@pytest.mark.parametrize(("cuda", "dtype"), [(False, "float32"), (True, "bfloat16")])
def test_a_run_knows_its_arithmetic(cuda, dtype):
    """`auto` means another thing on another machine, where the run may go on or be exported."""
    from orchestra.config.loading import load_recipe
    from orchestra.run.experiment import settled

    settled = settled(load_recipe("40d", "embedded", ["rollouts.dtype=float32"]), cuda)
    assert (settled.model.dtype, settled.rollouts.dtype) == (dtype, "float32")
