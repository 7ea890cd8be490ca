"""A GRPO stage on the real stack: it learns, resumes to the byte, refuses what is not its own, and stops on NaN."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from tiny_grpo import Interrupted, Stage, even_unless_easy, metrics, problems

from models.adapters import REFERENCE, adapter_tensors, save_adapter
from models.base import base_sha256
from models.engines.protocol import EngineError
from models.reference import Reference
from models.training import RECORD, ResumeError, TrainingError
from rl.trainer import PolicyTrainer

REFERENCES = ["start", "base", "imitate"]


@pytest.fixture(scope="module")
def stage(tiny_path, vllm_engine):
    """stage(**changes) -> a Stage on the process's vLLM engine."""
    return lambda **changes: Stage(tiny_path, vllm_engine, **changes)


@pytest.fixture(scope="module")
def straight(stage, tmp_path_factory):
    """Uninterrupted runs of six steps, one per reference, made once."""
    runs = {}

    def run(reference="start"):
        if reference not in runs:
            runs[reference] = stage(reference=reference).run(tmp_path_factory.mktemp(f"straight-{reference}"))
        return runs[reference]

    return run


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


# learning


def test_an_easy_reward_rises(stage, tmp_path):
    settings = {"steps": 12, "learning_rate": 5e-2, "prompts_per_step": 4, "group_size": 8}
    lines = stage(beta=0.0, settings=settings).run(tmp_path).metrics
    rewards = [line["reward"] for line in lines]
    # half of all tokens are even, so a random policy has 0.5; 32 completions of about 10 tokens: sigma 0.03
    assert abs(sum(rewards[:2]) / 2 - 0.5) < 0.1
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1, rewards


def test_every_step_is_told_once_with_all_its_numbers(straight):
    run = straight("start")
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4, 5, 6] == run.steps_seen
    wanted = {
        "loss", "reward", "kl", "beta", "entropy", "completion_length", "truncated", "zero_variance_groups",
        "tokens_per_second", "rewards/even", "learning_rate", "seconds", "grad_norm", "clipped", "engine_mismatch",
        "engine_kl", "useful_samples", "replaced_groups", "seconds/sync", "seconds/rollout",
    }  # fmt: skip
    for line in run.metrics:
        assert not wanted - line.keys()
        assert all(value is None or math.isfinite(value) for value in line.values())
        assert line["beta"] == 0.05 and 0 < line["entropy"] < math.log(tiny.VOCABULARY)
        assert line["rewards/even"] == pytest.approx(line["reward"])
        assert line["engine_mismatch"] < 1e-4 and abs(line["engine_kl"]) < 1e-5
        assert 1 <= line["completion_length"] <= 12
    assert [line["num_tokens"] for line in run.metrics] == sorted({line["num_tokens"] for line in run.metrics})


def test_the_base_is_the_same_at_the_end(straight, tiny_path):
    run = straight("start")
    assert base_sha256(run.model) == run.outcome.base_sha256 == base_sha256(tiny.policy(tiny_path))
    assert run.sha256 != "" and run.outcome.engine_mismatch < 1e-4


@pytest.mark.parametrize("reference", REFERENCES)
def test_kl_is_to_what_the_recipe_names(straight, reference):
    """At the first step the policy is the stage's start: KL to it is exactly 0, to another reference it is not."""
    kl = [line["kl"] for line in straight(reference).metrics]
    assert (kl[0] == 0.0) == (reference == "start")
    assert all(value > 0 for value in kl[1:])


def test_bfloat16_arithmetic_rounds_and_nothing_more(stage, straight, tmp_path):
    """A bfloat16 has 8 significant bits, so a log-probability of a few nats is off by a hundredth or so; the start is
    still its own reference exactly, and the adapter keeps all of float32's bits."""
    run, exact = stage(dtype="bfloat16", settings={"steps": 2}).run(tmp_path), straight("start")
    assert 1e-4 < run.metrics[0]["engine_mismatch"] < 0.1 and run.metrics[0]["engine_kl"] < 1e-2
    assert run.metrics[0]["kl"] == 0.0 and run.metrics[1]["kl"] > 0
    assert run.model.get_input_embeddings().weight.dtype == torch.bfloat16
    tensors = adapter_tensors(run.model)
    assert all(x.dtype == torch.float32 and not torch.equal(x, x.bfloat16().float()) for x in tensors.values())
    # the same rollouts but for a rare token that falls the other way
    assert run.metrics[0]["grad_norm"] == pytest.approx(exact.metrics[0]["grad_norm"], rel=0.25)


