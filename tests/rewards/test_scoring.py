"""Rewards as TRL calls them: values, weights that keep their order, user files, counts, the ungradable limit."""

import itertools
import math
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rewards.domain import get_domain
from rewards.scoring import RANGES, RewardError, UngradableError, check_weights, undefined_functions
from rewards.settings import Reward

RIGHT = "<think>\n6 * 7 = 42\n</think>\n\\boxed{42}"
WRONG = "<think>\n6 * 7 = 41\n</think>\n\\boxed{41}"


MATH = get_domain("math")


def build(weights, max_completion_tokens=100, format="think-boxed", **settings):
    """The rewards of these weights and no others."""
    reward = Reward(**{"correct": 0, "format": 0, **weights, **settings})
    return MATH.rewards(reward, MATH.format(format), max_completion_tokens)


def call(function, completions, golds, ids=None, prompts=None, **columns):
    """One call in TRL's way: everything by keyword, one row a completion."""
    ids = ids or [[1, 2, 3]] * len(completions)
    return function(
        prompts=prompts or ["p"] * len(completions), completions=completions, completion_ids=ids, gold=golds,
        trainer_state=None, log_extra=None, **{"log_metric": None, **columns},
    )  # fmt: skip


def test_correct_is_one_zero_or_none():
    (correct,) = build({"correct": 1.0}, ungradable_limit=1.0).functions
    assert call(correct, [RIGHT, WRONG, RIGHT], ["42", "42", ""]) == [1.0, 0.0, None]


def test_names_weights_and_functions_stand_in_one_order():
    rewards = build({"length": 0.2, "format": 0.1, "correct": 1})
    assert rewards.names == ["correct", "format", "length"]
    assert rewards.weights == [1.0, 0.1, 0.2]
    assert [function.__name__ for function in rewards.functions] == rewards.names


def test_all_components_stand_in_the_settings_order():
    rewards = build({"repetition": 0.05, "cosine": 0.1, "length": 0.2, "format": 0.1, "correct": 1})
    assert rewards.names == ["correct", "format", "length", "cosine", "repetition"]
    assert rewards.weights == [1.0, 0.1, 0.2, 0.1, 0.05]
    assert [function.__name__ for function in rewards.functions] == rewards.names


def test_conversational_completions_are_read():
    (correct,) = build({"correct": 1.0}).functions
    turns = [{"role": "assistant", "content": WRONG}, {"role": "assistant", "content": RIGHT}]
    assert call(correct, [turns, turns[::-1]], ["42", "42"]) == [1.0, 0.0], "the last turn counts"
    assert call(correct, [[{"role": "assistant", "content": RIGHT}]], ["42"]) == [1.0]


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        (RIGHT, 1.0),
        (WRONG, 1.0),
        ("6 * 7 = \\boxed{42}", 0.0),
        ("<think>\nso\n</think>\n\\boxed{1} \\boxed{42}", 0.0),
        ("<think>\nso \\boxed{42}", 0.0),
        ("<think>a</think><think>b</think>\n\\boxed{42}", 0.0),
    ],
)
def test_format_is_one_closed_think_block_and_one_box(completion, value):
    kept = build({"correct": 1, "format": 0.1}).functions[1]
    assert call(kept, [completion], ["42"]) == [value]


def test_a_think_tag_in_the_prompt_counts():
    kept = build({"correct": 1, "format": 0.1}).functions[1]
    rest = "6 * 7 = 42\n</think>\n\\boxed{42}"
    assert call(kept, [rest, rest], ["42", "42"], prompts=["Ask <think>\n", "Ask"]) == [1.0, 0.0]


def test_length_is_dapos_soft_penalty():
    length = build({"correct": 1, "length": 0.5}).functions[1]
    values = call(length, [RIGHT] * 6, ["42"] * 6, ids=[[0] * n for n in (1, 80, 85, 90, 100, 130)])
    assert values == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]


