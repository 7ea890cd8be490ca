"""What the report reads and works out, number by number, on stages of a few problems."""

import json
import math

import numpy as np
import pytest

from evals.evaluate import Evaluation, Pass, Sample
from evals.statistics import accuracy
from orchestra.report import charts
from orchestra.report.data import StageRecord, compared, read_run, to_yaml
from orchestra.report.page import (
    SHOWN_LAST,
    SHOWN_OTHER,
    _by_domain,
    _count_rows,
    _differences,
    _gates,
    _headline,
    _joined_courses,
    _planned,
    _samples,
    _side_by_side,
)
from orchestra.run.ledger import StageResult
from orchestra.text import compact, gib, number, p_value, percent, points, shortened


def one_pass(correct, temperature=1.0):
    return Pass(temperature, tuple(map(tuple, correct)), accuracy(np.array(correct, dtype=float), 0.95), 10.0, 0.0, 1.0,
                0, 10, 1.0)  # fmt: skip


def stage(name, right, *, kind="grpo", ids="abcd", domains="xxyy", samples=(), gate=None, **result):
    """Two samples of four problems each, as many right as `right` says."""
    correct = [[int(k < count) for k in range(2)] for count in right]
    evaluation = Evaluation(tuple(ids), tuple(domains), one_pass(correct), None, {}, tuple(samples), 3)
    values = {"accuracy": evaluation.sampled.accuracy.estimate} | result
    return StageRecord(name, kind, {"gate": gate}, StageResult(name, kind, **values), evaluation)


BASE = stage("base", (0, 0, 1, 0), kind="base")
IMITATE = stage("imitate", (1, 1, 1, 0), kind="sft")
EXPLORE = stage("explore", (2, 2, 1, 1))
POLISH = stage("polish", (2, 1, 1, 1))


# reading


def lines(path, *rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def metrics_of(tmp_path, *rows):
    lines(tmp_path / "01-explore" / "metrics.jsonl", *rows)
    run = read_run(tmp_path)
    return run.stages[0].metrics, run.notes


def test_of_a_repeated_step_the_last_line_counts(tmp_path):
    """A run that was killed after step 3 and went on from the checkpoint at step 1: what was lost is not shown."""
    rows, notes = metrics_of(
        tmp_path, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4, "lost": 1}, {"step": 3, "loss": 0.3},
        {"step": 2, "loss": 0.7}, {"step": 3, "loss": 0.6}, {"step": 10, "loss": 0.1}, {"step": 9, "loss": 0.2},
    )  # fmt: skip
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 0.5), (2, 0.7), (3, 0.6), (9, 0.2), (10, 0.1)]
    assert "lost" not in rows[1] and notes == ()


def test_only_finite_numbers_of_a_step_count(tmp_path):
    rows, notes = metrics_of(
        tmp_path, '{"step": 1, "loss": NaN, "kl": Infinity, "low": -Infinity, "fine": 0}',
        {"step": 2, "flag": True, "text": "a", "none": None}, {"loss": 1.0}, "[1]", "",
    )  # fmt: skip
    assert [dict(row) for row in rows] == [{"step": 1, "fine": 0}, {"step": 2}] and notes == ()


def test_a_line_cut_short_is_a_note_unless_it_is_the_last(tmp_path):
    rows, notes = metrics_of(tmp_path, {"step": 1}, '{"step": 2, "lo', {"step": 3}, '{"step": 4, "lo')
    assert [row["step"] for row in rows] == [1, 3]
    assert len(notes) == 1 and notes[0].startswith("01-explore/metrics.jsonl line 2 could not be read")


def test_what_has_begun_and_what_is_finished():
    evaluation, row = IMITATE.evaluation, ({"step": 1.0},)
    result = StageResult("a", "sft")
    assert StageRecord("a", "sft", result=result).status == "finished"
    assert StageRecord("base", "base", evaluation=evaluation).status == "finished"
    assert StageRecord("a", "sft", evaluation=evaluation).status == "unfinished"
    assert StageRecord("a", "sft", metrics=row).status == "unfinished"
    assert StageRecord("a", "distill", statistics={"kept": 1}).status == "unfinished"
    assert StageRecord("a", "sft", config={"steps": 3}).status == "to do"


