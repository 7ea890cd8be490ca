"""Where an expert's training starts: at what the panel says of it, or not at all."""

import json
import re
import shutil
from dataclasses import replace

import grown
import pytest
import solved
from safetensors.torch import load_file

from evals.evaluate import Evaluation
from evals.statistics import accuracy
from models.expert_files import MOMENTS
from models.experts import Panel, PanelError, expert_folder, expert_of, read_panel, write_panel
from orchestra.work import imitating, optimising, policies, starting

SFT = {"kind": "sft", "steps": 1, "batch_size": 2, "learning_rate": 1e-2, "warmup_ratio": 0, "preflight": False}
GRPO = {"kind": "grpo", "steps": 1, "learning_rate": 1e-2, "prompts_per_step": 1}
PROBLEMS = 40
HIGH = {"accuracy": 0.9, "low": 0.8, "high": 0.96}


@pytest.fixture(scope="module")
def make(tiny_path, tmp_path_factory):
    """Makes a recipe whose first stage gives the expert `one`; the others go on."""
    folder = tmp_path_factory.mktemp("starting")
    data = solved.written(folder / "train.jsonl", grown.problems(8))

    def made(*stages, **problems):
        first = {"name": "first", "expert": "one", **SFT}
        keys = [{**one, **({"data": data} if one["kind"] == "sft" else {})} for one in (first, *stages)]
        return solved.recipe(
            tiny_path, folder, keys, test=grown.problems(PROBLEMS, 100),
            evaluate={"perplexity": 0, "samples": 2, "greedy": True, "max_completion_tokens": 6},
            problems={"train": data, "test": str(folder / "test.jsonl")} | problems,
        )  # fmt: skip

    return made


@pytest.fixture(scope="module")
def first(make, tmp_path_factory, engine):
    """The run's folder with the expert."""
    run = tmp_path_factory.mktemp("first")
    context = solved.context(make(), "first", run, engine)
    context.stage.run(context)
    return run


def recorded(run, stage, **changes):
    """The panel of a stage with another record of each expert."""
    folder = run / stage / "panel"
    old = read_panel(folder)
    experts = tuple(replace(one, record=replace(one.record, **changes)) for one in old.experts)
    write_panel(folder, replace(old, experts=experts))


@pytest.fixture
def run(first, tmp_path):
    """A folder of its own, in which a stage may go on."""
    shutil.copytree(first / "first", tmp_path / "first")
    return tmp_path


class Begun(Exception):
    """Training has begun."""


def begin(recipe, stage, run, engine, *, train=False, answer=None):
    """(what was asked before training, the result or what was raised).

    Args:
        train: whether training is more than begun; answer: what the expert answers, if not what it does.
    """
    context = solved.context(recipe, stage, run, engine)
    asked, answered = [], starting.answered

    def noting(context, asking, doing, **named):
        asked.append((doing, len(asking.problems), named["settings"].greedy))
        return answer or answered(context, asking, doing, **named)

    def begun(*_, **__):
        raise Begun

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starting, "answered", noting)
        patch.setattr(policies, "free_memory", lambda: None)
        if not train:
            patch.setattr(imitating, "train_sft", begun)
            patch.setattr(optimising, "train_grpo", begun)
        try:
            return asked, context.stage.run(context)
        except (PanelError, Begun) as raised:
            return asked, raised


@pytest.mark.parametrize("kind", [SFT, GRPO], ids=["sft", "grpo"])
def test_a_sound_expert_is_asked_once_and_trained(make, run, engine, kind):
    """Its answers are those that it was recorded with. A run that goes on asks only for what is new."""
    recipe = make({"name": "more", "expert": "one", **kind})
    asked, result = begin(recipe, "more", run, engine)
    assert asked == [("check the start", PROBLEMS, False)] and isinstance(result, Begun)
    start, before = (
        Evaluation.from_json(path.read_text())
        for path in (run / "more" / "start.json", run / "first" / "evaluation.json")
    )
    assert start.sampled.correct == before.sampled.correct and start.sampled.lengths == before.sampled.lengths
    asked, result = begin(recipe, "more", run, engine, train=True)
    assert asked == [] and result.steps == 1 and read_panel(run / "more" / "panel").names == ("one",)
    asked_in_the_end = Evaluation.from_json((run / "more" / "evaluation.json").read_text())
    assert result.tokens > start.tokens + asked_in_the_end.tokens, "those of the start count"


