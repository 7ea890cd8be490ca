"""A checkpoint's files, read and written one tensor at a time: a model of any size passes through in little memory.

Files keep the names that the base gave them, so that an index of shards looks like the one it came from. A checkpoint
whose files are not safetensors, or whose tensors are named otherwise than transformers names them, is loaded whole.
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from models.base import ModelError
from models.engines.protocol import Weight
from models.paths import model_place

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES: Mapping[torch.dtype, str] = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Of merged weights, as a safetensors header calls them."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a base as its files hold them.

    Fields:
        files: name of a safetensors file -> the names of its tensors that the model has, each in one file alone.
    """

    files: Mapping[str, tuple[str, ...]]
    _paths: Mapping[str, Path] = field(default_factory=dict)
    _loaded: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def read(self, file: str, name: str) -> torch.Tensor:
        """One tensor, in its own dtype, on the CPU."""
        if file not in self._paths:
            return self._loaded[name].detach().clone()
        from safetensors import safe_open

        # opened anew for each: the pages of a mapped file count as ours until it is closed
        with safe_open(self._paths[file], framework="pt") as opened:
            return opened.get_tensor(name).clone()

    @classmethod
    def of(cls, base: str, model: nn.Module) -> "Checkpoint":
        """The files of a Hub id, a local folder or a shipped model.

        Args:
            model: the base's modules, without weights: what it does not have (a tied head written twice, a buffer of an
                older version) is left out.

        Raises:
            ModelError: it cannot be found or read.
        """
        from safetensors import SafetensorError

        wanted = {name for name, _ in model.named_parameters()}
        try:
            paths = _files(base)
            held = {file: tuple(name for name in _names(path) if name in wanted) for file, path in paths.items()}
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ModelError(f"model '{base}': its files cannot be read: {error}") from error
        names = [name for one in held.values() for name in one]
        if len(names) == len(wanted):
            return cls({file: one for file, one in held.items() if one}, paths)
        return cls._whole(base)

    @classmethod
    def _whole(cls, base: str) -> "Checkpoint":
        from transformers import AutoModelForCausalLM

        place = model_place(base)
        loaded = AutoModelForCausalLM.from_pretrained(place.path, revision=place.revision, dtype="auto")
        tensors = dict(loaded.named_parameters())
        return cls({SINGLE: tuple(tensors)}, _loaded=tensors)


def _files(base: str) -> dict[str, Path]:
    """Name -> path of its safetensors files; none where it has no such files."""
    if (index := file_of(base, INDEX)) is not None:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        names = [SINGLE]
    paths = {name: path for name in names if (path := file_of(base, name)) is not None}
    return paths if len(paths) == len(names) else {}


def file_of(model: str, name: str) -> Path | None:
    """A file of a Hub id, a local folder or a shipped model; None where it has none of that name."""
    from transformers.utils import cached_file

    place = model_place(model)
    path = cached_file(
        place.path, name, revision=place.revision,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return None if path is None else Path(path)


def _names(path: Path) -> Sequence[str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        return opened.offset_keys()


def write_shards(folder: Path, shards: Mapping[str, Sequence[Weight]]) -> None:
    """Write a checkpoint of these files, each tensor as it is made, and its index where there are several.

    Raises:
        OSError: the disk is full, say.
    """
    for file, weights in shards.items():
        _write(folder / file, weights)
    if len(shards) == 1:
        return
    whole = [weight for weights in shards.values() for weight in weights]
    index = {
        "metadata": {"total_size": bytes_of(whole), "total_parameters": sum(math.prod(one.shape) for one in whole)},
        "weight_map": {weight.name: file for file, weights in shards.items() for weight in weights},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def bytes_of(weights: Iterable[Weight]) -> int:
    """What tensors take."""
    return sum(math.prod(weight.shape) * weight.dtype.itemsize for weight in weights)


def _write(path: Path, weights: Sequence[Weight]) -> None:
    """A safetensors file: the header's length, the header, the tensors one behind another.

    The library writes only what is in memory as a whole. Format:
    https://huggingface.co/docs/safetensors/index#format
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for weight in weights:
        end = at + bytes_of((weight,))
        header[weight.name] = {"dtype": DTYPES[weight.dtype], "shape": list(weight.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for weight in weights:
            made = weight.make().contiguous()
            if (tuple(made.shape), made.dtype) != (weight.shape, weight.dtype):
                raise ValueError(
                    f"{weight.name}: announced {weight.shape} {weight.dtype}, made {made.shape} {made.dtype}"
                )
            file.write(made.flatten().view(torch.uint8).numpy().data)
