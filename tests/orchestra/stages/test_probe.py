"""The probe on the tiny model, from the engine's answers to the picture in the report."""

import json
import shutil
import types

import finished_run
import pytest
import tiny
import torch
from rich.console import Console

from evals.carriers import Answer, Carrier, choose_places
from evals.probe import drawn_from
from evals.settings import Places, ProbeSettings, Truncation
from models.adapters import load_adapter, read_adapter, save_adapter
from models.base import load_base
from models.reference import Reference
from orchestra.config.faults import RecipeError
from orchestra.config.loading import load_recipe
from orchestra.config.recipe import Recipe
from orchestra.report.data import StageRecord, read_run
from orchestra.report.page import write_report
from orchestra.run.fingerprint import hashed_outputs
from orchestra.run.progress import Progress
from orchestra.stages.probe import said
from orchestra.work.context import StageContext
from orchestra.work.probing import _read, token_texts
from orchestra.work.resources import Resources

# a random policy's answers are all wrong, and its distributions no locks; so what is one is set wider
CLASSES = {"lock_top1": 0.6, "lock_nucleus": 40, "lock_tail": 0.3, "fork_top1": 0.5, "fork_tail": 0.6}
PROBE = {"kind": "probe", "name": "moved", "classes": CLASSES, "places": {"every": 4}}


@pytest.fixture(scope="module")
def run(tiny_path, tmp_path_factory):
    """(recipe, folder of a run with `explore` and `polish` finished); beside them `same`, which is `explore`
    under another name, and `still`, whose adapter adds nothing to the base."""
    folder = tmp_path_factory.mktemp("probe")
    finished = finished_run.recipe(tiny_path, folder)
    run = finished_run.write(finished, folder / "small-embedded")
    shutil.copytree(run / "01-explore", run / "same")
    save_adapter(tiny.policy(finished.model.base, noise=0), run / "still" / "adapter")
    made = finished.model_dump(mode="json", exclude_defaults=True)
    return made, run


def probed(run, folder, **keys):
    """(result, probe.json, what was said) of a probe of `polish`."""
    made, finished = run
    stage = {"parent": "polish", **PROBE, **keys}
    others = [{**made["stages"][0], "name": name} for name in ("same", "still")]
    recipe = Recipe.model_validate({**made, "stages": [*made["stages"], *others, stage]})
    folder.mkdir(exist_ok=True)
    folders = {"explore": "01-explore", "polish": "02-polish", "same": "same", "still": "still"}
    earlier = {name: finished / there for name, there in folders.items()}
    console = Console(record=True, width=400, file=open("/dev/null", "w"))  # noqa: SIM115
    context = StageContext(
        recipe, recipe.stage("moved"), folder, finished, earlier, recipe.parents_of("moved"), Resources(recipe),
        Progress(console),
    )  # fmt: skip
    result = recipe.stage("moved").run(context)
    return result, json.loads((folder / "probe.json").read_text()), console.export_text()


