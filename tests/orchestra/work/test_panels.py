"""Experts trained by stages, on the tiny model: where each starts, what stays as it is, what a killed stage does again,
and what is refused before anything is written."""

import json
import shutil
from itertools import pairwise

import pytest
import solved

from models.adapters import adapter_sha256, adapter_tensors, read_adapter
from models.engines.serving import Served
from models.experts import PanelError, expert_folder, panel_json, parsed, read_panel
from orchestra.config.faults import UserError
from orchestra.work import imitating, optimising, panels

DOMAINS = ("Sums", "Word & co")
SFT = {"kind": "sft", "steps": 2, "batch_size": 2, "learning_rate": 1e-2, "preflight": False, "save_steps": 1}
GRPO = {"kind": "grpo", "steps": 1, "learning_rate": 1e-2, "prompts_per_step": 1, "beta": 0.1,
        "mask_zero_variance_kl": False}  # fmt: skip
CHAIN = (
    {"name": "experts", "expert": "each", **SFT},
    {"name": "more", "expert": "sums", "domains": ["Sums"], **SFT},
    {"name": "other", "expert": "small", "lora": {"rank": 2}, **SFT},
    {"name": "copy", "expert": "late", "from": "word-co", **SFT},
    {"name": "rein", "expert": "sums", "domains": ["Sums"], "reference": "experts", **GRPO},
    {"name": "anew", "expert": "each", "reference": "start", **GRPO},
)


def problems(domains=DOMAINS):
    return [line | {"domain": domains[at % len(domains)]} for at, line in enumerate(solved.rows(4))]


@pytest.fixture(scope="module")
def make(tiny_path, tmp_path_factory):
    """Makes the recipe of these stages; the sft stages imitate the file of problems that grpo stages ask."""

    def made(stages, lines=None):
        folder = tmp_path_factory.mktemp("panel")
        data = solved.written(folder / "train.jsonl", lines or problems())
        test = [{**line, "domain": DOMAINS[at]} for at, line in enumerate(solved.held_out(None))]
        stages = [{**stage, **({"data": data} if stage["kind"] == "sft" else {})} for stage in stages]
        recipe = solved.recipe(
            tiny_path, folder, stages, test=test, evaluate={"perplexity": 0, "greedy": False},
            problems={"train": data, "test": str(folder / "test.jsonl")},
        )  # fmt: skip
        return recipe, folder

    return made


class Watching:
    """What each training began with and was held to, and what the engine was given first."""

    def __init__(self, patch):
        self.starts, self.references, self.pushed, self.now = {}, {}, {}, ""
        for module, name in ((imitating, "train_sft"), (optimising, "train_grpo")):
            patch.setattr(module, name, self._noting(getattr(module, name)))
        push = Served.push

        def noting_push(served, model, step=None, adapter="default"):
            if adapter == "default" and step is not None:
                self.pushed.setdefault(self.now, []).append(adapter_sha256(adapter_tensors(model)))
            push(served, model, step, adapter)

        patch.setattr(Served, "push", noting_push)

    def _noting(self, train):
        def noted(policy, *args, **named):
            folder = next(one for one in args if hasattr(one, "rglob"))
            self.now = folder.name if folder.parent.name != "each" else f"{folder.parent.parent.name}/{folder.name}"
            self.starts[self.now] = {name: x.clone() for name, x in adapter_tensors(policy).items()}
            self.references[self.now] = named.get("reference")
            return train(policy, *args, **named)

        return noted


@pytest.fixture(scope="module")
def chain(make, engine):
    """(recipe, run's folder, results, what was watched) of all stages of the chain."""
    recipe, folder = make(CHAIN)
    results, run = {}, folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        seen = Watching(patch)
        for stage in recipe.stages:
            context = solved.context(recipe, stage.name, run, engine)
            results[stage.name] = stage.run(context)
            (context.folder / "result.json").write_text(json.dumps(results[stage.name].to_json()))
    return recipe, run, results, seen


def panel_of(run, stage):
    return read_panel(run / stage / "panel")


def digest(folder):
    return adapter_sha256(read_adapter(folder))


