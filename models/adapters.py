"""Adapters: the only thing that trains. New ones, strict loading, frozen copies to measure KL against, hashes.

Adapter weights stay float32 also on a 4-bit base: at a learning rate of 1e-5 a bfloat16 weight of size 0.1 does not
move at all (its spacing there is 5e-4).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from models.base import ModelError, hash_tensor, skeleton
from models.engines.protocol import ADAPTER_CONFIG, ADAPTER_TENSORS, NOT_PLAIN, AdapterFiles
from models.families import ALL_LINEAR, unknown_targets
from models.settings import Lora

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

POLICY = "default"
REFERENCE = "reference"


class AdapterError(ModelError):
    """An adapter file that is missing, incomplete or made for another model."""


def new_adapter(base: "PreTrainedModel", lora: Lora, *, seed: int) -> "PeftModel":
    """Put a fresh LoRA adapter (B = 0, so the policy starts as the base; arXiv 2106.09685) on a frozen base.

    Raises:
        AdapterError: a target is no linear layer of this base.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=target_modules(base, lora.targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(base, config)
    _float32(model)
    return model


def linear_layers(base: "PreTrainedModel") -> list[str]:
    """Names of the linear layers that may be adapted: all but the output head, which may be the embedding too."""
    head = base.get_output_embeddings()
    return [name for name, module in base.named_modules() if isinstance(module, nn.Linear) and module is not head]


def linear_names(model: str) -> list[str]:
    """What `all-linear` means in a model by name, found without its weights."""
    return target_modules(skeleton(model), (ALL_LINEAR,))


def target_modules(base: "PreTrainedModel", targets: Sequence[str]) -> list[str]:
    """The names by which PEFT finds what `model.lora.targets` mean in this base. PEFT itself is content with any.

    Raises:
        AdapterError: one of them is no linear layer of this base.
    """
    layers = linear_layers(base)
    if fault := unknown_targets(targets, layers, base.config.model_type):
        raise AdapterError(f"model.lora.targets: {fault}")
    if tuple(targets) == (ALL_LINEAR,):
        return list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    return list(targets)


def load_adapter(base: "PreTrainedModel", folder: Path) -> "PeftModel":
    """Put a saved adapter on a base, trainable. Every tensor of the file must find its place and the reverse.

    Raises:
        AdapterError: the folder holds no adapter, or its tensors do not fit this base.
    """
    return load_adapters(base, {POLICY: folder})


def load_adapters(base: "PreTrainedModel", folders: Mapping[str, Path]) -> "PeftModel":
    """The same of several adapters under their names, whatever their ranks; the first is the active one.

    Raises:
        AdapterError: see `load_adapter`.
    """
    from peft import get_peft_model

    model = None
    for name, folder in folders.items():
        config = read_config(folder)
        if model is None:
            model = get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        write_adapter(model, read_adapter(folder), name, source=str(folder))
    _float32(model)
    return model


def read_config(folder: Path) -> "LoraConfig":
    """PEFT's configuration of a saved adapter, as of one that may train. Raises AdapterError."""
    from peft import LoraConfig

    try:
        config = LoraConfig.from_pretrained(_existing(folder))
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{folder}/{ADAPTER_CONFIG} is not readable: {error}") from error
    config.inference_mode = False
    return config


def add_reference(
    model: "PeftModel", tensors: Mapping[str, torch.Tensor], source: str, config: "LoraConfig | None" = None
) -> None:
    """Add a frozen second adapter named `reference` with these weights (as `adapter_tensors` gives them).

    Args:
        config: of that adapter; None: the policy's.
    """
    model.add_adapter(REFERENCE, replace(config or model.peft_config[POLICY]))
    write_adapter(model, tensors, REFERENCE, source=source)
    for name, parameter in model.named_parameters():
        if f".{REFERENCE}." in name:
            parameter.requires_grad_(False)
    model.set_adapter(POLICY)


@contextmanager
def acting(model: "PeftModel", adapter: str | None) -> Iterator[None]:
    """Inside, this adapter of the model is the active one, or none is; nothing becomes trainable by it."""
    if adapter is None:
        with model.disable_adapter():
            yield
        return
    before = model.active_adapter
    if before == adapter:
        yield
        return
    model.set_adapter(adapter, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(before)


def adapter_tensors(model: "PeftModel", adapter: str = POLICY) -> dict[str, torch.Tensor]:
    """Copies of an adapter's tensors by their name in a PEFT checkpoint (without the adapter's own name)."""
    mark = f".{adapter}."
    return {
        name.replace(mark, "."): parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if mark in name
    }


def write_adapter(
    model: "PeftModel", tensors: Mapping[str, torch.Tensor], adapter: str = POLICY, *, source: str = "the tensors given"
) -> None:
    """Copy tensors into an adapter of the model, strictly.

    Raises:
        AdapterError: a tensor is missing, left over, or of another shape.
    """
    mark = f".{adapter}."
    places = {name.replace(mark, "."): parameter for name, parameter in model.named_parameters() if mark in name}
    if missing := sorted(places.keys() - tensors.keys()):
        raise AdapterError(f"{source}: {len(missing)} adapter tensors are missing, the first is '{missing[0]}'")
    if extra := sorted(tensors.keys() - places.keys()):
        raise AdapterError(f"{source}: {len(extra)} tensors have no place in this model, the first is '{extra[0]}'")
    for name, parameter in places.items():
        if parameter.shape != tensors[name].shape:
            raise AdapterError(
                f"{source}: '{name}' is {tuple(tensors[name].shape)}, this model wants {tuple(parameter.shape)}"
            )
    for name, parameter in places.items():
        parameter.data = tensors[name].to(device=parameter.device, dtype=torch.float32, copy=True)


def read_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of a saved adapter by their name in the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _existing(folder) / ADAPTER_TENSORS
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} is not a readable adapter: {error}") from error


@dataclass(frozen=True)
class LoraUpdate:
    """What an adapter adds to a linear layer's weight (out x in): scaling * up @ down.

    Fields:
        down: A, rank x in; up: B, out x rank; scaling: alpha / rank.
    """

    down: torch.Tensor
    up: torch.Tensor
    scaling: float

    @torch.no_grad()
    def added_to(self, weight: torch.Tensor) -> torch.Tensor:
        """Adds it, in place and in float32, to a weight that is nobody else's; returns the same tensor."""
        up, down = (part.to(weight.device, torch.float32) for part in (self.up, self.down))
        return weight.addmm_(up, down, alpha=self.scaling)


def plain_config(folder: Path) -> Mapping[str, object]:
    """adapter_config.json of a saved adapter that is plain LoRA, whose update is (alpha / rank) B A.

    Raises:
        AdapterError: it is more than that.
    """
    config = json.loads((_existing(folder) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    more = sorted(key for key in NOT_PLAIN if config.get(key) not in (None, False, "none", {}, []))
    if more:
        raise AdapterError(f"{folder} is more than plain LoRA ({', '.join(more)}), and cannot be folded or merged")
    return config


def read_updates(folder: Path) -> dict[str, LoraUpdate]:
    """A saved adapter's updates by the layer's name in the base.

    Raises:
        AdapterError: it cannot be read, or is more than plain LoRA.
    """
    tensors = read_adapter(folder)
    config = plain_config(folder)
    mark = ".lora_A.weight"
    updates = {
        name.removeprefix("base_model.model.").removesuffix(mark): LoraUpdate(
            down, tensors[name.replace(mark, ".lora_B.weight")], config["lora_alpha"] / config["r"]
        )
        for name, down in tensors.items()
        if name.endswith(mark)
    }
    if 2 * len(updates) != len(tensors):
        raise AdapterError(f"{folder} holds {len(tensors)} tensors, {2 * len(updates)} of them LoRA's")
    return updates


def save_adapter(model: "PeftModel", folder: Path) -> str:
    """Save the policy's adapter in PEFT's format; returns its hash."""
    model.save_pretrained(str(folder), selected_adapters=[POLICY], save_embedding_layers=False)
    (folder / ADAPTER_CONFIG).write_bytes(_config(model))
    return adapter_sha256(adapter_tensors(model))


def adapter_files(model: "PeftModel", adapter: str = POLICY) -> AdapterFiles:
    """An adapter as `save_adapter` would write it, without a folder."""
    from safetensors.torch import save

    return AdapterFiles(_config(model, adapter), save(adapter_tensors(model, adapter), metadata={"format": "pt"}))


def _config(model: "PeftModel", adapter: str = POLICY) -> bytes:
    config = model.peft_config[adapter].to_dict() | {"inference_mode": True}
    # PEFT leaves a set's order to the hash seed: written sorted, the same adapter is the same file
    config["target_modules"] = sorted(config["target_modules"])
    # of a base from the Hub: whoever loads the adapter gets the weights that it was trained on
    config["revision"] = getattr(model.get_base_model().config, "_commit_hash", None)
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def adapter_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of an adapter's names, dtypes, shapes and bytes, whatever file or memory they come from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        hash_tensor(digest, tensors[name])
    return digest.hexdigest()


def _existing(folder: Path) -> Path:
    if not (folder / ADAPTER_CONFIG).is_file():
        raise AdapterError(f"{folder} holds no adapter ({ADAPTER_CONFIG} is missing)")
    return folder


def _float32(model: "PeftModel") -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
