"""What the kinds have in common that train on traces: a preflight of the data, its faults, what training takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestra.config.checks import micro_batch_faults, share_faults, sweep_faults
from orchestra.config.stage import Draft
from orchestra.config.trained import TrainingStage
from orchestra.config.words import is_file
from orchestra.work.settings import GrowSettings, PreflightLimits
from settings import FrozenDict, or_false
from sft.settings import SftSettings

if TYPE_CHECKING:
    from orchestra.config.recipe import Recipe
    from orchestra.plan.estimate import Estimator, StagePlan
    from orchestra.work.preflighted import Preflighted


class ImitatingStage(TrainingStage, SftSettings):
    """A stage that trains on traces; see the module docstring."""

    preflight: or_false(PreflightLimits) = PreflightLimits()
    """The preflight of its `data` before it trains, under the policy that it starts from, unless an earlier stage has
    measured the same; `false`: none."""

    def training_faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        """Of the data and how it is trained on."""
        yield from micro_batch_faults(self.micro_batch_size, self.batch_size)
        yield from share_faults(self.batch_size, "batch_size", draft)
        yield from sweep_faults(self, draft)
        files = [source for source in self.data if source not in draft.kinds and is_file(source)]
        if files and self.pass_rate != type(self).model_fields["pass_rate"].default:
            yield "pass_rate", f"{', '.join(map(repr, files))}: written solutions have no pass rate; only traces do"
        for stage in draft.stages:
            kept = getattr(stage, "pass_rate", None) if stage.name in self.data and "traces" in stage.gives else None
            if kept is not None and (kept[0] > self.pass_rate[1] or kept[1] < self.pass_rate[0]):
                yield "pass_rate", f"{list(self.pass_rate)} leaves nothing of {stage.name!r}, which keeps {list(kept)}"
        names = [Path(source).name for source in files]
        if len(set(names)) < len(set(files)):
            # files count by their names and their contents (orchestra/run/fingerprint.py)
            yield "data", f"two files are called {max(names, key=names.count)!r}; rename one"
        if isinstance(self.data, FrozenDict) and self.at_most is not None and self.at_most < len(self.data):
            yield "at_most", f"{self.at_most} is less than one trace of each of the {len(self.data)} sources"

    def trains_on(self, recipe: Recipe) -> tuple[tuple[str, int | None], ...]:
        earlier = {stage.name for stage in recipe.stages}
        return tuple((source, None) for source in self.data if source not in earlier)

    def imitates(self, recipe: Recipe) -> Mapping[str, int]:
        return dict.fromkeys(self.data, self.longest(recipe))

    def longest(self, recipe: Recipe) -> int:
        """Tokens of an example that is trained on."""
        return self.max_length or recipe.rollouts.max_prompt_tokens + recipe.rollouts.max_completion_tokens

    def preflights(self, recipe: Recipe) -> Preflighted | None:
        from orchestra.work.preflighted import preflighted

        if self.preflight is False:
            return None
        return preflighted(recipe, self, self.data, self.preflight, self.longest(recipe))

    def ready(self, recipe: Recipe) -> None:
        from orchestra.work.preflighted import must_be_asked_alike

        super().ready(recipe)
        must_be_asked_alike(recipe, self)

    def plan(self, estimator: Estimator) -> StagePlan:
        from models.sizes import traces_at_once
        from orchestra.plan.estimate import FLOPS_FORWARD, FLOPS_TRAIN
        from orchestra.plan.panels import each_trained, experts_trained, said_of_each, trained_memory

        limit = estimator.recipe.rollouts.max_completion_tokens
        own = self.batch_size // estimator.device.processes
        micro = traces_at_once(self.micro_batch_size, own, cuda=estimator.device.cuda)
        longest = self.max_length or estimator.longest_prompt + limit
        examples = self.steps * self.batch_size
        tokens = int(examples * (estimator.prompt + limit * estimator.length_share))
        memory, again = estimator.training(self, micro * longest)
        passes = FLOPS_TRAIN + again * FLOPS_FORWARD
        seconds = estimator.train(tokens, self.steps * math.ceil(own / micro), passes)
        work = estimator.with_evaluation(self, *estimator.with_sweep(self, self, tokens, seconds))
        return estimator.row(
            self,
            each_trained(estimator, self, work),
            trained_memory(estimator, self, memory),
            data=", ".join(self.data) + said_of_each(estimator.recipe, self),
            steps=self.steps * experts_trained(estimator.recipe, self),
        )

    def named(self, source: str) -> str:
        """A source by its name and its share, if it has one."""
        name = Path(source).name
        if not isinstance(self.data, FrozenDict):
            return name
        return f"{self.data[source] / sum(self.data.values()):.0%} {name}"

    def asks_validation(self) -> bool:
        return self.evaluate_every is not None


class GrowingStage(ImitatingStage, GrowSettings):
    """A stage that trains experts where windows of problems say so."""
