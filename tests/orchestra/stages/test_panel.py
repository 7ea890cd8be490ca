"""Panels changed by stages: what is wrong is said beforehand; what a change is not about stays the same bytes; and as
many stages that undo as changed it give back the first panel."""

import re
from dataclasses import replace

import panels
import pytest
import solved
from pydantic import ValidationError

from models.adapters import AdapterError
from models.expert_files import PanelError
from models.experts import RemovalRecord, read_panel, router_files, router_folder, write_panel
from models.router import Router
from orchestra.config.experts import called_in, planned_panel
from orchestra.config.faults import RecipeError
from orchestra.config.loading import load_recipe
from orchestra.config.recipe import Recipe
from orchestra.plan.panels import experts_before
from orchestra.report.data import StageRecord
from orchestra.run.fingerprint import fingerprint
from orchestra.run.gates import sentence
from orchestra.run.ledger import Fingerprint, LedgerEntry, StageResult

TRACES = {"name": "traces", "kind": "distill", "teacher": "embedded/teacher"}
LONE = {"kind": "sft", "data": "traces", "steps": 3, "learning_rate": 1e-3, "preflight": False}
ONE, OTHER, THIRD = ({"name": name, "expert": name, **LONE} for name in ("one", "other", "third"))
EACH = {"name": "experts", "expert": "each", **LONE}
ROUTE = {"name": "choose", "kind": "route"}
GROW = {"name": "wider", "kind": "grow", **{key: LONE[key] for key in LONE if key != "kind"}}
AGAIN = {"name": "again", "kind": "route"}


def change(what, name="changed", **keys):
    return {"name": name, "kind": "panel", "change": what, **keys}


def recipe(*stages, **sections):
    return Recipe.model_validate(
        {
            "name": "changed",
            "model": {"base": "embedded/student"},
            "problems": {"train": "embedded", "test": "embedded"},
            "stages": [TRACES, *stages],
            **sections,
        }
    )


