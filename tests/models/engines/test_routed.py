"""A panel served as one policy: who is asked what under which seed, in both ways, and that a stale expert is caught."""

import contextlib
from pathlib import Path

import pytest
import tiny
import torch

from models.adapters import acting, adapter_sha256, adapter_tensors, save_adapter
from models.base import load_base
from models.engines.protocol import Completion, EngineError
from models.engines.routed import RoutedEngine, adapter_name, panel_model
from models.engines.serving import Served
from models.engines.start import Capacity
from models.engines.transformers import TransformersEngine
from models.experts import BASE, Lineage, Panel, expert_folder, expert_of, write_panel
from models.settings import Serving

RANKS = {"one": 4, "two": 2}
ROUTES = ["two", BASE, "one", "two", BASE, "one"]


@pytest.fixture(scope="module")
def panel(tiny_path, tmp_path_factory):
    """(panel, folder) of two experts of different ranks, both far from the base and from each other."""
    folder, experts, sources = tmp_path_factory.mktemp("panel"), [], {}
    for at, (name, rank) in enumerate(RANKS.items()):
        sources[name] = folder / f"source-{name}"
        save_adapter(tiny.policy(tiny_path, quantize="none", rank=rank, noise=0.2, seed=at), sources[name])
        experts.append(expert_of(sources[name], name, (), Lineage("made")))
    made = Panel(str(tiny_path), "", tuple(experts))
    return write_panel(folder / "panel", made, sources), folder / "panel"


@pytest.fixture(scope="module")
def model(tiny_path, panel):
    return panel_model(load_base(str(tiny_path), "none", "float32"), places(panel))


@pytest.fixture(scope="module")
def asked(tokenizer):
    return tiny.tokens(tokenizer, tiny.prompts(tokenizer))


def places(panel):
    return {name: expert_folder(panel[1], name) for name in panel[0].names}


def routed(engine, served, model, panel, routes=ROUTES):
    return RoutedEngine(engine, served, model, routes, places(panel))


