"""What a run would do, take and need, before it starts: tokens, seconds and bytes per stage, from formulas.

Every number is a product of what the recipe says, the model's shape, and the constants below, which were measured
(CPU: 2 cores with AVX-512; GPU: published peaks times a usual share). `orchestra run` prints plan and measurement side
by side, so wrong constants show.

    decoding     steps x (OVERHEAD + max(batch x 2 N / FLOPS, weights / BANDWIDTH)), N = parameters a token meets
    training     tokens x N x FLOPS_PER_PARAMETER / FLOPS + micro-batches x OVERHEAD
    memory       see orchestra/plan/memory.py
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestra.plan.devices import GIB, Device, device_of
from orchestra.plan.machine import Machine
from orchestra.plan.memory import Memory
from orchestra.plan.remedies import what_fits
from orchestra.plan.shapes import Shape, Unknown
from orchestra.work.preflighted import measured_by
from rewards.problems import Split

if TYPE_CHECKING:
    from models.settings import TrainingSettings
    from orchestra.config.recipe import Recipe
    from orchestra.config.stage import Stage

FLOPS_FORWARD, FLOPS_TRAIN = 2.0, 4.0
"""Per parameter and token. LoRA's backward pass needs gradients of activations only; the frozen weights get none."""
READ_AT_ONCE = 8
"""Texts in one pass where perplexities are measured (orchestra/work/policies.py, `rows_at_once`)."""
LENGTH_SHARE = 0.6
"""Mean length of a completion as a share of the limit."""
GENERATE = 4.0
"""How many times as long as vLLM transformers' own generate takes (2.4 and 4.6 in benchmarks/grpo_step.md)."""
EMBEDDED_LENGTH_SHARE = 0.24
"""The same for the shipped models, which write 14 to 25 tokens of 96 (untrained; experts and GRPO's policies)."""
PROMPT_SHARE = 0.5
"""Mean length of a prompt as a share of the limit."""
EMBEDDED_PROMPT = 26
"""Tokens of the generator's prompts on average, however high the limit is."""
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


class Estimator(Memory):
    """The formulas of time, for one recipe on one device, and those of memory."""

    def __init__(self, recipe: Recipe, device: Device) -> None:
        """Raises Unknown."""
        super().__init__(recipe, device)
        shipped = recipe.model.base.startswith("embedded/")
        self.length_share = EMBEDDED_LENGTH_SHARE if shipped else LENGTH_SHARE
        limit = recipe.rollouts.max_prompt_tokens
        self.prompt = min(limit, EMBEDDED_PROMPT) if self.generated else int(limit * PROMPT_SHARE)

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
        return self.held_out_asked(stage, settings.samples + (1 if settings.greedy else 0))

    def held_out_asked(self, stage: Stage, times: int) -> tuple[int, float]:
        """Tokens and seconds to answer a stage's held-out problems so many times."""
        limit = stage.evaluation(self.recipe).max_completion_tokens
        return self.generate(self.base, times * self.held_out_count(stage), limit)

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
