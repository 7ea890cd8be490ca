"""What both trainers share: the probe, complete checkpoints, and a metrics file with each step once."""

import json
import math
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import tiny
import torch
from transformers import TrainingArguments, get_scheduler

from models.adapters import adapter_sha256, adapter_tensors, save_adapter
from models.base import base_sha256
from models.training import (
    RECORD,
    AdapterTrainer,
    MetricsFile,
    PolicyRecord,
    Probe,
    ResumeError,
    last_checkpoint,
    learning_rate_course,
    mean_difference,
)


def test_the_probe_scores_second_halves(tiny_path):
    model = tiny.policy(tiny_path).train()
    probe = Probe.of_prompts([[1, 2, 3, 4, 5], [6], [7, 8]], count=3)
    assert (probe.prompts, probe.completions) == ([[1, 2], [7]], [[3, 4, 5], [8]])
    scored = probe.logprobs(model)
    assert model.training, "as it was"
    exact = tiny.next_token_logprobs(model, [1, 2, 3, 4, 5])
    assert scored[0] == pytest.approx([float(exact[1, 3]), float(exact[2, 4]), float(exact[3, 5])], abs=1e-5)
    model.eval()
    probe.logprobs(model)
    assert not model.training
    assert Probe.of_prompts([list(range(9))] * 9).prompts == [[0, 1, 2, 3]] * 4


def test_the_probe_draws_no_random_numbers(tiny_path):
    model = tiny.policy(tiny_path)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    Probe.of_prompts([list(range(9))]).logprobs(model)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_mean_difference_by_hand():
    assert mean_difference([[-1.0, -2.0], [-3.0]], [[-1.5, -2.0], [-2.0]]) == pytest.approx((0.5 + 0 + 1) / 3)
    assert math.isnan(mean_difference([[math.nan]], [[0.0]]))
    with pytest.raises(ValueError):
        mean_difference([[-1.0]], [[-1.0, -2.0]])


def learning_rates(scheduler, warmup_ratio, steps):
    """Of each step, as shares of the peak."""
    arguments = TrainingArguments(use_cpu=True, **learning_rate_course(scheduler, warmup_ratio, steps))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_scheduler(
        arguments.lr_scheduler_type, optimizer, arguments.get_warmup_steps(steps), num_training_steps=steps
    )
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_is_a_share_of_the_steps_whatever_follows():
    """Half of four steps: 0, 1/2, then the peak. All of four: 0, 1/4, 1/2, 3/4. 0.3 of four is 1.2, so two."""
    for scheduler in ("constant", "constant_with_warmup", "linear", "cosine"):
        assert learning_rates(scheduler, 0.5, 4)[:3] == pytest.approx([0, 0.5, 1.0]), scheduler
        assert learning_rates(scheduler, 1.0, 4) == pytest.approx([0, 0.25, 0.5, 0.75]), scheduler
        assert learning_rates(scheduler, 0.3, 4)[:3] == pytest.approx([0, 0.5, 1.0]), scheduler
        assert learning_rates(scheduler, 0.0, 4)[0] == 1.0, scheduler
    assert learning_rates("constant", 0.25, 4) == pytest.approx([0, 1, 1, 1])
    assert learning_rates("linear", 0.5, 4) == pytest.approx([0, 0.5, 1.0, 0.5])


def test_the_last_complete_checkpoint(tmp_path):
    assert last_checkpoint(tmp_path / "none") is None
    for step in (2, 10, 9, 30):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step != 30:
            (tmp_path / f"checkpoint-{step}" / RECORD).write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10", "by number, and the cut off one passed over"


class Resuming(AdapterTrainer):
    """What resumes a policy, without the rest of a trainer."""

    def __init__(self, model, probe):
        self.model, self.probe = model, probe

    def _policy(self):
        return self.model


@pytest.mark.parametrize("dtype, allowed", [("float32", 1e-3), ("bfloat16", 0.05)])
def test_a_resumed_policy_computes_what_it_did_within_rounding_and_no_more(tiny_path, tmp_path, dtype, allowed):
    """Each token is off by as much, up and down in turn: 0.8 of what is allowed passes, 1.2 does not."""
    model, probe = tiny.policy(tiny_path, dtype=dtype), Probe.of_prompts([list(range(20))] * 3)
    save_adapter(model, tmp_path)
    exact = probe.logprobs(model)
    for off, passes in ((0.0, True), (0.8 * allowed, True), (1.2 * allowed, False)):
        moved = [[value + off * (-1) ** t for t, value in enumerate(row)] for row in exact]
        record = PolicyRecord(3, adapter_sha256(adapter_tensors(model)), base_sha256(model), moved)
        (tmp_path / RECORD).write_text(json.dumps(asdict(record)))
        if passes:
            Resuming(model, probe)._load_from_checkpoint(str(tmp_path))
            continue
        with pytest.raises(ResumeError, match="log-probabilities differ from the saved ones"):
            Resuming(model, probe)._load_from_checkpoint(str(tmp_path))


# metrics.jsonl


def state(step, first=True):
    return SimpleNamespace(global_step=step, is_world_process_zero=first)


def lines(path):
    """Without the seconds."""
    read = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(line.pop("seconds", 0.0) >= 0 for line in read)
    return read


def test_a_line_a_step_under_our_names(tmp_path):
    path, heard = tmp_path / "metrics.jsonl", []
    file = MetricsFile(path, {"their/loss": "loss"}, {"beta": 0.1}, lambda step, line: heard.append((step, line)))
    file.on_train_begin(None, state(0), None)
    file.on_log(None, state(1), None, logs={"their/loss": 1.5, "reward": 2.0, "epoch": 0.1})
    file.on_log(None, state(2), None, logs={"train_runtime": 3.0})
    file.on_log(None, state(2, first=False), None, logs={"reward": 2.0})
    assert lines(path) == [{"step": 1, "loss": 1.5, "reward": 2.0, "beta": 0.1}]
    assert [step for step, _ in heard] == [0, 1] and heard[0][1] is None and heard[1][1]["loss"] == 1.5


def test_seconds_are_the_steps_own(tmp_path, monkeypatch):
    """The first step takes 2; then the policy is evaluated for 100, and the second takes 3."""
    now = [1000.0]
    monkeypatch.setattr("models.training.time.perf_counter", lambda: now[0])
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, {})
    file.on_train_begin(None, state(0), None)
    for step, before, own in ((1, 0.0, 2.0), (2, 100.0, 3.0)):
        now[0] += before
        file.on_step_begin(None, state(step - 1), None)
        now[0] += own
        file.on_log(None, state(step), None, logs={"loss": 1.0})
    assert [json.loads(line)["seconds"] for line in path.read_text().splitlines()] == [2.0, 3.0]


def test_a_resume_drops_what_comes_after_and_what_was_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    MetricsFile(path, {}).on_train_begin(None, state(2), None)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    MetricsFile(path, {}).on_train_begin(None, state(0), None)
    assert path.read_text() == ""


def test_only_the_first_process_touches_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    MetricsFile(path, {}).on_train_begin(None, state(1, first=False), None)
    assert len(lines(path)) == 2


def test_what_is_no_number_is_left_out(tmp_path):
    """TRL gives None for a mean over nothing (a step in which no completion could be graded)."""
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, {})
    file.on_train_begin(None, state(0), None)
    file.on_log(None, state(1), None, logs={"reward": None, "kl": math.nan, "grad_norm": math.inf, "loss": 1.0})
    assert lines(path) == [{"step": 1, "loss": 1.0}]
