"""The grow stage on the tiny model: what it decides by which windows, what stays as it is, what a killed run does
again, and what is said of a mistake."""

import json
from dataclasses import replace
from types import SimpleNamespace

import grown
import numpy as np
import pytest
import solved
from grown import GOOD
from safetensors.torch import load_file, save_file

from evals.evaluate import Evaluation
from models.experts import PanelError, expert_folder, read_panel, router_folder
from models.router import Router
from orchestra.config.faults import UserError
from orchestra.run.gates import NO_GO, judge
from orchestra.stages.grow import GrowStage
from orchestra.work import growing
from orchestra.work.controller import labels_of
from orchestra.work.growing import Change, Growth, _new_name


@pytest.fixture(scope="module")
def recipe(tiny_path, tmp_path_factory):
    return grown.recipe(tiny_path, tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def before(recipe, tmp_path_factory, engine):
    return grown.trained(recipe, tmp_path_factory.mktemp("before"), engine)


@pytest.fixture(scope="module")
def whole(recipe, before, tmp_path_factory, engine):
    """Nobody solves words, and idle solves nothing."""
    return grown.run(recipe, before, tmp_path_factory.mktemp("whole"), engine)


@pytest.fixture(scope="module")
def vain(tiny_path, before, tmp_path_factory, engine):
    """A new expert would solve nothing either, and no removal may cost anything, not even by chance."""
    recipe = grown.recipe(tiny_path, tmp_path_factory.mktemp("recipe"), may_cost=0)
    return grown.run(recipe, before, tmp_path_factory.mktemp("vain"), engine, GOOD | {"words": ()})


def growth_of(done):
    return json.loads((done.context.folder / "growth.json").read_text())


def names_of(window):
    return list(window["load"])


# decisions


def test_windows_decide_and_what_they_decide_is_done(whole):
    """Two windows in a row, and one of rest behind each change; idle goes before another expert comes."""
    assert whole.decisions() == ["stay", "prune", "stay", "grow", "stay", "stay"]
    assert whole.trained == ["words"]
    changes = growth_of(whole)["changes"]
    assert [(one["window"], one["action"], one["expert"], one["domain"], one["kept"]) for one in changes] == [
        (2, "prune", "idle", "", True), (4, "grow", "words", "words", True),
    ]  # fmt: skip
    # 5 of the 16 problems set aside are words, which none but the new expert solves
    assert [one["difference"]["difference"] for one in changes] == [0, 5 / 16]
    assert changes[1]["difference"]["low"] > 0 and changes[1]["difference"]["n"] == 16


def test_what_training_took_is_counted(whole, vain):
    """The new expert's, kept or not, beside what was asked and the panel's own evaluation."""
    for done in (whole, vain):
        folder = done.context.folder
        own = json.loads((folder / "grown" / "words" / "result.json").read_text())
        asked = sum(Evaluation.from_json(path.read_text()).tokens for path in (folder / "answers").iterdir())
        evaluation = Evaluation.from_json((folder / "evaluation.json").read_text())
        assert own["tokens"] > 0 and done.result.tokens == own["tokens"] + asked + evaluation.tokens
        assert done.result.steps == own["steps"] == 1


def test_windows_see_the_panel_as_it_is_by_then(whole):
    windows = growth_of(whole)["windows"]
    arms = [["base", "sums", "idle"]] * 2 + [["base", "sums"]] * 2 + [["base", "sums", "words"]] * 2
    assert [names_of(one) for one in windows] == arms
    for number, one in enumerate(windows):
        words = one["domains"]["words"]["problems"]
        assert one["problems"] == 8 == words + one["domains"]["sums"]["problems"]
        unsolved = {name: of["unsolved"] for name, of in one["domains"].items()}
        assert unsolved == {"sums": 0, "words": words if number < 4 else 0}
        assert one["load"].get("words", 0) == (0 if number < 4 else words / 8)


def test_every_problem_is_asked_for_one_purpose_only(whole):
    """Those learned from, those that prove a change, and each window's; held-out ones are others anyway."""
    drawn = {}
    for path in sorted((whole.context.folder / "answers").glob("*-base.json")):
        drawn[path.name.removesuffix("-base.json")] = json.loads(path.read_text())["problem_ids"]
    training = [id for name, ids in drawn.items() if name not in ("first", "second") for id in ids]
    assert len(training) == len(set(training)) == 24 + 16 + 6 * 8
    assert not set(training) & set(drawn["first"]) and drawn["first"] == drawn["second"]


def test_the_gain_on_held_out_problems_is_that_of_the_panels(whole):
    """Two of four held-out problems are words. The panel is measured as it is served, by adapters that know nothing, so
    that its gain is what the one before it would have solved of the table, lost."""
    extra = whole.result.extra
    assert (extra["experts_before"], extra["experts"]) == (2, 2)
    assert extra["growth_gain"] == pytest.approx(whole.result.accuracy - 0.5)
    assert extra["growth_gain_low"] <= extra["growth_gain"] <= extra["growth_gain_high"]
    assert any(line.startswith("from 2 to 2 experts:") for line in whole.said)


def test_an_expert_that_gains_nothing_is_not_kept_and_its_domain_is_given_up(vain):
    *_, change = growth_of(vain)["changes"]
    assert (change["action"], change["expert"], change["kept"]) == ("grow", "words", False)
    assert change["difference"]["difference"] == 0 and vain.trained == ["words"]
    assert vain.decisions()[-1] == "stay" and "a further expert has gained nothing before" in " ".join(vain.said)
    panel = read_panel(vain.context.folder / "panel")
    assert panel.names == ("sums", "idle") and not expert_folder(vain.context.folder / "panel", "words").exists()


def test_an_expert_that_may_be_needed_stays_and_stands_in_nobodys_way(vain):
    """Of 16 problems one cannot know to the point, so it stays; it is not asked again, and the panel goes on."""
    assert vain.decisions() == ["stay", "prune", "stay", "grow", "stay", "stay"]
    first = growth_of(vain)["changes"][0]
    assert (first["expert"], first["kept"]) == ("idle", False) and first["difference"]["low"] < 0
    assert any(line.startswith("prune idle:") and line.endswith("not removed") for line in vain.said)


def test_what_is_needed_is_known_of_the_panel_as_it_is():
    """A refusal holds until the panel changes."""

    def change(window, action, expert, kept):
        return Change(window, action, expert, "", "", kept, None)

    growth = Growth(None, None, None, [], [change(2, "prune", "a", False), change(4, "grow", "b", False)])
    assert growth.needed == {"a"}
    growth.changes.append(change(6, "grow", "c", True))
    assert growth.needed == frozenset()
    growth.changes.append(change(8, "prune", "b", False))
    assert growth.needed == {"b"}


# structure and what stays


def test_what_stays_is_the_same_to_the_bit_and_what_goes_is_gone(whole, before):
    folder, old = whole.context.folder / "panel", before / "useless" / "panel"
    panel = read_panel(folder)
    assert panel.names == ("sums", "words") and not expert_folder(folder, "idle").exists()
    for file in panel.expert("sums").files:
        one, two = (expert_folder(place, "sums") / file for place in (folder, old))
        assert one.read_bytes() == two.read_bytes()
    assert panel.expert("sums").lineage == read_panel(old).expert("sums").lineage
    new = panel.expert("words")
    assert (new.domains, new.lineage.stage, new.lineage.parent) == (("words",), "grow/words", "base")
    assert Router.read(router_folder(folder, panel)).names == ("base", "sums", "words")


def test_structure_is_told_at_start_and_end(whole, vain):
    for done, same in ((whole, False), (vain, True)):
        start, end = (growth_of(done)[f"structure_{when}"] for when in ("start", "end"))
        assert len(start) == len(end) == 64 and (start == end) == same
        assert done.result.extra["structure"] == end
    assert "growth_gain" not in vain.result.extra, "the panel is what it was"


def spoil(run):
    """An old expert's weights become others."""
    path = expert_folder(run / "useless" / "panel", "sums") / "adapter_model.safetensors"
    tensors = load_file(path)
    path.unlink()  # it is linked elsewhere, too
    save_file({name: -x for name, x in tensors.items()}, path)


def test_an_old_expert_that_becomes_another_while_one_is_trained_is_caught(recipe, before, engine, tmp_path):
    with pytest.raises(
        PanelError, match=r"^expert 'sums': .*sums/adapter_model.safetensors is not what panel.json says"
    ):
        grown.run(recipe, before, tmp_path, engine, during=lambda _: spoil(tmp_path))
    assert not (tmp_path / "grow" / "panel").exists()


def _with_other_row(router):
    at = router.names.index("sums")
    rows = list(router.rows)
    rows[at] = replace(rows[at], bias=rows[at].bias + 1)
    return replace(router, rows=tuple(rows))


@pytest.fixture(scope="module")
def small(whole):
    """The panel of the whole run, with its router and its arms."""
    context = whole.context
    panel = read_panel(context.folder / "panel")
    places = {name: expert_folder(context.folder / "panel", name) for name in panel.names}
    router = Router.read(router_folder(context.folder / "panel", panel))
    return Growth(panel, router, growing.Arms.of(context, panel, places))


def _exchanged(arms, panel):
    """The experts' folders, each under the other's name."""
    return growing.Arms.of(arms.context, panel, dict(zip(panel.names, reversed(arms.places.values()), strict=True)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p, r, a: (p, _with_other_row(r), a), "the router's row of 'sums' changed when another expert came or"),
        (lambda p, r, a: (replace(p, experts=(replace(p.experts[0], files=p.experts[1].files), p.experts[1])), r, a),
         "expert 'sums' was not trained, but its files are not what they were"),
        (lambda p, r, a: (p, r, _exchanged(a, p)),
         "expert 'sums': .*words/adapter_model.safetensors is not what panel.json says"),
        (lambda p, r, a: (p, r, replace(a, model=_exchanged(a, p).model)),
         "what 'sums' makes of a probe changed when another expert came or went"),
    ],
)  # fmt: skip
def test_each_check_of_what_stays_fires(small, change, said):
    same = (small.panel, small.router, small.arms)
    growing._must_be_as_before(small, *same)
    with pytest.raises(PanelError, match=said):
        growing._must_be_as_before(small, *change(*same))


