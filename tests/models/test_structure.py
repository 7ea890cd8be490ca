"""What a panel is built of, from its files: the same after any training, another one after any change of the parts."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import panels
import pytest

from models.experts import Lineage, Panel, PanelError, expert_of, read_panel, router_files, write_panel
from models.structure import structure_in, structure_of

TARGETS = ["mlp", "q_proj"]


def panel_in(folder, scratch, seed=0, ranks=(2, 3), names=("algebra", "mlp"), arms=None, base_sha256="", **config):
    """A panel's folder: experts of these names and ranks, their weights drawn by the seed."""
    config = {"target_modules": TARGETS} | config
    sources = {
        name: panels.adapter(scratch / name, seed + at, rank=rank, **config)
        for at, (name, rank) in enumerate(zip(names, ranks, strict=True))
    }
    experts = tuple(expert_of(source, name, (), Lineage(f"stage-{seed}")) for name, source in sources.items())
    router = None
    if arms is not None:
        (scratch / "router").mkdir()
        router = scratch / "router"
        (router / "router.json").write_text(json.dumps({"arms": arms, "threshold": seed}))
    panel = Panel(panels.STUDENT, base_sha256, experts, router_files(router) if router else None)
    write_panel(folder, panel, sources, router, copy=True)
    return folder


@pytest.fixture
def made(tmp_path):
    """made(...) -> the structure of such a panel."""
    count = iter(range(100))

    def make(**how):
        at = tmp_path / str(next(count))
        return structure_in(panel_in(at / "panel", at / "made", **how))

    return make


def test_it_is_the_hash_of_base_shapes_and_arms(made):
    """By hand: the adapters' alpha is twice their rank (tests/panels.py)."""
    shapes = {
        "algebra": {"alpha": 4.0, "rank": 2, "targets": TARGETS},
        "mlp": {"alpha": 6.0, "rank": 3, "targets": TARGETS},
    }
    told = {"arms": ["base", "algebra"], "base": "f" * 64, "experts": shapes}
    expected = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    assert made(arms=["base", "algebra"], base_sha256="f" * 64) == expected


def test_training_leaves_it_and_everything_else_changes_it(made):
    arms = ["base", "algebra", "mlp"]
    first = made(arms=arms)
    assert made(arms=arms, seed=7) == made(arms=arms, target_modules=TARGETS[::-1]) == first
    others = [
        made(),
        made(arms=["base", "mlp", "algebra"]),
        made(arms=arms, ranks=(2, 4)),
        made(arms=arms, names=("algebra", "geometry")),
        made(arms=arms, names=("algebra",), ranks=(2,)),
        made(arms=arms, lora_alpha=9),
        made(arms=arms, target_modules=["mlp"]),
        made(arms=arms, target_modules="all-linear"),
        made(arms=arms, base_sha256="f" * 64),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_of_folders_anywhere_it_is_what_it_is_in_the_panels_own(tmp_path):
    folder = panel_in(tmp_path / "panel", tmp_path / "made", arms=["base", "mlp", "algebra"])
    panel = read_panel(folder)
    places = {name: tmp_path / "made" / name for name in panel.names}
    assert structure_of(panel, places, ("base", "mlp", "algebra")) == structure_in(folder)
    # lineage and records are no part of it
    told = replace(panel, experts=tuple(replace(one, domains=("x",), lineage=Lineage("y")) for one in panel.experts))
    assert structure_of(told, places, ("base", "mlp", "algebra")) == structure_in(folder)


@pytest.mark.parametrize("content", ["", "[]", '["base"]', '{"arms": 3}', '{"layer": 1}'])
def test_a_router_that_names_no_arms(tmp_path, content):
    folder = panel_in(tmp_path / "panel", tmp_path / "made", arms=["base"])
    path = next((folder / "routers").iterdir()) / "router.json"
    path.write_text(content)
    with pytest.raises(PanelError, match=r"router\.json is not that of a router.*put back what it was"):
        structure_in(folder)


@pytest.mark.parametrize("alpha", [None, "16", True])
def test_an_alpha_that_is_no_number(tmp_path, alpha):
    folder = panel_in(tmp_path / "panel", tmp_path / "made", lora_alpha=alpha)
    with pytest.raises(PanelError, match=r"experts/algebra: lora_alpha is .*put the expert's own config there"):
        structure_in(folder)
    with pytest.raises(PanelError, match="holds no panel"):
        structure_in(tmp_path / "made")


def test_it_needs_no_torch(tmp_path):
    folder = panel_in(tmp_path / "panel", tmp_path / "made")
    text = f"""
import sys
from pathlib import Path
from models.structure import structure_in
print(structure_in(Path({str(folder)!r})))
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip() == structure_in(folder), done.stderr
