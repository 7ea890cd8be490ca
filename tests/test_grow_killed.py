"""A panel that grows on the real stack, killed inside a window, inside the training of a new expert and before its
panel is written: the outcome is that of a whole run, byte for byte."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

RECIPE = """
name: mini
seed: 3
model: {base: embedded/student, lora: {rank: 4, alpha: 8}}
problems: {train: "embedded:formal", test: "embedded:formal", train_limit: 120, test_limit: 12}
rollouts: {group_size: 4, prompts_per_step: 4, max_completion_tokens: 64, max_prompt_tokens: 96}
evaluate: {samples: 1, greedy: false, perplexity: 0}
stages:
  - {name: traces, kind: distill, teacher: embedded/teacher, problems: 60, samples: 1, max_tokens: 80}
  - {name: first, kind: sft, data: traces, steps: 2, batch_size: 4, learning_rate: 1e-3, expert: first,
     preflight: false}
  - {name: grow, kind: grow, data: traces, steps: 4, batch_size: 4, learning_rate: 1e-3, save_steps: 1,
     preflight: false, rounds: 3, window: 8, learn: 24, gain: 12, samples: 1, oracle_samples: 2,
     growth: {windows: 1, cooldown: 0, at_most: 3, at_least: 1, unsolved_above: 0, load_below: 0}}
"""


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-m", "orchestra", "run", str(folder / "mini.yaml"), "--scale", "none", "--runs", str(folder)],
        stdout=open(folder / "out.txt", "a"), stderr=subprocess.STDOUT, start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def without(value):
    """Without what is of when and where it ran: times, rates, memory."""
    if isinstance(value, dict):
        of_time = ("second", "peak_memory_bytes", "routing_time_share")
        return {key: without(one) for key, one in value.items() if not any(word in key for word in of_time)}
    return [without(one) for one in value] if isinstance(value, list) else value


WHOLE = ("adapter_model.safetensors", "optimizer.safetensors", "adapter_config.json", "traces.jsonl", "panel.json",
         "router.json", "router.safetensors", "removal.json", "growth.json", "routes.json",
         "panel-evaluation.json")  # fmt: skip


def outcome(folder):
    """Every file that says what came out: byte for byte, or of evaluations and results without the times."""
    found = {}
    for path in sorted((folder / "mini-none").rglob("*")):
        name = str(path.relative_to(folder))
        if path.name in WHOLE:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name == "metrics.jsonl":
            found[name] = [without(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name.endswith(("result.json", "evaluation.json")) or path.parent.name == "answers":
            found[name] = without(json.loads(path.read_text()))
    return found


def killed_when(folder, there):
    """Start it and kill -9 it as soon as this is there; says whether it was."""
    process = start(folder)
    deadline = time.monotonic() + 500
    while process.poll() is None and time.monotonic() < deadline:
        if there(folder / "mini-none"):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
            return True
        time.sleep(0.005)
    return False


def steps(run, pattern, least):
    found = sorted(run.glob(pattern))
    return bool(found) and found[-1].read_text().count("\n") >= least


@pytest.mark.slow
def test_a_panel_killed_while_it_grows_ends_the_same(tmp_path):
    whole, often = tmp_path / "whole", tmp_path / "often"
    for folder in (whole, often):
        folder.mkdir()
        (folder / "mini.yaml").write_text(RECIPE)
    assert start(whole).wait(timeout=900) == 0, (whole / "out.txt").read_text()
    expected = outcome(whole)
    (told,) = (whole / "mini-none").glob("*-grow/growth.json")
    tried = [one["expert"] for one in json.loads(told.read_text())["changes"] if one["action"] == "grow"]
    assert tried
    moments = {
        "inside a window": lambda run: [*run.glob("*-grow/answers/window-0-base.json")],
        "inside the training of a new expert": lambda run: steps(run, f"*-grow/grown/{tried[0]}/metrics.jsonl", 2),
        "behind it": lambda run: [*run.glob(f"*-grow/grown/{tried[0]}/result.json")],
        "before the panel is written": lambda run: [*run.glob("*-grow/answers/second-base.json")],
    }
    for name, moment in moments.items():
        assert killed_when(often, moment), (name, (often / "out.txt").read_text())
        assert not [*(often / "mini-none").glob("*-grow/panel/panel.json")], name
    assert start(often).wait(timeout=900) == 0, (often / "out.txt").read_text()
    found = outcome(often)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
