"""What a run makes once and its stages share: tokenizers, problems with their prompts, and one engine per base."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from models.engines.protocol import Engine
from models.engines.start import Capacity, serving_for, start_engine
from rewards.domain import Domain, get_domain

from models.base import context_length, load_tokenizer
from models.engines.serving import Served, which_sync
from models.prompts import prompt_tokens, render_prompt
from models.training import Probe
from orchestra.config.faults import UserError
from rewards.formats import Format
from rewards.problems import Asked, Problem, Split, overlapping

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from orchestra.config.recipe import Recipe
    from orchestra.config.stage import Stage


@dataclass
class Resources:
    """Everything is made when first asked for."""

    recipe: Recipe
    _engines: dict[str, Engine] = field(default_factory=dict)
    _served: Served | None = None
    _resting: list[Engine] = field(default_factory=list)
    _tokenizers: dict[str, PreTrainedTokenizerBase] = field(default_factory=dict)
    _problems: dict[tuple[str, Split, int | None], list[Problem]] = field(default_factory=dict)

    @property
    def domain(self) -> Domain:
        """What the recipe's problems are: where they come from, and what counts as an answer."""
        return get_domain(self.recipe.problems.domain)

    @property
    def format(self) -> Format:
        """How they are asked and answered."""
        return self.domain.format(self.recipe.problems.format)

    def tokenizer(self, model: str | None = None) -> PreTrainedTokenizerBase:
        """Of the base, or of another model."""
        name = model or self.recipe.model.base
        if name not in self._tokenizers:
            self._tokenizers[name] = load_tokenizer(name)
        return self._tokenizers[name]

    def problems(self, source: str, split: Split, limit: int | None = None) -> list[Problem]:
        """Problems of a source, loaded once."""
        key = (source, split, limit)
        if key not in self._problems:
            # the held-out problems are the same for every training seed
            seed = self.recipe.seed if split == "train" else 0
            self._problems[key] = self.domain.problems(source, split, limit=limit, seed=seed)
        return self._problems[key]

    def test(self, stage: Stage) -> Asked:
        """A stage's held-out problems. One that does not fit the model's context is left out (and counted)."""
        source, limit = stage.held_out(self.recipe)
        base = self.recipe.model.base
        budget = context_length(base) - self._completion_budget()
        return self._asked(self.problems(source, "test", limit), base, budget, f"test problems ({source})")

    def train(self, model: str | None = None, count: int | None = None) -> Asked:
        """Training problems that share no 13 words with a held-out one, as `model` is asked."""
        own = self.recipe.problems
        problems = self.problems(own.train, "train", own.train_limit)
        overlap = overlapping(problems, self.problems(own.test, "test", own.test_limit))
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
        name, own = model or self.recipe.model.base, self.recipe.model.base
        if name not in self._engines:
            room = self._prompt_budget(name) + self._completion_budget()
            capacity = Capacity(
                max_model_len=min(context_length(name), room),
                max_num_seqs=256,
                lora_rank=self.recipe.model.lora.rank if self._sync == "adapter" and name == own else 0,
                # vLLM can take back the memory of one engine in a process; a second teacher stays
                temporary=name != own and not self._resting and set(self._engines) <= {own},
            )
            self._engines[name] = start_engine(name, serving_for(name, own, self.recipe.rollouts), capacity)
        return self._engines[name]

    def served(self) -> Served:
        """The base's engine with the policy that it serves."""
        if self._served is None:
            probe = Probe.of_prompts(self.test(self.recipe.all_stages[0]).tokens)
            self._served = Served(self.engine(), self._sync, probe)
        return self._served

    @property
    def _sync(self) -> Literal["folded", "adapter"]:
        own = self.recipe.model
        return which_sync(serving_for(own.base, own.base, self.recipe.rollouts), own.quantize)

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

    def _completion_budget(self) -> int:
        """The longest completion that any stage asks for."""
        recipe = self.recipe
        return max(recipe.rollouts.max_completion_tokens, *(s.longest_completion(recipe) for s in recipe.all_stages))

    def _prompt_budget(self, model: str) -> int:
        longest = [self.recipe.rollouts.max_prompt_tokens]
        if model == self.recipe.model.base:
            evaluated = [stage for stage in self.recipe.all_stages if "evaluation" in stage.gives]
            different = {stage.held_out(self.recipe): stage for stage in evaluated}
            longest += [len(ids) for stage in different.values() for ids in self.test(stage).tokens]
        return max(longest)


def stage_seed(recipe: Recipe, name: str) -> int:
    """A seed of its own for each stage, whatever stands before it in the recipe."""
    return (recipe.seed * 1_000_003 + zlib.crc32(name.encode())) % 2**31
