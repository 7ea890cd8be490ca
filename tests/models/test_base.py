"""The frozen base: its values never change, its hash says so, and what cannot be loaded is said in one line."""

import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from models.adapters import adapter_tensors, add_reference
from models.base import (
    ModelError,
    arithmetic_of,
    base_sha256,
    dequantized,
    load_base,
    load_tokenizer,
    quantized_layers,
    to_arithmetic,
)
from models.paths import model_path

PROJECTIONS = 7  # q, k, v, o, gate, up, down


@pytest.fixture
def base(tiny_path):
    return load_base(str(tiny_path), "nf4", "auto")


def values(model):
    return {name: dequantized(layer) for name, layer in quantized_layers(model)}


def eval_forward(model):
    model.eval()
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3, 4]]))


def test_a_process_of_several_quantises_to_the_same_codes(tmp_path):
    """Double quantisation's offset is a mean over the blocks' maxima, 4 x 2^20 / 64 = 65,536 of them in the largest
    layer: two threads add them up in another order than one. Under a launcher a process has one, an export all."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=64, hidden_size=1024, intermediate_size=4096, num_hidden_layers=1,
                         num_attention_heads=8, num_key_value_heads=8)  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    threads, hashes = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch._C.set_num_threads(count)
            hashes.append(base_sha256(load_base(str(tmp_path), "nf4", "float32")))
            assert torch.get_num_threads() == count
    finally:
        torch._C.set_num_threads(threads)
    assert hashes[0] == hashes[1]


def test_every_linear_layer_but_the_head_is_4_bit_and_frozen(base):
    names = [name for name, _ in quantized_layers(base)]
    assert len(names) == tiny.LAYERS * PROJECTIONS
    assert not any("lm_head" in name or "embed" in name for name in names)
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert not list(quantized_layers(load_base("embedded/student", "none", "auto")))


def test_dequantised_values_are_nf4_levels_near_the_checkpoints(base, tiny_path):
    plain = dict(load_base(str(tiny_path), "none", "auto").named_parameters())
    # NF4 has 16 levels per block of 64 weights; the widest gap of its levels is 0.30 of the block's largest weight, so
    # no value is off by more than half of that (and a little: the scales themselves are quantised to 8 bit)
    for name, value in values(base).items():
        exact = plain[f"{name}.weight"]
        blocks = exact.flatten().view(-1, 64)
        off = (value - exact).flatten().view(-1, 64).abs()
        assert (off <= 0.18 * blocks.abs().amax(1, keepdim=True)).all(), name
        assert value.dtype == torch.float32 and value.shape == exact.shape
        assert max(len(block.unique()) for block in value.flatten().view(-1, 64)) <= 16
    # the rest is the checkpoint's own
    assert torch.equal(base.lm_head.weight, plain["lm_head.weight"])


def test_dequantised_is_a_copy(base):
    layer = next(quantized_layers(base))[1]
    dequantized(layer).zero_()
    assert dequantized(layer).abs().sum() > 0
    plain = torch.nn.Linear(3, 2)
    dequantized(plain).zero_()
    assert plain.weight.abs().sum() > 0


def test_an_eval_forward_leaves_the_weights_alone(base):
    before, digest = values(base), base_sha256(base)
    eval_forward(base)
    after = values(base)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert base_sha256(base) == digest
    assert all(layer.support_avx512bf16_for_cpu is False for _, layer in quantized_layers(base))


def test_without_the_flag_an_eval_forward_corrupts_them(base):
    """bitsandbytes#2078. When this fails, it is mended upstream and `load_base` needs no flag."""
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16")
    layers = list(quantized_layers(base))
    before = values(base)
    for _, layer in layers:
        layer.support_avx512bf16_for_cpu = True
    eval_forward(base)
    try:
        after = values(base)
    except RuntimeError:  # the packed weight no longer has the size that it is decoded with
        return
    assert not all(torch.equal(before[name], after[name]) for name in before)


