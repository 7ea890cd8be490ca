"""A panel on disk: the same bytes there and back, the old or the new one after any crash, and nothing believed that
panel.json does not say."""

import errno
import json
import os
import shutil
from dataclasses import replace

import panels
import pytest

from models.expert_files import router_arms
from models.experts import (
    Lineage,
    Panel,
    PanelError,
    RemovalRecord,
    expert_folder,
    expert_of,
    must_be_untouched,
    name_fault,
    panel_json,
    parsed,
    read_panel,
    router_files,
    router_folder,
    write_panel,
)
from settings.files import sha256_of


@pytest.fixture
def folder(tmp_path):
    """Of a panel of two experts and a router, with one removed before."""
    return panels.with_one_removed(tmp_path)


def test_there_and_back(folder, tmp_path):
    panel = read_panel(folder)
    assert panel.names == ("algebra", "mlp") and panel.before.names == ("algebra", "mlp", "gone")
    assert [expert.rank for expert in panel.experts] == [2, 3]
    assert (folder / "panel.json").read_bytes() == panel_json(panel) == panel_json(parsed(folder))
    before = panels.tree(folder)
    write_panel(folder, panel)
    assert panels.tree(folder) == before, "a panel written again is the same"
    for name in panel.names:
        for file, content in panels.tree(tmp_path / "made" / name).items():
            assert (expert_folder(folder, name) / file).read_bytes() == content
    assert router_arms(router_folder(folder, panel)) == ("base", "algebra", "mlp")


def test_nothing_there_but_what_a_panel_needs(folder):
    panel = read_panel(folder)
    places = {path.parent.relative_to(folder).as_posix() for path in folder.glob("*/*/*")}
    routers = {f"routers/{router_folder(folder, one).name}" for one in (panel, panel.before)}
    gone = panel.before.expert("gone").digest
    assert places == {"experts/algebra", "experts/mlp", f"removed/{gone}", *routers} and len(routers) == 2
    write_panel(folder, replace(panel, before=None))
    assert not (folder / "removed").exists() and len(list((folder / "routers").iterdir())) == 1


def test_two_of_the_same_weights_and_another_alpha_are_two(tmp_path):
    """Their tensors are the same file; what tells them apart is in the config."""
    folder, made = tmp_path / "panel", tmp_path / "made"
    one, other = panels.adapter(made / "one", 0), panels.adapter(made / "other", 0, lora_alpha=99)
    experts = tuple(expert_of(place, place.name, (), Lineage("")) for place in (one, other))
    assert len({expert.files["adapter_model.safetensors"] for expert in experts}) == 1
    panel = write_panel(folder, Panel(panels.STUDENT, "", experts), {"one": one, "other": other})
    write_panel(folder, empty := replace(panel, experts=(), before=panel))
    write_panel(folder, empty.before)
    for place in (one, other):
        assert panels.tree(expert_folder(folder, place.name)) == panels.tree(place)


def test_a_long_history_can_be_read(folder):
    """A thousand changes deep: JSON that were as deep could not be."""
    panel = read_panel(folder)
    for _ in range(1000):
        panel = replace(panel, before=panel)
    write_panel(folder, panel)
    assert panel_json(parsed(folder)) == panel_json(panel)


# crashes


def changed(folder, router):
    """A change of everything: one expert goes, one comes back, one gets another name, and another router."""
    panel = read_panel(folder)
    _, gone = panel.expert("algebra"), panel.before.expert("gone")
    after = replace(
        panel, experts=(replace(panel.expert("mlp"), name="weight"), gone), router=router_files(router), before=panel
    )
    return write_panel(folder, after, router=router, copy=True)


