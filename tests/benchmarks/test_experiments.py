"""benchmarks/experiments.py: its questions are of recipes that there are, and a row is what its evaluations say."""

import json
from functools import cache

import numpy as np
import pytest

from benchmarks import experiments
from benchmarks.experiments import BASE, QUESTIONS, Policy, Question, answer, corrected, table
from evals.evaluate import Evaluation, Pass
from evals.statistics import accuracy
from orchestra.config.experiment import load_experiment


@cache
def arms_of(recipe):
    return load_experiment(recipe, "embedded").named


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda one: f"{one.recipe}: {one.asked}")
def test_every_question_is_of_an_arm_and_a_stage_that_there_are(question):
    arms = arms_of(question.recipe)
    for policy in (question.after, question.before):
        stage = arms[policy.arm].stage(policy.stage)
        assert "evaluation" in stage.gives
        assert policy.of in ("", *stage.held_out_sets(arms[policy.arm]))


def test_both_sides_are_asked_the_same_problems():
    for question in QUESTIONS:
        arms = arms_of(question.recipe)
        asked = []
        for policy in (question.after, question.before):
            stage = arms[policy.arm].stage(policy.stage)
            sets = stage.held_out_sets(arms[policy.arm])
            asked.append(sets[policy.of] if policy.of else next(iter(sets.values())))
        assert asked[0] == asked[1], question


def evaluation(correct):
    correct_PS = np.array(correct, dtype=float)
    rows = tuple(tuple(map(int, row)) for row in correct_PS)
    one = Pass(1.0, rows, accuracy(correct_PS, 0.95), 9.0, 0.0, 1.0, 0, 9, 1.0)
    return Evaluation(tuple(f"p{i}" for i in range(len(rows))), ("math",) * len(rows), one, one, {}, (), 0)


def written(folder, arm, seed, stage, found, name="evaluation.json"):
    place = folder / arm / f"seed-{seed}" / f"01-{stage}"
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(found.to_json())


@pytest.fixture
def folder(tmp_path):
    """Two arms, two seeds: of ten problems the base gets 2, `a` 5 under either seed, `b` 8 and 6."""
    for seed, right in ((1, 8), (2, 6)):
        for arm, count in (("a", 5), ("b", right)):
            written(tmp_path, arm, seed, BASE, evaluation([[i < 2] for i in range(10)]))
            written(tmp_path, arm, seed, "train", evaluation([[i < count] for i in range(10)]))
            written(tmp_path, arm, seed, "train", evaluation([[i < 1] for i in range(10)]), "evaluation-far.json")
    (tmp_path / "experiment.json").write_text(json.dumps({"arms": ["a", "b"], "seeds": [1, 2]}))
    return tmp_path


@pytest.mark.slow
def test_a_row_by_hand(folder):
    found = answer(Question("x", "b against a", Policy("b", "train"), Policy("a", "train")), folder)
    # (0.8 - 0.5 + 0.6 - 0.5) / 2
    assert found.sampled.difference == pytest.approx(0.2) and found.seeds == (1, 2) and found.problems == 10
    assert found.sampled.scope == "recipe" and found.sampled.by_seed
    against_base = answer(Question("x", "b", Policy("b", "train"), Policy("b", BASE)), folder)
    assert against_base.sampled.difference == pytest.approx(0.5)
    far = answer(Question("x", "far", Policy("b", "train", "far"), Policy("a", "train", "far")), folder)
    assert far.sampled.difference == 0 and experiments.verdict(far.sampled) == "not resolved"


@pytest.mark.slow
def test_holm_over_all_rows(folder):
    rows = [
        answer(Question("x", name, Policy(arm, "train"), Policy(arm, BASE)), folder)
        for name, arm in (("first", "a"), ("second", "b"))
    ]
    plain = sorted(one.sampled.p_value for one in rows)
    holm = sorted(one.sampled.p_holm for one in corrected(rows))
    assert holm == pytest.approx([min(1, 2 * plain[0]), max(min(1, 2 * plain[0]), plain[1])])
    assert len(list(table(corrected(rows)))) == 4


def test_what_is_not_finished_is_said(folder):
    with pytest.raises(FileNotFoundError, match="polish"):
        answer(Question("x", "?", Policy("a", "polish"), Policy("a", BASE)), folder)
