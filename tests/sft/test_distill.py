"""Distillation: every sample is accounted for, nothing is asked twice, and traces are in the student's own format."""

import json

import pytest

from models.engines.protocol import Completion, Sampling
from rewards.domain import get_domain
from rewards.problems import Asked, Problem
from rewards.verdict import Verdict
from sft import distill
from sft.distill import (
    SAMPLES,
    STATISTICS,
    TRACES,
    DistillError,
    choose_traces,
    read_traces,
    rewritten,
    sample_traces,
    traces_of_solutions,
)
from sft.settings import DistillSettings

MATH = get_domain("math")
THINK = MATH.format("think-boxed")
ALL = DistillSettings(teacher="teacher", min_tokens=1, max_tokens=1000)


class Teacher:
    """Gives every problem the same texts; counts what it is asked and may be cut off in the middle."""

    def __init__(self, texts=("\\boxed{4}",), fail_at=None):
        self.texts, self.fail_at, self.asked, self.calls, self.sampling = texts, fail_at, [], 0, None

    def generate(self, prompts, sampling, seeds=None, progress=None):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        self.sampling = sampling
        self.asked += list(zip([tuple(prompt) for prompt in prompts], seeds, strict=True))
        return [[Completion([1, 2, 3], text, "stop") for text in self.texts] for _ in prompts]


def problems(count=1, gold="4"):
    return [Problem(f"p{i}", f"What is {i} + {4 - i}?", gold) for i in range(count)]


def changed(**values):
    return DistillSettings.model_validate(ALL.model_dump() | values)


def choose(asked, folder, settings, tokenizer):
    return choose_traces(asked, folder, settings, MATH, THINK, tokenizer)


def sample(folder, teacher, asked, opening=""):
    done = []
    sample_traces(
        teacher, Asked(tuple(asked), ("?",) * len(asked), tuple((i,) for i in range(len(asked)))),
        changed(samples=len(teacher.texts)), folder, seeds=[100 + i for i in range(len(asked))],
        progress=done.append, opening=opening,
    )  # fmt: skip
    return done


def written(folder, samples):
    """samples.jsonl from {problem id: [(text, finish), ...]}"""
    lines = [
        {"id": name, "completions": [{"text": text, "finish": finish, "tokens": 7} for text, finish in completions]}
        for name, completions in samples.items()
    ]
    (folder / SAMPLES).write_text("".join(json.dumps(line) + "\n" for line in lines))


# sampling


def test_an_interrupted_sampling_asks_only_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(distill, "CHUNK", 3)
    asked = problems(8)
    first = Teacher(fail_at=2)
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path, first, asked)
    assert [prompt for prompt, _ in first.asked] == [(0,), (1,), (2,)]
    # killed while a line was written: the line is dropped and its problem asked again
    with (tmp_path / SAMPLES).open("r+") as file:
        text = file.read()
        file.truncate(len(text) - 20)
    second = Teacher()
    done = sample(tmp_path, second, asked)
    assert second.asked == [((i,), 100 + i) for i in range(2, 8)], "with the seeds they would have had"
    assert done == [2, 3, 3]
    straight = tmp_path / "straight"
    straight.mkdir()
    sample(straight, Teacher(), asked)
    assert (tmp_path / SAMPLES).read_bytes() == (straight / SAMPLES).read_bytes()
    third = Teacher()
    assert sample(tmp_path, third, asked) == [8] and third.calls == 0


def test_the_teacher_is_sampled_as_the_settings_say(tmp_path):
    teacher = Teacher(["\\boxed{4}"] * 3)
    settings = changed(samples=3, temperature=0.7, top_p=0.8, top_k=5, max_tokens=33)
    asked = Asked(tuple(problems()), ("?",), ((0,),))
    sample_traces(teacher, asked, settings, tmp_path, seeds=[1], progress=lambda done: None, opening="")
    assert teacher.sampling == Sampling(33, temperature=0.7, top_p=0.8, top_k=5, n=3)


