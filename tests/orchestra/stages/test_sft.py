"""Imitation and what stands around it: its data are looked at first, which changes nothing of what is trained; what was
measured is not measured again; perplexity is told beside accuracy."""

import json
from dataclasses import replace

import numpy as np
import pytest
import solved

from evals.evaluate import Evaluation, Pass
from evals.statistics import accuracy
from orchestra.config.faults import RecipeError, UserError
from orchestra.config.loading import load_recipe
from orchestra.plan.devices import device_of
from orchestra.plan.estimate import Estimator
from orchestra.plan.machine import Machine
from orchestra.report.data import StageRecord
from orchestra.report.parts import Counts, Notice
from orchestra.run.fingerprint import hashed_outputs
from orchestra.work import preflight as measuring
from orchestra.work.preflighted import measured_by

SFT = {"name": "imitate", "kind": "sft", "steps": 3, "batch_size": 2, "learning_rate": 1e-2}


@pytest.fixture
def imitate(tiny_path, tmp_path, engine):
    """Makes the context of a stage that imitates a file, in a folder of its own."""

    def make(folder="run", lines=None, test=None, evaluate=None, **keys):
        data = solved.written(tmp_path / "human.jsonl", lines or solved.rows())
        stages = [{**SFT, "data": data, **keys}]
        recipe = solved.recipe(
            tiny_path, tmp_path, stages, test=test or solved.held_out(), dropout=0.2, evaluate=evaluate or {}
        )
        return solved.context(recipe, "imitate", tmp_path / folder, engine)

    return make


def bytes_of(context, *names):
    return [(context.folder / name).read_bytes() for name in names]


def test_a_preflight_changes_nothing_of_the_training(imitate):
    """With dropout, which asks torch's generator at every step."""
    files = ("adapter/adapter_model.safetensors", "evaluation.json", "perplexity.json")
    made = []
    for folder, keys in (("with", {}), ("without", {"preflight": False})):
        context = imitate(folder, **keys)
        result = context.stage.run(context)
        losses = [json.loads(line)["loss"] for line in (context.folder / "metrics.jsonl").read_text().splitlines()]
        evaluation, *written = reversed(bytes_of(context, *files[:1], *files[2:], files[1]))
        correct = [json.loads(evaluation)[name]["correct"] for name in ("sampled", "greedy")]
        made.append((written, correct, losses, result.adapter_sha256, result.accuracy))
    assert made[0] == made[1] and len(made[0][2]) == 3
    assert (context.folder.parent.parent / "with" / "imitate" / "preflight.json").is_file()
    assert not (context.folder / "preflight.json").exists()


def test_what_it_tells(imitate):
    """The preflight before, the perplexities after: on the terminal, in the result, in files that are hashed, and in
    the report."""
    context = imitate()
    result = context.stage.run(context)
    told = solved.said(context)
    (fit,), (after,) = ([line for line in told if mark in line] for mark in (" nats a token", "    perplexity: "))
    assert told.index(fit) < told.index(after) and fit.startswith("    human.jsonl: 4 problems, ")
    sources = json.loads((context.folder / "perplexity.json").read_text())["sources"]
    for name, one in sources.items():
        assert result.extra[f"perplexity_{name}"] == one["after"]["perplexity"]
        assert f"{name} {one['after']['perplexity']:.4g} (from {one['before']['perplexity']:.4g})" in after
    assert list(sources) == ["human.jsonl", "held-out text"] and result.extra["perplexity_warnings"] == 0
    # it was trained on the one
    assert sources["human.jsonl"]["ratio"]["ratio"] < 0.9
    # that the preflight found under the policy before
    fit = json.loads((context.folder / "preflight.json").read_text())
    assert fit["policy"] == "base"
    assert fit["sources"][0]["text"]["nll"] == pytest.approx(sources["human.jsonl"]["before"]["nll"], rel=1e-6)
    assert result.extra["human.jsonl: nll"] == fit["sources"][0]["text"]["nll"] and result.extra["warnings"] > 0
    assert {"preflight.json", "perplexity.json"} <= set(hashed_outputs(context.stage, context.folder))
    trained_on = round(3 * 2 / 4 * sum(sources["human.jsonl"]["after"]["tokens_by_text"]))
    evaluation = json.loads((context.folder / "evaluation.json").read_text())
    assert result.tokens == trained_on + fit["tokens"] + sum(evaluation[of]["tokens"] for of in ("sampled", "greedy"))
    outputs = {"preflight.json": fit, "perplexity.json": {"sources": sources}}
    parts = StageRecord("imitate", "sft", outputs=outputs).parts
    (table,) = [part for part in parts if isinstance(part, Counts)]
    assert table.title == "imitate: preflight under base"
    assert table.tree["human.jsonl"]["nll"] == fit["sources"][0]["text"]["nll"]