@pytest.mark.parametrize(
    ("domain", "gone", "name"),
    [
        ("words", (), "words-2"),
        ("Counting & Probability", (), "counting-probability"),
        ("sums", ("sums-2", "sums-3"), "sums-4"),
        ("x" * 50, ("x" * 40,), "x" * 36 + "-2"),
        ("Base", (), "base-2"),
        ("each", ("each-2",), "each-3"),
    ],
)
def test_names_of_new_experts(small, domain, gone, name):
    """Never one that there is, was, or was tried; nor one that has a meaning of its own."""
    tried = [Change(1, "grow", one, "", "", False, None) for one in gone]
    assert _new_name(domain, replace(small, changes=tried)) == name and len(name) <= 40


# a controller that learned from labels


def test_a_controller_that_learned_from_outcomes_acts_without_asking(tiny_path, before, tmp_path, engine):
    """Its labels can be told from the prompts. It does not see that words are solved by then: a second expert for
    them is tried, gains nothing, and they are given up."""
    keys = {"controller": "learned", "rounds": 7, "window": 4}
    recipe = grown.recipe(tiny_path, tmp_path, **keys)
    done = grown.run(recipe, before, tmp_path / "run", engine)
    assert not [one for one in done.asked if "window" in one]
    assert done.trained == ["words", "words-2"] and read_panel(done.context.folder / "panel").names == ("sums", "words")
    told = growth_of(done)
    assert set(told["audit"]["classes"]) == {"grow", "stay"} and sum(told["audit"]["classes"].values()) == 24
    assert done.result.extra["audit_verdict"] == "GO" and done.result.extra["audit_auc"] > 0.9
    assert judge(recipe, recipe.stage("grow"), {"grow": done.result}) is None
    # as many as are expected: of 24 problems nobody is certain, but words are more than sums
    expected = {name: sum(one["domains"].get(name, {"unsolved": 0})["unsolved"] for one in told["windows"])
                for name in ("words", "sums")}  # fmt: skip
    assert expected["words"] > 2 * expected["sums"]