@pytest.mark.parametrize(
    "keys",
    [{"expert": "one", **SFT}, {"expert": "one", **GRPO}, {"expert": "two", "from": "one", **SFT}],
    ids=["sft", "grpo", "from"],
)
def test_one_that_does_worse_than_recorded_is_refused_before_training(make, run, engine, keys):
    """The file is right, and so is its hash, but what was recorded is another model's: 90 % of 40 problems, and these
    two random layers solve none."""
    recorded(run, "first", **HIGH)
    before = {path: path.read_bytes() for path in (run / "first").rglob("*") if path.is_file()}
    recipe = make({"name": "more", **keys})
    asked, error = begin(recipe, "more", run, engine)
    assert isinstance(error, PanelError) and error.user_message and len(asked) == 1
    assert str(error).startswith(
        "stage 'more' has not begun: panel 'first/one' starts at an accuracy of 0.00 % (0.00 to "
    )
    assert "and its record says 90.00 % (80.00 to 96.00): 90.00 points lower" in str(error)
    assert [path.name for path in (run / "more").iterdir()] == ["start.json"]
    assert before == {path: path.read_bytes() for path in before}
    asked, again = begin(recipe, "more", run, engine)
    assert asked == [] and str(again) == str(error)


def test_each_of_several_is_checked(make, run, engine):
    """Of `each`, the expert that is there by the name of a domain; a new one has nothing to be compared with."""
    folder, own = run / "first" / "panel", run / "own"
    shutil.copytree(expert_folder(folder, "one"), own)
    old = read_panel(folder)
    shutil.rmtree(folder)
    record = replace(old.expert("one").record, **HIGH)
    write_panel(folder, replace(old, experts=(replace(old.expert("one"), name="sums", record=record),)), {"sums": own})
    asked, error = begin(make({"name": "more", "expert": "each", **SFT}), "more", run, engine)
    assert len(asked) == 1
    assert str(error).startswith("stage 'more/sums' has not begun: panel 'first/sums' starts at an accuracy of 0.00 %")
    words = make({"name": "more", "expert": "each", "domains": ["words"], **SFT})
    asked, begun = begin(words, "more", run, engine)
    assert asked == [] and isinstance(begun, Begun)


@pytest.mark.parametrize(
    ("changes", "problems"),
    [({"source": "elsewhere"}, {}), ({"problems": PROBLEMS - 1}, {}), ({}, {"test_limit": PROBLEMS - 1})],
    ids=["source", "count", "limit"],
)
def test_a_record_of_other_problems_says_nothing(make, run, engine, changes, problems):
    recorded(run, "first", **HIGH, **changes)
    asked, begun = begin(make({"name": "more", "expert": "one", **SFT}, **problems), "more", run, engine)
    assert asked == [] and isinstance(begun, Begun) and not (run / "more" / "start.json").exists()


def test_a_new_expert_a_single_policy_and_one_that_was_never_measured_have_no_record(make, run, engine):
    for keys in ({"expert": "two", **SFT}, SFT, {"expert": "two", **GRPO}):
        asked, begun = begin(make({"name": "more", **keys}), "more", run, engine)
        assert asked == [] and isinstance(begun, Begun)
    folder = run / "first" / "panel"
    old = read_panel(folder)
    write_panel(folder, replace(old, experts=(replace(old.expert("one"), record=None),)))
    asked, begun = begin(make({"name": "more", "expert": "one", **SFT}), "more", run, engine)
    assert asked == [] and isinstance(begun, Begun)


def graded(found, share):
    """The same problems; of the first so many every sample is right, of the others none."""
    count = round(share * len(found.problem_ids))
    correct = tuple((int(at < count),) * 2 for at in range(len(found.problem_ids)))
    return replace(found, sampled=replace(found.sampled, correct=correct, accuracy=accuracy(correct, 0.95)))


