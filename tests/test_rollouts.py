"""Rollouts: seeds that follow from the place in the run, and an engine that serves anything else than the policy."""

import math
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch
from tiny_grpo import Stage

from models.engine import Completion, EngineError, EngineSettings, Sampling, start_engine
from models.merge import folded_weights
from models.training import Probe
from rl.rollouts import Rollouts, push_policy, rollout_seed


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


@pytest.fixture(params=["vllm_engine", "transformers_engine"])
def engine(request, tiny_path):
    """Serving the checkpoint's own weights, as right after its start."""
    made = request.getfixturevalue(request.param)
    from models.base import load_base

    made.sync_folded((n, p.data) for n, p in load_base(str(tiny_path), "none").named_parameters() if "_proj" in n)
    return made


@pytest.fixture
def rollouts(tokenizer):
    probe = Probe.of_prompts(tiny.tokens(tokenizer, tiny.prompts(tokenizer)))

    def make(engine, model, sync="folded"):
        return Rollouts(engine, model, Sampling(12, stop_token_ids=tiny.MORE_ENDS), sync, seed=3, probe=probe)

    return make


# the probe


@pytest.mark.parametrize("noise", [0.1, 0.0])
def test_a_faithful_engine_passes_however_the_policy_moves(engine, tiny_path, rollouts, noise):
    """From B = 0, too: there both agree exactly, and the first rounding afterwards is no sign of anything."""
    model = tiny.policy(tiny_path, noise=noise)
    served = rollouts(engine, model)
    for step, size in enumerate((0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1e-7)):
        tiny.nudge(model, size, seed=step)
        served.sync_weights()
        assert served.mismatch < 1e-4


def test_an_engine_whose_first_sync_does_nothing(engine, tiny_path, rollouts):
    """It serves the unquantised checkpoint: close to the policy, but not it."""
    served = rollouts(Sabotaged(engine, sync_folded=lambda weights: None), tiny.policy(tiny_path, noise=0))
    with pytest.raises(EngineError) as caught:
        served.sync_weights()
    message = str(caught.value)
    assert "does not serve the policy" in message and "stale or bare" in message and "\n" not in message


@pytest.mark.parametrize("size", [1e-5, 1e-3, 0.1])
def test_an_engine_that_goes_stale(engine, tiny_path, rollouts, size):
    """Right at the first sync, deaf afterwards: noticed from small moves on, far below the absolute tolerance."""
    model = tiny.policy(tiny_path)
    sabotaged = Sabotaged(engine)
    served = rollouts(sabotaged, model)
    served.sync_weights()
    sabotaged._sync = lambda weights: None
    tiny.nudge(model, size)
    with pytest.raises(EngineError, match="does not serve the policy"):
        served.sync_weights()


def test_an_engine_that_is_one_step_behind(engine, tiny_path, rollouts):
    model = tiny.policy(tiny_path)
    before = []

    def late(weights):
        engine.sync_folded(before[-1] if before else (weights := list(weights)))
        before.append(list(weights))

    served = rollouts(Sabotaged(engine, sync_folded=late), model)
    served.sync_weights()
    tiny.nudge(model, 1e-3)
    with pytest.raises(EngineError):
        served.sync_weights()


def test_an_engine_that_serves_the_bare_base(engine, tiny_path, rollouts):
    """With B = 0 the policy is the base, so the first sync is right; then the adapter never arrives."""
    model = tiny.policy(tiny_path, noise=0)
    bare = Sabotaged(engine, sync_folded=lambda weights: engine.sync_folded(folded_weights(model, adapter=None)))
    served = rollouts(bare, model)
    served.sync_weights()
    tiny.nudge(model, 1e-2)
    with pytest.raises(EngineError):
        served.sync_weights()
    with pytest.raises(EngineError):
        rollouts(bare, tiny.policy(tiny_path)).sync_weights()


def test_an_engine_whose_numbers_are_none(engine, tiny_path, rollouts):
    broken = Sabotaged(engine, score=lambda scored: [[math.nan] * len(row) for row in scored])
    with pytest.raises(EngineError):
        rollouts(broken, tiny.policy(tiny_path)).sync_weights()


@pytest.fixture(scope="module")
def coarse_engine(tiny_path):
    return start_engine("transformers", str(tiny_path), EngineSettings(max_model_len=192, dtype="bfloat16"))


def test_bfloat16_engines_have_room_for_rounding_and_no_more(coarse_engine, tiny_path, rollouts):
    served = rollouts(coarse_engine, tiny.policy(tiny_path))
    for seed, size in enumerate((0.0, 1e-4, 1e-3, 1e-2)):
        tiny.nudge(served.model, size, seed=seed)
        served.sync_weights()
        assert 1e-4 < served.mismatch < 0.15
    stale = rollouts(Sabotaged(coarse_engine, sync_folded=lambda weights: None), tiny.policy(tiny_path, seed=4))
    with pytest.raises(EngineError):
        stale.sync_weights()


def test_a_bare_engine_is_noticed_though_rounding_hides_it(coarse_engine, tiny_path, rollouts):
    """The policy is only a little further from its base than bfloat16 rounds: far within the tolerance."""
    model = tiny.policy(tiny_path, noise=0, dtype="bfloat16")
    bare = dict(folded_weights(model))
    tiny.nudge(model, 5e-3)
    sabotaged = Sabotaged(coarse_engine, sync_folded=lambda weights: coarse_engine.sync_folded(bare.items()))
    served = rollouts(sabotaged, model)
    with pytest.raises(EngineError, match="Of the policy's way from the base"):
        served.sync_weights()
    assert served.mismatch < 0.15, "or the tolerance alone would have seen it"
    sabotaged._sync = None
    served.sync_weights()


