"""Experts in recipes: what each stage gives and takes, every fault with its whole message, what a fingerprint holds."""

import json
from dataclasses import replace

import pytest

from models.experts import Panel, panel_json
from orchestra.config.faults import RecipeError
from orchestra.config.loading import load_recipe
from orchestra.config.stage import OUTPUTS
from orchestra.run.fingerprint import fingerprint, known_beforehand
from orchestra.run.ledger import Fingerprint, LedgerEntry, StageResult
from orchestra.work.preflighted import measured_by

TRACES = {"name": "traces", "kind": "distill", "teacher": "embedded/teacher"}


def sft(name, expert=None, **keys):
    own = {"name": name, "kind": "sft", "data": "traces", "steps": 3, "learning_rate": 1e-3, "preflight": False}
    return own | ({"expert": expert} if expert else {}) | keys


def grpo(name, expert=None, **keys):
    return {"name": name, "kind": "grpo", "steps": 3, "learning_rate": 1e-4} | (
        {"expert": expert} if expert else {}
    ) | keys  # fmt: skip


@pytest.fixture
def load(tmp_path):
    def made(*stages):
        lines = [
            "name: panel", "model: {base: embedded/student}", "problems: {train: embedded, test: embedded}", "stages:",
            *(f"  - {json.dumps(stage)}" for stage in (TRACES, *stages)),
        ]  # fmt: skip
        (tmp_path / "panel.yaml").write_text("\n".join(lines))
        return load_recipe(str(tmp_path / "panel.yaml"), None)

    return made


def told(load, *stages):
    """What is wrong, without the place in the file."""
    with pytest.raises(RecipeError) as raised:
        load(*stages)
    return [line.partition(": ")[2] for line in str(raised.value).splitlines()]


EACH = sft("experts", "each")
SEVERAL = "'experts' trains several experts and no single policy; name a stage that trains one"
OLDER = "and nothing of the panel of 'experts', which a `route` stage evaluates"


@pytest.mark.parametrize(
    ("stages", "faults"),
    [
        (
            [sft("a", **{"from": "b"}), sft("b", domains=["algebra"])],
            [f"stage '{name}': {key}: only of an expert: say which one with `expert: name`"
             for name, key in (("a", "from"), ("b", "domains"))],
        ),
        (
            # an expert is none that it goes on with
            [sft("e", "x"), sft("a", lora={"rank": 2}), sft("b", lora={"rank": 2})],
            ["stage 'b': lora: only of a new adapter, and this stage goes on with that of 'a'"],
        ),
        (
            [sft("one"), sft("a", "x", parent="one")],
            ["stage 'a': parent: an expert does not take up a stage's policy; write `from: expert` instead of 'one'"],
        ),
        (
            [sft("a", "merged")],
            ["stage 'a': expert: 'merged' has a meaning of its own; choose another name for the expert"],
        ),
        (
            [sft("a", "algebra"), grpo("b", "algebra", **{"from": "base", "lora": {"rank": 2}})],
            [f"stage 'b': {key}: only of a new expert; 'algebra' is there already" for key in ("from", "lora")],
        ),
        (
            [sft("a", "algebra"), sft("b", "geometry", **{"from": "algebr"})],
            ["stage 'b': from: 'algebr' is no expert that is there by then (experts: algebra); did you mean "
             "'algebra'?"],
        ),
        (
            # a router makes no expert
            [sft("a", "algebra"), {"name": "choose", "kind": "route"}, sft("b", "geometry", **{"from": "algebr"})],
            ["stage 'b': from: 'algebr' is no expert that is there by then (experts: algebra); did you mean "
             "'algebra'?"],
        ),
        (
            [sft("a", "algebra", **{"from": "geometry"})],
            ["stage 'a': from: 'geometry' is no expert that is there by then (experts: none)"],
        ),
        (
            [sft("a", "algebra"), sft("b", "geometry", **{"from": "algebra", "lora": {"rank": 2}})],
            ["stage 'b': lora: an expert from 'algebra' has that one's adapter; leave `lora` out, or `from`"],
        ),
        (
            [EACH, grpo("b", reference="experts")],
            [f"stage 'b': reference: {SEVERAL}"],
        ),
        (
            [EACH, {"name": "look", "kind": "evaluate", "parent": "experts"}],
            [f"stage 'look': parent: {SEVERAL}"],
        ),
        (
            [EACH, {"name": "choose", "kind": "route", "generalist": "experts"}],
            [f"stage 'choose': generalist: {SEVERAL}"],
        ),
        (
            [EACH, {"name": "look", "kind": "evaluate"}],
            [f"stage 'look': parent: not said, it would be 'base', {OLDER}; write `parent: base` if that is meant"],
        ),
        (
            [sft("one"), EACH, {"name": "moved", "kind": "probe"},
             {"name": "more", "kind": "distill", "teacher": "self"}],
            [f"stage '{name}': parent: not said, it would be 'one', {OLDER}; write `parent: one` if that is meant"
             for name in ("moved", "more")],
        ),
        (
            [sft("one"), {"name": "choose", "kind": "route", "parent": "one"}],
            ["stage 'choose': kind: there are no experts to route between; an sft or grpo stage before it must train "
             "an `expert`",
             "stage 'choose': parent: a router is that of the panel before it and takes up no policy; leave 'one' out"],
        ),
        (
            [EACH, grpo("up", "each", beta=0.1), grpo("down", "algebra", beta=0.05)],
            ["stage 'down': beta: 0.05 is less than 0.1 in stage 'up'; beta must not fall"],
        ),
        (
            # of the experts that the last one trains, one would fall
            [grpo("high", "x", beta=0.1), grpo("low", "y", beta=0.01), grpo("all", "each", beta=0.05)],
            ["stage 'all': beta: 0.05 is less than 0.1 in stage 'high'; beta must not fall"],
        ),
    ],
    ids=lambda value: value[-1]["name"] if isinstance(value[0], dict) else "",
)  # fmt: skip
def test_faults(load, stages, faults):
    assert told(load, *stages) == faults


