"""Both engines: the policy's own log-probabilities before and after a sync, the same greedy tokens, seeded samples."""

import json
from dataclasses import replace

import pytest
import tiny
import torch
from tiny_families import write_family

from models.adapters import adapter_files, new_adapter
from models.base import load_base
from models.engines.protocol import AdapterFiles, EngineError
from models.engines.shaping import MinP
from models.engines.start import Capacity, serving_for, start_engine, why_not_vllm
from models.folding import folded_weights
from models.settings import Lora, Serving

GREEDY = tiny.sampling(16, temperature=0.0, stop_token_ids=tiny.MORE_ENDS)
SAMPLED = tiny.sampling(24, n=3, logprobs=True, stop_token_ids=tiny.MORE_ENDS)
ROOM = Capacity(max_model_len=192, max_num_seqs=64)
SEEDS = [11, 222, 3333, 44, 555, 6666]
ENGINES = ["vllm_engine", "transformers_engine"]


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return tiny.tokens(tokenizer, tiny.prompts(tokenizer))


@pytest.fixture(scope="module")
def policy(tiny_path):
    return tiny.policy(tiny_path)


@pytest.fixture(params=ENGINES)
def engine(request, policy):
    """Each engine in turn, serving the policy."""
    made = request.getfixturevalue(request.param)
    made.sync_folded(folded_weights(policy))
    return made


def logprobs_of(model, prompt, completion, temperature=1.0):
    """Log-probabilities of a completion's tokens, computed from full logits."""
    model.eval()
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        steps = (model(ids).logits[0, len(prompt) - 1 : -1].float() / temperature).log_softmax(-1)
    return steps.gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist()


def greedy_of(model, prompt, sampling):
    """Greedy decoding by hand."""
    ids = list(prompt)
    for _ in range(sampling.max_tokens):
        ids.append(int(tiny.next_token_logprobs(model, ids)[-1].argmax()))
        if ids[-1] in sampling.stop_token_ids:
            break
    return ids[len(prompt) :]


def assert_serves(engine, model, prompts, tolerance=1e-4):
    completions = [prompts[(i + 1) % len(prompts)] for i in range(len(prompts))]
    for prompt, completion, scored in zip(prompts, completions, engine.score(prompts, completions), strict=True):
        assert len(scored) == len(completion)
        assert scored == pytest.approx(logprobs_of(model, prompt, completion), abs=tolerance)


def texts(groups):
    return [[completion.token_ids for completion in group] for group in groups]


# what is served


def test_the_checkpoint_is_served_until_the_first_sync(transformers_engine, tiny_path, prompts):
    assert_serves(transformers_engine, load_base(str(tiny_path), "none", "float32"), prompts)


def test_log_probabilities_are_the_policys_after_every_sync(engine, tiny_path, prompts, policy):
    assert_serves(engine, policy, prompts)
    other = tiny.policy(tiny_path, seed=9)
    with pytest.raises(AssertionError):
        assert_serves(engine, other, prompts)
    engine.sync_folded(folded_weights(other))
    assert_serves(engine, other, prompts)
    engine.sync_folded(folded_weights(other, adapter=None))
    with other.disable_adapter():
        assert_serves(engine, other, prompts)
    engine.sync_folded(folded_weights(policy))
    assert_serves(engine, policy, prompts)


def test_one_part_of_a_packed_layer_may_be_adapted_alone(engine, tiny_path, prompts):
    """Of an unquantised base, whose other layers need no push: vLLM makes q, k and v one layer, gate and up another."""
    base = load_base(str(tiny_path), "none", "float32")
    model = new_adapter(base, Lora(rank=4, alpha=8.0, targets=("q_proj", "v_proj", "up_proj")), seed=1)
    engine.sync_folded(folded_weights(new_adapter(load_base(str(tiny_path), "none", "float32"), Lora(rank=1), seed=0)))
    for seed in range(2):
        tiny.nudge(model, 0.1, seed=seed)
        engine.sync_folded(folded_weights(model))
        assert_serves(engine, model, prompts)


def test_a_sync_only_reads_the_trainers_tensors(engine, policy):
    from models.adapters import adapter_sha256, adapter_tensors
    from models.base import base_sha256

    before = base_sha256(policy), adapter_sha256(adapter_tensors(policy))
    for _ in range(5):
        engine.sync_folded(folded_weights(policy))
    engine.generate([[1, 2, 3]], GREEDY)
    assert (base_sha256(policy), adapter_sha256(adapter_tensors(policy))) == before


