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


LOSSES = ["dapo", "grpo", "dr_grpo", "bnpo"]


def split(rows, budget, *, loss_type="dapo", mask=True, **others):
    return micro_batches(
        rows, budget, loss_type=loss_type, mask_zero_variance=mask, num_items=TOKENS, pad=PAD, **others
    )


def padded(batch):
    """Tokens of the forward pass: rows x longest."""
    lengths = batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)
    return len(lengths) * int(lengths.max())


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


@pytest.mark.parametrize("budget", [1, 16, 30, 10**6])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_what_has_a_gradient_is_kept_and_nothing_else(budget, mask, loss_type):
    batches = split(ROWS, budget, mask=mask, loss_type=loss_type)
    kept = [r for r in ROWS if r.in_loss and not (mask and r.zero_variance)]
    assert sum(len(batch["prompt_ids"]) for batch in batches) == len(kept)
    assert contents(batches)[0] == wanted(kept)
    assert all(batch["num_items_in_batch"] == TOKENS for batch in batches), "counted before anything is masked"


def test_a_row_with_an_advantage_stays_though_its_group_has_no_variance():
    """All right, and one of them breaks the format: a small advantage is a gradient."""
    rows = [replace(row(5, zero=True), advantage=-0.09), row(6, zero=True)]
    assert contents(split(rows, 100))[0] == wanted(rows[:1])


def test_every_micro_batch_is_cut_to_its_own_longest():
    batches = split(ROWS, 30)
    for batch in batches:
        assert batch["completion_mask"].sum(1).max() == batch["completion_ids"].shape[1]
        assert batch["prompt_mask"].sum(1).max() == batch["prompt_ids"].shape[1]
        assert (batch["completion_ids"][batch["completion_mask"] == 0] == PAD).all()
        assert (batch["prompt_mask"].diff(dim=1) >= 0).all(), "prompts are padded on the left"
        assert (batch["completion_mask"].diff(dim=1) <= 0).all(), "completions on the right"


def test_passes_are_filled_by_hand():
    """Rows of 15, 12, 10, 9 and 5 tokens in the loss, 30 tokens a pass: 15 and 12 (2 x 15), 10, 9 and 5 (3 x 10). With
    29 there is one row of 15, then 12 and 10 (2 x 12; a third would make 36), then 9 and 5."""
    assert [padded(batch) for batch in split(ROWS, 30)] == [30, 30]
    assert [(padded(batch), len(batch["prompt_ids"])) for batch in split(ROWS, 29)] == [(15, 1), (24, 2), (18, 2)]
    assert len(split(ROWS, 10**6)) == 1 and len(split(ROWS, 1)) == 5, "a row longer than the budget goes alone"


@pytest.mark.parametrize("loss_type", LOSSES)
def test_a_fifth_of_the_rows_is_a_fifth_of_the_work(loss_type):
    """1,024 rows of 60 to 99 tokens, 16 of them at once; 200 teach something. The passes made before were 64."""
    rows = [row(40 + i % 40, 20, zero=i % 128 >= 25, seed=i) for i in range(1024)]
    whole, few = (split(rows, 16 * 100, mask=mask, loss_type=loss_type) for mask in (False, True))
    assert all(padded(batch) <= 1600 for batch in [*whole, *few])
    assert len(whole) <= 57 and len(few) <= 12
    assert sum(map(padded, few)) == pytest.approx(sum(map(padded, whole)) * 200 / 1024, rel=0.1)
    assert sum(len(batch["prompt_ids"]) for batch in few) == 200


def test_nothing_to_learn_from_is_one_pass_over_two_tokens():
    (batch,) = split([row(5, zero=True), row(3, in_loss=False)], 2)
    assert batch["prompt_ids"].shape == batch["completion_ids"].shape == (1, 1)
    assert contents([batch]) == ([], 0)


def of_processes(parts, budget, **settings):
    """The micro-batches of each process, whose row lengths the others learn."""
    told = []

    def tell(lengths):
        told.append(lengths)
        return lengths

    for rows in parts:
        split(rows, budget, longest=tell, **settings)
    largest = [max(column) for column in zip(*told, strict=True)]
    return [split(rows, budget, longest=lambda _: largest, **settings) for rows in parts]


@pytest.mark.parametrize("budget", [1, 30, 60])
def test_processes_cut_alike_whatever_they_have(budget):
    """TRL gathers a number per row at every pass. One process has five rows in the loss, one has two, one has none."""
    few = [row(9, seed=5), row(30, seed=6), *[row(4, zero=True)] * 6]
    none = [row(12, zero=True)] * 8
    parts = of_processes([ROWS, few, none], budget)
    assert len({tuple(len(batch["prompt_ids"]) for batch in batches) for batches in parts}) == 1
    assert all(len(batch["prompt_ids"]) == 1 or padded(batch) <= budget for batches in parts for batch in batches)
    assert contents(parts[0])[0] == wanted([r for r in ROWS if r.in_loss and not r.zero_variance])
    assert contents(parts[1])[0] == wanted(few[:2]) and contents(parts[2]) == ([], 0)
    assert sum(batch["completion_ids"].shape[1] for batch in parts[2]) == len(parts[2]), "filled up with single tokens"


