"""Folding: W' = W + (alpha / rank) B A, out of place, exact, and the very policy that was trained."""

import json
import shutil
import weakref

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from evals.divergence import mean_kl
from models.adapters import (
    POLICY,
    AdapterError,
    adapter_sha256,
    adapter_tensors,
    linear_layers,
    load_adapter,
    new_adapter,
    save_adapter,
)
from models.base import base_sha256, dequantized, load_base, load_tokenizer, quantized_layers, skeleton
from models.checkpoint import Checkpoint, write_shards
from models.engines.protocol import ADAPTER_TENSORS
from models.folding import folded_weights
from models.merge import merged_shards
from models.settings import Lora, Model

SEQUENCES = [([1, 2, 3], list(range(40 * i, 40 * i + 30))) for i in range(1, 9)]


def layer(model, name):
    """A (possibly adapted) linear layer of a PEFT model by its name in the checkpoint."""
    return model.get_submodule(f"base_model.model.{name}")


@pytest.fixture(scope="module")
def policy(tiny_path):
    return tiny.policy(tiny_path)


@pytest.fixture(scope="module")
def adapter(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(policy, folder)
    return folder


def test_by_hand():
    """rank 1, alpha 2: W + 2 B A with W = [[1, 2], [3, 4]], B = [1, -1], A = [0.5, 0.25]."""
    from peft import LoraConfig, get_peft_model

    plain = torch.nn.Sequential()
    plain.add_module("q", torch.nn.Linear(2, 2))
    plain.q.weight.data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    plain.q.bias.data = torch.tensor([7.0, 8.0])
    model = get_peft_model(plain, LoraConfig(r=1, lora_alpha=2, target_modules=["q"]))
    adapted = model.base_model.model.q
    adapted.lora_A[POLICY].weight.data = torch.tensor([[0.5, 0.25]])
    adapted.lora_B[POLICY].weight.data = torch.tensor([[1.0], [-1.0]])
    folded = dict(folded_weights(model))
    # 2 * [[0.5, 0.25], [-0.5, -0.25]] = [[1, 0.5], [-1, -0.5]]
    assert torch.equal(folded["q.weight"], torch.tensor([[2.0, 2.5], [2.0, 3.5]]))
    assert torch.equal(folded["q.bias"], torch.tensor([7.0, 8.0]))
    assert torch.equal(dict(folded_weights(model, adapter=None))["q.weight"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_every_layer_is_base_plus_scaled_product(tiny_path, rank):
    model = tiny.policy(tiny_path, rank=rank)
    folded = dict(folded_weights(model))
    for name, value in folded.items():
        if name.endswith(".bias"):
            assert torch.equal(value, layer(model, name.removesuffix(".bias")).base_layer.bias)
            continue
        adapted = layer(model, name.removesuffix(".weight"))
        a, b = adapted.lora_A[POLICY].weight.double(), adapted.lora_B[POLICY].weight.double()
        wanted = dequantized(adapted.base_layer).double() + 2.0 * (b @ a)  # alpha = 2 rank
        assert (value - wanted).abs().max() < 1e-6, name
    weights = [name for name in folded if name.endswith(".weight")]
    assert len(weights) == 7 * tiny.LAYERS and len(folded) - len(weights) == 3 * tiny.LAYERS


def test_names_are_the_checkpoints_and_a_bias_follows_its_weight(policy, tiny_path):
    own = dict(load_base(str(tiny_path), "none", "auto").named_parameters())
    names = [name for name, _ in folded_weights(policy)]
    assert set(names) <= set(own)
    for i, name in enumerate(names):
        if name.endswith(".bias"):
            assert names[i - 1] == name.replace(".bias", ".weight")


def test_an_unquantised_base_yields_what_is_adapted_and_what_stands_beside_it(tiny_path):
    """vLLM rebuilds a packed layer (q, k and v) from all of its parts, or from whatever lay in memory."""
    base = load_base(str(tiny_path), "none", "auto")
    assert not folded_weights(base).announced, "nothing, where nothing is adapted"
    model = new_adapter(base, Lora(rank=2, alpha=4.0, targets=("q_proj",)), seed=0)
    weights = {name: x for name, x in folded_weights(model) if name.endswith(".weight")}
    assert len(weights) == 4 * tiny.LAYERS and all(".self_attn." in name for name in weights)
    plain = dict(load_base(str(tiny_path), "none", "auto").named_parameters())
    tiny.nudge(model, 0.1)
    for name, value in folded_weights(model):
        assert torch.equal(value, plain[name]) == (not name.endswith("q_proj.weight")), name


def test_the_bare_base_and_layers_without_adapter(tiny_path):
    base = load_base(str(tiny_path), "nf4", "auto")
    bare = dict(folded_weights(base, adapter=None))
    model = new_adapter(load_base(str(tiny_path), "nf4", "auto"), Lora(rank=2, alpha=4.0, targets=("q_proj",)), seed=0)
    tiny.nudge(model, 0.1)
    folded = dict(folded_weights(model))
    assert folded.keys() == bare.keys()
    for name in bare:
        assert torch.equal(folded[name], bare[name]) == (not name.endswith("q_proj.weight")), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_is_announced_before_anything_is_made(policy, monkeypatch, dtype):
    """And made one layer at a time: a base that barely fits has no room for its float32 copy."""
    made = []
    monkeypatch.setattr("models.folding.dequantized", lambda linear: made.append(linear) or dequantized(linear))
    weights = folded_weights(policy, to=dtype)
    assert len(weights.announced) == 10 * tiny.LAYERS and not made
    for count, (weight, (name, tensor)) in enumerate(zip(weights.announced, weights, strict=True), 1):
        assert (weight.name, weight.shape, weight.dtype) == (name, tuple(tensor.shape), tensor.dtype)
        assert len(made) == sum(one.name.endswith(".weight") for one in weights.announced[:count])


def test_weights_are_made_of_what_there_is_then(tiny_path):
    model = tiny.policy(tiny_path)
    weights = folded_weights(model)
    first, again = dict(weights), dict(weights)
    assert all(torch.equal(first[name], again[name]) for name in first)
    tiny.nudge(model, 0.1)
    assert not any(torch.equal(first[name], x) for name, x in weights if name.endswith(".weight"))


def test_cast_once(policy):
    half = dict(folded_weights(policy, to=torch.bfloat16))
    for name, value in folded_weights(policy):
        assert torch.equal(half[name], value.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_small_adapter_survives_the_cast_to_bfloat16(tiny_path, dtype):
    """Weights of about 0.2 are 2^-3 to 2^-2: bfloat16's spacing there is 2^-10, about 1e-3, and an update of 1e-5 is
    far below half of it. Exact NF4 values lie anywhere between two of the grid's, so one in a hundred of them rounds
    the other way and the update survives on average; from the grid's own values few would."""
    model = tiny.policy(tiny_path, noise=0, rank=32, dtype=dtype)
    tiny.nudge(model, 0.0)
    before = {name: value for name, value in folded_weights(model) if name.endswith(".weight")}
    tiny.nudge(model, 3e-5)
    after = {name: value for name, value in folded_weights(model) if name.endswith(".weight")}
    update = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert float(update.abs().max()) < 1e-3

    def kept(rounded):
        served = torch.cat(
            [(rounded(after[name]).float() - before[name].bfloat16().float()).flatten() for name in before]
        )
        return float(served @ update / (update @ update))

    assert kept(lambda value: value.bfloat16()) == pytest.approx(1.0, abs=0.3)
    on_grid = torch.cat([(before[name].bfloat16() + (after[name] - before[name])).bfloat16().float().flatten()
                         - before[name].bfloat16().float().flatten() for name in before])  # fmt: skip
    assert float(on_grid @ update / (update @ update)) < 0.3


def test_twenty_folds_leave_base_and_adapter_as_they_were(policy):
    base, adapter = base_sha256(policy), adapter_sha256(adapter_tensors(policy))
    first = dict(folded_weights(policy))
    for _ in range(20):
        for _, tensor in folded_weights(policy):
            tensor.zero_()  # what is handed out is nobody's
    assert base_sha256(policy) == base and adapter_sha256(adapter_tensors(policy)) == adapter
    assert all(torch.equal(first[name], tensor) for name, tensor in folded_weights(policy))


def test_merging_into_4_bit_would_not_be_the_policy(policy, tiny_path):
    """Why folding is done at all: PEFT's own merge rounds to NF4 again, and unmerging does not bring the base back."""
    other = tiny.policy(tiny_path)
    before = base_sha256(other)
    other.merge_adapter()
    other.unmerge_adapter()
    assert base_sha256(other) != before


def merged_tensors(model, adapter, base="dequantized"):
    """{name: tensor} of the merged checkpoint, in float32."""
    files = merged_shards(model, adapter, torch.float32, base)
    return {weight.name: weight.make() for weights in files.values() for weight in weights}


@pytest.mark.parametrize("quantize", ["nf4", "none"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_streamed_and_loaded_bases_are_the_same_to_the_bit(tiny_path, adapter, quantize, dtype):
    """One layer at a time, quantised and decoded by itself, is what transformers and bitsandbytes made of it when the
    policy was trained; what is not quantised was rounded to the arithmetic of training, and stays so."""
    merged = merged_tensors(Model(base=str(tiny_path), quantize=quantize, dtype=dtype), adapter)
    base = load_base(str(tiny_path), quantize, dtype)
    rest = {name: value.float() for name, value in base.state_dict().items() if value.is_floating_point()}
    folded = dict(folded_weights(load_adapter(base, adapter)))
    assert merged.keys() >= folded.keys()
    for name, value in merged.items():
        assert torch.equal(value, folded.get(name, rest.get(name))), name


def test_what_is_quantised_is_what_may_be_adapted(tiny_path, tied_path):
    """Told from the modules alone, without loading the base."""
    for path in (tiny_path, tied_path):
        quantised = {name for name, _ in quantized_layers(load_base(str(path), "nf4", "auto"))}
        assert quantised == set(linear_layers(skeleton(str(path))))


def test_onto_the_original_base_by_hand(tiny_path, adapter, policy):
    """The checkpoint's own values plus 2 B A (alpha = 2 rank), and nothing else is touched."""
    own = dict(load_base(str(tiny_path), "none", "float32").named_parameters())
    merged = merged_tensors(Model(base=str(tiny_path)), adapter, "original")
    assert merged.keys() == own.keys()
    for name, value in merged.items():
        wanted = own[name].double()
        if name.endswith("_proj.weight"):
            adapted = layer(policy, name.removesuffix(".weight"))
            wanted = wanted + 2.0 * adapted.lora_B[POLICY].weight.double() @ adapted.lora_A[POLICY].weight.double()
        assert (value - wanted).abs().max() < 1e-6, name


def test_nothing_is_made_before_it_is_written_and_one_at_a_time(tiny_path, adapter, tmp_path, monkeypatch):
    held = []
    real = Checkpoint.read

    def read(self, file, name):
        held.append(weakref.ref(value := real(self, file, name)))
        assert sum(one() is not None for one in held) <= 2, "a tensor and the one before it"
        return value

    monkeypatch.setattr(Checkpoint, "read", read)
    shards = merged_shards(Model(base=str(tiny_path)), adapter, torch.bfloat16)
    assert not held
    write_shards(tmp_path, shards)
    assert len(held) == sum(len(one) for one in shards.values())


@pytest.mark.parametrize("path", ["tiny_path", "tied_path"])
def test_the_merged_and_reloaded_model_is_the_policy(path, request, tmp_path):
    """Exactly: KL below 1e-9 nats a token in float32. Into the unquantised checkpoint it is another model."""
    from transformers import AutoModelForCausalLM

    checkpoint = str(request.getfixturevalue(path))
    policy = tiny.policy(checkpoint).eval()
    save_adapter(policy, tmp_path / "adapter")

    def reloaded(name, adapter=tmp_path / "adapter", base="dequantized"):
        tiny.merge(Model(base=checkpoint), adapter, tmp_path / name, torch.float32, base)
        return AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()

    right = reloaded("merged")
    assert right.dtype == torch.float32 and not hasattr(right.config, "quantization_config")
    found = mean_kl(policy, right, SEQUENCES)
    assert found.kl < 1e-9 and found.agreement == 1.0
    assert mean_kl(policy, reloaded("original", base="original"), SEQUENCES).kl > 1e-3
    assert mean_kl(policy, reloaded("bare", adapter=None), SEQUENCES).kl > 1e-3
    tied = path == "tied_path"
    assert (right.lm_head.weight.data_ptr() == right.model.embed_tokens.weight.data_ptr()) == tied
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) != tied  # noqa: SIM118


def test_merged_in_half_precision_is_close(policy, adapter, tiny_path, tmp_path):
    from transformers import AutoModelForCausalLM

    tiny.merge(Model(base=str(tiny_path)), adapter, tmp_path, torch.float16)
    half = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert half.dtype == torch.float16
    assert 0 < mean_kl(policy.eval(), half.float().eval(), SEQUENCES).kl < 1e-4


def test_what_is_written_stands_alone(tiny_path, adapter, tmp_path):
    folder = tmp_path / "merged"
    tiny.merge(Model(base=str(tiny_path)), adapter, folder, torch.bfloat16)
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= names
    ours, theirs = load_tokenizer(str(folder)), load_tokenizer(str(tiny_path))
    text = "<|user|>12 + 345?<|assistant|>"
    assert ours(text).input_ids == theirs(text).input_ids and ours.chat_template == theirs.chat_template
    assert str(tiny_path) not in "".join(path.read_text() for path in folder.glob("*.json"))


def test_policy_loaded_again_folds_to_the_same(policy, adapter, tiny_path):
    again = dict(folded_weights(load_adapter(load_base(str(tiny_path), "nf4", "auto"), adapter)))
    assert all(torch.equal(again[name], tensor) for name, tensor in folded_weights(policy))


@pytest.mark.parametrize(
    ("key", "value"), [("use_rslora", True), ("use_dora", True), ("bias", "all"), ("rank_pattern", {"q_proj": 2})]
)
def test_what_is_more_than_plain_lora_is_not_folded_as_if_it_were(tiny_path, adapter, tmp_path, key, value):
    other = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(AdapterError, match=rf"more than plain LoRA \({key}\)"):
        merged_shards(Model(base=str(tiny_path)), other, torch.float32)


def test_an_adapter_of_another_model_is_not_dropped_without_a_word(tiny_path, adapter, tmp_path):
    other = shutil.copytree(adapter, tmp_path / "adapter")
    tensors = {name.replace("layers.1.", "layers.7."): x for name, x in load_file(other / ADAPTER_TENSORS).items()}
    save_file(tensors, other / ADAPTER_TENSORS)
    with pytest.raises(AdapterError, match=r"7 layers are not of .*, the first is 'model.layers.7.mlp.down_proj'"):
        merged_shards(Model(base=str(tiny_path)), other, torch.float32)
