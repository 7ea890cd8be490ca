"""Changes of a panel by hand: what they are not about keeps its bytes, and as many undos lead back to the first one."""

import tempfile
from dataclasses import replace
from pathlib import Path

import panels
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.expert_files import router_arms
from models.experts import (
    Lineage,
    PanelError,
    RemovalRecord,
    expert_folder,
    panel_json,
    read_panel,
    router_folder,
    write_panel,
)
from models.panel_changes import add, apply, clone, copy_panel, remove, rename, undo

NAMES = ("algebra", "mlp", "weight", "0", "e")
SHIPPED = Path(__file__).parents[2] / "models" / "embedded" / "student"


@pytest.fixture
def folder(tmp_path):
    """Of a panel of two experts."""
    panels.write(tmp_path / "panel", tmp_path / "made")
    return tmp_path / "panel"


def refused(folder, change, said):
    """One sentence, and nothing changed on the disk."""
    before = panels.tree(folder)
    with pytest.raises(PanelError) as caught:
        apply(folder, change)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert panels.tree(folder) == before


def routed_to(folder):
    place = router_folder(folder, read_panel(folder))
    return None if place is None else list(router_arms(place))


def bytes_of(folder):
    return {name: panels.tree(expert_folder(folder, name)) for name in read_panel(folder).names}


names = st.sampled_from(NAMES)
steps = st.one_of(
    st.tuples(st.just("add"), names, st.integers(0, 2)),
    st.tuples(st.just("clone"), names, names),
    st.tuples(st.just("remove"), names),
    st.tuples(st.just("rename"), names, names),
    st.tuples(st.just("undo")),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(steps, min_size=1, max_size=8), st.booleans())
def test_any_changes_and_as_many_undos_are_nothing(steps, routed):
    """After each of the changes the survivors are what they were, and after each undo the whole folder is."""
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        folder, adapters = scratch / "panel", [panels.adapter(scratch / f"a{n}", n, rank=1 + n) for n in range(3)]
        panels.write(folder, scratch / "made", routed=routed)
        stack = [panels.tree(folder)]
        for number, (kind, *told) in enumerate(steps):
            reroute = panels.rerouting(folder, read_panel(folder), scratch / str(number))
            changes = {
                "add": lambda panel, told=told: add(panel, told[0], adapters[told[1]], (), folder),
                "clone": lambda panel, told=told: clone(panel, *told),
                "remove": lambda panel, told=told, reroute=reroute: remove(panel, *told, reroute),
                "rename": lambda panel, told=told, reroute=reroute: rename(panel, *told, reroute),
                "undo": undo,
            }
            before, router = bytes_of(folder), routed_to(folder)
            try:
                apply(folder, changes[kind])
            except PanelError:
                assert panels.tree(folder) == stack[-1], "a change that was refused is none"
                continue
            assert {path.stat().st_nlink for path in folder.rglob("*") if path.is_file()} <= {1}
            if kind == "undo":
                stack.pop()
                assert panels.tree(folder) == stack[-1]
                continue
            after = bytes_of(folder)
            gone = {told[0]} if kind in ("remove", "rename") else set()
            assert {name: files for name, files in before.items() if name not in gone}.items() <= after.items()
            if kind in ("clone", "rename"):
                assert after[told[1]] == before[told[0]]
            if kind in ("add", "clone"):
                assert routed_to(folder) == router, "which does not know the new one"
            else:
                assert not routed or told[0] not in routed_to(folder)
            stack.append(panels.tree(folder))
        while len(stack) > 1:
            stack.pop()
            apply(folder, undo)
            assert panels.tree(folder) == stack[-1]
        refused(folder, undo, "there is nothing to undo")


def test_what_each_change_says(folder, tmp_path):
    source = panels.adapter(tmp_path / "geometry", 5, rank=7)
    apply(folder, lambda panel: add(panel, "new", source, ("geometry",), folder))
    apply(folder, lambda panel: clone(panel, "algebra", "twin"))
    apply(folder, lambda panel: rename(panel, "algebra", "sums"))
    panel = apply(folder, lambda panel: remove(panel, "mlp"))
    assert panel == read_panel(folder)
    assert panel.names == ("sums", "new", "twin")
    new, twin, sums = (panel.expert(name) for name in ("new", "twin", "sums"))
    assert (new.domains, new.rank, new.lineage, new.record) == (("geometry",), 7, Lineage(""), None)
    assert twin.lineage == Lineage("train", ("traces",), "sums"), "its parent, under the name that this has now"
    assert twin.record == sums.record and twin.files == sums.files
    changes = []
    while panel.before is not None:
        changes.append(panel.change)
        panel = panel.before
    assert changes == ["removed 'mlp'", "renamed 'algebra' to 'sums'", "cloned 'algebra' as 'twin'", "added 'new'"]


