"""Families that cap or scale their logits are scored as they speak; one that is not understood is not trained."""

import pytest
import tiny
import torch
from tiny_families import SHAPE

from models.adapters import new_adapter
from models.settings import Lora
from models.training import TrainingError
from rl.logprobs import check_scoring, completion_logprobs, install_scoring

CAPPED = [
    ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "final_logit_softcapping": 2.0}),
    ("gemma3_text", {"head_dim": 32, "query_pre_attn_scalar": 32, "final_logit_softcapping": 2.0}),
    ("cohere", {"logit_scale": 0.25}),
    ("granite", {"logits_scaling": 4.0}),
    ("qwen2", {}),
]


@pytest.fixture(params=CAPPED, ids=[name for name, _ in CAPPED])
def model(request):
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, own = request.param
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE | {"pad_token_id": 0} | own)
    base = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    made = new_adapter(base, Lora(rank=4, alpha=8.0), seed=1)
    tiny.nudge(made, 0.1)
    return made


def batch():
    generator = torch.Generator().manual_seed(0)
    prompt, completion = (torch.randint(0, 512, (2, length), generator=generator) for length in (5, 7))
    return {
        "prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completion, "completion_mask": torch.ones_like(completion),
    }  # fmt: skip


def gradient(model, logprobs):
    model.zero_grad()
    logprobs.sum().backward()
    return torch.cat([p.grad.flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None])


def test_what_is_scored_is_what_the_logits_say(model, tokenizer):
    given = batch()
    logits = model(torch.cat([given["prompt_ids"], given["completion_ids"]], 1)).logits[:, 4:-1] / 0.7
    wanted = logits.log_softmax(-1).gather(-1, given["completion_ids"][..., None])[..., 0]
    gradient_wanted = gradient(model, wanted)
    install_scoring(model.get_base_model())
    scored = completion_logprobs(model, given, 0.7)[0]
    torch.testing.assert_close(scored, wanted, atol=2e-5, rtol=0)
    torch.testing.assert_close(gradient(model, scored), gradient_wanted, atol=2e-4, rtol=1e-3)
    state, training = torch.random.get_rng_state(), model.training
    check_scoring(model, tiny.probe(tokenizer))
    assert torch.equal(torch.random.get_rng_state(), state) and model.training == training


def test_a_cap_or_scale_that_is_overlooked_is_an_error(model, tokenizer, monkeypatch):
    monkeypatch.setattr("rl.logprobs.logits_transform", lambda config: (None, 1.0))
    install_scoring(model.get_base_model())
    if model.config.model_type == "qwen2":
        check_scoring(model, tiny.probe(tokenizer))
        return
    with pytest.raises(TrainingError, match=f"grpo cannot train a {model.config.model_type} model") as caught:
        check_scoring(model, tiny.probe(tokenizer))
    assert "\n" not in str(caught.value)
