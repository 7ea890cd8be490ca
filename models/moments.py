"""AdamW's moments of an adapter, kept in its folder so that another stage goes on as if there had been no end.

    optimizer.safetensors    of each tensor of the adapter NAME: NAME.exp_avg, NAME.exp_avg_sq, and NAME.step

Names are those of the adapter's file, and so independent of the order in which a trainer numbers its parameters. PEFT
and vLLM do not look at the file. The first moment is a mean of gradients, the second one of their squares (arXiv
1412.6980); both are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from models.adapters import POLICY, AdapterError
from models.expert_files import MOMENTS

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

PARTS = ("exp_avg", "exp_avg_sq", "step")


def save_moments(model: PeftModel, optimizer: torch.optim.Optimizer, folder: Path) -> Path:
    """Write what the optimizer, which has taken a step, knows of the policy's tensors; returns the file."""
    from safetensors.torch import save_file

    state = optimizer.state_dict()["state"]
    found = {
        f"{name}.{part}": state[at][part].detach().cpu().contiguous()
        for at, name, _ in _numbered(model, optimizer)
        for part in PARTS
    }
    save_file(dict(sorted(found.items())), folder / MOMENTS)
    return folder / MOMENTS


def load_moments(model: PeftModel, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Have a new optimizer of the policy begin with the moments in an adapter's folder.

    Raises:
        AdapterError: there are none, or they are another adapter's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / MOMENTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} is not readable: {error}; write `optimizer: fresh`") from error
    numbered = list(_numbered(model, optimizer))
    shapes = {f"{name}.{part}": () if part == "step" else parameter.shape
              for _, name, parameter in numbered for part in PARTS}  # fmt: skip
    if shapes.keys() != tensors.keys() or any(tuple(tensors[name].shape) != tuple(shapes[name]) for name in shapes):
        raise AdapterError(f"{path}: the moments are not of this adapter; write `optimizer: fresh`")
    state = {at: {part: tensors[f"{name}.{part}"] for part in PARTS} for at, name, _ in numbered}
    # the optimizer puts them where its parameters are
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def _numbered(model: PeftModel, optimizer: torch.optim.Optimizer) -> Iterator[tuple[int, str, torch.nn.Parameter]]:
    """(number in the optimizer's state, name in the adapter's file, tensor) of all that is trained."""
    names = {id(parameter): name.replace(f".{POLICY}.", ".") for name, parameter in model.named_parameters()}
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for at, parameter in enumerate(trained):
        yield at, names[id(parameter)], parameter