def test_each_domain_gets_an_expert(chain):
    _, run, results, _ = chain
    panel = panel_of(run, "experts")
    assert [(one.name, *one.domains, one.lineage.stage, one.lineage.parent) for one in panel.experts] == [
        ("sums", "Sums", "experts/sums", "base"), ("word-co", "Word & co", "experts/word-co", "base"),
    ]  # fmt: skip
    assert {(one.record.problems, one.record.source.rpartition("/")[2]) for one in panel.experts} == {(2, "test.jsonl")}
    assert results["experts"].steps == 4 and results["experts"].extra["experts"] == 2
    lines = [json.loads(line) for line in (run / "experts" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["expert"]) for line in lines] == [
        (1, "sums"), (2, "sums"), (3, "word-co"), (4, "word-co"),
    ]  # fmt: skip
    assert results["experts"].accuracy == json.loads((run / "experts" / "evaluation.json").read_text())["sampled"][
        "accuracy"]["estimate"]  # fmt: skip


def test_experts_of_one_stage_have_seeds_of_their_own(chain):
    """Their A matrices are drawn apart; B is zero, as in every new adapter."""
    _, _, _, seen = chain
    one, two = (seen.starts[f"experts/{name}"] for name in ("sums", "word-co"))
    assert all(not x.any() for name, x in {**one, **two}.items() if "lora_B" in name)
    assert not any(one[name].equal(two[name]) for name in one if "lora_A" in name)


@pytest.mark.parametrize(
    ("trained", "before", "named"),
    [
        ("more", "experts", "sums"),
        ("copy", "other", "word-co"),
        ("rein", "copy", "sums"),
        ("anew/sums", "rein", "sums"),
        ("anew/word-co", "rein", "word-co"),
    ],
)
def test_an_expert_starts_from_what_the_panel_has(chain, trained, before, named):
    """sft upon sft, a new one from another, grpo upon both: tensor for tensor."""
    _, run, _, seen = chain
    assert adapter_sha256(seen.starts[trained]) == digest(expert_folder(run / before / "panel", named))


def test_training_one_changes_no_other(chain):
    """On disk, and in what panel.json says; order and records included."""
    recipe, run, _, _ = chain
    names = [stage.name for stage in recipe.stages]
    for before, after in pairwise(names):
        old, new = panel_of(run, before), panel_of(run, after)
        trained = {"sums", "word-co"} if after == "anew" else {recipe.stage(after).expert}
        assert new.names[: len(old.names)] == old.names
        for name in old.names:
            same = [
                (expert_folder(run / stage / "panel", name) / file).read_bytes()
                for file in old.expert(name).files for stage in (before, after)
            ]  # fmt: skip
            untouched = old.expert(name) == new.expert(name) and same[::2] == same[1::2]
            assert untouched == (name not in trained), (after, name)
        assert trained <= set(new.names)


def test_ranks_may_differ_and_a_new_one_from_another_has_its_rank(chain):
    _, run, _, _ = chain
    panel = panel_of(run, "anew")
    assert {one.name: (one.rank, one.lineage.parent) for one in panel.experts} == {
        "sums": (4, "base"), "word-co": (4, "base"), "small": (2, "base"), "late": (4, "word-co"),
    }  # fmt: skip


def test_rollouts_are_those_of_the_expert_that_is_trained(chain):
    """What is served before the first step is the panel's own file of it."""
    _, run, _, seen = chain
    assert seen.pushed["rein"][0] == digest(expert_folder(run / "copy" / "panel", "sums"))
    for name in ("sums", "word-co"):
        assert seen.pushed[f"anew/{name}"][0] == digest(expert_folder(run / "rein" / "panel", name))


