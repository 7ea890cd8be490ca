"""SFT: the loss is on completion tokens only, falls, does not depend on micro-batches, and resumes to the byte."""

import json

import pytest
import tiny
import torch

from models.adapters import adapter_sha256, adapter_tensors
from models.base import base_sha256
from models.training import TrainingError
from sft.settings import SftSettings
from sft.train import IGNORED, _example, last_own_rows, train_sft

ANSWERS = ("7", "6*7=42;42", "12-5=7", "2*9=18", "x=7", "30-11=19")


class Interrupted(Exception):
    """Between two steps."""


@pytest.fixture(scope="module")
def rows(tokenizer):
    """(prompts, completions)"""
    return tiny.prompts(tokenizer), [f"<think>\n{answer}\n</think>\n\\boxed{{{answer[-1]}}}" for answer in ANSWERS]


@pytest.fixture
def imitate(tiny_path, tokenizer, rows):
    def run(folder, stop_at=None, rows=rows, dtype="float32", max_length=128, wild=None, dropout=0.0, **changes):
        folder.mkdir(exist_ok=True)
        values = {"data": "traces", "steps": 6, "learning_rate": 1e-2, "batch_size": 6, "save_steps": 2}
        settings = SftSettings(**values | changes).model_copy(update=wild)

        def on_step(step, line):
            if line is not None and step == stop_at:
                raise Interrupted

        model = tiny.policy(tiny_path, dtype=dtype, dropout=dropout)
        outcome = train_sft(
            model, tokenizer, *rows, settings, folder, max_length=max_length, seed=4, report_to="none", on_step=on_step
        )
        return model, outcome, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    return run