def test_greedy_tokens_are_the_policys(engine, policy, prompts):
    for prompt, (completion,) in zip(prompts, engine.generate(prompts, GREEDY), strict=True):
        assert completion.token_ids == greedy_of(policy, prompt, GREEDY)


def test_both_engines_say_the_same_greedily(vllm_engine, transformers_engine, policy, prompts):
    for engine in (vllm_engine, transformers_engine):
        engine.sync_folded(folded_weights(policy))
    ours, theirs = (engine.generate(prompts, GREEDY) for engine in (vllm_engine, transformers_engine))
    assert ours == theirs


PENALTIES = [
    {"repetition_penalty": 1.3},
    {"presence_penalty": 1.5},
    {"repetition_penalty": 1.2, "presence_penalty": -1.0},
]


def penalised(logits, prompt, completion, *, repetition_penalty=1.0, presence_penalty=0.0):
    """Token by token, as the settings say it."""
    made = logits.tolist()
    for token in {*prompt, *completion}:
        made[token] = made[token] / repetition_penalty if made[token] > 0 else made[token] * repetition_penalty
    for token in set(completion):
        made[token] -= presence_penalty
    return torch.tensor(made)


def logits_after(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


@pytest.mark.parametrize("penalties", PENALTIES, ids=str)
def test_penalties_are_the_same_in_every_engine(engine, policy, prompts, penalties):
    """Prompts of several lengths at once: what pads them on the left is no part of them."""
    sampling = replace(GREEDY, logprobs=True, **penalties)
    plain = engine.generate(prompts, GREEDY)
    found = engine.generate(prompts, sampling)
    assert texts(found) != texts(plain), "or nothing was penalised"
    policy.eval()
    for prompt, (completion,) in zip(prompts, found, strict=True):
        for at, (token, logprob) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
            before = completion.token_ids[:at]
            steps = penalised(logits_after(policy, [*prompt, *before]), prompt, before, **penalties).log_softmax(-1)
            assert token == steps.argmax() and logprob == pytest.approx(steps[token].item(), abs=1e-4)


def test_min_p_comes_after_temperature_and_before_top_p(engine, policy, prompts):
    """Of the tempered distribution at least min_p of the likeliest, and of these, renormalised, the nucleus."""
    temperature, min_p, top_p = 1.5, 0.2, 0.8
    tempered = (tiny.next_token_logprobs(policy, prompts[0])[-1] / temperature).softmax(-1)
    kept = torch.where(tempered >= min_p * tempered.max(), tempered, 0.0)
    renormalised, which = (kept / kept.sum()).sort(descending=True)
    wanted = which[: int((renormalised.cumsum(0) < top_p).sum()) + 1].tolist()
    # in the other order the nucleus is another, and so it is at another temperature
    likeliest, order = tempered.sort(descending=True)
    nucleus = order[: int((likeliest.cumsum(0) < top_p).sum()) + 1]
    swapped = [token for token in nucleus.tolist() if tempered[token] >= min_p * tempered.max()]
    assert 1 < len(wanted) < len(swapped)
    sampling = tiny.sampling(1, temperature=temperature, min_p=min_p, top_p=top_p, logprobs=True, n=200)
    (group,) = engine.generate(prompts[:1], sampling, [5])
    drawn = {one.token_ids[0]: one.logprobs[0] for one in group}
    assert drawn.keys() == set(wanted)
    assert drawn == pytest.approx(dict(zip(wanted, kept[wanted].log().log_softmax(-1).tolist(), strict=True)), abs=1e-4)


def test_min_p_of_a_tenth():
    """Logits 0, log 0.2, log 0.05 are likelihoods 1 : 0.2 : 0.05, at temperature 2 1 : 0.447 : 0.224."""
    logits = torch.tensor([[1.0, 0.2, 0.05]]).log()
    left = {t: MinP(0.1, t)(None, logits).isfinite().tolist()[0] for t in (1.0, 2.0, 0.5)}
    assert left == {1.0: [True, True, False], 2.0: [True, True, True], 0.5: [True, False, False]}


def test_sampled_log_probabilities_are_as_drawn(engine, policy, prompts):
    for group, prompt in zip(engine.generate(prompts, SAMPLED, SEEDS), prompts, strict=True):
        for completion in group:
            assert completion.logprobs == pytest.approx(logprobs_of(policy, prompt, completion.token_ids), abs=1e-4)
    cold = tiny.sampling(24, temperature=0.5, logprobs=True)
    ((completion,),) = engine.generate(prompts[:1], cold, [5])
    assert completion.logprobs == pytest.approx(logprobs_of(policy, prompts[0], completion.token_ids, 0.5), abs=1e-4)
    # of two tokens left, the log-probabilities are renormalised: both together are 1
    narrow = tiny.sampling(1, top_k=2, logprobs=True, n=32)
    (group,) = engine.generate(prompts[:1], narrow, [5])
    seen = {completion.token_ids[0]: completion.logprobs[0] for completion in group}
    top = tiny.next_token_logprobs(policy, prompts[0])[-1].topk(2)
    assert set(seen) == set(top.indices.tolist())
    want = dict(zip(top.indices.tolist(), top.values.log_softmax(-1).tolist(), strict=True))
    assert seen == pytest.approx(want, abs=1e-4)


def test_samples_follow_the_distribution(engine, policy, prompts):
    """First tokens of 600 draws against the exact distribution: as far off as chance makes them, and no further."""
    (group,) = engine.generate(prompts[:1], tiny.sampling(1, n=600), [77])
    exact = tiny.next_token_logprobs(policy, prompts[0])[-1].exp()
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in group]), minlength=tiny.VOCABULARY) / 600
    distance = (counts - exact).abs().sum() / 2
    expected = (exact * (1 - exact) / 600).sqrt().sum() / 2 * (2 / torch.pi) ** 0.5
    assert distance < 1.5 * expected + 0.01


