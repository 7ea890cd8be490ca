"""A stage asked on its way: training is the same to the byte, whenever it was killed, and the step that is kept is that
step's policy."""

import json
import random

import numpy as np
import pytest
import tiny
import torch

from models.adapters import adapter_sha256, adapter_tensors
from models.sweep import FILE, Sweep, adapter_at, best_of, go_back_to, read_sweep, undisturbed
from sft.settings import SftSettings
from sft.train import train_sft

ANSWERS = ("7", "6*7=42;42", "12-5=7", "2*9=18", "x=7", "30-11=19")


class Interrupted(Exception):
    """Where a run is killed."""


@pytest.fixture
def imitate(tiny_path, tokenizer):
    """run(folder, ...) -> (policy, lines of sweep.jsonl, step metrics); dropout draws random numbers at every step."""
    prompts, completions = tiny.prompts(tokenizer), [f"<think>\n{answer}\n</think>" for answer in ANSWERS]

    def run(folder, every=2, asked=None, stop_at=None, accuracy=None, **changes):
        """`asked`: called as it is measured, with the step; `stop_at`: killed after this step's metrics; `accuracy`: by
        step, in the place of a number of the policy's."""
        folder.mkdir(exist_ok=True)
        values = {"data": "traces", "steps": 5, "learning_rate": 1e-2, "batch_size": 4, "save_steps": 2,
                  "lr_scheduler_type": "constant", "warmup_ratio": 0.0, "evaluate_every": every}  # fmt: skip
        settings = SftSettings(**values | changes)
        policy = tiny.policy(tiny_path, dropout=0.3)

        def measure(step):
            # as whoever measures might: in eval mode, and drawing from every source
            assert not policy.training
            found = policy(torch.tensor([[1, 2, 3, 4]])).logits[0, -1, 5].item()
            drawn = torch.rand(3), np.random.rand(2), random.random()
            if asked is not None:
                asked(step)
            return {"accuracy": found if accuracy is None else accuracy[step], "drawn": len(drawn)}

        def on_step(step, line):
            if line is not None and step == stop_at:
                raise Interrupted

        sweep = Sweep(policy, folder, settings, measure) if every else None
        train_sft(
            policy, tokenizer, prompts, completions, settings, folder,
            max_length=128, seed=4, report_to="none", on_step=on_step, sweep=sweep,
        )  # fmt: skip
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        metrics = [{k: v for k, v in line.items() if k != "seconds"} for line in metrics]
        return policy, read_sweep(folder), metrics

    return run


def sha256(policy):
    return adapter_sha256(adapter_tensors(policy))


@pytest.fixture
def alone(imitate, tmp_path):
    """(policy, step metrics) of the run that nobody asks."""
    policy, lines, metrics = imitate(tmp_path / "alone", every=None)
    assert lines == [] and not (tmp_path / "alone" / FILE).exists()
    return policy, metrics


def test_asking_does_not_change_training(imitate, alone, tmp_path):
    policy, lines, metrics = imitate(tmp_path / "asked", keep="best")
    assert [line["step"] for line in lines] == [2, 4, 5], "every second, and the last"
    assert len({line["accuracy"] for line in lines}) == 3, "of the policy at that step"
    assert sha256(policy) == sha256(alone[0]) and metrics == alone[1]


@pytest.mark.parametrize(
    "where, step",
    [
        pytest.param("before", 4, marks=pytest.mark.slow),
        ("in", 4),
        pytest.param("in", 5, marks=pytest.mark.slow),
        pytest.param("behind", 4, marks=pytest.mark.slow),
        ("behind", 5),
    ],
)
def test_killed_around_an_evaluation_it_ends_the_same(imitate, alone, tmp_path, step, where):
    """Before it is asked, while it is, and behind it: after the next step, or where the last one is asked again. The
    steps' metrics are told before they are asked, checkpoints are written after it."""
    straight = imitate(tmp_path / "straight", keep="best")[1]

    def interrupted(at):
        if at == step:
            raise Interrupted

    stop = {"before": {"stop_at": step}, "in": {"asked": interrupted}, "behind": {"stop_at": step + 1}}[where]
    if (where, step) != ("behind", 5):
        with pytest.raises(Interrupted):
            imitate(tmp_path / "cut", keep="best", **stop)
    else:
        imitate(tmp_path / "cut", keep="best")
    again = []
    policy, lines, metrics = imitate(tmp_path / "cut", keep="best", asked=again.append)
    assert sha256(policy) == sha256(alone[0]) and metrics == alone[1]
    assert lines == straight, "each step once, with the same numbers"
    done = {"before": step, "in": step, "behind": step + 1}[where]
    assert again == [at for at in (2, 4, 5) if at >= done], "what a checkpoint has behind it is not asked again"


