"""What completions are worth, by hand: totals, advantages, groups without variance, completions nobody can grade."""

import math

import pytest
import torch

from models.engines.protocol import Completion
from rl.advantages import ask_rewards, deviations, equal_groups, group_advantages, standard_deviation, total_rewards

NAN = math.nan


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)


def close(tensor, wanted):
    assert torch.allclose(tensor, torch.tensor(wanted), atol=1e-5, rtol=0, equal_nan=True), tensor.tolist()


# totals


def test_totals_are_weighted_sums():
    """One problem, two completions, two functions with weights 1 and 0.1: 1 + 0.1 x 1 = 1.1 and 0 + 0.1 x 1 = 0.1."""
    rewards_PGF = rows([[1.0, 1.0], [0.0, 1.0]])
    close(total_rewards(rewards_PGF, [1.0, 0.1]), [[1.1, 0.1]])


def test_a_function_that_cannot_grade_adds_nothing_and_one_that_can_is_enough():
    """None from the first: 0.1 x 1 = 0.1. None from both: no reward at all, which is not a reward of 0."""
    rewards_PGF = rows([[NAN, 1.0], [NAN, NAN], [1.0, NAN]])
    close(total_rewards(rewards_PGF, [1.0, 0.1]), [[0.1, NAN, 1.0]])


def test_what_the_task_cannot_grade_has_no_reward_whatever_the_format_pays():
    """The same with the first function the task's own: 0.1 for the format of an answer that nobody can judge is less
    than a right answer's 1, and would be a reason against it."""
    rewards_PGF = rows([[NAN, 1.0], [NAN, NAN], [1.0, NAN]])
    close(total_rewards(rewards_PGF, [1.0, 0.1], task=0), [[NAN, NAN, 1.0]])
    close(total_rewards(rewards_PGF, [1.0, 0.1], task=1), [[0.1, NAN, NAN]])


# advantages


def test_group_by_hand():
    """1, 0, 0, 1: mean 1/2, deviations +-1/2, variance 4 x (1/4) / 3 = 1/3, standard deviation 0.577350, and so
    +-0.5 / (0.577350 + 0.0001) = +-0.865875. The group beside it, 2, 2, 2, 6: mean 3, variance (1 + 1 + 1 + 9) / 3,
    which is 4, deviation 2: -1 / 2.0001 = -0.499975 and 3 / 2.0001 = 1.499925."""
    totals_PG = rows([1, 0, 0, 1], [2, 2, 2, 6])
    close(
        group_advantages(totals_PG, "group"),
        [[0.865875, -0.865875, -0.865875, 0.865875], [-0.499975, -0.499975, -0.499975, 1.499925]],
    )


def test_none_leaves_the_division_away():
    close(group_advantages(rows([1, 0, 0, 1], [2, 2, 2, 6]), "none"), [[0.5, -0.5, -0.5, 0.5], [-1, -1, -1, 3]])


def test_batch_divides_by_the_deviation_of_all():
    """1, 0, 2, 1: mean 1, variance (0 + 1 + 1 + 0) / 3 = 2/3, deviation 0.816497; centred by their own groups' means
    (1/2 and 3/2): +-0.5 / (0.816497 + 0.0001) = +-0.612297."""
    advantages = group_advantages(rows([1, 0], [2, 1]), "batch")
    close(advantages, [[0.612297, -0.612297], [0.612297, -0.612297]])


def test_what_nobody_can_grade_takes_no_part():
    """1, None, 0: mean 1/2, variance (1/4 + 1/4) / 1 = 1/2, deviation 0.707107: +-0.5 / 0.707207 = +-0.707007. Were
    None a 0: mean 1/3, and the wrong answer beside it would be at -0.577."""
    close(group_advantages(rows([1, NAN, 0]), "group"), [[0.707007, 0.0, -0.707007]])
    close(group_advantages(rows([1, NAN, 0]), "none"), [[0.5, 0.0, -0.5]])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_nothing_to_compare_with_is_no_advantage(scale):
    """All equal, one graded completion alone, and none graded."""
    for group in ([1.0, 1.0, 1.0], [NAN, 1.0, NAN], [NAN, NAN, NAN]):
        close(group_advantages(rows(group), scale), [[0.0, 0.0, 0.0]])


def test_a_groups_advantages_sum_to_zero_and_do_not_depend_on_the_rewards_scale():
    """A = c (r - mean) / (c s + 1e-4): with rewards ten times as large only the 1e-4 weighs less."""
    totals_PG = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    advantages = group_advantages(totals_PG, "group")
    close(advantages.sum(1), [0.0] * 5)
    assert torch.allclose(group_advantages(10 * totals_PG + 3, "group"), advantages, atol=2e-3)


# groups that are all right or all wrong


def judged(*groups, weights=(1.0, 0.1), scale="group"):
    """Advantages of groups of (correct, format)."""
    rewards_PGF = rows(*groups)
    totals_PG = total_rewards(rewards_PGF, weights, task=0)
    return group_advantages(totals_PG, scale, rewards_PGF[..., 0], weights[0])


@pytest.mark.parametrize("scale", ["group", "batch"])
@pytest.mark.parametrize("correct", [1.0, 0.0])
def test_one_violation_of_the_format_among_16_is_a_tenth_of_an_answer(correct, scale):
    """15 x 0.1 / 16 = 0.09375 is the mean beyond what is common to all: -0.09375 for the one, 0.00625 for the others.
    Divided by their deviation, 0.025, they would be -3.735 and 0.249."""
    group = [[correct, 0.0], *[[correct, 1.0]] * 15]
    close(judged(group, scale=scale), [[-0.09375, *[0.00625] * 15]])
    assert group_advantages(total_rewards(rows(group), (1.0, 0.1)), "group")[0, 0] < -3.7, "on the total alone"