def test_what_nobody_graded_is_no_label_to_learn():
    """By (base, two experts): none solves it, the base as well as all, an expert better; then the same ungraded."""
    nan = float("nan")
    solved = [(0, 0, 0), (1, 1, 0), (0, 0.5, 0), (0, nan, 0), (nan, nan, nan), (1, nan, 1), (0, 0.5, nan)]
    labels = labels_of(np.array(solved, dtype=float).T, SimpleNamespace(labels="outcome"), 0)
    assert labels == ["grow", "prune", "stay", "stay", "stay", "stay", "stay"]


def test_random_labels_end_it_before_anything_is_trained(tiny_path, before, tmp_path, engine):
    recipe = grown.recipe(tiny_path, tmp_path, controller="learned", labels="random")
    done = grown.run(recipe, before, tmp_path / "run", engine)
    assert done.trained == [] and done.asked == [f"ask {name} (learn)" for name in ("base", "sums", "idle")]
    extra, answers = done.result.extra, (done.context.folder / "answers").iterdir()
    assert done.result.tokens == sum(Evaluation.from_json(path.read_text()).tokens for path in answers) > 0
    assert set(extra) == {"audit_verdict", "audit_auc", "audit_p_value"} and extra["audit_p_value"] > 0.01
    assert sorted(path.name for path in done.context.folder.iterdir()) == ["answers", "growth.json"]
    told = growth_of(done)
    assert told["windows"] == told["changes"] == [] and set(told["audit"]["classes"]) == {"grow", "prune", "stay"}
    found = judge(recipe, recipe.stage("grow"), {"grow": done.result})
    assert found.word == NO_GO and found.sentence == (
        f"NO-GO: the controller's labels say nothing: held-out AUC {extra['audit_auc']:.3f}, "
        f"p = {extra['audit_p_value']:.2g} against shuffled labels"
    )


# a killed run