def test_beta_is_the_results_where_it_has_one():
    assert StageRecord("a", "grpo", {"beta": 0.1}).beta == 0.1
    assert StageRecord("a", "grpo", {"beta": 0.1}, StageResult("a", "grpo", beta=0.0)).beta == 0.0
    assert StageRecord("a", "sft").beta is None and StageRecord("a", "grpo", {"beta": "x"}).beta is None


def test_stages_stand_as_their_folders_then_as_in_the_recipe(tmp_path):
    """The number decides, as a number; a folder's own config and result decide over the recipe."""
    recipe = {"name": "mine", "stages": [{"name": name, "kind": "grpo", "steps": 3} for name in ("a", "b", "c")]}
    (tmp_path / "run.json").write_text(json.dumps({"recipe": recipe, "seed": 4, "scale": "gpu"}))
    for folder in ("100-late", "11-mid", "02-b", "00-base", "1-no", "discarded-1", "01-a"):
        (tmp_path / folder).mkdir()
    (tmp_path / "01-a" / "config.json").write_text(json.dumps({"stage": {"kind": "sft", "steps": 9}, "digest": "0"}))
    run = read_run(tmp_path)
    assert [(one.name, one.kind) for one in run.stages] == [
        ("base", "base"), ("a", "sft"), ("b", "grpo"), ("mid", "?"), ("late", "?"), ("c", "grpo")
    ]  # fmt: skip
    assert [one.config.get("steps") for one in run.stages] == [None, 9, 3, None, None, 3]
    assert (run.name, run.seed, run.scale) == ("mine", "4", "gpu")


@pytest.mark.parametrize(
    "plan",
    [{"stages": [{"name": "a", "seconds": 3, "kind": "sft"}]}, [{"name": "a", "seconds": 3}], {"a": {"seconds": 3}}],
)
def test_a_plan_in_any_of_its_shapes(tmp_path, plan):
    (tmp_path / "run.json").write_text(json.dumps({"plan": plan, "seed": 1}))
    assert read_run(tmp_path).plan == {"a": {"seconds": 3.0}}


def test_a_recipe_is_written_name_first_and_without_what_is_not_set():
    text = to_yaml({"stages": [{"steps": 3, "kind": "sft", "name": "a"}], "seed": None, "name": "x"})
    assert text == "name: x\nstages:\n  - {name: a, kind: sft, steps: 3}\n"


# comparing


def test_the_headline_is_first_against_last_on_the_same_problems():
    # 1 of 8 to 6 of 8 right; by problem 1, 1, 0, 1/2
    found = _headline([BASE, IMITATE, EXPLORE])
    assert (found.first.name, found.last.name) == ("base", "explore")
    assert (
        found.difference.difference
        == pytest.approx(5 / 8)
        == found.after.accuracy.estimate - found.before.accuracy.estimate
    )
    other = stage("other", (2, 2, 2, 2), ids="efgh")
    assert _headline([BASE, EXPLORE, other]).last.name == "explore"
    assert _headline([BASE, other]) is None and _headline([BASE]) is None
    stopped = StageRecord("polish", "grpo", {}, StageResult("polish", "grpo", gate="NO-GO"), POLISH.evaluation)
    assert _headline([BASE, IMITATE, EXPLORE, stopped]).last.name == "explore", "the best, where a gate stopped the run"
    assert _headline([BASE, IMITATE, EXPLORE, POLISH]).last.name == "polish"


def test_rows_are_matched_by_id():
    shuffled = stage("again", (1, 0, 2, 2), ids="cdab")  # the same as EXPLORE's a, b, c, d but for d
    assert compared(shuffled, EXPLORE).difference == pytest.approx(-1 / 8)
    assert compared(shuffled, stage("other", (2, 2, 2, 2), ids="efgh")) is None


