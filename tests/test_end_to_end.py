"""The command line on a miniature recipe with every kind of stage: whole, killed and resumed, again, and badly put.

The student of the package runs through all of it, on the real stack, in processes of their own.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """
name: mini
seed: 3
model:
  base: embedded/student
  lora: {rank: 4, alpha: 8}
problems: {train: embedded, test: embedded, train_limit: 60, test_limit: 12}
reward: {correct: 1.0, format: 0.1}
rollouts: {group_size: 4, prompts_per_step: 4, max_completion_tokens: 64, max_prompt_tokens: 96}
evaluate: {samples: 1}
stages:
  - {name: traces, kind: distill, teacher: embedded/teacher, problems: 24, samples: 1, max_tokens: 80}
  - {name: imitate, kind: sft, data: traces, steps: 6, batch_size: 8, learning_rate: 1e-3}
  - {name: explore, kind: grpo, steps: 4, learning_rate: 3e-4, beta: 0.0, save_steps: 1}
  - {name: polish, kind: grpo, steps: 4, learning_rate: 3e-4, beta: 0.01, reference: start, save_steps: 1}
  - {name: look, kind: evaluate, samples: 2, limit: 6, greedy: false, pass_at_k: [1, 2]}
  - {name: release, kind: export, dtype: float32}
"""
STAGES = ["base", "traces", "imitate", "explore", "polish", "look", "release"]
KINDS = ["base", "distill", "sft", "grpo", "grpo", "evaluate", "export"]


def command(folder, *extra):
    return [
        sys.executable, "-m", "orchestra", "run", str(folder / "mini.yaml"), "--scale", "none",
        "--runs", str(folder / "runs"), *extra,
    ]  # fmt: skip


def orchestra(folder, *extra):
    done = subprocess.run(command(folder, *extra), capture_output=True, text=True, timeout=500, env=environment())
    return done


def environment():
    return os.environ | {"PYTHONUNBUFFERED": "1"}


def result(folder, stage):
    (path,) = (folder / "runs" / "mini-none").glob(f"*-{stage}/result.json")
    return json.loads(path.read_text())


def metrics(folder, stage):
    (path,) = (folder / "runs" / "mini-none").glob(f"*-{stage}/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(folder, text=RECIPE):
    (folder / "mini.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, process) of the recipe run from beginning to end."""
    folder = write(tmp_path_factory.mktemp("whole"))
    return folder, orchestra(folder)


def killed_in(folder, stage, steps):
    """Start the recipe and kill -9 it as soon as this stage has logged so many steps."""
    run = folder / "runs" / "mini-none"
    process = subprocess.Popen(
        command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(), start_new_session=True
    )
    deadline = time.monotonic() + 400
    while process.poll() is None and time.monotonic() < deadline:
        found = list(run.glob(f"*-{stage}/metrics.jsonl"))
        if found and found[0].read_text().count("\n") >= steps:
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    return process.wait(30)


def test_every_stage_runs(whole):
    folder, done = whole
    assert done.returncode == 0, done.stderr[-3000:]
    run = folder / "runs" / "mini-none"
    shown = subprocess.run(
        [sys.executable, "-m", "orchestra", "show", str(run), "--json"], capture_output=True, text=True, timeout=60
    )
    results = json.loads(shown.stdout)
    assert [one["name"] for one in results] == STAGES and [one["kind"] for one in results] == KINDS
    by_name = {one["name"]: one for one in results}
    for name in ("base", "imitate", "explore", "polish", "look"):
        assert 0 <= by_name[name]["low"] <= by_name[name]["accuracy"] <= by_name[name]["high"] <= 1
    assert by_name["release"]["adapter_sha256"] == by_name["polish"]["adapter_sha256"]
    assert len({by_name[name]["adapter_sha256"] for name in ("imitate", "explore", "polish")}) == 3
    assert by_name["release"]["extra"]["kl_to_policy"] < 1e-5
    assert done.stdout.count("none answered otherwise") == 3, "by vLLM, sampled and greedy, and by transformers"
    assert by_name["polish"]["beta"] == 0.01 and by_name["polish"]["kl"] > 0
    assert by_name["look"]["extra"]["pass@2"] >= by_name["look"]["extra"]["pass@1"]
    assert (run / "report.html").is_file()
    for index, name in enumerate(STAGES):
        place = run / f"{index:02}-{name}"
        assert (place / "result.json").is_file() and not (place / "checkpoints").exists()


def test_what_the_stages_promise_each_other_holds(whole):
    folder, done = whole
    assert done.returncode == 0, done.stderr[-3000:]
    assert metrics(folder, "polish")[0]["kl"] == 0.0, "KL to the stage's own start"
    hashes = {result(folder, name)["extra"]["base_sha256"] for name in ("explore", "polish")}
    assert len(hashes) == 1
    for name in ("explore", "polish"):
        assert [line["step"] for line in metrics(folder, name)] == [1, 2, 3, 4]
        assert all(line["engine_mismatch"] < 1e-3 for line in metrics(folder, name))
    (statistics,) = (folder / "runs" / "mini-none").glob("*-traces/statistics.json")
    counted = json.loads(statistics.read_text())
    assert counted["sampled"] == 24 == counted["kept"] + sum(counted["dropped"].values())