def test_without_a_penalty_no_reference_is_needed(stage, tmp_path):
    run = stage(beta=0.0, reference="base", settings={"steps": 2}).run(tmp_path)
    assert REFERENCE not in run.model.peft_config
    assert [line["seconds/reference"] for line in run.metrics] == [0.0, 0.0]


@pytest.mark.slow
def test_a_penalty_holds_the_policy_back(stage, tmp_path):
    settings = {"steps": 10, "learning_rate": 3e-3, "prompts_per_step": 6, "group_size": 16}
    free = stage(beta=1e-6, settings=settings).run(tmp_path / "free").metrics
    held = stage(beta=10.0, settings=settings).run(tmp_path / "held").metrics
    assert sum(line["kl"] for line in held[-3:]) < 0.4 * sum(line["kl"] for line in free[-3:])


def test_the_reference_has_no_dropout(stage, tmp_path):
    """The policy is trained with dropout, so that it is away from its own start at once; that is not an error."""
    (first, *_) = stage(dropout=0.3, settings={"steps": 1}).run(tmp_path).metrics
    assert first["kl"] > 1e-3 and first["engine_mismatch"] < 1e-4


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_start_that_is_another_policy_is_found_before_the_first_step(stage, tiny_path, tmp_path, dropout):
    class Mistaken(Stage):
        def _reference(self, model):
            return Reference("start", adapter_tensors(tiny.policy(tiny_path, seed=5)))

    mistaken = Mistaken(tiny_path, stage().engine, dropout=dropout)
    with pytest.raises(TrainingError, match=r"KL to the stage's own start is .* before the first step; it must be 0"):
        mistaken.run(tmp_path)
    assert metrics(tmp_path) == []


# batches


def test_no_pass_is_made_for_rows_that_teach_nothing(stage, tmp_path, monkeypatch):
    """Two rows of the longest kind at once. All 24 rows learn, then four of six groups do not, then none does."""
    passes, compute = [], PolicyTrainer._compute_loss

    def counted(self, model, inputs):
        passes.append(int(inputs["completion_mask"].any(dim=1).sum()))
        return compute(self, model, inputs)

    monkeypatch.setattr(PolicyTrainer, "_compute_loss", counted)
    counts = {}
    for easy in (0, 4, 6):
        settings = {"steps": 1, "prompts_per_step": 6, "micro_batch_size": 2}
        stage(reward=even_unless_easy, easy=easy, settings=settings).run(tmp_path / str(easy))
        counts[easy] = list(passes)
        passes.clear()
    assert [sum(rows) for rows in counts.values()] == [24, 8, 0]
    assert len(counts[0]) <= 12 and len(counts[4]) <= 4 and counts[6] == [0]


@pytest.mark.parametrize(
    ("loss_type", "reference"),
    [("dapo", "start"), ("dapo", "base"), ("grpo", "base"), ("bnpo", "base"), ("dr_grpo", "base")],
)
def test_the_step_does_not_depend_on_micro_batches(stage, tmp_path, loss_type, reference):
    """The same rollouts, one pass or several, twice: the second time at other weights, where ratios are clipped. Loss,
    gradient's norm, KL and share of clipped tokens are the same within rounding."""
    found, settings = (
        {},
        {"steps": 2, "num_iterations": 2, "loss_type": loss_type, "epsilon": 1e-3, "epsilon_high": 1e-3},
    )
    for micro in (None, 1):
        run = stage(reference=reference, settings=settings | {"micro_batch_size": micro}).run(tmp_path / str(micro))
        found[micro] = run.metrics
    assert found[None][0]["grad_norm"] > 0
    for name in ("grad_norm", "loss", "kl", "reward", "entropy", "completion_length"):
        assert found[1][0][name] == pytest.approx(found[None][0][name], rel=1e-4, abs=1e-6), name
    first, second = ([step["clipped"] for step in found[micro]] for micro in (None, 1))
    assert first[0] == second[0] == 0.0 and first[1] > 0.1 and second[1] == pytest.approx(first[1], abs=0.02)


def test_activations_computed_again_are_the_same(stage, tmp_path):
    """Gradient checkpointing changes memory and time alone: the same adapter, to the byte."""
    settings = {"steps": 2, "gradient_checkpointing": True}
    again = stage(settings=settings).run(tmp_path / "again")
    assert again.model.get_base_model().is_gradient_checkpointing
    assert again.sha256 == stage(settings={"steps": 2}).run(tmp_path / "kept").sha256


