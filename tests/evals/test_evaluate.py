"""Evaluation with a scripted engine: what is asked of it, what is made of its answers, and the way to JSON and back."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from evals.evaluate import Evaluation, compare, evaluate
from evals.settings import Evaluate
from models.engines.protocol import Completion, Sampling
from rewards.domain import Domain, get_domain
from rewards.problems import Asked, Problem
from rewards.verdict import Judgement, Verdict

FORMAT = get_domain("math").format("think-boxed")
SETTINGS = Evaluate(samples=4, temperature=1.0, top_p=0.9, max_completion_tokens=32, pass_at_k=(1, 4))


@dataclass
class ScriptedEngine:
    """Answers prompt [i] with `answer(i, k, sampling)`, a text, for k = 0 .. n - 1; notes what it was asked."""

    answer: Callable[[int, int, Sampling], str]
    kind: str = "scripted"
    calls: list[tuple[list[int], Sampling, list[int]]] = field(default_factory=list)

    def generate(self, prompts, sampling, seeds=None, progress=None):
        self.calls.append(([prompt[0] for prompt in prompts], sampling, list(seeds)))
        rows = [[self._complete(prompt[0], k, sampling) for k in range(sampling.n)] for prompt in prompts]
        if progress is not None:
            progress(len(prompts) * sampling.n)
        return rows

    def _complete(self, prompt: int, k: int, sampling: Sampling) -> Completion:
        text = self.answer(prompt, k, sampling)
        tokens = list(range(len(text.split())))
        if len(tokens) < sampling.max_tokens:
            return Completion(tokens, text, "stop")
        return Completion(tokens[: sampling.max_tokens], text, "length")


def problems(count: int) -> list[Problem]:
    return [Problem(f"p{at}", f"What is {at} + 1?", str(at + 1), domain="ab"[at % 2]) for at in range(count)]


def boxed(answer: object) -> str:
    return FORMAT.completion("so it is", str(answer))


class ByTheBox(Domain):
    """Right is what holds the gold in braces."""

    name = "by-the-box"

    def judge(self, completions: Sequence[str], golds: Sequence[str]) -> list[Judgement]:
        return [
            Judgement(Verdict.UNGRADABLE if not gold else Verdict.CORRECT if f"{{{gold}}}" in text else Verdict.WRONG)
            for text, gold in zip(completions, golds, strict=True)
        ]


def asked_for(asked: Sequence[Problem]) -> Asked:
    """Problem p7 is asked as the token 7."""
    return Asked(tuple(asked), ("?",) * len(asked), tuple((int(problem.id[1:]),) for problem in asked))


def run(
    engine: ScriptedEngine, asked: Sequence[Problem], settings: Evaluate = SETTINGS, seed: int = 5, **more
) -> Evaluation:
    more = {"stop_token_ids": (), **more}
    return evaluate(engine, asked_for(asked), settings, ByTheBox(), FORMAT, seed=seed, **more)


def changed(settings: Evaluate, **values) -> Evaluate:
    return Evaluate.model_validate(settings.model_dump() | values)


def sometimes(prompt: int, k: int, sampling: Sampling) -> str:
    """Greedy: the even ones right. Sampled: prompt i right on its first i samples, later ones too long or bare."""
    if sampling.temperature == 0:
        return boxed(prompt + 1) if prompt % 2 == 0 else boxed(0)
    if k < prompt:
        return boxed(prompt + 1)
    return "and so on " * 20 if k == 3 else "0"


def test_what_is_counted():
    # five problems, four samples: problem i is right min(i, 4) times, so 0 + 1 + 2 + 3 + 4 = 10 of 20
    found = run(ScriptedEngine(sometimes), problems(5))
    sampled, greedy = found.sampled, found.greedy
    assert sampled.correct[:2] == ((0, 0, 0, 0), (1, 0, 0, 0))
    assert sampled.accuracy.estimate == 0.5 and sampled.correct_PS.shape == (5, 4)
    assert sampled.truncation_rate == 4 / 20  # the fourth sample of problems 0 to 3
    assert sampled.format_rate == 10 / 20  # the bare and the endless ones do not keep it
    # 10 right ones of 6 words, 6 bare ones of 1, 4 cut off at 32
    assert sampled.tokens == 10 * 6 + 6 + 4 * 32 and sampled.mean_length == sampled.tokens / 20
    assert greedy.accuracy.estimate == 3 / 5 and greedy.temperature == 0
    assert found.tokens == sampled.tokens + greedy.tokens
    assert found.domains == ("a", "b", "a", "b", "a")
    # pass@4: every problem but the first; pass@1 is the accuracy
    assert found.pass_at_k == {1: pytest.approx(0.5), 4: pytest.approx(0.8)}


def test_what_the_engine_is_asked():
    engine, seen = ScriptedEngine(sometimes), []
    run(engine, problems(3), progress=seen.append)
    (prompts, sampled, seeds), (_, greedy, _) = engine.calls
    assert prompts == [0, 1, 2] and len(set(seeds)) == 3
    plain = {"max_tokens": 32, "top_k": 0, "presence_penalty": 0.0, "repetition_penalty": 1.0}
    assert sampled == Sampling(temperature=1.0, top_p=0.9, min_p=0.0, n=4, **plain)
    assert greedy == Sampling(temperature=0.0, top_p=1.0, n=1, **plain)
    assert seen == [12, 3]


def test_a_problem_keeps_its_seed_whatever_stands_beside_it():
    engine, asked = ScriptedEngine(sometimes), problems(4)
    run(engine, asked)
    run(engine, asked[::-1][:2])
    run(engine, asked, seed=6)
    by_prompt = [dict(zip(prompts, seeds, strict=True)) for prompts, _, seeds in engine.calls[::2]]
    assert by_prompt[1] == {prompt: by_prompt[0][prompt] for prompt in (3, 2)}
    assert not set(by_prompt[2].values()) & set(by_prompt[0].values())


def test_each_pass_is_sampled_as_the_settings_say():
    """The sampled pass first; the greedy one nothing to truncate; penalties and random numbers are the same."""
    engine = ScriptedEngine(sometimes)
    settings = Evaluate(samples=3, temperature=0.7, top_p=0.8, max_completion_tokens=29, confidence=0.8, top_k=7,
                        min_p=0.05, presence_penalty=1.5, repetition_penalty=1.1)  # fmt: skip
    found = run(engine, problems(3), settings, stop_token_ids=(7,))
    sampled, greedy = (sampling for _, sampling, _ in engine.calls)
    common = {"max_tokens": 29, "stop_token_ids": (7,), "presence_penalty": 1.5, "repetition_penalty": 1.1}
    assert sampled == Sampling(temperature=0.7, top_p=0.8, top_k=7, min_p=0.05, n=3, **common)
    assert greedy == Sampling(temperature=0.0, top_p=1.0, top_k=0, n=1, **common)
    assert {seed for _, _, seeds in engine.calls for seed in seeds} == {
        zlib.crc32(f"5/{name}".encode()) // 2 for name in ("p0", "p1", "p2")
    }
    assert all(0 <= seed < 2**31 for seed in engine.calls[0][2]), "as engines take them"
    assert found.sampled.accuracy.confidence == found.greedy.accuracy.confidence == 0.8
    assert found.seconds == found.sampled.seconds + found.greedy.seconds
    assert found.tokens == found.sampled.tokens + found.greedy.tokens


def test_temperature_zero_decodes_once():
    engine = ScriptedEngine(sometimes)
    settings = Evaluate(samples=1, temperature=0.0, top_p=0.9, max_completion_tokens=32)
    found = run(engine, problems(4), settings)
    assert len(engine.calls) == 1 and found.greedy == found.sampled and found.tokens == found.sampled.tokens
    assert run(engine, problems(4), changed(settings, greedy=False)).greedy is None
    many = run(engine, problems(4), changed(settings, samples=4))
    assert engine.calls[-1][1].n == 1 and many.sampled.correct == found.sampled.correct, "four would be all the same"


def test_ungradable_is_neither_right_nor_wrong():
    asked = [*problems(3), Problem("p3", "?", "")]
    found = run(ScriptedEngine(lambda prompt, k, s: boxed(prompt + 1)), asked)
    assert found.sampled.correct[3] == (None,) * 4 and found.sampled.ungradable == 4
    assert found.sampled.accuracy.estimate == 1.0
    assert np.isnan(found.sampled.correct_PS[3]).all()
    assert "p3" not in {sample.problem_id for sample in found.samples}


def test_samples_of_each_kind_and_each_problem_once():
    found = run(ScriptedEngine(lambda p, k, s: "on " * 40 if p % 3 == 2 else boxed(p + p % 3)), problems(30))
    kinds = [sample.kind for sample in found.samples]
    assert kinds == ["right"] * 4 + ["wrong"] * 4 + ["truncated"] * 4
    assert len({sample.problem_id for sample in found.samples}) == 12
    assert "p0" in {sample.problem_id for sample in found.samples}  # the first problem is always among them
    shown = found.samples[0]
    assert (shown.question, shown.gold, shown.completion) == ("What is 1 + 1?", "2", boxed(2))


def test_json_there_and_back():
    asked = [*problems(5), Problem("p5", "?", "")]
    found = run(ScriptedEngine(sometimes), asked)
    again = Evaluation.from_json(found.to_json())
    assert again == found and again.pass_at_k == found.pass_at_k
    np.testing.assert_array_equal(again.sampled.correct_PS, found.sampled.correct_PS)
    assert '"correct":[[0,0,0,0],[1,0,0,0]' in found.to_json()
    with pytest.raises(ValueError):
        Evaluation.from_json('{"problem_ids": 3}')


def test_text_that_is_no_unicode_can_be_kept():
    found = run(ScriptedEngine(sometimes), [Problem("p1", "half a pair: \ud83d", "2")])
    assert found.samples[0].question == "half a pair: ?" and Evaluation.from_json(found.to_json()) == found


def test_compare_pairs_by_id():
    before = run(ScriptedEngine(sometimes), problems(12))
    after = run(ScriptedEngine(lambda p, k, s: boxed(p + 1)), problems(12)[::-1])
    found = compare(after, before)
    assert found.difference == pytest.approx(after.sampled.accuracy.estimate - before.sampled.accuracy.estimate)
    assert compare(after, before, of="greedy").method == "exact McNemar"
    # the same answers, asked in another order: no problem differs, where unpaired rows would
    same = run(ScriptedEngine(sometimes), [problems(12)[at] for at in (3, 0, 7, 11, 1, 2, 10, 5, 9, 4, 8, 6)])
    for of in ("sampled", "greedy"):
        assert getattr(before, of).correct != getattr(same, of).correct
        assert compare(same, before, of=of) == compare(before, same, of=of) == compare(before, before, of=of)
        assert compare(same, before, of=of).p_value == 1
        assert compare(after, before, of=of) == compare(after, same, of=of)
    wide = run(ScriptedEngine(sometimes), problems(12), changed(SETTINGS, confidence=0.99))
    assert compare(wide, after).confidence == 0.99 and compare(after, wide).confidence == 0.95, "the later one's"
    drawn = [compare(after, before, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] == found != drawn[2]
    with pytest.raises(ValueError, match="differ in 2 problems"):
        compare(after, run(ScriptedEngine(sometimes), problems(10)))
    with pytest.raises(ValueError, match="no greedy pass"):
        compare(after, run(ScriptedEngine(sometimes), problems(12), changed(SETTINGS, greedy=False)), of="greedy")


def test_bad_input_says_what_is_wrong():
    engine = ScriptedEngine(sometimes)
    with pytest.raises(ValueError, match="no problems"):
        run(engine, [])
    short = replace(asked_for(problems(2)), tokens=((0,),))
    with pytest.raises(ValueError, match="2 problems but 1 prompts"):
        evaluate(engine, short, SETTINGS, ByTheBox(), FORMAT, seed=0, stop_token_ids=())
    with pytest.raises(ValueError, match="1 problem ids are repeated"):
        run(engine, [*problems(2), problems(1)[0]])
    with pytest.raises(ValueError, match=r"pass_at_k \[4\] is outside 1\.\.1 .*temperature 0"):
        run(engine, problems(2), changed(SETTINGS, temperature=0.0))
    assert not engine.calls, "found before anything is generated"
    with pytest.raises(ValueError, match="samples"):
        changed(SETTINGS, samples=0)
    with pytest.raises(ValueError, match="k = 8 needs at least 8 samples"):
        changed(SETTINGS, pass_at_k=(1, 8))


def test_an_engine_that_answers_too_little_is_noticed():
    class Short(ScriptedEngine):
        def generate(self, prompts, sampling, seeds=None, progress=None):
            return super().generate(prompts[1:], sampling, seeds, progress)

    with pytest.raises(ValueError, match="asked for 3 x 4 completions"):
        run(Short(sometimes), problems(3))

    class Uneven(ScriptedEngine):
        def generate(self, prompts, sampling, seeds=None, progress=None):
            rows = super().generate(prompts, sampling, seeds, progress)
            return [*rows[:-1], rows[-1][:-1]]

    with pytest.raises(ValueError, match="asked for 3 x 4 completions"):
        run(Uneven(sometimes), problems(3))


def test_what_ends_a_completion_is_handed_on():
    engine = ScriptedEngine(sometimes)
    run(engine, problems(2), stop_token_ids=(7, 9))
    assert [sampling.stop_token_ids for _, sampling, _ in engine.calls] == [(7, 9), (7, 9)]


def test_with_the_real_judge():
    engine = ScriptedEngine(lambda p, k, s: boxed(p + 1 if p else "\\frac{2}{2}"))
    math = get_domain("math")
    found = evaluate(engine, asked_for(problems(6)), SETTINGS, math, FORMAT, seed=5, stop_token_ids=())
    assert found.sampled.accuracy.estimate == 1.0 and found.sampled.ungradable == 0


@pytest.mark.parametrize(("prompt", "rate"), [("Ask <think>\n", 1.0), ("Ask", 0.0)])
def test_what_the_prompt_has_said_already_keeps_the_format_too(prompt, rate):
    """Some chat templates open the think block, which the completion then does not."""

    class Thinker:
        def generate(self, prompts, sampling, seeds=None, progress=None):
            return [[Completion([1], "so\n</think>\n\\boxed{4}", "stop")] * sampling.n for _ in prompts]

    math = get_domain("math")
    asked = Asked((Problem("p0", "2 + 2?", "4"),), (prompt,), ((1,),))
    settings = Evaluate(samples=2, max_completion_tokens=8)
    found = evaluate(Thinker(), asked, settings, math, math.format("think-boxed"), seed=0, stop_token_ids=())
    assert found.sampled.format_rate == found.greedy.format_rate == rate
    assert found.sampled.accuracy.estimate == 1.0
