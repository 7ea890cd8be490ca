"""Rollouts: the current policy's completions from the run's engine, in the place where TRL expects its own vLLM.

TRL's sync merges into the trainer's base and takes the merge back, which drifts in 4-bit; here the trainer is only
read. After every sync a probe compares trainer and engine, so a stale or bare engine cannot go unnoticed.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from models.adapters import save_adapter
from models.engine import Engine, Sampling
from models.merge import folded_weights
from models.training import Probe
from rl.freshness import Freshness

if TYPE_CHECKING:
    from peft import PeftModel


def rollout_seed(seed: int, step: int, attempt: int, group: int) -> int:
    """Seed of one group's completions: follows from where it stands in the run, not from what ran before it."""
    return int(np.random.SeedSequence([seed, step, attempt, group]).generate_state(1, np.uint64)[0] >> 2)


def push_policy(engine: Engine, model: "PeftModel", sync: Literal["folded", "adapter"]) -> None:
    """Make an engine serve the policy in `model`, whose own tensors are only read.

    `adapter`: the engine's base is the dequantised one, pushed when it is first seen, and the adapter travels through
    a RAM disk.
    """
    if sync == "folded":
        engine.sync_folded(folded_weights(model))
        return
    if not engine.serves_adapters:
        engine.sync_folded(folded_weights(model, adapter=None))
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        save_adapter(model, Path(folder))
        engine.sync_adapter(Path(folder))


@dataclass
class RolloutTimes:
    """Seconds since the last `take`, and completion tokens sampled."""

    sync: float = 0.0
    generate: float = 0.0
    tokens: int = 0

    def take(self) -> "RolloutTimes":
        taken = RolloutTimes(self.sync, self.generate, self.tokens)
        self.sync = self.generate = 0.0
        self.tokens = 0
        return taken


@dataclass
class Rollouts:
    """The engine behind TRL's `vllm_generation` interface (`sync_weights`, `generate`).

    Fields:
        engine: the run's engine for this base.
        model: the trainer's model; only read.
        sampling: of the completions; `n` is set at each call.
        sync: `folded` pushes base-plus-adapter weights, `adapter` the adapter alone.
        seed: of the stage.
        probe: tokens on which trainer and engine are compared after each sync.
    """

    engine: Engine
    model: "PeftModel"
    sampling: Sampling
    sync: Literal["folded", "adapter"]
    seed: int
    probe: Probe
    step: int = 0
    attempt: int = 0
    first_group: int = 0
    times: RolloutTimes = field(default_factory=RolloutTimes)
    _freshness: Freshness = field(init=False)

    def __post_init__(self) -> None:
        self._freshness = Freshness(self.engine, self.model, self.probe)

    @property
    def mismatch(self) -> float:
        """Between trainer and engine at the last sync, mean absolute difference of log-probabilities."""
        return self._freshness.mismatch

    def sync_weights(self) -> None:
        """Push the policy into the engine and compare the two.

        Raises:
            TrainingError, EngineError: see `Freshness.sync`.
        """
        start = time.perf_counter()
        self._freshness.sync(lambda: push_policy(self.engine, self.model, self.sync), self.step)
        self.times.sync += time.perf_counter() - start

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        images: None,
        num_generations: int,
        profiler: AbstractContextManager | None = None,
    ) -> tuple[list[Sequence[int]], list[list[int]], list[list[list[float]]], None]:
        """Completions for TRL: one call for the whole step, each prompt once with `num_generations` completions.

        Args:
            prompts: token ids, each prompt repeated `num_generations` times in a row.

        Returns:
            prompts, completion token ids, log-probability of each token as a list of one, and None.
        """
        start = time.perf_counter()
        unique = list(prompts[::num_generations])
        seeds = [rollout_seed(self.seed, self.step, self.attempt, self.first_group + i) for i in range(len(unique))]
        sampling = Sampling(**{**vars(self.sampling), "n": num_generations, "logprobs": True})
        with profiler or nullcontext():
            groups = self.engine.generate(unique, sampling, seeds)
        completions = [completion for group in groups for completion in group]
        self.times.generate += time.perf_counter() - start
        self.times.tokens += sum(len(completion.token_ids) for completion in completions)
        return (
            list(prompts),
            [completion.token_ids for completion in completions],
            [[[value] for value in completion.logprobs] for completion in completions],
            None,
        )