@pytest.fixture(scope="module")
def against_explore(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "03-moved"
    return folder, *probed(run, folder, against="explore")


def test_what_is_written_and_said(against_explore):
    folder, result, found, told = against_explore
    assert (found["before"], found["after"]) == ("explore", "polish")
    assert {one["writer"] for one in found["carriers"]} == {"before", "after"}
    assert all(place["carrier"] < len(found["carriers"]) for place in found["places"])
    counted = found["groups"]["all"]
    assert counted["places"] == len(found["places"]) == result.extra["places"]
    assert counted["carriers"] == len(found["carriers"]) == result.extra["carriers"]
    classes = [place["class"] for place in found["places"]]
    for name in ("lock", "fork"):
        assert result.extra[f"{name}_places"] == classes.count(name) > 0
    changed = [place["before"]["token"] != place["after"]["token"] for place in found["places"]]
    assert result.extra["top1_changed"] == pytest.approx(sum(changed) / len(changed)) and any(changed)
    moved = [one["after"]["kept"] - one["before"]["kept"] for one in found["places"] if one["class"] == "lock"]
    assert result.extra["lock_kept_change"] == pytest.approx(sum(moved) / len(moved))
    (line,) = [line for line in told.splitlines() if "places in" in line]
    assert f"{len(changed)} places in {counted['carriers']} carriers: {classes.count('lock')} locks (top-1" in line
    assert set(hashed_outputs(types.SimpleNamespace(gives=(), outputs=("probe.json",)), folder)) == {"probe.json"}


def test_the_numbers_are_those_of_the_policies(run, tiny_path, tokenizer):
    """A PEFT model of each stage alone, with all logits, says what a carrier's readings say; the token at place 0 is
    said by the prompt's last one."""
    finished = run[1]
    carrier = Carrier(Answer("before", "p", tuple(range(60, 70)), tuple(range(80, 92)), False), 0)
    settings = ProbeSettings(places=Places(every=1), truncation=Truncation(top_k=9))

    def said_by(policy):
        return tiny.next_token_logprobs(policy, [*carrier.answer.prompt, *carrier.answer.tokens])[9:21].exp()

    policy, other = (
        load_adapter(load_base(str(tiny_path), "nf4", "float32"), finished / stage / "adapter")
        for stage in ("02-polish", "01-explore")
    )
    after_NV, before_NV = said_by(policy), said_by(other)
    before = Reference("explore", read_adapter(finished / "01-explore" / "adapter"))
    before.replace(policy)
    readings = _read(policy, before, 3, carrier, tokenizer, settings, seed=0)
    assert [(one.carrier, one.place.at) for one in readings] == [(3, at) for at in range(12)]
    for side, p_NV in (("before", before_NV), ("after", after_NV)):
        views = [getattr(one, side) for one in readings]
        assert [view.token for view in views] == p_NV.argmax(-1).tolist()
        assert [view.top1 for view in views] == pytest.approx(p_NV.max(-1).values.tolist(), rel=1e-4)
        kept_N = torch.where(drawn_from(before_NV.log(), settings.truncation) > -torch.inf, p_NV, 0.0).sum(-1)
        assert [view.kept for view in views] == pytest.approx(kept_N.tolist(), rel=1e-4)
    assert (after_NV - before_NV).abs().max() > 0.05
    assert torch.equal(said_by(policy), after_NV), "the policy is left as it was"


def test_again_is_the_same_byte_for_byte(run, against_explore, tmp_path):
    folder, *_ = against_explore
    probed(run, tmp_path / "again", against="explore")
    assert (tmp_path / "again" / "probe.json").read_bytes() == (folder / "probe.json").read_bytes()


def test_equal_policies_have_not_moved(run, tmp_path):
    """Equal answers, and nothing changed anywhere."""
    result, found, _ = probed(run, tmp_path / "equal", parent="same", against="explore")
    assert all(place["before"] == place["after"] for place in found["places"])
    assert result.extra["top1_changed"] == result.extra["lock_entropy_change"] == 0
    assert found["groups"]["all"]["changed"]["low"] is None, "nothing differs, so nothing is known of its spread"
    assert len(found["carriers"]) % 2 == 0


def test_the_base_is_before_where_nothing_else_is_said(run, tmp_path):
    result, found, _ = probed(run, tmp_path / "base", parent="still")
    assert found["before"] == "base" and result.extra["lock_kept_change"] == result.extra["fork_pull_change"] == 0
    moved, found, _ = probed(run, tmp_path / "polish")
    assert found["before"] == "base" and abs(moved.extra["fork_pull_change"]) > 1e-3


def test_no_places_is_one_clear_line(run, tmp_path):
    with pytest.raises(ValueError, match=r"no places to compare policies at; lower places\.every") as error:
        probed(run, tmp_path / "none", places={"every": 1000, "random": 0})
    assert error.value.user_message


# told


def test_the_picture(run, against_explore, tmp_path):
    folder, result, found, _ = against_explore
    copy = shutil.copytree(run[1], tmp_path / "run")
    shutil.copytree(folder, copy / "03-moved")
    (copy / "03-moved" / "result.json").write_text(json.dumps(result.to_json()))
    record = next(stage for stage in read_run(copy).stages if stage.name == "moved")
    *charts, counts = record.parts
    assert [chart.title for chart in charts] == [
        "moved: kept mass", "moved: survivors", "moved: entropy", "moved: entropy of what is drawn",
        "moved: pull of self-distillation",
    ]  # fmt: skip
    change = found["groups"]["lock"]["numbers"]["kept"]["difference"]
    words = f"{change['value']:+.2g} [{change['low']:+.2g}, {change['high']:+.2g}]".replace("-", "−")
    assert words in charts[0].svg and "hollow explore, filled polish" in charts[0].note
    assert counts.tree["places"] == {name: group["places"] for name, group in found["groups"].items()}
    page = write_report(copy).read_text()
    assert all(chart.title in page for chart in charts) and "Places of moved" in page


def test_a_file_of_another_version_is_not_drawn():
    for found in ({}, {"groups": {}}, {"groups": {"all": {"name": "all"}}}):
        assert StageRecord("moved", "probe", outputs={"probe.json": found}).parts == ()


def test_without_locks_or_forks_it_says_so():
    group = types.SimpleNamespace(places=3, carriers=2)
    assert said({"all": group}) == "3 places in 2 carriers: no locks, no forks"


# asked


def test_a_policy_is_not_probed_against_itself(tmp_path):
    lines = [
        "name: r", "model: {base: embedded/student}", "problems: {train: embedded, test: embedded}", "stages:",
        "  - {name: first, kind: probe}",
        "  - {name: explore, kind: grpo, steps: 1, learning_rate: 1e-3}",
        "  - {name: second, kind: probe, against: explore}",
        "  - {name: third, kind: probe, against: explre}",
        "  - {name: fourth, kind: probe, against: first}",
        "  - {name: fifth, kind: probe, classes: {lock_top1: 0.3}}",
    ]  # fmt: skip
    (tmp_path / "r.yaml").write_text("\n".join(lines))
    with pytest.raises(RecipeError) as error:
        load_recipe(str(tmp_path / "r.yaml"), None)
    text = str(error.value)
    assert "stage 'first': against: 'base' is what is probed; name another stage" in text
    assert "stage 'second': against: 'explore' is what is probed" in text
    assert "'explre' is not an earlier stage (earlier: first, explore, second); did you mean 'explore'?" in text
    assert "'first' is a stage of kind probe, which gives no policy (possible: base, explore)" in text
    assert "lock_top1 (0.3) must be above fork_top1 (0.6)" in text and "stage 'fifth'" in text


def test_tokens_are_read_with_the_space_before_them(tokenizer):
    text = "<|user|>What is 12 - 5? But wait, let x = 7.\n\\boxed{7}"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert "".join(token_texts(tokenizer, ids)) == text
    assert token_texts(tokenizer, ids[:1]) == ["<|user|>"] and token_texts(tokenizer, []) == []

    class SentencePiece:
        """Leaves out the space with which a text begins, as Llama's does."""

        def decode(self, row):
            return "".join(row).lstrip(" ")

    assert token_texts(SentencePiece(), [" so", " wait", ",", " 7"]) == ["so", " wait", ",", " 7"]


def test_places_are_those_of_the_defaults_in_a_real_answer(tokenizer):
    """Of the shipped tokenizer: a box is near where the text has it."""
    ids = tokenizer("so 7 - 5 = 2\n\\boxed{2}", add_special_tokens=False).input_ids
    pieces = token_texts(tokenizer, ids)
    boxed = [place.at for place in choose_places(pieces, Places(near_box=0), 0) if "boxed" in place.kinds]
    assert ["boxed" in "".join(pieces[at : at + 2]) for at in boxed] == [True]