def test_another_arithmetic_keeps_the_codes_and_the_adapter(tiny_path):
    """Loading in bfloat16 instead would round the checkpoint before it is quantised."""
    policy = tiny.policy(tiny_path)
    before, adapter = values(policy), adapter_tensors(policy)
    to_arithmetic(policy.get_base_model(), torch.bfloat16)
    assert arithmetic_of(policy) == torch.bfloat16
    assert policy(torch.tensor([[1, 2, 3]])).logits.dtype == torch.bfloat16
    assert all(torch.equal(after, before[name]) for name, after in values(policy).items())
    assert all(torch.equal(after, adapter[name]) for name, after in adapter_tensors(policy).items())
    assert {tensor.dtype for tensor in adapter_tensors(policy).values()} == {torch.float32}


def test_the_hash_is_of_the_base_alone(tiny_path, base):
    bare = base_sha256(base)
    assert base_sha256(load_base(str(tiny_path), "nf4", "auto")) == bare, "the same checkpoint, loaded twice"
    model = tiny.policy(tiny_path)
    assert base_sha256(model) == bare, "an adapter is not part of it"
    add_reference(model, adapter_tensors(model), "here")
    tiny.nudge(model, 1.0)
    assert base_sha256(model) == bare


@pytest.mark.parametrize("what", ["weight", "absmax", "second absmax", "code", "norm", "bias", "buffer"])
def test_one_changed_bit_changes_the_hash(base, what):
    bare = base_sha256(base)
    layer = base.model.layers[1].self_attn.q_proj
    state = layer.weight.quant_state
    tensor = {
        "weight": layer.weight.data,
        "absmax": state.absmax,
        "second absmax": state.state2.absmax,
        "code": state.code,
        "norm": base.model.layers[0].input_layernorm.weight.data,
        "bias": layer.bias.data,
        "buffer": base.model.rotary_emb.inv_freq,
    }[what]
    tensor.flatten().view(torch.uint8)[0] ^= 1
    assert base_sha256(base) != bare
    tensor.flatten().view(torch.uint8)[0] ^= 1
    assert base_sha256(base) == bare


def test_the_shipped_models_are_found_by_name():
    assert model_path("embedded/student").endswith("models/embedded/student")
    assert model_path("Qwen/Qwen2.5-3B") == "Qwen/Qwen2.5-3B"
    assert load_base("embedded/student", "nf4", "auto").config.model_type == "qwen2"


def test_the_tokenizer_is_the_shipped_one(tiny_path):
    """transformers may build another from a config that says qwen2: digits must still stand one by one."""
    for name in ("embedded/student", str(tiny_path)):
        tokenizer = load_tokenizer(name)
        text = "<|user|>12 + 345?<|assistant|><think>\n12+345=357\n</think>\n\\boxed{357}<|end|>"
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == text
        assert [t for t in tokenizer.convert_ids_to_tokens(ids) if t.isdigit()] == list("1234512345357357")
        assert len(tokenizer) == tiny.VOCABULARY
        assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|pad|>")


def test_a_tokenizer_without_pad_pads_with_its_end(tiny_path, tmp_path):
    folder = shutil.copytree(tiny_path, tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["pad_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    config["eos_token"] = None
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no eos_token"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("load", [lambda name: load_base(name, "nf4", "auto"), load_tokenizer])
@pytest.mark.parametrize("name", ["no-such/model", "embedded/studnet", "/no/such/folder"])
def test_a_missing_model_is_one_clear_line(load, name):
    with pytest.raises(ModelError) as caught:
        load(name)
    message = str(caught.value)
    assert f"model '{name}' cannot be loaded (neither a local folder, nor a shipped model" in message
    assert "\n" not in message and caught.value.user_message


@pytest.mark.parametrize("quantize", ["nf4", "none"])
@pytest.mark.parametrize("damage", ["cut", "config", "shape", "lacking", "empty"])
def test_a_damaged_model_is_one_clear_line(tiny_path, tmp_path, damage, quantize):
    """transformers itself loads the third into a 4-bit model, and fills the gap of the fourth with random numbers."""
    folder = shutil.copytree(tiny_path, tmp_path / "m")
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:2000])
    elif damage == "config":
        config.write_text("{not json")
    elif damage == "shape":
        config.write_text(config.read_text().replace(f'"intermediate_size": {tiny.MLP}', '"intermediate_size": 192'))
    elif damage == "lacking":
        tensors = load_file(weights)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    else:
        weights.unlink()
    with pytest.raises(ModelError) as caught:
        load_base(str(folder), quantize, "auto")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
