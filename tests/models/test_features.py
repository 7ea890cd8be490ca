"""What a router reads of a prompt: the frozen base's hidden states, whatever adapter is on."""

import numpy as np
import pytest
import tiny
import tiny_families
import torch

from models.adapters import adapter_tensors
from models.base import base_sha256
from models.features import RouterError, layer_of, prompt_features

SHORT, LONG = [5, 9, 17], [30, 8, 77, 41, 102, 9, 63, 200, 11]


@pytest.fixture(scope="module")
def policy(tiny_path):
    """Two layers of 64, in 4-bit, with an adapter that changes what it says, in training mode."""
    return tiny.policy(tiny_path, dropout=0.5).train()


def by_transformers(model, tokens, layer):
    """The mean of hidden_states[layer], alone and without padding."""
    with torch.no_grad(), model.disable_adapter():
        model.eval()
        states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    model.train()
    return states[layer][0].float().mean(0).numpy()


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_they_are_the_mean_of_the_frozen_bases_hidden_states(policy, layer):
    features_PH = prompt_features(policy, [SHORT, LONG], layer)
    assert features_PH.dtype == np.float32 and features_PH.shape == (2, tiny.HIDDEN)
    for row, tokens in zip(features_PH, (SHORT, LONG), strict=True):
        np.testing.assert_allclose(row, by_transformers(policy, tokens, layer), rtol=1e-4, atol=1e-5)


def test_half_of_the_layers_unless_another_is_asked(policy):
    assert [layer_of(policy, layer) for layer in (None, 0, 2)] == [1, 0, 2]
    np.testing.assert_array_equal(prompt_features(policy, [LONG]), prompt_features(policy, [LONG], 1))
    with pytest.raises(RouterError, match=r"router.layer: 3 is not a layer of this base; 0 to 2 are"):
        prompt_features(policy, [LONG], 3)


def test_a_prompt_has_the_same_ones_whatever_stands_beside_it(policy):
    """To 1e-5 of numbers of order 1: what is left is the rounding of a matrix product of another shape."""
    alone = prompt_features(policy, [SHORT])[0]
    for beside in ([LONG], [LONG, SHORT[::-1]], [[7] * 60, LONG, [1]]):
        for rows in (1, 2, 16):
            for pad in (0, 300):
                together = prompt_features(policy, [*beside, SHORT], rows=rows, pad_token_id=pad)
                np.testing.assert_allclose(together[-1], alone, rtol=1e-5, atol=1e-5)


def test_the_same_prompts_have_the_same_bytes_and_stay_in_order(policy):
    prompts = [LONG, SHORT, [4, 4], LONG[:5]]
    once = prompt_features(policy, prompts, rows=2)
    assert once.tobytes() == prompt_features(policy, prompts, rows=2).tobytes()
    np.testing.assert_allclose(prompt_features(policy, prompts[::-1], rows=2)[::-1], once, rtol=1e-5, atol=1e-5)


def test_the_adapter_is_off_and_everything_is_as_it_was_afterwards(policy):
    before = base_sha256(policy), {name: x.clone() for name, x in adapter_tensors(policy).items()}
    frozen = [name for name, parameter in policy.named_parameters() if "layers.0" in name and parameter.requires_grad]
    policy.get_parameter(frozen[0]).requires_grad_(False)
    trained = {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
    first = prompt_features(policy, [LONG])
    tiny.nudge(policy, 1.0, seed=3)
    assert prompt_features(policy, [LONG]).tobytes() == first.tobytes(), "another adapter says nothing"
    assert policy.training and len(policy.get_base_model().get_decoder().layers) == tiny.LAYERS
    assert {name: parameter.requires_grad for name, parameter in policy.named_parameters()} == trained
    assert base_sha256(policy) == before[0]
    with torch.no_grad():
        on = policy.eval()(torch.tensor([LONG])).logits
        with policy.disable_adapter():
            off = policy(torch.tensor([LONG])).logits
    policy.train()
    assert not torch.allclose(on, off), "the adapter is on again"


def test_no_layer_behind_the_one_that_is_read_is_computed(policy):
    def never(*_):
        raise AssertionError("computed")

    decoder = policy.get_base_model().get_decoder()
    hooks = [module.register_forward_hook(never)
             for module in (decoder.layers[1], policy.get_base_model().get_output_embeddings())]  # fmt: skip
    try:
        prompt_features(policy, [LONG], 1)
        with pytest.raises(AssertionError, match="computed"):
            prompt_features(policy, [LONG], 2)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(decoder.layers) == tiny.LAYERS, "also after a failure"
    assert prompt_features(policy, [LONG], 2).any()


def test_what_cannot_be_read_is_said(policy):
    with pytest.raises(RouterError, match=r"router: prompt 1 has no tokens \(2 such of 3\)"):
        prompt_features(policy, [LONG, [], []])
    assert prompt_features(policy, []).shape == (0, tiny.HIDDEN)
    weight = policy.get_input_embeddings().weight
    kept = weight[SHORT[0]].clone()
    with torch.no_grad():
        weight[SHORT[0]] = float("nan")
        try:
            with pytest.raises(RouterError, match="hidden states of 1 of 2 prompts are no numbers"):
                prompt_features(policy, [SHORT, LONG])
        finally:
            weight[SHORT[0]] = kept


@pytest.mark.parametrize("family", tiny_families.FAMILIES)
def test_every_family_of_bases_is_read(family):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_families.config_of(family)).eval()
    with torch.no_grad():
        states = model(torch.tensor([LONG]), output_hidden_states=True).hidden_states
    for layer in range(3):
        found = prompt_features(model, [LONG, SHORT], layer)[0]
        np.testing.assert_allclose(found, states[layer][0].mean(0).numpy(), rtol=1e-3, atol=1e-4)


def test_a_base_without_layers_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(RouterError, match=r"model.base: a router cannot be put on a gpt2"):
        layer_of(model, None)
