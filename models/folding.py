"""Folding an adapter into its base for the engine, at every sync, always out of place.

W' = dequantize(W) + (alpha / rank) B A, in float32, cast once. The trainer's own tensors are only read: merging into a
4-bit base and unmerging drifts by many times the adapter's effect (see README, "What is not silently wrong").
"""

from functools import partial

import torch
from torch import nn

from models.adapters import POLICY, LoraUpdate
from models.base import dequantized, is_4bit
from models.engines.protocol import Weight, Weights


def folded_weights(model: nn.Module, adapter: str | None = POLICY, to: torch.dtype = torch.float32) -> Weights:
    """Every linear layer that is quantised or adapted, folded, and those beside it; nothing is computed before the
    weights are gone through.

    Names are those of the base's own checkpoint. vLLM packs q, k and v, or gate and up, into one layer, and rebuilds a
    layer only from all of its parts: so what stands beside an adapted layer is in, and a bias follows its weight.
    `adapter=None` gives the dequantised base; `to` is what each is cast to in the end.
    """
    weights = []
    layers = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") or (isinstance(module, nn.Linear) and not name.endswith(".base_layer"))
    }
    changed = {_parent(name) for name, module in layers.items() if hasattr(module, "lora_A") or is_4bit(module)}
    for name, module in layers.items():
        if _parent(name) not in changed:
            continue
        linear = module.base_layer if hasattr(module, "lora_A") else module
        key = name.replace("base_model.model.", "", 1)
        shape = (linear.out_features, linear.in_features)
        weights.append(Weight(f"{key}.weight", shape, to, partial(_folded, module, adapter, to)))
        if linear.bias is not None:
            weights.append(Weight(f"{key}.bias", tuple(linear.bias.shape), to, partial(_bias, linear, to)))
    return Weights(tuple(weights))


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


@torch.no_grad()
def _folded(module: nn.Module, adapter: str | None, dtype: torch.dtype) -> torch.Tensor:
    if not hasattr(module, "lora_A"):
        return dequantized(module).to(dtype)
    weight = dequantized(module.base_layer)
    if adapter is not None and adapter in module.lora_A:
        down, up = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        LoraUpdate(down, up, module.scaling[adapter]).added_to(weight)
    return weight.to(dtype)


def _bias(linear: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    return linear.bias.detach().to(dtype, copy=True)
