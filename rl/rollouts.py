"""From problems to a step's rows: which problems, their groups of completions, what these are worth.

A completion's way goes on in rl/advantages.py, rl/batches.py and rl/trainer.py, in this order. All of it follows from
seed, step and place alone, so that a resumed run samples what the uninterrupted one did.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Sampler

from models.engines.protocol import Completion, Engine, Sampling, Tokens
from models.engines.serving import Served
from models.training import TrainingError
from rl.advantages import ask_rewards, equal_groups, group_advantages, total_rewards
from rl.batches import Row
from rl.metrics import StepMetrics
from rl.settings import GrpoSettings, Rollouts

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset
    from peft import PeftModel
    from transformers import TrainerState
    from trl.trainer.utils import RepeatSampler

    from rewards.scoring import RewardSet

# a step in which so many completions are cut off is left to fewer than one in twenty, the shortest: a policy that does
# not end, not one that at times runs long. A few steps, because one may be unlucky, and each costs a whole rollout
CUT_SHARE = 0.95
CUT_STEPS = 4

# a row of the dataset: `prompt` (text), `prompt_ids`, and the columns that reward functions get
Problem = dict[str, object]


class ProblemOrder(Sampler[int]):
    """TRL's order of problems, shuffled by seed and epoch.

    TRL's generator runs on from epoch to epoch, so that a resumed run, which does not draw the epochs before its
    checkpoint again, would get other problems than the uninterrupted one.

    Args:
        order: TRL's sampler.
        epoch: tells the epoch that begins.
    """

    def __init__(self, order: "RepeatSampler", epoch: Callable[[], int]) -> None:
        self._order, self._epoch = order, epoch

    def __iter__(self) -> Iterator[int]:
        self._order.generator.manual_seed(self._order.seed + 1_000_003 * self._epoch())
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)


@dataclass(frozen=True)
class Place:
    """Where groups stand in the run.

    Fields:
        step: optimizer steps taken before.
        attempt: round of sampling within the step; 0 is the step's own problems.
        first_group: number of this process's first group among those of all processes in this round.
    """

    step: int
    attempt: int
    first_group: int


def rollout_seed(seed: int, place: Place, group: int) -> int:
    """Seed of one group's completions; `group` counts from the place's first."""
    entropy = [seed, place.step, place.attempt, place.first_group + group]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 2)


def sample_groups(
    engine: Engine,
    prompts: Sequence[Tokens],
    rollouts: Rollouts,
    stop_token_ids: tuple[int, ...],
    *,
    seed: int,
    place: Place,
) -> list[list[Completion]]:
    """groups_PG: `rollouts.group_size` completions of each prompt under the policy that the engine serves."""
    sampling = Sampling(
        rollouts.max_completion_tokens,
        temperature=rollouts.temperature,
        top_p=rollouts.top_p,
        top_k=0,
        n=rollouts.group_size,
        logprobs=True,
        stop_token_ids=stop_token_ids,
    )
    return engine.generate(prompts, sampling, [rollout_seed(seed, place, group) for group in range(len(prompts))])


def fresh_problems(dataset: "Dataset", seed: int, place: Place, count: int, total: int) -> list[Problem]:
    """`count` of the `total` problems, over all processes, that are sampled in place of those without variance."""
    draw = np.random.default_rng([seed, place.step, place.attempt])
    chosen = draw.choice(len(dataset), size=min(total, len(dataset)), replace=False)
    return [dataset[int(chosen[(place.first_group + i) % len(chosen)])] for i in range(count)]


class Cut:
    """Stops a run in which hardly a completion ends: rows that were cut off are out of the loss, so nothing is learned.

    Args:
        stop_token_ids: for the message.
    """

    def __init__(self, stop_token_ids: Sequence[int], max_completion_tokens: int) -> None:
        self._stops, self._limit = ", ".join(map(str, stop_token_ids)), max_completion_tokens
        self._steps = 0

    def count(self, step: int, cut: int, rows: int) -> None:
        """Of a step's rows over all processes, how many were cut off.

        Raises:
            TrainingError: nearly all, for several steps.
        """
        self._steps = self._steps + 1 if cut >= CUT_SHARE * rows else 0
        if self._steps >= CUT_STEPS:
            raise TrainingError(
                f"{cut} of {rows} completions were cut off at step {step + 1}, and nearly all in the last {CUT_STEPS} "
                "steps: they give no gradient, so nothing is learned. Either max_completion_tokens "
                f"({self._limit}) is too small, or the policy does not say its end tokens ({self._stops}): imitate "
                "traces first (sft), or look at model.prompt; `mask_truncated_completions: false` goes on all the same"
            )


@dataclass(frozen=True)
class Group:
    """Completions of one problem.

    Fields:
        rewards_GF: see rl/advantages.py.
        zero_variance: they are all equally good at the task, so the group teaches nothing about it.
    """

    prompt: Tokens
    completions: Sequence[Completion]
    rewards_GF: torch.Tensor
    zero_variance: bool

    @property
    def tokens(self) -> int:
        """Of the completions."""
        return sum(len(completion.token_ids) for completion in self.completions)


class RowSource:
    """A step's rows: groups sampled from the policy, rewarded, and replaced where they teach nothing.

    Args:
        served: its engine samples.
        dataset: all problems, for those that replace others.
        stop_token_ids: where a completion ends.
        pad_token_id: a completion that ends with it does not count as cut off either.
        seed: of the stage.
        accelerator: of the trainer; a step's groups are spread over its processes.
    """

    def __init__(
        self,
        served: Served,
        dataset: "Dataset",
        rewards: "RewardSet",
        settings: GrpoSettings,
        rollouts: Rollouts,
        *,
        stop_token_ids: tuple[int, ...],
        pad_token_id: int,
        seed: int,
        accelerator: "Accelerator",
        metrics: StepMetrics,
    ) -> None:
        self._served, self._dataset, self._rewards = served, dataset, rewards
        self._task = None if rewards.task is None else rewards.names.index(rewards.task)
        self._settings, self._rollouts = settings, rollouts
        self._stops, self._ends = stop_token_ids, {*stop_token_ids, pad_token_id}
        self._seed, self._accelerator, self._metrics = seed, accelerator, metrics
        self._cut = Cut(stop_token_ids, rollouts.max_completion_tokens)

    def rows(self, policy: "PeftModel", problems: Sequence[Problem], state: "TrainerState") -> tuple[list[Row], int]:
        """(this process's rows, a group's in a row; tokens of prompts and completions sampled over all processes).

        Args:
            policy: pushed to the engine first.
            problems: of this process, each once.
            state: of the trainer; reward functions get it.
        """
        step, process = state.global_step, self._accelerator.process_index
        with self._metrics.timed("sync"):
            self._served.push(policy, step)
        counts = self._of_all_processes(len(problems))
        groups, tokens = self._sampled(problems, Place(step, 0, sum(counts[:process])), counts, state)
        first_empty = sum(group.zero_variance for group in groups)
        replaced = 0
        for attempt in range(1, self._rollouts.dynamic_sampling.max_resamples + 1):
            empty = [g for g, group in enumerate(groups) if group.zero_variance]
            counts = self._of_all_processes(len(empty))
            if not any(counts):
                break
            # numbered over all processes, so that two of them draw what one would; every process takes part in as many
            # groups as the one with most, because tensors of one size are gathered
            place = Place(step, attempt, sum(counts[:process]))
            problems = fresh_problems(self._dataset, self._seed, place, max(counts), sum(counts))
            fresh, more_tokens = self._sampled(problems, place, counts, state)
            tokens += more_tokens
            self._metrics.add("resampled_groups", len(fresh))
            self._metrics.add("resampled_tokens", sum(group.tokens for group in fresh))
            for slot, group in zip(empty, fresh, strict=True):
                if not group.zero_variance:
                    groups[slot] = group
                    replaced += 1
        rows = self._rows(groups)
        cut, sampled = (sum(self._of_all_processes(n)) for n in (sum(not row.in_loss for row in rows), len(rows)))
        self._cut.count(step, cut, sampled)
        self._metrics.chosen(rows, len(groups), first_empty, replaced)
        return rows, tokens

    def _of_all_processes(self, number: int) -> list[int]:
        return self._accelerator.gather(torch.tensor([number], device=self._accelerator.device)).tolist()

    def _sampled(
        self, problems: Sequence[Problem], place: Place, counts: Sequence[int], state: "TrainerState"
    ) -> tuple[list[Group], int]:
        """One round: (groups of this process, tokens of prompts and completions of all).

        Args:
            problems: as many as the largest of `counts`, the groups that each process needs; the last ones only fill
                up, and are left out of everything.
        """
        prompts = [problem["prompt_ids"] for problem in problems]
        with self._metrics.timed("rollout"):
            groups = sample_groups(
                self._served.engine, prompts, self._rollouts, self._stops, seed=self._seed, place=place
            )
        sizes_PG3 = [
            [[len(prompt), len(one.token_ids), self._truncated(one)] for one in group]
            for prompt, group in zip(prompts, groups, strict=True)
        ]
        lengths_N3 = self._gathered(torch.tensor(sizes_PG3), counts).flatten(0, 1)
        generated = sum(len(one.token_ids) for group in groups for one in group)
        self._metrics.sampled(lengths_N3[:, 1], lengths_N3[:, 2].bool(), generated)
        told: defaultdict[str, list[float]] = defaultdict(list)
        needed = counts[self._accelerator.process_index]
        own_PGF = torch.full((len(groups), len(groups[0]), len(self._rewards.functions)), torch.nan)
        with self._metrics.timed("reward"):
            if needed:
                own_PGF[:needed] = ask_rewards(
                    self._rewards.functions,
                    problems[:needed],
                    groups[:needed],
                    trainer_state=state,
                    log_metric=lambda name, value: told[name].append(value),
                )
        rewards_PGF = self._gathered(own_PGF, counts)
        self._metrics.rewarded(rewards_PGF, self._totals(rewards_PGF))
        self._metrics.logged(told, completions=sum(map(len, groups[:needed])))
        zero_variance_P = equal_groups(self._judged(own_PGF, self._totals(own_PGF))).tolist()
        made = [Group(*values) for values in zip(prompts, groups, own_PGF, zero_variance_P, strict=True)]
        return made[:needed], int(lengths_N3[:, :2].sum())

    def _gathered(self, own: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Of all processes, group by group, without those that only fill up."""
        needed = [process * max(counts) + group for process, count in enumerate(counts) for group in range(count)]
        return self._accelerator.gather(own.to(self._accelerator.device))[needed]

    def _totals(self, rewards_PGF: torch.Tensor) -> torch.Tensor:
        return total_rewards(rewards_PGF, self._rewards.weights, self._task)

    def _judged(self, rewards_PGF: torch.Tensor, totals_PG: torch.Tensor) -> torch.Tensor:
        return totals_PG if self._task is None else rewards_PGF[..., self._task]

    def _truncated(self, completion: Completion) -> bool:
        return completion.token_ids[-1] not in self._ends

    def _rows(self, groups: Sequence[Group]) -> list[Row]:
        """A group's in a row. Of all processes for the deviation over the batch; a group lies on one process."""
        counts = self._of_all_processes(len(groups))
        rewards_PGF = self._gathered(torch.stack([group.rewards_GF for group in groups]), counts)
        totals_PG = self._totals(rewards_PGF)
        unit = 1.0 if self._task is None else self._rewards.weights[self._task]
        advantages_PG = group_advantages(
            totals_PG, self._settings.scale_rewards, self._judged(rewards_PGF, totals_PG), unit
        )
        first = sum(counts[: self._accelerator.process_index])
        return [
            Row(
                prompt=torch.tensor(group.prompt),
                completion=torch.tensor(completion.token_ids),
                sampling_logprobs=torch.tensor(completion.logprobs),
                advantage=advantage,
                in_loss=not (self._settings.mask_truncated_completions and self._truncated(completion)),
                zero_variance=group.zero_variance,
            )
            for group, advantages_G in zip(groups, advantages_PG[first:].tolist(), strict=False)
            for completion, advantage in zip(group.completions, advantages_G, strict=True)
        ]
