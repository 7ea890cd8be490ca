"""The KL penalty: the estimator by hand, its expectation exactly, and references that stay where they were put."""

import math

import pytest
import tiny
import torch

from models.adapters import POLICY, REFERENCE, adapter_sha256, adapter_tensors
from models.training import TrainingError
from rl.kl import Reference, k3

IDS = [5, 17, 99, 3, 250, 8]


def test_k3_by_hand():
    """Two tokens: pi = (3/4, 1/4), pi_ref = (1/2, 1/2).

    Token 0: r = log((1/2) / (3/4)) = log 2/3, k3 = 2/3 - log 2/3 - 1 = -1/3 + 0.405465 = 0.072132
    Token 1: r = log((1/2) / (1/4)) = log 2,   k3 = 2 - log 2 - 1     = 1 - 0.693147    = 0.306853
    Mean under pi: 3/4 * 0.072132 + 1/4 * 0.306853 = 0.130812
    KL(pi || ref)  = 3/4 log 3/2 + 1/4 log 1/2     = 0.304099 - 0.173287 = 0.130812
    """
    logits, reference_logits = torch.tensor([math.log(3.0), 0.0]), torch.tensor([0.0, 0.0])
    logp, logq = logits.log_softmax(0), reference_logits.log_softmax(0)
    estimates = k3(logp, logq)
    assert estimates.tolist() == pytest.approx([0.072132, 0.306853], abs=1e-6)
    assert float((logp.exp() * estimates).sum()) == pytest.approx(0.130812, abs=1e-6)
    assert 0.75 * math.log(1.5) + 0.25 * math.log(0.5) == pytest.approx(0.130812, abs=1e-6)


def test_its_expectation_is_the_exact_kl_and_it_is_never_negative():
    generator = torch.Generator().manual_seed(0)
    logp = torch.randn(20, 50, generator=generator, dtype=torch.float64).log_softmax(-1)
    logq = torch.randn(20, 50, generator=generator, dtype=torch.float64).log_softmax(-1)
    estimates = k3(logp, logq)
    assert (estimates >= 0).all()
    exact = (logp.exp() * (logp - logq)).sum(-1)
    torch.testing.assert_close((logp.exp() * estimates).sum(-1), exact)
    assert (k3(logp, logp) == 0).all(), "exactly 0 where both agree"


def test_it_measures_from_the_policy_to_the_reference():
    """k3 of (p, q) weighted by p is KL(p || q), not KL(q || p): 0.130812 against 0.143841 above."""
    logp, logq = torch.tensor([0.75, 0.25]).log(), torch.tensor([0.5, 0.5]).log()
    assert float((logq.exp() * k3(logq, logp)).sum()) == pytest.approx(0.143841, abs=1e-6)


def test_k3_of_the_embedded_sampling_with_gradient_of_the_kl(tiny_path):
    """The gradient TRL takes (of ratio * k3 at ratio 1), averaged over all tokens, is that of the exact KL."""
    logits = torch.randn(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    logq = torch.randn(30, generator=torch.Generator().manual_seed(2), dtype=torch.float64).log_softmax(0)
    logp = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - logq)).sum(), logits)
    logp = logits.log_softmax(0)
    ratio = torch.exp(logp - logp.detach())
    (ours,) = torch.autograd.grad((logp.detach().exp() * ratio * k3(logp, logq)).sum(), logits)
    torch.testing.assert_close(ours, exact)


# references


def reference_logprobs(model, reference):
    with reference.active(model):
        return tiny.next_token_logprobs(model, IDS)


def kinds(model, tiny_path):
    """(reference, the log-probabilities that it must give)"""
    other = tiny.policy(tiny_path, seed=5)
    with model.disable_adapter():
        base = tiny.next_token_logprobs(model, IDS)
    return {
        "base": (Reference("base", None), base),
        "start": (Reference("start", adapter_tensors(model)), tiny.next_token_logprobs(model, IDS)),
        "imitate": (Reference("imitate", adapter_tensors(other)), tiny.next_token_logprobs(other, IDS)),
    }


@pytest.mark.parametrize("kind", ["base", "start", "imitate"])
def test_each_reference_is_what_its_name_says_and_stays_it(tiny_path, kind):
    model = tiny.policy(tiny_path)
    reference, wanted = kinds(model, tiny_path)[kind]
    reference.install(model)
    assert model.active_adapter == POLICY
    own = tiny.next_token_logprobs(model, IDS)
    assert torch.equal(reference_logprobs(model, reference), wanted)
    assert torch.equal(tiny.next_token_logprobs(model, IDS), own), "outside the policy computes again"

    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.tensor([IDS])
    for _ in range(3):
        with torch.no_grad(), reference.active(model):
            model(ids)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.allclose(tiny.next_token_logprobs(model, IDS), own), "the policy moved"
    assert torch.equal(reference_logprobs(model, reference), wanted)
    reference.check(model)


def test_after_the_reference_was_active_the_policy_trains_and_it_does_not(tiny_path):
    model = tiny.policy(tiny_path)
    reference = Reference("start", adapter_tensors(model))
    reference.install(model)
    with pytest.raises(KeyError), reference.active(model):
        raise KeyError("in the middle")
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if f".{POLICY}." in name}
    assert model.active_adapter == POLICY


def test_a_changed_reference_is_found(tiny_path):
    model = tiny.policy(tiny_path)
    reference = Reference("start", adapter_tensors(model))
    reference.install(model)
    reference.check(model)
    tiny.nudge(model, 1e-4, adapter=REFERENCE)
    with pytest.raises(TrainingError, match="reference 'start' changed"):
        reference.check(model)


def test_one_reference_takes_the_place_of_another(tiny_path):
    model = tiny.policy(tiny_path)
    made = kinds(model, tiny_path)
    digest = adapter_sha256(adapter_tensors(model))
    for kind in ("start", "imitate", "base", "imitate"):
        reference, wanted = made[kind]
        reference.replace(model)
        assert torch.equal(reference_logprobs(model, reference), wanted), kind
        assert model.active_adapter == POLICY
    assert adapter_sha256(adapter_tensors(model)) == digest
