"""Families of models, by the `model_type` in config.json: which cannot be a base, what their layers are called.

Imports nothing heavy: it is asked before anything is loaded.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from models.paths import model_place
from settings import near

ALL_LINEAR = "all-linear"

SEPARATE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
FUSED_MLP = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj")

LINEARS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "cohere", "exaone4", "gemma", "gemma2", "gemma3_text", "granite", "llama", "ministral", "mistral", "olmo",
            "olmo2", "olmo3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm",
        ),
        SEPARATE,
    ),
    **dict.fromkeys(("glm", "glm4"), FUSED_MLP),
    "phi3": FUSED,
}  # fmt: skip
"""The linear layers of one block of a dense decoder: four matrices of attention and three of a gated MLP, some of them
written as one (transformers' own modules)."""
TIED = frozenset({"cohere", "gemma", "gemma2", "gemma3_text", "smollm3"})
"""Families whose config.json says nothing where embedding and head are one matrix."""

EXPERTS = re.compile(r"(?:n_routed|num(?:_local)?|moe_num)_experts")


def read_config(model: str) -> Mapping[str, object] | None:
    """config.json of a shipped model, a local folder, or a Hub model that was fetched before; None where there is none
    at hand, or none that can be read."""
    home = os.environ.get("HF_HUB_CACHE") or os.path.join(os.environ.get("HF_HOME", "~/.cache/huggingface"), "hub")
    try:
        place = model_place(model)
        cached = Path(home).expanduser() / f"models--{place.path.replace('/', '--')}" / "snapshots"
        snapshots = sorted(cached.glob("*/config.json"), key=lambda path: (path.parent.name == place.revision, path))
        places = [Path(place.path).expanduser() / "config.json", *reversed(snapshots)]
        found = next((path for path in places if path.is_file()), None)
        config = json.loads(found.read_text(encoding="utf-8")) if found is not None else None
    except (OSError, ValueError):  # a name that no file can have, too
        return None
    return config if isinstance(config, dict) else None


def refused(config: Mapping[str, object]) -> str:
    """Why a model cannot be a base, to be said after its name; empty where it may be one."""
    kind = config.get("model_type")
    if _experts(config) > 1:
        return (
            f"is a mixture of experts ({kind}, {_experts(config)} of them), whose experts neither NF4 nor an adapter "
            "reaches; take a dense base (such a model may teach)"
        )
    if "quantization_config" in config:
        return (
            "is a checkpoint of quantised weights; take the original (`model.quantize: nf4` quantises it here, and an "
            "export needs the original values)"
        )
    if "vision_config" in config or "audio_config" in config:
        return f"is not a model of text alone ({kind}); take a base without images or sound"
    return ""


def _experts(config: Mapping[str, object]) -> int:
    parts = [config, config.get("text_config")]
    counts = [
        value
        for part in parts
        if isinstance(part, Mapping)
        for key, value in part.items()
        if EXPERTS.fullmatch(key) and isinstance(value, int)
    ]
    return max(counts, default=0)


def unknown_targets(targets: Sequence[str], layers: Iterable[str], model: str) -> str:
    """What to say of the first of `model.lora.targets` that is no linear layer of the model; empty where all are.

    Args:
        targets: as PEFT reads them, a layer's name or the end of it behind a dot; `all-linear` alone.
        layers: names of the linear layers that may be adapted.
    """
    named = list(layers)
    if tuple(targets) == (ALL_LINEAR,):
        return "" if named else f"{model} has no linear layers that could be adapted"
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in named):
            last = list(dict.fromkeys(name.rpartition(".")[2] for name in named))
            alone = " (which stands alone)" if target == ALL_LINEAR else ""
            return (
                f"{target!r} is no linear layer of {model}{alone}; it has {', '.join(last) or 'none'}, "
                f"and {ALL_LINEAR} means all of them{near(target, last)}"
            )
    return ""
