"""Panels changed by stages: what a change is not about stays the same bytes, and as many stages that undo as changed it
give back the first panel."""

import re
from dataclasses import replace

import panels
import pytest
import solved
from changed import LONE, ROUTE, change, recipe

from models.adapters import AdapterError
from models.expert_files import PanelError
from models.experts import RemovalRecord, read_panel, router_files, router_folder, write_panel
from models.router import Router
from orchestra.config.faults import RecipeError
from orchestra.config.loading import load_recipe
from orchestra.plan.panels import experts_before
from orchestra.report.data import StageRecord
from orchestra.run.fingerprint import fingerprint
from orchestra.run.gates import sentence
from orchestra.run.ledger import Fingerprint, LedgerEntry, StageResult


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
    with pytest.raises(PanelError, match="'mlp' is the last expert of the panel, which without it is none"):
        run(made, "changed")
    assert read_panel(first).names == ("mlp",)


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
