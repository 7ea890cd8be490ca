"""The experts that a recipe says there are: what does not fit them is said beforehand, where it is sure."""

import panels
import pytest
from changed import AGAIN, EACH, GROW, ONE, OTHER, ROUTE, THIRD, change, recipe
from pydantic import ValidationError

from orchestra.config.experts import called_in, planned_panel
from orchestra.config.faults import RecipeError
from orchestra.config.loading import load_recipe
from orchestra.plan.panels import experts_before

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


def told(tmp_path, *stages):
    """What is wrong with a recipe of these lines, a line each."""
    lines = [
        "name: changed", "model: {base: embedded/student}", "problems: {train: embedded, test: embedded}", "stages:",
        "  - {name: traces, kind: distill, teacher: embedded/teacher}", *stages,
    ]  # fmt: skip
    (tmp_path / "changed.yaml").write_text("\n".join(lines))
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(tmp_path / "changed.yaml"), None)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("first", "fault"),
    [
        (["{name: one, kind: sft, data: traces, steps: -3, learning_rate: 1e-3, expert: one}"], "steps"),
        (["{name: one, kind: sft, data: traces, steps: 3, learning_rate: 1e-3, expert: one}", "{kind: route}"], "name"),
    ],
)
def test_nothing_is_said_of_what_an_unreadable_stage_may_have_done(tmp_path, first, fault):
    """One fault, that of the stage that cannot be read, whether it has a name or not."""
    gone = ["{name: gone, kind: panel, change: remove, expert: one}", "{name: back, kind: panel, change: undo}"]
    lines = told(tmp_path, *(f"  - {stage}" for stage in (*first, *gone[: 3 - len(first)])))
    assert len(lines) == 1 and fault in lines[0]


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
    lines = told(
        tmp_path,
        "  - {name: one, kind: grpo, steps: 3, learning_rate: 1e-3, beta: 0.1, expert: one}",
        f"  - {{name: faulty, {faulty.replace('ADAPTER', str(tmp_path / 'adapter'))}}}",
        f"  - {{name: then, {then}}}",
    )
    assert len(lines) == 1 and f"stage 'faulty': {fault}" in lines[0]


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
