"""Families: layers are called what the table says; targets that are not there, and what is no base, are refused."""

import json

import pytest
import tiny
import torch
from tiny_families import FAMILIES, config_of, write_family

from models.adapters import (
    AdapterError,
    adapter_sha256,
    adapter_tensors,
    linear_layers,
    linear_names,
    new_adapter,
    save_adapter,
    target_modules,
)
from models.base import ModelError, load_base, quantized_layers
from models.families import ALL_LINEAR, LINEARS, SEPARATE, TIED, read_config, refused, unknown_targets
from models.folding import folded_weights
from models.settings import Lora, Model
from orchestra.plan.shapes import shape_of

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def on_meta(config):
    """A model without values."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module", params=sorted(LINEARS))
def known(request):
    """A tiny model of each family in the table, and its name there."""
    from transformers import AutoConfig

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "pad_token_id": 0}  # fmt: skip
    return request.param, on_meta(AutoConfig.for_model(request.param, **shape))


# the table


def test_the_table_has_the_names_and_shapes_of_transformers_own_modules(known, tmp_path):
    name, model = known
    layers = linear_layers(model)
    assert len(layers) == 2 * len(LINEARS[name])
    assert {layer.rpartition(".")[2] for layer in layers} == set(LINEARS[name])
    model.config.to_json_file(tmp_path / "config.json")
    shape = shape_of(str(tmp_path))
    for layer in layers:
        module = model.get_submodule(layer)
        assert shape.linears[layer.rpartition(".")[2]] == (module.in_features, module.out_features)
    # the largest vector is a norm's, with hidden size, or a bias
    counted = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2)
    assert shape.parameters == counted and shape.tied == model.config.tie_word_embeddings
    assert type(model.config)().tie_word_embeddings == (name in TIED)
    assert not refused(model.config.to_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_every_layer_of_the_blocks_and_never_the_head(family):
    model = on_meta(config_of(family))
    names = target_modules(model, (ALL_LINEAR,))
    assert sorted(names) == sorted(LINEARS[FAMILIES[family][0]]) and "lm_head" not in names
    adapted = new_adapter(model, Lora(rank=2, alpha=4.0), seed=0)
    assert sum(hasattr(module, "lora_A") for module in adapted.modules()) == len(
        linear_layers(on_meta(config_of(family)))
    )
    assert len(adapter_tensors(adapted)) == 2 * 2 * len(names)


def test_by_name_it_is_found_without_weights(tmp_path):
    config_of("phi3").save_pretrained(tmp_path)
    assert sorted(linear_names(str(tmp_path))) == sorted(LINEARS["phi3"])


def test_for_qwen2_it_is_the_seven_layers_to_the_byte(tiny_path, tmp_path):
    """PEFT draws in the order of the model's modules, whatever the order of the names."""
    made = {}
    for targets in ((ALL_LINEAR,), SEVEN, SEVEN[::-1]):
        model = new_adapter(
            load_base(str(tiny_path), "nf4", "float32"), Lora(rank=4, alpha=8.0, targets=targets), seed=1
        )
        made[targets] = adapter_sha256(adapter_tensors(model)), set(model.peft_config["default"].target_modules)
    assert made[(ALL_LINEAR,)] == made[SEVEN] == made[SEVEN[::-1]] and made[SEVEN][1] == set(SEVEN)
    assert Lora().targets == (ALL_LINEAR,)


@pytest.mark.parametrize("family", ["phi3", "gemma3"])
def test_what_is_quantised_adapted_and_folded_is_the_same_and_survives_the_export(family, tmp_path):
    """Fused layers and untied embeddings; extra norms, a cap on the logits and tied embeddings."""
    from transformers import AutoModelForCausalLM

    from evals.divergence import mean_kl

    checkpoint = str(write_family(family, tmp_path / "base"))
    base = load_base(checkpoint, "nf4", "float32")
    layers = linear_layers(base)
    assert [name for name, _ in quantized_layers(base)] == layers
    policy = new_adapter(base, Lora(rank=4, alpha=8.0), seed=1)
    tiny.nudge(policy, 0.1)
    folded = [name for name, _ in folded_weights(policy) if name.endswith(".weight")]
    assert folded == [f"{name}.weight" for name in layers]
    save_adapter(policy, tmp_path / "adapter")
    tiny.merge(Model(base=checkpoint), tmp_path / "adapter", tmp_path / "merged", torch.float32)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tied = reloaded.lm_head.weight.data_ptr() == reloaded.model.embed_tokens.weight.data_ptr()
    assert tied == (family == "gemma3")
    sequences = [([5, 17, 99, 3], [250, 8, 77, 12, 400]), ([1, 2], [33, 44, 55])]
    assert mean_kl(policy.eval(), reloaded, sequences).kl < 1e-9
    with policy.disable_adapter():
        assert mean_kl(policy, reloaded, sequences).kl > 1e-3


