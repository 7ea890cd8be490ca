"""The benchmark of minutes: what it starts from, which settings stock TRL gets, and where stock TRL starts."""

import json
import math
from dataclasses import asdict, replace

import pytest
import tiny
import tiny_grpo
import torch

from benchmarks.grpo_cases import CASES, Setting, Start, stock_settings
from benchmarks.grpo_task import Task
from benchmarks.grpo_worker import check_stock_start, stock_trainer
from benchmarks.minutes import check_one_recipe, chosen, our_setting, start_of
from models.adapters import adapter_tensors
from models.base import load_tokenizer
from models.training import TrainingError
from orchestra.config.faults import UserError
from orchestra.config.loading import load_recipe
from orchestra.run.ledger import Fingerprint, Ledger, LedgerEntry, StageResult
from rewards.scoring import RewardSet
from rl.settings import GrpoSettings, Rollouts
from rl.trainer import TRL_REFERENCE

# a run


def write_run(folder, *, finished=True, sets=("seed=1",)):
    """What a run of the shipped recipe leaves, as far as the benchmark reads it."""
    folder.mkdir(parents=True)
    recipe = load_recipe("40d", "embedded", sets)
    about = {"set": list(sets), "recipe": recipe.model_dump(mode="json")}
    (folder / "run.json").write_text(json.dumps(about))
    if finished:
        nothing = Fingerprint({}, {}, {})
        Ledger(folder).record(LedgerEntry("02-imitate", nothing, {}, StageResult("imitate", "sft")))
    return recipe


def test_a_start_follows_the_runs_own_recipe(tmp_path):
    """30 + 30 + 20 steps, cut at 48, of which every sixth is kept: 8; the first grpo stage's batch and length."""
    sets = ("seed=1", "rollouts.group_size=4", "stages.explore.prompts_per_step=6", "rollouts.max_completion_tokens=80")
    write_run(tmp_path / "run", sets=sets)
    start = start_of(tmp_path / "run", "seed-1", sets, None, None)
    assert (start.sft, start.stage, start.batch, start.max_completion_tokens) == ("imitate", "explore", 24, 80)
    assert (start.steps, start.every) == (48, 6)
    start = start_of(tmp_path / "run", "seed-1", sets, 7, 3)
    assert [step for step in range(1, 8) if start.keeps(step)] == [3, 6, 7]
    assert our_setting(start, cuda=False) == Setting("ours", False, None, "nf4", "folded")
    assert [setting.micro for setting in stock_settings(start, False, "nf4")] == [8, 8, 24, 24]


def test_fewer_steps_than_the_limit_are_the_recipes(tmp_path):
    sets = [f"stages.{name}.steps=3" for name in ("explore", "consolidate", "polish")]
    write_run(tmp_path / "run", sets=sets)
    start = start_of(tmp_path / "run", "seed-1", sets, None, None)
    assert (start.steps, start.every) == (9, 2)


def test_a_run_that_is_not_the_one_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no run; run `python -m benchmarks.recipe_seeds`"):
        start_of(tmp_path / "none", "seed-1", ["seed=1"], None, None)
    write_run(tmp_path / "begun", finished=False)
    with pytest.raises(UserError, match="'imitate' is not finished"):
        start_of(tmp_path / "begun", "seed-1", ["seed=1"], None, None)
    write_run(tmp_path / "other", sets=("seed=1", "rollouts.group_size=4"))
    with pytest.raises(UserError, match=r"made with --set seed=1 --set rollouts\.group_size=4, not --set seed=1;"):
        start_of(tmp_path / "other", "seed-1", ["seed=1"], None, None)


def test_seeds_are_of_one_recipe(tmp_path):
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    write_run(one)
    write_run(two, sets=("seed=2",))
    write_run(other, sets=("seed=3", "stages.explore.learning_rate=1e-3"))
    check_one_recipe([one, two])
    with pytest.raises(UserError, match="different recipes"):
        check_one_recipe([one, two, other])


# stock TRL's settings


def test_stock_keeps_to_the_base_that_its_policy_was_trained_on():
    assert {setting.quantize for setting in stock_settings(CASES["25m"], False, "nf4")} == {"nf4"}
    assert {setting.quantize for setting in stock_settings(CASES["25m"], False)} == {"nf4", "none"}
    for base in ("nf4", "none"):
        assert {setting.quantize for setting in stock_settings(CASES["25m"], True, base)} == {base}


def test_stocks_passes_divide_its_batch(tmp_path):
    """120 completions: 8 divide them, of up to 64 the most that do are 60."""
    start = Start("seed-1", "runs/x", "imitate", "explore", 120, 96, 48, 6)
    assert [setting.micro for setting in stock_settings(start, False, "nf4")] == [8, 8, 60, 60]