def test_what_the_prompt_already_says_is_part_of_the_sample(tmp_path):
    """R1's template ends in `<think>`: the completion begins inside the block."""
    sample(tmp_path, Teacher(["2+2=4\n</think>\n\\boxed{4}"]), problems(), opening="<think>\n")
    (line,) = (tmp_path / SAMPLES).read_text().splitlines()
    assert json.loads(line)["completions"][0]["text"] == "<think>\n2+2=4\n</think>\n\\boxed{4}"


# choosing

GOOD = THINK.completion("2+2=4", "4")


def test_every_sample_is_kept_or_dropped_for_one_reason(tmp_path, tokenizer):
    written(tmp_path, {
        "p0": [
            (GOOD, "stop"),                                          # kept
            (GOOD.replace("2+2=4", "2+2  =4"), "stop"),              # kept: other words
            (GOOD + "\n", "stop"),                                   # duplicate
            (THINK.completion("2+2=5", "5"), "stop"),                # wrong
            (GOOD, "length"),                                        # truncated
            ("I do not know", "stop"),                               # wrong
            ("\\boxed{4}", "stop"),                                  # right, and no reasoning: off format
            (THINK.completion("2 and 2 " * 40, "4"), "stop"),        # too long
        ],
        "p1": [("\\boxed{5}", "stop"), (GOOD, "stop")],              # 1 of 2 right
        "gone": [(GOOD, "stop")],                                    # no longer among the problems
    })  # fmt: skip
    found = choose(problems(2), tmp_path, changed(max_tokens=60), tokenizer)
    assert (found.problems, found.sampled, found.kept, found.correct) == (2, 10, 3, 7)
    assert found.dropped == {"duplicate": 1, "off_format": 1, "too_long": 1, "truncated": 1, "wrong": 3}
    assert found.sampled == found.kept + sum(found.dropped.values())
    assert found.sampled_tokens == 70
    traces = read_traces(tmp_path / TRACES)
    assert [(trace.problem_id, trace.verdict) for trace in traces] == [
        ("p0", Verdict.CORRECT), ("p0", Verdict.CORRECT), ("p1", Verdict.CORRECT),
    ]  # fmt: skip
    assert found.tokens == sum(trace.tokens for trace in traces) / 3
    assert json.loads((tmp_path / STATISTICS).read_text())["kept"] == 3
    for trace in traces:
        assert THINK.follows(trace.completion)
        assert trace.tokens == len(tokenizer(trace.completion, add_special_tokens=False).input_ids)


@pytest.mark.parametrize(
    "changes, kept, dropped",
    [
        ({}, 4, {"wrong": 2}),
        ({"keep": "all"}, 6, {}),
        ({"max_per_problem": 1}, 2, {"enough_for_problem": 2, "wrong": 2}),
        ({"pass_rate": (0.5, 0.9)}, 2, {"pass_rate": 3, "wrong": 1}),
        ({"pass_rate": (0.0, 0.4)}, 1, {"pass_rate": 3, "truncated": 1, "wrong": 1}),
        ({"min_tokens": 17}, 3, {"too_short": 1, "wrong": 2}),
    ],
)
def test_the_settings_decide(tmp_path, tokenizer, changes, kept, dropped):
    """Without a pass rate: two problems with 2 of 3 right each, their reasonings of different length."""
    right = [THINK.completion(text, "4") for text in ("2+2=4", "1+3=4;1+3=4", "8/2=4;8/2=4", "5-1=4;5-1=4")]
    wrong = [THINK.completion(text, "5") for text in ("2+2=5;2+2=5", "1+3=5;1+3=5")]
    if changes.get("pass_rate") == (0.0, 0.4):  # 2 of 3 right is too easy, 1 of 3 is not
        written(tmp_path, {
            "p0": [(right[0], "stop"), (right[1], "stop"), (wrong[0], "stop")],
            "p1": [(right[2], "stop"), (wrong[0], "stop"), (wrong[1], "length")],
        })  # fmt: skip
    elif changes.get("pass_rate"):  # 3 of 3 is too easy
        written(tmp_path, {
            "p0": [(right[0], "stop"), (right[1], "stop"), (wrong[0], "stop")],
            "p1": [(right[2], "stop"), (right[3], "stop"), (GOOD, "stop")],
        })  # fmt: skip
    else:
        written(tmp_path, {
            "p0": [(right[0], "stop"), (right[1], "stop"), (wrong[0], "stop")],
            "p1": [(right[2], "stop"), (right[3], "stop"), (wrong[1], "stop")],
        })  # fmt: skip
    found = choose(problems(2), tmp_path, changed(**changes), tokenizer)
    assert (found.kept, found.dropped) == (kept, dropped)
    assert found.sampled == found.kept + sum(found.dropped.values())


