"""A second domain is another folder and nothing else: distilled, evaluated, paid for and run like the first."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy_domain import TOY, add_toy_domain

from evals.evaluate import evaluate
from evals.settings import Evaluate
from models.engines.protocol import Completion
from models.prompts import opening_of, prompt_tokens, render_prompt
from rewards.domain import get_domain
from rewards.problems import Asked
from rewards.settings import Reward
from sft.distill import choose_traces, read_traces, sample_traces
from sft.settings import DistillSettings


class Speller:
    """Answers what its prompt asks: the first sample right, the second wrong, the third without a box."""

    def __init__(self, asked, format):
        self.word_of = {tokens: problem.id for tokens, problem in zip(asked.tokens, asked.problems, strict=True)}
        self.format = format

    def generate(self, prompts, sampling, seeds=None, progress=None):
        return [[self._complete(self.word_of[tuple(prompt)], k) for k in range(sampling.n)] for prompt in prompts]

    def _complete(self, word, k):
        letters = ", ".join(reversed(word))
        answers = [self.format.completion(letters, word[::-1]), self.format.completion(letters, word), letters]
        return Completion([1] * len(word), answers[k], "stop")


@pytest.fixture
def toy(tmp_path, monkeypatch, tokenizer):
    """The domain, its format, eight of its problems as they are asked, and an engine that answers them."""
    add_toy_domain(tmp_path / "domains", monkeypatch)
    domain = get_domain("reverse")
    format = domain.format("think-boxed")
    problems = domain.problems("words", "train", limit=8, seed=0)
    prompts = [render_prompt(tokenizer, format.messages(problem.question)) for problem in problems]
    asked = Asked(tuple(problems), tuple(prompts), tuple(tuple(prompt_tokens(tokenizer, one)) for one in prompts))
    return domain, format, asked, Speller(asked, format)


def test_distill(toy, tmp_path, tokenizer):
    domain, format, asked, engine = toy
    settings = DistillSettings(teacher="speller", samples=3, min_tokens=1)
    sample_traces(
        engine, asked, settings, tmp_path, seeds=range(8), progress=lambda done: None,
        opening=opening_of(asked.prompts[0]),
    )  # fmt: skip
    found = choose_traces(asked.problems, tmp_path, settings, domain, format, tokenizer)
    assert (found.sampled, found.correct, found.kept, found.dropped) == (24, 8, 8, {"wrong": 16})
    traces = read_traces(tmp_path / "traces.jsonl")
    assert [trace.problem_id for trace in traces] == [problem.id for problem in asked.problems]
    assert all(domain.answer(trace.completion) == trace.problem_id[::-1] for trace in traces)
    assert json.loads((tmp_path / "statistics.json").read_text())["kept"] == 8


def test_evaluate(toy):
    domain, format, asked, engine = toy
    settings = Evaluate(samples=3, max_completion_tokens=64, pass_at_k=(1, 3))
    found = evaluate(engine, asked, settings, domain, format, seed=0, stop_token_ids=())
    assert found.sampled.correct == ((1, 0, 0),) * 8 and found.greedy.accuracy.estimate == 1.0
    assert found.sampled.format_rate == pytest.approx(2 / 3)
    assert found.pass_at_k == {1: pytest.approx(1 / 3), 3: 1.0}


def test_rewards_as_grpo_calls_them(toy, tmp_path):
    domain, format, asked, engine = toy
    file = tmp_path / "mine.py"
    file.write_text("def short(completions, **columns):\n    return [-len(text) / 1000 for text in completions]\n")
    reward = Reward(correct=2.0, format=0.1, cosine=0.2, length=0.1, repetition=0.1, short=0.1, file=str(file))
    rewards = domain.rewards(reward, format, max_completion_tokens=64)
    assert rewards.names == ["correct", "format", "length", "cosine", "repetition", "short"]
    problem = asked.problems[0]
    completions = [engine._complete(problem.id, k).text for k in range(3)]
    columns = {
        "prompts": [asked.prompts[0]] * 3, "completions": completions, "completion_ids": [[1, 2, 3, 4, 5]] * 3,
        "gold": [problem.gold] * 3, "problem_id": [problem.id] * 3, "domain": [problem.domain] * 3,
        "trainer_state": None, "log_extra": None, "log_metric": None,
    }  # fmt: skip
    values = dict(zip(rewards.names, [function(**columns) for function in rewards.functions], strict=True))
    assert values["correct"] == [1.0, 0.0, 0.0] and values["format"] == [1.0, 1.0, 0.0]
    assert values["cosine"][0] > 0 > values["cosine"][1] == values["cosine"][2]
    assert values["length"] == values["repetition"] == [0.0, 0.0, 0.0]
    assert values["short"] == [-len(text) / 1000 for text in completions]


# from a recipe

RECIPE = """
name: toy
seed: 3
model:
  base: embedded/student
  lora: {rank: 4, alpha: 8}
problems: {domain: reverse, train: words, test: words, train_limit: 12, test_limit: 4}
rollouts: {group_size: 2, prompts_per_step: 2, max_completion_tokens: 32, max_prompt_tokens: 96, engine: transformers}
evaluate: {samples: 1, greedy: false}
stages:
  - {name: traces, kind: distill, teacher: self, keep: all, samples: 4, max_tokens: 80, min_tokens: 1}
  - {name: imitate, kind: sft, data: traces, steps: 1, batch_size: 2, learning_rate: 1e-3}
  - {name: explore, kind: grpo, steps: 1, learning_rate: 1e-3, beta: 0.01}
  - {name: look, kind: evaluate, samples: 2}
"""
DRIVER = Path(__file__).with_name("driver.py")


def orchestra(place: Path, *arguments: str) -> subprocess.CompletedProcess:
    (place / "domains" / "reverse").mkdir(parents=True)
    (place / "domains" / "reverse" / "domain.py").write_text(TOY)
    command = [sys.executable, str(DRIVER), f"rewards={place / 'domains'}", "--", *arguments]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_recipe_of_it(tmp_path):
    (tmp_path / "toy.yaml").write_text(RECIPE)
    done = orchestra(tmp_path, "run", "toy.yaml", "--scale", "none")
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "toy-none"
    evaluated = json.loads((run / "04-look" / "evaluation.json").read_text())
    assert len(evaluated["problem_ids"]) == 4 and all(len(word) == 6 for word in evaluated["problem_ids"])
    (line,) = (run / "03-explore" / "metrics.jsonl").read_text().splitlines()
    assert "rewards/correct" in json.loads(line)
    code = json.loads((run / "ledger.json").read_text())["stages"][-1]["fingerprint"]["code"]
    assert "rewards.reverse.domain" in code and not any(name.startswith("rewards.math") for name in code)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("domain: reverse", "domain: revers"), "problems.domain: 'revers' is not a domain (known: "),
        (
            ("train: words", "train: word"),
            "problems.train: 'word' is neither words nor a .jsonl file nor a Hub",
        ),
        (
            ("train: words", "format: boxed, train: words"),
            "problems.format: 'boxed' is not a format (known: think-boxed)",
        ),
    ],
)
def test_what_it_does_not_have_is_one_message(tmp_path, change, said):
    (tmp_path / "toy.yaml").write_text(RECIPE.replace(*change))
    done = orchestra(tmp_path, "check", "toy.yaml", "--scale", "none")
    assert done.returncode == 1 and said in done.stderr, done.stderr
