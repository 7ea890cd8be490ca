"""KL between policies on fixed text, by hand on vocabularies of a few tokens."""

from __future__ import annotations

from math import inf, log
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from evals.divergence import mean_kl  # noqa: E402


def always(*probabilities: float):
    """A policy that gives the same next-token distribution everywhere."""
    row = torch.tensor(probabilities).log()
    return lambda ids, attention_mask: row.expand(*ids.shape, -1)


class Bigram(torch.nn.Module):
    """Next-token logits by the last token; answers as a transformers model does."""

    def __init__(self, seed: int, vocabulary: int = 11):
        super().__init__()
        self.table = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed))

    def forward(self, ids, attention_mask):
        return SimpleNamespace(logits=self.table[ids])


TEXTS = [([1, 2], [3, 4, 5]), ([6], [7]), ([8, 9, 10, 1], [2, 3, 4, 5, 6, 7]), ([1], [])]


def test_by_hand():
    # p = (1/2, 1/2), q = (1/4, 3/4): 1/2 ln 2 + 1/2 ln(2/3) = 0.143841; and back: 1/4 ln(1/2) + 3/4 ln(3/2) = 0.130812
    p, q = always(0.5, 0.5), always(0.25, 0.75)
    there, back = (mean_kl(*pair, [([0], [1, 0, 1])]) for pair in ((p, q), (q, p)))
    assert there.kl == pytest.approx(0.5 * log(2) + 0.5 * log(2 / 3), abs=1e-7)
    assert back.kl == pytest.approx(0.130812, abs=1e-6)
    assert there.tokens == 3


def test_equal_policies_are_exactly_zero_apart():
    found = mean_kl(Bigram(1), Bigram(1), TEXTS)
    assert found.kl == 0.0 and found.agreement == 1.0 and found.tokens == 10


def test_only_the_tokens_of_the_completion_count():
    # the two differ after token 2 only; the completion's tokens follow 2, 3 and 4, so one of three sees it
    p, q = Bigram(1), Bigram(1)
    q.table = q.table.clone()
    q.table[2] = q.table[2].roll(1)
    found = mean_kl(p, q, [([1, 2], [3, 4, 5])])
    apart = torch.nn.functional.kl_div(
        q.table[2].log_softmax(-1), p.table[2].log_softmax(-1), log_target=True, reduction="sum"
    )
    assert found.kl == pytest.approx(float(apart) / 3, rel=1e-5)
    assert mean_kl(p, q, [([2, 1], [3, 4, 2])]).kl == 0.0  # 2 predicts nothing here


def test_agreement_is_the_share_of_tokens_with_the_same_first_choice():
    # after 2, 3 and 4 the policies put 5 first; q turns to 6 after 3 only: 2 of 3
    p, q = Bigram(1), Bigram(1)
    p.table, q.table = torch.zeros(11, 11), torch.zeros(11, 11)
    p.table[:, 5] = q.table[:, 5] = 3.0
    q.table[3, 6] = 4.0
    found = mean_kl(p, q, [([1, 2], [3, 4, 5])])
    assert found.agreement == pytest.approx(2 / 3) and found.tokens == 3


def test_what_a_policy_is_shown():
    """Both the same, right-padded, the padding masked and nothing else."""
    seen = []

    def policy(ids, attention_mask):
        seen.append((ids.tolist(), attention_mask.tolist()))
        return torch.zeros(*ids.shape, 4)

    mean_kl(policy, policy, [([1, 2], [3]), ([2], [1]), ([3], [])], pad_token_id=0)
    assert seen == [([[1, 2, 3], [2, 1, 0]], [[1, 1, 1], [1, 1, 0]])] * 2


def test_batches_and_padding_change_nothing():
    whole, single = (mean_kl(Bigram(1), Bigram(2), TEXTS, rows=size) for size in (8, 1))
    assert whole.kl == pytest.approx(single.kl, rel=1e-12)
    assert whole.kl_by_sequence == pytest.approx(single.kl_by_sequence)
    # a mean over tokens, not over sequences
    lengths = [len(completion) for _, completion in TEXTS if completion]
    by_token = sum(kl * n for kl, n in zip(whole.kl_by_sequence, lengths, strict=True)) / sum(lengths)
    assert whole.kl == pytest.approx(by_token)


def test_large_vocabularies_go_in_chunks(monkeypatch):
    whole = mean_kl(Bigram(1), Bigram(2), TEXTS)
    monkeypatch.setattr("evals.divergence.CHUNK", 22)  # two rows at a time
    assert mean_kl(Bigram(1), Bigram(2), TEXTS).kl == pytest.approx(whole.kl, rel=1e-12)


def test_tokens_that_a_policy_never_uses():
    assert mean_kl(always(1.0, 0.0), always(0.5, 0.5), [([0], [0])]).kl == pytest.approx(log(2))
    assert mean_kl(always(1.0, 0.0), always(1.0, 0.0), [([0], [0])]).kl == 0.0
    assert mean_kl(always(0.5, 0.5), always(1.0, 0.0), [([0], [0])]).kl == inf


def test_a_small_difference_is_not_lost_in_rounding():
    p, q = Bigram(1), Bigram(1)
    q.table = q.table.double() + 1e-5 * torch.randn(11, 11, generator=torch.Generator().manual_seed(3)).double()
    assert 0 < mean_kl(p, q, TEXTS).kl < 1e-9


def test_what_cannot_be_compared_is_an_error():
    with pytest.raises(ValueError, match="no completion tokens"):
        mean_kl(Bigram(1), Bigram(2), [([1], [])])
    with pytest.raises(ValueError, match="prompt is empty"):
        mean_kl(Bigram(1), Bigram(2), [([], [1])])
    with pytest.raises(ValueError, match="shapes"):
        mean_kl(Bigram(1), Bigram(2, vocabulary=12), TEXTS)
    with pytest.raises(ValueError, match="nan"):
        mean_kl(always(float("nan"), 0.5), always(0.5, 0.5), [([0], [1])])
