r"""The KL penalty's estimator.

k3 (J. Schulman, "Approximating KL divergence", 2020; GRPO, arXiv 2402.03300, eq. 4), per token t sampled from the
policy:

    k3_t = exp(r_t) - r_t - 1,    r_t = log pi_ref(t) - log pi(t)

Its expectation under the policy is KL(pi || pi_ref), it is never negative, and it is 0 exactly where both agree. TRL
adds beta * k3 to each token's loss, times the ratio pi / pi_old (1 at the first pass over a batch), so that its
gradient is that of the KL of the policy that sampled. What it is measured against: models/reference.py.
"""

import torch


def k3(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """Per-token KL estimates (any shape, nats), see the module docstring."""
    log_ratio = reference_logprobs - logprobs
    return torch.exp(log_ratio) - log_ratio - 1
