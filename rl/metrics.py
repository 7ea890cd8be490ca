"""Numbers of one optimizer step, collected on the way from sampling to the loss, for metrics.jsonl.

Sums over a process's rows and passes are summed over the processes, and means are over tokens or groups of the whole
step: TRL's means over micro-batches would weigh tokens differently, since micro-batches differ in size here.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object

from rl.advantages import standard_deviation

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rl.batches import Row

SUMS = (
    *("tokens", "entropy", "kl", "engine_kl", "groups", "zero_variance_groups", "masked_groups", "replaced_groups"),
    *("useful_samples", "sampled_tokens", "sampling_entropy", "resampled_groups", "resampled_tokens"),
)


class StepMetrics:
    """What one optimizer step has told so far.

    Args:
        accelerator: sums and gathers over the processes; every process tells the same names in the same order.
    """

    def __init__(self, accelerator: "Accelerator") -> None:
        self._accelerator = accelerator
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._rounds: defaultdict[str, list[float]] = defaultdict(list)
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._generated = 0
        self._start = time.perf_counter()

    def add(self, name: str, value: float) -> None:
        """Add this process's part to one of `SUMS`."""
        self._sums[name] += value

    def counted(self, name: str, value: float) -> None:
        """Tell a running count that is of all processes already."""
        self._rounds[name] = [float(value)]

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the seconds inside to `seconds/<name>`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start

    # a round of sampling: of the step's problems, or of those that replace some of them. Rounds count equally

    def sampled(self, prompts: Sequence[int], completions: Sequence[int], truncated: Sequence[bool]) -> int:
        """Lengths in tokens of this process's prompts (one a completion) and completions, and which were cut off.

        Returns:
            tokens of prompts and completions over all processes.
        """
        self._generated += sum(completions)
        prompts_N, lengths_N, truncated_N = (self._gathered(values) for values in (prompts, completions, truncated))
        ended = lengths_N[~truncated_N]
        self._tell("completion_length", lengths_N.float().mean())
        self._tell("completions/min_length", lengths_N.float().min())
        self._tell("completions/max_length", lengths_N.float().max())
        self._tell("truncated", truncated_N.float().mean())
        ended = ended.float() if len(ended) else torch.zeros(1)
        self._tell("completions/mean_terminated_length", ended.mean())
        self._tell("completions/min_terminated_length", ended.min())
        self._tell("completions/max_terminated_length", ended.max())
        return int((prompts_N.sum() + lengths_N.sum()).item())

    def rewarded(
        self, names: Sequence[str], rewards_PGF: torch.Tensor, totals_PG: torch.Tensor, deviations: torch.Tensor
    ) -> None:
        """Rewards of all processes; `deviations` are what the advantages are judged by (broadcast to P x G)."""
        for f, name in enumerate(names):
            self._tell(f"rewards/{name}", rewards_PGF[..., f].nanmean())
            self._tell(f"rewards/{name}/std", standard_deviation(rewards_PGF[..., f]))
        self._tell("reward", totals_PG.nanmean())
        self._tell("reward_std", standard_deviation(totals_PG))
        flat = torch.isclose(deviations, torch.zeros_like(deviations)).expand_as(totals_PG)
        self._tell("zero_variance_samples", flat.float().mean())

    def logged(self, values: Mapping[str, Sequence[float]]) -> None:
        """What this process's reward functions gave to `log_metric`; a mean over all calls of all processes."""
        for name in sorted(set(gather_object(list(values)))):
            own = values.get(name, ())
            total, count = self._gathered([[sum(own), len(own)]], torch.float32).sum(0).tolist()
            self._rounds[name].append(total / count)

    def _tell(self, name: str, value: torch.Tensor) -> None:
        self._rounds[name].append(value.item())

    def _gathered(self, values: Sequence[object], dtype: torch.dtype | None = None) -> torch.Tensor:
        return self._accelerator.gather(torch.tensor(values, dtype=dtype, device=self._accelerator.device))

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
        self.add("masked_groups", sum(row.zero_variance for row in rows) // (len(rows) // groups))
        self.add("replaced_groups", replaced)
        self.add("useful_samples", sum(row.in_loss and not row.zero_variance for row in rows))
        self.add("sampled_tokens", sum(len(row.completion) for row in rows))
        self.add("sampling_entropy", -sum(float(row.sampling_logprobs.sum()) for row in rows))

    def take(self, *, engine_mismatch: float, with_kl: bool) -> dict[str, float]:
        """The step's metrics by name; the next step begins.

        Args:
            engine_mismatch: see models/engines/serving.py.
            with_kl: whether there is a penalty. Without one the reference is never asked, and 0 would be a claim.
        """
        local = torch.tensor([self._sums[name] for name in SUMS], device=self._accelerator.device)
        total = dict(zip(SUMS, self._accelerator.reduce(local, reduction="sum").tolist(), strict=True))
        tokens, sampled, groups = (max(total[name], 1.0) for name in ("tokens", "sampled_tokens", "groups"))
        numbers = {name: [value for value in values if not math.isnan(value)] for name, values in self._rounds.items()}
        metrics = {
            **{name: sum(values) / len(values) for name, values in numbers.items() if values},
            "entropy": total["entropy"] / tokens,
            "sampling_entropy": total["sampling_entropy"] / sampled,
            "engine_kl": total["engine_kl"] / tokens,
            "engine_mismatch": engine_mismatch,
            "zero_variance_groups": total["zero_variance_groups"] / groups,
            "masked_groups": total["masked_groups"] / groups,
            "replaced_groups": total["replaced_groups"],
            # what replacing them took
            "resampled_groups": total["resampled_groups"],
            "resampled_tokens": total["resampled_tokens"],
            "useful_samples": total["useful_samples"],
            "rollout_tokens_per_second": self._generated / max(self._seconds["rollout"], 1e-9),
            "tokens_per_second": sampled / (time.perf_counter() - self._start),
            **{f"seconds/{name}": self._seconds[name] for name in ("sync", "rollout", "reward", "reference")},
        }
        if with_kl:
            metrics["kl"] = total["kl"] / tokens
        self._sums.clear()
        self._rounds.clear()
        self._seconds.clear()
        self._generated = 0
        self._start = time.perf_counter()
        return metrics
