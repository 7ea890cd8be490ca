"""Export: adapter and merged model, reloaded and compared with the trained policy before it counts as done."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from evals.divergence import mean_kl
from models.adapters import adapter_sha256, load_adapter, read_adapter
from models.base import base_sha256, free_memory, load_base, to_float32
from models.merge import merged_model, save_merged
from models.training import TrainingError
from orchestra.work.resources import Resources

COMPARED = 16
# KL in nats a token between the exported model and the trained policy: what rounding the weights to that type costs
# (measured: float16 8e-6, bfloat16 3e-4), with room; merging wrongly costs 0.02 to 0.2
KL_LIMIT = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 5e-3}


@dataclass(frozen=True)
class ExportReport:
    """How the reloaded export compares with the policy that was trained."""

    kl: float
    agreement: float
    adapter_sha256: str


def export_policy(
    resources: Resources, adapter: Path, folder: Path, dtype: str, trained_on: str | None
) -> ExportReport:
    """Write folder/merged and folder/adapter, reload the merged model and compare it on the recipe's test problems.

    Args:
        adapter: folder of the policy.
        dtype: of the merged model.
        trained_on: hash of the base when the policy was trained; None where the stage did not record it.

    Raises:
        TrainingError: the base is not the one of training, or the reloaded model is not the policy.
    """
    from transformers import AutoModelForCausalLM

    recipe = resources.recipe
    model = recipe.model
    merged = folder / "merged"
    base = load_base(model.base, model.quantize, model.dtype)
    if trained_on is not None and base_sha256(base) != trained_on:
        raise TrainingError(
            f"the base {model.base!r} ({model.quantize}, {model.dtype}) is not the one that the policy was trained on "
            "(its hash is another); nothing was exported"
        )
    shutil.rmtree(merged, ignore_errors=True)
    exported = merged_model(model, adapter, getattr(torch, dtype))
    save_merged(exported, model.base, merged, model.prompt)
    del exported
    free_memory()
    shutil.copytree(adapter, folder / "adapter", dirs_exist_ok=True)
    policy = load_adapter(to_float32(base), adapter).eval()
    reloaded = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).to(policy.device).eval()
    asked = resources.test(recipe.all_stages[0])
    sequences = [(ids[: len(ids) // 2], ids[len(ids) // 2 :]) for ids in asked.tokens[:COMPARED] if len(ids) > 1]
    found = mean_kl(policy, reloaded, sequences, device=policy.device)
    if not found.kl <= KL_LIMIT[dtype]:
        raise TrainingError(
            f"{merged} is not the trained policy: KL {found.kl:.2g} nats a token "
            f"(allowed for {dtype}: {KL_LIMIT[dtype]:g})"
        )
    return ExportReport(found.kl, found.agreement, adapter_sha256(read_adapter(adapter)))