def loss_by_hand(model, tokenizer, rows):
    """Mean negative log-probability of all completion tokens with their end token, each row alone."""
    total, count = 0.0, 0
    for prompt, completion in zip(*rows, strict=True):
        asked = tokenizer(prompt, add_special_tokens=False).input_ids
        answer = [*tokenizer(completion, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        logprobs = tiny.next_token_logprobs(model, asked + answer)
        total -= sum(float(logprobs[len(asked) - 1 + t, token]) for t, token in enumerate(answer))
        count += len(answer)
    return total / count, count


def test_labels_by_hand(tokenizer):
    example = _example(tokenizer, "<|user|>1+1?<|assistant|>", "2")
    assert tokenizer.convert_ids_to_tokens(example["input_ids"]) == [
        "<|user|>", "1", "+", "1", "?", "<|assistant|>", "2", "<|end|>",
    ]  # fmt: skip
    two, end = tokenizer.convert_tokens_to_ids(["2", "<|end|>"])
    assert example["labels"] == [IGNORED] * 6 + [two, end]


def test_the_first_loss_is_that_of_the_completions_alone(imitate, tiny_path, tokenizer, rows, tmp_path):
    expected, count = loss_by_hand(tiny.policy(tiny_path), tokenizer, rows)
    _, outcome, metrics = imitate(tmp_path, steps=1)
    assert metrics[0]["loss"] == pytest.approx(expected, abs=1e-4)
    assert outcome.completion_tokens == count and outcome.examples == 6 and outcome.too_long == 0


def test_the_loss_falls_and_the_base_stays(imitate, tiny_path, tokenizer, rows, tmp_path):
    model, outcome, metrics = imitate(tmp_path, steps=12)
    assert [line["step"] for line in metrics] == list(range(1, 13))
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]
    assert loss_by_hand(model, tokenizer, rows)[0] < 0.7 * metrics[0]["loss"]
    assert base_sha256(model) == outcome.base_sha256 == base_sha256(tiny.policy(tiny_path))
    assert all(x.dtype == torch.float32 for x in adapter_tensors(model).values())
    assert metrics[-1]["learning_rate"] < 0.2 * max(line["learning_rate"] for line in metrics), "cosine"


def test_bfloat16_rounds_the_loss_and_not_the_adapter(imitate, tmp_path):
    exact = imitate(tmp_path / "exact", steps=2)[2]
    model, _, rounded = imitate(tmp_path / "rounded", steps=2, dtype="bfloat16")
    assert rounded[0]["loss"] != exact[0]["loss"]
    assert rounded[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02)
    assert not any(torch.equal(x, x.bfloat16().float()) for x in adapter_tensors(model).values())


def test_micro_batches_do_not_change_the_step(imitate, tmp_path):
    whole = imitate(tmp_path / "whole", steps=1)[2][0]
    parts = imitate(tmp_path / "parts", steps=1, micro_batch_size=2)[2][0]
    assert parts["loss"] == pytest.approx(whole["loss"], abs=1e-4)
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("batch_size", [6, 4])
def test_resumed_is_the_same_to_the_byte(imitate, tmp_path, batch_size):
    """Six examples, so every round through the data is one step, or one and a half."""
    whole, _, straight = imitate(tmp_path / "whole", batch_size=batch_size)
    with pytest.raises(Interrupted):
        imitate(tmp_path / "cut", stop_at=5, batch_size=batch_size)
    resumed, _, metrics = imitate(tmp_path / "cut", batch_size=batch_size)
    assert adapter_sha256(adapter_tensors(resumed)) == adapter_sha256(adapter_tensors(whole))
    assert [line["loss"] for line in metrics] == [line["loss"] for line in straight]
    again, _, metrics = imitate(tmp_path / "cut", batch_size=batch_size)
    assert adapter_sha256(adapter_tensors(again)) == adapter_sha256(adapter_tensors(whole)), "nothing left to train"
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("examples", range(1, 14))
@pytest.mark.parametrize("processes, rows", [(2, 2), (2, 3), (3, 1), (4, 2)])
def test_on_several_processes_every_example_counts_once_an_epoch(examples, processes, rows):
    """accelerate gives every process equally many full batches; what it repeats for that is just what is left out."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    batches = BatchSampler(range(examples), rows, drop_last=False)
    seen = []
    for process in range(processes):
        *before, last = BatchSamplerShard(batches, processes, process)
        assert len(last) == rows
        own = last_own_rows(examples, rows, processes, process)
        seen += [*(example for batch in before for example in batch), *last[:own]]
    assert sorted(seen) == list(range(examples))


def test_resumed_with_dropout_is_the_same_to_the_byte(imitate, tmp_path):
    """Dropout draws from torch's random numbers, whose state is in a checkpoint. That it draws at all: the first loss
    is not that of the policy without."""
    whole, _, straight = imitate(tmp_path / "whole", steps=4, dropout=0.3)
    with pytest.raises(Interrupted):
        imitate(tmp_path / "cut", steps=4, dropout=0.3, stop_at=3)
    resumed, _, metrics = imitate(tmp_path / "cut", steps=4, dropout=0.3)
    assert adapter_sha256(adapter_tensors(resumed)) == adapter_sha256(adapter_tensors(whole))
    assert [line["loss"] for line in metrics] == [line["loss"] for line in straight]
    assert abs(straight[0]["loss"] - imitate(tmp_path / "without", steps=1)[2][0]["loss"]) > 1e-2


def test_what_is_too_long_is_left_out_not_cut(imitate, tokenizer, rows, tmp_path):
    lengths = [len(_example(tokenizer, p, c)["input_ids"]) for p, c in zip(*rows, strict=True)]
    limit = sorted(lengths)[3]
    kept = [i for i, length in enumerate(lengths) if length <= limit]
    _, outcome, metrics = imitate(tmp_path / "a", max_length=limit, steps=1, batch_size=len(kept))
    assert (outcome.examples, outcome.too_long) == (len(kept), 6 - len(kept)) and outcome.too_long > 0
    short = ([rows[0][i] for i in kept], [rows[1][i] for i in kept])
    assert imitate(tmp_path / "b", rows=short, steps=1, batch_size=len(kept))[2][0]["loss"] == metrics[0]["loss"]
    with pytest.raises(TrainingError, match="all 6 examples are longer than max_length"):
        imitate(tmp_path / "c", max_length=5)


def test_packed_rows_do_not_see_each_other(imitate, tmp_path):
    """All six examples in one row, or each in its own: the same loss and gradient, or packing is refused."""
    apart = imitate(tmp_path / "apart", steps=1, max_length=512)[2][0]
    packed = imitate(tmp_path / "packed", steps=1, max_length=512, batch_size=1, packing=True)[2][0]
    assert packed["loss"] == pytest.approx(apart["loss"], abs=1e-4)
    assert packed["grad_norm"] == pytest.approx(apart["grad_norm"], rel=1e-3)


def test_a_loss_that_is_no_number_stops(imitate, tmp_path):
    """A learning rate that blows the adapter up (more than a recipe may ask for) ends in one line, not in a broken
    adapter."""
    with pytest.raises(TrainingError, match="training stopped"):
        imitate(tmp_path, wild={"learning_rate": 1e30}, lr_scheduler_type="constant", warmup_ratio=0.0)