# names


@pytest.mark.parametrize(
    ("family", "targets", "said"),
    [
        ("phi3", SEVEN, "'q_proj' is no linear layer of phi3; it has o_proj, qkv_proj, gate_up_proj, down_proj, and"),
        ("phi3", ("o_proj", "qkv_porj"), "did you mean 'qkv_proj'?"),
        ("llama", ("q_proj", "qkv_proj"), "'qkv_proj' is no linear layer of llama; it has q_proj, k_proj, v_proj"),
        ("smollm", ("lm_head",), "'lm_head' is no linear layer"),
        ("qwen3", ("q_norm",), "'q_norm' is no linear layer"),
        ("qwen2", (ALL_LINEAR, "q_proj"), "'all-linear' is no linear layer of qwen2 (which stands alone)"),
        ("qwen2", ("proj",), "'proj' is no linear layer"),
    ],
)
def test_a_name_that_is_not_there_is_an_error(family, targets, said):
    with pytest.raises(AdapterError) as caught:
        new_adapter(on_meta(config_of(family)), Lora(targets=targets), seed=0)
    message = str(caught.value)
    assert message.startswith("model.lora.targets: ") and said in message and "\n" not in message


def test_a_layer_may_be_named_more_closely():
    model = new_adapter(on_meta(config_of("llama")), Lora(rank=2, targets=("layers.1.self_attn.q_proj",)), seed=0)
    assert [name for name, module in model.named_modules() if hasattr(module, "lora_A")] == [
        "base_model.model.model.layers.1.self_attn.q_proj"
    ]
    assert unknown_targets(("layers.2.self_attn.q_proj",), linear_layers(on_meta(config_of("llama"))), "llama")
    assert not unknown_targets(SEVEN, SEPARATE, "llama") and "no linear layers" in unknown_targets(
        (ALL_LINEAR,), (), "x"
    )


# what cannot be a base

CANNOT = {
    "mixtral": ({"model_type": "mixtral", "num_local_experts": 8}, "mixture of experts (mixtral, 8 of them)"),
    "qwen3_moe": ({"model_type": "qwen3_moe", "num_experts": 128}, "mixture of experts (qwen3_moe, 128 of them)"),
    "deepseek_v3": ({"model_type": "deepseek_v3", "n_routed_experts": 256}, "mixture of experts"),
    "qwen3_vl_moe": (
        {"model_type": "qwen3_vl_moe", "vision_config": {}, "text_config": {"num_experts": 60}},
        "mixture of experts (qwen3_vl_moe, 60",
    ),
    "gemma3": ({"model_type": "gemma3", "vision_config": {}, "text_config": {}}, "not a model of text alone (gemma3)"),
    "4-bit": ({"model_type": "qwen2", "quantization_config": {"quant_method": "bitsandbytes"}}, "quantised weights"),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_a_base_is_refused_before_its_weights_are_looked_for(tmp_path, name):
    config, said = CANNOT[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        load_base(str(tmp_path), "nf4", "float32")
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert said in refused(read_config(str(tmp_path)))


@pytest.mark.parametrize("experts", [0, 1, None])
def test_a_dense_model_that_speaks_of_experts_is_dense(experts):
    assert not refused({"model_type": "x", "num_experts": experts, "num_experts_per_tok": 8})


@pytest.mark.parametrize("name", ["", "\0", "x" * 5000, "a/**", "[a", "~nobody/m", "/dev/null"])
def test_names_that_no_file_has(name):
    assert read_config(name) is None


@pytest.mark.parametrize("text", ["{", "[]", '"text"', "null", "\ufeff{}"])
def test_a_config_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert read_config(str(tmp_path)) is None