COSTS = "change: what a removal will cost is predicted by a stage that routes, and none has looked at this panel since"
NOTHING = "change: there is nothing to undo: no stage of this kind is the last that changed the panel"


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([ONE, change("clone", expert="one")], "to: `change: clone` needs it"),
        ([ONE, change("rename", to="two")], "expert: `change: rename` needs it"),
        ([change("add", expert="two")], "folder: `change: add` needs it"),
        ([ONE, change("undo", expert="one")], "expert: only of `change: add`, `clone`, `remove`, `rename`, and this"),
        ([ONE, change("clone", expert="one", to="two", may_cost=0.1)], "may_cost: only of `change: remove`, and this"),
        ([ONE, change("rename", expert="one", to="two", domains="a")], "domains: only of `change: add`, and this is"),
        ([ONE, change("clone", expert="one", to="two", parent="one")], "parent: it changes the last panel before it"),
        ([change("clone", expert="one", to="two")], "kind: there is no panel before it"),
        ([change("undo")], "kind: there is no panel before it"),
        ([ONE, change("clone", expert="on", to="two")], "expert: 'on' is no expert that is there by then (experts: one)"
                                                        "; did you mean 'one'?"),
        ([ONE, OTHER, change("clone", expert="one", to="other")], "to: there is an expert 'other' already (experts: "
                                                                  "one, other); choose another name"),
        ([ONE, change("add", expert="one", folder="there")], "expert: there is an expert 'one' already"),
        ([ONE, change("rename", expert="one", to="each")], "to: 'each' has a meaning of its own; choose another name"),
        ([ONE, change("remove", expert="one")], COSTS),
        ([ONE, ROUTE, change("clone", expert="one", to="two"), change("remove", "gone", expert="two")], COSTS),
        # of a panel whose experts were changed since, nobody knows what the next removal costs
        ([ONE, OTHER, ROUTE, change("remove", expert="one"), change("remove", "gone", expert="other")], COSTS),
        ([ONE, OTHER, ROUTE, change("remove", expert="one"), change("remove", "gone", expert="one")],
         "expert: 'one' is no expert that is there by then (experts: other)"),
        ([ONE, change("undo")], NOTHING),
        ([ONE, change("clone", expert="one", to="two"), ROUTE, change("undo", "back")], NOTHING),
        ([ONE, change("clone", expert="one", to="two"), change("undo", "back"), change("undo", "more")], NOTHING),
        # the same expert under another name: its beta must not fall, and it is not made anew
        ([{"name": "up", "kind": "grpo", "expert": "one", "steps": 1, "learning_rate": 1e-4, "beta": 0.1},
          change("rename", expert="one", to="two"),
          {"name": "down", "kind": "grpo", "expert": "two", "steps": 1, "learning_rate": 1e-4, "beta": 0.05}],
         "beta: 0.05 is less than 0.1 in stage 'up'; beta must not fall"),
        ([ONE, change("rename", expert="one", to="two"), {**OTHER, "expert": "two", "from": "base"}],
         "from: only of a new expert; 'two' is there already"),
        ([ONE, change("rename", expert="one", to="two"), {**OTHER, "from": "one"}],
         "from: 'one' is no expert that is there by then (experts: two)"),
        ([ONE, ROUTE, change("rename", expert="one", to="two"), {"name": "m", "kind": "merge", "merge": "best"}],
         "it is compared with the routed panel, but 'changed', which gives the last panel before it, is not evaluated"),
        ([ONE, ROUTE, change("remove", expert="one")], "expert: 'one' is the last expert there is"),
        ([change("add", expert="one", folder="there"), change("undo", "back")],
         "change: without 'one', which was added first, there is no panel; leave both stages out"),
        ([ONE, change("clone", expert="one", to="two", gate={"min_difference": 0.1})],
         "gate: a panel stage is not evaluated"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_beforehand(stages, said):
    with pytest.raises(ValidationError) as caught:
        recipe(*stages)
    assert said in str(caught.value) and caught.value.error_count() == 1


@pytest.mark.parametrize(
    "stages",
    [
        [EACH, change("clone", expert="algebra", to="twin")],
        [ONE, OTHER, ROUTE, GROW, change("add", expert="one", folder="there")],
        [ONE, ROUTE, GROW, change("remove", expert="one")],
        [ONE, OTHER, ROUTE, change("rename", expert="one", to="two"), change("remove", "gone", expert="two")],
        [ONE, OTHER, ROUTE, change("remove", expert="one"), change("undo", "back"),
         change("remove", "gone", expert="one")],
        [ONE, OTHER, THIRD, ROUTE, change("remove", expert="one"), AGAIN, change("remove", "gone", expert="other")],
        [ONE, change("rename", expert="one", to="two"), {**OTHER, "expert": "one", "lora": {"rank": 2}}],
    ],
)  # fmt: skip
def test_what_may_be(stages):
    recipe(*stages)


def test_nothing_is_said_of_what_an_unreadable_stage_may_have_done(tmp_path):
    """One fault, that of the stage that cannot be read."""
    lines = [
        "name: changed", "model: {base: embedded/student}", "problems: {train: embedded, test: embedded}", "stages:",
        "  - {name: traces, kind: distill, teacher: embedded/teacher}",
        "  - {name: one, kind: sft, data: traces, steps: -3, learning_rate: 1e-3, expert: one}",
        "  - {name: gone, kind: panel, change: remove, expert: two}",
        "  - {name: back, kind: panel, change: undo}",
    ]  # fmt: skip
    (tmp_path / "changed.yaml").write_text("\n".join(lines))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(tmp_path / "changed.yaml"), None)
    assert "steps" in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("faulty", "then", "fault"),
    [
        ("kind: panel, change: rename, expert: one", "kind: panel, change: clone, expert: one, to: two", "to: "),
        ("kind: panel, change: add, folder: ADAPTER", "kind: panel, change: clone, expert: zzz, to: two", "expert: "),
        ("kind: panel, change: rename, to: two", "kind: sft, data: traces, steps: 3, learning_rate: 1e-3, expert: new, "
                                                 "from: zzz", "expert: "),
        # this one cannot even be read
        ("kind: panel, change: remove, expert: one, may_cost: 7", "kind: sft, data: traces, steps: 3, expert: one, "
                                                                  "learning_rate: 1e-3, from: base", "may_cost: "),
        ("kind: panel, change: renam, expert: one, to: two", "kind: grpo, steps: 3, learning_rate: 1e-3, expert: one, "
                                                             "beta: 0.01", "change: "),
    ],
)  # fmt: skip
def test_a_change_with_a_fault_may_have_made_anything(tmp_path, faulty, then, fault):
    """Of what comes after it only its own faults are told."""
    panels.adapter(tmp_path / "adapter", 5)
    lines = [
        "name: changed", "model: {base: embedded/student}", "problems: {train: embedded, test: embedded}", "stages:",
        "  - {name: traces, kind: distill, teacher: embedded/teacher}",
        "  - {name: one, kind: grpo, steps: 3, learning_rate: 1e-3, beta: 0.1, expert: one}",
        f"  - {{name: faulty, {faulty.replace('ADAPTER', str(tmp_path / 'adapter'))}}}",
        f"  - {{name: then, {then}}}",
    ]  # fmt: skip
    (tmp_path / "changed.yaml").write_text("\n".join(lines))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(tmp_path / "changed.yaml"), None)
    (line,) = str(caught.value).splitlines()
    assert f"stage 'faulty': {fault}" in line


