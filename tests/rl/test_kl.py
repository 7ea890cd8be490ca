"""The KL penalty's estimator: by hand, and its expectation exactly."""

import math

import pytest
import torch

from rl.kl import k3


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


def test_k3_of_the_embedded_sampling_with_gradient_of_the_kl():
    """The gradient TRL takes (of ratio * k3 at ratio 1), averaged over all tokens, is that of the exact KL."""
    logits = torch.randn(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    logq = torch.randn(30, generator=torch.Generator().manual_seed(2), dtype=torch.float64).log_softmax(0)
    logp = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - logq)).sum(), logits)
    logp = logits.log_softmax(0)
    ratio = torch.exp(logp - logp.detach())
    (ours,) = torch.autograd.grad((logp.detach().exp() * ratio * k3(logp, logq)).sum(), logits)
    torch.testing.assert_close(ours, exact)
