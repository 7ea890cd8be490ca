"""Shapes of models for the planner, without torch or the network: from a config.json at hand, or a short table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from models.families import ALL_LINEAR, LINEARS, SEPARATE, TIED, read_config, refused
from models.paths import model_place


class Unknown(Exception):
    """A model whose shape cannot be told; the message says why."""


@dataclass(frozen=True)
class Shape:
    """A dense decoder of a family that models/families.py knows."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    tied: bool
    head_size: int = 0
    """0: hidden / heads."""
    names: tuple[str, ...] = SEPARATE
    """Of a block's linear layers."""

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one block: name -> (inputs, outputs)."""
        size = self.head_size or self.hidden // self.heads
        queries, keys = self.heads * size, self.kv_heads * size
        shapes = {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "qkv_proj": (self.hidden, queries + 2 * keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.mlp),
            "up_proj": (self.hidden, self.mlp),
            "gate_up_proj": (self.hidden, 2 * self.mlp),
            "down_proj": (self.mlp, self.hidden),
        }
        return {name: shapes[name] for name in self.names}

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
    def cache_numbers(self) -> int:
        """Keys and values of a token, in all blocks."""
        return 2 * self.layers * self.kv_heads * (self.head_size or self.hidden // self.heads)

    def adapter_parameters(self, rank: int, targets: Iterable[str]) -> int:
        """Of a LoRA adapter: rank (inputs + outputs) per target."""
        wanted = {target.rpartition(".")[2] for target in targets}
        adapted = [size for name, size in self.linears.items() if name in wanted or ALL_LINEAR in wanted]
        return self.layers * sum(rank * sum(size) for size in adapted)


QWEN2 = {
    "0.5b": Shape(896, 24, 14, 2, 4864, 151936, True),
    "1.5b": Shape(1536, 28, 12, 2, 8960, 151936, True),
    "3b": Shape(2048, 36, 16, 2, 11008, 151936, True),
    "7b": Shape(3584, 28, 28, 4, 18944, 152064, False),
    "14b": Shape(5120, 48, 40, 8, 13824, 152064, False),
    "32b": Shape(5120, 64, 40, 8, 27648, 152064, False),
}
QWEN3 = {
    "0.6b": Shape(1024, 28, 16, 8, 3072, 151936, True, 128),
    "1.7b": Shape(2048, 28, 16, 8, 6144, 151936, True, 128),
    "4b": Shape(2560, 36, 32, 8, 9728, 151936, True, 128),
    "8b": Shape(4096, 36, 32, 8, 12288, 151936, False),
    "14b": Shape(5120, 40, 40, 8, 17408, 151936, False),
}
LLAMA3 = {
    "1b": Shape(2048, 16, 32, 8, 8192, 128256, True),
    "3b": Shape(3072, 28, 24, 8, 8192, 128256, True),
    "8b": Shape(4096, 32, 32, 8, 14336, 128256, False),
}
PHI = {
    "phi-3-mini": Shape(3072, 32, 32, 32, 8192, 32064, False, names=LINEARS["phi3"]),
    "phi-4-mini": Shape(3072, 32, 24, 8, 8192, 200064, True, names=LINEARS["phi3"]),
}
GEMMA3 = {
    "270m": Shape(640, 18, 4, 1, 2048, 262144, True, 256),
    "1b": Shape(1152, 26, 4, 1, 6912, 262144, True, 256),
}
OLMO2 = {
    "1b": Shape(2048, 16, 16, 16, 8192, 100352, False),
    "7b": Shape(4096, 32, 32, 32, 11008, 100352, False),
}
SMOLLM2 = {
    "135m": Shape(576, 30, 9, 3, 1536, 49152, True),
    "360m": Shape(960, 32, 15, 5, 2560, 49152, True),
    "1.7b": Shape(2048, 24, 32, 32, 8192, 49152, True),
}
SIZE = r"(?:^|[-/])([0-9.]+[bm])(?:[-/]|$)"
KNOWN: tuple[tuple[str, str, Mapping[str, Shape]], ...] = (
    (r"r1-distill-qwen", SIZE, QWEN2 | {"1.5b": replace(QWEN2["1.5b"], tied=False)}),
    (r"r1-distill-llama", SIZE, LLAMA3),
    (r"qwen2\.5-(?!vl|omni)", SIZE, QWEN2),
    (r"qwen3-(?!vl|omni)", SIZE, QWEN3),
    (r"llama-3(?:\.[12])?-", SIZE, LLAMA3),
    (r"mistral-7b-(?:instruct-)?v0\.3", r"(7b)", {"7b": Shape(4096, 32, 32, 8, 14336, 32768, False)}),
    (r"phi-[34]-mini", r"(phi-[34]-mini)", PHI),
    (r"gemma-3-", SIZE, GEMMA3),
    (r"olmo-2-", SIZE, OLMO2),
    (r"smollm2-", SIZE, SMOLLM2),
)
"""(in a model's name, what tells the size, shapes by size), in lower case; the first that fits."""


def shape_of(model: str) -> Shape:
    """The shape of a base or teacher, without the network.

    Raises:
        Unknown: nothing is known of it, or it is no dense decoder of text.
    """
    config = read_config(model)
    if config is not None:
        return _from_config(model, config)
    name = model_place(model).path.lower()
    family = next(((size, shapes) for mark, size, shapes in KNOWN if re.search(mark, name)), None)
    size = re.search(family[0], name) if family is not None else None
    if family is None or size is None or size[1] not in family[1]:
        raise Unknown(
            f"the shape of {model} is not known here (no config.json at hand); fetch the model once, then plan again"
        )
    return family[1][size[1]]


def _from_config(model: str, config: Mapping[str, object]) -> Shape:
    kind = config.get("model_type")
    if reason := refused(config):
        raise Unknown(f"{model} {reason.partition(';')[0]}: its parameters are not counted, and nothing is planned")
    if kind not in LINEARS:
        raise Unknown(
            f"the layers of {model} ({kind}) are not those of a dense family that is known; nothing is planned"
        )
    try:
        return Shape(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            mlp=config["intermediate_size"],
            vocab=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", kind in TIED)),
            head_size=config.get("head_dim") or 0,
            names=LINEARS[kind],
        )
    except KeyError as error:
        raise Unknown(f"{model}: its config.json has no {error}, so nothing can be planned") from error