def test_a_change_is_the_same_bytes_wherever_it_is_made(tmp_path):
    made = []
    for place in ("one", "other"):
        folder = tmp_path / place / "panel"
        panels.write(folder, tmp_path / place / "made")
        source = panels.adapter(tmp_path / place / "a", 5)
        apply(folder, lambda panel, source=source, folder=folder: add(panel, "new", source, (), folder))
        made.append(panels.tree(folder))
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda panel: clone(panel, "algebro", "new"), "(experts: algebra, mlp); did you mean 'algebra'?"),
        (lambda panel: remove(panel, "nothing"), "there is no expert 'nothing' in the panel (experts: algebra, mlp)"),
        (lambda panel: rename(panel, "ml", "new"), "did you mean 'mlp'?"),
        (lambda panel: clone(panel, "mlp", "algebra"), "there is an expert 'algebra' already (experts: algebra, mlp)"),
        (lambda panel: rename(panel, "mlp", "mlp"), "there is an expert 'mlp' already"),
        (lambda panel: rename(panel, "mlp", "routed"), "'routed' has a meaning of its own"),
        (lambda panel: clone(panel, "mlp", "A B"), "'A B' is no name for an expert: up to 40 lower-case letters"),
        (undo, "there is nothing to undo"),
    ],
)  # fmt: skip
def test_names_that_are_wrong(folder, change, said):
    refused(folder, change, said)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"base_model_name_or_path": "Qwen/Qwen2.5-3B"}, "base_model_name_or_path is 'Qwen/Qwen2.5-3B', and the panel"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is missing; name the base there"),
        ({"base_model_name_or_path": "embedded/teacher"}, "experts work on their own base only"),
        (
            {"widths": {"q_proj": (6, 5), "mlp": (6, 8)}},
            "q_proj.lora_B.weight' is 5 wide, and 4 in that of expert 'alg",
        ),
        ({"widths": {"q_proj": (7, 4)}}, "q_proj.lora_A.weight' is 7 wide, and 6 in that of expert 'algebra'"),
        (
            {"stem": "base_model.model.transformer.h"},
            "'base_model.model.transformer.h', and 'base_model.model.model.lay",
        ),
        ({"use_rslora": True}, "an expert is plain LoRA, and this is more (use_rslora)"),
    ],
)
def test_an_adapter_of_another_base(folder, tmp_path, about, said):
    source = panels.adapter(tmp_path / "other", 5, **about)
    refused(folder, lambda panel: add(panel, "new", source, (), folder), said)


def test_an_adapter_of_the_same_base(folder, tmp_path):
    """Whatever its rank, its targets and how its base is named: by the shipped name, or the folder that this means."""
    fits = [
        {"base_model_name_or_path": str(SHIPPED)},
        {"base_model_name_or_path": f"{SHIPPED.parent}/../embedded/student"},
        {"rank": 9, "widths": {"q_proj": (6, 4)}},
        {"widths": {"o_proj": (99, 3)}},
        {"revision": None},
    ]
    for number, about in enumerate(fits):
        source = panels.adapter(tmp_path / f"fits{number}", number, **about)
        apply(folder, lambda panel, name=f"new{number}", source=source: add(panel, name, source, (), folder))
    assert len(read_panel(folder).names) == 2 + len(fits)


@pytest.mark.parametrize(
    ("base", "own", "revision", "fits"),
    [
        ("you/model", "you/model", None, True),
        ("you/model@main", "you/model", "a" * 40, True),
        (f"you/model@{'a' * 40}", "you/model", "a" * 40, True),
        (f"you/model@{'a' * 40}", "you/model", "b" * 40, False),
        (f"you/model@{'a' * 40}", f"you/model@{'b' * 40}", None, False),
        ("you/model", "me/model", None, False),
    ],
)
def test_a_base_of_the_hub(folder, tmp_path, base, own, revision, fits):
    """A branch moves, and may mean any commit; two commits are two models."""
    panel = replace(read_panel(folder), base=base)
    source = panels.adapter(tmp_path / "new", 5, base_model_name_or_path=own, revision=revision)
    if fits:
        assert "new" in add(panel, "new", source, (), folder).panel
    else:
        with pytest.raises(PanelError, match="experts work on their own base only"):
            add(panel, "new", source, (), folder)