def test_a_stage_without_a_name_may_have_made_the_panel(tmp_path):
    lines = [
        "name: changed", "model: {base: embedded/student}", "problems: {train: embedded, test: embedded}", "stages:",
        "  - {name: traces, kind: distill, teacher: embedded/teacher}",
        "  - {name: one, kind: sft, data: traces, steps: 3, learning_rate: 1e-3, expert: one}",
        "  - {kind: route}",
        "  - {name: gone, kind: panel, change: remove, expert: one}",
    ]  # fmt: skip
    (tmp_path / "changed.yaml").write_text("\n".join(lines))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(tmp_path / "changed.yaml"), None)
    assert "name" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_what_an_expert_was_called():
    """After each stage, for one that was renamed, its clone, and one that has the name now which it had."""
    made = recipe(
        ONE,
        change("rename", "named", expert="one", to="first"),
        change("clone", "twice", expert="first", to="twin"),
        {**OTHER, "name": "anew", "expert": "one"},
        {**OTHER, "name": "more", "expert": "first"},
        ROUTE,
    )
    before = made.before("choose")
    names = {
        expert: [called_in(before, expert, stage.name) for stage in before[2:]] for expert in ("first", "twin", "one")
    }
    assert names == {
        "first": [("one",), ("first",), ("first",), ("first",), ("first",)],
        "twin": [("one",), ("first",), ("twin",), ("twin",), ("twin",)],
        "one": [(), (), (), ("one",), ("one",)],
    }
    assert called_in(before, "first", "base") == () == called_in(before, "first", "traces")


def test_what_an_expert_was_called_where_only_the_data_says_which_there_are():
    """It may have had any of its names; one that was made anew had none."""
    made = recipe(
        EACH,
        change("rename", "named", expert="sums", to="totals"),
        {**OTHER, "name": "anew", "expert": "sums", "lora": {"rank": 2}},
        ROUTE,
    )
    before = made.before("choose")
    assert called_in(before, "totals", "experts") == ("totals", "sums")
    assert called_in(before, "totals", "named") == ("totals",)
    assert called_in(before, "sums", "experts") == ()
    assert called_in(before, "equations", "experts") == ("equations",)