def test_length_equals_trls_own():
    trl = pytest.importorskip("trl.rewards").get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    ids = [[0] * n for n in range(1, 130, 7)]
    length = build({"correct": 1, "length": 0.5}).functions[1]
    assert call(length, [RIGHT] * len(ids), ["42"] * len(ids), ids=ids) == pytest.approx(trl(completion_ids=ids))


def test_cosine_prefers_short_when_right_and_long_when_wrong():
    cosine = build({"correct": 2, "cosine": 0.5}).functions[1]
    ids = [[0] * n for n in (0, 50, 100, 200)]
    assert call(cosine, [RIGHT] * 4, ["42"] * 4, ids=ids) == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert call(cosine, [WRONG] * 4, ["42"] * 4, ids=ids) == pytest.approx([-1.0, -0.5, 0.0, 0.0])
    assert call(cosine, [RIGHT], [""]) == [None]


def test_repetition_counts_repeated_ngrams():
    repetition = build({"correct": 1, "repetition": 0.2}).functions[1]
    values = call(repetition, [RIGHT] * 4, ["42"] * 4, ids=[[], [1, 2, 3], list(range(50)), [7] * 13])
    assert values == [0.0, 0.0, 0.0, pytest.approx(1 / 10 - 1)]


def test_every_value_lies_in_its_range():
    weights = dict.fromkeys(RANGES, 0.1) | {"correct": 1.0}
    rewards = build(weights)
    for completion, n in itertools.product((RIGHT, WRONG, "", "\\boxed{42}"), (0, 1, 60, 99, 100, 500)):
        right = "42}" in completion
        for function in rewards.functions:
            (value,) = call(function, [completion], ["42"], ids=[[3] * n])
            low, high = RANGES[function.__name__][0 if right else 1]
            assert low <= value <= high, function.__name__


