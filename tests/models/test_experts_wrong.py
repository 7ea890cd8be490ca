"""What can be wrong with a panel on the disk: one message each, and nothing changed."""

import json
import shutil
import struct

import panels
import pytest

from models.experts import (
    Lineage,
    PanelError,
    expert_folder,
    expert_of,
    read_panel,
    write_panel,
)


@pytest.fixture
def folder(tmp_path):
    """Of a panel of two experts and a router, with one removed before."""
    return panels.with_one_removed(tmp_path)


def edited(**values):
    return lambda panel: panel | values


def of_first(**values):
    return lambda panel: panel | {"experts": [panel["experts"][0] | values, *panel["experts"][1:]]}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (edited(version=2), "is of version 2, and this program knows up to 1; update orchestra-rl"),
        (edited(version="1"), "has no version"),
        (edited(version=0), "has no version"),
        (edited(version=True), "has no version"),
        (lambda panel: {key: value for key, value in panel.items() if key != "version"}, "has no version"),
        (lambda panel: {key: value for key, value in panel.items() if key != "base"}, "base: Field required"),
        (edited(extra=1), "extra: Unexpected keyword argument"),
        (of_first(colour="red"), "experts.0.colour: Unexpected keyword argument"),
        (edited(before=None), "not all that a panel has"),
        (lambda panel: panel | {"before": [panel["before"][0] | {"version": 1}]}, "before.0.version: Unexpected"),
        (lambda panel: panel | {"before": [panel["before"][0] | {"before": panel["before"][0]}]}, "a list of panels"),
        (lambda panel: panel | {"before": [panel["before"][0] | {"experts": 3}]}, "before.0.experts: "),
        (lambda panel: panel | {"experts": panel["experts"] * 2}, "there are two experts 'algebra'"),
        (of_first(name="base"), "'base' has a meaning of its own; choose another name for the expert"),
        (of_first(name="../out"), "'../out' is no name for an expert"),
        (of_first(name=3), "experts.0.name: "),
        (of_first(rank=8), "expert 'algebra' is said to have rank 8, and has 2"),
        (of_first(rank="2"), "experts.0.rank: "),
        (of_first(files={}), "expert 'algebra' must have the files"),
        (of_first(files={"../../secret": "0" * 64}), "experts.0.files"),
        (of_first(record={"accuracy": 7, "low": 0, "high": 1, "problems": 9, "source": "s"}), "experts.0.record"),
        (of_first(record={"accuracy": float("nan"), "low": 0, "high": 1, "problems": 9, "source": "s"}), "accuracy"),
        (of_first(cost={"load": 1.5, "difference": 0, "low": 0, "high": 0}), "experts.0.cost.load"),
        (of_first(cost={"load": 0.5, "difference": "0", "low": 0, "high": 0}), "experts.0.cost.difference"),
        (of_first(cost={"load": 0.5, "difference": 0, "low": 0}), "experts.0.cost.high: Field required"),
        (of_first(cost={"load": 0.5, "difference": 0, "low": 0, "high": 0, "n": 1}), "experts.0.cost.n: Unexpected"),
        (edited(router={}), "router: "),
        (edited(router={"..": "0" * 64}), "router"),
        (edited(router={"router.json": "0" * 63}), "router"),
        (edited(router={"router.json": "0" * 64}), "the router: "),
        (lambda panel: panel | {"experts": panel["experts"][:1]}, "routes to 'mlp', which is no expert of the panel"),
        (lambda panel: panel | {"experts": []}, "routes to 'algebra', which is no expert of the panel (experts: none)"),
        (lambda panel: [panel], "has no version"),
    ],
)  # fmt: skip
def test_a_panel_edited_by_hand(folder, edit, said):
    path = folder / "panel.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    before = panels.tree(folder)
    with pytest.raises(PanelError) as caught:
        read_panel(folder)
    told = str(caught.value)
    assert said in told and str(folder) in told and "\n" not in told
    assert any(remedy in told for remedy in ("put back what it was", "put it back", "update orchestra-rl"))
    assert panels.tree(folder) == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"3"])
