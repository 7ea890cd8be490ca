"""What a run makes once and its stages share: tokenizers, problems with their prompts, and one engine per base."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal

from models.base import context_length, free_memory, load_tokenizer, spoken_to
from models.conversation import Conversation
from models.engines.apart import ApartEngine
from models.engines.protocol import Engine
from models.engines.serving import Served, which_sync
from models.engines.shared import SharedEngine
from models.engines.start import Capacity, EngineKind, serving_for, start_engine
from models.processes import Processes
from models.prompts import prompt_tokens, render_prompt
from models.settings import PromptFormat, Serving
from models.sizes import EXPERTS_AT_ONCE, GENERATED_AT_ONCE
from models.training import Probe
from orchestra.config.faults import UserError
from orchestra.work.engines import Engines
from orchestra.work.held_out import held_out, load, validation
from rewards.domain import Domain, get_domain
from rewards.formats import Format
from rewards.problems import Asked, Problem, Split, overlapping

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from orchestra.config.recipe import Recipe
    from orchestra.config.stage import Stage


@dataclass
class Resources:
    """Everything is made when first asked for; the engines may be those of other runs of this process."""

    recipe: Recipe
    processes: Processes = field(default_factory=Processes)
    engines: Engines = field(default_factory=Engines)
    _own: dict[str, Engine] = field(default_factory=dict)
    _served: Served | None = None
    _tokenizers: dict[tuple[str, PromptFormat | None], PreTrainedTokenizerBase] = field(default_factory=dict)
    _problems: dict[tuple[str, Split, int | None], list[Problem]] = field(default_factory=dict)

    @property
    def domain(self) -> Domain:
        """What the recipe's problems are: where they come from, and what counts as an answer."""
        return get_domain(self.recipe.problems.domain)

    @property
    def format(self) -> Format:
        """How they are asked and answered."""
        return self.domain.format(self.recipe.problems.format)

    def tokenizer(self, model: str | None = None, prompt: PromptFormat | None = None) -> PreTrainedTokenizerBase:
        """Of the base, as the recipe says that it is spoken to or in another prompt format; or of another model."""
        own = self.recipe.model
        name = model or own.base
        prompt = prompt or (own.prompt if name == own.base else None)
        if (name, prompt) not in self._tokenizers:
            self._tokenizers[name, prompt] = load_tokenizer(name, prompt)
        return self._tokenizers[name, prompt]

    @cached_property
    def conversation(self) -> Conversation:
        """How the base is spoken to."""
        return spoken_to(self.recipe.model.base, self.recipe.model.prompt)

    def stops(self, prompt: PromptFormat | None = None) -> tuple[int, ...]:
        """Where the base's completions end, besides what its engine stops at anyway. Asked by its template where the
        recipe asks plainly, also where that template ends an answer: the base shall look as good as it is."""
        foreign = prompt == "chat" and self.conversation.format != prompt
        ends = (self.tokenizer(prompt=prompt).eos_token_id, self.conversation.turn_end if foreign else None)
        return tuple(dict.fromkeys(end for end in ends if end is not None))

    def problems(self, source: str, split: Split, limit: int | None = None) -> list[Problem]:
        """Problems of a source, loaded once."""
        key = (source, split, limit)
        if key not in self._problems:
            self._problems[key] = load(self.recipe, source, split, limit)
        return self._problems[key]

    def test(self, stage: Stage, prompt: PromptFormat | None = None, of: str | None = None) -> Asked:
        """A stage's held-out problems. One that does not fit the model's context is left out (and counted), whichever
        prompt format it is in which that is so.

        Args:
            prompt: another format than the recipe's.
            of: the name of one of its sets; None: the first.
        """
        source, limit = stage.held_out(self.recipe) if of is None else stage.held_out_sets(self.recipe)[of]
        base, other = self.recipe.model.base, self.conversation.other
        budget = context_length(base) - self._completion_budget()
        problems, what = self.problems(source, "test", limit), f"test problems ({source})"
        if other is not None:
            fitting = self._asked(problems, base, budget, what, prompt=None if prompt == other else other)
            gone, problems = fitting.left_out, fitting.problems
        else:
            gone = 0
        return self._asked(problems, base, budget, what, gone, prompt=prompt)

    def asked_by(self, model: str, stage: Stage, limit: int) -> Asked:
        """The first of a stage's held-out problems, as a copy of the base in another folder renders and reads them.

        Raises:
            UserError: it asks them otherwise than the base is asked.
        """
        known = self.test(stage)
        asked = self._asked(known.problems[:limit], model, context_length(model), "exported prompts")
        if asked.tokens != known.tokens[:limit]:
            raise UserError(f"{model}: its tokenizer or chat template asks problems otherwise than in training")
        return asked

    @cached_property
    def _validation(self) -> list[Problem]:
        return validation(self.recipe)

    def validation(self) -> Asked:
        """The problems of `problems.validation`, as test problems are asked."""
        base = self.recipe.model.base
        budget = context_length(base) - self._completion_budget()
        return self._asked(self._validation, base, budget, f"validation problems ({self.recipe.problems.validation})")

    def apart(self, problems: Sequence[Problem]) -> list[Problem]:
        """Those that share no 13 words with a problem of any evaluation in the recipe, or a validation problem."""
        asked = [problem for source, limit in held_out(self.recipe) for problem in self.problems(source, "test", limit)]
        overlap = overlapping(problems, [*asked, *self._validation])
        return [problem for problem in problems if problem.id not in overlap]

    def train(self, model: str | None = None, count: int | None = None) -> Asked:
        """Training problems that share no 13 words with a held-out one, as `model` is asked."""
        own = self.recipe.problems
        problems = self.problems(own.train, "train", own.train_limit)
        clean = self.apart(problems)
        overlap = len(problems) - len(clean)
        if not clean:
            raise UserError(
                f"all {overlap} training problems ({own.train}) overlap with test or validation problems; "
                "take others, or fewer of those"
            )
        budget = self.recipe.rollouts.max_prompt_tokens
        return self._asked(
            clean[:count], model or self.recipe.model.base, budget, f"training problems ({own.train})", overlap
        )

    def _asked(
        self, problems: Sequence[Problem], model: str, budget: int, what: str, gone: int = 0,
        *, prompt: PromptFormat | None = None,
    ) -> Asked:  # fmt: skip
        tokenizer = self.tokenizer(model, prompt)
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
        """The run's engine for this model (None: the base), which all processes ask the same at the same time: each
        generates its share, and all get everything."""
        return self.shared(self._own_engine(model))

    def _own_engine(self, model: str | None = None) -> Engine:
        """This process's; started once."""
        name, own = model or self.recipe.model.base, self.recipe.model.base
        if name not in self._own:
            # vLLM can take back the memory of one engine in a process; a second teacher stays
            capacity = self._capacity(
                name,
                lora_rank=self.lora_rank if self._sync == "adapter" and name == own else 0,
                temporary=name != own and self.engines.only({own}),
            )
            serving = serving_for(name, own, self.recipe.rollouts)
            self._own[name] = self.engines.get(name, serving, capacity, partial(self._start, name, serving))
        return self._own[name]

    def _start(self, name: str, serving: Serving, capacity: Capacity) -> Engine:
        # vLLM's start is a collective of all processes, which does not wait for long
        self.processes.wait()
        return start_engine(name, serving, capacity)

    def _capacity(self, name: str, *, lora_rank: int = 0, temporary: bool = False) -> Capacity:
        """For the longest that a model is asked."""
        room = self._prompt_budget(name) + self._completion_budget()
        several = any("panel" in stage.given for stage in self.recipe.stages)
        return Capacity(
            min(context_length(name), room),
            max_num_seqs=256,
            lora_rank=lora_rank,
            loras=EXPERTS_AT_ONCE if lora_rank and several else 1,
            temporary=temporary,
        )

    @property
    def lora_rank(self) -> int:
        """The largest of any adapter that is trained."""
        return max(stage.adapter(self.recipe).rank for stage in self.recipe.all_stages)

    @contextmanager
    def engine_apart(self, files: str, kind: EngineKind, dtype: str) -> Iterator[ApartEngine]:
        """Inside, an engine of this kind on a copy of the base in another folder, in a process of its own.

        Args:
            dtype: in which it computes, `float16` say.
        """
        capacity = self._capacity(self.recipe.model.base)
        if kind == "transformers":
            capacity = replace(capacity, max_num_seqs=GENERATED_AT_ONCE)
        free_memory()
        engine = ApartEngine(files, self.recipe.rollouts.model_copy(update={"engine": kind, "dtype": dtype}), capacity)
        try:
            yield engine
        finally:
            engine.close()

    def shared(self, engine: Engine) -> Engine:
        """An engine that every process has one of, asked together: each generates its share."""
        return SharedEngine(engine, self.processes) if self.processes.count > 1 else engine

    def served(self) -> Served:
        """The base's engine, each process's own, with the policy that it serves."""
        if self._served is None:
            probe = Probe.of_prompts(self.test(self.recipe.all_stages[0]).tokens)
            self._served = Served(self._own_engine(), self._sync, probe)
        return self._served

    @property
    def _sync(self) -> Literal["folded", "adapter"]:
        own = self.recipe.model
        return which_sync(serving_for(own.base, own.base, self.recipe.rollouts), own.quantize)

    def release(self, model: str) -> None:
        """Take the memory of a teacher's engine back."""
        if model != self.recipe.model.base and model in self._own:
            del self._own[model]
            self.engines.release(model)

    def close(self) -> None:
        """The last call, when the process is about to end."""
        self.engines.close()

    def _completion_budget(self) -> int:
        """The longest completion that any stage asks for."""
        recipe = self.recipe
        return max(recipe.rollouts.max_completion_tokens, *(s.longest_completion(recipe) for s in recipe.all_stages))

    def _prompt_budget(self, model: str) -> int:
        longest = [self.recipe.rollouts.max_prompt_tokens]
        if model == self.recipe.model.base:
            evaluated = [stage for stage in self.recipe.all_stages if "evaluation" in stage.gives]
            different = {
                one: (stage, name) for stage in evaluated for name, one in stage.held_out_sets(self.recipe).items()
            }
            formats = (None, other) if (other := self.conversation.other) is not None else (None,)
            longest += [
                len(ids)
                for stage, name in different.values()
                for prompt in formats
                for ids in self.test(stage, prompt, name).tokens
            ]
            if any(stage.asks_validation() for stage in self.recipe.stages):
                longest += map(len, self.validation().tokens)
        return max(longest)


def stage_seed(recipe: Recipe, name: str) -> int:
    """A seed of its own for each stage, whatever stands before it in the recipe."""
    return (recipe.seed * 1_000_003 + zlib.crc32(name.encode())) % 2**31
