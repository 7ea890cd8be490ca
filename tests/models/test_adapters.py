"""Adapters: saved and loaded without losing a bit, strictly, in float32; a reference that stays as it is."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from models.adapters import (
    REFERENCE,
    AdapterError,
    adapter_files,
    adapter_sha256,
    adapter_tensors,
    add_reference,
    load_adapter,
    new_adapter,
    read_adapter,
    save_adapter,
    write_adapter,
)
from models.base import load_base
from models.settings import Lora

IDS = [5, 17, 99, 3, 250, 8]
# of a layer of the tiny model; all of them are adapted where the recipe says nothing
LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture(scope="module")
def saved(tiny_path, tmp_path_factory):
    """(folder, hash, log-probabilities) of a saved policy."""
    folder = tmp_path_factory.mktemp("adapter")
    model = tiny.policy(tiny_path)
    return folder, save_adapter(model, folder), tiny.next_token_logprobs(model, IDS)


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def train_step(model, seed=0):
    """One AdamW step on random tokens."""
    torch.manual_seed(seed)
    ids = torch.randint(0, tiny.VOCABULARY, (2, 12))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    model.zero_grad()


def test_a_new_adapter_starts_as_the_base(tiny_path):
    base = load_base(str(tiny_path), "nf4", "auto")
    before = tiny.next_token_logprobs(base, IDS)
    model = new_adapter(base, Lora(rank=4, alpha=8.0), seed=0)
    assert torch.equal(tiny.next_token_logprobs(model, IDS), before)
    tensors = adapter_tensors(model)
    assert len(tensors) == 2 * len(LINEAR) * tiny.LAYERS
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32
        assert (tensor == 0).all() == ("lora_B" in name), name
    assert trainable(model) == {name for name, _ in model.named_parameters() if ".lora_" in name}


def test_a_new_adapter_follows_from_its_seed_alone(tiny_path):
    def fresh(seed):
        torch.rand(seed + 3)
        state = torch.random.get_rng_state()
        made = adapter_sha256(adapter_tensors(tiny.policy(tiny_path, noise=0, seed=seed)))
        assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers are not used up"
        return made

    assert fresh(1) == fresh(1) != fresh(2)


def test_saved_and_loaded_is_the_same_to_the_bit(tiny_path, saved, tmp_path):
    folder, digest, logprobs = saved
    model = load_adapter(load_base(str(tiny_path), "nf4", "auto"), folder)
    assert adapter_sha256(adapter_tensors(model)) == digest == adapter_sha256(read_adapter(folder))
    assert torch.equal(tiny.next_token_logprobs(model, IDS), logprobs)
    assert trainable(model) == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters() if parameter.requires_grad)
    assert save_adapter(model, tmp_path) == digest
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes(), file


def test_in_memory_it_is_the_files_that_are_saved(tiny_path, saved, tmp_path):
    """The very bytes that PEFT writes, the config's order of sets apart; and a folder of them is an adapter."""
    files = adapter_files(tiny.policy(tiny_path))
    assert files.config == (saved[0] / "adapter_config.json").read_bytes()
    assert files.tensors == (saved[0] / "adapter_model.safetensors").read_bytes()
    tiny.policy(tiny_path).save_pretrained(str(tmp_path / "theirs"))
    theirs = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    theirs["target_modules"] = sorted(theirs["target_modules"])
    assert json.loads(files.config) == theirs
    files.write(tmp_path)
    assert adapter_sha256(read_adapter(tmp_path)) == saved[1]


def test_peft_itself_reads_what_was_saved(tiny_path, saved):
    from peft import PeftModel

    folder, _, logprobs = saved
    model = PeftModel.from_pretrained(load_base(str(tiny_path), "nf4", "auto"), str(folder))
    assert torch.equal(tiny.next_token_logprobs(model, IDS), logprobs)


def test_the_reference_is_not_saved_with_the_policy(tiny_path, saved, tmp_path):
    model = tiny.policy(tiny_path)
    add_reference(model, {name: x + 1 for name, x in adapter_tensors(model).items()}, "here")
    assert save_adapter(model, tmp_path) == saved[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in saved[0].iterdir())


def test_the_config_file_is_sorted(saved):
    """PEFT writes a set in the order of the process's hash seed: the same adapter would be another file each time."""
    text = (saved[0] / "adapter_config.json").read_text()
    config = json.loads(text)
    assert config["target_modules"] == LINEAR
    assert list(config) == sorted(config)
    assert not any(isinstance(value, list) and value != sorted(value) for value in config.values())


