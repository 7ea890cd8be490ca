"""AdamW's moments kept beside an adapter: training goes on with them as if there had been no end."""

import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from models.adapters import AdapterError, adapter_sha256, adapter_tensors, load_adapter, save_adapter
from models.base import load_base
from models.engines.start import Capacity
from models.expert_files import MOMENTS
from models.moments import load_moments, save_moments
from models.training import checkpoint_at
from sft.settings import SftSettings
from sft.train import train_sft

STEPS = 3


class Interrupted(Exception):
    """Between two steps."""


@pytest.fixture(scope="module")
def train(tiny_path, tokenizer):
    """Trains a policy for some steps on one example, which every step sees, at a constant rate; returns its folder."""

    def trained(policy, folder, steps, moments=None, stop_at=None):
        settings = SftSettings(
            data=("x",), steps=steps, batch_size=1, learning_rate=1e-2, lr_scheduler_type="constant", warmup_ratio=0,
            save_steps=1,
        )  # fmt: skip
        (prompt,) = tiny.prompts(tokenizer, tiny.QUESTIONS[:1])
        folder.mkdir(exist_ok=True)

        def on_step(step, line):
            if line is not None and step == stop_at:
                raise Interrupted

        train_sft(policy, tokenizer, [prompt], ["7"], settings, folder, max_length=64, seed=5, report_to="none",
                  moments=moments, on_step=on_step)  # fmt: skip
        save_adapter(policy, folder)
        shutil.copyfile(checkpoint_at(folder / "checkpoints", steps) / MOMENTS, folder / MOMENTS)
        return folder

    return trained


def again(tiny_path, folder):
    """The adapter in a folder, on a freshly loaded base."""
    return load_adapter(load_base(str(tiny_path), "nf4", "float32"), folder)


@pytest.fixture(scope="module")
def runs(tiny_path, train, tmp_path_factory):
    """Folders of six steps in one, of the first three, and of three more with an optimizer that is kept or fresh."""
    root = tmp_path_factory.mktemp("moments")
    whole = train(tiny.policy(tiny_path, noise=0), root / "whole", 2 * STEPS)
    half = train(tiny.policy(tiny_path, noise=0), root / "half", STEPS)
    kept = train(again(tiny_path, half), root / "kept", STEPS, moments=half)
    fresh = train(again(tiny_path, half), root / "fresh", STEPS)
    return {"whole": whole, "half": half, "kept": kept, "fresh": fresh}


def digest(folder):
    return adapter_sha256(load_file(folder / "adapter_model.safetensors"))


def test_kept_is_as_if_there_had_been_no_end(runs):
    """To the bit, the adapter and the moments; a fresh optimizer's first steps are others."""
    assert digest(runs["kept"]) == digest(runs["whole"]) != digest(runs["half"])
    assert (runs["kept"] / MOMENTS).read_bytes() == (runs["whole"] / MOMENTS).read_bytes()
    assert digest(runs["fresh"]) not in (digest(runs["whole"]), digest(runs["half"]))


def test_a_killed_training_goes_on_with_its_own_moments(runs, tiny_path, train, tmp_path):
    """Not once more with those that it began with."""
    with pytest.raises(Interrupted):
        train(again(tiny_path, runs["half"]), tmp_path / "cut", STEPS, moments=runs["half"], stop_at=2)
    train(again(tiny_path, runs["half"]), tmp_path / "cut", STEPS, moments=runs["half"])
    assert digest(tmp_path / "cut") == digest(runs["whole"])
    assert (tmp_path / "cut" / MOMENTS).read_bytes() == (runs["whole"] / MOMENTS).read_bytes()


def test_the_file_says_of_each_tensor_its_moments_and_step(runs):
    found, adapter = load_file(runs["whole"] / MOMENTS), load_file(runs["whole"] / "adapter_model.safetensors")
    assert found.keys() == {f"{name}.{part}" for name in adapter for part in ("exp_avg", "exp_avg_sq", "step")}
    for name, x in adapter.items():
        first, second, step = (found[f"{name}.{part}"] for part in ("exp_avg", "exp_avg_sq", "step"))
        assert first.shape == second.shape == x.shape and first.dtype == second.dtype == torch.float32
        assert step == 2 * STEPS and (second >= 0).all()


def moved(policy, gradient):
    """An optimizer that has taken one step with this gradient everywhere."""
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()
    return optimizer


def test_worked_out_by_hand(tiny_path, tmp_path):
    """One step of gradient 2: 0.1 * 2 and 0.001 * 4. They are found again whatever numbers an optimizer gives."""
    policy = tiny.policy(tiny_path, noise=0)
    save_moments(policy, moved(policy, 2.0), tmp_path)
    trained = [p for p in policy.parameters() if p.requires_grad]
    other = torch.optim.AdamW([{"params": trained[3:]}, {"params": []}, {"params": trained[:3]}], lr=0.5)
    load_moments(policy, other, tmp_path)
    for parameter in trained:
        state = other.state[parameter]
        assert state["step"] == 1 and state["exp_avg"].shape == parameter.shape
        torch.testing.assert_close(state["exp_avg"], torch.full_like(parameter, 0.2))
        torch.testing.assert_close(state["exp_avg_sq"], torch.full_like(parameter, 0.004))
    assert other.param_groups[0]["lr"] == 0.5, "of the moments alone"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "optimizer.safetensors is not readable: .*; write `optimizer: fresh`"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is not readable"),
        (lambda path: save_file(dict(list(load_file(path).items())[1:]), path), "are not of this adapter"),
        (lambda path: save_file({k: x[..., None] for k, x in load_file(path).items()}, path), "are not of this"),
    ],
    ids=["missing", "cut", "one too few", "shapes"],
)  # fmt: skip
def test_moments_that_are_not_its_own_are_refused(tiny_path, tmp_path, spoil, said):
    policy = tiny.policy(tiny_path, noise=0)
    save_moments(policy, moved(policy, 1.0), tmp_path)
    spoil(tmp_path / MOMENTS)
    with pytest.raises(AdapterError, match=said):
        load_moments(policy, torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad]), tmp_path)


def test_moments_of_another_rank_are_refused(tiny_path, tmp_path):
    policy, other = tiny.policy(tiny_path, noise=0), tiny.policy(tiny_path, noise=0, rank=2)
    save_moments(policy, moved(policy, 1.0), tmp_path)
    with pytest.raises(AdapterError, match="the moments are not of this adapter; write `optimizer: fresh`"):
        load_moments(other, torch.optim.AdamW([p for p in other.parameters() if p.requires_grad]), tmp_path)


def test_peft_does_not_mind_the_file(runs, tiny_path):
    """The folder is loaded as it is without it."""
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(load_base(str(tiny_path), "none", "float32"), str(runs["kept"]))
    assert adapter_sha256(adapter_tensors(loaded)) == digest(runs["kept"])


@pytest.mark.slow
def test_vllm_does_not_mind_the_file(runs, tmp_path, tiny_path, own_engine):
    """It scores the same under the folder with it and under one without."""
    engine = own_engine(tiny_path, Capacity(max_model_len=64, max_num_seqs=4, lora_rank=8, loras=2))
    bare = shutil.copytree(runs["kept"], tmp_path / "bare")
    (bare / MOMENTS).unlink()
    engine.sync_panel({"with": runs["kept"], "without": bare})
    asked = [[5, 17, 99], [8, 4]], [[30, 31], [12]]
    one, two, base = (engine.score_routed(*asked, name) for name in ("with", "without", None))
    assert one == two != base