@pytest.mark.parametrize("where", ["own", "route", "each", "renamed"])
@pytest.mark.parametrize("paired", [True, False])
def test_the_same_problems_are_compared_one_by_one(make, run, engine, where, paired):
    """28 of 40 right then, 22 of them now: 15 points, of which the intervals of two samples of 40 problems would say
    that they may be chance, and six problems lost and none won say that they are not."""
    found = Evaluation.from_json((run / "first" / "evaluation.json").read_text())
    then, now = graded(found, 0.7), graded(found, 0.55)
    one = then.sampled.accuracy
    recorded(run, "first", accuracy=one.estimate, low=one.low, high=one.high)
    between, expert = (), "one"
    place = run / "first" / "evaluation.json"
    if where == "route":
        between = ({"name": "middle", "kind": "route"},)
        shutil.copytree(run / "first" / "panel", run / "middle" / "panel")
        place = run / "middle" / "answers" / "second-one.json"
    elif where == "each":
        place = run / "first" / "each" / "one" / "evaluation.json"
    elif where == "renamed":
        between, expert = ({"name": "named", "kind": "panel", "change": "rename", "expert": "one", "to": "two"},), "two"
        named = solved.context(make(*between), "named", run, engine)
        named.stage.run(named)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text((then if paired else found).to_json())
    recipe = make(*between, {"name": "more", "expert": expert, **SFT})
    _, raised = begin(recipe, "more", run, engine, answer=now)
    assert isinstance(raised, PanelError if paired else Begun)
    assert not paired or "15.00 points lower" in str(raised)


# the optimizer


def begun_with(recipe, run, engine):
    """The folder of moments that the training of `more` is given, or the error."""
    given = []

    def begun(*_, moments, **__):
        given.append(moments)
        raise Begun

    context = solved.context(recipe, "more", run, engine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policies, "free_memory", lambda: None)
        for module, name in ((imitating, "train_sft"), (optimising, "train_grpo")):
            patch.setattr(module, name, begun)
        with pytest.raises(Begun):
            context.stage.run(context)
    return given[0]


@pytest.mark.parametrize("kind", [SFT, GRPO], ids=["sft", "grpo"])
def test_an_optimizer_is_kept_where_that_is_asked(make, run, engine, kind):
    own = expert_folder(run / "first" / "panel", "one")
    for keys, folder in (({}, None), ({"optimizer": "fresh"}, None), ({"optimizer": "kept"}, own)):
        recipe = make({"name": "more", "expert": "one", **kind, **keys})
        assert begun_with(recipe, run, engine) == folder
    recipe = make({"name": "more", "expert": "two", "from": "one", "optimizer": "kept", **kind})
    assert begun_with(recipe, run, engine) == own


@pytest.mark.parametrize("kind", [SFT, GRPO], ids=["sft", "grpo"])
@pytest.mark.parametrize(("keys", "steps"), [({"optimizer": "kept"}, 2), ({}, 1)], ids=["kept", "fresh"])
def test_moments_count_the_steps_since_they_were_fresh(make, run, engine, kind, keys, steps):
    """And are a file of the expert like its others."""
    _, result = begin(make({"name": "more", "expert": "one", **kind, **keys}), "more", run, engine, train=True)
    panel, folder = read_panel(run / "more" / "panel"), expert_folder(run / "more" / "panel", "one")
    assert set(panel.expert("one").files) == {"adapter_config.json", "adapter_model.safetensors", MOMENTS}
    found = load_file(folder / MOMENTS)
    assert {float(x) for name, x in found.items() if name.endswith(".step")} == {steps} and result.steps == 1


def test_moments_stay_the_same_while_another_expert_is_trained(make, run, engine):
    begin(make({"name": "more", "expert": "two", **SFT}), "more", run, engine, train=True)
    one, two = (expert_folder(run / stage / "panel", "one") / MOMENTS for stage in ("first", "more"))
    assert one.read_bytes() == two.read_bytes()
    two.write_bytes(b"")
    with pytest.raises(PanelError, match=r"expert 'one': .*one/optimizer.safetensors is not what panel.json says"):
        read_panel(run / "more" / "panel")


