"""Numbers of one optimizer step, collected on the way from sampling to the loss, for metrics.jsonl.

Sums over a process's rows and passes are summed over the processes, and means are over tokens or groups of the whole
step: TRL's means over micro-batches would weigh tokens differently, since micro-batches differ in size here.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object

from rl.advantages import Scale, deviations, standard_deviation

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rl.batches import Row

SUMS = (
    *("tokens", "entropy", "kl", "engine_kl", "groups", "zero_variance_groups", "masked_groups", "replaced_groups"),
    *("useful_samples", "sampled_tokens", "sampling_entropy", "resampled_groups", "resampled_tokens", "clipped"),
)


@dataclass
class _Told:
    """What one step has told; a list has an entry for each round of sampling."""

    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, float] = field(default_factory=dict)
    logged: defaultdict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    generated: int = 0
    lengths: list[torch.Tensor] = field(default_factory=list)
    truncated: list[torch.Tensor] = field(default_factory=list)
    rewards: list[torch.Tensor] = field(default_factory=list)
    totals: list[torch.Tensor] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)


class StepMetrics:
    """What one optimizer step has told so far.

    Args:
        accelerator: sums and gathers over the processes; every process tells the same names in the same order.
        rewards: names of the reward functions.
        scale_rewards: what the advantages are divided by.
    """

    def __init__(self, accelerator: "Accelerator", rewards: Sequence[str], scale_rewards: Scale) -> None:
        self._accelerator, self._names, self._scale = accelerator, rewards, scale_rewards
        self._told = _Told()

    def begin(self) -> None:
        """The step begins now: what is done between two steps is not a part of its time."""
        self._told.start = time.perf_counter()

    def add(self, name: str, value: float) -> None:
        """Add this process's part to one of `SUMS`."""
        self._told.sums[name] += value

    def counted(self, name: str, value: float) -> None:
        """Tell a running count that is of all processes already."""
        self._told.counts[name] = float(value)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds inside to `seconds/<name>`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._told.seconds[name] += time.perf_counter() - start

    # a round of sampling: of the step's problems, or of those that replace some of them

    def sampled(self, lengths_N: torch.Tensor, truncated_N: torch.Tensor, generated: int) -> None:
        """Lengths in tokens of all processes' completions, which were cut off, and what this process generated."""
        self._told.lengths.append(lengths_N.float())
        self._told.truncated.append(truncated_N)
        self._told.generated += generated

    def rewarded(self, rewards_PGF: torch.Tensor, totals_PG: torch.Tensor) -> None:
        """Rewards of all processes."""
        self._told.rewards.append(rewards_PGF)
        self._told.totals.append(totals_PG)

    def logged(self, values: Mapping[str, Sequence[float]], completions: int) -> None:
        """What this process's reward functions gave to `log_metric` when they were asked about so many completions; a
        mean over all calls of all processes, in which a call weighs as much as it was asked about."""
        for name in sorted(set(gather_object(list(values)))):
            own = values.get(name, ())
            weighted = torch.tensor([[completions * sum(own), completions * len(own)]], dtype=torch.float32)
            total, weight = self._accelerator.gather(weighted.to(self._accelerator.device)).sum(0).tolist()
            self._told.logged[name].append((total, weight))

    # the step as a whole

    def chosen(self, rows: Sequence["Row"], groups: int, zero_variance: int, replaced: int) -> None:
        """The rows that the step trains on.

        Args:
            groups: how many these are.
            zero_variance: groups without variance before some were replaced.
            replaced: groups that others took the place of.
        """
        self.add("groups", groups)
        self.add("zero_variance_groups", zero_variance)
        size = len(rows) // groups
        advantages = [any(row.advantage for row in rows[at : at + size]) for at in range(0, len(rows), size)]
        self.add("masked_groups", groups - sum(advantages))
        self.add("replaced_groups", replaced)
        self.add("useful_samples", sum(row.in_loss and row.advantage != 0.0 for row in rows))
        self.add("sampled_tokens", sum(len(row.completion) for row in rows))
        self.add("sampling_entropy", -sum(float(row.sampling_logprobs.sum()) for row in rows))

    def take(self, *, engine_mismatch: float, with_kl: bool) -> dict[str, float]:
        """The step's metrics by name; the next step begins.

        Args:
            engine_mismatch: see models/engines/serving.py.
            with_kl: whether there is a penalty. Without one the reference is never asked, and 0 would be a claim; as it
                would be where no token is in the loss.
        """
        told, self._told = self._told, _Told()
        local = torch.tensor([told.sums[name] for name in SUMS], device=self._accelerator.device)
        total = dict(zip(SUMS, self._accelerator.reduce(local, reduction="sum").tolist(), strict=True))
        tokens, sampled, groups = total["tokens"], max(total["sampled_tokens"], 1.0), max(total["groups"], 1.0)
        means = told.counts | (self._of_completions(told) if told.lengths else {})
        means |= {name: sum(t for t, _ in parts) / sum(w for _, w in parts) for name, parts in told.logged.items()}
        metrics = {
            # a mean over nothing (a step in which no completion could be graded, say) is no number
            **{name: value for name, value in means.items() if not math.isnan(value)},
            "sampling_entropy": total["sampling_entropy"] / sampled,
            "engine_mismatch": engine_mismatch,
            "zero_variance_groups": total["zero_variance_groups"] / groups,
            "masked_groups": total["masked_groups"] / groups,
            "replaced_groups": total["replaced_groups"],
            # what replacing them took
            "resampled_groups": total["resampled_groups"],
            "resampled_tokens": total["resampled_tokens"],
            "useful_samples": total["useful_samples"],
            "rollout_tokens_per_second": told.generated / max(told.seconds["rollout"], 1e-9),
            "tokens_per_second": sampled / (time.perf_counter() - told.start),
            **{f"seconds/{name}": told.seconds[name] for name in ("sync", "rollout", "reward", "reference")},
        }
        if tokens:
            metrics |= {name: total[name] / tokens for name in ("entropy", "engine_kl")}
            # in the place of TRL's, which is a mean over passes
            metrics["clip_ratio/region_mean"] = total["clipped"] / tokens
            if with_kl:
                metrics["kl"] = total["kl"] / tokens
        return metrics

    def _of_completions(self, told: _Told) -> dict[str, float]:
        """Over all completions that were sampled for the step, in whatever round."""
        lengths_N, truncated_N = torch.cat(told.lengths), torch.cat(told.truncated)
        ended_N = lengths_N[~truncated_N] if not truncated_N.all() else torch.zeros(1)
        rewards_PGF, totals_PG = torch.cat(told.rewards), torch.cat(told.totals)
        spread = deviations(totals_PG, self._scale).expand_as(totals_PG)
        found = {
            "completion_length": lengths_N.mean(),
            "completions/min_length": lengths_N.min(),
            "completions/max_length": lengths_N.max(),
            "truncated": truncated_N.float().mean(),
            "completions/mean_terminated_length": ended_N.mean(),
            "completions/min_terminated_length": ended_N.min(),
            "completions/max_terminated_length": ended_N.max(),
            "reward": totals_PG.nanmean(),
            "reward_std": standard_deviation(totals_PG),
            # counted, as by TRL, by completions
            "zero_variance_samples": torch.isclose(spread, torch.zeros_like(spread)).float().mean(),
        }
        for f, name in enumerate(self._names):
            found[f"rewards/{name}"] = rewards_PGF[..., f].nanmean()
            found[f"rewards/{name}/std"] = standard_deviation(rewards_PGF[..., f])
        return {name: value.item() for name, value in found.items()}