def test_the_limits_themselves_are_within(tmp_path, tokenizer):
    """Lengths and pass rates lie between the two, both inclusive; a trace with other spaces is the same trace."""
    length = len(tokenizer(GOOD, add_special_tokens=False).input_ids)
    half = [(GOOD, "stop"), (THINK.completion("2+2=5", "5"), "stop")]
    for changes, kept in (
        ({"min_tokens": length}, 1), ({"min_tokens": length + 1}, 0), ({"max_tokens": length}, 1),
        ({"max_tokens": length - 1}, 0), ({"pass_rate": (0.5, 1.0)}, 1), ({"pass_rate": (0.0, 0.5)}, 1),
        ({"pass_rate": (0.51, 1.0)}, 0), ({"pass_rate": (0.0, 0.49)}, 0),
    ):  # fmt: skip
        written(tmp_path, {"p0": half})
        try:
            found = choose(problems(), tmp_path, changed(**changes), tokenizer).kept
        except DistillError:
            found = 0
        assert found == kept, changes
    written(tmp_path, {"p0": [(THINK.completion(words, "4"), "stop") for words in ("2 + 2 = 4", "2 +  2 = 4")]})
    assert choose(problems(), tmp_path, ALL, tokenizer).dropped == {"duplicate": 1}
    written(tmp_path, {"p0": [(GOOD, "stop")], "p1": [(GOOD, "stop")]})
    assert choose(problems(2), tmp_path, ALL, tokenizer).kept == 2, "of another problem it is another trace"


def test_a_teacher_with_nothing_right_is_told_with_numbers(tmp_path, tokenizer):
    written(tmp_path, {"p0": [("\\boxed{5}", "stop"), ("\\boxed{6}", "length"), ("\\boxed{7}", "stop")]})
    with pytest.raises(DistillError) as caught:
        choose(problems(), tmp_path, ALL, tokenizer)
    message = str(caught.value)
    assert "no trace is left of 3 samples (0 correct; dropped: wrong 2, truncated 1)" in message
    assert caught.value.user_message and "\n" not in message
    assert json.loads((tmp_path / STATISTICS).read_text())["kept"] == 0


def test_raw_keeps_samples_as_they_are(tmp_path, tokenizer):
    """Wrong, without an answer and in no format; not what is empty or cut off. What there was of each is counted."""
    texts = [
        ("<think>\n2+2=5\n</think>\n\\boxed{5}", "stop"),
        ("well, 4 I think ", "stop"),
        ("  \n", "stop"),
        ("<think>\n2+2=4\n</think>\n\\boxed{4}", "length"),
        ("\\boxed{4}", "stop"),
    ]
    written(tmp_path, {"p0": texts})
    found = choose(problems(), tmp_path, changed(keep="raw"), tokenizer)
    assert [trace.completion for trace in read_traces(tmp_path / TRACES)] == [texts[i][0] for i in (0, 1, 4)]
    assert found.dropped == {"empty": 1, "truncated": 1} and found.kept == 3
    # boxes in 0, 3 and 4, closed thoughts in 0 and 3
    assert (found.sampled, found.correct, found.closed, found.cut_off) == (5, 2, 2, 1)
    assert found.answered == sum(bool(MATH.answer(text)) for text, _ in texts)


