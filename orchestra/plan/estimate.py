"""What a run would do, take and need, before it starts: tokens, seconds and bytes per stage, from formulas.

Every number is a product of what the recipe says, the model's shape, and the constants below, which were measured
(CPU: 2 cores with AVX-512; GPU: published peaks times a usual share). `orchestra run` prints plan and measurement side
by side, so wrong constants show.

    decoding     steps x (OVERHEAD + max(batch x 2 N / FLOPS, weights / BANDWIDTH)), N = parameters a token meets
    training     tokens x N x FLOPS_PER_PARAMETER / FLOPS + micro-batches x OVERHEAD
    memory       parameters + adapter, gradient, AdamW + activations + logits + engine (weights, KV cache) + libraries
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.sizes import GENERATED_AT_ONCE, activation_bytes, arithmetic_name, must_checkpoint
from orchestra.plan.devices import GIB, Device, device_of
from orchestra.plan.machine import Machine
from orchestra.plan.remedies import what_fits
from orchestra.plan.shapes import Shape, Unknown, shape_of
from orchestra.work.preflighted import measured_by
from rewards.problems import Split

if TYPE_CHECKING:
    from models.settings import TrainingSettings
    from orchestra.config.recipe import Recipe
    from orchestra.config.stage import Stage

FLOPS_FORWARD, FLOPS_TRAIN = 2.0, 4.0
"""Per parameter and token. LoRA's backward pass needs gradients of activations only; the frozen weights get none."""
NF4_BYTES = 0.516
"""4 bits and the doubly quantised scales: 4.127 bits (arXiv 2305.14314)."""
LOGIT_BYTES = 12
"""Logits, their log-softmax and their gradient in float32, per token and word of the vocabulary."""
TILE = (4096, 32768)
"""Tokens and words at once: neither trainer keeps logits (TRL's ChunkedLogProbFunction; rl/logprobs.py)."""
ENGINE_SHARE = 0.9
"""Of vLLM's share weights may take; the rest is its activations and a KV cache worth having."""
READ_AT_ONCE = 8
"""Texts in one pass where perplexities are measured (orchestra/work/policies.py, `rows_at_once`)."""
LENGTH_SHARE = 0.6
"""Mean length of a completion as a share of the limit."""
GENERATE = 4.0
"""How many times as long as vLLM transformers' own generate takes (2.4 and 4.6 in benchmarks/grpo_step.md)."""
EMBEDDED_LENGTH_SHARE = 0.3
"""The same for the shipped models, which write about 25 tokens of 96."""
PROMPT_SHARE = 0.5
"""Mean length of a prompt as a share of the limit."""
EMBEDDED_PROMPT, EMBEDDED_LONGEST_PROMPT = 26, 48
"""Tokens of the generator's prompts, on average and at most, however high the limit is."""
GSM8K: Mapping[Split, int] = {"train": 7473, "test": 1319}
HUB_PROBLEMS: Mapping[str, Mapping[Split, int]] = {
    "openai/gsm8k": GSM8K,
    "nlile/hendrycks-MATH-benchmark": {"train": 12000, "test": 500},
}
"""What `None` means for the data sets that the recipes name; of others GSM8K's size is assumed."""
EMBEDDED_PROBLEMS: Mapping[Split, int] = {"train": 4000, "test": 500}