@pytest.fixture
def crash(folder, tmp_path):
    """Crash a change again and again, each time an operation on files later, until nothing happens any more; yields
    (code, folder) of each crash, and checks of it what holds of all."""
    router = panels.router(tmp_path / "other", ["base", "weight", "gone"])
    clean = panels.again(folder, tmp_path / "clean")
    old, new = panel_json(read_panel(folder)), panel_json(changed(clean, router))

    def crashes(happens, **how):
        crashed, at = tmp_path / "crashed", 0
        while True:
            panels.again(folder, crashed)
            code, any_more = panels.in_a_fork(lambda: changed(crashed, router), happens, after=at, **how)
            if not any_more:
                assert code == 0 and at > 15
                break
            yield code, crashed, panels.tree(clean)
            panel = read_panel(crashed)  # never an error
            assert panel_json(panel) in (old, new)
            if panel_json(panel) == old:
                changed(crashed, router)
            else:
                write_panel(crashed, panel)
            assert panels.tree(crashed) == panels.tree(clean), f"what was left at operation {at} is there still"
            at += 1

    return crashes


def test_killed_at_any_moment(crash):
    assert {code for code, *_ in crash(panels.killed)} == {-9}


def test_any_operation_may_fail(crash):
    codes = set()
    for code, crashed, clean in crash(panels.failing(errno.EIO), once=True):
        assert code or panels.tree(crashed) == clean  # a file that cannot be linked is copied
        codes.add(code)
    assert codes == {0, 1}


def test_a_full_disk_changes_nothing(crash, folder):
    """It is full from some moment on; what can be taken away still can."""
    for code, crashed, clean in crash(panels.failing(errno.ENOSPC), events=panels.CREATING):
        assert panels.tree(crashed) == (panels.tree(folder) if code else clean)


def test_what_somebody_else_put_there_stays(folder, tmp_path):
    own = panels.adapter(folder / "experts" / "mine", 7)
    (folder / "notes.txt").write_text("mine")
    panel, before = read_panel(folder), panels.tree(own)
    write_panel(folder, replace(panel, experts=panel.experts[:1], router=None, before=None))
    assert panels.tree(own) == before and (folder / "notes.txt").is_file()
    mine = expert_of(own, "mine", (), Lineage(""))
    with pytest.raises(PanelError, match=r"experts/mine is there, and the panel does not know it; move it away"):
        write_panel(folder, read_panel(folder).with_expert(mine), {"mine": own})
    assert panels.tree(own) == before


def test_what_was_left_is_taken_from_below_the_panel_alone(folder, tmp_path):
    """A `.changing` that somebody has edited leads nowhere else."""
    other = tmp_path / "other"
    other.mkdir()
    (folder / ".changing").write_text(f"experts/../../other\n{other}\n../other\nexperts/\nexperts/.\nexperts\n")
    before = panels.tree(folder)
    write_panel(folder, read_panel(folder))
    assert other.is_dir() and panels.tree(folder) == {k: v for k, v in before.items() if k != ".changing"}


# links


def test_linked_or_copied(tmp_path):
    source, folder = panels.adapter(tmp_path / "a", 0), tmp_path / "panel"
    panel = Panel(panels.STUDENT, "", (expert_of(source, "a", (), Lineage("")),))
    write_panel(folder, panel, {"a": source})
    tensors = expert_folder(folder, "a") / "adapter_model.safetensors"
    assert tensors.samefile(source / "adapter_model.safetensors")
    copied = tmp_path / "copied"
    write_panel(copied, panel, {"a": source}, copy=True)
    (source / "adapter_model.safetensors").write_bytes(b"trained on")
    assert read_panel(copied) == panel, "whoever writes into the source writes into no copy"
    with pytest.raises(PanelError, match=r"a/adapter_model.safetensors is not what panel.json says"):
        read_panel(folder)


def test_no_two_experts_share_a_file(tmp_path):
    """Writing into one in place, which nobody should, spoils that one alone."""
    folder = tmp_path / "panel"
    panel = panels.write(folder, tmp_path / "made")
    twin = replace(panel.expert("mlp"), name="twin")
    write_panel(folder, replace(panel.with_expert(twin), before=panel))
    (expert_folder(folder, "twin") / "adapter_model.safetensors").write_bytes(b"trained on")
    with pytest.raises(PanelError, match="expert 'twin'"):
        read_panel(folder)
    shutil.rmtree(expert_folder(folder, "twin"))
    write_panel(folder, panel)
    assert read_panel(folder) == panel