def test_raw_keeps_what_was_drawn_twice_twice(tmp_path, tokenizer):
    """Dropped, what is likely would be imitated as if it were not; `max_per_problem` counts each."""
    texts = [("well, 4 I think", "stop"), ("well, 4 I think", "stop"), ("\\boxed{4}", "stop")]
    written(tmp_path, {"p0": texts})
    assert choose(problems(), tmp_path, changed(keep="raw"), tokenizer).dropped == {}
    assert [trace.completion for trace in read_traces(tmp_path / TRACES)] == [text for text, _ in texts]
    found = choose(problems(), tmp_path, changed(keep="raw", max_per_problem=2), tokenizer)
    assert found.kept == 2 and found.dropped == {"enough_for_problem": 1}
    assert choose(problems(), tmp_path, changed(keep="raw", min_tokens=4), tokenizer).dropped == {"too_short": 1}


def test_all_keeps_wrong_answers_and_no_bare_ones(tmp_path, tokenizer):
    """An empty think block is what the format reward pays nothing for: no trace may teach it."""
    written(tmp_path, {"p0": [(THINK.completion("2+2=5", "5"), "stop"), ("\\boxed{4}", "stop"), ("No idea.", "stop")]})
    found = choose(problems(), tmp_path, changed(keep="all", max_tokens=99), tokenizer)
    assert found.kept == 1 and found.dropped == {"off_format": 2}
    (trace,) = read_traces(tmp_path / TRACES)
    assert trace.verdict is Verdict.WRONG and THINK.follows(trace.completion)


def test_nothing_sampled_at_all(tmp_path, tokenizer):
    with pytest.raises(DistillError, match="nothing was sampled"):
        choose(problems(), tmp_path, ALL, tokenizer)


# rewriting

R1 = (
    "<think>\nOkay, so I need 2 + 2. That's 4. Wait, let me double-check: 2 + 2 = 4. Yes.\n</think>\n\n"
    "To solve this, we add the numbers.\n\n**Step 1:** \\(2 + 2 = 4\\)\n\nThe final answer is:\n\n\\[\n\\boxed{4}\n\\]"
)


def test_an_r1_like_completion_becomes_the_students():
    assert rewritten(R1, MATH, THINK) == (
        "<think>\nOkay, so I need 2 + 2. That's 4. Wait, let me double-check: 2 + 2 = 4. Yes.\n</think>\n\\boxed{4}"
    )
    assert THINK.follows(rewritten(R1, MATH, THINK))


@pytest.mark.parametrize("name", ["think-boxed", "boxed"])
def test_whatever_the_teacher_writes_the_student_gets_its_format(name):
    contract = MATH.format(name)
    for text in (R1, "2+2=4\n\\boxed{4}", GOOD, "2 + 2 = 4, so the answer is \\boxed{4}."):
        assert contract.follows(rewritten(text, MATH, contract)), text


def test_without_an_answer_there_is_no_trace():
    for text in ("", "<think>\n2+2=4", "\\boxed{}"):
        assert rewritten(text, MATH, THINK) is None, text


@pytest.mark.parametrize("answer", [r"\frac{1}{2}", "{1, 2}", r"x^{2}", "-3", r"\text{4 cm}"])
def test_an_answer_with_braces_survives(answer):
    assert rewritten(f"so\n\\boxed{{{answer}}}", MATH, THINK) == f"<think>\nso\n</think>\n\\boxed{{{answer}}}"


# solutions instead of a teacher


def test_written_solutions_are_traces(tokenizer):
    asked = [Problem("a", "What is 2 + 2?", "4", "2+2=4"), Problem("b", "What is 3 + 3?", "6", "3+3=6")]
    traces = traces_of_solutions(asked, THINK, tokenizer, "mine.jsonl")
    assert [trace.completion for trace in traces] == [GOOD, THINK.completion("3+3=6", "6")]
    with pytest.raises(DistillError, match=r"mine\.jsonl: 1 problems have no `solution` to imitate, the first is 'c'"):
        traces_of_solutions([*asked, Problem("c", "What?", "1")], THINK, tokenizer, "mine.jsonl")
