"""A mixture inside the network: tokens take each expert by how far their hidden state lies along its direction."""

import pytest
import tiny
import torch

from models.adapters import adapter_tensors, load_adapter, new_adapter, read_updates, save_adapter, write_adapter
from models.base import load_base
from models.experts import Lineage, Panel, PanelError, expert_folder, expert_of, write_panel
from models.mixture import layers_of, mixture_model
from models.settings import Lora, MixtureSettings

IDS = [5, 17, 99, 3, 250, 8]
ALL = MixtureSettings(layers="all")


def base(path, quantize="none"):
    return load_base(str(path), quantize, "float32")


@pytest.fixture(scope="module")
def panel_of(tiny_path, tmp_path_factory):
    """panel_of(lora, ...) -> (panel, its folder), an expert for each, with updates that are not zero."""

    def make(*loras, seeds=None):
        folder = tmp_path_factory.mktemp("panel")
        sources = {}
        for number, lora in enumerate(loras):
            seed = number if seeds is None else seeds[number]
            model = new_adapter(base(tiny_path), lora, seed=seed)
            generator = torch.Generator().manual_seed(seed)
            random = {n: torch.randn(t.shape, generator=generator) * 0.1 for n, t in adapter_tensors(model).items()}
            write_adapter(model, random)
            sources[f"e{number}"] = folder / "made" / f"e{number}"
            save_adapter(model, sources[f"e{number}"])
        experts = tuple(expert_of(source, name, (), Lineage("")) for name, source in sources.items())
        return write_panel(folder / "panel", Panel(str(tiny_path), "", experts), sources), folder / "panel"

    return make


@pytest.fixture(scope="module")
def differing(panel_of):
    """Two experts of different rank and scale."""
    return panel_of(Lora(rank=4, alpha=8.0), Lora(rank=2, alpha=6.0))


def said(path, panel, settings, quantize="none"):
    model = mixture_model(base(path, quantize), *panel, settings, seed=0).eval()
    return tiny.next_token_logprobs(model, IDS)


def alone(path, panel, name, quantize="none"):
    return tiny.next_token_logprobs(load_adapter(base(path, quantize), expert_folder(panel[1], name)).eval(), IDS)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_equal_experts_mix_to_that_expert(tiny_path, panel_of, quantize):
    """The coefficients of a token add up to 1, so it does not matter what they are."""
    same = panel_of(Lora(rank=4, alpha=8.0), Lora(rank=4, alpha=8.0), seeds=(1, 1))
    wanted = alone(tiny_path, same, "e0", quantize)
    assert torch.allclose(said(tiny_path, same, ALL, quantize), wanted, atol=1e-4)
    bare = tiny.next_token_logprobs(base(tiny_path, quantize), IDS)
    assert not torch.allclose(bare, wanted, atol=0.1), "the experts do something"


def test_each_layer_computes_what_arrow_says(tiny_path, differing):
    """y = W x + sum_e softmax(|v_e . x| / t)_e s_e B_e A_e x at ranks 4 and 2, scales
    2 and 3; 15 steps of power iteration come near v_e: 1 would be the leading singular value itself."""
    temperature = 0.5
    model = mixture_model(
        base(tiny_path), *differing, MixtureSettings(layers="all", temperature=temperature), seed=0
    ).eval()
    name = "model.layers.1.mlp.down_proj"
    layer = model.get_submodule(f"base_model.model.{name}")
    x = torch.randn(1, 5, layer.in_features, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = layer(x)
        updates = []
        for expert in ("e0", "e1"):
            update = read_updates(expert_folder(differing[1], expert))[name]
            updates.append(update.added_to(torch.zeros(layer.out_features, layer.in_features)))
        prototypes = layer.lora_arrow["arrow_router"].prototypes
        for direction, update in zip(prototypes, updates, strict=True):
            assert float((update @ direction).norm() / torch.linalg.matrix_norm(update, 2)) > 0.95
        share = ((x[0] @ prototypes.T).abs() / temperature).softmax(-1)
        wanted = layer.base_layer(x)[0] + sum(share[:, [at]] * (x[0] @ update.T) for at, update in enumerate(updates))
    assert torch.allclose(found[0], wanted, atol=1e-5)
    assert float(share.min()) < 0.45 < 0.55 < float(share.max()), "soft, and not the same for all tokens"


def test_of_one_at_a_time_each_token_has_one_whole_expert(tiny_path, differing):
    model = mixture_model(base(tiny_path), *differing, MixtureSettings(layers="all", top_k=1), seed=0).eval()
    both = mixture_model(base(tiny_path), *differing, MixtureSettings(layers="all", temperature=1e-4), seed=0).eval()
    one, cold = (tiny.next_token_logprobs(each, IDS) for each in (model, both))
    assert torch.allclose(one, cold, atol=1e-3), "as of all of them where the softmax is sharp"
    assert not torch.allclose(one, said(tiny_path, differing, ALL), atol=1e-3)


@pytest.mark.parametrize(
    ("layers", "middle"), [(1, (0,)), (2, (0, 1)), (3, (0, 1, 2)), (4, (1, 2)), (8, (2, 3, 4, 5)), (36, range(9, 27))]
)
def test_the_middle_half(layers, middle):
    assert layers_of(MixtureSettings(), layers) == tuple(middle)
    assert layers_of(ALL, layers) == tuple(range(layers))


def test_in_the_other_layers_the_base_is_alone(tmp_path):
    """On the shipped student, of whose four layers the two in the middle are mixed."""
    save_adapter(new_adapter(load_base("embedded/student", "none", "float32"), Lora(rank=2), seed=0), tmp_path / "made")
    experts = tuple(expert_of(tmp_path / "made", name, (), Lineage("")) for name in ("one", "two"))
    sources = dict.fromkeys(("one", "two"), tmp_path / "made")
    panel = write_panel(tmp_path / "panel", Panel("embedded/student", "", experts), sources)
    student = load_base("embedded/student", "none", "float32")
    model = mixture_model(student, panel, tmp_path / "panel", MixtureSettings(), seed=0)
    tiny.next_token_logprobs(model.eval(), IDS)  # a router on a layer without experts would fail
    adapted = {int(name.split(".layers.")[1].split(".")[0]) for name, _ in model.named_parameters() if "lora_" in name}
    assert (student.config.num_hidden_layers, adapted) == (4, {1, 2})


def test_the_same_twice_whatever_was_drawn_between(tiny_path, differing):
    first = said(tiny_path, differing, ALL)
    torch.manual_seed(99)
    torch.randn(7)
    assert torch.equal(said(tiny_path, differing, ALL), first)


def test_what_cannot_be_mixed_is_said(tiny_path, panel_of, differing):
    def mixed(panel, **keys):
        return mixture_model(base(tiny_path), *panel, MixtureSettings(**keys), seed=0)

    with pytest.raises(PanelError, match="top_k: 3 is more than the panel's 2 experts"):
        mixed(differing, top_k=3)
    with pytest.raises(PanelError, match="1 experts; it takes two"):
        mixed(panel_of(Lora(rank=2)))
    other = panel_of(Lora(rank=2, targets=("q_proj",)), Lora(rank=2, targets=("v_proj",)))
    with pytest.raises(PanelError, match=r"'e0' and 'e1' adapt different layers \(q_proj and v_proj\)"):
        mixed(other)