class Noting:
    """An engine whose completions say who wrote them: the policy that it was given last, the prompt, the seed."""

    sync = "folded"

    def __init__(self):
        self.now, self.groups = None, []

    def push(self, model, step=None, adapter="default"):
        self.now = adapter

    def push_panel(self, model, adapters, folders):
        self.now = (dict(adapters), dict(folders))

    def generate(self, prompts, sampling, seeds=None, progress=None):
        self.groups.append((self.now, len(prompts)))
        for _ in prompts:
            progress(sampling.n)
        return [
            [Completion([prompt[0], seed + k], f"{self.now}", "stop", None) for k in range(sampling.n)]
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def generate_routed(self, prompts, experts, sampling, seeds=None, progress=None):
        self.experts = experts
        return self.generate(prompts, sampling, seeds, progress)


@pytest.mark.parametrize("sync", ["folded", "adapter"])
def test_each_prompt_is_answered_by_its_expert_under_its_own_seed_in_its_own_place(panel, sync):
    engine, counted = Noting(), []
    engine.sync = sync
    prompts, seeds = [[at] for at in range(6)], [100 * at for at in range(6)]
    groups = routed(engine, engine, None, panel).generate(prompts, tiny.sampling(4, n=2), seeds, counted.append)
    assert [[one.token_ids for one in group] for group in groups] == [
        [[at, 100 * at], [at, 100 * at + 1]] for at in range(6)
    ]
    assert sum(counted) == 12
    if sync == "folded":
        # the base first, as it is; then each expert once, by name
        assert engine.groups == [(None, 2), ("expert-one", 2), ("expert-two", 2)]
        assert [group[0].text for group in groups] == [str(adapter_name(name)) for name in ROUTES]
    else:
        names = {name: f"expert-{name}" for name in RANKS}
        folders = {name: expert_folder(panel[1], name) for name in RANKS}
        assert engine.groups == [((names, folders), 6)] and engine.now == (names, folders)
        assert engine.experts == [None if name == BASE else name for name in ROUTES]


def test_whom_nobody_is_routed_to_is_not_pushed(panel):
    engine = Noting()
    routed(engine, engine, None, panel, ["two"] * 2).generate([[0], [1]], tiny.sampling(4), [1, 2], len_of)
    assert engine.groups == [("expert-two", 2)]
    with pytest.raises(EngineError, match=r"^3 prompts for 2 routes$"):
        routed(engine, engine, None, panel, ["two"] * 2).generate([[0]] * 3, tiny.sampling(4))


def len_of(count):
    assert count == 1


# the model itself


def test_a_panels_model_holds_the_experts_as_they_are_on_disk(model, panel, tiny_path):
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name, rank in RANKS.items():
        assert model.peft_config[adapter_name(name)].r == rank
        alone = panel_model(load_base(str(tiny_path), "none", "float32"), {name: places(panel)[name]})
        tensors = adapter_tensors(model, adapter_name(name))
        assert adapter_sha256(tensors) == adapter_sha256(adapter_tensors(alone, adapter_name(name)))


def test_grouped_by_expert_completions_are_those_of_each_expert_asked_alone(model, panel, engine, asked, tokenizer):
    """Greedily; transformers draws a batch from one seed."""
    served = Served(engine, "folded", tiny.probe(tokenizer))
    seeds, sampling = list(range(6)), tiny.sampling(8, temperature=0.0)
    whole = routed(engine, served, model, panel).generate(asked, sampling, seeds)
    for name in (BASE, *RANKS):
        alone = routed(engine, served, model, panel, [name] * 6).generate(asked, sampling, seeds)
        for at, route in enumerate(ROUTES):
            same = [one.token_ids for one in whole[at]] == [one.token_ids for one in alone[at]]
            assert same or route != name, (name, at)
        assert alone != whole


class Stale(TransformersEngine):
    """Takes the first so many sets of weights, and no more."""

    takes = 1

    def sync_folded(self, weights):
        self.takes -= 1
        if self.takes >= 0:
            super().sync_folded(weights)


@pytest.mark.parametrize("takes", [0, 1, 2])
def test_an_engine_that_keeps_another_expert_is_caught(model, panel, tiny_path, asked, tokenizer, takes):
    """It is there as the base, then the first expert comes, then the second: whichever does not arrive."""
    engine = Stale(str(tiny_path), Serving(engine="transformers", dtype="float32"), Capacity(192, 64))
    engine.takes = takes
    served = Served(engine, "folded", tiny.probe(tokenizer))
    with pytest.raises(EngineError, match="does not serve the policy"):
        routed(engine, served, model, panel).generate(asked, tiny.sampling(4), list(range(6)))


class Holding:
    """An engine of adapters that scores as the model does, each name by the adapter that it holds under it."""

    kind, dtype, serves_adapters = "holding", torch.float32, True

    def __init__(self, model, probe, holds):
        self.model, self.probe, self.holds = model, probe, holds

    def sync_panel(self, folders):
        assert all(Path(folder, "adapter_model.safetensors").is_file() for folder in folders.values())

    def score_routed(self, prompts, completions, expert):
        with acting(self.model, self.holds.get(expert)):
            return self.probe.logprobs(self.model)


@pytest.mark.parametrize(
    ("holds", "said"),
    [
        ({}, "expert 'one'"),
        ({"one": "expert-two", "two": "expert-two"}, "expert 'one'"),
        ({"one": "expert-one", "two": "expert-one"}, "expert 'two'"),
        ({"one": "expert-one"}, "expert 'two'"),
        # what it answers without an adapter is no base
        ({"one": "expert-one", "two": "expert-two", None: "expert-one"}, "as the base"),
    ],
)
def test_each_name_of_a_panel_is_seen_to_be_its_expert(model, panel, tokenizer, holds, said):
    probe = tiny.probe(tokenizer)
    adapters = {name: adapter_name(name) for name in RANKS}
    folders = {name: expert_folder(panel[1], name) for name in RANKS}
    Served(Holding(model, probe, adapters), "adapter", probe).push_panel(model, adapters, folders)
    with pytest.raises(EngineError, match=said):
        Served(Holding(model, probe, holds), "adapter", probe).push_panel(model, adapters, folders)


class Told:
    """Log-probabilities of eight tokens by a table: those of the adapter that is active, `base` where none is."""

    prompts, completions = [[0]], [list(range(8))]

    def __init__(self, rows):
        self.rows = rows

    def logprobs(self, model):
        off = next(module for module in model.modules() if hasattr(module, "lora_A")).disable_adapters
        return [self.rows[BASE if off else model.active_adapter.removeprefix("expert-")]]


@pytest.mark.parametrize(("holds", "caught"), [("two", False), ("one", True)])
def test_an_expert_that_went_a_similar_way_does_not_pass_for_another(model, holds, caught):
    """In bfloat16. Both went 1 nat a token from the base, and lie 0.14 apart, which is less than may be between trainer
    and engine: of the way to `two`, `one` has gone 0.99, but nothing of that from `one` to `two`."""
    one, apart = [-2.0] * 8, [0.14, -0.14] * 4
    probe = Told({BASE: [-3.0] * 8, "one": one, "two": [a + b for a, b in zip(one, apart, strict=True)]})

    class Engine:
        kind, dtype, serves_adapters = "told", torch.bfloat16, True

        def sync_panel(self, folders):
            pass

        def score_routed(self, prompts, completions, expert):
            return [probe.rows[{None: BASE, "one": "one", "two": holds}[expert]]]

    served = Served(Engine(), "adapter", probe)
    with pytest.raises(EngineError, match="as expert 'two'") if caught else contextlib.nullcontext():
        served.push_panel(model, {name: adapter_name(name) for name in RANKS}, {})


@pytest.mark.slow
def test_both_ways_give_the_same_completions_in_vllm(model, panel, tiny_path, own_engine, asked, tokenizer):
    engine = own_engine(tiny_path, Capacity(192, 64, lora_rank=4, loras=2))
    for sampling in (tiny.sampling(16, n=2), tiny.sampling(16, temperature=0.0)):
        found = []
        for sync in ("folded", "adapter"):
            served = Served(engine, sync, tiny.probe(tokenizer))
            counted = []
            groups = routed(engine, served, model, panel).generate(asked, sampling, list(range(6)), counted.append)
            found.append([[one.token_ids for one in group] for group in groups])
            assert sum(counted) == 6
        assert found[0] == found[1]
        base = routed(engine, Served(engine, "adapter", tiny.probe(tokenizer)), model, panel, [BASE] * 6)
        alone = [[one.token_ids for one in group] for group in base.generate(asked, sampling, list(range(6)))]
        assert [at for at in range(6) if alone[at] == found[0][at]] == [1, 4]