# seeds


def test_seeds_decide(engine, prompts):
    first = texts(engine.generate(prompts, SAMPLED, SEEDS))
    assert texts(engine.generate(prompts, SAMPLED, SEEDS)) == first
    assert texts(engine.generate(prompts, SAMPLED, [s + 1000 for s in SEEDS])) != first
    for group in first:
        assert len({tuple(ids) for ids in group}) == len(group), "the completions of a group are drawn apart"


def test_vllm_samples_do_not_depend_on_the_rest_of_the_batch(vllm_engine, policy, prompts):
    vllm_engine.sync_folded(folded_weights(policy))
    together = texts(vllm_engine.generate(prompts, SAMPLED, SEEDS))
    for i, prompt in enumerate(prompts):
        assert texts(vllm_engine.generate([prompt], SAMPLED, [SEEDS[i]])) == [together[i]]
    backwards = texts(vllm_engine.generate(prompts[::-1], SAMPLED, SEEDS[::-1]))
    assert backwards == together[::-1]
    # more sequences than are decoded at once (64): some wait, and their seeds do not mind
    many = texts(vllm_engine.generate(prompts * 5, SAMPLED, SEEDS * 5))
    assert many == together * 5


def test_a_long_call_before_changes_nothing(vllm_engine, policy, prompts):
    """The prefix cache starts empty at each call, so a resumed process samples what the uninterrupted one did."""
    vllm_engine.sync_folded(folded_weights(policy))
    first = vllm_engine.generate(prompts, SAMPLED, SEEDS)
    vllm_engine.generate([[*p, *p] for p in prompts], tiny.sampling(40, n=4), SEEDS)
    vllm_engine.score(prompts, prompts)
    assert vllm_engine.generate(prompts, SAMPLED, SEEDS) == first


@pytest.fixture(scope="module")
def long_prompt(vllm_engine, tokenizer):
    """A prompt that fills a block of the prefix cache (128 tokens on a CPU), so that it is kept there."""
    prompt = tiny.tokens(tokenizer, [" ".join(tiny.prompts(tokenizer) * 2)])[0][:160]
    block = vllm_engine._llm.llm_engine.vllm_config.cache_config.block_size
    assert block < len(prompt) == 160
    return prompt