def test_a_router_must_be_told(tmp_path):
    folder = tmp_path / "panel"
    panels.write(folder, tmp_path / "made", routed=True)
    refused(folder, lambda panel: remove(panel, "mlp"), "the panel has a router, which routes to 'mlp'")
    refused(folder, lambda panel: rename(panel, "mlp", "new"), "the panel has a router, which routes to 'mlp'")
    old = panels.tree(folder / "routers")
    reroute = panels.rerouting(folder, read_panel(folder), tmp_path / "scratch")
    apply(folder, lambda panel: rename(panel, "mlp", "new", reroute))
    assert routed_to(folder) == ["base", "algebra", "new"]
    assert old.items() <= panels.tree(folder / "routers").items(), "to which undo goes back"


def test_whoever_writes_into_what_was_added_writes_into_no_panel(folder, tmp_path):
    source = panels.adapter(tmp_path / "new", 5)
    panel = apply(folder, lambda panel: add(panel, "new", source, (), folder))
    for path in source.iterdir():
        path.write_bytes(b"trained on")
    assert read_panel(folder) == panel


def test_only_one_changes_a_panel_at_a_time(folder):
    def meanwhile(panel):
        refused(folder, lambda panel: clone(panel, "mlp", "second"), "another process changes the panel in")
        return clone(panel, "mlp", "first")

    assert apply(folder, meanwhile).names == ("algebra", "mlp", "first")


def test_what_removals_cost_is_known_for_as_long_as_the_same_experts_answer(folder, tmp_path):
    """Another name answers as the old one did; an expert that comes or goes takes or leaves problems. What is undone
    is undone here, too, and a copy is the same panel."""
    panel = read_panel(folder)
    costs = [RemovalRecord(0.1 * at, -0.01 * at, -0.03, 0.02) for at in range(1, 3)]
    known = replace(
        panel, experts=tuple(replace(one, cost=cost) for one, cost in zip(panel.experts, costs, strict=True))
    )
    write_panel(folder, known)
    source = panels.adapter(tmp_path / "other", 5)
    copy_panel(folder, tmp_path / "copied")
    assert [one.cost for one in read_panel(tmp_path / "copied").experts] == costs
    for change, kept in (
        (lambda panel: add(panel, "e", source, (), folder), False),
        (lambda panel: clone(panel, "mlp", "e"), False),
        (lambda panel: remove(panel, "mlp"), False),
        (lambda panel: rename(panel, "mlp", "e"), True),
    ):
        after = apply(folder, change)
        assert [one.cost for one in after.experts] == (costs if kept else [None] * len(after.experts))
        assert read_panel(folder) == after
        apply(folder, undo)
        assert read_panel(folder) == known


def test_a_copy_shares_nothing_and_can_be_undone(folder, tmp_path):
    apply(folder, lambda panel: remove(panel, "mlp"))
    copied, before = tmp_path / "copied", panels.tree(folder)
    copy_panel(folder, copied)
    assert panels.tree(copied) == before
    assert {path.stat().st_nlink for path in copied.rglob("*") if path.is_file()} == {1}
    assert apply(copied, undo).names == ("algebra", "mlp")
    assert panels.tree(folder) == before
    with pytest.raises(PanelError, match="copied is there already; choose a folder that is not there yet"):
        copy_panel(folder, copied)


def test_a_copy_that_was_killed_is_none(folder, tmp_path):
    """Nothing stands under its name before it is whole, and what was left is gone after the next one."""
    place = tmp_path / "place"
    place.mkdir()
    for at in range(100):
        code, any_more = panels.in_a_fork(lambda: copy_panel(folder, place / "copied"), panels.killed, after=at)
        if not any_more:
            break
        assert code == -9 and {path.name for path in place.iterdir()} <= {".copied.partial"}
    assert at > 8 and [path.name for path in place.iterdir()] == ["copied"]
    assert panels.tree(place / "copied") == panels.tree(folder)


def test_pure(folder):
    """A change alone touches nothing, and the panel that it was given stays."""
    panel, before = read_panel(folder), panels.tree(folder)
    said = panel_json(panel)
    done = remove(panel, "mlp")
    assert panel_json(panel) == said and panels.tree(folder) == before
    assert done.panel.before is panel and undo(done.panel).panel is panel
    write_panel(folder, done.panel)
    assert read_panel(folder).names == ("algebra",)