def test_completions_that_are_cut_off_do_not_count(stage, tmp_path):
    """A completion ends early with probability about 0.05 a token, so most of 8 are cut off at 7 tokens."""
    settings = {"steps": 1, "max_completion_tokens": 7}
    kept = stage(settings=settings).run(tmp_path / "kept").metrics[0]
    masked = stage(settings=settings | {"mask_truncated_completions": True}).run(tmp_path / "masked").metrics[0]
    assert masked["truncated"] == kept["truncated"] > 0.4
    assert masked["useful_samples"] == round(8 * (1 - masked["truncated"]))
    assert kept["useful_samples"] == 8


def test_groups_that_are_all_equal_teach_nothing(stage, tmp_path):
    """All problems are easy: no variance, no gradient, no crash, and every group counted."""
    start = tiny.policy(stage().checkpoint)
    run = stage(reward=even_unless_easy, easy=6, reference="base", settings={"steps": 3}).run(tmp_path)
    assert [line["zero_variance_groups"] for line in run.metrics] == [1.0, 1.0, 1.0]
    assert [line["grad_norm"] for line in run.metrics] == [0.0, 0.0, 0.0]
    assert [line["useful_samples"] for line in run.metrics] == [0, 0, 0]
    ids = list(range(40, 60))
    assert tiny.next_token_logprobs(run.model, ids).equal(tiny.next_token_logprobs(start, ids))


def test_their_kl_gradient_is_kept_where_the_recipe_says_so(stage, tmp_path):
    changes = {"reward": even_unless_easy, "easy": 6, "reference": "base", "settings": {"steps": 1}}
    run = stage(mask_zero_variance_kl=False, **changes).run(tmp_path)
    assert run.metrics[0]["grad_norm"] > 0 and run.metrics[0]["zero_variance_groups"] == 1.0


def test_an_ungradable_completion_is_left_out_of_its_group(stage, tmp_path):
    """One of four has no reward, the others are equal: no variance. Were it a 0, its group would have some."""

    def first_ungradable(prompts, completions, completion_ids, **columns):
        return [None if i % 4 == 0 else 1.0 for i in range(len(prompts))]

    run = stage(reward=first_ungradable, settings={"steps": 1}).run(tmp_path)
    assert run.metrics[0]["zero_variance_groups"] == 1.0 and run.metrics[0]["grad_norm"] == 0.0


def test_a_step_without_any_reward_goes_by(stage, tmp_path):
    run = stage(reward=lambda prompts, **columns: [None] * len(prompts), settings={"steps": 2}).run(tmp_path)
    assert [line["step"] for line in run.metrics] == [1, 2]
    assert "reward" not in run.metrics[0] or run.metrics[0]["reward"] is not None


# dynamic sampling


def test_dynamic_sampling_replaces_what_teaches_nothing(stage, tmp_path):
    """Two of three problems are easy. Without: two thirds of the groups are wasted. With: few are left."""
    changes = {"reward": even_unless_easy, "count": 24, "easy": 16}
    settings = {"steps": 3, "prompts_per_step": 6}
    without = stage(**changes, settings=settings).run(tmp_path / "without").metrics
    with_it = stage(**changes, settings=settings, max_resamples=4).run(tmp_path / "with").metrics
    assert all(line["replaced_groups"] == line["resampled_tokens"] == 0 for line in without)
    assert without[0]["zero_variance_groups"] == with_it[0]["zero_variance_groups"] > 0, "counted before replacement"
    zero, replaced, left = (with_it[0][key] for key in ("zero_variance_groups", "replaced_groups", "masked_groups"))
    assert replaced > 0 and left == pytest.approx(zero - replaced / 6)
    assert sum(line["useful_samples"] for line in with_it) > 1.5 * sum(line["useful_samples"] for line in without)


def test_dynamic_sampling_is_bounded(stage, tmp_path):
    """Nothing can be found where all are easy: it stops after as many rounds as the recipe allows."""
    calls = []

    def counted(prompts, **columns):
        calls.append(len(prompts))
        return [1.0] * len(prompts)

    run = stage(reward=counted, settings={"steps": 1}, max_resamples=3).run(tmp_path)
    assert calls == [8, 8, 8, 8] and run.metrics[0]["replaced_groups"] == 0
    # and the cost is told: three rounds of two groups, each completion at least one token long
    assert run.metrics[0]["resampled_groups"] == 6 and run.metrics[0]["resampled_tokens"] >= 24


# resuming