def test_differences_are_the_ledgers_where_it_has_them():
    told = stage("explore", (2, 2, 1, 1), difference=0.25, difference_low=0.1, difference_high=0.4, p_value=0.01)
    found = _differences([BASE, IMITATE, told])
    assert set(found) == {"imitate", "explore"}, "the first has none"
    one = found["explore"]
    assert (one.difference, one.low, one.high, one.p_value, one.confidence) == (0.25, 0.1, 0.4, 0.01, 0.95)
    assert found["imitate"] == compared(IMITATE, BASE) and found["imitate"].difference == pytest.approx(2 / 8)
    bare = _differences([BASE, stage("explore", (2, 2, 1, 1), difference=0.25)])["explore"]
    assert bare.difference == 0.25 and all(map(math.isnan, (bare.low, bare.high, bare.p_value)))
    zero = _differences([BASE, stage("explore", (2, 2, 1, 1), difference=0.0)])["explore"]
    assert zero.difference == 0.0, "no difference is a difference that was measured"


def test_domains_by_hand():
    assert _by_domain(EXPLORE.evaluation) == {"x": 1.0, "y": 0.5} and _by_domain(BASE.evaluation) == {"x": 0, "y": 0.25}


@pytest.mark.parametrize(
    ("against", "limit", "measured"),
    [("previous", 0.05, "−12.5"), ("imitate", 0.05, "+25.0"), ("base", -0.01, "+50.0"), ("nowhere", 0.0, "")],
)
def test_gates_are_measured_against_what_they_name(against, limit, measured):
    """Accuracies 1/8, 3/8, 6/8 and 5/8; the first of them is not against itself."""
    gated = stage("polish", (2, 1, 1, 1), gate={"metric": "accuracy", "against": against, "min_difference": limit})
    (found,) = _gates([BASE, IMITATE, EXPLORE, gated, stage("later", (0, 0, 0, 0))])
    assert found.stage == "polish" and found.measured == measured and found.verdict == "open"
    assert found.condition == f"accuracy against {against}: at least {points(limit)} points"


def test_a_verdict_without_its_gate_is_shown_all_the_same():
    (found,) = _gates([BASE, StageRecord("old", "grpo", {}, StageResult("old", "grpo", gate="GO"))])
    assert (found.stage, found.verdict, found.measured) == ("old", "GO", "")


# drawing


def record(name, kind="grpo", beta=0.0, rows=()):
    return StageRecord(
        name, kind, {"beta": beta}, metrics=tuple({key: float(v) for key, v in row.items()} for row in rows)
    )


def test_courses_run_on_from_stage_to_stage(monkeypatch):
    """Steps 1 to 2 of the first, 1 to 3 of the second as 3 to 5, 1 of the third as 6; a step may lack a number."""
    drawn = {}
    monkeypatch.setattr(
        charts, "course_chart", lambda key, title, segments, share: drawn.update({key: (segments, share)}) or "<svg/>"
    )
    first = record(
        "a", beta=0.5, rows=[{"step": 1, "kl": 0.1, "truncated": 0.5}, {"step": 2, "kl": 0.2, "truncated": 1}]
    )
    second = record("b", rows=[{"step": 1, "kl": 0.3, "beta": 0.7}, {"step": 2}, {"step": 3, "kl": 0.4, "beta": 0.9}])
    third = record("c", rows=[{"step": 1, "kl": 0.5}])
    made = _joined_courses([first, record("none"), record("s", "sft", rows=[{"step": 1, "kl": 9}]), second, third])
    assert [one.title for one in made] == ["KL to the reference", "Truncated completions"], (
        "what no stage has is not drawn"
    )
    (a, b, c), share = drawn["kl"]
    assert (c.name, c.first, c.last) == ("c", 6, 6)
    assert (a.name, a.first, a.last, b.name, b.first, b.last) == ("a", 1, 2, "b", 3, 5) and not share
    assert a.steps_N.tolist() == [1, 2] and b.steps_N.tolist() == [3, 4, 5]
    assert a.values_N.tolist() == [0.1, 0.2]
    assert b.values_N[[0, 2]].tolist() == [0.3, 0.4] and math.isnan(b.values_N[1])
    assert a.beta_N.tolist() == [0.5, 0.5] and b.beta_N.tolist() == [0.7, 0, 0.9]
    assert drawn["truncated"][1], "shares are written in per cent"
    over = record("a", rows=[{"step": 1, "truncated": 1.5}])
    _joined_courses([over])
    assert not drawn["truncated"][1], "more than all is no share"