def test_killed_in_the_middle_of_a_stage_ends_with_the_same_adapter(whole, tmp_path):
    """kill -9 after step 2 or 3 of the second GRPO stage, then the same command."""
    folder, _ = whole
    write(tmp_path)
    assert killed_in(tmp_path, "polish", 2) == -signal.SIGKILL
    assert not list((tmp_path / "runs" / "mini-none").glob("*-polish/result.json"))
    done = orchestra(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("finished before") == 4, done.stdout
    for name in ("imitate", "explore", "polish", "release"):
        assert result(tmp_path, name)["adapter_sha256"] == result(folder, name)["adapter_sha256"], name
    assert [line["step"] for line in metrics(tmp_path, "polish")] == [1, 2, 3, 4]
    for name in ("base", "imitate", "explore", "polish", "look"):
        assert result(tmp_path, name)["accuracy"] == result(folder, name)["accuracy"], name


def test_again_does_nothing(whole):
    folder, _ = whole
    run = folder / "runs" / "mini-none"
    before = {path: path.read_bytes() for path in run.glob("*/result.json")}
    start = time.monotonic()
    done = orchestra(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("finished before") == len(STAGES)
    assert {path: path.read_bytes() for path in run.glob("*/result.json")} == before
    assert time.monotonic() - start < 60, "seconds on an idle machine"


@pytest.mark.parametrize(
    "change, said",
    [
        (("learning_rate: 1e-3", "learning_rte: 1e-3"), "did you mean 'learning_rate'?"),
        (("base: embedded/student", "base: embedded/studnet"), "studnet"),
        (("train: embedded", "train: no/such/file.jsonl"), "no/such/file.jsonl"),
        (("beta: 0.01", "beta: -1"), "beta"),
        (("data: traces", "data: trces"), "did you mean 'traces'?"),
    ],
    ids=["key", "base", "problems", "beta", "data"],
)
def test_bad_input_is_told_in_one_message(tmp_path, change, said):
    """A line for each fault, with the file and line it is in, and no traceback."""
    write(tmp_path, RECIPE.replace(*change))
    done = orchestra(tmp_path)
    assert done.returncode not in (0, -signal.SIGKILL)
    assert said in done.stderr and "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr


def test_a_changed_recipe_asks_for_a_restart(whole):
    folder, _ = whole
    done = orchestra(folder, "--set", "stages.imitate.steps=7")
    assert done.returncode != 0
    assert "steps 6 -> 7" in done.stderr and "--restart-from imitate" in done.stderr, done.stderr


# longer


@pytest.mark.slow
def test_a_damaged_model_is_one_message(tmp_path):
    """A file that is cut off: found when the base is loaded, in the first stage."""
    import shutil

    from models.paths import model_path

    broken = shutil.copytree(model_path("embedded/student"), tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    write(tmp_path, RECIPE.replace("embedded/student", str(broken)))
    done = orchestra(tmp_path)
    assert done.returncode == 1 and "cannot be loaded" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stage, steps", [("imitate", 2), ("explore", 1), ("polish", 4)])
@pytest.mark.parametrize("reference", ["start", "base", "imitate"])
def test_killed_anywhere_with_any_reference(tmp_path, stage, steps, reference):
    text = RECIPE.replace("reference: start", f"reference: {reference}").replace("save_steps: 1", "save_steps: 2")
    for name in ("straight", "cut"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, text)
    assert orchestra(tmp_path / "straight").returncode == 0
    assert killed_in(tmp_path / "cut", stage, steps) == -signal.SIGKILL
    assert orchestra(tmp_path / "cut").returncode == 0
    for name in ("imitate", "explore", "polish"):
        straight, cut = (result(tmp_path / folder, name)["adapter_sha256"] for folder in ("straight", "cut"))
        assert straight == cut, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        ("max_prompt_tokens: 96}", "max_prompt_tokens: 96, sync: adapter}"),
        ("max_prompt_tokens: 96}", "max_prompt_tokens: 96, engine: transformers}"),
        ("max_prompt_tokens: 96}", "max_prompt_tokens: 96, dynamic_sampling: {max_resamples: 2}}"),
        ("teacher: embedded/teacher", "teacher: self"),
        ("beta: 0.01, reference: start", "beta: 0.01, reference: base, num_iterations: 2, loss_type: grpo"),
    ],
    ids=["adapter", "transformers", "dynamic", "self", "iterations"],
)
def test_other_ways_run_through_all_stages(tmp_path, change):
    write(tmp_path, RECIPE.replace(*change))
    done = orchestra(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(Path(tmp_path / "runs" / "mini-none").glob("*/result.json"))) == len(STAGES)
