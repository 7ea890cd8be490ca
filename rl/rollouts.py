"""Rollouts: the current policy's completions from the run's engine, in the place where TRL expects its own vLLM.

TRL's sync merges into the trainer's base and takes the merge back, which drifts in 4-bit; here the trainer is only
read. After every sync a probe compares trainer and engine, so a stale or bare engine cannot go unnoticed.
"""

import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from models.adapters import save_adapter
from models.base import arithmetic_of
from models.engine import Engine, EngineError, Sampling
from models.merge import folded_weights
from models.training import Probe, TrainingError, mean_difference

if TYPE_CHECKING:
    from peft import PeftModel

# mean absolute difference of log-probabilities, nats a token, between trainer and engine holding the same policy;
# the coarser of the two counts
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
# an engine is stale when it is this much further from the policy than right after the stage's first sync ...
STALE_FACTOR = 4.0
# ... and by more than this share of the way the policy went since the last sync
STALE_SHARE = 0.5


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
    mismatch: float = math.nan
    times: RolloutTimes = field(default_factory=RolloutTimes)
    _floor: float | None = None
    _served: list[list[float]] | None = None

    def sync_weights(self) -> None:
        """Push the policy into the engine and compare the two.

        Raises:
            EngineError: the engine serves something else than the policy.
        """
        start = time.perf_counter()
        push_policy(self.engine, self.model, self.sync)
        self.check()
        self.times.sync += time.perf_counter() - start

    def check(self) -> None:
        """Compare engine and trainer on the probe; sets `mismatch` (mean absolute difference, nats a token).

        Raises:
            TrainingError: the policy itself gives no numbers.
            EngineError: the engine serves something else.
        """
        policy = self.probe.logprobs(self.model)
        if not math.isfinite(sum(map(sum, policy))):
            raise TrainingError(
                f"the policy's log-probabilities are no numbers after {self.step} steps: training diverged; "
                "lower the stage's learning_rate"
            )
        self.mismatch = mean_difference(policy, self.engine.score(self.probe.prompts, self.probe.completions))
        tolerance = max(TOLERANCE[self.engine.dtype], TOLERANCE[arithmetic_of(self.model)])
        moved = 0.0 if self._served is None else mean_difference(policy, self._served)
        # never less than what rounding alone may do later: with B = 0 both may agree exactly at first
        floor = max(self.mismatch, tolerance / 100) if self._floor is None else self._floor
        stale = self.mismatch > STALE_FACTOR * floor and self.mismatch > STALE_SHARE * moved > 0
        if not self.mismatch <= tolerance or stale:
            raise EngineError(
                f"the {self.engine.kind} engine does not serve the policy that is trained: log-probabilities differ by "
                f"{self.mismatch:.2g} nats a token at step {self.step} (allowed {tolerance:g}, right after the first "
                f"sync {floor:.2g}, the policy moved {moved:.2g} since the last sync). Its weights are stale or bare; "
                "rollouts from it would train on another model's samples"
            )
        self._floor, self._served = floor, policy

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
