"""Rollouts: seeds and problems that follow from the place in the run, and groups from the policy that is trained."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from datasets import Dataset
from tiny_grpo import Stage

from models.engines.protocol import Completion, EngineError
from models.engines.serving import Served
from models.training import TrainingError
from rewards.scoring import RewardSet
from rl.metrics import StepMetrics
from rl.rollouts import Cut, Place, ProblemOrder, RowSource, fresh_problems, rollout_seed, sample_groups
from rl.settings import DynamicSampling, GrpoSettings, Rollouts

START = Place(step=0, attempt=0, first_group=0)


@pytest.fixture(params=["vllm_engine", "transformers_engine"])
def served(request, tiny_path, tokenizer):
    """(Served, the policy that it serves)"""
    made, policy = (
        Served(request.getfixturevalue(request.param), "folded", tiny.probe(tokenizer)),
        tiny.policy(tiny_path),
    )
    made.push(policy)
    return made, policy


def sample(engine, prompts, *, group_size=4, place=START, **changes):
    rollouts = Rollouts(group_size=group_size, max_completion_tokens=12, **changes)
    return sample_groups(engine, prompts, rollouts, tiny.MORE_ENDS, seed=3, place=place)


# seeds


def test_seeds_follow_from_the_place_in_the_run():
    grid = [
        (s, Place(t, a, f), g) for s in range(3) for t in range(5) for a in range(3) for f in (0, 8) for g in range(8)
    ]
    seeds = [rollout_seed(*place) for place in grid]
    assert len(set(seeds)) == len(grid) and seeds == [rollout_seed(*place) for place in grid]
    assert all(0 <= seed < 2**62 for seed in seeds), "room for the completions of a group"


def test_a_group_has_the_same_seed_whichever_process_samples_it():
    alone = [rollout_seed(3, Place(2, 1, 0), group) for group in range(6)]
    shared = [rollout_seed(3, Place(2, 1, first), group) for first in (0, 3) for group in range(3)]
    assert alone == shared


# sampling


def test_what_is_sampled_is_the_policys(served, tokenizer):
    made, policy = served
    prompts = tiny.tokens(tokenizer, tiny.prompts(tokenizer))[:3]
    groups = sample(made.engine, prompts)
    assert [len(group) for group in groups] == [4, 4, 4]
    for prompt, group in zip(prompts, groups, strict=True):
        for one in group:
            exact = tiny.next_token_logprobs(policy, [*prompt, *one.token_ids])[len(prompt) - 1 : -1]
            wanted = [float(exact[t, token]) for t, token in enumerate(one.token_ids)]
            assert one.logprobs == pytest.approx(wanted, abs=1e-4)


def test_the_same_place_samples_the_same_and_another_does_not(served, tokenizer):
    prompts = tiny.tokens(tokenizer, tiny.prompts(tokenizer))[:2]

    def ids(place):
        return [one.token_ids for group in sample(served[0].engine, prompts, place=place) for one in group]

    first = ids(START)
    assert ids(START) == first
    for other in ({"step": 1}, {"attempt": 1}, {"first_group": 2}):
        assert ids(replace(START, **other)) != first


def test_one_call_asks_each_prompt_once_and_for_all_that_the_settings_say():
    asked = []

    class Listening:
        dtype = torch.float32

        def generate(self, prompts, sampling, seeds):
            asked.append((list(prompts), sampling, seeds))
            return [[Completion([1], "", "stop", [-1.0])] * sampling.n for _ in prompts]

    sample(Listening(), [[1], [2]], group_size=2, temperature=0.7, top_p=0.9)
    wanted = tiny.sampling(12, temperature=0.7, top_p=0.9, n=2, logprobs=True, stop_token_ids=tiny.MORE_ENDS)
    assert asked == [([[1], [2]], wanted, [rollout_seed(3, START, 0), rollout_seed(3, START, 1)])]


# problems


DATASET = Dataset.from_dict({"problem_id": [f"p{i}" for i in range(10)]})


def drawn(count, total, **place):
    return [problem["problem_id"] for problem in fresh_problems(DATASET, 3, replace(START, **place), count, total)]


def test_fresh_problems_follow_from_step_and_attempt():
    first = drawn(4, 4, step=1, attempt=1)
    assert first == drawn(4, 4, step=1, attempt=1) and len(set(first)) == 4
    assert first != drawn(4, 4, step=2, attempt=1) and first != drawn(4, 4, step=1, attempt=2)


def test_processes_share_what_one_would_draw():
    """Five over two processes, three and two: the second goes on where the first ended, and fills up from the front."""
    whole = drawn(5, 5, attempt=1)
    assert drawn(3, 5, attempt=1) + drawn(3, 5, attempt=1, first_group=3) == [*whole, whole[0]]


def test_more_than_there_are_go_round():
    assert len(set(drawn(25, 25))) == 10 and drawn(25, 25)[:10] == drawn(25, 25)[10:20]


def test_each_epoch_has_an_order_of_its_own_whatever_was_drawn_before():
    @dataclass
    class Order:
        """As TRL's sampler: its generator runs on."""

        seed: int = 3

        def __post_init__(self):
            self.generator = torch.Generator().manual_seed(self.seed)

        def __iter__(self):
            return iter(torch.randperm(20, generator=self.generator).tolist())

        def __len__(self):
            return 20

    epoch = [0]
    order = ProblemOrder(Order(), lambda: epoch[0])
    first = list(order)
    epoch[0] = 1
    second = list(order)
    assert sorted(first) == sorted(second) == list(range(20)) and first != second and len(order) == 20
    assert list(ProblemOrder(Order(), lambda: 1)) == second, "as a resumed run draws it"