def test_a_stage_that_could_not_be_read_may_train_an_expert(load):
    """One fault, the reader's, and none that follows from it."""
    broken = sft("experts", "each", steps=0)
    assert len(told(load, broken, {"name": "choose", "kind": "route"}, {"name": "look", "kind": "evaluate"})) == 1


@pytest.mark.parametrize(
    "stages",
    [
        # each expert its own: what others have trained with does not count
        [grpo("a", "x", beta=0.1), grpo("b", "y", beta=0.01), grpo("c", "x", beta=0.2), grpo("d", "y", beta=0.02)],
        [grpo("a", "x", beta=0.1), grpo("b", "each", domains=["Y & Z"], beta=0.01), grpo("c", "y-z", beta=0.01)],
        # nor does a single policy
        [grpo("a", "x", beta=0.1), grpo("b", beta=0.01), grpo("c", "x", beta=0.1)],
        # a new expert begins anew
        [grpo("a", "x", beta=0.1), grpo("b", "y", beta=0.01, **{"from": "x"})],
    ],
)
def test_beta_rises_per_expert(load, stages):
    load(*stages)


def chain(load):
    return load(
        EACH,
        sft("one"),
        grpo("word", "word", beta=0.01),
        grpo("again", "each", beta=0.01),
        grpo("last", "word", beta=0.01),
        sft("fresh", "other", **{"from": "word"}),
        grpo("two"),
        {"name": "choose", "kind": "route", "generalist": "two"},
        {"name": "late", "kind": "sft", "data": "traces", "steps": 3, "learning_rate": 1e-3},
    )


def test_what_stages_give_and_take(load):
    """Panels are handed from stage to stage by all that train experts; single policies have a chain of their own."""
    recipe = chain(load)
    takes = {stage.name: (recipe.parents_of(stage.name), recipe.panel_of(stage.name)) for stage in recipe.stages[1:]}
    assert takes == {
        "experts": ((), None),
        "one": ((), None),
        # one of those of `each`, or a new one: the panel says
        "word": ((), "experts"),
        "again": ((), "word"),
        "last": (("word",), "again"),
        "fresh": (("last",), "last"),
        "two": (("one",), None),
        "choose": ((), "fresh"),
        "late": (("two",), None),
    }
    given = {stage.name: set(stage.given) for stage in recipe.stages}
    assert given["experts"] == {"panel", "evaluation"} == given["choose"]
    assert given["one"] == {"policy", "imitation", "evaluation"}
    assert given["word"] == {"policy", "panel", "evaluation"} and given["fresh"] == given["word"] | {"imitation"}
    assert {stage.name: stage.trains for stage in recipe.stages if stage.trains} == {
        "experts": "each", "word": "word", "again": "each", "last": "word", "fresh": "other",
    }  # fmt: skip


