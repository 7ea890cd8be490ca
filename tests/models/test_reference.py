"""References are what their names say, and stay where they were put."""

import pytest
import tiny
import torch

from models.adapters import (
    POLICY,
    REFERENCE,
    adapter_sha256,
    adapter_tensors,
    load_adapter,
    new_adapter,
    save_adapter,
    write_adapter,
)
from models.base import load_base
from models.reference import Reference
from models.settings import Lora
from models.training import TrainingError

IDS = [5, 17, 99, 3, 250, 8]


def reference_logprobs(model, reference):
    with reference.active(model):
        return tiny.next_token_logprobs(model, IDS)


def kinds(model, tiny_path):
    """(reference, the log-probabilities that it must give)"""
    other = tiny.policy(tiny_path, seed=5)
    with model.disable_adapter():
        base = tiny.next_token_logprobs(model, IDS)
    return {
        "base": (Reference("base", None), base),
        "start": (Reference("start", adapter_tensors(model)), tiny.next_token_logprobs(model, IDS)),
        "imitate": (Reference("imitate", adapter_tensors(other)), tiny.next_token_logprobs(other, IDS)),
    }


@pytest.mark.parametrize("kind", ["base", "start", "imitate"])
def test_each_reference_is_what_its_name_says_and_stays_it(tiny_path, kind):
    model = tiny.policy(tiny_path)
    reference, wanted = kinds(model, tiny_path)[kind]
    reference.install(model)
    assert model.active_adapter == POLICY
    own = tiny.next_token_logprobs(model, IDS)
    assert torch.equal(reference_logprobs(model, reference), wanted)
    assert torch.equal(tiny.next_token_logprobs(model, IDS), own), "outside the policy computes again"

    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.tensor([IDS])
    for _ in range(3):
        with torch.no_grad(), reference.active(model):
            model(ids)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.allclose(tiny.next_token_logprobs(model, IDS), own), "the policy moved"
    assert torch.equal(reference_logprobs(model, reference), wanted)
    reference.check(model)


def test_a_saved_reference_has_its_own_rank_scale_and_layers(tiny_path, tmp_path):
    """Rank 4 at scale 2 beside rank 2 at scale 3 on fewer layers; and of equal rank, where no shape would tell."""
    for at, lora in enumerate((Lora(rank=2, alpha=6.0, targets=("q_proj",)), Lora(rank=4, alpha=40.0))):
        other = new_adapter(load_base(str(tiny_path), "nf4", "float32"), lora, seed=3)
        write_adapter(other, {name: torch.full_like(t, 0.05) for name, t in adapter_tensors(other).items()})
        save_adapter(other, tmp_path / str(at))
        model = load_adapter(load_base(str(tiny_path), "nf4", "float32"), tmp_path / str(at))
        wanted = tiny.next_token_logprobs(model, IDS)
        policy = new_adapter(load_base(str(tiny_path), "nf4", "float32"), Lora(rank=4, alpha=8.0), seed=0)
        own = tiny.next_token_logprobs(policy, IDS)
        reference = Reference.saved("imitate", tmp_path / str(at))
        reference.replace(policy)
        reference.check(policy)
        assert torch.allclose(reference_logprobs(policy, reference), wanted, atol=1e-6)
        assert torch.equal(tiny.next_token_logprobs(policy, IDS), own) and not torch.allclose(own, wanted, atol=1e-3)


@pytest.mark.parametrize("kind", ["base", "start"])
def test_a_reference_has_no_dropout_while_the_policy_that_trains_has(tiny_path, kind):
    model = tiny.policy(tiny_path, dropout=0.5)
    reference, wanted = kinds(model, tiny_path)[kind]
    reference.install(model)
    model.train()
    ids = torch.tensor([IDS])

    def scored():
        with torch.no_grad():
            return model(ids).logits[0].float().log_softmax(-1)

    for _ in range(2):
        with reference.active(model):
            assert torch.allclose(scored(), wanted, atol=1e-5)
        assert model.training and not torch.allclose(scored(), scored(), atol=1e-3), "as before, with dropout"


def test_after_the_reference_was_active_the_policy_trains_and_it_does_not(tiny_path):
    model = tiny.policy(tiny_path)
    reference = Reference("start", adapter_tensors(model))
    reference.install(model)
    with pytest.raises(KeyError), reference.active(model):
        raise KeyError("in the middle")
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if f".{POLICY}." in name}
    assert model.active_adapter == POLICY


def test_a_changed_reference_is_found(tiny_path):
    model = tiny.policy(tiny_path)
    reference = Reference("start", adapter_tensors(model))
    reference.install(model)
    reference.check(model)
    tiny.nudge(model, 1e-4, adapter=REFERENCE)
    with pytest.raises(TrainingError, match="reference 'start' changed"):
        reference.check(model)


def test_one_reference_takes_the_place_of_another(tiny_path):
    model = tiny.policy(tiny_path)
    made = kinds(model, tiny_path)
    digest = adapter_sha256(adapter_tensors(model))
    for kind in ("start", "imitate", "base", "imitate"):
        reference, wanted = made[kind]
        reference.replace(model)
        assert torch.equal(reference_logprobs(model, reference), wanted), kind
        assert model.active_adapter == POLICY
    assert adapter_sha256(adapter_tensors(model)) == digest
