"""Micro-batches: sorting, dropping and cutting leave the gradient of the whole batch as it was."""

from dataclasses import replace

import pytest
import tiny
import torch

from rl.batches import Row, micro_batches
from rl.kl import k3
from rl.logprobs import completion_logprobs, install_scoring

PAD = 506


def row(length, prompt=4, advantage=1.0, in_loss=True, zero=False, seed=0):
    generator = torch.Generator().manual_seed(100 * length + prompt + seed)
    return Row(
        prompt=torch.randint(0, 500, (prompt,), generator=generator),
        completion=torch.randint(0, 500, (length,), generator=generator),
        sampling_logprobs=-5 - torch.rand(length, generator=generator),
        advantage=0.0 if zero else advantage,
        in_loss=in_loss,
        zero_variance=zero,
    )


ROWS = [
    row(9, 3, 1.5),
    row(2, 8, -0.5),
    row(14, 5, -1.0, in_loss=False),
    row(5, 4, 0.7),
    row(7, 6, zero=True),
    row(1, 4, -0.7),
    row(12, 3, 0.3),
    row(7, 4, zero=True, seed=1),
]
TOKENS = torch.tensor(sum(len(r.completion) for r in ROWS if r.in_loss))


def split(rows, count, *, loss_type="dapo", mask=True):
    return micro_batches(rows, count, loss_type=loss_type, mask_zero_variance=mask, num_items=TOKENS, pad=PAD)


def contents(batches):
    """What is in the loss, whatever the order: {(prompt, completion, advantage)} and the number of tokens."""
    found, tokens = [], 0
    for batch in batches:
        for i in range(len(batch["prompt_ids"])):
            length = int(batch["completion_mask"][i].sum())
            if length:
                prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
                completion = batch["completion_ids"][i, :length].tolist()
                sampled = batch["sampling_per_token_logps"][i, :length].tolist()
                found.append((prompt, completion, sampled, batch["advantages"][i].item()))
                tokens += length
    return sorted(found), tokens


def wanted(rows):
    return sorted(
        (r.prompt.tolist(), r.completion.tolist(), r.sampling_logprobs.tolist(), pytest.approx(r.advantage))
        for r in rows
    )


# putting it together


@pytest.mark.parametrize("count", [1, 2, 3, 8, 12])
@pytest.mark.parametrize("mask", [True, False])
def test_dapo_keeps_what_has_a_gradient_and_nothing_else(count, mask):
    batches = split(ROWS, count, mask=mask)
    assert len(batches) == count
    kept = [r for r in ROWS if r.in_loss and not (mask and r.zero_variance)]
    found, _ = contents(batches)
    assert found == wanted(kept)
    assert all(batch["num_items_in_batch"] == TOKENS for batch in batches), "counted before anything is masked"


def test_every_micro_batch_is_cut_to_its_own_longest():
    batches = split(ROWS, 2)
    for batch in batches:
        assert batch["completion_mask"].sum(1).max() == batch["completion_ids"].shape[1]
        assert batch["prompt_mask"].sum(1).max() == batch["prompt_ids"].shape[1]
        assert (batch["completion_ids"][batch["completion_mask"] == 0] == PAD).all()
        assert (batch["prompt_mask"].diff(dim=1) >= 0).all(), "prompts are padded on the left"
        assert (batch["completion_mask"].diff(dim=1) <= 0).all(), "completions on the right"
    padded = sum(batch["completion_ids"].numel() for batch in batches)
    assert padded < 5 * 12, "sorted by length: less padding than five rows of the longest"


def test_micro_batches_are_of_about_equal_work():
    rows = [row(n, 2, seed=n) for n in range(1, 41)]
    tokens = [int(batch["completion_mask"].sum()) for batch in split(rows, 4)]
    assert max(tokens) - min(tokens) <= 40 and sum(tokens) == sum(range(1, 41))


def test_nothing_to_learn_from_is_one_masked_row():
    rows = [row(5, zero=True), row(3, in_loss=False)]
    batches = split(rows, 2)
    assert [len(batch["prompt_ids"]) for batch in batches] == [1, 1]
    assert contents(batches) == ([], 0)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo"])
def test_other_losses_keep_all_rows_in_equal_parts(loss_type):
    """They average within a micro-batch, so its size is part of the loss."""
    batches = split(ROWS, 4, loss_type=loss_type)
    assert [len(batch["prompt_ids"]) for batch in batches] == [2, 2, 2, 2]
    assert contents(batches)[0] == wanted([r for r in ROWS if r.in_loss and not r.zero_variance])
    if loss_type == "bnpo":  # divides by a micro-batch's own tokens, so the rows stay where they are
        assert contents(batches[:1])[0] == wanted(ROWS[:2])


# the gradient


@pytest.fixture(scope="module")
def model(tiny_path):
    made = tiny.policy(tiny_path, quantize="none", noise=0.02)
    install_scoring(made.get_base_model())
    return made.train()


def loss_of(model, batch, beta):
    """DAPO's loss (arXiv 2503.14476, eq. 8, at ratio 1, with truncated importance weights) plus beta * k3."""
    logprobs, _ = completion_logprobs(model, batch, 1.0)
    mask = batch["completion_mask"]
    weight = torch.exp((logprobs.detach() - batch["sampling_per_token_logps"]) * mask).clamp(max=3.0)
    ratio = torch.exp(logprobs - logprobs.detach())
    per_token = -ratio * batch["advantages"][:, None] * weight
    with torch.no_grad(), model.disable_adapter():
        reference = completion_logprobs(model, batch, 1.0)[0]
    per_token = per_token + beta * k3(logprobs, reference)
    return (per_token * mask).sum() / batch["num_items_in_batch"]


def gradient(model, batches, beta):
    model.zero_grad()
    for batch in batches:
        loss_of(model, batch, beta).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(a, b):
    """Within 1e-6 of the largest gradient of all (or of 1, where that is smaller)."""
    scale = max(1.0, *(x.abs().max().item() for x in a.values()))
    return max((a[name] - b[name]).abs().max().item() for name in a) < 1e-6 * scale


def one_big_batch(rows):
    """All rows, unsorted, padded to the longest, those out of the loss too."""
    (batch,) = micro_batches(rows, 1, loss_type="bnpo", mask_zero_variance=False, num_items=TOKENS, pad=PAD)
    return [batch]


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_gradient_is_that_of_one_big_unsorted_batch(model, count, beta):
    whole = gradient(model, one_big_batch(ROWS), beta)
    parts = gradient(model, split(ROWS, count, mask=False), beta)
    assert max(x.abs().max() for x in whole.values()) > 1e-3
    assert same(whole, parts)


def test_masking_zero_variance_takes_their_kl_gradient_and_nothing_else(model):
    masked = gradient(model, split(ROWS, 2), 0.1)
    without = gradient(model, one_big_batch([replace(r, in_loss=r.in_loss and not r.zero_variance) for r in ROWS]), 0.1)
    kept = gradient(model, split(ROWS, 2, mask=False), 0.1)
    assert same(masked, without) and not same(masked, kept)
    # without a KL penalty they have no gradient at all
    masked, kept = gradient(model, split(ROWS, 2), 0.0), gradient(model, split(ROWS, 2, mask=False), 0.0)
    assert same(masked, kept)


def test_a_step_with_nothing_to_learn_has_a_gradient_of_zero(model):
    found = gradient(model, split([row(5, zero=True), row(3, in_loss=False)], 2), 0.1)
    assert found and all((x == 0).all() for x in found.values())