# a step's rows

END, PAD = 1, 0
ONE_PROCESS = SimpleNamespace(
    process_index=0, device="cpu", gather=lambda tensor: tensor, reduce=lambda tensor, reduction: tensor
)


def question(name, ids):
    return {"prompt": f"{name}?", "prompt_ids": ids, "problem_id": name}


class Scripted:
    """An engine whose completions are written down: one list of token ids a group and call."""

    def __init__(self, *calls):
        self.calls, self.asked = list(calls), []

    def generate(self, prompts, sampling, seeds):
        self.asked.append([list(prompt) for prompt in prompts])
        return [
            [Completion(ids, "", "stop", [-0.5 * (t + 1) for t in range(len(ids))]) for ids in group]
            for group in self.calls.pop(0)
        ]


def first_token(completion_ids, **_):
    return [{5: 0.3, 6: 0.3000005, 7: 1.0, 8: None}[ids[0]] for ids in completion_ids]


FIRST = RewardSet([first_token], ["first"], [1.0])


def source_of(engine, resamples=0, rewards=FIRST, accelerator=ONE_PROCESS, **settings):
    """(source, its metrics, what is pushed)"""
    pushed, metrics = [], StepMetrics(accelerator, rewards.names, settings.get("scale_rewards", "group"))
    source = RowSource(
        SimpleNamespace(engine=engine, push=lambda policy, step: pushed.append((policy, step))),
        Dataset.from_list([question("x", [2, 2, 2]), question("y", [3])]),
        rewards,
        GrpoSettings(steps=1, learning_rate=1e-3, **settings),
        Rollouts(group_size=2, dynamic_sampling=DynamicSampling(max_resamples=resamples)),
        stop_token_ids=(END,),
        pad_token_id=PAD,
        seed=3,
        accelerator=accelerator,
        metrics=metrics,
    )
    return source, metrics, pushed


def rows_of(engine, problems, **settings):
    """(rows, tokens, metrics)"""
    source, metrics, pushed = source_of(engine, **settings)
    rows, tokens = source.rows("policy", problems, SimpleNamespace(global_step=4))
    assert pushed == [("policy", 4)], "once, before anything is sampled"
    return rows, tokens, metrics.take(engine_mismatch=0.0, with_kl=False)


PROBLEMS = [question("a", [2, 4]), question("b", [9])]