def test_a_long_prompt_is_not_served_from_the_cache_of_the_policy_before(vllm_engine, tiny_path, long_prompt):
    """The keys and values of a full block are those of the weights it was computed with; to another policy they are
    many nats off. Scoring does not read the cache, so the probe of a push cannot see it."""
    sampling = tiny.sampling(12, n=2, logprobs=True)
    for seed in (1, 9, 1):
        model = tiny.policy(tiny_path, seed=seed)
        vllm_engine.sync_folded(folded_weights(model))
        (group,) = vllm_engine.generate([long_prompt], sampling, [5])
        for one in group:
            assert one.logprobs == pytest.approx(logprobs_of(model, long_prompt, one.token_ids), abs=1e-4)
        (scored,) = vllm_engine.score([long_prompt[:140]], [long_prompt[140:]])
        assert scored == pytest.approx(logprobs_of(model, long_prompt[:140], long_prompt[140:]), abs=1e-4)


def test_a_call_with_a_long_prompt_follows_from_itself_alone(vllm_engine, policy, long_prompt):
    """Each call begins with an empty cache: whether another one had the prompt before is nowhere to be seen."""
    vllm_engine.sync_folded(folded_weights(policy))
    first = vllm_engine.generate([long_prompt], SAMPLED, [5])
    for _ in range(2):
        assert vllm_engine.generate([long_prompt], SAMPLED, [5]) == first


def test_neither_seeded_sampling_nor_scoring_takes_torchs_random_numbers(engine, prompts):
    """A trainer's dropout draws from them, and a resumed run scores once more than the uninterrupted one."""
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    engine.generate(prompts, SAMPLED, SEEDS)
    engine.score(prompts, prompts)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_unseeded_calls_differ(engine, prompts):
    draws = [texts(engine.generate(prompts[:1], tiny.sampling(24, n=2))) for _ in range(2)]
    assert draws[0] != draws[1]


def test_chunked_prefill_is_off_on_a_cpu(vllm_engine):
    config = vllm_engine._llm.llm_engine.vllm_config
    if not torch.cuda.is_available():
        assert config.scheduler_config.enable_chunked_prefill is False
        assert config.scheduler_config.max_num_batched_tokens >= 8192


# shapes and ends


def test_completions_end_for_a_reason(engine, prompts, tokenizer):
    ends = {tokenizer.eos_token_id, *tiny.MORE_ENDS}
    finishes = set()
    for group in engine.generate(prompts, SAMPLED, SEEDS):
        assert len(group) == 3
        for completion in group:
            finishes.add(completion.finish)
            ids = completion.token_ids
            assert 1 <= len(ids) <= 24 and not ends & set(ids[:-1])
            assert (completion.finish == "stop") == (ids[-1] in ends)
            assert completion.finish == "stop" or len(ids) == 24
            assert completion.text == tokenizer.decode(ids, skip_special_tokens=True)
            assert len(completion.logprobs) == len(ids)
    assert finishes == {"stop", "length"}, "both ways of ending occur"
    assert engine.generate(prompts[:1], tiny.sampling(4), [1])[0][0].logprobs is None


def test_progress_counts_every_prompt_once(engine, prompts):
    counts = []
    engine.generate(prompts, SAMPLED, SEEDS, progress=counts.append)
    assert sum(counts) == len(prompts) and all(count > 0 for count in counts)


def test_the_models_own_sampling_habits_are_not_used(tiny_path, tmp_path, policy, prompts):
    """A generation_config.json may ask for a repetition penalty (Qwen2.5-Instruct does): that is another policy."""
    import shutil

    folder = shutil.copytree(tiny_path, tmp_path / "m")
    file = folder / "generation_config.json"
    habits = {"repetition_penalty": 1.5, "top_k": 3, "temperature": 0.3, "do_sample": True}
    file.write_text(json.dumps(json.loads(file.read_text()) | habits))
    engine = start_engine(str(folder), Serving(engine="transformers"), Capacity(max_model_len=192))
    engine.sync_folded(folded_weights(policy))
    ((completion,),) = engine.generate(prompts[:1], tiny.sampling(24, logprobs=True), [5])
    assert completion.logprobs == pytest.approx(logprobs_of(policy, prompts[0], completion.token_ids), abs=1e-4)
    ((greedy,),) = engine.generate(prompts[:1], GREEDY)
    assert greedy.token_ids == greedy_of(policy, prompts[0], GREEDY)
    engine.close()


# engines of their own