def test_the_moments_of_the_last_step_are_none_of_an_earlier_one(make, run, engine):
    """Of two steps that solve as little as each other the first one is kept."""
    swept = {"evaluate_every": 1, "keep": "best", "steps": 2}
    recipe = make({"name": "more", "expert": "one", **SFT, **swept}, validation=str(run / "validation.jsonl"))
    solved.written(run / "validation.jsonl", grown.problems(2, 300))
    _, result = begin(recipe, "more", run, engine, train=True)
    assert result.extra["kept_step"] == 1
    assert MOMENTS not in read_panel(run / "more" / "panel").expert("one").files


def test_without_moments_nothing_can_be_kept(make, run, engine):
    folder, own = run / "first" / "panel", run / "own"
    shutil.copytree(expert_folder(folder, "one"), own)
    (own / MOMENTS).unlink()
    old = read_panel(folder).expert("one")
    shutil.rmtree(folder)
    bare = expert_of(own, "one", old.domains, old.lineage)
    write_panel(folder, Panel(make().model.base, "", (bare,)), {"one": own})
    said = (
        r"^optimizer: kept: 'first/one' has no moments to go on with \(.*optimizer.safetensors is missing: the expert "
        r"was added from elsewhere, or `keep: best` chose a step before the last\); write `optimizer: fresh`$"
    )
    for kind in (SFT, GRPO):
        recipe = make({"name": "more", "expert": "one", "optimizer": "kept", **kind})
        asked, error = begin(recipe, "more", run, engine)
        assert asked == [] and re.match(said, str(error)) and not list((run / "more").iterdir())
    recipe = make({"name": "more", "expert": "each", "optimizer": "kept", **SFT})
    _, error = begin(recipe, "more", run, engine)
    assert str(error) == "optimizer: kept: expert 'sums' is new; write `optimizer: fresh`"


def test_an_optimizer_is_only_of_an_expert_kept(make):
    with pytest.raises(ValueError, match="optimizer: only of an expert is it kept: say which one with `expert: name`"):
        make({"name": "more", "optimizer": "kept", **SFT})


@pytest.mark.slow
def test_a_sound_adapter_on_another_base_is_refused(tmp_path):
    """The shipped student with its layers' weights mixed up: the adapter's file and hash are right all the same."""
    import torch
    from safetensors.torch import load_file, save_file

    from models.engines.start import Capacity, start_engine
    from models.paths import model_path
    from models.settings import Serving
    from orchestra.config.recipe import Recipe

    other = shutil.copytree(model_path("embedded/teacher"), tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name, x in tensors.items():
        if "mlp" in name:
            tensors[name] = x + x.std() * torch.randn(x.shape, generator=generator).to(x.dtype)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    keys = {"kind": "sft", "data": "traces", "steps": 2, "batch_size": 4, "learning_rate": 1e-4, "preflight": False,
            "expert": "one"}  # fmt: skip

    def context(base, stage):
        recipe = Recipe.model_validate(
            {
                "name": "mini",
                "model": {"base": base, "lora": {"rank": 4, "alpha": 8.0}},
                "problems": {"train": "embedded", "test": "embedded", "train_limit": 40, "test_limit": 40},
                "rollouts": {"engine": "transformers", "max_completion_tokens": 64},
                "evaluate": {"perplexity": 0, "greedy": False, "samples": 1},
                "stages": [
                    {"name": "traces", "kind": "solutions"},
                    {"name": "first", **keys},
                    {"name": "more", **keys},
                ],
            }
        )
        engine = start_engine(base, Serving(engine="transformers", dtype="float32"), Capacity(192, 64))
        return solved.context(recipe, stage, tmp_path / "run", engine)

    for stage in ("traces", "first"):
        sound = context("embedded/teacher", stage)
        result = sound.stage.run(sound)
    assert result.accuracy > 0.5
    spoilt = context(str(other), "more")
    with pytest.raises(PanelError, match="stage 'more' has not begun: panel 'first/one' starts at an accuracy of"):
        spoilt.stage.run(spoilt)
    assert json.loads((spoilt.folder / "start.json").read_text())["sampled"]["accuracy"]["estimate"] < 0.3
    sound = context("embedded/teacher", "more")
    shutil.rmtree(sound.folder)
    sound.folder.mkdir()
    assert sound.stage.run(sound).steps == 2