def test_rows_by_hand():
    """Group a: rewards 0.3 and 1, so -0.35 and 0.35 from the mean; its second completion is cut off. Group b: 0.3 and
    what is 0.3 but for rounding, so no advantage, though the arithmetic would leave one."""
    engine = Scripted([[[5, 6, END], [7, 6]], [[5, END], [6, 5, 5, END]]])
    (a, b, c, d), tokens, told = rows_of(engine, PROBLEMS, scale_rewards="none")
    assert engine.asked == [[[2, 4], [9]]]
    assert a.prompt.tolist() == [2, 4] and a.completion.tolist() == [5, 6, END] and len(a) == 5
    assert a.sampling_logprobs.tolist() == [-0.5, -1.0, -1.5]
    assert (a.advantage, b.advantage) == pytest.approx((-0.35, 0.35)) and c.advantage == d.advantage == 0.0
    assert [row.zero_variance for row in (a, b, c, d)] == [False, False, True, True]
    assert [row.in_loss for row in (a, b, c, d)] == [True, False, True, True]
    assert b.completion.tolist() == [7, 6], "its tokens are known although they are masked"
    # 3 + 2 + 2 + 4 of completions, and each prompt twice: 2 x 2 + 2 x 1
    assert tokens == 11 + 6
    wanted = {
        "completion_length": 11 / 4, "completions/min_length": 2, "completions/max_length": 4, "truncated": 1 / 4,
        "completions/mean_terminated_length": 3, "completions/min_terminated_length": 2,
        "completions/max_terminated_length": 4, "reward": 0.475, "rewards/first": 0.475, "zero_variance_groups": 0.5,
        "masked_groups": 0.5, "replaced_groups": 0, "useful_samples": 1,
        "zero_variance_samples": 0.0,  # counted, as by TRL, where the deviation is 0 within 1e-8
        # deviations of 0.3, 1, 0.3, 0.3 from 0.475: 3 x 0.175^2 + 0.525^2 = 0.3675, over 3, and its root
        "reward_std": 0.35, "rewards/first/std": 0.35,
        # -(-0.5 - 1 - 1.5 - 0.5 - 1 - 0.5 - 1 - 0.5 - 1 - 1.5 - 2) / 11
        "sampling_entropy": 1.0,
    }  # fmt: skip
    assert {name: told[name] for name in wanted} == pytest.approx(wanted)


def test_what_was_cut_off_is_in_the_loss_where_the_recipe_says_so():
    engine = Scripted([[[5, 6, END], [7, 6]], [[5, END], [6, 5, 5, END]]])
    rows, *_ = rows_of(engine, PROBLEMS, mask_truncated_completions=False)
    assert all(row.in_loss for row in rows)


def test_an_empty_group_is_replaced_in_its_place_and_no_other():
    """The first group teaches nothing, nor does what is sampled for it first; the second time something does."""
    engine = Scripted([[[5, END], [5, END]], [[5, END], [7, END]]], [[[7, END], [7, END]]], [[[7, 6, END], [5, END]]])
    rows, tokens, told = rows_of(engine, PROBLEMS, resamples=5, scale_rewards="none")
    assert [row.completion.tolist() for row in rows] == [[7, 6, END], [5, END], [5, END], [7, END]]
    assert len(engine.asked) == 3 and all(len(asked) == 1 for asked in engine.asked[1:])
    assert rows[0].prompt.tolist() == engine.asked[2][0] and rows[2].prompt.tolist() == [9]
    assert (told["zero_variance_groups"], told["masked_groups"], told["replaced_groups"]) == (0.5, 0.0, 1)
    assert (told["resampled_groups"], told["resampled_tokens"]) == (2, 4 + 5)
    assert tokens == 8 + 6 + (4 + 2 * len(engine.asked[1][0])) + (5 + 2 * len(engine.asked[2][0]))


def test_what_nobody_can_grade_has_no_reward_and_the_step_goes_on():
    rows, _, told = rows_of(Scripted([[[8, END], [8, END]], [[8, END], [8, END]]]), PROBLEMS)
    assert all(row.zero_variance and row.advantage == 0.0 for row in rows)
    assert "reward" not in told and all(math.isfinite(value) for value in told.values())
    assert not told.keys() & {"entropy", "engine_kl", "kl", "clip_ratio/region_mean"}, "no loss, no mean of it"


# completions that do not end


