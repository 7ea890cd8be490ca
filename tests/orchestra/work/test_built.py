"""What a stage says of the panel that it gives: what it is built of, and since which stage."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import panels
import pytest

from models.experts import read_panel, router_files, write_panel
from models.structure import structure_in
from orchestra.config.loading import load_recipe
from orchestra.report.data import StageRecord
from orchestra.report.panel import structure_parts
from orchestra.run.ledger import StageResult
from orchestra.work.context import StageContext
from orchestra.work.panels import built

TRAINED, ROUTED = ("algebra", "mlp"), ("base", "algebra", "mlp")


@pytest.fixture
def said(tmp_path):
    """said(stage, panels by stage) -> what is said of the last one; by stage (experts, the router's arms, seed)."""
    recipe = load_recipe("7b-3", "embedded")

    def say(given):
        root = Path(tmp_path / str(len(list(tmp_path.iterdir()))))
        for seed, (name, (experts, arms)) in enumerate(given.items()):
            folder, made = root / name / "panel", root / f"made-{name}"
            panels.write(folder, made, experts)
            if arms is not None:
                (made / "router").mkdir()
                (made / "router" / "router.json").write_text(json.dumps({"arms": arms, "seed": seed}))
                panel = replace(read_panel(folder), router=router_files(made / "router"))
                write_panel(folder, panel, router=made / "router")
            shutil.rmtree(made)
        *earlier, last = given
        context = StageContext(
            recipe=recipe, stage=recipe.stage(last), folder=root / last, run_dir=root, parents=(), resources=None,
            earlier={name: root / name for name in earlier}, progress=None, panel=recipe.panel_of(last),
        )  # fmt: skip
        told = built(context, read_panel(root / last / "panel"))
        assert told["structure"] == structure_in(root / last / "panel")
        return told

    return say


SEVEN_B_3 = {
    "experts": (TRAINED, None),
    "before": (TRAINED, ROUTED),
    "explore": (TRAINED, None),
    "settle": (TRAINED, None),
    "after": (TRAINED, ROUTED),
}


def test_a_panel_is_built_at_the_end_as_at_the_start(said):
    """Recipe 7b-3: each stage that gives a panel, and the first of those before it that was built so."""
    since, structures = [], []
    for at, name in enumerate(SEVEN_B_3, 1):
        told = said(dict(list(SEVEN_B_3.items())[:at]))
        since.append(told["structure_since"])
        structures.append(told["structure"])
        assert (told["experts"], told["panel_base"]) == (2, panels.STUDENT), name
    assert since == ["", "", "experts", "experts", "before"]
    assert len(set(structures)) == 2 and structures[1] == structures[4] != structures[0] == structures[2]


def test_a_panel_that_grew_is_new(said):
    assert said(SEVEN_B_3 | {"after": ((*TRAINED, "geometry"), ROUTED)})["structure_since"] == ""
    assert said(SEVEN_B_3 | {"after": (TRAINED, ("base", "mlp", "algebra"))})["structure_since"] == ""


def test_the_report_says_so(said):
    same, new = said(SEVEN_B_3), said({"experts": (TRAINED, None)})

    def trees(extra):
        record = StageRecord("after", "route", result=StageResult("after", "route", extra=extra))
        return [part.tree for part in record.parts if part.title == "after: what its panel is built of"]

    (tree,) = trees(same)
    assert same["structure"] in tree.values() and tree["compared with earlier stages"] == "the same as in before"
    assert (tree["base"], tree["experts"]) == (panels.STUDENT, 2)
    assert trees(new)[0]["compared with earlier stages"] == "new"
    assert trees({}) == [] == list(structure_parts(StageRecord("after", "route")))


@pytest.mark.parametrize("kind", ["sft", "grpo", "route", "grow"])
def test_every_kind_that_gives_a_panel_shows_it(said, kind):
    told = said({"experts": (TRAINED, None)})
    record = StageRecord("one", kind, result=StageResult("one", kind, extra=told))
    assert [part for part in record.parts if part.title == "one: what its panel is built of"]