def test_counts_are_rows_with_their_depth():
    rows = _count_rows(
        {"kept": 3, "dropped": {"wrong": 1, "more": {"late": 2}}, "list": [1], "note": "x", "flag": True}
    )
    assert [(row.depth, row.name, row.value) for row in rows] == [
        (0, "kept", 3), (0, "dropped", None), (1, "wrong", 1), (1, "more", None), (2, "late", 2), (0, "note", "x"),
        (0, "flag", True),
    ]  # fmt: skip
    assert [row.bar for row in rows] == [100, None, pytest.approx(100 / 3), None, pytest.approx(200 / 3), None, None]


def test_planned_stands_beside_measured(tmp_path):
    (tmp_path / "run.json").write_text(
        json.dumps({"plan": [{"name": "a", "seconds": 5, "tokens": 7, "peak_bytes": 9}, {"name": "b", "seconds": 6}]})
    )
    lines(tmp_path / "01-a" / "result.json", {"name": "a", "kind": "sft", "seconds": 1.5, "tokens": 2,
                                             "extra": {"peak_memory_bytes": 3.0}})  # fmt: skip
    (tmp_path / "02-b").mkdir()
    (tmp_path / "03-unplanned").mkdir()
    assert _planned(read_run(tmp_path)) == [
        ("a", [("seconds", 5.0, 1.5), ("tokens", 7.0, 2), ("peak_bytes", 9.0, 3.0)]),
        ("b", [("seconds", 6.0, None), ("tokens", None, None), ("peak_bytes", None, None)]),
    ]


def kept(*kinds, problem="p"):
    return [Sample(kind, f"{problem}{at}", "q", "1", "text", 3) for at, kind in enumerate(kinds)]


def test_the_last_stage_shows_more_completions():
    many = ["right"] * 4 + ["wrong"] * 4 + ["truncated"] * 4
    first, last = stage("a", (1, 1, 1, 1), samples=kept(*many)), stage("b", (1, 1, 1, 1), samples=kept(*many))
    shown = _samples([first, stage("none", (1, 1, 1, 1)), last])
    assert [one.name for one, _ in shown] == ["b", "a"]
    counts = [
        [sum(sample.kind == kind for sample in rows) for kind in ("right", "wrong", "truncated")] for _, rows in shown
    ]
    assert counts == [[SHOWN_LAST] * 3, [SHOWN_OTHER] * 3] and SHOWN_LAST > SHOWN_OTHER


def test_a_problem_that_was_learned_is_followed_first():
    """p0 stayed wrong through three stages, p1 became right in the second, p2 is shown once only."""
    a = stage("a", (1, 1, 1, 1), samples=kept("wrong", "wrong", "right"))
    b = stage("b", (1, 1, 1, 1), samples=kept("wrong", "right"))
    c = stage("c", (1, 1, 1, 1), samples=kept("wrong"))
    followed = _side_by_side([a, b, c])
    assert [[(one.name, sample.problem_id) for one, sample in rows] for rows in followed] == [
        [("a", "p1"), ("b", "p1")], [("a", "p0"), ("b", "p0"), ("c", "p0")]
    ]  # fmt: skip
    assert [rows[0][1].problem_id for rows in _side_by_side([a, c])] == ["p0"], "shown once is not followed"


# numbers


def test_numbers_at_their_edges():
    assert [percent(value) for value in (0, 1, math.nan)] == ["0.0\u00a0%", "100.0\u00a0%", "–"]
    assert [points(value) for value in (0.0, math.nan)] == ["+0.0", "–"]
    assert [p_value(value) for value in (0.001, 0.00099, 0.0999, 0.1, 1)] == [
        "p\u00a0=\u00a00.001", "p\u00a0<\u00a00.001", "p\u00a0=\u00a00.100", "p\u00a0=\u00a00.10", "p\u00a0=\u00a01.00"
    ]  # fmt: skip
    assert [compact(value) for value in (999, 1000, 310_220, 2.5e6, 4e9)] == ["999", "1k", "310k", "2.5M", "4B"]
    assert [gib(2**30), gib(None), number(True), number(math.inf)] == ["1.0\u00a0GiB", "–", "True", "inf"]
    long = "a" * 2_000 + "b" * 1_000
    assert shortened(long).startswith("a" * 1_600 + "\n[... 600 characters") and shortened(long).endswith("b" * 800)