@pytest.mark.parametrize("reference", REFERENCES)
def test_resumed_is_the_same_to_the_byte(stage, straight, tmp_path, reference):
    """Stopped after step 5, resumed from the checkpoint of step 4. Six problems, two a step: the data goes round."""
    whole = straight(reference)
    with pytest.raises(Interrupted):
        stage(reference=reference).run(tmp_path, stop_at=5)
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    resumed = stage(reference=reference).run(tmp_path)
    assert resumed.steps_seen == [5, 6]
    assert resumed.sha256 == whole.sha256
    assert [line["step"] for line in resumed.metrics] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "reward", "kl", "entropy", "grad_norm", "num_tokens", "completion_length"):
        assert [line[name] for line in resumed.metrics] == [line[name] for line in whole.metrics], name


@pytest.mark.parametrize(
    "changes, stop_at",
    [
        ({"settings": {"num_iterations": 2, "save_steps": 1}}, 4),
        ({"max_resamples": 2, "reward": even_unless_easy, "easy": 4}, 3),
        ({"settings": {"micro_batch_size": 4, "save_steps": 1, "lr_scheduler_type": "cosine"}}, 2),
        ({"count": 5}, 5),
        ({"dtype": "bfloat16"}, 3),
        # stopped before the last step, in the middle of the random numbers
        ({"dropout": 0.3, "beta": 0.0, "settings": {"steps": 4}}, 3),
    ],
    ids=[
        "in the middle of two iterations",
        "dynamic sampling",
        "accumulation and schedule",
        "a rest each round",
        "bfloat16",
        "dropout",
    ],
)
def test_resume_is_exact_with(stage, tmp_path, changes, stop_at):
    whole = stage(**changes).run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        stage(**changes).run(tmp_path / "cut", stop_at=stop_at)
    resumed = stage(**changes).run(tmp_path / "cut")
    assert resumed.steps_seen[0] <= stop_at and resumed.sha256 == whole.sha256


@pytest.mark.parametrize("steps", [5, 6])
def test_stopped_after_the_last_step_trains_no_further(stage, tmp_path, steps):
    """Killed while the stage is evaluated: training is over, and its policy is the last checkpoint's.

    transformers itself takes one step more where the last one is in the middle of a round through the data (5 of 6).
    """
    first = stage(settings={"steps": steps}).run(tmp_path)
    again = stage(settings={"steps": steps}).run(tmp_path)
    assert again.steps_seen == [] and again.sha256 == first.sha256
    assert again.outcome == first.outcome and again.outcome.engine_mismatch == again.metrics[-1]["engine_mismatch"]
    assert [line["step"] for line in again.metrics] == list(range(1, steps + 1))


def test_a_checkpoint_cut_off_while_it_was_written_is_passed_over(stage, straight, tmp_path):
    with pytest.raises(Interrupted):
        stage().run(tmp_path, stop_at=5)
    (tmp_path / "checkpoints" / "checkpoint-4" / RECORD).unlink()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "rew')
    resumed = stage().run(tmp_path)
    assert resumed.steps_seen == [3, 4, 5, 6] and resumed.sha256 == straight("start").sha256
    assert [line["step"] for line in resumed.metrics] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_holds_no_base(straight):
    files = {path.name for path in (straight("base").folder / "checkpoints" / "checkpoint-6").iterdir()}
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", RECORD} <= files
    assert not {"model.safetensors", "pytorch_model.bin"} & files


@pytest.fixture
def stopped(stage, tmp_path):
    """(stage, folder, newest checkpoint) of a run that was stopped."""
    with pytest.raises(Interrupted):
        stage().run(tmp_path, stop_at=3)
    return stage(), tmp_path, tmp_path / "checkpoints" / "checkpoint-2"


def test_another_policys_adapter_in_the_checkpoint_is_refused(stopped, tiny_path):
    stage, folder, checkpoint = stopped
    save_adapter(tiny.policy(tiny_path, seed=77), checkpoint)
    with pytest.raises(ResumeError, match="the adapter is not the one that was saved"):
        stage.run(folder)


def test_another_base_under_the_checkpoint_is_refused(stopped, tiny_path, tmp_path):
    stage, folder, _ = stopped
    stage.checkpoint = tiny.write_checkpoint(tmp_path / "other", seed=8)
    with pytest.raises((ResumeError, EngineError), match="base is not the one"):
        stage.run(folder)


