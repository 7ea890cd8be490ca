"""Merging a panel: what comes out is the algebra that each rule promises, whatever ranks and scales experts have."""

import hashlib
import json
from dataclasses import replace

import pytest
import tiny
import torch
from peft import PeftModel

from models.adapters import (
    POLICY,
    adapter_tensors,
    load_adapter,
    new_adapter,
    read_adapter,
    read_updates,
    save_adapter,
    write_adapter,
)
from models.base import load_base
from models.experts import Lineage, Panel, PanelError, Record, expert_folder, expert_of, write_panel
from models.mixing import blend, merged_model
from models.settings import Lora, MergeSettings

IDS = [5, 17, 99, 3, 250, 8]
# ranks, scales and layers all differ: 8/4 = 2, 6/2 = 3, 4/8 = 0.5
EXPERTS = {
    "algebra": Lora(rank=4, alpha=8.0, targets=("q_proj", "k_proj", "down_proj")),
    "geometry": Lora(rank=2, alpha=6.0, targets=("q_proj", "k_proj", "up_proj")),
    "number": Lora(rank=8, alpha=4.0, targets=("q_proj", "k_proj")),
}


def base(path, quantize="none"):
    return load_base(str(path), quantize, "float32")


def random_adapter(path, lora, folder, seed):
    """An adapter whose update is not zero."""
    model = new_adapter(base(path), lora, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(t.shape, generator=generator) * 0.1 for name, t in adapter_tensors(model).items()}
    write_adapter(model, tensors)
    save_adapter(model, folder)


@pytest.fixture(scope="module")
def panel(tiny_path, tmp_path_factory):
    """(panel, its folder)"""
    folder, made = tmp_path_factory.mktemp("panel"), tmp_path_factory.mktemp("made")
    experts = []
    for seed, (name, lora) in enumerate(EXPERTS.items()):
        random_adapter(tiny_path, lora, made / name, seed)
        record = Record((0.4, 0.6, 0.6)[seed], 0.3, 0.7, 100, "embedded")
        experts.append(expert_of(made / name, name, (name,), Lineage("experts"), record))
    sources = {name: made / name for name in EXPERTS}
    return write_panel(folder, Panel(str(tiny_path), "", tuple(experts)), sources), folder


@pytest.fixture
def merge(panel, tiny_path, tmp_path):
    """merge(rule, load, seed, ...keys) -> (its updates by layer, its folder)"""

    def go(rule, load=None, seed=0, **keys):
        settings = MergeSettings(merge=rule, **keys)
        model = merged_model(base(tiny_path), *panel, blend(panel[0], settings, load or {}), settings, seed=seed)
        folder = tmp_path / f"{rule}-{len([*tmp_path.iterdir()])}"
        save_adapter(model, folder)
        return {name: weight(one) for name, one in read_updates(folder).items()}, folder

    return go


def weight(update):
    return update.added_to(torch.zeros(len(update.up), update.down.shape[1]))


def updates(panel, names=tuple(EXPERTS)):
    return {
        name: {layer: weight(one) for layer, one in read_updates(expert_folder(panel[1], name)).items()}
        for name in names
    }


def summed(panel, weights):
    """By layer sum_i w_i (alpha_i / rank_i) B_i A_i, over the experts that have the layer."""
    total = {}
    for name, of_layer in updates(panel, tuple(weights)).items():
        for layer, update in of_layer.items():
            total[layer] = total.get(layer, 0) + weights[name] * update
    return total


def same(one, other, tolerance=1e-6):
    assert one.keys() == other.keys()
    return all(torch.allclose(one[layer], other[layer], rtol=0, atol=tolerance) for layer in one)


def rank_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())["r"]


def test_linear_is_the_mean_of_the_updates(panel, merge):
    found, folder = merge("linear")
    assert same(found, summed(panel, dict.fromkeys(EXPERTS, 1 / 3)))
    assert rank_of(folder) == 4 + 2 + 8


def test_by_load_weighs_by_who_is_asked(panel, merge):
    """The base's share has an update of zero; who is never asked has no part, and takes no rank."""
    load = {"base": 0.25, "algebra": 0.5, "geometry": 0.25, "number": 0.0}
    found, folder = merge("by-load", load)
    assert same(found, summed(panel, {"algebra": 0.5, "geometry": 0.25}))
    assert rank_of(folder) == 4 + 2
    weights = blend(panel[0], MergeSettings(merge="by-load"), load).weights
    assert sum(weights.values()) == 1 - load["base"]


def test_one_expert_that_is_asked_everything_is_itself_times_its_load(panel, merge):
    load = {"base": 0.2, "geometry": 0.8}
    assert same(merge("by-load", load)[0], summed(panel, {"geometry": 0.8}))
    reduced, folder = merge("by-load", load, rank=1)
    assert rank_of(folder) == 1
    for layer, update in summed(panel, {"geometry": 0.8}).items():
        left, values, right = torch.linalg.svd(update, full_matrices=False)
        assert torch.allclose(reduced[layer], left[:, :1] * values[:1] @ right[:1], atol=1e-5), layer


def test_a_decomposition_at_the_full_rank_loses_nothing_and_below_it_the_least_possible(panel, merge):
    """Eckart and Young: what is lost is the tail of the singular values."""
    whole = summed(panel, dict.fromkeys(EXPERTS, 1 / 3))
    assert same(merge("svd", rank=14)[0], whole, 1e-5)
    found, folder = merge("svd", rank=3)
    assert rank_of(folder) == 3
    for layer, update in whole.items():
        tail = torch.linalg.svdvals(update)[3:].square().sum().sqrt()
        assert float((found[layer] - update).norm()) == pytest.approx(float(tail), rel=1e-3, abs=1e-5), layer
    assert rank_of(merge("svd")[1]) == 8, "the largest expert's"
    assert same(merge("linear", rank=3)[0], found), "linear back to a rank is svd"