def test_killed_while_it_trains_it_does_not_look_again(imitate, monkeypatch):
    from orchestra.work import imitating

    context = imitate()
    with monkeypatch.context() as patch:
        patch.setattr(imitating, "train_sft", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            context.stage.run(context)
    (kept,) = bytes_of(context, "preflight.json")
    told = [line for line in solved.said(context) if "human.jsonl: " in line]
    again = imitate()
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "preflight", None)
        result = again.stage.run(again)
    assert bytes_of(again, "preflight.json") == [kept] and result.extra["human.jsonl: problems"] == 4
    assert [line for line in solved.said(again) if "human.jsonl: " in line] == told
    # a file that is none is no measurement
    for text in ("{", '{"policy": "base"}', "[]"):
        (again.folder / "preflight.json").write_text(text)
        assert measuring._kept(again.folder / "preflight.json") is None


def test_another_prompt_stops_the_run_before_it_begins(imitate):
    lines = solved.rows(prompt="Problem: what?\nSolution:")
    context = imitate(lines=lines)
    with pytest.raises(UserError, match=r"stage 'imitate': .*human.jsonl: `prompt` of 4 of 4 rows"):
        context.stage.ready(context.recipe)
    with pytest.raises(UserError, match="mismatch: warn"):
        context.stage.run(context)
    assert not (context.folder / "metrics.jsonl").exists()
    for keys in ({"preflight": {"mismatch": "warn"}}, {"preflight": False}):
        context = imitate(lines=lines, **keys)
        context.stage.ready(context.recipe)


def test_a_trap_is_told(imitate, tmp_path):
    """The base solved all of 30 problems; after the file has become likelier none is solved."""
    asked = [{"question": f"What is {at} + 1?", "answer": str(at + 1)} for at in range(30)]
    context = imitate(test=asked, evaluate={"greedy": False})
    ids, ones = tuple(f"test-{at}" for at in range(1, 31)), np.ones((30, 1))
    right = Pass(1.0, ((1,),) * 30, accuracy(ones, 0.95), 9.0, 0.0, 1.0, 0, 270, 1.0)
    base = tmp_path / "run" / "base"
    base.mkdir()
    (base / "evaluation.json").write_text(Evaluation(ids, ("math",) * 30, right, None, {}, (), 17).to_json())
    context = replace(context, earlier={"base": base})
    result = context.stage.run(context)
    assert result.difference == -1 and result.extra["perplexity_warnings"] == 1
    (line,) = [line for line in solved.said(context) if "fell" in line]
    assert line.startswith("    warning: perplexity of human.jsonl fell to 0.")
    assert "of what it was and accuracy fell by 100.0 points [" in line
    tree = json.loads((context.folder / "perplexity.json").read_text())
    parts = StageRecord("imitate", "sft", outputs={"perplexity.json": tree}).parts
    (notice,) = [part for part in parts if isinstance(part, Notice)]
    assert notice.title == "imitate, from base" and f"    warning: {notice.text}" == line


# what a recipe's stages measure of one another


def planned(tmp_path, *stages, scale=None):
    (tmp_path / "human.jsonl").write_text(json.dumps(solved.rows(1)[0]) + "\n")
    (tmp_path / "other.jsonl").write_text(json.dumps(solved.rows(1)[0]) + "\n")
    lines = [
        "name: looks", "model: {base: embedded/student}", "problems: {train: embedded, test: embedded}", "stages:",
        "  - {name: traces, kind: distill, teacher: embedded/teacher}", 
        *(f"  - {json.dumps(stage)}" for stage in stages),
    ]  # fmt: skip
    (tmp_path / "looks.yaml").write_text("\n".join(lines))
    return load_recipe(str(tmp_path / "looks.yaml"), scale)


BOTH = ["traces", "human.jsonl"]
FIT = {"name": "fit", "kind": "preflight", "data": BOTH}


def named(name, data=BOTH, **keys):
    return {"name": name, "kind": "sft", "steps": 3, "learning_rate": 1e-3, "data": data, **keys}


