r"""What completions are worth: rewards, their weighted total, and the advantage over the group they belong to.

Axes in names: P problems, G completions of a group, F reward functions. A reward of None (NaN here) says that a
function cannot grade a completion. Where that is the task's own function (`RewardSet.task`: `correct`, say), there is
no reward at all, whatever the others pay; where no function is the task's, a completion that none grades has none. What
has no reward takes no part in its group's mean and deviation and has advantage 0.

GRPO (arXiv 2402.03300, eq. 4): A = (r - mean of the group) / (standard deviation + 1e-4); Dr. GRPO (arXiv 2503.20783)
leaves the division away, and `batch` takes the deviation over all completions of the step (arXiv 2508.08221).

A group whose completions are all equally good at the task, all right or all wrong, has no variance, and its deviation
is that of what is left: 16 right answers, one of which breaks the format (1.0 among 1.1), have a deviation of 0.025,
and divided by it the tenth becomes -3.7, as much as one wrong answer among 15 right ones gets. So in such a group

    A = (r - mean of the group) / weight of the task's function

and the one gets -0.094, the others 0.006: a tenth of an answer's worth is a tenth of an advantage, also where nothing
is right yet and the format is all there is to learn. (With `none` it is left undivided like all others.) Where all
rewards are equal, A is 0. Without a function of the task's own (a user's functions alone) variance is the total's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from models.engines.protocol import Completion
from rewards.scoring import RewardFunction

Scale = Literal["group", "batch", "none"]

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


def total_rewards(rewards_PGF: torch.Tensor, weights: Sequence[float], task: int | None = None) -> torch.Tensor:
    """totals_PG: the weighted sum, NaN where the completion has no reward.

    Args:
        task: number of the task's own function; None where there is none.
    """
    weights_F = torch.tensor(weights, dtype=torch.float32, device=rewards_PGF.device)
    totals_PG = (rewards_PGF * weights_F).nansum(dim=-1)
    graded_PGF = ~rewards_PGF.isnan()
    graded_PG = graded_PGF.any(dim=-1) if task is None else graded_PGF[..., task]
    return totals_PG.masked_fill(~graded_PG, torch.nan)


def deviations(totals_PG: torch.Tensor, scale_rewards: Scale) -> torch.Tensor:
    """Standard deviations (P x 1, of each group; `batch`: 1 x 1, of all)."""
    return standard_deviation(totals_PG, dim=(0, 1) if scale_rewards == "batch" else 1)


def group_advantages(
    totals_PG: torch.Tensor, scale_rewards: Scale, judged_PG: torch.Tensor | None = None, unit: float = 1.0
) -> torch.Tensor:
    """advantages_PG; see the module docstring.

    Args:
        judged_PG: rewards of the task's own function, by which variance is judged; `unit` is its weight. None: the
            totals.
    """
    advantages_PG = totals_PG - totals_PG.nanmean(dim=1, keepdim=True)
    if scale_rewards != "none":
        divisors = deviations(totals_PG, scale_rewards) + EPSILON
        zero_variance_P = equal_groups(totals_PG if judged_PG is None else judged_PG)
        advantages_PG = advantages_PG / torch.where(zero_variance_P[:, None], unit, divisors)
    # where all are equal rounding would leave a little
    return advantages_PG.masked_fill(equal_groups(totals_PG)[:, None], 0.0).nan_to_num(nan=0.0)


def equal_groups(values_PG: torch.Tensor) -> torch.Tensor:
    """equal_P (bool): all of a group's values are equal; NaN does not count, and a group of it is equal."""
    lowest_P = values_PG.nan_to_num(nan=torch.inf).amin(dim=1)
    highest_P = values_PG.nan_to_num(nan=-torch.inf).amax(dim=1)
    return highest_P - lowest_P < EQUAL


def standard_deviation(values: torch.Tensor, dim: int | tuple[int, ...] | None = None) -> torch.Tensor:
    """Unbiased, over what is not NaN; NaN for a single value. Reduced dimensions stay as 1."""
    mean = values.nanmean(dim=dim, keepdim=True)
    variance = ((values - mean) ** 2).nanmean(dim=dim, keepdim=True)
    count = (~values.isnan()).sum(dim=dim, keepdim=True)
    correction = torch.where(count > 1, count / (count - 1), torch.nan)
    return (variance * correction).sqrt()
