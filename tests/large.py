"""A random model of a billion parameters, in two shards, with an adapter: large enough that memory shows."""

import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.adapters import linear_layers
from models.base import load_tokenizer, skeleton
from models.checkpoint import write_shards
from models.engines.protocol import ADAPTER_CONFIG, ADAPTER_TENSORS, Weight

RANK = 16


def write(folder: Path) -> tuple[Path, Path]:
    """Of the shape of Llama 3.2 1B; (base, adapter)."""
    from transformers import LlamaConfig

    path, adapter = folder / "large", folder / "adapter"
    config = LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True, max_position_embeddings=2048,
        architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    config.save_pretrained(path)
    load_tokenizer("embedded/student").save_pretrained(path)
    modules = skeleton(str(path))
    weights = [
        Weight(name, tuple(one.shape), torch.bfloat16, partial(_random, tuple(one.shape), i))
        for i, (name, one) in enumerate(modules.named_parameters())
    ]
    half = len(weights) // 2
    write_shards(
        path, {f"model-0000{i}-of-00002.safetensors": part for i, part in ((1, weights[:half]), (2, weights[half:]))}
    )
    adapter.mkdir()
    tensors = {}
    for i, name in enumerate(linear_layers(modules)):
        layer = modules.get_submodule(name)
        tensors[f"base_model.model.{name}.lora_A.weight"] = _random((RANK, layer.in_features), i).float()
        tensors[f"base_model.model.{name}.lora_B.weight"] = _random((layer.out_features, RANK), -1 - i).float()
    save_file(tensors, adapter / ADAPTER_TENSORS, {"format": "pt"})
    (adapter / ADAPTER_CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}))
    return path, adapter


def _random(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