def test_experts_from_another_are_as_many_as_the_domains():
    """Of the generator's six; none of them goes on with a stage's policy."""
    made = recipe(ONE, {**EACH, "from": "one"}, ROUTE)
    assert len(experts_before(made, made.stage("choose"))) == 1 + 6 and made.parents_of("experts") == ()


def test_who_is_there_as_a_recipe_says():
    """A clone and another name keep what trained the expert; the plan counts the adapters and their ranks."""
    made = recipe(
        {**ONE, "lora": {"rank": 8}},
        change("clone", "twice", expert="one", to="two"),
        change("rename", "named", expert="one", to="first"),
        {**OTHER, "name": "more", "expert": "first"},
        ROUTE,
        change("remove", "less", expert="two"),
        change("undo", "back"),
    )
    there = {stage.name: planned_panel(made.before(stage.name)) for stage in made.stages}
    assert [there[name].names for name in ("twice", "named", "more", "less", "back")] == [
        ("one",), ("one", "two"), ("first", "two"), ("first", "two"), ("first",)
    ]  # fmt: skip
    last = planned_panel(made.stages)
    assert last.names == ("first", "two") and last.routed and last.before is None
    assert [[stage.name for stage in one.trained_in] for one in last.experts] == [["one", "more"], ["one"]]
    assert made.parents_of("more") == ("one",)
    assert [lora.rank for lora in experts_before(made, made.stage("back"))] == [8]
    assert [lora.rank for lora in experts_before(made, made.stage("less"))] == [8, 8]


def brought(folder, width=128, **about):
    """An adapter for two of the embedded student's layers, whose q_proj is 128 wide."""
    layers = {"target_modules": ["q_proj"], "layers_to_transform": [0, 1]}
    return panels.adapter(folder, 5, widths={"self_attn.q_proj": (width, width)}, **layers, **about)


@pytest.fixture
def start(tmp_path):
    """start(*changes) -> a recipe that has two experts, a router, and then these; the router's stage is done, and has
    predicted what the removal of each expert costs."""

    def made(*changes):
        experts = [{"name": name, "expert": name, **LONE} for name in ("algebra", "mlp")]
        place = tmp_path / "run" / "choose" / "panel"
        panel = panels.write(place, tmp_path / "made")
        for name in panel.names:
            panels.again(place, tmp_path / "run" / name / "panel")
        router = panels.known_router(tmp_path / "router", panel.names)
        cost = RemovalRecord(0.3, -0.041, -0.0649, -0.018)
        known = tuple(replace(one, cost=cost) for one in panel.experts)
        routed = replace(panel, experts=known, router=router_files(router))
        write_panel(place, routed, router=router, copy=True)
        return recipe(*experts, ROUTE, *changes)

    return made


@pytest.fixture
def run(tmp_path):
    """run(recipe, stage) -> its context, its result, and the panel that it has left."""

    def ran(made, name):
        context = solved.context(made, name, tmp_path / "run", engine=None)
        result = made.stage(name).run(context)
        return context, result, read_panel(context.folder / "panel")

    return ran


def test_each_change_and_back(start, run, tmp_path):
    """Three changes and as many that undo: the last panel is the first, byte for byte, which nobody has touched."""
    brought(tmp_path / "new", rank=7)
    done = [
        change("rename", "named", expert="mlp", to="sums"),
        change("clone", "twice", expert="sums", to="twin"),
        change("add", "more", expert="shapes", folder=str(tmp_path / "new"), domains=["shapes", "solids"]),
    ]
    back = [change("undo", f"back-{number}") for number in range(3)]
    made = start(*done, *back)
    first = tmp_path / "run" / "choose" / "panel"
    before = panels.tree(first)
    found = {name: run(made, name) for name in ("named", "twice", "more", "back-0", "back-1", "back-2")}
    assert [panel.names for _, _, panel in found.values()] == [
        ("algebra", "sums"), ("algebra", "sums", "twin"), ("algebra", "sums", "twin", "shapes"),
        ("algebra", "sums", "twin"), ("algebra", "sums"), ("algebra", "mlp"),
    ]  # fmt: skip
    told = [result.extra["change"] for _, result, _ in found.values()]
    assert told[:3] == ["renamed 'mlp' to 'sums'", "cloned 'sums' as 'twin'", "added 'shapes'"]
    assert told[3:] == [f"undone: {one}" for one in reversed(told[:3])]
    assert panels.tree(first) == before == panels.tree(tmp_path / "run" / "back-2" / "panel")
    shapes = found["more"][2].expert("shapes")
    assert (shapes.domains, shapes.rank, shapes.record, shapes.cost) == (("shapes", "solids"), 7, None, None)
    unknown = "the router does not know the new expert, which answers nothing until a route stage"
    assert [unknown in solved.said(context)[-1] for context, _, _ in found.values()] == [0, 1, 1, 0, 0, 0]