def test_ties_is_what_the_paper_says(panel, merge):
    """Trim to the largest half, elect the sign with the larger total, average those that have it (arXiv 2306.01708);
    then the 32 largest singular values, which is all of the smallest layers."""
    found, _ = merge("ties", rank=32, density=0.5)
    for layer in found:
        stacked = torch.stack([trimmed(one[layer], 0.5) for one in updates(panel).values() if layer in one])
        sign = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
        kept = stacked.sign() == sign
        wanted = (stacked * kept).sum(0) / kept.sum(0).clamp(min=1)
        left, values, right = torch.linalg.svd(wanted, full_matrices=False)
        assert torch.allclose(found[layer], left[:, :32] * values[:32] @ right[:32], atol=1e-5), layer


def trimmed(update, density):
    least = update.abs().flatten().sort(descending=True).values[int(density * update.numel()) - 1]
    return torch.where(update.abs() >= least, update, torch.zeros(()))


def test_what_is_dropped_at_random_follows_from_the_seed_and_nothing_else(merge):
    def bytes_of(seed, rule="dare_ties"):
        return (merge(rule, seed=seed)[1] / "adapter_model.safetensors").read_bytes()

    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = bytes_of(1)
    assert torch.equal(torch.random.get_rng_state(), state), "nobody else's random numbers are used up"
    torch.manual_seed(6)
    assert bytes_of(1) == first != bytes_of(2)
    assert bytes_of(1, "ties") == bytes_of(2, "ties")


def test_the_best_is_that_expert_and_of_equal_ones_the_earlier(panel, merge):
    found, folder = merge("best")
    assert same(found, updates(panel)["geometry"], 0)
    place = expert_folder(panel[1], "geometry")
    assert (folder / "adapter_model.safetensors").read_bytes() == (place / "adapter_model.safetensors").read_bytes()


def test_no_expert_is_touched(panel, tiny_path):
    """Neither its files nor what the model holds of it."""
    files = {path: hashlib.sha256(path.read_bytes()).digest() for path in panel[1].rglob("*") if path.is_file()}
    for rule in ("linear", "svd", "ties", "dare_ties"):
        settings = MergeSettings(merge=rule)
        model = merged_model(base(tiny_path), *panel, blend(panel[0], settings, {}), settings, seed=0)
        for name in EXPERTS:
            held, saved = adapter_tensors(model, f"expert-{name}"), read_adapter(expert_folder(panel[1], name))
            assert held.keys() == saved.keys() and all(torch.equal(held[key], saved[key]) for key in held), rule
    assert files == {path: hashlib.sha256(path.read_bytes()).digest() for path in panel[1].rglob("*") if path.is_file()}


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_peft_alone_loads_it_and_so_do_we(panel, tiny_path, tmp_path, quantize):
    settings = MergeSettings(merge="linear")
    model = merged_model(base(tiny_path, quantize), *panel, blend(panel[0], settings, {}), settings, seed=0).eval()
    sha256 = save_adapter(model, tmp_path)
    wanted = tiny.next_token_logprobs(model, IDS)
    with model.disable_adapter():
        assert not torch.allclose(tiny.next_token_logprobs(model, IDS), wanted, atol=1e-2)
    assert model.active_adapter == POLICY
    assert torch.equal(tiny.next_token_logprobs(load_adapter(base(tiny_path, quantize), tmp_path).eval(), IDS), wanted)
    plain = PeftModel.from_pretrained(base(tiny_path, quantize), str(tmp_path)).eval()
    assert torch.equal(tiny.next_token_logprobs(plain, IDS), wanted)
    assert sha256 == save_adapter(load_adapter(base(tiny_path, quantize), tmp_path), tmp_path / "again")


def test_the_best_may_be_told_by_other_answers_than_it_is_scored_on(panel):
    """Records are of the answers that a merge is scored on, by which the luckiest of several is the best."""
    some, _ = panel
    algebra, geometry, _ = some.experts
    assert geometry.record.accuracy > algebra.record.accuracy
    assert blend(some, MergeSettings(merge="best"), {}).weights == {"geometry": 1.0}
    chosen = blend(some, MergeSettings(merge="best"), {}, best="algebra")
    assert (chosen.weights, chosen.rank) == ({"algebra": 1.0}, algebra.rank)


def test_what_a_rule_cannot_do_is_said(panel, tiny_path, merge, tmp_path):
    some, _ = panel
    with pytest.raises(PanelError, match="rank: 65 is more than the smallest adapted layer has; at most 32 here"):
        merge("svd", rank=65)
    with pytest.raises(PanelError, match="no expert is asked any problem"):
        merge("by-load", {"base": 1.0})

    def of(experts, rule, **keys):
        return blend(Panel(some.base, "", tuple(experts)), MergeSettings(merge=rule, **keys), {})

    first, second, _ = some.experts
    with pytest.raises(PanelError, match="expert 'geometry' was never measured"):
        of((first, replace(second, record=None)), "best")
    elsewhere = replace(second, record=replace(second.record, problems=7))
    with pytest.raises(PanelError, match="'algebra' on 100 of embedded, 'geometry' on 7 of embedded"):
        of((first, elsewhere), "best")
    with pytest.raises(PanelError, match="one expert, 'algebra'"):
        of((first,), "ties")
    with pytest.raises(PanelError, match="no experts"):
        of((), "best")
    large = [replace(one, rank=300) for one in (first, second)]
    with pytest.raises(PanelError, match=r"rank 600 together.*`rank: 300`"):
        of(large, "linear")