def test_a_panel_from_before_costs_were_known_stays_the_same_bytes(folder):
    """Also in the panels to which `undo` goes back."""
    before = (folder / "panel.json").read_bytes()
    panel = read_panel(folder)
    assert b"cost" not in before and all(one.cost is None for one in panel.experts) and panel_json(panel) == before
    cost = RemovalRecord(0.25, -0.1, -0.2, 0)
    known = replace(panel, experts=tuple(replace(one, cost=cost) for one in panel.experts), before=panel)
    write_panel(folder, known)
    assert read_panel(folder) == known
    stored = json.loads((folder / "panel.json").read_text())
    assert stored["experts"][0]["cost"] == {"load": 0.25, "difference": -0.1, "low": -0.2, "high": 0}
    assert all("cost" not in one for one in stored["before"][0]["experts"])


def test_names():
    for name in (
        "base",
        "default",
        "each",
        "merged",
        "reference",
        "routed",
        "",
        "A",
        "a b",
        "a/b",
        ".",
        "a" * 41,
        "a\n",
    ):
        assert name_fault(name), name
    for name in ("mlp", "weight", "lora_a", "0", "a" * 40, "expert-a"):
        assert name_fault(name) is None, name


def test_which_files_are_untouched(folder, tmp_path):
    panel = read_panel(folder)
    must_be_untouched(panel, panel)
    trained = expert_of(panels.adapter(tmp_path / "t", 9), "mlp", (), Lineage("now"))
    must_be_untouched(panel, panel.with_expert(trained), but=("mlp",))
    must_be_untouched(panel, panel.with_expert(replace(trained, name="new")))
    for after in (panel.with_expert(trained), replace(panel, experts=panel.experts[:1])):
        with pytest.raises(PanelError, match="expert 'mlp' was not trained"):
            must_be_untouched(panel, after, but=("algebra",))


def test_peft_alone_loads_an_expert_whatever_its_name(tiny_path, tmp_path):
    """Names that are those of layers, or parts of another expert's, mix nothing up."""
    import torch
    from peft import PeftModel
    from tiny import next_token_logprobs, policy

    from models.adapters import adapter_tensors, read_adapter, save_adapter
    from models.base import load_base
    from models.engines.routed import adapter_name, panel_model

    names = ("mlp", "weight", "lora_a", "expert-mlp", "0")
    experts, sources = [], {}
    for seed, name in enumerate(names, start=1):
        model = policy(tiny_path, quantize="none", rank=1 + seed, seed=seed)
        save_adapter(model, sources.setdefault(name, tmp_path / "made" / name))
        experts.append(expert_of(sources[name], name, (), Lineage("")))
    asked = next_token_logprobs(model, [5, 17, 99])
    folder = tmp_path / "panel"
    panel = write_panel(folder, Panel(str(tiny_path), "", tuple(experts)), sources)
    places = {name: expert_folder(folder, name) for name in names}
    together = panel_model(load_base(str(tiny_path), "none", "float32"), places)
    for name in names:
        tensors, read = adapter_tensors(together, adapter_name(name)), read_adapter(sources[name])
        assert tensors.keys() == read.keys() and all(torch.equal(tensors[key], read[key]) for key in read), name
    alone = PeftModel.from_pretrained(load_base(str(tiny_path), "none", "float32"), expert_folder(folder, names[-1]))
    assert torch.equal(next_token_logprobs(alone, [5, 17, 99]), asked)
    assert {os.stat(path).st_nlink for path in folder.glob("experts/*/*")} == {2}
    assert sha256_of(folder / "experts/mlp/adapter_config.json") == panel.expert("mlp").files["adapter_config.json"]
