"""Scoring only what is in the loss gives what full logits give: values, entropies and gradients."""

import pytest
import tiny
import torch

from rl.logprobs import completion_logprobs, importance_weights, install_scoring

TEMPERATURE = 0.7


def batch(seed=0, rows=3, prompt=5, completion=7):
    """Left-padded prompts, right-padded completions, and one row that is masked altogether."""
    generator = torch.Generator().manual_seed(seed)
    made = {
        "prompt_ids": torch.randint(0, tiny.VOCABULARY, (rows, prompt), generator=generator),
        "prompt_mask": torch.ones(rows, prompt, dtype=torch.long),
        "completion_ids": torch.randint(0, tiny.VOCABULARY, (rows, completion), generator=generator),
        "completion_mask": torch.ones(rows, completion, dtype=torch.int),
    }
    made["prompt_mask"][1, :3] = 0
    made["completion_mask"][0, 4:] = 0
    made["completion_mask"][2] = 0
    return made


def by_full_logits(model, row, temperature=TEMPERATURE):
    """(log-probabilities, entropies) from all logits, row by row without padding, by their definitions."""
    logprobs, entropies = [], []
    for i in range(len(row["prompt_ids"])):
        prompt = row["prompt_ids"][i][row["prompt_mask"][i].bool()]
        length = int(row["completion_mask"][i].sum())
        width = row["completion_ids"].shape[1]
        padded = torch.zeros(width), torch.zeros(width)
        if length:
            completion = row["completion_ids"][i, :length]
            logits = model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1] / temperature
            log_p = logits - torch.logsumexp(logits, -1, keepdim=True)
            pad = torch.zeros(width - length)
            picked = torch.stack([log_p[t, completion[t]] for t in range(length)])
            padded = torch.cat([picked, pad]), torch.cat([-(log_p.exp() * log_p).sum(-1), pad])
        logprobs.append(padded[0])
        entropies.append(padded[1])
    return torch.stack(logprobs), torch.stack(entropies)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module", params=["nf4", "none"])
def model(request, tiny_path):
    made = tiny.policy(tiny_path, quantize=request.param)
    install_scoring(made.get_base_model())
    return made


@pytest.fixture(autouse=True)
def clean(model):
    model.zero_grad()
    model.train()


def test_values_are_those_of_the_full_softmax(model):
    given = batch()
    with torch.no_grad():
        ours = completion_logprobs(model, given, TEMPERATURE)
        theirs = by_full_logits(model, given)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert mine.shape == given["completion_ids"].shape and mine.dtype == torch.float32
        torch.testing.assert_close(mine, wanted, atol=2e-5, rtol=0)
    assert (ours[0][2] == 0).all() and (ours[0][0, 4:] == 0).all(), "nothing where nothing is scored"
    assert ours[0][0, 0] < 0 < ours[1][0, 0]


def test_a_uniform_head_by_hand(model):
    """With logits all equal every log-probability is -log V and the entropy log V, whatever the temperature."""
    head = model.get_output_embeddings()
    kept = head.weight.data.clone()
    head.weight.data.zero_()
    try:
        with torch.no_grad():
            logprobs, entropies = completion_logprobs(model, batch(), TEMPERATURE)
    finally:
        head.weight.data.copy_(kept)
    expected = torch.log(torch.tensor(float(tiny.VOCABULARY)))  # log 512 = 6.238
    torch.testing.assert_close(logprobs[1], -expected.expand(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(entropies[1], expected.expand(7), atol=1e-5, rtol=0)


def test_gradients_are_those_of_the_full_softmax(model):
    given = batch()
    weight = torch.linspace(-1, 2, given["completion_ids"].numel()).view_as(given["completion_ids"])
    (completion_logprobs(model, given, TEMPERATURE)[0] * weight).sum().backward()
    ours = gradients(model)
    model.zero_grad()
    (by_full_logits(model, given)[0] * weight).sum().backward()
    theirs = gradients(model)
    assert ours.keys() == theirs.keys() and all(".lora_" in name for name in ours)
    for name in ours:
        scale = theirs[name].abs().max()
        assert scale > 0 and (ours[name] - theirs[name]).abs().max() < 1e-4 * scale, name


def test_nothing_scored_is_a_gradient_of_zero(model):
    given = batch()
    given["completion_mask"][:] = 0
    logprobs, entropies = completion_logprobs(model, given, TEMPERATURE)
    assert (logprobs == 0).all() and (entropies == 0).all()
    logprobs.sum().backward()
    assert all((grad == 0).all() for grad in gradients(model).values())


def test_the_models_own_forward_is_still_there(model):
    logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits.shape == (1, 3, tiny.VOCABULARY)


def test_bfloat16_gives_the_gradient_within_rounding(tiny_path):
    """Two layers of products with 8 significant bits: a few parts in a hundred, where a spoilt 4-bit layer turns the
    gradient round altogether (bitsandbytes#2078)."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        model = tiny.policy(tiny_path, dtype=dtype)
        install_scoring(model.get_base_model())
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logprobs, _ = completion_logprobs(model, batch(), TEMPERATURE)
        logprobs.sum().backward()
        found[dtype] = logprobs.detach(), torch.cat([g.flatten() for g in gradients(model).values()])
    (exact, gradient), (rounded, coarse) = found["float32"], found["bfloat16"]
    assert 0 < float((exact - rounded).abs().sum() / exact.abs().sum()) < 0.03
    assert coarse.dtype == torch.float32
    assert float(torch.cosine_similarity(gradient, coarse, dim=0)) > 0.95


def test_importance_weights_by_hand():
    """Trainer 1/2 against the engine's 1/4: weight 2. The other way round 1/2. 1/2 against 1/16: 8, cut at 3. What is
    masked has 1, and so has a token for which the engine gave no number."""
    trainer = torch.tensor([[0.5, 0.25, 0.5, 0.5, 0.5]]).log()
    engine = torch.tensor([[0.25, 0.5, 1 / 16, 1e-9, torch.nan]]).log()
    mask = torch.tensor([[1, 1, 1, 0, 1]])
    found = importance_weights(trainer, engine, mask, largest=3.0)
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.5, 3.0, 1.0, 1.0]]))