def test_a_panel_that_is_none(folder, content):
    (folder / "panel.json").write_bytes(content)
    with pytest.raises(PanelError, match=r"panel\.json.*put back what it was"):
        read_panel(folder)


def test_no_panel(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "nowhere", tmp_path, tmp_path / "file"):
        with pytest.raises(PanelError, match=r"holds no panel \(panel.json is missing\)"):
            read_panel(place)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "is missing; put it back"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "edited, or cut off); put it back"),
        (lambda path: path.write_bytes(path.read_bytes() + b" "), "edited, or cut off); put it back"),
    ],
    ids=["missing", "cut", "edited"],
)
def test_files_of_an_expert(folder, file, spoil, said):
    path = expert_folder(folder, "mlp") / file
    spoil(path)
    with pytest.raises(PanelError) as caught:
        read_panel(folder)
    assert str(caught.value).startswith(f"expert 'mlp': {path} ") and said in str(caught.value)


def test_what_is_to_be_brought_back_must_be_whole(folder):
    panel = read_panel(folder)
    path = folder / "removed" / panel.before.expert("gone").digest / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    before = panels.tree(folder)
    with pytest.raises(PanelError, match=r"for experts/gone: .* is not what panel.json says"):
        write_panel(folder, panel.before)
    shutil.rmtree(path.parent)
    before = {name: content for name, content in before.items() if path.parent.name not in name and name != "removed"}
    with pytest.raises(PanelError, match="the files of experts/gone are nowhere; put them back"):
        write_panel(folder, panel.before)
    assert {name: one for name, one in panels.tree(folder).items() if name != "removed"} == before


def test_one_name_for_other_weights(folder, tmp_path):
    other = panels.adapter(tmp_path / "other", 9)
    panel, before = read_panel(folder), panels.tree(folder)
    with pytest.raises(PanelError, match=r"experts/mlp is there already, with other weights"):
        write_panel(folder, panel.with_expert(expert_of(other, "mlp", (), Lineage(""))), {"mlp": other})
    assert panels.tree(folder) == before


def header(names):
    text = json.dumps(names).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("adapter_config.json", None, "holds no adapter (adapter_config.json is missing)"),
        ("adapter_config.json", b"{", "is no JSON"),
        ("adapter_config.json", b"[" * 100_000, "is no JSON"),
        ("adapter_config.json", b'{"peft_type": "IA3"}', "is not that of a LoRA adapter"),
        ("adapter_config.json", b'{"peft_type": "LORA", "r": true}', "is not that of a LoRA adapter"),
        ("adapter_config.json", b'{"peft_type": "LORA", "r": 2, "use_dora": true}', "is more (use_dora)"),
        ("adapter_config.json", b'{"peft_type": "LORA", "r": 4}', "is no part of a LoRA adapter of rank 4"),
        ("adapter_model.safetensors", None, "holds no adapter (adapter_model.safetensors is missing)"),
        ("adapter_model.safetensors", b"", "is cut off or no safetensors file"),
        ("adapter_model.safetensors", b"\xff" * 64, "is cut off or no safetensors file"),
        ("adapter_model.safetensors", header({}), "is cut off or no safetensors file"),
        ("adapter_model.safetensors", header([1]), "is cut off or no safetensors file"),
        ("adapter_model.safetensors", header({"a": {"data_offsets": []}}), "is cut off or no safetensors file"),
        ("adapter_model.safetensors", header({"embed": {"data_offsets": [0, 0], "shape": [2, 0]}}), "is no part of"),
    ],
)  # fmt: skip
def test_no_adapter(tmp_path, file, content, said):
    source = panels.adapter(tmp_path / "a", 0)
    path = source / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(PanelError) as caught:
        expert_of(source, "a", (), Lineage(""))
    assert said in str(caught.value) and str(source) in str(caught.value)


def test_every_cut_of_an_adapter_is_seen(tmp_path):
    path = panels.adapter(tmp_path / "a", 0) / "adapter_model.safetensors"
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(PanelError, match="cut off"):
            expert_of(path.parent, "a", (), Lineage(""))
