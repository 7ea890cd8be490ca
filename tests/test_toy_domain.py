"""A second domain is another folder and nothing else: distilled, evaluated and paid for like the first."""

import json

import pytest
from toy_domain import add_toy_domain

from evals.evaluate import evaluate
from evals.settings import Evaluate
from models.engine import Completion
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
        engine, asked, settings, tmp_path, seeds=range(8), stop_token_ids=(), progress=lambda done: None,
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