def test_summaries(load):
    recipe = load(
        EACH,
        grpo("a", "each", domains=["x", "y"]),
        grpo("b", "word"),
        {"name": "choose", "kind": "route", "problems": 600},
    )
    said = [stage.summary(recipe) for stage in recipe.stages[1:]]
    assert said == [
        "sft on traces, 3 steps, an expert for each domain",
        "grpo, 3 steps, beta 0, reference start, an expert for each domain of x, y",
        "grpo, 3 steps, beta 0, reference start, expert word",
        "route in the panel of b, 600 problems x 2 samples",
    ]


def test_an_adapter_of_its_own_is_like_the_recipes_but_where_it_says_otherwise(load):
    recipe = load(sft("a", "x", lora={"rank": 2}), sft("b", "y"))
    own, plain = (stage.adapter(recipe) for stage in recipe.stages[1:])
    assert plain == recipe.model.lora and own == plain.model_copy(update={"rank": 2}) and own.rank != plain.rank


# fingerprints


def finished(recipe, **panels):
    """Entries as if every stage was finished; `panels`: the panel.json of a stage that is another one."""
    entries = {}
    for stage in recipe.all_stages:
        given = [what for what in stage.given if what in OUTPUTS]
        outputs = {name: f"{name} of {stage.name}" for what in given for name in OUTPUTS[what]}
        if stage.name in panels:
            outputs["panel/panel.json"] = panels[stage.name]
        entries[stage.name] = LedgerEntry(
            stage.name, Fingerprint({}, {}, {}), outputs, StageResult(stage.name, stage.kind)
        )
    return entries


def test_a_changed_panel_is_another_input_to_whoever_takes_it_up(load):
    recipe = chain(load)
    was = finished(recipe)
    for changed, follows in (("experts", "word"), ("word", "again"), ("last", "fresh"), ("fresh", "choose")):
        now = finished(recipe, **{changed: "another"})
        differ = [
            stage.name for stage in recipe.stages
            if fingerprint(recipe, stage, now).inputs != fingerprint(recipe, stage, was).inputs
        ]  # fmt: skip
        assert differ == [follows], changed


def test_an_old_experts_files_are_part_of_every_later_panel(load):
    """panel.json, which the fingerprint hashes, holds their hashes: untouched or not, an old expert counts."""
    from models.experts import Expert, Lineage

    old = Expert("old", (), Lineage("a"), 2, {"adapter_model.safetensors": "1", "adapter_config.json": "2"})
    panel = Panel("base", "3", (old, replace(old, name="new")))
    other = replace(old, files=old.files | {"adapter_model.safetensors": "4"})
    assert panel_json(panel) != panel_json(panel.with_expert(other))


def test_what_is_said_of_an_expert_counts(load):
    def digest(**keys):
        recipe = load(sft("first", "old"), sft("a", "new", **keys), grpo("b", "new"))
        return known_beforehand(recipe, recipe.stage("a"))

    made = [digest(), digest(**{"from": "old"}), digest(domains=["x"]), digest(lora={"rank": 2})]
    assert len(set(made)) == 4 and digest() == made[0]


def test_a_reference_that_trained_each_expert_is_an_input(load):
    """By its panel, since it has no single policy."""
    recipe = load(EACH, grpo("a", "each"), grpo("b", "word", reference="experts"))
    was, now = finished(recipe), finished(recipe, experts="another")
    stage = recipe.stage("b")
    assert fingerprint(recipe, stage, was).inputs["panel of stage experts"] == "panel/panel.json of experts"
    assert fingerprint(recipe, stage, now).inputs["panel of stage experts"] == "another"


# preflights


def test_a_preflight_is_not_left_out_for_one_of_another_expert_or_other_domains(load):
    def measured(*stages):
        recipe = load(*({**stage, "preflight": {}} for stage in stages))
        return measured_by(recipe, recipe.stages[-1])

    assert measured(sft("a"), sft("b", parent="base")) == "a"
    assert measured(sft("a"), sft("b", "each")) == "a", "both under the base"
    assert measured(sft("a", "x"), sft("b", "x")) is None, "it has been trained since"
    assert measured(sft("a", "each"), sft("b", "each")) is None
    assert measured(sft("a", "each", domains=["x"]), sft("b", parent="base")) is None, "only a part was read"
