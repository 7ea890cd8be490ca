"""NLL and perplexity of fixed text, by hand on vocabularies of a few tokens and on the tiny model; the intervals by
simulation."""

from __future__ import annotations

from math import exp, log
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from evals import perplexity as module  # noqa: E402
from evals.perplexity import Perplexity, Scored, perplexity, perplexity_ratio, score  # noqa: E402

TEXTS = [([1, 2], [3, 4, 5]), ([6], [7]), ([8, 9, 10, 1], [2, 3, 4, 5, 6, 7]), ([1], [])]


def always(*probabilities: float):
    """A policy that gives the same next-token distribution everywhere."""
    row = torch.tensor(probabilities).log()
    return lambda ids, attention_mask: row.expand(*ids.shape, -1)


class Bigram:
    """Next-token logits by the last token; answers as a transformers model does."""

    def __init__(self, seed: int, vocabulary: int = 11):
        self.table = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed))

    def __call__(self, ids, attention_mask):
        return SimpleNamespace(logits=self.table[ids])


def scored(policy, sequences=TEXTS, **named):
    return score(policy, sequences, rare_below=named.pop("rare_below", 0.01), **named)


def summed(texts, confidence=0.95):
    return perplexity(texts, confidence=confidence)


def test_by_hand():
    # p = (1/2, 1/4, 1/4): tokens 0, 1 and 0, 0, 2 have ln 2, ln 4 and ln 2, ln 2, ln 4; 7 ln 2 in 5 tokens
    found = summed(scored(always(0.5, 0.25, 0.25), [([0], [0, 1]), ([2, 2], [0, 0, 2])]))
    assert found.nll == pytest.approx(7 / 5 * log(2)) and found.tokens == 5
    assert found.perplexity == pytest.approx(2**1.4)
    assert found.nats_by_text == pytest.approx((3 * log(2), 4 * log(2))) and found.tokens_by_text == (2, 3)


def test_a_uniform_policy_has_the_perplexity_of_its_vocabulary():
    found = summed(scored(always(*[1 / 11] * 11)))
    assert found.perplexity == pytest.approx(11)
    # and no text differs from another
    assert (found.low, found.high) == pytest.approx((11, 11))


def test_against_a_softmax_by_hand():
    policy = Bigram(1)
    p = torch.softmax(policy.table.double(), -1)
    for (prompt, completion), one in zip(TEXTS, scored(policy), strict=True):
        before = [prompt[-1], *completion[:-1]]
        by_hand = -sum(log(float(p[a, b])) for a, b in zip(before, completion, strict=False))
        assert one.nats == pytest.approx(by_hand, rel=1e-12) and one.tokens == len(completion)


def test_only_what_predicts_the_completion_counts():
    # the two differ after token 2 only, which is the prompt's last and then its first
    p, q = Bigram(1), Bigram(1)
    q.table = q.table.clone()
    q.table[2] = q.table[2].roll(1)
    (a, b), (c, d) = (scored(one, [([1, 2], [3, 4, 5]), ([2, 1], [3, 4, 2])]) for one in (p, q))
    change = q.table[2].double().log_softmax(-1)[3] - p.table[2].double().log_softmax(-1)[3]
    assert c.nats - a.nats == pytest.approx(-float(change)) and abs(change) > 0.1
    assert b.nats == d.nats


def test_rare_tokens():
    # 0 has 0.985, 1 has 0.009 and 2 has 0.006: below 0.01 are the last two, below 0.008 the last; a bound is not rare
    policy, text = always(0.985, 0.009, 0.006), [([0], [0, 1, 2, 0])]
    assert [scored(policy, text, rare_below=bound)[0].rare for bound in (0.01, 0.008, 0.005)] == [2, 1, 0]
    assert summed(scored(policy, text)).rare == 0.5
    assert scored(always(0.5, 0.5), [([0], [1])], rare_below=0.5)[0].rare == 0


def test_batches_and_padding_change_nothing(monkeypatch):
    whole = scored(Bigram(1))
    for others in ({"rows": 1}, {"rows": 2}, {"pad_token_id": 7}):
        again = scored(Bigram(1), **others)
        assert [one.nats for one in again] == pytest.approx([one.nats for one in whole], rel=1e-12)
    monkeypatch.setattr(module, "CHUNK", 22)  # two rows at a time
    assert [one.nats for one in scored(Bigram(1))] == pytest.approx([one.nats for one in whole], rel=1e-12)


def test_of_a_transformers_model(tiny_path, tokenizer):
    """Padding is masked there, so what is beside a text in the batch does not matter."""
    import tiny

    model = tiny.policy(tiny_path)
    prompts = tiny.tokens(tokenizer, tiny.prompts(tokenizer))
    texts = [(prompt, prompts[at - 1][: 2 + 3 * at]) for at, prompt in enumerate(prompts)]
    together, alone = (scored(model.eval(), texts, rows=rows) for rows in (6, 1))
    for (prompt, completion), one, other in zip(texts, together, alone, strict=True):
        logprobs = tiny.next_token_logprobs(model, [*prompt, *completion])
        by_hand = -sum(float(logprobs[len(prompt) - 1 + t, token]) for t, token in enumerate(completion))
        assert one.nats == pytest.approx(by_hand, rel=1e-5) == pytest.approx(other.nats, rel=1e-5)