@pytest.mark.parametrize(
    "weights",
    [
        {"correct": 1.0, "format": 0.1},
        {"correct": 1.0, "format": 0.3, "length": 0.3, "repetition": 0.3},
        {"correct": 0.2, "cosine": 5.0},
    ],
)
def test_a_wrong_answer_never_beats_a_right_one(weights):
    """The worst right completion against the best wrong one, over forms and lengths."""
    rewards = build(weights)
    right = ["\\boxed{42}", "\\boxed{1} so, I think, \\boxed{42}", RIGHT]
    wrong = [WRONG, "\\boxed{41}", ""]

    def totals(completions):
        rows = [(c, ids) for c in completions for ids in ([0], list(range(100)), [7] * 100)]
        values = [
            call(f, [c for c, _ in rows], ["42"] * len(rows), ids=[i for _, i in rows]) for f in rewards.functions
        ]
        return [sum(w * v for w, v in zip(rewards.weights, row, strict=True)) for row in zip(*values, strict=True)]

    assert min(totals(right)) > max(totals(wrong))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "no component has a weight"),
        ({"correct": 0.0}, "no component has a weight"),
        ({"format": 1.0}, "add `correct`"),
        ({"format": 1.0, "cosine": 1.0}, "cosine depends on correctness"),
        ({"correct": 1.0, "format": 1.0}, "raise `correct` above 1"),
        ({"correct": 1.0, "format": 0.5, "length": 0.5}, "raise `correct` above 1"),
        # a function of one's own pays from -1 to 1: 2 * 0.25 apart
        ({"correct": 0.5, "mine": 0.25}, "raise `correct` above 0.5"),
        ({"correct": 1.0, "brevity": 0.5}, "raise `correct` above 1"),
        ({"correct": 0.0, "mine": 0.0}, "no component has a weight"),
        ({"cosine": 1.0, "mine": 0.1}, "cosine depends on correctness"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(weights, message):
    with pytest.raises(RewardError, match=message):
        check_weights(weights)
    with pytest.raises(ValueError, match=message):
        Reward(**{"correct": 0.0, "format": 0.0, "file": "mine.py", **weights})


@given(
    st.dictionaries(
        st.sampled_from([*RANGES, "mine", "yours"]),
        st.sampled_from([-1.0, -0.0, 0.0, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, math.nan, math.inf, "1", True, None]),
    )
)
@example({"correct": 1.0, "mine": 0.5})
def test_what_passes_the_check_can_be_built(tmp_path_factory, weights):
    file = tmp_path_factory.getbasetemp() / "any_rewards.py"
    file.write_text("def mine(**_): ...\nyours = mine\n")
    try:
        reward = Reward(**weights, file=str(file))
    except ValueError:
        return
    built = MATH.rewards(reward, MATH.format("boxed"), 100)
    assert dict(zip(built.names, built.weights, strict=True)) == reward.weights
    check_weights(reward.weights)


def test_cosine_needs_no_margin():
    check_weights({"correct": 0.01, "cosine": 1.0})


USER = """
loaded = True
def politeness(completions, **columns):
    return [0.5 if "please" in c else None for c in completions]
def wild(completions, **columns):
    return [3.0] * len(completions)
def whole(completions, **columns):
    return [1] * len(completions)
def short(completions, **columns):
    return [0.0]
def none(completions, **columns):
    return [float("nan")] * len(completions)
def low(completions, **columns):
    return [-1.0] * len(completions)
CONSTANT = 3
"""


def test_a_users_reward_is_called_by_name(tmp_path):
    file = tmp_path / "my_rewards.py"
    file.write_text(USER)
    rewards = build({"correct": 1.0, "politeness": 0.2}, file=str(file))
    assert rewards.names == ["correct", "politeness"]
    assert rewards.functions[1].__name__ == "politeness"
    assert call(rewards.functions[1], ["please", "no"], ["1", "1"]) == [0.5, None]
    values = call(build({"correct": 1.0, "whole": 0.2}, file=str(file)).functions[1], ["a"], ["1"])
    assert values == [1.0] and type(values[0]) is float
    low = build({"correct": 1.0, "low": 0.2}, file=str(file)).functions[1]
    assert call(low, ["a"], ["1"]) == [-1.0], "both ends are within"


def test_a_users_file_is_loaded_only_when_named(tmp_path):
    file = tmp_path / "my_rewards.py"
    file.write_text("raise SystemExit('loaded')")
    build({"correct": 1.0}, file=str(file))
    with pytest.raises(SystemExit):
        build({"correct": 1.0, "mine": 0.1}, file=str(file))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wild", "wild returned 3.0"),
        ("short", "short returned 1 values for 2"),
        ("none", "none returned nan; return None or a number between -1 and 1"),
    ],
)
def test_a_users_values_are_checked(tmp_path, name, message):
    file = tmp_path / "my_rewards.py"
    file.write_text(USER)
    function = build({"correct": 1.0, name: 0.2}, file=str(file)).functions[1]
    with pytest.raises(RewardError, match=message):
        call(function, ["a", "b"], ["1", "1"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"correct": 1, "formt": 0.1}, "did you mean 'format'"),
        ({"correct": 1, "mine": 0.1}, "functions of your own need"),
    ],
)
def test_an_unknown_component_without_a_file_is_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        build(weights)


@pytest.mark.parametrize(
    ("weights", "source", "message"),
    [
        ({"correct": 1, "mine": 0.1}, "", "does not define mine"),
        ({"correct": 1, "CONSTANT": 0.1}, USER, "does not define CONSTANT .it defines: politeness"),
        ({"correct": 1, "mine": 0.1}, "import nothing_of_that_name", "could not be imported: ModuleNotFoundError"),
    ],
)
def test_a_users_mistakes_are_named(tmp_path, weights, source, message):
    file = tmp_path / "my_rewards.py"
    file.write_text(source)
    with pytest.raises(RewardError, match=message):
        build(weights, file=str(file))
    assert "user_rewards_my_rewards" not in sys.modules