# the gradient


@pytest.fixture(scope="module")
def model(tiny_path):
    made = tiny.policy(tiny_path, quantize="none", noise=0.02)
    install_scoring(made.get_base_model())
    return made.train()


def loss_of(model, batch, beta, loss_type):
    """TRL's losses at ratio 1 (`dapo`: arXiv 2503.14476, eq. 8), truncated importance weights, plus beta * k3."""
    logprobs, _ = completion_logprobs(model, batch, 1.0)
    mask = batch["completion_mask"]
    weight = torch.exp((logprobs.detach() - batch["sampling_per_token_logps"]) * mask).clamp(max=3.0)
    ratio = torch.exp(logprobs - logprobs.detach())
    per_token = -ratio * batch["advantages"][:, None] * weight
    with torch.no_grad(), model.disable_adapter():
        reference = completion_logprobs(model, batch, 1.0)[0]
    per_token = (per_token + beta * k3(logprobs, reference)) * mask
    mean = {
        "dapo": lambda: per_token.sum() / batch["num_items_in_batch"],
        "grpo": lambda: (per_token.sum(1) / mask.sum(1).clamp(min=1)).mean(),
        "bnpo": lambda: per_token.sum() / mask.sum().clamp(min=1),
        "dr_grpo": lambda: per_token.sum() / (len(mask) * 14),
    }
    return mean[loss_type]() * batch["share"]


def gradient(model, batches, beta, loss_type="dapo"):
    model.zero_grad()
    for batch in batches:
        loss_of(model, batch, beta, loss_type).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(a, b):
    """Within 1e-6 of the largest gradient of all (or of 1, where that is smaller)."""
    scale = max(1.0, *(x.abs().max().item() for x in a.values()))
    return max((a[name] - b[name]).abs().max().item() for name in a) < 1e-6 * scale


def one_big_batch(rows):
    """All rows, unsorted, padded to the longest, those out of the loss too: what TRL makes of a step."""
    width, length = max(len(r.prompt) for r in rows), max(len(r.completion) for r in rows)
    shape = (len(rows), length)
    batch = {
        "prompt_ids": torch.full((len(rows), width), PAD),
        "prompt_mask": torch.zeros(len(rows), width, dtype=torch.long),
        "completion_ids": torch.full(shape, PAD),
        "completion_mask": torch.zeros(shape, dtype=torch.int),
        "sampling_per_token_logps": torch.zeros(shape),
        "advantages": torch.tensor([r.advantage for r in rows]),
        "num_items_in_batch": TOKENS,
        "share": torch.tensor(1.0),
    }
    for i, r in enumerate(rows):
        batch["prompt_ids"][i, width - len(r.prompt) :] = r.prompt
        batch["prompt_mask"][i, width - len(r.prompt) :] = 1
        batch["completion_ids"][i, : len(r.completion)] = r.completion
        batch["completion_mask"][i, : len(r.completion)] = int(r.in_loss)
        batch["sampling_per_token_logps"][i, : len(r.completion)] = r.sampling_logprobs
    return [batch]


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("budget", [1, 30, 10**6])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_gradient_is_that_of_one_big_unsorted_batch(model, budget, beta, loss_type):
    whole = gradient(model, one_big_batch(ROWS), beta, loss_type)
    parts = gradient(model, split(ROWS, budget, mask=False, loss_type=loss_type), beta, loss_type)
    assert max(x.abs().max() for x in whole.values()) > 1e-3
    assert same(whole, parts)


def test_masking_zero_variance_takes_their_kl_gradient_and_nothing_else(model):
    masked = gradient(model, split(ROWS, 40), 0.1)
    without = gradient(model, one_big_batch([replace(r, in_loss=r.in_loss and not r.zero_variance) for r in ROWS]), 0.1)
    kept = gradient(model, split(ROWS, 40, mask=False), 0.1)
    assert same(masked, without) and not same(masked, kept)
    # without a KL penalty they have no gradient at all
    masked, kept = gradient(model, split(ROWS, 40), 0.0), gradient(model, split(ROWS, 40, mask=False), 0.0)
    assert same(masked, kept)


@pytest.mark.parametrize("loss_type", LOSSES)
def test_a_step_with_nothing_to_learn_has_a_gradient_of_zero(model, loss_type):
    rows = [row(5, zero=True), row(3, in_loss=False)]
    found = gradient(model, split(rows, 2, loss_type=loss_type), 0.1, loss_type)
    assert found and all((x == 0).all() for x in found.values())