def test_a_run_in_which_hardly_anything_ends_is_stopped():
    """At 0.95 of 40, that is 38, in four steps in a row."""
    cut = Cut((5, 7), 96)
    for step, number in enumerate((38, 38, 38, 37, 40, 40, 40, 0, 38, 40, 38)):
        cut.count(step, number, 40)
    with pytest.raises(TrainingError) as caught:
        cut.count(11, 39, 40)
    message = str(caught.value)
    assert message.startswith("39 of 40 completions were cut off at step 12, and nearly all in the last 4 steps")
    assert "max_completion_tokens (96)" in message and "end tokens (5, 7)" in message and "model.prompt" in message


@pytest.mark.parametrize("masked", [True, False])
def test_rows_that_do_not_end_are_counted_step_by_step(masked):
    """Where they are in the loss all the same, they teach, and the run goes on."""
    source = source_of(Scripted(*[[[[5, 6], [7, 6]]]] * 9), mask_truncated_completions=masked)[0]

    def steps(count):
        for step in range(count):
            source.rows("policy", PROBLEMS[:1], SimpleNamespace(global_step=step))

    steps(3)
    if masked:
        with pytest.raises(TrainingError, match="2 of 2 completions were cut off at step 1"):
            steps(1)
    else:
        steps(6)


def format_of(completion_ids, **_):
    return [float(len(ids) == 2) for ids in completion_ids]


WITH_FORMAT = RewardSet([first_token, format_of], ["first", "format"], [1.0, 0.1], task="first")


def test_a_group_mixed_in_format_alone_is_replaced_and_until_then_weighs_a_tenth():
    """7 pays 1 whatever follows; three tokens break the format. 1.1 and 1.0: 0.05 above and below the mean."""
    mixed = [[7, END], [7, 5, END]]
    rows, _, told = rows_of(Scripted([mixed, mixed]), PROBLEMS, rewards=WITH_FORMAT)
    assert [row.advantage for row in rows] == pytest.approx([0.05, -0.05, 0.05, -0.05], abs=1e-6)
    assert all(row.zero_variance for row in rows) and told["useful_samples"] == 4
    assert (told["zero_variance_groups"], told["masked_groups"]) == (1.0, 0.0)
    engine = Scripted([mixed, [[7, END], [5, END]]], [[[5, END], [7, END]]])
    rows, _, told = rows_of(engine, PROBLEMS, resamples=1, rewards=WITH_FORMAT)
    assert told["replaced_groups"] == 1 and [row.zero_variance for row in rows] == [False] * 4


def test_what_cannot_be_graded_has_no_reward_though_its_format_is_kept():
    rows, _, told = rows_of(Scripted([[[8, END], [7, END]], [[8, END], [8, 5, END]]]), PROBLEMS, rewards=WITH_FORMAT)
    assert [row.advantage for row in rows] == [0.0] * 4
    assert told["reward"] == pytest.approx(1.1), "of the one that was graded"


# means over rounds


def test_every_completion_of_the_step_weighs_the_same():
    """Four in the first round, two in the second and two in the third. Tokens 2, 2, 2, 2 / 3, 3 / 4, 2: 20 over 8, not
    (2 + 3 + 3) / 3. Rewards 0.3, 0.3, 0.3, 1 / 1, 1 / 1, 0.3: 5.2 over 8."""
    engine = Scripted(
        [[[5, END], [5, END]], [[5, END], [7, END]]], [[[7, 5, END], [7, 5, END]]], [[[7, 5, 5, END], [5, 5]]]
    )
    calls = iter((4.0, 10.0, 10.0))

    def told_too(completion_ids, log_metric, **_):
        log_metric("mine", next(calls))
        return first_token(completion_ids)

    _, _, told = rows_of(engine, PROBLEMS, resamples=2, rewards=RewardSet([told_too], ["first"], [1.0]))
    wanted = {
        "completion_length": 20 / 8, "completions/min_length": 2, "completions/max_length": 4, "truncated": 1 / 8,
        "completions/mean_terminated_length": 18 / 7, "completions/max_terminated_length": 4,
        "reward": 5.2 / 8, "rewards/first": 5.2 / 8,
        # four of 1 and four of 0.3, 0.35 from their mean: 8 x 0.35^2 / 7
        "reward_std": 0.35 * math.sqrt(8 / 7), "rewards/first/std": 0.35 * math.sqrt(8 / 7),
        "zero_variance_samples": 4 / 8,
        "mine": (4 * 4 + 2 * 10 + 2 * 10) / 8,
    }  # fmt: skip
    assert {name: told[name] for name in wanted} == pytest.approx(wanted)