def test_tied_embeddings_are_right_after_a_sync(own_engine, tied_path, prompts):
    """vLLM's CPU build keeps a prepacked copy of the output matrix, which a reload of the embedding would not reach."""
    engine, model = own_engine(tied_path), tiny.policy(tied_path)
    engine.sync_folded(folded_weights(model))
    assert_serves(engine, model, prompts)
    tiny.nudge(model, 0.1)
    engine.sync_folded(folded_weights(model))
    assert_serves(engine, model, prompts)
    assert texts(engine.generate(prompts, GREEDY)) == [[greedy_of(model, prompt, GREEDY)] for prompt in prompts]


def test_the_adapter_alone(own_engine, tiny_path, prompts, long_prompt, monkeypatch):
    folders, write = [], AdapterFiles.write
    monkeypatch.setattr(AdapterFiles, "write", lambda files, folder: folders.append(folder) or write(files, folder))
    engine, model = own_engine(tiny_path, replace(ROOM, lora_rank=4)), tiny.policy(tiny_path)
    assert not engine.serves_adapters
    for version in range(3):
        if not engine.serves_adapters:
            engine.sync_folded(folded_weights(model, adapter=None))
        engine.sync_adapter(adapter_files(model))
        assert not folders[-1].exists(), "nothing is left behind"
        assert engine.serves_adapters
        assert_serves(engine, model, prompts)
        greedy = texts(engine.generate(prompts, GREEDY))
        assert greedy == [[greedy_of(model, prompt, GREEDY)] for prompt in prompts]
        ((sampled,),) = engine.generate([long_prompt], tiny.sampling(12, logprobs=True), [5])
        assert sampled.logprobs == pytest.approx(logprobs_of(model, long_prompt, sampled.token_ids), abs=1e-4)
        tiny.nudge(model, 0.1, seed=version)
    assert len(set(folders)) == 3
    sampled = engine.generate(prompts, SAMPLED, SEEDS)
    assert texts(engine.generate(prompts, SAMPLED, SEEDS)) == texts(sampled)


def test_fused_layers_and_an_output_head_that_vllm_would_adapt(own_engine, tmp_path, prompts):
    """Phi-3, in one engine: the base folded, adapters over it, and folded again."""
    path = write_family("phi3", tmp_path)
    engine, model = own_engine(path, replace(ROOM, lora_rank=4)), tiny.policy(path)
    assert engine.score(prompts, prompts), "before there is any adapter"
    engine.sync_folded(folded_weights(model, adapter=None))
    for version in range(2):
        engine.sync_adapter(adapter_files(model))
        assert_serves(engine, model, prompts)
        tiny.nudge(model, 0.1, seed=version)


# failures


def test_what_cannot_start_says_so_in_one_line(tmp_path):
    for kind in ("transformers", "vllm"):
        with pytest.raises(Exception) as caught:
            start_engine(str(tmp_path / "nothing"), Serving(engine=kind), ROOM)
        assert caught.value.user_message and "\n" not in str(caught.value)
        assert "nothing" in str(caught.value)


def test_vllm_failing_to_start_names_the_way_around(tiny_path, monkeypatch):
    vllm = pytest.importorskip("vllm", reason="vLLM is not installed here")

    def broken(*args, **kwargs):
        raise RuntimeError("Traceback of a worker\n  with many lines\nno room for the KV cache\n")

    monkeypatch.setattr(vllm, "LLM", broken)
    with pytest.raises(EngineError) as caught:
        start_engine(str(tiny_path), Serving(engine="vllm"), ROOM)
    message = str(caught.value)
    assert "no room for the KV cache" in message and "rollouts.engine=transformers" in message and "\n" not in message


def test_without_vllm_auto_takes_transformers_and_vllm_is_refused(tiny_path, monkeypatch):
    monkeypatch.setattr("models.engines.start.vllm_available", lambda: False)
    assert start_engine(str(tiny_path), Serving(engine="auto"), ROOM).kind == "transformers"
    with pytest.raises(EngineError, match="not installed"):
        start_engine(str(tiny_path), Serving(engine="vllm"), ROOM)


@pytest.fixture
def named(tmp_path):
    """named(class) -> a folder with no more than the config.json of a model of it."""

    def write(architecture):
        folder = tmp_path / architecture
        folder.mkdir(exist_ok=True)
        kind = architecture.removesuffix("ForCausalLM").lower()
        (folder / "config.json").write_text(json.dumps({"model_type": kind, "architectures": [architecture]}))
        return str(folder)

    return write


