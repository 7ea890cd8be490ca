"""A second domain is a folder: a toy of ten lines goes through distill, sft, grpo and evaluate, from a recipe."""

import json
import subprocess
import sys
from pathlib import Path

DOMAIN = '''
"""Words to be written backwards."""

from rewards.domain import Domain
from rewards.problems import Problem
from rewards.verdict import Judgement, Verdict


class Reversal(Domain):
    name = "reversal"

    def problems(self, source, split, *, limit=None, seed=0):
        words = [f"{a}{b}" for a in ("ab", "cd", "ef", "gh") for b in ("ij", "kl", "mn", "op")]
        words = words[:12] if split == "train" else words[12:]
        return [Problem(f"{split}-{word}", f"Reverse {word}.", word[::-1], domain="words") for word in words[:limit]]

    def answer(self, completion):
        return completion.rpartition("{")[2].partition("}")[0]

    def judge(self, completions, golds):
        return [Judgement(Verdict.CORRECT if self.answer(completion)[:1] in gold else Verdict.WRONG)
                for completion, gold in zip(completions, golds, strict=True)]


DOMAIN = Reversal()
'''
RECIPE = """
name: toy
seed: 3
model:
  base: embedded/student
  lora: {rank: 4, alpha: 8}
problems: {domain: reversal, train: embedded, test: embedded}
rollouts: {group_size: 2, prompts_per_step: 2, max_completion_tokens: 32, max_prompt_tokens: 96}
evaluate: {samples: 1, greedy: false}
stages:
  - {name: traces, kind: distill, teacher: self, keep: all, samples: 4, max_tokens: 80, min_tokens: 1}
  - {name: imitate, kind: sft, data: traces, steps: 1, batch_size: 2, learning_rate: 1e-3}
  - {name: explore, kind: grpo, steps: 1, learning_rate: 1e-3, beta: 0.01}
  - {name: look, kind: evaluate, samples: 2}
"""
DRIVER = Path(__file__).with_name("driver.py")


def orchestra(place: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(DRIVER), f"rewards={place / 'domains'}", "--", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300)


def test_a_recipe_of_another_domain(tmp_path):
    folder = tmp_path / "domains" / "reversal"
    folder.mkdir(parents=True)
    (folder / "domain.py").write_text(DOMAIN)
    (tmp_path / "toy.yaml").write_text(RECIPE)
    done = orchestra(tmp_path, "run", "toy.yaml", "--scale", "none")
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "toy-none"
    evaluated = json.loads((run / "04-look" / "evaluation.json").read_text())
    assert len(evaluated["problem_ids"]) == 4 and set(evaluated["domains"]) == {"words"}
    (line,) = (run / "03-explore" / "metrics.jsonl").read_text().splitlines()
    assert "rewards/correct" in json.loads(line)
    code = json.loads((run / "ledger.json").read_text())["stages"][-1]["fingerprint"]["code"]
    assert "rewards.reversal.domain" in code and not any(name.startswith("rewards.math") for name in code)


def test_an_unknown_domain_is_one_message(tmp_path):
    (tmp_path / "toy.yaml").write_text(RECIPE.replace("reversal", "maths"))
    done = orchestra(tmp_path, "check", "toy.yaml", "--scale", "none")
    assert done.returncode == 1 and "problems.domain: 'maths'" in done.stderr and "did you mean 'math'?" in done.stderr
