"""What completions are worth: rewards, their weighted total, and the advantage over the group they belong to.

Axes in names: P problems, G completions of a group, F reward functions. A reward of None (NaN here) says that a
function cannot grade a completion: it takes no part in the total, and a completion that no function grades takes no
part in its group's mean and deviation and has advantage 0.

GRPO (arXiv 2402.03300, eq. 4): A = (r - mean of the group) / (standard deviation + 1e-4); Dr. GRPO (arXiv 2503.20783)
leaves the division away, and `batch` takes the deviation over all completions of the step (arXiv 2508.08221).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from models.engines.protocol import Completion
from rewards.scoring import RewardFunction

# added to the standard deviation, as in TRL
EPSILON = 1e-4
# rewards of a group that differ by less are equal: float32 sums of a few weighted rewards
EQUAL = 1e-6


def ask_rewards(
    functions: Sequence[RewardFunction],
    problems: Sequence[Mapping[str, object]],
    groups: Sequence[Sequence[Completion]],
    *,
    trainer_state: object,
    log_metric: Callable[[str, float], None],
) -> torch.Tensor:
    """rewards_PGF, float32, NaN where a function gave None.

    Args:
        functions: in TRL's signature: completion by completion, a group's in a row.
        problems: P rows of the dataset. `prompt` is the text; all but the token ids go to the functions as columns.
        groups: groups_PG.
        trainer_state: transformers' TrainerState, for rewards that change while training.
        log_metric: takes a metric's name and value.
    """
    flat = [completion for group in groups for completion in group]
    columns = {
        name: [problem[name] for problem, group in zip(problems, groups, strict=True) for _ in group]
        for name in problems[0]
        if name != "prompt_ids"
    }
    asked = {
        "prompts": columns.pop("prompt"),
        "completions": [completion.text for completion in flat],
        "completion_ids": [completion.token_ids for completion in flat],
        **columns,
        "trainer_state": trainer_state,
        "log_extra": _no_table,
        "log_metric": log_metric,
    }
    rewards_PGF = torch.zeros(len(groups), len(groups[0]), len(functions))
    for f, function in enumerate(functions):
        values = [torch.nan if value is None else value for value in function(**asked)]
        rewards_PGF[..., f] = torch.tensor(values, dtype=torch.float32).view(rewards_PGF.shape[:2])
    return rewards_PGF


def _no_table(column: str, values: Sequence[object]) -> None:
    """TRL's functions may add columns to its table of completions, which is not written here."""


def total_rewards(rewards_PGF: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """totals_PG: the weighted sum, NaN where no function graded the completion."""
    weights_F = torch.tensor(weights, dtype=torch.float32, device=rewards_PGF.device)
    totals_PG = (rewards_PGF * weights_F).nansum(dim=-1)
    totals_PG[rewards_PGF.isnan().all(dim=-1)] = torch.nan
    return totals_PG


def deviations(totals_PG: torch.Tensor, scale_rewards: Literal["group", "batch", "none"]) -> torch.Tensor:
    """Standard deviations (P x 1, of each group; `batch`: 1 x 1, of all)."""
    return standard_deviation(totals_PG, dim=(0, 1) if scale_rewards == "batch" else 1)


def group_advantages(totals_PG: torch.Tensor, scale_rewards: Literal["group", "batch", "none"]) -> torch.Tensor:
    """advantages_PG; see the module docstring."""
    advantages_PG = totals_PG - totals_PG.nanmean(dim=1, keepdim=True)
    if scale_rewards != "none":
        advantages_PG = advantages_PG / (deviations(totals_PG, scale_rewards) + EPSILON)
    return advantages_PG.nan_to_num(nan=0.0)


def equal_groups(totals_PG: torch.Tensor) -> torch.Tensor:
    """zero_variance_P (bool): all of a group's rewards are equal, so it teaches nothing; ungraded ones do not count."""
    lowest_P = totals_PG.nan_to_num(nan=torch.inf).amin(dim=1)
    highest_P = totals_PG.nan_to_num(nan=-torch.inf).amax(dim=1)
    return highest_P - lowest_P < EQUAL


def standard_deviation(values: torch.Tensor, dim: int | tuple[int, ...] | None = None) -> torch.Tensor:
    """Unbiased, over what is not NaN; NaN for a single value. Reduced dimensions stay as 1."""
    mean = values.nanmean(dim=dim, keepdim=True)
    variance = ((values - mean) ** 2).nanmean(dim=dim, keepdim=True)
    count = (~values.isnan()).sum(dim=dim, keepdim=True)
    correction = torch.where(count > 1, count / (count - 1), torch.nan)
    return (variance * correction).sqrt()
