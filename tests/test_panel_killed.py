"""A panel on the real stack, killed in `expert: each`, in an expert's grpo and in `route`: the outcome is that of a
whole run, byte for byte."""

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
problems: {train: "embedded:formal", test: "embedded:formal", train_limit: 60, test_limit: 12}
rollouts: {group_size: 4, prompts_per_step: 4, max_completion_tokens: 64, max_prompt_tokens: 96}
evaluate: {samples: 1, greedy: false, perplexity: 0}
stages:
  - {name: traces, kind: distill, teacher: embedded/teacher, problems: 40, samples: 1, max_tokens: 80}
  - {name: experts, kind: sft, data: traces, steps: 4, batch_size: 4, learning_rate: 1e-3, save_steps: 1, expert: each,
     preflight: false}
  - {name: rein, kind: grpo, steps: 4, learning_rate: 3e-4, beta: 0.01, save_steps: 1, reference: experts,
     expert: EXPERT}
  - {name: choose, kind: route, problems: 24, samples: 1, oracle_samples: 2}
"""


def recipe():
    from orchestra.work.domains import expert_name
    from rewards.generator.draw import DOMAINS
    from rewards.math.domain import STORIES

    return RECIPE.replace("EXPERT", min(expert_name(one) for one in DOMAINS if one not in STORIES))


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


WHOLE = ("adapter_model.safetensors", "adapter_config.json", "traces.jsonl", "panel.json", "router.json",
         "router.safetensors")  # fmt: skip


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
def test_a_panel_killed_in_each_of_its_stages_ends_the_same(tmp_path):
    whole, often = tmp_path / "whole", tmp_path / "often"
    for folder in (whole, often):
        folder.mkdir()
        (folder / "mini.yaml").write_text(recipe())
    assert start(whole).wait(timeout=900) == 0, (whole / "out.txt").read_text()
    expected = outcome(whole)
    experts = {name.rsplit("/", 2)[1] for name in expected if "-experts/panel/experts/" in name}
    assert len(experts) >= 2
    moments = {
        "the second expert": lambda run: (
            len(list(run.glob("*-experts/each/*"))) == 2 and steps(run, "*-experts/each/*/metrics.jsonl", 2)
        ),
        "behind the experts": lambda run: [*run.glob("*-experts/panel/panel.json")],
        "its grpo": lambda run: steps(run, "*-rein/metrics.jsonl", 2),
        "asking the arms": lambda run: len(list(run.glob("*-choose/answers/*.json"))) == 2,
        "asking once more": lambda run: len(list(run.glob("*-choose/answers/*.json"))) == 2 * len(experts) + 1,
    }
    for name, moment in moments.items():
        assert killed_when(often, moment), (name, (often / "out.txt").read_text())
    assert not [*(often / "mini-none").glob("*-choose/result.json")]
    assert start(often).wait(timeout=900) == 0, (often / "out.txt").read_text()
    found = outcome(often)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
