"""The files of an expert as PEFT writes them, read without torch and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from models.engines.protocol import ADAPTER_CONFIG, ADAPTER_TENSORS
from settings.files import sha256_of

FILES = (ADAPTER_CONFIG, ADAPTER_TENSORS)
MOMENTS = "optimizer.safetensors"
"""What an expert may have besides: its optimizer's moments (models/moments.py)."""
ROUTER_CONFIG = "router.json"
NOT_EDITED = "the file is not meant to be edited; put back what it was"
Hashes = Mapping[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]
"""sha256 of files by name."""


class PanelError(ValueError):
    """A panel that cannot be read, is not what its panel.json says, or cannot be changed as asked."""

    user_message = True


def adapter_config(source: Path) -> Mapping[str, object]:
    """What PEFT wrote of the adapter in a folder.

    Raises:
        PanelError: it is not there, or not that of a LoRA adapter.
    """
    path = source / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise PanelError(f"{source} holds no adapter ({ADAPTER_CONFIG} is missing)") from None
    except (ValueError, RecursionError) as error:
        raise PanelError(f"{path} is no JSON ({error}); put the whole file there") from error
    rank = config.get("r") if isinstance(config, dict) and config.get("peft_type") == "LORA" else None
    if type(rank) is not int or rank < 1:
        raise PanelError(f"{path} is not that of a LoRA adapter")
    return config


def tensor_shapes(source: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of an adapter's tensors by name, from the header of their file, which also says how long that is.

    Raises:
        PanelError: it is not there, cut off, or no such file.
    """
    path = source / ADAPTER_TENSORS
    if not path.is_file():
        raise PanelError(f"{source} holds no adapter ({path.name} is missing)")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length < 2**27 else b""
    try:
        about = {name: one for name, one in json.loads(header).items() if name != "__metadata__"}
        end = max(one["data_offsets"][1] for one in about.values())
        shapes = {name: tuple(map(int, one["shape"])) for name, one in about.items()}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        shapes, end = {}, -1
    if 8 + length + end != path.stat().st_size:
        raise PanelError(f"{path} is cut off or no safetensors file; put the whole file there")
    return shapes


def router_arms(source: Path) -> tuple[str, ...]:
    """The arms that the router in a folder knows, `base` first. Raises PanelError where it is none."""
    path = source / ROUTER_CONFIG
    try:
        return tuple(map(str, json.loads(path.read_bytes())["arms"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PanelError(f"{path} is not that of a router ({error}); {NOT_EDITED}") from error


def must_be_files(place: Path, files: Hashes, what: str) -> None:
    """Raises PanelError where a folder's files are missing, or are not these; `what`: whose they are."""
    for file, digest in files.items():
        path = place / file
        if not path.is_file():
            raise PanelError(f"{what}: {path} is missing; put it back")
        if sha256_of(path) != digest:
            raise PanelError(f"{what}: {path} is not what panel.json says (edited, or cut off); put it back")
