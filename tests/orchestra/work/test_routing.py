"""The route stage on the tiny model: what it asks, what a killed run asks again, what becomes of the panel, and that
its numbers fit each other."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import solved

from evals.evaluate import Evaluation
from evals.panel import PanelEvaluation
from evals.statistics import accuracy
from models.experts import expert_folder, read_panel, router_folder
from models.router import Router
from orchestra.config.faults import UserError
from orchestra.run.gates import judge
from orchestra.run.ledger import StageResult
from orchestra.work import arms, routing
from orchestra.work.routing import fresh_first

SFT = {"kind": "sft", "steps": 1, "batch_size": 2, "learning_rate": 3e-2, "preflight": False}
NAMES = ("base", "sums", "words")
STAGES = (
    {"name": "experts", "expert": "each", **SFT},
    {"name": "one", **SFT},
    {"name": "choose", "kind": "route", "samples": 2, "oracle_samples": 3, "generalist": "one", "problems": 600},
)


@pytest.fixture(scope="module")
def recipe(tiny_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("route")
    rows = [line | {"domain": NAMES[1 + at % 2]} for at, line in enumerate(solved.rows(4))]
    data = solved.written(folder / "train.jsonl", rows)
    stages = [{**stage, **({"data": data} if stage["kind"] == "sft" else {})} for stage in STAGES]
    test = [{**line, "domain": name} for line, name in zip(solved.held_out(None), NAMES[1:], strict=True)]
    return solved.recipe(
        tiny_path, folder, stages, test=test, evaluate={"perplexity": 0, "samples": 2, "greedy": False},
        problems={"train": data, "test": str(folder / "test.jsonl")},
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory, engine):
    """The run's folder with all but the route stage."""
    run = tmp_path_factory.mktemp("run")
    for name in ("experts", "one"):
        context = solved.context(recipe, name, run, engine)
        context.stage.run(context)
    return run


class Asking:
    """Counts what is asked, and grades it by a table: the experts solve half of their samples, the base none."""

    def __init__(self, patch, stop_after=None):
        self.asked, answered = [], arms.answered

        def noting(context, asked, doing, **named):
            if len(self.asked) == stop_after:
                raise KeyboardInterrupt
            self.asked.append(doing)
            found = answered(context, asked, doing, **named)
            expert = doing.split()[1] != "base"
            correct = [[int(expert and k % 2 == 0) for k in range(len(row))] for row in found.sampled.correct]
            graded = replace(found.sampled, correct=tuple(map(tuple, correct)), accuracy=accuracy(correct, 0.95))
            return replace(found, sampled=graded)

        patch.setattr(arms, "answered", noting)


def run(recipe, trained, folder, engine, stop_after=None):
    """(the stage's context, its result, what it asked), in a folder of its own."""
    for name in ("experts", "one"):
        if not (folder / name).exists():
            shutil.copytree(trained / name, folder / name)
    context = solved.context(recipe, "choose", folder, engine)
    with pytest.MonkeyPatch.context() as patch:
        asking = Asking(patch, stop_after)
        try:
            return context, context.stage.run(context), asking.asked
        except KeyboardInterrupt:
            return context, None, asking.asked


@pytest.fixture(scope="module")
def whole(recipe, trained, tmp_path_factory, engine):
    return run(recipe, trained, tmp_path_factory.mktemp("whole"), engine)


ALL = [f"ask {name} ({draw})" for draw in ("learn", "first", "second") for name in NAMES]


def test_every_arm_is_asked_the_same_problems_in_three_draws(whole):
    """600 problems are more than there are: all four of training, and the two held-out ones."""
    context, _, asked = whole
    assert asked == ALL
    assert "learns from 4 problems: there are no 600" in " ".join(solved.said(context))
    found = {
        path.stem: Evaluation.from_json(path.read_text()) for path in sorted((context.folder / "answers").iterdir())
    }
    shape = {name: one.sampled.correct_PS.shape for name, one in found.items()}
    draws = {"learn": (4, 2), "first": (2, 3), "second": (2, 2)}
    assert shape == {f"{draw}-{name}": draws[draw] for draw in draws for name in NAMES}
    for draw in draws:
        assert len({found[f"{draw}-{name}"].problem_ids for name in NAMES}) == 1
    assert len({found[f"{draw}-base"].seed for draw in draws}) == 3, "independent draws"


def test_the_numbers_fit_each_other(whole):
    context, result, _ = whole
    found = PanelEvaluation.from_json((context.folder / "panel-evaluation.json").read_text())
    extra = result.extra
    assert [arm.name for arm in found.arms] == list(NAMES)
    assert sum(arm.load for arm in found.arms) == pytest.approx(1)
    assert {name: extra[f"load_{name}"] for name in NAMES} == {arm.name: arm.load for arm in found.arms}
    routed = found.way("routed").accuracy.estimate
    assert routed == pytest.approx(sum(arm.load * arm.accuracy.estimate for arm in found.arms)), "two equal problems"
    assert extra["over_best_single"] == pytest.approx(routed - extra["best_single"])
    assert extra["oracle_gap"] == pytest.approx(extra["instance_oracle"] - routed)
    assert extra["random"] == pytest.approx(np.mean([arm.accuracy.estimate for arm in found.arms[1:]])) == 0.5
    assert found.way("generalist") is not None and 1 <= extra["effective_experts"] <= 3
    # the panel as it was served, which no table graded
    evaluation = Evaluation.from_json((context.folder / "evaluation.json").read_text())
    assert result.accuracy == evaluation.sampled.accuracy.estimate
    # without an expert its problems go elsewhere: no more than its load is lost or won
    for expert in read_panel(context.folder / "panel").experts:
        assert expert.cost.load == extra[f"load_{expert.name}"] >= abs(expert.cost.difference)
        assert expert.cost.low <= expert.cost.difference <= expert.cost.high
    said = solved.said(context)
    assert sum("without " in line and "predicted" in line for line in said) == 2


