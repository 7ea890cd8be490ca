"""Merging an adapter into its base's checkpoint, file by file and one tensor at a time, for an export.

What the trainer has in memory is not touched, or needed: a linear layer is quantised and decoded again by itself, as it
was when the base was loaded for training, and the adapter's update is added in float32.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from models.adapters import AdapterError, linear_layers, read_updates
from models.base import arithmetic, end_tokens, load_config, load_tokenizer, nf4_values, skeleton
from models.checkpoint import Checkpoint, file_of, write_shards
from models.engines.protocol import Weight
from models.settings import MergeBase, Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def merged_shards(
    model: Model, adapter: Path | None, dtype: torch.dtype, base: MergeBase = "dequantized"
) -> dict[str, tuple[Weight, ...]]:
    """The base's checkpoint with an adapter folded in, by file; nothing is computed before a tensor is made, and no
    more than one of them is in memory at a time.

    Args:
        adapter: folder of the policy; None is the bare base.
        dtype: of the merged weights.
        base: what the adapter is folded into. `dequantized` are the very values that it was trained on: linear layers
            quantised and decoded again, everything rounded to `model.dtype`. `original` are those of the checkpoint,
            which is another model than the one that was trained.

    Raises:
        ModelError: the base or the adapter cannot be read, or do not fit.
    """
    modules = skeleton(model.base)
    layers = dict.fromkeys(linear_layers(modules))
    updates = {} if adapter is None else read_updates(adapter)
    if unknown := sorted(updates.keys() - layers.keys()):
        raise AdapterError(f"{adapter}: {len(unknown)} layers are not of {model.base}, the first is '{unknown[0]}'")
    checkpoint = Checkpoint.of(model.base, modules)
    shapes = {name: tuple(parameter.shape) for name, parameter in modules.named_parameters()}
    quantised = {f"{name}.weight" for name in layers} if model.quantize == "nf4" else set()

    def made(file: str, name: str) -> torch.Tensor:
        value = checkpoint.read(file, name).to("cuda" if torch.cuda.is_available() else "cpu")
        if base == "dequantized":
            value = value.to(arithmetic(model.dtype))
            value = nf4_values(value) if name in quantised else value
        update = updates.get(name.removesuffix(".weight"))
        if update is not None:
            value = update.added_to(value.to(torch.float32))
        return value.to(dtype).cpu()

    return {
        file: tuple(Weight(name, shapes[name], dtype, partial(made, file, name)) for name in names)
        for file, names in checkpoint.files.items()
    }


def write_merged(model: Model, shards: Mapping[str, Sequence[Weight]], folder: Path, dtype: torch.dtype) -> None:
    """Write a model that stands alone: `merged_shards` as safetensors, the base's configuration, and its tokenizer as
    it was trained with: the chat template is the prompt format, the end one of those at which the model stops.

    Raises:
        ModelError: the base cannot be read.
        OSError: the folder cannot be written, its disk being full, say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(model.base)
    config.dtype = dtype
    config.save_pretrained(folder)
    tokenizer = load_tokenizer(model.base, model.prompt)
    tokenizer.save_pretrained(folder)
    generation = generation_config(model.base, tokenizer)
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    write_shards(folder, shards)


def generation_config(base: str, tokenizer: "PreTrainedTokenizerBase") -> dict[str, object]:
    """The base's own, with the tokens at which its completions ended in training."""
    own = file_of(base, "generation_config.json")
    config = json.loads(own.read_text(encoding="utf-8")) if own is not None else {}
    ends = sorted(end_tokens(base, tokenizer), key=lambda token: (token != tokenizer.eos_token_id, token))
    return config | {"eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": tokenizer.pad_token_id}
