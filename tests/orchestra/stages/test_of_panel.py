"""What becomes of a panel, as a user runs it: merged, mixed, exported; what stands in the way is said beforehand."""

import json
import shutil
from dataclasses import replace

import pytest
import tiny
from peft import PeftModel
from pydantic import ValidationError
from rich.console import Console

from evals.evaluate import Evaluation, compare
from models.base import load_base
from models.experts import PanelError, RemovalRecord, expert_folder, read_panel
from models.structure import structure_in
from orchestra.cli_export import export_run
from orchestra.config.faults import UserError
from orchestra.config.recipe import Recipe
from orchestra.report.data import read_run
from orchestra.run.gates import NO_GO
from orchestra.run.progress import Progress
from orchestra.run.runner import Run
from orchestra.work.exporting_panel import export_panel
from rewards.domain import get_domain

EXPERTS = {"name": "experts", "kind": "sft", "data": "traces", "steps": 1, "learning_rate": 1e-2}
EACH = EXPERTS | {"expert": "each"}
ONE, OTHER = ({**EXPERTS, "name": name, "expert": name} for name in ("one", "other"))
PLAIN = {"name": "plain", "kind": "grpo", "steps": 1, "learning_rate": 1e-3}
ROUTED = {"name": "routed", "kind": "route"}
MERGE = {"name": "even", "kind": "merge", "merge": "linear"}
RELEASE = {"name": "release", "kind": "export"}


def recipe(*stages):
    traces = {"name": "traces", "kind": "distill", "teacher": "embedded/teacher"}
    return Recipe.model_validate(
        {
            "name": "panels",
            "model": {"base": "embedded/student"},
            "problems": {"train": "embedded", "test": "embedded"},
            "stages": [traces, *stages],
        }
    )


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([MERGE], "kind: there is no panel before it; train experts first"),
        ([PLAIN, MERGE], "kind: there is no panel before it"),
        ([EACH, MERGE | {"parent": "base"}], "parent: a merge stage takes the last panel before it, not 'base'"),
        ([ONE, MERGE], "'one', which gives the last panel before it, is evaluated with its expert 'one' alone; put a"),
        ([EACH, MERGE | {"density": 0.2}], "density: 0.2 does not apply: `merge: linear` drops nothing; leave it out"),
        ([EACH, MERGE | {"merge": "best", "rank": 4}], "rank: 4 does not apply: `merge: best` takes an expert as it"),
        ([EACH, {"name": "in", "kind": "mixture", "parent": "base"}], "a mixture stage takes the last panel before"),
        # an export of what nobody meant
        ([EACH, RELEASE], "'experts' gives a panel of experts, and no stage a single policy; put a `merge` stage"),
        ([ONE, OTHER, RELEASE], "it would be other's expert other alone, and not the panel of 'other'; put a `merge`"),
        ([ONE, OTHER, RELEASE], "or `parent: other` if that is meant"),
        ([PLAIN, EACH, RELEASE], "it would be plain alone, and not the panel of 'experts'"),
        ([ONE, ROUTED, RELEASE], "it would be one's expert one alone, and not the panel of 'routed'"),
        ([PLAIN, RELEASE | {"what": "panel"}], "what: panel: there is no panel before it"),
        ([EACH, RELEASE | {"what": "panel", "hub": "me/it"}], "hub: `what: panel` is a folder only; leave 'me/it' out"),
        ([ONE, RELEASE | {"what": "panel", "parent": "one"}], "parent: `what: panel` exports the last panel before it"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_remedy(stages, said):
    with pytest.raises(ValidationError) as caught:
        recipe(*stages)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([EACH, MERGE, RELEASE], "export even, bfloat16"),
        ([EACH, RELEASE | {"what": "panel"}], "export the panel of experts"),
        ([ONE, RELEASE], "export one's expert one, bfloat16"),
        ([ONE, OTHER, RELEASE | {"parent": "one", "what": "adapter"}], "export one's expert one, its adapter"),
        ([EACH, PLAIN, RELEASE], "export plain, bfloat16"),
        ([ONE, OTHER, ROUTED, MERGE, RELEASE], "export even, bfloat16"),
    ],
)
def test_what_is_meant_is_exported_and_named(stages, said):
    made = recipe(*stages)
    assert made.stage("release").summary(made) == said