@dataclass(frozen=True)
class StagePlan:
    """One stage. `memory` is by part, in bytes; tokens are generated or trained on."""

    name: str
    kind: str
    parent: str
    data: str
    beta: float | None
    reference: str
    steps: int | None
    tokens: int
    seconds: float
    memory: Mapping[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Bytes in all."""
        return sum(self.memory.values())

    @property
    def dominant(self) -> str:
        """The part that takes most; the libraries' own share, which no recipe changes, aside."""
        parts = {name: size for name, size in self.memory.items() if name != "libraries"}
        return max(parts, key=lambda name: parts[name]) if parts else ""


@dataclass(frozen=True)
class Plan:
    """A recipe's stages on a device, and whether they fit the machine we are on."""

    recipe: str
    scale: str
    machine: str
    device: str
    stages: tuple[StagePlan, ...]
    fits: bool
    reason: str

    @property
    def seconds(self) -> float:
        """In all."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak(self) -> int:
        """Bytes in all in the stage that needs most."""
        return max((stage.peak for stage in self.stages), default=0)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `stages` is a list with `name`, `seconds`, `tokens`, `memory_gib`, ..."""
        stages = [
            {**dataclasses.asdict(stage), "seconds": round(stage.seconds, 1), "peak_bytes": stage.peak,
             "dominant": stage.dominant}
            for stage in self.stages
        ]  # fmt: skip
        return {
            **dataclasses.asdict(self),
            "seconds": round(self.seconds, 1),
            "peak_bytes": self.peak,
            "stages": stages,
        }


def _lines(source: str) -> int:
    """Problems in a local .jsonl file, 0 where there is none."""
    path = Path(source).expanduser()
    if path.suffix != ".jsonl" or not path.is_file():
        return 0
    with open(path, "rb") as file:
        return sum(1 for line in file if line.strip())


class Estimator:
    """The formulas, for one recipe on one device."""

    def __init__(self, recipe: Recipe, device: Device) -> None:
        """Raises Unknown."""
        self.recipe, self.device = recipe, device
        self.base = self.shape(recipe.model.base)
        shipped = recipe.model.base.startswith("embedded/")
        self.length_share = EMBEDDED_LENGTH_SHARE if shipped else LENGTH_SHARE
        limit = recipe.rollouts.max_prompt_tokens
        generated = shipped and recipe.problems.train == "embedded"
        self.prompt = min(limit, EMBEDDED_PROMPT) if generated else int(limit * PROMPT_SHARE)
        self.longest_prompt = min(limit, EMBEDDED_LONGEST_PROMPT) if generated else limit

    @staticmethod
    def shape(model: str) -> Shape:
        """Raises Unknown."""
        return shape_of(model)

    def training_problems(self, at_most: int | None = None) -> int:
        """How many training problems a stage asks that limits them itself, or as the recipe does."""
        own = self.recipe.problems
        return _count(own.train, "train", at_most or own.train_limit)

    def held_out(self, stage: Stage) -> str:
        """A stage's held-out problems in words, such as `embedded (500)`."""
        source, limit = stage.held_out(self.recipe)
        return f"{source} ({_count(source, 'test', limit):,})"

    def generate(self, shape: Shape, sequences: int, limit: int) -> tuple[int, float]:
        """Tokens and seconds for so many completions cut off at `limit`."""
        device = self.device
        tokens = int(sequences * limit * self.length_share)
        # each process its share, at the same time
        own_tokens, own_sequences = (math.ceil(number / device.processes) for number in (tokens, sequences))
        batch = min(own_sequences, device.concurrency)
        steps = max(limit, math.ceil(own_tokens / batch)) if sequences else 0
        compute = own_tokens * 2 * shape.active_parameters / device.decode_flops
        read = steps * shape.active_parameters * self._bytes(self.recipe.rollouts.dtype) / device.bandwidth
        return tokens, steps * device.decode_overhead + max(compute, read)

    def train(self, tokens: int, micro_batches: int, passes: float) -> float:
        """Seconds to train on so many tokens over all processes, in so many passes on each; `passes` are FLOPs per
        parameter and token."""
        flops = tokens / self.device.processes * self.base.active_parameters * passes
        return flops / self.device.train_flops + micro_batches * self.device.train_overhead

    def evaluation(self, stage: Stage) -> tuple[int, float]:
        """Tokens and seconds of a stage's evaluation, sampled and greedy; none where it has none."""
        if "evaluation" not in stage.gives:
            return 0, 0.0
        settings = stage.evaluation(self.recipe)
        passes = settings.samples + (1 if settings.greedy else 0)
        return self.generate(self.base, self.held_out_count(stage) * passes, settings.max_completion_tokens)

    def held_out_count(self, stage: Stage) -> int:
        """Problems that a stage is evaluated on, in all its sets."""
        return sum(_count(source, "test", limit) for source, limit in stage.held_out_sets(self.recipe).values())

    def preflight(self, stage: Stage) -> tuple[int, float]:
        """Tokens and seconds of a stage's preflight; none where it has none, or an earlier stage has measured it all.
        Each text is read under two prompts, and the policy's own answer to its problem."""
        asked = stage.preflights(self.recipe)
        if asked is None or measured_by(self.recipe, stage) is not None:
            return 0, 0.0
        texts = asked.limits.problems * len(asked.sources)
        generated, sampling = self.generate(self.base, texts, self.recipe.rollouts.max_completion_tokens)
        reading = self.train(3 * (texts * self.prompt + generated), math.ceil(3 * texts / READ_AT_ONCE), FLOPS_FORWARD)
        return generated, sampling + reading

    def perplexity(self, stage: Stage) -> float:
        """Seconds to read the texts that a stage's policy is measured on, and those of the policy before it."""
        recipe = self.recipe
        trained_on = {source for one in (*recipe.before(stage.name), stage) for source in one.imitates(recipe)}
        texts = 2 * stage.evaluation(recipe).perplexity * (len(trained_on) + 1)
        length = self.prompt + int(recipe.rollouts.max_completion_tokens * self.length_share)
        return self.train(texts * length, math.ceil(texts / READ_AT_ONCE), FLOPS_FORWARD)

    def answers(self, problems: int) -> tuple[int, float]:
        """Tokens and seconds for a copy of the policy to answer held-out problems in vLLM, as an evaluation does, and
        greedily in transformers, which takes its time."""
        recipe = self.recipe
        limit = recipe.evaluate.max_completion_tokens or recipe.rollouts.max_completion_tokens
        sampled = self.generate(self.base, problems * (recipe.evaluate.samples + recipe.evaluate.greedy), limit)
        greedy = self.generate(self.base, problems, limit)
        # each in a process of its own
        return sampled[0] + greedy[0], sampled[1] + GENERATE * greedy[1] + 2 * self.device.start

    def reloaded(self) -> dict[str, int]:
        """Bytes by part while an export is loaded again, in the run's engine and beside the policy, there in float32
        (what a GPU has no room for stays in main memory)."""
        base, rollouts, number = self.base, self.recipe.rollouts, self._bytes(self.recipe.rollouts.dtype)
        limit = self.recipe.evaluate.max_completion_tokens or rollouts.max_completion_tokens
        cache = GENERATED_AT_ONCE * (self.longest_prompt + limit) * base.cache_numbers * number
        return {"merged model": base.parameters * (number if self.device.cuda else 8), "activations": cache}

    def with_evaluation(self, stage: Stage, tokens: int, seconds: float) -> tuple[int, float]:
        """Tokens and seconds of a stage's training, and of what is measured before and after it."""
        (own, fitting), (asked, answering) = self.preflight(stage), self.evaluation(stage)
        return tokens + own + asked, seconds + fitting + answering + self.perplexity(stage)

    def with_sweep(self, stage: Stage, training: TrainingSettings, tokens: int, seconds: float) -> tuple[int, float]:
        """Tokens and seconds of a stage's training, and of the evaluations on the way."""
        validation = self.recipe.problems.validation
        if training.evaluate_every is None or validation is None:
            return tokens, seconds
        problems = validation if isinstance(validation, int) else _count(validation, "test", None)
        settings = stage.evaluation(self.recipe)
        asked, taken = self.generate(
            self.base, problems * (settings.samples + settings.greedy), settings.max_completion_tokens
        )
        times = math.ceil(training.steps / training.evaluate_every)
        return tokens + times * asked, seconds + times * taken

    def row(
        self,
        stage: Stage,
        work: tuple[int, float],
        memory: Mapping[str, int],
        *,
        data: str = "",
        parent: str | None = None,
        steps: int | None = None,
        beta: float | None = None,
        reference: str | None = None,
    ) -> StagePlan:
        """A stage's plan.

        Args:
            work: tokens and seconds; what every stage takes to load and write is added.
            memory: bytes by part.
            data, parent: what it works on, and with whose policy (None: that of its parents).
        """
        if parent is None and stage.written:
            parent = ", ".join(self.recipe.parents_of(stage.name)) or "base"
        tokens, seconds = work[0], work[1] + self.device.stage
        said = (parent or "", data, beta, reference or "", steps)
        return StagePlan(stage.name, stage.kind, *said, tokens, seconds, memory)

    def serving(self, teacher: Shape | None = None) -> dict[str, int]:
        """Bytes by part while completions are sampled, from a teacher or else from the policy."""
        device, number = self.device, self._bytes(self.recipe.rollouts.dtype)
        weights = (teacher or self.base).parameters * number
        share = int(self.recipe.rollouts.gpu_memory_utilization * device.memory)
        teachers = len(self._teachers())
        if not device.cuda:
            # every engine stays until the end of the run
            others = [self.shape(name).parameters * number for name in self._teachers()]
            resident = self.base.parameters * number + sum(others) - weights
            return {"libraries": device.libraries, "engine weights": weights, "other engines": resident,
                    "KV": (1 + teachers) * GIB}  # fmt: skip
        # one teacher's engine is put to rest, a second one stays, and the base's is there all the time
        resident = (teachers if teacher is not None else max(teachers - 1, 0)) * share
        return {"libraries": device.libraries, "engine weights": weights, "other engines": resident,
                "KV": max(share - weights, 0)}  # fmt: skip

    def large_engine(self) -> str | None:
        """What to say where vLLM has no room for a model's KV cache in its share of a GPU."""
        rollouts, number = self.recipe.rollouts, self._bytes(self.recipe.rollouts.dtype)
        share = rollouts.gpu_memory_utilization * self.device.memory
        for name in (self.recipe.model.base, *sorted(self._teachers())):
            weights = self.shape(name).parameters * number
            if self.device.cuda and rollouts.engine != "transformers" and weights > ENGINE_SHARE * share:
                return (
                    f"{name} takes {weights / GIB:.1f} GiB in vLLM, whose share is {share / GIB:.1f} "
                    f"(rollouts.gpu_memory_utilization: {rollouts.gpu_memory_utilization:g})"
                )
        return None

    def training(self, settings: TrainingSettings, tokens: int) -> tuple[dict[str, int], bool]:
        """Bytes by part while a stage trains beside the engine with so many tokens in a forward pass, and whether it
        computes activations twice."""
        base, model = self.base, self.recipe.model
        # a CPU's autocast keeps float32 beside what it casts
        number = self._bytes(model.dtype) if self.device.cuda else 4
        adapter = base.adapter_parameters(model.lora.rank, model.lora.targets)
        parts = self.serving() | {
            "parameters": self.frozen(number),
            "adapter and gradient": adapter * 12,  # itself, its gradient, the reference's copy
            "optimizer": adapter * 8,
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

    def frozen(self, number: int) -> int:
        """The trainer's base, with so many bytes per number that is not quantised."""
        block = NF4_BYTES if self.recipe.model.quantize == "nf4" else number
        return int(self.base.block_parameters * block + self.base.embedding_parameters * number)

    def _bytes(self, dtype: str) -> int:
        """Per number in arithmetic of this kind."""
        return 2 if arithmetic_name(dtype, cuda=self.device.cuda) == "bfloat16" else 4

    def _teachers(self) -> set[str]:
        return {model for stage in self.recipe.stages for model in stage.other_models()}


def _count(source: str, split: Split, limit: int | None) -> int:
    """How many problems there are; a guess for sources that are not at hand."""
    if source.partition(":")[0] == "embedded":
        return limit or EMBEDDED_PROBLEMS[split]  # the generator makes as many as are asked for
    return min(_lines(source) or HUB_PROBLEMS.get(source, GSM8K)[split], limit or 10**9)


def estimate(recipe: Recipe, machine: Machine, scale: str = "none") -> Plan:
    """Plan a recipe. Where a model's shape is not known the plan has no stages and says so in `reason`."""
    device = device_of(machine, scale)
    try:
        estimator = Estimator(recipe, device)
        stages = tuple(stage.plan(estimator) for stage in recipe.all_stages)
    except Unknown as error:
        return Plan(recipe.name, scale, str(machine), device.name, (), False, str(error))
    needed = max(stages, key=lambda stage: stage.peak)
    fits, reason = True, f"{needed.peak / GIB:.1f} of {device.memory / GIB:.0f} GiB in stage {needed.name!r}"
    if scale == "gpu" and not machine.gpus:
        fits, reason = False, f"no CUDA device here; on {device.name}: {reason}"
    elif (large_engine := estimator.large_engine()) is not None:
        fits, reason = False, f"{large_engine}; {_remedy(recipe, device, needed)}"
    elif needed.peak > device.memory:
        fits, reason = False, f"{reason}: {needed.dominant} takes most; {_remedy(recipe, device, needed)}"
    return Plan(recipe.name, scale, str(machine), device.name, stages, fits, reason)


def _remedy(recipe: Recipe, device: Device, needed: StagePlan) -> str:
    """What would fit, in words."""
    found = what_fits(recipe, partial(_too_large, device), cuda=device.cuda)
    if found is not None:
        return f"it fits with {found}"
    tried = "another share for the engine, fewer rows in a pass" if device.cuda else "fewer rows in a pass"
    return (
        f"{tried} or gradient checkpointing do not make it fit; a smaller model does, or {needed.peak / GIB:.1f} GiB"
        + (" for each process" if device.processes > 1 else "")
    )


def _too_large(device: Device, recipe: Recipe) -> frozenset[str]:
    """The stages that do not fit; all of them where an engine does not."""
    estimator = Estimator(recipe, device)
    large_engine = estimator.large_engine() is not None
    return frozenset(
        stage.name for stage in recipe.all_stages if large_engine or stage.plan(estimator).peak > device.memory
    )
