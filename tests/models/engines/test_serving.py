"""Serving a policy: an engine that serves anything else is noticed, a faithful one never; a history over the stages."""

import math

import numpy as np
import pytest
import tiny
import torch

from models.adapters import adapter_files
from models.base import load_base
from models.engines.protocol import EngineError
from models.engines.serving import Served, Way, which_sync
from models.engines.start import Capacity, start_engine
from models.folding import folded_weights
from models.settings import Serving
from models.training import TrainingError


class Sabotaged:
    """A real engine whose sync does something else."""

    def __init__(self, engine, sync_folded=None, score=None):
        self._engine = engine
        self._sync, self._score = sync_folded, score

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def sync_folded(self, weights):
        (self._sync or self._engine.sync_folded)(weights)

    def score(self, prompts, completions):
        scored = self._engine.score(prompts, completions)
        return self._score(scored) if self._score else scored


def checkpoint_weights(path):
    """The linear layers of the checkpoint itself, which is what an engine serves before its first sync."""
    base = load_base(str(path), "none", "float32")
    return tiny.weights((name, x.data) for name, x in base.named_parameters() if "_proj" in name)


@pytest.fixture(params=["vllm_engine", "transformers_engine"])
def engine(request, tiny_path):
    """Serving the checkpoint's own weights, as right after its start."""
    made = request.getfixturevalue(request.param)
    made.sync_folded(checkpoint_weights(tiny_path))
    return made


@pytest.fixture(scope="module")
def coarse_engine(tiny_path):
    serving = Serving(engine="transformers", dtype="bfloat16")
    return start_engine(str(tiny_path), serving, Capacity(max_model_len=192))


@pytest.fixture
def serve(tokenizer):
    return lambda engine: Served(engine, "folded", tiny.probe(tokenizer))


# one push after another


@pytest.mark.parametrize("noise", [0.1, 0.0])
def test_a_faithful_engine_passes_however_the_policy_moves(engine, tiny_path, serve, noise):
    """From B = 0, too: there both agree exactly, and the first rounding afterwards is no sign of anything."""
    model = tiny.policy(tiny_path, noise=noise)
    served = serve(engine)
    for step, size in enumerate((0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1e-7)):
        tiny.nudge(model, size, seed=step)
        served.push(model, step)
        assert served.mismatch < 1e-4


def test_an_engine_whose_first_sync_does_nothing(engine, tiny_path, serve):
    """It serves the unquantised checkpoint: close to the policy, but not it."""
    served = serve(Sabotaged(engine, sync_folded=lambda weights: None))
    with pytest.raises(EngineError) as caught:
        served.push(tiny.policy(tiny_path, noise=0))
    message = str(caught.value)
    assert "does not serve the policy" in message and "stale or bare" in message and "\n" not in message


@pytest.mark.parametrize("size", [1e-5, 1e-3, 0.1])
def test_an_engine_that_goes_stale(engine, tiny_path, serve, size):
    """Right at the first sync, deaf afterwards: noticed from small moves on, far below the absolute tolerance."""
    model = tiny.policy(tiny_path)
    sabotaged = Sabotaged(engine)
    served = serve(sabotaged)
    served.push(model, 1)
    sabotaged._sync = lambda weights: None
    tiny.nudge(model, size)
    with pytest.raises(EngineError, match=r"does not serve the policy .* at step 2"):
        served.push(model, 2)


def test_an_engine_that_is_one_step_behind(engine, tiny_path, serve):
    model = tiny.policy(tiny_path)
    before = []

    def late(weights):
        made = tiny.weights(weights)
        engine.sync_folded(before[-1] if before else made)
        before.append(made)

    served = serve(Sabotaged(engine, sync_folded=late))
    served.push(model)
    tiny.nudge(model, 1e-3)
    with pytest.raises(EngineError):
        served.push(model)


def test_an_engine_that_serves_the_bare_base(engine, tiny_path, serve):
    """With B = 0 the policy is the base, so the first sync is right; then the adapter never arrives."""
    model = tiny.policy(tiny_path, noise=0)
    bare = Sabotaged(engine, sync_folded=lambda weights: engine.sync_folded(folded_weights(model, adapter=None)))
    served = serve(bare)
    served.push(model)
    tiny.nudge(model, 1e-2)
    with pytest.raises(EngineError):
        served.push(model)
    with pytest.raises(EngineError):
        serve(bare).push(tiny.policy(tiny_path))


def test_an_engine_whose_numbers_are_none(engine, tiny_path, serve):
    broken = Sabotaged(engine, score=lambda scored: [[math.nan] * len(row) for row in scored])
    with pytest.raises(EngineError):
        serve(broken).push(tiny.policy(tiny_path))


def test_a_policy_whose_numbers_are_none(transformers_engine, tiny_path, serve):
    """Training's fault, not the engine's."""
    model = tiny.policy(tiny_path)
    tiny.nudge(model, math.nan)
    with pytest.raises(TrainingError, match=r"no numbers at step 3: training diverged"):
        serve(transformers_engine).push(model, 3)


