"""Families of models through whole recipes: sft, grpo and export on an NF4 base, served as folded weights or adapters.

Random weights of two layers (tests/tiny_families.py), the real stages and engines. The engine's log-probabilities are
compared with the trainer's at every sync (models/engines/serving.py), and the exported model's with the policy's, so a
layer that is lost, packed wrongly or scaled twice in one of them stops the run.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from tiny_families import FAMILIES, write_family

from models.families import LINEARS

RECIPE = """
name: family
seed: 5
model: {{base: {base}, lora: {{rank: 4, alpha: 8}}}}
problems: {{train: embedded, test: embedded, train_limit: 40, test_limit: 6}}
reward: {{correct: 0.0, format: 0.0, file: even.py, even: 1.0}}
rollouts: {{group_size: 4, prompts_per_step: 2, max_completion_tokens: 24, max_prompt_tokens: 96, sync: {sync}}}
evaluate: {{samples: 1}}
stages:
  - {{name: imitate, kind: sft, data: solved.jsonl, steps: 4, batch_size: 4, learning_rate: 1e-2}}
  - {{name: explore, kind: grpo, steps: 3, learning_rate: 1e-2, beta: 0.05, mask_truncated_completions: false}}
  - {{name: release, kind: export, dtype: float32}}
"""
EVEN = '''
def even(prompts, completions, completion_ids, **columns):
    """Share of even tokens: random completions differ in it."""
    return [sum(token % 2 == 0 for token in ids) / max(len(ids), 1) for ids in completion_ids]
'''
SOLVED = [
    {"question": f"What is {a} + {b}?", "answer": str(a + b), "solution": f"{a} + {b} = {a + b}"}
    for a in range(4) for b in range(3)
]  # fmt: skip
# vLLM has none of its own
THROUGH_TRANSFORMERS = ("olmo2",)
CASES = [(family, sync) for family in FAMILIES for sync in ("folded", "adapter")]


@pytest.fixture(scope="module")
def forks():
    """Runs `orchestra` with these arguments and its output in this file; returns the code."""
    command = [sys.executable, str(Path(__file__).parent / "forks.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def run(output, *arguments):
            process.stdin.write(json.dumps([str(output), *map(str, arguments)]) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield run
        process.stdin.close()


def run_family(forks, folder, family, sync):
    """(code, output, folder of the run)."""
    write_family(family, folder / "base")
    (folder / "family.yaml").write_text(RECIPE.format(base=folder / "base", sync=sync))
    (folder / "even.py").write_text(EVEN)
    (folder / "solved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SOLVED))
    output = folder / "output.txt"
    code = forks(output, "run", folder / "family.yaml", "--scale", "none", "--runs", folder / "runs")
    return code, output.read_text(), folder / "runs" / "family-none"


@pytest.mark.slow
@pytest.mark.parametrize(("family", "sync"), CASES)
def test_a_family_is_trained_served_and_exported(forks, tmp_path, family, sync):
    pytest.importorskip("vllm", reason="vLLM is not installed here")
    code, output, run = run_family(forks, tmp_path, family, sync)
    model_type, own = FAMILIES[family]
    if family in THROUGH_TRANSFORMERS:
        assert "Olmo2ForCausalLM of its own" in output
        if sync == "adapter":
            assert code == 1 and "rollouts.sync: 'adapter' needs vLLM" in output and "Traceback" not in output
            assert len([line for line in output.splitlines() if line.startswith("orchestra: ")]) == 1
            return
    assert code == 0, output[-3000:]
    assert ("transformers' generate" in output) == (family in THROUGH_TRANSFORMERS)
    results = {path.parent.name.partition("-")[2]: json.loads(path.read_text()) for path in run.glob("*/result.json")}
    trained = [results[name]["adapter_sha256"] for name in ("imitate", "explore")]
    assert len(set(trained)) == 2 and results["release"]["adapter_sha256"] == trained[-1]
    (metrics,) = run.glob("*-explore/metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(lines) == 3 and all(line["engine_mismatch"] < 1e-4 for line in lines)
    # engine and trainer on the sampled tokens themselves, each softmax computed its own way
    assert all(line["engine_kl"] < 1e-6 for line in lines) and lines[-1]["kl"] > 1e-4
    release = results["release"]["extra"]
    assert release["kl_to_policy"] < 1e-7 and release["top1_agreement"] == 1.0
    print(f"{family} {sync}: mismatch {lines[-1]['engine_mismatch']:.1e}, engine KL {lines[-1]['engine_kl']:.1e}, "
          f"KL {lines[-1]['kl']:.2g}, export KL {release['kl_to_policy']:.1e}")  # fmt: skip

    (place,) = run.glob("*-release")
    (adapter,) = (place / "model" / "adapters").iterdir()
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(LINEARS[model_type])
    with safe_open(place / "model" / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) == (not own.get("tie_word_embeddings", False))  # noqa: SIM118