def test_it_is_a_tenth_whatever_the_scale_of_the_rewards():
    """Weights of 10 and 1: -0.9375 / 10."""
    close(judged([[1, 0], *[[1, 1]] * 15], weights=(10.0, 1.0)), [[-0.09375, *[0.00625] * 15]])
    close(judged([[1, 0], *[[1, 1]] * 15], weights=(10.0, 1.0), scale="none"), [[-0.9375, *[0.0625] * 15]])


def test_groups_that_are_mixed_at_the_task_are_as_they_were():
    """1.1, 0.1, 1.0, 0.1: mean 0.575; the format counts in proportion to the answers."""
    group = [[1, 1], [0, 1], [1, 0], [0, 1]]
    totals_PG = rows([1.1, 0.1, 1.0, 0.1])
    for scale in ("group", "batch", "none"):
        close(judged(group, scale=scale), group_advantages(totals_PG, scale).tolist())


def test_a_group_with_variance_leaves_one_without_alone():
    both = judged([[1, 1], [0, 1]], [[1, 0], [1, 1]])
    close(both[1:], [[-0.05, 0.05]])
    close(both[:1], group_advantages(rows([1.1, 0.1]), "group").tolist())


def test_the_ungradable_make_no_difference():
    """Right, right without the format, and one that cannot be judged: the mean is that of two, 1.05."""
    close(judged([[1, 1], [1, 0], [NAN, 1]]), [[0.05, -0.05, 0.0]])
    close(judged([[NAN, 1], [NAN, 0], [NAN, 1]]), [[0.0, 0.0, 0.0]])
    close(judged([[1, 1], [1, 1], [1, 1]]), [[0.0, 0.0, 0.0]])


# variance


def test_deviation_by_hand():
    """1, 3: variance (1 + 1) / 1 = 2; with a None between them the same; of a single value there is none."""
    close(standard_deviation(rows(1, 3)), [math.sqrt(2)])
    close(standard_deviation(rows(1, NAN, 3)), [math.sqrt(2)])
    close(standard_deviation(rows([5], [6]), dim=1), [[NAN], [NAN]])
    assert deviations(rows([1, 3], [2, 2]), "group").shape == (2, 1)
    assert deviations(rows([1, 3], [2, 2]), "batch").shape == (1, 1)


def test_groups_without_variance():
    """Equal within a millionth; what nobody can grade does not make a difference; a group of them has no variance."""
    groups = rows([1, 1, 1], [1, 1, 1 + 5e-7], [1, NAN, 1], [NAN, NAN, NAN], [NAN, 1, NAN], [1, NAN, 0], [0, 0, 1e-3])
    assert equal_groups(groups).tolist() == [True, True, True, True, True, False, False]


# asking


def completion(*ids):
    return Completion(list(ids), f"text of {ids}", "stop", [-1.0] * len(ids))


GROUPS = [[completion(1, 2), completion(3)], [completion(4), completion(5, 6, 7)]]
PROBLEMS = [
    {"prompt": "first?", "prompt_ids": [9, 9], "gold": "1", "problem_id": "a", "domain": "math", "difficulty": 3},
    {"prompt": "second?", "prompt_ids": [8], "gold": "2", "problem_id": "b", "domain": "math", "difficulty": 0},
]


def ask(*functions, log_metric=lambda name, value: None):
    return ask_rewards(functions, PROBLEMS, GROUPS, trainer_state="the state", log_metric=log_metric)


def test_functions_are_asked_in_trls_signature():
    """User's files rely on it: completion by completion, every column, and nothing of ours."""
    seen = []

    def function(prompts, completions, completion_ids, **others):
        seen.append((prompts, completions, completion_ids, others))
        others["log_extra"]("column", [1, 2, 3, 4])
        return [0.0] * 4

    ask(function)
    ((prompts, completions, completion_ids, others),) = seen
    assert prompts == ["first?", "first?", "second?", "second?"]
    assert completions == ["text of (1, 2)", "text of (3,)", "text of (4,)", "text of (5, 6, 7)"]
    assert completion_ids == [[1, 2], [3], [4], [5, 6, 7]]
    assert others.keys() == {
        "gold", "problem_id", "domain", "difficulty", "trainer_state", "log_extra", "log_metric",
    }  # fmt: skip
    assert others["gold"] == ["1", "1", "2", "2"] and others["difficulty"] == [3, 3, 0, 0]
    assert others["trainer_state"] == "the state"


def test_answers_stand_by_problem_completion_and_function():
    def lengths(completion_ids, **_):
        return [float(len(ids)) for ids in completion_ids]

    def golds(gold, **_):
        return [None if value == "1" else int(value) for value in gold]

    rewards_PGF = ask(lengths, golds)
    assert rewards_PGF.dtype == torch.float32
    close(rewards_PGF, [[[2.0, NAN], [1.0, NAN]], [[1.0, 2.0], [3.0, 2.0]]])


def test_metrics_are_passed_on():
    told = []

    def function(prompts, log_metric, **_):
        log_metric("mine", 0.5)
        return [1.0] * len(prompts)

    ask(function, log_metric=lambda name, value: told.append((name, value)))
    assert told == [("mine", 0.5)]


def test_too_few_answers_are_an_error():
    with pytest.raises(RuntimeError):
        ask(lambda **_: [1.0, 2.0, 3.0])
