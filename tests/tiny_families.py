"""Tiny random models of the families that a recipe may name, with the shipped tokenizer: hidden 128, 2 layers, heads of
32 (the smallest that vLLM's CPU attention takes)."""

from collections.abc import Mapping
from pathlib import Path

import torch

from models.base import load_tokenizer

# model_type, and what sets the family apart from Llama's defaults
FAMILIES: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "mistral": ("mistral", {"sliding_window": 24, "head_dim": 32}),
    "phi3": ("phi3", {"pad_token_id": 0}),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 24, "tie_word_embeddings": True,
            "layer_types": ["sliding_attention", "full_attention"], "final_logit_softcapping": 5.0,
        },
    ),
    "olmo2": ("olmo2", {}),
    "smollm": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
}  # fmt: skip
SHAPE = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15,
}  # fmt: skip


def config_of(family: str):
    """The configuration of a family's tiny model."""
    from transformers import AutoConfig

    model_type, own = FAMILIES[family]
    return AutoConfig.for_model(model_type, **SHAPE | own)


def write_family(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a family's tiny model: distributions far from uniform, no bias zero and no norm one, so that a lost one
    would show."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer("embedded/student")
    config = config_of(family)
    config.eos_token_id, config.pad_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id, None
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