def test_only_records_costs_and_the_router_change(whole):
    context, _, _ = whole
    before, after = read_panel(context.earlier["experts"] / "panel"), read_panel(context.folder / "panel")
    assert replace(
        after, router=None, experts=tuple(replace(one, record=None, cost=None) for one in after.experts)
    ) == replace(before, experts=tuple(replace(one, record=None) for one in before.experts))  # fmt: skip
    for expert in before.experts:
        folders = [
            expert_folder(folder / "panel", expert.name) for folder in (context.earlier["experts"], context.folder)
        ]
        for file in expert.files:
            one, two = (folder / file for folder in folders)
            assert one.read_bytes() == two.read_bytes() and one.stat().st_ino == two.stat().st_ino, "linked"
    assert {one.name: one.record.accuracy for one in after.experts} == {"sums": 0.5, "words": 0.5}
    router = Router.read(router_folder(context.folder / "panel", after), NAMES)
    assert router.names == NAMES and router.layer == 1


@pytest.mark.parametrize("stop_after", [1, 5, 8])
def test_answers_of_a_killed_run_are_not_asked_again(recipe, trained, whole, tmp_path, engine, stop_after):
    _, result, asked = run(recipe, trained, tmp_path, engine, stop_after)
    assert result is None and asked == ALL[:stop_after]
    context, result, asked = run(recipe, trained, tmp_path, engine)
    assert asked == ALL[stop_after:]
    files = [
        {str(path.relative_to(one.folder)): path.read_bytes()
         for path in sorted(one.folder.rglob("*")) if path.parent.name != "answers" and path.is_file()
         and path.name not in ("evaluation.json",)}
        for one in (whole[0], context)
    ]  # fmt: skip
    assert files[0] == files[1] and {"panel/panel.json", "router/router.json"} <= files[0].keys()
    timed = ("routing_seconds", "routing_time_share")
    kept = [{key: value for key, value in one.extra.items() if key not in timed} for one in (whole[1], result)]
    assert kept[0] == kept[1] and (result.accuracy, result.tokens) == (whole[1].accuracy, whole[1].tokens)


def test_problems_without_traces_are_learned_from_first(recipe, trained, tmp_path, engine):
    """Of its own traces' problems an expert may know the answers by heart."""
    context, _, _ = run(recipe, trained, tmp_path, engine, stop_after=0)
    asked = context.resources.train()
    drawn = fresh_first(context, asked)
    assert sorted(drawn) == [0, 1, 2, 3] and fresh_first(context, asked) == drawn
    (tmp_path / "one" / "traces.jsonl").touch()
    imitated = drawn[:2]
    traces = [SimpleNamespace(problem_id=asked.problems[at].id) for at in imitated]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routing, "read_traces", lambda _: traces)
        assert fresh_first(context, asked) == drawn[2:] + imitated


class Second:
    """The second of two processes, which is told what the first one has found."""

    def __init__(self, told):
        self.told = told

    def once(self, work):
        return self.told


def test_processes_read_prompts_alike(recipe, trained, tmp_path, engine):
    """What one reads is what all route by: their own arithmetic may round differently."""
    context, _, _ = run(recipe, trained, tmp_path, engine, stop_after=0)
    told = np.ones((4, 3), dtype=np.float32)
    asked = context.resources.train()
    assert routing.features(replace(context, processes=Second(told)), None, asked, None) is told


def test_a_generalist_on_other_problems_is_one_message(recipe, trained, tmp_path, engine):
    run(recipe, trained, tmp_path, engine, stop_after=0)
    path = tmp_path / "one" / "evaluation.json"
    found = Evaluation.from_json(path.read_text())
    path.write_text(replace(found, problem_ids=("x", "y")).to_json())
    with pytest.raises(UserError, match=r"^generalist: its stage was evaluated on other problems than this one is$"):
        run(recipe, trained, tmp_path, engine)
    assert not (tmp_path / "choose" / "panel").exists()


def test_an_expert_without_load_may_stop_the_recipe(recipe):
    """The base may be idle; 0, the default, asks nothing."""
    stage = next(one for one in recipe.stages if one.kind == "route")
    loads = {"load_base": 0.0, "load_sums": 0.04, "load_words": 0.96}
    result = StageResult(name=stage.name, kind="route", extra=loads)
    assert judge(recipe, stage, {stage.name: result}) is None
    asking = [stage.model_copy(update={"min_load": least}) for least in (0.04, 0.05)]
    assert judge(recipe, asking[0], {stage.name: result}) is None
    found = judge(recipe, asking[1], {stage.name: result})
    assert found.word == "NO-GO" and found.sentence.endswith(
        "with less than 5.0% of the problems (min_load): sums 4.0%"
    )


def test_without_a_panel_there_is_nothing_to_route(recipe, trained, tmp_path, engine):
    context = replace(solved.context(recipe, "choose", tmp_path, engine), panel=None)
    with pytest.raises(UserError, match="there is no panel to route in"):
        context.stage.run(context)