def test_empty_completions():
    """Are not asked about, count nothing, and keep their place."""
    texts = scored(Bigram(1), [([], []), *TEXTS])
    assert texts[0] == texts[-1] == Scored(0.0, 0, 0)
    found, without = summed(texts), summed(scored(Bigram(1), TEXTS[:3]))
    assert (found.nll, found.low, found.high) == (without.nll, without.low, without.high)
    assert found.tokens_by_text == (0, 3, 1, 6, 0)
    with pytest.raises(ValueError, match="no completion tokens"):
        summed(scored(Bigram(1), [([1], [])]))


def test_what_cannot_be_measured_is_an_error():
    with pytest.raises(ValueError, match="prompt is empty"):
        scored(Bigram(1), [([], [1])])
    for policy in (always(float("nan"), 0.5), always(1.0, 0.0)):
        with pytest.raises(ValueError, match="no finite log-probability"):
            scored(policy, [([0], [1])])


def test_json():
    found = summed(scored(Bigram(1)))
    assert Perplexity.from_json(found.to_json()) == found
    alone = summed(scored(Bigram(1), TEXTS[:1]))
    assert alone.low is None and Perplexity.from_json(alone.to_json()) == alone


def test_the_order_of_texts_does_not_matter():
    texts = scored(Bigram(1))
    one, other = summed(texts), summed(texts[::-1])
    assert (one.nll, one.low, one.high) == (other.nll, other.low, other.high)
    assert one.low < one.perplexity < one.high


def drawn(rng, count: int) -> list[Scored]:
    """Texts of 5 to 40 tokens whose mean NLL has a normal part of its own: 0.6 +- 0.2, and every token +- 0.5."""
    lengths, own = rng.integers(5, 41, count), rng.normal(0.6, 0.2, count)
    return [Scored(float(n * m + rng.normal(0, 0.5 * n**0.5)), int(n), 0) for n, m in zip(lengths, own, strict=True)]


@pytest.mark.parametrize("count", [30, 100])
def test_coverage_over_texts(monkeypatch, count):
    """Of 600 experiments 95 in 100 intervals hold exp(0.6). Tokens taken as independent would hold it far less often,
    and BCa alone fewer than 93 times in 100 with 30 texts."""
    monkeypatch.setattr(module, "RESAMPLES", 999)
    rng, inside, naive = np.random.default_rng(3), 0, 0
    for _ in range(600):
        texts = drawn(rng, count)
        found = summed(texts)
        inside += found.low <= exp(0.6) <= found.high
        naive += abs(found.nll - 0.6) < 1.96 * 0.54 / found.tokens**0.5
    assert 0.93 <= inside / 600 <= 0.97
    assert naive / 600 < 0.8


def test_ratio_by_hand():
    # means 2 ln 2 / 2 and 6 ln 2 / 3 against ln 2 / 4: perplexity ratio 2 ** (8/5 - 3/10)
    text = summed([Scored(2 * log(2), 2, 0), Scored(6 * log(2), 3, 0)])
    other = summed([Scored(log(2), 4, 0), Scored(2 * log(2), 6, 0)])
    found = perplexity_ratio(text, other, confidence=0.9)
    assert found.ratio == pytest.approx(2**1.3) and found.pairs == 2
    assert found.low <= found.ratio <= found.high
    back = perplexity_ratio(other, text, confidence=0.9)
    assert (back.ratio, back.low, back.high) == pytest.approx((1 / found.ratio, 1 / found.high, 1 / found.low))


def test_ratio_is_paired():
    """Texts that are all 0.2 nats a token less likely than others: how hard the problems are does not show."""
    rng = np.random.default_rng(5)
    others = drawn(rng, 60)
    texts = [Scored(one.nats + 0.2 * one.tokens, one.tokens, 0) for one in others]
    found = perplexity_ratio(summed(texts), summed(others), confidence=0.95)
    assert (found.ratio, found.low, found.high) == pytest.approx((exp(0.2),) * 3)


def test_pairs_with_an_empty_text_do_not_count():
    full, gap = Scored(3.0, 3, 0), Scored(0.0, 0, 0)
    found = perplexity_ratio(summed([full, Scored(9.0, 3, 0)]), summed([full, gap]), confidence=0.95)
    assert found.ratio == 1.0 and found.pairs == 1 and found.low is None
    with pytest.raises(ValueError, match="on both sides"):
        perplexity_ratio(summed([full, gap]), summed([gap, full]), confidence=0.95)
    with pytest.raises(ValueError, match="not 2 and 1"):
        perplexity_ratio(summed([full, full]), summed([full]), confidence=0.95)