def test_bfloat16_engines_have_room_for_rounding_and_no_more(coarse_engine, tiny_path, serve):
    model, served = tiny.policy(tiny_path), serve(coarse_engine)
    for seed, size in enumerate((0.0, 1e-4, 1e-3, 1e-2)):
        tiny.nudge(model, size, seed=seed)
        served.push(model)
        assert 1e-4 < served.mismatch < 0.15
    stale = serve(Sabotaged(coarse_engine, sync_folded=lambda weights: None))
    with pytest.raises(EngineError):
        stale.push(tiny.policy(tiny_path, seed=4))


def test_a_bare_engine_is_noticed_though_rounding_hides_it(coarse_engine, tiny_path, serve):
    """The policy is only a little further from its base than bfloat16 rounds: far within the tolerance."""
    model = tiny.policy(tiny_path, noise=0, dtype="bfloat16")
    bare = tiny.weights(folded_weights(model))
    tiny.nudge(model, 5e-3)
    sabotaged = Sabotaged(coarse_engine, sync_folded=lambda weights: coarse_engine.sync_folded(bare))
    served = serve(sabotaged)
    with pytest.raises(EngineError, match="Of the policy's way from the base"):
        served.push(model)
    assert served.mismatch < 0.15, "or the tolerance alone would have seen it"
    sabotaged._sync = None
    served.push(model)


@pytest.mark.parametrize("other", ["the checkpoint", "another policy", "half of the way"])
def test_an_engine_stale_before_the_first_sync_is_noticed_too(coarse_engine, tiny_path, serve, other):
    """As a stage begins, or before an evaluation: whatever it holds, close to the policy or not."""
    model = tiny.policy(tiny_path, noise=0, dtype="bfloat16")
    if other == "the checkpoint":
        held = checkpoint_weights(tiny_path)
    else:
        tiny.nudge(model, 3e-3, seed=1 if other == "half of the way" else 8)
        held = tiny.weights(folded_weights(model))
        if other != "half of the way":
            tiny.nudge(model, -3e-3, seed=8)
    coarse_engine.sync_folded(held)
    tiny.nudge(model, 5e-3)
    served = serve(Sabotaged(coarse_engine, sync_folded=lambda weights: None))
    with pytest.raises(EngineError):
        served.push(model)


# over the stages of a run


class Mirror:
    """Scores exactly as the model did that was pushed last, and says of itself that it rounds to bfloat16."""

    kind, dtype, serves_adapters = "mirror", torch.bfloat16, False
    deaf = False

    def __init__(self, probe, model):
        self._probe, self.model = probe, model
        with model.disable_adapter():
            self._scores = probe.logprobs(model)

    def sync_folded(self, weights):
        if not self.deaf:
            self._scores = self._probe.logprobs(self.model)

    def score(self, prompts, completions):
        return self._scores


def test_the_history_goes_on_over_stages(tiny_path, tokenizer):
    """Each stage moves the policy by less than three times the rounding, which is too little to judge; both together
    are enough. So it is noticed that the second stage's policy never arrived, by whoever remembers the first stage."""
    probe, small = tiny.probe(tokenizer), 1.1e-3

    def policy_after(stages):
        model = tiny.policy(tiny_path)
        for _ in range(stages):
            tiny.nudge(model, small, seed=4)
        return model

    before, first, second = map(policy_after, range(3))
    scores = [probe.logprobs(model) for model in (before, first, second)]
    ways = [Way.of(there, here, there).length for here, there in ((scores[0], scores[1]), (scores[1], scores[2]))]
    assert all(0.045 < way < 0.075 for way in ways), "neither is resolved at 3 * 0.03"

    engine = Mirror(probe, before)
    served = Served(engine, "folded", probe)
    served.push(before)
    engine.model = first
    served.push(first)
    engine.deaf = True
    Served(engine, "folded", probe).push(second)  # who begins anew sees one small way
    with pytest.raises(EngineError, match="does not serve the policy"):
        served.push(second)
    engine.deaf, engine.model = False, second
    served.push(second)
    assert served.mismatch == 0.0


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
def test_a_faithful_engine_passes_over_all_stages_and_policies(request, tiny_path, serve, arithmetic):
    """Another policy on a base that is loaded anew, small steps, a big one, and back to a policy of before."""
    engine = request.getfixturevalue("transformers_engine" if arithmetic == "float32" else "coarse_engine")
    served = serve(engine)
    for seed, noise in ((1, 0.0), (1, 0.1), (2, 0.1), (3, 0.02), (1, 0.1), (1, 0.0)):
        model = tiny.policy(tiny_path, noise=noise, seed=seed, dtype=arithmetic)
        for step, size in enumerate((0.0, 0.0, 1e-7, 1e-4, 1e-3, 5e-3)):
            tiny.nudge(model, size, seed=step)
            served.push(model, step)


