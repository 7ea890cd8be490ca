"""Shapes of models for the planner, without torch or the network: from a config.json at hand, or a short table."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.paths import model_path


@dataclass(frozen=True)
class Shape:
    """A Llama-like decoder (Qwen2, Qwen3, Llama, Mistral)."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    tied: bool
    head_size: int = 0
    """0: hidden / heads."""

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one block: name -> (inputs, outputs)."""
        size = self.head_size or self.hidden // self.heads
        return {
            "q_proj": (self.hidden, self.heads * size),
            "k_proj": (self.hidden, self.kv_heads * size),
            "v_proj": (self.hidden, self.kv_heads * size),
            "o_proj": (self.heads * size, self.hidden),
            "gate_proj": (self.hidden, self.mlp),
            "up_proj": (self.hidden, self.mlp),
            "down_proj": (self.mlp, self.hidden),
        }

    @property
    def block_parameters(self) -> int:
        """Of all linear layers in all blocks; norms and biases are below 0.1 % and left out."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def embedding_parameters(self) -> int:
        """Embedding and head; one matrix where they are tied."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """In all."""
        return self.block_parameters + self.embedding_parameters

    @property
    def active_parameters(self) -> int:
        """That a token is multiplied with: the blocks and the head."""
        return self.block_parameters + self.vocab * self.hidden

    @property
    def kv_per_token(self) -> int:
        """Numbers that the KV cache holds per token."""
        return 2 * self.layers * self.kv_heads * (self.head_size or self.hidden // self.heads)

    def adapter_parameters(self, rank: int, targets: Iterable[str]) -> int:
        """Of a LoRA adapter: rank (inputs + outputs) per target."""
        return self.layers * sum(rank * sum(self.linears[name]) for name in targets if name in self.linears)


QWEN = {
    "0.5b": Shape(896, 24, 14, 2, 4864, 151936, True),
    "1.5b": Shape(1536, 28, 12, 2, 8960, 151936, True),
    "3b": Shape(2048, 36, 16, 2, 11008, 151936, True),
    "7b": Shape(3584, 28, 28, 4, 18944, 152064, False),
    "14b": Shape(5120, 48, 40, 8, 13824, 152064, False),
    "32b": Shape(5120, 64, 40, 8, 27648, 152064, False),
}
"""Qwen2.5, also -Instruct, -Math and -Coder."""
R1 = QWEN | {"1.5b": Shape(1536, 28, 12, 2, 8960, 151936, False)}
"""DeepSeek-R1-Distill-Qwen."""


def shape_of(model: str) -> Shape | None:
    """The shape of a base or teacher; None where nothing is known without the network."""
    model = model_path(model)
    name = model.lower()
    found = _from_file(Path(model).expanduser() / "config.json") or _from_cache(model)
    if found is not None:
        return found
    size = re.search(r"(?:^|[-/])([0-9.]+b)(?:[-/]|$)", name)
    if size is None or ("qwen2.5" not in name and "r1-distill-qwen" not in name):
        return None
    return (R1 if "r1-distill" in name else QWEN).get(size[1])


def _from_cache(model: str) -> Shape | None:
    """From the Hugging Face cache, if the model has been fetched before."""
    home = (
        os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    )
    snapshots = sorted(Path(home).glob(f"models--{model.replace('/', '--')}/snapshots/*/config.json"))
    return _from_file(snapshots[-1]) if snapshots else None


def _from_file(path: Path) -> Shape | None:
    if not path.is_file():
        return None
    try:
        config: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Shape(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            mlp=config["intermediate_size"],
            vocab=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
            head_size=config.get("head_dim") or 0,
        )
    except (ValueError, KeyError, TypeError):
        return None  # another architecture: the planner says that it cannot tell
