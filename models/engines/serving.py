"""Serving a policy: push it into the engine, see that it arrived, and remember over the stages what was served.

Two questions. Are they close (`TOLERANCE`)? A bare or stale engine may be, as long as the policy has not gone further
than the arithmetic rounds. So also: has the engine gone the policy's way? With e, p, b the log-probabilities of engine,
policy and a point that the policy comes from, all over the probe's n tokens,

    share = <e - b, p - b> / <p - b, p - b>

is 0 for an engine that did not move. Rounding adds noise of size r to a token of e - b and of p - b, so a faithful
engine's share is w^2 / (w^2 + r^2) for a way of size w, within r / (w sqrt(n)). It is asked as soon as the policy has
gone three times as far as is rounded (0.9 expected, then, and less than 0.1 of scatter for 20 tokens). Two such
points: the bare base; and what the engine served when it was last right (before the first sync, whatever it served), a
way that grows from step to step until it can be judged. Not seen is an engine that lags behind by less than the
rounding, or by one of three or more syncs that together are just resolved; the importance weights correct for what is
that small.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from models.adapters import POLICY, acting, adapter_files
from models.base import arithmetic_of
from models.engines.protocol import Engine, EngineError
from models.engines.start import engine_kind
from models.folding import folded_weights
from models.settings import Quantize, Serving
from models.sizes import arithmetic_name, automatic_sync
from models.training import Probe, TrainingError, mean_difference

if TYPE_CHECKING:
    from peft import PeftModel

# mean absolute difference of log-probabilities, nats a token, between trainer and engine holding the same policy;
# the coarser of the two counts
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15}
# what is rounded at least, root mean square over tokens, nats: two equal kernels may agree exactly
ROUNDING = {torch.float32: 3e-6, torch.bfloat16: 0.03}
# the way is long enough to be judged at so many times what is rounded
RESOLVED = 3.0
# an engine whose share is further from 1 than this serves something else
LARGEST_MISS = 0.4

Logprobs = Sequence[Sequence[float]]
Sync = Literal["folded", "adapter"]


@dataclass(frozen=True)
class Way:
    """How far the policy went, and how far the engine followed; see the module docstring.

    Fields:
        length: of the policy's way, root mean square over tokens, nats.
        share: of it that the engine has gone; NaN where there is no way.
        beside: what lies beside the way, root mean square: the rounding, in a faithful engine.
    """

    length: float
    share: float
    beside: float

    @classmethod
    def of(cls, served: Logprobs, before: Logprobs, policy: Logprobs) -> "Way":
        e, b, p = (np.array([value for row in rows for value in row]) for rows in (served, before, policy))
        way, gone = p - b, e - b
        square = float(way @ way)
        share = float(gone @ way) / square if square else math.nan
        beside = gone - share * way if square else gone
        tokens = max(len(way), 1)
        return cls(math.sqrt(square / tokens), share, math.sqrt(float(beside @ beside) / tokens))

    def resolved(self, rounded: float) -> bool:
        """Whether the policy went far enough for the share to mean something; `rounded` in nats a token."""
        return self.length > RESOLVED * max(self.beside, rounded)

    def missed(self, rounded: float) -> bool:
        """Whether the engine went another way."""
        return self.resolved(rounded) and abs(self.share - 1) > LARGEST_MISS


def which_sync(serving: Serving, quantize: Quantize) -> Sync:
    """What an engine of these settings gets after a step.

    `auto`: folded weights, which cost something at a sync and nothing per token (benchmarks/grpo_step.md has both
    measured); but the adapter where folding would lose it (`automatic_sync`).

    Args:
        quantize: of the trained base.
    """
    if serving.sync != "auto":
        return serving.sync
    dtype = arithmetic_name(serving.dtype, cuda=torch.cuda.is_available())
    return automatic_sync(dtype, quantize, vllm=engine_kind(serving) == "vllm")


class Served:
    """An engine and the policy that it serves; one per engine and run, so that its history goes on over the stages.

    Args:
        engine: of the policy's base.
        sync: `folded` pushes base-plus-adapter weights, `adapter` the adapter alone.
        probe: tokens on which policy and engine are compared after each push.

    Attributes:
        mismatch: at the last push, mean absolute difference of log-probabilities, nats a token.
    """

    def __init__(self, engine: Engine, sync: Sync, probe: Probe) -> None:
        self.engine, self.sync, self.probe = engine, sync, probe
        self.mismatch = math.nan
        self._before: Logprobs | None = None
        self._bare: Logprobs | None = None

    def push_panel(self, model: "PeftModel", adapters: Mapping[str, str], folders: Mapping[str, Path]) -> None:
        """Have an engine that takes adapters hold a whole panel, and see that it answers as each of its experts does.

        Args:
            model: holds the experts.
            adapters: by the expert's name, what it is called in the model; folders: where each lies.

        Raises:
            EngineError: under an expert's name it serves something else.
        """
        if not self.engine.serves_adapters:
            self.engine.sync_folded(folded_weights(model, adapter=None))
        self.engine.sync_panel(folders)
        bare = self._of_base(model)
        served = self.engine.score_routed(self.probe.prompts, self.probe.completions, None)
        self._must_follow(model, bare, served, bare, " as the base")
        for name, adapter in adapters.items():
            with acting(model, adapter):
                policy = self.probe.logprobs(model)
            # from the expert before: of experts that went similar ways from the base, one might pass for another
            before, served = served, self.engine.score_routed(self.probe.prompts, self.probe.completions, name)
            self._must_follow(model, policy, served, before, f" as expert {name!r}")

    def push(self, model: "PeftModel", step: int | None = None, adapter: str | None = POLICY) -> None:
        """Make the engine serve the policy in `model`, whose own tensors are only read, and see that it does.

        Args:
            model: one of its adapters is the policy.
            step: for messages.
            adapter: which; None is the base.

        Raises:
            TrainingError: the policy itself gives no numbers.
            EngineError: the engine serves something else.
        """
        at = "" if step is None else f" at step {step}"
        with acting(model, adapter):
            policy = self.probe.logprobs(model)
        if not math.isfinite(sum(map(sum, policy))):
            raise TrainingError(
                f"the policy's log-probabilities are no numbers{at}: training diverged; lower the stage's learning_rate"
            )
        before = self._before or self._score()  # at first whatever it serves, the bare base or another policy
        self._send(model, adapter)
        served = self._score()
        moved = self._must_follow(model, policy, served, before, at)
        self._before = served if moved else before

    def _must_follow(self, model: "PeftModel", policy: Logprobs, served: Logprobs, before: Logprobs, at: str) -> bool:
        """See that the engine is where the policy is, and went there from the base and from where it was before; says
        whether the latter way is long enough to tell."""
        self.mismatch = mean_difference(policy, served)
        dtypes = (self.engine.dtype, arithmetic_of(model))
        tolerance = max(TOLERANCE[dtype] for dtype in dtypes)
        recent, whole = (Way.of(served, start, policy) for start in (before, self._of_base(model)))
        rounded = max(ROUNDING[dtype] for dtype in dtypes)
        # NaN is not close either
        if not self.mismatch <= tolerance or recent.missed(rounded) or whole.missed(rounded):
            raise EngineError(
                f"the {self.engine.kind} engine does not serve the policy that is trained: log-probabilities differ by "
                f"{self.mismatch:.2g} nats a token{at} (allowed {tolerance:g}). Of the policy's way from the base, "
                f"{whole.length:.2g} nats a token, it has gone {whole.share:.0%}; since it was last right, "
                f"{recent.length:.2g}, {recent.share:.0%}. Its weights are stale or bare, or small updates were lost "
                "in rounding, which `rollouts.sync: adapter` or `rollouts.dtype: float32` mends; completions from it "
                "would be another model's"
            )
        return recent.resolved(rounded)

    def _of_base(self, model: "PeftModel") -> Logprobs:
        if self._bare is None:
            with model.disable_adapter():
                self._bare = self.probe.logprobs(model)
        return self._bare

    def _send(self, model: "PeftModel", adapter: str | None) -> None:
        """`adapter`: the engine's base is the dequantised one, pushed when it is first seen."""
        if self.sync == "folded":
            self.engine.sync_folded(folded_weights(model, adapter))
            return
        if not self.engine.serves_adapters:
            self.engine.sync_folded(folded_weights(model, adapter=None))
        self.engine.sync_adapter(adapter_files(model, adapter) if adapter is not None else None)

    def _score(self) -> Logprobs:
        return self.engine.score(self.probe.prompts, self.probe.completions)