@pytest.mark.slow
def test_a_killed_run_neither_asks_nor_trains_again_what_it_has(recipe, before, whole, tmp_path, engine):
    """Killed in the first window, before the new expert is trained, once it is, and before the panel is written; what
    comes out is that of a whole run, to the byte."""
    stops = ({"stop_asking": "ask sums (window-0)"}, {"stop_training": "words"}, {"stop_asking": "ask words (gain)"},
             {"stop_asking": "ask words (second)"})  # fmt: skip
    runs = [grown.run(recipe, before, tmp_path, engine, **stop) for stop in stops]
    assert [one.result for one in runs] == [None] * 4 and not (tmp_path / "grow" / "panel").exists()
    runs.append(grown.run(recipe, before, tmp_path, engine))
    assert [one for run in runs for one in run.asked] == whole.asked
    assert [one for run in runs for one in run.trained] == whole.trained
    found, expected = runs[-1].files(), whole.files()
    assert found == expected and {"growth.json", "panel/panel.json", "router/router.json"} <= found.keys()
    timed = ("routing_seconds", "routing_time_share")
    one, two = ({key: of for key, of in run.result.extra.items() if key not in timed} for run in (runs[-1], whole))
    assert one == two and runs[-1].result.tokens == whole.result.tokens and runs[-1].result.steps == whole.result.steps


# mistakes


def test_too_few_problems_are_one_message(tiny_path, before, tmp_path, engine):
    recipe = grown.recipe(tiny_path, tmp_path, rounds=7)
    said = (
        r"^learn 24 \+ gain 16 \+ rounds 7 x window 8 are 96 training problems, each once, and there are 88; ask for "
        "fewer, or raise problems.train_limit$"
    )
    with pytest.raises(UserError, match=said):
        grown.run(recipe, before, tmp_path / "run", engine)
    assert not list((tmp_path / "run" / "grow").iterdir())


def test_a_domain_without_traces_gets_no_expert_and_that_is_said_before_any_window(
    tiny_path, recipe, before, tmp_path, engine
):
    """It is the domain that windows call an expert for; hours of asking are not lost over it."""
    alone = grown.recipe(tiny_path, tmp_path, only="sums")
    found = grown.run(alone, before, tmp_path / "run", engine)
    said = "no traces in words: there no expert can be made; `data` takes more sources"
    assert found.said.index(said) < next(i for i, line in enumerate(found.said) if line.startswith("window 1 "))
    assert not [name for name in found.trained if name.startswith("words")]
    assert "words" not in {change["domain"] for change in json.loads(
        (tmp_path / "run" / "grow" / "growth.json").read_text())["changes"]}  # fmt: skip


def test_without_a_panel_there_is_nothing_to_grow(recipe, before, tmp_path, engine):
    context = replace(solved.context(recipe, "grow", tmp_path, engine), panel=None)
    with pytest.raises(
        UserError, match=r"^there is no panel to grow: an earlier sft or grpo stage must train an `expe"
    ):
        context.stage.run(context)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"expert": "x"},
            "expert: a panel grows where its windows say so, each new expert from the base; leave it out",
        ),
        (
            {"domains": ["sums"]},
            "domains: a panel grows where its windows say so, each new expert from the base; leave",
        ),
        ({"from": "idle"}, "from: a panel grows where its windows say so, each new expert from the base; leave it out"),
        ({"parent": "base"}, "parent: a panel grows where its windows say so, each new expert from the base; leave it"),
        (
            {"labels": "random"},
            "labels: 'random' is of a controller that learns from labels; write `controller: learned`",
        ),
        ({"growth": {"at_least": 3, "at_most": 2}}, "at_least (3) must not be above at_most (2), or no panel is right"),
        ({"audit": {"permutations": 10}}, "10 permutations give no p-value below 0.0909, and `significance` is 0.01"),
        ({"gain": 1}, "gain"),
        ({"roundz": 3}, "roundz"),
    ],
)
def test_faults_are_told_with_their_remedy(tiny_path, tmp_path, keys, said):
    with pytest.raises(ValueError) as raised:
        grown.recipe(tiny_path, tmp_path, **keys)
    assert said in str(raised.value)


def test_a_panel_must_come_before_it(tiny_path, tmp_path):
    data = solved.written(tmp_path / "train.jsonl", grown.problems(8))
    with pytest.raises(
        ValueError, match="there is no panel to grow; an sft or grpo stage before it must train an `exp"
    ):
        solved.recipe(tiny_path, tmp_path, [{**grown.GROW, "data": data}], test=grown.problems(2, 100))


def test_it_gives_a_panel_and_no_single_policy(recipe):
    stage = recipe.stage("grow")
    assert isinstance(stage, GrowStage) and stage.given == {"panel", "evaluation"} and stage.trains is None
    assert recipe.panel_of("grow") == "useless" and recipe.parents_of("grow") == ()
    assert stage.summary(recipe) == "grow the panel of useless, 6 windows of 8 problems, at most 3 experts"