def test_one_bit_or_one_name_changes_the_hash():
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    digest = adapter_sha256(tensors)
    assert adapter_sha256({"b": torch.ones(4), "a": torch.zeros(2, 3)}) == digest, "not of the order"
    flipped = torch.zeros(2, 3)
    flipped.view(torch.uint8)[1, 2] ^= 1
    for other in (
        {"a": flipped, "b": torch.ones(4)},
        {"a": torch.zeros(3, 2), "b": torch.ones(4)},
        {"a": torch.zeros(2, 3), "c": torch.ones(4)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(4)},
    ):
        assert adapter_sha256(other) != digest


def test_float32_values_survive_a_4_bit_base(tiny_path, tmp_path):
    """A step of 1e-5 on a weight of 0.1 is far below bfloat16's spacing there (2^-4 * 2^-7 = 4.9e-4)."""
    model = tiny.policy(tiny_path)
    tensors = {name: torch.full_like(x, 0.1 + 1e-5) for name, x in adapter_tensors(model).items()}
    write_adapter(model, tensors)
    save_adapter(model, tmp_path)
    read = read_adapter(tmp_path)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert torch.tensor(0.1 + 1e-5).bfloat16() == torch.tensor(0.1).bfloat16()


def damaged(folder, to, change):
    to.mkdir()
    tensors = load_file(folder / "adapter_model.safetensors")
    (to / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    save_file(change(tensors), to / "adapter_model.safetensors")
    return to


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: dict(sorted(t.items())[1:]), "1 adapter tensors are missing, the first is"),
        (lambda t: t | {"base_model.model.lm_head.lora_A.weight": torch.zeros(1)}, "1 tensors have no place in this"),
        (lambda t: t | {min(t): torch.zeros(3, 5)}, r"is \(3, 5\), this model wants \(4, "),
        (lambda t: {name.replace("lora_A", "lora_X"): x for name, x in t.items()}, "14 adapter tensors are missing"),
    ],
    ids=["missing", "extra", "shape", "renamed"],
)
def test_what_does_not_fit_is_one_clear_error(tiny_path, saved, tmp_path, change, message):
    folder = damaged(saved[0], tmp_path / "a", change)
    with pytest.raises(AdapterError, match=message) as caught:
        load_adapter(load_base(str(tiny_path), "nf4", "auto"), folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_an_adapter_for_another_model_or_none_at_all(tiny_path, saved, tmp_path):
    with pytest.raises(AdapterError, match=r"adapter_config\.json is missing"):
        load_adapter(load_base(str(tiny_path), "nf4", "auto"), tmp_path)
    with pytest.raises(AdapterError, match="tensors are missing"):
        load_adapter(load_base("embedded/student", "nf4", "auto"), saved[0])
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "adapter_config.json").write_text((saved[0] / "adapter_config.json").read_text())
    with pytest.raises(AdapterError, match="is not a readable adapter"):
        read_adapter(cut)
    (cut / "adapter_model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    with pytest.raises(AdapterError, match="is not a readable adapter"):
        read_adapter(cut)
    (cut / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match=r"adapter_config\.json is not readable"):
        load_adapter(load_base(str(tiny_path), "nf4", "auto"), cut)


def test_a_failed_write_changes_nothing(tiny_path):
    model = tiny.policy(tiny_path)
    before = adapter_sha256(adapter_tensors(model))
    tensors = {name: x + 1 for name, x in adapter_tensors(model).items()}
    tensors[max(tensors)] = torch.zeros(1)
    with pytest.raises(AdapterError):
        write_adapter(model, tensors)
    assert adapter_sha256(adapter_tensors(model)) == before


def test_the_tensors_given_and_taken_are_copies(tiny_path):
    model = tiny.policy(tiny_path)
    tensors = adapter_tensors(model)
    digest = adapter_sha256(tensors)
    write_adapter(model, tensors)
    next(iter(tensors.values())).zero_()
    assert adapter_sha256(adapter_tensors(model)) == digest
    next(iter(adapter_tensors(model).values())).zero_()
    assert adapter_sha256(adapter_tensors(model)) == digest


def test_training_moves_the_policy_and_not_the_reference(tiny_path):
    model = tiny.policy(tiny_path)
    start = adapter_tensors(model)
    add_reference(model, start, "here")
    assert not any(REFERENCE in name for name in trainable(model))
    for step in range(3):
        train_step(model, step)
    assert adapter_sha256(adapter_tensors(model, REFERENCE)) == adapter_sha256(start)
    moved = adapter_tensors(model)
    assert all(not torch.equal(moved[name], start[name]) for name in start)
    assert not any(p.grad is not None for name, p in model.named_parameters() if REFERENCE in name)