@pytest.mark.parametrize("other", ["the checkpoint", "another policy", "half of the way"])
def test_an_engine_stale_before_the_first_sync_is_noticed_too(coarse_engine, tiny_path, rollouts, other):
    """As a stage begins, or before an evaluation: whatever it holds, close to the policy or not."""
    from models.base import load_base

    model = tiny.policy(tiny_path, noise=0, dtype="bfloat16")
    if other == "the checkpoint":
        held = [(n, p.data) for n, p in load_base(str(tiny_path), "none").named_parameters() if "_proj" in n]
    else:
        tiny.nudge(model, 3e-3, seed=1 if other == "half of the way" else 8)
        held = list(folded_weights(model))
        if other != "half of the way":
            tiny.nudge(model, -3e-3, seed=8)
    coarse_engine.sync_folded(iter(held))
    tiny.nudge(model, 5e-3)
    served = rollouts(Sabotaged(coarse_engine, sync_folded=lambda weights: None), model)
    with pytest.raises(EngineError):
        served.sync_weights()


def test_training_stops_on_a_stale_engine(transformers_engine, tiny_path, tmp_path):
    class Deaf(Sabotaged):
        syncs = 0

        def sync_folded(self, weights):
            self.syncs += 1
            if self.syncs <= 2:
                super().sync_folded(weights)

    with pytest.raises(EngineError, match="at step 2"):
        Stage(tiny_path, Deaf(transformers_engine)).run(tmp_path)


# rollouts


def test_seeds_follow_from_the_place_in_the_run():
    grid = [(s, t, a, g) for s in range(3) for t in range(5) for a in range(3) for g in range(20)]
    seeds = [rollout_seed(*place) for place in grid]
    assert len(set(seeds)) == len(grid) and seeds == [rollout_seed(*place) for place in grid]
    assert all(0 <= seed < 2**62 for seed in seeds), "room for the completions of a group"


def test_what_trl_gets(engine, tiny_path, rollouts, tokenizer):
    served = rollouts(engine, tiny.policy(tiny_path))
    served.sync_weights()
    prompts = tiny.tokens(tokenizer, tiny.prompts(tokenizer))[:3]
    repeated = [prompt for prompt in prompts for _ in range(4)]
    ids, completions, logprobs, rest = served.generate(repeated, None, 4)
    assert ids == repeated and rest is None and len(completions) == len(logprobs) == 12
    policy = served.model
    for prompt, completion, steps in zip(repeated, completions, logprobs, strict=True):
        exact = tiny.next_token_logprobs(policy, [*prompt, *completion])[len(prompt) - 1 : -1]
        assert [step for (step,) in steps] == pytest.approx(
            [float(exact[t, token]) for t, token in enumerate(completion)], abs=1e-4
        )
    times = served.times.take()
    assert times.tokens == sum(map(len, completions)) and times.generate > 0 and times.sync > 0
    assert served.times.tokens == 0


def test_the_same_place_samples_the_same_and_another_does_not(engine, tiny_path, rollouts, tokenizer):
    served = rollouts(engine, tiny.policy(tiny_path))
    served.sync_weights()
    prompts = [prompt for prompt in tiny.tokens(tokenizer, tiny.prompts(tokenizer))[:2] for _ in range(3)]

    def sample(step=0, attempt=0, first_group=0):
        served.step, served.attempt, served.first_group = step, attempt, first_group
        return served.generate(prompts, None, 3)[1]

    first = sample()
    assert sample() == first
    for other in (sample(step=1), sample(attempt=1), sample(first_group=2)):
        assert other != first


def test_one_call_asks_each_prompt_once(tiny_path, rollouts):
    asked = []

    class Listening:
        dtype = torch.float32

        def generate(self, prompts, sampling, seeds):
            asked.append((list(prompts), sampling.n, sampling.logprobs, seeds))
            return [[Completion([1], "", "stop", [-1.0])] * sampling.n for _ in prompts]

    rollouts(Listening(), None).generate([[1], [1], [2], [2]], None, 2)
    assert asked == [([[1], [2]], 2, True, [rollout_seed(3, 0, 0, 0), rollout_seed(3, 0, 0, 1)])]


# pushing


def test_the_adapter_travels_through_memory_and_leaves_nothing(tiny_path):
    class Adapters:
        serves_adapters, seen = False, ()

        def sync_folded(self, weights):
            self.seen += ("base", dict(weights))

        def sync_adapter(self, folder):
            self.seen += ("adapter", sorted(path.name for path in Path(folder).iterdir()), Path(folder))
            self.serves_adapters = True

    engine, model = Adapters(), tiny.policy(tiny_path)
    push_policy(engine, model, "adapter")
    push_policy(engine, model, "adapter")
    what = engine.seen
    assert what[0] == "base" and what[2] == what[5] == "adapter", "the base once, before the first adapter"
    bare = dict(folded_weights(model, adapter=None))
    assert all(torch.equal(what[1][name], bare[name]) for name in bare)
    assert {"adapter_model.safetensors", "adapter_config.json"} <= set(what[3])
    assert not what[4].exists() and not what[7].exists() and what[4] != what[7]


@contextmanager
def nothing():
    yield


def test_trls_profiler_wraps_the_sampling(tiny_path, transformers_engine, rollouts):
    served = rollouts(transformers_engine, tiny.policy(tiny_path))
    assert len(served.generate([[1, 2]] * 2, None, 2, nothing())[1]) == 2
