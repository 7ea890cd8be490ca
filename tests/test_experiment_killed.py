"""Arms and seeds on the real stack, killed again and again wherever they are: the outcome is that of a whole run."""

import os
import random
import signal
import subprocess
import time

import pytest
from drill import finished, start

RECIPE = """
name: mini
model: {base: embedded/student, lora: {rank: 4, alpha: 8}}
problems: {train: embedded, test: embedded, train_limit: 60, test_limit: 12}
rollouts: {group_size: 4, prompts_per_step: 4, max_completion_tokens: 64, max_prompt_tokens: 96}
evaluate: {samples: 1}
seeds: 2
stages:
  - {name: own, kind: distill, teacher: self, problems: 24, samples: 2, max_tokens: 80}
  - {name: imitate, kind: sft, data: own, steps: 6, batch_size: 8, learning_rate: 1e-3, save_steps: 2}
  - {name: explore, kind: grpo, steps: 4, learning_rate: 3e-4, save_steps: 1}
arms:
  rising: {}
  pinned: {stages: {explore: {beta: 0.01, reference: base}}}
"""
KILLS = 6


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(outcome, seconds) of the experiment from beginning to end."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "mini.yaml").write_text(RECIPE)
    began = time.monotonic()
    return finished(folder), time.monotonic() - began


@pytest.mark.slow
def test_killed_anywhere_it_ends_the_same(whole, tmp_path):
    expected, seconds = whole
    # 2 arms x 2 seeds x (base, own, imitate, explore); two of these have adapters, one traces, two steps
    assert sum(name.endswith("adapter_model.safetensors") for name in expected) == 8
    assert sum(name.endswith("evaluation.json") for name in expected) == 12
    (tmp_path / "mini.yaml").write_text(RECIPE)
    draw, killed = random.Random(5), 0
    while killed < KILLS:
        process = start(tmp_path)
        try:
            # a first part of it is starting up, in which little is lost
            code = process.wait(timeout=draw.uniform(0.1, 0.6) * seconds)
            assert code == 0, (tmp_path / "out.txt").read_text()
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
    assert killed >= 2
    assert finished(tmp_path) == expected
