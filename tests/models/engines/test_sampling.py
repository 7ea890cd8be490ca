"""All that a `Sampling` says is said to vLLM and to transformers, each in its own words."""

from dataclasses import fields

import pytest
import tiny
import torch

from models.base import load_tokenizer
from models.engines.protocol import Sampling

SAMPLING = Sampling(
    max_tokens=5, temperature=0.7, top_p=0.8, top_k=9, min_p=0.1, presence_penalty=0.5, repetition_penalty=1.5, n=3,
    logprobs=True, stop_token_ids=(7, 8),
)  # fmt: skip


class Asked(Exception):
    """Ends a call with what was asked."""


def test_every_field_has_another_value_than_it_would_have():
    """The fields are walked: a new one has to be followed into both engines."""
    assert {one.name for one in fields(Sampling)} == {
        "max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty", "n",
        "logprobs", "stop_token_ids",
    }  # fmt: skip
    assert all(getattr(SAMPLING, one.name) != one.default for one in fields(Sampling))


def test_vllm_is_asked_for_all_of_it(vllm_engine, monkeypatch):
    asked = []

    def run(prompts, params, adapter, progress):
        asked.append((list(prompts), params, progress))
        return []

    monkeypatch.setattr(vllm_engine, "_run", run)
    vllm_engine.generate([[1, 2], [3]], SAMPLING, [11, 2**63 + 5], progress=print)
    ((prompts, params, progress),) = asked
    assert prompts == [[1, 2], [3]] and progress is print
    for one in params:
        found = (one.max_tokens, one.temperature, one.top_p, one.top_k, one.n, one.logprobs)
        # the sampled token's log-probability alone is asked for
        assert found == (5, 0.7, 0.8, 9, 3, 0)
        # besides the model's own ends, and nothing else
        assert {*one.stop_token_ids} == {7, 8, load_tokenizer("embedded/student").eos_token_id, *tiny.MORE_ENDS}
        assert (one.repetition_penalty, one.presence_penalty, one.frequency_penalty, one.min_p) == (1.5, 0.5, 0.0, 0.1)
    assert [one.seed for one in params] == [11, 5], "vLLM takes 63 bits"
    vllm_engine.generate([[1]], Sampling(5, temperature=0.0, top_p=1.0, top_k=0))
    (plain,) = asked[-1][1]
    assert (plain.temperature, plain.n, plain.logprobs, plain.seed) == (0.0, 1, None, None)
    assert (plain.repetition_penalty, plain.presence_penalty, plain.min_p) == (1.0, 0.0, 0.0), "None is off"


@pytest.mark.parametrize("greedy", [False, True])
def test_transformers_is_asked_for_all_of_it(transformers_engine, monkeypatch, greedy):
    asked = {}

    def generate(**options):
        asked.update(options)
        raise Asked

    monkeypatch.setattr(transformers_engine._model, "generate", generate)
    sampling = Sampling(5, temperature=0.0, top_p=1.0, top_k=0, logprobs=True) if greedy else SAMPLING
    with pytest.raises(Asked):
        transformers_engine.generate([[1, 2]], sampling, [11])
    if greedy:
        assert asked["do_sample"] is False and not {"temperature", "top_p", "top_k"} & asked.keys()
        assert asked["output_scores"] is True and not asked["logits_processor"], "penalties of None are off"
        return
    found = [asked[name] for name in ("max_new_tokens", "temperature", "top_p", "top_k", "num_return_sequences")]
    assert found == [5, 0.7, 0.8, 9, 3] and asked["do_sample"] is True
    assert {7, 8} < set(asked["eos_token_id"]), "beside the model's own"
    # after temperature and truncation, as they are drawn
    assert asked["output_scores"] is True
    # what generate has of its own would count padding as asked, and apply min_p last
    assert not {"min_p", "repetition_penalty"} & asked.keys()
    assert [type(one).__name__ for one in asked["logits_processor"]] == ["Penalties", "MinP"]


def test_what_is_cut_by_top_p_is_never_drawn(vllm_engine, tokenizer, tiny_path):
    """The nucleus of half the mass: its tokens, none besides, and their log-probabilities together are 1."""
    import tiny

    from models.folding import folded_weights

    model = tiny.policy(tiny_path)
    vllm_engine.sync_folded(folded_weights(model))
    (prompt, *_) = tiny.tokens(tokenizer, tiny.prompts(tokenizer))
    exact = tiny.next_token_logprobs(model, prompt)[-1].exp()
    likeliest, which = exact.sort(descending=True)
    nucleus = which[: int((likeliest.cumsum(0) < 0.5).sum()) + 1]
    (group,) = vllm_engine.generate([prompt], tiny.sampling(1, top_p=0.5, logprobs=True, n=64), [5])
    drawn = {one.token_ids[0]: one.logprobs[0] for one in group}
    assert len(nucleus) > 1 and drawn.keys() <= set(nucleus.tolist())
    wanted = dict(zip(nucleus.tolist(), (exact[nucleus] / exact[nucleus].sum()).log().tolist(), strict=True))
    assert drawn == pytest.approx({token: wanted[token] for token in drawn}, abs=1e-4)
    assert not torch.tensor(list(drawn.values())).isnan().any()
