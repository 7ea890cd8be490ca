"""What a run makes once and its stages share: tokenizers, problems with their prompts, and one engine per base."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from models.base import arithmetic, load_tokenizer
from models.engine import Engine, EngineSettings, start_engine, vllm_available
from models.prompts import prompt_tokens, render_prompt
from recipes.errors import UserError
from recipes.schema import DistillStage, EvaluateStage, GrpoStage, Recipe
from rewards.formats import Format, get_format
from rewards.problems import Problem, load_problems, overlapping

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Asked:
    """Problems with their prompts, as text for TRL and as tokens for the engine; `left_out` are too long or overlap."""

    problems: tuple[Problem, ...]
    prompts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    left_out: int = 0


@dataclass
class Resources:
    """Made by `make_resources`; everything in it is made when first asked for."""

    recipe: Recipe
    _engines: dict[str, Engine] = field(default_factory=dict)
    _resting: list[Engine] = field(default_factory=list)
    _tokenizers: dict[str, PreTrainedTokenizerBase] = field(default_factory=dict)
    _problems: dict[tuple[str, str, int | None], list[Problem]] = field(default_factory=dict)

    @property
    def format(self) -> Format:
        return get_format(self.recipe.problems.format)

    def tokenizer(self, model: str | None = None) -> PreTrainedTokenizerBase:
        """Of the base, or of another model."""
        name = model or self.recipe.model.base
        if name not in self._tokenizers:
            self._tokenizers[name] = load_tokenizer(name)
        return self._tokenizers[name]

    def _load(self, source: str, split: Literal["train", "test"], limit: int | None) -> list[Problem]:
        key = (source, split, limit)
        if key not in self._problems:
            # the held-out problems are the same for every training seed
            seed = self.recipe.seed if split == "train" else 0
            self._problems[key] = load_problems(source, split, limit=limit, seed=seed)
        return self._problems[key]

    def test(self, stage: EvaluateStage | None = None) -> Asked:
        """The held-out problems. One that does not fit the model's context is left out (and counted)."""
        own = self.recipe.problems
        source = (stage.problems if stage else None) or own.test
        limit = (stage.limit if stage else None) or own.test_limit
        budget = self._context_length() - self._completion_budget()
        return self._asked(
            self._load(source, "test", limit), self.recipe.model.base, budget, f"test problems ({source})"
        )

    def train(self, model: str | None = None, count: int | None = None) -> Asked:
        """Training problems that share no 13 words with a held-out one, as `model` is asked."""
        own = self.recipe.problems
        problems = self._load(own.train, "train", own.train_limit)
        overlap = overlapping(problems, self._load(own.test, "test", own.test_limit))
        clean = [problem for problem in problems if problem.id not in overlap][:count]
        budget = self.recipe.rollouts.max_prompt_tokens
        return self._asked(
            clean, model or self.recipe.model.base, budget, f"training problems ({own.train})", len(overlap)
        )

    def _asked(self, problems: Sequence[Problem], model: str, budget: int, what: str, gone: int = 0) -> Asked:
        tokenizer = self.tokenizer(model)
        prompts = [render_prompt(tokenizer, self.format.messages(problem.question)) for problem in problems]
        tokens = [tuple(prompt_tokens(tokenizer, prompt)) for prompt in prompts]
        fit = [i for i, ids in enumerate(tokens) if len(ids) <= budget]
        if not fit:
            shortest = min(map(len, tokens), default=0)
            raise UserError(
                f"none of the {len(problems)} {what} fits: the shortest prompt has {shortest} tokens, "
                f"the limit is {budget}; raise "
                f"rollouts.max_prompt_tokens or take another base ({gone} overlap with test problems)"
            )
        return Asked(
            tuple(problems[i] for i in fit),
            tuple(prompts[i] for i in fit),
            tuple(tokens[i] for i in fit),
            gone + len(tokens) - len(fit),
        )

    def engine(self, model: str | None = None) -> Engine:
        """The run's engine for this model (None: the base); started once."""
        name = model or self.recipe.model.base
        if name not in self._engines:
            rollouts, own = self.recipe.rollouts, self.recipe.model.base
            lora = self.recipe.model.lora.rank if self.sync == "adapter" and name == own else 0
            settings = EngineSettings(
                max_model_len=min(self._context_length(name), self._prompt_budget(name) + self._completion_budget()),
                max_num_seqs=256,
                dtype=rollouts.dtype,
                lora_rank=lora,
                memory=rollouts.gpu_memory_utilization,
                # vLLM can take back the memory of one engine in a process; a second teacher stays
                temporary=name != own and not self._resting and set(self._engines) <= {own},
            )
            self._engines[name] = start_engine(rollouts.engine, name, settings)
        return self._engines[name]

    @property
    def sync(self) -> Literal["folded", "adapter"]:
        """`auto`: folded weights, which cost something at a sync and nothing per token (benchmarks/grpo_step.md has
        both measured); but the adapter where folding would lose it, in bfloat16 on a base whose values are on
        bfloat16's grid already."""
        rollouts, model = self.recipe.rollouts, self.recipe.model
        if rollouts.sync != "auto":
            return rollouts.sync
        coarse = arithmetic(rollouts.dtype) == torch.bfloat16 and model.quantize == "none"
        vllm = rollouts.engine == "vllm" or (rollouts.engine == "auto" and vllm_available())
        return "adapter" if coarse and vllm else "folded"

    def release(self, model: str) -> None:
        """Take the memory of a teacher's engine back."""
        if model != self.recipe.model.base and model in self._engines:
            engine = self._engines.pop(model)
            engine.rest()
            self._resting.append(engine)

    def close(self) -> None:
        for engine in [*self._engines.values(), *self._resting]:
            engine.close()
        self._engines.clear()
        self._resting.clear()

    def _context_length(self, model: str | None = None) -> int:
        from transformers import AutoConfig

        from models.base import model_path

        return AutoConfig.from_pretrained(model_path(model or self.recipe.model.base)).max_position_embeddings

    def _completion_budget(self) -> int:
        """The longest completion that any stage asks for."""
        recipe = self.recipe
        lengths = [recipe.evaluate_of(stage).max_completion_tokens for stage in recipe.stages if type(stage).evaluated]
        lengths += [
            recipe.rollouts_of(stage).max_completion_tokens for stage in recipe.stages if isinstance(stage, GrpoStage)
        ]
        lengths += [stage.max_tokens for stage in recipe.stages if isinstance(stage, DistillStage)]
        return max([*lengths, recipe.rollouts.max_completion_tokens])

    def _prompt_budget(self, model: str) -> int:
        longest = [self.recipe.rollouts.max_prompt_tokens]
        if model == self.recipe.model.base:
            evaluations = [None, *(stage for stage in self.recipe.stages if isinstance(stage, EvaluateStage))]
            longest += [len(ids) for stage in evaluations for ids in self.test(stage).tokens]
        return max(longest)


def make_resources(recipe: Recipe, run_dir: Path) -> Resources:
    """Nothing is loaded yet."""
    return Resources(recipe)


def stage_seed(recipe: Recipe, name: str) -> int:
    """A seed of its own for each stage, whatever stands before it in the recipe."""
    return (recipe.seed * 1_000_003 + zlib.crc32(name.encode())) % 2**31