def test_advantages_are_by_the_deviation_of_what_is_trained_on():
    """`batch`: 0.3 and 1 twice, after the first group has been replaced: deviation 0.35 x sqrt(4/3)."""
    engine = Scripted([[[5, END], [5, END]], [[5, END], [7, END]]], [[[7, END], [5, END]]])
    rows, *_ = rows_of(engine, PROBLEMS, resamples=1, scale_rewards="batch")
    one = 0.35 / (0.35 * math.sqrt(4 / 3) + 1e-4)
    assert [row.advantage for row in rows] == pytest.approx([one, -one, -one, one])


class TwoProcesses:
    """Both sides of two processes at once, each in a thread of its own."""

    def __init__(self):
        self.barrier, self.box = threading.Barrier(2), {}

    def of(self, process):
        def gather(tensor):
            self.box[process] = tensor
            self.barrier.wait(20)
            together = torch.cat([self.box[0], self.box[1]])
            self.barrier.wait(20)
            return together

        def reduce(tensor, reduction):
            return gather(tensor[None]).sum(0)

        return SimpleNamespace(process_index=process, device="cpu", gather=gather, reduce=reduce)


def test_what_only_fills_a_process_up_is_told_nowhere(monkeypatch):
    """The first process has two groups to replace, the second one: it samples two, and the fourth counts nowhere."""
    monkeypatch.setattr("rl.metrics.gather_object", lambda names: names)
    scripts = (
        Scripted([[[5, END], [5, END]]] * 2, [[[7, END], [5, END]]] * 2),
        Scripted(
            [[[5, END], [5, END]], [[5, END], [7, END]]], [[[7, END], [5, END]], [[7, *[5] * 50], [7, *[5] * 50]]]
        ),
    )
    together = TwoProcesses()
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(rows_of, scripts[p], PROBLEMS, resamples=1, scale_rewards="batch", accelerator=together.of(p))
            for p in (0, 1)
        ]
        (rows, tokens, told), (more_rows, more_tokens, more_told) = (run.result() for run in runs)
    assert all(len(asked) == 2 for script in scripts for asked in script.asked)
    assert {name: told[name] for name in ("resampled_groups", "resampled_tokens", "replaced_groups")} == {
        "resampled_groups": 3, "resampled_tokens": 12, "replaced_groups": 3,
    }  # fmt: skip
    # 8 + 6 completions of two tokens; prompts of 2 and 1 tokens twice on both, and three of the pool's
    assert told["completion_length"] == 2 and told["truncated"] == 0 and tokens == more_tokens
    assert told["reward"] == more_told["reward"] == pytest.approx((7 * 0.3 + 1 + 3 * 1.3) / 14)
    one = 0.35 / (0.35 * math.sqrt(8 / 7) + 1e-4)
    assert [abs(row.advantage) for row in rows + more_rows] == pytest.approx([one] * 8)


# an engine that does not follow


def test_training_stops_on_a_stale_engine(transformers_engine, tiny_path, tmp_path):
    class Deaf:
        syncs = 0

        def __getattr__(self, name):
            return getattr(transformers_engine, name)

        def sync_folded(self, weights):
            self.syncs += 1
            if self.syncs <= 2:
                transformers_engine.sync_folded(weights)

    with pytest.raises(EngineError, match="at step 2"):
        Stage(tiny_path, Deaf()).run(tmp_path)


def test_tokens_per_second_are_of_the_step_alone(monkeypatch):
    """4 tokens in 2 seconds, 100 seconds after the step before ended (the policy was evaluated in between)."""
    now = [1000.0]
    monkeypatch.setattr("rl.metrics.time.perf_counter", lambda: now[0])
    metrics = StepMetrics(ONE_PROCESS, FIRST.names, "group")
    now[0] += 100
    metrics.begin()
    metrics.add("sampled_tokens", 4)
    now[0] += 2
    assert metrics.take(engine_mismatch=0.0, with_kl=False)["tokens_per_second"] == 2.0
