"""How far two policies' next-token distributions are apart on fixed text: exact over the vocabulary, in nats.

Step metrics carry an estimate of the KL divergence from the sampled tokens alone (k3); here every token of the
vocabulary is summed over, on the same sequences for every policy, so that the numbers of two stages compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Logits = Callable[[torch.Tensor, torch.Tensor], object]

CHUNK = 2**23  # logits held in double precision at a time: 64 MiB each


@dataclass(frozen=True)
class Divergence:
    """KL(policy || reference) over completion tokens.

    Fields:
        kl: mean over tokens, nats; 0 for equal policies, never negative but for rounding.
        agreement: share of tokens at which both put the same token first.
        tokens: completion tokens counted.
        kl_by_sequence: the mean over each sequence's tokens.
    """

    kl: float
    agreement: float
    tokens: int
    kl_by_sequence: tuple[float, ...]


def mean_kl(
    policy: Logits,
    reference: Logits,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    rows: int = 8,
    device: str | torch.device = "cpu",
    pad_token_id: int = 0,
) -> Divergence:
    """Mean over completion tokens of sum_v p(v) (log p(v) - log q(v)), p the policy's and q the reference's.

    Args:
        policy, reference: called as f(input_ids, attention_mask=mask), both B x T and right-padded; give logits
            B x T x V or an object that has them as `.logits`. A transformers model in eval mode does.
        sequences: (prompt, completion) token ids; prompts not empty, empty completions are skipped.
        rows: sequences per call.
        device: where the inputs are put.
        pad_token_id: any valid id; padding is masked.

    Raises:
        ValueError: no completion token at all, an empty prompt, unequal vocabularies, or logits that are not numbers.
    """
    import torch

    kept = [(list(prompt), list(completion)) for prompt, completion in sequences if len(completion)]
    if not kept:
        raise ValueError("divergence: no completion tokens to compare the policies on")
    if not all(prompt for prompt, _ in kept):
        raise ValueError("divergence: a prompt is empty, so nothing predicts its completion's first token")
    total, agreed, tokens, by_sequence = 0.0, 0, 0, []
    with torch.inference_mode():
        for at in range(0, len(kept), rows):
            batch = kept[at : at + rows]
            ids, mask = padded(batch, pad_token_id, device)
            p_BTV, q_BTV = (logits_of(model, ids, mask) for model in (policy, reference))
            if p_BTV.shape != q_BTV.shape:
                raise ValueError(f"divergence: logits of shapes {tuple(p_BTV.shape)} and {tuple(q_BTV.shape)}")
            for row, (prompt, completion) in enumerate(batch):
                # position t predicts token t + 1
                span = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
                kl = 0.0
                for p_NV, q_NV in _chunks(p_BTV[row, span], q_BTV[row, span]):
                    kl += float(_kl(p_NV, q_NV).sum())
                    agreed += int((p_NV.argmax(-1) == q_NV.argmax(-1)).sum())
                total += kl
                tokens += len(completion)
                by_sequence.append(kl / len(completion))
    if total != total:
        raise ValueError("divergence: the logits of a policy are not numbers (nan)")
    return Divergence(total / tokens, agreed / tokens, tokens, tuple(by_sequence))


def padded(
    batch: Sequence[tuple[Sequence[int], Sequence[int]]], pad_token_id: int, device: str | torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, both B x T, of (prompt, completion) pairs padded on the right."""
    import torch

    lengths = [len(prompt) + len(completion) for prompt, completion in batch]
    ids = torch.full((len(batch), max(lengths)), pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(batch):
        ids[row, : lengths[row]] = torch.tensor([*prompt, *completion])
        mask[row, : lengths[row]] = 1
    return ids.to(device), mask.to(device)


def logits_of(model: Logits, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """B x T x V."""
    output = model(ids, attention_mask=mask)
    return getattr(output, "logits", output)


def _chunks(p_NV: torch.Tensor, q_NV: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rows = max(1, CHUNK // p_NV.shape[-1])
    for at in range(0, len(p_NV), rows):
        yield p_NV[at : at + rows], q_NV[at : at + rows]


def _kl(p_NV: torch.Tensor, q_NV: torch.Tensor) -> torch.Tensor:
    """KL(softmax(p) || softmax(q)) per row. Double precision: in single, rounding alone reaches 1e-6 nats."""
    import torch

    log_p = p_NV.double().log_softmax(-1)
    log_q = q_NV.double().log_softmax(-1)
    terms = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True)
    # a masked token has p = 0 and adds nothing, where 0 * inf would say nan
    return torch.where(log_p == -torch.inf, 0.0, terms).sum(-1)