def test_references_are_the_experts_own(chain):
    """A stage that trained each expert stands for the same expert's policy; `start` is each one's own."""
    _, run, _, seen = chain
    wanted = {
        "rein": expert_folder(run / "experts" / "panel", "sums"),
        "anew/sums": expert_folder(run / "rein" / "panel", "sums"),
        "anew/word-co": expert_folder(run / "rein" / "panel", "word-co"),
    }
    assert {name: adapter_sha256(seen.references[name].tensors) for name in wanted} == {
        name: digest(folder) for name, folder in wanted.items()
    }
    # sums has gone on since `experts`; at the start of `anew` policy and reference are the same
    first = {name: json.loads((run / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("rein", "anew")}
    assert first["rein"]["kl"] > 0 and first["anew"]["kl"] == 0


def test_kl_to_the_sft_policy_is_to_the_experts_own(chain):
    """`more` is the first sft stage of sums alone, and its own; small and late have none before them."""
    _, _, results, _ = chain
    assert {name for name, result in results.items() if "kl_to_sft" in result.extra} == {"rein"}


@pytest.mark.slow
def test_an_expert_goes_on_under_another_name(make, engine):
    """From the same weights; KL is measured to the policy that imitated, whose stage it is compared with."""
    renamed = {"name": "named", "kind": "panel", "change": "rename", "expert": "sums", "to": "totals"}
    then = {**GRPO, "name": "then", "expert": "totals", "reference": "base", "steps": 2}
    recipe, folder = make(({"name": "first", "expert": "sums", **SFT}, renamed, then))
    with pytest.MonkeyPatch.context() as patch:
        seen = Watching(patch)
        for stage in recipe.stages:
            context = solved.context(recipe, stage.name, folder / "run", engine)
            result = stage.run(context)
            (context.folder / "result.json").write_text(json.dumps(result.to_json()))
    assert adapter_sha256(seen.starts["then"]) == digest(expert_folder(folder / "run" / "first" / "panel", "sums"))
    assert (panel_of(folder / "run", "then").names, recipe.parents_of("then")) == (("totals",), ("first",))
    assert result.extra["kl_to_sft"] > 0 and result.extra["structure_since"] == "named"


# a killed stage


def outcome(place):
    files = [path for path in sorted(place.rglob("*")) if path.suffix == ".safetensors" or path.name == "panel.json"]
    return {str(path.relative_to(place)): path.read_bytes() for path in files if "checkpoints" not in path.parts}


@pytest.mark.slow
@pytest.mark.parametrize(("killed_in", "trained_again"), [("word-co", ["word-co"]), ("panel", [])])
def test_a_killed_stage_does_not_train_finished_experts_again(
    chain, engine, tmp_path, monkeypatch, killed_in, trained_again
):
    """It ends with the same bytes and the same result; killed before an expert's training, or before the panel's
    evaluation."""
    recipe, run, results, _ = chain
    train, trained = imitating.train_sft, []

    def noting(policy, tokenizer, prompts, completions, settings, folder, **named):
        trained.append(folder.name)
        if folder.name == killed_in:
            raise KeyboardInterrupt
        return train(policy, tokenizer, prompts, completions, settings, folder, **named)

    def stopping(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(imitating, "train_sft", noting)
    context = solved.context(recipe, "experts", tmp_path, engine)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if killed_in == "panel":
            patch.setattr(panels, "evaluated_routed", stopping)
        context.stage.run(context)
    killed_in = ""
    trained.clear()
    again = solved.context(recipe, "experts", tmp_path, engine)
    result = again.stage.run(again)
    assert trained == trained_again
    assert outcome(again.folder) == outcome(run / "experts")
    assert result.accuracy == results["experts"].accuracy and result.extra == results["experts"].extra


# the check itself


def copied(chain, tmp_path, *stages):
    """The chain's folders of these stages, of their own: files of the panel may be changed."""
    _, run, _, _ = chain
    for stage in stages:
        shutil.copytree(run / stage, tmp_path / stage)
    return tmp_path


def test_training_that_changes_another_experts_file_is_caught(chain, engine, tmp_path, monkeypatch):
    recipe, train = chain[0], imitating.train_sft
    run = copied(chain, tmp_path, "experts")
    victim = expert_folder(run / "experts" / "panel", "word-co") / "adapter_model.safetensors"

    def touching(*args, **named):
        data = bytearray(victim.read_bytes())
        data[-1] ^= 1
        victim.write_bytes(data)
        return train(*args, **named)

    monkeypatch.setattr(imitating, "train_sft", touching)
    context = solved.context(recipe, "more", run, engine)
    with pytest.raises(PanelError, match=r"expert 'word-co': .*word-co/adapter_model.safetensors is not what panel"):
        context.stage.run(context)
    assert not (context.folder / "panel").exists()


def test_a_panel_that_is_written_otherwise_is_caught(chain, engine, tmp_path, monkeypatch):
    """As if a change of the program let another expert's files into the new panel."""
    recipe, write = chain[0], panels.write_panel
    run = copied(chain, tmp_path, "experts")

    def swapping(folder, panel, sources):
        other = panel.expert("sums").files
        experts = tuple(panels.replace(one, files=other) for one in panel.experts)
        return write(folder, panels.replace(panel, experts=experts), {name: sources["sums"] for name in sources})

    monkeypatch.setattr(panels, "write_panel", swapping)
    context = solved.context(recipe, "more", run, engine)
    with pytest.raises(PanelError, match="expert 'word-co' was not trained, but its files are not what they were"):
        context.stage.run(context)


# bad input


def edited(run):
    path = run / "experts" / "panel" / "panel.json"
    path.write_text(path.read_text().replace('"rank": 4', '"rank": 4.5', 1))
    return r"panel.json: experts.0.rank: .*; the file is not meant to be edited; put back what it was$"


def exchanged(run):
    path = run / "experts" / "panel" / "panel.json"
    files = [one.files["adapter_model.safetensors"] for one in parsed(path.parent).experts]
    path.write_text(path.read_text().replace(files[0], files[1]))
    return r"expert 'sums': .* is not what panel.json says \(edited, or cut off\); put it back"


def missing(run):
    (expert_folder(run / "experts" / "panel", "word-co") / "adapter_model.safetensors").unlink()
    return r"expert 'word-co': .*word-co/adapter_model.safetensors is missing; put it back"


def cut(run):
    path = expert_folder(run / "experts" / "panel", "sums") / "adapter_model.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-10])
    return r"expert 'sums': .* is not what panel.json says \(edited, or cut off\); put it back"


def of_another_base(run):
    folder = run / "experts" / "panel"
    panel = panels.replace(parsed(folder), base="some/other")
    (folder / "panel.json").write_bytes(panel_json(panel))
    return r"is one on 'some/other', and model.base is '.*': experts work on their own base only"


@pytest.mark.parametrize("spoil", [edited, exchanged, missing, cut, of_another_base])
@pytest.mark.parametrize("stage", ["more", "anew", "choose"])
def test_a_spoiled_panel_is_told_before_anything_is_done(make, chain, engine, tmp_path, spoil, stage):
    route = {"name": "choose", "kind": "route"}
    recipe, _ = make((CHAIN[0], route if stage == "choose" else {**next(o for o in CHAIN if o["name"] == stage)}))
    run = copied(chain, tmp_path, "experts")
    said = spoil(run)
    context = solved.context(recipe.model_copy(update={"model": chain[0].model}), stage, run, engine)
    before = outcome(run)
    with pytest.raises(PanelError, match=said) as raised:
        context.stage.run(context)
    assert "\n" not in str(raised.value) and raised.value.user_message
    assert outcome(run) == before and not list(context.folder.iterdir())


def test_what_a_new_expert_is_said_to_be_is_not_forgotten_of_one_that_is_there(make, chain, engine, tmp_path):
    """Which ones `each` made is known when it has run: told before any is trained."""
    run = copied(chain, tmp_path, "experts")
    for keys, said in (
        ({"expert": "sums", "lora": {"rank": 2}}, "lora: only of a new expert; 'sums' is there already"),
        ({"expert": "each", "from": "base"}, "from: only of a new expert; 'sums' is there already, from 'experts'"),
    ):
        recipe, _ = make((CHAIN[0], {"name": "again", **SFT, **keys}))
        context = solved.context(recipe, "again", run, engine)
        with pytest.raises(UserError, match=f"^{said}"):
            context.stage.run(context)
        assert not list(context.folder.iterdir())
    recipe, _ = make((CHAIN[0], {"name": "again", **SFT, "expert": "each", "domains": ["Sums"], "from": "sum"}))
    context = solved.context(recipe, "again", tmp_path / "none", engine)
    with pytest.raises(KeyError):
        context.start  # noqa: B018  (there is nothing before it)


def test_a_reference_without_the_expert_is_one_message(make, chain, engine, tmp_path):
    run = copied(chain, tmp_path, "experts")
    recipe, _ = make((CHAIN[0], {"name": "rein", **GRPO, "expert": "fresh", "reference": "experts"}))
    context = solved.context(recipe, "rein", run, engine)
    said = r"^'experts' has no policy of expert 'fresh', which was not there yet \(experts: sums, word-co\)$"
    with pytest.raises(PanelError, match=said):
        context.stage.run(context)


def test_a_domain_without_problems_is_told_before_the_run(make):
    for stage in ({"name": "a", **SFT, "expert": "each"}, {"name": "a", **GRPO, "expert": "x"}):
        recipe, _ = make(({**stage, "domains": ["Sums", "Word & c"]},))
        said = (
            r"^domains: 'Word & c' has no problems in the data of 'a' \(there are: Sums, Word & co\); did you mean "
            "'Word & co'\\?$"
        )
        with pytest.raises(UserError, match=said):
            recipe.stages[0].ready(recipe)
    recipe, _ = make(({"name": "a", **SFT, "expert": "each", "domains": ["Sums"]},))
    recipe.stages[0].ready(recipe)


def test_data_of_one_domain_gives_one_expert_and_it_is_said(make, engine):
    """Problems that say none have the name of what they are all about."""
    recipe, folder = make(({"name": "a", **SFT, "expert": "each"},), lines=solved.rows(4))
    context = solved.context(recipe, "a", folder / "run", engine)
    result = context.stage.run(context)
    assert panel_of(folder / "run", "a").names == ("math",) and result.extra["experts"] == 1
    assert "    all of the data is of one domain, 'math': one expert" in solved.said(context)
