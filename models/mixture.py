"""A mixture inside the network: in each layer each token is answered by several experts of a panel, softly weighed.

PEFT's Arrow (arXiv 2405.11157) does the weighing, without any training: an expert's prototype v_e in a layer is the
direction that its update answers most to, the leading right singular vector of B_e A_e (15 steps of power iteration),
and a token with input x takes

    y = W x + sum_e c_e (alpha_e / rank_e) B_e A_e x,     c = softmax(|v_e . x| / temperature) over the top_k of them

X-LoRA, PEFT's other mixture, is not taken: it learns a classifier, which is a training stage of its own, generates
without a KV cache (15 times as slow as one expert on the shipped student), and its layers refuse a 4-bit base.

PEFT wants equal ranks and puts its router on every layer that has a target's name; so narrower experts are filled up
with zeros, which changes no product, and all of them are cut to the layers in which they act.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.adapters import load_adapters, plain_config, read_adapter
from models.engines.protocol import ADAPTER_CONFIG, ADAPTER_TENSORS
from models.engines.routed import adapter_name
from models.experts import Panel, PanelError, expert_folder
from models.settings import MixtureSettings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ROUTER = "arrow_router"


def layers_of(settings: MixtureSettings, layers: int) -> tuple[int, ...]:
    """In which of so many layers experts act; of the middle half at least one."""
    if settings.layers == "all":
        return tuple(range(layers))
    first = layers // 4
    return tuple(range(first, max(layers - first, first + 1)))


def mixture_model(
    base: PreTrainedModel, panel: Panel, folder: Path, settings: MixtureSettings, *, seed: int
) -> PeftModel:
    """The base with the experts of a panel acting together, none of them trainable.

    Args:
        folder: the panel's; seed: of the power iteration by which prototypes are found.

    Raises:
        AdapterError: an expert cannot be read, or is more than plain LoRA.
        PanelError: the panel has fewer than two experts or than `top_k`, or they adapt different layers.
    """
    from peft import ArrowConfig, LoraConfig

    names = panel.names
    if len(names) < 2:
        raise PanelError(f"mixture: the panel has {len(names)} experts; it takes two to mix")
    top_k = settings.top_k or len(names)
    if top_k > len(names):
        raise PanelError(f"top_k: {top_k} is more than the panel's {len(names)} experts; at most {len(names)}")
    acting = layers_of(settings, base.config.num_hidden_layers)
    rank = max(expert.rank for expert in panel.experts)
    with tempfile.TemporaryDirectory() as made:
        prepared = {adapter_name(name): Path(made) / name for name in names}
        targets = {
            name: _prepare(expert_folder(folder, name), prepared[adapter_name(name)], acting, rank) for name in names
        }
        _must_be_alike(targets)
        model = load_adapters(base, prepared)
    arrow = ArrowConfig(top_k=top_k, router_temperature=settings.temperature, rng_seed=seed)
    arrow.task_adapter_names = list(prepared)
    arrow.gks_adapter_names = []
    router = LoraConfig(
        arrow_config=arrow, r=rank, target_modules=list(targets[names[0]]), layers_to_transform=list(acting)
    )
    model.add_adapter(ROUTER, router)
    model.set_adapter(ROUTER)
    model.requires_grad_(False)
    return model


def _must_be_alike(targets: Mapping[str, tuple[str, ...]]) -> None:
    """Experts that adapt the same in each layer, and something. Raises PanelError where they do not."""
    one, *others = targets
    for name in others:
        if targets[name] != targets[one]:
            told = " and ".join(", ".join(targets[each]) or "none" for each in (one, name))
            raise PanelError(
                f"mixture: experts {one!r} and {name!r} adapt different layers ({told}); train them with the same "
                "`lora.targets`"
            )
    if not targets[one]:
        raise PanelError("mixture: no expert adapts anything in the layers that are mixed; say `layers: all`")


def _prepare(source: Path, target: Path, layers: tuple[int, ...], rank: int) -> tuple[str, ...]:
    """Write an expert cut to some layers and filled up to a rank; its update there is the same.

    Returns:
        what it adapts in a layer, sorted.
    """
    from safetensors.torch import save_file

    config = plain_config(source)
    tensors = {
        name: _filled(tensor, name, rank) for name, tensor in read_adapter(source).items() if _layer(name) in layers
    }
    targets = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in tensors})
    changed = {
        "r": rank,
        "lora_alpha": config["lora_alpha"] * rank / config["r"],
        "target_modules": targets,
        "layers_to_transform": list(layers),
    }
    target.mkdir()
    save_file(tensors, target / ADAPTER_TENSORS)
    (target / ADAPTER_CONFIG).write_text(json.dumps(dict(config) | changed), encoding="utf-8")
    return tuple(targets)


def _filled(tensor: torch.Tensor, name: str, rank: int) -> torch.Tensor:
    """A (rank x in) with more rows, or B (out x rank) with more columns, of zeros."""
    rows, columns = (rank, tensor.shape[1]) if ".lora_A." in name else (tensor.shape[0], rank)
    filled = tensor.new_zeros(rows, columns)
    filled[: tensor.shape[0], : tensor.shape[1]] = tensor
    return filled


def _layer(name: str) -> int | None:
    """The number of the layer that a tensor is in."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None
