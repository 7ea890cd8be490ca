"""The verifier's own behaviour: verdicts, batches, memory, extraction, and what it costs to import."""

import subprocess
import sys
import time

import pytest

from rewards.math.cases import CaseError, explain, score_cases
from rewards.math.extract import extract
from rewards.math.verifier import Verifier, verify, verify_batch
from rewards.verdict import Verdict

CORRECT, WRONG, UNGRADABLE = Verdict.CORRECT, Verdict.WRONG, Verdict.UNGRADABLE


def test_three_verdicts():
    assert verify(r"\boxed{12}", "12") is CORRECT
    assert verify(r"\boxed{13}", "12") is WRONG
    assert verify(r"\boxed{13}", "") is UNGRADABLE


@pytest.mark.parametrize("gold", ["", "  ", "$$", r"\boxed{}", "?", None, "{}", "\n"])
def test_only_an_empty_or_malformed_gold_is_ungradable(gold):
    assert verify(r"\boxed{1}", gold) is UNGRADABLE


@pytest.mark.parametrize(
    "completion", ["", r"\boxed{", r"\boxed{}", "<think>", "\x00", "$$", r"\boxed{\frac{}{}}", "}{"]
)
def test_a_completion_without_an_answer_is_wrong(completion):
    assert verify(completion, "12") is WRONG


def test_a_batch_agrees_with_single_verdicts_and_keeps_its_order():
    completions = [r"\boxed{1}", r"\boxed{x+1}", "", r"\boxed{1}", r"\boxed{\sum_{k=1}^{4} k}"]
    golds = ["1", "1+x", "3", "", "10"]
    expected = [CORRECT, CORRECT, WRONG, UNGRADABLE, CORRECT]
    assert verify_batch(completions, golds) == expected
    assert [verify(c, g) for c, g in zip(completions, golds, strict=True)] == expected


def test_a_batch_needs_a_gold_for_each_completion():
    with pytest.raises(ValueError, match="2 completions but 1 golds"):
        verify_batch(["1", "2"], ["1"])


def test_pairs_are_remembered_and_forgotten():
    verifier = Verifier(remember=2)
    for answer in ("1", "2", "2"):
        verifier.verify(rf"\boxed{{{answer}}}", "2")
    assert verifier.counts.remembered == 1
    verifier.verify(r"\boxed{3}", "2")
    verifier.verify(r"\boxed{1}", "2")  # the oldest of three was dropped
    assert verifier.counts.remembered == 1
    assert verifier.counts.verdicts == 5


def test_no_answer_is_explained_by_its_own_reason():
    verifier = Verifier()
    assert "unclosed think" in verifier.judge_batch(["<think>"], ["1"])[0].grounds
    assert "unclosed box" in verifier.judge_batch([r"\boxed{1"], ["1"])[0].grounds


def test_a_fault_of_the_verifier_is_counted_and_told(monkeypatch):
    def broken(gold, answer):
        raise TypeError("a fault")

    monkeypatch.setattr("rewards.math.decide.decide", broken)
    verifier = Verifier()
    with pytest.warns(UserWarning, match="a fault"):
        assert verifier.verify(r"\boxed{x}", "y") is WRONG
    assert verifier.counts.errors == 1


@pytest.mark.parametrize(
    ("completion", "answer", "source"),
    [
        (r"so \boxed{\frac{1}{2}} holds", r"\frac{1}{2}", "last box"),
        (r"\boxed{1} was wrong, it is \boxed{2}", "2", "last box"),
        (r"\boxed{a_{1}} and \boxed{b}", "a_{1}, b", "boxes taken together"),
        (r"\boxed{2} or \boxed{3}", r"2 \text{ or } 3", "boxes taken together"),
        (r"$\boxed 5$", "5", "last box"),
        (r"\fbox{7}", "7", "last box"),
        ("<think>\\boxed{1}</think>\nThe answer is 2.", "2", "answer phrase"),
        ("work\n#### 1,234", "1,234", "after ####"),
        ("Final Answer: The final answer is $(0, 1)$. I hope it is correct.", "(0, 1)", "answer phrase"),
        ("Therefore, there are 12 of them. I hope so.", "12", "last formula or number"),
        ("-5", "-5", "whole text"),
        ("**Answer:** 4.5", "4.5", "answer phrase"),
    ],
)
def test_where_the_answer_is_found(completion, answer, source):
    found = extract(completion)
    assert (found.text, found.source) == (answer, source)


def test_importing_the_verifier_is_light():
    code = (
        "import sys; before = set(sys.modules); import rewards.math.verifier; new = set(sys.modules) - before;"
        "heavy = {m.split('.')[0] for m in new} & {'sympy', 'mpmath', 'torch', 'numpy', 'math_verify', 'subprocess'};"
        "sys.exit(f'heavy imports: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_integers_take_microseconds():
    verifier = Verifier(remember=1)
    completions = [f"<think>\n{i} + 1 = {i + 1}\n</think>\n\\boxed{{{i}}}" for i in range(3000)]
    golds = [str(i) for i in range(3000)]
    start = time.perf_counter()
    verdicts = verifier.verify_batch(completions, golds)
    seconds = time.perf_counter() - start
    assert set(verdicts) == {CORRECT}
    assert seconds / 3000 < 100e-6  # about 8e-6 on an idle core
    assert "pool" not in vars(verifier)  # no symbolic worker was thought of


def test_explain_names_the_rule():
    shown = explain(r"so \boxed{2 \text{ and } 1}", "1,2")
    assert (shown.verdict, shown.source, shown.rule) == ("correct", "last box", "list and list compared")
    assert explain("x", "").verdict == "ungradable"
    assert "not read" in explain(r"\boxed{\begin{odd}}", "1").answer


def test_scoring_a_file_of_cases(tmp_path):
    cases = tmp_path / "cases.jsonl"
    cases.write_text(
        '{"gold": "1", "completion": "\\\\boxed{1}", "expected": true}\n'
        '{"gold": "1", "completion": "\\\\boxed{2}", "expected": false, "truth": true}\n'
        '{"gold": "1", "completion": "\\\\boxed{1}", "expected": false}\n'
        '{"gold": "", "completion": "\u2028 \\\\boxed{1}", "truth": null, "expected": true}\n'
    )
    report = score_cases(cases, wrong=tmp_path / "wrong.jsonl")
    assert (report.n, report.agree, report.false_positive, report.false_negative, report.ungradable) == (3, 1, 1, 1, 1)
    assert report.max_ms >= report.p99_ms >= report.p50_ms > 0
    wrong = (tmp_path / "wrong.jsonl").read_text().splitlines()
    assert len(wrong) == 2 and '"verdict": "wrong"' in wrong[0]


@pytest.mark.parametrize("line", ["{", '{"gold": "1"}', '{"gold": "1", "completion": "1", "expected": "yes"}', "[1]"])
def test_a_bad_case_is_named_by_its_line(tmp_path, line):
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"gold": "1", "completion": "1"}\n' + line + "\n")
    with pytest.raises(CaseError, match="line 2"):
        score_cases(cases)


def test_a_missing_file_of_cases_is_named(tmp_path):
    with pytest.raises(CaseError, match=r"none\.jsonl"):
        score_cases(tmp_path / "none.jsonl")