def test_a_removal_tells_beforehand_what_it_costs_and_the_router_loses_its_row(start, run, tmp_path):
    """From -6.49 points on it may cost 7, not 6: NO-GO. Those that stay keep their files and their rows."""
    made = start(change("remove", expert="mlp", may_cost=0.06))
    first, stage = tmp_path / "run" / "choose" / "panel", made.stage("changed")
    before, old = read_panel(first), panels.tree(first)
    context, result, after = run(made, "changed")
    said = "without mlp (load 30%): −4.1 points [−6.5, −1.8] predicted"
    assert [line.strip() for line in solved.said(context)] == [said, "removed 'mlp'"]
    stays = after.expert("algebra")
    assert after.names == ("algebra",) and stays == replace(before.expert("algebra"), cost=None)
    own = context.folder / "panel"
    was, router = (Router.read(router_folder(place, panel)) for place, panel in ((first, before), (own, after)))
    assert router.names == ("base", "algebra") and router.row_bytes("algebra") == was.row_bytes("algebra")
    assert panels.tree(first) == old
    assert not (verdict := stage.verdict(result)).go and verdict.reason == f"{said}, and it may cost 6 (may_cost)"
    for limit in (0.07, None):
        assert stage.model_copy(update={"may_cost": limit}).verdict(result) is None
    (part,) = type(stage).report(StageRecord("changed", "panel", stage.model_dump(), result))
    assert part.tree == {"change": "removed 'mlp'", "predicted beforehand": said}
    assert not [*type(stage).report(StageRecord("changed", "panel"))]
    assert sentence(result) == "experts 1, 0:00", "the prediction was told"


def test_a_removal_that_nobody_has_looked_at_is_refused(start, run, tmp_path):
    """A panel in the place of the routed one."""
    made, first = start(change("remove", expert="mlp")), tmp_path / "run" / "choose" / "panel"
    write_panel(first, read_panel(first).without_costs())
    with pytest.raises(PanelError, match="what it will cost to remove 'mlp', nobody has predicted; route before it"):
        run(made, "changed")
    assert not (tmp_path / "run" / "changed" / "panel").exists()


def test_what_a_killed_run_left_is_not_in_the_panel(start, run, tmp_path):
    made = start(change("clone", expert="mlp", to="twin"))
    left = tmp_path / "run" / "changed" / "panel" / "experts" / "twin"
    left.mkdir(parents=True)
    (left / "adapter_model.safetensors").write_bytes(b"half")
    (tmp_path / "run" / "changed" / ".panel.partial").mkdir()
    assert run(made, "changed")[2].names == ("algebra", "mlp", "twin")
    assert [path.name for path in (tmp_path / "run" / "changed").iterdir()] == ["panel"]


