"""Agreement with labelled cases, where the collections lie beside the repository (../shared/data)."""

import json
from pathlib import Path

import pytest

from rewards.math.cases import explain
from rewards.math.verifier import Verifier
from rewards.verdict import Verdict

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the labelled cases (../shared/data) are not here")
COLLECTED = (
    "areal_tests", "hardverify_math", "hendrycks_tests", "lighteval_tests", "mario_tests", "math_verify_issues",
    "math_verify_tests", "nemo_skills_tests", "olympiadbench_scoring", "reward_fn_tests",
)  # fmt: skip


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def label(row):
    """truth where audited (null: not scored), else expected; forms a policy decides are not scored here."""
    if row.get("policy") or row.get("group") == "right_nobox":
        return None
    return row["truth"] if "truth" in row else row.get("expected")


def score(names):
    """Accuracy, false positives as rows, and the verifier, over files of cases."""
    verifier, agree, n, paid = Verifier(), 0, 0, []
    for name in names:
        for row in rows(DATA / "reward_cases" / f"{name}.jsonl"):
            expected = label(row)
            verdict = verifier.verify(row["completion"], row["gold"])
            if expected is None:
                continue
            n += 1
            agree += (verdict is Verdict.CORRECT) == expected
            if verdict is Verdict.CORRECT and not expected:
                paid.append((row["gold"], row["completion"][-200:]))
    assert n
    return agree / n, paid, verifier


@needs_data
@pytest.mark.parametrize(
    ("names", "least"),
    [
        (COLLECTED, 0.98),
        (("qwen_real_cot",), 0.998),
        (("hardverify_math",), 0.95),
        (("synthetic",), 0.995),
        (("hardest20",), 0.95),
    ],
    ids=["collected", "real chains of thought", "hardverify", "synthetic", "hardest"],
)
def test_agreement_with_labelled_cases(names, least):
    accuracy, paid, verifier = score(names)
    assert accuracy >= least
    assert paid == []  # nothing wrong is paid, in any of them
    assert verifier.counts.errors == 0
    verifier.close()


@needs_data
def test_no_policy_form_is_paid():
    verifier = Verifier()
    for row in rows(DATA / "reward_cases" / "synthetic.jsonl"):
        if row["group"] == "hack_policy":
            assert verifier.verify(row["completion"], row["gold"]) is Verdict.WRONG, row["form"]


@needs_data
@pytest.mark.parametrize("name", ["gsm8k_train", "gsm8k_test", "math_train", "math500", "svamp"])
def test_every_gold_is_gradable_correct_as_itself_and_wrong_when_constant(name):
    verifier = Verifier()
    golds = [row["answer"] for row in rows(DATA / "problems" / f"{name}.jsonl") if row["answer"]]
    verdicts = verifier.verify_batch([f"so \\boxed{{{gold}}}" for gold in golds], golds)
    missed = [gold for gold, verdict in zip(golds, verdicts, strict=True) if verdict is not Verdict.CORRECT]
    assert missed == []
    constant = verifier.verify_batch(["\\boxed{-271828}"] * len(golds), golds)
    assert set(constant) == {Verdict.WRONG}
    assert "pool" not in vars(verifier)  # no gold needs a symbolic worker


@needs_data
def test_explanations_agree_with_verdicts():
    verifier = Verifier()
    for row in rows(DATA / "reward_cases" / "nemo_skills_tests.jsonl"):
        shown = explain(row["completion"], row["gold"], verifier)
        assert shown.verdict == verifier.verify(row["completion"], row["gold"])
        assert shown.rule and shown.source