def test_what_vllm_would_rewrite_under_the_trainer_is_left_to_transformers(named):
    """It serves an OLMo-2 through transformers' class, whose __init__ and __call__ it replaces in the whole process."""
    pytest.importorskip("vllm", reason="vLLM is not installed here")
    olmo, qwen = named("Olmo2ForCausalLM"), named("Qwen2ForCausalLM")
    assert "vLLM has no Olmo2ForCausalLM of its own" in why_not_vllm(olmo, olmo)
    assert serving_for(olmo, olmo, Serving(engine="auto", dtype="bfloat16")) == Serving(
        engine="transformers", dtype="bfloat16"
    )
    with pytest.raises(EngineError, match=r"rollouts\.engine: 'vllm' cannot serve .*Olmo2.*use 'auto'") as caught:
        serving_for(olmo, olmo, Serving(engine="vllm"))
    assert "\n" not in str(caught.value)
    with pytest.raises(EngineError, match=r"rollouts\.sync: 'adapter' needs vLLM for .*Olmo2.* of its own.*'folded'"):
        serving_for(olmo, olmo, Serving(sync="adapter"))
    # an OLMo-2 that teaches a Qwen2, or is asked to be served by transformers anyway, does no harm
    for model, base, asked in ((olmo, qwen, "auto"), (olmo, qwen, "vllm"), (olmo, olmo, "transformers")):
        assert serving_for(model, base, Serving(engine=asked)) == Serving(engine=asked)
    for own in ("Llama", "Qwen2", "Qwen3", "Mistral", "Phi3"):
        assert why_not_vllm(named(f"{own}ForCausalLM"), named(f"{own}ForCausalLM")) == ""


def test_where_vllm_is_missing_auto_says_so(tiny_path, monkeypatch):
    monkeypatch.setattr("models.engines.start.vllm_available", lambda: False)
    assert why_not_vllm(str(tiny_path), str(tiny_path)) == "vLLM is not installed here"
    assert serving_for(str(tiny_path), str(tiny_path), Serving()).engine == "transformers"


def test_transformers_refuses_an_adapter(transformers_engine):
    with pytest.raises(EngineError, match=r"rollouts\.sync"):
        transformers_engine.sync_adapter(AdapterFiles(b"", b""))


def test_a_rank_that_vllm_cannot_serve(tiny_path):
    pytest.importorskip("vllm", reason="vLLM is not installed here")
    with pytest.raises(EngineError, match=r"model\.lora\.rank: 600 is more than vLLM serves"):
        start_engine(str(tiny_path), Serving(engine="vllm"), replace(ROOM, lora_rank=600))


def test_weights_that_do_not_fit_are_refused(transformers_engine):
    with pytest.raises(EngineError, match="no_such") as caught:
        transformers_engine.sync_folded(tiny.weights([("model.layers.0.mlp.no_such.weight", torch.zeros(2, 2))]))
    assert "\n" not in str(caught.value)


def test_a_reload_that_fails_is_one_line(vllm_engine, monkeypatch):
    """Not provoked for real: it leaves tensors without data in modules that all engines of a process share."""

    def broken(*args, **kwargs):
        raise ValueError("There is no module or parameter named 'no_such'\nin Qwen2Model")

    monkeypatch.setattr(vllm_engine, "_broken", None)  # put back at the end
    monkeypatch.setattr(vllm_engine._llm, "collective_rpc", broken)
    with pytest.raises(EngineError, match="could not take the policy's weights") as caught:
        vllm_engine.sync_folded(tiny.weights([]))
    assert "\n" not in str(caught.value)
    # vLLM would wait forever for what a failed call left behind
    with pytest.raises(EngineError, match="serves nothing more"):
        vllm_engine.generate([[1, 2, 3]], tiny.sampling(4))


def test_a_prompt_that_is_too_long_is_one_line(vllm_engine):
    with pytest.raises(EngineError) as caught:
        vllm_engine.generate([[1, 2], [1] * 300, [3, 4]], tiny.sampling(4))
    assert "192 tokens" in str(caught.value) and "\n" not in str(caught.value)
    assert len(vllm_engine.generate([[1, 2, 3]], tiny.sampling(4), [1])[0][0].token_ids) == 4, "it goes on working"