def test_a_policy_that_computes_something_else_is_refused(stopped):
    stage, folder, checkpoint = stopped
    record = json.loads((checkpoint / RECORD).read_text())
    record["probe_logprobs"][0][0] -= 5.0
    (checkpoint / RECORD).write_text(json.dumps(record))
    with pytest.raises(ResumeError, match="log-probabilities differ"):
        stage.run(folder)


def test_a_cut_adapter_in_the_checkpoint_is_one_line(stopped):
    stage, folder, checkpoint = stopped
    path = checkpoint / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(Exception, match="not a readable adapter") as caught:
        stage.run(folder)
    assert caught.value.user_message


# bad ends


@pytest.mark.parametrize("what", ["the loss is nan", "the loss is 1e+05", "the gradient's norm is nan"])
def test_what_has_diverged_stops_and_keeps_the_last_checkpoint(stage, tmp_path, monkeypatch, what):
    compute = PolicyTrainer._compute_loss

    def broken_at_the_fourth(self, model, inputs):
        loss = compute(self, model, inputs)
        if self.state.global_step < 3:
            return loss
        if what.startswith("the loss"):
            return loss * 0 + float(what.split()[-1])
        # sqrt has no derivative at 0: the loss stays as it is, its gradient does not
        return loss + (loss * 0).sqrt()

    monkeypatch.setattr(PolicyTrainer, "_compute_loss", broken_at_the_fourth)
    with pytest.raises(TrainingError) as caught:
        stage().run(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{what} at step 4: training stopped; the last good checkpoint is")
    assert "checkpoint-2" in message and "learning_rate" in message and "\n" not in message
    assert checkpoints(tmp_path) == ["checkpoint-2"]
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3]


def test_a_learning_rate_that_blows_the_policy_up_is_not_blamed_on_the_engine(stage, tmp_path):
    with pytest.raises(TrainingError, match=r"diverged|training stopped"):
        stage(wild={"learning_rate": 1e30}).run(tmp_path)


def test_too_few_problems_are_said_so(stage, tmp_path):
    with pytest.raises(TrainingError, match="prompts_per_step is 8, but there are only 6"):
        stage(settings={"prompts_per_step": 8}).run(tmp_path)


def test_the_transformers_engine_trains_too(tiny_path, transformers_engine, tmp_path):
    run = Stage(tiny_path, transformers_engine, settings={"steps": 3}).run(tmp_path / "whole")
    assert run.metrics[0]["kl"] == 0.0 and run.metrics[-1]["engine_mismatch"] < 1e-4
    with pytest.raises(Interrupted):
        Stage(tiny_path, transformers_engine, settings={"steps": 3}).run(tmp_path / "cut", stop_at=3)
    assert Stage(tiny_path, transformers_engine, settings={"steps": 3}).run(tmp_path / "cut").sha256 == run.sha256


# killed for good

PROCESS = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
from models.engines.start import Capacity, start_engine
from models.settings import Serving
from tiny_grpo import Stage
checkpoint = Path({checkpoint!r})
engine = start_engine(str(checkpoint), Serving(), Capacity(max_model_len=192, max_num_seqs=64))
stage = Stage(checkpoint, engine, reference={reference!r})
for folder, kill_at in {runs!r}:
    print("sha256", stage.run(Path(folder), kill_at=kill_at).sha256, flush=True)
"""


def process(checkpoint, reference, runs):
    code = PROCESS.format(
        tests=str(Path(tiny.__file__).parent), checkpoint=str(checkpoint), reference=reference, runs=runs
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=400)
    return done, [line.split()[1] for line in done.stdout.splitlines() if line.startswith("sha256")]


@pytest.mark.parametrize(
    "reference",
    # in a process of this one's, and end to end in a new one, it is tested by default
    [pytest.param(name, marks=pytest.mark.slow) for name in ("start", "base", "imitate")],
)
def test_killed_and_resumed_in_a_new_process_is_the_same_to_the_byte(tiny_path, tmp_path, reference):
    """SIGKILL after step 5. The new process ends with the adapter of the uninterrupted run."""
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    done, first = process(tiny_path, reference, [(whole, None), (cut, 5)])
    assert done.returncode == -9, done.stderr[-3000:]
    assert len(first) == 1 and len(metrics(tmp_path / "cut")) == 5
    shutil.rmtree(tmp_path / "whole")
    done, second = process(tiny_path, reference, [(cut, None)])
    assert done.returncode == 0, done.stderr[-3000:]
    assert second == first
    assert [line["step"] for line in metrics(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6]


def test_problems_differ():
    assert len({problem.question for problem in problems(24)}) == 24