def test_another_arithmetic_must_be_clearly_faster():
    """5.0 s in the recipe's float32: 4.8 in bfloat16 is a tie (4.8 x 1.05 = 5.04), 4.7 is not (4.935)."""
    own, other, slow = Setting("stock", False, 64), Setting("stock", True, 64), Setting("stock", False, 8)
    assert chosen({own: 5.0, other: 4.8, slow: 9.0}, bf16=False) == own
    assert chosen({own: 5.0, other: 4.7, slow: 9.0}, bf16=False) == other
    assert chosen({own: 5.0, other: 4.8, slow: 9.0}, bf16=True) == other


# where stock TRL starts


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny"))


def task(checkpoint, **settings):
    tokenizer = load_tokenizer(str(checkpoint))
    rollouts = Rollouts(
        group_size=4, prompts_per_step=2, max_completion_tokens=12, temperature=0.7, top_p=0.9,
    )  # fmt: skip
    defaults = {"steps": 2, "learning_rate": 2e-2, "mask_truncated_completions": False}
    return Task(
        tiny.policy(checkpoint),
        tokenizer,
        tiny_grpo.asked(tokenizer, tiny_grpo.problems()),
        RewardSet([tiny_grpo.even], ["even"], [0.5]),
        GrpoSettings(**defaults | settings),
        rollouts,
        seed=3,
        served=lambda: pytest.fail("stock TRL has no engine of ours"),
        keep=lambda step: None,
    )


def test_stock_gets_the_same_settings(checkpoint, tmp_path):
    """None of them is TRL's default, and none is another's value. A tenth of 5 steps of warm-up is one step."""
    given = {
        "steps": 5, "learning_rate": 3e-3, "weight_decay": 0.013, "max_grad_norm": 0.7, "beta": 0.05, "epsilon": 0.11,
        "epsilon_high": 0.33, "num_iterations": 2, "loss_type": "bnpo", "scale_rewards": "batch",
        "mask_truncated_completions": True, "lr_scheduler_type": "linear",
    }  # fmt: skip
    args = stock_trainer(task(checkpoint, **given, warmup_ratio=0.1), Setting("stock", False, 4), tmp_path).args
    given["max_steps"] = given.pop("steps")
    told = {name: getattr(args, name) for name in given}
    assert told == given
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (4, 2)
    assert (args.num_generations, args.max_completion_length, args.temperature, args.top_p) == (4, 12, 0.7, 0.9)
    assert (args.warmup_steps, args.reward_weights, args.seed, args.data_seed, args.bf16) == (1, [0.5], 3, 3, False)


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_stock_trains_the_policy_it_was_given_and_pulls_to_it(checkpoint, tmp_path, beta):
    """Rounded to bfloat16, in which TRL then trains it. With a penalty its copy of the start is the reference, stays
    that, and the KL of the first step is what rounding the policy costs; without one there is no reference."""
    own = task(checkpoint, beta=beta)
    start = adapter_tensors(own.policy)
    trainer = stock_trainer(own, Setting("stock", False, 8), tmp_path)
    assert {tensor.dtype for tensor in adapter_tensors(own.policy).values()} == {torch.bfloat16}
    assert (TRL_REFERENCE in own.policy.peft_config) == (beta > 0)
    trainer.train()
    end = adapter_tensors(own.policy)
    assert any(not torch.equal(end[name].float(), start[name].to(torch.bfloat16).float()) for name in start)
    if beta:
        reference = adapter_tensors(own.policy, TRL_REFERENCE)
        assert all(torch.equal(reference[name], start[name].to(reference[name].dtype)) for name in start)
        first, second = (line["kl"] for line in trainer.state.log_history if "kl" in line)
        assert 0 <= first < 0.05 * second and math.isfinite(second)


@pytest.mark.parametrize("adapter", ["default", TRL_REFERENCE])
def test_another_policy_or_reference_is_noticed(checkpoint, tmp_path, adapter):
    own = task(checkpoint, beta=0.05)
    start = adapter_tensors(own.policy)
    stock_trainer(own, Setting("stock", False, 8), tmp_path)
    check_stock_start(own.policy, start, beta=0.05)
    tiny.nudge(own.policy, 0.1, adapter=adapter)
    with pytest.raises(TrainingError, match=f"adapter '{adapter}' is not the policy"):
        check_stock_start(own.policy, start, beta=0.05)


def test_a_job_survives_its_way_to_the_worker():
    start = Start("seed-1", "runs/x", "imitate", "explore", 256, 96, 48, 6)
    assert Start(**json.loads(json.dumps(asdict(start)))) == start
    assert replace(start, steps=6, every=10).keeps(6)
