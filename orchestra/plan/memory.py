"""What a run needs in memory, part by part, in bytes: products of the recipe's numbers and the model's shape.

training     parameters + adapter, gradient, AdamW + activations + logits, beside the engine
a panel      parameters + its experts in float32, beside the engine
engine       weights + adapters that it makes room for + KV cache; on a GPU all of it is vLLM's share
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from models.engines.protocol import LORA_RANKS
from models.families import ALL_LINEAR
from models.sizes import (
    EXPERTS_AT_ONCE,
    GENERATED_AT_ONCE,
    activation_bytes,
    arithmetic_name,
    automatic_sync,
    must_checkpoint,
)
from orchestra.plan.devices import GIB, Device
from orchestra.plan.shapes import Shape, shape_of

if TYPE_CHECKING:
    from models.settings import Lora
    from orchestra.config.recipe import Recipe
    from orchestra.config.trained import TrainingStage

NF4_BYTES = 0.516
"""4 bits and the doubly quantised scales: 4.127 bits (arXiv 2305.14314)."""
LOGIT_BYTES = 12
"""Logits, their log-softmax and their gradient in float32, per token and word of the vocabulary."""
TILE = (4096, 32768)
"""Tokens and words at once: neither trainer keeps logits (TRL's ChunkedLogProbFunction; rl/logprobs.py)."""
ENGINE_SHARE = 0.9
"""Of vLLM's share weights may take; the rest is its activations and a KV cache worth having."""
FLOAT32 = 4
"""Bytes of a number of an adapter, whatever the base is in (models/adapters.py)."""
EMBEDDED_LONGEST_PROMPT = 48
"""Tokens of the generator's prompts at most, however high the limit is."""


class Memory:
    """The formulas, for one recipe on one device."""

    def __init__(self, recipe: Recipe, device: Device) -> None:
        """Raises Unknown."""
        self.recipe, self.device = recipe, device
        self.base = self.shape(recipe.model.base)
        limit = recipe.rollouts.max_prompt_tokens
        shipped = recipe.model.base.startswith("embedded/")
        # the generator's own, or a part of them: `embedded:formal`
        self.generated = shipped and recipe.problems.train.partition(":")[0] == "embedded"
        self.longest_prompt = min(limit, EMBEDDED_LONGEST_PROMPT) if self.generated else limit

    @staticmethod
    def shape(model: str) -> Shape:
        """Raises Unknown."""
        return shape_of(model)

    def serving(self, teacher: Shape | None = None) -> dict[str, int]:
        """Bytes by part while completions are sampled, from a teacher or else from the policy."""
        device, number = self.device, self._bytes(self.recipe.rollouts.dtype)
        weights = (teacher or self.base).parameters * number
        share = int(self.recipe.rollouts.gpu_memory_utilization * device.memory)
        teachers, adapters = len(self._teachers()), self.engine_adapters()
        if not device.cuda:
            # every engine stays until the end of the run
            others = [self.shape(name).parameters * number for name in self._teachers()]
            resident = self.base.parameters * number + sum(others) - weights
            return {"libraries": device.libraries, "engine weights": weights, "engine adapters": adapters,
                    "other engines": resident, "KV": (1 + teachers) * GIB}  # fmt: skip
        # one teacher's engine is put to rest, a second one stays, and the base's is there all the time
        resident = (teachers if teacher is not None else max(teachers - 1, 0)) * share
        adapters = adapters if teacher is None else 0  # in the share of the base's engine
        return {"libraries": device.libraries, "engine weights": weights, "engine adapters": adapters,
                "other engines": resident, "KV": max(share - weights - adapters, 0)}  # fmt: skip

    def large_engine(self) -> str | None:
        """What to say where vLLM has no room for a model's KV cache in its share of a GPU."""
        rollouts, number = self.recipe.rollouts, self._bytes(self.recipe.rollouts.dtype)
        share = rollouts.gpu_memory_utilization * self.device.memory
        for name in (self.recipe.model.base, *sorted(self._teachers())):
            weights = self.shape(name).parameters * number
            weights += self.engine_adapters() if name == self.recipe.model.base else 0
            if self.device.cuda and rollouts.engine != "transformers" and weights > ENGINE_SHARE * share:
                return (
                    f"{name} takes {weights / GIB:.1f} GiB in vLLM, whose share is {share / GIB:.1f} "
                    f"(rollouts.gpu_memory_utilization: {rollouts.gpu_memory_utilization:g})"
                )
        return None

    def engine_adapters(self) -> int:
        """Bytes that the base's vLLM sets aside when it starts, where it is handed adapters instead of folded weights:
        for each adapter of a batch (`max_loras`) two matrices at every linear layer, whatever `lora.targets` are, of
        the next rank that it serves, in its own arithmetic (vllm/lora/layers, `create_lora_weights`)."""
        recipe = self.recipe
        if self.sync != "adapter" or recipe.rollouts.engine == "transformers":
            return 0
        slots = EXPERTS_AT_ONCE if any("panel" in stage.given for stage in recipe.stages) else 1
        largest = max(stage.adapter(recipe).rank for stage in recipe.all_stages)
        rank = next((rank for rank in LORA_RANKS if rank >= largest), largest)
        return slots * self.base.adapter_parameters(rank, (ALL_LINEAR,)) * self._bytes(recipe.rollouts.dtype)

    @property
    def sync(self) -> str:
        """What the engine gets: `folded` weights or the `adapter`."""
        rollouts = self.recipe.rollouts
        if rollouts.sync != "auto":
            return rollouts.sync
        dtype = arithmetic_name(rollouts.dtype, cuda=self.device.cuda)
        return automatic_sync(dtype, self.recipe.model.quantize, vllm=rollouts.engine != "transformers")

    def training(self, settings: TrainingStage, tokens: int) -> tuple[dict[str, int], bool]:
        """Bytes by part while a stage trains beside the engine with so many tokens in a forward pass, and whether it
        computes activations twice."""
        base, number, lora = self.base, self._number, settings.adapter(self.recipe)
        adapter = base.adapter_parameters(lora.rank, lora.targets)
        parts = self.serving() | {
            "parameters": self.frozen(number),
            "adapter and gradient": adapter * 3 * FLOAT32,  # itself, its gradient, the reference's copy
            "optimizer": adapter * 2 * FLOAT32,
            "logits": min(TILE[0], tokens) * min(TILE[1], base.vocab) * LOGIT_BYTES,
        }
        kept = {
            again: activation_bytes(
                tokens, hidden=base.hidden, mlp=base.mlp, layers=base.layers, number=number, checkpointing=again
            )
            for again in (False, True)
        }
        again = settings.gradient_checkpointing
        if again is None:
            again = self.device.cuda and must_checkpoint(kept[False], self.device.memory - sum(parts.values()))
        return parts | {"activations": kept[again]}, again

    def panel(self, experts: Iterable[Lora]) -> dict[str, int]:
        """Bytes by part while a panel is asked: in the trainer the frozen base with all of these experts on it, beside
        the engine, which gets one after the other or has room for some of them."""
        return self.serving() | {"parameters": self.frozen(self._number), "experts": self.experts(experts)}

    def experts(self, experts: Iterable[Lora]) -> int:
        """Bytes of experts on the trainer's base."""
        return sum(FLOAT32 * self.base.adapter_parameters(one.rank, one.targets) for one in experts)

    def reloaded(self) -> dict[str, int]:
        """Bytes by part while an export is loaded again, in the run's engine and beside the policy, there in float32
        (what a GPU has no room for stays in main memory)."""
        each = self._bytes(self.recipe.rollouts.dtype) if self.device.cuda else 8
        return {"merged model": self.base.parameters * each, "activations": self.generated_at_once()}

    def generated_at_once(self) -> int:
        """Bytes of the caches of transformers' generate, which pages none."""
        rollouts = self.recipe.rollouts
        limit = self.recipe.evaluate.max_completion_tokens or rollouts.max_completion_tokens
        tokens = GENERATED_AT_ONCE * (self.longest_prompt + limit)
        return tokens * self.base.cache_numbers * self._bytes(rollouts.dtype)

    def frozen(self, number: int) -> int:
        """The trainer's base, with so many bytes per number that is not quantised."""
        block = NF4_BYTES if self.recipe.model.quantize == "nf4" else number
        return int(self.base.block_parameters * block + self.base.embedding_parameters * number)

    @property
    def _number(self) -> int:
        """Bytes of a number of the trainer's base that is not quantised: a CPU's autocast keeps float32 beside what it
        casts."""
        return self._bytes(self.recipe.model.dtype) if self.device.cuda else 4

    def _bytes(self, dtype: str) -> int:
        """Per number in arithmetic of this kind."""
        return 2 if arithmetic_name(dtype, cuda=self.device.cuda) == "bfloat16" else 4

    def _teachers(self) -> set[str]:
        return {model for stage in self.recipe.stages for model in stage.other_models()}