def test_lines_beyond_the_checkpoint_are_written_again(imitate, tmp_path):
    """Asked at every step, saved at every second: killed after 3, it goes on from 2."""
    straight = imitate(tmp_path / "straight", every=1)[1]
    with pytest.raises(Interrupted):
        imitate(tmp_path / "cut", every=1, stop_at=4)
    with (tmp_path / "cut" / FILE).open("a") as file:
        file.write('{"step": 4, "accur')
    assert [line["step"] for line in read_sweep(tmp_path / "cut")] == [1, 2, 3], "the line that was cut off is none"
    again = []
    assert imitate(tmp_path / "cut", every=1, asked=again.append)[1] == straight
    assert again == [3, 4, 5]


def test_going_back_to_a_step_is_the_policy_of_that_step(imitate, alone, tmp_path):
    """A constant rate, so that a stage of two steps is the beginning of one of five."""
    policy, _, _ = imitate(tmp_path / "whole", keep="best", accuracy={2: 0.9, 4: 0.1, 5: 0.2})
    two, _, _ = imitate(tmp_path / "two", every=None, steps=2)
    go_back_to(policy, tmp_path / "whole", 2)
    assert sha256(policy) == sha256(two) != sha256(alone[0])
    # the last one is in memory: nothing is kept that nobody would go back to
    imitate(tmp_path / "last", keep="last")
    assert not adapter_at(tmp_path / "last", 2).exists()


@pytest.mark.parametrize("accuracy, left", [({1: 0.1, 2: 0.6, 3: 0.2, 4: 0.6, 5: 0.3}, [2]),
                                            ({1: 0.5, 2: 0.4, 3: 0.9, 4: 0.1, 5: 0.2}, [3])])  # fmt: skip
def test_only_what_could_still_be_kept_stays(imitate, tmp_path, accuracy, left):
    """Asked at every step, saved at the second and fourth: killed after the third, the best up to the second is there
    for a run that goes on from it, also where the third was better."""
    there = lambda: sorted(int(place.name[5:]) for place in adapter_at(tmp_path / "x", 1).parent.glob("*"))  # noqa: E731
    run = {"folder": tmp_path / "x", "every": 1, "keep": "best", "accuracy": accuracy}
    with pytest.raises(Interrupted):
        imitate(**run, stop_at=4)
    assert there() == sorted({max((1, 2), key=accuracy.get), 3})
    lines = imitate(**run)[1]
    assert there() == left == [best_of(lines)["step"]]


def test_the_best_is_the_earliest_of_equal_ones():
    lines = [{"step": step, "accuracy": value} for step, value in ((10, 0.2), (20, 0.4), (30, 0.4), (35, 0.3))]
    assert best_of(lines)["step"] == best_of(lines[::-1])["step"] == 20


@pytest.mark.parametrize("training", [True, False])
def test_whatever_is_done_inside_nothing_is_left_of_it(tiny_path, training):
    policy = tiny.policy(tiny_path).train(training)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    expected = float(torch.rand(1)), np.random.rand(), random.random()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    with pytest.raises(Interrupted), undisturbed(policy):
        assert not any(module.training for module in policy.modules())
        torch.manual_seed(1), np.random.rand(), random.random()
        raise Interrupted
    assert (float(torch.rand(1)), np.random.rand(), random.random()) == expected
    assert all(module.training == training for module in policy.modules())