def test_what_lies_beside_a_users_file_can_be_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_the_rewards.py").write_text("LOVED = 'please'\n")
    file = tmp_path / "my_rewards.py"
    file.write_text(
        "def mine(completions, **_):\n"
        "    from beside_the_rewards import LOVED\n"
        "    return [float(LOVED in c) for c in completions]\n"
    )
    (_, mine) = build({"correct": 1.0, "mine": 0.2}, file=str(file)).functions
    assert call(mine, ["please", "no"], ["1", "1"]) == [1.0, 0.0]
    assert sys.path[-1] == str(tmp_path) and sys.path.count(str(tmp_path)) == 1


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("def mine(): ...", []),
        ("if True:\n    mine = len", []),
        ("from elsewhere import mine", []),
        ("from elsewhere import other as mine", []),
        ("from elsewhere import *", []),
        ("globals()['mi' + 'ne'] = len", []),
        ("print(mine)", ["mine"]),
        ("", ["mine"]),
    ],
)
def test_a_function_that_is_not_defined_is_seen_without_executing(tmp_path, source, missing):
    file = tmp_path / "my_rewards.py"
    file.write_text(f"raise SystemExit\n{source}\n")
    assert undefined_functions(file, ["mine"]) == missing


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RewardError, match=r"gone\.py does not exist"):
        build({"correct": 1, "mine": 0.1}, file=str(tmp_path / "gone.py"))


def test_counts_are_logged():
    (correct,) = build({"correct": 1.0}, ungradable_limit=1.0).functions
    logged = {}
    hang = r"\boxed{\int_0^{\infty} \frac{\sin(x^3) e^{-x^2}}{1+x^x} dx}"
    call(correct, [RIGHT, hang, RIGHT], ["42", "5", ""], log_metric=lambda name, value: logged.update({name: value}))
    assert logged == {"verifier/ungradable": 1.0, "verifier/timeouts": 1.0}


def test_too_many_ungradable_golds_stop_the_run():
    (correct,) = build({"correct": 1.0}, ungradable_limit=0.1).functions
    assert call(correct, [RIGHT] * 64, ["42"] * 58 + [""] * 6) == [1.0] * 58 + [None] * 6  # 6 of 64 are within 10 %
    with pytest.raises(UngradableError, match=r"12 of 84 .*problem p-7.*ungradable_limit"):
        call(correct, [RIGHT] * 20, ["42"] * 14 + [" "] * 6, problem_id=["p-7"] * 20)


def test_the_limit_itself_is_allowed():
    (correct,) = build({"correct": 1.0}, ungradable_limit=0.125).functions
    assert call(correct, [RIGHT] * 64, ["42"] * 56 + [""] * 8).count(None) == 8  # 8 of 64 are 12.5 %
    with pytest.raises(UngradableError, match="9 of 65"):
        call(correct, [RIGHT], [""])


def test_a_few_ungradable_golds_at_the_start_do_not():
    (correct,) = build({"correct": 1.0}, ungradable_limit=0.05).functions
    assert call(correct, [RIGHT] * 2, ["42", ""]) == [1.0, None]


@pytest.mark.parametrize("arguments", [{"max_completion_tokens": 0}, {"ungradable_limit": 2.0}, {"format": "haiku"}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        build({"correct": 1.0, "format": 0.1}, **arguments)


def test_a_weighted_sum_leaves_none_out():
    """As the trainer adds them: None becomes nan, and nan is no part of the sum."""
    torch = pytest.importorskip("torch")
    rewards = build({"correct": 1.0, "format": 0.1}, ungradable_limit=1.0)
    columns = [call(f, [RIGHT, WRONG, "\\boxed{42}", RIGHT], ["42", "42", "42", ""]) for f in rewards.functions]
    values = torch.tensor([[math.nan if v is None else v for v in column] for column in columns]).T
    total = (values * torch.tensor(rewards.weights)).nansum(dim=1)
    assert total.tolist() == pytest.approx([1.1, 0.1, 1.0, 0.1])