@pytest.mark.parametrize(
    ("stages", "by"),
    [
        ([FIT, named("imitate")], "fit"),
        ([FIT, named("imitate", {"human.jsonl": 1, "traces": 2})], "fit"),
        # of some of its sources
        ([FIT, named("imitate", "traces")], "fit"),
        ([FIT, named("imitate", ["traces", "other.jsonl"])], None),
        ([named("imitate")], None),
        ([named("before"), named("imitate", parent="base")], "before"),
        # whatever measured it first
        ([FIT, named("before"), named("imitate", parent="base")], "fit"),
        # another policy, other bounds, other lengths
        ([named("before"), named("imitate")], None),
        ([named("before"), {**FIT, "parent": "before"}, named("imitate", parent="base")], "before"),
        ([{**FIT, "max_ratio": 2}, named("imitate")], None),
        ([{**FIT, "max_ratio": 2}, named("imitate", preflight={"max_ratio": 2})], "fit"),
        ([FIT, named("imitate", preflight={"problems": 16})], None),
        ([FIT, named("imitate", max_length=200)], None),
        ([named("before", preflight=False), named("imitate", parent="base")], None),
        ([FIT, named("imitate", preflight=False)], None),
    ],
)
def test_what_an_earlier_stage_has_measured(tmp_path, stages, by):
    recipe = planned(tmp_path, *stages)
    assert measured_by(recipe, recipe.stage("imitate")) == by


def test_it_says_who_has_measured_it(tiny_path, tmp_path, engine, monkeypatch):
    data = solved.written(tmp_path / "human.jsonl", solved.rows())
    stages = [{"name": "fit", "kind": "preflight", "data": data}, {**SFT, "data": data}]
    recipe = solved.recipe(tiny_path, tmp_path, stages, test=solved.held_out())
    context = solved.context(recipe, "imitate", tmp_path / "run", engine)
    monkeypatch.setattr(measuring, "preflight", None)
    result = context.stage.run(context)
    assert "    preflight: 'fit' has measured the same" in solved.said(context)
    assert "warnings" not in result.extra and not (context.folder / "preflight.json").exists()


def test_a_plan_has_it(tmp_path):
    def row(*stages):
        recipe = planned(tmp_path, *stages)
        return recipe.stage("imitate").plan(Estimator(recipe, device_of(Machine(2, 24 * 2**30, ()), "embedded")))

    whole, half = row(named("imitate")), row(named("imitate", preflight={"problems": 128}))
    none, known = row(named("imitate", preflight=False)), row(FIT, named("imitate"))
    assert whole.tokens - none.tokens == 2 * (half.tokens - none.tokens) > 256
    assert whole.seconds > half.seconds > none.seconds and known == none
    both = planned(tmp_path, FIT, named("imitate"))
    fit = both.stage("fit").plan(Estimator(both, device_of(Machine(2, 24 * 2**30, ()), "embedded")))
    assert fit.tokens == whole.tokens - none.tokens


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            True,
            "preflight: True is a truth value; a mapping (`key: value`) is needed with problems, template, mismatch",
        ),
        (None, "preflight: has no value; a mapping (`key: value`) is needed"),
        ({"problms": 3}, "preflight.problms: unknown key; did you mean 'problems'?"),
        ({"max_ratio": 0.5}, "preflight.max_ratio: 0.5 must be at least 1"),
        ({"data": "traces"}, "preflight.data: unknown key (possible: problems, template"),
        ({"template": "?"}, "template: {question} must stand in it once"),
    ],
)
def test_bad_input(tmp_path, value, said):
    with pytest.raises(RecipeError) as raised:
        planned(tmp_path, named("imitate", preflight=value))
    (fault,) = raised.value.faults
    assert said in str(fault) and "imitate" in str(fault)


def test_shares_and_the_command_line(tmp_path):
    recipe = planned(tmp_path, named("imitate", {"traces": 1, "human.jsonl": 2}))
    own = recipe.stage("imitate").preflights(recipe)
    assert {source.rpartition("/")[2] for source in own.sources} == set(BOTH) and own.policy == "base"
    path = str(tmp_path / "looks.yaml")
    assert load_recipe(path, None, ["stages.imitate.preflight=false"]).stage("imitate").preflight is False
    assert load_recipe(path, None, ["stages.imitate.preflight.problems=7"]).stage("imitate").preflight.problems == 7