def test_an_adapter_from_elsewhere_begins_a_panel(run, tmp_path):
    """Of which nobody has loaded the base yet; it is read before the run begins, and counts by its contents, wherever
    it lies."""
    brought(tmp_path / "brought", rank=7)
    made = recipe(change("add", expert="shapes", folder=str(tmp_path / "brought")))
    stage = made.stage("changed")
    assert [stage.summary(made), made.panel_of("changed")] == [f"add shapes from {stage.folder}, in a new panel", None]
    stage.ready(made)
    _, result, panel = run(made, "changed")
    assert (panel.names, panel.base, panel.base_sha256, result.extra["experts"]) == (
        ("shapes",),
        "embedded/student",
        "",
        1,
    )
    routed = recipe(change("add", expert="shapes", folder=stage.folder), ROUTE)
    assert [lora.rank for lora in experts_before(routed, routed.stage("choose"))] == [7]

    def inputs(folder):
        own = recipe(change("add", expert="shapes", folder=str(folder)))
        entry = LedgerEntry("base", Fingerprint({}, {}, {}), {}, StageResult("base", "base"))
        found = fingerprint(own, own.stage("changed"), {"base": entry, "traces": entry})
        return found.config, found.inputs

    first = inputs(tmp_path / "brought")
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "brought").rename(tmp_path / "elsewhere" / "brought")
    assert inputs(moved) == first
    (moved / "adapter_config.json").write_text((moved / "adapter_config.json").read_text() + " ")
    assert inputs(moved)[0] == first[0] and inputs(moved)[1] != first[1]


def test_an_adapter_for_other_layers_begins_no_panel(run, tmp_path):
    """Its config names the base, and its weights are of a wider one; nothing is written."""
    brought(tmp_path / "brought", width=256)
    made = recipe(change("add", expert="shapes", folder=str(tmp_path / "brought")))
    made.stage("changed").ready(made)
    with pytest.raises(AdapterError, match=r"brought: .*(256|shape)"):
        run(made, "changed")
    assert not (tmp_path / "run" / "changed" / "panel").exists()


def test_the_last_expert_is_not_removed(start, run, tmp_path):
    """Where only the run shows that it is."""
    made, first = start(change("remove", expert="mlp")), tmp_path / "run" / "choose" / "panel"
    panel = read_panel(first)
    router = panels.known_router(tmp_path / "less", ["mlp"])
    write_panel(first, replace(panel, experts=panel.experts[1:], router=router_files(router)), router=router, copy=True)
    with pytest.raises(PanelError, match="without mlp there is no expert left, and a panel has one"):
        run(made, "changed")
    assert not (tmp_path / "run" / "changed" / "panel").exists()


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"base_model_name_or_path": "Qwen/Qwen2.5-3B"}, "base_model_name_or_path is 'Qwen/Qwen2.5-3B', and the panel"),
        ({"use_dora": True}, "an expert is plain LoRA, and this is more (use_dora)"),
    ],
)
def test_an_adapter_that_cannot_be_an_expert_is_refused_before_the_run(tmp_path, about, said):
    panels.adapter(tmp_path / "brought", 5, **about)
    made = recipe(change("add", expert="shapes", folder=str(tmp_path / "brought")))
    with pytest.raises(PanelError) as caught:
        made.stage("changed").ready(made)
    assert said in str(caught.value)


def test_a_folder_is_looked_for_beside_the_recipe(tmp_path):
    panels.adapter(tmp_path / "brought", 5)
    (tmp_path / "empty").mkdir()

    def load(folder):
        lines = [
            "name: changed", "model: {base: embedded/student}", "problems: {train: embedded, test: embedded}",
            f"stages: [{{name: more, kind: panel, change: add, expert: shapes, folder: {folder}}}]",
        ]  # fmt: skip
        (tmp_path / "changed.yaml").write_text("\n".join(lines))
        return load_recipe(str(tmp_path / "changed.yaml"), None).stage("more").folder

    assert load("brought") == str(tmp_path / "brought")
    for folder, reason in (
        ("empty", "holds no adapter (adapter_config.json is missing)"),
        ("broght", "no such folder"),
    ):
        with pytest.raises(RecipeError, match=rf"folder: .*: {re.escape(reason)}"):
            load(folder if folder == "broght" else tmp_path / folder)