@pytest.mark.parametrize("dtype, allowed", [(torch.float32, 1e-3), (torch.bfloat16, 0.15)])
@pytest.mark.parametrize("trained", ["float32", "bfloat16"])
def test_the_coarser_arithmetic_says_how_far_they_may_differ(tiny_path, tokenizer, dtype, allowed, trained):
    """The policy is far from its base, so that the engine has plainly gone its way; but each token is off by as much,
    up and down in turn. 0.8 of what is allowed passes, 1.2 does not."""
    allowed = 0.15 if trained == "bfloat16" else allowed
    model, probe = tiny.policy(tiny_path, dtype=trained), tiny.probe(tokenizer)
    engine = Mirror(probe, model)
    engine.dtype = dtype
    for share in (0.8, 1.2):
        off = share * allowed
        wrong = [[value + off * (-1) ** t for t, value in enumerate(row)] for row in probe.logprobs(model)]
        # another engine before the push and at it, or nothing would have been sent
        answers = [probe.logprobs(model), wrong]
        engine.score = lambda prompts, completions, answers=answers: answers.pop(0)
        served = Served(engine, "folded", probe)
        if share < 1:
            served.push(model)
        else:
            with pytest.raises(EngineError, match=f"allowed {allowed:g}"):
                served.push(model)
        assert served.mismatch == pytest.approx(off, rel=1e-3)


# what is sent


def test_the_adapter_goes_as_files_and_the_base_before_it(tiny_path, tokenizer):
    class Adapters(Mirror):
        seen = ()

        def sync_folded(self, weights):
            self.seen += (dict(weights),)

        def sync_adapter(self, adapter):
            super().sync_folded(None)
            self.seen += (adapter,)
            self.serves_adapters = True

    model = tiny.policy(tiny_path)
    engine = Adapters(tiny.probe(tokenizer), model)
    served = Served(engine, "adapter", tiny.probe(tokenizer))
    served.push(model)
    first = adapter_files(model)
    tiny.nudge(model, 0.01)
    served.push(model)
    base, *adapters = engine.seen
    bare = dict(folded_weights(model, adapter=None))
    assert base.keys() == bare.keys() and all(torch.equal(base[name], bare[name]) for name in bare)
    assert adapters == [first, adapter_files(model)], "the base once, before the first adapter"


@pytest.mark.parametrize("sync", ["folded", "adapter"])
@pytest.mark.parametrize("quantize", ["nf4", "none"])
def test_what_is_asked_for_is_sent(sync, quantize):
    for engine in ("vllm", "transformers", "auto"):
        assert which_sync(Serving(engine=engine, sync=sync, dtype="bfloat16"), quantize) == sync


@pytest.mark.parametrize("vllm", [True, False])
def test_auto_sends_the_adapter_only_where_folding_could_lose_it(monkeypatch, vllm):
    """In bfloat16, on a base whose values are bfloat16's already, and where the engine can serve it."""
    monkeypatch.setattr("models.engines.start.vllm_available", lambda: vllm)
    cases = [
        (e, d, q) for e in ("vllm", "transformers", "auto") for d in ("float32", "bfloat16") for q in ("nf4", "none")
    ]
    adapter = {case for case in cases if which_sync(Serving(engine=case[0], dtype=case[1]), case[2]) == "adapter"}
    assert adapter == {("vllm", "bfloat16", "none")} | ({("auto", "bfloat16", "none")} if vllm else set())
    on_gpu = torch.cuda.is_available()
    assert (which_sync(Serving(engine="vllm"), "none") == "adapter") == on_gpu, "dtype: auto is bfloat16 on a GPU"


# has the engine gone the policy's way?


def test_by_hand():
    """The way is (3, 4), 5 long, so 5 / sqrt(2) a token. An engine at (0, 5) has gone <(0, 5), (3, 4)> / 25 = 20 / 25
    of it, and lies (0, 5) - 0.8 (3, 4) = (-2.4, 1.8), 3 long, beside it."""
    way = Way.of([[0.0], [5.0]], [[0.0, 0.0]], [[3.0], [4.0]])
    assert (way.length, way.share, way.beside) == pytest.approx((5 / math.sqrt(2), 0.8, 3 / math.sqrt(2)))


def test_nowhere_to_go():
    way = Way.of([[1.0, 2.0]], [[3.0, 4.0]], [[3.0, 4.0]])
    assert way.length == 0.0 and math.isnan(way.share) and way.beside == 2.0


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("faithful", [True, False])
def test_what_is_resolved_is_judged_rightly(seed, faithful):
    """Rounding of 0.03 a token in each of three passes, 40 tokens, and a policy that goes further and further: the
    engine is judged from some point on, and rightly wherever it is."""
    draw = np.random.default_rng(seed)
    before = -draw.exponential(2.0, 40)
    direction = draw.standard_normal(40)
    judged = 0
    for size in (0.0, 0.01, 0.03, 0.15, 0.2, 0.3):
        policy = before + size * direction + 0.03 * draw.standard_normal(40)
        served = before + faithful * size * direction + 0.03 * draw.standard_normal(40)
        way = Way.of([served], [before], [policy])
        if way.resolved(0.03):
            judged += 1
            assert way.missed(0.03) != faithful, (size, way)
    assert judged >= 2