DOMAINS = ("equations", "fractions")


def rows(split, limit):
    """The generator's own problems of two domains, as lines of a file."""
    found = get_domain("math").sources["embedded:formal"](split, limit, 3)
    told = [
        {"id": one.id, "question": one.question, "answer": one.gold, "solution": one.solution, "domain": one.domain}
        for one in found
        if one.domain in DOMAINS
    ]
    return "".join(json.dumps(row) + "\n" for row in told)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(outcome, run's folder, what was said): two experts merged, mixed, handed on, and a gate that nothing passes."""
    folder = tmp_path_factory.mktemp("panels")
    (folder / "data.jsonl").write_text(rows("train", 40))
    (folder / "test.jsonl").write_text(rows("test", 30))
    data = str(folder / "data.jsonl")
    none = {"against": "even", "min_difference": 1}
    made = Recipe.model_validate(
        {
            "name": "panels",
            "model": {"base": "embedded/student", "lora": {"rank": 4, "alpha": 8.0}},
            "problems": {"train": data, "test": str(folder / "test.jsonl")},
            "rollouts": {"max_completion_tokens": 32, "engine": "transformers"},
            "evaluate": {"perplexity": 0, "greedy": False, "samples": 2},
            "stages": [
                EACH | {"data": [data], "batch_size": 2, "steps": 2, "preflight": False},
                MERGE,
                {"name": "inside", "kind": "mixture"},
                {"name": "handed", "kind": "export", "what": "panel"},
                {"name": "asked", "kind": "merge", "merge": "by-load", "gate": none},
                {"name": "out", "kind": "export", "what": "adapter"},
            ],
        }
    )
    said = folder / "said.txt"
    with open(said, "w", encoding="utf-8") as out:
        outcome = Run(made, folder / "run", progress=Progress(Console(file=out, width=300))).start()
    return outcome, folder / "run", said.read_text()


def student():
    return load_base("embedded/student", "nf4", "float32")


def evaluation(run, stage):
    return Evaluation.from_json((run / stage / "evaluation.json").read_text())


def test_the_merge_gap_is_the_paired_difference_to_the_routed_panel(run):
    outcome, folder, said = run
    result = next(one for one in outcome.results if one.name == "even")
    gap = compare(evaluation(folder, "01-experts"), evaluation(folder, "02-even"), seed=17)
    assert [result.extra[f"merge_gap{end}"] for end in ("", "_low", "_high")] == [gap.difference, gap.low, gap.high]
    assert gap.difference == pytest.approx(result.extra["routed_accuracy"] - result.accuracy) and gap.difference != 0
    assert result.extra["rank"] == 4 + 4
    assert "merge gap:" in said and said.index("merge gap:") < said.index("handed: export"), "before any export"


def test_by_load_weighs_by_the_share_of_problems_that_each_expert_answered(run):
    outcome, folder, _ = run
    routes = json.loads((folder / "01-experts" / "routes.json").read_text())
    assert routes == list(evaluation(folder, "01-experts").domains), "each domain's expert has the domain's name"
    asked = next(one for one in outcome.results if one.name == "asked")
    weights = {name: asked.extra[f"weight_{name}"] for name in DOMAINS}
    assert weights == {name: routes.count(name) / len(routes) for name in DOMAINS}
    assert weights["equations"] != weights["fractions"]


def test_a_gate_stands_on_a_merge_and_nothing_is_exported_after_its_no(run):
    outcome, folder, said = run
    assert outcome.results[-1].name == "asked" and outcome.results[-1].gate == NO_GO
    assert "gate: NO-GO: accuracy" in said and "out: export" not in said
    assert not list(folder.glob("06-*"))


def test_the_mixture_says_what_it_gains_and_costs(run):
    outcome, folder, said = run
    result = next(one for one in outcome.results if one.name == "inside")
    gain = compare(evaluation(folder, "03-inside"), evaluation(folder, "01-experts"), seed=17)
    told = [result.extra[f"mixture_gain{end}"] for end in ("", "_low", "_high")]
    assert told == pytest.approx([gain.difference, gain.low, gain.high])
    assert result.extra["seconds_per_1000_tokens"] > 0 and result.extra["seconds_of_one_expert"] > 0
    assert "2 experts act in layers 1 to 2 of 4" in said and "s per 1,000 tokens" in said


def test_the_report_shows_both(run):
    titles = {part.title: part for stage in read_run(run[1]).stages for part in stage.parts if hasattr(part, "tree")}
    assert titles["even: what merging loses against routing"].tree["weights"] == dict.fromkeys(DOMAINS, 0.5)
    assert "gain against routing, points" in titles["inside: a mixture inside the network against routing"].tree


def test_the_exported_panel_is_the_runs_and_stands_alone(run, tmp_path):
    """Moved elsewhere, the run gone: PEFT loads each expert, whose weights are the run's byte for byte."""
    _, folder, _ = run
    moved = tmp_path / "moved"
    shutil.copytree(folder / "04-handed" / "model", moved)
    panel, own = read_panel(moved), read_panel(folder / "01-experts" / "panel")
    assert [(one.name, one.domains, one.files["adapter_model.safetensors"]) for one in panel.experts] == [
        (one.name, one.domains, one.files["adapter_model.safetensors"]) for one in own.experts
    ]
    bare = tiny.next_token_logprobs(student(), [5, 17, 99])
    for name in panel.names:
        loaded = PeftModel.from_pretrained(student(), str(expert_folder(moved, name)))
        assert not (tiny.next_token_logprobs(loaded.eval(), [5, 17, 99]) == bare).all()
        config = json.loads((expert_folder(moved, name) / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "", "nothing of this machine"
    card = (moved / "README.md").read_text()
    assert "--enable-lora --max-lora-rank 8 --max-loras 2" in card
    assert "--lora-modules equations=experts/equations fractions=experts/fractions" in card
    for one in panel.experts:
        assert f"| {one.name} | {one.domains[0]} | 4 | base | experts/{one.name} on data.jsonl |" in card.replace(
            str(folder.parent) + "/", ""
        )
        assert f"{100 * one.record.accuracy:.1f} [" in card


def test_the_command_exports_the_panel_too(run, tmp_path):
    _, folder, _ = run
    own = folder / "04-handed" / "model"
    before = own.stat().st_mtime_ns
    assert str(own) in export_run(folder, options={"what": "panel"}) and own.stat().st_mtime_ns == before
    export_run(folder, str(tmp_path / "there"), options={"what": "panel"})
    assert read_panel(tmp_path / "there") == read_panel(own)
    with pytest.raises(UserError, match="a panel goes into a folder only"):
        export_run(folder, "hub:me/it", options={"what": "panel"})
    with pytest.raises(UserError, match=r"--stage even: trains no panel \(these do: experts\)"):
        export_run(folder, options={"what": "panel"}, stage="even")


def test_what_removals_cost_goes_with_the_panel(run, tmp_path):
    """Who answers is the same there; and each stage that gives a panel says what it is built of."""
    outcome, folder, _ = run
    source = folder / "01-experts" / "panel"
    made = Recipe.model_validate(json.loads((folder / "run.json").read_text())["recipe"])
    panel, cost = read_panel(source), RemovalRecord(0.5, -0.1, -0.2, 0.0)
    known = replace(panel, experts=tuple(replace(one, cost=cost) for one in panel.experts))
    export_panel(known, source, tmp_path / "there", folder, made)
    assert [one.cost for one in read_panel(tmp_path / "there").experts] == [cost, cost]
    told = next(one.extra for one in outcome.results if one.name == "experts")
    assert (told["structure"], told["structure_since"], told["experts"]) == (structure_in(source), "", 2)


def test_what_is_not_an_exported_panel_is_not_replaced(run, tmp_path):
    _, folder, _ = run
    source = folder / "01-experts" / "panel"
    made = Recipe.model_validate(json.loads((folder / "run.json").read_text())["recipe"])
    copy = shutil.copytree(source, tmp_path / "panel")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(PanelError, match="something else than an exported panel"):
        export_panel(read_panel(source), source, copy, folder, made, replace=True)
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    (tmp_path / "cut").mkdir()
    whole = shutil.copytree(folder / "04-handed" / "model", tmp_path / "whole")
    weights = expert_folder(whole, "fractions") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(PanelError, match=r"is not what panel\.json says"):
        export_panel(read_panel(source), source, whole, folder, made)
